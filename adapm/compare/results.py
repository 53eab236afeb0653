"""Medians over seeds, ratios to the best, and whether the technique that is to be first is."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

from adapm.compare.records import Header
from adapm.compare.running import Run
from adapm.compare.variants import ANY, NONE, Variant

FIRST: Final = "adaptive"  # the technique that is to be first without being told anything
CLOSE: Final = 1.05  # times the best: as good as first
EQUAL: Final = 0.02  # relative difference of medians up to which two qualities count as the same
TIMES: Final = {
    "epoch_s": "epoch",
    "run_s": "run",
    "wall_s": "script",
}  # what is compared, the first that all runs have

Group: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float | None]) -> Spread | None:
        """None if there is no sample, or one is not finite."""
        found = list(samples)
        known = [sample for sample in found if sample is not None]
        return cls(statistics.median(known), min(known), max(known)) if known and len(known) == len(found) else None


@dataclass(frozen=True)
class Measure:
    """What the script calls quality.

    Attributes:
        name: as the script says.
        smaller: whether less of it is better.
    """

    name: str
    smaller: bool

    def samples(self, run: Run) -> list[float | None]:
        """Of a run: one at the end, or one for each epoch; empty if it has none."""
        return (run.loss if self.smaller else run.quality).get(self.name, [])

    def last(self, run: Run) -> float | None:
        """What a run reached in the end."""
        samples = self.samples(run)
        return samples[-1] if samples else None


@dataclass(frozen=True)
class Row:
    """What came of a variant.

    Attributes:
        variant: who.
        runs: those that did not fail, by seed.
        errors: why others did, by seed.
    """

    variant: Variant
    runs: dict[int, Run]
    errors: dict[int, str]

    def spread(self, name: str) -> Spread | None:
        """A figure over the seeds; None if a run does not have it."""
        return Spread.of(run.figures.get(name) for run in self.runs.values())

    def reached(self, measure: Measure) -> Spread | None:
        """The quality in the end."""
        return Spread.of(measure.last(run) for run in self.runs.values())


@dataclass(frozen=True)
class Verdict:
    """Whether the technique that is to be first is, with one transport, link and size.

    Attributes:
        variant: it.
        ratio: its time to that of the best other technique that reaches as much, in the same rounds.
        other: that technique.
        measure: by which quality was compared; None if none was reported.
        better: techniques that reach more.
        worse: those that reach less, and so do not count, with their time over its.
    """

    variant: Variant
    ratio: Spread
    other: str
    measure: str | None
    better: list[str]
    worse: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether it is first, or close to it, and nothing reaches more."""
        return self.ratio.median <= CLOSE and not self.better

    @property
    def text(self) -> str:
        """In words."""
        where = dataclasses.replace(self.variant, technique=ANY).name
        ratio, low, high = self.ratio.median, self.ratio.low, self.ratio.high
        close = f"within {CLOSE - 1:.0%} of the best" if ratio <= CLOSE else "behind"
        place = "first" if ratio <= 1 else close
        time = f"{ratio:.2f} ({low:.2f}..{high:.2f}) times {self.other}"
        return f"{where}: {self.variant.technique} is {place}: {time}; {self._quality()}"

    def _quality(self) -> str:
        if self.measure is None:
            return "no quality was reported"
        worse = [f"{name} (in {ratio:.2f} of its time)" for name, ratio in self.worse.items()]
        parts = [
            f"{how} {self.measure}: {', '.join(who)}" for how, who in (("better", self.better), ("worse", worse)) if who
        ]
        return "; ".join(parts) or f"equal {self.measure}"


