"""What a lane decides, one decision at a time: who gets a row, for how long, and what travels meanwhile."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest

from adapm.engine import Event, RowState
from adapm.simulator.frames import HEAD, MORE, Type
from lanes import FOREVER, Make, deliver, on_link, pass_on, rows_of, shared_row, state, step, types, worlds
from world import World

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


# ---- who gets a row


def test_the_only_node_with_intent_gets_the_row_and_keeps_it(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 0, 1)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.GRANT, Type.REPLY_END]
    assert (state(world, 0, row), state(world, 1, row)) == (OWNED, ABSENT)
    step(world, world.workers[0], 3)
    world.drain()
    world.check_rest()
    assert state(world, 0, row) is OWNED


def test_a_row_is_replicated_exactly_where_and_as_long_as_several_nodes_want_it(make: Make) -> None:
    world = make(nodes=3)
    row = rows_of(world, 0)[0]
    for worker, clocks in zip(world.workers, (9, 6, 3), strict=True):
        world.intent(worker, 0, [row], 0, clocks)
    world.drain()
    for clock in range(9):
        held = [state(world, node, row) for node in range(3)]
        assert held == [OWNED, REPLICA if clock < 6 else ABSENT, REPLICA if clock < 3 else ABSENT]
        for worker in world.workers:
            step(world, worker)
        world.drain()
        world.check_rest()


def test_an_expired_replica_leaves_with_its_last_delta(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    world.intent(world.workers[1], 0, [row], 0, FOREVER)
    world.drain()
    world.intent(world.workers[0], 0, [row], 0, 2)
    world.drain()
    assert state(world, 0, row) is REPLICA
    world.advance(world.workers[0])
    world.advance(world.workers[0])
    world.push(world.workers[0], 0, [row])
    world.tick(0)
    assert state(world, 0, row) is ABSENT
    assert types(world, 0, 1) == [Type.DELTA, Type.DROP, Type.ROUND_END]
    assert len(world.links[0, 1]) == 1
    deliver(world, 0, 1)
    assert world.lanes[1].inspect(0, row).value[0] == 1


def test_an_unchanged_replica_is_dropped_without_a_delta(make: Make) -> None:
    world = make()
    shared_row(world)
    world.lanes[0].worker_gone(0)
    world.tick(0)
    assert types(world, 0, 1) == [Type.DROP, Type.ROUND_END]


def test_a_new_intent_keeps_a_replica_whose_drop_is_due(make: Make) -> None:
    world = make()
    first, second = rows_of(world, 1)[:2]
    mine, other = world.workers
    world.intent(other, 0, [first, second], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [first, second], 0, 1)
    world.drain()
    world.push(mine, 0, [second])
    world.tick(0)  # a round is open: the drop can not leave
    step(world, mine)
    world.intent(mine, 0, [first], 1, 5)
    world.tick(0)
    world.drain()
    assert (state(world, 0, first), state(world, 0, second)) == (REPLICA, ABSENT)
    assert world.segments[0].statistics().replicas_dropped == 1


def test_the_last_holder_gets_the_row_as_current_when_it_is(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.lanes[1].worker_gone(0)
    world.tick(1)
    assert deliver(world, 1, 0) == [Type.NUDGE]
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.GRANT_CURRENT, Type.REPLY_END]
    assert (state(world, 0, row), state(world, 1, row)) == (OWNED, ABSENT)


@pytest.mark.parametrize("when", ["before the tick", "after the nudge"])
def test_the_last_holder_gets_the_row_itself_when_it_is_behind(make: Make, when: str) -> None:
    world = make()
    row = shared_row(world)
    if when == "before the tick":
        world.push(world.workers[1], 0, [row])
    world.lanes[1].worker_gone(0)
    world.tick(1)
    assert deliver(world, 1, 0) == [Type.NUDGE]
    if when == "after the nudge":
        world.push(world.workers[1], 0, [row])
    world.tick(0)
    deliver(world, 0, 1)
    assert deliver(world, 1, 0) == [Type.GRANT, Type.REPLY_END]
    world.drain()
    assert world.lanes[0].inspect(0, row).value[1] == 1


def test_a_granted_replica_keeps_what_it_has_not_sent(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.lanes[1].worker_gone(0)
    world.tick(1)
    deliver(world, 1, 0)
    world.tick(0)
    world.push(world.workers[0], 0, [row])  # behind the round
    deliver(world, 0, 1)
    assert deliver(world, 1, 0) == [Type.GRANT_CURRENT, Type.REPLY_END]
    assert world.lanes[0].inspect(0, row).value[0] == 1
    assert not world.lanes[0].inspect(0, row).dirty


def test_an_owner_that_wants_its_row_again_does_not_grant_it(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    mine, other = world.workers
    world.intent(other, 0, [row], 0, 1)
    world.intent(other, 0, [row], 2, 1)
    world.tick(1)
    world.intent(mine, 0, [row], 0, FOREVER)
    world.drain()
    assert world.lanes[1].inspect(0, row).intents == 2  # both are within the window
    step(world, other, 2)
    assert types(world, 1, 0) == []
    step(world, other)
    assert types(world, 1, 0) == [Type.NUDGE]
    world.intent(other, 0, [row], 3, 1)
    world.tick(1)  # while the holder's round is under way
    deliver(world, 1, 0)
    world.tick(0)
    deliver(world, 0, 1)
    assert types(world, 1, 0) == [Type.REPLY_END]
    assert state(world, 1, row) is OWNED
    deliver(world, 1, 0)
    step(world, other)
    world.drain()
    assert state(world, 0, row) is OWNED


def test_a_grant_that_was_put_off_is_forgotten_when_another_node_has_come_to_hold_the_row(make: Make) -> None:
    world = make(nodes=3, round_bytes=4)  # a grant per reply
    first, row = rows_of(world, 1)[:2]
    world.intent(world.workers[1], 0, [first, row], 0, 1)
    world.drain()
    world.intent(world.workers[0], 0, [first], 0, FOREVER)
    world.intent(world.workers[0], 0, [row], 0, 1)
    world.drain()
    step(world, world.workers[1])  # node 0 is the only holder of both
    world.intent(world.workers[2], 0, [row], 0, FOREVER)
    world.tick(2)
    deliver(world, 2, 1)
    step(world, world.workers[0])
    assert Type.DROP in deliver(world, 0, 1)
    assert deliver(world, 1, 0) == [Type.NUDGE, Type.GRANT_CURRENT, Type.REPLY_END]
    assert (state(world, 0, first), state(world, 0, row)) == (OWNED, ABSENT)
    world.intent(world.workers[0], 0, [row], 1, FOREVER)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    assert types(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    world.drain()
    world.check_rest()
    assert [state(world, node, row) for node in range(3)] == [REPLICA, OWNED, REPLICA]


def test_a_want_is_forwarded_along_hints_and_the_new_owner_tells_the_home(make: Make) -> None:
    world = make(nodes=3)
    row = rows_of(world, 0)[0]
    world.intent(world.workers[1], 0, [row], 0, 1)
    world.drain()
    step(world, world.workers[1])
    assert world.lanes[2].inspect(0, row).hint == (0, 0)
    world.intent(world.workers[2], 0, [row], 0, FOREVER)
    world.tick(2)
    assert deliver(world, 2, 0) == [Type.WANT, Type.ROUND_END]
    assert deliver(world, 0, 1) == [Type.FORWARDED_WANT]
    assert types(world, 1, 2) == [Type.GRANT]
    deliver(world, 1, 2)
    assert not types(world, 2, 0), "the notice waits for company"
    world.tick(2)
    assert types(world, 2, 0) == [Type.MOVED]
    assert world.lanes[0].inspect(0, row).hint == (1, 1)
    deliver(world, 2, 0)
    assert world.lanes[0].inspect(0, row).hint == (2, 2)
    assert world.segments[0].statistics().forwards == 1


def test_notices_of_moves_wait_for_each_other_until_the_next_tick(make: Make) -> None:
    world = make(nodes=4)
    rows = rows_of(world, 0)[:2]
    for worker, row in zip(world.workers[1:3], rows, strict=True):
        world.intent(worker, 0, [row], 0, 1)
        world.drain()
        step(world, worker)
    world.intent(world.workers[3], 0, rows, 0, FOREVER)
    world.tick(3)
    for a, b in ((3, 0), (0, 3), (0, 1), (0, 2), (1, 3), (2, 3)):  # two owners grant in a frame each
        deliver(world, a, b)
    frames = world.segments[3].statistics().frames_out
    world.tick(3)
    assert set(deliver(world, 3, 0)) == {Type.MOVED}
    assert world.segments[3].statistics().frames_out == frames + 1
    assert [world.lanes[0].inspect(0, row).hint for row in rows] == [(3, 2)] * 2


def test_a_home_that_hears_of_two_moves_in_the_wrong_order_believes_in_the_later_one(make: Make) -> None:
    world = make(nodes=4)
    row = rows_of(world, 0)[0]
    for path in ([1, 0, 1], [2, 0, 1, 2], [3, 0, 1, 2, 3]):  # of the want, and of the row at its end
        worker = world.workers[path[0]]
        world.intent(worker, 0, [row], 0, 1)
        world.tick(worker.node)
        for a, b in pairwise(path):
            deliver(world, a, b)
        assert state(world, worker.node, row) is OWNED
        step(world, worker)
    assert world.lanes[0].inspect(0, row).hint == (1, 1)
    assert deliver(world, 3, 0) == [Type.MOVED]
    assert deliver(world, 2, 0) == [Type.MOVED]
    assert world.lanes[0].inspect(0, row).hint == (3, 3)


def test_answers_teach_where_the_owner_is(make: Make) -> None:
    world = make(nodes=3)
    row = rows_of(world, 0)[0]
    world.intent(world.workers[1], 0, [row], 0, FOREVER)
    world.drain()
    world.pull(world.workers[2], 0, [row])
    world.drain()
    assert world.lanes[2].inspect(0, row).hint == (1, 1)
    world.push(world.workers[2], 0, [row])
    world.serve(2)
    assert types(world, 2, 1) == [Type.PUSH]
    world.drain()


# ---- rounds


def test_one_round_is_unanswered_at_a_time(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.push(world.workers[0], 0, [row])
    world.tick(0)
    world.push(world.workers[0], 0, [row])
    world.tick(0)
    assert types(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    world.tick(0)
    assert types(world, 0, 1) == [Type.DELTA, Type.ROUND_END]


def test_own_updates_stay_visible_whatever_the_reply_brings(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine, other = world.workers
    world.push(mine, 0, [row])
    world.tick(0)
    world.push(mine, 0, [row])  # behind the round
    world.push(other, 0, [row])
    world.tick(1)
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    world.pull(mine, 0, [row])
    assert world.lanes[0].inspect(0, row).value.tolist() == [2, 1]


def test_a_holder_is_nudged_once_until_its_round_comes(make: Make) -> None:
    world = make()
    row = shared_row(world)
    for _ in range(3):
        world.push(world.workers[1], 0, [row])
        world.tick(1)
    assert types(world, 1, 0) == [Type.NUDGE]
    deliver(world, 1, 0)
    world.tick(0)
    assert deliver(world, 0, 1) == [Type.ROUND_END]
    assert deliver(world, 1, 0) == [Type.STATE, Type.REPLY_END]
    world.push(world.workers[1], 0, [row])
    world.tick(1)
    assert types(world, 1, 0) == [Type.NUDGE]


def test_a_nudge_that_meets_an_open_round_asks_for_no_other(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.push(world.workers[0], 0, [row])
    world.tick(0)
    world.push(world.workers[1], 0, [row])
    world.tick(1)
    assert deliver(world, 1, 0) == [Type.NUDGE]
    assert deliver(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    deliver(world, 1, 0)
    world.tick(0)
    assert types(world, 0, 1) == []


def reply_flags(world: World, a: int, b: int) -> list[int]:
    """Flags of the REPLY_ENDs under way."""
    found = []
    for frame in world.links[a, b]:
        at = 8
        while at < len(frame):
            _, size, kind, flags, *_ = HEAD.unpack_from(frame, at)
            if kind == Type.REPLY_END:
                found.append(flags)
            at += size
    return found


def test_the_budget_cuts_replies_and_says_that_there_is_more(make: Make) -> None:
    world = make(round_bytes=4)
    keys = rows_of(world, 1)[:3]
    for worker in world.workers[::-1]:
        world.intent(worker, 0, keys, 0, FOREVER)
        world.drain()
    world.push(world.workers[1], 0, keys)
    world.tick(1)
    for sent, flag in ((1, MORE), (1, MORE), (1, 0)):
        assert deliver(world, 1, 0) == [Type.NUDGE]
        world.tick(0)
        deliver(world, 0, 1)
        assert types(world, 1, 0) == [Type.STATE] * sent + [Type.REPLY_END]
        assert reply_flags(world, 1, 0) == [flag]
        deliver(world, 1, 0)
        world.tick(1)
    world.drain()
    world.check_rest()


def test_the_budget_cuts_rounds(make: Make) -> None:
    world = make(round_bytes=8)  # one row of two floats
    keys = rows_of(world, 1)[:3]
    world.intent(world.workers[0], 0, keys, 0, 1)
    world.tick(0)
    assert types(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    world.drain()
    assert all(state(world, 0, key) is OWNED for key in keys)


def test_a_tick_handles_so_many_keys_and_earlier_starts_first(make: Make) -> None:
    world = make(tick_keys=2)
    keys = rows_of(world, 1)[:4]
    world.intent(world.workers[0], 0, keys[:2], 3, 5)
    world.intent(world.workers[0], 0, keys[2:], 1, 5)
    assert world.tick(0)
    assert [state(world, 0, key) for key in keys] == [ABSENT, ABSENT, PENDING, PENDING]
    world.tick(0)
    assert [state(world, 0, key) for key in keys] == [PENDING] * 4


# ---- wants


def test_a_want_waits_for_the_answers_to_our_pushes(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    mine = world.workers[0]
    world.push(mine, 0, [row, row])
    world.serve(0)
    world.intent(mine, 0, [row], 0, FOREVER)
    world.tick(0)
    assert types(world, 0, 1) == [Type.PUSH, Type.PUSH]
    assert world.lanes[0].inspect(0, row).want == 1
    deliver(world, 0, 1)
    world.tick(0)
    assert types(world, 0, 1) == []
    assert deliver(world, 1, 0) == [Type.ACK, Type.ACK]
    world.tick(0)
    assert types(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    world.drain()
    world.check_rest()
    assert world.lanes[0].inspect(0, row).value[0] == 2


def test_an_unsent_want_that_nobody_needs_any_more_is_cancelled(make: Make) -> None:
    world = make()
    first, second, third = rows_of(world, 1)[:3]
    mine = world.workers[0]
    world.intent(mine, 0, [first], 0, FOREVER)
    world.tick(0)  # opens a round
    world.intent(mine, 0, [second, third], 0, 1)
    world.tick(0)
    assert (state(world, 0, second), state(world, 0, third)) == (PENDING, PENDING)
    world.push(mine, 0, [third])  # this one has something to bring home
    step(world, mine)
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    world.tick(0)
    assert (state(world, 0, second), state(world, 0, third)) == (ABSENT, PENDING)
    assert [item.row for item in on_link(world, 0, 1) if item.type is Type.WANT] == [third]
    world.drain()
    assert state(world, 1, second) is OWNED


def test_a_want_that_somebody_waits_for_is_not_cancelled(make: Make) -> None:
    world = make()
    first, second = rows_of(world, 1)[:2]
    mine = world.workers[0]
    world.intent(mine, 0, [first], 0, FOREVER)
    world.tick(0)
    world.intent(mine, 0, [second], 0, 1)
    world.tick(0)
    world.push(mine, 0, [second])
    world.pull(mine, 0, [second])
    world.serve(0)
    step(world, mine)
    assert world.segments[0].statistics().parked == 1
    world.drain()
    world.check_rest()
    assert world.segments[0].statistics().parked == 0


def test_the_pull_of_a_pending_row_waits_when_the_row_is_under_way_or_has_gained_something(make: Make) -> None:
    world = make()
    asked, clean, dirty = rows_of(world, 1)[:3]
    mine = world.workers[0]
    world.push(mine, 0, [clean, dirty])
    world.drain()
    world.intent(mine, 0, [asked], 0, FOREVER)
    world.tick(0)  # the want is in a round; those that follow wait for its answer
    world.intent(mine, 0, [clean, dirty], 0, FOREVER)
    world.tick(0)
    world.push(mine, 0, [dirty])
    world.pull(mine, 0, [asked, clean, dirty])
    world.serve(0)
    assert [i.row for i in on_link(world, 0, 1) if i.type is Type.PULL] == [clean]
    world.drain()
    assert not mine.open
    assert world.lanes[0].inspect(0, dirty).value[0] == 2


def test_a_pull_that_a_replica_has_overtaken_reads_the_replica(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer may be newer than the replica: whoever had seen that would see older values in the next pull."""
    seen: list[list[float]] = []
    monkeypatch.setattr(World, "_seen", lambda self, worker, table, key, found, need: seen.append(found.tolist()))
    world = make(nodes=3)
    mine, _, owner = world.workers
    row = rows_of(world, 1)[0]
    world.intent(owner, 0, [row], 0, FOREVER)
    world.drain()
    for _ in range(2):  # both go by way of the row's home
        world.pull(mine, 0, [row])
        world.serve(0)
    world.deliver(0, 1)
    assert deliver(world, 1, 2) == [Type.PULL]
    assert deliver(world, 2, 0) == [Type.ANSWER]  # from now on node 0 knows the owner
    world.deliver(0, 1)
    world.intent(mine, 0, [row], 0, FOREVER)
    world.tick(0)
    assert Type.WANT in deliver(world, 0, 2)
    assert Type.STATE in deliver(world, 2, 0)
    assert state(world, 0, row) is REPLICA
    world.push(owner, 0, [row])
    assert deliver(world, 1, 2) == [Type.PULL]
    assert deliver(world, 2, 0) == [Type.ANSWER]
    world.pull(mine, 0, [row])
    assert seen == [[0.0, 0.0, 0.0]] * 3
    world.drain()


