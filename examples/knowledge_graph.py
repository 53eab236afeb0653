"""Knowledge-graph embeddings: ComplEx with AdaGrad, trained by any number of workers on any number of nodes.

    python examples/knowledge_graph.py                                                       one node, two workers, UMLS
    adapm run --nodes 2 --workers 1 examples/knowledge_graph.py --data umls                  two nodes
    ADAPM_DATA=... adapm run --nodes 2 --workers 2 examples/knowledge_graph.py --data wn18rr
    python examples/knowledge_graph.py --plain                                               the same without a manager

What it shows of adapm is in `train` and `learn`: the optimizer's state is a column group beside the embeddings,
`adapm.ahead` signals every batch's rows before their turn, and pull and push then find them on this machine. The
mathematics is in kg_model.py, the data in kg_data.py, what stands in for a worker where there is no manager in
kg_plain.py; README.md says which settings reach what.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import click
import kg_data
import kg_model
import numpy as np
import numpy.typing as npt
from kg_model import Batch, Settings
from kg_plain import PlainWorker
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import adapm
from adapm import ops

AnyWorker: TypeAlias = "adapm.Worker | PlainWorker"

SMALL = Settings(dim=64, epochs=20, batch=128, negatives=0, chunk=0, loss="softmax", learning_rate=0.2, n3=0.01)
LARGE = Settings(dim=128, epochs=10, batch=256, negatives=256, chunk=0, loss="softmax", learning_rate=0.2, n3=0.07)
SMALL_MEANS = 1000  # entities: up to here it costs little to compare an answer with all of them
SPREAD = 0.1  # standard deviation of the initial embeddings
KEPT_BYTES = 32 << 20  # of freed memory that a process keeps for its next arrays
REFRESH = 0.1  # seconds between two states of the progress bar


@dataclass(frozen=True)
class Outcome:
    """What one worker brings home.

    Attributes:
        node: its node; workers: of the whole run, nodes: of the whole run.
        ranks: filtered ranks of its part of the test questions, float64 [n].
        judged: the evaluation losses of the same questions, [n].
        loss: of its last epoch, per question.
        triples: that it has trained on, over all epochs.
        epoch_seconds: of each epoch, from barrier to barrier.
        statistics: at the end of the training; None of a PlainWorker.
    """

    node: int
    nodes: int
    workers: int
    ranks: npt.NDArray[np.float64]
    judged: kg_model.Floats
    loss: float
    triples: int
    epoch_seconds: list[float]
    statistics: adapm.Statistics | None


async def train(worker: AnyWorker, graph: kg_data.Graph, settings: Settings, seed: int) -> Outcome:
    """What every worker runs: trains on its share of the triples, then tests on its share of the test questions."""
    share = kg_model.share_of(graph.train, worker.id, worker.num_workers, seed)
    if not len(share):
        raise adapm.errors.DataError(f"{graph.name} has {len(graph.train)} triples to train on, fewer than workers")
    per_epoch = kg_model.batches_per_epoch(len(share), settings)
    batches = itertools.chain.from_iterable(
        kg_model.batches(share, graph.entities, graph.relations, settings, worker.rng) for _ in range(settings.epochs)
    )
    await worker.barrier()
    with Display(worker, settings.epochs, len(share)) as display:
        for number, batch in enumerate(announced(batches, worker), start=1):
            loss = await learn(worker, batch, settings, graph.entities)
            display.learned(loss, len(batch))
            if number % per_epoch == 0:
                await worker.barrier()
                display.end_epoch()
    counted = None if isinstance(worker, PlainWorker) else worker.statistics()
    await worker.barrier()  # nobody reads whole tables before everybody's counters have been read
    ranks, judged = await test(worker, graph)
    return Outcome(
        node=worker.node,
        nodes=worker.num_nodes,
        workers=worker.num_workers,
        ranks=ranks,
        judged=judged,
        loss=display.loss,
        triples=len(share) * settings.epochs,
        epoch_seconds=display.epoch_seconds,
        statistics=counted,
    )


def announced(batches: Iterator[Batch], worker: AnyWorker) -> Iterable[Batch]:
    """The batches, whose rows the manager is told ahead of their turn; where there is none, just the batches."""
    return batches if isinstance(worker, PlainWorker) else adapm.ahead(batches, worker, keys=rows_of)


def rows_of(batch: Batch) -> dict[str, npt.NDArray[np.int64]]:
    """The rows that a batch reads and changes: drawn with the batch, hence known ahead."""
    return {"entities": batch.entities, "relations": batch.relations}


async def learn(worker: AnyWorker, batch: Batch, settings: Settings, population: int) -> float:
    """One step: pulls [value | adagrad], computes, pushes what is to be added to both. Returns the loss."""
    dim, rate = settings.dim, settings.learning_rate
    pulling = worker.pull("entities", batch.entities), worker.pull("relations", batch.relations)  # both are under way
    entities, relations = await pulling[0], await pulling[1]
    loss, of_entities, of_relations = batch.gradients(entities[:, :dim], relations[:, :dim], settings, population)
    pushing = (
        worker.push("entities", batch.entities, ops.adagrad(entities, batch.entity_places, of_entities, rate)),
        worker.push("relations", batch.relations, ops.adagrad(relations, batch.relation_places, of_relations, rate)),
    )
    for push in pushing:
        await push
    return loss


async def test(worker: AnyWorker, graph: kg_data.Graph) -> tuple[npt.NDArray[np.float64], kg_model.Floats]:
    """Filtered ranks and evaluation losses of this worker's part of the test questions."""
    mine = slice(worker.id, None, worker.num_workers)
    questions = kg_model.both_ways(graph.test, graph.relations)
    wrong = np.random.default_rng(0).integers(graph.entities, size=(len(questions), kg_model.JUDGED))
    triples = np.concatenate([graph.train, graph.valid, graph.test])
    known = kg_model.Answers(kg_model.both_ways(triples, graph.relations), 2 * graph.relations)
    model = await worker.read_table("entities", "value"), await worker.read_table("relations", "value")
    return (
        kg_model.ranks(questions[mine], *model, known),
        kg_model.evaluation_losses(questions[mine], wrong[mine], *model),
    )


