"""Pictures of traces: the lives of keys, where accesses were served, how intents were timed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adapm import drawing
from adapm.trace.choice import Chosen
from adapm.trace.files import Trace
from adapm.trace.lives import Life, Presence, Span, common
from adapm.trace.summary import REASONS
from adapm.trace.timing import Timing, timing
from adapm.tracing import Reason

_OWNED, _REPLICA, _AWAY, _WANTED = "#1f5f99", "#9cc9ea", "#f0a35e", "#222222"
_MARKS: Final = {Reason.NO_INTENT: ("x", "#c4261d"), Reason.LATE: ("^", "#d98200"), Reason.NO_ROOM: ("s", "#7b3fa0")}
_BINS: Final = 120
_MOST_PANELS: Final = 24  # keys in one picture

Draw = Callable[[Any, Trace, Sequence[Life], Sequence[Chosen]], None]


def draw(name: str, trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen], kind: str = ".svg") -> bytes:
    """One of `PICTURES` as the bytes of a file.

    Args:
        name: which.
        trace: of the run.
        lives: of all keys.
        chosen: of those, the ones whose lives are drawn.
        kind: one of `adapm.drawing.KINDS`.

    Raises:
        UsageError: matplotlib is not there.
    """
    made, (height, drawer) = io.BytesIO(), PICTURES[name]
    with drawing.figure(10, height(trace, chosen)) as figure:
        drawer(figure, trace, lives, chosen)
        drawing.save(figure, made, kind)
    return made.getvalue()


# ---- the lives of keys


def _lives_height(trace: Trace, chosen: Sequence[Chosen]) -> float:
    return 0.8 + max(1, len(chosen[:_MOST_PANELS])) * (0.5 + 0.2 * trace.nodes)


def _draw_lives(figure: Any, trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> None:
    shown = chosen[:_MOST_PANELS]
    panels = figure.subplots(max(1, len(shown)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, each in zip(panels, shown, strict=False):
        _draw_life(axes, trace, each)
    panels[-1].set(xlabel="seconds", xlim=(0, trace.seconds or 1))
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _draw_life(axes: Any, trace: Trace, chosen: Chosen) -> None:
    life = chosen.life
    for node, presence in enumerate(life.at):
        _bars(axes, presence.owned, node, 0.8, _OWNED)
        _bars(axes, presence.replica, node, 0.8, _REPLICA)
        _bars(axes, presence.wanted, node + 0.46, 0.12, _WANTED)
    for move in life.moves:
        axes.plot([move.at, move.at], [move.giver, move.taker], color=_OWNED, linewidth=0.8)
    for reason, (marker, colour) in _MARKS.items():
        found = life.accesses[life.accesses["reason"] == reason]
        axes.scatter(found["at"], found["node"], s=22, c=colour, marker=marker, linewidths=1.2, zorder=3)
    axes.set(ylim=(trace.nodes - 0.3, -0.6), yticks=range(trace.nodes))
    axes.set_yticklabels([f"node {node}" for node in range(trace.nodes)])
    axes.set_title(_title(trace, chosen), loc="left", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any, spans: Iterable[Span], middle: float, height: float, colour: str) -> None:
    bars = [(span.begin, span.end - span.begin) for span in spans]
    axes.broken_barh(bars, (middle - height / 2, height), facecolor=colour, linewidth=0)


def _title(trace: Trace, chosen: Chosen) -> str:
    life = chosen.life
    name = f"{trace.tables[life.table][0]}:{life.key}" + (f" ({chosen.why})" if chosen.why else "")
    replicas = sum(len(presence.replica) for presence in life.at)
    counts = {"intent": len(life.signals), "relocation": len(life.moves), "replica": replicas}
    words = ", ".join(f"{number:,} {word}{'s' if number != 1 else ''}" for word, number in counts.items())
    return f"{name}: {words}; not local: {len(life.accesses):,}"


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bars = (("main copy", _OWNED), ("replica", _REPLICA), ("active intent", _WANTED))
    marks = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=f"not local: {REASONS[reason]}")
        for reason, (marker, colour) in _MARKS.items()
    ]
    return [*(Patch(color=colour, label=label) for label, colour in bars), *marks]


# ---- where accesses were served


def _draw_locality(figure: Any, trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> None:
    panels = figure.subplot_mosaic([["wanted", "who"], ["missed", "who"]], width_ratios=(3, 1))
    edges = np.linspace(0, trace.seconds or 1, _BINS + 1)
    _draw_wanted(panels["wanted"], lives, edges)
    _draw_missed(panels["missed"], lives, edges)
    panels["missed"].sharex(panels["wanted"])
    _draw_served(panels["who"], trace, lives)


def _draw_wanted(axes: Any, lives: Sequence[Life], edges: npt.NDArray[np.float64]) -> None:
    """Where the rows were that nodes had active intents for."""
    here = [presence for life in lives for presence in life.at]
    wanted = _over_time((presence.wanted for presence in here), edges)
    owned = _over_time((_both(presence, presence.owned) for presence in here), edges)
    replicas = _over_time((_both(presence, presence.replica) for presence in here), edges)
    away = np.maximum(wanted - owned - replicas, 0)
    labels, colours = ("main copy here", "replica here", "not here (yet)"), (_OWNED, _REPLICA, _AWAY)
    axes.stackplot(edges[:-1], owned, replicas, away, labels=labels, colors=colours, step="post")
    axes.set(ylabel="wanted rows", xlim=(0, edges[-1]), ylim=(0, None))
    axes.set_title("rows that nodes have active intents for", loc="left", fontsize=9)
    _legend_above(axes)


def _legend_above(axes: Any) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, fontsize=8, frameon=False, handlelength=1)


def _both(presence: Presence, spans: Sequence[Span]) -> list[Span]:
    return list(common(presence.wanted, spans))


def _over_time(every: Iterable[Iterable[Span]], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64 [bins]: how many of the spans cover a bin, on average over it."""
    spans = np.array([span for spans in every for span in spans]).reshape(-1, 2)
    # Time covered up to an edge: what began before it, less what ended before it.
    begins, ends = np.sort(spans[:, 0]), np.sort(spans[:, 1])
    covered = _passed(begins, edges) - _passed(ends, edges)
    return np.diff(covered) / np.diff(edges)


