"""The command `adapm simulate`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapm import __version__, techniques
from adapm.errors import AdapmError, DataError, UsageError
from adapm.simulator import faults, workloads
from adapm.simulator.many import Summary, read_seeds, run_many
from adapm.simulator.runs import ALL, Options, Outcome

INTERRUPTED = 130  # as if SIGINT had ended us
_TRACES = 3  # failures that are shown with their traces
_MOST_NODES = 4000
_DEFAULT = Options()


class _Span(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer versions of click
    """A number, or the smallest and the largest: 4 or 4-8."""

    name = "N|N-M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, dash, high = str(value).partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            self.fail(f"{value!r} is neither a number such as 4 nor a range such as 4-8", param, ctx)
        span = int(low), int(high if dash else low)
        if not 1 <= span[0] <= span[1] <= _MOST_NODES:
            self.fail(f"{value!r}: the smallest must be at least 1, the largest at most {_MOST_NODES:,}", param, ctx)
        return span


_SPAN = _Span()


def _names() -> str:
    groups = f"\b\nFaults: {', '.join(faults.GROUPS)}, or some of these"
    lines = [groups, *(f"  {name:13} {fault.help}" for name, fault in faults.FAULTS.items())]
    lines += ["", "\b", "Workloads: all, or some of these"]
    return "\n".join([*lines, *(f"  {name:13} {work.help}" for name, work in workloads.WORKLOADS.items())])


@click.command(short_help="Run nodes and workers in a virtual world, with faults, from seeds.", epilog=_names())
@click.option("--nodes", type=_SPAN, default=_DEFAULT.nodes, help="Nodes of a run.  [default: 4-8]")
@click.option("--workers", type=_SPAN, default=_DEFAULT.workers, help="Workers of each node.  [default: 1-2]")
@click.option("--seeds", type=click.IntRange(1), help="How many.  [default: 100]")
@click.option("--seed", type=click.IntRange(0), help="The first one.  [default: 0]")
@click.option("--seed-file", type=click.Path(path_type=Path), help="A file with one seed per line, in their place.")
@click.option("--faults", "fault_names", default="all", show_default=True, help="Names, separated by commas.")
@click.option("--workload", "workload_names", default="all", show_default=True, help="Names, separated by commas.")
@click.option(
    "--technique", "technique_names", default="all", show_default=True, help="Names; seeds take them by turns."
)
@click.option("--until", default=_DEFAULT.until, show_default=True, help="Virtual seconds for which workers work.")
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per processor]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate(
    *,
    nodes: tuple[int, int],
    workers: tuple[int, int],
    seeds: int | None,
    seed: int | None,
    seed_file: Path | None,
    fault_names: str,
    workload_names: str,
    technique_names: str,
    until: float,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Runs real nodes and workers in a virtual world, and checks after every frame that everything holds.

    Time, delays and faults are drawn from a seed: one seed gives one history, and its hash. A seed in which something
    does not hold is printed with the command that repeats it. Ends with exit code 1 if there is one.

    \b
    adapm simulate                                    100 seeds, with everything
    adapm simulate --seeds 10000                      as many as the documentation speaks of
    adapm simulate --seed 17 --seeds 1                one of them again
    adapm simulate --workload bank --faults harmless  transfers, nothing fatal
    adapm simulate --faults stall,pause-node --nodes 16
    """  # noqa: D301
    with complaints():
        chosen = _options(nodes, workers, fault_names, workload_names, technique_names, until)
        numbers = _numbers(seeds, seed, seed_file)
        summary, interrupted, wall = _run(numbers, chosen, min(jobs or _processors(), len(numbers)), as_json)
    replay = _replay(nodes, workers, fault_names, workload_names, technique_names, until)
    if as_json:
        click.echo(json.dumps(_tree(summary, replay, wall, interrupted), indent=2))
    else:
        _show(summary, replay, wall, interrupted)
    sys.exit(INTERRUPTED if interrupted else 1 if summary.failed else 0)


@contextlib.contextmanager
def complaints() -> Iterator[None]:
    """Errors of ours end the command with what they say."""
    try:
        yield
    except (UsageError, DataError) as error:
        raise click.UsageError(f"{type(error).__name__}: {error}") from error
    except AdapmError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error


def _options(
    nodes: tuple[int, int], workers: tuple[int, int], fault: str, workload: str, technique: str, until: float
) -> Options:
    if not 0 < until < float("inf"):
        raise UsageError(f"--until {until}: workers must work for more than 0 seconds")
    names = tuple(workloads.WORKLOADS) if workload == "all" else tuple(dict.fromkeys(_words(workload)))
    for name in names:
        workloads.named(name)
    return Options(nodes, workers, names, faults.named(_words(fault)), until, _techniques(technique))


