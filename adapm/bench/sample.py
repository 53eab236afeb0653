"""`adapm bench sample`: samples of every technique, against keys that the task draws itself with numpy.

Each worker prepares a sample `ahead` clocks in advance, and pulls one at each clock; it computes nothing in between.

    naive, preloc, pool, local      the manager draws
    numpy                           the task draws, signals intent, and pulls
    draws                           no rows at all: what drawing a key costs, by distribution, against numpy

The distance of a technique is that of all workers' keys from the distribution that was asked for: half the sum of the
differences of frequencies (total variation).  The dispersion is chi-square per degree of freedom of one worker's keys:
1 for independent draws, more for draws that repeat each other or are biased.  Both need many keys per row, so they are
only told of tables with few rows; those of `numpy`, which draws independently, are what chance makes of them.
"""

from __future__ import annotations

import abc
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import adapm
from adapm import BlockingWorker, Sampling, Table
from adapm.arguments import Rows, Target
from adapm.bench import machine
from adapm.bench.harness import Measure, check_fits, check_positive, over, settings
from adapm.bench.keys import Keys
from adapm.sampler import Sample, Sampler
from adapm.sampling import TECHNIQUES, Distribution
from adapm.segment import Segment

TIMING: Final = ("keys_per_s_per_worker", "weighted_ns")
NUMPY: Final = "numpy"
DRAWS: Final = "draws"
DISTRIBUTIONS: Final = tuple(distribution.label for distribution in Distribution)
_TABLE: Final = "rows"
_FEW: Final = 10_000  # rows of a table, at most, of which frequencies are looked at,
_PER_ROW: Final = 1000  # among so many times as many keys
_TURN: Final = 64  # batches drawn between two looks at the clock

Floats = npt.NDArray[np.float64]
Draw = Callable[[int], Keys]


@dataclass(frozen=True)
class Samples:
    """What is measured.

    Attributes:
        nodes: with one worker each.
        rows, dim: of the table.
        batch: keys of a sample.
        keys: one of DISTRIBUTIONS; the weight of row k is 1 / (k + 1).
        ahead: clocks between prepare and pull.
        transport: between the nodes.
        seconds: of one measurement; warm_up: before it.
        cores: for the machines that we play.
        technique: one of TECHNIQUES, or NUMPY.
    """

    nodes: int
    rows: int
    dim: int
    batch: int
    keys: str
    ahead: int
    transport: str
    seconds: float
    warm_up: float
    cores: tuple[int, ...]
    technique: str = NUMPY

    @property
    def table(self) -> Table:
        """The table that is sampled."""
        technique = "naive" if self.technique == NUMPY else self.technique
        return Table(_TABLE, rows=self.rows, dim=self.dim, sampling=sampling(self.keys, self.rows, technique))


def sampling(keys: str, rows: int, technique: str = "naive") -> Sampling:
    """Samples by one of DISTRIBUTIONS."""
    return Sampling(keys, weights=weights(rows) if keys == Distribution.WEIGHTED.label else None, technique=technique)


def weights(rows: int) -> Floats:
    """Those of Zipf's law."""
    shares: Floats = 1.0 / np.arange(1, rows + 1)
    return shares


def variants(samples: Samples) -> dict[str, Measure]:
    """One measurement of each variant per call."""
    check_positive(nodes=samples.nodes, rows=samples.rows, dim=samples.dim, batch=samples.batch)
    check_positive(ahead=samples.ahead, seconds=samples.seconds)
    check_fits(Table(_TABLE, rows=samples.rows, dim=samples.dim), copies=1)
    measures = {name: _measure(replace(samples, technique=name)) for name in (*TECHNIQUES, NUMPY)}
    return {**measures, DRAWS: _Draws(samples).measure}


# ---- whole runs


def _measure(samples: Samples) -> Measure:
    config = settings(nodes=samples.nodes, workers="1", transport=samples.transport)
    return lambda: _summary(adapm.run(work, [samples.table], args=(samples,), config=config), samples)


