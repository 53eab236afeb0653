"""PyTorch modules whose rows are in the manager's tables, and their plain twins, whose rows are tensors of their own.

An example asks for its modules and optimizers here, and trains with them without knowing which it has got. Either way
they are of the same size, begin with values of the same distribution, and are trained by AdaGrad, the dense layers by
Adam. What changes when a script for one process becomes one for many is the difference of each function's two returns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from plain import PlainWorker
from session import PlainOrBlocking
from torch import nn

import adapm
import adapm.torch

Init: TypeAlias = Any  # as of adapm.Table
Batch = TypeVar("Batch")


def table(name: str, rows: int, dim: int, init: Init, ids: npt.NDArray[np.int64]) -> adapm.Table:
    """A table for `embedding` or `bag`, with room for AdaGrad's sums of squares; ids: those that training looks up."""
    counts = np.bincount(ids.ravel(), minlength=rows)
    return adapm.torch.embedding_table(name, rows, dim, adapm.torch.SparseAdagrad, init, counts)


def embedding(worker: PlainOrBlocking, table: adapm.Table) -> nn.Module:
    """Gives the rows of ids."""
    if isinstance(worker, PlainWorker):
        return nn.Embedding.from_pretrained(_own(worker, table), freeze=False, sparse=True)
    return adapm.torch.Embedding(table.rows, table.columns["value"], table=table.name)


def bag(worker: PlainOrBlocking, table: adapm.Table, mode: str) -> nn.Module:
    """Gives the sums or means of bags of rows."""
    if isinstance(worker, PlainWorker):
        return nn.EmbeddingBag.from_pretrained(_own(worker, table), freeze=False, sparse=True, mode=mode)
    return adapm.torch.EmbeddingBag(table.rows, table.columns["value"], table=table.name, mode=mode)


def _own(worker: PlainWorker, table: adapm.Table) -> torch.Tensor:
    return torch.from_numpy(worker.view(table.name, "value").copy())


def values(worker: PlainOrBlocking, module: Any) -> torch.Tensor:
    """All rows of what `embedding` or `bag` has given."""
    all_rows: torch.Tensor = module.weight if isinstance(worker, PlainWorker) else module.full_weight()
    return all_rows


def announced(batches: Iterable[Batch], worker: PlainOrBlocking) -> Iterable[Batch]:
    """The batches, whose rows the manager is told ahead of their turn; where there is none, just the batches.

    What a batch will look up in a table is the part of it that has the table's name.
    """
    return batches if isinstance(worker, PlainWorker) else adapm.torch.IntentLoader(batches, worker)


class Trainer:
    """The optimizers of a model, and the dense layers that all workers share.

    Args:
        worker: that trains.
        embeddings: what `embedding` and `bag` have given.
        layers: the dense layers; their values are in the table "dense", of adapm.torch.dense_table.
        rate, dense_rate: the learning rates.
    """

    def __init__(
        self,
        worker: PlainOrBlocking,
        embeddings: Sequence[nn.Module],
        layers: nn.Module,
        rate: float,
        dense_rate: float,
    ) -> None:
        dense = torch.optim.Adam(layers.parameters(), lr=dense_rate)
        if isinstance(worker, PlainWorker):
            rows: Any = torch.optim.Adagrad([each.weight for each in embeddings], lr=rate)
            self._shared = None
        else:
            rows = adapm.torch.SparseAdagrad(embeddings, lr=rate)
            self._shared = adapm.torch.DenseParameters(layers, dense)
        self._optimizers = rows, dense

    def step(self, loss: torch.Tensor) -> None:
        """One step against the gradients of the loss."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()

    def meet(self) -> None:
        """Waits until all workers are here. Then all have the same dense layers, and see the same rows."""
        if self._shared is not None:
            self._shared.barrier()


def begin(seed: int, worker: PlainOrBlocking) -> None:
    """Makes torch's random numbers in this process depend on the seed and the worker, and on nothing else.

    And has torch compute with one thread, in threads that are workers, too, unless the user has said otherwise: the
    workers are the parallelism.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(seed * 1_000 + worker.id)
    torch.sparse.check_sparse_tensor_invariants.disable()  # as is the default, of which torch warns who says nothing


def counted(worker: PlainOrBlocking) -> adapm.Statistics | None:
    """The worker's counters; None of a PlainWorker."""
    return None if isinstance(worker, PlainWorker) else worker.statistics()
