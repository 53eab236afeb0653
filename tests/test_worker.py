"""Workers against real segments and lanes, without processes: see desk.py."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from adapm import BlockingWorker, Table, Worker, errors, memory
from adapm.mailbox import NOTHING, Operation, Ready
from adapm.statistics import Statistics
from desk import Desk

ROWS = 400
TABLES = [
    Table(
        "wide", rows=ROWS, columns={"value": 6, "adagrad": 2}, init={"value": np.arange(ROWS * 6.0).reshape(ROWS, 6)}
    ),
    Table("narrow", rows=ROWS, dim=1),
]
ALL = np.arange(ROWS)
WIDE = np.hstack([np.arange(ROWS * 6.0).reshape(ROWS, 6), np.zeros((ROWS, 2))]).astype(np.float32)


@pytest.fixture
def make_desk() -> Iterator[Callable[..., Desk]]:
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(contextlib.closing(Desk(*args, **kwargs)))


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk(TABLES)


@pytest.fixture
def worker(desk: Desk) -> Worker:
    return desk.worker()


@pytest.fixture
def local(worker: Worker) -> np.ndarray:
    return np.flatnonzero(worker.is_local("wide", ALL))


@pytest.fixture
def remote(worker: Worker) -> np.ndarray:
    return np.flatnonzero(~worker.is_local("wide", ALL))


# ---- what a worker is


def test_a_worker_knows_its_place(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES, nodes=2, workers=2)
    worker = desk.worker(node=1, slot=1)
    assert (worker.id, worker.node, worker.num_nodes, worker.num_workers) == (3, 1, 2, 4)
    assert worker.tables == {table.name: table for table in TABLES}
    assert worker.clock == 0
    assert [worker.advance_clock(), worker.advance_clock(), worker.clock] == [1, 2, 2]


def test_each_worker_draws_its_own_reproducible_numbers(make_desk: Callable[..., Desk]) -> None:
    desk, again = make_desk(TABLES), make_desk(TABLES)
    first, second, repeated = desk.worker(0), desk.worker(1), again.worker(0)
    drawn = first.rng.random(4)
    assert np.array_equal(drawn, repeated.rng.random(4))
    assert not np.array_equal(drawn, second.rng.random(4))


def test_both_kinds_of_worker_have_the_same_methods() -> None:
    later = {"pull_later", "push_later", "set_later", "pull_sample_later"}
    names, blocking = ({n for n in dir(kind) if not n.startswith("_")} for kind in (Worker, BlockingWorker))
    assert blocking - later == names
    for name in names:
        a, b = getattr(Worker, name), getattr(BlockingWorker, name)
        if callable(a):
            assert list(inspect.signature(a).parameters) == list(inspect.signature(b).parameters)


# ---- local operations


def test_a_local_operation_is_complete_when_it_returns(worker: Worker, local: np.ndarray) -> None:
    assert 0 < len(local) < ROWS
    pull = worker.pull("wide", local)
    assert isinstance(pull, Ready)
    assert pull.done()
    assert np.array_equal(pull.result(), WIDE[local])
    assert worker.push("wide", local, np.ones((len(local), 8), np.float32)) is NOTHING
    assert worker.set("wide", local[:1], np.ones((1, 8), np.float32)) is NOTHING


def test_local_operations_cost_no_request(desk: Desk, worker: Worker, local: np.ndarray) -> None:
    worker.pull("wide", local)
    worker.push("wide", local, np.ones((len(local), 8)))
    statistics = worker.statistics()
    assert (statistics.pull_keys, statistics.pull_local) == (len(local), len(local))
    assert (statistics.push_keys, statistics.push_local) == (len(local), len(local))
    assert statistics.local_fraction == statistics.push_local_fraction == 1.0
    desk.turn()
    assert worker.statistics().node.frames_out == 0


def test_duplicates_are_legal_everywhere(desk: Desk, worker: Worker, local: np.ndarray, remote: np.ndarray) -> None:
    keys = np.array([local[0], remote[0], local[0], remote[0], remote[0]])
    with desk.running():
        push = worker.push("narrow", keys, np.ones((5, 1)))
        push.result()
        assert worker.pull("narrow", keys).result().ravel().tolist() == [2, 3, 2, 3, 3]
        worker.intent("narrow", keys, start=0)


def test_the_last_value_of_a_key_set_twice_stays(
    desk: Desk, worker: Worker, local: np.ndarray, remote: np.ndarray
) -> None:
    keys = np.concatenate([local, remote] * 3)
    with desk.running():
        worker.set("narrow", keys, np.arange(len(keys))[:, None].astype(float)).result()
        rows = worker.pull("narrow", keys).result().ravel()
    expected = np.tile(np.arange(2 * ROWS, 3 * ROWS), 3)
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("columns", ["adagrad", ["adagrad"], ("value",), "value", ["value", "adagrad"], None])
def test_columns_address_a_part_of_each_row(desk: Desk, worker: Worker, columns: Any) -> None:
    offset, length = TABLES[0].span(columns)
    with desk.running():
        worker.set("wide", ALL, np.full((ROWS, length), 3.0), columns=columns).result()
        worker.push("wide", ALL, np.ones((ROWS, length)), columns=columns).result()
        part = worker.pull("wide", ALL, columns=columns).result()
        whole = worker.pull("wide", ALL).result()
    assert np.array_equal(part, np.full((ROWS, length), 4.0))
    expected = WIDE.copy()
    expected[:, offset : offset + length] = 4.0
    assert np.array_equal(whole, expected)


# ---- remote operations


def test_await_brings_rows_of_other_nodes(desk: Desk, worker: Worker) -> None:
    async def task() -> None:
        pull = worker.pull("wide", ALL)
        assert isinstance(pull, Operation)
        assert not pull.done()
        asyncio.get_running_loop().call_soon(desk.turn)
        rows = await pull
        assert np.array_equal(rows, WIDE)
        assert await pull is rows
        assert pull.result() is rows

    asyncio.run(task())


def test_the_local_part_is_done_before_the_call_returns(worker: Worker, local: np.ndarray) -> None:
    out = np.full((ROWS, 8), -1, np.float32)
    worker.pull("wide", ALL, out=out)
    assert np.array_equal(out[local], WIDE[local])
    worker.push("wide", ALL, np.ones((ROWS, 8)))
    assert np.array_equal(worker.pull("wide", local).result(), WIDE[local] + 1)


def test_inputs_may_be_reused_at_once(desk: Desk, worker: Worker) -> None:
    keys, values = ALL.copy(), np.ones((ROWS, 8), np.float32)
    push = worker.push("wide", keys, values)
    values[:] = 100
    keys[:] = 0
    desk.turn()
    push.result()
    keys[:] = ALL
    pull = worker.pull("wide", keys)
    keys[:] = 0
    desk.turn()
    assert np.array_equal(pull.result(), WIDE + 1)


def test_out_is_filled_and_returned(desk: Desk, worker: Worker) -> None:
    out = np.empty((ROWS, 8), np.float32)
    with desk.running():
        assert worker.pull("wide", ALL, out=out).result() is out
    assert np.array_equal(out, WIDE)


def test_operations_work_with_what_asyncio_offers(desk: Desk, worker: Worker, local: np.ndarray) -> None:
    async def task() -> None:
        with desk.running():
            pull = worker.pull("wide", ALL)
            push = worker.push("narrow", ALL, np.ones((ROWS, 1)))
            rows, nothing, here, _ = await asyncio.gather(pull, push, worker.pull("wide", local), NOTHING)
            assert np.array_equal(rows, WIDE)
            assert nothing is None
            assert np.array_equal(here, WIDE[local])
            assert np.array_equal(await asyncio.wait_for(worker.pull("wide", ALL), 60), WIDE)
            assert np.array_equal(await asyncio.wait_for(worker.pull("wide", local), 60), WIDE[local])
            await asyncio.wait_for(worker.push("narrow", local, np.ones((len(local), 1))), 60)
            both = await asyncio.gather(*(asyncio.ensure_future(pull) for _ in range(2)))
            assert both[0] is both[1]

    asyncio.run(task())


def test_several_tasks_may_await_one_pull(desk: Desk, worker: Worker) -> None:
    async def wait(pull: Any) -> Any:
        return await pull

    async def task() -> None:
        pull = worker.pull("wide", ALL)
        first, second = (asyncio.create_task(wait(pull)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()  # the other one still wants the rows
        await asyncio.sleep(0)
        desk.turn()
        assert np.array_equal(await second, WIDE)
        assert first.cancelled()

    asyncio.run(task())


def test_a_cancelled_pull_never_writes_out(desk: Desk, worker: Worker, remote: np.ndarray) -> None:
    out = np.full((ROWS, 8), -1, np.float32)

    async def task() -> None:
        pull = worker.pull("wide", ALL, out=out)
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(pull, 0)
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(pull, 0.001)
        desk.turn()
        with pytest.raises(asyncio.CancelledError):
            await pull
        await worker.push("narrow", remote[:0], np.empty((0, 1)))

    asyncio.run(task())
    assert (out[remote] == -1).all()


def test_a_push_goes_on_when_its_awaiter_is_cancelled(desk: Desk, worker: Worker) -> None:
    async def task() -> None:
        push = worker.push("narrow", ALL, np.ones((ROWS, 1)))
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await asyncio.wait_for(push, 0.001)
        desk.turn()
        await push
        with desk.running():
            assert (await worker.pull("narrow", ALL)).sum() == ROWS

    asyncio.run(task())


def test_the_loop_watches_only_while_something_is_open(desk: Desk, worker: Worker) -> None:
    async def task() -> None:
        loop = asyncio.get_running_loop()
        wakeups = worker._mailbox._wakeups.fileno()
        for _ in range(2):
            pull = worker.pull("wide", ALL)
            loop.call_soon(desk.turn)
            await pull
            assert not loop.remove_reader(wakeups)

    asyncio.run(task())
    asyncio.run(task())  # in another loop, too


def waits_for_room(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as the worker waits for what it has filled."""
    event = threading.Event()
    sleep = worker._mailbox._sleep

    def watched(timeout: float | None) -> None:
        event.set()
        sleep(timeout)

    monkeypatch.setattr(worker._mailbox, "_sleep", watched)
    return event


