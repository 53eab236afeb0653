"""`set` of a row in every state, and sets and syncs among everything else that happens to a row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from adapm.engine import RowState
from adapm.kernel import ffi, lib
from adapm.simulator.frames import Type
from adapm.simulator.invariants import Row, Scene, Violation
from lanes import FOREVER, Make, deliver, pass_on, rows_of, shared_row, state, step, types, worlds
from test_lane_random import step as random_step
from world import PUSH, SET, SYNC, Operation, World, WorldWorker

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED
LEAP = 1000  # a set raises the worker's own column by so much: a lost or doubled one can not look like pushes


@dataclass
class Promise:
    """What must be true when a wait_sync ends."""

    done: list[npt.NDArray[np.int64]]  # per table and row: updates of the worker that the main copy has
    rows: list[tuple[Row, int]]  # rows that its node has, as long as the worker's clock is before this one


class SettingWorld(World):
    """A world whose workers also set: each its own column only, always upwards, and never next to own open pushes.

    So what a row must contain stays exact: other columns are not touched by the set, and the setter's column is the
    value set plus what its worker pushed since. And wait_sync is held to what it promises.
    """

    def __init__(self, *args: object, **options: int) -> None:
        self.promises: dict[tuple[int, int], Promise] = {}  # by worker and operation
        self.wanted: dict[int, list[tuple[Row, int, int]]] = {}  # by worker: row, start, end
        super().__init__(*args, **options)

    def busy(self, worker: WorldWorker, row: Row, *kinds: int) -> bool:
        return any(o.kind in kinds and o.table == row[0] and row[1] in o.keys for o in worker.open.values())

    def set(self, worker: WorldWorker, row: Row, times: int = 1) -> None:
        """Sets the row's column of this worker, in one call that names the row several times: the last value stays."""
        table, key = row
        values = (worker.total[table][key] + LEAP * np.arange(1, times + 1)).astype(np.float32)[:, None]
        worker.total[table][key] += LEAP * times
        keys, miss, op = np.full(times, key, np.int64), np.empty(times, np.uint32), ffi.new("uint32_t *")
        where = (worker.handle, table, worker.id, 1, ffi.from_buffer("int64_t[]", keys), times)
        data, missing = ffi.from_buffer("float[]", values), ffi.from_buffer("uint32_t[]", miss)
        missed = lib.adapm_set(*where, data, missing)
        if missed:
            assert lib.adapm_post(worker.handle, SET, *where[1:5], missing, missed, data, op) == missed
            worker.open[op[0]] = Operation(SET, table, [key] * missed)
        else:
            worker.done[table][key] = worker.total[table][key]

    def intent(self, worker: WorldWorker, table: int, keys: list[int], start: int, length: int) -> None:
        self.wanted.setdefault(worker.id, []).extend(((table, key), start, start + length) for key in keys)
        super().intent(worker, table, keys, start, length)

    def _post(self, worker: WorldWorker, operation: Operation, values: npt.NDArray[np.float32] | None) -> None:
        before = set(worker.open)
        super()._post(worker, operation, values)
        if operation.kind == SYNC:
            clock, (op,) = self.clock(worker), set(worker.open) - before
            rows = [(row, end) for row, start, end in self.wanted.get(worker.id, ()) if start <= clock]
            self.promises[worker.id, op] = Promise([done.copy() for done in worker.done], rows)

    def _completed(self, worker: WorldWorker, op: int, operation: Operation) -> None:
        super()._completed(worker, op, operation)
        if operation.kind == SET:
            for key in operation.keys:
                worker.done[operation.table][key] = worker.total[operation.table][key]
        if operation.kind == SYNC:
            self._kept(worker, self.promises.pop((worker.id, op)))

    def _kept(self, worker: WorldWorker, promise: Promise) -> None:
        moving = [item for _, _, item in self.under_way() if item.type is Type.GRANT]
        for table, key in self.rows:
            views = [lane.inspect(table, key) for lane in self.lanes]
            main = [view.value for view in views if view.state is OWNED]
            main += [item.value for item in moving if (item.table, item.row) == (table, key)]
            if main and main[0][worker.id] < promise.done[table][key]:
                raise Violation(f"worker {worker.id} has synced, but the main copy of {(table, key)} has {main[0]}")
        for row, end in promise.rows:
            found = self.lanes[worker.node].inspect(*row).state
            if self.clock(worker) < end and found in (ABSENT, PENDING):
                raise Violation(f"worker {worker.id} wants {row} and has synced, but it is {found.name} at its node")

    def _nothing_lost(self, scene: Scene) -> None:
        if not any(self.busy(worker, scene.row, SET) for worker in self.workers):  # then its column may be either
            super()._nothing_lost(scene)


def run_schedule(seed: int, steps: int = 250) -> SettingWorld:
    choose = random.Random(seed)
    nodes, workers = choose.choice([(2, 1), (3, 1), (3, 1), (2, 2), (4, 1)])
    options = {"round_bytes": choose.choice([4, 64, 1 << 20]), "tick_keys": choose.choice([1, 3, 1 << 16])}
    world = SettingWorld(nodes, workers, choose.choice([(1,), (2,), (3, 2)]), **options)
    speed = {link: 10 ** choose.uniform(-1.7, 0.3) for link in world.links}
    for _ in range(steps):
        steps_now = [("deliver", link, speed[link]) for link, queue in world.links.items() if queue]
        steps_now += [(kind, node, 0.5) for node in range(nodes) for kind in ("tick", "serve")]
        kinds = ("intent", "push", "pull", "set", "advance")
        steps_now += [(kind, worker, 0.2) for worker in world.workers for kind in kinds]
        steps_now += [("sync", worker, 0.05) for worker in world.workers]
        kind, who, _ = choose.choices(steps_now, [weight for *_, weight in steps_now])[0]
        if kind in ("set", "push"):
            set_or_push(world, choose, kind, who)
        else:
            random_step(world, choose, kind, who)
        world.check()
    return world


