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


def contend(worker: adapm.BlockingWorker, rows: int, steps: int) -> tuple[bool, float]:
    """Everybody makes steps of Adam in all rows, towards 1; whether all stays finite, and how far values ever were."""
    module = adapm.torch.Embedding(rows, 1, table="t")
    optimizer = adapm.torch.SparseAdam(module, lr=0.01)
    generator, farthest = torch.Generator().manual_seed(worker.id), 0.0
    worker.intent("t", np.arange(rows), worker.clock, worker.clock + 1)
    worker.barrier()
    for _ in range(steps):
        optimizer.zero_grad()
        values = module(torch.arange(rows))
        ((values - 1 - torch.randn(rows, 1, generator=generator)) ** 2).sum().backward()
        optimizer.step()
        farthest = max(farthest, float((values - 1).abs().max()))
    worker.barrier()
    return bool(np.isfinite(worker.read_table("t")).all()), farthest
