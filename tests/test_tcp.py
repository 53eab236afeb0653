"""What is particular to the tcp transport: strangers, rubbish, broken wires, frames cut anywhere or damaged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapm.transports import sockets, tcp
from adapm.transports.note import Kind, Note
from adapm.transports.tcp import TcpTransport
from adapm.transports.tcp_link import HEAD, NOTE, NOTE_LIMIT, Connection, Hub
from hypothesis import given, settings
from hypothesis import strategies as st

from adapm.errors import PeerLost, TransportError, UsageError
from adapm.transport import PeerClosed

PATIENCE = 20.0


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 3 * PATIENCE))


class Host:
    """A transport that remembers what comes in."""

    def __init__(self, node: int, **options: Any) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.lost: list[tuple[int, TransportError]] = []
        self.news = asyncio.Event()
        self.transport = TcpTransport(node, on_frame=self._frame, on_lost=self._loss, **options)

    def _frame(self, peer: int, frame: memoryview) -> None:
        self.frames.append((peer, bytes(frame)))
        self.news.set()

    def _loss(self, peer: int, error: TransportError) -> None:
        self.lost.append((peer, error))
        self.news.set()

    async def until(self, frames: int = 0, lost: int = 0) -> None:
        while len(self.frames) < frames or len(self.lost) < lost:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), PATIENCE)


@contextlib.asynccontextmanager
async def hosts(*nodes: int, **options: Any) -> AsyncIterator[list[tuple[Host, str]]]:
    made = [Host(node, **options) for node in nodes]
    try:
        yield [(host, await host.transport.listen()) for host in made]
    finally:
        await asyncio.gather(*(host.transport.close(0.2) for host in made))


class Stranger:
    """A bare socket at somebody's port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def note(self) -> Note:
        (word,) = HEAD.unpack(await asyncio.wait_for(self.reader.readexactly(HEAD.size), PATIENCE))
        assert word & NOTE
        return Note.unpack(await self.reader.readexactly(word & ~NOTE))

    async def is_cut_off(self) -> bool:
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(), PATIENCE) == b""
        return True

    def say(self, note: Note) -> None:
        data = note.pack()
        self.writer.write(HEAD.pack(len(data) | NOTE) + data)


@contextlib.asynccontextmanager
async def stranger(address: str) -> AsyncIterator[Stranger]:
    host, _, port = address.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    yield Stranger(reader, writer)
    writer.close()


def hello(node: int, to: int = 0, incarnation: bytes = bytes(16)) -> Note:
    return Note(Kind.HELLO, node, to, incarnation, "tcp://127.0.0.1:1")


# ---- strangers


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100,
        HEAD.pack(1 << 40),  # a terabyte, announced by somebody unknown
        HEAD.pack(8) + b"a frame!",  # before any greeting
        HEAD.pack(NOTE | (1 << 30)),
        b"\xff" * 64,
    ],
)
def test_rubbish_is_cut_off_and_counted(rubbish: bytes) -> None:
    async def body() -> None:
        async with hosts(0, 1) as [(a, address), (b, _)]:
            async with stranger(address) as guest:
                guest.writer.write(rubbish)
                assert await guest.is_cut_off()
            assert a.transport.rejected == 1
            await b.transport.connect(0, address)
            b.transport.send(0, b"x")
            await a.until(frames=1)
            assert not a.lost

    run(body())


@pytest.mark.parametrize(
    ("note", "why"),
    [
        (hello(1, to=7), "this is node 0, not 7"),
        (hello(0), "the id 0 is taken"),
        (hello(65_535), "65535 is no id of a node"),
        (Note(Kind.FAREWELL, 1, 0, bytes(16)), "must be a hello"),
    ],
)
def test_a_wrong_greeting_is_refused_with_the_reason(note: Note, why: str) -> None:
    async def body() -> None:
        async with hosts(0) as [(a, address)], stranger(address) as guest:
            guest.say(note)
            answer = await guest.note()
            assert answer.kind is Kind.REFUSED
            assert why in answer.text
            assert a.transport.rejected == 1

    run(body())


def test_another_version_is_refused_with_both() -> None:
    async def body() -> None:
        async with hosts(0) as [(_, address)], stranger(address) as guest:
            data = bytearray(hello(1).pack())
            data[4] = 99
            guest.writer.write(HEAD.pack(len(data) | NOTE) + data)
            assert "version 99" in (await guest.note()).text

    run(body())


def test_silent_strangers_hold_up_nobody() -> None:
    async def body() -> None:
        async with hosts(0, 1) as [(a, address), (b, _)], contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                await stack.enter_async_context(stranger(address))
            await b.transport.connect(0, address)
            b.transport.send(0, b"x")
            await a.until(frames=1)

    run(body())


