"""What a table is: its name, its number of rows, its column groups, the rows' initial values, and how they are sampled.

    TABLES = [
        Table("entities", rows=14_505, columns={"value": 64, "adagrad": 64}, init={"value": normal(std=1e-3)}),
        Table("relations", rows=237, dim=64),  # short for columns={"value": 64}
    ]

A row is `row_len` float32 values, its column groups side by side in the order given:

    |<------ value: 64 ------>|<----- adagrad: 64 ----->|
    offset 0                  offset 64                 row_len 128
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from adapm.errors import TableError, UnknownColumn, nearest
from adapm.sampling import Sampling, count, per_row

MAX_ROWS = 2**32 - 2  # rows are u32 in messages, and the kernel keeps one value to mean "none"
MAX_ROW_LEN = 2**20  # floats: a row must fit comfortably into one message


class Kind(enum.IntEnum):
    """How a column group begins; the numbers are the kernel's."""

    ZEROS = 0
    CONSTANT = 1
    NORMAL = 2
    UNIFORM = 3
    ARRAY = 4


@dataclass(frozen=True, eq=False)
class Initial:
    """Initial values of one column group.

    Attributes:
        kind: see Kind.
        a: the constant, the mean of a normal, the low end of a uniform distribution.
        b: the standard deviation of a normal, the high end of a uniform distribution.
        array: float32 [rows, width of the column group] for Kind.ARRAY, None where only the schema is known; else None.
    """

    kind: int = Kind.ZEROS
    a: float = 0.0
    b: float = 0.0
    array: npt.NDArray[np.float32] | None = None

    def describe(self) -> list[Any]:
        """Its identity as a msgpack-able list; an array is named by its shape and sha256."""
        digest = None if self.array is None else hashlib.sha256(self.array.data).hexdigest()
        shape = None if self.array is None else list(self.array.shape)
        return [int(self.kind), self.a, self.b, shape, digest]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Initial) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash((self.kind, self.a, self.b))


Init: TypeAlias = Initial | npt.ArrayLike


def normal(std: float, mean: float = 0.0) -> Initial:
    """Initial values drawn from a normal distribution.

    Raises:
        TableError: std is negative, or one of them is not finite.
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std >= 0):
        raise TableError(f"normal(std={std}, mean={mean}): std must be finite and not negative, mean finite")
    return Initial(Kind.NORMAL, float(mean), float(std))


def uniform(low: float, high: float) -> Initial:
    """Initial values drawn uniformly from [low, high).

    Raises:
        TableError: high < low, or one of them is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise TableError(f"uniform(low={low}, high={high}): both must be finite and low <= high")
    return Initial(Kind.UNIFORM, float(low), float(high))


