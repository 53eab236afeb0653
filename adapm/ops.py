"""What a minibatch needs beside its tables, compiled: distinct keys, rows by index, and the steps of optimizers.

    keys, inverse = ops.unique(batch_keys)                       # each row once ...
    rows = worker.pull("entities", keys)                         # [value | adagrad]
    grads = my_gradients(ops.gather(rows[:, :dim], inverse))     # ... used as often as the batch says
    worker.push("entities", keys, ops.adagrad(rows, inverse, grads, lr=0.1))

Everything works on plain numpy arrays, without a worker.  Float arguments are float32; float64 is rounded, and what is
not C-contiguous is copied.  Results of the same arguments are the same on every processor.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adapm.errors import BufferNotUsable, DtypeError, KeyRangeError, KeyTypeError, ShapeError, UsageError
from adapm.kernel import check, ffi, lib

__all__ = ["adagrad", "adam", "gather", "rowwise_adagrad", "scatter_add", "sgd", "unique"]

Rows: TypeAlias = npt.NDArray[np.float32]
Index: TypeAlias = npt.NDArray[np.int64]

_Batch: TypeAlias = tuple[Any, int, int, Any, int, Any]

_FLOAT32 = np.dtype(np.float32)
_INT64 = np.dtype(np.int64)
_FLOATS = ffi.typeof("float[]")
_INT64S = ffi.typeof("int64_t[]")
_from_buffer = ffi.from_buffer
_UNBOUNDED = 1e30  # of what float32 can hold, and times 0 it is 0


def unique(keys: npt.ArrayLike) -> tuple[Index, Index]:
    """The distinct keys, and where each key is among them; `numpy.unique(keys, return_inverse=True)`, much faster.

    Args:
        keys: integers [n], any array-like.

    Returns:
        distinct, inverse: int64 [u] in rising order, and int64 [n], such that distinct[inverse] are the keys.

    Raises:
        UsageError: KeyTypeError or ShapeError.
        OutOfMemory: there is none for 32 bytes per key.
    """
    array = _integers("keys", keys)
    distinct, inverse = np.empty_like(array), np.empty_like(array)
    count = lib.adapm_unique(_ints(array), len(array), _ints(distinct), _ints(inverse))
    return distinct[: check(count, keys=len(array))], inverse


def gather(rows: npt.ArrayLike, index: npt.ArrayLike, *, out: Rows | None = None) -> Rows:
    """Rows by index: `rows[index]`.

    Args:
        rows: float32 [m, length].
        index: integers [n], each below m, duplicates legal.
        out: a writable C-contiguous float32 array [n, length] that is filled and returned, not overlapping `rows`.

    Returns:
        float32 [n, length].

    Raises:
        UsageError: KeyTypeError, KeyRangeError, DtypeError, ShapeError or BufferNotUsable.
    """
    source = _matrix("rows", rows)
    places = _places("index", index, len(source))
    result = _result(out, (len(places), source.shape[1]))
    lib.adapm_gather(_floats(source), source.shape[1], _ints(places), len(places), _floats(result))
    return result


def scatter_add(rows: Rows, index: npt.ArrayLike, values: npt.ArrayLike) -> None:
    """Adds to rows in place, duplicates one after the other: `numpy.add.at(rows, index, values)`.

    Args:
        rows: a writable C-contiguous float32 array [m, length].
        index: integers [n], each below m.
        values: float32 [n, length], not overlapping `rows`.

    Raises:
        UsageError: KeyTypeError, KeyRangeError, DtypeError, ShapeError or BufferNotUsable; nothing has been added.
    """
    _check_buffer("rows", rows)
    if rows.ndim != 2:
        raise ShapeError(f"rows have shape {list(rows.shape)}; they are two-dimensional, [m, length]")
    places = _places("index", index, len(rows))
    added = _matrix("values", values, (len(places), rows.shape[1]))
    lib.adapm_scatter_add(_floats(rows), rows.shape[1], _ints(places), len(places), _floats(added))


def adagrad(
    rows: npt.ArrayLike,
    inverse: npt.ArrayLike,
    grads: npt.ArrayLike,
    lr: float,
    eps: float = 1e-10,
    *,
    out: Rows | None = None,
) -> Rows:
    """One step of AdaGrad: what to push to rows, given the gradients of their values.

    With g the sum of a row's gradients, and acc its sum of squares so far, the step is that of torch.optim.Adagrad:
    acc grows by g * g, and the value by -lr * g / (sqrt(acc + g * g) + eps).

    Args:
        rows: float32 [u, 2 * dim] as pulled: dim values, then dim sums of squares, none negative.
        inverse: integers [n]: of which row each gradient is; see `unique`.
        grads: float32 [n, dim].
        lr: the learning rate, not negative.
        eps: keeps the divisor from being zero, positive.
        out: a writable C-contiguous float32 array [u, 2 * dim] that is filled and returned, not overlapping the others.

    Returns:
        float32 [u, 2 * dim], the changes of both columns; zeros for rows without gradients.

    Raises:
        UsageError: KeyTypeError, KeyRangeError, DtypeError, ShapeError or BufferNotUsable, or for a rate that is
            negative, or an eps that is not positive.
    """
    state = _matrix("rows", rows)
    if state.shape[1] % 2:
        raise ShapeError(f"rows have {state.shape[1]} columns, but need as many for sums of squares as for values")
    batch = _batch(state, state.shape[1] // 2, inverse, grads)
    rate, least = _rate(lr), _positive("eps", eps)
    result = _result(out, state.shape)
    lib.adapm_adagrad(*batch, rate, least, _floats(result))
    return result


def rowwise_adagrad(
    rows: npt.ArrayLike,
    inverse: npt.ArrayLike,
    grads: npt.ArrayLike,
    lr: float,
    eps: float = 1e-10,
    *,
    out: Rows | None = None,
) -> Rows:
    """One step of AdaGrad with one sum for each row: what to push to rows, given the gradients of their values.

    With g the sum of a row's gradients, and acc its sum so far, acc grows by mean(g * g), and each value by
    -lr * g / (sqrt(acc + mean(g * g)) + eps).

    Args:
        rows: float32 [u, dim + 1] as pulled: dim values, then the sum, not negative.
        inverse, grads, lr, eps: as of `adagrad`.
        out: a writable C-contiguous float32 array [u, dim + 1] that is filled and returned, not overlapping the others.

    Returns:
        float32 [u, dim + 1], the changes of both columns; zeros for rows without gradients.

    Raises:
        UsageError: as of `adagrad`.
    """
    state = _matrix("rows", rows)
    if state.shape[1] < 2:
        raise ShapeError("rows have 1 column, but need one for the sum beside those of the values")
    batch = _batch(state, state.shape[1] - 1, inverse, grads)
    rate, least = _rate(lr), _positive("eps", eps)
    result = _result(out, state.shape)
    lib.adapm_rowwise_adagrad(*batch, rate, least, _floats(result))
    return result


def adam(
    rows: npt.ArrayLike,
    inverse: npt.ArrayLike,
    grads: npt.ArrayLike,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    *,
    out: Rows | None = None,
) -> Rows:
    """One step of Adam: what to push to rows, given the gradients of their values.

    The step is that of torch.optim.SparseAdam.  With g the sum of a row's gradients, the moments m and v grow by
    (1 - beta1) * (g - m) and (1 - beta2) * (g * g - v), and the value by
    -lr * sqrt(1 - beta2**step) / (1 - beta1**step) * m / (sqrt(v) + eps), with the new moments.

    Several workers that change a row at once may leave moments that come from no sequence of gradients: v is then taken
    as 0 where it is negative, and m as no larger than v allows, which bounds the step.

    Args:
        rows: float32 [u, 3 * dim] as pulled: dim values, then dim first moments, then dim second moments.
        inverse: integers [n]: of which row each gradient is; see `unique`.
        grads: float32 [n, dim].
        lr: the learning rate, not negative.
        step: how many steps have been made with this one, from 1.
        betas: how much of the moments stays at each step, from 0 to less than 1.
        eps: keeps the divisor from being zero, positive.
        out: a writable C-contiguous float32 array [u, 3 * dim] that is filled and returned, not overlapping the others.

    Returns:
        float32 [u, 3 * dim], the changes of the three columns, also of rows without gradients: their moments decay.

    Raises:
        UsageError: as of `adagrad`, or for betas or a step out of their range.
    """
    state = _matrix("rows", rows)
    if state.shape[1] % 3:
        raise ShapeError(f"rows have {state.shape[1]} columns, but need as many for each of two moments as for values")
    batch = _batch(state, state.shape[1] // 3, inverse, grads)
    how = _adam_step(_rate(lr), step, betas, _positive("eps", eps))
    result = _result(out, state.shape)
    lib.adapm_adam(*batch, how, _floats(result))
    return result


def sgd(count: int, inverse: npt.ArrayLike, grads: npt.ArrayLike, lr: float, *, out: Rows | None = None) -> Rows:
    """One step of gradient descent: what to push to rows, -lr times the sum of each row's gradients.

    Args:
        count: of rows; u, when `inverse` comes from `unique`.
        inverse: integers [n]: of which row each gradient is, below count.
        grads: float32 [n, dim].
        lr: the learning rate, not negative.
        out: a writable C-contiguous float32 array [count, dim] that is filled and returned, not overlapping `grads`.

    Returns:
        float32 [count, dim]; zeros for rows without gradients.

    Raises:
        UsageError: KeyTypeError, KeyRangeError, DtypeError, ShapeError or BufferNotUsable, or for a rate that is
            negative.
    """
    places = _places("inverse", inverse, count)
    summed = _matrix("grads", grads)
    if len(summed) != len(places):
        raise ShapeError(f"grads have {len(summed)} rows, but inverse has {len(places)} entries: one for each")
    rate = _rate(lr)
    result = _result(out, (count, summed.shape[1]))
    lib.adapm_sgd(count, summed.shape[1], _ints(places), len(places), _floats(summed), rate, _floats(result))
    return result


# ---- arguments


def _floats(array: Rows) -> Any:
    return _from_buffer(_FLOATS, array)


def _ints(array: Index) -> Any:
    return _from_buffer(_INT64S, array)


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def _rate(lr: float) -> float:
    if not 0 <= lr < float("inf"):
        raise UsageError(f"lr must be finite and not negative, got {lr!r}")
    return float(lr)


def _batch(state: Rows, width: int, inverse: npt.ArrayLike, grads: npt.ArrayLike) -> _Batch:
    """What all steps with a state are told of rows and gradients."""
    places = _places("inverse", inverse, len(state))
    summed = _matrix("grads", grads, (len(places), width))
    return _floats(state), len(state), width, _ints(places), len(places), _floats(summed)


def _adam_step(lr: float, step: int, betas: tuple[float, float], eps: float) -> Any:
    beta1, beta2 = betas
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise UsageError(f"betas must be from 0 to less than 1, got {betas!r}")
    if step < 1:
        raise UsageError(f"step must be 1 or more, got {step!r}")
    corrected = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    # Cauchy and Schwarz, of the sums that the moments are; 1 % more than that, for rounding.
    bound = 1.01 * (1 - beta1) ** 2 / (1 - beta2) / (1 - beta1**2 / beta2) if beta1**2 < beta2 else _UNBOUNDED
    return ffi.new("adapm_adam_step *", [corrected, 1 - beta1, 1 - beta2, min(bound, _UNBOUNDED), eps])


def _integers(name: str, given: npt.ArrayLike) -> Index:
    array = np.asarray(given)
    if array.size == 0 and isinstance(given, (list, tuple)):
        array = array.astype(_INT64)  # numpy makes [] a float array
    if array.dtype.kind not in "iu":
        raise KeyTypeError(f"{name} must be integers, got dtype {array.dtype}; convert them with .astype(numpy.int64)")
    if array.ndim != 1:
        raise ShapeError(f"{name} must be one-dimensional, got shape {list(array.shape)}; flatten with .reshape(-1)")
    return np.ascontiguousarray(array, _INT64)


def _places(name: str, given: npt.ArrayLike, rows: int) -> Index:
    """Indices of rows, in range."""
    index = _integers(name, given)
    bad = lib.adapm_keys_bad(_ints(index), len(index), rows)
    if bad >= 0:
        raise KeyRangeError(f"{name}[{bad}] is {index[bad]}, but there are {rows} rows, 0 to {rows - 1}")
    return index


def _matrix(name: str, given: npt.ArrayLike, shape: tuple[int, int] | None = None) -> Rows:
    array = np.asarray(given)
    if array.dtype != np.float64 and not np.can_cast(array.dtype, _FLOAT32, "safe"):
        raise DtypeError(f"{name} have dtype {array.dtype}; convert them with .astype(numpy.float32)")
    if array.ndim != 2 or not array.shape[1]:
        raise ShapeError(f"{name} have shape {list(array.shape)}; they are two-dimensional, with at least one column")
    if shape is not None and array.shape != shape:
        raise ShapeError(f"{name} have shape {list(array.shape)}, but the other arguments need {list(shape)}")
    return np.ascontiguousarray(array, _FLOAT32)


def _result(out: Rows | None, shape: tuple[int, ...]) -> Rows:
    if out is None:
        return np.empty(shape, _FLOAT32)
    _check_buffer("out", out)
    if out.shape != shape:
        raise ShapeError(f"out has shape {list(out.shape)}, but the result is {list(shape)}")
    return out


def _check_buffer(name: str, array: object) -> None:
    """It is written in place."""
    if not isinstance(array, np.ndarray) or array.dtype != _FLOAT32:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise BufferNotUsable(f"{name} must be a numpy array of float32, to be written in place; got {got}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise BufferNotUsable(f"{name} must be C-contiguous and writable, to be written in place")
