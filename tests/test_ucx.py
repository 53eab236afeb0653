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

from adapm._ucp import lib  # noqa: TID251
from adapm.errors import LibraryMissing, NoLanes, PeerLost, TransportError, UsageError
from adapm.transport import COPY_LIMIT, PeerClosed, create, kind_of
from raw_ucx import RawPort, RawWay

PATIENCE = 20.0
LANES = {"ucx+shm": {"TLS": "shm", "MM_ERROR_HANDLING": "y"}, "ucx+tcp": {"TLS": "tcp", "NET_DEVICES": "lo"}}
ADDRESS, END = 1, 2  # what transports say to each other
WINDOW, CHARGE = lib.ADAPM_LINK_WINDOW, lib.ADAPM_LINK_CHARGE


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
        self.port = RawPort(LANES[name])
        self.port.on_news = self.news.set

    def _hear(self, peer: int, frame: memoryview) -> None:
        self.said.append(bytes(frame))
        self.news.set()

    def _loss(self, peer: int, error: TransportError) -> None:
        self.lost.append(error)
        self.news.set()

    def say(self, kind: int, what: int = 0, more: bytes = b"") -> None:
        self.control.send(0, bytes([kind]) + what.to_bytes(8, "little") + more)

    async def until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), PATIENCE)

    async def meet(self, address: str) -> RawWay:
        """Tells the address of its port, and opens a way to that of node 0."""
        await self.control.listen()
        await self.control.connect(0, address)
        self.say(ADDRESS, 77, self.port.address)
        await self.until(lambda: bool(self.said))
        message = self.said[0]
        self.theirs = int.from_bytes(message[1:9], "little")
        return self.port.way(message[9:], 77, self.theirs)

    async def close(self) -> None:
        await self.control.close(0.2)
        self.port.close()


@contextlib.asynccontextmanager
async def rogue(name: str = "ucx+shm", **options: Any) -> AsyncIterator[tuple[Host, Rogue, RawWay]]:
    """Node 0, and what leads to it from node 1."""
    async with hosts(0, name=name, **options) as [(host, address)]:
        guest = Rogue(name)
        try:
            yield host, guest, await guest.meet(address)
        finally:
            await guest.close()


def numbered(way: RawWay, *numbers: int, size: int = 1) -> None:
    for number in numbers:
        way.send(number, bytes([number % 256]) * size if number else b"")


def test_frames_out_of_order_are_put_in_order() -> None:
    async def body() -> None:
        async with rogue() as (host, _, way):
            numbered(way, 0, 3, 1, 4, 2)
            await host.until(frames=4)
            assert [frame for _, frame in host.frames] == [b"\1", b"\2", b"\3", b"\4"]
            assert not host.lost

    run(body())


@pytest.mark.parametrize("name", LANES)
def test_frames_are_taken_in_their_order_whatever_the_network_does(name: str, request: pytest.FixtureRequest) -> None:
    """Some fetched and some not, up to a few hundred away from their places."""
    seed = request.config.getoption("--seed")
    print(f"seed {seed}")
    draw = random.Random(seed)
    numbers = list(range(1000))
    while len(numbers) > (begin := draw.randrange(1200)):
        part = numbers[begin : begin + draw.randrange(300)]
        numbers[begin : begin + len(part)] = draw.sample(part, len(part))

    async def body() -> None:
        async with rogue(name) as (host, _, way):
            for number in numbers:
                size = draw.choice([0, 2, 3000, 100_000])
                way.send(number, number.to_bytes(4, "little") + bytes(size), rendezvous=draw.random() < 0.2)
            await host.until(frames=999)
            assert [int.from_bytes(frame[:4], "little") for _, frame in host.frames] == list(range(1, 1000))
            assert not host.lost

    run(body())


@pytest.mark.parametrize(
    ("max_frame", "misdeed", "why"),
    [
        (200, lambda way: numbered(way, 0, 1, 1), "sent frame 1 twice"),
        (200, lambda way: numbered(way, 0, 2, 2), "sent frame 2 twice"),
        (200, lambda way: [way.send(2, bytes(150), rendezvous=True) for _ in range(2)], "sent frame 2 twice"),
        (200, lambda way: way.send(0, bytes(201), rendezvous=True), "a frame of 201 bytes, which is too large"),
        (200, lambda way: numbered(way, 0, 1, size=201), "a frame of 201 bytes, which is too large"),
        (130_000, lambda way: numbered(way, *range(1, 150), size=130_000), "came too long before its turn"),
        (200, lambda way: numbered(way, 0, WINDOW // CHARGE + 1), "frame 65537 came too long before its turn"),
        (200, lambda way: numbered(way, 0, (1 << 64) - 1), "frame 18446744073709551615 came too long before its turn"),
    ],
)
def test_a_peer_that_breaks_the_order_is_lost(max_frame: int, misdeed: Callable[[RawWay], None], why: str) -> None:
    async def body() -> None:
        async with rogue(max_frame=max_frame) as (host, _, way):
            misdeed(way)
            await host.has_lost(1, why)

    run(body())


def test_as_early_as_a_correct_peer_may_send() -> None:
    """The number of frames that the window lets overtake another."""

    async def body() -> None:
        async with rogue() as (host, _, way):
            numbered(way, 0, *range(2, WINDOW // CHARGE + 1), 1, size=0)
            await host.until(frames=WINDOW // CHARGE)
            assert not host.lost

    run(body())


def test_what_ucx_has_at_a_time_is_bounded() -> None:
    async def body() -> None:
        async with rogue(fetched_from=1) as (host, guest, way):
            numbered(way, 0)
            frame, window = bytes(1 << 20), WINDOW >> 20
            for _ in range(100):
                host.transport.send(1, frame)
            assert host.transport.queued(1) == 100 << 20
            offers = guest.port.offers
            await guest.until(lambda: len(offers) == window)
            guest.port.take(2)
            await guest.until(lambda: host.transport.queued(1) == 99 << 20)
            assert len(offers) == window - 1, "the oldest one is still under way"
            guest.port.take(1)
            await guest.until(lambda: len(offers) == window)
            for number in range(3, 101):
                await guest.until(lambda number=number: number in offers)  # type: ignore[misc]
                guest.port.take(number)
            await guest.until(lambda: not host.transport.queued(1))

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
            stranger = guest.port.way(guest.said[0][9:], 78, guest.theirs ^ 1)
            numbered(stranger, 0, 1, 2, size=100)
            stranger.send(3, bytes(1 << 20), rendezvous=True)
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
            await guest.until(lambda: bool(guest.lost))
            assert "given up" in str(guest.lost[0])

    run(body())


def test_a_peer_whose_frames_never_come_is_lost() -> None:
    async def body() -> None:
        async with rogue(connect_timeout=0.3) as (host, _, _):
            await host.has_lost(1, "nothing came through UCX within 0.3 s (lanes: ")

    run(body())


# ---- frames


def test_a_large_frame_that_goes_alone_is_sent_along_and_several_are_fetched() -> None:
    async def body() -> None:
        async with rogue() as (host, guest, way):
            numbered(way, 0)
            large, port = bytes(200_000), guest.port
            for i in range(5):
                host.transport.send(1, large)
                await guest.until(lambda i=i: port.frames == list(range(i + 2)))  # type: ignore[misc]
                numbered(way, i + 1)  # it answers
                await host.until(frames=i + 1)
            for _ in range(4):
                host.transport.send(1, large)
            await guest.until(lambda: len(port.frames) + len(port.offers) == 10)
            assert sorted(port.offers) == [8, 9], "two fit into what may go along"

    run(body())


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