def _summary(counted: list[dict[str, Any]], samples: Samples) -> dict[str, float]:
    keys = sum(count["keys"] for count in counted)
    figures = {
        "keys_per_s_per_worker": statistics.fmean(count["keys"] / count["seconds"] for count in counted),
        "local_fraction": sum(count["local"] for count in counted) / keys,
        "bytes_per_key": sum(count["bytes_out"] for count in counted) / keys,
        "cpu_us_per_key": 1e6 * sum(count["cpu"] for count in counted) / keys,
    }
    if counted[0]["frequencies"] is not None:
        wanted = probabilities(samples.keys, samples.rows)
        frequencies = [count["frequencies"] for count in counted]
        figures["distance"] = distance(np.sum(frequencies, axis=0), wanted)
        figures["distance_of_one_worker"] = statistics.fmean(distance(each, wanted) for each in frequencies)
        figures["dispersion"] = statistics.fmean(dispersion(each, wanted) for each in frequencies)
    return figures


def probabilities(keys: str, rows: int) -> Floats:
    """Of each row, by one of DISTRIBUTIONS."""
    if keys == Distribution.UNIFORM.label:
        return np.full(rows, 1 / rows)
    shares: Floats = weights(rows) if keys == Distribution.WEIGHTED.label else np.log1p(weights(rows))
    shares /= shares.sum()
    return shares


def distance(frequencies: Keys, wanted: Floats) -> float:
    """Total variation between what came how often and the probabilities."""
    return float(np.abs(frequencies / frequencies.sum() - wanted).sum() / 2)


def dispersion(frequencies: Keys, wanted: Floats) -> float:
    """Chi-square per degree of freedom."""
    expected = frequencies.sum() * wanted
    return float(((frequencies - expected) ** 2 / expected).sum()) / max(1, len(wanted) - 1)


def work(worker: BlockingWorker, samples: Samples) -> dict[str, Any]:
    """What each worker does."""
    node = machine.nodes_beside(os.getpid())[worker.node]
    for pid in (os.getpid(), node):
        machine.pin(pid, machine.share_of(worker.node, max(samples.nodes, 2), list(samples.cores)))
    loop = (_OfNumpy if samples.technique == NUMPY else _OfManager)(worker, samples)
    worker.barrier()
    loop.run_for(samples.warm_up)
    before, begin = _counters(worker, node), time.perf_counter()
    keys = loop.run_for(samples.seconds)
    seconds = time.perf_counter() - begin
    figures = {name: now - before[name] for name, now in _counters(worker, node).items()}
    worker.barrier()
    frequencies = loop.frequencies() if samples.rows <= _FEW else None
    worker.barrier()
    return {**figures, "keys": keys, "seconds": seconds, "frequencies": frequencies}


def _counters(worker: BlockingWorker, node: int) -> dict[str, float]:
    counted = worker.statistics()
    cpu = sum(machine.cpu_seconds(pid) for pid in (os.getpid(), node))
    return {"local": counted.pull_local, "bytes_out": counted.node.bytes_out, "cpu": cpu}


