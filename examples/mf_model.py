"""Matrix factorization on plain float32 arrays: batches, gradients, errors. Nothing here knows of workers and tables.

An entry of the matrix is estimated as the dot product of its row's and its column's factors; with biases, plus the mean
of all entries, plus a number of the row's own and one of the column's. A *parameter row* is `dim` factors, followed by
the bias if there is one. What is minimised is, over the known entries,

    (estimate - value)**2 / 2 + l2 / 2 * (all numbers that the estimate was made of, but for the mean, squared)

Each worker has some of the rows for itself (`share_of`); all work on all columns. To have few columns in a batch, the
columns are cut into blocks, and an epoch goes through the blocks one after the other (`Schedule`), all workers in the
same order: if each began with a block of its own, each would give its columns and rows a meaning that the others' do
not have, and would have to unlearn it later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rating_data import Entries, Floats, Ints

from adapm import ops

ESTIMATED_AT_ONCE = 1 << 16  # entries


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        dim: factors of a row or column.
        biases: whether rows and columns have a bias, and the mean of all entries is taken off.
        epochs: passes over the known entries.
        batch: entries in a minibatch.
        blocks: parts into which the columns are cut.
        learning_rate: the optimizer's, at first.
        decay: by which the learning rate is multiplied after each epoch.
        l2: weight of the regularisation.
        optimizer: "adagrad" or "sgd".
    """

    dim: int
    biases: bool
    epochs: int
    batch: int
    blocks: int
    learning_rate: float
    decay: float
    l2: float
    optimizer: str = "adagrad"

    @property
    def width(self) -> int:
        """Floats of a parameter row."""
        return self.dim + self.biases


OPTIMIZERS = ("adagrad", "sgd")


def share_of(rows: Ints, count: int, worker: int, workers: int) -> Ints:
    """This worker's rows: int64, distinct.

    The shares of all workers are disjoint and cover everything. Rows with many entries are dealt out first, so that all
    workers have about as much to do.

    Args:
        rows: of all known entries, int64 [n].
        count: of rows.
        worker, workers: this one, and how many there are.
    """
    busiest_first = np.argsort(-np.bincount(rows, minlength=count), kind="stable")
    return busiest_first[worker::workers]


# ---- batches


class Batch:
    """Some entries, with the distinct rows and columns that they are in: the keys to pull and push.

    Attributes:
        rows, columns: int64, distinct.
        row_places, column_places: of each entry, the position in `rows` or `columns`.
        values: float32 [n].
        learning_rate: of this step.
    """

    def __init__(self, entries: Entries, learning_rate: float) -> None:
        self.rows, self.row_places = ops.unique(entries.rows)
        self.columns, self.column_places = ops.unique(entries.columns)
        self.values = entries.values
        self.learning_rate = learning_rate

    def __len__(self) -> int:
        """The number of entries."""
        return len(self.values)

    def gradients(self, rows: Floats, columns: Floats, settings: Settings, mean: float) -> tuple[float, Floats, Floats]:
        """The sum of squared errors, and gradient rows for `row_places` and `column_places`, to be added up.

        The gradients include the regularisation, the errors do not.

        Args:
            rows: [number of rows, width], the parameters of the batch's rows.
            columns: the same of its columns.
            settings: dim, biases and l2 are used.
            mean: of all entries; only used with biases.
        """
        of_rows, of_columns = ops.gather(rows, self.row_places), ops.gather(columns, self.column_places)
        error = _estimates(of_rows, of_columns, settings, mean) - self.values
        loss = float(error @ error)
        scaled, weight = error[:, np.newaxis], np.float32(settings.l2)
        kept = of_rows.copy()
        _derive(of_rows, of_columns, scaled, weight, settings)
        _derive(of_columns, kept, scaled, weight, settings)
        return loss, of_rows, of_columns


def _estimates(rows: Floats, columns: Floats, settings: Settings, mean: float) -> Floats:
    dim = settings.dim
    estimates: Floats = np.einsum("nd,nd->n", rows[:, :dim], columns[:, :dim])
    if settings.biases:
        estimates += rows[:, dim]
        estimates += columns[:, dim]
        estimates += np.float32(mean)
    return estimates


def _derive(mine: Floats, others: Floats, error: Floats, l2: np.float32, settings: Settings) -> None:
    """Puts the derivatives for these parameters in their place."""
    mine *= l2
    mine[:, : settings.dim] += error * others[:, : settings.dim]
    if settings.biases:
        mine[:, settings.dim] += error[:, 0]


class Schedule:
    """In which order a worker goes through its entries."""

    def __init__(self, entries: Entries, columns: int, settings: Settings, seed: int) -> None:
        """Cuts the columns into blocks, at random.

        Args:
            entries: this worker's.
            columns: how many there are.
            settings: batch, blocks, epochs, learning_rate and decay are used.
            seed: of the cut; the same for all workers, so that they mean the same by a block.
        """
        self._settings = settings
        order = np.random.default_rng(seed).permutation(columns)
        block_of = np.empty(columns, np.int64)
        block_of[order] = np.arange(columns) * settings.blocks // columns
        own = block_of[entries.columns]
        by_block = np.argsort(own, kind="stable")
        self._entries = entries[by_block]
        self._ends = np.cumsum(np.bincount(own, minlength=settings.blocks))

    @property
    def batches_per_epoch(self) -> int:
        """How many batches each epoch has."""
        sizes = np.diff(self._ends, prepend=0)
        return int((-(-sizes // self._settings.batch)).sum())

    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """All epochs: in each every entry exactly once, block after block, in a random order within it."""
        rate = self._settings.learning_rate
        for _ in range(self._settings.epochs):
            for block in range(self._settings.blocks):
                yield from self._block(block, rate, rng)
            rate *= self._settings.decay

    def _block(self, block: int, rate: float, rng: np.random.Generator) -> Iterator[Batch]:
        begin = self._ends[block - 1] if block else 0
        shuffled = begin + rng.permutation(self._ends[block] - begin)
        for first in range(0, len(shuffled), self._settings.batch):
            yield Batch(self._entries[shuffled[first : first + self._settings.batch]], rate)


# ---- the step: what is to be added to parameter rows, given their gradients


def step(pulled: Floats, places: Ints, gradients: Floats, rate: float, settings: Settings) -> Floats:
    """What to push to pulled rows.

    Args:
        pulled: [u, width], or with AdaGrad [u, 2 * width]: parameters, then sums of squared gradients.
        places: of which of them each gradient is, [n].
        gradients: [n, width].
        rate: the learning rate.
        settings: optimizer is used.
    """
    if settings.optimizer == "adagrad":
        return ops.adagrad(pulled, places, gradients, rate)
    return ops.sgd(len(pulled), places, gradients, rate)


# ---- quality


def squared_errors(entries: Entries, rows: Floats, columns: Floats, settings: Settings, mean: float) -> float:
    """The sum over the entries of the squared error of their estimates; rows and columns are the parameters of all."""
    total = 0.0
    for begin in range(0, len(entries), ESTIMATED_AT_ONCE):
        some = entries[begin : begin + ESTIMATED_AT_ONCE]
        of_rows, of_columns = ops.gather(rows, some.rows), ops.gather(columns, some.columns)
        error = _estimates(of_rows, of_columns, settings, mean) - some.values
        total += float(error @ error)
    return total
