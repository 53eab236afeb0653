"""How a table says how its samples are drawn: what fits, what survives, what is refused."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapm import Sampling, Table
from adapm.errors import TableError
from adapm.sampling import TECHNIQUES, Distribution
from adapm.tables import digest


def test_a_table_that_says_nothing_samples_uniformly_with_intent() -> None:
    assert Table("t", rows=3, dim=1).sampling == Sampling("uniform", technique="preloc", replacement=True)


def test_weights_imply_their_distribution() -> None:
    assert Sampling(weights=[1, 2]).distribution is Distribution.WEIGHTED
    assert Sampling("weighted", weights=[1, 2]) == Sampling(weights=np.array([1.0, 2.0]))


def test_support_is_what_can_be_drawn() -> None:
    assert Sampling(weights=[0, 3, 0, 1]).support(4) == 2
    assert Sampling("log-uniform").support(4) == 4


def test_weights_are_copied_and_frozen() -> None:
    given = np.array([1.0, 2.0])
    sampling = Sampling(weights=given)
    given[0] = -1
    assert sampling.weights is not None
    assert sampling.weights.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        sampling.weights[0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampling.pool = 3  # type: ignore[misc]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("weights", [None, [0.5, 0, 7]])
def test_survives_msgpack_and_pickle_within_its_table(technique: str, weights: list[float] | None) -> None:
    sampling = Sampling(weights=weights, technique=technique, replacement=False, pool=5, uses=2)
    table = Table("t", rows=3, dim=1, sampling=sampling)
    packed = msgpack.unpackb(msgpack.packb(table.pack()))
    assert Table.unpack(packed).sampling == pickle.loads(pickle.dumps(table)).sampling == sampling
    light = Table.unpack(table.pack(arrays=False)).sampling
    assert light.weights is None
    assert (light.distribution, light.support(3)) == (sampling.distribution, sampling.support(3))


def test_a_wrong_number_of_packed_weights_is_refused() -> None:
    packed = Table("t", rows=3, dim=1, sampling=Sampling(weights=[1, 2, 3])).pack()
    packed["rows"] = 4
    with pytest.raises(TableError):
        Table.unpack(packed)


def test_nodes_notice_that_they_sample_differently() -> None:
    samplings = [None, Sampling("log-uniform"), Sampling(technique="local"), Sampling(replacement=False)]
    samplings += [Sampling(weights=[1, 2]), Sampling(weights=[2, 1]), Sampling(pool=3), Sampling(uses=3)]
    digests = {digest([Table("t", rows=2, dim=1, sampling=sampling)]) for sampling in samplings}
    assert len(digests) == len(samplings)
    assert len(msgpack.packb(Sampling(weights=np.ones(10_000)).describe())) < 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distribution": "log-unifrom"}, "'log-unifrom'; did you mean 'log-uniform'"),
        ({"distribution": "weighted"}, "without weights makes no sense: give weights"),
        ({"distribution": "uniform", "weights": [1]}, "with weights makes no sense: leave the distribution out"),
        ({"technique": "polo"}, "'polo'; did you mean 'pool'"),
        ({"technique": "best"}, "'best'; there are: naive, preloc, pool, local"),
        ({"pool": 0}, "pool must be an integer from 1 to 2,147,483,647, got 0"),
        ({"uses": 1.5}, "uses must be an integer from 1 to .*, got 1.5"),
        ({"uses": True}, "uses must be an integer"),
        ({"weights": "heavy"}, "weights cannot be read as numbers"),
        ({"weights": [[1, 2]]}, r"one-dimensional, \[rows\], got shape \[1, 2\]"),
        ({"weights": []}, "all 0 weights are 0"),
        ({"weights": [0, 0.0, 0]}, "all 3 weights are 0: at least one row must be there to be drawn"),
        ({"weights": [1, -2, -3]}, r"weights\[1\] is -2.0, and 2 in all are like it"),
        ({"weights": [1, 1, math.nan]}, r"weights\[2\] is nan"),
        ({"weights": [math.inf, 1]}, r"weights\[0\] is inf"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        Sampling(**arguments)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0]])
def test_a_wrong_number_of_weights_is_refused(weights: list[float]) -> None:
    with pytest.raises(TableError, match=f"'t' has 2 rows, but its sampling has {len(weights)} weights: give one for"):
        Table("t", rows=2, dim=1, sampling=Sampling(weights=weights))


def test_what_is_no_sampling_is_refused() -> None:
    with pytest.raises(TableError, match=r"sampling must be an .*, got 'local'"):
        Table("t", rows=2, dim=1, sampling="local")  # type: ignore[arg-type]


@given(weights=st.lists(st.floats() | st.integers(-5, 5), max_size=8))
def test_any_weights_are_taken_or_refused(weights: list[float]) -> None:
    proper = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
    try:
        assert Sampling(weights=weights).support(len(weights)) == sum(weight > 0 for weight in weights)
        assert proper
    except TableError:
        assert not proper


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float32, np.bool_])
def test_weights_of_other_types(dtype: npt.DTypeLike) -> None:
    assert Sampling(weights=np.array([0, 1, 1], dtype)) == Sampling(weights=[0.0, 1.0, 1.0])
