"""Which rows a technique keeps on all nodes from the start on, and the memory that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adapm.errors import OutOfMemory, TableError
from adapm.segment import home_rows, require_memory, row_bytes
from adapm.tables import Table
from adapm.techniques import Everywhere, Technique

HEURISTIC = 100.0  # times the mean: how often a key is counted that counts as hot, as NuPS proposes

Keys: TypeAlias = "npt.NDArray[np.int64] | range"


def everywhere(technique: Technique, tables: Sequence[Table]) -> list[Keys]:
    """The keys of each table whose rows are on all nodes: int64 [n] each, or a range that takes no memory.

    Raises:
        TableError: it takes counts to know them, and no table has any.
    """
    if technique.everywhere is Everywhere.ALL:
        return [range(table.rows) for table in tables]
    if technique.everywhere is Everywhere.HOT:
        return _hot(technique, tables)
    return [range(0) for _ in tables]


def _hot(technique: Technique, tables: Sequence[Table]) -> list[Keys]:
    counts = [np.zeros(table.rows) if table.counts is None else table.counts for table in tables]
    if all(table.counts is None for table in tables):
        raise TableError(
            f"technique {technique.name!r} must know how often keys are accessed: give a table counts=[...], one number"
            f" for each row; no table has any: {', '.join(table.name for table in tables)}"
        )
    together = np.concatenate(counts)
    if technique.hot is None:
        hot = np.flatnonzero(together > HEURISTIC * together.mean())
    else:
        hot = np.sort(np.argsort(-together, kind="stable")[: technique.hot])
    ends = np.cumsum([table.rows for table in tables])
    parts = np.split(hot, np.searchsorted(hot, ends[:-1]))
    return [part - (end - table.rows) for part, end, table in zip(parts, ends, tables, strict=True)]


def require_room(
    kept: Iterable[Keys], tables: Sequence[Table], nodes: int, needed: int, capacity: Sequence[int] | None
) -> None:
    """Nothing, if a node can keep these rows beside all else; to be asked before anything is allocated.

    Args:
        kept: as of `everywhere`.
        tables: all tables.
        nodes: how many there are.
        needed: bytes that the node takes without them.
        capacity: for each table, how many rows it may keep; None: all.

    Raises:
        OutOfMemory: it cannot.
    """
    copies = [len(keys) - len(keys) // nodes for keys in kept]  # the others are at home there, about
    rooms = [table.rows for table in tables] if capacity is None else capacity
    for table, n, room in zip(tables, copies, rooms, strict=True):
        if n and min(table.rows, home_rows(table, nodes) + n) > room:
            raise OutOfMemory(
                f"the technique keeps {n:,} rows of table {table.name!r} on every node beside those at home there,"
                f" and the setting `memory` leaves room for {room:,} in all: raise it"
            )
    # A copy is a row and what it was when it came.
    require_memory(needed + sum(2 * n * row_bytes(t) for n, t in zip(copies, tables, strict=True)), tables)
