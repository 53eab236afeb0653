"""The harness of `adapm bench torch`: both train the same, and the command prints what it says."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adapm import cli
from adapm.bench import pytorch
from torch_tasks import at_work

TRAINING = pytorch.Training(
    entities=50, relations=4, triples=100, dim=6, batch=16, negatives=3, transport="tcp", cores=(0,)
)


def test_the_loss_is_complexs(rng: np.random.Generator) -> None:
    model = pytorch.ComplEx(torch.nn.Embedding(50, 6), torch.nn.Embedding(4, 6))
    (triples,) = pytorch.draw(TRAINING, rng)[-1:]
    entities, relations = (
        part.weight.detach().numpy()[:, :3] + 1j * part.weight.detach().numpy()[:, 3:] for part in model.children()
    )
    s, r, o = entities[triples[:, 0]], relations[triples[:, 1]], entities[triples[:, 2:]]
    scores = ((s * r)[:, None] * o.conj()).real.sum(axis=2)
    signs = np.where(np.arange(4) == 0, -1, 1)
    assert model(triples).item() == pytest.approx(np.log1p(np.exp(signs * scores)).mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own optimizer
def test_both_train_the_same() -> None:
    batches = pytorch.draw(TRAINING, np.random.default_rng(0))
    assert sum(map(len, batches)) == TRAINING.triples
    model = pytorch.plain_model(TRAINING)
    starts = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    with at_work(*TRAINING.tables) as worker:
        for name, start in zip(worker.tables, starts, strict=True):
            worker.set(name, np.arange(len(start)), start, columns="value")
        for train in (pytorch.of_torch(model), pytorch.of_adapm(TRAINING)):
            train(batches)
        for name, start, parameter in zip(worker.tables, starts, model.parameters(), strict=True):
            rows = worker.read_table(name, columns="value")
            np.testing.assert_allclose(rows, parameter.detach().numpy(), rtol=1e-3, atol=1e-5)
            assert (rows != start).any()


def test_the_command_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "VARIANTS", {"2 nodes": (2, 1)})
    sizes = ["--entities", "50", "--relations", "4", "--triples", "200", "--batch", "16", "--dim", "6"]
    done = CliRunner().invoke(cli.main, ["bench", "torch", *sizes, "--repeat", "1", "--json"], prog_name="adapm")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["2 nodes"]
    assert set(figures) == {"epoch_s", "torch_s", "over_torch", "local_fraction"}
    assert figures["over_torch"] == pytest.approx(figures["epoch_s"] / figures["torch_s"])
    assert 0 < figures["local_fraction"] <= 1


def test_bad_settings_and_a_missing_torch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(cli.main, ["bench", "torch", "--dim", "0"], prog_name="adapm")
    assert "dim must be above 0, got 0" in done.output
    for module in [name for name in sys.modules if name.startswith(("adapm.torch", "adapm.bench.pytorch"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("adapm.bench.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = CliRunner().invoke(cli.main, ["bench", "torch"], prog_name="adapm")
    assert "TorchMissing: adapm.torch needs PyTorch" in done.output
