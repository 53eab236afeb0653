"""The worker's rings: intents, clock, requests and completions, and sleeping until something comes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from adapm.errors import InternalError
from adapm.kernel import lib
from adapm.segment import Segment
from adapm.tables import Table
from kernel_worker import KernelWorker, fired, kernel_worker
from raw_segment import RawSegment

HEAP = 1 << 16
RING = 1 << 20  # bytes of the intent ring
RECORD_KEYS = 1 << 14  # of one intent record, at most


@pytest.fixture
def parts() -> Iterator[tuple[Segment, RawSegment, KernelWorker]]:
    with kernel_worker([Table("t", rows=100, dim=4)], heap_bytes=HEAP) as made:
        yield made


@pytest.fixture
def segment(parts: tuple[Segment, RawSegment, KernelWorker]) -> Segment:
    return parts[0]


@pytest.fixture
def raw(parts: tuple[Segment, RawSegment, KernelWorker]) -> RawSegment:
    return parts[1]


@pytest.fixture
def worker(parts: tuple[Segment, RawSegment, KernelWorker]) -> KernelWorker:
    return parts[2]


# ---- intents and clock


def test_intents_arrive_in_order(raw: RawSegment, worker: KernelWorker) -> None:
    assert worker.intent([5, 99, 5], 3, 7) == 3
    assert worker.intent([1, 2], 0, 1) == 2
    assert raw.intents() == [(0, 3, 7, [5, 99, 5]), (0, 0, 1, [1, 2])]
    assert worker.counters()["intent_keys"] == 5


@pytest.mark.parametrize("key", [-1, 100, 2**40])
def test_keys_of_no_row_are_refused(raw: RawSegment, worker: KernelWorker, key: int) -> None:
    assert worker.intent([1, key, 2], 0, 1) == -errno.ERANGE
    assert raw.intents() == []


def test_no_intents(raw: RawSegment, worker: KernelWorker) -> None:
    assert worker.intent([], 0, 1) == 0
    assert raw.intents() == []
    assert worker.counters()["waits"] == 0


def test_full_intent_ring_takes_what_fits(raw: RawSegment, worker: KernelWorker) -> None:
    keys = np.arange(RING) % 100
    took = worker.intent(keys, 0, 1)
    assert RING // 4 * 0.9 < took < RING // 4
    assert worker.intent(keys[took:], 0, 1) == 0
    assert worker.counters()["waits"] == 1
    records = raw.intents()
    assert max(len(record[3]) for record in records) == RECORD_KEYS
    assert [key for record in records for key in record[3]] == keys[:took].tolist()
    assert worker.intent(keys[took:], 0, 1) > 0


@pytest.mark.parametrize("rest", range(8, 64, 8))
def test_intents_around_the_end_of_the_ring(raw: RawSegment, worker: KernelWorker, rest: int) -> None:
    ring = raw.workers[0]["intent"]
    ring["head"] = ring["tail"] = 7 * RING - rest
    assert worker.intent([10, 11, 12, 13, 14], 1, 2) == 5
    keys = [key for record in raw.intents() for key in record[3]]
    assert keys == [10, 11, 12, 13, 14]


def test_intent_wakes_a_sleeping_node_only(raw: RawSegment, worker: KernelWorker) -> None:
    worker.intent([1], 0, 1)
    assert not fired(worker.node_fd)
    raw.lane["asleep"] = 1
    worker.intent([1], 0, 1)
    assert fired(worker.node_fd)


def test_clock(raw: RawSegment, worker: KernelWorker) -> None:
    assert lib.adapm_clock(worker.pointer) == 0
    raw.workers[0]["wake_clock"] = 3
    assert [lib.adapm_advance_clock(worker.pointer) for _ in range(2)] == [1, 2]
    assert not fired(worker.node_fd)
    assert lib.adapm_advance_clock(worker.pointer) == 3 == raw.workers[0]["clock"]
    assert fired(worker.node_fd)


# ---- requests


def test_pull_there_and_back(raw: RawSegment, worker: KernelWorker) -> None:
    took, op = worker.post(lib.ADAPM_PULL, [7, 8, 9, 10], positions=[1, 3], columns=(2, 2))
    assert took == 2
    assert fired(worker.node_fd)
    (request,) = raw.requests()
    assert [int(request[f]) for f in ("op", "kind", "table", "n", "col_off", "col_len")] == [op, 1, 0, 2, 2, 2]
    assert raw.request_keys(request).tolist() == [8, 10]
    assert worker.completed() is None
    raw.request_rows(request)[:] = [[8, 80], [10, 100]]
    raw.complete(op)
    assert worker.completed() == (op, 0, 0)
    out = np.zeros((4, 2), np.float32)
    worker.collect(op, out, [1, 3])
    assert out.tolist() == [[0, 0], [8, 80], [0, 0], [10, 100]]


def test_collect_without_positions_or_target(raw: RawSegment, worker: KernelWorker) -> None:
    out = np.zeros((1, 4), np.float32)
    for target, expected in ((out, [[1, 2, 3, 4]]), (None, [[1, 2, 3, 4]])):
        _, op = worker.post(lib.ADAPM_PULL, [7], columns=(0, 4))
        raw.request_rows(raw.requests()[0])[:] = [1, 2, 3, 4]
        worker.collect(op, target)
        assert out.tolist() == expected


@pytest.mark.parametrize("name", ["ADAPM_PUSH", "ADAPM_SET"])
def test_values_are_copied_into_the_request(raw: RawSegment, worker: KernelWorker, name: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    worker.post(getattr(lib, name), [7, 8, 9], values, positions=[2, 0], columns=(0, 4))
    values[:] = -1
    (request,) = raw.requests()
    assert raw.request_keys(request).tolist() == [9, 7]
    assert raw.request_rows(request).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]


def test_requests_without_rows(raw: RawSegment, worker: KernelWorker) -> None:
    assert worker.post(lib.ADAPM_SYNC)[0] == worker.post(lib.ADAPM_BARRIER)[0] == 1
    assert [int(request["kind"]) for request in raw.requests()] == [4, 5]
    with pytest.raises(InternalError, match="Invalid argument"):
        worker.post(lib.ADAPM_PULL, [])


def test_requests_take_a_quarter_of_the_heap(raw: RawSegment, worker: KernelWorker) -> None:
    ops, keys = [], list(range(5000))
    while (posted := worker.post(lib.ADAPM_PULL, keys, columns=(0, 4)))[0]:
        ops.append(posted[1])
        assert posted[0] * 5 * 4 <= HEAP // 4
    assert len(ops) == 4
    assert worker.counters()["waits"] == 1
    spans = sorted((int(r["off"]), int(r["n"])) for r in raw.requests())
    heap = int(raw.workers[0]["off_heap"])
    assert heap <= spans[0][0]
    assert all(
        off + n * 20 <= after for (off, n), after in zip(spans, [s[0] for s in spans[1:]] + [heap + HEAP], strict=True)
    )
    worker.collect(ops[2])
    assert worker.post(lib.ADAPM_PULL, keys, columns=(0, 4))[0] > 0


def test_the_heap_is_whole_again_when_all_is_collected(
    raw: RawSegment, worker: KernelWorker, rng: np.random.Generator
) -> None:
    most, op = worker.post(lib.ADAPM_PULL, range(5000), columns=(0, 4))
    worker.collect(op)
    for _ in range(50):
        ops = [worker.post(lib.ADAPM_PULL, range(n), columns=(0, 4)) for n in rng.integers(1, 400, 30)]
        for index in rng.permutation(len(ops)):
            if ops[index][0]:
                worker.collect(ops[index][1])
        raw.requests()
    quarters = [worker.post(lib.ADAPM_PULL, range(5000), columns=(0, 4)) for _ in range(4)]
    assert [took for took, _ in quarters] == [most] * 4


def test_ops_are_limited_and_unique(raw: RawSegment, worker: KernelWorker) -> None:
    ops = [worker.post(lib.ADAPM_SYNC)[1] for _ in range(1024)]
    assert sorted(ops) == list(range(1024))
    assert worker.post(lib.ADAPM_SYNC)[0] == 0
    assert len(raw.requests()) == 1024
    for op in ops:
        raw.complete(op, -errno.ECONNRESET, detail=3)
    assert [worker.completed() for _ in range(1024)] == [(op, -errno.ECONNRESET, 3) for op in ops]
    worker.collect(ops[5])
    worker.collect(ops[5])  # once too often: no harm
    assert worker.post(lib.ADAPM_SYNC) == (1, ops[5])
    assert worker.post(lib.ADAPM_SYNC)[0] == 0


# ---- waiting


def test_wait_returns_at_once_when_something_is_there(raw: RawSegment, worker: KernelWorker) -> None:
    raw.complete(0)
    assert worker.wait() == 1
    assert raw.workers[0]["waiting"] == 0


def test_wait_ends_in_time(raw: RawSegment, worker: KernelWorker) -> None:
    assert worker.wait(0) == 0
    assert worker.wait(1) == 0
    assert raw.workers[0]["waiting"] == 0


def sleeping(raw: RawSegment, worker: KernelWorker) -> tuple[threading.Thread, list[int]]:
    """A thread in adapm_wait, which has said that it is about to sleep."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(worker.wait()))
    thread.start()
    while not raw.workers[0]["waiting"]:
        pass
    return thread, results


