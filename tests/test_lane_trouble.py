"""Lanes in trouble: no room for rows, locked rows, workers that die holding one, nodes that are lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import pytest

from adapm import memory
from adapm.engine import Event, RowState
from adapm.errors import ProtocolError
from adapm.kernel import ffi, lib
from adapm.segment import Segment
from adapm.simulator.frames import FRAME_HEAD, Type
from lanes import FOREVER, Make, deliver, rows_of, shared_row, state, step, types, worlds
from raw_segment import DIRTY, LOCK, SEQ, TRACK, RawSegment
from test_lane_random import step as random_step
from world import PULL, PUSH, SET, Operation, World

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


@contextlib.contextmanager
def raw(world: World, node: int) -> Iterator[RawSegment]:
    segment = RawSegment(world.segments[node].fd)
    yield segment
    segment.close()


@contextlib.contextmanager
def locked(world: World, node: int, row: int) -> Iterator[None]:
    """A stopped worker, one in slot 8, has the row."""
    with raw(world, node) as segment:
        word = segment.tables[0].word(row)
        segment.tables[0].put_word(row, word & ~SEQ | LOCK | 9)
        yield
        segment.tables[0].put_word(row, word & ~SEQ | word + 1 & SEQ)


# ---- no room


class FullWorld(World):
    """A world with events, where a row that found no room is absent in spite of active intent."""

    full = True

    def tick(self, node: int) -> bool:
        self.events = [*getattr(self, "events", ()), *((node, event) for event, *_ in self.lanes[node].events())]
        return super().tick(node)


def cramped(make: Make, spare: int, **options: int) -> World:
    """A world of two nodes, each with room for its 16 or so rows and some more."""
    homes = [lib.adapm_home_of(0, row, 2) for row in range(32)]
    capacity = [max(homes.count(0), homes.count(1)) + spare]
    create = Segment.create
    with mock.patch.object(Segment, "create", lambda *args, **kwargs: create(*args, **kwargs, capacity=capacity)):
        return make(kind=FullWorld, **options)


def test_rows_that_find_no_room_stay_remote_and_lose_nothing(make: Make) -> None:
    world = cramped(make, spare=2)
    mine, own, keys = world.workers[0], rows_of(world, 0), rows_of(world, 1)
    room = max(len(own), len(keys)) + 2 - len(own)
    for _ in range(2):
        world.intent(mine, 0, keys, world.clock(mine), 3)
        world.drain()
        world.check()
        step(world, mine)
    assert world.segments[0].statistics().not_wanted_full == len(keys) - room
    assert world.events == [(0, Event.ARENA_FULL)]  # once, not per row and not per tick
    for _ in range(2):
        world.push(mine, 0, keys)
        world.pull(mine, 0, keys)
        world.drain()
        world.check()
    assert not mine.open
    step(world, mine, 3)
    world.drain()
    assert sum(state(world, 0, key) is OWNED for key in keys) == room


def test_rows_stay_remote_when_the_machine_has_no_memory_left_for_them(make: Make) -> None:
    world = make(kind=FullWorld)
    mine, other = world.workers
    row = rows_of(world, 1)[0]
    world.intent(other, 0, [row], 0, FOREVER)
    world.drain()
    with mock.patch.object(memory, "available", return_value=memory.Available(0, "nobody")):
        world.intent(mine, 0, [row], 0, FOREVER)
        world.push(mine, 0, [row])
        world.drain()
        world.check()
    assert state(world, 0, row) is ABSENT
    assert world.events == [(0, Event.ARENA_FULL)]
    assert world.lanes[1].inspect(0, row).value[0] == 1


def test_room_that_is_freed_is_used_again(make: Make) -> None:
    world = cramped(make, spare=1)
    world.intent(world.workers[1], 0, rows_of(world, 1), 0, FOREVER)
    world.drain()
    mine = world.workers[0]
    for clock, key in enumerate(rows_of(world, 1)[:5]):
        world.intent(mine, 0, [key], clock, 1)
        world.drain()
        assert state(world, 0, key) is REPLICA
        step(world, mine)
        world.drain()
        assert state(world, 0, key) is ABSENT


@pytest.mark.parametrize("seed", range(10))
def test_random_schedules_in_cramped_worlds_lose_nothing(make: Make, seed: int) -> None:
    world, choose = cramped(make, spare=seed % 3, workers=1 + seed % 2), random.Random(seed)
    for _ in range(120):
        links = [link for link, queue in world.links.items() if queue]
        kind = choose.choice(["tick", "serve", "intent", "push", "pull", "advance"] + ["deliver"] * len(links))
        who = choose.choice(links if kind == "deliver" else [0, 1] if kind in ("tick", "serve") else world.workers)
        random_step(world, choose, kind, who)
        world.check()
    world.drain()
    assert len(world.events) == len(set(world.events))
    assert not any(worker.open for worker in world.workers)


# ---- locked rows


def test_a_frame_that_meets_a_locked_row_goes_on_there_later(make: Make) -> None:
    world = make()
    keys = rows_of(world, 1)[:5]
    for worker in world.workers[::-1]:
        world.intent(worker, 0, keys, 0, FOREVER)
        world.drain()
    world.push(world.workers[0], 0, keys)
    world.tick(0)
    frame = world.links[0, 1].popleft()
    with locked(world, 1, keys[2]):
        done = world.lanes[1].receive(0, frame)
        assert done < len(frame)
        assert [world.lanes[1].inspect(0, key).value[0] for key in keys] == [1, 1, 0, 0, 0]
        done += world.lanes[1].receive(0, frame, done)
        assert done < len(frame)
        world.lanes[1].tick(1.0)
        assert world.lanes[1].take() is None  # no reply to half a round
    assert done + world.lanes[1].receive(0, frame, done) == len(frame)
    assert [world.lanes[1].inspect(0, key).value[0] for key in keys] == [1] * 5
    world.collect(1)
    world.drain()
    world.check_rest()


@pytest.mark.parametrize("kind", [PULL, PUSH])
def test_access_from_elsewhere_to_a_locked_row_waits(make: Make, kind: int) -> None:
    world = make()
    keys, mine = rows_of(world, 1)[:2], world.workers[0]
    (world.pull if kind == PULL else world.push)(mine, 0, keys)
    world.serve(0)
    frame = world.links[0, 1].popleft()
    with locked(world, 1, keys[1]):
        done = world.lanes[1].receive(0, frame)
        assert done < len(frame)
        assert not world.lanes[1].rest() or world.lanes[1].kicked() is None
    assert done + world.lanes[1].receive(0, frame, done) == len(frame)
    world.collect(1)
    deliver(world, 1, 0)
    assert not mine.open


@pytest.mark.parametrize("shared", [False, True])
def test_an_answer_that_meets_a_locked_row_is_applied_once(make: Make, shared: bool) -> None:
    world = make()
    row = rows_of(world, 1)[0]
    if shared:
        world.intent(world.workers[1], 0, [row], 0, FOREVER)
        world.drain()
    world.intent(world.workers[0], 0, [row], 0, FOREVER)
    world.tick(0)
    deliver(world, 0, 1)
    assert types(world, 1, 0)[0] == (Type.STATE if shared else Type.GRANT)
    world.push(world.workers[0], 0, [row])
    frame = world.links[1, 0].popleft()
    with locked(world, 0, row):
        done = world.lanes[0].receive(1, frame)
        assert done < len(frame)
        assert state(world, 0, row) is PENDING
    assert done + world.lanes[0].receive(1, frame, done) == len(frame)
    assert state(world, 0, row) is (REPLICA if shared else OWNED)
    world.drain()
    world.check_rest()


def test_a_locked_replica_sends_its_delta_later(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.push(world.workers[0], 0, [row])
    with locked(world, 0, row):
        assert world.lanes[0].tick(1.0)
        assert not world.lanes[0].rest()
        assert world.lanes[0].take() is None
    world.tick(0)
    assert types(world, 0, 1) == [Type.DELTA, Type.ROUND_END]
    world.drain()
    world.check_rest()


def test_a_locked_replica_is_dropped_later(make: Make) -> None:
    world = make()
    row = shared_row(world)
    with locked(world, 0, row):
        world.lanes[0].worker_gone(0)
        assert world.lanes[0].tick(1.0)
        assert world.lanes[0].take() is None
    world.drain()
    assert state(world, 0, row) is ABSENT


def test_a_locked_want_is_not_cancelled_but_sent(make: Make) -> None:
    world = make()
    row, mine = rows_of(world, 1)[0], world.workers[0]
    world.push(mine, 0, [row])
    world.serve(0)
    world.intent(mine, 0, [row], 0, 1)
    world.tick(0)
    step(world, mine)
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    with locked(world, 0, row):
        world.lanes[0].tick(1.0)
        world.collect(0)
        assert types(world, 0, 1) == [Type.WANT, Type.ROUND_END]
    world.drain()
    assert state(world, 0, row) is OWNED


def test_holders_learn_later_of_a_dirty_row_that_is_locked(make: Make) -> None:
    world = make()
    row = shared_row(world)
    world.push(world.workers[1], 0, [row])
    with locked(world, 1, row):
        world.lanes[1].tick(1.0)
        assert not world.lanes[1].rest()
        assert world.lanes[1].take() is None
    world.tick(1)
    assert types(world, 1, 0) == [Type.NUDGE]
    world.drain()
    world.check_rest()


@pytest.mark.parametrize("stale", [False, True])
def test_a_locked_row_is_left_out_of_replies(make: Make, stale: bool) -> None:
    """Neither its state nor the row itself can be sent; both come with a later reply."""
    world = make()
    row = shared_row(world)
    if stale:
        world.push(world.workers[1], 0, [row])
    else:
        world.lanes[1].worker_gone(0)
    world.tick(1)
    deliver(world, 1, 0)
    world.tick(0)
    frame = world.links[0, 1].popleft()
    with locked(world, 1, row):
        assert world.lanes[1].receive(0, frame) == len(frame)
        world.collect(1)
        assert types(world, 1, 0) == [Type.REPLY_END]
    world.drain()
    world.check_rest()
    assert state(world, 0, row) is (REPLICA if stale else OWNED)


def test_wait_sync_waits_for_a_locked_row(make: Make) -> None:
    world = make()
    row = shared_row(world)
    mine = world.workers[0]
    world.push(mine, 0, [row])
    world.sync(mine)
    world.serve(0)
    with locked(world, 0, row):
        for _ in range(3):
            world.lanes[0].tick(1.0)
        world.completions(0)
        assert mine.open
    world.drain()
    assert not mine.open


@pytest.mark.parametrize("kind", [PULL, PUSH, SET])
def test_a_request_that_meets_a_locked_row_is_served_later_and_once(make: Make, kind: int) -> None:
    world = make()
    keys, mine = rows_of(world, 0)[:3], world.workers[0]
    values = np.eye(2, dtype=np.float32)[[0, 0, 0]]
    operation = Operation(kind, 0, keys, count=int(kind == PUSH), need=np.zeros(3, np.float32))
    world._post(mine, operation, None if kind == PULL else values)
    if kind != PULL:
        np.add.at(mine.total[0], keys, 1)
    with locked(world, 0, keys[1]):
        assert world.lanes[0].serve()
        assert world.lanes[0].serve()
        assert not world.lanes[0].rest()
        world.completions(0)
        assert mine.open
    assert not world.lanes[0].serve()
    world.completions(0)
    assert not mine.open
    if kind != PULL:
        assert [world.lanes[0].inspect(0, key).value[0] for key in keys] == [1, 1, 1]


# ---- dead workers


def die(segment: RawSegment, slot: int, row: int, at: int, before: Sequence[int] = ()) -> None:
    """What a worker leaves that is killed in the middle of a push of ones: see adapm_die_at in native/kernel.h.

    The rows before are held too, and locked.
    """
    table, worker, rows = segment.tables[0], segment.workers[slot], [*before, row]
    worker["hold_table"], worker["hold_rows"], worker["hold_saved"] = 0, len(rows), 0
    worker["held"][: len(rows)] = [(row, table.word(row)) for row in rows]
    word = table.word(row)
    for held in rows if at >= 2 else before:
        table.put_word(held, table.word(held) & ~SEQ | LOCK | slot + 1)
    if at >= 3:
        stride = table.arena.shape[1]
        saved = segment.array(np.dtype("<f4"), int(worker["off_undo"]), stride * len(rows)).reshape(-1, stride)
        saved[:, : table.row_len] = [table.value(row) for row in rows]
        worker["hold_saved"] = len(rows)
    if at >= 4:
        table.value(row)[: table.row_len if at == 5 else 1] += 1
    if at == 5 and word & (TRACK | DIRTY) == TRACK:
        ring, records = worker["dirty"], segment.ring(slot, "dirty", np.dtype("<u8"))
        records[int(ring["head"]) & int(ring["mask"])] = row
        ring["head"] += 1


def in_state(world: World, wanted: RowState, shared: bool = False) -> int:
    """A row of this state at node 0, with three updates of its workers in it."""
    row = rows_of(world, 0 if wanted is OWNED else 1)[0]
    mine, _, other, _ = world.workers
    for worker in (mine, other) if shared else (other,) if wanted is REPLICA else ():
        world.intent(worker, 0, [row], 0, FOREVER)
        world.drain()
    if wanted is not OWNED:
        world.intent(mine, 0, [row], 0, FOREVER)
        world.tick(0)
    if wanted is REPLICA:
        world.drain()
    for worker in (mine, mine, world.workers[1]):
        world.push(worker, 0, [row])
    assert state(world, 0, row) is wanted
    return row


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("kind", "shared"), [(OWNED, False), (OWNED, True), (REPLICA, False), (PENDING, False)])
@pytest.mark.parametrize("dirty", [True, False])
def test_the_push_of_a_dead_worker_is_undone(make: Make, kind: RowState, shared: bool, at: int, dirty: bool) -> None:
    world = make(workers=2)
    row = in_state(world, kind, shared)
    if not dirty:
        world.drain()
    with raw(world, 0) as segment:
        die(segment, 0, row, at)
        world.lanes[0].worker_gone(0)
        assert not segment.tables[0].word(row) & LOCK
    assert world.lanes[0].inspect(0, row).value[:2].tolist() == [2, 1]
    world.check()
    world.push(world.workers[1], 0, [row])
    world.drain()
    world.check_rest()


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_all_rows_that_a_dead_worker_held_are_released(make: Make, at: int) -> None:
    world = make(workers=2)
    done, *before, row = rows_of(world, 0)[:4]
    with raw(world, 0) as segment:
        table = segment.tables[0]
        word = table.word(done)
        die(segment, 0, row, at, [done, *before])
        table.put_word(done, word & ~SEQ | (word + 1 & SEQ))  # the first one has been unlocked already
        table.value(done)[:] = 7
        world.lanes[0].worker_gone(0)
        assert not any(table.word(key) & LOCK for key in (done, *before, row))
        assert [table.value(key).tolist() for key in (done, *before, row)] == [[7] * 4, [0] * 4, [0] * 4, [0] * 4]
        table.value(done)[:] = 0
    world.push(world.workers[1], 0, [done, *before, row])
    world.drain()
    world.check_rest()


def test_a_dead_worker_frees_no_lock_but_its_own(make: Make) -> None:
    world = make(workers=2)
    row = rows_of(world, 0)[0]
    with raw(world, 0) as segment:
        die(segment, 0, row, 1)
        word = segment.tables[0].lock(row)  # somebody else was faster
        world.lanes[0].worker_gone(0)
        assert segment.tables[0].word(row) & LOCK
        segment.tables[0].put_word(row, word)
    with raw(world, 0) as segment:
        die(segment, 1, row, 3)
        segment.tables[0].put_word(row, word)  # unlocked, and killed before its next row
        segment.tables[0].value(row)[:] = 7
        world.lanes[0].worker_gone(1)
        assert segment.tables[0].value(row).tolist() == [7] * 4
        segment.tables[0].value(row)[:] = 0


def test_what_a_dead_worker_has_asked_for_is_done_and_answered_to_nobody(make: Make) -> None:
    world = make()
    row, mine = rows_of(world, 1)[0], world.workers[0]
    world.push(mine, 0, [row])
    world.pull(mine, 0, [row])
    world.sync(mine)
    world.lanes[0].worker_gone(0)
    world.serve(0)
    deliver(world, 0, 1)
    assert deliver(world, 1, 0) == [Type.ACK, Type.ANSWER]
    world.tick(0)
    assert len(mine.open) == 3
    mine.open.clear()
    assert world.lanes[1].inspect(0, row).value[0] == 1
    world.drain()
    world.check_rest()


# ---- lost nodes


def test_open_operations_end_with_the_lost_node(make: Make) -> None:
    world = make(nodes=3)
    mine = world.workers[0]
    world.pull(mine, 0, rows_of(world, 1)[:2])
    world.sync(mine)
    world.serve(0)
    ops = sorted(mine.open)
    world.lanes[0].peer_lost(1)
    op, status, detail = ffi.new("uint32_t *"), ffi.new("int32_t *"), ffi.new("uint64_t *")
    ended = []
    while lib.adapm_completed(mine.handle, op, status, detail):
        ended.append(op[0])
        assert (status[0], detail[0]) == (-104, 1)
    assert sorted(ended) == ops
    mine.open.clear()
    world.links[0, 1].clear()
    with pytest.raises(ProtocolError):
        world.lanes[0].receive(1, b"\1" + bytes(FRAME_HEAD - 1))