def test_who_came_first_and_said_nothing_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with hosts(0, 1) as [(a, address), (b, _)], contextlib.AsyncExitStack() as stack:
            guests = [await stack.enter_async_context(stranger(address)) for _ in range(4)]
            assert await guests[0].is_cut_off()
            assert a.transport.rejected == 1
            await b.transport.connect(0, address)
            assert await guests[1].is_cut_off()

    monkeypatch.setattr(tcp, "_STRANGERS", 3)
    run(body())


@pytest.mark.parametrize("said", [b"\1", HEAD.pack(NOTE | NOTE_LIMIT), HEAD.pack(NOTE | NOTE_LIMIT) + bytes(1000)])
def test_strangers_take_little_memory(said: bytes) -> None:
    async def body() -> None:
        async with hosts(0) as [(a, address)], contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                guest = await stack.enter_async_context(stranger(address))
                guest.writer.write(said)
            connections = a.transport._strangers
            while len(connections) < 20 or not all(c.room for c in connections):  # noqa: ASYNC110  # turns of the loop
                await asyncio.sleep(0)
            assert max(c.room for c in connections) <= HEAD.size + NOTE_LIMIT

    run(body())


def test_an_impostor_cannot_make_a_caller_take_memory() -> None:
    async def body() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(HEAD.pack(1 << 30) + bytes(1 << 20))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with hosts(0) as [(a, _)]:
            with pytest.raises(TransportError, match="a frame of 1073741824 bytes, which is too large"):
                await a.transport.connect(1, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        server.close()

    run(body())


def test_the_refused_count_as_strangers_until_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with hosts(0, 1) as [(a, address), (b, _)], contextlib.AsyncExitStack() as stack:
            for refused in range(1, 4):
                guest = await stack.enter_async_context(stranger(address))
                guest.say(hello(0))
                assert (await guest.note()).kind is Kind.REFUSED
                assert a.transport.rejected == refused
            async with stranger(address) as guest:
                assert await guest.is_cut_off()
            await stack.aclose()
            await b.transport.connect(0, address)

    monkeypatch.setattr(tcp, "_STRANGERS", 3)
    run(body())


def test_without_descriptors_connections_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with hosts(0, 1) as [(_, address), (b, _)]:
            host, _, port = address.partition("://")[2].rpartition(":")
            with socket.socket() as guest, no_more_descriptors():
                guest.connect((host, int(port)))
                for _ in range(1000):  # turns of the loop
                    await asyncio.sleep(0)
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            assert "allow more open files" in caplog.text
            await b.transport.connect(0, address)

    monkeypatch.setattr(tcp, "_RECOVERY", 0.5)
    run(body())


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_something_else_listens_there() -> None:
    async def body() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ready\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with hosts(0, connect_timeout=5.0) as [(a, _)]:
            with pytest.raises(TransportError, match="no adapm node; is the port right"):
                await a.transport.connect(1, address)
        server.close()

    run(body())


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "ipc://", "127.0.0.1:80", "tcp://:::80"])
def test_malformed_addresses(address: str) -> None:
    async def body() -> None:
        with pytest.raises(TransportError, match="is no address of"):
            await Host(0).transport.listen(address)

    run(body())


def test_a_host_name_that_does_not_exist() -> None:
    async def body() -> None:
        async with hosts(0, connect_timeout=0.5) as [(a, _)]:
            with pytest.raises(TransportError, match="host name cannot be resolved"):
                await a.transport.connect(1, "tcp://no.such.host.invalid:1")

    run(body())


def test_ipv6_and_all_networks() -> None:
    async def body() -> None:
        a, b = Host(0), Host(1, insecure=True)
        try:
            address = await a.transport.listen("tcp://[::1]:0")
        except TransportError:
            pytest.skip("no IPv6 here")
        port = (await b.transport.listen("tcp://*:0")).rpartition(":")[2]
        await a.transport.connect(1, f"tcp://127.0.0.1:{port}")
        await b.transport.connect(0, address)
        a.transport.send(1, b"x")
        await b.until(frames=1)
        await asyncio.gather(a.transport.close(), b.transport.close())

    run(body())


