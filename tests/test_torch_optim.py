"""Optimizers of rows against torch.optim's over a thousand steps, alone and in contention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import adapm
import torch_tasks
from adapm.errors import NoWorker, TableError, UsageError
from adapm.torch import (
    Embedding,
    EmbeddingBag,
    RowwiseAdagrad,
    SparseAdagrad,
    SparseAdam,
    SparseSGD,
    embedding_table,
)
from torch_tasks import at_work

ROWS, DIM, STEPS, PADDING = 30, 5, 1000, 4
ALL = [SparseSGD, SparseAdagrad, RowwiseAdagrad, SparseAdam]


class PlainRowwise(torch.optim.Optimizer):
    """What RowwiseAdagrad is held against: torch has none."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                sums = state.setdefault("sums", torch.zeros(len(parameter), 1, dtype=parameter.dtype))
                sums += (parameter.grad**2).mean(dim=1, keepdim=True)
                parameter -= group["lr"] * parameter.grad / (sums.sqrt() + 1e-10)


PAIRS: list[tuple[type[torch.optim.Optimizer], Callable[..., torch.optim.Optimizer], bool]] = [
    (SparseSGD, torch.optim.SGD, False),
    (SparseAdagrad, torch.optim.Adagrad, False),
    (RowwiseAdagrad, PlainRowwise, False),
    (SparseAdam, torch.optim.SparseAdam, True),  # dense Adam moves rows that are not looked up, too
]


@pytest.fixture
def table(request: pytest.FixtureRequest) -> adapm.Table:
    return embedding_table("t", ROWS, DIM, getattr(request, "param", SparseAdagrad))


@pytest.fixture
def worker(table: adapm.Table) -> Iterator[adapm.BlockingWorker]:
    with at_work(table) as worker:
        yield worker


def values(worker: adapm.BlockingWorker) -> np.ndarray:
    return worker.read_table("t", columns="value")


# ---- as torch.optim's


