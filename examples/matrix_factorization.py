"""Matrix factorization with AdaGrad or SGD, trained by any number of workers on any number of nodes.

    python examples/matrix_factorization.py                                             one node, two workers, MovieLens
    adapm run --nodes 2 --workers 1 examples/matrix_factorization.py                    two nodes
    adapm run --nodes 2 --workers 2 examples/matrix_factorization.py --data ratings.tsv
    python examples/matrix_factorization.py --plain                                     the same without a manager

What it shows of adapm is in `train`: the rows of the matrix are cut among the workers, so each announces its rows once,
for the whole run, and they move to its node. The columns are everybody's: `adapm.ahead` announces a batch's columns
before its turn; they move from node to node, or are replicated where several work on one. The mathematics is in
mf_model.py, the data in rating_data.py, what all examples share in session.py; README.md says what is reached.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from typing import Any

import click
import mf_model
import numpy as np
import numpy.typing as npt
import rating_data
import session
from mf_model import Batch, Schedule, Settings
from rating_data import Ratings
from rich.console import Console
from session import COUNT, AnyWorker, Outcome

import adapm

SMALL = {
    "adagrad": Settings(dim=64, biases=True, epochs=20, batch=1024, blocks=4, learning_rate=0.1, decay=0.9, l2=0.1),
    "sgd": Settings(dim=64, biases=True, epochs=20, batch=128, blocks=1, learning_rate=0.04, decay=0.9, l2=0.07),
}
LARGE = {
    "adagrad": Settings(dim=64, biases=False, epochs=5, batch=4096, blocks=16, learning_rate=0.1, decay=1.0, l2=0.01),
    "sgd": Settings(dim=64, biases=False, epochs=5, batch=512, blocks=16, learning_rate=0.05, decay=1.0, l2=0.01),
}
SMALL_MEANS = 1_000_000  # entries
SPREAD = 0.1  # standard deviation of the initial factors


async def train(worker: AnyWorker, ratings: Ratings, settings: Settings, seed: int) -> Outcome:
    """What every worker runs: trains on the entries of its rows, then tests on its part of the test entries."""
    rows = mf_model.share_of(ratings.train.rows, ratings.rows, worker.id, worker.num_workers)
    mine = np.zeros(ratings.rows, np.bool_)
    mine[rows] = True
    entries = ratings.train[mine[ratings.train.rows]]
    if not len(entries):
        known = len(np.unique(ratings.train.rows))
        raise adapm.errors.DataError(f"{ratings.name} has {known} rows with entries to train on, fewer than workers")
    mean = float(ratings.train.values.mean())
    schedule = Schedule(entries, ratings.columns, settings, seed)
    await keep(worker, np.flatnonzero(mine), schedule.batches_per_epoch * settings.epochs)
    batches = session.announced(schedule.batches(worker.rng), worker, keys=columns_of)
    await worker.barrier()
    with session.Display(worker, settings.epochs, len(entries), "entries") as display:
        for number, batch in enumerate(batches, start=1):
            display.learned(await learn(worker, batch, settings, mean), len(batch))
            if number % schedule.batches_per_epoch == 0:
                await worker.barrier()
                display.end_epoch()
    statistics = await session.counted(worker)
    return display.outcome(worker, statistics, measured=await test(worker, ratings, settings, mean))


async def keep(worker: AnyWorker, rows: npt.NDArray[np.int64], clocks: int) -> None:
    """Announces the worker's own rows for so many clocks, and waits until they are here."""
    if isinstance(worker, adapm.Worker):
        worker.intent("rows", rows, worker.clock, worker.clock + clocks)
        await worker.wait_sync()


def columns_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """What a batch reads and changes beside the worker's own rows."""
    return {"columns": batch.columns}


async def learn(worker: AnyWorker, batch: Batch, settings: Settings, mean: float) -> float:
    """One step: pulls, computes, pushes what is to be added. Returns the sum of squared errors."""
    pulling = worker.pull("rows", batch.rows), worker.pull("columns", batch.columns)  # both are under way
    rows, columns = await pulling[0], await pulling[1]
    width = settings.width
    loss, of_rows, of_columns = batch.gradients(rows[:, :width], columns[:, :width], settings, mean)
    rate = batch.learning_rate
    pushing = (
        worker.push("rows", batch.rows, mf_model.step(rows, batch.row_places, of_rows, rate, settings)),
        worker.push("columns", batch.columns, mf_model.step(columns, batch.column_places, of_columns, rate, settings)),
    )
    for push in pushing:
        await push
    return loss


