"""Who is let in: transports and whole runs with keys, with the wrong ones and without, on this machine and on networks.

The test of many attempts has a long version: ADAPM_TEST_STRANGERS=10000, or `tox -e strangers`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from adapm.transports import addresses
from adapm.transports.curve import FAILED, Curve
from adapm.transports.greeting import Caller
from adapm.transports.note import NO_TOKEN, Kind, Note
from adapm.transports.tcp_link import HEAD, NOTE

import adapm
import tasks
from adapm import Table, keys
from adapm.errors import AuthenticationFailed, ConfigError, KeyFileError, KeyNeeded
from adapm.transport import Transport, create
from cluster import Cluster

PATIENCE = 10.0  # seconds, in which what is wrong with keys must be said
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ATTEMPTS = int(os.environ.get("ADAPM_TEST_STRANGERS", "500"))
AT_ONCE = 25

everywhere = pytest.mark.parametrize("name", ["tcp+tcp", "tcp+ipc", "zmq+tcp", "zmq+ipc", "ucx+tcp"])
on_networks = pytest.mark.parametrize("name", ["tcp", "zmq", "ucx"])


def run(body: Coroutine[Any, Any, None], seconds: float = 60.0) -> None:
    asyncio.run(asyncio.wait_for(body, seconds))


def make(name: str, node: int, **options: Any) -> Transport:
    return create(name, node, on_frame=lambda peer, frame: None, on_lost=lambda peer, error: None, **options)


@contextlib.asynccontextmanager
async def closing(*transports: Transport) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.gather(*(transport.close(0.1) for transport in transports))


# ---- keys that do not match


@everywhere
@pytest.mark.parametrize(
    ("theirs", "ours", "wrong"),
    [
        (KEY, OTHER, "another cluster key"),
        (KEY, None, "has a cluster key"),
        (None, KEY, "(has no cluster key|has none|cluster key, or none)"),
    ],
    ids=["another", "only there", "only here"],
)
def test_keys_that_differ_are_said_at_both_ends_soon(
    name: str, theirs: bytes | None, ours: bytes | None, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        a, b = make(name, 0, key=theirs), make(name, 1, key=ours)
        async with closing(a, b):
            address, _ = await a.listen(), await b.listen()
            with pytest.raises(AuthenticationFailed, match=rf"(?s){wrong}.*same key file") as caught:
                await asyncio.wait_for(b.connect(0, address), PATIENCE)
            assert "node 0" in str(caught.value) and address in str(caught.value)
            while not a.rejected:  # noqa: ASYNC110  # it may learn of it later, of which nobody tells
                await asyncio.sleep(0.01)
            assert "key" in a.last_rejected
        assert {record.levelno for record in caplog.records} == {logging.WARNING}
        assert "node 0 turned away" in caplog.text and "key" in caplog.text

    caplog.set_level(logging.WARNING)
    run(body())


@everywhere
def test_who_was_refused_keeps_nobody_out(name: str) -> None:
    async def body() -> None:
        a, b, c = make(name, 0, key=KEY), make(name, 1, key=OTHER), make(name, 1, key=KEY)
        async with closing(a, b, c):
            address, _, _ = [await transport.listen() for transport in (a, b, c)]
            with pytest.raises(AuthenticationFailed):
                await b.connect(0, address)
            await c.connect(0, address)  # with the same id

    run(body())


def test_the_log_names_some_and_counts_the_rest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    transport = make("tcp", 0)
    for i in range(1000):
        transport._reject(f"stranger {i}", "for a reason")
    now += 1.0
    transport._reject("a late one", "for a reason")
    assert len(caplog.records) == 11
    assert caplog.messages[0] == "node 0 turned away stranger 0: for a reason"
    assert caplog.messages[-1] == "node 0 turned away a late one: for a reason; 990 more before that"
    assert (transport.rejected, transport.last_rejected) == (1001, "a late one: for a reason")


# ---- networks


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("ipc://@x", True),
        ("ipc:///tmp/x", True),
        ("tcp://127.0.0.1:5", True),
        ("tcp://127.8.9.1:5", True),
        ("tcp://[::1]:5", True),
        ("tcp://0.0.0.0:5", False),
        ("tcp://*:5", False),
        ("tcp://[::]:5", False),
        ("tcp://192.0.2.1:5", False),
        ("tcp://[fe80::1%eth0]:5", False),
        ("tcp://128.0.0.1:5", False),
        ("tcp://127.0.0.1.example:5", False),
    ],
)
def test_which_addresses_only_this_machine_can_reach(endpoint: str, local: bool) -> None:
    assert addresses.is_local(endpoint) is local


def own_address() -> str:
    """This machine's, on a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the route
        except OSError:
            return ""
        return str(probe.getsockname()[0])