def constant(value: float) -> Initial:
    """The same initial value everywhere.

    Raises:
        TableError: value is not finite.
    """
    if not math.isfinite(value):
        raise TableError(f"constant({value}): the value must be finite")
    return Initial(Kind.CONSTANT, float(value))


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Table:
    """One table of rows, keys 0 to rows-1, float32 values.

    A row's initial value depends on the seed, the table and the key only.

    Args:
        name: how workers call it.
        rows: number of rows, at most 2**32 - 2.
        dim: the width of a row with one column group, which is called "value".
        columns: or: from names of column groups to their widths, in floats.
        init: one initial value for all column groups, or a mapping from their names to initial values; zeros where it
            says nothing.  An initial value is normal(...), uniform(...), constant(...) or an array [rows, width], for
            all groups together [rows, row_len]; an array that is float32 and contiguous is not copied.
        sampling: how `Worker.prepare_sample` draws keys of this table.
        counts: [rows], how often each key is accessed, as far as the data tells, in any unit that all tables share;
            the technique "nups" takes from them which keys are hot, and nothing else looks at them.

    Raises:
        TableError: a name is empty, a number out of range, both or neither of dim and columns are given, an initial
            value does not fit, or there is not one weight or count for each row.
    """

    name: str
    rows: int
    columns: Mapping[str, int]
    initial: Mapping[str, Initial]
    sampling: Sampling
    counts: npt.NDArray[np.float64] | None

    def __init__(
        self,
        name: str,
        rows: int,
        dim: int | None = None,
        columns: Mapping[str, int] | None = None,
        init: Init | Mapping[str, Init] | None = None,
        sampling: Sampling | None = None,
        counts: npt.ArrayLike | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise TableError(f"a table's name must be a string that is not empty, got {name!r}")
        put = object.__setattr__  # this is how a frozen value is filled
        put(self, "name", name)
        put(self, "rows", _count(name, "rows", rows, MAX_ROWS))
        put(self, "columns", MappingProxyType(_columns(name, dim, columns)))
        _count(name, "the length of a row", self.row_len, MAX_ROW_LEN)
        put(self, "initial", MappingProxyType(_initials(self, init)))
        put(self, "sampling", _sampling(self, sampling))
        put(self, "counts", None if counts is None else _counts(self, counts))

    @property
    def row_len(self) -> int:
        """Floats in a row, all column groups together."""
        return sum(self.columns.values())

    def span(self, columns: str | Sequence[str] | None = None) -> tuple[int, int]:
        """Offset and length, in floats, of column groups within a row.

        Args:
            columns: None for the whole row, a group's name, or names of groups that lie side by side, in their order.

        Raises:
            UnknownColumn: there is no such group, or the groups are not adjacent.
        """
        if columns is None:
            return 0, self.row_len
        wanted = [columns] if isinstance(columns, str) else list(columns)
        names = list(self.columns)
        for column in wanted:
            if column not in self.columns:
                raise UnknownColumn(f"table {self.name!r} has no column group {column!r}{nearest(column, names)}")
        first = names.index(wanted[0]) if wanted else 0
        if not wanted or names[first : first + len(wanted)] != wanted:
            raise UnknownColumn(f"column groups {wanted} of table {self.name!r} are not adjacent: they lie as {names}")
        widths = list(self.columns.values())
        return sum(widths[:first]), sum(widths[first : first + len(wanted)])

    def describe(self) -> dict[str, Any]:
        """What makes the table the one it is, msgpack-able and small: arrays are named by shape and sha256."""
        return {
            "name": self.name,
            "rows": self.rows,
            "columns": [[column, width] for column, width in self.columns.items()],
            "init": [initial.describe() for initial in self.initial.values()],
            "sampling": self.sampling.describe(),
            "counts": None if self.counts is None else hashlib.sha256(self.counts.data).hexdigest(),
        }

    def pack(self, *, arrays: bool = True) -> dict[str, Any]:
        """The table as a msgpack-able value for `unpack`; without arrays, only those who create rows cannot use it."""
        init = [
            [int(i.kind), i.a, i.b, None if i.array is None or not arrays else i.array.tobytes()]
            for i in self.initial.values()
        ]
        return {
            "name": self.name,
            "rows": self.rows,
            "columns": list(map(list, self.columns.items())),
            "init": init,
            "sampling": self.sampling.pack(arrays=arrays),
            "counts": None if self.counts is None or not arrays else self.counts.tobytes(),
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Table:
        """The table that was packed.

        Raises:
            TableError: packed is not what `pack` makes.
        """
        try:
            sampling = Sampling.unpack(*packed["sampling"])
            counts = None if packed["counts"] is None else np.frombuffer(packed["counts"], np.float64)
            columns = dict(packed["columns"])
            table = cls(packed["name"], packed["rows"], columns=columns, sampling=sampling, counts=counts)
            initial = {
                column: _unpack_initial(table, width, *values)
                for (column, width), values in zip(table.columns.items(), packed["init"], strict=True)
            }
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"this is not a packed table ({error})") from error
        object.__setattr__(table, "initial", MappingProxyType(initial))
        return table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.describe() == other.describe()

    def __repr__(self) -> str:
        return f"Table({self.name!r}, rows={self.rows}, columns={dict(self.columns)})"

    def __hash__(self) -> int:
        return hash((self.name, self.rows, tuple(self.columns.items())))

    def __reduce__(self) -> tuple[Any, ...]:  # mapping proxies do not pickle
        return Table.unpack, (self.pack(),)


def check_tables(tables: Iterable[Table]) -> list[Table]:
    """The tables of a run as a list, in the order that numbers them.

    Raises:
        TableError: there is none, one is not a Table, or two have the same name.
    """
    checked = list(tables)
    if not checked:
        raise TableError("a run needs at least one table: adapm.run(fn, tables=[adapm.Table(...)])")
    seen: set[str] = set()
    for table in checked:
        if not isinstance(table, Table):
            raise TableError(f"tables must be a list of adapm.Table, found {table!r}")
        if table.name in seen:
            raise TableError(f"two tables are named {table.name!r}: give each its own name")
        seen.add(table.name)
    return checked


def digest(tables: Iterable[Table]) -> str:
    """sha256 over the tables' descriptions, in hex: equal on nodes that may work together."""
    text = json.dumps([table.describe() for table in tables], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _count(table: str, what: str, value: object, most: int) -> int:
    return count(f"table {table!r}: {what}", value, most)


def _columns(table: str, dim: int | None, columns: Mapping[str, int] | None) -> dict[str, int]:
    if (dim is None) == (columns is None):
        raise TableError(f"table {table!r}: give either dim=64 or columns={{'value': 64, ...}}")
    if columns is None:
        return {"value": _count(table, "dim", dim, MAX_ROW_LEN)}
    if not isinstance(columns, Mapping) or not columns:
        raise TableError(f"table {table!r}: columns must map names to widths, got {columns!r}")
    for name in columns:
        if not isinstance(name, str) or not name:
            raise TableError(f"table {table!r}: a column group's name must be a string that is not empty, got {name!r}")
    return {name: _count(table, f"the width of column group {name!r}", n, MAX_ROW_LEN) for name, n in columns.items()}


def _initials(table: Table, init: Init | Mapping[str, Init] | None) -> dict[str, Initial]:
    if isinstance(init, Mapping):
        for column in init:
            if column not in table.columns:
                hint = nearest(column, table.columns)
                raise TableError(f"table {table.name!r}: init names the column group {column!r}{hint}")
        return {name: _initial(table, name, init.get(name), width) for name, width in table.columns.items()}
    if init is None or isinstance(init, Initial):
        return {name: _initial(table, name, init, width) for name, width in table.columns.items()}
    whole = _array(table, "init", init, table.row_len)
    return {name: Initial(Kind.ARRAY, array=_slice(whole, *table.span(name))) for name in table.columns}


def _sampling(table: Table, sampling: Sampling | None) -> Sampling:
    chosen = Sampling() if sampling is None else sampling
    if not isinstance(chosen, Sampling):
        raise TableError(f"table {table.name!r}: sampling must be an adapm.Sampling, got {sampling!r}")
    chosen.check_rows(table.name, table.rows)
    return chosen


def _counts(table: Table, given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    counts = per_row("counts", given)
    if len(counts) != table.rows:
        raise TableError(
            f"table {table.name!r} has {table.rows:,} rows, but {len(counts):,} counts: give one for each row"
        )
    return counts


def _initial(table: Table, column: str, init: Init | None, width: int) -> Initial:
    if init is None:
        return Initial()
    if isinstance(init, Initial) and init.array is None:
        return init
    values = init.array if isinstance(init, Initial) else init
    return Initial(Kind.ARRAY, array=_array(table, f"init of column group {column!r}", values, width))


def _array(table: Table, what: str, values: object, width: int) -> npt.NDArray[np.float32]:
    array = np.asarray(values)
    if array.shape != (table.rows, width):
        remedy = " (for one value everywhere use adapm.constant)" if array.ndim == 0 else ""
        expected = f"[{table.rows}, {width}]"
        raise TableError(f"table {table.name!r}: {what} must have shape {expected}, got {list(array.shape)}{remedy}")
    if array.dtype != np.float64 and not np.can_cast(array.dtype, np.float32, "safe"):
        remedy = "convert it with .astype(numpy.float32) if that loses nothing you need"
        raise TableError(f"table {table.name!r}: {what} has dtype {array.dtype}, which float32 cannot hold; {remedy}")
    try:
        with np.errstate(over="raise"):
            return _frozen(np.ascontiguousarray(array, dtype=np.float32))
    except FloatingPointError as error:
        raise TableError(f"table {table.name!r}: {what} has values too large for float32") from error


def _slice(whole: npt.NDArray[np.float32], offset: int, length: int) -> npt.NDArray[np.float32]:
    return _frozen(np.ascontiguousarray(whole[:, offset : offset + length]))


def _frozen(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    view = array.view()
    view.flags.writeable = False
    return view


def _unpack_initial(table: Table, width: int, kind: int, a: float, b: float, data: bytes | None) -> Initial:
    array = None if data is None else np.frombuffer(data, np.float32).reshape(table.rows, width)
    return Initial(Kind(kind), a, b, array)
