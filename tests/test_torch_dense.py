"""Dense parameters that workers share: what each sees after its steps, and what adds up."""

from __future__ import annotations

import asyncio
import contextlib
import copy

import numpy as np
import pytest
import torch

import adapm
from adapm.current import being
from adapm.errors import Closed, NoWorker, TableError, UnknownTable
from adapm.torch import DenseParameters, Embedding, dense_table
from cluster import Cluster
from desk import Desk
from torch_tasks import at_work


def model(seed: int = 0, hidden: int = 300) -> torch.nn.Sequential:
    """More than one row of parameters, one of which is not trained."""
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1))
    layers[2].bias.requires_grad_(False)
    return layers


def loss_of(module: torch.nn.Module, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (module(torch.randn(8, 4)) ** 2).mean()


def flat(module: torch.nn.Module) -> np.ndarray:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()


def test_the_table_begins_with_the_modules_values() -> None:
    table, parameters = dense_table(model(), "layers"), flat(model())[:-1]
    assert (table.name, table.rows, table.row_len) == ("layers", 2, 1024)
    with at_work(table) as worker:
        rows = worker.read_table("layers").reshape(-1)
        assert (rows[: len(parameters)] == parameters).all()
        assert not rows[len(parameters) :].any()
        other = model(seed=1)
        last = other[2].bias.item()
        DenseParameters(other, table="layers")
        assert (flat(other)[:-1] == parameters).all()
        assert other[2].bias.item() == last


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_alone_it_trains_as_without(kind: type[torch.optim.Optimizer]) -> None:
    shared, alone = model(), model()
    with at_work(dense_table(shared)) as worker:
        optimizers = kind(shared.parameters(), lr=0.01), kind(alone.parameters(), lr=0.01)
        DenseParameters(shared, optimizers[0])
        for step in range(50):
            for module, optimizer in zip((shared, alone), optimizers, strict=True):
                optimizer.zero_grad()
                loss_of(module, step).backward()
                optimizer.step()
        np.testing.assert_allclose(flat(shared), flat(alone), rtol=1e-4, atol=1e-5)
        assert (worker.read_table("dense").reshape(-1)[: len(flat(shared)) - 1] == flat(shared)[:-1]).all()


def test_changes_of_two_workers_add_up() -> None:
    """Two workers of one node, whose steps the other sees after its own next."""
    start = flat(model())
    with contextlib.closing(Desk([dense_table(model())], nodes=1, workers=2)) as desk:
        modules, optimizers, changes = [], [], []
        for slot in range(2):
            modules.append(model(seed=slot))
            optimizers.append(torch.optim.SGD(modules[-1].parameters(), lr=0.1))
            DenseParameters(modules[-1], optimizers[-1], worker=desk.blocking_worker(slot=slot))
        for slot in (0, 1):
            assert (flat(modules[slot])[:-1] == start[:-1]).all()
            alone = copy.deepcopy(modules[slot])
            optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
            for module, each in ((modules[slot], optimizers[slot]), (alone, optimizer)):
                loss_of(module, slot).backward()
                each.step()
            changes.append(flat(alone)[:-1] - start[:-1])
        np.testing.assert_allclose(flat(modules[0])[:-1], start[:-1] + changes[0], atol=1e-6)
        np.testing.assert_allclose(flat(modules[1])[:-1], start[:-1] + changes[0] + changes[1], atol=1e-6)


def test_at_a_barrier_all_become_equal() -> None:
    def train(worker: adapm.BlockingWorker) -> np.ndarray:
        with being(worker):
            module = model(seed=worker.id)
            optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
            shared = DenseParameters(module, optimizer)
            for step in range(5 + 3 * worker.id):
                (module(torch.full((2, 4), 0.1 * (step + worker.id))) ** 2).sum().backward()
                optimizer.step()
            with torch.no_grad():
                module[2].weight += 1  # by hand, after the last step
            shared.barrier()
            return flat(module)[:-1]

    async def main() -> list[np.ndarray]:
        async with Cluster([dense_table(model())], nodes=2) as cluster:
            return await cluster.run_threads(train)

    first, second = asyncio.run(main())
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-6)  # copies of two nodes, rounded each for itself
    assert np.median(first[-300:] - flat(model())[-301:-1]) == pytest.approx(2, abs=0.5)


def test_several_optimizers_and_halves_of_floats() -> None:
    module = model().to(torch.bfloat16)
    with at_work(dense_table(module)) as worker:
        first = torch.optim.SGD(module[0].parameters(), lr=0.1)
        second = torch.optim.SGD(module[2].parameters(), lr=0.1)
        DenseParameters(module, first, second)
        module(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        first.step()
        second.step()
        rows = torch.from_numpy(worker.read_table("dense")).reshape(-1)[: len(flat(module.float())) - 1]
        np.testing.assert_allclose(rows, flat(module)[:-1], atol=0.01)


def test_embeddings_are_not_dense() -> None:
    embedding = Embedding(10, 4, table="words")
    both = torch.nn.ModuleDict({"words": embedding, "layers": model()})
    assert dense_table(both).rows == dense_table(model()).rows
    with pytest.raises(TableError, match="no parameters that require gradients, so table 'dense' would be empty"):
        dense_table(embedding)


def test_what_is_refused() -> None:
    with at_work(dense_table(model())) as worker:
        with pytest.raises(UnknownTable, match="no table 'desne'; did you mean 'dense'"):
            DenseParameters(model(), table="desne")
        remedy = r"3001 parameters need 3 rows .* make it adapm.torch.dense_table\(module, 'dense'\)"
        with pytest.raises(TableError, match=remedy):
            DenseParameters(torch.nn.Linear(3000, 1))
        shared = DenseParameters(model())
        worker.close()
        with pytest.raises(Closed):
            shared.share()
    with pytest.raises(NoWorker, match=r"start it with adapm.run\(train, tables\)"):
        DenseParameters(model())
