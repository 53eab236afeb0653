"""What the training examples share: how they are started, what is seen meanwhile, and what at the end.

An example has a function `train(worker, *args) -> Outcome`, plain or a coroutine function, that every worker runs.
`run` starts it, through the manager or on a PlainWorker alone; `Display` shows its progress; `summary` and
`closing_table` make figures of what it brings home.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
import numpy as np
import numpy.typing as npt
from plain import PlainWorker
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import adapm

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyWorker: TypeAlias = "adapm.Worker | PlainWorker"  # of a coroutine function
PlainOrBlocking: TypeAlias = "adapm.BlockingWorker | PlainWorker"  # of a plain one
Train: TypeAlias = Callable[..., "Coroutine[Any, Any, Outcome] | Outcome"]
Batch = TypeVar("Batch")

KEPT_BYTES = 32 << 20  # of freed memory that a process keeps for its next arrays
REFRESH = 0.1  # seconds between two states of the progress bar


@dataclass(frozen=True)
class Outcome:
    """What one worker brings home.

    Attributes:
        node: its node; workers: of the whole run, nodes: of the whole run.
        losses: of each epoch, per item.
        seen: items that it has trained on, over all epochs.
        epoch_seconds: of each epoch, from barrier to barrier.
        statistics: at the end of the training; None of a PlainWorker.
        measured: what its part of the test showed, as the example defines it.
    """

    node: int
    nodes: int
    workers: int
    losses: list[float]
    seen: int
    epoch_seconds: list[float]
    statistics: adapm.Statistics | None
    measured: Any

    @property
    def loss(self) -> float:
        """Of its last epoch, per item."""
        return self.losses[-1]


# ---- for train()


def announced(
    batches: Iterator[Batch],
    worker: AnyWorker,
    keys: Callable[[Batch], Mapping[str, npt.NDArray[np.int64]]],
) -> Iterable[Batch]:
    """The batches, whose rows the manager is told ahead of their turn; where there is none, just the batches."""
    return batches if isinstance(worker, PlainWorker) else adapm.ahead(batches, worker, keys=keys)


async def counted(worker: AnyWorker) -> adapm.Statistics | None:
    """The worker's counters, when all have trained; nobody reads whole tables before everybody's have been read."""
    statistics = None if isinstance(worker, PlainWorker) else worker.statistics()
    await worker.barrier()
    return statistics


class Display:
    """Shows worker 0's progress on stderr: a bar on a terminal, a line per epoch elsewhere. Other workers show nothing.

    Attributes:
        losses: of each whole epoch, per item.
        seen: items in all whole epochs.
        epoch_seconds: of each whole epoch.
    """

    def __init__(self, worker: AnyWorker | PlainOrBlocking, epochs: int, items: int, unit: str) -> None:
        """So many epochs of so many items are to come; the unit is what items are called."""
        self._console = Console(stderr=True, quiet=worker.id != 0)
        self._workers = worker.num_workers
        self._epochs, self._items, self._unit = epochs, items, unit
        self._live = worker.id == 0 and self._console.is_terminal
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[pace]:,.0f} " + unit + "/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=epochs * items, epoch=1, loss=0.0, pace=0.0)
        self._began = self._shown = time.perf_counter()
        self._seen = 0
        self._sum = 0.0
        self.losses: list[float] = []
        self.seen = 0
        self.epoch_seconds: list[float] = []

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def learned(self, loss: float, items: int) -> None:
        """A batch of so many items has this loss, summed over them."""
        self._sum += loss
        self._seen += items
        now = time.perf_counter()
        if self._live and now - self._shown > REFRESH:
            self._shown = now
            self._show(now)

    def end_epoch(self) -> None:
        """All items have been seen once more."""
        now = time.perf_counter()
        self.losses.append(self._sum / self._seen)
        self.seen += self._seen
        self.epoch_seconds.append(now - self._began)
        if self._live:
            self._show(now)
        else:
            epoch = f"epoch {len(self.epoch_seconds)}/{self._epochs}"
            self._console.print(f"{epoch}  loss {self.losses[-1]:.3f}  {self._pace(now):,.0f} {self._unit}/s")
        self._began = now
        self._seen, self._sum = 0, 0.0

    def _show(self, now: float) -> None:
        epoch = len(self.epoch_seconds)
        done = epoch * self._items + self._seen
        self._bar.update(self._task, completed=done, epoch=epoch + 1, loss=self._sum / self._seen, pace=self._pace(now))

    def _pace(self, now: float) -> float:
        """Items per second of all workers in this epoch, taking them to be as fast as this one."""
        return self._workers * self._seen / (now - self._began)

    def outcome(
        self, worker: AnyWorker | PlainOrBlocking, statistics: adapm.Statistics | None, measured: Any
    ) -> Outcome:
        """What this worker brings home."""
        return Outcome(
            node=worker.node,
            nodes=worker.num_nodes,
            workers=worker.num_workers,
            losses=self.losses,
            seen=self.seen,
            epoch_seconds=self.epoch_seconds,
            statistics=statistics,
            measured=measured,
        )


# ---- starting


def run(train: Train, tables: list[adapm.Table], args: tuple[Any, ...], seed: int, plain: bool) -> list[Outcome]:
    """Trains, and returns what this machine's workers bring home.

    Args:
        train: what every worker runs.
        tables: the model's.
        args: of train, behind the worker.
        seed: of initial values and of the workers' random numbers.
        plain: in one process on arrays of its own, instead of on the nodes and workers that the configuration names.
    """
    prepare_processes()
    with complaints():
        return (
            run_plainly(train, tables, args, seed) if plain else adapm.run(train, tables=tables, args=args, seed=seed)
        )


def run_plainly(train: Train, tables: list[adapm.Table], args: tuple[Any, ...], seed: int) -> list[Outcome]:
    """Trains without a manager, in a process like a worker's: it keeps the memory that it frees, too."""
    for threshold in ("TRIM", "MMAP"):
        os.environ.setdefault(f"MALLOC_{threshold}_THRESHOLD_", str(KEPT_BYTES))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return [process.submit(train_plainly, train, tables, args, seed).result()]


