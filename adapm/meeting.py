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
import logging
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from adapm.config import Config
from adapm.control import VERSION, Join, Linked, Message, Refused, Start, Welcome
from adapm.errors import AuthenticationFailed, KeyNeeded, ProtocolError, RendezvousError, TransportError
from adapm.gathering import Rendezvous, RollCall
from adapm.tables import Table
from adapm.transport import Transport

log = logging.getLogger(__name__)
T = TypeVar("T")

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
        self._early: list[tuple[int, Join]] = []  # who joined before that
        self._refusals: list[str] = []
        self._unlinked = RollCall(range(config.nodes))  # node 0's list of who has not said Linked, itself included

    async def listen(self) -> str:
        """Lets others connect; returns this node's address ("" where there are no others).

        Raises:
            AddressInUse, KeyNeeded, TransportError: as Transport.listen.
        """
        if self._transport is not None:
            self._address = await self._transport.listen(self._where())
        return self._address

    async def meet(self) -> Welcome:
        """Waits until all nodes have joined.

        Raises:
            RendezvousError: node 0 cannot be reached, or some did not come in time.
            AuthenticationFailed, KeyNeeded: as Transport.connect.
        """
        if self._node != 0:
            return await self._join()
        hall = self._hall = Rendezvous(self._introduction(), self._config.nodes)
        for node, join in self._early:
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
        await self._start

    def hear(self, peer: int, message: Messages) -> None:
        """A node says something.

        Raises:
            RendezvousError: node 0 refused this node.
            ProtocolError: it should not have said that, or not now.
        """
        if isinstance(message, (Join, Linked)) != (self._node == 0):
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
        """Whether the peer is not part of the run (yet), so that its end is nothing to us."""
        return self._node == 0 and not (self._hall is not None and self._hall.has(peer))

    def _where(self) -> str | None:
        if self._config.bind is not None or self._config.rendezvous is None:
            return self._config.bind
        return self._config.rendezvous if self._node == 0 else _interface_towards(self._config.rendezvous)

    def _introduction(self) -> Join:
        tables = [table.describe() for table in self._tables]
        return Join(VERSION, self._node, self._address, self._config.worker_count, tables, self._config.agreed())

    async def _join(self) -> Welcome:
        await self._connect(0, self._config.rendezvous or "")
        self._say(0, self._introduction())
        return await self._welcome  # in time or never: node 0 says so

    async def _connect(self, peer: int, address: str) -> None:
        assert self._transport is not None
        try:
            await self._in_time(self._transport.connect(peer, address), lambda: "it does not answer")
        except RendezvousError as error:
            raise RendezvousError(f"node {self._node} cannot reach node {peer} at {address}: {error}") from error
        except (AuthenticationFailed, KeyNeeded):
            raise
        except TransportError as error:
            raise RendezvousError(f"node {self._node} cannot connect to node {peer} at {address}: {error}") from error

    async def _in_time(self, awaitable: Awaitable[T], reason: Callable[[], str]) -> T:
        seconds = self._config.startup_timeout
        try:
            return await asyncio.wait_for(awaitable, seconds)
        except asyncio.TimeoutError as error:  # the builtin TimeoutError only since Python 3.11
            raise RendezvousError(f"{reason()} after startup_timeout={seconds:g} seconds") from error

    def _who_is_missing(self) -> str:
        missing = self._hall.missing if self._hall is not None else []
        refused = f" (refused: {'; '.join(self._refusals)})" if self._refusals else ""
        last = self._transport.last_rejected if self._transport is not None else ""
        turned_away = f" (turned away last: {last})" if last else ""
        return f"nodes {', '.join(map(str, missing))} have not joined node 0 at {self._address}{refused}{turned_away}"

    def _on_join(self, peer: int, join: Join) -> None:
        if self._hall is None:
            self._early.append((peer, join))
            return
        self._admit(self._hall, peer, join)
        if not self._hall.missing and not self._welcome.done():
            self._open(self._hall)

    def _admit(self, hall: Rendezvous, peer: int, join: Join) -> None:
        refusal = hall.join(peer, join)
        if refusal is not None:
            log.warning("node 0 refused node %d: %s", peer, refusal)
            self._refusals.append(refusal)
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


def _interface_towards(address: str) -> str | None:
    """A free port on this machine's interface that reaches the address, if that is one of an IP network."""
    parts = urllib.parse.urlsplit(address)
    if not parts.scheme.endswith("tcp") or parts.hostname is None or parts.port is None:
        return None
    family, _, _, _, target = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing: only asks for the route
        host = probe.getsockname()[0]
    return f"{parts.scheme}://[{host}]:0" if ":" in host else f"{parts.scheme}://{host}:0"
