"""What tests of adapm.torch have in common: a worker without processes, and what real ones do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

import adapm.torch
from adapm.current import being
from desk import Desk

torch.set_num_threads(1)  # there are as many processes as processors, or more


@contextlib.contextmanager
def at_work(*tables: adapm.Table) -> Iterator[adapm.BlockingWorker]:
    """This thread is the only worker of a single node with these tables."""
    with contextlib.closing(Desk(tables, nodes=1)) as desk, being(desk.blocking_worker()) as worker:
        yield worker


def contend(worker: adapm.BlockingWorker, rows: int, steps: int) -> tuple[float, float]:
    """Everybody makes steps of Adam in all rows, towards 1; how far off values are at most, ever and in the end."""
    module = adapm.torch.Embedding(rows, 1, table="t")
    optimizer = adapm.torch.SparseAdam(module, lr=0.01)
    generator, ever = torch.Generator().manual_seed(worker.id), 0.0
    worker.intent("t", np.arange(rows), worker.clock, worker.clock + 1)
    worker.barrier()
    for _ in range(steps):
        optimizer.zero_grad()
        values = module(torch.arange(rows))
        ((values - 1 - torch.randn(rows, 1, generator=generator)) ** 2).sum().backward()
        optimizer.step()
        ever = max(ever, _distance(values.detach().numpy()))
    worker.barrier()
    return ever, _distance(worker.read_table("t", columns="value"))


def _distance(values: np.ndarray) -> float:
    return float(np.abs(values - 1).max())  # NaN if one of them is
