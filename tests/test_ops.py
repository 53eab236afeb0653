"""The primitives of minibatches against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adapm import ops
from adapm.errors import BufferNotUsable, DtypeError, KeyRangeError, KeyTypeError, ShapeError, UsageError

INT64 = st.integers(-(2**63), 2**63 - 1)
LENGTHS = st.sampled_from([1, 2, 5, 16, 17, 32, 64, 128, 131])  # those with loops of their own, and others


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@st.composite
def batches(draw: Callable[..., Any]) -> tuple[np.random.Generator, int, int, np.ndarray]:
    """A source of numbers, a number of rows, their length, and indices of some of them, often the same."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, 50))
    return rng, rows, draw(LENGTHS), rng.integers(0, rows, draw(st.integers(0, 200)))


# ---- unique


@given(st.one_of(st.lists(INT64, max_size=60), st.lists(st.integers(-5, 5), max_size=60)))
def test_unique_is_numpys(keys: list[int]) -> None:
    distinct, inverse = ops.unique(np.array(keys, np.int64))
    expected = np.unique(np.array(keys, np.int64), return_inverse=True)
    assert distinct.dtype == inverse.dtype == np.int64
    assert distinct.tolist() == expected[0].tolist()
    assert inverse.tolist() == expected[1].tolist()


@pytest.mark.parametrize("span", [1, 100, 2**11, 2**22, 2**40, 2**63 - 1])
@pytest.mark.parametrize("n", [511, 512, 5000])
def test_unique_of_many_keys(rng: np.random.Generator, n: int, span: int) -> None:
    keys = rng.integers(-span, span, n)
    distinct, inverse = ops.unique(keys)
    assert (distinct[inverse] == keys).all()
    assert (np.diff(distinct.astype(object)) > 0).all()


@pytest.mark.parametrize("keys", [[], (), np.array([], np.uint8), [3, 1, 3], np.array([3, 9, 1, 9, 3])[::2]])
def test_unique_takes_any_integers(keys: Any) -> None:
    distinct, inverse = ops.unique(keys)
    assert distinct[inverse].tolist() == list(keys)


# ---- rows by index


@given(batches())
def test_gather_is_indexing(batch: Any) -> None:
    rng, m, length, index = batch
    rows = floats(rng, m, length)
    assert (ops.gather(rows, index) == rows[index]).all()
    out = np.empty((len(index), length), np.float32)
    assert ops.gather(rows[:, ::-1], index, out=out) is out
    assert (out == rows[:, ::-1][index]).all()


@given(batches())
def test_scatter_add_is_add_at(batch: Any) -> None:
    rng, m, length, index = batch
    rows, values = floats(rng, m, length), floats(rng, len(index), length)
    expected = rows.copy()
    np.add.at(expected, index, values)
    ops.scatter_add(rows, index, values)
    assert (rows == expected).all()


# ---- steps


def summed(count: int, inverse: np.ndarray, grads: np.ndarray) -> np.ndarray:
    sums = np.zeros((count, grads.shape[1]), np.float32)
    np.add.at(sums, inverse, grads)
    return sums


@given(batches(), st.floats(1e-3, 10), st.floats(1e-10, 1))
def test_adagrad_sums_duplicates_and_changes_both_columns(batch: Any, lr: float, eps: float) -> None:
    rng, count, dim, inverse = batch
    rows, grads = np.abs(floats(rng, count, 2 * dim)), floats(rng, len(inverse), dim)
    g = summed(count, inverse, grads)
    lr32, eps32 = np.float32(lr), np.float32(eps)
    step = -lr32 * g / (np.sqrt(rows[:, dim:] + g * g) + eps32)
    assert (ops.adagrad(rows, inverse, grads, lr, eps) == np.hstack([step, g * g])).all()


def test_adagrad_leaves_rows_without_gradients() -> None:
    assert not ops.adagrad(np.zeros((3, 4)), [1, 1], np.zeros((2, 2)), 0.1).any()
    changes = ops.adagrad(np.zeros((3, 4)), [1, 1], np.ones((2, 2)), 0.1)
    assert changes.tolist() == [[0] * 4, [np.float32(-0.1)] * 2 + [4, 4], [0] * 4]


