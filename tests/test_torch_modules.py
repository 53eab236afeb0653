"""adapm.torch.Embedding and EmbeddingBag against torch.nn's, and against finite differences."""

from __future__ import annotations

import contextlib
import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import adapm
from adapm.current import being
from adapm.errors import (
    Closed,
    DtypeError,
    KeyRangeError,
    KeyTypeError,
    NoWorker,
    TableError,
    UnknownTable,
    UsageError,
)
from adapm.torch import Embedding, EmbeddingBag, SparseSGD
from derivatives import differences
from desk import Desk
from torch_tasks import at_work

ROWS, DIM = 12, 3
TABLE = adapm.Table("words", rows=ROWS, dim=DIM, init=adapm.uniform(-1, 1))

IDS = torch.tensor([3, 1, 3, 7, 1, 11, 0, 3])
BAGS: dict[str, tuple[Any, ...]] = {
    "rows of ids": (IDS.view(2, 4),),
    "offsets": (IDS, torch.tensor([0, 2, 2, 5])),
    "the first and the last are empty": (IDS, torch.tensor([0, 0, 4, 8])),
    "one empty bag": (IDS[:0], torch.tensor([0])),
    "int32": (IDS.int(), torch.tensor([0, 3], dtype=torch.int32)),
}


@pytest.fixture
def worker() -> Iterator[adapm.BlockingWorker]:
    with at_work(TABLE) as worker:
        yield worker


