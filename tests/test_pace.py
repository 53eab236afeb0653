"""When replicas are refreshed, and how far apart ticks are: what may wait, and what never does."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np
import pytest

from adapm.engine import Pace, RowState
from adapm.simulator.frames import Type
from lanes import FOREVER, Make, deliver, pass_on, rows_of, shared_row, state, types, worlds
from world import World

SLOW = Pace(row=10.0, number=0.0, most=50.0)  # ten ticks for each row that a refresh moves, on either side


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


def tick_until_sent(world: World, node: int, to: int, limit: int = 100) -> int:
    for ticks in range(1, limit):
        world.tick(node)
        if types(world, node, to):
            return ticks
    raise AssertionError(f"nothing sent in {limit} ticks")


def exchange(world: World, holder: int = 0, owner: int = 1) -> None:
    deliver(world, holder, owner)
    deliver(world, owner, holder)


def indebted(make: Make, pace: Pace = SLOW) -> tuple[World, int]:
    """A replica at node 0 whose delta has just gone, so that the next has to wait; and there is one."""
    world = make(pace=pace)
    row = shared_row(world)
    world.push(world.workers[0], 0, [row])
    assert tick_until_sent(world, 0, 1) == 1, "the first refresh waits for nothing"
    exchange(world)
    world.push(world.workers[0], 0, [row])
    return world, row


def test_a_refresh_waits_until_the_last_one_is_paid_for(make: Make) -> None:
    world, _ = indebted(make)
    assert tick_until_sent(world, 0, 1) == 10
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]


def test_updates_of_the_meantime_travel_as_one(make: Make) -> None:
    world, row = indebted(make)
    for _ in range(7):
        world.push(world.workers[0], 0, [row])
        world.tick(0)
    tick_until_sent(world, 0, 1)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    world.drain()
    world.check_rest()
    assert world.lanes[1].inspect(0, row).value[0] == 9.0


def test_what_a_refresh_costs_grows_with_the_row(make: Make) -> None:
    world, _ = indebted(make, Pace(row=0.0, number=4.0, most=50.0))
    assert tick_until_sent(world, 0, 1) == 4 * world.row_len[0]


def test_an_exchange_with_a_peer_has_its_price_however_few_rows_are_in_it(make: Make) -> None:
    world, _ = indebted(make, Pace(row=0.0, number=0.0, most=50.0, frame=7.0))
    assert tick_until_sent(world, 0, 1) == 7


def test_a_refresh_does_not_wait_for_good(make: Make) -> None:
    world, _ = indebted(make, Pace(row=1e9, number=0.0, most=20.0))
    assert tick_until_sent(world, 0, 1) == 21, "20 from the tick that noticed the change"


def test_a_refresh_that_a_peer_asked_for_is_not_repeated(make: Make) -> None:
    """Otherwise two nodes that share rows would refresh them twice as often as they need to, each at its own time."""
    world = make(pace=Pace(row=1e9, number=0.0, most=20.0))
    mine, others = shared_row(world, owner=0, holder=1), shared_row(world)
    for worker in world.workers:
        world.push(worker, 0, [mine, others])
    world.drain()
    for _ in range(12):
        world.tick(0)
    for worker in world.workers:
        world.push(worker, 0, [mine, others])
    for _ in range(9):
        world.tick(1)
    assert tick_until_sent(world, 0, 1) == 21
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END, Type.NUDGE]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END], "what its own workers changed, too"
    assert tick_until_sent(world, 1, 0) == 1
    exchange(world, 1, 0)
    for worker in world.workers:
        world.push(worker, 0, [mine, others])
    assert tick_until_sent(world, 1, 0) == 21


def test_holders_are_told_of_changes_when_it_is_paid_for(make: Make) -> None:
    world, row = indebted(make)
    for _ in range(9):
        world.push(world.workers[1], 0, [row])
        world.tick(1)
    assert not types(world, 1, 0), "it applied a delta, which costs as much"
    assert tick_until_sent(world, 1, 0) == 1
    assert deliver(world, 1, 0) == [Type.NUDGE]
    assert tick_until_sent(world, 0, 1) == 1, "who is asked to refresh does"
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]


def test_wants_and_grants_do_not_wait_and_bring_no_refresh(make: Make) -> None:
    world, row = indebted(make)
    world.push(world.workers[1], 0, [row])
    wanted = rows_of(world, 1)[1]
    world.intent(world.workers[0], 0, [wanted], 0, FOREVER)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.GRANT, Type.REPLY_END], "the stale row stays behind"
    assert world.lanes[0].inspect(0, row).dirty


def test_a_row_that_only_its_holder_wants_goes_there_at_once(make: Make) -> None:
    world = make(pace=SLOW)
    row = rows_of(world, 1)[0]
    world.intent(world.workers[1], 0, [row], 0, 3)
    world.intent(world.workers[0], 0, [row], 0, FOREVER)
    world.drain()
    world.push(world.workers[0], 0, [row])
    tick_until_sent(world, 0, 1)
    exchange(world)
    world.push(world.workers[0], 0, [row])
    for _ in range(3):
        world.advance(world.workers[1])
    world.tick(1)
    assert deliver(world, 1, 0) == [Type.NUDGE]
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.ROUND_END], "its delta can wait: what it is granted contains it"
    assert deliver(world, 1, 0) == [Type.GRANT_CURRENT, Type.REPLY_END]
    assert world.lanes[0].inspect(0, row).value[0] == 2.0


def test_a_drop_does_not_wait(make: Make) -> None:
    world = make(pace=SLOW)
    row = rows_of(world, 1)[0]
    world.intent(world.workers[1], 0, [row], 0, FOREVER)
    world.intent(world.workers[0], 0, [row], 0, 2)
    world.drain()
    world.push(world.workers[0], 0, [row])
    tick_until_sent(world, 0, 1)
    exchange(world)
    world.push(world.workers[0], 0, [row])
    for _ in range(2):
        world.advance(world.workers[0])
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.DROP, Type.ROUND_END]
    assert state(world, 0, row) is RowState.ABSENT


def test_a_sync_does_not_wait(make: Make) -> None:
    world, row = indebted(make)
    world.sync(world.workers[0])
    world.serve(0)
    assert world.lanes[0].urgent
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    deliver(world, 1, 0)
    assert not world.workers[0].open
    assert world.lanes[1].inspect(0, row).value[0] == 2.0


def test_a_refresh_that_is_asked_for_brings_what_is_not_marked_yet(make: Make) -> None:
    """A barrier: what the owner's workers pushed is with everyone, whatever the pace."""
    world, row = indebted(make)
    world.push(world.workers[1], 0, [row])
    world.tick(1)
    world.lanes[0].fresh()
    assert world.lanes[0].urgent
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    values = [lane.inspect(0, row).value for lane in world.lanes]
    np.testing.assert_array_equal(*values)