# ---- intents


def test_a_late_intent_is_counted_and_not_acted_on(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    step(world, world.workers[0], 5)
    world.intent(world.workers[0], 0, [row, row], 1, 3)
    world.drain()
    assert state(world, 0, row) is ABSENT
    assert world.segments[0].statistics().intents_late == 2


def test_overlapping_and_repeated_intents_add_up(make: Make) -> None:
    world = make()
    first, second = rows_of(world, 1)[:2]
    mine = world.workers[0]
    world.intent(world.workers[1], 0, [first, second], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [first, first, second], 0, 2)
    world.intent(mine, 0, [first], 1, 3)  # [1, 4)
    world.drain()
    assert [world.lanes[0].inspect(0, row).intents for row in (first, second)] == [3, 1]
    step(world, mine, 2)
    assert [world.lanes[0].inspect(0, row).intents for row in (first, second)] == [1, 0]
    world.drain()
    assert (state(world, 0, first), state(world, 0, second)) == (REPLICA, ABSENT)
    step(world, mine, 2)
    world.drain()
    assert state(world, 0, first) is ABSENT


def test_intents_thousands_of_clocks_ahead_come_in_their_order(make: Make) -> None:
    world = make(rows=(64,))
    keys = rows_of(world, 1)[:6]
    mine = world.workers[0]
    starts = [9000, 5000, 2047, 1024, 1023, 40]
    for key, start in zip(keys, starts, strict=True):
        world.intent(mine, 0, [key], start, 1)
    acted: dict[int, int] = {}
    for clock in range(9100):
        world.tick(0)
        for key in keys:
            if world.lanes[0].inspect(0, key).intents:
                acted.setdefault(key, clock)
        world.advance(mine)
        pass_on(world)
    assert [key for key, _ in sorted(acted.items(), key=lambda item: item[1])] == keys[::-1]
    for key, start in zip(keys, starts, strict=True):
        assert 0 <= start - acted[key] <= 40
    assert world.segments[0].statistics().intents_ended == len(keys)


@pytest.mark.parametrize("ahead", [38, 5000, FOREVER])
def test_an_intent_that_starts_before_those_seen_so_far_is_not_late(make: Make, ahead: int) -> None:
    """A worker that has read far ahead may still ask for something soon."""
    world = make()
    later, soon = rows_of(world, 1)[:2]
    mine = world.workers[0]
    world.intent(mine, 0, [later], ahead, 1)
    world.tick(0)
    assert world.lanes[0].inspect(0, later).intents == (ahead == 38)  # within the window of the first tick
    step(world, mine, 22)  # slow clocks make the window small
    world.intent(mine, 0, [soon], 23, 1)
    world.tick(0)
    assert world.lanes[0].inspect(0, soon).intents == 1


@pytest.mark.parametrize("ahead", [38, 5000])
def test_wait_sync_waits_for_an_intent_that_starts_before_those_seen_so_far(make: Make, ahead: int) -> None:
    world = make(tick_keys=1)
    later, now, too = rows_of(world, 1)[:3]
    mine = world.workers[0]
    world.intent(mine, 0, [later], ahead, 1)
    step(world, mine, 22)
    world.intent(mine, 0, [now, too], 22, 1)
    world.sync(mine)
    world.drain()
    assert not mine.open
    assert (state(world, 0, now), state(world, 0, too)) == (OWNED, OWNED)


def test_a_long_intent_does_not_keep_short_ones_from_ending(make: Make) -> None:
    world = make()
    long, short = rows_of(world, 1)[:2]
    mine = world.workers[0]
    world.intent(mine, 0, [long], 0, FOREVER)
    world.tick(0)
    world.intent(mine, 0, [short], 0, 2)
    world.tick(0)
    assert [world.lanes[0].inspect(0, row).intents for row in (long, short)] == [1, 1]
    step(world, mine, 2)
    assert [world.lanes[0].inspect(0, row).intents for row in (long, short)] == [1, 0]


def test_an_intent_without_end_is_one(make: Make) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 0, 2**63 - 1)
    world.drain()
    step(world, world.workers[0], 5)
    assert world.lanes[0].inspect(0, row).intents == 1


