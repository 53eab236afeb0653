"""The checks that every transport must pass, for the tests of any transport, adapm's own and others'.

    import pytest
    from adapm import transport_testing

    @pytest.mark.parametrize("check", transport_testing.CHECKS, ids=str)
    def test_conformance(check: transport_testing.Check) -> None:
        check.run(MyLab())

where `MyLab` is a `Lab` of yours: it makes transports, and says what can be done to a peer.  Every check runs in
an event loop of its own and raises AssertionError; `Unsuitable` says that the lab cannot do what the check needs.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from adapm import memory
from adapm.errors import AddressInUse, Closed, PeerLost, TransportError, UsageError
from adapm.transport import COPY_LIMIT, OnFrame, OnLost, PeerClosed, Transport, create

PATIENCE = 60.0
"""Seconds until something that should happen counts as not happening."""


class Unsuitable(Exception):
    """The lab cannot do what a check needs; skip it."""


class Peer(abc.ABC):
    """A linked peer that sends every frame back, and can be maltreated."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """From now on it takes no frames, as a busy or stopped process."""

    @abc.abstractmethod
    async def resume(self) -> None:
        """It goes on where it stopped."""

    @abc.abstractmethod
    async def kill(self) -> None:
        """It is gone, without a word."""


class Lab(abc.ABC):
    """What the author of a transport gives to the checks; one for each check."""

    notices_stopped: bool = True
    """Whether a peer that is stopped for long is reported as lost (with the options that `hasty` gives)."""

    @abc.abstractmethod
    def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
        """A new transport; a hasty one loses patience with silent peers and addresses after about a second."""

    @abc.abstractmethod
    def free_address(self) -> str:
        """An address at which nobody listens."""

    @abc.abstractmethod
    def peer(self, node: int, address: str, *, hasty: bool = False) -> contextlib.AbstractAsyncContextManager[Peer]:
        """An echoing peer with this id that connects to node 0 at the address; gone when the context ends."""


class ProcessPeer(Peer):
    """A peer in a process of its own, for transports that `adapm.transport.create` can make there.

    Args:
        node, address: of the peer; of node 0, to which it connects.
        transport, options: name and constructor options of its transport: JSON values; a `key`, which others can see in
            the process's arguments, in hexadecimal.
    """

    def __init__(self, node: int, address: str, transport: str, options: dict[str, Any]) -> None:
        self._command = [
            sys.executable,
            "-m",
            "adapm.transport_testing",
            transport,
            str(node),
            address,
            json.dumps(options),
        ]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The id of the process, while it runs."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> ProcessPeer:
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        assert self._process is not None
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class Party:
    """A transport that remembers what has come in."""

    def __init__(self, lab: Lab, node: int, *, hasty: bool = False, keep: bool = True) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.lost: list[tuple[int, TransportError]] = []
        self.received = 0
        self.address = ""
        self.inside_send = False
        self.mishap: Exception | None = None
        """What `on_frame` raises after each frame."""
        self._keep = keep
        self._news = asyncio.Event()
        self.transport = lab.create(node, on_frame=self._frame, on_lost=self._loss, hasty=hasty)

    def _frame(self, peer: int, frame: memoryview) -> None:
        assert not self.inside_send, "on_frame was called inside send"
        if self._keep:
            self.frames.append((peer, bytes(frame)))
        self.received += 1
        self._news.set()
        if self.mishap is not None:
            raise self.mishap

    def _loss(self, peer: int, error: TransportError) -> None:
        assert not self.inside_send, "on_lost was called inside send"
        self.lost.append((peer, error))
        self._news.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Waits for frames or losses until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())

    async def has(self, frames: int) -> None:
        await self.until(lambda: self.received >= frames)

    async def has_lost(self, peer: int) -> PeerLost:
        """Waits until the peer is lost, and checks how that is reported and what it means."""
        await self.until(lambda: bool(self.lost))
        ((lost, error),) = self.lost
        assert lost == peer, f"node {lost} is reported as lost, not {peer}"
        assert isinstance(error, PeerLost) and error.node == peer, repr(error)
        self.refuses(peer)
        with raises(PeerLost):
            await self.transport.connect(peer, self.address)
        return error

    def send(self, peer: int, frame: bytes | bytearray | memoryview, release: object = None) -> None:
        self.inside_send = True
        try:
            self.transport.send(peer, frame, release)
        finally:
            self.inside_send = False

    def refuses(self, peer: int) -> None:
        """Sending to this peer raises."""
        with raises(PeerLost) as caught:
            self.send(peer, b"x")
        assert caught[0].node == peer and str(peer) in str(caught[0])

    def from_peer(self, peer: int) -> list[bytes]:
        return [frame for sender, frame in self.frames if sender == peer]


@contextlib.contextmanager
def raises(kind: type[BaseException]) -> Any:
    """Like pytest.raises, which the published checks cannot count on; gives a list that gets the exception."""
    caught: list[Any] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


@contextlib.asynccontextmanager
async def parties(lab: Lab, count: int, *, hasty: bool = False, linked: bool = True) -> AsyncIterator[list[Party]]:
    """So many parties, node ids from 0, that listen and are linked with each other; closed at the end."""
    members = [Party(lab, node, hasty=hasty) for node in range(count)]
    try:
        for member in members:
            member.address = await member.transport.listen()
        if linked:
            await asyncio.gather(
                *(
                    a.transport.connect(b.transport.node, b.address)
                    for a in members
                    for b in members
                    if a.transport.node > b.transport.node
                )
            )
        yield members
    finally:
        await asyncio.gather(*(member.transport.close() for member in members))


@contextlib.asynccontextmanager
async def with_peers(lab: Lab, count: int, *, hasty: bool = False) -> AsyncIterator[tuple[Party, list[Peer]]]:
    """Node 0, and so many echoing peers with ids from 1, each of which has answered once."""
    host = Party(lab, 0, hasty=hasty)
    host.address = await host.transport.listen()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(host.transport.close, 0.1)
        peers = [
            await stack.enter_async_context(lab.peer(node, host.address, hasty=hasty)) for node in range(1, count + 1)
        ]
        await host.has(count)  # each says hello
        yield host, peers


# ---- frames


async def order_is_kept(lab: Lab) -> None:
    """Frames of mixed sizes arrive in order, in both directions at once."""
    async with parties(lab, 2) as (a, b):
        frames = [i.to_bytes(4, "little") + bytes(COPY_LIMIT if i % 50 == 7 else i % 300) for i in range(2000)]
        for frame in frames:
            a.send(1, frame)
            b.send(0, frame)
        await a.has(len(frames))
        await b.has(len(frames))
        assert a.from_peer(1) == frames and b.from_peer(0) == frames


async def all_sizes_arrive(lab: Lab) -> None:
    """From 0 bytes to 64 MiB, from every kind of buffer."""
    async with parties(lab, 2) as (a, b):
        sizes = [0, 1, 7, 4095, COPY_LIMIT - 1, COPY_LIMIT, COPY_LIMIT + 1, 1 << 20, 64 << 20]
        block = os.urandom(1 << 16)
        for i, size in enumerate(sizes):
            frame = (block * (size // len(block) + 1))[:size]
            a.send(1, (bytes, bytearray, memoryview)[i % 3](frame))
        await b.has(len(sizes))
        for size, frame in zip(sizes, b.from_peer(0), strict=True):
            assert frame == (block * (size // len(block) + 1))[:size], (
                f"a frame of {size} bytes came as {len(frame)} other bytes"
            )


async def small_frames_are_copied(lab: Lab) -> None:
    """The buffer of a small frame may be used again at once."""
    async with parties(lab, 2) as (a, b):
        buffer = bytearray(8)
        for i in range(500):
            buffer[:] = i.to_bytes(8, "little")
            a.send(1, buffer)
        await b.has(500)
        assert b.from_peer(0) == [i.to_bytes(8, "little") for i in range(500)]


async def large_frames_are_released(lab: Lab) -> None:
    """`release` lives until its frame has been sent, and not for ever; nothing counts as queued then."""

    class Memory:
        pass

    async with parties(lab, 2) as (a, b):
        released = asyncio.Event()
        loop = asyncio.get_running_loop()
        for i in range(20):
            memory = Memory()
            weakref.finalize(memory, lambda: loop.call_soon_threadsafe(released.set))
            a.send(1, bytes([i]) * (4 * COPY_LIMIT), memory)
            del memory
        await b.has(20)
        assert b.from_peer(0) == [bytes([i]) * (4 * COPY_LIMIT) for i in range(20)]
        await asyncio.wait_for(released.wait(), PATIENCE)
    assert a.transport.queued(1) == 0


async def many_peers_talk(lab: Lab) -> None:
    """Eight nodes, each with each, both ways."""
    async with parties(lab, 8) as members:
        for i in range(50):
            for a in members:
                for b in members:
                    if a is not b:
                        a.send(b.transport.node, bytes([a.transport.node, i]))
        for a in members:
            await a.has(7 * 50)
            for b in members:
                if a is not b:
                    assert a.from_peer(b.transport.node) == [bytes([b.transport.node, i]) for i in range(50)]


async def unsuitable_frames_are_refused(lab: Lab) -> None:
    """A buffer with holes is no frame."""
    async with parties(lab, 2) as (a, b):
        with raises(UsageError):
            a.send(1, memoryview(bytes(100))[::2])
        a.send(1, b"fine")
        await b.has(1)


async def raising_costs_no_frame(lab: Lab) -> None:
    """An `on_frame` that raises is reported to the loop, and the frames behind come all the same."""
    loop, mishaps = asyncio.get_running_loop(), list[dict[str, Any]]()
    judge = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: mishaps.append(context))
    async with parties(lab, 2) as (a, b):
        b.mishap = RuntimeError("a bug of the node's")
        for i in range(10):
            a.send(1, bytes([i]))
        await b.has(10)
        assert b.from_peer(0) == [bytes([i]) for i in range(10)]
        assert [context["exception"] for context in mishaps] == [b.mishap] * 10
    loop.set_exception_handler(judge)


# ---- coming together


async def either_side_may_begin(lab: Lab) -> None:
    """Both connect to each other at once, and again: one link, nothing lost or doubled."""
    async with parties(lab, 2, linked=False) as (a, b):
        for _ in range(2):
            await asyncio.gather(a.transport.connect(1, b.address), b.transport.connect(0, a.address))
        await asyncio.gather(a.transport.connect(1, b.address), a.transport.connect(1, b.address))
        a.send(1, b"to b")
        b.send(0, b"to a")
        await a.has(1)
        await b.has(1)
        assert (a.frames, b.frames) == ([(1, b"to a")], [(0, b"to b")])


async def startup_order_does_not_matter(lab: Lab) -> None:
    """A node may connect before the other listens."""
    late, early = Party(lab, 0), Party(lab, 1)
    address = lab.free_address()
    await early.transport.listen()
    connecting = asyncio.create_task(early.transport.connect(0, address))
    await asyncio.wait([connecting], timeout=0.2)
    assert not connecting.done()
    await late.transport.listen(address)
    await asyncio.wait_for(connecting, PATIENCE)
    early.send(0, b"at last")
    await late.has(1)
    await asyncio.gather(late.transport.close(), early.transport.close())


async def connecting_gives_up(lab: Lab) -> None:
    """Nobody listens: the error names the address."""
    async with parties(lab, 1, hasty=True) as (a,):
        address = lab.free_address()
        with raises(TransportError) as caught:
            await a.transport.connect(1, address)
        assert address in str(caught[0]), caught[0]


async def connecting_can_be_cancelled(lab: Lab) -> None:
    """And tried again."""
    async with parties(lab, 2, linked=False) as (a, b):
        connecting = asyncio.create_task(a.transport.connect(1, lab.free_address()))
        await asyncio.wait([connecting], timeout=0.1)
        connecting.cancel()
        with raises(asyncio.CancelledError):
            await connecting
        a.refuses(1)
        await a.transport.connect(1, b.address)
        a.send(1, b"x")
        await b.has(1)


async def closing_ends_connecting(lab: Lab) -> None:
    """A `connect` under way does not outlive its transport."""
    async with parties(lab, 1) as (a,):
        connecting = asyncio.create_task(a.transport.connect(1, lab.free_address()))
        await asyncio.wait([connecting], timeout=0.1)
        await a.transport.close()
        with raises(Closed):
            await asyncio.wait_for(connecting, PATIENCE)


async def misuse_is_refused(lab: Lab) -> None:
    """Connecting before listening, listening twice, connecting to oneself, anything after closing."""
    a = Party(lab, 0)
    with raises(UsageError):
        await a.transport.connect(1, lab.free_address())
    address = await a.transport.listen()
    with raises(UsageError):
        await a.transport.listen()
    with raises(UsageError):
        await a.transport.connect(0, address)
    await a.transport.close()
    await a.transport.close()
    with raises(Closed):
        await a.transport.connect(1, address)
    with raises(Closed):
        a.send(1, b"x")


async def address_in_use_is_named(lab: Lab) -> None:
    """Somebody listens there: the error names the address, and the first one is left alone."""
    async with parties(lab, 1) as (a,):
        other = Party(lab, 2)
        with raises(AddressInUse) as caught:
            await other.transport.listen(a.address)
        assert a.address in str(caught[0]), caught[0]
        await other.transport.listen()
        await other.transport.connect(0, a.address)
        other.send(0, b"x")
        await a.has(1)
        await other.transport.close()


async def unknown_peers_are_refused(lab: Lab) -> None:
    """Sending to a node that was never linked."""
    async with parties(lab, 1) as (a,):
        a.refuses(7)
        assert a.transport.queued(7) == 0


async def wrong_node_is_refused(lab: Lab) -> None:
    """Another node listens at the address than the one that was asked for."""
    async with parties(lab, 2, linked=False) as (a, b):
        with raises(TransportError) as caught:
            await a.transport.connect(5, b.address)
        assert "node 1, not 5" in str(caught[0]) and b.address in str(caught[0]), caught[0]
        assert not a.lost and not b.lost


async def duplicate_id_is_refused(lab: Lab) -> None:
    """A second node with the id of a linked one: refused, and the first one stays."""
    async with parties(lab, 2) as (a, b):
        for node in (0, 1):
            double = Party(lab, node)
            await double.transport.listen()
            target = a if node == 1 else b
            with raises(TransportError) as caught:
                await double.transport.connect(target.transport.node, target.address)
            assert "refused" in str(caught[0]), caught[0]
            await double.transport.close()
        a.send(1, b"still here")
        await b.has(1)
        assert not a.lost and not b.lost


# ---- parting


async def closing_is_told(lab: Lab) -> None:
    """A peer that closes is lost, as closed, after its last frame; its id does not come back."""
    async with parties(lab, 2) as (a, b):
        for i in range(300):
            b.send(0, i.to_bytes(2, "little") + bytes(COPY_LIMIT if i % 100 == 0 else 10))
        await b.transport.close(PATIENCE)
        error = await a.has_lost(1)
        assert isinstance(error, PeerClosed), repr(error)
        assert a.received == 300, f"{300 - a.received} frames were lost in closing"
        again = Party(lab, 1)
        await again.transport.listen()
        with raises(TransportError):
            await again.transport.connect(0, a.address)
        await again.transport.close()
        assert not b.lost, "a callback came after close"


async def all_may_close_at_once(lab: Lab) -> None:
    """Four nodes close in the same moment: quickly, and nobody calls that broken."""
    started = time.monotonic()
    async with parties(lab, 4) as members:
        await asyncio.gather(*(member.transport.close(PATIENCE) for member in members))
    assert time.monotonic() - started < PATIENCE / 2
    for member in members:
        assert all(isinstance(error, PeerClosed) for _, error in member.lost), member.lost


async def killed_peer_is_lost(lab: Lab) -> None:
    """A peer that dies without a word; the others stay."""
    async with with_peers(lab, 2) as (host, (first, _)):
        await first.kill()
        error = await host.has_lost(1)
        assert not isinstance(error, PeerClosed), repr(error)
        host.send(2, b"x")
        await host.has(3)


async def stopped_peer_is_lost(lab: Lab) -> None:
    """A peer that stays silent although its connection stands."""
    if not lab.notices_stopped:
        raise Unsuitable("this transport has no signs of life")
    async with with_peers(lab, 2, hasty=True) as (host, (first, _)):
        await first.stop()
        error = await asyncio.wait_for(host.has_lost(1), 15.0)
        assert not isinstance(error, PeerClosed), repr(error)
        host.send(2, b"x")
        await host.has(3)
        await first.resume()


async def slow_peer_holds_up_nobody(lab: Lab) -> None:
    """What a stopped peer does not take is counted; others are served; all arrives, in order, when it goes on."""
    async with with_peers(lab, 2) as (host, (first, _)):
        await first.stop()
        large, count = bytes(1 << 20), 0
        while host.transport.queued(1) < 16 << 20:
            host.send(1, count.to_bytes(4, "little") + large)
            count += 1
            await asyncio.sleep(0)
        for i in range(3):
            host.send(2, b"other")
            await host.has(3 + i)
        assert len(host.from_peer(1)) == 1, "the peer was to be stopped"
        await first.resume()
        await host.has(5 + count)
        echoed = [int.from_bytes(frame[:4], "little") for frame in host.from_peer(1)[1:]]
        assert echoed == list(range(count))
        assert not host.lost


# ---- at rest and at the end


async def idle_costs_nothing(lab: Lab) -> None:
    """Three linked nodes in one process at rest: no frames, and next to no processor time."""
    async with parties(lab, 3) as members:
        for member in members[1:]:
            member.send(0, b"x")
        await members[0].has(2)
        await asyncio.sleep(0.2)
        spent, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(1.0)
        share = (time.process_time() - spent) / (time.monotonic() - wall)
        assert share < 0.02, f"{share:.1%} of a processor at rest"
        assert [member.received for member in members] == [2, 0, 0]


async def nothing_is_left_behind(lab: Lab) -> None:
    """Descriptors and threads: as many after four rounds of linking, talking and closing as after one."""

    async def once() -> tuple[int, int]:
        async with parties(lab, 3, hasty=True) as (a, b, _):
            a.send(1, bytes(4 * COPY_LIMIT))
            await b.has(1)
            with raises(TransportError):
                await a.transport.connect(9, lab.free_address())
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = await once()
    for _ in range(3):
        after = await once()
    assert after == before, f"(descriptors, threads) grew from {before} to {after}"


@dataclass(frozen=True)
class Check:
    """One check; its name says what must hold."""

    body: Callable[[Lab], Coroutine[Any, Any, None]]

    def __str__(self) -> str:
        return self.body.__name__

    def run(self, lab: Lab, runner: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run) -> None:
        """Runs it in a new loop; another `runner` (uvloop.run) makes another loop.

        Raises:
            AssertionError: the transport does not do what it must.
            Unsuitable: the lab cannot do what the check needs.
        """
        runner(self._alone(lab))

    async def _alone(self, lab: Lab) -> None:
        mishaps: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
        await self.body(lab)
        gc.collect()
        await asyncio.sleep(0)
        assert not mishaps, f"errors in the loop: {mishaps}"
        leftover = asyncio.all_tasks() - {asyncio.current_task()}
        assert not leftover, f"tasks were left behind: {leftover}"


CHECKS = tuple(
    Check(body)
    for body in (
        order_is_kept,
        all_sizes_arrive,
        small_frames_are_copied,
        large_frames_are_released,
        many_peers_talk,
        unsuitable_frames_are_refused,
        raising_costs_no_frame,
        either_side_may_begin,
        startup_order_does_not_matter,
        connecting_gives_up,
        connecting_can_be_cancelled,
        closing_ends_connecting,
        misuse_is_refused,
        address_in_use_is_named,
        unknown_peers_are_refused,
        wrong_node_is_refused,
        duplicate_id_is_refused,
        closing_is_told,
        all_may_close_at_once,
        killed_peer_is_lost,
        stopped_peer_is_lost,
        slow_peer_holds_up_nobody,
        idle_costs_nothing,
        nothing_is_left_behind,
    )
)


async def echo(make: Callable[[OnFrame, OnLost], Transport], address: str, gone: Awaitable[object]) -> None:
    """Listens, connects to node 0, says hello, and sends every frame back until node 0 is lost or `gone` is done."""
    lost = asyncio.get_running_loop().create_future()
    transport = make(
        lambda peer, frame: transport.send(peer, bytes(frame)),
        lambda peer, error: lost.set_result(None),
    )
    try:
        await transport.listen()
        await transport.connect(0, address)
        transport.send(0, b"hello")
        await asyncio.wait([asyncio.ensure_future(gone), lost], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await transport.close(0.1)


def _options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = json.loads(text)
    return {**options, "key": bytes.fromhex(options["key"])} if "key" in options else options


async def _main(name: str, node: str, address: str, options: str) -> None:
    """The process behind `ProcessPeer`; standard input ends with the process that started it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await echo(
        lambda on_frame, on_lost: create(name, int(node), on_frame=on_frame, on_lost=on_lost, **_options(options)),
        address,
        reader.read(),
    )


if __name__ == "__main__":
    memory.keep_freed()  # as nodes do
    asyncio.run(_main(*sys.argv[1:]))
