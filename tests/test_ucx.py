"""What is particular to the ucx transport: its library, its lanes, the order of frames, peers that break the rules."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from adapm.transports import ucx_library
from adapm.transports.tcp import TcpTransport
from adapm.transports.ucx import UcxTransport
from adapm.transports.ucx_link import WINDOW, Incoming, Outgoing
from adapm.transports.ucx_port import FRAME, OFFER, Port, Way, kept, view
from hypothesis import given
from hypothesis import strategies as st

from adapm.errors import LibraryMissing, NoLanes, PeerLost, TransportError, UsageError
from adapm.transport import COPY_LIMIT, PeerClosed, create, kind_of

PATIENCE = 20.0
LANES = {"ucx+shm": {"TLS": "shm", "MM_ERROR_HANDLING": "y"}, "ucx+tcp": {"TLS": "tcp", "NET_DEVICES": "lo"}}
ADDRESS, END = 1, 2  # what transports say to each other


@pytest.fixture(autouse=True)
def library() -> ucx_library.Library:
    try:
        return ucx_library.load()
    except LibraryMissing as error:
        pytest.skip(str(error))


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 3 * PATIENCE))


class Host:
    """A transport that remembers what comes in."""

    def __init__(self, node: int, name: str = "ucx+shm", **options: Any) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.lost: list[tuple[int, TransportError]] = []
        self.news = asyncio.Event()
        made = create(name, node, on_frame=self._frame, on_lost=self._loss, **options)
        assert isinstance(made, UcxTransport)
        self.transport = made

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

    async def has_lost(self, peer: int, why: str) -> None:
        await self.until(lost=1)
        ((lost, error),) = self.lost
        assert lost == peer and isinstance(error, PeerLost) and not isinstance(error, PeerClosed)
        assert why in str(error), error
        with pytest.raises(PeerLost):
            self.transport.send(peer, b"x")


@contextlib.asynccontextmanager
async def hosts(*nodes: int, name: str = "ucx+shm", **options: Any) -> AsyncIterator[list[tuple[Host, str]]]:
    made = [Host(node, name, **options) for node in nodes]
    try:
        yield [(host, await host.transport.listen()) for host in made]
    finally:
        await asyncio.gather(*(host.transport.close(0.2) for host in made))


# ---- the library


def test_where_the_library_is_looked_for() -> None:
    first, *others = ucx_library.candidates()
    assert first == "libucp.so.0", "the system's comes first"
    assert all(other.endswith("libucx/lib/libucp.so.0") for other in others)


def test_no_library_is_an_error_with_the_remedy() -> None:
    with pytest.raises(LibraryMissing, match=r"pip install 'adapm\[ucx\]'.*nowhere/libucp.so.0"):
        ucx_library.load_first(["/nowhere/libucp.so.0"])


def test_a_library_that_is_none_of_ucx_is_passed_over(library: ucx_library.Library) -> None:
    with pytest.raises(LibraryMissing, match=r"libm.so.6: it lacks ucp_"):
        ucx_library.load_first(["libm.so.6"])
    found = ucx_library.load_first(["/nowhere/libucp.so.0", "libm.so.6", library.path])
    assert found.path == library.path
    assert found.version.startswith("1.")
    assert found.passed_over == ("libm.so.6: it lacks ucp_get_version",)


# ---- lanes


@pytest.mark.parametrize(("name", "kind"), [("ucx+tcp", "tcp"), ("ucx+shm", "shm"), ("ucx", "shm")])
def test_the_lanes_are_what_was_asked_for(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with hosts(0, 1, name=name) as [(a, to_a), (b, _)]:
            assert a.transport.lanes(1) == ()
            await b.transport.connect(0, to_a)
            b.transport.send(0, b"x")
            await a.until(frames=1)
            for lanes in (a.transport.lanes(1), b.transport.lanes(0)):
                assert {kind_of(lane) for lane in lanes} == {kind}, lanes
                assert f"over {' '.join(lanes)} (UCX" in caplog.text

    caplog.set_level("INFO")
    run(body())


def test_on_loopback_ucx_itself_listens_nowhere_else() -> None:
    async def body() -> None:
        async with hosts(0, name="ucx+tcp"):
            mine = listening()
            assert len(mine) >= 2, "one for those who greet, and one of UCX"
            assert set(mine) == {"0100007F"}  # 127.0.0.1

    run(body())


def listening() -> list[str]:
    """The addresses at which sockets of this process listen, in hexadecimal."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()]
    inodes = {str(link).partition("[")[2].rstrip("]") for link in links if str(link).startswith("socket:")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]


