"""Waits that take long are explained in the log: after a few seconds, and then at ever longer intervals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple


class Wait(NamedTuple):
    """Something that somebody waits for.

    Attributes:
        topic: is the same as long as it is the same wait.
        explanation: says who waits for whom; called only if it is time to tell.
    """

    topic: Hashable
    explanation: Callable[[], str]


class Patience:
    """Looks from time to time at what is waited for, as long as there is anything.

    Args:
        loop: has the clock.
        seconds: between two looks; 0 never looks.
        waits: all that is waited for now.
        tell: gets each explanation, and for how many seconds that has been waited for at least.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        waits: Callable[[], Iterable[Wait]],
        tell: Callable[[str, float], None],
    ) -> None:
        self._loop, self._seconds, self._waits, self._tell = loop, seconds, waits, tell
        self._looks: dict[Hashable, int] = {}  # how often each wait was there before
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = not seconds

    def wake(self) -> None:
        """Somebody may wait from now on."""
        if self._timer is None and not self._stopped:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        """Nothing is told any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        waits = list(self._waits())
        self._looks = {wait.topic: self._looks.get(wait.topic, -1) + 1 for wait in waits}
        for wait in waits:
            looks = self._looks[wait.topic]
            if looks & (looks - 1) == 0 < looks:  # 1, 2, 4, 8, ...
                self._tell(wait.explanation(), looks * self._seconds)
        if waits:
            self.wake()