@given(batches(), st.floats(1e-3, 10), st.floats(1e-10, 1))
def test_rowwise_adagrad_has_one_sum_for_each_row(batch: Any, lr: float, eps: float) -> None:
    rng, count, dim, inverse = batch
    rows, grads = np.abs(floats(rng, count, dim + 1)), floats(rng, len(inverse), dim)
    g = summed(count, inverse, grads).astype(np.float64)
    growth = (g * g).mean(axis=1, keepdims=True)
    step = -lr * g / (np.sqrt(rows[:, dim:] + growth) + eps)
    np.testing.assert_allclose(ops.rowwise_adagrad(rows, inverse, grads, lr, eps), np.hstack([step, growth]), rtol=2e-6)


@given(batches(), st.floats(0, 10), st.integers(1, 2000), st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.99, 0.5)]))
def test_adam_changes_three_columns(batch: Any, lr: float, step: int, betas: tuple[float, float]) -> None:
    rng, count, dim, inverse = batch
    m, v = floats(rng, count, dim), 100 * np.abs(floats(rng, count, dim)) + 1  # v allows any such m
    grads = floats(rng, len(inverse), dim)
    g = summed(count, inverse, grads).astype(np.float64)
    dm, dv = (1 - betas[0]) * (g - m), (1 - betas[1]) * (g * g - v)
    corrected = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    change = -corrected * (m + dm) / (np.sqrt(v + dv) + 1e-8)
    rows = np.hstack([np.zeros_like(m), m, v])
    out = np.full_like(rows, np.nan)
    assert ops.adam(rows, inverse, grads, lr, step, betas, out=out) is out
    np.testing.assert_allclose(out, np.hstack([change, dm, dv]), rtol=1e-4, atol=1e-5 * max(1, lr))


@given(batches(), st.floats(0, 3), st.integers(1, 30))
@settings(max_examples=30)
def test_adams_moments_never_exceed_each_other(batch: Any, size: float, steps: int) -> None:
    """What adam ignores in moments that nobody else changes is nothing: those of any gradients pass."""
    rng, count, dim, _ = batch
    rows, each = np.zeros((count, 3 * dim), np.float32), np.arange(count)
    m, v = np.zeros((count, dim)), np.zeros((count, dim))
    for step in range(1, steps + 1):
        g = np.exp(rng.normal(scale=size, size=(count, dim))).astype(np.float32) * rng.choice([-1, 1])
        rows += ops.adam(rows, each, g, 0.1, step)
        m, v = m + 0.1 * (g - m), v + 0.001 * (g.astype(float) ** 2 - v)
    np.testing.assert_allclose(rows[:, dim : 2 * dim], m, rtol=1e-4, atol=1e-5 * np.abs(m).max(initial=0))
    np.testing.assert_allclose(rows[:, 2 * dim :], v, rtol=1e-4)


def test_adam_ignores_what_no_gradients_leave() -> None:
    rows = np.array([[0, 0, 9, -9, -5, 1e-6]], np.float32)  # v below zero, and m far beyond its v
    changes = ops.adam(rows, [0], [[1.0, 1.0]], 0.1, 10_000)[0]
    assert changes[2:].tolist() == pytest.approx([0.1, 0.1 * (1 + 7.31e-3), 1e-3, 1e-3], rel=1e-3)
    assert np.abs(changes[:2]).max() <= 0.1 * 7.4  # what gradients that grow as fast as they may would do


@given(batches(), st.floats(1e-3, 10))
def test_sgd_sums_duplicates(batch: Any, lr: float) -> None:
    rng, count, dim, inverse = batch
    grads = floats(rng, len(inverse), dim)
    assert (ops.sgd(count, inverse, grads, lr) == -np.float32(lr) * summed(count, inverse, grads)).all()


@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(width=32)), st.permutations(range(3)))
@settings(max_examples=30)
def test_what_is_not_finite_passes_through(grads: np.ndarray, inverse: list[int]) -> None:
    with np.errstate(all="ignore"):
        expected = -np.float32(1) * (summed(3, np.array(inverse), grads))
    np.testing.assert_array_equal(ops.sgd(3, inverse, grads, 1), expected)