def train_plainly(graph: kg_data.Graph, settings: Settings, seed: int) -> Outcome:
    """The same training by this process alone, on arrays of its own."""
    worker = PlainWorker(tables_for(graph, settings.dim), SPREAD, seed)
    return asyncio.run(train(worker, graph, settings, seed))


def tables_for(graph: kg_data.Graph, dim: int) -> list[adapm.Table]:
    """The model's tables. Relations have a second row for the question asked backwards."""
    columns = {"value": dim, "adagrad": dim}
    init = {"value": adapm.normal(std=SPREAD)}
    return [
        adapm.Table("entities", rows=graph.entities, columns=columns, init=init),
        adapm.Table("relations", rows=2 * graph.relations, columns=columns, init=init),
    ]


# ---- what is seen while it trains


class Display:
    """Shows worker 0's progress on stderr: a bar on a terminal, a line per epoch elsewhere. Other workers show nothing.

    Attributes:
        loss: of the last whole epoch, per question.
        epoch_seconds: of each whole epoch.
    """

    def __init__(self, worker: AnyWorker, epochs: int, triples: int) -> None:
        self._console = Console(stderr=True, quiet=worker.id != 0)
        self._workers = worker.num_workers
        self._epochs, self._triples = epochs, triples
        self._live = worker.id == 0 and self._console.is_terminal
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[pace]:,.0f} triples/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=epochs * triples, epoch=1, loss=0.0, pace=0.0)
        self._began = self._shown = time.perf_counter()
        self._seen = 0
        self._sum = 0.0
        self.loss = 0.0
        self.epoch_seconds: list[float] = []

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def learned(self, loss: float, questions: int) -> None:
        """A batch of so many questions has this loss."""
        self._sum += loss
        self._seen += questions
        now = time.perf_counter()
        if self._live and now - self._shown > REFRESH:
            self._shown = now
            self._show(now)

    def end_epoch(self) -> None:
        """All triples have been seen once more."""
        now = time.perf_counter()
        self.loss = self._sum / self._seen
        self.epoch_seconds.append(now - self._began)
        if self._live:
            self._show(now)
        else:
            epoch = f"epoch {len(self.epoch_seconds)}/{self._epochs}"
            self._console.print(f"{epoch}  loss {self.loss:.3f}  {self._pace(now):,.0f} triples/s")
        self._began = now
        self._seen, self._sum = 0, 0.0

    def _show(self, now: float) -> None:
        epoch = len(self.epoch_seconds)
        done = epoch * self._triples + self._seen // 2
        self._bar.update(self._task, completed=done, epoch=epoch + 1, loss=self._sum / self._seen, pace=self._pace(now))

    def _pace(self, now: float) -> float:
        """Triples per second of all workers in this epoch, taking them to be as fast as this one."""
        return self._workers * self._seen / 2 / (now - self._began)


