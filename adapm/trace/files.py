"""Traces, read and put on one time axis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adapm.errors import DataError, UsageError
from adapm.tracing import EVENT, FORMAT, Kind

_HEADER_MOST: Final = 1 << 24  # bytes
_FIELDS: Final = {"node": int, "nodes": int, "workers": int, "tables": list, "host": str, "boot": str}
_TIMES: Final = {"monotonic_ns": int, "unix_ns": int}
_PATTERN: Final = "node-*.trace"


@dataclass(frozen=True)
class Trace:
    """What the nodes of a run have traced.

    Attributes:
        nodes: of the run.
        tables: (name, rows), in the order that numbers them.
        events: `EVENT` and two more fields: `node`, u2, and `at`, f8, seconds since the first event; by time.
        lost: events that found a node's ring full, by node.
        seconds: from the first event to the last.
        missing: nodes whose trace is not here.
        hosts: how many clocks there were; of several, times differ by as much as their times of day.
    """

    nodes: int
    tables: tuple[tuple[str, int], ...]
    events: npt.NDArray[np.void]
    lost: dict[int, int]
    seconds: float
    missing: tuple[int, ...]
    hosts: int

    def of_kind(self, *kinds: Kind) -> npt.NDArray[np.void]:
        """The events of these kinds, by time."""
        return self.events[np.isin(self.events["kind"], kinds)]


_PLACED: Final = np.dtype([*((name, EVENT[name]) for name in EVENT.names or ()), ("node", "<u2"), ("at", "<f8")])


def read(sources: Sequence[Path]) -> Trace:
    """Reads traces of one run.

    Args:
        sources: files, and folders that `trace` named.

    Raises:
        UsageError: there are no traces.
        DataError: a file is no trace, is damaged, or they are of different runs.
    """
    files = [file for source in sources for file in (sorted(source.glob(_PATTERN)) if source.is_dir() else [source])]
    if not files:
        raise UsageError(
            f"there is no {_PATTERN} in {', '.join(map(str, sources))}: run with --trace DIR, and name that folder"
        )
    parts = [_read_one(file) for file in files]
    first = parts[0][0]
    for file, (header, _) in zip(files, parts, strict=True):
        if (header["nodes"], header["tables"]) != (first["nodes"], first["tables"]):
            raise DataError(f"it is of another run than {files[0]}: remove what is older", file=file)
    nodes = [header["node"] for header, _ in parts]
    if len(set(nodes)) < len(nodes):
        raise UsageError(f"there are several traces of a node, of nodes {sorted(nodes)}: name those of one run")
    return _together(parts)


def _read_one(file: Path) -> tuple[dict[str, Any], npt.NDArray[np.void]]:
    try:
        with file.open("rb") as stream:
            header = _header(stream.readline(_HEADER_MOST), file)
            rest = stream.read()
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", file=file) from error
    events = np.frombuffer(rest, EVENT, len(rest) // EVENT.itemsize)  # a node that was killed may leave half of one
    _check(events, header, file)
    return header, events


def _header(line: bytes, file: Path) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or "adapm_trace" not in header:
        raise DataError("it is no trace: those are written by runs with --trace DIR", file=file)
    if header["adapm_trace"] != FORMAT:
        raise DataError(f"it has format {header['adapm_trace']}, this adapm reads format {FORMAT}", file=file)
    for name, kind in {**_FIELDS, **_TIMES}.items():
        if not isinstance(header.get(name), kind):
            raise DataError(f"its first line is damaged: {name!r} is missing or no {kind.__name__}", file=file)
    for table in header["tables"]:
        if not (isinstance(table, dict) and isinstance(table.get("name"), str) and isinstance(table.get("rows"), int)):
            raise DataError(f"its first line is damaged: {table!r} is no table", file=file)
    if not 0 <= header["node"] < header["nodes"] <= 1 << 16:
        raise DataError(f"its first line is damaged: node {header['node']} of {header['nodes']}", file=file)
    return header


def _check(events: npt.NDArray[np.void], header: dict[str, Any], file: Path) -> None:
    rows = np.array([table["rows"] for table in header["tables"]] or [0])
    known = np.isin(events["kind"], list(Kind)) & (events["table"] < len(rows))
    known[known] = events["row"][known] < rows[events["table"][known]]
    if not known.all():
        raise DataError(f"it is damaged: its event {int(np.argmin(known))} is none that adapm writes", file=file)


def _together(parts: Sequence[tuple[dict[str, Any], npt.NDArray[np.void]]]) -> Trace:
    """All events with their times in the first host's monotonic clock, and as seconds from the first on."""
    header = parts[0][0]
    offset = header["unix_ns"] - header["monotonic_ns"]
    placed = []
    for other, events in parts:
        here = np.zeros(len(events), _PLACED)
        for name in EVENT.names or ():
            here[name] = events[name]
        here["node"] = other["node"]
        if other["boot"] != header["boot"]:  # of another host
            here["time"] += np.uint64((other["unix_ns"] - other["monotonic_ns"] - offset) % (1 << 64))
        placed.append(here)
    every = np.concatenate(placed)
    every = every[np.argsort(every["time"], kind="stable")]
    if len(every):
        every["at"] = (every["time"] - every["time"][0]) / 1e9
    lost = every[every["kind"] == Kind.LOST]
    nodes = sorted(other["node"] for other, _ in parts)
    return Trace(
        nodes=header["nodes"],
        tables=tuple((table["name"], table["rows"]) for table in header["tables"]),
        events=every[every["kind"] != Kind.LOST],
        lost={node: int(lost["clock"][lost["node"] == node].sum()) for node in nodes},
        seconds=float(every["at"][-1]) if len(every) else 0.0,
        missing=tuple(sorted(set(range(header["nodes"])) - set(nodes))),
        hosts=len({other["boot"] for other, _ in parts}),
    )
