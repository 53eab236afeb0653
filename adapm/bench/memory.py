"""`adapm bench memory`: bytes that a node takes beside the rows' values, per row kept there and per row of the table.

A node's memory is its private pages, and what of its segment has ever been written; only the rest of the last 4 MiB
that were reserved for rows, and of buffers that do not depend on rows, is not counted.  Nodes are measured after work
that makes every page that belongs to rows necessary: each worker signals intent for all rows at home on its node, and
for a few of the others, so that rows have moved.  With G rows in the table and L of them on a node,

    memory = fixed + values * L + local * L + global * G

is solved for `local` and `global` from runs of two nodes (L about G/2) and of four (G/4); `fixed` is that of a tiny
table.  Rows are padded to lines of 64 bytes, which counts as `local`.  A replica also has a copy of the values that it
began with, which is not counted: there are none at rest.
"""

from __future__ import annotations

import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from adapm import BlockingWorker, Table
from adapm.bench import machine
from adapm.bench.harness import Measure, check_fits, check_positive, run, settings

TIMING: Final = ()
_TABLE: Final = "rows"
_NODES: Final = (2, 4)
_TINY: Final = 64  # rows of the table that tells what is fixed
_BATCH: Final = 4096
_MOVED: Final = (
    64  # rows that move at a time: while they do they have a base, which is room for as many, not for each row
)
_EVERY: Final = 256  # every so manieth row moves: more than one per page of what is kept per row
_KIB: Final = 1024
_FLOAT: Final = 4


@dataclass(frozen=True)
class Memory:
    """What is measured.

    Attributes:
        rows, dim: of the table.
        transport: between the nodes.
    """

    rows: int
    dim: int
    transport: str


def measure(memory: Memory) -> Measure:
    """Takes one sample of all figures at each call, in runs with nodes and workers of their own."""
    check_positive(rows=memory.rows, dim=memory.dim)
    check_fits(Table(_TABLE, rows=memory.rows, dim=memory.dim), copies=1)
    return lambda: _solve(memory)


def _solve(memory: Memory) -> dict[str, float]:
    (few, local_of_few), (many, local_of_many) = (_beside_values(nodes, memory) for nodes in _NODES)
    local = (few - many) / (local_of_few - local_of_many)
    return {
        "bytes_per_local_row": local,
        "bytes_per_global_row": (few - local * local_of_few) / memory.rows,
        "bytes_of_two_nodes_per_row": few / memory.rows,
        "bytes_of_four_nodes_per_row": many / memory.rows,
    }


def _beside_values(nodes: int, memory: Memory) -> tuple[float, float]:
    """Bytes of a node beside its values and what it needs for any table, and its rows."""
    taken, rows = _taken(nodes, memory.rows, memory)
    fixed, tiny = _taken(nodes, _TINY, memory)
    return taken - fixed - (rows - tiny) * memory.dim * _FLOAT, rows


def _taken(nodes: int, rows: int, memory: Memory) -> tuple[float, float]:
    """Bytes and rows of a node, in the mean."""
    config = settings(nodes=nodes, workers="1", transport=memory.transport)
    sampled = run(work, Table(_TABLE, rows=rows, dim=memory.dim), config)
    return (statistics.fmean(s["bytes"] for s in sampled), statistics.fmean(s["rows"] for s in sampled))


def work(worker: BlockingWorker) -> dict[str, float]:
    """What each worker does."""
    rows = np.arange(worker.tables[_TABLE].rows)
    local = worker.is_local(_TABLE, rows)
    visited = rows[~local & (rows % _EVERY == worker.id)]  # each by one worker, so that there will be no replicas
    for keys, batch in ((rows[local], _BATCH), (visited, _MOVED)):
        for begin in range(0, len(keys), batch):
            worker.intent(_TABLE, keys[begin : begin + batch], worker.clock + 1)
            worker.advance_clock()
            worker.wait_sync()
        worker.advance_clock()
        worker.barrier()
    worker.barrier()
    node = machine.nodes_beside(os.getpid())[worker.node]
    taken = {"bytes": float(_private(node) + _segment(node)), "rows": float(worker.statistics().node.rows_owned)}
    worker.barrier()
    return taken


def _private(pid: int) -> int:
    """Bytes of memory that only this process has; the segment has its own account."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    anonymous = re.search(r"^Anonymous: +(\d+) kB$", text, re.MULTILINE)
    assert anonymous is not None
    return int(anonymous[1]) * _KIB


def _segment(pid: int) -> int:
    """Bytes of the node's segment that have ever been written."""
    segments = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if str(fd.readlink()).startswith("/memfd:adapm")]
    return sum(_written(fd) for fd in segments)


def _written(path: Path) -> int:
    with path.open("rb") as file:
        end, at, written = os.fstat(file.fileno()).st_size, 0, 0
        while at < end:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but holes from here on
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            written += at - begin
    return written
