"""The sending half of a link: one DEALER socket that connects to the peer's ROUTER once, and never again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import zmq

from adapm.errors import ProtocolError, UsageError
from adapm.transport import COPY_LIMIT, view_of

from . import addresses
from .curve import FAILED, Curve, Monitor
from .note import TEXT_LIMIT, Kind, Note

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ATTEMPT = 5.0  # seconds for one attempt to connect
_NOTICE = 0.02  # seconds until a note is read whose arrival a send has hidden
_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2)  # seconds between attempts; the last one repeats
_NOTE_LIMIT = 2 * TEXT_LIMIT  # bytes, more than any note has

_BROKEN_OFF = (10, 3)  # greetings in a row, without and with a key of ours, and it is taken for a matter of keys
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED | FAILED

_Item: TypeAlias = bytes | memoryview | Note


@dataclass(frozen=True)
class Settings:
    """What all sockets of a transport have in common; see `ZmqTransport`."""

    heartbeat: float
    heartbeat_timeout: float
    max_frame: int
    high_water: int
    curve: Curve
    protected: bool


class Loans:
    """Large frames that zmq reads in place.

    zmq says from a thread of its own when it is done with one; here that becomes a call in the loop.
    """

    def __init__(self) -> None:
        self.none = asyncio.Event()
        """Set while nothing is lent."""
        self.none.set()
        self._count = 0
        self._loop = asyncio.get_running_loop()

    def lend(self, view: memoryview, link: Link, release: object) -> None:
        """Keeps `release` until `view` has no reference left, and counts its bytes for the link until then."""
        self._count += 1
        self.none.clear()
        link.lent += view.nbytes
        weakref.finalize(view, self._back_in_any_thread, link, view.nbytes, release).atexit = False

    def _back_in_any_thread(self, link: Link, size: int, release: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody counts any more
            self._loop.call_soon_threadsafe(self._back, link, size, release)

    def _back(self, link: Link, size: int, release: object) -> None:
        link.lent -= size
        self._count -= 1
        if not self._count:
            self.none.set()


class Link:
    """A peer, as one transport sees it.

    Its DEALER has one pipe only, so what ZMQ_EVENTS says about it is exact: after EAGAIN the descriptor fires when
    there is room again (a ROUTER cannot tell for which of its peers).  The peer's frames arrive elsewhere, at the
    transport's ROUTER.

    Args:
        context, peer, settings, loans: the transport's.
        on_broken: called once, from the loop, when the connection is gone or the peer has given it up, with the reason.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        peer: int,
        settings: Settings,
        loans: Loans,
        on_broken: Callable[[Link, str], None],
    ) -> None:
        self.peer = peer
        self.incarnation: bytes | None = None
        self.sender: bytes | None = None
        """The routing id under which the peer's frames arrive; None until its hello came."""
        self.over = asyncio.Event()
        """Set when nothing more can or need be sent."""
        self.obstacle = "nothing was heard from there"
        """Why the latest attempt to connect failed."""
        self.distrusted = False
        """It failed because the keys do not match."""
        self.greeted = False
        self.ready: asyncio.Task[None] | None = None
        self.waiting = 0
        """How many calls of `connect` wait for `ready`."""
        self.lent = 0
        self._context, self._settings, self._loans, self._on_broken = context, settings, loans, on_broken
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: Monitor | None = None
        self._broken_off = 0  # greetings, in a row
        self._handshake: asyncio.Future[str] = self._loop.create_future()
        self._answer: asyncio.Future[Note | str] = self._loop.create_future()
        self._met: asyncio.Future[str] = self._loop.create_future()
        self._up = False
        self._closed = False
        self._welcomed = False
        self._backlog: deque[_Item] = deque()
        self._backlog_bytes = 0
        self._pumping: asyncio.TimerHandle | None = None

    # ---- coming up

    def meet(self, sender: bytes, incarnation: bytes) -> None:
        """The peer has said hello: frames of this sender are its frames."""
        self.sender, self.incarnation = sender, incarnation
        if not self._met.done():
            self._met.set_result("")

    @property
    def linked(self) -> bool:
        """Whether the peer has said hello: from then on the link is there, and can be lost."""
        return self.sender is not None

    async def greet(self, address: str, hello: Note) -> Note | str:
        """Connects, again and again while nobody listens, and says hello; the peer's answer, or why there is none.

        Raises:
            KeyNeeded: the address is on a network, and there is no key.
        """
        for attempt in itertools.count():
            self.obstacle = await self._attempt(address, attempt)
            if not self.obstacle:
                break
            if self.distrusted:
                return self.obstacle
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        self.obstacle = "it took the greeting and did not answer"
        self.greeted = True
        self._push(hello)
        return await self._answer

    async def start(self) -> str:
        """The peer has welcomed this node: sends what has been kept, and waits for the peer's hello, too.

        Returns nothing, or why the hello does not come.
        """
        self._welcomed = True
        self._pump()
        return await self._met

    async def _attempt(self, address: str, number: int) -> str:
        try:
            endpoints = await addresses.resolve(address)
        except OSError as error:
            return f"its host name cannot be resolved ({error})"
        self._check_open()
        endpoint = endpoints[number % len(endpoints)]
        addresses.check_protected(address, endpoint, self._settings.protected)
        self._handshake = self._loop.create_future()
        obstacle = "no answer; is a firewall in between, or is it another program's port?"
        try:
            self._open(endpoint)
            # Not wait_for: before Python 3.12 it forgets a cancellation that comes together with the result.
            await asyncio.wait([self._handshake], timeout=_ATTEMPT)
            if self._handshake.done():
                self._check_open()
                obstacle = self._handshake.result()
        except zmq.ZMQError as error:
            obstacle = str(error)
        finally:
            if obstacle:
                self._shut()
        return obstacle

    def _open(self, endpoint: str) -> None:
        dealer = self._socket = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.SNDHWM, self._settings.high_water)
        dealer.setsockopt(zmq.MAXMSGSIZE, _NOTE_LIMIT)
        # Signs of life go where the bulk goes, so an answer never waits behind a large frame.  The ROUTER sends none:
        # libzmq can abort when a connection times out whose reader is behind its high-water mark (its issue 4767).
        dealer.setsockopt(zmq.HEARTBEAT_IVL, round(self._settings.heartbeat * 1000))
        dealer.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(self._settings.heartbeat_timeout * 1000))
        self._settings.curve.introduce(dealer)
        self._monitor = Monitor(self._context, dealer, _WATCHED, self._happened)
        self._loop.add_reader(dealer.fileno(), self._pump)
        dealer.connect(endpoint)

    # ---- sending

    def send(self, frame: Buffer, release: object) -> None:
        """See `Transport.send`."""
        view = view_of(frame)
        if view.nbytes > self._settings.max_frame:
            raise UsageError(
                f"a frame of {view.nbytes} bytes for node {self.peer} is larger than max_frame,"
                f" {self._settings.max_frame} bytes"
            )
        if view.nbytes >= COPY_LIMIT:
            view = view.cast("B")
            self._loans.lend(view, self, release)
            self._put(view)
        else:
            self._put(bytes(view))

    def say(self, note: Note) -> None:
        """Sends a note after all frames."""
        self._put(note)

    @property
    def queued(self) -> int:
        """Bytes that zmq has not taken, and those of large frames that it has not sent."""
        return self._backlog_bytes + self.lent

    def _put(self, item: _Item) -> None:
        if self._backlog or not self._welcomed or not self._push(item):
            self._backlog.append(item)
            self._backlog_bytes += _small_size(item)
        self._pump_soon()

    def _push(self, item: _Item) -> bool:
        """Hands an item to zmq, if it takes it now."""
        assert self._socket is not None
        try:
            if isinstance(item, Note):
                self._socket.send_multipart([item.pack(), b""], zmq.NOBLOCK)
            else:
                self._socket.send(item, zmq.NOBLOCK, copy=isinstance(item, bytes))
        except zmq.Again:
            return False
        return True

    def _pump_soon(self) -> None:
        """A send may take notice of what has come in, and then the descriptor never tells: somebody has to look.

        Only notes come in here, and they are not urgent; what waits for room is.
        """
        if self._pumping is not None:
            if not self._backlog:
                return
            self._pumping.cancel()
        self._pumping = self._loop.call_later(0 if self._backlog else _NOTICE, self._pump)

    def _stop_pumping(self) -> None:
        if self._pumping is not None:
            self._pumping.cancel()
            self._pumping = None

    def _pump(self) -> None:
        """Reads notes and sends what is kept, until the socket has nothing more to say."""
        self._stop_pumping()
        while self._socket is not None:
            events = self._socket.getsockopt(zmq.EVENTS)
            assert isinstance(events, int)
            if events & zmq.POLLIN:
                self._hear(self._socket.recv_multipart(zmq.NOBLOCK))
            elif not (events & zmq.POLLOUT and self._flush()):
                return

    def _flush(self) -> bool:
        """Whether anything of what is kept could be sent."""
        before = len(self._backlog)
        while self._welcomed and self._backlog and self._push(self._backlog[0]):
            self._backlog_bytes -= _small_size(self._backlog.popleft())
        return len(self._backlog) < before

    # ---- what the peer and zmq say about the link

    def _hear(self, parts: list[bytes]) -> None:
        try:
            note = Note.unpack(parts[0])
        except ProtocolError as error:
            self._break(str(error))
            return
        if note.kind is Kind.WELCOME:
            self._settle(note)
        elif note.kind is Kind.REFUSED:
            self._settle(f"it refused: {note.text}")
        elif note.kind is Kind.FAREWELL:
            self.over.set()
        elif note.kind is Kind.GIVEN_UP:
            self._break(f"it has given up this link: {note.text}")

    def _happened(self, event: int, detail: int) -> None:
        if self._up:
            self._break("the connection broke: its process died, was stopped or cannot be reached")
        elif event & zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._up = True
            self._end_attempt("")
        elif event & zmq.EVENT_CLOSED:
            self._end_attempt("nobody listens there, or it cannot be reached")
        elif not self._handshake.done():
            curve = self._settings.curve
            self._broken_off += 1
            self.distrusted = curve.is_about_keys(event, detail) or self._broken_off >= _BROKEN_OFF[curve.on]
            self._end_attempt(curve.why(event, detail))

    def _end_attempt(self, obstacle: str) -> None:
        if not self._handshake.done():
            self._handshake.set_result(obstacle)

    def _settle(self, answer: Note | str) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    def _break(self, reason: str) -> None:
        self._settle(reason)
        if not self._met.done():
            self._met.set_result(reason)
        self.over.set()
        self._on_broken(self, reason)

    # ---- going down

    def _check_open(self) -> None:
        if self._closed:
            raise asyncio.CancelledError  # that of the task is still on its way

    def close(self) -> None:
        """Frees everything at once; what has not been sent is dropped.  Whoever closes also cancels `ready`."""
        self._closed = True
        self._shut()
        self._backlog.clear()
        self._backlog_bytes = 0
        self.over.set()

    def _shut(self) -> None:
        dealer, monitor = self._socket, self._monitor
        self._socket = self._monitor = None
        self._up = False
        self._stop_pumping()
        if dealer is not None:
            self._loop.remove_reader(dealer.fileno())
            if monitor is not None:
                monitor.close()
            dealer.close()


def _small_size(item: _Item) -> int:
    """Bytes of what is kept as a copy; large frames are counted as loans, and notes are not payload."""
    return len(item) if isinstance(item, bytes) else 0
