"""Rows of which a further intent is in sight: they stay where they are, until it is clear that nobody wants them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapm import techniques
from adapm.engine import RowState
from adapm.simulator.frames import Type
from lanes import FOREVER, Make, deliver, rows_of, state, step, types, worlds

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED
FAR = 1000.0  # ticks: more than any clock here, even for a worker that stands still most of the time
LATER = 500  # a clock for which no lane acts at once


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


@pytest.mark.parametrize(("sight", "then"), [(FAR, REPLICA), (1.0, ABSENT), (0.0, ABSENT)])
def test_a_replica_stays_while_another_intent_is_in_sight(make: Make, sight: float, then: RowState) -> None:
    world = make(sight=sight)
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, FOREVER)
    world.intent(mine, 0, [row], 0, 1)
    world.intent(mine, 0, [row], LATER, 1)
    world.drain()
    step(world, mine, 3)
    world.drain()
    world.check_rest()
    assert state(world, 0, row) is then
    assert world.lanes[0].inspect(0, row)[2:4] == (0, then is REPLICA)  # active, foreseen


def test_a_row_that_arrives_after_its_intent_has_ended_stays_for_the_next(make: Make) -> None:
    world = make(sight=FAR)
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [row], 0, 1)
    world.intent(mine, 0, [row], LATER, 1)
    world.tick(0)
    step(world, mine, 3)
    assert state(world, 0, row) is PENDING
    world.drain()
    world.check_rest()
    assert state(world, 0, row) is REPLICA


def test_an_owner_keeps_a_row_that_it_will_want(make: Make) -> None:
    world = make(sight=FAR)
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], LATER, 1)
    world.tick(1)
    world.intent(mine, 0, [row], 0, FOREVER)
    world.tick(0)
    deliver(world, 0, 1)
    assert types(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    world.drain()
    world.check_rest()
    assert (state(world, 0, row), state(world, 1, row)) == (REPLICA, OWNED)


def test_an_owner_grants_a_row_only_when_nothing_is_in_sight_any_more(make: Make) -> None:
    world = make(sight=FAR)
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, 1)
    world.intent(other, 0, [row], LATER, 1)
    world.tick(1)
    world.intent(mine, 0, [row], 0, FOREVER)
    world.drain()
    step(world, other, 3)
    world.drain()
    world.check_rest()
    assert (state(world, 0, row), state(world, 1, row)) == (REPLICA, OWNED)
    step(world, other, LATER)
    world.drain()
    world.check_rest()
    assert (state(world, 0, row), state(world, 1, row)) == (OWNED, ABSENT)


@pytest.mark.parametrize("owner", [False, True])
@pytest.mark.parametrize("end", ["late", "gone"])
def test_a_row_goes_when_what_was_in_sight_will_not_come(make: Make, end: str, owner: bool) -> None:
    world = make(sight=FAR)
    row = rows_of(world, 0 if owner else 1)[0]
    mine, other = world.workers
    wants = [lambda: world.intent(mine, 0, [row], 0, 1), lambda: world.intent(other, 0, [row], 0, FOREVER)]
    for want in wants if owner else wants[::-1]:  # the owner's first: the other gets a replica
        want()
        world.intent(mine, 0, [row], LATER, 1)
        world.drain()
    step(world, mine, 3)
    world.drain()
    assert state(world, 0, row) is (OWNED if owner else REPLICA)
    assert world.lanes[0].inspect(0, row)[2:4] == (0, 2)
    if end == "gone":
        world.lanes[0].worker_gone(0)
    else:
        for _ in range(LATER):  # between two ticks
            world.advance(mine)
    world.drain()
    world.check_rest()
    assert world.segments[0].statistics().intents_late == (2 if end == "late" else 0)
    assert (state(world, 0, row), state(world, 1, row)) == (ABSENT, OWNED)


def test_what_was_acted_on_in_part_ends_and_the_rest_is_forgotten(make: Make) -> None:
    world = make(sight=FAR, tick_keys=8)
    keys = rows_of(world, 1)[:11]
    world.intent(world.workers[1], 0, keys, 0, FOREVER)
    world.drain()
    world.intent(world.workers[0], 0, keys, 0, FOREVER)
    world.tick(0)
    views = [world.lanes[0].inspect(0, key) for key in keys]
    assert sorted({(view.intents, view.foreseen) for view in views}) == [(0, 1), (1, 0)]
    world.lanes[0].worker_gone(0)
    world.drain()
    world.check_rest()
    views = [world.lanes[0].inspect(0, key) for key in keys]
    assert {(view.state, view.intents, view.foreseen) for view in views} == {(ABSENT, 0, 0)}


def test_more_intents_of_a_row_than_two_bytes_count(make: Make) -> None:
    world = make(sight=FAR)
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    many = 70_000
    world.intent(other, 0, [row], 0, FOREVER)
    world.intent(mine, 0, [row], 0, 1)
    world.intent(mine, 0, [row] * many, LATER, 1)
    world.drain()
    assert world.lanes[0].inspect(0, row)[2:4] == (1, many)
    step(world, mine, LATER)
    world.drain()
    assert world.lanes[0].inspect(0, row)[2:4] == (many, 0)
    step(world, mine)
    world.drain()
    world.check_rest()
    assert state(world, 0, row) is ABSENT


@pytest.mark.parametrize("name", ["immediate", "relocate-only", "static"])
def test_techniques_that_do_not_ask_do_not_count(make: Make, name: str) -> None:
    world = make(sight=FAR, technique=techniques.named(name))
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], LATER, 1)
    world.tick(0)
    assert world.lanes[0].inspect(0, row).foreseen == 0
    world.drain()


def test_wait_sync_satisfies_an_intent_that_was_not_in_sight(make: Make) -> None:
    world = make(sight=FAR, tick_keys=1)
    keys = rows_of(world, 1)[:6]
    mine = world.workers[0]
    for key in keys:
        world.intent(mine, 0, [key], 0, FOREVER)
    world.sync(mine)
    world.drain()
    assert not mine.open
    assert {state(world, 0, key) for key in keys} == {OWNED}