async def test(worker: AnyWorker, ratings: Ratings, settings: Settings, mean: float) -> tuple[float, int]:
    """The sum of squared errors of this worker's part of the test entries, and how many these are."""
    entries = ratings.test[worker.id :: worker.num_workers]
    columns = ["factors", "bias"] if settings.biases else ["factors"]
    model = await worker.read_table("rows", columns), await worker.read_table("columns", columns)
    return mf_model.squared_errors(entries, *model, settings, mean), len(entries)


def tables_for(ratings: Ratings, settings: Settings) -> list[adapm.Table]:
    """The model's tables: factors, the bias if there is one, and AdaGrad's sums of squares of both."""
    columns = {"factors": settings.dim}
    if settings.biases:
        columns["bias"] = 1
    if settings.optimizer == "adagrad":
        columns["adagrad"] = settings.width
    init = {"factors": adapm.normal(std=SPREAD)}
    of_rows = np.bincount(ratings.train.rows, minlength=ratings.rows)
    of_columns = np.bincount(ratings.train.columns, minlength=ratings.columns)
    return [
        adapm.Table("rows", rows=ratings.rows, columns=columns, init=init, counts=of_rows),
        adapm.Table("columns", rows=ratings.columns, columns=columns, init=init, counts=of_columns),
    ]


# ---- what is seen at the end

QUALITY = (
    ("test RMSE", "{rmse:.4f}"),
    ("entries tested", "{tested:,}"),
)
CAPTION = "the loss is the mean squared error, without the regularisation"


def quality(outcomes: list[Outcome]) -> dict[str, Any]:
    """What the test showed, over the workers that this call started."""
    errors, counts = zip(*(outcome.measured for outcome in outcomes), strict=True)
    return {"rmse": math.sqrt(sum(errors) / sum(counts)), "tested": sum(counts)}


# ---- the command


def settings_for(ratings: Ratings, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the matrix, but for those chosen (not None)."""
    suited = SMALL if len(ratings.train) <= SMALL_MEANS else LARGE
    return dataclasses.replace(
        suited[chosen["optimizer"]], **{name: value for name, value in chosen.items() if value is not None}
    )


@click.command(epilog="What is not given is chosen to suit the size of the data.")
@click.option(
    "--data", default="movielens", show_default=True, help="movielens, a file, or a folder with train and test."
)
@click.option("--split", type=session.ANY, default=0, show_default=True, help="Which tenth of one file is the test.")
@click.option("--dim", type=COUNT, help="Factors of a row or column.")
@click.option("--biases/--no-biases", default=None, help="Whether rows and columns have a bias.")
@click.option("--epochs", type=COUNT, help="Passes over the training entries.")
@click.option("--batch", type=COUNT, help="Entries in a minibatch.")
@click.option("--blocks", type=COUNT, help="Parts into which the columns are cut; a batch has columns of one.")
@click.option(
    "--optimizer",
    type=click.Choice(mf_model.OPTIMIZERS),
    default="adagrad",
    show_default=True,
    help="How gradients become steps.",
)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Of the optimizer, at first.")
@click.option(
    "--decay", type=click.FloatRange(0, 1, min_open=True), help="The learning rate is multiplied by it every epoch."
)
@click.option("--l2", type=click.FloatRange(min=0), help="Weight of the L2 regularisation.")
@session.common_options
def main(data: str, split: int, seed: int, plain: bool, as_json: bool, **chosen: Any) -> None:
    """Factorizes a matrix of which some entries are known, and tests how well it estimates others."""
    started = time.perf_counter()
    with session.complaints():
        ratings = rating_data.load(data, split)
    settings = settings_for(ratings, chosen)
    outcomes = session.run(train, tables_for(ratings, settings), (ratings, settings, seed), seed, plain)
    figures = {**quality(outcomes), **session.summary(outcomes, "entries", time.perf_counter() - started)}
    session.report(outcomes, {}, {"RMSE": figures["rmse"]})
    if as_json:
        print(
            json.dumps({"data": ratings.name, "split": split, "seed": seed, **dataclasses.asdict(settings), **figures})
        )
    else:
        size = f"{ratings.rows:,} rows, {ratings.columns:,} columns, {len(ratings.train):,} training entries"
        Console().print(session.closing_table(f"{ratings.name}: {size}", QUALITY, "entries", CAPTION, figures))


if __name__ == "__main__":
    main()
