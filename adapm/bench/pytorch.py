"""`adapm bench torch`: an epoch of a knowledge-graph model through adapm.torch, against PyTorch alone.

The model is ComplEx with negatives drawn for each triple.  PyTorch's has torch.nn.Embedding(sparse=True) and
torch.optim.Adagrad, in one process; ours has the same lookups and the same loss.  Worker 0 trains both, one epoch
after the other, while the other workers wait; in our epoch each worker trains its share of the batches.  Processes
have one thread of torch each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

import adapm
import adapm.torch
from adapm import BlockingWorker
from adapm.bench import machine
from adapm.bench.harness import Measure, check_positive, over, settings
from adapm.bench.keys import Keys

VARIANTS: Final = {"1 worker": (1, 1), "2 workers": (1, 2), "2 nodes": (2, 1)}  # nodes, and workers of each
_SCALE: Final = 0.1  # standard deviation of initial values
_SKEW: Final = 0.8  # of how often entities and relations occur, as k ** -0.8
_WARM_UP: Final = 8  # batches


@dataclass(frozen=True)
class Training:
    """What is measured.

    Attributes:
        entities, relations, triples: of the graph, which is random.
        dim: floats of an embedding; even.
        batch: triples of a step.
        negatives: objects drawn for each triple.
        transport: between nodes.
        cores: for the machines that we play.
    """

    entities: int
    relations: int
    triples: int
    dim: int
    batch: int
    negatives: int
    transport: str
    cores: tuple[int, ...]

    @property
    def tables(self) -> list[adapm.Table]:
        """Those of the model."""
        sizes = {"entities": self.entities, "relations": self.relations}
        return [
            adapm.torch.embedding_table(name, rows, self.dim, adapm.torch.SparseAdagrad, adapm.normal(std=_SCALE))
            for name, rows in sizes.items()
        ]


class ComplEx(torch.nn.Module):
    """Scores of triples, given something that looks entities up, and something that looks relations up."""

    def __init__(self, entities: torch.nn.Module, relations: torch.nn.Module) -> None:
        super().__init__()
        self.entities = entities
        self.relations = relations

    def forward(self, triples: torch.Tensor) -> torch.Tensor:
        """The mean logistic loss of [n, subject | relation | object | negatives], integers."""
        subject, relation = self.entities(triples[:, 0]), self.relations(triples[:, 1])
        (a, b), (c, d) = subject.chunk(2, dim=1), relation.chunk(2, dim=1)
        query = torch.cat([a * c - b * d, a * d + b * c], dim=1)
        scores = torch.bmm(self.entities(triples[:, 2:]), query.unsqueeze(2)).squeeze(2)
        labels = torch.zeros_like(scores)
        labels[:, 0] = 1
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)


def variants(training: Training) -> dict[str, Measure]:
    """One measurement of each variant per call."""
    sizes = {
        name: getattr(training, name) for name in ("entities", "relations", "triples", "dim", "batch", "negatives")
    }
    check_positive(**sizes)
    return {name: _measure(training, *places) for name, places in VARIANTS.items()}


def _measure(training: Training, nodes: int, workers: int) -> Measure:
    config = settings(nodes=nodes, workers=str(workers), transport=training.transport)
    return lambda: _summary(adapm.run(work, training.tables, args=(training,), config=config))


def _summary(counted: list[dict[str, float]]) -> dict[str, float]:
    ours, torchs = counted[0]["epoch_s"], counted[0]["torch_s"]
    local = sum(count["local"] for count in counted) / sum(count["pulled"] for count in counted)
    return {"epoch_s": ours, "torch_s": torchs, "over_torch": over(ours, torchs), "local_fraction": local}


def work(worker: BlockingWorker, training: Training) -> dict[str, float]:
    """What each worker does."""
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, and without a warning
    if worker.num_nodes > 1:
        for pid in (os.getpid(), machine.nodes_beside(os.getpid())[worker.node]):
            machine.pin(pid, machine.share_of(worker.node, worker.num_nodes, list(training.cores)))
    batches = draw(training, np.random.default_rng(1))
    torchs, ours = of_torch(plain_model(training)), of_adapm(training)
    mine = batches[worker.id :: worker.num_workers]
    for part, train in ((batches[:_WARM_UP], torchs), (mine[:_WARM_UP], ours)):
        train(_announced(worker, part) if train is ours else part)
    worker.barrier()
    torch_s = _seconds(torchs, batches) if worker.id == 0 else 0.0
    worker.barrier()
    before, begin = worker.statistics(), time.perf_counter()
    ours(_announced(worker, mine))
    worker.barrier()
    epoch_s, after = time.perf_counter() - begin, worker.statistics()
    local, pulled = after.pull_local - before.pull_local, after.pull_keys - before.pull_keys
    return {"epoch_s": epoch_s, "torch_s": torch_s, "local": local, "pulled": pulled}


Train = Callable[[Iterable[torch.Tensor]], None]


def plain_model(training: Training) -> ComplEx:
    """The model, with embeddings of PyTorch's."""
    sizes = training.entities, training.relations
    model = ComplEx(*(torch.nn.Embedding(rows, training.dim, sparse=True) for rows in sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=_SCALE)
    return model


def of_torch(model: ComplEx) -> Train:
    """Trains on batches, with PyTorch alone."""
    return _trainer(model, torch.optim.Adagrad(model.parameters(), lr=0.1))


def of_adapm(training: Training) -> Train:
    """Trains on batches, through the tables of this thread's worker."""
    modules = (adapm.torch.Embedding(table.rows, training.dim, table=table.name) for table in training.tables)
    model = ComplEx(*modules)
    return _trainer(model, adapm.torch.SparseAdagrad(model, lr=0.1))


def _trainer(model: ComplEx, optimizer: torch.optim.Optimizer) -> Train:
    def train(batches: Iterable[torch.Tensor]) -> None:
        for triples in batches:
            optimizer.zero_grad()
            model(triples).backward()
            optimizer.step()

    return train


def draw(training: Training, rng: np.random.Generator) -> list[torch.Tensor]:
    """The batches of an epoch, [batch, subject | relation | object | negatives]; the last may be shorter."""
    n = training.triples
    parts = [
        _skewed(training.entities, (n, 1), rng),
        _skewed(training.relations, (n, 1), rng),
        _skewed(training.entities, (n, 1), rng),
        rng.integers(training.entities, size=(n, training.negatives)),
    ]
    return list(torch.from_numpy(np.hstack(parts)).split(training.batch))


def _skewed(count: int, size: tuple[int, int], rng: np.random.Generator) -> Keys:
    shares = np.arange(1, count + 1) ** -_SKEW
    return rng.permutation(count)[rng.choice(count, size, p=shares / shares.sum())]


def _announced(worker: BlockingWorker, batches: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    if worker.num_nodes == 1:  # where all rows are local
        return batches

    def keys(triples: torch.Tensor) -> dict[str, Any]:
        return {"entities": triples[:, [0, *range(2, triples.shape[1])]].reshape(-1), "relations": triples[:, 1]}

    return adapm.ahead(batches, worker, keys=keys)


def _seconds(train: Train, batches: list[torch.Tensor]) -> float:
    begin = time.perf_counter()
    train(batches)
    return time.perf_counter() - begin
