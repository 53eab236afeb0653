"""Every registered transport against the published checks, and what is particular to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.garbage
from adapm.transports import addresses
from adapm.transports.inproc import InprocNetwork, InprocTransport
from adapm.transports.note import TEXT_LIMIT, VERSION, Kind, Note

from adapm.errors import AddressInUse, PeerLost, ProtocolError, TransportError, UsageError
from adapm.shaping import ShapedTransport
from adapm.transport import OnFrame, OnLost, PeerClosed, Transport, create
from adapm.transport_testing import CHECKS, Check, Lab, Party, Peer, ProcessPeer, Unsuitable, echo, parties, raises

Runner = Callable[[Coroutine[Any, Any, None]], None]

HASTY = {"heartbeat": 0.2, "heartbeat_timeout": 1.0, "connect_timeout": 1.0}
PATIENT = {"heartbeat": 2.0, "heartbeat_timeout": 60.0}
WITH_KEY = ("tcp+ipc", "zmq+tcp", "ucx+shm")  # each transport is checked with a cluster key and without
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """From its first large frame on, pyzmq keeps one thread for the whole process; it belongs to no transport."""
    yield
    zmq.utils.garbage.gc.stop()


def free_tcp_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


class SocketLab(Lab):
    """Of a transport over TCP or unix sockets."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._sockets = 0

    def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
        options = {**(HASTY if hasty else PATIENT), **({"key": KEY} if self.name in WITH_KEY else {})}
        return create(self.name, node, on_frame=on_frame, on_lost=on_lost, **options)

    def free_address(self) -> str:
        if self.name.endswith("+ipc"):
            self._sockets += 1
            return f"ipc://{self._folder}/{self._sockets}"
        return free_tcp_address()

    def peer(self, node: int, address: str, *, hasty: bool = False) -> contextlib.AbstractAsyncContextManager[Peer]:
        options: dict[str, Any] = {"heartbeat": 0.2} if hasty else {}
        if self.name in WITH_KEY:
            options["key"] = KEY.hex()
        return ProcessPeer(node, address, self.name, {**PATIENT, "connect_timeout": 30.0, **options})


class ShapedLab(SocketLab):
    """Of links with a latency and a bandwidth; the other end of a `peer` has none."""

    def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
        def make(on_frame: OnFrame, on_lost: OnLost) -> Transport:
            return super(ShapedLab, self).create(node, on_frame=on_frame, on_lost=on_lost, hasty=hasty)

        return ShapedTransport(make, node, on_frame=on_frame, on_lost=on_lost, bandwidth=1e9, latency=1e-3)


class InprocPeer(Peer):
    def __init__(self, network: InprocNetwork, node: int) -> None:
        self._network, self._node = network, node

    async def stop(self) -> None:
        self._network.stall(self._node)

    async def resume(self) -> None:
        self._network.resume(self._node)

    async def kill(self) -> None:
        self._network.cut(0, self._node)


class InprocLab(Lab):
    notices_stopped = False

    def __init__(self) -> None:
        self.network = InprocNetwork()
        self._addresses = 0

    def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
        timeout = 0.2 if hasty else 60.0
        return InprocTransport(node, on_frame=on_frame, on_lost=on_lost, network=self.network, connect_timeout=timeout)

    def free_address(self) -> str:
        self._addresses += 1
        return f"inproc://free-{self._addresses}"

    @contextlib.asynccontextmanager
    async def peer(self, node: int, address: str, *, hasty: bool = False) -> AsyncIterator[Peer]:
        over = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            echo(lambda on_frame, on_lost: self.create(node, on_frame=on_frame, on_lost=on_lost), address, over)
        )
        yield InprocPeer(self.network, node)
        over.set_result(None)
        await task


LABS: dict[str, Callable[[Path], Lab]] = {
    "inproc": lambda _: InprocLab(),
    **{
        name: functools.partial(SocketLab, name)
        for name in ("tcp+tcp", "tcp+ipc", "zmq+tcp", "zmq+ipc", "ucx+tcp", "ucx+shm")
    },
    "tcp, shaped": functools.partial(ShapedLab, "tcp"),
}


def _runners() -> dict[str, Runner]:
    with contextlib.suppress(ImportError):
        return {"asyncio": asyncio.run, "uvloop": importlib.import_module("uvloop").run}
    return {"asyncio": asyncio.run}