def gradients(worker: adapm.BlockingWorker, module: Any, *calls: tuple[Any, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """What the calls return, end to end, and the gradient of the sum of its squares."""
    optimizer = SparseSGD(module, lr=1)
    before = worker.read_table("words")
    results = torch.cat([module(*call).reshape(-1) for call in calls])
    (results**2).sum().backward()
    optimizer.step()
    return results.detach(), before - worker.read_table("words")


def expected(worker: adapm.BlockingWorker, module: Any, *calls: tuple[Any, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """The same of a module of torch."""
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(worker.read_table("words")))
        if module.padding_idx is not None:
            module.weight[module.padding_idx] = 0
    results = torch.cat([module(*call).reshape(-1) for call in calls])
    (results**2).sum().backward()
    return results.detach(), module.weight.grad.numpy()


def check(worker: adapm.BlockingWorker, ours: Any, torchs: Any, *calls: tuple[Any, ...]) -> None:
    wanted = expected(worker, torchs, *calls)
    for got, want in zip(gradients(worker, ours, *calls), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# ---- as torch.nn's


@pytest.mark.parametrize("padding", [None, 3, -1])
@pytest.mark.parametrize("ids", [IDS, IDS.view(2, 2, 2), IDS[:0], IDS[0], IDS.int(), IDS.to(torch.uint8)])
def test_embedding_is_torchs(worker: adapm.BlockingWorker, ids: torch.Tensor, padding: int | None) -> None:
    ours = Embedding(ROWS, DIM, padding, table="words")
    assert ours(ids).shape == (*ids.shape, DIM)
    theirs = torch.nn.Embedding(ROWS, DIM, padding)
    wanted = expected(worker, theirs, (ids.long(),))
    for got, want in zip(gradients(worker, ours, (ids,)), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_calls_of_one_step_add_up(worker: adapm.BlockingWorker) -> None:
    calls = [(IDS,), (IDS[:3].view(3, 1),), (IDS[:0],), (IDS + 0,)]
    check(worker, Embedding(ROWS, DIM, 7, table="words"), torch.nn.Embedding(ROWS, DIM, 7), *calls)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("call", BAGS.values(), ids=BAGS)
def test_bags_are_torchs(worker: adapm.BlockingWorker, call: tuple[Any, ...], mode: str, padding: int | None) -> None:
    ours = EmbeddingBag(ROWS, DIM, table="words", mode=mode, padding_idx=padding)
    check(worker, ours, torch.nn.EmbeddingBag(ROWS, DIM, mode=mode, padding_idx=padding), call, call)


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("last", [False, True])
def test_weighted_bags_are_torchs(worker: adapm.BlockingWorker, last: bool, padding: int | None) -> None:
    offsets = torch.tensor([0, 2, 2, 8] if last else [0, 2, 2])
    settings = {"mode": "sum", "include_last_offset": last, "padding_idx": padding}
    weights = [torch.linspace(-1, 1, len(IDS)).requires_grad_() for _ in range(2)]
    theirs = expected(worker, torch.nn.EmbeddingBag(ROWS, DIM, **settings), (IDS, offsets, weights[0]))
    ours = gradients(worker, EmbeddingBag(ROWS, DIM, table="words", **settings), (IDS, offsets, weights[1]))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[1].grad, weights[0].grad)


# ---- finite differences: of squares they are exact


@pytest.mark.parametrize("mode", [None, "sum", "mean", "max"])
def test_gradients_are_differences(worker: adapm.BlockingWorker, mode: str | None, rng: np.random.Generator) -> None:
    settings = {"table": "words", "padding_idx": 3, "dtype": torch.float64}
    ours = EmbeddingBag(ROWS, DIM, mode=mode, **settings) if mode else Embedding(ROWS, DIM, **settings)
    call = BAGS["offsets"] if mode else (IDS,)
    grid = rng.permutation(ROWS * DIM).reshape(ROWS, DIM) / 16  # no two are equal, and float32 holds them and steps

    def loss() -> float:
        worker.set("words", np.arange(ROWS), grid)
        return (ours(*call) ** 2).sum().item()

    measured = differences(loss, grid, step=2**-6)
    loss()
    _, computed = gradients(worker, ours, call)
    np.testing.assert_allclose(computed, measured, atol=1e-4)


# ---- as modules


def test_nothing_of_a_table_is_in_a_state_dict_and_copies_work(worker: adapm.BlockingWorker) -> None:
    module = torch.nn.Sequential(Embedding(ROWS, DIM, table="words"), torch.nn.Linear(DIM, 1))
    module(IDS).sum().backward()
    assert list(module.state_dict()) == ["1.weight", "1.bias"]
    assert [name for name, _ in module.named_parameters()] == ["1.weight", "1.bias"]
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(IDS), module(IDS))
    assert repr(module[0]) == "Embedding(12, 3, table='words')"
    assert repr(Embedding(ROWS, DIM, -1, table="words")) == "Embedding(12, 3, table='words', padding_idx=11)"


def test_results_are_of_the_modules_dtype(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")
    assert module.to(torch.bfloat16)(IDS).dtype == torch.bfloat16
    assert torch.equal(module.double()(IDS).float(), module.float()(IDS))
    weights = torch.ones(len(IDS), dtype=torch.float64)
    bags = EmbeddingBag(ROWS, DIM, table="words", mode="sum").double()
    assert bags(IDS, torch.tensor([0]), weights).dtype == torch.float64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_and_training_take_turns(worker: adapm.BlockingWorker, mode: Callable[[], Any]) -> None:
    module = Embedding(ROWS, DIM, table="words")
    for _ in range(3):
        with mode():
            first, second = module(IDS), module(IDS.flip(0))
        assert not first.requires_grad
        assert torch.equal(first.flip(0), second)  # though both went through the same buffer
        gradients(worker, module, (IDS,))


def test_calls_without_backward_leave_nothing(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")
    optimizer = SparseSGD(module, lr=1)
    before = worker.read_table("words")
    for _ in range(3):
        module(IDS)
    optimizer.step()
    assert (worker.read_table("words") == before).all()


def test_gradients_of_two_backwards_add_up(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")
    optimizer = SparseSGD(module, lr=1)
    before = worker.read_table("words")
    loss = module(torch.tensor([2])).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    assert (before - worker.read_table("words"))[2] == pytest.approx([2] * DIM)


def test_a_graph_that_outlives_the_step_is_noticed(worker: adapm.BlockingWorker) -> None:
    module = EmbeddingBag(ROWS, DIM, table="words", mode="sum")
    optimizer = SparseSGD(module, lr=1)
    weights = torch.ones(1, requires_grad=True)
    plain = module(torch.tensor([2]), torch.tensor([0])).sum()
    weighted = module(torch.tensor([2]), torch.tensor([0]), weights).sum()  # its gradient needs the rows
    (plain + weighted).backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(UsageError, match=r"table 'words': backward through a call whose gradients .* has used"):
        plain.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weighted.backward()


# ---- all rows


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_the_full_weight_is_what_lookups_give(
    worker: adapm.BlockingWorker, kind: type[Embedding | EmbeddingBag], padding: int | None
) -> None:
    module = kind(ROWS, DIM, padding_idx=padding, table="words")
    looked_up = Embedding(ROWS, DIM, padding, table="words")(torch.arange(ROWS))
    assert torch.equal(module.full_weight(), looked_up)
    assert module.bfloat16().full_weight().dtype == torch.bfloat16
    assert torch.equal(module.double().full_weight().float(), looked_up)


def test_the_full_weight_of_a_large_table_has_its_values_only() -> None:
    values = np.arange(3_000 * 200, dtype=np.float32).reshape(3_000, 200)  # more than is pulled at once
    table = adapm.Table("words", rows=3_000, columns={"value": 200, "adagrad": 200}, init={"value": values})
    with at_work(table):
        found = Embedding(3_000, 200, table="words").full_weight()
    assert np.array_equal(found.numpy(), values)


def test_the_full_weight_is_a_copy_and_disturbs_no_step(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")
    optimizer = SparseSGD(module, lr=1)
    before = module.full_weight()
    loss = module(IDS).sum()
    module.full_weight().zero_()
    loss.backward()
    module.full_weight().zero_()
    optimizer.step()
    times = torch.bincount(IDS, minlength=ROWS).float()  # that each row was looked up
    torch.testing.assert_close(before - module.full_weight(), times[:, None].expand(ROWS, DIM))
    assert not before.requires_grad


def test_there_is_no_weight_and_the_message_says_what_there_is(worker: adapm.BlockingWorker) -> None:
    module = EmbeddingBag(ROWS, DIM, table="words")
    with pytest.raises(AttributeError, match=r"EmbeddingBag has no weight, .* table 'words': full_weight\(\) reads"):
        module.weight  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'wieght'"):
        module.wieght  # noqa: B018


# ---- what is refused


def test_outside_a_worker_it_says_how_to_start_one(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")  # made anywhere
    told: list[Exception] = []

    def elsewhere() -> None:
        for use in (lambda: module(IDS), module.full_weight):
            with pytest.raises(NoWorker, match=r"start it with adapm.run\(train, tables\)") as caught:
                use()
            told.append(caught.value)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(told) == 2
    assert Embedding(ROWS, DIM, table="words", worker=worker)(IDS).shape == (8, DIM)


def test_coroutines_and_closed_workers(worker: adapm.BlockingWorker) -> None:
    module = Embedding(ROWS, DIM, table="words")
    with (
        contextlib.closing(Desk([TABLE], nodes=1)) as desk,
        being(desk.worker()),
        pytest.raises(UsageError, match="a plain one, def instead of async def"),
    ):
        module(IDS)
    worker.close()
    for use in (lambda: module(IDS), module.full_weight):
        with pytest.raises(Closed):
            use()


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Embedding(ROWS, DIM, table="wrods")(IDS), UnknownTable, "no table 'wrods'; did you mean 'words'"),
    (lambda: Embedding(ROWS + 1, DIM, table="words")(IDS), TableError, r"13 rows of 3 values, and Table\('words'"),
    (lambda: Embedding(ROWS, DIM - 1, table="words")(IDS), TableError, r"12 rows of 2 values, and Table\('words'"),
    (lambda: Embedding(ROWS + 1, DIM, table="words").full_weight(), TableError, r"13 rows of 3 values, and Table"),
    (lambda: Embedding(ROWS, DIM, table="wrods").full_weight(), UnknownTable, "no table 'wrods'; did you mean 'words'"),
    (lambda: Embedding(ROWS, DIM, 12, table="words"), KeyRangeError, "padding_idx=12 is out of range; ids are 0 to 11"),
    (lambda: Embedding(ROWS, DIM, table="words")(IDS + 5), KeyRangeError, "table 'words': id 16 is out of range; ids"),
    (lambda: Embedding(ROWS, DIM, table="words")(IDS - 1), KeyRangeError, "table 'words': id -1 is out of range"),
    (lambda: Embedding(ROWS, DIM, table="words")(IDS / 2), KeyTypeError, "tensor of integers, got torch.float32"),
    (lambda: Embedding(ROWS, DIM, table="words")([1, 2]), KeyTypeError, "tensor of integers, got list"),
    (lambda: Embedding(ROWS, DIM, table="words")(IDS.to("meta")), UsageError, "ids are on meta, .* results on cpu"),
    (
        lambda: Embedding(ROWS, DIM, table="words", max_norm=1.0),
        UsageError,
        "cannot have max_norm=1.0: rows are shared",
    ),
    (lambda: Embedding(ROWS, DIM, table="words", max_nrom=1.0), UsageError, "has no argument 'max_nrom'"),
    (lambda: EmbeddingBag(ROWS, DIM, table="words", mode="min"), UsageError, "one of sum, mean, max, got 'min'"),
    (
        lambda: EmbeddingBag(ROWS, DIM, table="words", mode="sum")(IDS.view(2, 4), None, torch.ones(2, 4).double()),
        DtypeError,
        "per_sample_weights are torch.float64 on cpu, and the rows torch.float32 on cpu",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD)
def test_bad_arguments_are_named(
    worker: adapm.BlockingWorker, call: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("harmless", [{"max_norm": None}, {"sparse": False}, {"norm_type": 2.0}])
def test_what_changes_nothing_is_taken(worker: adapm.BlockingWorker, harmless: dict[str, Any]) -> None:
    assert Embedding(ROWS, DIM, table="words", **harmless)(IDS).shape == (8, DIM)


def test_without_torch_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None  # Python's way to say: not to be imported
import adapm
try:
    import adapm.torch
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "TorchMissing adapm.torch needs PyTorch 2.1 or newer: pip install 'adapm[torch]'\n"
