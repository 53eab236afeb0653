"""Frames over plain sockets, TCP or unix: one connection for each pair of nodes, in the loop's own thread.

    node 0   connects  ---- hello ---->   accepts   node 1
             <--- welcome, or refused and why ----      (with a key: challenge and proof before that, see `greeting`)
             <=== frames, signs of life, goodbye, farewell ===>

Either side may begin.  When both do at once, the connection of the node with the smaller id counts: it answers the
other's hello with `WAIT`, the other gives up its own.  A connection that breaks is never made again: then the peer
is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import secrets
import socket
from typing import TYPE_CHECKING, Any, Final

from adapm.errors import (
    AdapmError,
    AuthenticationFailed,
    Closed,
    PeerLost,
    ProtocolError,
    TransportError,
    UsageError,
)
from adapm.transport import Drive, Engine, OnFrame, OnLost, PeerClosed, Transport, view_of

from . import addresses, sockets
from .greeting import Caller, Distrust, Host
from .note import LAST_ID, NO_TOKEN, Kind, Note
from .tcp_link import Connection, Hub

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ATTEMPT: Final = 5.0  # seconds for one attempt to connect
_HANDSHAKE: Final = 10.0  # seconds after which a connection that does not say hello is dropped
_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)  # seconds between attempts; the last one repeats
_STRANGERS: Final = 1024  # connections that are not greeted yet or have been refused, at most
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RECOVERY: Final = 1.0  # seconds without accepting when the system has no room for connections
_LATE: Final = 0.01  # seconds by which a beat comes after the end of a peer's time rather than just before
_HEADER_ROOM: Final = 64 * 1024  # bytes a frame may have beyond a round size

log = logging.getLogger(__name__)


class _Link:
    """A peer, as one transport sees it."""

    def __init__(self, peer: int) -> None:
        self.peer = peer
        self.incarnation: bytes | None = None
        self.connection: Connection | None = None
        """None until the link is there."""
        self.up = asyncio.Event()
        """Set when it is."""
        self.greeted = False
        """This node has said hello on a connection of its own."""
        self.obstacle = "nothing was heard from there"
        """Why the latest attempt to connect failed."""
        self.distrusted = False
        """It failed because the keys do not match."""
        self.task: asyncio.Task[None] | None = None
        """Connects, on this side."""
        self.waiting = 0
        """How many calls of `connect` wait for it."""
        self.over = asyncio.Event()
        """Set when nothing more can or need be sent."""


class TcpTransport(Transport):
    """See `Transport`; addresses are `tcp://host:port` (port 0: any; host `*`: all networks), `ipc:///path` and `ipc://@name`.

    Over ipc only processes of the same user are let in.

    Args:
        variant: "tcp" or "ipc", for `listen(None)`.  An ipc address chosen here is an abstract name: no file that could
            be left behind.
        heartbeat: seconds between signs of life to a peer that gets nothing else; 0 for none.
        heartbeat_timeout: seconds of silence after which a peer is lost.
        connect_timeout: seconds until `connect` gives up.
        max_frame: bytes; larger frames are refused by sender and receiver.
        key: the cluster key, 32 bytes; peers must show that they have it before anything else is said. Frames are not
            encrypted.
        insecure: without a key, too, use addresses that other machines can reach.
    """

    scheme = "tcp"
    variants = ("tcp", "ipc")
    authenticates = True
    bounds_frames = True
    descriptors = 2

    def __init__(
        self,
        node: int,
        *,
        on_frame: OnFrame,
        on_lost: OnLost,
        variant: str = "tcp",
        heartbeat: float = 2.0,
        heartbeat_timeout: float = 7.0,
        connect_timeout: float = 30.0,
        max_frame: int = (1 << 30) + _HEADER_ROOM,
        key: bytes | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._variant = variant
        self._key, self._protected = key, key is not None or insecure
        self._heartbeat = heartbeat
        self._patience = heartbeat_timeout
        self._connect_timeout = connect_timeout
        self._max_frame = max_frame
        self._incarnation = secrets.token_bytes(16)
        self._closed = False
        self._endpoint = ""
        self._listener: socket.socket | None = None
        self._links: dict[int, _Link] = {}
        self._lost: dict[int, PeerLost] = {}
        self._strangers: dict[Connection, asyncio.TimerHandle] = {}
        self._leaving: set[Connection] = set()  # said goodbye to; they are closed at the latest with the transport
        self._linking: set[asyncio.Task[None]] = set()
        self._hub = Hub()
        self._timer: asyncio.TimerHandle | None = None
        self._recovery: asyncio.TimerHandle | None = None

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
        addresses.check_protected(address, endpoint, self._protected)
        self._loop = asyncio.get_running_loop()
        self._listener = sockets.listening(address, endpoint)
        self._endpoint = sockets.endpoint_of(self._listener, endpoint)
        self._loop.add_reader(self._listener.fileno(), self._accept)
        if self._heartbeat:
            self._timer = self._loop.call_later(self._heartbeat, self._beat, self._loop.time())
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
        if link.task is not None and not link.up.is_set():
            await self._wait_for(link, link.task)
        if self._links.get(peer) is not link:
            raise self._no_link(peer)

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        link = self._links.get(peer)
        if link is None or link.connection is None:
            raise self._no_link(peer)
        view = view_of(frame)
        size = view.nbytes
        if size > self._max_frame:
            raise UsageError(
                f"a frame of {size} bytes for node {peer} is larger than max_frame, {self._max_frame} bytes"
            )
        link.connection.send(view.cast("B") if size else memoryview(b""), release)

    def queued(self, peer: int) -> int:
        link = self._links.get(peer)
        return link.connection.queued if link is not None and link.connection is not None else 0

    def lanes(self, peer: int) -> tuple[str, ...]:
        return ("tcp",) if peer in self._links else ()

    def obstacle(self, peer: int) -> str:
        link = self._links.get(peer)
        return link.obstacle if link is not None and not link.up.is_set() else ""

    def drive(self, engine: Engine) -> Drive:
        self._hub.drive(engine)
        for link in self._links.values():
            if link.connection is not None:
                link.connection.serve(link.peer)
        return self

    def flush(self) -> int:
        """See `Drive`."""
        sent, missing = self._hub.flush()
        if missing >= 0 and missing not in self._lost:  # of a lost one the node has been told
            raise self._no_link(missing)
        return sent

    def catch_up(self) -> bool:
        """See `Drive`."""
        return self._hub.catch_up()

    def give_up(self, peer: int, reason: str) -> None:
        """Loses a link, if there is one, for a reason that only the caller can know; the peer is told."""
        link = self._links.get(peer)
        if link is not None and link.connection is not None:
            self._say(link.connection, Kind.GIVEN_UP, peer, reason)
            self._lose(link, PeerLost(f"node {peer} is lost: {reason}", node=peer))

    async def close(self, linger: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        if self._recovery is not None:
            self._recovery.cancel()
        if self._endpoint.startswith("ipc:"):
            addresses.remove_socket_file(self._endpoint)
        links = list(self._links.values())
        with contextlib.suppress(asyncio.TimeoutError):  # who has not answered by then does not get the rest
            await asyncio.wait_for(asyncio.gather(*map(self._part, links)), linger)
        for link in links:
            self._forget(link)
        for connection in (*self._strangers, *self._leaving):
            connection.close()
        for timer in (*self._strangers.values(), self._timer):
            if timer is not None:
                timer.cancel()
        await asyncio.gather(*self._linking, return_exceptions=True)

    # ---- ends of links

    async def _part(self, link: _Link) -> None:
        """Waits until the peer has answered the goodbye, and with it all that was sent before, or is gone."""
        if link.connection is not None:
            self._say(link.connection, Kind.GOODBYE, link.peer)
            await link.over.wait()

    def _no_link(self, peer: int) -> AdapmError:
        """Why nothing can be sent to a node."""
        if self._closed:
            return Closed(f"the transport of node {self.node} is closed")
        return self._lost.get(peer) or PeerLost(f"node {self.node} has no link to node {peer}", node=peer)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the transport of node {self.node} is closed")

    def _lose(self, link: _Link, error: PeerLost) -> None:
        if self._links.get(link.peer) is not link:
            return
        self._forget(link)
        self._lost[link.peer] = error
        if not self._closed:
            self._on_lost(link.peer, error)

    def _forget(self, link: _Link) -> None:
        link.over.set()
        if link.task is not None:
            link.task.cancel()
        if link.connection is not None and link.connection not in self._leaving:
            link.connection.close()
        if self._links.get(link.peer) is link:
            del self._links[link.peer]

    # ---- connecting

    async def _wait_for(self, link: _Link, task: asyncio.Task[None]) -> None:
        link.waiting += 1
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not link.up.is_set():
                raise self._no_link(link.peer) from None
            if not task.cancelled():
                if link.waiting == 1 and not link.greeted and not link.up.is_set():
                    self._forget(link)
                raise
        finally:
            link.waiting -= 1

    def _begin(self, peer: int, address: str) -> _Link:
        link = self._links[peer] = _Link(peer)
        link.task = asyncio.create_task(self._bring_up(link, address), name=f"link {self.node} -> {peer}")
        self._linking.add(link.task)
        link.task.add_done_callback(lambda task: self._brought_up(link, task))
        return link

    def _brought_up(self, link: _Link, task: asyncio.Task[None]) -> None:
        self._linking.discard(task)
        if not link.up.is_set() and self._links.get(link.peer) is link:
            self._forget(link)
        if not task.cancelled():
            task.exception()  # those who wait get it

    async def _bring_up(self, link: _Link, address: str) -> None:
        """Until the link is there."""
        try:
            refusal = await asyncio.wait_for(self._greet_until_answered(link, address), self._connect_timeout)
        except asyncio.TimeoutError:
            refusal = f"not linked within {self._connect_timeout:g} s, last: {link.obstacle}"
        if refusal and not link.up.is_set():
            kind = AuthenticationFailed if link.distrusted else TransportError
            raise kind(f"node {self.node} cannot connect to node {link.peer} at {address}: {refusal}")

    async def _greet_until_answered(self, link: _Link, address: str) -> str:
        """Connects, again and again while nobody listens, and says hello; "" when the link is there, or why not."""
        for attempt in itertools.count():
            sock = await self._attempt(link, address, attempt)
            if sock is not None:
                break
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        assert sock is not None
        if link.up.is_set():  # the peer came first: two greetings now would undo each other
            sock.close()
            return ""
        answered: asyncio.Future[Note | str] = self._loop.create_future()
        caller = Caller(self._key, self._note(Kind.HELLO, link.peer, self._endpoint))
        connection = self._connection(link, sock, caller, answered)
        link.greeted = True
        link.obstacle = "it took the greeting and did not answer"
        connection.send(memoryview(caller.hello.pack()), note=True)
        try:
            return await self._judge(link, answered)
        finally:
            if link.connection is not connection:
                connection.close()

    async def _attempt(self, link: _Link, address: str, number: int) -> socket.socket | None:
        try:
            endpoints = await addresses.resolve(address)
        except OSError as error:
            link.obstacle = f"its host name cannot be resolved ({error})"
            return None
        endpoint = endpoints[number % len(endpoints)]
        addresses.check_protected(address, endpoint, self._protected)
        try:
            return await sockets.connected(endpoint, _ATTEMPT)
        except asyncio.TimeoutError:
            link.obstacle = "no answer; is a firewall in between?"
        except OSError as error:
            link.obstacle = f"nobody listens there, or it cannot be reached ({error.strerror or error})"
        return None

    async def _judge(self, link: _Link, answered: asyncio.Future[Note | str]) -> str:
        """What the answer to the hello means: "" that the link is there."""
        up = asyncio.ensure_future(link.up.wait())
        try:
            either: set[asyncio.Future[Any]] = {answered, up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if link.up.is_set():  # by this answer, or the peer's own connection came first
                return ""
            answer = answered.result()
            if isinstance(answer, str):
                return answer
            if answer.kind is Kind.WAIT:
                link.obstacle = f"it was connecting to {self._endpoint} itself, and never came"
                await up
            else:
                return f"there are two nodes with the id {link.peer}; give each node its own"
        finally:
            up.cancel()
        return ""

    def _connection(
        self, link: _Link, sock: socket.socket, caller: Caller, answered: asyncio.Future[Note | str]
    ) -> Connection:
        """A connection whose first note but a challenge, or end, is the answer."""

        def note(data: bytes) -> None:
            try:
                told = caller.hear(data)
            except Distrust as error:
                told = self._note(Kind.DISTRUSTED, self.node, str(error))
                self._reject(f"node {link.peer}", told.text)
            if told.kind is Kind.CHALLENGE:
                self._say(connection, Kind.PROOF, link.peer, token=caller.proof())
            elif not answered.done():
                self._take_answer(link, connection, told, answered)

        def end(reason: str) -> None:
            if not answered.done():
                answered.set_result(f"something answers there that is no adapm node; is the port right? ({reason})")

        connection = Connection(sock, self._hub, on_frame=_unexpected, on_note=note, on_end=end)
        return connection

    def _take_answer(
        self, link: _Link, connection: Connection, told: Note, answered: asyncio.Future[Note | str]
    ) -> None:
        if told.kind is Kind.WELCOME and not link.up.is_set() and link.incarnation in (None, told.incarnation):
            self._establish(link, connection, told.incarnation)  # at once, as frames may come right behind
        link.distrusted = told.kind is Kind.DISTRUSTED
        refused = told.kind not in (Kind.WELCOME, Kind.WAIT)
        answered.set_result(f"it refused: {told.text}" if told.kind is Kind.REFUSED else told.text if refused else told)

    def _establish(self, link: _Link, connection: Connection, incarnation: bytes) -> None:
        """From now on the link is there, and can be lost."""
        link.connection, link.incarnation = connection, incarnation
        on_frame, peer = self._on_frame, link.peer

        def end(reason: str) -> None:
            if connection.broke_rules:
                self._reject(f"node {peer}", reason)
            self._lose(link, PeerLost(f"node {peer} is lost: {reason}", node=peer))

        connection.allow(self._max_frame)
        if self._hub.engine is not None:
            connection.serve(peer)
        connection.on_frame = lambda view: on_frame(peer, view)
        connection.on_note = lambda data: self._hear(link, Note.unpack(data))
        connection.on_end = end
        link.up.set()

    # ---- being connected to

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, place = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._recover(error)
            return
        sock.setblocking(False)
        who = f"{place[0]} port {place[1]}" if isinstance(place, tuple) else "a process of this machine"
        if sockets.is_of_another_user(sock):
            self._turn_away(sock, who, "it is another user's")
        elif len(self._strangers) + len(self._leaving) >= _STRANGERS and not self._drop_oldest():
            self._turn_away(sock, who, f"{_STRANGERS} others are not gone yet")
        else:
            self._meet(sock, who)

    def _turn_away(self, sock: socket.socket, who: str, why: str) -> None:
        sock.close()
        self._reject(who, why)

    def _drop_oldest(self) -> bool:
        """Makes room among those that are not greeted yet: they must not keep out who is prompt."""
        oldest = next(iter(self._strangers), None)
        if oldest is not None:
            oldest.stop("it did not say hello while many others came")
        return oldest is not None

    def _recover(self, error: OSError) -> None:
        """Lets connections wait: to look at once again would keep the loop busy with nothing else."""
        assert self._listener is not None
        log.warning(
            "node %d cannot accept connections now: %s; if it goes on, allow more open files (ulimit -n)",
            self.node,
            error.strerror,
        )
        self._loop.remove_reader(self._listener.fileno())
        self._recovery = self._loop.call_later(_RECOVERY, self._loop.add_reader, self._listener.fileno(), self._accept)

    def _meet(self, sock: socket.socket, who: str) -> None:
        host = Host(self._key, self._note(Kind.CHALLENGE, 0))

        def note(data: bytes) -> None:
            try:
                told = host.hear(data)
            except (ProtocolError, Distrust) as error:
                kind = Kind.DISTRUSTED if isinstance(error, Distrust) else Kind.REFUSED
                self._refuse(connection, who, 0, str(error), kind)
                return
            if told.kind is Kind.CHALLENGE:
                connection.send(memoryview(told.pack()), note=True)
            else:
                self._on_hello(connection, who, told, host.token)

        def end(reason: str) -> None:
            self._drop_stranger(connection)
            self._reject(who, reason)

        connection = Connection(sock, self._hub, on_frame=_unexpected, on_note=note, on_end=end)
        self._strangers[connection] = self._loop.call_later(_HANDSHAKE, connection.stop, "it did not say hello")

    def _drop_stranger(self, connection: Connection) -> None:
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _on_hello(self, connection: Connection, who: str, hello: Note, token: bytes) -> None:
        refusal = self._why_not(hello)
        if refusal:
            self._refuse(connection, f"node {hello.node} at {who}", hello.node, refusal)
            return
        link = self._links.get(hello.node)
        if link is not None and link.greeted and self.node < hello.node:
            self._leave(connection, Kind.WAIT, hello.node)
            return
        if link is None:
            link = self._links[hello.node] = _Link(hello.node)
        self._drop_stranger(connection)
        self._establish(link, connection, hello.incarnation)
        self._say(connection, Kind.WELCOME, hello.node, token=token)

    def _why_not(self, hello: Note) -> str:
        """Why the sender of a hello cannot be linked, or nothing."""
        link = self._links.get(hello.node)
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
        if link is not None and link.incarnation not in (None, hello.incarnation):
            return f"there is another node with the id {hello.node} already; give each node its own"
        if link is not None and link.connection is not None:
            return f"node {hello.node} is linked already"
        return ""

    def _refuse(self, connection: Connection, who: str, peer: int, why: str, kind: Kind = Kind.REFUSED) -> None:
        self._reject(who, why)
        self._leave(connection, kind, peer, why)

    def _leave(self, connection: Connection, kind: Kind, peer: int, text: str = "") -> None:
        """Says a last word on a connection."""
        self._drop_stranger(connection)
        self._leaving.add(connection)
        self._say(connection, kind, peer, text)
        connection.finish(lambda: self._leaving.discard(connection))
        self._loop.call_later(_HANDSHAKE, connection.close)

    # ---- notes

    def _hear(self, link: _Link, note: Note) -> None:
        assert link.connection is not None
        if note.kind is Kind.GOODBYE:
            self._leave(link.connection, Kind.FAREWELL, link.peer)
            self._lose(link, PeerClosed(f"node {link.peer} closed the link", node=link.peer))
        elif note.kind is Kind.FAREWELL:
            link.over.set()
        elif note.kind is Kind.GIVEN_UP:
            reason = f"node {link.peer} is lost: it has given up this link: {note.text}"
            self._lose(link, PeerLost(reason, node=link.peer))
        else:
            raise ProtocolError(f"it said {note.kind.name} on a link that is up")

    def _say(self, connection: Connection, kind: Kind, peer: int, text: str = "", token: bytes = NO_TOKEN) -> None:
        connection.send(memoryview(self._note(kind, peer, text, token).pack()), note=True)

    def _note(self, kind: Kind, peer: int, text: str = "", token: bytes = NO_TOKEN) -> Note:
        return Note(kind, self.node, peer, self._incarnation, text, token)

    def _until_next_beat(self, now: float) -> float:
        """Seconds; fewer than usual if a peer will have been silent for too long before."""
        heard = [link.connection.heard for link in self._links.values() if link.connection is not None]
        left = min(heard, default=now) + self._patience - now
        return min(left + _LATE, self._heartbeat) if left > 0 else self._heartbeat

    def _beat(self, last: float) -> None:
        """Signs of life, and who has not given one for long."""
        now = self._loop.time()
        self._timer = self._loop.call_later(self._until_next_beat(now), self._beat, now)
        if now - last > 2 * self._heartbeat:  # it is this node that was held up: what has come is not read yet
            return
        for link in list(self._links.values()):
            connection = link.connection
            if connection is None:
                continue
            if now - connection.heard > self._patience and not connection.blocked:
                reason = f"nothing was heard from it for {now - connection.heard:.1f} s"
                self._say(connection, Kind.GIVEN_UP, link.peer, reason)
                self._lose(link, PeerLost(f"node {link.peer} is lost: {reason}", node=link.peer))
            elif not connection.queued and now - connection.said > 0.9 * self._heartbeat:
                connection.send(memoryview(b""), note=True)


def _unexpected(view: memoryview) -> None:
    raise ProtocolError("a frame came before the greeting")