@pytest.mark.parametrize("runner", _runners().values(), ids=_runners())
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("name", LABS)
def test_conformance(name: str, check: Check, runner: Runner, tmp_path: Path) -> None:
    try:
        check.run(LABS[name](tmp_path), runner)
    except Unsuitable as reason:
        pytest.skip(str(reason))
    assert not os.listdir(tmp_path), "socket files were left behind"


# ---- inproc


def test_inproc_delivers_in_a_reproducible_order() -> None:
    async def history() -> list[tuple[int, int, bytes]]:
        network, seen = InprocNetwork(), []
        nodes = [
            InprocTransport(
                node,
                on_frame=lambda peer, frame, node=node: seen.append((node, peer, bytes(frame))),  # type: ignore[misc]
                on_lost=lambda peer, error: None,
                network=network,
            )
            for node in range(3)
        ]
        addresses = [await node.listen() for node in nodes]
        await nodes[1].connect(0, addresses[0])
        await nodes[2].connect(0, addresses[0])
        for i in range(5):
            nodes[2].send(0, bytes([2, i]))
            nodes[0].send(1, bytes([0, i]))
            nodes[1].send(0, bytes([1, i]))
        await asyncio.gather(*(node.close() for node in nodes))
        return seen

    assert asyncio.run(history()) == asyncio.run(history()) != []


def test_inproc_cut_is_seen_by_both_sides() -> None:
    async def body() -> None:
        lab = InprocLab()
        async with parties(lab, 3) as (a, b, c):
            a.send(1, b"under way")
            lab.network.cut(0, 1)
            assert not isinstance(await a.has_lost(1), PeerClosed)
            await b.has_lost(0)
            assert b.received == 0
            c.send(0, b"x")
            c.send(1, b"x")
            await a.has(1)
            await b.has(1)

    asyncio.run(body())


# ---- zmq: strangers at the door


def _party(node: int, scheme: str = "zmq", **options: Any) -> Party:
    class Fixed(SocketLab):
        def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
            return create(scheme, node, on_frame=on_frame, on_lost=on_lost, **{**HASTY, **options})

    return Party(Fixed(scheme, Path()), node)


@contextlib.asynccontextmanager
async def _pair(**options: Any) -> AsyncIterator[tuple[Party, Party]]:
    a, b = _party(0, **options), _party(1, **options)
    a.address, b.address = await a.transport.listen(), await b.transport.listen()
    await b.transport.connect(0, a.address)
    try:
        yield a, b
    finally:
        await asyncio.gather(a.transport.close(), b.transport.close())


async def _works(a: Party, b: Party) -> None:
    before = a.received
    b.send(0, b"fine")
    await a.has(before + 1)
    assert not a.lost and not b.lost


@contextlib.contextmanager
def _stranger(address: str) -> Any:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(address)
    yield dealer
    dealer.close()
    context.term()


async def _answer(dealer: zmq.Socket[bytes]) -> Note:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, dealer.poll, 10_000), "no answer"
    return Note.unpack(dealer.recv_multipart()[0])


def _hello(node: int, to: int = 0, address: str = "tcp://127.0.0.1:1") -> Note:
    return Note(Kind.HELLO, node, to, bytes(16), address)


def test_zmq_garbage_bytes_at_the_port() -> None:
    async def body() -> None:
        random_bytes = random.Random(1)
        async with _pair() as (a, b):
            port = int(a.address.rpartition(":")[2])
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\xff" * 64, random_bytes.randbytes(5000)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.suppress(OSError):  # it may be thrown out at any moment
                    writer.write(garbage)
                    writer.write_eof()
                    await reader.read()
                writer.close()
            await _works(a, b)

    asyncio.run(body())


