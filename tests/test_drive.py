"""Transports that drive an engine: its frames go past Python, all others do not, and none is lost in between."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from collections.abc import AsyncIterator, Callable

import pytest

from adapm.errors import PeerLost
from adapm.transport import Drive, create
from adapm.transport_testing import PATIENCE
from scripted_engine import Scripted

pytestmark = pytest.mark.parametrize("name", ["tcp", "ucx+tcp", "ucx+shm"])
LARGE = 700_000  # bytes: UCX has it fetched


class End:
    def __init__(self, name: str, node: int) -> None:
        self.lane = Scripted()
        self.drive: Drive
        self.frames: list[bytes] = []
        self.lost: list[int] = []
        self.why = ""
        self.transport = create(name, node, on_frame=self._on_frame, on_lost=self._on_lost)

    def begin(self, allowance: int = 1 << 30) -> None:
        drive = self.transport.drive(self.lane.engine(allowance))
        assert drive is not None
        self.drive = drive

    def _on_frame(self, peer: int, frame: memoryview) -> None:
        self.frames.append(bytes(frame))

    def _on_lost(self, peer: int, error: Exception) -> None:
        self.lost.append(peer)
        self.why = str(error)


async def until(happened: Callable[[], bool]) -> None:
    async def turn() -> None:
        while not happened():  # noqa: ASYNC110  # turns of the loop
            await asyncio.sleep(0)

    await asyncio.wait_for(turn(), PATIENCE)


@contextlib.asynccontextmanager
async def linked(name: str, **options: int) -> AsyncIterator[tuple[End, End]]:
    """Node 0 drives an engine, node 1 does not."""
    a, b = End(name, 0), End(name, 1)
    address, _ = await a.transport.listen(), await b.transport.listen()
    await b.transport.connect(0, address)
    a.begin(**options)
    try:
        yield a, b
    finally:
        await asyncio.gather(a.transport.close(0.5), b.transport.close(0.5))


def test_its_frames_go_to_the_engine_and_others_to_the_node(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            for frame in (b"\1first", b"\0node's", b"\1second", b"", b"\2other"):
                b.transport.send(0, frame)
            await until(lambda: len(a.frames) == 3)
            assert a.lane.received == [(1, b"\1first", 0), (1, b"\1second", 0)]
            assert a.frames == [b"\0node's", b"", b"\2other"]
            assert a.lane.handled and not any(a.lane.handled)

    asyncio.run(body())


def test_what_came_before_the_engine_was_driven_is_the_nodes(name: str) -> None:
    async def body() -> None:
        a, b = End(name, 0), End(name, 1)
        address, _ = await a.transport.listen(), await b.transport.listen()
        await b.transport.connect(0, address)
        b.transport.send(0, b"\1early")
        await until(lambda: a.frames == [b"\1early"])
        a.begin()
        b.transport.send(0, b"\1late")
        await until(lambda: a.lane.received == [(1, b"\1late", 0)])
        await asyncio.gather(a.transport.close(), b.transport.close())

    asyncio.run(body())


def test_an_engine_that_cannot_go_on_is_asked_again_and_gets_the_rest_in_order(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            a.lane.script.extend([2, 0, 1])
            for frame in (b"\1abcde", b"\1next", b"\0node's"):
                b.transport.send(0, frame)
            await until(lambda: bool(a.lane.handled))
            assert a.lane.handled[-1] and a.lane.received == [(1, b"\1abcde", 0)]
            b.transport.send(0, b"\1later")
            for _ in range(100):  # turns of the loop
                await asyncio.sleep(0)
            assert len(a.lane.received) == 1 and not a.frames, "it was to be left alone"
            assert a.drive.catch_up()
            assert a.drive.catch_up()
            assert not a.drive.catch_up()
            assert [offset for _, frame, offset in a.lane.received if frame == b"\1abcde"] == [0, 2, 2, 3]
            await until(lambda: a.lane.received[-1] == (1, b"\1later", 0))
            assert [frame for _, frame, offset in a.lane.received if not offset] == [b"\1abcde", b"\1next", b"\1later"]
            assert a.frames == [b"\0node's"]

    asyncio.run(body())


def test_answers_leave_while_the_engine_makes_others(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            a.lane.script.extend([2, 3])
            a.lane.outgoing.append((1, b"\1answer"))
            b.transport.send(0, b"\1abcde")
            await until(lambda: b.frames == [b"\1answer"])
            await until(lambda: bool(a.lane.handled))
            assert a.lane.handled[-1], "with nothing more to send it is blocked"
            assert [offset for _, _, offset in a.lane.received] == [0, 2]
            assert a.drive.flush() == len(b"\1answer"), "it counts as sent now"
            assert a.drive.flush() == 0
            a.drive.catch_up()
            await until(lambda: a.lane.whole == [b"\1abcde"])

    asyncio.run(body())


def test_an_engine_that_refuses_a_frame_gets_no_more_of_that_peer(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            a.lane.script.extend([6, -errno.EPROTO])
            for frame in (b"\1right", b"\1wrong!", b"\1behind"):
                b.transport.send(0, frame)
            await until(lambda: a.frames == [b"\1behind"])
            assert a.lane.refused == [(1, 7)]
            assert len(a.lane.received) == 2 and not a.lost
            a.lane.outgoing.append((1, b"\1for it"))
            a.drive.flush()
            await until(lambda: b.frames == [b"\1for it"])

    asyncio.run(body())


def test_what_an_engine_sends_arrives_in_order_and_is_freed_once(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            large = [bytes([1, i]) + bytes(3 << 20) for i in range(8)]
            a.lane.outgoing.extend((1, frame) for frame in large)
            assert a.drive.flush() == sum(map(len, large))
            a.transport.send(1, b"the node's own")
            assert a.transport.queued(1) > 0
            await until(lambda: len(b.frames) == 9)
            assert b.frames == [*large, b"the node's own"]
            assert a.lane.freed == 8

    asyncio.run(body())


def test_closing_frees_what_an_engine_has_not_got_rid_of(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, _):
            a.lane.outgoing.extend((1, b"\1" + bytes(8 << 20)) for _ in range(4))
            a.drive.flush()
            await a.transport.close(0)
            assert a.lane.freed == 4

    asyncio.run(body())


def test_what_is_for_a_lost_peer_is_dropped_and_for_a_stranger_refused(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            await b.transport.close()
            await until(lambda: a.lost == [1])
            a.lane.outgoing.append((1, b"\1lost"))
            a.drive.flush()
            a.lane.outgoing.append((7, b"\1stranger"))
            with pytest.raises(PeerLost, match="no link to node 7"):
                a.drive.flush()
            assert a.lane.freed == 2

    asyncio.run(body())


def test_frames_stay_in_order_whatever_the_engine_does(name: str, request: pytest.FixtureRequest) -> None:
    """Small ones and large ones, the engine's and the node's, while the engine stops again and again."""
    seed = request.config.getoption("--seed")
    print(f"seed {seed}")
    draw = random.Random(seed)
    frames = [
        bytes([draw.randrange(2)]) + i.to_bytes(4, "little") + bytes(draw.choice([0, 9, 5000, 70_000, LARGE]))
        for i in range(300)
    ]

    async def body() -> None:
        async with linked(name) as (a, b):
            a.lane.whole = a.frames
            a.lane.script.extend(draw.choice([0, 1, 1 << 30]) for _ in frames)
            for frame in frames:
                b.transport.send(0, frame)
            while len(a.frames) < len(frames):
                await until(lambda: len(a.frames) == len(frames) or True in a.lane.handled)
                a.lane.handled.clear()
                a.drive.catch_up()
            assert a.frames == frames

    asyncio.run(body())


def test_a_peer_cannot_fill_the_memory_while_the_engine_stands(name: str) -> None:
    """Either it is held up, or it is lost once more waits than the node allows."""

    async def body() -> None:
        async with linked(name, allowance=1 << 20) as (a, b):
            a.lane.script.extend([0])
            for _ in range(90):
                b.transport.send(0, b"\1" + bytes(9_999))
            await until(lambda: True in a.lane.handled)
            assert not a.lost
            for _ in range(2_000):
                b.transport.send(0, b"\1" + bytes(9_999))
            if name == "tcp":
                for _ in range(100):  # turns of the loop
                    await asyncio.sleep(0)
                assert b.transport.queued(0) > 0 and len(a.lane.received) == 1
            else:
                await until(lambda: a.lost == [1])
                assert "goes on sending while a row" in a.why

    asyncio.run(body())


def test_a_transport_that_closes_leaves_the_engine_alone(name: str) -> None:
    async def body() -> None:
        async with linked(name) as (a, b):
            closing = asyncio.ensure_future(a.transport.close())
            await asyncio.sleep(0)
            for _ in range(10):
                b.transport.send(0, b"\1late")
            await closing
            seen = len(a.lane.received)
            await until(lambda: b.lost == [0])
            assert len(a.lane.received) == seen and not a.frames

    asyncio.run(body())
