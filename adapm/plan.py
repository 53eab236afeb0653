"""Accesses to the same arrays again and again, written once."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from adapm.access import Access
from adapm.arguments import Columns, Rows, as_keys, take_out
from adapm.mailbox import NOTHING, Outcome, Ready


class _Binding:
    """A table, keys and a buffer of a worker.

    Args:
        access: the worker's.
        table, keys, columns: as in a pull; keys that are an int64 array stay as they are in memory.
        out: where the rows go; None makes a buffer.

    Attributes:
        rows: float32 [n, length of the columns], which every pull fills.

    Raises:
        UsageError: UnknownTable, UnknownColumn, KeyTypeError, ShapeError or BufferNotUsable.
    """

    __slots__ = ("__weakref__", "_pull_now", "_pull_rest", "_push_now", "_push_rest", "rows")

    def __init__(self, access: Access, table: str, keys: npt.ArrayLike, columns: Columns, out: Rows | None) -> None:
        target = access.target(table)
        wanted = columns if columns is None or isinstance(columns, str) else tuple(columns)
        length = target.span(wanted)[1]
        array = as_keys(target, keys)
        self.rows: Rows = np.empty((len(array), length), np.float32) if out is None else out
        take_out(target, self.rows, len(array), length)
        where = target.name, array, wanted
        self._pull_now = partial(access.pull_now, *where, self.rows)
        self._pull_rest = partial(access.pull_rest, *where, self.rows)
        self._push_now = partial(access.push_now, *where)
        self._push_rest = partial(access.push_rest, *where)


class Plan(_Binding):
    """Prepared pulls and pushes of a Worker, made by `Worker.plan`.

    The arrays given to it are used where they are: change what they hold as you like, but neither their shape nor
    their memory.  Belongs to the worker's thread; pull again only after the last pull has ended.

    Attributes:
        rows: float32 [n, length of the columns], which every pull fills.
    """

    __slots__ = ("_ready",)

    def __init__(self, access: Access, table: str, keys: npt.ArrayLike, columns: Columns, out: Rows | None) -> None:
        super().__init__(access, table, keys, columns, out)
        self._ready = Ready(self.rows)

    def pull(self) -> Outcome[Rows]:
        """Reads the rows into `rows`; result and errors are those of Worker.pull."""
        pulled = self._pull_now()
        return self._ready if pulled is self.rows else self._pull_rest(pulled)

    def push(self, values: npt.ArrayLike) -> Outcome[None]:
        """Adds values [n, length of the columns]; result and errors are those of Worker.push."""
        pushed = self._push_now(values)
        return NOTHING if pushed == 0 else self._push_rest(values, pushed)


class BlockingPlan(_Binding):
    """Prepared pulls and pushes of a BlockingWorker; see Plan."""

    __slots__ = ()

    def pull(self) -> Rows:
        """Reads the rows into `rows`, and returns that."""
        pulled = self._pull_now()
        return self.rows if pulled is self.rows else self._pull_rest(pulled).result()

    def push(self, values: npt.ArrayLike) -> None:
        """Adds values [n, length of the columns]; see Plan.push."""
        pushed = self._push_now(values)
        if pushed != 0:
            self._push_rest(values, pushed).result()
