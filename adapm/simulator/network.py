"""A network in virtual time: what it delivers is reliable and in order, when it does is the seed's.

Each direction of a link has a latency, a jitter and a bandwidth, and can be stalled.  Beyond that, a link can break,
and a node can fall silent: both are losses that the transport's contract speaks of.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Protocol

from adapm.errors import PeerLost
from adapm.simulator.choices import Choices
from adapm.simulator.loop import VirtualLoop, context_of
from adapm.transports.inproc import InprocNetwork, InprocTransport, Pipe


class Observer(Protocol):
    """Who is told of every frame."""

    def sent(self, source: int, target: int, frame: bytes) -> None:
        """A frame is under way."""

    def arrived(self, source: int, target: int, frame: bytes) -> None:
        """It is about to be handled."""

    def handled(self, source: int, target: int) -> None:
        """It has been."""


@dataclass
class Link:
    """One direction between two nodes.

    Attributes:
        latency: seconds that every frame takes.
        jitter: seconds more that it takes at most.
        per_byte: seconds that each byte takes.
        stalled_until: no frame arrives before this time.
    """

    latency: float
    jitter: float
    per_byte: float
    stalled_until: float = 0.0


class Network(InprocNetwork):  # type: ignore[misc,unused-ignore]  # mypy does not see the transports in a checkout
    """What the transports of one virtual world have in common.

    Args:
        loop: whose time it is.
        choices: where delays are drawn from.
        observer: who is told.

    Attributes:
        frames, bytes: delivered so far.
    """

    def __init__(self, loop: VirtualLoop, choices: Choices, observer: Observer | None = None) -> None:
        super().__init__()
        self.frames = self.bytes = 0
        self.observer = observer
        self._loop = loop
        self._choices = choices
        self._links: dict[tuple[int, int], Link] = {}

    def link(self, source: int, target: int) -> Link:
        """One direction between two nodes, connected or not."""
        link = self._links.get((source, target))
        if link is None:
            drawn = self._choices.stream(f"link {source} {target}")
            latency = drawn.scale(10e-6, 4)
            link = self._links[source, target] = Link(latency, latency * drawn.random(), drawn.scale(0.1e-9, 6))
        return link

    def pipe(self, source: InprocTransport, target: InprocTransport) -> Pipe:
        """A direction that delays."""
        name = f"frames {source.node} {target.node}"
        return DelayedPipe(source, target, self, self._loop, self._choices.stream(name))

    def lose(self, node: int, peer: int, why: str) -> None:
        """The node's end of its link to the peer breaks; the other end breaks when it is told so, too."""
        for transport in self.at(node):
            error = PeerLost(f"the link to node {peer} is gone: {why}", node=peer)
            context_of(("node", node)).run(transport.lose, peer, error)


class DelayedPipe(Pipe):  # type: ignore[misc,unused-ignore]
    """One direction of a link, with the link's delays."""

    def __init__(
        self, source: InprocTransport, target: InprocTransport, network: Network, loop: VirtualLoop, choices: Choices
    ) -> None:
        super().__init__(source, target)
        self._network = network
        self._time = loop
        self._choices = choices
        self._link = network.link(source.node, target.node)
        self._free = 0.0  # when the line has taken all that was sent
        self._latest = 0.0  # arrival so far
        self._there = context_of(("node", target.node))  # where frames are handled
        self._here = contextvars.Context()  # nobody's: wires do not sleep

    def put(self, frame: bytes | None) -> None:
        """As `Pipe.put`; the observer learns of it."""
        super().put(frame)
        if frame is not None and self._network.observer is not None:
            self._network.observer.sent(self.source.node, self.target.node, frame)

    def depart(self, size: int) -> None:
        """It arrives when the line is free and the latency over, behind all earlier ones."""
        link, now = self._link, self._time.time()
        self._free = max(self._free, now) + size * link.per_byte
        self._latest = max(self._latest, self._free + link.latency + link.jitter * self._choices.random())
        self._time.call_at(self._latest, self._arrive, context=self._here)

    def hand_over(self, frame: bytes | None) -> None:
        """The target's node handles it, between the observer's two looks."""
        observer = self._network.observer
        if frame is None or observer is None:
            super().hand_over(frame)
            return
        self._network.frames += 1
        self._network.bytes += len(frame)
        observer.arrived(self.source.node, self.target.node, frame)
        super().hand_over(frame)
        observer.handled(self.source.node, self.target.node)

    def _arrive(self) -> None:
        """It is at the target's machine, unless the link is stalled; its process takes it when it runs."""
        if self._link.stalled_until > self._time.time():
            self._time.call_at(self._link.stalled_until, self._arrive, context=self._here)
        else:
            self._time.call_soon(self.deliver, context=self._there)
