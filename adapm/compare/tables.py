"""The table of a comparison, for terminals, for Markdown, as CSV and as a tree for JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import shlex
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from adapm.bench.report import grid, number
from adapm.compare.records import as_tree
from adapm.compare.results import TIMES, Comparison, Row, Spread
from adapm.compare.variants import Variant, value, varying
from adapm.errors import UsageError

_MB: Final = 1e6
_MIB: Final = 1 << 20
_PERCENT: Final = 1e-2
_GAP: Final = 2  # characters between columns
_FEW: Final = 4  # decimals of a quality

NAMES: Final = tuple(field.name for field in dataclasses.fields(Variant))


@dataclass(frozen=True)
class Column:
    """A figure of the table.

    Attributes:
        title: with its unit.
        of: its value for a row.
        show: how a number is written.
        ranged: whether its range is shown where there is little room.
    """

    title: str
    of: Callable[[Row], Spread | None]
    show: Callable[[float], str] = number
    ranged: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """What every table shows, but for the variants' names; those without any value are left out."""
    found = [
        Column(f"{TIMES[comparison.time]}, s", partial(Row.spread, name=comparison.time), ranged=True),
        Column("x best", comparison.ratio, lambda ratio: f"{ratio:.2f}", ranged=True),
        *(Column(measure.name, partial(Row.reached, measure=measure), _quality) for measure in comparison.measures),
        _figure("local, %", "local_share", _PERCENT, lambda percent: f"{math.floor(percent * 100) / 100:g}"),
        _figure("MB", "bytes", _MB),
        _figure("relocations", "relocations"),
        _figure("replicas", "replicas"),
        _figure("updates wait, ms", "wait_ms"),
        _figure("CPU, s", "cpu_s"),
        _figure("CPU of nodes, s", "node_cpu_s"),
        _figure("memory of a node, MiB", "memory", _MIB),
    ]
    return [column for column in found if any(column.of(row) for row in comparison.good)]


def _figure(title: str, name: str, unit: float = 1, show: Callable[[float], str] = number) -> Column:
    def of(row: Row) -> Spread | None:
        spread = row.spread(name)
        return spread and Spread(spread.median / unit, spread.low / unit, spread.high / unit)

    return Column(title, of, show)


def _quality(reached: float) -> str:
    return f"{reached:.{_FEW}g}"


def command(comparison: Comparison) -> str:
    """What makes the runs, as one would type it; the seeds are the most that a variant had."""
    header, variants = comparison.header, [row.variant for row in comparison.rows]
    named = {name: ",".join(_values(variants, name)) for name in NAMES}
    chosen = [f"--{name} {shlex.quote(text)}" for name, text in named.items() if text]
    seeds = max((len(row.runs) + len(row.errors) for row in comparison.rows), default=0)
    script = [f"-- {shlex.join(header.args)}"] if header.args else []
    return " ".join(["adapm compare", shlex.quote(header.script), *chosen, f"--seeds {seeds}", *script])


def _values(variants: list[Variant], name: str) -> list[str]:
    return [text for text in dict.fromkeys(str(value(variant, name)) for variant in variants) if text != "-"]


def notes(comparison: Comparison) -> list[str]:
    """What is to be known beside the table: verdicts, and what failed."""
    return [*(verdict.text for verdict in comparison.verdicts), *failures(comparison)]


def failures(comparison: Comparison) -> list[str]:
    """Which runs failed, and why; those that failed alike together."""
    found = []
    for row in comparison.rows:
        for error in dict.fromkeys(row.errors.values()):
            seeds = ", ".join(str(seed) for seed, other in row.errors.items() if other == error)
            found.append(f"failed: {row.variant.name}, seed {seeds}: {error}")
    return found


def runs_of(comparison: Comparison) -> str:
    """Of how many runs the figures are medians, in words."""
    counts = sorted({len(row.runs) for row in comparison.good})
    if counts in ([], [1]):
        return "of one run each" if counts else "of no run"
    number_of = f"{counts[0]} to {counts[-1]}" if counts[1:] else str(counts[0])
    return f"median (smallest..largest) of {number_of} runs"


# ---- for people


def terminal(comparison: Comparison, width: int) -> list[Table]:
    """A figure, and below it its range; in as many tables as it takes to fit into so many characters."""
    names = varying([row.variant for row in comparison.rows])
    heads = [[str(value(row.variant, name)) for name in names] for row in comparison.rows]
    taken = sum(max(map(len, texts)) + _GAP for texts in zip(names, *heads, strict=True))
    found = []
    for part in _fitting(comparison, width - taken):
        table = grid(*names, *(title for title, _ in part))
        for place, head in enumerate(heads):
            table.add_row(*head, *(cells[place] for _, cells in part))
        found.append(table)
    return found


