"""Frames over UCX: over TCP, over shared memory, and over whatever else a site's UCX can do, such as InfiniBand.

    node 0   TcpTransport  <--- hello, addresses, signs of life, goodbye --->  TcpTransport   node 1
             Port          <==== frames, each an active message with its number ====>  Port

Nodes meet, part and watch each other over a connection of the tcp transport, which is the same on all networks: UCX's
lanes in shared memory do not tell that a peer is dead, and none of them that it was stopped.  Over it they tell each
other where their ports are, and a key that every frame must bear.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from adapm.errors import AdapmError, Closed, PeerLost, ProtocolError, TransportError, UsageError
from adapm.transport import OnFrame, OnLost, PeerClosed, Transport, kind_of, view_of

from . import addresses, ucx_library
from .tcp import TcpTransport
from .ucx_link import WINDOW, Link
from .ucx_port import FAILED, OFFER, SENT, Port, kept, view

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from adapm._ucp import CData

log = logging.getLogger("adapm.transports.ucx")

_HEADER_ROOM: Final = 64 * 1024  # bytes a frame may have beyond a round size
_CONTROL_LIMIT: Final = 64 * 1024  # bytes of a message between transports; an address has some hundred
_FETCHED_FROM_HERE: Final = 128 * 1024  # bytes: a few of them fill the pipes of shared memory
_FETCHED_FROM_AFAR: Final = 512 * 1024  # fetching costs a round trip
_EXPLAIN: Final = 1.0  # seconds in which the peer may say why its end of a way is gone
_MESSAGE: Final = struct.Struct("<BQ")  # kind, and what it says
_ADDRESS: Final = 1  # the key that frames must bear [the port's address]
_END: Final = 2  # how many frames were sent in all
_GOT_ALL: Final = 3

_SETTINGS: Final = {
    "MM_ERROR_HANDLING": "y",  # or ways in shared memory could not be closed while a frame is under way
    "CMA_MEMORY_INVALIDATE": "y",  # or large frames would go through shared memory piece by piece
    "TCP_TX_SEG_SIZE": "64K",  # fewer pieces
    "KEEPALIVE_INTERVAL": "inf",  # we have signs of life of our own
}
_LANES: Final = {"tcp": {"TLS": "tcp"}, "shm": {"TLS": "shm"}, "ib": {"TLS": "ib"}, "": {}}


class _Control(TcpTransport):
    """The connections over which nodes meet; what they turn away is counted by the transport that they serve."""

    def __init__(self, rejected: Callable[[str, str], None], node: int, **options: Any) -> None:
        super().__init__(node, **options)
        self._on_rejected = rejected

    def _reject(self, who: str, why: str) -> None:
        self._on_rejected(who, why)


class UcxTransport(Transport):
    """See `Transport`; addresses are `tcp://host:port`, where the nodes meet.

    Args:
        variant: "tcp", "shm" or "ib" for these lanes only; "" for the best that UCX finds, which its own environment
            variables (UCX_TLS, UCX_NET_DEVICES) may narrow down.
        heartbeat, heartbeat_timeout, connect_timeout: see `TcpTransport`.
        max_frame: bytes; larger frames are refused by sender and receiver.
        fetched_from: bytes from which on the receiver fetches a frame straight to where it will lie; None: what is
            best on the lanes that there are.
        spin: seconds to look for an answer after sending something, before sleeping; 0: sleep at once.
        key, insecure: see `TcpTransport`; UCX's own connections are neither authenticated nor encrypted.

    Raises:
        LibraryMissing: there is no libucp, or it is too old.
    """

    scheme = "ucx"
    variants = ("tcp", "shm", "ib")
    spins = True
    authenticates = True
    descriptors = 4

    def __init__(
        self,
        node: int,
        *,
        on_frame: OnFrame,
        on_lost: OnLost,
        variant: str = "",
        heartbeat: float = 2.0,
        heartbeat_timeout: float = 7.0,
        connect_timeout: float = 30.0,
        max_frame: int = (1 << 30) + _HEADER_ROOM,
        fetched_from: int | None = None,
        spin: float = 0.0,
        key: bytes | None = None,
        insecure: bool = False,
    ) -> None:
        self._library = ucx_library.load()
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._control = _Control(
            self._reject,
            node,
            on_frame=self._hear,
            on_lost=self._on_control_lost,
            heartbeat=heartbeat,
            heartbeat_timeout=heartbeat_timeout,
            connect_timeout=connect_timeout,
            max_frame=_CONTROL_LIMIT,
            key=key,
            insecure=insecure,
        )
        self._variant = variant
        self._connect_timeout = connect_timeout
        self._max_frame = max_frame
        self._fetched_from = fetched_from
        self._spin = spin
        self._closed = False
        self._port: Port | None = None
        self._links: dict[int, Link] = {}
        self._keys: dict[int, Link] = {}  # also of lost ones, of which UCX may still speak
        self._lost: dict[int, PeerLost] = {}

    # ---- the interface

    async def listen(self, address: str | None = None) -> str:
        advertised = await self._control.listen(address)
        try:
            self._port = Port(self._settings(advertised), self._on_event, self._spin)
        except BaseException:
            await self._control.close(0)
            raise
        self._loop = asyncio.get_running_loop()
        log.debug("node %d listens at %s with %s", self.node, advertised, self._library)
        return advertised

    async def connect(self, peer: int, address: str) -> None:
        await self._control.connect(peer, address)
        link = self._links.get(peer) or self._meet(peer)
        try:
            await asyncio.shield(link.ready)
        except PeerLost as error:
            raise TransportError(f"node {self.node} cannot connect to node {peer} at {address}: {error}") from error

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        link = self._links.get(peer)
        if link is None or link.outgoing is None:
            raise self._no_link(peer)
        whole = view_of(frame)
        size = whole.nbytes
        if size > self._max_frame:
            raise UsageError(
                f"a frame of {size} bytes for node {peer} is larger than max_frame, {self._max_frame} bytes"
            )
        assert self._port is not None
        self._port.asked = True
        self._check(link, link.outgoing.send(whole.cast("B") if size else memoryview(b""), release))

    def queued(self, peer: int) -> int:
        link = self._links.get(peer)
        return link.outgoing.queued if link is not None and link.outgoing is not None else 0

    def lanes(self, peer: int) -> tuple[str, ...]:
        link = self._links.get(peer)
        return link.way.lanes() if link is not None and link.way is not None else ()

    def obstacle(self, peer: int) -> str:
        link = self._links.get(peer)
        waits = link is not None and not link.ready.done()
        return "nothing came through UCX yet" if waits else self._control.obstacle(peer)

    async def close(self, linger: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        if self._port is None:
            await self._control.close(linger)
            return
        deadline = self._loop.time() + linger
        try:
            with contextlib.suppress(asyncio.TimeoutError):  # who has not got everything by then does not get the rest
                await asyncio.wait_for(asyncio.gather(*map(self._part, self._links.values())), linger)
            await self._control.close(max(0.0, deadline - self._loop.time()))
        finally:
            for link in list(self._links.values()):
                self._forget(link, Closed(f"the transport of node {self.node} is closed"))
            self._port.close()

    # ---- links come and go

    def _settings(self, address: str) -> dict[str, str]:
        settings = {**_SETTINGS, **_LANES[self._variant]}
        if addresses.is_local(address) and self._variant in ("", "tcp"):
            settings["NET_DEVICES"] = "lo"  # nobody outside can knock at UCX's own sockets
        return settings

    def _no_link(self, peer: int) -> AdapmError:
        """Why nothing can be sent to a node."""
        if self._closed:
            return Closed(f"the transport of node {self.node} is closed")
        return self._lost.get(peer) or PeerLost(f"node {self.node} has no link to node {peer}", node=peer)

    def _meet(self, peer: int) -> Link:
        """The link to a peer with which the connection stands; the peer is told where our port is."""
        assert self._port is not None
        ours = secrets.randbits(64) | 1
        link = Link(peer, ours, self._max_frame + WINDOW)
        link.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # it need not be awaited
        self._links[peer] = self._keys[ours] = link
        link.timer = self._loop.call_later(self._connect_timeout, self._expire, link)
        self._say(link, _ADDRESS, ours, self._port.address())
        return link

    def _open(self, link: Link, theirs: int, address: bytes) -> None:
        assert self._port is not None
        way = self._port.open_way(address, link.ours, theirs)
        if isinstance(way, str):
            lanes = f"ucx+{self._variant}" if self._variant else "ucx"
            self._control.give_up(link.peer, f"{lanes} finds no lanes between node {self.node} and it: {way}")
            return
        link.open(way, self._fetched_from or _fetched_from(way.lanes()))
        assert link.outgoing is not None
        self._check(link, link.outgoing.send(memoryview(b"")))  # the first frame says that the way is open
        self._deliver_all(link, link.incoming.take())

    def _expire(self, link: Link) -> None:
        lanes = " ".join(self.lanes(link.peer)) or "unknown"
        reason = (
            f"nothing came through UCX within {self._connect_timeout:g} s (lanes: {lanes}); is a firewall in between?"
        )
        self._control.give_up(link.peer, reason)

    def _check(self, link: Link, status: int) -> None:
        if status < 0:
            self._loop.call_soon(self._suspect, link, ucx_library.why(status))  # no callback inside send

    def _suspect(self, link: Link, reason: str) -> None:
        """UCX says that a way is broken. The connection may know better: it tells who has died or closed."""
        if link.lost or link.broken:
            return
        link.broken = f"UCX cannot reach it: {reason}"
        link.stop_timer()
        link.timer = self._loop.call_later(_EXPLAIN, self._control.give_up, link.peer, link.broken)

    def _on_control_lost(self, peer: int, error: TransportError) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if isinstance(error, PeerClosed) and not link.is_complete:
            error = PeerLost(f"node {peer} closed the link before all of its frames had come", node=peer)
        assert isinstance(error, PeerLost)
        self._lost[peer] = error
        self._forget(link, error)
        if link.outgoing is not None and not self._closed:
            self._on_lost(peer, error)

    def _forget(self, link: Link, error: AdapmError) -> None:
        assert self._port is not None
        link.lost = True
        link.stop_timer()
        link.over.set()
        if not link.ready.done():
            link.ready.set_exception(error)
        for event in link.incoming.drop():
            self._port.give(event)
        if link.outgoing is not None:
            link.outgoing.drop()
        if link.way is not None:
            link.way.close()
        del self._links[link.peer]

    async def _part(self, link: Link) -> None:
        """Waits until the peer has got all that was sent to it, or is gone."""
        if link.outgoing is not None:
            self._say(link, _END, link.outgoing.total)
            await link.over.wait()

    # ---- what transports say to each other

    def _say(self, link: Link, kind: int, what: int = 0, more: bytes = b"") -> None:
        with contextlib.suppress(PeerLost):
            self._control.send(link.peer, _MESSAGE.pack(kind, what) + more)

    def _hear(self, peer: int, message: memoryview) -> None:
        if len(message) < _MESSAGE.size:
            raise ProtocolError(f"it sent {len(message)} bytes, which are no message between ucx transports")
        kind, what = _MESSAGE.unpack_from(message)
        link = self._links.get(peer) or self._meet(peer)
        if kind == _ADDRESS and link.outgoing is None and len(message) > _MESSAGE.size:
            self._open(link, what, bytes(message[_MESSAGE.size :]))
        elif kind == _END and link.end is None:
            link.end = what
            self._acknowledge(link)
        elif kind == _GOT_ALL:
            link.over.set()
        else:
            raise ProtocolError(f"it sent a message of kind {kind} that is unknown, or came twice")

    def _acknowledge(self, link: Link) -> None:
        if link.is_complete:
            self._say(link, _GOT_ALL)

    # ---- what UCX reports

    def _on_event(self, event: CData) -> None:
        link = self._keys.get(event.key)
        if event.kind == SENT:
            assert link is not None and link.outgoing is not None
            self._check(link, link.outgoing.sent(event.number, event.status))
        elif event.kind == FAILED:
            assert link is not None
            self._suspect(link, ucx_library.why(event.status))
        elif link is None or link.lost:
            self._drop(event, stranger=link is None)
        elif event.kind == OFFER:
            self._on_offer(link, event)
        else:
            self._on_arrival(link, event)

    def _drop(self, event: CData, *, stranger: bool = False) -> None:
        assert self._port is not None
        if stranger:
            self._reject("a sender of UCX", "its frame bears no key that was given to a peer")
        self._port.give(event)

    def _fault(self, link: Link, event: CData, why: str) -> None:
        """A peer has broken the rules."""
        self._drop(event)
        self._reject(f"node {link.peer}", why)
        self._control.give_up(link.peer, why)

    def _on_offer(self, link: Link, event: CData) -> None:
        assert self._port is not None
        too_large = event.length > self._max_frame
        wrong = f"it sent a frame of {event.length} bytes, which is too large" if too_large else ""
        wrong = wrong or link.incoming.fetch(event.number, event.length)
        if wrong:
            self._fault(link, event, wrong)
        elif not self._port.take(event):
            self._control.give_up(link.peer, f"there is no memory for its frame of {event.length} bytes")

    def _on_arrival(self, link: Link, event: CData) -> None:
        number, length = event.number, event.length
        wrong = link.incoming.arrived(number, length)
        if event.status < 0:
            self._drop(event)
            self._suspect(link, ucx_library.why(event.status))
        elif wrong:
            self._fault(link, event, wrong)
        elif number == link.incoming.next and link.outgoing is not None:  # who gets a frame may answer
            self._deliver_all(link, event)
        else:
            link.incoming.keep(number, kept(event), length)

    def _deliver_all(self, link: Link, event: CData | None) -> None:
        """This frame, and those that have waited for it."""
        while event is not None:
            link.incoming.next += 1
            try:
                self._deliver(link, event)
            finally:
                self._drop(event)
            event = None if link.lost else link.incoming.take()
        if not link.lost and link.end is not None:
            self._acknowledge(link)

    def _deliver(self, link: Link, event: CData) -> None:
        if event.number == 0:
            self._on_ready(link)
            return
        assert self._port is not None
        self._port.asked = False
        if self._closed:
            return
        frame = view(event)
        try:
            self._on_frame(link.peer, frame)
        except Exception as error:  # it must not cost the frames behind it
            self._loop.call_exception_handler({"message": "a callback of a transport raised", "exception": error})

    def _on_ready(self, link: Link) -> None:
        if not link.broken:
            link.stop_timer()
        lanes = " ".join(self.lanes(link.peer))
        log.info("node %d reaches node %d over %s (%s)", self.node, link.peer, lanes, self._library)
        if not link.ready.done():
            link.ready.set_result(None)


def _fetched_from(lanes: Iterable[str]) -> int:
    return _FETCHED_FROM_HERE if any(kind_of(lane) == "shm" for lane in lanes) else _FETCHED_FROM_AFAR