@on_networks
def test_on_a_network_nodes_need_a_key(name: str) -> None:
    async def body() -> None:
        naked, keyed, careless = make(name, 0), make(name, 1, key=KEY), make(name, 2, insecure=True)
        async with closing(naked, keyed, careless):
            for address in filter(None, ("tcp://*:0", f"tcp://{own_address()}:0" if own_address() else "")):
                with pytest.raises(KeyNeeded, match=r"adapm keys.*insecure=true"):
                    await naked.listen(address)
            assert await keyed.listen("tcp://*:0") and await careless.listen("tcp://*:0")
            await naked.listen()
            with pytest.raises(KeyNeeded, match=r"192\.0\.2\.77.*adapm keys"):
                await naked.connect(7, "tcp://192.0.2.77:5")

    run(body())


@on_networks
def test_nodes_with_a_key_meet_on_a_network(name: str) -> None:
    if not own_address():
        pytest.skip("this machine is on no network")

    async def body() -> None:
        a, b = make(name, 0, key=KEY), make(name, 1, key=KEY)
        async with closing(a, b):
            address, _ = [await transport.listen(f"tcp://{own_address()}:0") for transport in (a, b)]
            await asyncio.wait_for(b.connect(0, address), PATIENCE)

    run(body())


# ---- whole runs


@pytest.mark.parametrize("name", ["tcp", "zmq", "ucx+tcp"])
def test_a_run_with_a_key(name: str, tmp_path: Path) -> None:
    path = keys.make(tmp_path / "key").path
    settings = {"nodes": 2, "workers": 1, "transport": name, "key_file": str(path)}
    assert adapm.run(tasks.links, [Table("t", rows=10, dim=4)], config=settings) == [(0, 1, 0)] * 2


def test_what_cannot_be_protected_is_refused_before_anything_starts(tmp_path: Path) -> None:
    def start(**settings: Any) -> None:
        adapm.run(tasks.links, [Table("t", rows=10, dim=4)], config={"nodes": 2, "workers": 1, **settings})

    path = keys.make(tmp_path / "key").path
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        start(key_file=str(path))
    with pytest.raises(ConfigError, match="'inproc' does not use cluster keys"):
        start(transport="inproc", node=0, rendezvous="pigeon://house:1")


def test_node_0_says_whom_it_turned_away(tmp_path: Path) -> None:
    async def body() -> None:
        stranger = make("tcp", 1, key=OTHER)
        path = str(keys.make(tmp_path / "key").path)
        cluster = Cluster([Table("t", rows=10, dim=4)], 2, transport="tcp", key_file=path, startup_timeout=0.5)
        node = cluster._add(0)
        try:
            address = await node.listen()
            await stranger.listen()
            with pytest.raises(AuthenticationFailed):
                await stranger.connect(0, address)
            with pytest.raises(adapm.AdapmError, match=r"nodes 1 have not joined.*another cluster key"):
                await node.join()
        finally:
            await asyncio.gather(stranger.close(0.1), node.close())

    run(body())


# ---- many attempts

VALUE = np.float32(1234.5678)  # of every float of the table
SECRET = VALUE.tobytes() * 4