@pytest.mark.parametrize(
    "parts",
    [
        [b"data of a stranger"],
        [b"", b""],
        [b"no note", b""],
        [_hello(9).pack(), b"", b""],
        [_hello(9).pack()[:-1], b""],
        [bytes(1 << 20), b""],
        [_hello(9).pack()[:6] + b"\x63" + _hello(9).pack()[7:], b""],  # of a kind that there is not
        [Note(Kind.GOODBYE, 1, 0, bytes(16)).pack(), b""],
        [Note(Kind.WELCOME, 1, 0, bytes(16)).pack(), b""],
        [_hello(9, address="no address").pack(), b""],
        [_hello(0).pack(), b""],
        [_hello(1).pack(), b""],
        [_hello(9, to=7).pack(), b""],
    ],
)
def test_zmq_stranger_is_dropped_and_counted(parts: list[bytes]) -> None:
    async def body() -> None:
        async with _pair() as (a, b):
            with _stranger(a.address) as dealer:
                dealer.send_multipart(parts)
                dealer.send_multipart([_hello(0).pack(), b""])
                while (await _answer(dealer)).text.find("taken") < 0:
                    pass
                assert a.transport.rejected >= 2
                await _works(a, b)

    asyncio.run(body())


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"rubbish", b""], "no greeting between adapm nodes"),
        ([b"", b"", b""], "more parts"),
        ([Note(Kind.WELCOME, 1, 0, bytes(16)).pack(), b""], "it said WELCOME"),
    ],
)
def test_zmq_peer_that_breaks_the_rules_is_lost_and_counted(parts: list[bytes], why: str) -> None:
    async def body() -> None:
        async with _pair() as (a, b):
            before = a.transport.rejected
            b.transport._links[0]._socket.send_multipart(parts)
            assert why in str(await a.has_lost(1))
            assert a.transport.rejected == before + 1
            assert a.transport.last_rejected.startswith("node 1 at 127.0.0.1: ")

    asyncio.run(body())


def test_zmq_other_version_is_refused_with_both() -> None:
    async def body() -> None:
        async with _pair() as (a, _):
            with _stranger(a.address) as dealer:
                note = bytearray(_hello(9).pack())
                note[4] = 7
                dealer.send_multipart([bytes(note), b""])
                answer = await _answer(dealer)
                assert (
                    answer.kind is Kind.REFUSED and "version 7" in answer.text and f"version {VERSION}" in answer.text
                )

    asyncio.run(body())


def test_zmq_peer_that_cannot_be_reached_back_is_lost_again() -> None:
    async def body() -> None:
        async with _pair() as (a, b):
            with _stranger(a.address) as dealer:
                dealer.send_multipart([_hello(9).pack(), b""])
                assert (await _answer(dealer)).kind is Kind.WELCOME
                answer = await _answer(dealer)
                assert answer.kind is Kind.GIVEN_UP and "tcp://127.0.0.1:1" in answer.text
            assert (await a.has_lost(9)).node == 9
            b.send(0, b"fine")
            await a.has(1)

    asyncio.run(body())


def test_zmq_oversized_frame() -> None:
    async def body() -> None:
        async with _pair(max_frame=1 << 20) as (a, b):
            with raises(UsageError):
                b.send(0, bytes((1 << 20) + 1))
            await _works(a, b)
            with _stranger(a.address) as dealer:
                dealer.send(bytes((1 << 20) + 1))
                dealer.send_multipart([_hello(0).pack(), b""])
            await _works(a, b)

    asyncio.run(body())


def test_zmq_callback_that_raises_holds_up_nothing() -> None:
    async def body() -> None:
        mishaps: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
        count = 0
        done = asyncio.Event()

        def on_frame(peer: int, frame: memoryview) -> None:
            nonlocal count
            count += 1
            if count == 10:
                done.set()
            if count % 2:
                raise RuntimeError("a bug of the node's")

        a = create("zmq", 0, on_frame=on_frame, on_lost=lambda peer, error: None)
        b = _party(1)
        address = await a.listen()
        await b.transport.listen()
        await b.transport.connect(0, address)
        for _ in range(10):
            b.send(0, b"x")
        await asyncio.wait_for(done.wait(), 20)
        await asyncio.gather(a.close(), b.transport.close())
        assert len(mishaps) == 5

    asyncio.run(body())


# ---- zmq: a network that fails


