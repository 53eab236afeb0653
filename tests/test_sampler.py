"""Samples as workers prepare and pull them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import adapm
import tasks
from adapm import BlockingWorker, Sampling, Table, Worker
from adapm.errors import (
    BufferNotUsable,
    Closed,
    IntentRangeError,
    NodeLost,
    SampleError,
    ShapeError,
    UnknownColumn,
    UnknownTable,
)
from adapm.sampling import TECHNIQUES
from chi_square import deviation
from desk import Desk

ROWS = 200
VALUES = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
WEIGHTS = np.arange(ROWS) % 5.0


def table(technique: str = "preloc", rows: int = ROWS, **options: Any) -> Table:
    values = VALUES if rows == ROWS else None
    init = {"init": values} if values is not None else {}
    return Table("t", rows=rows, columns={"a": 1, "b": 2}, sampling=Sampling(technique=technique, **options), **init)


@pytest.fixture
def make_desk() -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def make(*args: Any, **options: Any) -> Desk:
        opened.append(Desk(*args, **options))
        return opened[-1]

    yield make
    for desk in opened:
        desk.close()


# ---- every technique


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("replacement", [True, False])
def test_keys_come_with_their_rows(make_desk: Callable[..., Desk], technique: str, replacement: bool) -> None:
    desk = make_desk([table(technique, weights=WEIGHTS, replacement=replacement)])
    worker = desk.blocking_worker()
    with desk.running():
        sample = worker.prepare_sample("t", 100, worker.clock + 1)
        assert (sample.table, sample.n, sample.left) == ("t", 100, 100)
        keys, rows = worker.pull_sample(sample, 30)
        assert (keys.dtype, keys.shape, rows.dtype) == (np.int64, (30,), np.float32)
        assert np.array_equal(rows, VALUES[keys])
        assert (sample.n, sample.left) == (100, 70)
        out = np.empty((70, 2), np.float32)
        more, filled = worker.pull_sample(sample, columns="b", out=out)
        assert filled is out
        assert np.array_equal(out, VALUES[more, 1:])
        assert sample.left == 0
        all_keys = np.concatenate([keys, more])
        assert np.array_equal(sample.keys, all_keys)
        assert (WEIGHTS[all_keys] > 0).all()
        assert replacement or len(set(all_keys.tolist())) == 100
        assert worker.pull_sample(sample)[1].shape == (0, 3)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_coroutine_pulls_samples_too(make_desk: Callable[..., Desk], technique: str) -> None:
    desk = make_desk([table(technique)])
    worker = desk.worker()

    async def pull() -> None:
        first, second = (worker.prepare_sample("t", 50, 0) for _ in range(2))
        one, two = worker.pull_sample(first), worker.pull_sample(second, columns="a")
        for (keys, rows), expected in zip(await asyncio.gather(one, two), (VALUES, VALUES[:, :1]), strict=True):
            assert np.array_equal(rows, expected[keys])
        assert one.done()
        assert np.array_equal(one.keys, one.result()[0])

    with desk.running():
        asyncio.run(pull())


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_keys_are_distributed_as_the_table_says(make_desk: Callable[..., Desk], technique: str) -> None:
    """On one node, where all rows are local; each pool is used once, since its other uses are not independent."""
    worker = make_desk([table(technique, weights=WEIGHTS, uses=1)], nodes=1).blocking_worker()
    keys = np.concatenate([worker.pull_sample(worker.prepare_sample("t", 700, 0))[0] for _ in range(500)])
    assert deviation(np.bincount(keys, minlength=ROWS), WEIGHTS / WEIGHTS.sum()) < 1


def drawn(worker: BlockingWorker, name: str = "t", n: int = 64) -> list[int]:
    return worker.pull_sample(worker.prepare_sample(name, n, 0))[0].tolist()


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_streams_are_reproducible_and_each_workers_own(make_desk: Callable[..., Desk], technique: str) -> None:
    sampling = Sampling(technique=technique)
    tables = [Table(name, rows=100_000, dim=1, sampling=sampling) for name in ("t", "u")]
    desk, again = (make_desk(tables, nodes=1, workers=2) for _ in range(2))
    first, second, repeated = desk.blocking_worker(0, 0), desk.blocking_worker(0, 1), again.blocking_worker(0, 0)
    keys = [drawn(first), drawn(first)]
    assert keys == [drawn(repeated), drawn(repeated)]
    assert keys[0] != keys[1]
    assert drawn(second) not in keys
    assert drawn(first, "u") not in keys


def test_the_way_keys_are_pulled_does_not_matter(make_desk: Callable[..., Desk]) -> None:
    whole, parts = (make_desk([table("local", replacement=False)], nodes=1).blocking_worker() for _ in range(2))
    sample, same = whole.prepare_sample("t", ROWS, 0), parts.prepare_sample("t", ROWS, 0)
    keys = whole.pull_sample(sample)[0].tolist()
    assert sorted(keys) == list(range(ROWS))
    cut = [key for n in (1, 50, 0, 149) for key in parts.pull_sample(same, n)[0].tolist()]
    assert sorted(cut) == sorted(keys)


# ---- intent


def remote_keys(keys: np.ndarray, worker: Worker) -> int:
    return int((~worker.is_local("t", keys)).sum())


@pytest.mark.parametrize("technique", ["preloc", "pool"])
def test_a_prepared_sample_signals_its_intent(make_desk: Callable[..., Desk], technique: str) -> None:
    desk = make_desk([table(technique)])
    worker = desk.blocking_worker()
    sample = worker.prepare_sample("t", 80, 1, 3)
    assert worker.statistics().intent_keys == 80
    assert remote_keys(sample.keys, worker) > 0
    desk.turn()
    worker.advance_clock()
    desk.turn()
    assert remote_keys(sample.keys, worker) == 0
    keys, _ = worker.pull_sample(sample)
    assert worker.statistics().pull_local == 80
    assert not sample.keys.flags.writeable
    for _ in range(2):
        worker.advance_clock()
        desk.turn()
    assert all(desk.lanes[0].inspect(0, int(key)).intents == 0 for key in keys)  # they have ended


@pytest.mark.parametrize(("technique", "nodes"), [("naive", 2), ("local", 2), ("preloc", 1), ("pool", 1)])
def test_where_it_leads_to_nothing_no_intent_is_signalled(
    make_desk: Callable[..., Desk], technique: str, nodes: int
) -> None:
    worker = make_desk([table(technique)], nodes=nodes).blocking_worker()
    worker.prepare_sample("t", 80, 1)
    assert worker.statistics().intent_keys == 0


# ---- pool


def test_a_pool_is_used_so_often_each_time_in_another_order(make_desk: Callable[..., Desk]) -> None:
    worker = make_desk([table("pool", rows=100_000, pool=50, uses=3)], nodes=1).blocking_worker()
    uses = [drawn(worker, n=50) for _ in range(6)]
    first, second = uses[:3], uses[3:]
    assert len({tuple(use) for use in uses}) == 6
    assert all(sorted(use) == sorted(first[0]) for use in first)
    assert all(sorted(use) == sorted(second[0]) for use in second)
    assert sorted(first[0]) != sorted(second[0])


def test_workers_of_a_node_share_its_pools(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk([table("pool", rows=100_000, pool=50, uses=2)], nodes=2, workers=2)
    orders = {}
    with desk.running():
        for node, slot in ((0, 0), (0, 1), (1, 0)):
            worker = desk.blocking_worker(node, slot)
            orders[node, slot] = [drawn(worker, n=30) for _ in range(10)]  # three pools, which samples do not fit
    pools = {who: np.sort(np.reshape(order, (3, 100))).tolist() for who, order in orders.items()}
    assert pools[0, 0] == pools[0, 1]
    assert orders[0, 0] != orders[0, 1]
    assert pools[1, 0] != pools[0, 0]


def test_a_sample_without_replacement_lies_within_one_use(make_desk: Callable[..., Desk]) -> None:
    worker = make_desk([table("pool", pool=50, uses=4, replacement=False)], nodes=1).blocking_worker()
    for _ in range(20):
        assert len(set(drawn(worker, n=40))) == 40


def test_a_pool_without_replacement_is_no_larger_than_the_table(make_desk: Callable[..., Desk]) -> None:
    worker = make_desk([table("pool", replacement=False)], nodes=1).blocking_worker()
    assert sorted(drawn(worker, n=ROWS)) == list(range(ROWS))


# ---- local


def test_local_samples_are_local(make_desk: Callable[..., Desk]) -> None:
    worker = make_desk([table("local")]).blocking_worker()
    here = worker.is_local("t", np.arange(ROWS))
    assert 0 < here.sum() < ROWS
    keys = np.array(drawn(worker, n=50_000))
    assert worker.statistics().pull_local == 50_000
    assert deviation(np.bincount(keys, minlength=ROWS), here / here.sum()) < 1


@pytest.mark.parametrize("replacement", [True, False])
def test_local_samples_with_nothing_local_are_pulled_from_elsewhere(
    make_desk: Callable[..., Desk], replacement: bool
) -> None:
    desk = make_desk([table("local", rows=1, replacement=replacement)])
    nowhere = next(node for node in (0, 1) if not desk.worker(node).is_local("t", [0])[0])
    desk.close()
    desk = make_desk([table("local", rows=1, replacement=replacement)])
    worker = desk.blocking_worker(nowhere)
    with desk.running():
        keys, rows = worker.pull_sample(worker.prepare_sample("t", 1, 0))
    assert (keys.tolist(), rows.shape) == ([0], (1, 3))
    assert worker.statistics().pull_local == 0


# ---- misuse


@pytest.mark.parametrize(
    ("options", "n", "message"),
    [
        ({}, -1, "a sample has 0 to 2,147,483,647 keys, got -1"),
        ({}, 2**31, "got 2147483648"),
        ({}, 1.5, "got 1.5"),
        ({}, True, "got True"),
        ({"replacement": False}, ROWS + 1, "201 keys without replacement, but only 200 rows can be drawn: ask for"),
        ({"replacement": False, "weights": WEIGHTS}, 161, "161 keys without replacement, but only 160 rows"),
        ({"replacement": False, "technique": "local"}, ROWS + 1, "only 200 rows can be drawn"),
        (
            {"replacement": False, "technique": "pool", "pool": 50},
            51,
            r"from pools of 50: ask for .*Sampling\(pool=...",
        ),
    ],
)
def test_impossible_samples_are_refused_and_change_nothing(
    make_desk: Callable[..., Desk], options: dict[str, Any], n: Any, message: str
) -> None:
    tables = [table(**options)]
    worker, untouched = (make_desk(tables).blocking_worker() for _ in range(2))
    with pytest.raises(SampleError, match=f"table 't'.*{message}"):
        worker.prepare_sample("t", n, 0)
    assert worker.statistics().intent_keys == 0
    assert np.array_equal(worker.prepare_sample("t", 20, 0).keys, untouched.prepare_sample("t", 20, 0).keys)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 11}, SampleError, "11 keys cannot be pulled from a sample with 10 left of 10"),
        ({"n": -1}, SampleError, "-1 keys"),
        ({"n": 2.0}, SampleError, "2.0 keys"),
        ({"columns": "c"}, UnknownColumn, "no column group 'c'"),
        ({"n": 4, "out": np.empty((5, 3), np.float32)}, ShapeError, r"need \[4, 3\]"),
        ({"out": np.empty((10, 3))}, BufferNotUsable, "float64"),
    ],
)
def test_a_wrong_pull_is_refused_and_uses_no_key(
    make_desk: Callable[..., Desk], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    worker = make_desk([table("local")], nodes=1).blocking_worker()
    sample = worker.prepare_sample("t", 10, 0)
    with pytest.raises(error, match=message):
        worker.pull_sample(sample, **arguments)
    assert sample.left == 10
    assert len(sample.keys) == 0
    assert worker.statistics().pull_keys == 0


def test_other_misuse_is_named(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk([table()], nodes=1, workers=2)
    worker, other = desk.blocking_worker(0, 0), desk.blocking_worker(0, 1)
    with pytest.raises(UnknownTable, match="no table 'x'"):
        worker.prepare_sample("x", 1, 0)
    with pytest.raises(IntentRangeError, match="start=3, end=3"):
        worker.prepare_sample("t", 1, 3, 3)
    sample = other.prepare_sample("t", 5, 0)
    with pytest.raises(SampleError, match="prepared by another worker"):
        worker.pull_sample(sample)
    other.close()
    with pytest.raises(Closed):
        other.prepare_sample("t", 1, 0)
    with pytest.raises(Closed):
        other.pull_sample(sample)


def test_a_lost_node_ends_the_pull_of_its_rows(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk([table("naive")])
    worker = desk.blocking_worker()
    pull = worker.pull_sample_later(worker.prepare_sample("t", ROWS, 0))
    assert not pull.done()
    desk.lanes[0].serve()
    desk.lose(1)
    with pytest.raises(NodeLost):
        pull.result()


# ---- whole runs


def test_whole_runs_sample() -> None:
    """Every technique: rows are right, and the same seed draws the same keys in processes and in threads."""
    tables = [
        Table(
            name,
            rows=1000,
            dim=2,
            init=np.arange(2000).reshape(1000, 2).astype(np.float32),
            sampling=Sampling(weights=1 / (1 + np.arange(1000)), technique=name, replacement=name != "pool", pool=500),
        )
        for name in TECHNIQUES
    ]
    places = {"processes": (2, "2"), "threads": (2, "threads:2"), "one node": (1, "threads:2")}
    outcomes = {
        place: adapm.run(tasks.sample, tables, args=(20,), nodes=nodes, workers=workers, seed=5)
        for place, (nodes, workers) in places.items()
    }
    assert [wrong for outcome in outcomes.values() for wrong, _ in outcome] == [[]] * 10
    assert outcomes["processes"] == outcomes["threads"]
    assert outcomes["processes"][:2] == outcomes["one node"]
    assert len({tuple(keys.values()) for _, keys in outcomes["processes"]}) == 4
