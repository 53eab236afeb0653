"""A table's rows as tensors, and the gradients that come back for them.

    ids --unique--> keys --pull--> buffer [keys + 1, value | state of the optimizer]
                                   `-> leaf, a view of its values -> torch's own embedding -> ... loss
    loss.backward() -> gradient of the leaf -> waits here until the optimizer takes it, with keys and buffer

The last row of a buffer is zero: that is the row of padding.  A gradient arrives by a hook of its leaf, so that nothing
is kept of calls whose results nobody differentiates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import adapm
from adapm import ops
from adapm.errors import KeyRangeError, TableError, UnknownTable, UsageError, nearest
from adapm.torch.worker import blocking_worker

VALUE: Final = "value"  # the column group that modules look up
_SPARES: Final = 4  # buffers that are kept for later calls, of each table
_CPU: Final = torch.device("cpu")

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """The gradients of one step.

    Attributes:
        keys: int64 [u], distinct.
        rows: float32 [u, length of the columns], as they were pulled.
        inverse: int64 [n], of which row each gradient is.
        grads: float32 [n, dim].
    """

    keys: Keys
    rows: Floats
    inverse: Keys
    grads: Floats


@dataclass(eq=False)
class _Call:
    """What one forward call has pulled: keys [u], and a buffer [u + 1, length of the columns], also as a tensor."""

    keys: Keys
    buffer: Floats
    tensor: Tensor
    used: bool = False

    @property
    def rows(self) -> Floats:
        return self.buffer[:-1]


class TableRows:
    """The rows of one table, as one module uses them.

    Args:
        table: its name.
        count, dim: the number of rows and the width of their values, which must be the table's.
        worker: None for that of the thread in which the rows are used.
    """

    def __init__(self, table: str, count: int, dim: int, worker: adapm.BlockingWorker | None) -> None:
        self.table = table
        self.count = count
        self.dim = dim
        self._spares = Spares()
        self._columns: tuple[str, ...] = (VALUE,)
        self._differentiated = False
        self._given = worker
        self._worker: adapm.BlockingWorker | None = None  # whose table has been looked at
        self._arrived: list[tuple[_Call, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        """In another process, or in a copy, rows are those of the worker there."""
        return {**self.__dict__, "_spares": Spares(), "_given": None, "_worker": None, "_arrived": []}

    def worker(self) -> adapm.BlockingWorker:
        """The worker through which rows come and go.

        Raises:
            UsageError: there is none, or it has no such table.
        """
        worker = blocking_worker(self._given)
        if worker is not self._worker:
            self._check(worker)
            self._worker = worker
        return worker

    def keep_for(self, optimizer: str, columns: dict[str, int]) -> None:
        """From now on gradients are kept until they are taken, and pulls bring these columns, in this order.

        Raises:
            TableError: the table has not these columns, side by side; the message says which to add.
        """
        table = self.worker().tables[self.table]
        names, have = list(columns), dict(table.columns)
        side_by_side = any(list(have)[i : i + len(names)] == names for i in range(len(have)))
        if not side_by_side or any(have[name] != width for name, width in columns.items()):
            raise TableError(
                f"{optimizer} keeps its state in the table, and {table!r} has no room for it: make it"
                f" adapm.Table({self.table!r}, rows={self.count}, columns={columns})"
            )
        self._columns = tuple(names)
        self._differentiated = True

    # ---- forward

    def pull(self, ids: Tensor, device: torch.device, padding: int | None) -> tuple[Tensor, Tensor, int | None]:
        """The rows of some ids.

        Args:
            ids: integers of any shape, on the CPU or on `device`.
            device: where the rows are wanted.
            padding: the id whose row is zero and gets no gradient; None if there is none.

        Returns:
            values, index, padding: float32 [u + 1, dim], a leaf if gradients are wanted; int64, of the ids' shape, the
            row in it of each; and the row of padding, None if there is no padding among the ids.

        Raises:
            UsageError: KeyRangeError, or as `worker`.
        """
        worker = self.worker()
        keys, index = ops.unique(ids.detach().cpu().reshape(-1).numpy())
        self._check_range(keys)
        keys, index, padding = _without(padding, keys, index)
        call = self._call(keys, self._width(worker), device)
        worker.pull(self.table, keys, columns=self._columns, out=call.rows)
        call.buffer[-1] = 0
        values = self._leaf(call, call.tensor.to(device, non_blocking=True)[:, : self.dim])
        return values, torch.from_numpy(index).view(ids.shape).to(device), padding

    def _call(self, keys: Keys, width: int, device: torch.device) -> _Call:
        """A buffer of ours, or for another device one of torch's, which knows when copies of it have ended."""
        if device == _CPU:
            buffer = self._spares.take(len(keys) + 1, width)
            return _Call(keys, buffer, torch.from_numpy(buffer))
        pinned = torch.empty(len(keys) + 1, width, pin_memory=True)
        return _Call(keys, pinned.numpy(), pinned)

    def _leaf(self, call: _Call, values: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self._release(call)  # nothing is pulled before the values have been used
            return values
        values.requires_grad_()
        if self._differentiated:
            values.register_post_accumulate_grad_hook(partial(self._arrive, call))
        return values

    def _arrive(self, call: _Call, leaf: Tensor) -> None:
        if call.used:
            raise UsageError(
                f"table {self.table!r}: backward through a call whose gradients a step or zero_grad has used already;"
                " call the module again before it"
            )
        self._arrived.append((call, leaf.grad))
        leaf.grad = None  # what comes by another backward is kept beside it

    def pull_all(self, padding: int | None) -> Tensor:
        """The values of all rows, float32 [count, dim] on the CPU; that of the id of padding is zero.

        Raises:
            UsageError: as `worker`.
        """
        values = self.worker().read_table(self.table, columns=VALUE)
        if padding is not None:
            values[padding] = 0
        return torch.from_numpy(values)

    # ---- step

    def take(self) -> Batch | None:
        """All gradients since the last call, None if there are none; to be used before rows are pulled again."""
        arrived = self._give_up()
        if not arrived:
            return None
        entries = [_entries(call, grad) for call, grad in arrived]
        if len(arrived) == 1:
            return Batch(arrived[0][0].keys, arrived[0][0].rows, *entries[0])
        keys, places = ops.unique(np.concatenate([call.keys for call, _ in arrived]))
        ends = np.cumsum([len(call.keys) for call, _ in arrived])
        rows = np.empty((len(keys), arrived[0][0].rows.shape[1]), np.float32)
        inverse = []
        for (call, _), (index, _), mine in zip(arrived, entries, np.split(places, ends[:-1]), strict=True):
            rows[mine] = call.rows  # of several calls that pulled a row, the last
            inverse.append(mine[index])
        return Batch(keys, rows, np.concatenate(inverse), np.concatenate([grads for _, grads in entries]))

    def push(self, keys: Keys, changes: Floats) -> None:
        """Adds [u, length of the columns] to rows, without waiting for the end; if it fails, `wait_sync` says so."""
        self.worker().push_later(self.table, keys, changes, columns=self._columns)

    def discard(self) -> None:
        """Forgets all gradients since the last call."""
        self._give_up()

    def _give_up(self) -> list[tuple[_Call, Tensor]]:
        arrived = list(self._arrived)
        self._arrived.clear()
        for call, _ in arrived:
            if not call.used:
                call.used = True
                with torch.no_grad():
                    call.tensor[:0].zero_()  # changes its version only: torch notices if a graph still needs it
                self._release(call)
        return arrived

    def _release(self, call: _Call) -> None:
        if not call.tensor.is_pinned():
            self._spares.give(call.buffer)

    # ---- what may be wrong

    def _check(self, worker: adapm.BlockingWorker) -> None:
        table = worker.tables.get(self.table)
        if table is None:
            raise UnknownTable(f"there is no table {self.table!r}{nearest(self.table, worker.tables)}")
        if (table.rows, table.columns.get(VALUE)) != (self.count, self.dim):
            raise TableError(
                f"the module has {self.count} rows of {self.dim} values, and {table!r} has others: both must have"
                f" the same number of rows, and the column group {VALUE!r} the module's width"
            )

    def _check_range(self, keys: Keys) -> None:
        for key in keys[:1].tolist() + keys[-1:].tolist():
            if not 0 <= key < self.count:
                raise KeyRangeError(f"table {self.table!r}: id {key} is out of range; ids are 0 to {self.count - 1}")

    def _width(self, worker: adapm.BlockingWorker) -> int:
        return sum(worker.tables[self.table].columns[name] for name in self._columns)


class Spares:
    """Arrays that are used again."""

    def __init__(self) -> None:
        self._spare: list[Floats] = []

    def take(self, rows: int, width: int) -> Floats:
        """Float32 [rows, width], with anything in it."""
        size = rows * width
        for i, spare in enumerate(self._spare):
            if spare.size >= size:
                return self._spare.pop(i)[:size].reshape(rows, width)
        self._spare.clear()  # too small for these, and soon for others
        return np.empty(size + size // 4, np.float32)[:size].reshape(rows, width)

    def give(self, array: Floats) -> None:
        """One that `take` has given, and that is not needed any more."""
        if len(self._spare) < _SPARES and isinstance(array.base, np.ndarray):
            self._spare.append(array.base)


def _without(padding: int | None, keys: Keys, index: Keys) -> tuple[Keys, Keys, int | None]:
    """Has the id of padding, if it is there, stand behind the keys instead of among them."""
    place = len(keys) if padding is None else int(np.searchsorted(keys, padding))
    if place == len(keys) or keys[place] != padding:
        return keys, index, None
    last = len(keys) - 1
    moved = np.where(index == place, last, index - (index > place))
    return np.delete(keys, place), moved, last


def _entries(call: _Call, grad: Tensor) -> tuple[Keys, Floats]:
    """Of which rows of a call there are gradients, and these."""
    if grad.is_sparse:
        return grad._indices()[0].cpu().numpy(), grad._values().cpu().numpy()
    return np.arange(len(call.keys)), grad[:-1].cpu().numpy()