def test_frames_may_come_right_behind_the_welcome() -> None:
    async def body() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            guest = Stranger(reader, writer)
            await guest.note()
            welcome = Note(Kind.WELCOME, 1, 0, bytes(16)).pack()
            writer.write(HEAD.pack(len(welcome) | NOTE) + welcome + HEAD.pack(5) + b"early")
            await reader.read()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with hosts(0) as [(a, _)]:
            await a.transport.connect(1, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await a.until(frames=1)
            assert a.frames == [(1, b"early")] and not a.lost
        server.close()

    run(body())


def test_over_unix_sockets_other_users_are_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with hosts(0, 1, variant="ipc", connect_timeout=0.5) as [(a, address), (b, _)]:
            await b.transport.connect(0, address)
            user = os.getuid()
            monkeypatch.setattr(os, "getuid", lambda: user + 1)
            with socket.socket(socket.AF_UNIX) as guest:
                guest.connect("\0" + address.partition("@")[2])
                reader, writer = await asyncio.open_unix_connection(sock=guest)
                assert await Stranger(reader, writer).is_cut_off()
                writer.close()
            assert a.transport.rejected == 1
            async with hosts(2, variant="ipc", connect_timeout=0.2) as [(c, _)]:
                with pytest.raises(TransportError, match="another user"):
                    await c.transport.connect(0, address)

    run(body())


def test_a_path_that_is_too_long_is_an_error_with_the_path() -> None:
    async def body() -> None:
        with pytest.raises(TransportError, match=r"cannot listen at ipc:///xxx.*too long"):
            await Host(0).transport.listen("ipc:///" + "x" * 200)

    run(body())


# ---- links that break


def test_a_peer_that_breaks_the_protocol_is_lost_with_the_reason() -> None:
    async def body() -> None:
        async with hosts(0, max_frame=100) as [(a, address)], stranger(address) as guest:
            guest.say(hello(1))
            assert (await guest.note()).kind is Kind.WELCOME
            guest.writer.write(HEAD.pack(100) + bytes(100) + HEAD.pack(101))
            await a.until(frames=1, lost=1)
            assert a.frames == [(1, bytes(100))]
            ((peer, error),) = a.lost
            assert peer == 1
            assert "a frame of 101 bytes" in str(error)
            with pytest.raises(PeerLost):
                a.transport.send(1, b"x")

    run(body())


def test_too_large_a_frame_is_refused_by_the_sender() -> None:
    async def body() -> None:
        async with hosts(0, 1, max_frame=100) as [(a, address), (b, _)]:
            await b.transport.connect(0, address)
            with pytest.raises(UsageError, match="101 bytes for node 0 is larger"):
                b.transport.send(0, bytes(101))
            b.transport.send(0, bytes(100))
            await a.until(frames=1)

    run(body())


def test_a_reset_connection_is_lost_after_the_last_frame() -> None:
    async def body() -> None:
        async with hosts(0) as [(a, address)], stranger(address) as guest:
            guest.say(hello(1))
            await guest.note()
            guest.writer.write(HEAD.pack(1) + b"1")
            await a.until(frames=1)
            guest.writer.write(HEAD.pack(4) + b"ha")  # half a frame
            await guest.writer.drain()
            guest.writer.transport.abort()
            await a.until(lost=1)
            assert a.frames == [(1, b"1")]
            assert not isinstance(a.lost[0][1], PeerClosed)

    run(body())


def test_both_begin_again_and_again() -> None:
    """Whichever hello is faster: one link, and both may send at once."""

    async def body() -> None:
        for delay in range(-7, 8):  # turns of the loop by which one is later
            async with hosts(0, 1) as [(a, to_a), (b, to_b)]:
                calls = [lambda: a.transport.connect(1, to_b), lambda: b.transport.connect(0, to_a)]
                first, second = calls if delay > 0 else reversed(calls)
                connecting = [asyncio.ensure_future(first())]
                for _ in range(abs(delay)):
                    await asyncio.sleep(0)
                await asyncio.wait_for(asyncio.gather(*connecting, second()), PATIENCE)
                a.transport.send(1, b"to b")
                b.transport.send(0, b"to a")
                await a.until(frames=1)
                await b.until(frames=1)
                assert (a.frames, b.frames, a.lost, b.lost) == ([(1, b"to a")], [(0, b"to b")], [], [])

    run(body())


def test_sockets_have_room_for_rounds_and_may_get_more() -> None:
    most = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            client.setblocking(False)
            connection = Connection(client, Hub(), on_frame=print, on_note=print, on_end=print)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= min(4 << 20, most // 2)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
            connection.close()

    run(body())


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_is_not_lost_however_close_the_answer(turns: int, tmp_path: Path) -> None:
    async def body() -> None:
        connecting = asyncio.create_task(sockets.connected(f"ipc://{tmp_path}/nobody", PATIENCE))
        for _ in range(turns):
            await asyncio.sleep(0)
        expected = asyncio.CancelledError if connecting.cancel() else FileNotFoundError
        with pytest.raises(expected):
            await connecting

    run(body())


# ---- frames cut anywhere


class Receiver:
    """A connection to which the test writes bytes, and what came of them."""

    def __init__(self, max_frame: int = 1 << 30) -> None:
        ours, self._theirs = socket.socketpair()
        for end in (ours, self._theirs):
            end.setblocking(False)
        self.frames: list[bytes] = []
        self.notes: list[bytes] = []
        self.ends: list[str] = []
        self._over = asyncio.Event()
        self._connection = Connection(
            ours,
            Hub(),
            on_frame=lambda view: self.frames.append(bytes(view)),
            on_note=self.notes.append,
            on_end=self._end,
        )
        self._connection.allow(max_frame)

    def _end(self, reason: str) -> None:
        self.ends.append(reason)
        self._over.set()

    async def take(self, stream: bytes, cuts: list[int]) -> None:
        """All of it, in pieces of these sizes and one for the rest, until the connection ends."""
        at = 0
        with contextlib.suppress(ConnectionError):  # it may not want to hear the rest
            for cut in (*cuts, len(stream)):
                piece, at = stream[at : at + cut], at + cut
                await asyncio.get_running_loop().sock_sendall(self._theirs, piece)
                await asyncio.sleep(0)
        self._theirs.close()
        await asyncio.wait_for(self._over.wait(), PATIENCE)
        self._connection.close()


def encoded(frame: bytes, *, note: bool = False) -> bytes:
    return HEAD.pack(len(frame) | (NOTE if note else 0)) + frame


async def _pieces(frames: list[bytes], cuts: list[int]) -> list[bytes]:
    receiver = Receiver()
    await receiver.take(b"".join(map(encoded, frames)), cuts)
    return receiver.frames


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 7, 8, 9, 100, 4096, 65_536, 300_000, 2 << 20, (2 << 20) + 1]), max_size=6),
    cuts=st.lists(st.integers(1, 400_000), max_size=12),
    seed=st.integers(0, 1 << 30),
)
def test_frames_come_whole_however_the_stream_is_cut(sizes: list[int], cuts: list[int], seed: int) -> None:
    draw = random.Random(seed)
    frames = [draw.randbytes(size) for size in sizes]
    assert asyncio.run(_pieces(frames, cuts)) == frames


