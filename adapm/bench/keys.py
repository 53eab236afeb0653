"""Which rows a batch accesses."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

DISTRIBUTIONS: Final = ("uniform", "zipf")

Keys = npt.NDArray[np.int64]


def draw(distribution: str, rows: int, batch: int, n: int, rng: np.random.Generator, ids: Keys | None = None) -> Keys:
    """Batches of keys: int64 [n, batch].

    Args:
        distribution: "uniform": distinct in each batch, as long as there are enough rows.  "zipf": the r-th most
            frequent row with probability proportional to 1/r, drawn independently, so batches have duplicates;
            frequent rows are scattered over the ids, in the same way for everybody.
        rows: how many rows there are.
        batch: keys in a batch.
        n: batches.
        rng: where the keys come from.
        ids: if given, draw from these keys, instead of 0 to rows - 1.
    """
    keys = _zipf(rows, batch * n, rng).reshape(n, batch) if distribution == "zipf" else _uniform(rows, batch, n, rng)
    chosen: Keys = keys if ids is None else ids[keys]
    return chosen


def _uniform(rows: int, batch: int, n: int, rng: np.random.Generator) -> Keys:
    if batch > rows:
        return rng.integers(rows, size=(n, batch))
    batches = [rng.choice(rows, batch, replace=False, shuffle=False) for _ in range(n)]
    return np.stack(batches)


def _zipf(rows: int, n: int, rng: np.random.Generator) -> Keys:
    cumulated = np.cumsum(1.0 / np.arange(1, rows + 1))
    ranks = np.searchsorted(cumulated, rng.random(n) * cumulated[-1], side="right")
    keys: Keys = np.random.default_rng(0).permutation(rows)[np.minimum(ranks, rows - 1)]
    return keys
