"""Local access: pull, push and set against segments whose entries the test writes, as a node would."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapm.errors import Closed, InternalError, TooManyWorkers
from adapm.kernel import ffi, lib
from adapm.segment import Segment
from adapm.statistics import COUNTERS
from adapm.tables import Table
from kernel_worker import Array, KernelWorker, fired, kernel_worker
from raw_segment import ABSENT, DIRTY, LOCK, OWNED, PENDING, READ, SEQ, SHARED, WRITE, RawSegment, RawTable

ROWS, VALUE, SUMS = 40, 5, 3  # columns: [0, 5) and [5, 8); neither fills a cache line
ROW = (0, VALUE + SUMS)
TABLES = [Table("first", rows=3, dim=2), Table("second", rows=ROWS, columns={"value": VALUE, "sums": SUMS})]


class Bench:
    """One worker and the table with index 1; row r, when placed, is r in all columns."""

    def __init__(self, segment: Segment, raw: RawSegment, worker: KernelWorker) -> None:
        self.segment, self.raw, self.worker = segment, raw, worker
        self.table: RawTable = raw.tables[1]

    def place(self, state: int, *rows: int) -> None:
        for row in rows:
            self.table.place(row, state, slot=ROWS - 1 - row, value=row)

    def pull(self, keys: Any, columns: tuple[int, int] = ROW) -> tuple[Array, list[int]]:
        return self.worker.pull(keys, columns, table=1)

    def push(self, keys: Any, values: Any, col_off: int = 0) -> list[int]:
        return self.worker.push(keys, values, col_off, table=1)

    def set(self, keys: Any, values: Any, col_off: int = 0) -> list[int]:
        return self.worker.set(keys, values, col_off, table=1)

    def value(self, row: int) -> list[float]:
        return self.table.value(row).tolist()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with kernel_worker(TABLES, workers=2, heap_bytes=4096) as parts:
        yield Bench(*parts)


def rows_of(*values: float, width: int = VALUE + SUMS) -> Array:
    return np.repeat(np.array(values, np.float32)[:, None], width, axis=1)


# ---- what is where


@pytest.mark.parametrize("state", [OWNED, SHARED], ids=["owned", "shared"])
def test_pull_readable_rows(bench: Bench, state: int) -> None:
    bench.place(state, 0, 7, 8, 39)
    out, miss = bench.pull([39, 8, 0, 7])
    assert not miss
    assert out.tolist() == rows_of(39, 8, 0, 7).tolist()


def test_pull_misses_what_is_absent_or_pending(bench: Bench) -> None:
    bench.place(OWNED, 1, 3)
    bench.place(PENDING, 2)
    out, miss = bench.pull([0, 1, 2, 3, 2])
    assert miss == [0, 2, 4]
    assert np.isnan(out[miss]).all()
    assert out[[1, 3]].tolist() == rows_of(1, 3).tolist()


def test_tables_do_not_mix(bench: Bench) -> None:
    bench.place(OWNED, 1)
    bench.raw.tables[0].place(1, OWNED, slot=0, value=50)
    assert bench.worker.pull([1], (0, 2), table=0)[0].tolist() == [[50, 50]]
    assert bench.pull([1], (0, 2))[0].tolist() == [[1, 1]]


def test_columns(bench: Bench) -> None:
    bench.place(OWNED, 4)
    assert bench.push([4], [[10, 20, 30]], col_off=VALUE) == []
    assert bench.set([4], [[1, 2, 3, 4, 5]]) == []
    assert bench.value(4) == [1, 2, 3, 4, 5, 14, 24, 34]
    assert bench.pull([4], (VALUE, SUMS))[0].tolist() == [[14, 24, 34]]
    assert bench.pull([4], (1, 5))[0].tolist() == [[2, 3, 4, 5, 14]]


def test_duplicates(bench: Bench) -> None:
    bench.place(OWNED, 2, 3)
    assert bench.push([2, 3, 2, 0, 2, 0], rows_of(1, 2, 4, 8, 16, 32)) == [3, 5]
    assert bench.value(2) == [23] * 8
    assert bench.pull([2, 2, 3, 0, 2])[0][[0, 1, 4]].tolist() == rows_of(23, 23, 23).tolist()
    assert bench.set([3, 3, 3], rows_of(7, 8, 9)) == []
    assert bench.value(3) == [9] * 8


def test_long_batch(bench: Bench, rng: np.random.Generator) -> None:
    bench.place(OWNED, *range(0, ROWS, 3))
    keys = rng.integers(0, ROWS, 1000)
    out, miss = bench.pull(keys)
    assert miss == np.flatnonzero(keys % 3).tolist()
    hits = np.flatnonzero(keys % 3 == 0)
    assert (out[hits] == keys[hits][:, None]).all()
    assert bench.push(keys, np.ones((1000, 8))) == miss
    assert all(bench.value(row)[0] == row + np.count_nonzero(keys == row) for row in range(0, ROWS, 3))


def test_no_keys(bench: Bench) -> None:
    assert bench.pull([])[1] == []
    assert bench.push([], np.zeros((0, 8))) == []
    assert bench.worker.is_local([]) == []


def test_is_local(bench: Bench) -> None:
    bench.place(OWNED, 0)
    bench.place(SHARED, 1)
    bench.place(PENDING, 2)
    bench.table.lock(0)
    assert bench.worker.is_local([0, 1, 2, 3, 1], table=1) == [True, True, False, False, True]


@pytest.mark.parametrize(("keys", "bad"), [([], -1), ([0, 9], -1), ([3, -1, 10], 1), ([3, 9, 10, -1], 2), ([2**62], 0)])
def test_keys_bad(keys: list[int], bad: int) -> None:
    assert lib.adapm_keys_bad(ffi.new("int64_t[]", keys), len(keys), 10) == bad


@pytest.mark.parametrize("bad", [-1, ROWS, 2**40])
def test_keys_of_no_row_are_refused_before_anything_happens(bench: Bench, bad: int) -> None:
    bench.place(OWNED, 4)
    keys = ffi.new("int64_t[]", [4, bad])
    rows, miss = ffi.new("float[]", [7.0] * 16), ffi.new("uint32_t[]", 2)
    for call in (lib.adapm_pull, lib.adapm_push, lib.adapm_set):
        assert call(bench.worker.pointer, 1, *ROW, keys, 2, rows, miss) == -errno.ERANGE
    assert lib.adapm_is_local(bench.worker.pointer, 1, keys, 2, ffi.new("uint8_t[]", 2)) == -errno.ERANGE
    assert list(rows) == [7.0] * 16
    assert bench.value(4) == [4.0] * 8
    assert not any(bench.worker.counters().values())


@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 64, 100, 128, 300])
def test_rows_of_all_lengths(rng: np.random.Generator, width: int) -> None:
    """Some lengths have loops of their own."""
    with kernel_worker([Table("t", rows=300, columns={"a": width, "b": 3})]) as (_, raw, worker):
        for row in range(0, 300, 2):
            raw.tables[0].place(row, OWNED, slot=row, value=row)
        keys = rng.integers(0, 300, 500)
        hits = keys % 2 == 0
        often = np.bincount(keys, minlength=300)[:, None]
        for columns in ((0, width + 3), (0, width), (width, 3), (1, width)):
            out, miss = worker.pull(keys, columns)
            assert miss == np.flatnonzero(~hits).tolist()
            before = np.array([raw.tables[0].value(row) for row in range(0, 300, 2)])
            part = slice(columns[0], columns[0] + columns[1])
            assert (out[hits] == before[keys[hits] // 2, part]).all()
            assert worker.push(keys, np.ones((500, columns[1])), columns[0]) == miss
            before[:, part] += often[::2]
            assert (before == [raw.tables[0].value(row) for row in range(0, 300, 2)]).all()


# ---- states and flags


def test_push_to_pending_accumulates(bench: Bench) -> None:
    bench.table.place(6, PENDING, slot=1)
    assert bench.push([6, 6], rows_of(3, 4)) == []
    assert bench.value(6) == [7] * 8
    assert bench.table.state(6) == PENDING | DIRTY
    assert bench.pull([6])[1] == [0]


@pytest.mark.parametrize("state", [SHARED, PENDING], ids=["shared", "pending"])
def test_first_push_to_tracked_row_is_noted(bench: Bench, state: int) -> None:
    bench.place(state, 5)
    bench.push([5, 5], rows_of(1, 1))
    assert bench.table.state(5) == state | DIRTY
    assert bench.raw.dirty() == [(1, 5)]
    bench.push([5], rows_of(1))
    assert bench.raw.dirty() == []
    bench.table.put_word(5, bench.table.word(5) & ~DIRTY)
    bench.push([5], rows_of(1))
    assert bench.raw.dirty() == [(1, 5)]


def test_push_to_untracked_row_is_not_noted(bench: Bench) -> None:
    bench.place(OWNED, 5)
    bench.push([5], rows_of(1))
    assert bench.table.state(5) == OWNED
    assert bench.raw.dirty() == []


@pytest.mark.parametrize("state", [SHARED, PENDING, ABSENT], ids=["shared", "pending", "absent"])
def test_set_only_where_owned_and_unshared(bench: Bench, state: int) -> None:
    bench.place(state, 5)
    bench.place(OWNED, 6)
    assert bench.set([5, 6], rows_of(100, 200)) == [0]
    assert bench.value(5) == [5] * 8
    assert bench.value(6) == [200] * 8


def test_sequence_moves_with_every_change_only(bench: Bench) -> None:
    bench.place(OWNED, 5)
    before = bench.table.word(5)
    bench.pull([5])
    assert bench.table.word(5) == before
    bench.push([5], rows_of(1))
    bench.set([5], rows_of(1))
    assert bench.table.word(5) == before + 2


def test_sequence_wraps_within_its_bits(bench: Bench) -> None:
    bench.place(OWNED, 5)
    bench.table.put_word(5, bench.table.word(5) | SEQ)
    bench.push([5], rows_of(1))
    assert bench.table.word(5) & SEQ == 0
    assert bench.table.state(5) == OWNED
    assert bench.value(5) == [6] * 8


def test_counters(bench: Bench) -> None:
    bench.place(OWNED, 1, 2)
    bench.pull([0, 1, 2])
    bench.push([1, 0, 0, 0], rows_of(1, 1, 1, 1))
    bench.set([1], rows_of(1))
    expected = {"pull_keys": 3, "pull_local": 2, "push_keys": 4, "push_local": 1, "set_keys": 1}
    assert bench.worker.counters() == dict.fromkeys(COUNTERS, 0) | expected


# ---- waking the node


def test_local_access_wakes_nobody(bench: Bench) -> None:
    bench.place(OWNED, 1)
    bench.place(SHARED, 2)
    bench.push([2], rows_of(1))  # DIRTY now
    bench.raw.lane["asleep"] = 1
    bench.pull([1, 2])
    bench.push([1, 2], rows_of(1, 1))
    bench.set([1], rows_of(1))
    assert not fired(bench.worker.node_fd)


def test_new_dirty_row_wakes_a_sleeping_node_once(bench: Bench) -> None:
    bench.place(SHARED, 1, 2, 3)
    bench.push([1], rows_of(1))
    assert not fired(bench.worker.node_fd)
    bench.raw.lane["asleep"] = 1
    bench.push([2], rows_of(1))
    assert fired(bench.worker.node_fd)
    bench.push([3], rows_of(1))
    assert not fired(bench.worker.node_fd)
    assert bench.raw.lane["kicked"] == 1


# ---- waiting for others


def while_running(call: Callable[[], Any], then: Callable[[], None]) -> Any:
    """The result of a call that cannot end before `then` has been done in this thread."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert not results
    then()
    thread.join()
    return results[0]


