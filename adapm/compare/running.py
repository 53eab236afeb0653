"""One run of the script: a process of its own, with settings in its environment, and what it reports."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapm import reporting
from adapm.compare.variants import Turn
from adapm.errors import DataError

GRACE: Final = 10.0  # seconds in which a script that is told to end may clean up
SEED: Final = "{seed}"  # in the script's arguments
_LONGEST: Final = 300  # characters of what is said about a failure
_MS: Final = 1e3  # microseconds
_KINDS: Final = ("update_bytes", "state_bytes", "grant_bytes", "access_bytes")


@dataclass(frozen=True)
class Script:
    """What is run.

    Attributes:
        file: the script.
        args: its arguments; {seed} in them stands for the run's seed.
        timeout: seconds that a run may take.
    """

    file: str
    args: Sequence[str]
    timeout: float

    def command(self, seed: int) -> list[str]:
        """With this Python."""
        return [sys.executable, self.file, *(arg.replace(SEED, str(seed)) for arg in self.args)]


@dataclass(frozen=True)
class Run:
    """What came of a turn.

    Attributes:
        turn: who.
        error: why it failed; None if it did not.
        figures: by name; what is missing was not measured, None is not finite.
        epoch_seconds, quality, loss: as reported.
    """

    turn: Turn
    error: str | None
    figures: dict[str, float | None]
    epoch_seconds: list[float] = field(default_factory=list)
    quality: dict[str, list[float | None]] = field(default_factory=dict)
    loss: dict[str, list[float | None]] = field(default_factory=dict)


def run(script: Script, turn: Turn, folder: Path) -> Run:
    """Runs the script and returns what it measured, or why it failed.

    Args:
        script: what to run.
        turn: as whom.
        folder: for the report and the log of what it prints; must exist.
    """
    report, log = folder / f"{_file_name(turn)}.report", folder / f"{_file_name(turn)}.log"
    report.unlink(missing_ok=True)
    env = {**os.environ, **turn.variant.environment(seed=turn.seed, report=report.absolute())}
    began, cpu = time.monotonic(), _cpu_seconds()
    with log.open("wb") as output:
        process = subprocess.Popen(
            script.command(turn.seed),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who then end it
        )
        error = _wait(process, script.timeout)
    times: dict[str, float | None] = {"wall_s": time.monotonic() - began, "cpu_s": _cpu_seconds() - cpu}
    error = error or _failure(process.returncode, log)
    try:
        told = reporting.read(report)
    except DataError as broken:
        return Run(turn, error or str(broken), times)
    report.unlink(missing_ok=True)
    if error is not None:
        return Run(turn, error, times)
    return Run(turn, None, {**times, **_figures(told)}, told.epoch_seconds, told.quality, told.loss)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> str | None:
    """Until it has ended, or had to be ended: why."""
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        return f"took longer than {timeout:g} seconds"
    except BaseException:
        _end(process)
        raise
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Has the script end its run, as Ctrl-C would; in the end by force, with all that it started."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _failure(code: int, log: Path) -> str | None:
    if code == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code} ({signal.Signals(-code).name})"
    return f"{how}: {lines[-1].strip()}"[:_LONGEST] if lines else how


def _cpu_seconds() -> float:
    """Of all child processes that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _file_name(turn: Turn) -> str:
    text = f"{turn.variant.name}, seed {turn.seed}"
    return "".join(character if character.isalnum() or character in ".+()" else "-" for character in text)


# ---- what it measured


def _figures(told: reporting.Report) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    if told.epoch_seconds:
        figures["epoch_s"] = statistics.median(told.epoch_seconds)
    if told.seconds is not None:
        figures |= {"run_s": told.seconds, "memory": told.peak_memory}
    if told.counters:
        nodes = [counted["node"] for counted in told.counters.values()]
        workers = [worker for counted in told.counters.values() for worker in counted["workers"]]
        figures |= _counted(nodes, workers)
    return {**figures, **told.figures}


def _counted(nodes: Sequence[dict[str, Any]], workers: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    def total(name: str) -> float:
        return float(sum(node[name] for node in nodes))

    pulled = sum(worker["pull_keys"] for worker in workers)
    kinds = {kind: total(kind) for kind in _KINDS}
    return {
        "local_share": sum(worker["pull_local"] for worker in workers) / pulled if pulled else 1.0,
        "bytes": total("bytes_out"),
        **kinds,
        "other_bytes": total("bytes_out") - sum(kinds.values()),
        "relocations": total("relocations_in"),
        "replicas": total("replicas_made"),
        "wait_ms": total("refresh_wait_us") / _MS / max(1.0, total("refreshes")),
        "wait_most_ms": max(node["refresh_wait_most_us"] for node in nodes) / _MS,
        "node_cpu_s": total("cpu_ns") / 1e9,
    }
