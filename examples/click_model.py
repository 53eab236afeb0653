"""Wide & Deep (Cheng et al., Wide & Deep Learning for Recommender Systems, 2016), its ids, and what it is judged by.

The *wide* part adds up one number for each of an event's categories and for each of its crosses, combinations of
categories. The *deep* part has a vector for each category, and layers over all of them. Both are looked up by ids which
are hashes: so nothing has to be known of the categories beforehand, and a few share what they learn by accident.

The module knows nothing of workers and tables: it is given whatever looks up rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from click_data import Clicks, Events, Floats, Ints
from torch import nn

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Attributes:
        buckets: rows of either table.
        dim: floats of a category's vector.
        hidden: floats behind the first layer; behind the second are half as many.
        epochs: passes over the events.
        batch: events in a minibatch.
        learning_rate: of both tables.
        dense_rate: of the layers.
    """

    buckets: int
    dim: int
    hidden: int
    epochs: int
    batch: int
    learning_rate: float
    dense_rate: float


# ---- ids


@dataclass(frozen=True, eq=False)
class Batch:
    """Some events.

    Attributes:
        wide: ids of the categories and the crosses, int64 [n, fields + crosses].
        deep: ids of the categories, int64 [n, fields].
        happened: float32 [n].
    """

    wide: torch.Tensor
    deep: torch.Tensor
    happened: torch.Tensor

    def __len__(self) -> int:
        """The number of events."""
        return len(self.happened)


class Batches:
    """Events with their ids, from which batches are cut."""

    def __init__(self, clicks: Clicks, events: Events, settings: Settings) -> None:
        """Computes the ids of these events, which are among the clicks; settings: buckets and batch are used."""
        self._fields = len(clicks.fields)
        self._batch = settings.batch
        self._ids = torch.from_numpy(ids_of(clicks, events, settings.buckets))
        self._happened = torch.from_numpy(events.happened)

    def __len__(self) -> int:
        """The number of events."""
        return len(self._happened)

    @property
    def per_pass(self) -> int:
        """The number of batches that have all events once."""
        return -(-len(self) // self._batch)

    def shuffled(self, epochs: int, rng: np.random.Generator) -> Iterator[Batch]:
        """All epochs: in each every event exactly once, in a random order."""
        for _ in range(epochs):
            yield from self._cut(torch.from_numpy(rng.permutation(len(self))))

    def in_order(self) -> Iterator[Batch]:
        """Every event once."""
        return self._cut(torch.arange(len(self)))

    def _cut(self, order: torch.Tensor) -> Iterator[Batch]:
        for some in order.split(self._batch):
            ids = self._ids[some]
            yield Batch(ids, ids[:, : self._fields], self._happened[some])


def ids_of(clicks: Clicks, events: Events, buckets: int) -> Ints:
    """The ids of each event's categories, then of its crosses: int64 [n, fields + crosses], each below `buckets`."""
    columns = events.categories.astype(np.uint64).T
    hashes = {name: _mixed(columns[salt], salt) for salt, name in enumerate(clicks.fields)}
    for salt, cross in enumerate(clicks.crosses, start=len(clicks.fields)):
        combined = np.zeros(len(events), np.uint64)
        for name in cross:
            combined = _mixed(combined ^ hashes[name], salt)
        hashes["*".join(cross)] = combined
    return np.stack([(each % np.uint64(buckets)).astype(np.int64) for each in hashes.values()], axis=1)


def _mixed(values: Hashes, salt: int) -> Hashes:
    """Hashes of values: each bit depends on all of the value's and the salt's (the finalizer of splitmix64)."""
    mixed = values + np.uint64((salt + 1) * 0x9E3779B97F4A7C15 % 2**64)  # arrays wrap around, as hashes should
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


# ---- the model


class WideAndDeep(nn.Module):
    """Both parts, over given modules that look up rows."""

    def __init__(self, wide: nn.Module, deep: nn.Module, layers: nn.Module) -> None:
        """Puts them together.

        Args:
            wide: gives sums [n, 1] of rows for ids [n, fields + crosses].
            deep: gives vectors [n, fields, dim] for ids [n, fields].
            layers: as of `layers`.
        """
        super().__init__()
        self.wide = wide
        self.deep = deep
        self.layers = layers

    def forward(self, batch: Batch) -> torch.Tensor:
        """The logarithms of the odds of each event, [n]."""
        odds: torch.Tensor = self.wide(batch.wide) + self.layers(self.deep(batch.deep).flatten(start_dim=1))
        return odds.squeeze(1)


def layers(fields: int, settings: Settings) -> nn.Module:
    """What is above the vectors of an event's categories: [n, fields * dim] becomes [n, 1]."""
    half = settings.hidden // 2
    return nn.Sequential(
        nn.Linear(fields * settings.dim, settings.hidden),
        nn.ReLU(),
        nn.Linear(settings.hidden, half),
        nn.ReLU(),
        nn.Linear(half, 1),
    )


# ---- quality


def area_under_curve(odds: Floats, happened: Floats) -> float:
    """The share of pairs, of an event that happened and one that did not, in which the former has the higher odds.

    Pairs with the same odds count half. NaN if there are no such pairs.
    """
    _, first, counts = np.unique(np.sort(odds), return_index=True, return_counts=True)
    mean_rank = first + (counts + 1) / 2
    ranks = np.repeat(mean_rank, counts)[np.argsort(np.argsort(odds, kind="stable"), kind="stable")]
    positive = int(happened.sum())
    pairs = positive * (len(odds) - positive)
    return float((ranks[happened > 0].sum() - positive * (positive + 1) / 2) / pairs) if pairs else float("nan")


def log_loss(odds: Floats, happened: Floats) -> float:
    """The mean of minus the logarithm of the probability that was given to what came."""
    sign = np.where(happened > 0, -1.0, 1.0)
    return float(np.logaddexp(0.0, sign * odds).mean())