def test_locked_row_is_waited_for(bench: Bench) -> None:
    bench.place(OWNED, 3)
    unlocked = bench.table.lock(3)
    out, miss = while_running(lambda: bench.pull([3]), lambda: bench.table.put_word(3, unlocked))
    assert (out.tolist(), miss) == (rows_of(3).tolist(), [])
    unlocked = bench.table.lock(3)
    assert while_running(lambda: bench.push([3], rows_of(1)), lambda: bench.table.put_word(3, unlocked)) == []
    assert bench.value(3) == [4] * 8


def test_locked_row_in_another_state_is_not_waited_for(bench: Bench) -> None:
    bench.place(PENDING, 3)
    bench.table.lock(3)
    assert bench.pull([3])[1] == [0]
    assert bench.set([3], rows_of(1)) == [0]


@pytest.mark.parametrize("name", ["pull", "push", "set"])
def test_failed_node_ends_the_wait_for_a_lock(bench: Bench, name: str) -> None:
    values = [] if name == "pull" else [rows_of(1)]
    bench.place(OWNED, 3)
    bench.table.lock(3)
    ended = while_running(
        lambda: getattr(bench, name)([3], *values),
        lambda: bench.segment.fail(-errno.ESHUTDOWN, wake=[bench.worker.worker_fd]),
    )
    assert isinstance(ended, Closed)
    assert fired(bench.worker.worker_fd)


