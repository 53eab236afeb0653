"""What a lane decides with each technique, one decision at a time, and random schedules with each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

import test_lane_random
from adapm import Table, techniques
from adapm.engine import Lane, RowState
from adapm.errors import OutOfMemory
from adapm.segment import Segment
from adapm.simulator.frames import Type
from adapm.simulator.runs import OTHERS
from lanes import FOREVER, Make, deliver, rows_of, state, step, types, worlds
from world import World

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


# ---- on intent


def test_replicate_only_replicates_what_one_node_alone_wants(make: Make) -> None:
    world = make(technique=techniques.named("replicate-only"))
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 0, 3)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    assert (state(world, 0, row), state(world, 1, row)) == (REPLICA, OWNED)
    world.push(world.workers[0], 0, [row])
    step(world, world.workers[0], 3)
    world.drain()
    assert (state(world, 0, row), state(world, 1, row)) == (ABSENT, OWNED)
    world.check_rest()


def test_replicate_only_leaves_a_row_with_its_home_when_that_alone_does_not_want_it(make: Make) -> None:
    world = make(technique=techniques.named("replicate-only"))
    row = rows_of(world, 1)[0]
    world.intent(world.workers[1], 0, [row], 0, 2)
    world.intent(world.workers[0], 0, [row], 0, FOREVER)
    world.drain()
    step(world, world.workers[1], 3)
    world.drain()
    assert (state(world, 0, row), state(world, 1, row)) == (REPLICA, OWNED)
    world.check_rest()


@pytest.mark.parametrize("name", ["relocate-only", "lapse"])
def test_relocation_takes_a_row_from_who_wants_it_too_and_leaves_no_replica(make: Make, name: str) -> None:
    world = make(technique=techniques.named(name))
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [row], 0, FOREVER)
    world.drain()
    assert (state(world, 0, row), state(world, 1, row)) == (OWNED, ABSENT)
    assert world.lanes[1].inspect(0, row).intents == 1, "it is wanted on, without a copy"
    world.intent(other, 0, [row], 0, FOREVER)
    world.drain()
    assert (state(world, 0, row), state(world, 1, row)) == (ABSENT, OWNED)
    assert world.lanes[1].inspect(0, row).intents == 2
    world.lanes[1].worker_gone(0)
    world.lanes[0].worker_gone(0)
    world.drain()
    assert [world.lanes[node].inspect(0, row).intents for node in (0, 1)] == [0, 0]


def test_a_row_is_relocated_at_its_owners_tick_and_once_for_each_who_asked(make: Make) -> None:
    world = make(nodes=3, technique=techniques.named("relocate-only"))
    row = rows_of(world, 2)[0]
    for worker in world.workers[:2]:
        world.intent(worker, 0, [row], 0, FOREVER)
        world.tick(worker.node)
    assert deliver(world, 0, 2) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 1, 2) == [Type.WANT, Type.ROUND_END]
    assert types(world, 2, 0) == [Type.REPLY_END], "replies do not wait, what was asked for does"
    assert world.lanes[2].inspect(0, row).asked == (0, 1)
    assert not world.lanes[2].rest()
    world.tick(2)
    assert deliver(world, 2, 0) == [Type.REPLY_END, Type.GRANT, Type.FORWARDED_WANT]
    assert (state(world, 0, row), world.lanes[0].inspect(0, row).asked) == (OWNED, (1,))
    world.drain()
    assert state(world, 1, row) is OWNED
    world.check_rest()


@pytest.mark.parametrize(("name", "asks"), [("adaptive", False), ("immediate", True), ("lapse", True)])
def test_intents_wait_for_their_clock_or_do_not(make: Make, name: str, asks: bool) -> None:
    world = make(technique=techniques.named(name))
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 1_000_000, 10)
    world.tick(0)
    assert (state(world, 0, row) is PENDING) == asks
    assert (Type.WANT in types(world, 0, 1)) == asks


def test_static_leaves_every_row_at_its_home_whatever_is_signalled(make: Make) -> None:
    world = make(technique=techniques.named("static"))
    rows = rows_of(world, 1)
    world.intent(world.workers[0], 0, rows, 0, FOREVER)
    world.drain()
    assert [state(world, 0, row) for row in rows] == [ABSENT] * len(rows)
    assert world.lanes[0].rest(), "nothing was written down"
    world.push(world.workers[0], 0, rows)
    world.pull(world.workers[0], 0, rows)
    world.sync(world.workers[0])
    world.drain()
    assert not world.workers[0].open
    world.check_rest()


# ---- everywhere from the start


def test_full_has_every_row_on_every_node_and_refreshes_them(make: Make) -> None:
    world = make(nodes=3, technique=techniques.named("full"))
    row = rows_of(world, 1)[0]
    for node in range(3):
        home = set(rows_of(world, node))
        assert all(state(world, node, r) is (OWNED if r in home else REPLICA) for r in range(32))
    world.push(world.workers[0], 0, [row])
    world.drain()
    assert [lane.inspect(0, row).value[0] for lane in world.lanes] == [1, 1, 1]
    for worker in world.workers:
        step(world, worker, 3)
    world.drain()
    assert [state(world, node, row) for node in range(3)] == [REPLICA, OWNED, REPLICA], "nothing of it ever ends"
    world.check_rest()


def test_nups_keeps_hot_rows_everywhere_and_relocates_the_others(make: Make) -> None:
    world = make(technique=techniques.named("nups(5)"))  # counts fall with the keys
    hot = next(r for r in rows_of(world, 1) if r < 5)
    cold = next(r for r in rows_of(world, 1) if r >= 5)
    assert (state(world, 0, hot), state(world, 1, hot)) == (REPLICA, OWNED)
    assert (state(world, 0, cold), state(world, 1, cold)) == (ABSENT, OWNED)
    world.intent(world.workers[0], 0, [hot, cold], 0, 2)
    world.drain()
    step(world, world.workers[0], 3)
    world.drain()
    assert (state(world, 0, hot), state(world, 1, hot)) == (REPLICA, OWNED)
    assert (state(world, 0, cold), state(world, 1, cold)) == (OWNED, ABSENT)
    world.check_rest()


def test_keeping_rows_that_there_is_no_room_for_is_refused() -> None:
    table = Table("t", rows=64, dim=1)
    with (
        Segment.create([table], nodes=2, workers=0, capacity=[40]) as segment,
        contextlib.closing(Lane(segment, [], reserve_bytes=0)) as lane,
    ):
        lane.populate(0, table)
        with pytest.raises(OutOfMemory):
            lane.keep(0, np.arange(64))


# ---- on a miss


def missed(world: World, row: int) -> None:
    """Worker 0 pulls it, and its node takes the request."""
    world.pull(world.workers[0], 0, [row])
    world.serve(0)


@pytest.mark.parametrize("name", ["essp", "ssp(2)"])
def test_a_pull_that_misses_waits_for_a_copy_and_sets_it_up(make: Make, name: str) -> None:
    world = make(technique=techniques.named(name))
    row = rows_of(world, 1)[0]
    missed(world, row)
    assert world.workers[0].open, "it waits"
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    assert not world.workers[0].open
    assert state(world, 0, row) is REPLICA


def test_essp_keeps_a_copy_for_good_and_fresh(make: Make) -> None:
    world = make(technique=techniques.named("essp"))
    row = rows_of(world, 1)[0]
    missed(world, row)
    world.drain()
    step(world, world.workers[0], 50)
    world.push(world.workers[1], 0, [row])
    world.drain()
    assert state(world, 0, row) is REPLICA
    assert world.lanes[0].inspect(0, row).value[1] == 1
    world.check_rest()


def test_a_push_that_misses_goes_to_the_owner_and_leaves_nothing(make: Make) -> None:
    world = make(technique=techniques.named("essp"))
    row = rows_of(world, 1)[0]
    world.push(world.workers[0], 0, [row])
    world.drain()
    assert state(world, 0, row) is ABSENT
    assert world.lanes[1].inspect(0, row).value[0] == 1


def test_ssp_gives_a_copy_up_when_its_worker_is_so_many_clocks_further(make: Make) -> None:
    world = make(technique=techniques.named("ssp(2)"))
    row = rows_of(world, 1)[0]
    missed(world, row)
    world.drain()
    for expected in (REPLICA, REPLICA, ABSENT):
        step(world, world.workers[0])
        world.drain()
        assert state(world, 0, row) is expected
    world.check_rest()


def test_ssp_asks_again_for_a_copy_that_is_too_old_for_another_worker(make: Make) -> None:
    world = make(workers=2, technique=techniques.named("ssp(1)"))
    slow, fast, remote = world.workers[0], world.workers[1], world.workers[2]
    row = rows_of(world, 1)[0]
    missed(world, row)
    world.drain()
    world.pull(fast, 0, [row])
    assert not fast.open, "the copy is one for both"
    world.push(remote, 0, [row])
    for _ in range(2):  # in which no node ticks: the copy is there, and as it was
        world.advance(fast)
    assert (state(world, 0, row), world.lanes[0].inspect(0, row).value[remote.id]) == (REPLICA, 0)
    world.pull(slow, 0, [row])
    assert not slow.open, "to the other one it is young enough"
    world.push(slow, 0, [row])
    world.pull(fast, 0, [row])
    world.serve(0)
    assert fast.open
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.DROP, Type.WANT, Type.ROUND_END]
    assert state(world, 0, row) is PENDING
    world.drain()
    assert not fast.open
    assert (state(world, 0, row), world.lanes[0].inspect(0, row).value[remote.id]) == (REPLICA, 1)
    world.check_rest()


def test_ssp_does_not_take_for_young_what_was_asked_for_before_the_clock_began(make: Make) -> None:
    world = make(technique=techniques.named("ssp(0)"))
    row = rows_of(world, 1)[0]
    missed(world, row)
    world.tick(0)
    deliver(world, 0, 1)  # the owner's answer is under way ...
    world.push(world.workers[1], 0, [row])
    world.advance(world.workers[0])  # ... when the next clock begins, and a pull of that wants what is now
    missed(world, row)
    deliver(world, 1, 0)
    assert len(world.workers[0].open) == 1, "the first pull has its row, the second does not"
    world.drain()
    assert not world.workers[0].open
    world.check_rest()


def test_ssp_takes_a_copy_for_as_old_as_what_it_answers_and_not_as_its_arrival(make: Make) -> None:
    world = make(technique=techniques.named("ssp(0)"))
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    missed(world, row)
    world.tick(0)
    deliver(world, 0, 1)  # the owner's answer is under way ...
    world.push(other, 0, [row])
    world.advance(mine)
    world.tick(0)  # ... when the next clock begins, and still when the node has ticked in that
    deliver(world, 1, 0)
    assert not mine.open, "the pull of the clock before has its row"
    world.pull(mine, 0, [row])
    assert mine.open, "that of this clock finds the copy too old"
    world.drain()
    assert not mine.open
    assert world.lanes[0].inspect(0, row).value[other.id] == 1
    world.check_rest()


# ---- at random


@pytest.mark.parametrize("name", OTHERS)
def test_random_schedules_keep_every_invariant(name: str) -> None:
    for seed in range(6):
        print(f"seed {seed}")
        world = test_lane_random.run_schedule(seed, technique=techniques.named(name))
        try:
            world.drain()
            world.check_rest()
            for worker in world.workers:  # the last intents expire
                for _ in range(20):
                    world.advance(worker)
            world.drain()
            world.check_rest()
        finally:
            world.close()
