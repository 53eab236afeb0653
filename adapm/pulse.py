"""When a node ticks: at a bounded rate while there is work, ever more seldom as it gets quiet, not at all at rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

SLOWEST: Final = 0.016  # seconds between ticks that find nothing to do but must go on


class Pulse:
    """Calls `tick` by timers of the loop, whose clock is the node's clock.

    Args:
        rate: ticks per second, at most.
        tick: gets the time since the last tick, in ticks and at least 1; returns in how many ticks the next is due, 0
            if there is nothing to do but something under way, and None at rest: then whoever adds work says so.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: float, tick: Callable[[float], int | None]) -> None:
        self._loop = loop
        self._interval = 1.0 / rate
        self._tick = tick
        self._last = loop.time() - self._interval
        self._delay = self._interval
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer fires; not every loop's handles know
        self._stopped = False
        self._rest = asyncio.Event()
        self._rest.set()

    @property
    def resting(self) -> bool:
        """Whether no tick is to come."""
        return self._timer is None

    async def rest(self) -> None:
        """Returns as soon as no tick is to come."""
        await self._rest.wait()

    def quicken(self) -> None:
        """Something happened: the next tick comes as soon as the rate allows."""
        self._delay = self._interval
        self._schedule(max(self._loop.time(), self._last + self._interval))

    def stop(self) -> None:
        """No more ticks, whatever happens."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._rest.set()

    def _schedule(self, due: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._rest.clear()
        self._due = due
        self._timer = self._loop.call_at(due, self._beat)

    def _beat(self) -> None:
        now = self._loop.time()
        elapsed = max(1.0, (now - self._last) / self._interval)
        self._timer, self._last = None, now
        gap = self._tick(elapsed)
        if gap is None:
            self._delay = self._interval
            if self._timer is None:
                self._rest.set()
            return
        self._delay = gap * self._interval if gap else min(2 * self._delay, max(SLOWEST, self._interval))
        self._schedule(now + self._delay)
