"""What IntentLoader costs on one node: steps of training with and without it, in turns, in one process.

    python tests/loader_cost.py                     # one worker
    python tests/loader_cost.py --workers 2 --rounds 40

A step is that of a small knowledge-graph model: 512 triples with 16 negatives each, 20,000 entities, width 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch.utils.data import DataLoader, TensorDataset

import adapm.torch

Batch: TypeAlias = "list[torch.Tensor]"
ENTITIES, RELATIONS, DIM, BATCH, NEGATIVES = 20_000, 200, 64, 512, 16
TABLES = [
    adapm.torch.embedding_table("entities", ENTITIES, DIM, adapm.torch.SparseAdagrad, init=adapm.normal(std=0.1)),
    adapm.torch.embedding_table("relations", RELATIONS, DIM, adapm.torch.SparseAdagrad, init=adapm.normal(std=0.1)),
]


class Model(torch.nn.Module):
    """Scores a triple by sum(head * relation * tail)."""

    def __init__(self) -> None:
        super().__init__()
        self.entities = adapm.torch.Embedding(ENTITIES, DIM, table="entities")
        self.relations = adapm.torch.Embedding(RELATIONS, DIM, table="relations")

    def forward(self, triples: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        head, relation, tail = triples.unbind(1)
        rows = self.entities(torch.cat([head[:, None], tail[:, None], negatives], 1))
        query = rows[:, :1] * self.relations(relation)[:, None]
        scores = (query * rows[:, 1:]).sum(-1)
        return torch.nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def seconds(model: Model, optimizer: adapm.torch.SparseAdagrad, batches: Iterator[Batch]) -> float:
    """How long a step takes, with its batch."""
    begin = time.perf_counter()
    triples, negatives = next(batches)
    optimizer.zero_grad()
    model(triples, negatives).backward()
    optimizer.step()
    return time.perf_counter() - begin


def compare(worker: adapm.BlockingWorker, rounds: int, steps: int) -> list[float]:
    """Of each pair of steps the time with, as a share of the time without."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(worker.id)
    n = steps * BATCH
    triples = torch.stack([torch.randint(k, (n,), generator=generator) for k in (ENTITIES, RELATIONS, ENTITIES)], 1)
    negatives = torch.randint(ENTITIES, (n, NEGATIVES), generator=generator)
    plain = DataLoader(TensorDataset(triples, negatives), batch_sampler=list(torch.arange(n).view(steps, BATCH)))
    keys = {"entities": [lambda b: b[0][:, 0], lambda b: b[0][:, 2], 1], "relations": lambda b: b[0][:, 1]}
    intent = adapm.torch.IntentLoader(plain, keys=keys)
    model = Model()
    optimizer = adapm.torch.SparseAdagrad(model, lr=0.1)
    ratios = []
    for _ in range(rounds + 1):
        worker.barrier()
        without, with_intent = iter(plain), iter(intent)
        for step in range(steps):
            order = (without, with_intent) if step % 2 else (with_intent, without)
            took = {id(batches): seconds(model, optimizer, batches) for batches in order}
            ratios.append(took[id(with_intent)] / took[id(without)])
    return ratios[steps:]  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50, help="batches of an epoch")
    options = parser.parse_args()
    results = adapm.run(compare, TABLES, args=(options.rounds, options.steps), workers=options.workers)
    for worker, ratios in enumerate(results):
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"worker {worker}: with IntentLoader {middle:.4f} of the time without; half within {low:.4f} to {high:.4f}"
        )


if __name__ == "__main__":
    main()