@settings(max_examples=200, deadline=None)
@given(rubbish=st.binary(max_size=300))
def test_any_bytes_end_in_frames_or_in_the_end(rubbish: bytes) -> None:
    async def body() -> None:
        async with hosts(0) as [(a, address)], stranger(address) as guest:
            guest.say(hello(1))
            await guest.note()
            guest.writer.write(rubbish)
            await guest.writer.drain()
            guest.writer.close()
            await a.until(lost=1)

    run(body())


def test_damage_costs_nothing_that_came_before_it() -> None:
    """Streams of frames, notes and signs of life in which some bytes are changed, come in pieces."""

    async def body() -> None:
        draw = random.Random(5)
        for _ in range(400):
            whole = [
                (draw.randbytes(draw.choice([0, 1, 9, 100, 5000])), draw.random() < 0.3)
                for _ in range(draw.randrange(1, 12))
            ]
            stream = bytearray().join(encoded(data[:NOTE_LIMIT], note=note) for data, note in whole)
            damaged = [draw.randrange(len(stream)) for _ in range(draw.randrange(3))]
            for at in damaged:
                stream[at] ^= 1 << draw.randrange(8)
            receiver = Receiver(max_frame=5000)
            await receiver.take(bytes(stream), [draw.randrange(1, 3000) for _ in range(draw.randrange(8))])
            _check_damaged(receiver, whole, min(damaged, default=len(stream)))

    run(body())


def _check_damaged(receiver: Receiver, whole: list[tuple[bytes, bool]], intact: int) -> None:
    """What ends within the first `intact` bytes has come, in order; nothing is larger than allowed; one end."""
    end, frames, notes = 0, [], []
    for data, note in whole:
        data = data[:NOTE_LIMIT]
        end += HEAD.size + len(data)
        if end <= intact and (data or not note):
            (notes if note else frames).append(data)
    assert receiver.frames[: len(frames)] == frames
    assert receiver.notes[: len(notes)] == notes
    assert all(len(frame) <= 5000 for frame in receiver.frames)
    assert all(0 < len(note) <= NOTE_LIMIT for note in receiver.notes)
    assert len(receiver.ends) == 1


def test_a_silent_peer_is_looked_at_when_its_time_is_up_and_not_at_the_next_beat() -> None:
    async def main() -> None:
        async with hosts(0, 1) as [(first, _), (_, address)]:
            await first.transport.connect(1, address)
            now = asyncio.get_running_loop().time()
            connection = first.transport._links[1].connection
            assert connection is not None
            for silent, seconds in ((0.0, 2.0), (4.9, 2.0), (6.5, 0.51), (7.5, 2.0)):  # the last one is lost right now
                connection.heard = now - silent
                assert first.transport._until_next_beat(now) == pytest.approx(seconds)

    run(main())
