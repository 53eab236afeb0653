"""The command `adapm scale`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from adapm import __version__, drawing
from adapm.simulator import plot
from adapm.simulator.calibration import calibrate
from adapm.simulator.commands import INTERRUPTED, complaints
from adapm.simulator.costs import Costs
from adapm.simulator.many import quiet
from adapm.simulator.scale import KEYS, MOST_NODES, Load, Point, require_room, simulate

_LOAD = Load()
_BASE = 8  # nodes: growth is counted from the smallest number from here on
_WIDTH = 120  # of what is no terminal
_US, _MS, _GBIT = 1e-6, 1e-3, 1e9 / 8


class _Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click
    """Numbers of nodes: 2,8,32."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        for word in words:
            if not (word.isascii() and word.isdigit() and 1 <= int(word) <= MOST_NODES):
                self.fail(f"{word!r} is no number of nodes: it must be from 1 to {MOST_NODES:,}", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


class _Results(NamedTuple):
    load: Load
    costs: Costs
    measured: dict[str, float]
    points: list[Point]
    interrupted: bool


@click.command(short_help="What an access costs on 2, 8, ... 1,024 nodes, simulated.")
@click.option("--nodes", type=_Numbers(), default="2,8,32", show_default=True, help="How many, one after the other.")
@click.option("--keys", type=click.Choice(KEYS), default=_LOAD.keys, show_default=True, help="How they are drawn.")
@click.option("--rows", default=_LOAD.rows, show_default=True, help="Rows of the table for each node.")
@click.option("--fixed-rows", type=click.IntRange(1), help="Rows of the table in all, in place of --rows.")
@click.option("--dim", default=_LOAD.dim, show_default=True, help="Numbers in a row.")
@click.option("--batch", default=_LOAD.batch, show_default=True, help="Keys at each clock.")
@click.option("--ahead", default=_LOAD.ahead, show_default=True, help="Clocks between signal and access.")
@click.option("--think", default=_LOAD.think / _MS, show_default=True, help="Milliseconds of work per clock.")
@click.option("--warm-up", default=_LOAD.warm_up, show_default=True, help="Clocks before the measurement.")
@click.option("--clocks", default=_LOAD.clocks, show_default=True, help="Clocks of the measurement.")
@click.option("--latency", default=_LOAD.latency / _US, show_default=True, help="Microseconds between two nodes.")
@click.option("--bandwidth", default=_LOAD.bandwidth / _GBIT, show_default=True, help="Gbit/s of a node, in and out.")
@click.option("--tick-rate", default=_LOAD.tick_rate, show_default=True, help="Ticks per second of nodes, at most.")
@click.option("--seed", type=click.IntRange(0), default=_LOAD.seed, show_default=True, help="Of everything.")
@click.option("--measure", is_flag=True, help="Measure costs on this machine, instead of taking the documented ones.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw into this file (.svg, .png, .pdf).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def scale(
    *,
    nodes: tuple[int, ...],
    fixed_rows: int | None,
    think: float,
    latency: float,
    bandwidth: float,
    measure: bool,
    plot_file: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Simulates a trainer on more and more nodes, and reports what an access costs them.

    Nodes, lanes, kernel and workers are real, all in this process; time is virtual. Each node has one worker that
    signals its batches ahead, pulls and pushes one per clock, and does the same however many nodes there are. An
    access is one key pulled and pushed. Counts are those of the run, processor time is counts times costs.

    \b
    adapm scale                                              2, 8 and 32 nodes, in seconds
    adapm scale --nodes 2,8,32,128,512,1024 --plot scale.svg minutes, and 3 GB
    adapm scale --keys zipf --fixed-rows 16384
    adapm scale --measure                                    with this machine's costs
    """  # noqa: D301
    with complaints():
        if plot_file is not None:
            drawing.require(plot_file)
        if fixed_rows is not None:
            given.update(rows=fixed_rows, fixed=True)
        load = Load(think=think * _MS, latency=latency * _US, bandwidth=bandwidth * _GBIT, **given)
        for number in nodes:
            require_room(number, load)
        results = _run(nodes, load, measure)
    if plot_file is not None and results.points:
        plot.draw(results.points, load, plot_file)
    if as_json:
        click.echo(json.dumps(_tree(results), indent=2))
    else:
        _show(results)
    if results.interrupted:
        sys.exit(INTERRUPTED)


def _run(nodes: Sequence[int], load: Load, measure: bool) -> _Results:
    costs, measured, points, interrupted = Costs(), {}, [], False
    with quiet():
        try:
            if measure:
                calibration = calibrate(_say)
                costs = calibration.costs
                measured = {"transport_us": calibration.transport, "worst_deviation": calibration.worst}
            for number in nodes:
                _say(f"{number:,} nodes")
                points.append(simulate(number, load, costs))
        except KeyboardInterrupt:
            interrupted = True
    return _Results(load, costs, measured, points, interrupted)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def growth(points: Sequence[Point]) -> dict[str, float] | None:
    """What the most nodes take over what the fewest from 8 on take; None if that is one."""
    from_base = sorted((point for point in points if point.nodes >= _BASE), key=lambda point: point.nodes)
    if len(from_base) < 2:
        return None
    first, last = from_base[0], from_base[-1]
    names = ("bytes", "messages", "cpu_us", "memory")
    ratios = {name: getattr(last, name) / getattr(first, name) for name in names}
    return {"from": first.nodes, "to": last.nodes, **ratios}


def _tree(results: _Results) -> dict[str, Any]:
    return {
        "load": dataclasses.asdict(results.load),
        "costs_us": dataclasses.asdict(results.costs),
        "measured": results.measured or None,
        "points": [dataclasses.asdict(point) for point in results.points],
        "growth": growth(results.points),
        "interrupted": results.interrupted,
        "version": __version__,
    }


_COLUMNS: dict[str, Callable[[Point], str]] = {
    "nodes": lambda point: f"{point.nodes:,}",
    "bytes": lambda point: f"{point.bytes:,.0f}",
    "frames": lambda point: f"{point.messages:.2f}",
    "busiest": lambda point: f"{point.busiest:.2f}",
    "rows": lambda point: f"{point.rows_moved:.2f}",
    "CPU us": lambda point: f"{point.cpu_us:.1f}",
    "here us": lambda point: f"{point.here_us:.1f}",
    "wait us": lambda point: f"{point.wait_us:.2f}",
    "local": lambda point: f"{point.local:.4f}",
    "MiB/node": lambda point: f"{point.memory / (1 << 20):.2f}",
    "drift": lambda point: f"{point.drift:+.1%}",
    "took s": lambda point: f"{point.seconds:,.1f}",
}


def _show(results: _Results) -> None:
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for point in results.points:
        table.add_row(*(text(point) for text in _COLUMNS.values()))
    console.print(table)
    for note in _notes(results):
        console.print(note, markup=False)
    if results.interrupted:
        console.print("interrupted: these are partial results", style="bold yellow")


def _notes(results: _Results) -> list[str]:
    costs = ", ".join(f"{name} {value:.3g}" for name, value in dataclasses.asdict(results.costs).items())
    source = "measured here" if results.measured else "see docs/scaling.md"
    notes = [
        "",
        "per access, which is one key pulled and pushed; busiest: the busiest node's frames over the mean",
        f"costs in us ({source}): {costs}",
    ]
    if results.measured:
        notes.append(f"they explain what nodes took here within {results.measured['worst_deviation']:.0%}")
    if grown := growth(results.points):
        ratios = ", ".join(f"{name} {grown[name]:.2f}" for name in ("bytes", "messages", "cpu_us", "memory"))
        notes.append(f"from {grown['from']:,} to {grown['to']:,} nodes: {ratios} times")
    refused = [point for point in results.points if point.refused]
    notes += [f"{point.nodes:,} nodes had no room for {point.refused:,} rows that were wanted" for point in refused]
    return notes
