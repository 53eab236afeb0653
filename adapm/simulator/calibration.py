"""Costs as they are on this machine.

Nodes are simulated with few and many keys, and with few and many others; the processor time that they take is then
explained by what they did.  What a frame costs the transport, which is not in it, is measured with the real one.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adapm import transport
from adapm.errors import AdapmError
from adapm.simulator.costs import Costs
from adapm.simulator.scale import Load, Point, simulate

# Nodes, and keys per clock.
SHAPES = ((1, 4), (1, 1024), (2, 4), (2, 64), (2, 1024), (4, 512), (16, 2), (16, 16), (16, 256))
CLOCKS = 40
REPEAT = 3
_ENDS = 8  # transports that talk to each other
_FRAME = b"\1" + bytes(149)  # about as long as a frame of few rows
_BURSTS = 30


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        costs: of nodes and transport.
        transport: the transport's part of a frame, microseconds.
        worst: by how much the processor time of one of the shapes differs from what its costs come to, as a share.
    """

    costs: Costs
    transport: float
    worst: float


def calibrate(step: Callable[[str], None], repeat: int = REPEAT, name: str = "tcp") -> Calibration:
    """Measures; takes about a quarter of a minute.

    Args:
        step: is told of each repetition.
        repeat: of these, each shape's fastest counts.
        name: the transport.

    Raises:
        AdapmError: a node or a transport failed.
    """
    rounds = []
    for number in range(repeat):
        step(f"costs, repetition {number + 1} of {repeat}")
        rounds.append([_point(*shape) for shape in SHAPES])
    points = [min(same, key=lambda point: point.here_us) for same in zip(*rounds, strict=True)]
    frame = asyncio.run(_frame_cost(name))
    costs, worst = _explained(points)
    return Calibration(Costs(costs.tick, costs.frame + frame, costs.row, costs.key), frame, worst)


def _point(nodes: int, batch: int) -> Point:
    return simulate(nodes, Load(batch=batch, rows=8 * batch + 64, warm_up=CLOCKS // 2, clocks=CLOCKS), Costs())


def _explained(points: list[Point]) -> tuple[Costs, float]:
    """The costs that explain what nodes took, every point alike; and the worst deviation."""
    counts = np.array([[point.ticks, point.messages, point.rows_moved, point.keys] for point in points])
    took = np.array([point.here_us for point in points])
    solution = np.linalg.lstsq(counts / took[:, None], np.ones(len(took)), rcond=None)[0].clip(min=0)
    return Costs(*solution.tolist()), float(np.abs(counts @ solution / took - 1).max())


async def _frame_cost(name: str) -> float:
    """Microseconds that sending and receiving a frame takes the transport, when many come at once."""
    arrived = asyncio.Semaphore(0)
    ends = [_end(name, node, arrived) for node in range(_ENDS)]
    try:
        addresses = [await end.listen() for end in ends]
        for node, end in enumerate(ends):
            for peer in range(node):
                await end.connect(peer, addresses[peer])
        return statistics.median([await _burst(ends, arrived) for _ in range(_BURSTS)])
    finally:
        for end in ends:
            await end.close()


def _end(name: str, node: int, arrived: asyncio.Semaphore) -> transport.Transport:
    def lost(peer: int, error: AdapmError) -> None:
        """They close one after the other."""

    return transport.create(name, node, on_frame=lambda peer, frame: arrived.release(), on_lost=lost)


async def _burst(ends: list[transport.Transport], arrived: asyncio.Semaphore) -> float:
    begin = time.process_time()
    for end in ends:
        for peer in range(len(ends)):
            if peer != end.node:
                end.send(peer, _FRAME)
    frames = len(ends) * (len(ends) - 1)
    for _ in range(frames):
        await arrived.acquire()
    return (time.process_time() - begin) / frames * 1e6
