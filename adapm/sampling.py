"""How samples of a table's rows are drawn: by which distribution, and with which technique.

    Table("words", rows=len(counts), dim=64, sampling=Sampling(weights=counts**0.75, technique="pool"))

A table that says nothing samples uniformly, with the technique "preloc".  docs/sampling.md says what each technique
costs and how far it is from independent draws; the techniques are those of NuPS (Renz-Wieland et al., SIGMOD 2022).
"""

from __future__ import annotations

import enum
import hashlib
import operator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adapm.errors import TableError, nearest

TECHNIQUES: Final = {
    "naive": "independent draws; rows that are elsewhere are fetched when they are pulled",
    "preloc": "independent draws; the sample signals its own intent, so that rows come before they are pulled",
    "pool": "as preloc, but keys are drawn once and used several times, in a new order each time",
    "local": "drawn when pulled, among the rows that are at the node then",
}
POOL: Final = 8192  # keys, unless the user says otherwise
USES: Final = 16
_MOST: Final = 2**31 - 1
_FLOAT64 = np.dtype(np.float64)


class Distribution(enum.IntEnum):
    """By what keys are drawn; the numbers are the kernel's."""

    UNIFORM = 0
    LOG_UNIFORM = 1
    WEIGHTED = 2

    @property
    def label(self) -> str:
        """What users call it."""
        return self.name.lower().replace("_", "-")


_BY_LABEL: Final = {distribution.label: distribution for distribution in Distribution}


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Sampling:
    """How `Worker.prepare_sample` draws keys of a table.

    Args:
        distribution: "uniform"; "log-uniform", where key k has probability log((k + 2) / (k + 1)) / log(rows + 1), for
            rows numbered from frequent to rare; or "weighted", which weights imply.
        weights: float64 [rows] or what converts, not negative, finite, at least one positive; they need not add up to
            1.  Each is rounded to a multiple of 2**-32 of their mean, but never to 0 unless it is 0.  Costs 8 bytes
            of shared memory per row and node.
        technique: "naive", "preloc", "pool" or "local", see TECHNIQUES.
        replacement: False: the keys of one sample differ from each other.  They are those that draws with replacement
            give when repetitions are thrown away.
        pool: keys in the pool of "pool".
        uses: how often each pool is used.

    Attributes:
        positive: how many weights are above 0; None without weights.
        weights: read-only; None also where only the schema is known.

    Raises:
        TableError: there is no such distribution or technique, or weights or a number make no sense.
    """

    distribution: Distribution
    weights: npt.NDArray[np.float64] | None
    positive: int | None
    technique: str
    replacement: bool
    pool: int
    uses: int

    def __init__(
        self,
        distribution: str | None = None,
        *,
        weights: npt.ArrayLike | None = None,
        technique: str = "preloc",
        replacement: bool = True,
        pool: int = POOL,
        uses: int = USES,
    ) -> None:
        if technique not in TECHNIQUES:
            raise TableError(f"there is no sampling technique {technique!r}{nearest(technique, TECHNIQUES)}")
        put = object.__setattr__  # this is how a frozen value is filled
        put(self, "distribution", _distribution(distribution, weights is not None))
        put(self, "weights", None if weights is None else _weights(weights))
        put(self, "positive", None if self.weights is None else int(np.count_nonzero(self.weights)))
        put(self, "technique", technique)
        put(self, "replacement", bool(replacement))
        put(self, "pool", count("pool", pool, _MOST))
        put(self, "uses", count("uses", uses, _MOST))

    def support(self, rows: int) -> int:
        """How many of a table's rows can be drawn at all."""
        return rows if self.positive is None else self.positive

    def check_rows(self, table: str, rows: int) -> None:
        """Nothing, if it fits a table with so many rows.

        Raises:
            TableError: there are fewer or more weights.
        """
        if self.weights is not None and len(self.weights) != rows:
            raise TableError(
                f"table {table!r} has {rows:,} rows, but its sampling has {len(self.weights):,} weights:"
                " give one for each row"
            )

    def describe(self) -> list[Any]:
        """Its identity as a msgpack-able list; weights are named by their number and sha256."""
        digest = None if self.weights is None else hashlib.sha256(self.weights.data).hexdigest()
        return [*self._settings(), digest]

    def pack(self, *, arrays: bool = True) -> list[Any]:
        """The value as a msgpack-able list for `unpack`; without arrays, the node that draws nothing cannot use it."""
        return [*self._settings(), None if self.weights is None or not arrays else self.weights.tobytes()]

    @classmethod
    def unpack(
        cls,
        distribution: int,
        technique: str,
        replacement: bool,
        pool: int,
        uses: int,
        positive: int | None,
        weights: bytes | None,
    ) -> Sampling:
        """The value that was packed."""
        made = cls(technique=technique, replacement=replacement, pool=pool, uses=uses)
        put = object.__setattr__
        put(made, "distribution", Distribution(distribution))
        put(made, "positive", positive)
        put(made, "weights", None if weights is None else np.frombuffer(weights, np.float64))
        return made

    def _settings(self) -> list[Any]:
        return [int(self.distribution), self.technique, self.replacement, self.pool, self.uses, self.positive]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sampling) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(tuple(self._settings()))

    def __repr__(self) -> str:
        return (
            f"Sampling({self.distribution.label!r}, technique={self.technique!r}, replacement={self.replacement},"
            f" pool={self.pool}, uses={self.uses})"
        )


def _distribution(name: str | None, weighted: bool) -> Distribution:
    found = _BY_LABEL.get(name or ("weighted" if weighted else "uniform"))
    if found is None:
        raise TableError(f"there is no distribution {name!r}{nearest(name, _BY_LABEL)}")
    if weighted != (found is Distribution.WEIGHTED):
        remedy = "give weights=..." if not weighted else 'leave the distribution out, or say "weighted"'
        raise TableError(f"Sampling({name!r}) with{'' if weighted else 'out'} weights makes no sense: {remedy}")
    return found


def _weights(given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    weights = per_row("weights", given)
    if not weights.any():
        raise TableError(f"all {len(weights):,} weights are 0: at least one row must be there to be drawn")
    return weights


def per_row(name: str, given: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A copy, that nobody changes any more, of one number for each row.

    Raises:
        TableError: these are not that, or one is negative or not finite; the message calls them by the name.
    """
    try:
        numbers = np.array(given, dtype=_FLOAT64, order="C")
    except (TypeError, ValueError) as error:
        raise TableError(f"{name} cannot be read as numbers: {error}") from error
    if numbers.ndim != 1:
        raise TableError(f"{name} must be one-dimensional, [rows], got shape {list(numbers.shape)}")
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if len(wrong):
        raise TableError(
            f"{name}[{wrong[0]}] is {numbers[wrong[0]]}, and {len(wrong):,} in all are like it:"
            f" {name} are finite and not negative"
        )
    numbers.flags.writeable = False
    return numbers


def count(name: str, value: object, most: int) -> int:
    """An integer from 1 to so many.

    Raises:
        TableError: it is something else.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # any object may come from a user
    except TypeError:
        number = 0
    if isinstance(value, (bool, np.bool_)) or not 1 <= number <= most:
        raise TableError(f"{name} must be an integer from 1 to {most:,}, got {value!r}")
    return number