def _fitting(comparison: Comparison, width: int) -> Iterator[list[tuple[str, list[Text]]]]:
    """Titles and cells of the columns, in parts that are no wider than this, if they have more than one."""
    part: list[tuple[str, list[Text]]] = []
    left = width
    for place, column in enumerate(columns(comparison)):
        cells = [_two_lines(column, row) if row.runs else _failed(place) for row in comparison.rows]
        lines = [*column.title.split(), *(line for cell in cells for line in cell.plain.split("\n"))]
        wide = max(map(len, lines))
        needed = wide + _GAP
        if part and needed > left:
            yield part
            part, left = [], width
        part.append(("\n".join(textwrap.wrap(column.title, wide)), cells))
        left -= needed
    if part:
        yield part


def _failed(place: int) -> Text:
    return Text("" if place else "failed", style="bold red")


def _two_lines(column: Column, row: Row) -> Text:
    spread = column.of(row)
    if spread is None:
        return Text("-")
    ends = [column.show(end) for end in (spread.low, spread.high)]
    return Text.assemble(column.show(spread.median), ("" if ends[0] == ends[1] else f"\n{'..'.join(ends)}", "dim"))


def _one_line(column: Column, row: Row) -> str:
    """A figure, and behind it its range, if that matters most."""
    spread = column.of(row)
    if spread is None:
        return "-"
    median, low, high = (column.show(part) for part in (spread.median, spread.low, spread.high))
    return f"{median} ({low}..{high})" if column.ranged and low != high else median


def markdown(comparison: Comparison) -> str:
    """The table, where it comes from, and the notes."""
    shown = columns(comparison)
    names = varying([row.variant for row in comparison.rows])
    titles = [*names, *(column.title for column in shown)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(names) + "|---:" * len(shown) + "|"]
    for row in comparison.rows:
        cells = [_one_line(column, row) for column in shown] if row.runs else ["failed", *[""] * (len(shown) - 1)]
        lines.append(f"| {' | '.join([*(_escaped(str(value(row.variant, name))) for name in names), *cells])} |")
    lines += ["", f"`{command(comparison)}`: {provenance(comparison)}.", ""]
    lines += [f"- {_escaped(note)}" for note in notes(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def provenance(comparison: Comparison) -> str:
    """Of what the figures are medians, where and when they were taken."""
    header = comparison.header
    chosen = "".join(f", {name}={text}" for name, text in header.settings.items())
    return f"{runs_of(comparison)}, {header.machine}, adapm {header.version}, {header.began}{chosen}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


# ---- into a file of other text


def marks(name: str) -> tuple[str, str]:
    """The lines between which a file has a table."""
    return f"<!-- adapm compare: {name} -->", f"<!-- end of {name} -->"


def check_marks(file: Path, name: str) -> None:
    """Nothing, if a file has a place for the table.

    Raises:
        UsageError: it has not, or is not there.
    """
    _parts(file, name)


def insert(file: Path, name: str, text: str) -> None:
    """Puts the table into its place in a file.

    Raises:
        UsageError: as `check_marks`.
    """
    before, after = _parts(file, name)
    begin, end = marks(name)
    file.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def _parts(file: Path, name: str) -> tuple[str, str]:
    if not file.is_file():
        raise UsageError(f"there is no file {str(file)!r} to put the table into")
    text = file.read_text(encoding="utf-8")
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(f"{file} has no place for the table: write {begin!r} and below it {end!r} where it is to be")
    return before, after


# ---- for programs


def as_csv(comparison: Comparison) -> str:
    """A line for each variant: median, smallest and largest of every figure, and how many runs there were."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = _all_figures(comparison)
    ends = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
    writer.writerow([*NAMES, "runs", "failed", *ends, "error"])
    for row in comparison.rows:
        cells = [cell for of in figures.values() for cell in _three(of(row))]
        counts = [len(row.runs), len(row.errors)]
        writer.writerow(
            [*dataclasses.astuple(row.variant), *counts, *cells, "; ".join(dict.fromkeys(row.errors.values()))]
        )
    return out.getvalue()


def _all_figures(comparison: Comparison) -> dict[str, Callable[[Row], Spread | None]]:
    named: dict[str, Callable[[Row], Spread | None]] = {}
    for name in dict.fromkeys(name for row in comparison.good for run in row.runs.values() for name in run.figures):
        named[name] = partial(Row.spread, name=name)
    for measure in comparison.measures:
        named[measure.name] = partial(Row.reached, measure=measure)
    return {**named, "ratio_to_best": comparison.ratio}


def _three(spread: Spread | None) -> tuple[float | str, ...]:
    return ("", "", "") if spread is None else dataclasses.astuple(spread)


def tree(comparison: Comparison) -> dict[str, Any]:
    """Everything, for JSON."""
    figures = _all_figures(comparison)
    return {
        **dataclasses.asdict(comparison.header),
        "command": command(comparison),
        "time": comparison.time,
        "rows": [
            {
                **dataclasses.asdict(row.variant),
                "figures": {name: dataclasses.asdict(spread) for name, of in figures.items() if (spread := of(row))},
                "errors": row.errors,
            }
            for row in comparison.rows
        ],
        "verdicts": [
            {"holds": verdict.holds, "text": verdict.text, **dataclasses.asdict(verdict)}
            for verdict in comparison.verdicts
        ],
        "runs": [as_tree(run) for row in comparison.rows for run in row.runs.values()],
    }
