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
from adapm.transport import Drive, Engine, OnFrame, OnLost, PeerClosed, Transport, kind_of, view_of

from . import addresses, ucx_library
from .tcp import TcpTransport
from .ucx_link import Link
from .ucx_port import COMPLETE, FAILED, FRAME, READY, REFUSED, STRANGER, Port, accusation_of, frame_of

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
    bounds_frames = True
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
        if link is None or not link.way.is_open:
            raise self._no_link(peer)
        whole = view_of(frame)
        size = whole.nbytes
        if size > self._max_frame:
            raise UsageError(
                f"a frame of {size} bytes for node {peer} is larger than max_frame, {self._max_frame} bytes"
            )
        link.way.send(whole.cast("B") if size else memoryview(b""), release)

    def queued(self, peer: int) -> int:
        link = self._links.get(peer)
        return link.way.queued if link is not None else 0

    def lanes(self, peer: int) -> tuple[str, ...]:
        link = self._links.get(peer)
        return link.way.lanes() if link is not None else ()

    def obstacle(self, peer: int) -> str:
        link = self._links.get(peer)
        waits = link is not None and not link.ready.done()
        return "nothing came through UCX yet" if waits else self._control.obstacle(peer)

    def drive(self, engine: Engine) -> Drive:
        assert self._port is not None, "it listens before it is driven"
        self._port.drive(engine)
        for link in self._links.values():
            if link.way.is_open:
                link.way.serve()
        return self

    def flush(self) -> int:
        """See `Drive`."""
        assert self._port is not None
        sent, missing = self._port.flush()
        if missing >= 0 and missing not in self._lost:  # of a lost one the node has been told
            raise self._no_link(missing)
        return sent

    def catch_up(self) -> bool:
        """See `Drive`."""
        assert self._port is not None
        return self._port.catch_up()

    async def close(self, linger: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        if self._port is None:
            await self._control.close(linger)
            return
        self._port.leave()
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
        link = Link(peer, self._port.way(peer, ours, self._max_frame))
        link.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # it need not be awaited
        self._links[peer] = link
        link.timer = self._loop.call_later(self._connect_timeout, self._expire, link)
        self._say(link, _ADDRESS, ours, self._port.address())
        return link

    def _open(self, link: Link, theirs: int, address: bytes) -> None:
        assert self._port is not None
        why_not = link.way.open(address, theirs)
        if why_not:
            lanes = f"ucx+{self._variant}" if self._variant else "ucx"
            self._control.give_up(link.peer, f"{lanes} finds no lanes between node {self.node} and it: {why_not}")
            return
        link.way.fetch_from(*self._fetching(link.way.lanes()))
        if self._port.engine is not None:
            link.way.serve()
        link.way.send(memoryview(b""))  # the first frame says that the way is open

    def _fetching(self, lanes: Iterable[str]) -> tuple[int, int]:
        """See `Way.fetch_from`."""
        if self._fetched_from is not None:
            return self._fetched_from, 0
        in_memory = any(kind_of(lane) == "shm" for lane in lanes)
        return _FETCHED_FROM_HERE if in_memory else _FETCHED_FROM_AFAR, _FETCHED_FROM_AFAR

    def _expire(self, link: Link) -> None:
        lanes = " ".join(self.lanes(link.peer)) or "unknown"
        reason = (
            f"nothing came through UCX within {self._connect_timeout:g} s (lanes: {lanes}); is a firewall in between?"
        )
        self._control.give_up(link.peer, reason)

    def _suspect(self, link: Link, reason: str) -> None:
        """UCX says that a way is broken. The connection may know better: it tells who has died or closed."""
        if link.broken:
            return
        link.broken = f"UCX cannot reach it: {reason}"
        link.stop_timer()
        link.timer = self._loop.call_later(_EXPLAIN, self._control.give_up, link.peer, link.broken)

    def _on_control_lost(self, peer: int, error: TransportError) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        if isinstance(error, PeerClosed) and not link.complete:
            error = PeerLost(f"node {peer} closed the link before all of its frames had come", node=peer)
        assert isinstance(error, PeerLost)
        self._lost[peer] = error
        was_open = link.way.is_open
        self._forget(link, error)
        if was_open and not self._closed:
            self._on_lost(peer, error)

    def _forget(self, link: Link, error: AdapmError) -> None:
        link.stop_timer()
        link.over.set()
        if not link.ready.done():
            link.ready.set_exception(error)
        link.way.close()
        del self._links[link.peer]

    async def _part(self, link: Link) -> None:
        """Waits until the peer has got all that was sent to it, or is gone."""
        if link.way.is_open:
            self._say(link, _END, link.way.total)
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
        if kind == _ADDRESS and not link.way.is_open and len(message) > _MESSAGE.size:
            self._open(link, what, bytes(message[_MESSAGE.size :]))
        elif kind == _END and not link.ends:
            link.ends = True
            link.way.expect(what)
        elif kind == _GOT_ALL:
            link.over.set()
        else:
            raise ProtocolError(f"it sent a message of kind {kind} that is unknown, or came twice")

    # ---- what comes over UCX

    def _on_event(self, event: CData) -> None:
        link = self._links.get(event.peer)
        if event.kind == STRANGER:
            self._reject("a sender of UCX", "its frame bears no key that was given to a peer")
        elif link is None:
            return
        elif event.kind == FRAME:
            self._deliver(link, frame_of(event))
        elif event.kind == READY:
            self._on_ready(link)
        elif event.kind == REFUSED:
            assert self._port is not None and self._port.engine is not None
            self._port.engine.on_refused(link.peer, event.length)
        elif event.kind == COMPLETE:
            link.complete = True
            self._say(link, _GOT_ALL)
        elif event.kind == FAILED:
            self._suspect(link, ucx_library.why(event.status))
        else:
            self._fault(link, event)

    def _fault(self, link: Link, event: CData) -> None:
        why, is_guilty = accusation_of(event)
        if is_guilty:
            self._reject(f"node {link.peer}", why)
        self._control.give_up(link.peer, why)

    def _deliver(self, link: Link, frame: memoryview) -> None:
        if self._closed:
            return
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
