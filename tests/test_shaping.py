"""Links with a given bandwidth and latency: how late frames are, at least, and that nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

import adapm
import tasks
from adapm.errors import TransportError
from adapm.shaping import Line, ShapedTransport
from adapm.transport import PeerClosed, Transport, create
from adapm.transport_testing import PATIENCE


def test_frames_on_a_line_wait_for_each_other_and_travel_together() -> None:
    line = Line(per_byte=0.5, latency=10.0)
    assert line.arrival(100.0, 4) == 112.0
    assert line.arrival(101.0, 2) == 113.0  # the line is free at 102
    assert line.arrival(200.0, 0) == 210.0


def test_a_line_without_bandwidth_is_latency_alone() -> None:
    line = Line(per_byte=0.0, latency=3.0)
    assert [line.arrival(now, 1 << 30) for now in (1.0, 1.0, 2.0)] == [4.0, 4.0, 5.0]


class End:
    """One end of a link, and what came there when."""

    def __init__(self, node: int, **shape: float) -> None:
        self.frames: list[tuple[float, bytes]] = []
        self.losses: list[TransportError] = []
        self._came = asyncio.Event()

        def make(on_frame: object, on_lost: object) -> Transport:
            return create("tcp", node, on_frame=on_frame, on_lost=on_lost)  # type: ignore[arg-type]

        self.transport = ShapedTransport(make, node, on_frame=self._frame, on_lost=self._loss, **shape)

    def _frame(self, peer: int, frame: memoryview) -> None:
        self.frames.append((time.monotonic(), bytes(frame)))
        self._came.set()

    def _loss(self, peer: int, error: TransportError) -> None:
        self.losses.append(error)
        self._came.set()

    async def inner_loses(self, peer: int) -> None:
        while self.transport._inner.lanes(peer):  # noqa: ASYNC110  # turns of the loop
            await asyncio.sleep(0)

    async def until(self, frames: int = 0, losses: int = 0) -> None:
        while len(self.frames) < frames or len(self.losses) < losses:
            self._came.clear()
            await asyncio.wait_for(self._came.wait(), PATIENCE)


@contextlib.asynccontextmanager
async def linked(**shape: float) -> AsyncIterator[tuple[End, End]]:
    a, b = End(0, **shape), End(1, **shape)
    address = await a.transport.listen()
    await b.transport.listen()
    await b.transport.connect(0, address)
    try:
        yield a, b
    finally:
        await a.transport.close()
        await b.transport.close()


def test_no_frame_is_faster_than_the_line() -> None:
    async def body() -> None:
        async with linked(bandwidth=10e6, latency=0.02) as (a, b):
            begin = time.monotonic()
            for number in range(10):
                b.transport.send(0, bytes([number]) * 100_000)  # 10 ms each
            await a.until(frames=10)
            assert [frame[0] for _, frame in a.frames] == list(range(10))
            for number, (when, _) in enumerate(a.frames):
                assert when >= begin + 0.02 + 0.01 * (number + 1)

    asyncio.run(body())


def test_directions_do_not_wait_for_each_other() -> None:
    async def body() -> None:
        async with linked(bandwidth=1e6) as (a, b):
            b.transport.send(0, bytes(500_000))  # half a second
            a.transport.send(1, b"soon")
            await b.until(frames=1)
            assert not a.frames
            await a.until(frames=1)

    asyncio.run(body())


def test_a_peer_that_closes_is_lost_behind_its_last_frame() -> None:
    async def body() -> None:
        async with linked(latency=0.2) as (a, b):
            b.transport.send(0, b"last")
            await b.transport.close()
            assert not a.frames and not a.losses
            await a.until(losses=1)
            assert [frame for _, frame in a.frames] == [b"last"]
            assert isinstance(a.losses[0], PeerClosed)

    asyncio.run(body())


def test_a_peer_that_has_closed_can_be_sent_to_until_its_last_frame_has_come() -> None:
    async def body() -> None:
        async with linked(latency=0.2) as (a, b):
            b.transport.send(0, b"goodbye")
            await b.transport.close()
            await asyncio.wait_for(a.inner_loses(1), PATIENCE)
            assert not a.frames
            a.transport.send(1, b"still unaware")
            await a.until(losses=1)
            assert [frame for _, frame in a.frames] == [b"goodbye"]
            with pytest.raises(PeerClosed):
                a.transport.send(1, b"aware")

    asyncio.run(body())


def test_nothing_comes_after_closing() -> None:
    async def body() -> None:
        async with linked(latency=0.05) as (a, b):
            b.transport.send(0, b"too late")
            b.transport.send(0, bytes(1 << 20))
            await a.transport.close()
            await asyncio.sleep(0.1)  # the frames' time passes
            assert not a.frames

    asyncio.run(body())


@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_every_row_equals_the_exact_sum_on_a_slow_network(transport: str) -> None:
    wrong = adapm.run(
        tasks.conserve,
        tables=tasks.CONSERVED,
        args=(list(range(3)), 60),
        nodes=3,
        workers="2",
        transport=transport,
        link_bandwidth="200Mbit",
        link_latency="500us",
    )
    assert wrong == [[]] * 6
