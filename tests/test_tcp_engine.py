"""Transports that drive an engine: its frames go past Python, all others do not, and none is lost in between."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from adapm.transports.tcp import TcpTransport

from adapm._tcp import ffi  # noqa: TID251
from adapm.errors import PeerLost
from adapm.transport import Drive, Engine
from adapm.transport_testing import PATIENCE


class Scripted:
    """A lane that does as it is told.

    Attributes:
        script: of each call with a frame: how many bytes it handles, or an error; all of them once it is empty.
        received: peer, frame and offset of each call.
        outgoing: peer and frame of what it has to send.
        freed: how many frames that it has sent are not needed any more.
        handled, refused: what the transport has told the node.
    """

    def __init__(self) -> None:
        self.script: deque[int] = deque()
        self.received: list[tuple[int, bytes, int]] = []
        self.outgoing: deque[tuple[int, bytes]] = deque()
        self.freed = 0
        self.handled: list[bool] = []
        self.refused: list[tuple[int, int]] = []
        self._taken: dict[int, Any] = {}
        self._functions = [
            ffi.callback("int64_t(void *, uint32_t, const uint8_t *, int64_t, int64_t)", self._receive),
            ffi.callback("void *(void *, uint32_t *)", self._take),
            ffi.callback("const uint8_t *(void *)", lambda frame: self._frame(frame)),
            ffi.callback("int64_t(void *)", lambda frame: len(self._frame(frame))),
            ffi.callback("void(void *)", self._free),
        ]

    def engine(self) -> Engine:
        addresses = (int(ffi.cast("uintptr_t", function)) for function in self._functions)
        return Engine((1, *addresses), self.handled.append, lambda *refused: self.refused.append(refused))  # type: ignore[arg-type]

    def _receive(self, lane: object, peer: int, frame: object, length: int, offset: int) -> int:
        self.received.append((peer, bytes(ffi.buffer(frame, length)), offset))
        return self.script.popleft() if self.script else length - offset

    def _take(self, lane: object, peer: Any) -> object:
        if not self.outgoing:
            return ffi.NULL
        peer[0], frame = self.outgoing.popleft()
        number = len(self._taken) + 1
        self._taken[number] = ffi.from_buffer("uint8_t[]", frame)
        return ffi.cast("void *", number)

    def _frame(self, number: object) -> Any:
        return self._taken[int(ffi.cast("uintptr_t", number))]

    def _free(self, number: object) -> None:
        assert self._taken[int(ffi.cast("uintptr_t", number))] is not None, "freed twice"
        self._taken[int(ffi.cast("uintptr_t", number))] = None
        self.freed += 1


class End:
    def __init__(self, node: int) -> None:
        self.lane = Scripted()
        self.drive: Drive
        self.frames: list[bytes] = []
        self.lost: list[int] = []
        self.transport = TcpTransport(
            node,
            on_frame=lambda peer, frame: self.frames.append(bytes(frame)),
            on_lost=lambda peer, error: self.lost.append(peer),
        )


async def until(happened: Callable[[], bool]) -> None:
    async def turn() -> None:
        while not happened():  # noqa: ASYNC110  # turns of the loop
            await asyncio.sleep(0)

    await asyncio.wait_for(turn(), PATIENCE)


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[End, End]]:
    """Node 0 drives an engine, node 1 does not."""
    a, b = End(0), End(1)
    address, _ = await a.transport.listen(), await b.transport.listen()
    await b.transport.connect(0, address)
    a.drive = a.transport.drive(a.lane.engine())
    try:
        yield a, b
    finally:
        await asyncio.gather(a.transport.close(), b.transport.close())


def test_its_frames_go_to_the_engine_and_others_to_the_node() -> None:
    async def body() -> None:
        async with linked() as (a, b):
            for frame in (b"\1first", b"\0node's", b"\1second", b"", b"\2other"):
                b.transport.send(0, frame)
            await until(lambda: len(a.frames) == 3)
            assert a.lane.received == [(1, b"\1first", 0), (1, b"\1second", 0)]
            assert a.frames == [b"\0node's", b"", b"\2other"]
            assert a.lane.handled and not any(a.lane.handled)

    asyncio.run(body())


def test_what_came_before_the_engine_was_driven_is_the_nodes() -> None:
    async def body() -> None:
        a, b = End(0), End(1)
        address, _ = await a.transport.listen(), await b.transport.listen()
        await b.transport.connect(0, address)
        b.transport.send(0, b"\1early")
        await until(lambda: a.frames == [b"\1early"])
        a.transport.drive(a.lane.engine())
        b.transport.send(0, b"\1late")
        await until(lambda: a.lane.received == [(1, b"\1late", 0)])
        await asyncio.gather(a.transport.close(), b.transport.close())

    asyncio.run(body())


def test_an_engine_that_cannot_go_on_is_asked_again_and_gets_the_rest_in_order() -> None:
    async def body() -> None:
        async with linked() as (a, b):
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


def test_an_engine_that_refuses_a_frame_gets_no_more_of_that_peer() -> None:
    async def body() -> None:
        async with linked() as (a, b):
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


def test_what_an_engine_sends_arrives_in_order_and_is_freed_once() -> None:
    async def body() -> None:
        async with linked() as (a, b):
            large = [bytes([1, i]) + bytes(3 << 20) for i in range(8)]
            a.lane.outgoing.extend((1, frame) for frame in large)
            assert a.drive.flush() == sum(map(len, large))
            a.transport.send(1, b"the node's own")
            assert a.transport.queued(1) > 0
            await until(lambda: len(b.frames) == 9)
            assert b.frames == [*large, b"the node's own"]
            assert a.lane.freed == 8

    asyncio.run(body())


def test_closing_frees_what_an_engine_has_not_got_rid_of() -> None:
    async def body() -> None:
        async with linked() as (a, _):
            a.lane.outgoing.extend((1, b"\1" + bytes(8 << 20)) for _ in range(4))
            a.drive.flush()
            await a.transport.close(0)
            assert a.lane.freed == 4

    asyncio.run(body())


def test_what_is_for_a_lost_peer_is_dropped_and_for_a_stranger_refused() -> None:
    async def body() -> None:
        async with linked() as (a, b):
            await b.transport.close()
            await until(lambda: a.lost == [1])
            a.lane.outgoing.append((1, b"\1lost"))
            a.drive.flush()
            a.lane.outgoing.append((7, b"\1stranger"))
            with pytest.raises(PeerLost, match="no link to node 7"):
                a.drive.flush()
            assert a.lane.freed == 2

    asyncio.run(body())