@pytest.mark.parametrize("asked", ["no_such_lane", "self"])
def test_no_usable_lanes(asked: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with hosts(0, 1, name="ucx") as [(_, to_a), (b, _)]:
            await b.transport.connect(0, to_a)

    monkeypatch.setenv("UCX_TLS", asked)
    with pytest.raises(TransportError, match=r"no usable lanes|finds no lanes") as caught:
        run(body())
    assert isinstance(caught.value, NoLanes) == (asked != "self")
    assert capfd.readouterr().out == "", "UCX printed something of its own"


def test_peers_with_different_lanes_say_so() -> None:
    async def body() -> None:
        async with hosts(0, name="ucx+tcp") as [(_, to_a)], hosts(1, name="ucx+shm") as [(b, _)]:
            with pytest.raises(TransportError, match="finds no lanes between node"):
                await b.transport.connect(0, to_a)

    run(body())


# ---- a peer that does as it likes


class Rogue:
    """Node 1, made of the parts of a ucx transport: says and sends what the test wants."""

    def __init__(self, name: str) -> None:
        self.said: list[bytes] = []
        self.lost: list[TransportError] = []
        self.news = asyncio.Event()
        self.control = TcpTransport(1, on_frame=self._hear, on_lost=self._loss)
        self.port = Port(LANES[name], self._on_event, 0.0)

    def _hear(self, peer: int, frame: memoryview) -> None:
        self.said.append(bytes(frame))
        self.news.set()

    def _loss(self, peer: int, error: TransportError) -> None:
        self.lost.append(error)
        self.news.set()

    def _on_event(self, event: Any) -> None:
        if event.kind in (FRAME, OFFER):
            self.port.give(event)

    def say(self, kind: int, what: int = 0, more: bytes = b"") -> None:
        self.control.send(0, bytes([kind]) + what.to_bytes(8, "little") + more)

    async def meet(self, address: str) -> Way:
        """Tells the address of its port, and opens a way to that of node 0."""
        await self.control.listen()
        await self.control.connect(0, address)
        self.say(ADDRESS, 77, self.port.address())
        await asyncio.wait_for(self.news.wait(), PATIENCE)
        message = self.said[0]
        self.theirs = int.from_bytes(message[1:9], "little")
        way = self.port.open_way(message[9:], 77, self.theirs)
        assert isinstance(way, Way)
        return way

    async def close(self) -> None:
        await self.control.close(0.2)
        if self.port.is_open:
            self.port.close()


@contextlib.asynccontextmanager
async def rogue(name: str = "ucx+shm", **options: Any) -> AsyncIterator[tuple[Host, Rogue, Way]]:
    """Node 0, and what leads to it from node 1."""
    async with hosts(0, name=name, **options) as [(host, address)]:
        guest = Rogue(name)
        try:
            yield host, guest, await guest.meet(address)
        finally:
            await guest.close()


def numbered(way: Way, *numbers: int, size: int = 1) -> None:
    for number in numbers:
        way.send(number, memoryview(bytes([number]) * size if number else b""), rendezvous=False)


def test_frames_out_of_order_are_put_in_order() -> None:
    async def body() -> None:
        async with rogue() as (host, _, way):
            numbered(way, 0, 3, 1, 4, 2)
            await host.until(frames=4)
            assert [frame for _, frame in host.frames] == [b"\1", b"\2", b"\3", b"\4"]
            assert not host.lost

    run(body())


@pytest.mark.parametrize(
    ("misdeed", "why"),
    [
        (lambda way: numbered(way, 0, 1, 1), "sent frame 1 twice"),
        (lambda way: numbered(way, 0, 2, 2), "sent frame 2 twice"),
        (lambda way: way.send(0, memoryview(bytes(201)), rendezvous=True), "a frame of 201 bytes, which is too large"),
        (lambda way: numbered(way, *range(1, 140), size=130_000), "came before their turn"),
    ],
)
def test_a_peer_that_breaks_the_order_is_lost(misdeed: Callable[[Way], None], why: str) -> None:
    async def body() -> None:
        async with rogue(max_frame=200) as (host, _, way):
            misdeed(way)
            await host.has_lost(1, why)

    run(body())


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([b""], "0 bytes, which are no message"),
        ([b"12345678"], "8 bytes, which are no message"),
        ([bytes(9)], "kind 0 that is unknown"),
        ([b"\1" + bytes(8) + b"address"], "kind 1 that is unknown, or came twice"),
        ([b"\2" + b"\xff" * 8, b"\2" + bytes(8)], "kind 2 that is unknown, or came twice"),
        ([bytes(100_000)], "a frame of 100000 bytes, which is too large"),
    ],
)
def test_a_peer_that_talks_rubbish_is_lost(messages: list[bytes], why: str) -> None:
    async def body() -> None:
        async with rogue() as (host, guest, way):
            numbered(way, 0)
            for message in messages:
                guest.control.send(0, message)
            await host.has_lost(1, why)

    run(body())


