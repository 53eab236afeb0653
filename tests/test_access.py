"""Pulls and pushes that begin in native/call.c and go on elsewhere: each row is read, added to and counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from adapm import Table, errors
from adapm.worker import BlockingWorker, Worker
from desk import Desk

ROWS = 3000
TABLES = [Table("t", rows=ROWS, columns={"a": 2, "b": 1, "c": 1})]
ALL = np.arange(ROWS)
CONVERSIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "as they are": lambda array: array,
    "list": lambda array: array.tolist(),
    "strided": lambda array: np.repeat(array, 2, axis=0)[::2],
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
}


@pytest.fixture
def desk() -> Iterator[Desk]:
    with contextlib.closing(Desk(TABLES)) as made:
        yield made


@pytest.mark.parametrize("keys_as", CONVERSIONS)
@pytest.mark.parametrize("values_as", CONVERSIONS)
@pytest.mark.parametrize("n", [3, 1024, ROWS])
def test_arrays_of_all_kinds_do_the_same_once(desk: Desk, keys_as: str, values_as: str, n: int) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    values = np.arange(4.0 * n).reshape(n, 4).astype(np.float32)
    keys = CONVERSIONS[keys_as](ALL[-n:])
    with desk.running():
        for times in (1, 2):
            worker.push("t", keys, CONVERSIONS[values_as](values))
            assert np.array_equal(worker.pull("t", keys), times * values)
    statistics, local = worker.statistics(), int(worker.is_local("t", ALL[-n:]).sum())
    assert (statistics.pull_keys, statistics.push_keys) == (2 * n, 2 * n)
    assert (statistics.pull_local, statistics.push_local) == (2 * local, 2 * local)
    assert 0 < local < n


@pytest.mark.parametrize("columns", [None, "b", ("b", "c"), ["b", "c"], np.str_("b")])
@pytest.mark.parametrize("n", [3, ROWS])
def test_columns_of_all_kinds(desk: Desk, columns: Any, n: int) -> None:
    worker: Worker = desk.worker()
    span = TABLES[0].span(columns)
    part = slice(span[0], sum(span))
    out = np.empty((n, span[1]), np.float32)
    with desk.running():
        for times in (1, 2, 3):  # the first one has everything looked up
            worker.push("t", ALL[:n], np.ones((n, span[1]), np.float32), columns=columns).result()
            assert worker.pull("t", ALL[:n], columns=columns, out=out).result() is out
            assert (out == times).all()
        assert worker.pull("t", ALL[:n]).result().sum(axis=0)[part].tolist() == [3 * n] * span[1]


def test_a_refused_push_has_added_nothing(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    local = np.flatnonzero(worker.is_local("t", ALL))[:2]
    ones = np.ones((2, 4), np.float32)
    refused: list[tuple[type[Exception], Any, Any]] = [
        (errors.KeyRangeError, np.array([local[0], ROWS]), ones),
        (errors.KeyRangeError, np.array([local[0], -1]), ones),
        (errors.ShapeError, local, ones[:, :3]),
        (errors.ShapeError, local, ones[:1]),
        (errors.DtypeError, local, ones.astype(complex)),
        (errors.KeyTypeError, local.astype(float), ones),
    ]
    for kind, keys, values in refused:
        with pytest.raises(kind):
            worker.push("t", keys, values)
    assert worker.pull("t", local).tolist() == [[0.0] * 4] * 2
    assert worker.statistics().push_keys == 0


def test_a_closed_worker_says_so_whatever_it_is_given(desk: Desk) -> None:
    worker: BlockingWorker = desk.blocking_worker()
    keys, rows = ALL[:1], np.empty((1, 4), np.float32)
    worker.close()
    for table in ("t", "u"):
        for call in (worker.pull, lambda *a: worker.push(*a, rows), lambda *a: worker.set(*a, rows), worker.plan):
            with pytest.raises(errors.Closed):
                call(table, keys)