def fill_dirty_ring(bench: Bench) -> None:
    ring = bench.raw.workers[0]["dirty"]
    ring["head"] = ring["tail"] + ring["mask"] + 1


def test_full_dirty_ring_is_waited_for_without_a_lock(bench: Bench) -> None:
    bench.place(SHARED, 3, 4)
    fill_dirty_ring(bench)
    bench.raw.lane["asleep"] = 1

    def drain() -> None:
        while not fired(bench.worker.node_fd):
            pass
        assert not bench.table.word(3) & LOCK
        assert bench.pull([3])[1] == []
        bench.raw.dirty()

    assert while_running(lambda: bench.push([3], rows_of(1)), drain) == []
    assert bench.raw.dirty() == [(1, 3)]
    assert bench.worker.counters()["waits"] == 1


def test_full_dirty_ring_stops_nothing_else(bench: Bench) -> None:
    bench.place(SHARED, 3)
    bench.push([3], rows_of(1))
    bench.place(OWNED, 4)
    fill_dirty_ring(bench)
    assert bench.push([3, 4], rows_of(1, 1)) == []
    assert bench.value(3) == [5] * 8


def test_failed_node_ends_the_wait_for_room(bench: Bench) -> None:
    bench.place(SHARED, 3)
    fill_dirty_ring(bench)
    ended = while_running(lambda: bench.push([3], rows_of(1)), lambda: bench.segment.fail(-errno.ESHUTDOWN))
    assert isinstance(ended, Closed)
    assert bench.table.state(3) == SHARED


