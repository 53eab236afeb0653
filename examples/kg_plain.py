"""A stand-in for a worker that keeps the tables in arrays of its own: what training costs without any manager.

It has the names that `train` of knowledge_graph.py uses, and does the least that they ask for. Nothing is shared, so
nothing is locked, announced or moved; what a run through the manager takes longer is what the manager costs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

import adapm
from adapm import ops

Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class PlainWorker:
    """The only worker, of the only node."""

    id = node = 0
    num_nodes = num_workers = 1

    def __init__(self, tables: Iterable[adapm.Table], std: float, seed: int) -> None:
        """Makes the tables, with normal values of this standard deviation in the column group "value", else zeros."""
        self.rng = np.random.default_rng([seed, self.id])  # the same numbers as worker 0 of a run with this seed
        init = np.random.default_rng(seed)
        self._schemas = {table.name: table for table in tables}
        self._tables: dict[str, Rows] = {}
        for name, table in self._schemas.items():
            offset, length = table.span("value")
            rows = self._tables[name] = np.zeros((table.rows, table.row_len), np.float32)
            rows[:, offset : offset + length] = init.normal(0, std, (table.rows, length))

    async def pull(self, table: str, keys: Keys) -> Rows:
        return ops.gather(self._tables[table], keys)

    async def push(self, table: str, keys: Keys, values: Rows) -> None:
        ops.scatter_add(self._tables[table], keys, values)

    async def barrier(self) -> None:
        pass

    async def read_table(self, table: str, columns: str | None = None) -> Rows:
        offset, length = self._schemas[table].span(columns)
        return self._tables[table][:, offset : offset + length].copy()
