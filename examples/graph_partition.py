"""Cuts a graph into parts of equal size with few edges between them, one for each worker.

METIS does it where it is installed (`pip install pymetis`). Otherwise two simple steps do: the nodes are walked from
neighbour to neighbour, breadth first, and the walk is cut into stretches; then nodes that have more neighbours in
another part than in their own change places with such nodes of that part, round after round. Exchanges keep the sizes.
"""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
import numpy.typing as npt
from graph_data import Ints, Lists, lists

ROUNDS = 30
METIS = "pymetis"


def partition(neighbours: Lists, busy: npt.NDArray[np.bool_], parts: int, seed: int) -> Ints:
    """The part of each node, int64 [nodes]; the parts have about as many nodes, and as many busy ones.

    Args:
        neighbours: of each node.
        busy: the nodes that make work: those to train on.
        parts: how many.
        seed: of all random choices.
    """
    if parts == 1:
        return np.zeros(len(busy), np.int64)
    if importlib.util.find_spec(METIS) is not None:
        return by_metis(neighbours, busy, parts)
    return by_exchange(neighbours, busy, parts, seed)


def inside(neighbours: Lists, part: Ints) -> float:
    """The share of the edges between different nodes whose ends are in one part; 1 if there are no edges."""
    nodes = np.repeat(np.arange(len(part)), neighbours.lengths)
    different = nodes != neighbours.items
    return float((part[nodes] == part[neighbours.items])[different].mean()) if different.any() else 1.0


def by_metis(neighbours: Lists, busy: npt.NDArray[np.bool_], parts: int) -> Ints:
    """What METIS makes of it, with busy nodes having as much weight in all as there are nodes."""
    weights = 1 + busy * max(1, round(len(busy) / max(1, busy.sum())))
    own = np.repeat(np.arange(len(busy)), neighbours.lengths)
    others = own != neighbours.items  # METIS knows no edges from a node to itself
    graph = lists(len(busy), own[others], neighbours.items[others])
    metis = importlib.import_module(METIS)
    _, part = metis.part_graph(parts, metis.CSRAdjacency(graph.starts, graph.items), vweights=weights)
    return np.array(part, np.int64)


def by_exchange(neighbours: Lists, busy: npt.NDArray[np.bool_], parts: int, seed: int) -> Ints:
    """The two steps described above."""
    rng = np.random.default_rng(seed)
    order = walk(neighbours, rng)
    part = np.empty(len(order), np.int64)
    for kind in (busy, ~busy):  # busy nodes are dealt out by themselves, so that every part has its share
        along = order[kind[order]]
        part[along] = np.arange(len(along)) * parts // max(1, len(along))
    for _ in range(ROUNDS):
        if not exchange(neighbours, busy, part, parts, rng):
            break
    return part


def walk(neighbours: Lists, rng: np.random.Generator) -> Ints:
    """All nodes, breadth first from a random one, and again from another until no node is left."""
    seen = np.zeros(len(neighbours.starts) - 1, np.bool_)
    walked = []
    for start in rng.permutation(len(seen)):
        wave = np.array([] if seen[start] else [start], np.int64)
        while len(wave):
            seen[wave] = True
            walked.append(wave)
            reached = np.unique(neighbours.of(wave).items)
            wave = reached[~seen[reached]]
    return np.concatenate(walked)


def exchange(neighbours: Lists, busy: npt.NDArray[np.bool_], part: Ints, parts: int, rng: np.random.Generator) -> int:
    """Has nodes change places where that leaves fewer edges between parts; returns how many did.

    Only half of the nodes, drawn at random, may move at a time: neighbours that moved past each other would meet again
    on the other side.
    """
    nodes = np.arange(len(part))
    own = np.repeat(nodes, neighbours.lengths)
    counts = np.bincount(own * parts + part[neighbours.items], minlength=len(part) * parts).reshape(-1, parts)
    here = counts[nodes, part] - 1  # a node takes itself along
    counts[nodes, part] = -1
    wanted = counts.argmax(axis=1)
    gain = counts[nodes, wanted] - here
    movable = np.flatnonzero((gain > 0) & (rng.random(len(part)) < 0.5))
    movable = movable[np.argsort(-gain[movable], kind="stable")]
    moved = 0
    for one in range(parts):
        for other in range(one):
            for kind in (busy, ~busy):
                there, back = (
                    movable[(part[movable] == a) & (wanted[movable] == b) & kind[movable]]
                    for a, b in ((one, other), (other, one))
                )
                count = min(len(there), len(back))
                part[there[:count]], part[back[:count]] = other, one
                moved += 2 * count
    return moved