def random_bags(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with duplicates and padding, and bags of them, some empty."""
    ids = rng.integers(0, ROWS, 20)
    offsets = np.sort(rng.integers(0, 21, 6))
    offsets[0] = 0
    return torch.from_numpy(np.where(rng.random(20) < 0.2, PADDING, ids)), torch.from_numpy(offsets)


@pytest.mark.parametrize("module", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize(
    ("table", "theirs", "sparse"), PAIRS, ids=[str(p[0].__name__) for p in PAIRS], indirect=["table"]
)
def test_a_thousand_steps_are_torchs(
    worker: adapm.BlockingWorker,
    table: adapm.Table,
    theirs: Callable[..., torch.optim.Optimizer],
    sparse: bool,
    module: str,
    rng: np.random.Generator,
) -> None:
    """Beside the same in float64: float32 may not be further off than 1e-6 of the largest value."""
    (kind,) = [pair[0] for pair in PAIRS if pair[1] is theirs]
    ours = getattr(adapm.torch, module)(ROWS, DIM, padding_idx=PADDING, table="t")
    start = torch.from_numpy(values(worker)).double()
    start[PADDING] = 0
    other = getattr(torch.nn, module)(ROWS, DIM, padding_idx=PADDING, sparse=sparse, _weight=start)
    optimizers = kind(ours, lr=0.05), theirs(other.parameters(), lr=0.05)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 300, 0.5) for optimizer in optimizers]
    before = values(worker)[PADDING]
    for _ in range(STEPS):
        call = random_bags(rng)[: 1 + (module == "EmbeddingBag")]
        factors = torch.from_numpy(rng.normal(size=(6 if module == "EmbeddingBag" else 20, DIM)))
        for optimizer, scheduler, each in zip(optimizers, schedulers, (ours, other), strict=True):
            optimizer.zero_grad()
            (each(*call) * factors.to(torch.float32 if each is ours else torch.float64)).sum().backward()
            optimizer.step()
            scheduler.step()
    got, want = values(worker), other.weight.detach().numpy()
    assert (got[PADDING] == before).all()
    got[PADDING] = 0
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("table", ALL, indirect=True)
def test_calls_of_one_step_are_one_gradient(worker: adapm.BlockingWorker, table: adapm.Table) -> None:
    kind = next(k for k in ALL if k.columns(DIM) == dict(table.columns))
    module, together = (Embedding(ROWS, DIM, table="t") for _ in range(2))
    ids, factors = torch.tensor([3, 9, 3, 0]), torch.arange(4.0).view(4, 1)
    start = worker.read_table("t")
    outcomes = []
    for calls in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        each = together if len(calls) == 1 else module
        optimizer = kind(each, lr=0.1)
        for call in calls:
            (each(ids[call]) * factors[call]).sum().backward()
        optimizer.step()
        outcomes.append(worker.read_table("t"))
        worker.set("t", np.arange(ROWS), start)
    np.testing.assert_allclose(outcomes[0], outcomes[1], rtol=1e-6)
    assert np.flatnonzero((outcomes[0] != start).any(axis=1)).tolist() == [0, 3, 9]


# ---- in torch.optim's manner


def test_groups_have_settings_of_their_own(worker: adapm.BlockingWorker) -> None:
    first, second = (Embedding(ROWS, DIM, table="t") for _ in range(2))
    model = torch.nn.ModuleDict({"deep": torch.nn.Sequential(first, torch.nn.Linear(DIM, 1))})
    optimizer = SparseSGD([{"params": model}, {"params": [second], "lr": torch.tensor(0.5)}], lr=2)
    before = values(worker)
    first(torch.tensor([0])).sum().backward()
    second(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert before - values(worker) == pytest.approx(np.outer([2, 0.5] + [0] * (ROWS - 2), np.ones(DIM)))


@pytest.mark.parametrize("lr", [0.0, 1.0])
def test_rates_may_begin_or_end_with_zero(worker: adapm.BlockingWorker, lr: float) -> None:
    module = Embedding(ROWS, DIM, table="t")
    optimizer, before = SparseAdagrad(module, lr=1.0), worker.read_table("t")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: lr)
    module(torch.tensor([0])).sum().backward()
    optimizer.step()
    scheduler.step()
    changed = worker.read_table("t") - before
    assert changed[0] == pytest.approx([-lr] * DIM + [1] * DIM, rel=1e-5)


def test_a_step_uses_gradients_up_and_zero_grad_drops_them(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="t")
    optimizer, before = SparseSGD(module, lr=1.0), values(worker)

    def closure() -> torch.Tensor:
        loss = module(torch.tensor([0])).sum()
        loss.backward()
        return loss

    closure()
    optimizer.zero_grad()
    optimizer.step()
    assert (values(worker) == before).all()
    assert float(optimizer.step(closure).detach()) == pytest.approx(before[0].sum())
    optimizer.step()
    assert (before - values(worker))[0] == pytest.approx([1] * DIM)


@pytest.mark.parametrize("table", [SparseAdam], indirect=True)
def test_a_state_dict_goes_on_where_it_was(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="t")
    optimizer = SparseAdam(module, lr=0.3)
    for _ in range(3):
        module(torch.tensor([0])).sum().backward()
        optimizer.step()
    saved = optimizer.state_dict()
    assert saved["state"] == {0: {"step": 3}}
    other = SparseAdam(module)
    other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.3
    module(torch.tensor([0])).sum().backward()
    other.step()
    assert other.state_dict()["state"] == {0: {"step": 4}}


# ---- in contention


def test_adam_stays_finite_in_a_million_contended_steps() -> None:
    """Two workers on each of two nodes change the same rows; each step is one of every row."""
    tables = [embedding_table("t", 512, 1, SparseAdam, init=adapm.constant(3))]
    outcomes = adapm.run(torch_tasks.contend, tables, args=(512, 500), nodes=2, workers="threads:2")
    assert all(ever < 2.5 and end < 1 for ever, end in outcomes)


# ---- what is refused

LINEAR = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("table", [SparseSGD], indirect=True)
@pytest.mark.parametrize("kind", ALL[1:])
def test_columns_that_the_table_lacks_are_named(worker: adapm.BlockingWorker, kind: Any) -> None:
    remedy = rf"{kind.__name__} keeps its state .* adapm.Table\('t', rows=30, columns={{'value': 5, '.*': \d"
    with pytest.raises(TableError, match=remedy):
        kind(Embedding(ROWS, DIM, table="t"))


def test_columns_in_another_order_are_refused() -> None:
    wrong = adapm.Table("t", rows=ROWS, columns={"adagrad": DIM, "value": DIM})
    with at_work(wrong), pytest.raises(TableError, match="SparseAdagrad keeps its state"):
        SparseAdagrad(Embedding(ROWS, DIM, table="t"))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda module: SparseSGD(LINEAR), "there is no adapm.torch.Embedding or EmbeddingBag in these modules"),
        (lambda module: SparseSGD(LINEAR.parameters()), "take modules, got a Parameter: pass the Embedding"),
        (lambda module: SparseSGD([{"params": 7}]), "take modules, got a int"),
        (lambda module: SparseSGD(module, lr=-1), "lr must be finite and not negative, got -1"),
        (lambda module: SparseAdagrad(module, eps=0), "eps must be positive"),
        (lambda module: SparseAdagrad([{"params": module, "lr": float("inf")}]), "lr must be finite"),
    ],
)
def test_bad_arguments_are_named(worker: adapm.BlockingWorker, call: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        call(Embedding(ROWS, DIM, table="t"))


def test_a_module_is_in_one_group(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="t")
    with pytest.raises(ValueError, match="more than one parameter group"):
        SparseSGD([{"params": module}, {"params": [module]}])


def test_outside_a_worker_it_says_how_to_start_one() -> None:
    with pytest.raises(NoWorker, match=r"start it with adapm.run\(train, tables\)"):
        SparseSGD(EmbeddingBag(ROWS, DIM, table="t"))