# ---- slots of workers


def test_a_slot_has_one_worker(bench: Bench) -> None:
    with pytest.raises(TooManyWorkers, match="slot 0"):
        KernelWorker(bench.segment, 0, bench.worker.node_fd, bench.worker.worker_fd)
    with pytest.raises(InternalError, match="slot 2"):
        KernelWorker(bench.segment, 2, bench.worker.node_fd, bench.worker.worker_fd)
    second = KernelWorker(bench.segment, 1, bench.worker.node_fd, bench.worker.worker_fd)
    bench.place(OWNED, 1)
    assert second.push([1], rows_of(1), table=1) == []
    second.detach()


# ---- death inside push: what the node finds

DIE = """
import os, sys
from adapm.kernel import ffi, lib
from adapm.segment import Segment
segment_fd, step, after, *keys = map(int, sys.argv[1:])
fd, n = os.eventfd(0), len(keys)
worker = lib.adapm_worker_attach(Segment.attach(segment_fd).pointer, 1, fd, fd, ffi.new("int *"))
lib.adapm_push(worker, 1, 0, 8, ffi.new("int64_t[]", [0]), 1, ffi.new("float[8]", [1] * 8), ffi.new("uint32_t[1]"))
lib.adapm_die_at(worker, step, after)
values = ffi.new("float[]", [100] * 8 * n)
lib.adapm_push(worker, 1, 0, 8, ffi.new("int64_t[]", keys), n, values, ffi.new("uint32_t[]", n))
"""


