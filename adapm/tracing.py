"""A node's trace: what happened to some keys, written to a file while the run goes on; `adapm trace` reads it.

The lane (native/trace.c) puts events into a ring and says when some are to be taken. The file is a line of JSON that
says whose trace it is, and the events behind it, 40 bytes each (`EVENT`).
"""

from __future__ import annotations

import enum
import json
import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from adapm.config import Config
from adapm.engine import Lane
from adapm.errors import ConfigError
from adapm.selection import Selection
from adapm.tables import Table

log = logging.getLogger(__name__)

FORMAT: Final = 1  # of the file
ROOM: Final = 1 << 16  # events that may wait for the node
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

# adapm_trace_event of native/kernel.h. What clock and peer mean depends on the kind, see there.
EVENT: Final = np.dtype(
    {
        "names": ["time", "clock", "end", "table", "row", "peer", "worker", "kind", "reason"],
        "formats": ["<u8", "<i8", "<i8", "<u4", "<u4", "<u2", "<u2", "u1", "u1"],
        "offsets": [0, 8, 16, 24, 28, 32, 34, 36, 37],
        "itemsize": 40,
    }
)


class Kind(enum.IntEnum):
    """What happened; the numbers are the kernel's, which says more."""

    LOST = 1
    CLOCK = 2
    SIGNAL = 3
    WANTED = 4
    UNWANTED = 5
    OWNED = 6
    GIVEN = 7
    REPLICA = 8
    DROPPED = 9
    SERVED = 10
    PULL = 11
    PUSH = 12
    SET = 13


class Reason(enum.IntEnum):
    """Why an access was not local."""

    NO_INTENT = 1
    LATE = 2
    NO_ROOM = 3


class Tracer:
    """Traces one lane into the file `node-N.trace` of a folder.

    Args:
        config: its `trace` is the folder, which is made if need be; its `trace_keys` say what is traced.
        tables: all tables, in order.
        node: whose lane it is.
        lane: nothing must have happened to it yet.
        room: events that may wait for the node, a power of two.

    Raises:
        ConfigError: the folder cannot be written, or a key that is named does not exist.
    """

    def __init__(self, config: Config, tables: Sequence[Table], node: int, lane: Lane, room: int = ROOM) -> None:
        selection = Selection.parse(config.trace_keys)
        refs = selection.refs({table.name: table.rows for table in tables})
        self._file = _open(Path(str(config.trace)), f"node-{node}.trace", _header(config, tables, node))
        self._node, self._lane, self._ended = node, lane, False
        self._events = np.zeros(room + 1, EVENT)  # and one that tells how many were lost
        lane.trace(room, [selection.below(table.rows) for table in tables], refs)

    def drain(self) -> None:
        """Writes what has happened. A file that cannot be written ends the trace, not the run."""
        taken = self._lane.traced(self._events)
        if self._ended:
            return
        try:
            self._file.write(self._events[:taken].tobytes())
            self._file.flush()
        except OSError as error:
            self._ended = True
            log.warning("node %d: the trace ends here, %s cannot be written: %s", self._node, self._file.name, error)

    def close(self) -> None:
        """Writes the rest; before the lane is closed."""
        self.drain()
        self._file.close()


def _open(folder: Path, name: str, header: dict[str, Any]) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("wb")
        file.write(json.dumps(header).encode() + b"\n")
        file.flush()
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"trace={str(folder)!r} must be a folder to write traces into: {why}") from error
    return file


def _header(config: Config, tables: Sequence[Table], node: int) -> dict[str, Any]:
    """Whose trace it is; the two times say what of the day the host's monotonic clock means."""
    return {
        "adapm_trace": FORMAT,
        "node": node,
        "nodes": config.nodes,
        "workers": config.worker_count,
        "technique": config.technique,
        "tables": [{"name": table.name, "rows": table.rows} for table in tables],
        "trace_keys": config.trace_keys,
        "host": socket.gethostname(),
        "boot": _BOOT.read_text().strip() if _BOOT.exists() else "",
        "monotonic_ns": time.monotonic_ns(),
        "unix_ns": time.time_ns(),
    }
