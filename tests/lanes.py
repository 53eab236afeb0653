"""What the tests of single decisions of lanes share: worlds that end well, and short words for looking and moving."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from adapm.engine import RowState
from adapm.kernel import lib
from adapm.simulator.frames import Item, Type, items
from world import World, WorldWorker

FOREVER = 1 << 40
Make = Callable[..., World]


@contextlib.contextmanager
def worlds(kind: type[World] = World) -> Iterator[Make]:
    """Makes worlds of two nodes and 32 rows; at the end, everything that holds at any moment must still hold."""
    made: list[World] = []

    def make(
        nodes: int = 2, workers: int = 1, rows: tuple[int, ...] = (32,), kind: type[World] = kind, **options: Any
    ) -> World:
        made.append(kind(nodes, workers, rows, **options))
        return made[-1]

    yield make
    for world in made:
        try:
            world.check()
        finally:
            world.close()


def rows_of(world: World, node: int) -> list[int]:
    """The rows of table 0 whose home is the node."""
    return [r for t, r in world.rows if t == 0 and lib.adapm_home_of(0, r, len(world.lanes)) == node]


def state(world: World, node: int, row: int) -> RowState:
    return world.lanes[node].inspect(0, row).state


def on_link(world: World, a: int, b: int) -> list[Item]:
    return [item for frame in world.links[a, b] for item in items(frame, world.row_len)]


def types(world: World, a: int, b: int) -> list[Type]:
    return [item.type for item in on_link(world, a, b)]


def deliver(world: World, a: int, b: int) -> list[Type]:
    """Hands over all that is under way from a to b, and returns what it was."""
    seen = types(world, a, b)
    while world.links[a, b]:
        world.deliver(a, b)
        world.check()
    return seen


def pass_on(world: World) -> None:
    """Hands over all that is under way now, unchecked."""
    for link, queue in world.links.items():
        for _ in range(len(queue)):
            world.deliver(*link)


def step(world: World, worker: WorldWorker, clocks: int = 1) -> None:
    """The worker goes on, with a tick of its node after each clock."""
    for _ in range(clocks):
        world.advance(worker)
        world.tick(worker.node)


def shared_row(world: World, owner: int = 1, holder: int = 0) -> int:
    """A row that both nodes want for good: owned by its home, replicated by the other."""
    row = rows_of(world, owner)[0]
    for node in (owner, holder):
        world.intent(next(w for w in world.workers if w.node == node), 0, [row], 0, FOREVER)
        world.drain()
    assert (state(world, owner, row), state(world, holder, row)) == (RowState.OWNED, RowState.REPLICA)
    return row