def test_the_end_of_a_worker_ends_its_intents(make: Make) -> None:
    world = make(workers=2)
    own, both = rows_of(world, 1)[:2]
    mine, neighbour, other, _ = world.workers
    world.intent(other, 0, [own, both], 0, FOREVER)
    world.drain()
    world.intent(mine, 0, [own, both], 0, FOREVER)
    world.intent(neighbour, 0, [both], 0, FOREVER)
    world.drain()
    assert [world.lanes[0].inspect(0, row).intents for row in (own, both)] == [1, 2]
    world.intent(mine, 0, [own], 500, 1)  # not acted on yet, and never will be
    world.lanes[0].worker_gone(0)
    world.drain()
    world.check_rest()
    assert [world.lanes[0].inspect(0, row).intents for row in (own, both)] == [0, 1]
    assert (state(world, 0, own), state(world, 0, both)) == (ABSENT, REPLICA)


def test_the_end_of_a_worker_ends_an_intent_that_was_partly_handled(make: Make) -> None:
    world = make(tick_keys=3)
    keys = rows_of(world, 1)[:5]
    world.intent(world.workers[0], 0, keys, 0, FOREVER)
    world.tick(0)
    assert [world.lanes[0].inspect(0, key).intents for key in keys] == [1, 1, 1, 0, 0]
    world.lanes[0].worker_gone(0)
    world.drain()
    assert [world.lanes[0].inspect(0, key).intents for key in keys] == [0] * 5