def kill_in_push(bench: Bench, step: int, *keys: int, after: int = 0) -> None:
    command = [sys.executable, "-c", DIE, *map(str, (bench.segment.fd, step, after, *keys))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, pass_fds=[bench.segment.fd], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL


def undo(bench: Bench) -> None:
    """What the node does about the hold of a dead worker in slot 1."""
    dead = bench.raw.workers[1]
    stride = bench.table.arena.shape[1]
    saved = bench.raw.array(np.dtype("<f4"), int(dead["off_undo"]), 2048).reshape(-1, stride)
    for i, (row, old) in enumerate(dead["held"][: dead["hold_rows"]].tolist()):
        if bench.table.word(row) & (LOCK | SEQ) != LOCK | 2:  # its id + 1
            continue
        if i < dead["hold_saved"]:
            bench.table.value(row)[:] = saved[i, : bench.table.row_len]
        bench.table.put_word(row, old & ~SEQ | (old + 1 & SEQ))


@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("state", [SHARED, PENDING], ids=["shared", "pending"])
def test_death_in_push_can_be_undone(bench: Bench, state: int, step: int) -> None:
    bench.place(state, 9)
    bench.place(OWNED, 0)
    kill_in_push(bench, step, 9)
    dead = bench.raw.workers[1]
    (row, old), *_ = dead["held"].tolist()
    assert (dead["hold_table"], dead["hold_rows"], row, old & (READ | WRITE)) == (1, 1, 9, state & (READ | WRITE))
    assert bool(bench.table.word(9) & LOCK) == (step >= 2)
    assert dead["hold_saved"] == (step >= 3)
    torn = {1: [9] * 8, 2: [9] * 8, 3: [9] * 8, 4: [109] * 4 + [9] * 4, 5: [109] * 8}
    assert bench.value(9) == torn[step]
    undo(bench)
    assert bench.table.state(9) == state
    assert bench.value(9) == [9] * 8
    assert bench.value(0) == [1] * 8
    assert bench.push([9], rows_of(1)) == []


@pytest.mark.parametrize("step", range(1, 6))
def test_death_among_rows_held_together_undoes_those_not_done(bench: Bench, step: int) -> None:
    keys, after = [9, 4, 7, 2], 2
    bench.place(SHARED, *keys)
    bench.place(OWNED, 0)
    kill_in_push(bench, step, *keys, after=after)
    locked = {1: keys[:2], 2: keys}.get(step, keys[2:])
    assert [key for key in keys if bench.table.word(key) & LOCK] == locked
    undo(bench)
    done = after if step >= 3 else 0
    assert [bench.value(key)[0] for key in keys] == [key + 100 * (i < done) for i, key in enumerate(keys)]
    assert [bool(bench.table.state(key) & DIRTY) for key in keys] == [i < done for i in range(4)]
    assert bench.push(keys, rows_of(1, 1, 1, 1)) == []


def test_a_key_that_comes_twice_in_the_push_of_a_dead_worker_is_undone_once(bench: Bench) -> None:
    bench.place(OWNED, 9, 4, 0)
    kill_in_push(bench, 4, 9, 4, 9, after=1)  # the second 9 is named in the hold, but not held by it
    assert bench.raw.workers[1]["hold_rows"] == 3
    undo(bench)
    assert (bench.value(9), bench.value(4)) == ([109] * 8, [4] * 8)
    assert bench.push([9, 4, 9], rows_of(1, 1, 1)) == []
    assert (bench.value(9), bench.value(4)) == ([111] * 8, [5] * 8)


def test_life_after_death_at_step_5_has_one_record_too_many(bench: Bench) -> None:
    """The record of the undone push stays in the dead worker's ring; nothing but a look at a clean row comes of it."""
    bench.place(SHARED, 9)
    bench.place(OWNED, 0)
    kill_in_push(bench, 5, 9)
    undo(bench)
    assert bench.raw.dirty(worker=1) == [(1, 9)]
    assert not bench.table.state(9) & DIRTY


# ---- against a dict

KEYS = st.lists(st.integers(0, 11), max_size=40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["pull", "push", "set"]), KEYS, st.sampled_from([(0, 8), (0, 5), (5, 3)])),
        st.tuples(st.sampled_from(["evict", "own", "share", "pend", "drain"]), st.integers(0, 11)),
    ),
    max_size=60,
)