def test_waits_are_counted(make: Make) -> None:
    world, _ = indebted(make)
    before = world.segments[0].statistics()
    tick_until_sent(world, 0, 1)
    after = world.segments[0].statistics()
    assert after.refreshes == before.refreshes + 1
    assert after.refresh_wait_us - before.refresh_wait_us == after.refresh_wait_most_us == 9_000


# ---- the gap between ticks


def gaps(world: World, lead: int, clocks_per_tick: float, clocks: int = 200) -> list[int]:
    """In how many ticks node 0 wants the next, each time, with a worker of this speed and intents of this lead."""
    worker, now, row, found = world.workers[0], 0, shared_row(world), [1]
    while now * clocks_per_tick < clocks:
        now += found[-1]
        while world.clock(worker) < now * clocks_per_tick:
            world.intent(worker, 0, [row], world.clock(worker) + lead, 1)
            world.advance(worker)
        world.push(worker, 0, [row])  # there is always something to send
        found.append(max(1, world.lanes[0].tick(found[-1])))
        world.collect(0)
        pass_on(world)
    return found


@pytest.mark.parametrize(
    ("lead", "speed", "ticks"),
    [
        (20, 2.0, 1),  # two clocks a tick: at every tick
        (20, 0.5, 4),  # two clocks pass in four ticks
        (20, 0.01, 8),  # but no longer than eight
        (1, 0.5, 1),  # the next clock's intents come now
        (5, 0.1, 5),  # half a clock
    ],
)
def test_ticks_are_as_far_apart_as_clocks_and_leads_allow(make: Make, lead: int, speed: float, ticks: int) -> None:
    found = gaps(make(pace=SLOW), lead, speed)
    assert statistics.median(found[len(found) // 2 :]) == pytest.approx(ticks, abs=1)
