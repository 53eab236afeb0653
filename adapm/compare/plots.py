"""Pictures of a comparison, as SVG for a page; they need matplotlib.

Text and axes have the page's colour, so that they can be read on light and on dark.
"""

from __future__ import annotations

import io
import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from adapm.compare.results import TIMES, Comparison, Measure, Row, Spread
from adapm.compare.running import Run
from adapm.compare.variants import ANY, Variant, value, varying
from adapm.errors import UsageError

_INK: Final = "#123456"  # stands for the page's colour, and is used for nothing else
_COLOURS: Final = (  # of Okabe and Ito, without black and yellow; can be told apart by all, on light and on dark
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
    "#8c8c8c",
    "#7570b3",
    "#a6761d",
    "#66a61e",
)
_KINDS: Final = {
    "grant_bytes": "rows that move",
    "state_bytes": "copies",
    "update_bytes": "updates of copies",
    "access_bytes": "remote access",
    "other_bytes": "the rest",
}
_STYLE: Final = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}
_LINES: Final = ("-", "--", ":", "-.")
_MARKERS: Final = ("o", "s", "^", "D", "v")
_BAR: Final = 0.26  # inches that a bar is high
_TALL: Final = 3.2  # and a picture with lines
_ACROSS: Final = 3  # of such pictures side by side, at most
_BESIDE: Final = 0.015  # nodes that lines are apart, so that their ranges can be told apart
_LEAST: Final = 0.1  # of its height that a quality's picture spans: what is nearly equal is to look nearly equal
_MB: Final = 1e6

Draw = Callable[[Comparison, Any], None]
"""Draws into a figure of matplotlib."""


def require() -> Any:
    """The library, loaded.

    Raises:
        UsageError: it is not there.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UsageError(f"plots need matplotlib ({error}): pip install 'adapm[plots]'") from error
    return matplotlib


def pictures(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """A caption and an SVG element for every picture for which there are figures.

    Raises:
        UsageError: there is no matplotlib.
    """
    matplotlib = require()
    if not comparison.good:
        return
    time = f"{TIMES[comparison.time]} time"
    several = len({row.variant.nodes for row in comparison.good}) > 1
    drawn: list[tuple[str, Draw, float]] = []
    if several:
        drawn.append((f"{time} against nodes", _scaling, _TALL))
    if any(comparison.ratio(row) for row in comparison.good):
        drawn.append((f"{time} over that of the best", _ratios, _height(comparison)))
    for measure in [*comparison.measures[:1], *_followed(comparison)]:
        drawn.append((f"{measure.name} against time", _Quality(measure), _TALL))
    if any(row.variant.nodes > 1 and row.spread("bytes") for row in comparison.good):
        drawn.append(("bytes between nodes, by what they are for", _traffic, _height(comparison)))
    for number, (caption, draw, height) in enumerate(drawn):
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"adapm {number}"}):
            figure = matplotlib.figure.Figure(figsize=(8, height), layout="constrained")
            draw(comparison, figure)
            yield caption, _inline(figure, number)


def _height(comparison: Comparison) -> float:
    return 1.0 + _BAR * len(comparison.good)


def _followed(comparison: Comparison) -> list[Measure]:
    """Measures that are known after every epoch, but for the one that is shown anyway."""
    runs = [run for row in comparison.good for run in row.runs.values()]
    rest = comparison.measures[1:]
    return [each for each in rest if all(len(each.samples(run)) == len(run.epoch_seconds) > 1 for run in runs)][:1]


def _inline(figure: Any, number: int) -> str:
    """The picture as an element of a page, whose colour and names it has."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>p{number}-", text)


def _labels(comparison: Comparison) -> dict[Variant, str]:
    """What tells each variant from all others."""
    names = varying([row.variant for row in comparison.good])
    return {row.variant: _label(row, names) for row in comparison.good}


def _label(row: Row, names: Sequence[str]) -> str:
    sized = "nodes" in names or "workers" in names
    return ", ".join([_series(row, names), *([row.variant.size] if sized else [])])


def _series(row: Row, names: Sequence[str]) -> str:
    """What tells it from others of the same size."""
    parts = [str(value(row.variant, name)) for name in names if name not in ("nodes", "workers")]
    return ", ".join(part for part in parts if part != ANY)


def _looks(comparison: Comparison) -> dict[Variant, dict[str, Any]]:
    """Of each variant, the same in all pictures: its technique's colour, its link's line, its size's marker.

    Where there is one technique, colours tell transports and links apart.
    """
    variants = sorted((row.variant for row in comparison.good), key=lambda variant: variant.nodes == 1)
    several = len({variant.technique for variant in variants}) > 1
    colour = _dealt(_COLOURS, [variant.technique if several else _wire(variant) for variant in variants])
    line = _dealt(_LINES, [_wire(variant) for variant in variants])
    marker = _dealt(_MARKERS, [variant.size for variant in variants])
    return {
        variant: {
            "color": colour[variant.technique if several else _wire(variant)],
            "linestyle": line[_wire(variant)],
            "marker": marker[variant.size],
            "markersize": 4,
        }
        for variant in variants
    }


def _wire(variant: Variant) -> str:
    """What is between the nodes; "" of a single one."""
    return "" if variant.nodes == 1 else f"{variant.transport} {variant.link}"


