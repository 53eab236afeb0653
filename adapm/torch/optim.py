"""Optimizers of rows: torch.optim's, with the state in column groups of the table, where all workers share it.

A step takes the gradients that arrived since the last one, sums those of the same row, computes what to add to the rows
in the kernel, and pushes it without waiting.  What was pulled for the forward call is all that it reads.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import torch

from adapm import ops
from adapm.errors import UsageError
from adapm.torch.embedding import TableModule, table_modules
from adapm.torch.rows import VALUE, Batch, Floats, Spares

Module = torch.nn.Module
Modules = Any
"""A module, several, or groups: mappings with "params", which are modules, and settings of their own."""

_NOTHING: Final = np.empty(0, np.int64)


class TableOptimizer(torch.optim.Optimizer, abc.ABC):
    """What all of them have in common.

    Schedulers of torch.optim.lr_scheduler work, `param_groups` hold what can be set, `state_dict` holds that and the
    number of steps; what is kept of each row is in the table.
    """

    def __init__(self, modules: Modules, **defaults: Any) -> None:
        self._modules: dict[torch.Tensor, TableModule] = {}
        self._spares = Spares()
        super().__init__([modules] if isinstance(modules, Module) else list(modules), defaults)

    @staticmethod
    @abc.abstractmethod
    def columns(dim: int) -> dict[str, int]:
        """The column groups that a table with values of this width needs, as adapm.Table takes them."""

    @abc.abstractmethod
    def _changes(self, batch: Batch, group: dict[str, Any], state: dict[str, Any], out: Floats) -> None:
        """Fills out, [u, length of the columns], with what to add to the rows."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds modules with settings of their own: {"params": modules, "lr": 0.01}."""
        modules = _table_modules(param_group["params"])
        for module in modules:
            columns = self.columns(module.embedding_dim)
            self._try({**self.defaults, **param_group}, module.embedding_dim, sum(columns.values()))
            module.rows.keep_for(type(self).__name__, columns)
            self._modules[module.anchor] = module
        super().add_param_group({**param_group, "params": [module.anchor for module in modules]})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients that no step has used."""
        for module in self._modules.values():
            module.rows.discard()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the rows that have gradients, which are used up by that.

        The pushes are under way when it returns, and this worker sees them. If one fails, `wait_sync` says so.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for anchor in group["params"]:
                self._update(self._modules[anchor], group, self.state[anchor])
        return loss

    def _update(self, module: TableModule, group: dict[str, Any], state: dict[str, Any]) -> None:
        batch = module.rows.take()
        if batch is None:
            return
        columns = self.columns(module.embedding_dim)
        out = self._spares.take(len(batch.keys), sum(columns.values()))
        self._changes(batch, group, state, out)
        module.rows.push(batch.keys, out)
        self._spares.give(out)

    def _try(self, group: dict[str, Any], dim: int, width: int) -> None:
        """Refuses settings that a step would refuse."""
        empty = np.empty((0, width), np.float32)
        self._changes(Batch(_NOTHING, empty, _NOTHING, empty[:, :dim]), group, {}, empty)


class SparseSGD(TableOptimizer):
    """Gradient descent, as torch.optim.SGD without momentum.

    Args:
        modules: modules that contain an Embedding or EmbeddingBag, or param groups of such modules.
        lr: the learning rate.

    Raises:
        UsageError: there are none, the rate is negative, or there is no worker.
    """

    def __init__(self, modules: Modules, lr: float = 1e-3) -> None:
        super().__init__(modules, lr=lr)

    @staticmethod
    def columns(dim: int) -> dict[str, int]:
        """Only the values."""
        return {VALUE: dim}

    def _changes(self, batch: Batch, group: dict[str, Any], state: dict[str, Any], out: Floats) -> None:
        ops.sgd(len(batch.keys), batch.inverse, batch.grads, float(group["lr"]), out=out)


class SparseAdagrad(TableOptimizer):
    """AdaGrad, as torch.optim.Adagrad. Concurrent updates add up exactly: the one to begin with.

    Args:
        modules: modules that contain an Embedding or EmbeddingBag, or param groups of such modules.
        lr: the learning rate.
        eps: keeps the divisor from being zero.

    Raises:
        UsageError: there are none, a setting is out of range, there is no worker, or a table has no column group
            "adagrad" (TableError). Initial values of the sums are the table's: init={"adagrad": adapm.constant(0.1)}.
    """

    def __init__(self, modules: Modules, lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(modules, lr=lr, eps=eps)

    @staticmethod
    def columns(dim: int) -> dict[str, int]:
        """Values, and a sum of squares for each."""
        return {VALUE: dim, "adagrad": dim}

    def _changes(self, batch: Batch, group: dict[str, Any], state: dict[str, Any], out: Floats) -> None:
        ops.adagrad(batch.rows, batch.inverse, batch.grads, float(group["lr"]), group["eps"], out=out)


class RowwiseAdagrad(TableOptimizer):
    """AdaGrad with one sum for each row, of the mean squares of its gradients: one float of state instead of dim.

    Args:
        modules, lr, eps: as of SparseAdagrad; the column group is "rowwise_adagrad".
    """

    def __init__(self, modules: Modules, lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(modules, lr=lr, eps=eps)

    @staticmethod
    def columns(dim: int) -> dict[str, int]:
        """Values, and one sum."""
        return {VALUE: dim, "rowwise_adagrad": 1}

    def _changes(self, batch: Batch, group: dict[str, Any], state: dict[str, Any], out: Floats) -> None:
        ops.rowwise_adagrad(batch.rows, batch.inverse, batch.grads, float(group["lr"]), group["eps"], out=out)


class SparseAdam(TableOptimizer):
    """Adam, as torch.optim.SparseAdam: rows that are not looked up keep their moments.

    Bias is corrected by the number of steps that this worker has made.  Moments of rows that several workers change at
    once are approximate, see `adapm.ops.adam`.

    Args:
        modules: modules that contain an Embedding or EmbeddingBag, or param groups of such modules.
        lr: the learning rate.
        betas: how much of the two moments stays at each step.
        eps: keeps the divisor from being zero.

    Raises:
        UsageError: as of SparseAdagrad; the column groups are "adam_m" and "adam_v".
    """

    def __init__(
        self, modules: Modules, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(modules, lr=lr, betas=betas, eps=eps)

    @staticmethod
    def columns(dim: int) -> dict[str, int]:
        """Values, and two moments of each."""
        return {VALUE: dim, "adam_m": dim, "adam_v": dim}

    def _changes(self, batch: Batch, group: dict[str, Any], state: dict[str, Any], out: Floats) -> None:
        state["step"] = state.get("step", 0) + 1
        lr, betas, eps = float(group["lr"]), group["betas"], group["eps"]
        ops.adam(batch.rows, batch.inverse, batch.grads, lr, state["step"], betas, eps, out=out)


def _table_modules(given: Any) -> list[TableModule]:
    """Ours among the modules that were given."""
    modules = [given] if isinstance(given, Module) else list(given) if isinstance(given, Iterable) else [given]
    for module in modules:
        if not isinstance(module, Module):
            raise UsageError(
                f"optimizers of adapm.torch take modules, got a {type(module).__name__}: pass the Embedding, or the"
                " model that contains it, and give dense parameters to an optimizer of torch.optim"
            )
    found = dict.fromkeys(part for module in modules for part in table_modules(module))
    if not found:
        raise UsageError("there is no adapm.torch.Embedding or EmbeddingBag in these modules")
    return list(found)
