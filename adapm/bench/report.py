"""What people and programs get to see: tables on standard output or JSON there, progress on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from adapm import __version__
from adapm.bench import machine
from adapm.bench.harness import Figure, Figures, Outcome

_DIGITS = 3  # that a figure is shown with


class ShownProgress:
    """A line that changes on a terminal, a line per step elsewhere; on standard error."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._status: Status | None = None

    def __enter__(self) -> ShownProgress:
        if self._console.is_terminal:
            self._status = self._console.status(self._title)
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, what: str) -> None:
        """Something begins."""
        if self._status is not None:
            self._status.update(f"{self._title}: {what}")
        else:
            print(f"{self._title}: {what}", file=sys.stderr, flush=True)


def as_json(outcome: Outcome, settings: Mapping[str, Any], ratios: Mapping[str, Figure]) -> str:
    """Medians under their names, and beside them everything that helps to judge them.

    Args:
        outcome: figures without variants come at the top, those of a variant under its name.
        settings: what was asked for.
        ratios: of figures of different variants.
    """
    tree: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for variant, figures in outcome.variants.items():
        medians, ranges = _medians(figures), _ranges(figures)
        tree |= {variant: medians} if variant else medians
        spread |= {variant: ranges} if variant else ranges
    tree |= {
        "ratios": _medians(ratios),
        "spread": {**spread, "ratios": _ranges(ratios)},
        "repetitions": outcome.repetitions,
        "interrupted": outcome.interrupted,
        "warnings": outcome.warnings,
        "settings": dict(settings),
        "cores": machine.cores(),
        "version": __version__,
    }
    return json.dumps(tree, indent=2, allow_nan=False)


def grid(*columns: str) -> Table:
    """An empty table whose first column has names."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
    return table


def cell(figure: Figure | None) -> Text:
    """A figure, and below it its range."""
    if figure is None or not figure.samples:
        return Text("-")
    return Text.assemble(number(figure.median), (f"\n{number(figure.low)}..{number(figure.high)}", "dim"))


def number(value: float) -> str:
    """As many digits as mean something."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 10 ** (_DIGITS - 1):
        return f"{value:,.0f}"
    return f"{value:.{_DIGITS - 1 - math.floor(math.log10(abs(value)))}f}"


def show(outcome: Outcome, table: Table | None, notes: list[str]) -> None:
    """Prints a table, what it means, and what makes it doubtful."""
    console = Console(highlight=False)
    if table is not None:
        console.print(table)
        console.print(f"\nmedian (smallest..largest) of {outcome.repetitions}", style="dim")
    for note in notes:
        console.print(note, style="dim")
    for warning in outcome.warnings:
        console.print(f"doubtful: {warning}", style="yellow")
    if outcome.interrupted:
        console.print("interrupted: these are partial results", style="bold yellow")


def _medians(figures: Mapping[str, Figure] | Figures) -> dict[str, float | None]:
    return {name: _finite(figure.median) for name, figure in figures.items() if figure.samples}


def _ranges(figures: Mapping[str, Figure] | Figures) -> dict[str, list[float | None]]:
    return {name: [_finite(figure.low), _finite(figure.high)] for name, figure in figures.items() if figure.samples}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