class Model:
    """The rows of a table of 12, in Python."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rows: dict[int, list[float]] = {}
        self.states: dict[int, int] = {}
        self.dirty: list[int] = []  # as recorded

    def take(self, row: int, state: int) -> None:
        self.bench.place(state, row)
        self.rows[row], self.states[row] = [float(row)] * 8, state

    def evict(self, row: int) -> None:
        self.bench.table.evict(row)
        self.rows.pop(row, None)
        self.states.pop(row, None)

    def drain(self) -> None:
        seen = self.bench.raw.dirty()
        assert [row for _, row in seen] == self.dirty
        self.dirty = []
        for _, row in seen:
            self.bench.table.put_word(row, self.bench.table.word(row) & ~DIRTY)
            if row in self.states:
                self.states[row] &= ~DIRTY

    def pull(self, keys: list[int], columns: tuple[int, int]) -> None:
        off, width = columns
        out, miss = self.bench.pull(keys, columns)
        assert miss == [i for i, k in enumerate(keys) if not self.states.get(k, 0) & READ]
        for i in set(range(len(keys))) - set(miss):
            assert out[i].tolist() == self.rows[keys[i]][off : off + width]

    def push(self, keys: list[int], columns: tuple[int, int]) -> None:
        off, width = columns
        values = np.arange(len(keys) * width, dtype=np.float32).reshape(-1, width)
        assert self.bench.push(keys, values, off) == [i for i, k in enumerate(keys) if k not in self.rows]
        for key, value in zip(keys, values.tolist(), strict=True):
            if key in self.rows:
                self.rows[key][off : off + width] = np.add(self.rows[key][off : off + width], value).tolist()
                if self.states[key] in (SHARED, PENDING):
                    self.states[key] |= DIRTY
                    self.dirty.append(key)

    def set(self, keys: list[int], columns: tuple[int, int]) -> None:
        off, width = columns
        values = np.arange(len(keys) * width, dtype=np.float32).reshape(-1, width)
        assert self.bench.set(keys, values, off) == [i for i, k in enumerate(keys) if self.states.get(k) != OWNED]
        for key, value in zip(keys, values.tolist(), strict=True):
            if self.states.get(key) == OWNED:
                self.rows[key][off : off + width] = value

    def check(self) -> None:
        for row in range(12):
            assert self.bench.table.state(row) == self.states.get(row, ABSENT)
            if row in self.rows:
                assert self.bench.value(row) == self.rows[row]


@settings(derandomize=True, database=None, deadline=None)
@given(STEPS)
def test_against_a_dict(steps: list[Any]) -> None:
    with kernel_worker(TABLES, workers=1, heap_bytes=4096) as parts:
        model = Model(Bench(*parts))
        states = {"own": OWNED, "share": SHARED, "pend": PENDING}
        for name, *arguments in steps:
            if name in states:
                if arguments[0] not in model.rows:
                    model.take(arguments[0], states[name])
            elif name == "drain":
                model.drain()
            else:
                getattr(model, name)(*arguments)
        model.check()
