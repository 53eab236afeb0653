"""The dense layers of a model: their parameters lie end to end in the rows of one table, which every node keeps.

    dense = adapm.torch.DenseParameters(model, optimizer)    # pulls them; from now on the optimizer's steps are shared

Each worker has its own copy and its own optimizer of torch.optim. After each step it pushes by how much its parameters
have changed, and pulls what all the workers' changes add up to.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

import adapm
from adapm.errors import TableError, UnknownTable, nearest
from adapm.torch.rows import Floats
from adapm.torch.worker import blocking_worker

_WIDTH: Final = 1024  # floats of a row
_ALWAYS: Final = 2**62  # a clock that none reaches


def dense_table(module: torch.nn.Module, name: str = "dense") -> adapm.Table:
    """A table for the module's parameters, with their values as initial values.

    All nodes must make the same one, so seed what initializes the module (torch.manual_seed).  Embeddings of
    adapm.torch in the module are not in it: they have tables of their own.

    Raises:
        TableError: the module has no parameters that are trained.
    """
    values = _flat(_trained(module))
    if not values.size:
        raise TableError(f"the module has no parameters that require gradients, so table {name!r} would be empty")
    rows = -(-values.size // _WIDTH)
    init: Floats = np.zeros((rows, _WIDTH), np.float32)
    init.reshape(-1)[: values.size] = values
    return adapm.Table(name, rows=rows, dim=_WIDTH, init=init)


class DenseParameters:
    """The parameters of a module, shared by all workers through a table of `dense_table`.

    Updates of all workers add up, as with several threads on the same parameters (Hogwild): none waits for another, and
    each step begins from what was known after the last.  The optimizer's own state - momentum, moments - stays with its
    worker, and so do buffers, such as the running means of batch normalization.

    Args:
        module: parameters that require gradients are shared; they take the table's values now.
        optimizer: any optimizer of torch.optim, or several; after each of its steps `share` is called.
        table: the table's name.
        worker: None for this thread's.

    Raises:
        UsageError: NoWorker, UnknownTable, or TableError if the table is not that of such a module.
        Closed: the worker is closed.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *optimizer: torch.optim.Optimizer,
        table: str = "dense",
        worker: adapm.BlockingWorker | None = None,
    ) -> None:
        self._worker = blocking_worker(worker)
        self._table = table
        self._parameters = _trained(module)
        self._sizes: list[int] = [parameter.numel() for parameter in self._parameters]
        rows = self._check()
        self._keys = np.arange(rows)
        self._rows, self._changes = (np.zeros((rows, _WIDTH), np.float32) for _ in range(2))
        self._worker.intent(table, self._keys, self._worker.clock, _ALWAYS)
        self._pull()
        for each in optimizer:
            each.register_step_post_hook(lambda *_: self.share())

    def share(self) -> None:
        """Pushes what has changed since the last call, and takes over what others have changed."""
        self._changes.reshape(-1)[: sum(self._sizes)] = _flat(self._parameters) - self._before
        self._worker.push_later(self._table, self._keys, self._changes)
        self._pull()

    def barrier(self) -> None:
        """Returns when every worker has called it, with everybody's changes taken over: to evaluate, or to end.

        Raises:
            AdapmError: as BlockingWorker.barrier.
        """
        self.share()
        self._worker.barrier()
        self._pull()

    @torch.no_grad()
    def _pull(self) -> None:
        self._worker.pull(self._table, self._keys, out=self._rows)
        pieces = torch.from_numpy(self._rows).reshape(-1)[: sum(self._sizes)].split(self._sizes)
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))
        self._before = _flat(self._parameters)  # as rounded to the parameters' type

    def _check(self) -> int:
        """The number of rows."""
        tables = self._worker.tables
        if self._table not in tables:
            raise UnknownTable(f"there is no table {self._table!r}{nearest(self._table, tables)}")
        table, rows = tables[self._table], -(-sum(self._sizes) // _WIDTH)
        if (table.rows, table.row_len) != (rows, _WIDTH):
            raise TableError(
                f"{sum(self._sizes)} parameters need {rows} rows of {_WIDTH}, and {table!r} has others: make it"
                f" adapm.torch.dense_table(module, {self._table!r})"
            )
        return rows


def _trained(module: torch.nn.Module) -> list[Any]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def _flat(parameters: list[Any]) -> Floats:
    """Their values, end to end."""
    if not parameters:
        return np.zeros(0, np.float32)
    values: Floats = torch.cat([parameter.reshape(-1).float().cpu() for parameter in parameters]).numpy()
    return values