def test_wait_sleeps_until_the_node_writes(segment: Segment, raw: RawSegment, worker: KernelWorker) -> None:
    thread, results = sleeping(raw, worker)
    raw.complete(1)
    segment.fail(0, wake=[worker.worker_fd])  # no failure: only the wake-up
    thread.join()
    assert results == [1]
    assert not fired(worker.worker_fd)
    assert raw.workers[0]["waiting"] == 0


def test_failure_ends_every_wait(segment: Segment, raw: RawSegment, worker: KernelWorker) -> None:
    thread, results = sleeping(raw, worker)
    segment.fail(-errno.ECONNRESET, wake=[worker.worker_fd])
    thread.join()
    assert results == [-errno.ECONNRESET]
    assert worker.wait() == -errno.ECONNRESET
    raw.complete(1)
    assert worker.wait() == 1, "what was completed before the failure can still be had"


def test_room_in_the_intent_ring_ends_a_wait(raw: RawSegment, worker: KernelWorker) -> None:
    worker.intent(np.arange(RING) % 100, 0, 1)
    assert worker.intent([1], 0, 1) == 0
    assert worker.wait(0) == 0
    raw.intents()
    assert worker.wait() == 1
    assert worker.wait(0) == 0, "it is said once"


def test_arm_and_drain(raw: RawSegment, worker: KernelWorker) -> None:
    assert lib.adapm_arm(worker.pointer) == 0
    assert raw.workers[0]["waiting"] == 1
    lib.adapm_drain_fd(worker.pointer)
    assert raw.workers[0]["waiting"] == 0
    raw.complete(0)
    assert lib.adapm_arm(worker.pointer) == 1
    assert raw.workers[0]["waiting"] == 0
