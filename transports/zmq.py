"""Frames over ZeroMQ, between processes of one machine (ipc, tcp) or of several (tcp).

Every node binds one ROUTER, through which it only receives, and connects one DEALER to each peer's ROUTER, through
which it only sends.  So a link is two connections, one for each direction, and each side watches its own:

    node 0   DEALER ---- hello, frames, goodbye ----> ROUTER   node 1
             ROUTER <--- hello, frames, goodbye ----- DEALER

Either side may begin; the other connects back.  A ROUTER answers on the same connection with the few other notes of
`note`.  Payload is a message of one part, a note one of two, so neither can pass for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
from typing import TYPE_CHECKING

import zmq

from adapm.errors import (
    AdapmError,
    AddressInUse,
    AuthenticationFailed,
    Closed,
    PeerLost,
    ProtocolError,
    TransportError,
    UsageError,
)
from adapm.transport import OnFrame, OnLost, PeerClosed, Transport

from . import addresses
from .curve import FAILED, Curve, Doorkeeper, Monitor
from .note import LAST_ID, TEXT_LIMIT, Kind, Note
from .zmq_link import Link, Loans, Settings

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BATCH = 256  # messages received in one turn of the loop
_UNREAD = 1024  # messages of one peer that may wait to be read here
_HANDSHAKE = 10.0  # seconds after which a connection that does not speak ZMTP is dropped
_RETURN = 1.0  # seconds for zmq's threads to return large frames once all sockets are closed
_HEADER_ROOM = 64 * 1024  # bytes a frame may have beyond a round size


class ZmqTransport(Transport):
    """See `Transport`; addresses are `tcp://host:port` (port 0: any; host `*`: all networks), `ipc:///path` and `ipc://@name`.

    Over ipc only processes of the same user are let in.

    Args:
        variant: "tcp" or "ipc", for `listen(None)`.  An ipc address chosen here is an abstract name: no file that could
            be left behind.
        heartbeat: seconds between signs of life to a peer; 0 for none.
        heartbeat_timeout: seconds without an answer to one after which the peer is lost.  A node that is merely busy
            stays linked while fewer than about a thousand frames from a peer wait for it.
        connect_timeout: seconds until `connect` gives up.
        max_frame: bytes; larger frames are refused by sender and receiver.
        high_water: frames to one peer that zmq takes; more stay here and count as `queued`.
        key: the cluster key, 32 bytes; peers must have it, and everything is encrypted (CURVE).
        insecure: without a key, too, use addresses that other machines can reach.

    Raises:
        LibraryMissing: there is a key, and libzmq was built without CURVE.
    """

    scheme = "zmq"
    variants = ("tcp", "ipc")
    authenticates = True
    bounds_frames = True

    def __init__(
        self,
        node: int,
        *,
        on_frame: OnFrame,
        on_lost: OnLost,
        variant: str = "tcp",
        heartbeat: float = 2.0,
        heartbeat_timeout: float = 6.0,
        connect_timeout: float = 30.0,
        max_frame: int = (1 << 30) + _HEADER_ROOM,
        high_water: int = 64,
        key: bytes | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._variant = variant
        self._connect_timeout = connect_timeout
        self._curve = Curve(key)
        self._settings = Settings(
            heartbeat, heartbeat_timeout, max_frame, high_water, self._curve, key is not None or insecure
        )
        self._incarnation = secrets.token_bytes(16)
        self._closed = False
        self._broken: dict[Link, str] = {}
        self._links: dict[int, Link] = {}
        self._senders: dict[bytes, Link] = {}
        self._lost: dict[int, PeerLost] = {}
        self._linking: set[asyncio.Task[None]] = set()
        self._endpoint = ""

    # ---- the interface

    async def listen(self, address: str | None = None) -> str:
        self._check_open()
        if self._endpoint:
            raise UsageError(f"node {self.node} listens at {self._endpoint} already")
        address = addresses.check(address or addresses.private(self._variant))
        try:
            endpoint = (await addresses.resolve(address))[0]
        except OSError as error:
            raise TransportError(f"cannot listen at {address}: its host name cannot be resolved ({error})") from error
        addresses.check_protected(address, endpoint, self._settings.protected)
        if endpoint.startswith("ipc:"):
            addresses.check_socket_file(endpoint)
        self._bind(address, endpoint)
        return addresses.advertised(self._endpoint)

    async def connect(self, peer: int, address: str) -> None:
        self._check_open()
        if not self._endpoint or peer == self.node:
            raise UsageError(
                f"node {self.node} cannot connect to {peer}: it must listen first, and to itself is not possible"
            )
        if peer in self._lost:
            raise self._lost[peer]
        link = self._links.get(peer) or self._begin(peer, addresses.check(address))
        assert link.ready is not None
        link.waiting += 1
        try:
            await asyncio.shield(link.ready)
        except asyncio.CancelledError:
            if link.ready.cancelled():
                raise self._no_link(peer) from None
            if link.waiting == 1 and not link.greeted and not link.linked:
                self._forget(link)
            raise
        finally:
            link.waiting -= 1
        if self._links.get(peer) is not link:
            raise self._no_link(peer)

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        link = self._links.get(peer)
        if link is None or not link.linked:
            raise self._no_link(peer)
        link.send(frame, release)

    def queued(self, peer: int) -> int:
        link = self._links.get(peer)
        return link.queued if link is not None else 0

    def lanes(self, peer: int) -> tuple[str, ...]:
        return (self._endpoint.partition(":")[0],) if peer in self._links else ()

    def obstacle(self, peer: int) -> str:
        link = self._links.get(peer)
        return link.obstacle if link is not None and link.ready is not None and not link.ready.done() else ""

    async def close(self, linger: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._endpoint:
            return
        links = list(self._links.values())
        try:
            await asyncio.wait_for(asyncio.gather(*map(self._part, links)), linger)
        except asyncio.TimeoutError:
            pass  # who has not answered by now does not get the rest
        finally:
            for link in links:
                self._forget(link)
            self._shut()
        await asyncio.gather(*self._linking, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._loans.none.wait(), _RETURN)

    # ---- binding and closing

    def _bind(self, address: str, endpoint: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        router = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.IPV6, int("[" in endpoint))
        router.setsockopt(zmq.BACKLOG, 1024)
        router.setsockopt(zmq.TCP_KEEPALIVE, 1)
        router.setsockopt(zmq.HANDSHAKE_IVL, round(_HANDSHAKE * 1000))
        router.setsockopt(zmq.RCVHWM, _UNREAD)
        router.setsockopt(zmq.MAXMSGSIZE, self._settings.max_frame)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if endpoint.startswith("ipc:"):
            router.setsockopt(zmq.IPC_FILTER_UID, os.getuid())
        self._curve.protect(router)
        doorkeeper = Doorkeeper(context, self._curve)
        monitor = Monitor(context, router, FAILED, self._on_failed_greeting)
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            _close(monitor, router, doorkeeper, context)
            raise _bind_error(address, error) from error
        self._context, self._router, self._monitor, self._doorkeeper = context, router, monitor, doorkeeper
        self._endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._loop = asyncio.get_running_loop()
        self._loans = Loans()
        self._loop.add_reader(router.fileno(), self._receive)

    async def _part(self, link: Link) -> None:
        """Waits until the peer has answered the goodbye, and with it all that was sent before, or is gone."""
        if not link.linked or link.ready is None:
            self._forget(link)
            return
        await asyncio.wait([link.ready])  # a link that is just coming up can be closed properly only when it is up
        if self._links.get(link.peer) is link:
            link.say(self._note(Kind.GOODBYE, link.peer))
            await link.over.wait()

    def _shut(self) -> None:
        self._loop.remove_reader(self._router.fileno())
        _close(self._monitor, self._router, self._doorkeeper, self._context)
        addresses.remove_socket_file(self._endpoint)

    def _no_link(self, peer: int) -> AdapmError:
        """Why nothing can be sent to a node."""
        if self._closed:
            return Closed(f"the transport of node {self.node} is closed")
        return self._lost.get(peer) or PeerLost(f"node {self.node} has no link to node {peer}", node=peer)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the transport of node {self.node} is closed")

    # ---- links come and go

    def _begin(self, peer: int, address: str) -> Link:
        link = Link(self._context, peer, self._settings, self._loans, self._break)
        self._links[peer] = link
        link.ready = asyncio.create_task(self._bring_up(link, address), name=f"link {self.node} -> {peer}")
        self._linking.add(link.ready)
        link.ready.add_done_callback(lambda task: self._brought_up(link, task))
        return link

    async def _bring_up(self, link: Link, address: str) -> None:
        """Until frames can go both ways."""
        hello = self._note(Kind.HELLO, link.peer, self._endpoint)
        try:
            answer = await asyncio.wait_for(self._shake_hands(link, address, hello), self._connect_timeout)
        except asyncio.TimeoutError:
            answer = f"not linked within {self._connect_timeout:g} s, last: {link.obstacle}"
        if isinstance(answer, str):
            kind = AuthenticationFailed if link.distrusted else TransportError
            raise kind(f"node {self.node} cannot connect to node {link.peer} at {address}: {answer}")

    async def _shake_hands(self, link: Link, address: str, hello: Note) -> Note | str:
        answer = await link.greet(address, hello)
        if isinstance(answer, str):
            return answer
        if link.incarnation not in (None, answer.incarnation):
            return f"there are two nodes with the id {link.peer}; give each node its own"
        link.incarnation = answer.incarnation
        link.obstacle = f"it answered, but did not connect back to {self._endpoint}"
        return await link.start() or answer

    def _brought_up(self, link: Link, task: asyncio.Task[None]) -> None:
        self._linking.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if link.linked:
            self._lose(link, PeerLost(str(error), node=link.peer))
        else:
            self._forget(link)

    def _break(self, link: Link, reason: str) -> None:
        """A link says that it is broken; it is lost once all that has arrived from the peer is read."""
        self._broken.setdefault(link, reason)
        self._loop.call_soon(self._receive)

    def _lose_broken(self) -> None:
        for link, reason in list(self._broken.items()):
            if link.linked:
                self._lose(link, PeerLost(_lost(link.peer) + reason, node=link.peer))
        self._broken.clear()

    def _lose(self, link: Link, error: PeerLost) -> None:
        if self._links.get(link.peer) is not link:
            return
        if not isinstance(error, PeerClosed):
            self._answer(link.sender, Kind.GIVEN_UP, link.peer, str(error).removeprefix(_lost(link.peer)))
        self._forget(link)
        self._lost[link.peer] = error
        if not self._closed:
            self._on_lost(link.peer, error)

    def _forget(self, link: Link) -> None:
        link.close()
        if link.ready is not None:
            link.ready.cancel()
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
        if link.sender is not None:
            self._senders.pop(link.sender, None)

    # ---- receiving

    def _receive(self) -> None:
        """Reads until nothing is left, as the descriptor tells of changes only, with turns for others in between."""
        more = True
        try:
            more = not self._router.closed and self._read(_BATCH)
        finally:
            if more:  # also when a callback raised: the rest must not be stuck
                self._loop.call_soon(self._receive)
        if not more:
            self._lose_broken()

    def _read(self, limit: int) -> bool:
        """Reads at most so many messages; whether there may be more."""
        recv = self._router.recv
        for _ in range(limit):
            try:
                sender = recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            frame = recv(zmq.NOBLOCK, copy=False)
            link = self._senders.get(sender)
            if frame.more:
                self._hear(sender, link, frame)
            elif link is None:
                self._reject(_who(frame), "it sent a frame and had not said hello")
            elif not self._closed:
                self._on_frame(link.peer, frame.buffer)
        return True

    def _hear(self, sender: bytes, link: Link | None, head: zmq.Frame) -> None:
        rest = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
        try:
            if len(rest) != 1 or len(head) > 2 * TEXT_LIMIT:
                raise ProtocolError("a message of more parts, or longer ones, than a note has")
            note = Note.unpack(head.bytes)
        except ProtocolError as error:
            self._answer(sender, Kind.REFUSED, 0, str(error))
            self._fault(link, _who(head), str(error))
            return
        if note.kind is Kind.HELLO:
            self._on_hello(sender, note, head)
        elif note.kind is Kind.GOODBYE and link is not None:
            self._answer(sender, Kind.FAREWELL, link.peer)
            self._lose(link, PeerClosed(f"node {link.peer} closed the link", node=link.peer))
        else:
            self._fault(link, _who(head), f"it said {note.kind.name}, which nobody asked for")

    def _fault(self, link: Link | None, who: str, why: str) -> None:
        """A stranger has broken the rules, or a peer, which is lost for it."""
        self._reject(f"node {link.peer} at {who}" if link is not None else who, why)
        if link is not None:
            self._lose(link, PeerLost(f"node {link.peer} is lost: {why}", node=link.peer))

    def _on_failed_greeting(self, event: int, detail: int) -> None:
        self._reject("somebody who had connected", self._curve.why(event, detail))

    def _on_hello(self, sender: bytes, hello: Note, head: zmq.Frame) -> None:
        refusal = self._why_not(hello)
        if refusal:
            self._reject(f"node {hello.node} at {_who(head)}", refusal)
            self._answer(sender, Kind.REFUSED, hello.node, refusal)
            return
        address = hello.text
        if addresses.is_wildcard(address):
            address = addresses.with_host(address, _who(head))
        link = self._links.get(hello.node) or self._begin(hello.node, address)
        link.meet(sender, hello.incarnation)
        self._senders[sender] = link
        self._answer(sender, Kind.WELCOME, hello.node)

    def _why_not(self, hello: Note) -> str:
        """Why the sender of a hello cannot be linked, or nothing."""
        if self._closed:
            return f"node {self.node} is closing"
        if hello.to != self.node:
            return f"this is node {self.node}, not {hello.to}; correct the address or the id"
        if hello.node > LAST_ID:
            return f"{hello.node} is no id of a node; they end at {LAST_ID}"
        if hello.node == self.node:
            return f"the id {self.node} is taken, by this node; give each node its own"
        if hello.node in self._lost:
            return f"node {hello.node} was lost here and cannot come back: {self._lost[hello.node]}"
        link = self._links.get(hello.node)
        if link is not None and link.incarnation not in (None, hello.incarnation):
            return f"there is another node with the id {hello.node} already; give each node its own"
        if link is not None and link.sender is not None:
            return f"node {hello.node} is linked already"
        try:
            addresses.check(hello.text)
        except TransportError as error:
            return str(error)
        return ""

    def _answer(self, sender: bytes | None, kind: Kind, peer: int, text: str = "") -> None:
        """Says something on the connection of a sender, who may be gone."""
        if sender is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._router.send_multipart([sender, self._note(kind, peer, text).pack(), b""], zmq.NOBLOCK)
            self._loop.call_soon(self._receive)  # sending may have taken notice of an arrival

    def _note(self, kind: Kind, to: int, text: str = "") -> Note:
        return Note(kind, self.node, to, self._incarnation, text)


def _close(
    monitor: Monitor, router: zmq.Socket[bytes], doorkeeper: Doorkeeper, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    monitor.close()
    router.close()
    doorkeeper.close()
    context.term()


def _who(frame: zmq.Frame) -> str:
    """The host that a frame came from."""
    return str(frame.get("Peer-Address"))


def _lost(peer: int) -> str:
    """How the message of a loss begins."""
    return f"node {peer} is lost: "


def _bind_error(address: str, error: zmq.ZMQError) -> TransportError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"{address} is in use: another process listens there; choose another address, or port 0 for any"
        )
    hint = (
        "; is it an address of this machine? tcp://*:PORT stands for all of them" if address.startswith("tcp:") else ""
    )
    return TransportError(f"cannot listen at {address}: {error}{hint}")
