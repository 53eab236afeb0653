"""examples/mf_model.py and matrix_factorization.py: gradients, batches, and the same quality wherever it is trained."""

import asyncio
import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import adapm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import matrix_factorization
import mf_model
import session
from mf_model import Batch, Schedule, Settings
from plain import PlainWorker
from rating_data import Entries, Ratings

from cluster import Cluster
from derivatives import differences

SETTINGS = Settings(dim=3, biases=True, epochs=2, batch=7, blocks=3, learning_rate=0.1, decay=0.5, l2=0.3)


def some_entries(rng, n, rows, columns):
    return Entries(rng.integers(rows, size=n), rng.integers(columns, size=n), rng.normal(size=n).astype(np.float32))


def objective(entries, rows, columns, settings, mean):
    """What is minimised, entry by entry, in double precision: (the sum of squared errors, all of it)."""
    dim, squares, penalty = settings.dim, 0.0, 0.0
    for i, j, value in zip(entries.rows, entries.columns, entries.values, strict=True):
        estimate = rows[i, :dim] @ columns[j, :dim]
        if settings.biases:
            estimate += mean + rows[i, dim] + columns[j, dim]
        squares += (estimate - value) ** 2
        penalty += rows[i] @ rows[i] + columns[j] @ columns[j]
    return squares, squares / 2 + settings.l2 / 2 * penalty


@pytest.mark.parametrize("biases", [True, False])
def test_gradients_match_differences(biases):
    rng = np.random.default_rng(1)
    settings = dataclasses.replace(SETTINGS, biases=biases)
    entries = some_entries(rng, 12, 5, 4)
    rows, columns = rng.normal(size=(5, settings.width)), rng.normal(size=(4, settings.width))
    batch = Batch(entries, 0.1)
    loss, of_rows, of_columns = batch.gradients(
        rows[batch.rows].astype(np.float32), columns[batch.columns].astype(np.float32), settings, mean=0.7
    )

    def full():
        return objective(entries, rows, columns, settings, 0.7)[1]

    assert loss == pytest.approx(objective(entries, rows, columns, settings, 0.7)[0], rel=1e-5)
    for table, keys, places, gradients in (
        (rows, batch.rows, batch.row_places, of_rows),
        (columns, batch.columns, batch.column_places, of_columns),
    ):
        assert gradients.dtype == np.float32
        found = np.zeros_like(table)
        np.add.at(found, keys[places], gradients)
        np.testing.assert_allclose(found, differences(full, table), atol=1e-4)


@pytest.mark.parametrize("optimizer", mf_model.OPTIMIZERS)
def test_step_adds_up_gradients_of_a_row(optimizer):
    settings = dataclasses.replace(SETTINGS, dim=1, biases=False, optimizer=optimizer)
    pulled = np.array([[1, 0]] if optimizer == "adagrad" else [[1]], np.float32)
    pushed = mf_model.step(pulled, np.array([0, 0]), np.array([[1], [3]], np.float32), 0.5, settings)
    np.testing.assert_allclose(pushed, [[-0.5, 16]] if optimizer == "adagrad" else [[-2]], rtol=1e-6)