class Attack:
    """Connections of somebody without the key, and the bytes that they brought in."""

    def __init__(self, address: str, recorded: bytes) -> None:
        self.address = address
        self.received: collections.Counter[str] = collections.Counter()
        self.bytes = 0
        self._recorded = recorded
        self._chance = random.Random(5)

    async def raw(self, say: Callable[[_Heard, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> bytes:
        """Says something; all that comes back until the node hangs up."""
        host, port = addresses.host_port(self.address)
        reader, writer = await asyncio.open_connection(host, int(port))
        heard = _Heard(reader)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await say(heard, writer)
        if say not in (self.plain_zmtp, self.garbled_curve):  # these are answered, and thrown out
            with contextlib.suppress(OSError):
                writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await heard.read()
        writer.close()
        self.bytes += len(heard.all)
        return bytes(heard.all)

    # What strangers say to tcp:

    async def silence(self, reader: _Heard, writer: asyncio.StreamWriter) -> None: ...

    async def rubbish(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(self._chance.randbytes(self._chance.randrange(1, 3000)))

    async def frames(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD.pack(64) + bytes(64))

    async def no_key(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(_packed(_hello()) + HEAD.pack(64) + bytes(64))

    async def wrong_key(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        caller = Caller(self._chance.randbytes(32), _hello())
        writer.write(_packed(caller.hello))
        caller.hear((await reader.note()).pack())
        writer.write(_packed(replace(_hello(), kind=Kind.PROOF, token=caller.proof())) + HEAD.pack(64) + bytes(64))

    async def reflection(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(_packed(replace(_hello(), token=self._chance.randbytes(32))))
        challenge = await reader.note()
        writer.write(_packed(replace(challenge, kind=Kind.PROOF)) + HEAD.pack(64) + bytes(64))

    async def replay(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(self._recorded)

    # And to zmq:

    async def plain_zmtp(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(_zmtp(b"NULL") + b"\4\x19\5READY\x0bSocket-Type\0\0\0\6DEALER")

    async def garbled_curve(self, reader: _Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(_zmtp(b"CURVE") + b"\4\xc8\5HELLO\1\0" + self._chance.randbytes(192))


class _Heard:
    """Reads, and keeps what it has read."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.all = bytearray()
        self._reader = reader

    async def read(self) -> None:
        while piece := await self._reader.read(1 << 16):
            self.all += piece

    async def note(self) -> Note:
        head = await self._reader.readexactly(HEAD.size)
        data = await self._reader.readexactly(HEAD.unpack(head)[0] & ~NOTE)
        self.all += head + data
        return Note.unpack(data)


def _hello() -> Note:
    return Note(Kind.HELLO, 1, 0, bytes(16), "tcp://127.0.0.1:1", NO_TOKEN)


def _packed(note: Note) -> bytes:
    data = note.pack()
    return HEAD.pack(len(data) | NOTE) + data


def _zmtp(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\3\1" + mechanism.ljust(20, b"\0") + bytes(32)


def _notes(data: bytes) -> list[Kind]:
    """What was heard, all of which must be notes."""
    kinds = []
    while data:
        (word,) = HEAD.unpack_from(data)
        assert word & NOTE, "a frame"
        end = HEAD.size + (word & ~NOTE)
        kinds.append(Note.unpack(data[HEAD.size : end]).kind)
        data = data[end:]
    return kinds


async def _recording(address: str) -> bytes:
    """What somebody with the key says, who then asks for rows: up to the moment at which it is welcome."""
    host, port = addresses.host_port(address)
    reader, writer = await asyncio.open_connection(host, int(port))
    heard, caller = _Heard(reader), Caller(KEY, replace(_hello(), node=77))
    first = _packed(caller.hello)
    writer.write(first)
    caller.hear((await heard.note()).pack())
    second = _packed(replace(_hello(), node=77, kind=Kind.PROOF, token=caller.proof()))
    writer.write(second)
    assert caller.hear((await heard.note()).pack()).kind is Kind.WELCOME  # the recording is a good one
    writer.close()
    return first + second + HEAD.pack(64) + bytes(64)


def _key_file(folder: Path) -> str:
    path = folder / "key"
    path.write_text(f"adapm-key-1 {KEY.hex()}\n")
    path.chmod(0o600)
    return str(path)


async def _besiege(cluster: Cluster, siege: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """While two workers exchange rows; afterwards all of them are right."""
    over = asyncio.Event()
    rounds: list[int] = []

    async def work(worker: adapm.Worker) -> None:
        wanted, done = np.arange(64), 0
        while not over.is_set() or done < 5:
            rows = await worker.pull("t", wanted)
            assert rows.shape == (64, 16)
            await worker.push("t", wanted, np.zeros((64, 16), np.float32))
            done += 1
            await asyncio.sleep(0)
        rounds.append(done)

    async def attack() -> None:
        try:
            await siege()
        finally:
            over.set()

    await asyncio.gather(cluster.run(work), attack())
    await cluster.finish()
    await cluster.settle()
    assert np.all(cluster.main_copies("t") == VALUE)
    print(f"rounds of the workers meanwhile: {rounds}")


@pytest.mark.parametrize("name", ["tcp"])
def test_no_stranger_gets_a_byte_of_a_table_over_tcp(name: str, tmp_path: Path) -> None:
    async def body() -> None:
        tables = [Table("t", rows=1000, dim=16, init=adapm.constant(float(VALUE)))]
        async with Cluster(tables, 2, 1, transport=name, key_file=_key_file(tmp_path)) as cluster:
            transport = cluster.nodes[0]._transport
            address = transport._endpoint
            attack = Attack(address, await _recording(address))
            ways = [attack.silence, attack.rubbish, attack.frames, attack.no_key, attack.wrong_key, attack.reflection]
            ways.append(attack.replay)

            async def siege() -> None:
                for begin in range(0, ATTEMPTS, AT_ONCE):
                    batch = [ways[i % len(ways)] for i in range(begin, min(begin + AT_ONCE, ATTEMPTS))]
                    for heard in await asyncio.gather(*map(attack.raw, batch)):
                        assert SECRET[:8] not in heard
                        attack.received.update(kind.name for kind in _notes(heard))

            before = transport.rejected
            await _besiege(cluster, siege)
            assert transport.rejected - before == ATTEMPTS
            assert set(attack.received) == {"CHALLENGE", "DISTRUSTED"}
            print(f"{ATTEMPTS} attempts got {attack.bytes} bytes, all of them greetings: {dict(attack.received)}")

    run(body(), 280)


@pytest.mark.parametrize("name", ["zmq"])
def test_no_stranger_gets_a_byte_of_a_table_over_zmq(name: str, tmp_path: Path) -> None:
    async def body() -> None:
        tables = [Table("t", rows=1000, dim=16, init=adapm.constant(float(VALUE)))]
        async with Cluster(tables, 2, 1, transport=name, key_file=_key_file(tmp_path)) as cluster:
            transport = cluster.nodes[0]._transport
            attack = Attack(transport._endpoint, b"")
            ways = [attack.silence, attack.rubbish, attack.plain_zmtp, attack.garbled_curve]

            async def siege() -> None:
                for begin in range(0, ATTEMPTS, AT_ONCE):
                    batch = range(begin, min(begin + AT_ONCE, ATTEMPTS))
                    heard = await asyncio.gather(*(attack.raw(ways[i % 4]) for i in batch if i % 10))
                    assert max(map(len, heard)) <= 64, "more than ZeroMQ's greeting"
                    await asyncio.to_thread(_dealers, transport._endpoint, [i for i in batch if i % 10 == 0])

            await _besiege(cluster, siege)
            assert len(transport._links) == 1
            assert transport.rejected > ATTEMPTS // 2
            print(f"{ATTEMPTS} attempts got {attack.bytes} bytes, all of them ZeroMQ's greetings")

    run(body(), 280)


def _dealers(address: str, attempts: list[int]) -> None:
    """ZeroMQ's own sockets, of which each has another wrong key, or none: no handshake comes to an end."""
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        monitors = []
        for attempt in attempts:
            dealer = stack.enter_context(context.socket(zmq.DEALER))
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RECONNECT_IVL, -1)
            Curve(attempt.to_bytes(32, "little") if attempt % 20 else None).introduce(dealer)
            monitors.append(stack.enter_context(dealer.get_monitor_socket(FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)))
            dealer.connect(address)
            with contextlib.suppress(zmq.Again):  # it is refused already
                dealer.send(b"x" * 64, zmq.NOBLOCK)
        for monitor in monitors:
            assert monitor.poll(10_000), "a handshake hangs"
            (event,) = struct.unpack_from("=H", monitor.recv_multipart()[0])
            assert event & FAILED, "a stranger was let in"
