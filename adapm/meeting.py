"""How the nodes of a run come together, at node 0.

    node 1, 2, ...                              node 0
      |---- Join(version, tables, config) -------->|     as soon as it can be reached
      |<--- Refused(reason) -----------------------|     what differs, with both values
      |<--- Welcome(addresses, workers) -----------|     all have joined
      |            ... fill rows, connect to all lower nodes ...
      |---- Linked() ----------------------------->|
      |<--- Start() -------------------------------|     all are linked

From then on, and not before, frames of rows may come, and workers may enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

from adapm.config import Config
from adapm.control import VERSION, Join, Linked, Message, Refused, Start, Welcome
from adapm.errors import AuthenticationFailed, KeyNeeded, ProtocolError, RendezvousError, TransportError
from adapm.gathering import Rendezvous, RollCall
from adapm.patience import Wait
from adapm.tables import Table
from adapm.transport import Transport

log = logging.getLogger(__name__)
T = TypeVar("T")

_PAUSE: Final = 0.25  # seconds between looks for an interface

Messages = Join | Welcome | Refused | Linked | Start


class Meeting:
    """One node's part in it: `listen`, `meet`, `link`, and `hear` for every message of this kind.

    Args:
        config: the node's settings.
        tables: all tables.
        node: its id.
        transport: not listening yet; None if there are no other nodes.
        say: sends a message to a node.
    """

    def __init__(
        self,
        config: Config,
        tables: Sequence[Table],
        node: int,
        transport: Transport | None,
        say: Callable[[int, Message], None],
    ) -> None:
        self._config = config
        self._tables = tables
        self._node = node
        self._transport = transport
        self._say = say
        self._address = ""
        loop = asyncio.get_running_loop()
        self._welcome: asyncio.Future[Welcome] = loop.create_future()
        self._start: asyncio.Future[None] = loop.create_future()
        self._hall: Rendezvous | None = None  # node 0, from `meet` on
        self._early: dict[int, Join] = {}  # who joined before that
        self._refusals: dict[int, str] = {}
        self._awaited: Callable[[], str] | None = None  # what this node waits for
        self._unlinked = RollCall(range(config.nodes))  # node 0's list of who has not said Linked, itself included

    async def listen(self) -> str:
        """Lets others connect; returns this node's address ("" where there are no others).

        Raises:
            AddressInUse, KeyNeeded, TransportError: as Transport.listen.
            RendezvousError: the rendezvous has no address that this machine knows a way to.
        """
        if self._transport is not None:
            self._address = await self._transport.listen(await self._where())
        return self._address

    def waits(self) -> list[Wait]:
        """What this node waits for, if anything."""
        return [] if self._awaited is None else [Wait(self._awaited, self._awaited)]

    async def meet(self) -> Welcome:
        """Waits until all nodes have joined.

        Raises:
            RendezvousError: node 0 cannot be reached, or some did not come in time.
            AuthenticationFailed, KeyNeeded: as Transport.connect.
        """
        if self._node != 0:
            return await self._join()
        hall = self._hall = Rendezvous(self._introduction(), self._config.nodes)
        for node, join in self._early.items():
            self._admit(hall, node, join)
        if not hall.missing:
            self._open(hall)
        return await self._in_time(self._welcome, self._who_is_missing)

    async def link(self, welcome: Welcome) -> None:
        """Connects to all nodes; returns when everybody has.

        Raises:
            RendezvousError: one of them cannot be reached.
            AuthenticationFailed, KeyNeeded: as Transport.connect.
        """
        for peer in range(1, self._node):
            await self._connect(peer, welcome.addresses[peer])
        if self._transport is None:
            return
        if self._node == 0:
            self._on_linked(0)  # its own rows are filled, too: nobody may start before
        else:
            self._say(0, Linked())
        with self._awaiting(self._who_is_not_linked):
            await self._start  # who dies is seen, and filling rows takes as long as it takes

    def hear(self, peer: int, message: Messages) -> None:
        """A node says something.

        Raises:
            RendezvousError: node 0 refused this node.
            ProtocolError: it should not have said that, or not now.
        """
        to_first = isinstance(message, (Join, Linked))
        if to_first != (self._node == 0) or not (to_first or peer == 0):
            raise ProtocolError(f"node {peer} sent {type(message).__name__} to node {self._node}")
        if isinstance(message, Join):
            self._on_join(peer, message)
        elif isinstance(message, Refused):
            raise RendezvousError(f"node 0 at {self._config.rendezvous} refused this node: {message.reason}")
        elif isinstance(message, Linked):
            self._on_linked(peer)
        elif isinstance(message, Welcome):
            self._on_welcome(message)
        elif not self._start.done():
            self._start.set_result(None)

    def is_stranger(self, peer: int) -> bool:
        """Whether the peer is not part of the run (yet), so that its end, and what it says, is nothing to us."""
        if self._node == 0:
            return not (self._hall is not None and self._hall.has(peer))
        return peer >= self._config.nodes

    async def _where(self) -> str | None:
        if self._config.bind is not None or self._config.rendezvous is None:
            return self._config.bind
        if self._node == 0:
            return self._config.rendezvous
        return await self._interface(self._config.rendezvous)

    async def _interface(self, rendezvous: str) -> str | None:
        """Where to listen for nodes that come from the rendezvous's network."""
        if not urllib.parse.urlsplit(rendezvous).scheme.endswith("tcp"):
            return None
        obstacle = ""

        async def find() -> str:
            nonlocal obstacle
            while True:
                try:
                    return await interface_towards(rendezvous)
                except OSError as error:
                    obstacle = error.strerror or str(error)
                await asyncio.sleep(_PAUSE)  # names may become known, and interfaces come up, after us

        return await self._in_time(find(), lambda: f"there is no way to the rendezvous {rendezvous}: {obstacle}")

    def _introduction(self) -> Join:
        tables = [table.describe() for table in self._tables]
        return Join(VERSION, self._node, self._address, self._config.worker_count, tables, self._config.agreed())

    async def _join(self) -> Welcome:
        await self._connect(0, self._config.rendezvous or "")
        self._say(0, self._introduction())
        with self._awaiting(lambda: f"node 0 at {self._config.rendezvous} waits for others to join"):
            return await self._welcome  # in time or never: node 0 says so

    async def _connect(self, peer: int, address: str) -> None:
        transport = self._transport
        assert transport is not None

        def reason() -> str:
            why = transport.obstacle(peer) or "it does not answer"
            return f"node {self._node} cannot reach node {peer} at {address}: {why}"

        try:
            await self._in_time(transport.connect(peer, address), reason)
        except (AuthenticationFailed, KeyNeeded, RendezvousError):
            raise
        except TransportError as error:
            said = f"node {self._node} cannot connect to node {peer} at {address}: "
            raise RendezvousError(f"{said}{str(error).removeprefix(said)}") from error

    async def _in_time(self, awaitable: Awaitable[T], reason: Callable[[], str]) -> T:
        seconds = self._config.startup_timeout
        task = asyncio.ensure_future(awaitable)
        try:
            with self._awaiting(reason):
                await asyncio.wait({task}, timeout=seconds)
            if not task.done():  # the reason is asked for before it is cancelled, and forgets
                raise RendezvousError(f"{reason()} after startup_timeout={seconds:g} seconds")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    @contextlib.contextmanager
    def _awaiting(self, reason: Callable[[], str]) -> Iterator[None]:
        """Says what this node waits for."""
        self._awaited = reason
        try:
            yield
        finally:
            self._awaited = None

    def _who_is_not_linked(self) -> str:
        if self._node != 0:
            return "node 0 waits until all nodes have filled their rows and linked"
        return f"nodes {self._unlinked.missing} fill their rows, or link to others"

    def _who_is_missing(self) -> str:
        missing = self._hall.missing if self._hall is not None else []
        refused = f" (refused: {'; '.join(self._refusals.values())})" if self._refusals else ""
        last = self._transport.last_rejected if self._transport is not None else ""
        turned_away = f" (turned away last: {last})" if last else ""
        return f"nodes {', '.join(map(str, missing))} have not joined node 0 at {self._address}{refused}{turned_away}"

    def _on_join(self, peer: int, join: Join) -> None:
        if peer in self._early or peer in self._refusals or not self.is_stranger(peer):
            raise ProtocolError(f"node {peer} asks to join again")
        if self._hall is None:
            self._early[peer] = join
            return
        self._admit(self._hall, peer, join)
        if not self._hall.missing and not self._welcome.done():
            self._open(self._hall)

    def _admit(self, hall: Rendezvous, peer: int, join: Join) -> None:
        refusal = hall.join(peer, join)
        if refusal is not None:
            log.warning("node 0 refused node %d: %s", peer, refusal)
            self._refusals[peer] = refusal
            self._say(peer, Refused(refusal))

    def _open(self, hall: Rendezvous) -> None:
        welcome = hall.welcome()
        for peer in range(1, self._config.nodes):
            self._say(peer, welcome)
        self._welcome.set_result(welcome)

    def _on_welcome(self, welcome: Welcome) -> None:
        if not len(welcome.addresses) == len(welcome.workers) == self._config.nodes or self._welcome.done():
            raise ProtocolError("node 0 sent a second welcome, or one for another number of nodes")
        self._welcome.set_result(welcome)

    def _on_linked(self, peer: int) -> None:
        self._unlinked.arrive(peer)
        if self._unlinked.complete:
            for node in range(1, self._config.nodes):
                self._say(node, Start())
            self._start.set_result(None)


async def interface_towards(address: str) -> str:
    """A free port at the address of this machine from which that one is reached.

    Args:
        address: of a TCP network, such as tcp://host:port.

    Raises:
        OSError: its host name is unknown, or there is no route to it.
    """
    parts = urllib.parse.urlsplit(address)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)
    family, _, _, _, target = found[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing: only asks for the route
        host = probe.getsockname()[0]
    return f"{parts.scheme}://[{host}]:0" if ":" in host else f"{parts.scheme}://{host}:0"