def _passed(times: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64 [edges]: the sum over the times before each edge of how long before."""
    sums = np.concatenate([[0.0], np.cumsum(times)])
    before = np.searchsorted(times, edges)
    return np.asarray(before * edges - sums[before])


def _draw_missed(axes: Any, lives: Sequence[Life], edges: npt.NDArray[np.float64]) -> None:
    at = np.concatenate([life.accesses["at"] for life in lives] or [np.zeros(0)])
    reasons = np.concatenate([life.accesses["reason"] for life in lives] or [np.zeros(0)])
    parts = [at[reasons == reason] for reason in REASONS]
    labels = [f"{label}: {len(part):,}" for label, part in zip(REASONS.values(), parts, strict=True)]
    colours = [_MARKS[reason][1] for reason in REASONS]
    axes.hist(parts, edges, histtype="stepfilled", stacked=True, label=labels, color=colours)
    axes.set(xlabel="seconds", ylabel="keys", ylim=(0, None if len(at) else 1))
    axes.set_title("accesses that were not local, by why", loc="left", fontsize=9)
    _legend_above(axes)


def _draw_served(axes: Any, trace: Trace, lives: Sequence[Life]) -> None:
    """Which node answered whom."""
    counts = np.zeros((trace.nodes, trace.nodes), np.int64)
    for life in lives:
        np.add.at(counts, (life.served["peer"], life.served["node"]), 1)
    axes.imshow(counts, cmap="Blues")
    if trace.nodes <= 8:
        for (asker, server), number in np.ndenumerate(counts):
            colour = "white" if number > counts.max() / 2 else "black"
            axes.text(server, asker, f"{number:,}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="node that answered", ylabel="node that asked")
    axes.set_title("asked of others, keys", loc="left", fontsize=9)
    if trace.nodes <= 8:
        axes.set(xticks=range(trace.nodes), yticks=range(trace.nodes))


# ---- how intents were timed


def _draw_intents(figure: Any, trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> None:
    times = timing(trace, lives)
    lead, ready = figure.subplots(1, 2)
    lead.set_title("lead: from signal to start clock", loc="left", fontsize=9)
    lead.set(xlabel="milliseconds", ylabel="share of intents")
    ready.set_title("row there before the start clock (left of 0), or late", loc="left", fontsize=9)
    ready.set(xlabel="milliseconds after the start clock")
    for node in range(trace.nodes):
        mine = times.node == node
        _curve(lead, times.lead[mine] * 1e3, f"node {node}")
        _curve(ready, times.late[mine] * 1e3, f"node {node}")
    ready.axvline(0, color="black", linewidth=0.8)
    ready.text(0.98, 0.06, _lateness(times), transform=ready.transAxes, ha="right", fontsize=8)
    for axes in (lead, ready):
        axes.set_xscale("symlog", linthresh=1)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    if len(times.node):
        lead.legend(fontsize=8)


def _curve(axes: Any, values: npt.NDArray[np.float64], label: str) -> None:
    """The share of values that are smaller; infinite ones count, and are not reached."""
    if not len(values):
        return
    shares = np.linspace(0, 1, 1001)
    ordered = np.quantile(np.sort(values), shares, method="lower")
    axes.plot(ordered[np.isfinite(ordered)], shares[np.isfinite(ordered)], label=label, linewidth=1.2)


def _lateness(times: Timing) -> str:
    if not len(times.late):
        return "no intent began"
    return f"{100 * (times.late > 0).mean():.2f} % of {len(times.late):,} late"


def _fixed(height: float) -> Callable[[Trace, Sequence[Chosen]], float]:
    return lambda trace, chosen: height


# Name -> (height in inches, what draws it).
PICTURES: Final[dict[str, tuple[Callable[[Trace, Sequence[Chosen]], float], Draw]]] = {
    "lives": (_lives_height, _draw_lives),
    "locality": (_fixed(4.2), _draw_locality),
    "intents": (_fixed(3.4), _draw_intents),
}