def set_or_push(world: SettingWorld, choose: random.Random, kind: str, worker: WorldWorker) -> None:
    table, key = row = choose.choice(world.rows)
    if kind == "push" and not world.busy(worker, row, SET):
        world.push(worker, table, [key])
    elif kind == "set" and not world.busy(worker, row, SET, PUSH):
        world.set(worker, row, times=choose.choice([1, 1, 2, 3]))


@pytest.mark.parametrize("block", range(5))
def test_sets_and_syncs_among_everything_else_are_exact(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        print(f"seed {seed}")
        world = run_schedule(seed)
        try:
            world.drain()
            world.check_rest()
        finally:
            world.close()


# ---- one state after the other


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds(SettingWorld) as made:
        yield made


def value(world: World, node: int, row: int) -> list[float]:
    return world.lanes[node].inspect(0, row).value.tolist()


def test_a_row_that_only_we_have_is_set_at_once(make: Make) -> None:
    world = make()
    row, mine = rows_of(world, 0)[0], world.workers[0]
    world.push(mine, 0, [row])
    world.set(mine, (0, row))
    assert not mine.open
    assert value(world, 0, row) == [LEAP + 1, 0]


def test_a_row_with_holders_is_set_by_the_node_and_they_learn_of_it(make: Make) -> None:
    world = make()
    row = shared_row(world)
    owner = world.workers[1]
    world.push(world.workers[0], 0, [row])
    world.set(owner, (0, row))
    assert owner.open
    world.serve(1)
    assert not owner.open
    world.tick(1)
    assert types(world, 1, 0) == [Type.NUDGE]
    world.drain()
    world.check_rest()
    assert value(world, 0, row) == [1, LEAP]


def test_a_replica_is_set_at_its_owner_behind_its_last_delta_and_comes_back_fresh(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine, other = world.workers
    world.push(mine, 0, [row])
    world.push(other, 0, [row])
    world.set(mine, (0, row))
    world.serve(0)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.SET_ROW, Type.ROUND_END]
    assert value(world, 1, row) == [LEAP + 1, 1]
    assert mine.open
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    assert not mine.open
    assert value(world, 0, row) == [LEAP + 1, 1]


def test_pushes_behind_a_set_are_added_to_it(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine, other = world.workers
    world.set(mine, (0, row))
    world.serve(0)
    world.tick(0)
    world.push(mine, 0, [row])
    world.push(other, 0, [row])
    world.drain()
    world.check_rest()
    assert value(world, 1, row) == [LEAP + 1, 1]


@pytest.mark.parametrize("shared", [False, True])
def test_the_set_of_a_pending_row_waits_for_its_state(make: Make, shared: bool) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    if shared:
        world.intent(other, 0, [row], 0, FOREVER)
        world.drain()
    world.intent(mine, 0, [row], 0, FOREVER)
    world.tick(0)
    world.push(mine, 0, [row])
    world.set(mine, (0, row), times=3)
    world.serve(0)
    assert state(world, 0, row) is PENDING
    assert world.segments[0].statistics().parked == 3
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    assert bool(mine.open) is shared  # granted: ours to set
    world.drain()
    world.check_rest()
    assert value(world, 0, row) == [3 * LEAP + 1, 0]


def test_an_absent_row_is_set_where_it_is(make: Make) -> None:
    world = make(nodes=3)
    row = rows_of(world, 0)[0]
    setter = world.workers[2]
    world.intent(world.workers[1], 0, [row], 0, 1)
    world.drain()  # it moves to node 1, which node 2 does not know
    world.set(setter, (0, row), times=2)
    world.serve(2)
    assert deliver(world, 2, 0) == [Type.SET] * 2
    assert deliver(world, 0, 1) == [Type.SET] * 2
    assert value(world, 1, row) == [0, 0, 2 * LEAP]
    assert deliver(world, 1, 2) == [Type.ACK] * 2
    assert not setter.open


def test_one_set_of_a_row_leaves_per_round_and_the_last_one_stays(make: Make) -> None:
    world = make(workers=2)
    row = shared_row(world)
    mine, neighbour = world.workers[:2]
    world.set(mine, (0, row), times=2)
    world.set(neighbour, (0, row))
    world.serve(0)
    for _ in range(3):
        world.tick(0)
        assert types(world, 0, 1).count(Type.SET_ROW) == 1
        deliver(world, 0, 1)
        deliver(world, 1, 0)
    assert not mine.open
    assert not neighbour.open
    assert value(world, 0, row)[:2] == value(world, 1, row)[:2] == [2 * LEAP, LEAP]


def test_a_set_whose_replica_ends_goes_to_the_owner(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [row], 0, 1)
    world.drain()
    world.push(mine, 0, [row])
    world.set(mine, (0, row))
    world.serve(0)
    step(world, mine)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.DROP, Type.SET, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.ACK, Type.REPLY_END]
    assert not mine.open
    assert value(world, 1, row) == [LEAP + 1, 0]


def test_a_set_whose_replica_becomes_owned_is_done_here(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine = world.workers[0]
    world.push(mine, 0, [row])
    world.tick(0)  # opens a round, whose reply brings the row
    world.set(mine, (0, row))
    world.serve(0)
    world.lanes[1].worker_gone(0)
    deliver(world, 0, 1)
    assert deliver(world, 1, 0) == [Type.GRANT_CURRENT, Type.REPLY_END]
    assert mine.open
    world.tick(0)
    pass_on(world)
    assert not mine.open
    assert value(world, 0, row) == [LEAP + 1, 0]
