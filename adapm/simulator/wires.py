"""A network for very many nodes in virtual time: one line per node, and nothing that is kept per pair of them.

A frame leaves when its sender's line and processor have had the time for it, travels for the latency, and is handled
when the receiver's have.  That is what a switch does whose inside is never the bottleneck; a node that all others talk
to is.  Nothing is drawn and nothing breaks: for that, see `network`.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapm.simulator.loop import VirtualLoop, context_of
from adapm.transport import OnFrame, OnLost, Transport, view_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NOBODY = contextvars.Context()  # wires do not sleep, and fire no timer late


@dataclass(frozen=True)
class Line:
    """What a node's connection to the others can do.

    Attributes:
        latency: seconds from one node to any other.
        bandwidth: bytes per second, in either direction.
        occupied: seconds for which a frame keeps the node that sends it, and the one that takes it.
    """

    latency: float
    bandwidth: float
    occupied: float = 0.0

    def busy(self, size: int) -> float:
        """Seconds for which a frame of so many bytes keeps an end of the line."""
        return max(size / self.bandwidth, self.occupied)


class Wires:
    """What the transports of one run have in common.

    Args:
        loop: whose time it is.
        line: every node's.

    Attributes:
        frames, bytes: sent so far, of all kinds.
        cut: when set, what is sent goes nowhere: for the end of a run, when every node says goodbye to all others.
    """

    def __init__(self, loop: VirtualLoop, line: Line) -> None:
        self.frames = self.bytes = 0
        self.cut = False
        self._loop = loop
        self._line = line
        self._ends: dict[int, _End] = {}

    def transport(self, node: int, on_frame: OnFrame, on_lost: OnLost) -> WireTransport:
        """The node's transport."""
        self._ends[node] = _End(self._loop, node, on_frame)
        return WireTransport(node, self, on_frame=on_frame, on_lost=on_lost)

    def send(self, source: int, target: int, frame: bytes) -> None:
        """Puts a frame on its way.

        Frames of a pair keep their order: what a sender's line lets go later comes later, and what comes is taken in
        the order in which it was sent.
        """
        if self.cut:
            return
        self.frames += 1
        self.bytes += len(frame)
        busy = self._line.busy(len(frame))
        left = self._ends[source].leaves(self._loop.time(), busy)
        self._ends[target].take(source, frame, left + self._line.latency, busy)


class _End:
    """One node's end of its line."""

    def __init__(self, loop: VirtualLoop, node: int, on_frame: OnFrame) -> None:
        self._loop = loop
        self._on_frame = on_frame
        self._context = context_of(("node", node))
        self._out = self._in = 0.0  # when either direction is free again

    def leaves(self, now: float, busy: float) -> float:
        """When a frame that is sent now has left."""
        self._out = max(self._out, now) + busy
        return self._out

    def take(self, source: int, frame: bytes, arrival: float, busy: float) -> None:
        """Has the frame handled when it has arrived and all that was sent earlier has been handled."""
        self._in = max(self._in, arrival) + busy
        self._loop.call_at(self._in, self._hand_over, source, frame, context=_NOBODY)

    def _hand_over(self, source: int, frame: bytes) -> None:
        self._loop.call_soon(self._on_frame, source, memoryview(frame), context=self._context)


class WireTransport(Transport):
    """See `Transport`; every node of the run is linked with every other from the start."""

    scheme = "wire"

    def __init__(self, node: int, wires: Wires, *, on_frame: OnFrame, on_lost: OnLost) -> None:
        super().__init__(node, on_frame=on_frame, on_lost=on_lost)
        self._wires = wires

    async def listen(self, address: str | None = None) -> str:
        return f"wire://{self.node}"

    async def connect(self, peer: int, address: str) -> None:
        """They are linked."""

    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        self._wires.send(self.node, peer, bytes(view_of(frame)))

    def queued(self, peer: int) -> int:
        return 0

    async def close(self, linger: float = 2.0) -> None:
        """Nothing is kept here."""