def test_frames_without_the_key_are_dropped_and_counted() -> None:
    async def body() -> None:
        async with rogue() as (host, guest, way):
            stranger = guest.port.open_way(guest.said[0][9:], 78, guest.theirs ^ 1)
            assert isinstance(stranger, Way)
            numbered(stranger, 0, 1, 2, size=100)
            stranger.send(3, memoryview(bytes(1 << 20)), rendezvous=True)
            numbered(way, 0, 1)  # on another way, and yet behind them: they share what is between two ports
            await host.until(frames=1)
            assert host.frames == [(1, b"\1")] and not host.lost
            assert host.transport.rejected == 4

    run(body())


def test_a_goodbye_before_the_last_frame_is_no_goodbye() -> None:
    async def body() -> None:
        async with rogue() as (host, guest, way):
            numbered(way, 0, 1)
            await host.until(frames=1)
            guest.say(END, 100)
            await guest.control.close(1.0)
            await host.has_lost(1, "before all of its frames had come")

    run(body())


def test_a_way_that_breaks_without_a_word_is_lost_all_the_same() -> None:
    async def body() -> None:
        async with rogue(name="ucx+tcp") as (host, guest, way):
            numbered(way, 0, 1)
            await host.until(frames=1)
            guest.port.close()
            await host.has_lost(1, "UCX cannot reach it: Connection reset")
            while not guest.lost:
                guest.news.clear()
                await asyncio.wait_for(guest.news.wait(), PATIENCE)
            assert "given up" in str(guest.lost[0])

    run(body())


def test_a_peer_whose_frames_never_come_is_lost() -> None:
    async def body() -> None:
        async with rogue(connect_timeout=0.3) as (host, _, _):
            await host.has_lost(1, "nothing came through UCX within 0.3 s (lanes: ")

    run(body())


# ---- frames


def test_too_large_a_frame_is_refused_by_the_sender() -> None:
    async def body() -> None:
        async with hosts(0, 1, max_frame=100) as [(a, to_a), (b, _)]:
            await b.transport.connect(0, to_a)
            with pytest.raises(UsageError, match="101 bytes for node 0 is larger"):
                b.transport.send(0, bytes(101))
            b.transport.send(0, bytes(100))
            await a.until(frames=1)

    run(body())


@pytest.mark.parametrize("name", ["ucx+tcp", "ucx+shm"])
@pytest.mark.parametrize("fetched_from", [1, 1 << 40])
def test_fetched_or_pushed_frames_come_in_order(name: str, fetched_from: int) -> None:
    async def body() -> None:
        async with hosts(0, 1, name=name, fetched_from=fetched_from) as [(a, to_a), (b, _)]:
            await b.transport.connect(0, to_a)
            frames = [
                bytes([i]) * size for i, size in enumerate([0, 1, COPY_LIMIT, 3 << 20, 5, 100_000, 2 << 20, 7] * 3)
            ]
            for frame in frames:
                b.transport.send(0, frame)
            await a.until(frames=len(frames))
            assert [frame for _, frame in a.frames] == frames
            assert b.transport.queued(0) == 0

    run(body())