def _techniques(text: str) -> tuple[str, ...]:
    try:
        return ALL if text == "all" else tuple(techniques.named(word).name for word in _words(text))
    except ValueError as error:
        raise UsageError(f"there is no technique {error}: name {techniques.KNOWN}, or all") from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(seeds: int | None, seed: int | None, file: Path | None) -> Sequence[int]:
    if file is None:
        first = seed or 0
        return range(first, first + (seeds or 100))
    if seeds is not None or seed is not None:
        raise UsageError("--seed-file says which seeds: leave out --seed and --seeds")
    return read_seeds(file)


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _run(numbers: Sequence[int], options: Options, jobs: int, as_json: bool) -> tuple[Summary, bool, float]:
    summary, begin = Summary(), time.perf_counter()
    interrupted = False
    with _progress(len(numbers)) as step:
        try:
            for outcome in run_many(numbers, options, jobs):
                summary.add(outcome)
                step(summary)
        except KeyboardInterrupt:
            interrupted = True
    return summary, interrupted, time.perf_counter() - begin


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Summary], None]]:
    """A bar on a terminal, a line per tenth elsewhere; on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda summary: _line(summary, total)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("seeds", total=total)

        def step(summary: Summary) -> None:
            failed = f", {len(summary.failed)} failed" if summary.failed else ""
            bar.update(task, completed=summary.seeds, description=f"seed {summary.seeds:,} of {total:,}{failed}")

        yield step


def _line(summary: Summary, total: int) -> None:
    if summary.seeds * 10 // total != (summary.seeds - 1) * 10 // total:
        print(f"{summary.seeds:,} of {total:,} seeds, {len(summary.failed)} failed", file=sys.stderr, flush=True)


def _replay(
    nodes: tuple[int, int], workers: tuple[int, int], fault: str, workload: str, technique: str, until: float
) -> Callable[[int], str]:
    """The command that repeats a seed."""
    given = [
        ("--nodes", _span_text(nodes), nodes != _DEFAULT.nodes),
        ("--workers", _span_text(workers), workers != _DEFAULT.workers),
        ("--faults", fault, fault != "all"),
        ("--workload", workload, workload != "all"),
        ("--technique", technique, technique != "all"),
        ("--until", f"{until:g}", until != _DEFAULT.until),
    ]
    options = [word for name, value, differs in given if differs for word in (name, value)]
    return lambda seed: shlex.join(["adapm", "simulate", "--seed", str(seed), "--seeds", "1", *options])


def _span_text(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _tree(summary: Summary, replay: Callable[[int], str], wall: float, interrupted: bool) -> dict[str, Any]:
    return {
        "seeds": summary.seeds,
        "failed": [_failure(outcome, replay) for outcome in summary.failed],
        "hash": summary.hash,
        "events": summary.events,
        "frames": summary.frames,
        "bytes": summary.bytes,
        "faults": dict(sorted(summary.faults.items())),
        "ended_by": dict(sorted(summary.fatal.items())),
        "staleness": {
            "caught_up": len(summary.staleness_ms),
            "p50_ms": summary.staleness(0.5),
            "p99_ms": summary.staleness(0.99),
            "max_ms": summary.staleness(1.0),
            "max_rounds": max(summary.staleness_rounds, default=None),
        },
        "virtual_s": summary.virtual,
        "wall_s": wall,
        "interrupted": interrupted,
        "version": __version__,
    }


def _failure(outcome: Outcome, replay: Callable[[int], str]) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "violation": outcome.violation,
        "row": outcome.row,
        "nodes": outcome.nodes,
        "workers": outcome.workers,
        "workload": outcome.workload,
        "technique": outcome.technique,
        "hash": outcome.hash,
        "replay": replay(outcome.seed),
        "trace": outcome.trace,
    }


def _show(summary: Summary, replay: Callable[[int], str], wall: float, interrupted: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for number, outcome in enumerate(summary.failed):
        console.print(f"seed {outcome.seed}: {outcome.violation}", style="bold red", markup=False)
        for line in outcome.trace if number < _TRACES else ():
            console.print(line, markup=False)
        console.print(f"again: {replay(outcome.seed)}\n", markup=False)
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(summary, wall):
        table.add_row(name, value)
    console.print(table)
    if interrupted:
        console.print("interrupted: these are partial results", style="bold yellow")
    verdict = f"{len(summary.failed)} seeds failed." if summary.failed else "Everything held."
    console.print(f"\n{verdict}", style="bold")


def _rows(summary: Summary, wall: float) -> Iterator[tuple[str, str]]:
    rate = summary.seeds / wall if wall else 0.0
    yield "seeds", f"{summary.seeds:,} in {wall:,.1f} s ({rate:.1f} per second)"
    yield "events", f"{summary.events:,}"
    yield "frames", f"{summary.frames:,} of {summary.bytes:,} bytes"
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(summary.faults.items()))
    yield "faults", f"{summary.faults.total():,}: {counts}" if counts else "none"
    if summary.staleness_ms:
        p50, p99, most = (summary.staleness(share) for share in (0.5, 0.99, 1.0))
        rounds = max(summary.staleness_rounds)
        yield (
            "replicas behind",
            f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, at most {most:.2f} ms, or {rounds} refreshing round(s)",
        )
    yield "hash", summary.hash
