"""Frames between nodes of one process and one loop, in memory, in a reproducible order: for tests and simulations."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from adapm.errors import AddressInUse, Closed, PeerLost, TransportError, UsageError
from adapm.transport import OnFrame, OnLost, PeerClosed, Transport, view_of

if TYPE_CHECKING:
    from typing_extensions import Buffer


class InprocNetwork:
    """What the transports of one test or simulation share: who listens where, and which of them are stalled."""

    def __init__(self) -> None:
        self._listening: dict[str, InprocTransport] = {}
        self._opened: dict[str, asyncio.Event] = {}
        self._named = 0

    def cut(self, a: int, b: int) -> None:
        """Breaks the link between two nodes: both report it as lost, frames under way are gone."""
        for node, other in ((a, b), (b, a)):
            for transport in self.at(node):
                transport.lose(other, PeerLost(f"the link to node {other} was cut", node=other))

    def stall(self, node: int) -> None:
        """Keeps frames to this node with their senders until `resume`, as if it were busy."""
        for transport in self.at(node):
            transport._stalled = True

    def resume(self, node: int) -> None:
        """Delivers what has been kept, in the usual order."""
        for transport in self.at(node):
            transport._stalled = False
            for pipe in transport._incoming.values():
                pipe.resume()

    def pipe(self, source: InprocTransport, target: InprocTransport) -> Pipe:
        """One direction of a new link; a network with delays makes pipes of its own."""
        return Pipe(source, target)

    def at(self, node: int) -> list[InprocTransport]:
        """The transports of the node that listen."""
        return [transport for transport in self._listening.values() if transport.node == node]

    def _listen(self, transport: InprocTransport, address: str | None) -> str:
        if address is None:
            address = f"inproc://{self._named}"
            self._named += 1
        if address in self._listening:
            raise AddressInUse(f"{address} is taken by node {self._listening[address].node}; listen at another address")
        self._listening[address] = transport
        self._opened.pop(address, asyncio.Event()).set()
        return address

    async def _find(self, address: str) -> InprocTransport:
        while address not in self._listening:
            await self._opened.setdefault(address, asyncio.Event()).wait()
        return self._listening[address]


class Pipe:
    """One direction of a link.

    Attributes:
        source, target: its ends.
        bytes: put in and not delivered yet.
        empty: set when nothing is in it.
    """

    def __init__(self, source: InprocTransport, target: InprocTransport) -> None:
        self.source, self.target = source, target
        self.bytes = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._frames: deque[bytes | None] = deque()
        self._loop = asyncio.get_running_loop()

    def put(self, frame: bytes | None) -> None:
        """Appends a frame, or None for the goodbye."""
        self._frames.append(frame)
        self.bytes += len(frame or b"")
        self.empty.clear()
        self.depart(len(frame or b""))

    def depart(self, size: int) -> None:
        """A frame of so many bytes is on its way: one `deliver` is to follow, in the order of departures."""
        self._loop.call_soon(self.deliver)

    def resume(self) -> None:
        """The target takes frames again."""
        for _ in self._frames:
            self._loop.call_soon(self.deliver)

    def discard(self) -> None:
        """What is under way is gone."""
        self._frames.clear()
        self.bytes = 0
        self.empty.set()

    def deliver(self) -> None:
        """Hands the next frame over, if there is one and the target takes it."""
        if self._frames and not self.target._stalled:
            self.hand_over(self._next())

    def hand_over(self, frame: bytes | None) -> None:
        """The target gets it."""
        self.target._receive(self.source.node, frame)

    def _next(self) -> bytes | None:
        frame = self._frames.popleft()
        self.bytes -= len(frame or b"")
        if not self._frames:
            self.empty.set()
        return frame


class InprocTransport(Transport):
    """See `Transport`; addresses are any text, `inproc://0`, `inproc://1`, ... when none is given.

    Args:
        network: the object that all transports that are to meet have in common.
        connect_timeout: seconds after which `connect` gives up an address where nobody listens.
    """

    scheme = "inproc"

    def __init__(
        self, node: int, *, on_frame: OnFrame, on_lost: OnLost, network: InprocNetwork, connect_timeout: float = 30.0
    ) -> None:
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._network = network
        self._connect_timeout = connect_timeout
        self._address: str | None = None
        self._outgoing: dict[int, Pipe] = {}
        self._incoming: dict[int, Pipe] = {}
        self._lost: dict[int, PeerLost] = {}
        self._searching: set[asyncio.Future[InprocTransport]] = set()
        self._stalled = False
        self._closed = False

    async def listen(self, address: str | None = None) -> str:
        self._check_open()
        if self._address is not None:
            raise UsageError(f"node {self.node} listens at {self._address} already")
        self._address = self._network._listen(self, address)
        return self._address

    async def connect(self, peer: int, address: str) -> None:
        self._check_open()
        if self._address is None or peer == self.node:
            raise UsageError(
                f"node {self.node} cannot connect to {peer}: it must listen first, and to itself is not possible"
            )
        if peer in self._lost:
            raise self._lost[peer]
        if peer in self._outgoing:
            return
        searching = asyncio.ensure_future(self._network._find(address))
        self._searching.add(searching)
        await self._end_of(searching)
        if not searching.done():
            raise TransportError(
                f"node {peer} did not answer at {address} within {self._connect_timeout:g} s: nobody listens there"
            )
        self._check_open()
        other = searching.result()
        other._accept(self, peer)
        self._link(other)

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        pipe = self._outgoing.get(peer)
        if pipe is None:
            self._check_open()
            raise self._lost.get(peer) or PeerLost(f"node {self.node} has no link to node {peer}", node=peer)
        pipe.put(bytes(view_of(frame)))

    def queued(self, peer: int) -> int:
        pipe = self._outgoing.get(peer)
        return pipe.bytes if pipe else 0

    async def close(self, linger: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        for searching in self._searching:
            searching.cancel()
        if self._address is not None:
            del self._network._listening[self._address]
        pipes = list(self._outgoing.values())
        for pipe in pipes:
            pipe.put(None)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(pipe.empty.wait() for pipe in pipes)), linger)
        for pipe in pipes:
            pipe.target._receive(self.node, None)
            pipe.discard()
        self._outgoing.clear()
        self._incoming.clear()

    async def _end_of(self, searching: asyncio.Future[InprocTransport]) -> None:
        try:
            await asyncio.wait([searching], timeout=self._connect_timeout)
        finally:
            self._searching.discard(searching)
            searching.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the transport of node {self.node} is closed")

    def _accept(self, other: InprocTransport, wanted: int) -> None:
        """Refuses what must not be linked with this transport; changes nothing."""
        if self._closed:
            raise TransportError(f"node {self.node} at {self._address} has just been closed")
        if wanted != self.node:
            raise TransportError(f"{self._address} is node {self.node}, not {wanted}; correct the address or the id")
        present = self._incoming.get(other.node)
        if other.node in self._lost or (present is not None and present.source is not other):
            raise TransportError(
                f"node {self.node} at {self._address} refused: it has met another node {other.node} already"
            )

    def _link(self, other: InprocTransport) -> None:
        if other.node in self._outgoing:
            return
        for source, target in ((self, other), (other, self)):
            pipe = self._network.pipe(source, target)
            source._outgoing[target.node] = target._incoming[source.node] = pipe

    def _receive(self, peer: int, frame: bytes | None) -> None:
        if self._closed or peer not in self._incoming:
            return
        if frame is None:
            self.lose(peer, PeerClosed(f"node {peer} closed the link", node=peer))
        else:
            self._on_frame(peer, memoryview(frame))

    def lose(self, peer: int, error: PeerLost) -> None:
        """The link to the peer is gone; what this end has sent and is still under way, too."""
        pipe = self._outgoing.pop(peer, None)
        if pipe is None or self._closed:
            return
        pipe.discard()
        del self._incoming[peer]
        self._lost[peer] = error
        asyncio.get_running_loop().call_soon(self._report, peer, error)

    def _report(self, peer: int, error: PeerLost) -> None:
        if not self._closed:
            self._on_lost(peer, error)