def test_large_operations_go_in_pieces_while_the_node_keeps_up(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = make_desk([Table("wide", rows=4_000, dim=64)], heap_bytes=1 << 16)  # the rows are 16 times as large
    worker = desk.worker()
    full = waits_for_room(worker, monkeypatch)
    keys = np.arange(4_000)
    values = np.random.default_rng(1).integers(0, 100, (4_000, 64)).astype(np.float32)

    async def task() -> None:
        with desk.running(after=full):
            await worker.push("wide", keys, values)
            pulls = [worker.pull("wide", keys) for _ in range(3)]
            for rows in await asyncio.gather(*pulls):
                assert np.array_equal(rows, values)

    asyncio.run(task())
    assert worker.statistics().waits > 0


def test_more_operations_than_the_rings_hold_wait_for_room(desk: Desk, worker: Worker, remote: np.ndarray) -> None:
    with desk.running():
        for _ in range(3_000):
            worker.push("narrow", remote[:1], np.ones((1, 1), np.float32))
        assert worker.pull("narrow", remote[:1]).result() <= 3_000

        async def task() -> None:
            await worker.wait_sync()

        asyncio.run(task())
        assert worker.pull("narrow", remote[:1]).result() == 3_000


def test_a_full_intent_ring_waits_for_the_node(desk: Desk, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.zeros(1_000_000, np.int64)  # four times what the ring holds
    with desk.running(after=waits_for_room(worker, monkeypatch)):
        worker.intent("wide", keys, start=0)
    statistics = worker.statistics()
    assert statistics.intent_keys == len(keys)
    assert statistics.waits > 0


def test_intent_makes_rows_local(desk: Desk, worker: Worker) -> None:
    worker.intent("wide", ALL, start=1, end=3)
    worker.intent("narrow", ALL[:0], start=0)
    worker.advance_clock()
    desk.turn()
    assert worker.is_local("wide", ALL).all()
    assert np.array_equal(worker.pull("wide", ALL).result(), WIDE)
    assert worker.statistics().node.relocations_in > 0


@pytest.mark.parametrize("empty", [[], (), np.empty(0, np.int64), np.empty(0, np.uint8)])
def test_empty_keys_are_fine_everywhere(desk: Desk, worker: Worker, empty: Any) -> None:
    assert worker.pull("wide", empty).result().shape == (0, 8)
    assert worker.pull("wide", empty, out=np.empty((0, 2), np.float32), columns="adagrad").result().shape == (0, 2)
    worker.push("wide", empty, np.empty((0, 8))).result()
    worker.push("wide", empty, []).result()
    worker.set("wide", empty, np.empty((0, 6)), columns="value").result()
    worker.intent("wide", empty, start=0)
    assert worker.is_local("wide", empty).shape == (0,)


# ---- synchronisation


def test_wait_sync_merges_unawaited_pushes_at_the_main_copies(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES)
    pushing, reading = desk.worker(0), desk.worker(1)

    async def task() -> None:
        with desk.running():
            pushing.push("narrow", ALL, np.ones((ROWS, 1)))
            await pushing.wait_sync()
        with desk.running():
            assert np.array_equal(await reading.pull("narrow", ALL), np.ones((ROWS, 1)))

    asyncio.run(task())


def test_after_a_barrier_everyone_sees_everything(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES)
    workers = [desk.worker(0), desk.worker(1)]

    async def task(worker: Worker) -> None:
        worker.intent("narrow", ALL, start=0, end=10)  # both nodes hold replicas
        await worker.wait_sync()
        await worker.barrier()
        worker.push("narrow", ALL, np.ones((ROWS, 1)))
        await worker.barrier()
        assert np.array_equal(await worker.pull("narrow", ALL), np.full((ROWS, 1), 2.0))

    async def both() -> None:
        with desk.running():
            await asyncio.gather(*map(task, workers))

    asyncio.run(both())


def test_read_table_gives_all_rows(make_desk: Callable[..., Desk]) -> None:
    table = Table("large", rows=3_000, dim=200, init=np.arange(600_000.0).reshape(3_000, 200))  # two pieces
    desk = make_desk([table])
    worker = desk.worker()
    with desk.running():
        rows = asyncio.run(worker.read_table("large"))
    assert np.array_equal(rows, np.arange(600_000, dtype=np.float32).reshape(3_000, 200))


def test_read_table_refuses_what_does_not_fit_into_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, there = desk.worker(), desk.blocking_worker(1)
    monkeypatch.setattr(memory, "available", lambda: memory.Available(ROWS * 2 * 4, "a test"))
    text = "all 400 rows of table 'wide' take 12,800 bytes here, but 3,200 are free .a test.: pull them in pieces"
    with pytest.raises(errors.OutOfMemory, match=text):
        asyncio.run(worker.read_table("wide"))
    with pytest.raises(errors.OutOfMemory, match=text):
        there.read_table("wide")
    with desk.running():
        assert asyncio.run(worker.read_table("wide", columns="adagrad")).shape == (ROWS, 2)


# ---- the blocking face


def test_a_blocking_worker_does_the_same_without_await(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES, nodes=2)
    here, there = desk.blocking_worker(0), desk.blocking_worker(1)
    with desk.running():
        here.set("narrow", ALL, np.full((ROWS, 1), 5.0))
        here.push("narrow", ALL, np.ones((ROWS, 1)))
        assert (here.pull("narrow", ALL) == 6).all()
        later = [here.push_later("narrow", ALL, np.ones((ROWS, 1))), here.set_later("wide", ALL, WIDE + 1)]
        pull = here.pull_later("wide", ALL)
        for outcome in later:
            assert outcome.result() is None
        assert pull.result(timeout=60).shape == (ROWS, 8)
        assert pull.done()
        here.wait_sync()
        other = threading.Thread(target=there.barrier)
        other.start()
        here.barrier()
        other.join()
        assert (there.read_table("narrow") == 7).all()
        assert np.array_equal(there.read_table("wide", columns="adagrad"), np.ones((ROWS, 2)))


def test_result_with_a_timeout_may_be_asked_again(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES)
    worker = desk.blocking_worker()
    pull = worker.pull_later("wide", ALL)
    with pytest.raises(TimeoutError, match="pull from table 'wide'"):
        pull.result(timeout=0)
    with pytest.raises(TimeoutError):
        pull.result(timeout=0.01)
    assert not pull.done()
    desk.turn()
    assert pull.done()
    assert np.array_equal(pull.result(timeout=0), WIDE)


# ---- failures


def test_a_lost_node_is_named_by_whoever_awaits(desk: Desk, worker: Worker) -> None:
    async def task() -> None:
        pull = worker.pull("wide", ALL)
        desk.lanes[0].serve()
        desk.lose(1)
        with pytest.raises(errors.NodeLost, match="pull from table 'wide'") as caught:
            await pull
        assert caught.value.node == 1
        assert isinstance(caught.value, ConnectionError)
        with pytest.raises(errors.NodeLost):
            await pull
        with desk.running():
            await worker.wait_sync()  # somebody was told

    asyncio.run(task())


def test_the_failure_of_an_unawaited_push_surfaces_once(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(TABLES)
    worker = desk.blocking_worker()
    for _ in range(2):
        worker.push_later("narrow", ALL, np.ones((ROWS, 1)))
    worker.pull_later("narrow", ALL)
    desk.lanes[0].serve()
    desk.lose(1)
    with desk.running():
        with pytest.raises(errors.NodeLost, match="push to table 'narrow'"):
            worker.wait_sync()
        worker.wait_sync()


@pytest.mark.parametrize("end", ["said", "silent"])
def test_a_node_that_fails_ends_every_wait(make_desk: Callable[..., Desk], end: str) -> None:
    desk = make_desk(TABLES)
    worker = desk.blocking_worker()
    pull = worker.pull_later("wide", ALL)
    if end == "said":
        desk.fail(0, errors.NodeLost("node 1 is lost: it was killed"))
        kind, text = errors.NodeLost, "node 1 is lost: it was killed"
    else:
        desk.kill(0)
        kind, text = errors.NodeDied, "node 0 died"
    for _ in range(2):
        with pytest.raises(kind, match=text):
            pull.result()
        with pytest.raises(kind, match=text):
            worker.wait_sync()
        with pytest.raises(kind, match=text):
            worker.intent("wide", ALL, start=1)
    worker.advance_clock()  # what needs no node still works


@pytest.mark.parametrize("end", ["said", "silent"])
def test_a_node_that_fails_wakes_the_loop(desk: Desk, worker: Worker, end: str) -> None:
    async def task() -> None:
        pulls = [worker.pull("wide", ALL) for _ in range(2)]
        loop = asyncio.get_running_loop()
        if end == "said":
            loop.call_soon(desk.fail, 0, errors.WorkerDied("worker 1 died"))
        else:
            loop.call_soon(desk.kill, 0)
        for error in await asyncio.gather(*pulls, return_exceptions=True):
            assert isinstance(error, errors.WorkerDied if end == "said" else errors.NodeDied)

    asyncio.run(task())


def test_a_closed_worker_says_so(desk: Desk) -> None:
    worker = desk.blocking_worker()
    pull = worker.pull_later("wide", ALL)
    worker.close()
    worker.close()
    calls: list[Callable[[], object]] = [
        pull.result,
        lambda: worker.pull("wide", ALL),
        lambda: worker.push("wide", ALL, WIDE),
        lambda: worker.intent("wide", ALL, 1),
        lambda: worker.is_local("wide", ALL),
        worker.advance_clock,
        worker.wait_sync,
        worker.barrier,
        worker.statistics,
    ]
    for call in calls:
        with pytest.raises(errors.Closed, match="closed"):
            call()


# ---- arguments


@pytest.mark.parametrize(
    "keys",
    [
        [0, 7, 3],
        (0, 7, 3),
        np.array([0, 7, 3], np.uint8),
        np.array([0, 7, 3], np.int32),
        np.array([0, 7, 3], np.uint64),
        np.array([0, 7, 3], ">i8"),
        np.array([0, -1, 7, -1, 3])[::2],
        [np.int16(0), np.uint32(7), 3],
    ],
)
def test_keys_of_every_integer_kind_are_taken(worker: Worker, keys: Any) -> None:
    expected = WIDE[np.asarray(keys).astype(int)]
    here = worker.is_local("wide", keys)
    out = np.zeros((3, 8), np.float32)
    worker.pull("wide", keys, out=out)
    assert np.array_equal(out[here], expected[here])


class Tensor:
    """Like a torch tensor on the CPU."""

    def __init__(self, data: Any, dtype: Any) -> None:
        self.data = np.array(data, dtype)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if self.data.dtype == np.float16:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.data if dtype is None else self.data.astype(dtype)


def test_tensors_are_taken_through_numpy(worker: Worker, local: np.ndarray) -> None:
    keys = Tensor(local[:2], np.int64)
    worker.push("wide", keys, Tensor([[1.5, 2.5]] * 2, np.float32), columns="adagrad")
    assert worker.pull("wide", keys, columns="adagrad").result().tolist() == [[1.5, 2.5]] * 2
    with pytest.raises(errors.DtypeError, match=r"detach\(\)"):
        worker.push("wide", keys, Tensor([[1, 2]] * 2, np.float16), columns="adagrad")


BAD_KEYS: list[tuple[Any, type[Exception], type[Exception], str]] = [
    ([0, ROWS], errors.KeyRangeError, IndexError, "table 'narrow': key 400 at position 1 .* 0 to 399"),
    ([0, -1], errors.KeyRangeError, IndexError, "key -1 at position 1"),
    (np.array([3, 2**63 + 5], np.uint64), errors.KeyRangeError, IndexError, f"key {2**63 + 5} at position 1"),
    ([1, 2**63], errors.KeyRangeError, IndexError, f"key {2**63} at position 1"),
    ([1, 2**70], errors.KeyRangeError, IndexError, f"key {2**70} at position 1"),
    (
        np.array([1.0, 2.0]),
        errors.KeyTypeError,
        TypeError,
        r"got dtype float64; convert them with .astype\(numpy.int64\)",
    ),
    (np.array([]), errors.KeyTypeError, TypeError, "got dtype float64"),
    ([1.0], errors.KeyTypeError, TypeError, "got dtype float64"),
    (2.5, errors.KeyTypeError, TypeError, "got dtype float64"),
    (np.array([True, False]), errors.KeyTypeError, TypeError, r"got dtype bool; for a mask use numpy.flatnonzero"),
    (["a"], errors.KeyTypeError, TypeError, "keys must be integers"),
    ([None], errors.KeyTypeError, TypeError, "keys must be integers"),
    (None, errors.KeyTypeError, TypeError, "keys must be integers"),
    ({1, 2}, errors.KeyTypeError, TypeError, "keys must be integers"),
    (7, errors.ShapeError, ValueError, r"one-dimensional, got shape \[\]; write \[7\]"),
    ([[1, 2]], errors.ShapeError, ValueError, r"got shape \[1, 2\]; flatten them with .reshape"),
    ([[1], [1, 2]], errors.ShapeError, ValueError, "do not form an array"),
]


@pytest.mark.parametrize(("keys", "kind", "builtin", "text"), BAD_KEYS)
def test_bad_keys_are_refused_by_every_call(
    worker: Worker, keys: Any, kind: type[Exception], builtin: type[Exception], text: str
) -> None:
    before = worker.statistics()
    for call in (
        lambda: worker.pull("narrow", keys),
        lambda: worker.push("narrow", keys, np.ones((2, 1))),
        lambda: worker.set("narrow", keys, np.ones((2, 1))),
        lambda: worker.intent("narrow", keys, 1),
        lambda: worker.is_local("narrow", keys),
    ):
        with pytest.raises(kind, match=text) as caught:
            call()
        assert isinstance(caught.value, (builtin, errors.AdapmError))
        assert issubclass(kind, builtin)
    assert worker.statistics() == before


BAD_VALUES: list[tuple[Any, type[Exception], type[Exception], str]] = [
    (1.0, errors.ShapeError, ValueError, r"shape \[\], but 3 keys of 2 floats need \[3, 2\]; .* numpy.full\(\(3, 2\)"),
    (np.ones(2), errors.ShapeError, ValueError, r"shape \[2\].*broadcast_to\(row, \(3, 2\)\)"),
    (np.ones((3, 8)), errors.ShapeError, ValueError, r"shape \[3, 8\].*need \[3, 2\]; name the column group"),
    (np.ones((2, 2)), errors.ShapeError, ValueError, r"need \[3, 2\]"),
    ([], errors.ShapeError, ValueError, r"shape \[0\]"),
    ([[1.0, 2.0], [1.0], [3.0]], errors.ShapeError, ValueError, "do not form an array"),
    (np.ones((3, 2), np.int64), errors.DtypeError, TypeError, r"dtype int64.*astype\(numpy.float32\)"),
    (np.ones((3, 2), np.int32), errors.DtypeError, TypeError, "dtype int32"),
    (np.ones((3, 2), np.complex64), errors.DtypeError, TypeError, "dtype complex64"),
    (np.ones((3, 2), np.longdouble), errors.DtypeError, TypeError, "dtype"),
    (np.full((3, 2), "a"), errors.DtypeError, TypeError, "dtype"),
    (np.full((3, 2), None), errors.DtypeError, TypeError, "dtype object"),
    (np.full((3, 2), 1e300), errors.DtypeError, TypeError, r"too large for float32 \(largest magnitude 1e\+300\)"),
]


@pytest.mark.parametrize(("values", "kind", "builtin", "text"), BAD_VALUES)
def test_bad_values_are_refused_before_anything_changes(
    worker: Worker, local: np.ndarray, values: Any, kind: type[Exception], builtin: type[Exception], text: str
) -> None:
    assert issubclass(kind, builtin)
    for write in (worker.push, worker.set):
        with pytest.raises(kind, match=text) as caught:
            write("wide", local[:3], values, columns="adagrad")
        assert "table 'wide'" in str(caught.value)
    assert np.array_equal(worker.pull("wide", local).result(), WIDE[local])


@pytest.mark.parametrize(
    "values",
    [
        np.full((3, 2), 2.0),
        np.full((3, 2), 2, np.float16),
        np.full((3, 2), 2, np.int16),
        np.full((3, 2), 2, np.uint8),
        np.full((3, 2), 2, ">f4"),
        np.full((6, 4), 2, np.float32)[::2, ::2],
        np.broadcast_to(np.full(2, 2, np.float32), (3, 2)),
        [[2, 2], [2.0, 2], [2, 2]],
        [[2, 2], [2, 2], [2, 2]],
    ],
)
def test_values_that_fit_are_converted(worker: Worker, local: np.ndarray, values: Any) -> None:
    worker.set("wide", local[:3], values, columns="adagrad")
    assert (worker.pull("wide", local[:3], columns="adagrad").result() == 2).all()


BAD_OUT: list[tuple[Any, type[Exception], str]] = [
    (np.empty((2, 8), np.float32), errors.ShapeError, r"shape \[2, 8\], but 3 keys of 8 floats need \[3, 8\]"),
    (np.empty((3, 8)), errors.BufferNotUsable, "dtype float64; make it float32"),
    (np.empty((6, 8), np.float32)[::2], errors.BufferNotUsable, "not C-contiguous"),
    (np.empty((8, 3), np.float32).T, errors.BufferNotUsable, "not C-contiguous"),
    (np.broadcast_to(np.float32(0), (3, 8)), errors.BufferNotUsable, "read-only"),
    ([[0.0] * 8] * 3, errors.BufferNotUsable, "out is a list"),
    (Tensor(np.zeros((3, 8)), np.float32), errors.BufferNotUsable, r"tensor.numpy\(\)"),
]


@pytest.mark.parametrize(("out", "kind", "text"), BAD_OUT)
def test_an_unusable_out_is_refused(worker: Worker, out: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        worker.pull("wide", [1, 2, 3], out=out)
    assert isinstance(caught.value, ValueError)
    assert "table 'wide'" in str(caught.value)


def test_a_read_only_out_is_refused(worker: Worker) -> None:
    out = np.zeros((3, 8), np.float32)
    out.flags.writeable = False
    with pytest.raises(errors.BufferNotUsable, match="read-only"):
        worker.pull("wide", [1, 2, 3], out=out)
    assert (out == 0).all()


@pytest.mark.parametrize("table", ["wyde", None, 3, ["wide"]])
def test_an_unknown_table_is_refused_first(worker: Worker, table: Any) -> None:
    for call in (worker.pull, worker.is_local):
        with pytest.raises(errors.UnknownTable, match="there is no table") as caught:
            call(table, [0.5])
        assert isinstance(caught.value, KeyError)
    with pytest.raises(errors.UnknownTable, match="did you mean 'wide'"):
        worker.push("wyde", [0.5], "nonsense")


def test_unknown_columns_are_refused_before_values(worker: Worker) -> None:
    for columns in ("valu", ["adagrad", "value"], []):
        with pytest.raises(errors.UnknownColumn, match=r"table 'wide'|adjacent"):
            worker.push("wide", [1], "nonsense", columns=columns)


BAD_CLOCKS = [
    ((3, 3), "end must be above start, got start=3, end=3"),
    ((3, 1), "start=3, end=1"),
    ((-1, None), "start=-1"),
    ((-1, 5), "start=-1"),
    ((2**63 - 1, None), r"2\*\*63"),
    ((1.5, None), "clocks are integers, got start=1.5"),
    ((1, "2"), "clocks are integers"),
]


@pytest.mark.parametrize(("clocks", "text"), BAD_CLOCKS)
def test_impossible_clocks_are_refused(worker: Worker, clocks: tuple[Any, Any], text: str) -> None:
    with pytest.raises(errors.IntentRangeError, match=text) as caught:
        worker.intent("wide", [1], *clocks)
    assert isinstance(caught.value, ValueError)
    assert worker.statistics().intent_keys == 0


def test_an_intent_in_the_past_is_legal(desk: Desk, worker: Worker) -> None:
    for _ in range(5):
        worker.advance_clock()
    worker.intent("wide", ALL, start=2, end=9)
    worker.intent("narrow", ALL, start=np.int64(1), end=2)
    desk.turn()
    assert worker.is_local("wide", ALL).all()
    assert not worker.is_local("narrow", ALL).all()


def test_statistics_are_a_frozen_value(worker: Worker) -> None:
    statistics = worker.statistics()
    assert isinstance(statistics, Statistics)
    with pytest.raises(AttributeError):
        statistics.pull_keys = 3  # type: ignore[misc]