class _Loop(abc.ABC):
    """Samples are prepared at one clock, and pulled some clocks later."""

    def __init__(self, worker: BlockingWorker, samples: Samples) -> None:
        self.worker = worker
        self.samples = samples
        self.out: Rows = np.empty((samples.batch, samples.dim), np.float32)
        for clock in range(samples.ahead):
            self.prepare(clock)

    @abc.abstractmethod
    def prepare(self, clock: int) -> None:
        """One sample for this clock."""

    @abc.abstractmethod
    def pull(self) -> Keys:
        """The oldest sample that has been prepared; its keys."""

    def run_for(self, seconds: float) -> int:
        """Goes on for that long; returns the number of keys that were pulled."""
        begin, end = self.worker.clock, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._step()
        return (self.worker.clock - begin) * self.samples.batch

    def frequencies(self) -> Keys:
        """How often each row comes among the next keys."""
        keys = [self._step() for _ in range(-(-self.samples.rows * _PER_ROW // self.samples.batch))]
        return np.bincount(np.concatenate(keys), minlength=self.samples.rows)

    def _step(self) -> Keys:
        self.prepare(self.worker.clock + self.samples.ahead)
        keys = self.pull()
        self.worker.advance_clock()
        return keys


class _OfManager(_Loop):
    """The manager draws."""

    def __init__(self, worker: BlockingWorker, samples: Samples) -> None:
        self._prepared: deque[Sample] = deque()
        super().__init__(worker, samples)

    def prepare(self, clock: int) -> None:
        self._prepared.append(self.worker.prepare_sample(_TABLE, self.samples.batch, clock))

    def pull(self) -> Keys:
        return self.worker.pull_sample(self._prepared.popleft(), out=self.out)[0]


class _OfNumpy(_Loop):
    """The task draws, and signals intent where there is somebody whom it concerns."""

    def __init__(self, worker: BlockingWorker, samples: Samples) -> None:
        self._drawn: deque[Keys] = deque()
        self._draw = numpy_draw(samples.keys, samples.rows, worker.rng)
        super().__init__(worker, samples)

    def prepare(self, clock: int) -> None:
        keys = self._draw(self.samples.batch)
        if self.samples.nodes > 1:
            self.worker.intent(_TABLE, keys, clock)
        self._drawn.append(keys)

    def pull(self) -> Keys:
        keys = self._drawn.popleft()
        self.worker.pull(_TABLE, keys, out=self.out)
        return keys


# ---- drawing alone


class _Draws:
    """Nanoseconds per key, by distribution: of a worker's samples, without a worker; and of numpy."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def measure(self) -> dict[str, float]:
        """One sample of all figures."""
        figures: dict[str, float] = {}
        for keys in DISTRIBUTIONS:
            name = keys.replace("-", "_")
            ours, numpy = self._pair(keys)
            figures |= {f"{name}_ns": ours, f"{name}_numpy_ns": numpy, f"{name}_over_numpy": over(ours, numpy)}
        return figures

    def _pair(self, keys: str) -> tuple[float, float]:
        table = Table(_TABLE, rows=self._samples.rows, dim=1, sampling=sampling(keys, self._samples.rows))
        with Segment.create([table], capacity=[1]) as segment:
            segment.weigh(0, table)
            sampler = Sampler(segment.pointer, Target(0, table), 0, 0, 0)
            draws = sampler.prepare, numpy_draw(keys, self._samples.rows, np.random.default_rng(0))
            turns = [[self._turn(draw) for draw in draws] for _ in range(self._turns(draws))]
        ours, numpy = (statistics.median(times) for times in zip(*turns, strict=True))
        return ours, numpy

    def _turns(self, draws: tuple[Callable[[int], object], ...]) -> int:
        """How many turns each take as long as was asked for."""
        once = sum(self._turn(draw) for draw in draws) * 1e-9 * _TURN * self._samples.batch
        return max(1, int(self._samples.seconds / len(DISTRIBUTIONS) / once))

    def _turn(self, draw: Callable[[int], object]) -> float:
        batch, begin = self._samples.batch, time.perf_counter()
        for _ in range(_TURN):
            draw(batch)
        return 1e9 * (time.perf_counter() - begin) / (_TURN * batch)


def numpy_draw(keys: str, rows: int, rng: np.random.Generator) -> Draw:
    """Draws so many keys by one of DISTRIBUTIONS, as well as numpy can."""
    if keys == Distribution.UNIFORM.label:
        return lambda n: rng.integers(rows, size=n)
    if keys == Distribution.LOG_UNIFORM.label:
        return lambda n: np.minimum((rows + 1.0) ** rng.random(n) - 1, rows - 1).astype(np.int64)
    own, other = alias_table(weights(rows))

    def draw(n: int) -> Keys:
        cells = rng.integers(rows, size=n)
        return np.where(rng.random(n) < own[cells], cells, other[cells])

    return draw


def alias_table(given: Floats) -> tuple[Floats, Keys]:
    """Of each row's cell, the share that is its own, and whose the rest is.

    Light cells are filled up from heavy ones, both in order: cumulated, what the first light cells lack is what the
    first heavy ones give.  A heavy one that has given too much is filled up from the next.
    """
    own, other = given / given.mean(), np.arange(len(given))
    light, heavy = np.flatnonzero(own <= 1), np.flatnonzero(own > 1)
    if not len(heavy):
        return own, other
    lacking, spare = np.cumsum(1 - own[light]), np.cumsum(own[heavy] - 1)
    before = np.append(0.0, lacking)[:-1]
    other[light] = heavy[np.minimum(np.searchsorted(spare, before, side="right"), len(heavy) - 1)]
    given_away = np.append(0.0, lacking)[np.searchsorted(before, spare)]
    own[heavy] = np.minimum(1.0, 1 - (given_away - spare))
    other[heavy[:-1]] = heavy[1:]
    return own, other