def test_looking_for_answers_ends() -> None:
    async def body() -> None:
        async with hosts(0, 1, spin=0.001) as [(a, to_a), (b, _)]:
            await b.transport.connect(0, to_a)
            for i in range(20):
                b.transport.send(0, b"x")
                await a.until(frames=i + 1)
            turns = 0

            def count() -> None:
                nonlocal turns
                turns += 1
                original()

            assert b.transport._port is not None
            original, b.transport._port._turn = b.transport._port._turn, count  # type: ignore[method-assign]
            await asyncio.sleep(0.05)
            assert turns <= 2, "it goes on looking although nothing was sent"

    run(body())


def test_a_callback_that_raises_costs_no_frame() -> None:
    async def body() -> None:
        mishaps: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: mishaps.append(context))
        seen = asyncio.Semaphore(0)

        def on_frame(peer: int, frame: memoryview) -> None:
            seen.release()
            if frame[0] % 2:
                raise RuntimeError("a bug of the node's")

        a = UcxTransport(0, on_frame=on_frame, on_lost=lambda peer, error: None)
        address = await a.listen()
        async with hosts(1) as [(b, _)]:
            await b.transport.connect(0, address)
            for i in range(10):
                b.transport.send(0, bytes([i]))
            for _ in range(10):
                await asyncio.wait_for(seen.acquire(), PATIENCE)
            await a.close()
        assert len(mishaps) == 5

    run(body())


# ---- order and window, without a network


class SlowWay:
    """Takes frames and is done with them when told."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []

    def send(self, number: int, view: memoryview, *, rendezvous: bool) -> int:
        self.taken.append((number, view.nbytes))
        return 1


def test_what_ucx_has_at_a_time_is_bounded() -> None:
    way = SlowWay()
    outgoing = Outgoing(way, 1)  # type: ignore[arg-type]
    frame = memoryview(bytes(1 << 20))
    for _ in range(100):
        assert outgoing.send(frame) >= 0
    assert len(way.taken) == WINDOW >> 20
    assert outgoing.queued == 100 << 20 and outgoing.total == 100
    outgoing.sent(1, 0)
    assert len(way.taken) == WINDOW >> 20, "the oldest one is still under way"
    outgoing.sent(0, 0)
    assert len(way.taken) == (WINDOW >> 20) + 2
    done = 2
    while done < 100:
        outgoing.sent(way.taken[done][0], 0)
        done += 1
    assert [number for number, _ in way.taken] == list(range(100)) and outgoing.queued == 0


@given(seed=st.integers(0, 1 << 30), count=st.integers(1, 40))
def test_frames_are_taken_in_their_order_whatever_the_network_does(seed: int, count: int) -> None:
    draw = random.Random(seed)
    incoming, order, taken = Incoming(1 << 20), list(range(count)), []
    draw.shuffle(order)

    class Event:
        def __init__(self, number: int) -> None:
            self.number, self.length = number, 10

    for number in order:
        if draw.random() < 0.5:
            assert incoming.fetch(number, 10) == ""
        assert incoming.arrived(number, 10) == ""
        event: Any = Event(number)
        if number != incoming.next:
            incoming.keep(number, event, 10)
            continue
        while event is not None:
            taken.append(event.number)
            incoming.next += 1
            event = incoming.take()
    assert taken == list(range(count))
    assert incoming.arrived(draw.randrange(count), 10).endswith("twice")
    assert incoming.fetch(count, 1 << 20) == "" and "before their turn" in incoming.fetch(count + 1, 1)


def test_events_can_be_kept() -> None:
    from adapm._ucp import ffi  # noqa: TID251

    event = ffi.new("adapm_ucp_event *", {"number": 5, "length": 0})
    assert kept(event).number == 5 and kept(event) != event
    assert view(event) == b""
