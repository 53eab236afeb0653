"""Plans, and pulls whose arrays come again: the same results as calls that are prepared every time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adapm import Table, constant, errors
from adapm.worker import BlockingWorker, Worker
from desk import Desk

ROWS = 60
INITIAL = {"value": constant(1.0), "sums": constant(2.0)}
TABLES = [Table("t", rows=ROWS, columns={"value": 3, "sums": 2}, init=INITIAL)]
ALL = np.arange(ROWS)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with contextlib.closing(Desk(TABLES)) as made:
        yield made


def test_a_plan_reads_and_adds(desk: Desk) -> None:
    worker: Worker = desk.worker()
    plan = worker.plan("t", ALL)
    with desk.running():
        assert plan.pull().result() is plan.rows
        assert plan.rows.tolist() == [[1, 1, 1, 2, 2]] * ROWS
        plan.push(np.ones((ROWS, 5), np.float32)).result()

        async def again() -> np.ndarray:
            await plan.push(plan.rows)
            return await plan.pull()

        assert asyncio.run(again()).tolist() == [[3, 3, 3, 5, 5]] * ROWS


def test_a_blocking_plan_does_the_same_without_await(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    out = np.empty((ROWS, 2), np.float32)
    plan = worker.plan("t", ALL, out, columns="sums")
    with desk.running():
        assert plan.pull() is plan.rows is out
        assert plan.push([[1.0, 2.0]] * ROWS) is None
        assert plan.pull().tolist() == [[3, 4]] * ROWS
    assert worker.statistics().pull_keys == 2 * ROWS


def test_what_the_arrays_hold_may_change(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    keys = np.flatnonzero(worker.is_local("t", ALL))[:2]
    values, strided = np.ones((2, 5), np.float32), np.ones((2, 10), np.float32)[:, ::2]
    plan = worker.plan("t", keys)
    plan.push(values)
    values *= 10
    plan.push(values)
    plan.push(strided)
    strided *= 100
    plan.push(strided)
    assert plan.pull()[:, 0].tolist() == [113, 113]
    keys[0] = keys[1]
    assert plan.push(values) is None
    assert plan.pull()[:, 0].tolist() == [133, 133]


def test_what_a_plan_refuses(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    bad: list[tuple[Any, ...]] = [
        (errors.UnknownTable, "u", ALL),
        (errors.KeyTypeError, "t", [0.5]),
        (errors.ShapeError, "t", ALL, np.empty((1, 5), np.float32)),
        (errors.BufferNotUsable, "t", ALL, np.empty((ROWS, 5))),
    ]
    for kind, *arguments in bad:
        with pytest.raises(kind):
            worker.plan(*arguments)
    with pytest.raises(errors.UnknownColumn):
        worker.plan("t", ALL, columns="vallue")
    keys = np.array([0, 1])
    plan = worker.plan("t", keys)
    with pytest.raises(errors.ShapeError, match="values have shape"):
        plan.push(np.ones((3, 5)))
    keys[1] = ROWS
    for call in (plan.pull, lambda: plan.push(np.ones((2, 5)))):
        with pytest.raises(errors.KeyRangeError, match=f"table 't': key {ROWS} at position 1"):
            call()


def test_a_plan_ends_with_its_worker(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    keys = np.flatnonzero(worker.is_local("t", ALL))
    plan = worker.plan("t", keys)
    plan.push(np.ones((len(keys), 5)))
    worker.close()
    for call in (plan.pull, lambda: plan.push(np.ones((len(keys), 5)))):
        with pytest.raises(errors.Closed):
            call()


def test_pulls_into_the_same_arrays(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    local = np.flatnonzero(worker.is_local("t", ALL))
    keys, out = local[:3].copy(), np.empty((3, 5), np.float32)
    sums = np.empty((3, 2), np.float32)
    for step in range(5):
        assert worker.pull("t", keys, out=out) is out
        assert out.tolist() == [[1.0 + step] * 3 + [2.0 + step] * 2] * 3
        assert worker.pull("t", keys, out=sums, columns="sums").tolist() == [[2.0 + step] * 2] * 3
        worker.push("t", keys, np.ones((3, 5)))
    for _ in range(3):
        worker.pull("t", keys, out=out)
    keys[:] = local[3]
    assert worker.pull("t", keys, out=out)[0].tolist() == [1, 1, 1, 2, 2]
    with pytest.raises(errors.ShapeError):
        worker.pull("t", keys, out=out, columns="sums")
    keys[0] = -1
    with pytest.raises(errors.KeyRangeError, match="key -1 at position 0"):
        worker.pull("t", keys, out=out)
    worker.close()
    with pytest.raises(errors.Closed):
        worker.pull("t", keys, out=out)


def test_the_same_arrays_when_rows_are_elsewhere(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    keys, out = np.flatnonzero(worker.is_local("t", ALL))[:2].copy(), np.empty((2, 5), np.float32)
    for _ in range(3):
        worker.pull("t", keys, out=out)
    keys[:] = np.flatnonzero(~worker.is_local("t", ALL))[:2]
    out[:] = 0
    with desk.running():
        assert worker.pull("t", keys, out=out).tolist() == [[1, 1, 1, 2, 2]] * 2