# ---- what is seen at the end

TRAINED = (
    ("manager", "{manager}"),
    ("nodes, workers in all", "{nodes}, {workers}"),
    ("test MRR", "{mrr:.4f}"),
    ("Hits@1", "{hits_at_1:.4f}"),
    ("Hits@3", "{hits_at_3:.4f}"),
    ("Hits@10", "{hits_at_10:.4f}"),
    ("questions ranked", "{questions:,}"),
    ("evaluation loss (logistic)", "{evaluation_loss:.3f}"),
    ("loss of the last epoch", "{training_loss:.3f}"),
    ("training", "{training_seconds:.2f} s"),
    ("an epoch (median)", "{median_epoch_seconds:.3f} s"),
    ("triples/s", "{triples_per_second:,.0f}"),
    ("from start to end", "{total_seconds:.1f} s"),
)
MANAGED = (
    ("pulled rows that were local", "{local_share:.2%}"),
    ("bytes between nodes", "{wire_bytes:,}"),
    ("lanes between nodes", "{lanes}"),
    ("relocations", "{relocations:,}"),
    ("replicas made", "{replicas:,}"),
)
LANES = ("shm", "tcp", "rdma")


def summary(outcomes: list[Outcome], total_seconds: float) -> dict[str, Any]:
    """The closing figures, over the workers that this call started."""
    epochs = [max(each) for each in zip(*(outcome.epoch_seconds for outcome in outcomes), strict=True)]
    triples = sum(outcome.triples for outcome in outcomes)
    ranks = np.concatenate([outcome.ranks for outcome in outcomes])
    return {
        "nodes": outcomes[0].nodes,
        "workers": outcomes[0].workers,
        "questions": len(ranks),
        **kg_model.quality(ranks),
        "evaluation_loss": float(np.mean(np.concatenate([outcome.judged for outcome in outcomes]))),
        "training_loss": sum(outcome.loss * outcome.triples for outcome in outcomes) / triples,
        "training_seconds": sum(epochs),
        "epoch_seconds": epochs,
        "median_epoch_seconds": float(np.median(epochs)),
        "total_seconds": total_seconds,
        "triples_per_second": triples / sum(epochs),
        "manager": "none" if outcomes[0].statistics is None else "adapm",
        **managed(outcomes),
    }


def managed(outcomes: list[Outcome]) -> dict[str, float]:
    """What the manager did; nothing where there was none."""
    counted = [outcome.statistics for outcome in outcomes if outcome.statistics]
    nodes = {outcome.node: outcome.statistics.node for outcome in outcomes if outcome.statistics}.values()
    if not counted:
        return {}
    return {
        "local_share": sum(each.pull_local for each in counted) / sum(each.pull_keys for each in counted),
        "wire_bytes": sum(each.bytes_out for each in nodes),
        "lanes": " ".join(kind for kind in LANES if any(getattr(each, f"links_{kind}") for each in nodes)) or "none",
        "relocations": sum(each.relocations_in for each in nodes),
        "replicas": sum(each.replicas_made for each in nodes),
    }


