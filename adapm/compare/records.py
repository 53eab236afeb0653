"""Runs in a file, a line of JSON each, as they come: a comparison that was interrupted goes on from there.

The first line says what is compared. The rest are runs, failed ones too; of several of one turn the last counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from adapm import __version__
from adapm.compare.running import Run, Script
from adapm.compare.variants import Turn, Variant
from adapm.config import Config
from adapm.errors import DataError, UsageError

FILE: Final = "runs.jsonl"
CHOSEN: Final = ("technique", "transport", "link_bandwidth", "link_latency", "nodes", "workers", "seed", "report")


@dataclass(frozen=True)
class Header:
    """What is compared, and where.

    Attributes:
        script, args: as given.
        settings: those that are the same in all runs and not at their default, as text.
        version: of adapm.
        machine: its processors, and whether they were busy.
        began: the day, in UTC.
    """

    script: str
    args: list[str]
    settings: dict[str, str]
    version: str
    machine: str
    began: str

    @classmethod
    def of(cls, script: Script, cores: int) -> Header:
        """Of this machine, now."""
        loaded = Config.load()
        others = [name for name in loaded.as_dict() if name not in CHOSEN and loaded.origin(name) != "default"]
        common = {name: loaded.show(name) for name in others}
        load = f"load average {os.getloadavg()[0]:.1f} when it began"
        machine = f"{cores} cores of {_processor()}, {load}, Python {platform.python_version()}"
        today = datetime.now(timezone.utc).date().isoformat()
        return cls(script.file, list(script.args), common, __version__, machine, today)


class Records:
    """The file of a comparison, in a folder of its own."""

    def __init__(self, folder: Path, header: Header, runs: Iterable[Run] = ()) -> None:
        self._file = folder / FILE
        self.header = header
        self._runs = {run.turn: run for run in runs}

    @classmethod
    def begin(cls, folder: Path, header: Header) -> Records:
        """A new file.

        Raises:
            UsageError: there is one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / FILE).exists():
            raise UsageError(f"{folder / FILE} has runs already: go on with --resume, or choose another folder")
        records = cls(folder, header)
        records._write("w", {"compare": dataclasses.asdict(header)})
        return records

    @classmethod
    def read(cls, folder: Path) -> Records:
        """What a file has.

        Raises:
            UsageError: there is none.
            DataError: a line is none of ours.
        """
        file = folder / FILE
        if not file.is_file():
            raise UsageError(f"there is no {file}: --out names the folder of a comparison that was begun")
        lines = file.read_bytes().split(b"\n")[:-1]  # what does not end was being written when we were ended
        runs = [_run(file, number, line) for number, line in enumerate(lines[1:], start=2)]
        return cls(folder, _header(file, lines[0] if lines else b""), runs)

    @classmethod
    def resume(cls, folder: Path, header: Header) -> Records:
        """What a file has, to go on.

        Raises:
            UsageError: there is none, or it is of another script, other arguments, settings or another version.
            DataError: a line is none of ours.
        """
        records = cls.read(folder)
        for name in ("script", "args", "settings", "version"):
            was, now = getattr(records.header, name), getattr(header, name)
            if was != now:
                raise UsageError(f"{folder / FILE} is of {name} {was!r}, not {now!r}: choose another folder")
        whole = records._file.read_bytes().rpartition(b"\n")
        records._file.write_bytes(whole[0] + whole[1])
        return records

    @property
    def runs(self) -> list[Run]:
        """All, in the order in which they came."""
        return list(self._runs.values())

    def has(self, turn: Turn) -> bool:
        """Whether this need not be run any more; what failed may be tried again."""
        return turn in self._runs and self._runs[turn].error is None

    def add(self, run: Run) -> None:
        """One more."""
        self._runs.pop(run.turn, None)
        self._runs[run.turn] = run
        self._write("a", as_tree(run))

    def _write(self, mode: str, line: dict[str, Any]) -> None:
        with self._file.open(mode, encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def as_tree(run: Run) -> dict[str, Any]:
    """A run for JSON."""
    tree = dataclasses.asdict(run)
    return {**tree.pop("turn"), **tree}


def _run(file: Path, number: int, line: bytes) -> Run:
    try:
        tree: dict[str, Any] = json.loads(line)
        turn = Turn(Variant(**tree.pop("variant")), tree.pop("seed"))
        return Run(turn, **tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"is no run ({type(error).__name__}: {error})", file=file, line=number) from None


def _header(file: Path, line: bytes) -> Header:
    try:
        return Header(**json.loads(line)["compare"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"does not say what is compared ({type(error).__name__})", file=file, line=1) from None


def _processor() -> str:
    lines: Sequence[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
