"""What callers hand in becomes arrays that the kernel takes, or a named error.  Nothing here changes anything.

The common case - contiguous int64 and float32 arrays of the right shape - seldom gets here: native/call.c hands it
to the kernel.  Here is everything else, and every complaint.
"""

from __future__ import annotations

import errno
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adapm.errors import BufferNotUsable, DtypeError, IntentRangeError, KeyRangeError, KeyTypeError, ShapeError
from adapm.kernel import ffi, lib
from adapm.tables import Table

Keys: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.float32]
Columns: TypeAlias = "str | Sequence[str] | None"
Pointer: TypeAlias = Any  # a cffi pointer; one made from an array keeps the array's memory alive

INT64 = np.dtype(np.int64)
FLOAT32 = np.dtype(np.float32)
_INT64S = ffi.typeof("int64_t[]")
_FLOATS = ffi.typeof("float[]")
_LAST_CLOCK = 2**63 - 1

_from_buffer = ffi.from_buffer
_ndarray = np.ndarray


class Target:
    """A table as its worker addresses it: what each call needs, looked up once."""

    __slots__ = ("index", "name", "rows", "spans", "table")

    def __init__(self, index: int, table: Table) -> None:
        self.index = index
        self.table = table
        self.name = table.name
        self.rows = table.rows
        self.spans: dict[Any, tuple[int, int]] = {name: table.span(name) for name in (None, *table.columns)}

    def span(self, columns: Columns) -> tuple[int, int]:
        """Offset and length of the column groups; raises UnknownColumn."""
        try:
            return self.spans[columns]
        except (KeyError, TypeError):  # unknown, several groups, or a list of them
            span = self.table.span(columns)
        if type(columns) is tuple:
            self.spans[columns] = span  # the next call finds it
        return span


def take_keys(target: Target, keys: npt.ArrayLike) -> tuple[Pointer, int]:
    """A pointer to the keys as int64, and their number.

    The kernel itself looks whether they are in range, before it does anything; see `check_range`.

    Raises:
        KeyTypeError: they are not integers.
        ShapeError: they are not one-dimensional.
    """
    array = as_keys(target, keys)
    return _from_buffer(_INT64S, array), len(array)


def as_keys(target: Target, keys: npt.ArrayLike) -> Keys:
    """The keys as a contiguous int64 array, which is `keys` itself if that is one; errors are those of `take_keys`."""
    if type(keys) is _ndarray and keys.dtype is INT64 and keys.ndim == 1 and keys.flags.c_contiguous:
        return keys
    return np.ascontiguousarray(_convert_keys(target, keys))


def check_range(code: int, target: Target, keys: npt.ArrayLike, pointer: Pointer, n: int) -> None:
    """What the kernel meant when it refused a call: nothing happens unless it was because of the keys.

    Args:
        code: what it returned.
        target: the table.
        keys: as the caller gave them.
        pointer: the same as the kernel saw them.
        n: their number.

    Raises:
        KeyRangeError: one is outside 0..rows-1; nothing has been read or changed.
    """
    if code == -errno.ERANGE:
        raise _out_of_range(target, keys, lib.adapm_keys_bad(pointer, n, target.rows))


def take_values(target: Target, values: npt.ArrayLike, n: int, length: int) -> Pointer:
    """A pointer to the values as dense float32 [n, length].

    Raises:
        ShapeError: they have another shape.
        DtypeError: float32 cannot hold them without more loss than rounding a float64.
    """
    usual = type(values) is _ndarray and values.dtype is FLOAT32 and values.shape == (n, length)
    array: Rows = values if usual else _convert_values(target, values, n, length)  # type: ignore[assignment]
    try:
        return _from_buffer(_FLOATS, array)
    except ValueError:  # not contiguous
        return _from_buffer(_FLOATS, np.ascontiguousarray(array))


def take_out(target: Target, out: Rows, n: int, length: int) -> Pointer:
    """A pointer to the caller's buffer, which must be a writable C-contiguous float32 array [n, length].

    Raises:
        BufferNotUsable: it is something else, or read-only.
        ShapeError: it has another shape.
    """
    if type(out) is not _ndarray or out.dtype is not FLOAT32 or out.shape != (n, length):
        _check_out(target, out, n, length)
    try:
        return _from_buffer(_FLOATS, out, True)
    except (ValueError, BufferError):
        fault = "is not C-contiguous" if out.flags.writeable else "is read-only"
        raise BufferNotUsable(
            f"table {target.name!r}: out {fault}; rows are written in place, so pass an array such as "
            f"numpy.empty(({n}, {length}), numpy.float32)"
        ) from None


def take_clocks(target: Target, start: int, end: int | None) -> tuple[int, int]:
    """An intent's clock range [start, end), end being start + 1 unless it is given.

    Raises:
        IntentRangeError: it is empty, begins before clock 0, or is not made of integers.
    """
    try:
        first = operator.index(start)
        last = first + 1 if end is None else operator.index(end)
    except TypeError:
        raise IntentRangeError(
            f"table {target.name!r}: an intent's clocks are integers, got start={start!r}, end={end!r}"
        ) from None
    if last <= first:
        raise IntentRangeError(
            f"table {target.name!r}: an intent covers [start, end), so end must be above start, "
            f"got start={first}, end={last}"
        )
    if first < 0 or last > _LAST_CLOCK:
        raise IntentRangeError(
            f"table {target.name!r}: an intent lies between clocks 0 and 2**63-1, got start={first}, end={last}; "
            f"count from worker.clock"
        )
    return first, last