def closing_table(title: str, figures: dict[str, Any]) -> Table:
    """The closing figures for people."""
    table = Table(title=title, caption="ranks: ties count half, other right answers not at all", show_header=False)
    table.add_column(min_width=36)
    table.add_column(justify="right", min_width=20)
    for name, text in TRAINED if figures["manager"] == "none" else TRAINED + MANAGED:
        table.add_row(name, text.format(**figures))
    return table


# ---- the command


def settings_for(graph: kg_data.Graph, chosen: dict[str, Any]) -> Settings:
    """The settings that suit the graph, but for those chosen (not None)."""
    suited = SMALL if graph.entities <= SMALL_MEANS else LARGE
    return dataclasses.replace(suited, **{name: value for name, value in chosen.items() if value is not None})


def start(graph: kg_data.Graph, settings: Settings, seed: int) -> list[Outcome]:
    """Trains on the nodes and workers that the configuration names; returns what this machine's workers bring home."""
    prepare_processes()
    return adapm.run(train, tables=tables_for(graph, settings.dim), args=(graph, settings, seed), seed=seed)


def start_plainly(graph: kg_data.Graph, settings: Settings, seed: int) -> list[Outcome]:
    """Trains without a manager, in a process like a worker's: it keeps the memory that it frees, too."""
    prepare_processes()
    for threshold in ("TRIM", "MMAP"):
        os.environ.setdefault(f"MALLOC_{threshold}_THRESHOLD_", str(KEPT_BYTES))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return [process.submit(train_plainly, graph, settings, seed).result()]


def prepare_processes() -> None:
    """Has the processes to be started compute with one thread each, unless the user has said otherwise.

    The workers are the parallelism: with a thread per core in each of them, their matrix products would only fight for
    the cores.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def _even(_: click.Context, __: click.Parameter, dim: int | None) -> int | None:
    if dim is not None and dim % 2:
        raise click.BadParameter(f"{dim} is odd, but two floats make a complex number")
    return dim


COUNT = click.IntRange(min=1)
ANY = click.IntRange(min=0)


@click.command(epilog="What is not given is chosen to suit the size of the data.")
@click.option(
    "--data", default="umls", show_default=True, help="umls, kinships, nations, wn18rr, or a folder of files."
)
@click.option("--dim", type=COUNT, callback=_even, help="Floats in an embedding.")
@click.option("--epochs", type=COUNT, help="Passes over the training triples.")
@click.option("--batch", type=COUNT, help="Triples in a minibatch.")
@click.option("--negatives", type=ANY, help="Wrong answers drawn; 0 takes all entities.")
@click.option(
    "--chunk",
    type=ANY,
    help="Questions that share negatives (a triple asks two); 0: the whole batch, 1: each has its own.",
)
@click.option("--loss", type=click.Choice(kg_model.LOSSES), help="One right answer among many, or each right or wrong.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Of AdaGrad.")
@click.option("--n3", type=click.FloatRange(min=0), help="Weight of the N3 regularisation.")
@click.option("--seed", type=ANY, default=0, show_default=True, help="Of everything random.")
@click.option("--plain", is_flag=True, help="Train in one process on plain arrays, without a manager, to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing figures as one line of JSON.")
def main(data: str, seed: int, plain: bool, as_json: bool, **chosen: Any) -> None:
    """Trains ComplEx embeddings of a knowledge graph and tests them by link prediction."""
    started = time.perf_counter()
    try:
        graph = kg_data.load(data)
    except adapm.errors.DataError as error:
        raise click.ClickException(str(error)) from error
    settings = settings_for(graph, chosen)
    outcomes = (start_plainly if plain else start)(graph, settings, seed)
    figures = summary(outcomes, time.perf_counter() - started)
    if as_json:
        print(json.dumps({"data": graph.name, "seed": seed, **dataclasses.asdict(settings), **figures}))
    else:
        size = f"{graph.entities:,} entities, {graph.relations:,} relations, {len(graph.train):,} training triples"
        Console().print(closing_table(f"{graph.name}: {size}", figures))


if __name__ == "__main__":
    main()