class Comparison:
    """What the runs say together.

    Args:
        header: what was compared.
        runs: of all variants, in any order.
    """

    def __init__(self, header: Header, runs: Sequence[Run]) -> None:
        self.header = header
        self.rows = [_row(variant, runs) for variant in sorted({run.turn.variant for run in runs}, key=_place)]

    @cached_property
    def good(self) -> list[Row]:
        """Rows with a run that did not fail."""
        return [row for row in self.rows if row.runs]

    @cached_property
    def time(self) -> str:
        """The figure that says how fast: that of an epoch, if scripts say so."""
        known = [name for name in TIMES if self.good and all(row.spread(name) for row in self.good)]
        return known[0] if known else "wall_s"

    @cached_property
    def measures(self) -> list[Measure]:
        """What all runs say; what counts comes first: quality before loss, in the script's order."""
        runs = [run for row in self.good for run in row.runs.values()]
        named = [Measure(name, smaller=False) for run in runs[:1] for name in run.quality]
        named += [Measure(name, smaller=True) for run in runs[:1] for name in run.loss]
        return [measure for measure in named if all(measure.samples(run) for run in runs)]

    def ratio(self, row: Row) -> Spread | None:
        """Its time over that of the fastest of its group, in the same rounds; None of a row without runs or others."""
        group = self._group(row)
        return _ratio(row, self._fastest(group), self.time) if len(group) > 1 and row.runs else None

    def is_best(self, row: Row) -> bool:
        """Whether it is the fastest of several."""
        group = self._group(row)
        return len(group) > 1 and row is self._fastest(group)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One for each transport, link and size with that technique and others; on one node all do the same."""
        candidates = [
            self._verdict(row) for row in self.good if row.variant.technique == FIRST and row.variant.nodes > 1
        ]
        return [verdict for verdict in candidates if verdict is not None]

    def _verdict(self, row: Row) -> Verdict | None:
        others = [other for other in self.good if other is not row and _shape(other) == _shape(row)]
        less = [other for other in others if self._worse(other, row)]
        enough = [other for other in others if other not in less]
        best = self._fastest(enough) if enough else row
        ratio = _ratio(row, best, self.time)
        if best is row or ratio is None:
            return None
        times = {other.variant.technique: _ratio(other, row, self.time) for other in less}
        return Verdict(
            variant=row.variant,
            ratio=ratio,
            other=best.variant.technique,
            measure=self.measures[0].name if self.measures else None,
            better=[other.variant.technique for other in enough if self._worse(row, other)],
            worse={name: spread.median for name, spread in times.items() if spread is not None},
        )

    def _worse(self, row: Row, than: Row) -> bool:
        """Whether a row is of worse quality than another; where there is no quality, none is."""
        return any(worse(row.reached(measure), than.reached(measure), measure) for measure in self.measures[:1])

    def _fastest(self, rows: Sequence[Row]) -> Row:
        return min(rows, key=lambda row: _median(row.spread(self.time)))

    def _group(self, row: Row) -> list[Row]:
        """What it is fair to compare: techniques with the same transport; where there is one technique, transports."""
        several = len({row.variant.technique for row in self.good}) > 1
        first = 0 if several else 1
        return [other for other in self.good if _shape(other)[first:] == _shape(row)[first:]]


def worse(one: Spread | None, other: Spread | None, measure: Measure) -> bool:
    """Whether a quality is worse than another: by more than a small part, and at every seed; None is not finite."""
    if one is None or other is None:
        return one is None and other is not None
    if measure.smaller:
        return one.low > other.high and one.median - other.median > EQUAL * abs(other.median)
    return one.high < other.low and other.median - one.median > EQUAL * abs(other.median)


def _ratio(row: Row, to: Row, time: str) -> Spread | None:
    """Of the times of the same rounds; of medians, if no round has both."""
    both = [(row.runs[seed].figures[time], to.runs[seed].figures[time]) for seed in row.runs if seed in to.runs]
    if both:
        return Spread.of(a / b if a is not None and b else None for a, b in both)
    a, b = row.spread(time), to.spread(time)
    return Spread.of([a.median / b.median]) if a and b and b.median else None


def _row(variant: Variant, runs: Sequence[Run]) -> Row:
    own = sorted((run for run in runs if run.turn.variant == variant), key=lambda run: run.turn.seed)
    good = {run.turn.seed: run for run in own if run.error is None}
    return Row(variant, good, {run.turn.seed: run.error for run in own if run.error is not None})


def _shape(row: Row) -> Group:
    """Transport first."""
    variant = row.variant
    return (variant.transport, variant.link, variant.nodes, variant.workers)


def _median(spread: Spread | None) -> float:
    return float("inf") if spread is None else spread.median


def _place(variant: Variant) -> tuple[object, ...]:
    """Small before large, links as they are before slower ones; the technique that is to be first, first."""
    return (
        variant.nodes,
        variant.workers,
        variant.link not in (ANY, NONE),
        variant.link,
        variant.transport,
        variant.technique != FIRST,
        variant.technique,
    )