# ---- wait_sync and refresh


def test_wait_sync_ends_when_the_main_copy_has_the_updates(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine = world.workers[0]
    world.push(mine, 0, [row])
    world.sync(mine)
    world.serve(0)
    world.tick(0)
    assert mine.open
    deliver(world, 0, 1)
    assert world.lanes[1].inspect(0, row).value[0] == 1
    assert mine.open
    deliver(world, 1, 0)
    assert not mine.open


def test_wait_sync_covers_updates_to_a_row_that_a_neighbour_made_dirty(make: Make) -> None:
    """The record of the dirty row is in the neighbour's ring, not in ours."""
    world = make(workers=2, rows=(32, 3000))
    first, second = rows_of(world, 1)[:2]
    mine, neighbour, other, _ = world.workers
    for worker in (other, mine):
        world.intent(worker, 0, [first, second], 0, FOREVER)
        world.drain()
    for _ in range(2):  # so many rows come and go that the list of pending ones is cleaned
        world.intent(mine, 1, list(range(3000)), 0, FOREVER)
        world.drain()
    world.push(mine, 0, [first])
    world.tick(0)  # opens a round
    world.push(neighbour, 0, [second])
    world.push(mine, 0, [second])
    world.sync(mine)
    world.serve(0)
    while mine.open:
        pass_on(world)
        world.tick(0)
    assert world.lanes[1].inspect(0, second).value[mine.id] == 1


def test_wait_sync_ends_although_the_row_is_dirty_all_the_time(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine, other = world.workers
    world.push(mine, 0, [row])
    world.sync(mine)
    world.serve(0)
    for _ in range(4):
        world.push(mine, 0, [row])
        world.push(other, 0, [row])
        world.tick(0)
        world.push(mine, 0, [row])
        deliver(world, 0, 1)
        deliver(world, 1, 0)
    assert not mine.open


def test_wait_sync_satisfies_intents_that_have_started(make: Make) -> None:
    world = make(tick_keys=1)
    keys = rows_of(world, 1)[:4]
    mine = world.workers[0]
    world.intent(mine, 0, keys, 0, 1)
    world.intent(mine, 0, rows_of(world, 1)[4:5], 500, 1)  # has not: nothing waits for it
    world.sync(mine)
    world.serve(0)
    while mine.open:
        world.tick(0)
        deliver(world, 0, 1)
        deliver(world, 1, 0)
    assert [state(world, 0, key) for key in keys] == [OWNED] * 4


def test_wait_sync_of_a_worker_with_nothing_to_wait_for_ends_at_the_next_tick(make: Make) -> None:
    world = make()
    world.sync(world.workers[0])
    world.serve(0)
    world.tick(0)
    assert not world.workers[0].open
    assert not any(world.links.values())


def refresh(world: World, node: int) -> None:
    world.lanes[node].fresh()
    for _ in range(100):
        world.tick(node)
        if [event for event, *_ in world.lanes[node].events()] == [Event.FRESH]:
            return
        for a, b in world.links:
            deliver(world, a, b)
    pytest.fail("the refresh does not end")


@pytest.mark.parametrize("budget", [4, 1 << 20])
def test_a_refresh_brings_everything_that_replicas_missed(make: Make, budget: int) -> None:
    world = make(nodes=3, round_bytes=budget)
    keys = rows_of(world, 1)[:3] + rows_of(world, 2)[:2]
    for worker in world.workers[::-1]:
        world.intent(worker, 0, keys, 0, FOREVER)
        world.drain()
    for worker in world.workers[1:]:
        world.push(worker, 0, keys)
        world.sync(worker)
        world.serve(worker.node)
    while any(worker.open for worker in world.workers):
        for a, b in world.links:
            if 0 not in (a, b):
                deliver(world, a, b)
        for node in (1, 2):
            world.tick(node)
        for a, b in world.links:
            deliver(world, a, b)
    refresh(world, 0)
    for key in keys:
        assert world.lanes[0].inspect(0, key).value.tolist() == [0, 1, 1]


def test_a_refresh_of_a_lane_without_replicas_ends_at_once(make: Make) -> None:
    world = make()
    world.lanes[0].fresh()
    world.tick(0)
    assert [event for event, *_ in world.lanes[0].events()] == [Event.FRESH]
    assert not any(world.links.values())


def test_a_refresh_ends_while_rows_become_stale_all_the_time(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.lanes[0].fresh()
    ended = False
    for _ in range(5):
        world.push(world.workers[1], 0, [row])
        for node in (0, 1):
            world.tick(node)
            ended |= Event.FRESH in [event for event, *_ in world.lanes[node].events()]
        deliver(world, 0, 1)
        deliver(world, 1, 0)
    assert ended


# ---- one node


def test_a_single_node_never_sends(make: Make) -> None:
    world = make(nodes=1, workers=2)
    keys = list(range(32))
    for worker in world.workers:
        world.intent(worker, 0, keys, 0, 2)
        world.push(worker, 0, keys)
        world.pull(worker, 0, keys)
        world.sync(worker)
        world.serve(0)
        step(world, worker, 3)
    assert not any(world.links.values())  # in spite of ticks with intents that came and went
    world.lanes[0].fresh()
    world.tick(0)
    assert [event for event, *_ in world.lanes[0].events()] == [Event.FRESH]
    world.drain()
    world.check_rest()
    assert world.segments[0].statistics().frames_out == 0


def test_an_idle_lane_rests_until_it_is_kicked(make: Make) -> None:
    world = make()
    world.drain()
    assert all(lane.rest() for lane in world.lanes)
    world.intent(world.workers[0], 0, [0], 0, 1)
    assert not world.lanes[0].rest()


def test_counters_of_hints_may_grow_beyond_what_a_row_keeps(make: Make) -> None:
    """The upper bits are kept elsewhere; they follow the row from absent to pending to owned, and go with the grant."""
    world = make()
    row = rows_of(world, 0)[0]  # at home at node 0, and said to have moved to node 1
    for counter in (1, 2**20 - 1, 2**20, 2**33 + 5, 2**33 + 4):
        moved = HEAD.pack(1, HEAD.size + 12, Type.MOVED, 0, 0, 0, 0, 0, 0, 0) + struct.pack("<IQ", row, counter)
        frame = b"\x01" + bytes(7) + moved
        if state(world, 0, row) is OWNED:  # give it away, so that it has a hint
            world.intent(world.workers[1], 0, [row], 0, FOREVER)
            world.drain()
        before = world.lanes[0].inspect(0, row).hint[1]
        assert world.lanes[0].receive(1, frame) == len(frame)
        assert world.lanes[0].inspect(0, row).hint == (1, max(before, counter))
    world.intent(world.workers[0], 0, [row], 0, FOREVER)
    world.tick(0)
    assert world.lanes[0].inspect(0, row).hint == (1, 2**33 + 5)  # pending
