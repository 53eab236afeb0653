"""Initial values: functions of seed, table, column group and key; with the moments they should have."""

from __future__ import annotations

import errno
import math

import numpy as np
import pytest

from adapm.kernel import ffi, lib
from adapm.tables import Kind
from kernel_worker import Array


def fill(
    kind: int, a: float, b: float, n: int = 6, *, seed: int = 1, table: int = 2, column: int = 3, key: int = 4
) -> Array:
    out = np.full(n, np.nan, np.float32)
    assert lib.adapm_fill_row(kind, a, b, seed, table, column, key, ffi.from_buffer("float[]", out), n) == 0
    return out


def test_zeros_and_constant() -> None:
    assert fill(Kind.ZEROS, 5, 5).tolist() == [0] * 6
    assert fill(Kind.CONSTANT, 0.5, 0).tolist() == [0.5] * 6


@pytest.mark.parametrize("kind", [Kind.NORMAL, Kind.UNIFORM])
def test_every_part_of_the_name_counts(kind: int) -> None:
    rows = [
        fill(kind, 0, 1),
        fill(kind, 0, 1, seed=2),
        fill(kind, 0, 1, table=1),
        fill(kind, 0, 1, column=1),
        fill(kind, 0, 1, key=5),
        fill(kind, 0, 1, table=3, column=2),
        fill(kind, 0, 1, seed=2**64 - 1),
    ]
    assert len({row.tobytes() for row in rows}) == len(rows)
    assert fill(kind, 0, 1).tobytes() == rows[0].tobytes()
    assert fill(kind, 0, 1, n=3).tobytes() == rows[0][:3].tobytes()


def test_values_are_the_same_on_every_machine() -> None:
    uniform, normal = fill(Kind.UNIFORM, 0, 1, n=3), fill(Kind.NORMAL, 0, 1, n=3)
    assert uniform.tolist() == [0.2784397304058075, 0.06003296375274658, 0.05551961809396744]
    assert normal.tolist() == pytest.approx([0.7510911822319031, 0.2975580096244812, -0.1603141874074936], rel=1e-6)


def test_uniform() -> None:
    values = fill(Kind.UNIFORM, -2, 6, n=200_000)
    assert values.min() >= -2
    assert values.max() < 6
    assert values.mean() == pytest.approx(2, abs=0.03)
    assert values.var() == pytest.approx(64 / 12, rel=0.01)
    assert fill(Kind.UNIFORM, 3, 3).tolist() == [3] * 6


def test_uniform_does_not_round_up_to_its_end() -> None:
    high = np.nextafter(np.float32(1), np.float32(2))
    assert set(fill(Kind.UNIFORM, 1, float(high), n=1000).tolist()) == {1.0}


def test_normal() -> None:
    values = fill(Kind.NORMAL, 3, 2, n=200_001)
    scaled = (values.astype(np.float64) - 3) / 2
    assert scaled.mean() == pytest.approx(0, abs=0.01)
    assert scaled.std() == pytest.approx(1, abs=0.01)
    assert (scaled**4).mean() == pytest.approx(3, abs=0.1)
    assert np.mean(scaled[:-1] * scaled[1:]) == pytest.approx(0, abs=0.01)
    assert np.mean(scaled < 1) == pytest.approx(0.5 + 0.5 * math.erf(1 / math.sqrt(2)), abs=0.005)


def test_keys_are_independent() -> None:
    rows = np.stack([fill(Kind.NORMAL, 0, 1, n=64, key=key) for key in range(200)])
    correlation = np.corrcoef(rows) - np.eye(200)
    assert np.abs(correlation).max() < 0.65


def test_unknown_kind_is_refused() -> None:
    assert lib.adapm_fill_row(Kind.ARRAY, 0, 0, 0, 0, 0, 0, ffi.new("float[1]"), 1) == -errno.EINVAL
