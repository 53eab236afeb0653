"""The command `adapm compare`."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapm.bench import machine
from adapm.bench.report import number
from adapm.compare import page, tables
from adapm.compare.records import Header, Records
from adapm.compare.results import TIMES, Comparison
from adapm.compare.running import Run, Script, run
from adapm.compare.variants import Turn, Variant, turns, variants
from adapm.errors import AdapmError, UsageError

_INTERRUPTED: Final = 130  # as if SIGINT had ended us
_LOGS: Final = "logs"
_PAGE, _CSV, _JSON = "comparison.html", "comparison.csv", "comparison.json"


@dataclass(frozen=True)
class _Outcome:
    """What came of it, and what makes it doubtful."""

    comparison: Comparison
    interrupted: bool = False
    warnings: Sequence[str] = ()

    def as_json(self) -> str:
        """Everything."""
        whole = tables.tree(self.comparison)
        return json.dumps({**whole, "interrupted": self.interrupted, "warnings": list(self.warnings)}, indent=2)


@dataclass(frozen=True)
class _Output:
    """Where a comparison goes.

    Attributes:
        folder: for runs, table and page; None for nowhere.
        as_json: on standard output, instead of the table.
        markdown: a file with a place for the table.
        name: of that place.
    """

    folder: Path | None
    as_json: bool
    markdown: Path | None
    name: str

    def check(self) -> None:
        """Nothing, if all can be written.

        Raises:
            UsageError: something cannot.
        """
        if self.markdown is not None:
            tables.check_marks(self.markdown, self.name)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--out {str(self.folder)!r} is a file: name a folder")

    def write(self, outcome: _Outcome) -> None:
        """Everything but what is printed; into files of others only what is whole."""
        comparison = outcome.comparison
        if self.folder is not None:
            page.write(comparison, self.folder / _PAGE)
            (self.folder / _CSV).write_text(tables.as_csv(comparison), encoding="utf-8")
            (self.folder / _JSON).write_text(outcome.as_json(), encoding="utf-8")
        if self.markdown is not None and not outcome.interrupted:
            tables.insert(self.markdown, self.name, tables.markdown(comparison))


@click.command(short_help="Run a script under several techniques and sizes, and compare.")
@click.argument("script", type=click.Path(dir_okay=False), required=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--technique", metavar="LIST", help="How rows are managed.")
@click.option("--transport", metavar="LIST", help="What carries frames between nodes.")
@click.option("--link", metavar="LIST", help="none, or how slow links are to be: 1Gbit, 0.5ms, 1Gbit+0.5ms.")
@click.option("--nodes", metavar="LIST", help="How many.")
@click.option("--workers", metavar="LIST", help="On each node.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each; seeds 0, 1, ...")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800.0,
    show_default=True,
    help="Seconds of a run.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for runs, table (CSV, JSON) and page (HTML).")
@click.option("--resume", is_flag=True, help="Go on with what is in --out; what failed is tried again.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Run nothing: show what is in this folder.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Put the table into this file, at its place.")
@click.option("--name", help="Of that place.  [default: the script's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    *,
    script: str | None,
    args: tuple[str, ...],
    seeds: int,
    timeout: float,
    out: Path | None,
    resume: bool,
    source: Path | None,
    markdown: Path | None,
    name: str | None,
    as_json: bool,
    **lists: str | None,
) -> None:
    """Runs SCRIPT with ARGS under all combinations of what is listed, taking turns, and compares.

    Lists are separated by commas; what is not given is as the settings say. Every seed is a round in which each
    combination has its turn. {seed} in ARGS stands for the seed. A run that fails is named, and the others go on;
    Ctrl-C ends with what there is.

    \b
    adapm compare train.py --technique adaptive,static,full --nodes 1,2 --workers 1 --out results
    adapm compare train.py --nodes 2 --link none,1Gbit+0.5ms -- --data umls --epochs 5
    adapm compare train.py --nodes 2 --out results --resume
    adapm compare --from results --markdown README.md

    Scripts say how long their epochs took and what they reached with `adapm.report`.
    """  # noqa: D301
    with _complaints():
        if source is not None:
            _alone("--from", script=script, out=out, resume=resume, **lists)
            records = Records.read(source)
            outcome = _Outcome(Comparison(records.header, records.runs))
            output = _Output(source, as_json, markdown, name or Path(records.header.script).stem)
            output.check()
        else:
            asked, order = _script(script, args, timeout), variants(lists)
            output = _Output(out, as_json, markdown, name or Path(asked.file).stem)
            output.check()
            outcome = _compared(asked, order, seeds, out, resume)
        output.write(outcome)
    _show(outcome, output)
    if outcome.interrupted:
        sys.exit(_INTERRUPTED)


def _alone(option: str, **others: object) -> None:
    """Nothing, if nothing else is given.

    Raises:
        UsageError: something is.
    """
    given = [name for name, other in others.items() if other]
    if given:
        raise UsageError(f"{option} runs nothing, so {', '.join(given)} cannot be given beside it")


def _script(file: str | None, args: Sequence[str], timeout: float) -> Script:
    if file is None:
        raise UsageError("SCRIPT is missing: name what is to be run, as in adapm compare train.py --nodes 1,2")
    if not Path(file).is_file():
        raise UsageError(f"there is no script {file!r}")
    return Script(file, args, timeout)


def _compared(asked: Script, order: Sequence[Variant], seeds: int, out: Path | None, resume: bool) -> _Outcome:
    if resume and out is None:
        raise UsageError("--resume needs --out, the folder of the comparison that is to go on")
    header = Header.of(asked, len(machine.cores()))
    warnings, steal = machine.load_warnings(), machine.Steal()
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory())) if out is None else out
        records = Records.resume(folder, header) if resume else Records.begin(folder, header)
        logs = folder / _LOGS
        logs.mkdir(exist_ok=True)
        interrupted = _run_all(asked, turns(order, seeds), records, logs)
    return _Outcome(Comparison(records.header, records.runs), interrupted, [*warnings, *steal.warnings()])


def _run_all(asked: Script, planned: Sequence[Turn], records: Records, logs: Path) -> bool:
    """Runs what has not been run; returns whether it was interrupted."""
    left = [turn for turn in planned if not records.has(turn)]
    with _Progress(len(planned), len(left)) as progress, _ending_as_by_ctrl_c():
        try:
            for turn in left:
                progress.begin(turn)
                done = run(asked, turn, logs)
                records.add(done)
                progress.end(done)
        except KeyboardInterrupt:
            return True
    return False


@contextlib.contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """Whoever ends us by a signal ends the script, too, which is in a session of its own."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """A bar on a terminal, a line per run elsewhere; on standard error."""

    def __init__(self, planned: int, left: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._left = left
        self._done = 0
        self._began = time.monotonic()
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            refresh_per_second=1,  # so that it does not take the processor from what is measured
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=planned, completed=planned - left)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, turn: Turn) -> None:
        """A run begins."""
        self._bar.update(self._task, description=f"{turn.variant.name}, seed {turn.seed}")

    def end(self, done: Run) -> None:
        """It has ended."""
        self._done += 1
        self._bar.advance(self._task)
        times = [done.figures.get(name) for name in TIMES]
        seconds = next((each for each in times if each is not None), 0.0)
        how = f"{number(seconds)} s" if done.error is None else f"failed: {done.error}"
        rest = (self._left - self._done) * (time.monotonic() - self._began) / self._done
        left = f"; {timedelta(seconds=round(rest))} left" if rest else ""
        if not self._console.is_terminal:
            name = f"{done.turn.variant.name}, seed {done.turn.seed}"
            print(f"{self._done}/{self._left} {name}: {how}{left}", file=sys.stderr, flush=True)
        elif done.error is not None:
            self._console.print(f"{done.turn.variant.name}, seed {done.turn.seed}: {how}", style="red", markup=False)


def _show(outcome: _Outcome, output: _Output) -> None:
    if output.as_json:
        click.echo(outcome.as_json())
        return
    comparison = outcome.comparison
    console = Console(highlight=False)
    for table in tables.terminal(comparison, console.width):
        console.print(table)
        console.print()
    if comparison.good:
        console.print(tables.runs_of(comparison), style="dim")
    for verdict in comparison.verdicts:
        console.print(verdict.text, style="green" if verdict.holds else "yellow", markup=False)
    for failure in tables.failures(comparison):
        console.print(failure, style="red", markup=False)
    for warning in outcome.warnings:
        console.print(f"doubtful: {warning}", style="yellow", markup=False)
    if outcome.interrupted:
        console.print("interrupted: these are partial results", style="bold yellow")
    if output.folder is not None:
        logs = f", {_LOGS} what the scripts printed" if tables.failures(comparison) else ""
        text = f"in {output.folder}: {_PAGE} has pictures, {_CSV} and {_JSON} every figure{logs}"
        console.print(text, style="dim", markup=False)


@contextlib.contextmanager
def _complaints() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise click.UsageError(f"{type(error).__name__}: {error}") from error
    except (AdapmError, OSError) as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
