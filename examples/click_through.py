"""Wide & Deep in PyTorch, trained by any number of workers on any number of nodes: what will happen, and how likely?

    python examples/click_through.py                                            one node, two workers, flights
    adapm run --nodes 2 --workers 2 examples/click_through.py                   two nodes
    adapm run --nodes 2 --workers 2 examples/click_through.py --data day_0.tsv  a click log in Criteo's format
    python examples/click_through.py --plain                                    the same without a manager

What it shows of adapm is in `train`, and in torch_twin.py: the rows of the two tables are looked up by adapm.torch's
Embedding and EmbeddingBag and trained by its SparseAdagrad, the dense layers are shared by DenseParameters; everything
else is an ordinary training loop. Its batches come through an IntentLoader, which announces before their turn what they
will look up: the parts of a batch that have the names of the tables, "wide" and "deep". The model is in click_model.py,
the data in click_data.py, what all examples share in session.py; README.md says what is reached.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import click
import click_data
import click_model
import numpy as np
import session
import torch
import torch_twin
from click_data import Clicks, Floats
from click_model import Batches, Settings, WideAndDeep
from rich.console import Console
from session import COUNT, Outcome, PlainOrBlocking
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_twin import Trainer

import adapm
import adapm.torch

SMALL = Settings(buckets=1 << 17, dim=8, hidden=64, epochs=2, batch=512, learning_rate=0.02, dense_rate=0.001)
LARGE = Settings(buckets=1 << 21, dim=16, hidden=256, epochs=1, batch=2048, learning_rate=0.02, dense_rate=0.001)
SMALL_MEANS = 1_000_000  # events
SPREAD = 0.05  # standard deviation of the initial vectors


def train(worker: PlainOrBlocking, clicks: Clicks, settings: Settings, seed: int) -> Outcome:
    """What every worker runs: trains on its share of the events, then tests on its share of the others."""
    torch_twin.begin(seed, worker)
    mine = Batches(clicks, clicks.train[worker.id :: worker.num_workers], settings)
    wide, deep, _ = tables_for(clicks, settings, seed)
    model = WideAndDeep(
        torch_twin.bag(worker, wide, "sum"), torch_twin.embedding(worker, deep), layers_for(clicks, settings, seed)
    )
    trainer = Trainer(worker, [model.wide, model.deep], model.layers, settings.learning_rate, settings.dense_rate)
    batches = torch_twin.announced(mine.shuffled(settings.epochs, worker.rng), worker)
    trainer.meet()
    with session.Display(worker, settings.epochs, len(mine), "events") as display:
        for number, batch in enumerate(batches, start=1):
            loss = binary_cross_entropy_with_logits(model(batch), batch.happened)
            trainer.step(loss)
            display.learned(loss.item() * len(batch), len(batch))
            if number % mine.per_pass == 0:
                trainer.meet()
                display.end_epoch()
    statistics = torch_twin.counted(worker)
    return display.outcome(worker, statistics, measured=test(worker, model, clicks, settings))


@torch.no_grad()
def test(worker: PlainOrBlocking, model: WideAndDeep, clicks: Clicks, settings: Settings) -> tuple[Floats, Floats]:
    """The odds of this worker's share of the test events, float32 [n], and whether they happened."""
    events = clicks.test[worker.id :: worker.num_workers]
    batches = torch_twin.announced(Batches(clicks, events, settings).in_order(), worker)
    odds = [model(batch).numpy() for batch in batches]
    return np.concatenate([np.empty(0, np.float32), *odds]), events.happened


def tables_for(clicks: Clicks, settings: Settings, seed: int) -> list[adapm.Table]:
    """The model's tables: numbers of categories and crosses, vectors of categories, and the dense layers."""
    wide = click_model.ids_of(clicks, clicks.train, settings.buckets)
    deep = wide[:, : len(clicks.fields)]
    return [
        torch_twin.table("wide", settings.buckets, 1, adapm.constant(0.0), wide),
        torch_twin.table("deep", settings.buckets, settings.dim, adapm.normal(std=SPREAD), deep),
        adapm.torch.dense_table(layers_for(clicks, settings, seed)),
    ]


def layers_for(clicks: Clicks, settings: Settings, seed: int) -> torch.nn.Module:
    """The dense layers, with the same initial values in all processes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return click_model.layers(len(clicks.fields), settings)


# ---- what is seen at the end

QUALITY = (
    ("test AUC", "{auc:.4f}"),
    ("test log loss", "{log_loss:.4f}"),
    ("events tested", "{tested:,}"),
)
CAPTION = "the loss is the log loss"


def quality(outcomes: list[Outcome]) -> dict[str, Any]:
    """What the test showed, over the workers that this call started."""
    odds, happened = (np.concatenate(parts) for parts in zip(*(each.measured for each in outcomes), strict=True))
    return {
        "auc": click_model.area_under_curve(odds, happened),
        "log_loss": click_model.log_loss(odds, happened),
        "tested": len(odds),
    }


# ---- the command


def settings_for(clicks: Clicks, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the number of events, but for those chosen (not None)."""
    return session.with_chosen(SMALL if len(clicks.train) <= SMALL_MEANS else LARGE, chosen)


@click.command(epilog="What is not given is chosen to suit the size of the data.")
@click.option("--data", default="flights", show_default=True, help="flights, or a file in Criteo's format.")
@click.option(
    "--split", type=session.ANY, default=0, show_default=True, help="Which fifth of the flights' days is the test."
)
@click.option("--buckets", type=COUNT, help="Rows of either table, among which ids are hashed.")
@click.option("--dim", type=COUNT, help="Floats of a category's vector.")
@click.option("--hidden", type=click.IntRange(min=2), help="Floats behind the first layer; the second has half.")
@click.option("--epochs", type=COUNT, help="Passes over the training events.")
@click.option("--batch", type=COUNT, help="Events in a minibatch.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="AdaGrad's, of both tables.")
@click.option("--dense-rate", type=click.FloatRange(min=0, min_open=True), help="Adam's, of the layers.")
@session.common_options
def main(data: str, split: int, seed: int, plain: bool, as_json: bool, **chosen: Any) -> None:
    """Learns which events happen, and tests how well it tells the likely ones."""
    started = time.perf_counter()
    with session.complaints():
        clicks = click_data.load(data, split)
    settings = settings_for(clicks, chosen)
    outcomes = session.run(train, tables_for(clicks, settings, seed), (clicks, settings, seed), seed, plain)
    figures = {**quality(outcomes), **session.summary(outcomes, "events", time.perf_counter() - started)}
    session.report(outcomes, {"AUC": figures["auc"]}, {"log loss": figures["log_loss"]})
    if as_json:
        said = {"data": clicks.name, "split": split, "seed": seed, **dataclasses.asdict(settings)}
        print(json.dumps({**said, **figures}))
    else:
        size = f"{len(clicks.fields)} fields, {len(clicks.crosses)} crosses, {len(clicks.train):,} training events"
        Console().print(session.closing_table(f"{clicks.name}: {size}", QUALITY, "events", CAPTION, figures))


if __name__ == "__main__":
    main()