def _check_out(target: Target, out: object, n: int, length: int) -> None:
    if not isinstance(out, np.ndarray):
        remedy = "pass a numpy array (of a torch CPU tensor: tensor.numpy())"
        raise BufferNotUsable(f"table {target.name!r}: out is a {type(out).__name__}; {remedy}")
    if out.dtype != FLOAT32:
        raise BufferNotUsable(f"table {target.name!r}: out has dtype {out.dtype}; make it float32")
    if out.shape != (n, length):
        raise ShapeError(
            f"table {target.name!r}: out has shape {list(out.shape)}, but {n} keys of {length} floats "
            f"need [{n}, {length}]"
        )


def _convert_keys(target: Target, keys: npt.ArrayLike) -> Keys:
    array = _as_array(target, "keys", keys, KeyTypeError)
    if array.size == 0 and isinstance(keys, (list, tuple)):
        array = array.astype(np.int64)  # numpy makes [] a float array
    if array.dtype.kind not in "iu":
        _refuse_large_ints(target, keys)
        remedy = {
            "f": "convert them with .astype(numpy.int64)",
            "b": "for a mask use numpy.flatnonzero(mask)",
        }.get(array.dtype.kind, "pass an integer array or a list of ints")
        raise KeyTypeError(f"table {target.name!r}: keys must be integers, got dtype {array.dtype}; {remedy}")
    if array.ndim != 1:
        remedy = f"write [{array}]" if array.ndim == 0 else "flatten them with .reshape(-1)"
        raise ShapeError(
            f"table {target.name!r}: keys must be one-dimensional, got shape {list(array.shape)}; {remedy}"
        )
    converted: Keys = array.astype(np.int64, copy=False)  # a uint64 beyond int64 becomes negative: out of range too
    return converted


def _convert_values(target: Target, values: npt.ArrayLike, n: int, length: int) -> Rows:
    array = _as_array(target, "values", values, DtypeError)
    if array.size == 0 and n == 0 and array.ndim == 1:
        array = array.reshape(0, length)
    if array.shape != (n, length):
        raise ShapeError(
            f"table {target.name!r}: values have shape {list(array.shape)}, but {n} keys of {length} floats "
            f"need [{n}, {length}]{_shape_remedy(array, n, length)}"
        )
    # Python's own ints have no width: they are taken as the floats they would be beside a decimal point
    if array.dtype == np.int64 and isinstance(values, (list, tuple)):
        array = array.astype(np.float64)
    if array.dtype != np.float64 and not np.can_cast(array.dtype, np.float32, "safe"):
        raise DtypeError(
            f"table {target.name!r}: values have dtype {array.dtype}, which float32 cannot hold without loss; "
            f"convert them with .astype(numpy.float32) if that loses nothing you need"
        )
    try:
        with np.errstate(over="raise"):
            converted: Rows = array.astype(np.float32, order="C", copy=False)
    except FloatingPointError:
        raise DtypeError(
            f"table {target.name!r}: a value is too large for float32 (largest magnitude {np.abs(array).max():g})"
        ) from None
    return converted


def _refuse_large_ints(target: Target, keys: npt.ArrayLike) -> None:
    """Python ints beyond 64 bits are no integers to numpy, but all that is wrong with them is their range."""
    if isinstance(keys, (list, tuple)) and all(isinstance(key, int) for key in keys):
        for position, key in enumerate(keys):
            if not -(2**63) <= key < 2**63:
                raise _out_of_range(target, np.array(keys, object), position)


def _as_array(target: Target, what: str, given: npt.ArrayLike, error: type[KeyTypeError | DtypeError]) -> Any:
    """What numpy sees in it.  Of a tensor on a GPU, or one that needs a gradient, torch itself says what to do."""
    try:
        return np.asarray(given)
    except ValueError as reason:  # rows of different lengths
        raise ShapeError(f"table {target.name!r}: {what} do not form an array: {reason}") from reason
    except (TypeError, RuntimeError) as reason:
        raise error(f"table {target.name!r}: {what} cannot be read as a numpy array: {reason}") from reason


def _shape_remedy(array: npt.NDArray[Any], n: int, length: int) -> str:
    if array.ndim == 0:
        return f"; for one value everywhere write numpy.full(({n}, {length}), value, numpy.float32)"
    if array.shape == (length,):
        return f"; for one row for all keys write numpy.broadcast_to(row, ({n}, {length}))"
    if array.ndim == 2 and array.shape[0] == n:
        return "; name the column group with columns=... if you mean one"
    return ""


def _out_of_range(target: Target, keys: npt.ArrayLike, position: int) -> KeyRangeError:
    return KeyRangeError(
        f"table {target.name!r}: key {np.asarray(keys)[position]} at position {position} is out of range; "
        f"keys of this table are 0 to {target.rows - 1}"
    )
