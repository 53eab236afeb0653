"""What a run measured, for programs: lines of JSON in the file that the setting `report` names.

`adapm.run` adds a line with what its nodes and workers counted, the script may add lines with `adapm.report`, and
`read` makes one value of all of them. `adapm compare` runs scripts with such a file; anything else can do the same.

    {"by": "run", "seconds": ..., "peak_memory": {node: bytes}, "counters": {node: {"node": {...}, "workers": [{...}]}}}
    {"by": "script", "epoch_seconds": [...], "quality": {name: [...]}, "loss": {...}, "figures": {...}, "counters": ...}
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from adapm.config import Config
from adapm.errors import ConfigError, DataError, UsageError
from adapm.profile import Profile
from adapm.statistics import Statistics, WorkerStatistics

log = logging.getLogger(__name__)

Numbers: TypeAlias = float | Sequence[float]
OfNode: TypeAlias = dict[str, Any]
"""What a node counted under "node", and what each of its workers did under "workers"."""
Counted: TypeAlias = dict[str, OfNode]
"""Of each node, by its number as text."""


def report(
    *,
    epoch_seconds: Sequence[float] = (),
    quality: Mapping[str, Numbers] | None = None,
    loss: Mapping[str, Numbers] | None = None,
    statistics: Mapping[int, Sequence[Statistics]] | None = None,
    **figures: float,
) -> None:
    """Says what a script measured, to whoever runs it: `adapm compare`, or `adapm run --report FILE`.

    To be called where `adapm.run` has returned. Without such a file it only checks its arguments. Of what is reported
    several times, the last counts.

    Args:
        epoch_seconds: how long each epoch took.
        quality: by name, what is the better the larger it is: a number, what was reached in the end, or as many as
            epochs, what was reached after each.
        loss: the same of what is the better the smaller it is.
        statistics: by node, what its workers had counted when the training ended (`worker.statistics()`); without it,
            what counts is all that nodes and workers did, tests included.
        figures: anything else, each a number.

    Raises:
        UsageError: something is no number, or there are neither one nor as many as epochs.
        OSError: the file cannot be written.
    """
    line = {
        "by": "script",
        "epoch_seconds": _numbers("epoch_seconds", epoch_seconds),
        "quality": _measures("quality", quality or {}, len(epoch_seconds)),
        "loss": _measures("loss", loss or {}, len(epoch_seconds)),
        "figures": {name: _number(name, figure) for name, figure in figures.items()},
    }
    if statistics is not None:
        line["counters"] = {str(node): _of_workers(node, counted) for node, counted in statistics.items()}
    file = Config.load().report
    if file is not None:
        _add(file, line)


def check(file: str) -> None:
    """Nothing, if a report can be written into this file.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"report={file!r}, but there is no folder {str(folder)!r}: make it first")


def report_run(file: str, profiles: Iterable[Profile]) -> None:
    """Adds what a run's nodes and workers counted. What cannot be written is logged: the run has its results."""
    profiles = list(profiles)
    line = {
        "by": "run",
        "seconds": max(profile.seconds for profile in profiles),
        "peak_memory": {str(profile.node): profile.peak_memory for profile in profiles},
        "counters": {
            str(profile.node): {
                "node": dataclasses.asdict(profile.counters),
                "workers": [dataclasses.asdict(worker) for worker in profile.workers],
            }
            for profile in profiles
        },
    }
    try:
        _add(file, line)
    except OSError as error:
        log.warning("the run's report was not written: %s", error)


@dataclass
class Report:
    """What the lines of a file say together.

    Attributes:
        seconds: from the first worker's way in to the end, over all runs; None if there was no run.
        peak_memory: bytes, of the node that took most.
        counters: by node, when the training ended if the script said so, else at the end of the run; but processor
            time (cpu_ns) is always that from the first worker's way in to the end.
        epoch_seconds, quality, loss, figures: as given to `report`.
    """

    seconds: float | None = None
    peak_memory: int = 0
    counters: Counted = field(default_factory=dict)
    epoch_seconds: list[float] = field(default_factory=list)
    quality: dict[str, list[float | None]] = field(default_factory=dict)
    loss: dict[str, list[float | None]] = field(default_factory=dict)
    figures: dict[str, float | None] = field(default_factory=dict)


def read(file: str | os.PathLike[str]) -> Report:
    """What was reported into a file; nothing if it is not there.

    Raises:
        DataError: a line is none of ours.
    """
    told = Report()
    settled: Counted = {}
    for number, text in enumerate(_lines(Path(file)), start=1):
        try:
            line = json.loads(text)
            _take_in(told, settled, line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"is no line of a report ({type(error).__name__}: {error})", file=file, line=number
            ) from None
    for node, counted in settled.items():
        at_end = told.counters.get(node, counted)["node"]
        told.counters[node] = {**counted, "node": {**counted["node"], "cpu_ns": at_end["cpu_ns"]}}
    return told


def _take_in(told: Report, settled: Counted, line: dict[str, Any]) -> None:
    if line["by"] == "run":
        told.seconds = (told.seconds or 0.0) + float(line["seconds"])
        told.peak_memory = max(told.peak_memory, *line["peak_memory"].values())
        for node, counted in line["counters"].items():
            told.counters[node] = _sum(told.counters.get(node), counted)
        return
    told.epoch_seconds = line["epoch_seconds"] or told.epoch_seconds
    told.quality.update(line["quality"])
    told.loss.update(line["loss"])
    told.figures.update(line["figures"])
    settled.update(line.get("counters", {}))


def _sum(one: OfNode | None, other: OfNode) -> OfNode:
    """What a node did in several runs of a script."""
    if one is None:
        return other
    node = {name: count + one["node"].get(name, 0) for name, count in other["node"].items()}
    return {"node": node, "workers": one["workers"] + other["workers"]}


def _of_workers(node: int, counted: Sequence[Statistics]) -> OfNode:
    if not counted:
        raise UsageError(f"statistics of node {node} are of no worker: leave the node out, or give its workers'")
    names = [field.name for field in dataclasses.fields(WorkerStatistics)]
    workers = [{name: getattr(worker, name) for name in names} for worker in counted]
    return {
        "node": dataclasses.asdict(max((one.node for one in counted), key=lambda node: node.ticks)),
        "workers": workers,
    }


def _measures(what: str, measures: Mapping[str, Numbers], epochs: int) -> dict[str, list[float | None]]:
    found = {name: _numbers(f"{what}[{name!r}]", numbers) for name, numbers in measures.items()}
    for name, numbers in found.items():
        if len(numbers) not in (1, epochs):
            raise UsageError(
                f"{what}[{name!r}] has {len(numbers)} numbers, but there are {epochs} epoch_seconds:"
                " give one number, what was reached in the end, or one for each epoch"
            )
    return found


def _numbers(name: str, numbers: Any) -> list[float | None]:
    if isinstance(numbers, str) or not isinstance(numbers, Iterable):
        return [_number(name, numbers)]
    return [_number(name, number) for number in numbers]


def _number(name: str, number: Any) -> float | None:
    """The number, None if JSON has no word for it."""
    try:
        value = float(number)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number, got {number!r}") from None
    return value if math.isfinite(value) else None


def _add(file: str, line: Mapping[str, Any]) -> None:
    """One write, so that lines of several processes do not mix."""
    target = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(target, json.dumps(line, allow_nan=False).encode() + b"\n")
    finally:
        os.close(target)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
