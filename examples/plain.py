"""A stand-in for a worker that keeps the tables in arrays of its own: what training costs without any manager.

It has the names that the examples' `train` functions use, and does the least that they ask for. Nothing is shared, so
nothing is locked, announced or moved; what a run through the manager takes longer is what the manager costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import adapm
from adapm import ops
from adapm.tables import Kind

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class PlainSample(NamedTuple):
    """Keys that were drawn."""

    keys: Keys


class PlainWorker:
    """The only worker, of the only node."""

    id = node = clock = 0
    num_nodes = num_workers = 1

    def __init__(self, tables: Iterable[adapm.Table], seed: int) -> None:
        """Makes the tables. Initial values have the distributions that the tables ask for, but are other numbers."""
        self.rng = np.random.default_rng([seed, self.id])  # the same numbers as worker 0 of a run with this seed
        self._schemas = {table.name: table for table in tables}
        init, self._sampling = np.random.default_rng(seed), np.random.default_rng([seed, self.id, 1])
        self._tables = {name: _initial_rows(table, init) for name, table in self._schemas.items()}
        self._cumulated = cache(self._cumulate)

    def view(self, table: str, columns: str | Sequence[str] | None = None) -> Rows:
        """The table itself, or some of its columns, for code that does without pull and push."""
        offset, length = self._schemas[table].span(columns)
        return self._tables[table][:, offset : offset + length]

    async def pull(self, table: str, keys: Keys) -> Rows:
        return ops.gather(self._tables[table], keys)

    async def push(self, table: str, keys: Keys, values: Rows) -> None:
        ops.scatter_add(self._tables[table], keys, values)

    def prepare_sample(self, table: str, n: int, start: int) -> PlainSample:
        """Keys by the table's weights; each draw is independent, whatever the technique."""
        return PlainSample(np.searchsorted(self._cumulated(table), self._sampling.random(n), side="right"))

    async def barrier(self) -> None:
        pass

    async def read_table(self, table: str, columns: str | Sequence[str] | None = None) -> Rows:
        return self.view(table, columns).copy()

    def _cumulate(self, table: str) -> npt.NDArray[np.float64]:
        weights = self._schemas[table].sampling.weights
        assert weights is not None  # all that the examples draw by
        sums: npt.NDArray[np.float64] = np.cumsum(weights)
        return sums / sums[-1]


def _initial_rows(table: adapm.Table, rng: np.random.Generator) -> Rows:
    rows = np.zeros((table.rows, table.row_len), np.float32)
    for name, initial in table.initial.items():
        offset, length = table.span(name)
        column = rows[:, offset : offset + length]
        if initial.kind == Kind.NORMAL:
            column[:] = rng.normal(initial.a, initial.b, column.shape)
        elif initial.kind == Kind.UNIFORM:
            column[:] = rng.uniform(initial.a, initial.b, column.shape)
        else:
            column[:] = initial.a if initial.array is None else initial.array
    return rows