class Wire:
    """A piece of cable between a client and a server that can be pulled."""

    def __init__(self, target: str) -> None:
        self._port = int(target.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []
        self._copying: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pull()
        await asyncio.gather(*self._copying, return_exceptions=True)
        self._server.close()

    def pull(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        for source, target in ((reader, far_writer), (far_reader, writer)):
            self._copying.add(asyncio.create_task(self._copy(source, target)))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(data)
        target.close()


def test_zmq_broken_connection_is_lost_on_both_sides_and_stays_so() -> None:
    async def body() -> None:
        a, b = _party(0), _party(1)
        a.address, b.address = await a.transport.listen(), await b.transport.listen()
        async with Wire(a.address) as wire:
            await b.transport.connect(0, wire.address)
            await _works(a, b)
            wire.pull()  # one of the two connections; both processes live, and the other connection stands
            assert not isinstance(await b.has_lost(0), PeerClosed)
            assert "given up" in str(await a.has_lost(1))
            assert wire.connections == 1, "the link was repaired"
            await asyncio.gather(a.transport.close(), b.transport.close())

    asyncio.run(body())


def test_zmq_something_else_listens_there() -> None:
    async def body() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ready\r\n")
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        a = _party(0)
        await a.transport.listen()
        with pytest.raises(TransportError, match="no adapm node"):
            await a.transport.connect(1, f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await a.transport.close()
        server.close()

    asyncio.run(body())


# ---- addresses of sockets

on_sockets = pytest.mark.parametrize("scheme", ["tcp", "zmq"])


@on_sockets
def test_wildcard_listens_on_all_networks_and_is_connected_back(scheme: str) -> None:
    async def body() -> None:
        a, b = _party(0, scheme, insecure=True), _party(1, scheme, insecure=True)
        address = await a.transport.listen("tcp://127.0.0.1:0")
        advertised = await b.transport.listen("tcp://*:0")
        assert not addresses.is_wildcard(advertised) and not advertised.endswith(":0")
        await b.transport.connect(0, address)
        a.send(1, b"back to where it came from")
        await b.has(1)
        await asyncio.gather(a.transport.close(), b.transport.close())

    asyncio.run(body())


@on_sockets
def test_host_names_are_looked_up(scheme: str) -> None:
    async def body() -> None:
        a, b = _party(0, scheme), _party(1, scheme)
        address = await a.transport.listen("tcp://localhost:0")
        await b.transport.listen()
        await b.transport.connect(0, f"tcp://localhost:{address.rpartition(':')[2]}")
        await asyncio.gather(a.transport.close(), b.transport.close())

    asyncio.run(body())


@pytest.mark.parametrize(
    "address", ["", "tcp://", "tcp://host", "tcp://:1", "tcp://host:99999", "tcp://::1:5", "udp://h:1", "ipc://", "x"]
)
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(TransportError, match="tcp://host:port"):
        addresses.check(address)


@on_sockets
def test_foreign_address_is_explained(scheme: str) -> None:
    async def body() -> None:
        a = _party(0, scheme, insecure=True)
        with pytest.raises(TransportError, match=r"192\.0\.2\.1.*this machine"):
            await a.transport.listen("tcp://192.0.2.1:5555")
        await a.transport.listen()
        await a.transport.close()

    asyncio.run(body())


@on_sockets
def test_ipc_leaves_other_files_alone(scheme: str, tmp_path: Path) -> None:
    async def body() -> None:
        a, b = _party(0, scheme), _party(1, scheme)
        await b.transport.listen(f"ipc://{tmp_path}/gone")
        await b.transport.close()
        b = _party(1, scheme)
        (tmp_path / "file").write_text("precious")
        with pytest.raises(TransportError, match="not a socket"):
            await a.transport.listen(f"ipc://{tmp_path}/file")
        assert (tmp_path / "file").read_text() == "precious"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"{tmp_path}/stale")
        await a.transport.listen(f"ipc://{tmp_path}/stale")
        with pytest.raises(AddressInUse):
            await b.transport.listen(f"ipc://{tmp_path}/stale")
        await a.transport.close()
        assert os.listdir(tmp_path) == ["file"]

    asyncio.run(body())


def test_ipc_chooses_an_address_without_a_file() -> None:
    assert addresses.private("ipc").startswith("ipc://@")
    assert addresses.private("ipc") != addresses.private("ipc")


# ---- notes


def test_notes_survive_the_way() -> None:
    for kind in Kind:
        note = Note(kind, 3, 4, bytes(range(16)), "warum nicht: \u00fc")
        assert Note.unpack(note.pack()) == note
    assert len(Note(Kind.REFUSED, 0, 1, bytes(16), "\u20ac" * 5000).pack()) <= 100 + TEXT_LIMIT


def test_any_bytes_are_a_note_or_a_protocol_error() -> None:
    rng = random.Random(2)
    packed = Note(Kind.HELLO, 3, 4, bytes(16), "tcp://h:1").pack()
    for _ in range(3000):
        data = bytearray(packed[: rng.randrange(len(packed) + 1)] if rng.random() < 0.5 else packed)
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ProtocolError):
            Note.unpack(bytes(data))


def test_closed_transport_leaves_no_thread() -> None:
    async def body() -> None:
        async with _pair():
            pass

    before = threading.active_count()
    asyncio.run(body())
    assert threading.active_count() == before


def test_lost_is_a_connection_error() -> None:
    assert issubclass(PeerLost, ConnectionError) and issubclass(PeerClosed, PeerLost)
