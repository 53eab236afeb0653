"""Repetitions: variants take turns, every figure keeps all its samples, and an interruption keeps what is there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import adapm
from adapm.bench import machine
from adapm.config import Config
from adapm.errors import ConfigError, UnknownTransport, UsageError
from adapm.segment import require_memory, row_bytes
from adapm.tables import Table
from adapm.transport import known

NOISE: Final = 0.3  # (max - min) / median of a figure's samples from which on we say so
_OURS: Final = ("nodes", "node", "workers", "rendezvous", "bind", "transport", "technique")  # settings we choose

Measure = Callable[[], Mapping[str, float]]
"""Takes one sample of each of a variant's figures."""


class Progress(Protocol):
    """Where a benchmark says how far it is."""

    def step(self, what: str) -> None:
        """Something begins."""


@dataclass
class Figure:
    """The samples of one figure, one per repetition."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The figure that is reported."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The smallest sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest sample."""
        return max(self.samples)


Figures = dict[str, Figure]
"""By name."""


@dataclass
class Outcome:
    """What came of a benchmark.

    Attributes:
        variants: the figures of each, perhaps none if it was interrupted; without variants there is one, named "".
        interrupted: it was ended before all repetitions.
        warnings: why the figures are doubtful.
    """

    variants: dict[str, Figures] = field(default_factory=dict)
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def repetitions(self) -> int:
        """How many are complete."""
        return min((self._taken(figures) for figures in self.variants.values()), default=0)

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all to show."""
        return not any(map(self._taken, self.variants.values()))

    def ratio(self, name: str, of: str, to: str) -> Figure:
        """A figure of one variant over the same figure of another, in the same repetition."""
        pair = [self.variants[variant].get(name, Figure()).samples for variant in (of, to)]
        return Figure([over(a, b) for a, b in zip(*pair, strict=False)])

    @staticmethod
    def _taken(figures: Figures) -> int:
        return min((len(figure.samples) for figure in figures.values()), default=0)


def over(a: float, b: float) -> float:
    """a / b, not a number where b is 0."""
    return a / b if b else float("nan")


def collect(variants: Mapping[str, Measure], repeat: int, progress: Progress, timing: tuple[str, ...]) -> Outcome:
    """Runs all variants in turn, `repeat` times, or until Ctrl-C.

    Args:
        variants: how to take one sample of each.
        repeat: how many samples.
        progress: is told of each.
        timing: figures whose spread tells how noisy the machine is.

    Raises:
        UsageError: there is nothing to repeat.
    """
    check_positive(repeat=repeat)
    outcome = Outcome({name: {} for name in variants}, warnings=machine.load_warnings())
    steal = machine.Steal()
    try:
        for i in range(repeat):
            for name, measure in variants.items():
                progress.step(f"repetition {i + 1} of {repeat}" + (f": {name}" if name else ""))
                _add(outcome.variants[name], measure())
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.warnings += steal.warnings() + _spread_warnings(outcome, timing)
    return outcome


def check_positive(**values: float) -> None:
    """Nothing, if all values are above 0.

    Raises:
        UsageError: one is not; it is named.
    """
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}")


def check_fits(table: Table, copies: float, extra: int = 0) -> None:
    """Nothing, if so many copies of a table fit into this machine's free memory.

    Args:
        table: its rows count.
        copies: how often all nodes and baselines keep it, together.
        extra: bytes beside that.

    Raises:
        OutOfMemory: they do not; with both figures.
    """
    require_memory(int(copies * table.rows * row_bytes(table)) + extra, [table])


def settings(**ours: object) -> Config:
    """The settings of a benchmark's runs: ours, and of the environment and adapm.toml what does not contradict them.

    Raises:
        ConfigError: something from outside would change what is measured.
        UnknownTransport: there is none of that name.
    """
    loaded = Config.load()
    for name in _OURS:
        if loaded.origin(name) != "default":
            raise ConfigError(
                f"{name} is set (from: {loaded.origin(name)}), but a benchmark chooses it itself:"
                " unset it, and use the options of adapm bench"
            )
    _check_transport(str(ours.get("transport", loaded.transport)))
    return Config.load(overrides=ours)


def run(work: Callable[..., dict[str, float]], table: Table, config: Config, *args: object) -> list[dict[str, float]]:
    """Runs `work(worker, *args)` as every worker, with one table; returns what they return, by id."""
    return adapm.run(work, [table], args=args, config=config)


def _check_transport(name: str) -> None:
    """A wrong name is said once, here, before every node says it."""
    if name.partition("://")[0].partition("+")[0] not in known():
        raise UnknownTransport(f"no transport {name!r} is installed; there are {', '.join(known())}")


def _add(figures: Figures, sample: Mapping[str, float]) -> None:
    for name, value in sample.items():
        figures.setdefault(name, Figure()).samples.append(float(value))


def _spread_warnings(outcome: Outcome, timing: tuple[str, ...]) -> list[str]:
    found = []
    for variant, figures in outcome.variants.items():
        for name in timing:
            figure = figures.get(name)
            if figure is not None and figure.high - figure.low > NOISE * figure.median:
                spread = (figure.high - figure.low) / figure.median
                found.append(f"{f'{variant}: ' if variant else ''}{name} varied by {spread:.0%} between repetitions")
    return found