def train_plainly(train: Train, tables: list[adapm.Table], args: tuple[Any, ...], seed: int) -> Outcome:
    """The same training by this process alone, on arrays of its own."""
    trained = train(PlainWorker(tables, seed), *args)
    return trained if isinstance(trained, Outcome) else asyncio.run(trained)


def prepare_processes() -> None:
    """Has the processes to be started compute with one thread each, unless the user has said otherwise.

    The workers are the parallelism: with a thread per core in each of them, their matrix products would only fight for
    the cores.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


# ---- what is seen at the end

Lines: TypeAlias = Sequence[tuple[str, str]]  # what a figure is called, and its format

BEFORE: Lines = (("manager", "{manager}"), ("nodes, workers in all", "{nodes}, {workers}"))
AFTER: Lines = (
    ("loss of the last epoch", "{training_loss:.3f}"),
    ("training", "{training_seconds:.2f} s"),
    ("an epoch (median)", "{median_epoch_seconds:.3f} s"),
)
LAST: Lines = (("from start to end", "{total_seconds:.1f} s"),)
MANAGED: Lines = (
    ("pulled rows that were local", "{local_share:.2%}"),
    ("bytes between nodes", "{wire_bytes:,}"),
    ("lanes between nodes", "{lanes}"),
    ("relocations", "{relocations:,}"),
    ("replicas made", "{replicas:,}"),
)
LANES = ("shm", "tcp", "rdma")


def summary(outcomes: list[Outcome], unit: str, total_seconds: float) -> dict[str, Any]:
    """The figures that all examples have, over the workers that this call started; items are called by the unit."""
    epochs = epoch_seconds(outcomes)
    seen = sum(outcome.seen for outcome in outcomes)
    return {
        "nodes": outcomes[0].nodes,
        "workers": outcomes[0].workers,
        "training_loss": losses(outcomes)[-1],
        "training_seconds": sum(epochs),
        "epoch_seconds": epochs,
        "median_epoch_seconds": float(np.median(epochs)),
        "total_seconds": total_seconds,
        f"{unit}_per_second": seen / sum(epochs),
        "manager": "none" if outcomes[0].statistics is None else "adapm",
        **managed(outcomes),
    }


def epoch_seconds(outcomes: list[Outcome]) -> list[float]:
    """Of each epoch, until the last worker had ended it."""
    return [max(each) for each in zip(*(outcome.epoch_seconds for outcome in outcomes), strict=True)]


def losses(outcomes: list[Outcome]) -> list[float]:
    """Of each epoch, per item."""
    weights = [outcome.seen for outcome in outcomes]
    return [
        float(np.average(each, weights=weights)) for each in zip(*(outcome.losses for outcome in outcomes), strict=True)
    ]


def report(outcomes: list[Outcome], quality: Mapping[str, float], loss: Mapping[str, float]) -> None:
    """Tells `adapm compare`, or whoever else asked for a report, how long epochs took and what was reached.

    Args:
        outcomes: of the workers that this call started.
        quality: what the test showed, by name, as far as more of it is better.
        loss: as far as less is.
    """
    managed = {
        node: [outcome.statistics for outcome in outcomes if outcome.node == node and outcome.statistics]
        for node in {outcome.node for outcome in outcomes if outcome.statistics}
    }
    adapm.report(
        epoch_seconds=epoch_seconds(outcomes),
        quality=quality,
        loss={**loss, "training loss": losses(outcomes)},
        statistics=managed or None,
    )


def managed(outcomes: list[Outcome]) -> dict[str, Any]:
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


def closing_table(title: str, quality: Lines, unit: str, caption: str, figures: dict[str, Any]) -> Table:
    """The closing figures for people: the example's own, between those that all have."""
    table = Table(title=title, caption=caption, show_header=False)
    table.add_column(min_width=36)
    table.add_column(justify="right", min_width=20)
    pace = ((f"{unit}/s", f"{{{unit}_per_second:,.0f}}"),)
    manager = () if figures["manager"] == "none" else MANAGED
    for name, text in (*BEFORE, *quality, *AFTER, *pace, *LAST, *manager):
        table.add_row(name, text.format(**figures))
    return table


# ---- the command

COUNT = click.IntRange(min=1)
ANY = click.IntRange(min=0)
SEED_HELP = "Of everything random.  [default: that of `adapm run --seed`, or 0]"

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", bound="DataclassInstance")


@contextlib.contextmanager
def complaints() -> Iterator[None]:
    """What is wrong with the user's data is said without a traceback."""
    try:
        yield
    except adapm.errors.DataError as error:
        raise click.ClickException(str(error)) from error


def with_chosen(suited: Settings, chosen: Mapping[str, Any]) -> Settings:
    """The settings, but for what was chosen on the command line (is not None)."""
    return dataclasses.replace(suited, **{name: value for name, value in chosen.items() if value is not None})


def common_options(command: Command) -> Command:
    """Adds --seed, --plain and --json to a command."""
    for option in reversed(
        (
            click.option("--seed", type=ANY, default=lambda: adapm.Config.load().seed, help=SEED_HELP),
            click.option(
                "--plain", is_flag=True, help="Train in one process on plain arrays, without a manager, to compare."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the closing figures as one line of JSON."),
        )
    ):
        command = option(command)
    return command
