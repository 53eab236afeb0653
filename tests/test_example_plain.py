"""examples/plain.py: the plain twin computes what a worker of the manager computes, to the last bit."""

import sys
from pathlib import Path

import numpy as np
import pytest

import adapm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import knowledge_graph
from kg_data import Graph
from kg_model import Settings
from plain import PlainWorker

TRIPLES = np.array([(hour, k, (hour + k) % 12) for hour in range(12) for k in range(4)])
CLOCK_FACE = Graph("clock face", 12, 4, TRIPLES, TRIPLES[:4], TRIPLES[4:8])


async def train_twice(worker, settings):
    """The outcomes of training through the manager and without it, from the same initial values."""
    plain = PlainWorker(knowledge_graph.tables_for(CLOCK_FACE, settings.dim), seed=7)
    for table in ("entities", "relations"):
        rows = await plain.read_table(table)
        await worker.set(table, np.arange(len(rows)), rows)
    outcomes = [await knowledge_graph.train(each, CLOCK_FACE, settings, 7) for each in (worker, plain)]
    models = [await each.read_table("entities") for each in (worker, plain)]
    return outcomes, models


@pytest.mark.parametrize(
    "settings",
    [
        Settings(dim=8, epochs=3, batch=10, negatives=0, chunk=0, loss="softmax", learning_rate=0.2, n3=0.001),
        Settings(dim=8, epochs=3, batch=10, negatives=3, chunk=1, loss="logistic", learning_rate=0.2, n3=0.0),
    ],
    ids=["against all", "drawn for each"],
)
def test_same_numbers_as_through_the_manager(settings):
    tables = knowledge_graph.tables_for(CLOCK_FACE, settings.dim)
    ((managed, plain), models) = adapm.run(train_twice, tables, args=(settings,), workers="threads:1", seed=7)[0]
    np.testing.assert_array_equal(*models)
    np.testing.assert_array_equal(managed.measured[0], plain.measured[0])
    np.testing.assert_array_equal(managed.measured[1], plain.measured[1])
    assert managed.loss == plain.loss
    assert len(managed.epoch_seconds) == len(plain.epoch_seconds) == settings.epochs
    assert managed.statistics is not None
    assert plain.statistics is None