def test_results_go_where_the_caller_says(rng: np.random.Generator) -> None:
    rows, inverse, grads = np.abs(floats(rng, 4, 6)), [0, 3, 0], floats(rng, 3, 3)
    out = np.full((4, 6), np.nan, np.float32)
    assert ops.adagrad(rows, inverse, grads, 0.1, out=out) is out
    assert (out == ops.adagrad(rows, inverse, grads, 0.1)).all()
    half = np.full((4, 3), np.nan, np.float32)
    assert ops.sgd(4, inverse, grads, 0.1, out=half) is half
    assert (half == ops.sgd(4, inverse, grads, 0.1)).all()


# ---- what is refused

ROWS, GRADS = np.zeros((3, 4), np.float32), np.zeros((2, 2), np.float32)
READ_ONLY = np.zeros((2, 4), np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: ops.unique([1.5]), KeyTypeError, "keys must be integers, got dtype float64"),
        (lambda: ops.unique([[1]]), ShapeError, r"keys .* got shape \[1, 1\]"),
        (lambda: ops.gather(ROWS, [0, 3]), KeyRangeError, r"index\[1\] is 3, but there are 3 rows"),
        (lambda: ops.gather(ROWS, [-1]), KeyRangeError, r"index\[0\] is -1"),
        (lambda: ops.gather(ROWS[0], [0]), ShapeError, r"rows have shape \[4\]"),
        (lambda: ops.gather(ROWS.astype(np.int64), [0]), DtypeError, "rows have dtype int64"),
        (lambda: ops.gather(ROWS, [0], out=READ_ONLY[:1]), BufferNotUsable, "out must be .* writable"),
        (lambda: ops.gather(ROWS, [0], out=GRADS), ShapeError, r"out has shape \[2, 2\], but the result is \[1, 4\]"),
        (lambda: ops.gather(ROWS, [0], out=[[0]]), BufferNotUsable, "out must be .* got list"),
        (lambda: ops.scatter_add(READ_ONLY, [0], ROWS[:1]), BufferNotUsable, "rows must be .* writable"),
        (lambda: ops.scatter_add(ROWS[:, ::2], [0], GRADS[:1]), BufferNotUsable, "rows must be C-contiguous"),
        (lambda: ops.scatter_add(ROWS[0], [0], GRADS[:1]), ShapeError, "rows .* two-dimensional"),
        (lambda: ops.scatter_add(ROWS.astype(float), [0], GRADS[:1]), BufferNotUsable, "got float64"),
        (lambda: ops.scatter_add(ROWS, [0], GRADS[:1]), ShapeError, r"values .* need \[1, 4\]"),
        (lambda: ops.adagrad(ROWS[:, :3], [0], GRADS[:1], 0.1), ShapeError, "rows have 3 columns"),
        (lambda: ops.adagrad(ROWS, [0], GRADS, 0.1), ShapeError, r"grads have shape \[2, 2\], .* need \[1, 2\]"),
        (lambda: ops.adagrad(ROWS, [0, 9], GRADS, 0.1), KeyRangeError, r"inverse\[1\] is 9"),
        (lambda: ops.adagrad(ROWS, [0, 1], GRADS, -0.1), UsageError, "lr must be finite and not negative"),
        (lambda: ops.adagrad(ROWS, [0, 1], GRADS, 1, 0), UsageError, "eps must be positive"),
        (lambda: ops.rowwise_adagrad(ROWS[:, :1], [0], GRADS[:1], 0.1), ShapeError, "rows have 1 column, but need one"),
        (lambda: ops.rowwise_adagrad(ROWS[:, :3], [0], GRADS, 0.1), ShapeError, r"grads .* need \[1, 2\]"),
        (lambda: ops.adam(ROWS, [0], GRADS[:1], 0.1, 1), ShapeError, "rows have 4 columns, .* each of two moments"),
        (lambda: ops.adam(ROWS[:, :3], [0], GRADS[:1, :1], 0.1, 0), UsageError, "step must be 1 or more, got 0"),
        (lambda: ops.adam(ROWS[:, :3], [0], GRADS[:1, :1], 0.1, 1, (0.9, 1)), UsageError, r"betas .* got \(0.9, 1\)"),
        (lambda: ops.sgd(3, [0], GRADS, 0.1), ShapeError, "grads have 2 rows, but inverse has 1"),
        (lambda: ops.sgd(3, [0, 3], GRADS, 0.1), KeyRangeError, "there are 3 rows"),
        (lambda: ops.sgd(3, [0, 1], GRADS, float("nan")), UsageError, "lr must be finite and not negative"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
    assert not ROWS.any()