def test_squared_errors_are_those_of_the_objective():
    rng = np.random.default_rng(2)
    entries = some_entries(rng, 12, 5, 4)
    model = [rng.normal(size=(n, SETTINGS.width)).astype(np.float32) for n in (5, 4)]
    found = mf_model.squared_errors(entries, *model, SETTINGS, 0.7)
    assert found == pytest.approx(objective(entries, *model, SETTINGS, 0.7)[0], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_shares_cover_all_rows_once_and_are_of_like_size(workers):
    rows = np.repeat(np.arange(30), np.arange(30))  # row n has n entries, row 0 none
    shares = [mf_model.share_of(rows, 30, worker, workers) for worker in range(workers)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(30))
    sizes = [int(np.isin(rows, share).sum()) for share in shares]
    assert max(sizes) - min(sizes) <= 30


@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_every_epoch_has_every_entry_once_and_batches_have_columns_of_one_block(blocks):
    settings = dataclasses.replace(SETTINGS, blocks=blocks)
    entries = Entries(np.arange(40), np.arange(40) % 11, np.arange(40, dtype=np.float32))
    schedule = Schedule(entries, 11, settings, seed=5)
    made = list(schedule.batches(np.random.default_rng(0)))
    assert len(made) == 2 * schedule.batches_per_epoch
    for epoch, rate in enumerate((0.1, 0.05)):
        batches = made[epoch * schedule.batches_per_epoch :][: schedule.batches_per_epoch]
        assert sorted(np.concatenate([batch.values for batch in batches]).tolist()) == list(range(40))
        assert {batch.learning_rate for batch in batches} == {rate}
        assert all(0 < len(batch) <= settings.batch for batch in batches)
    met = [set(batch.columns.tolist()) for batch in made]
    together = {frozenset.union(*(frozenset(m) for m in met if column in m)) for column in range(11)}
    assert len(together) == min(blocks, 11)


# ---- trained

ROWS, COLUMNS, RANK = 60, 40, 2
TRAINED = Settings(dim=4, biases=False, epochs=12, batch=64, blocks=2, learning_rate=0.2, decay=0.95, l2=0.003)


def learnable(seed=3):
    """A matrix of low rank, two thirds of it known, and a little noise."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.normal(size=(ROWS, RANK)), rng.normal(size=(COLUMNS, RANK))
    places = rng.permutation(ROWS * COLUMNS)
    i, j = places // COLUMNS, places % COLUMNS
    entries = Entries(
        i, j, (np.einsum("nd,nd->n", rows[i], columns[j]) + rng.normal(0, 0.1, len(i))).astype(np.float32)
    )
    return Ratings("low rank", ROWS, COLUMNS, entries[: len(i) * 2 // 3], entries[len(i) * 2 // 3 :])


def train_on(nodes, workers):
    ratings = learnable()

    async def clustered():
        tables = matrix_factorization.tables_for(ratings, TRAINED)
        async with Cluster(tables, nodes=nodes, workers=workers, seed=1) as cluster:
            return await cluster.run(lambda worker: matrix_factorization.train(worker, ratings, TRAINED, 1))

    return asyncio.run(clustered())


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_quality_is_the_same_wherever_it_is_trained(nodes, workers):
    outcomes = train_on(nodes, workers)
    figures = {**matrix_factorization.quality(outcomes), **session.summary(outcomes, "entries", 1.0)}
    print(figures)
    spread = float(np.std(learnable().test.values))
    assert figures["tested"] == len(learnable().test)
    assert figures["rmse"] <= 0.2 < spread / 5
    assert math.sqrt(figures["training_loss"]) <= 0.2
    assert sum(outcome.seen for outcome in outcomes) == TRAINED.epochs * len(learnable().train)


async def train_twice(worker, settings):
    """The outcomes of training through the manager and without it, from the same initial values."""
    ratings = learnable()
    plain = PlainWorker(matrix_factorization.tables_for(ratings, settings), seed=7)
    for table in ("rows", "columns"):
        values = await plain.read_table(table)
        await worker.set(table, np.arange(len(values)), values)
    return [await matrix_factorization.train(each, ratings, settings, 7) for each in (worker, plain)]


@pytest.mark.parametrize("optimizer", mf_model.OPTIMIZERS)
def test_plain_twin_computes_the_same_numbers(optimizer):
    settings = dataclasses.replace(TRAINED, epochs=2, biases=True, learning_rate=0.02, optimizer=optimizer)
    tables = matrix_factorization.tables_for(learnable(), settings)
    managed, plain = adapm.run(train_twice, tables, args=(settings,), workers="threads:1", seed=7)[0]
    assert managed.measured == plain.measured
    assert managed.loss == plain.loss
    assert managed.statistics is not None
    assert plain.statistics is None


def test_more_workers_than_rows_is_refused():
    ratings = dataclasses.replace(learnable(), train=learnable().train[:1])
    tables = matrix_factorization.tables_for(ratings, TRAINED)
    with pytest.raises(adapm.errors.AdapmError, match="low rank has 1 rows with entries to train on, fewer"):
        adapm.run(matrix_factorization.train, tables, args=(ratings, TRAINED, 1), workers="threads:2")