def _dealt(cards: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """One for each key, in order; again from the first when there are no more."""
    return dict(zip(dict.fromkeys(keys), itertools.cycle(cards), strict=False))


# ---- the pictures


def _scaling(comparison: Comparison, figure: Any) -> None:
    """Lines over nodes, a single node being part of all that have as many workers on each."""
    looks = _looks(comparison)
    for axes, rows in _panels(comparison, figure, lambda variant: _wire(variant) if variant.nodes > 1 else None):
        lines = _lines(comparison, rows)
        for number, (label, line) in enumerate(lines.items()):
            beside = _BESIDE * (number - (len(lines) - 1) / 2)
            points = sorted((row.variant.nodes, spread) for row in line if (spread := row.spread(comparison.time)))
            medians = [spread.median for _, spread in points]
            off = [[at.median - at.low for _, at in points], [at.high - at.median for _, at in points]]
            look = {**looks[line[0].variant], "marker": "o"}
            axes.errorbar([nodes + beside for nodes, _ in points], medians, off, label=label, **look)
        axes.set(xlabel="nodes", ylim=(0, None))
        axes.set_xticks(sorted({row.variant.nodes for row in comparison.good}))
    figure.supylabel("seconds", fontsize="medium")
    _legend(figure)


def _lines(comparison: Comparison, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Variants that differ in their nodes only, by what they have in common."""
    names = varying([row.variant for row in rows])
    found: dict[str, list[Row]] = {}
    for row in rows:
        workers = [f"{row.variant.workers} workers on each"] if "workers" in names else []
        found.setdefault(", ".join([_series(row, names), *workers]), []).append(row)
    for line in found.values():
        common = line[0].variant.technique, line[0].variant.workers
        alone = [row for row in comparison.good if row.variant.nodes == 1]
        line += [row for row in alone if (row.variant.technique, row.variant.workers) == common]
    return found


def _panels(
    comparison: Comparison, figure: Any, name: Callable[[Variant], str | None]
) -> Iterator[tuple[Any, list[Row]]]:
    """Axes side by side, and whose lines they are to have: those of the same name, which is their title.

    Where there is one technique, all lines are in one: it is transports, links and sizes that are compared. Who has
    no name has no place.
    """
    named = [(row, title) for row in comparison.good if (title := name(row.variant)) is not None]
    several = len({row.variant.technique for row, _ in named}) > 1
    groups: dict[str, list[Row]] = {}
    for row, title in named:
        groups.setdefault(title if several else "", []).append(row)
    across = min(_ACROSS, len(groups))
    down = -(-len(groups) // across)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * down)
    places = figure.subplots(down, across, sharey=True, squeeze=False).flat
    for axes in places[len(groups) :]:
        axes.set_axis_off()
    for axes, (title, rows) in zip(places[: len(groups)], groups.items(), strict=True):
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.25)
        yield axes, rows


def _legend(figure: Any) -> None:
    """One for all axes of a picture."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")


def _ratios(comparison: Comparison, figure: Any) -> None:
    axes = figure.subplots()
    looks, labels = _looks(comparison), _labels(comparison)
    bars = [(row, ratio) for row in comparison.good[::-1] if (ratio := comparison.ratio(row)) is not None]
    for place, (row, ratio) in enumerate(bars):
        off = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axes.barh(place, ratio.median, color=looks[row.variant]["color"], height=0.7)
        axes.errorbar(ratio.median, place, xerr=off, color=_INK, linewidth=1, capsize=2)
        text = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{ratio.median:.2f}", (ratio.high, place), **text)
    axes.axvline(1, color=_INK, linewidth=0.8)
    axes.set_yticks(range(len(bars)), [labels[row.variant] for row, _ in bars])
    axes.margins(x=0.1)
    axes.set(xlabel="times that of the best of the same size and link", xlim=(0, None), ylim=(-0.6, len(bars) - 0.4))


def _traffic(comparison: Comparison, figure: Any) -> None:
    axes = figure.subplots()
    rows = [row for row in comparison.good if row.variant.nodes > 1][::-1]
    left = [0.0] * len(rows)
    for colour, (name, label) in zip(_COLOURS, _KINDS.items(), strict=False):
        widths = [_median(row.spread(name)) / _MB for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colour, height=0.7, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    labels = _labels(comparison)
    axes.set_yticks(range(len(rows)), [labels[row.variant] for row in rows])
    axes.set(xlabel="MB", ylim=(-0.6, len(rows) - 0.4))
    figure.legend(loc="outside right upper")


class _Quality:
    """Quality over time: a line where it is known after each epoch, else a point at the end."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def __call__(self, comparison: Comparison, figure: Any) -> None:
        looks = _looks(comparison)
        for axes, rows in _panels(comparison, figure, lambda variant: f"{_wire(variant)} {variant.size}".lstrip()):
            names = varying([row.variant for row in rows])
            for row in rows:
                times, reached = self._points(row, comparison.time)
                axes.plot(times, reached, label=_label(row, names), **looks[row.variant])
            axes.set(xlabel="seconds of training", xlim=(0, None))
        low, high = axes.get_ylim()
        missing = max(0.0, _LEAST * abs(high + low) / 2 - (high - low))
        axes.set_ylim(low - missing / 2, high + missing / 2)
        better = "smaller" if self._measure.smaller else "larger"
        figure.supylabel(f"{self._measure.name} ({better} is better)", fontsize="medium")
        _legend(figure)

    def _points(self, row: Row, time: str) -> tuple[list[float], list[float]]:
        """Medians over the runs, of as many points as all have."""
        points = [self._of_run(run, time) for run in row.runs.values()]
        columns = [[*zip(*sample, strict=True)] for sample in zip(*points, strict=False)]
        return [statistics.median(times) for times, _ in columns], [
            statistics.median(reached) for _, reached in columns
        ]

    def _of_run(self, run: Run, time: str) -> list[tuple[float, float]]:
        samples = self._measure.samples(run)
        ends = list(itertools.accumulate(run.epoch_seconds or [run.figures[time] or 0.0]))
        known = zip(ends[-len(samples) :], samples, strict=True)
        return [(end, sample) for end, sample in known if sample is not None]


def _median(spread: Spread | None) -> float:
    return 0.0 if spread is None else spread.median
