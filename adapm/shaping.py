"""Slow networks on fast machines: a transport behind which every link has a given bandwidth and latency.

For experiments that are to tell on one machine how a run would do on a network that this machine does not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from adapm.errors import TransportError
from adapm.kernel import check, lib
from adapm.transport import OnFrame, OnLost, Transport

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Line:
    """One direction of a link: a token bucket that holds nothing, so that no two frames are on the line at a time.

    Args:
        per_byte: seconds that each byte takes.
        latency: seconds that every frame takes besides.
    """

    def __init__(self, per_byte: float, latency: float) -> None:
        self._per_byte = per_byte
        self._latency = latency
        self._free = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When a frame of so many bytes that is sent now is there: behind all earlier ones."""
        self._free = max(self._free, now) + size * self._per_byte
        return self._free + self._latency


class ShapedTransport(Transport):
    """A transport whose frames arrive as late as if each direction of each link had this bandwidth and this latency.

    Every node delays what it receives.  The time counts from when its loop takes a frame, so a frame that finds the
    loop busy is that much later than on a real line; greetings, signs of life and `queued` are as without delay.

    Args:
        make: makes the transport that carries the frames, with these two callbacks.
        node: see `Transport`.
        on_frame: see `Transport`.
        on_lost: see `Transport`.
        bandwidth: bytes per second; 0 for no limit.
        latency: seconds.
    """

    scheme = "shaped"

    def __init__(
        self,
        make: Callable[[OnFrame, OnLost], Transport],
        node: int,
        *,
        on_frame: OnFrame,
        on_lost: OnLost,
        bandwidth: float = 0.0,
        latency: float = 0.0,
    ) -> None:
        self._inner = make(self._take, self._lose)
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._lines = defaultdict[int, Line](lambda: Line(1 / bandwidth if bandwidth else 0.0, latency))
        self._under_way: list[tuple[float, int, int, bytes | TransportError]] = []  # a heap: due, number, peer, what
        self._leaving = set[int]()  # peers whose loss is under way
        self._numbers = itertools.count()
        self._timer = -1

    @property
    def rejected(self) -> int:
        """As the inner transport's."""
        return self._inner.rejected

    @rejected.setter
    def rejected(self, count: int) -> None:
        self._inner.rejected = count

    @property
    def last_rejected(self) -> str:
        """As the inner transport's."""
        return self._inner.last_rejected

    @last_rejected.setter
    def last_rejected(self, told: str) -> None:
        self._inner.last_rejected = told

    async def listen(self, address: str | None = None) -> str:
        found = await self._inner.listen(address)
        self._loop = asyncio.get_running_loop()
        self._timer = check(lib.adapm_timer_open())
        self._loop.add_reader(self._timer, self._arrive)
        return found

    async def connect(self, peer: int, address: str) -> None:
        await self._inner.connect(peer, address)

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        if peer not in self._leaving:  # else it gets nothing more, but whoever sends is to hear its last frames first
            self._inner.send(peer, frame, release)

    def queued(self, peer: int) -> int:
        return self._inner.queued(peer)

    def lanes(self, peer: int) -> tuple[str, ...]:
        return self._inner.lanes(peer)

    def obstacle(self, peer: int) -> str:
        return self._inner.obstacle(peer)

    async def close(self, linger: float = 2.0) -> None:
        await self._inner.close(linger)
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1
        self._under_way.clear()

    def _take(self, peer: int, frame: memoryview) -> None:
        self._delay(peer, frame.nbytes, bytes(frame))

    def _lose(self, peer: int, error: TransportError) -> None:
        self._leaving.add(peer)
        self._delay(peer, 0, error)  # behind the peer's last frame

    def _delay(self, peer: int, size: int, what: bytes | TransportError) -> None:
        number, due = next(self._numbers), self._lines[peer].arrival(time.monotonic(), size)
        heappush(self._under_way, (due, number, peer, what))
        if self._under_way[0][1] == number:
            self._set_timer()

    def _set_timer(self) -> None:
        check(lib.adapm_timer_set(self._timer, self._under_way[0][0]))

    def _arrive(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it may have been set anew meanwhile
            os.read(self._timer, 8)
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, peer, what = heappop(self._under_way)
            try:
                self._hand_over(peer, what)
            except Exception as error:  # it must not cost the frames behind it
                self._loop.call_exception_handler({"message": "a callback of a transport raised", "exception": error})
        if self._under_way:
            self._set_timer()

    def _hand_over(self, peer: int, what: bytes | TransportError) -> None:
        if isinstance(what, TransportError):
            self._leaving.discard(peer)
            self._on_lost(peer, what)
        else:
            self._on_frame(peer, memoryview(what))
