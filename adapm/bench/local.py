"""`adapm bench local`: rows of this machine, against a gather and a scatter-add on a plain array.

The plain array is each process's own; its rows are found by their place, nothing is looked up or locked, and the code
is compiled (native/bench.c).  It is measured twice: in huge pages, which is the limit, and in pages of 4 KiB.
Our own side is what users call: `worker.pull(table, keys, out=out)` and `worker.push(table, keys, values)`, and
`worker.pull(table, keys)`, which makes an array for the rows. No keys come twice in a row.

All processes do the same at the same time and take turns with it.  A figure is the median time of some thousand keys:
turns that another process interrupted do not count.  Intent is signalled in bursts that fit into the ring, so that its
price for the worker is no wait for the node; the node's price is its CPU time until all is settled.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from adapm import BlockingWorker, Table
from adapm.bench import machine
from adapm.bench.harness import Measure, check_fits, check_positive, over, run, settings
from adapm.bench.keys import Keys, draw
from adapm.errors import InternalError
from adapm.kernel import ffi, lib

TIMING: Final = ("gather_ns", "pull_ns", "scatter_add_ns", "push_ns")
CALLS: Final = ("pull", "pull_new", "push")  # from Python
_TABLE: Final = "rows"
_KEYS: Final = 1 << 20  # drawn, in all batches together: more rows than any cache has
_MOST_BATCHES: Final = 1 << 16
_TIMED: Final = 1024  # keys, at least, between two looks at the clock
_AHEAD: Final = 24  # keys, within a few percent of the fastest for rows of 16 to 128 floats
_TURN: Final = 0.03  # seconds
_BURST: Final = 65_536  # keys signalled at once; the ring takes twice as many
_HUGE_PAGE: Final = 2 << 20
_MADV_HUGEPAGE: Final = 14  # Python's mmap does not name them everywhere
_MADV_NOHUGEPAGE: Final = 15

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Operation = Callable[[int], None]
"""Does the work for a group of batches, given by its number."""


@dataclass(frozen=True)
class Local:
    """What is measured.

    Attributes:
        rows, dim: of the table.
        batch: keys of one call.
        processes: workers, each a process.
        keys: see `draw`.
        seconds: of each repetition, for each operation.
        cores: for the workers, in turn.
    """

    rows: int
    dim: int
    batch: int
    processes: int
    keys: str
    seconds: float
    cores: tuple[int, ...]


def measure(local: Local) -> Measure:
    """Takes one sample of all figures at each call, with a node and workers of its own."""
    check_positive(rows=local.rows, dim=local.dim, batch=local.batch, processes=local.processes, seconds=local.seconds)
    table = Table(_TABLE, rows=local.rows, dim=local.dim)
    config = settings(workers=str(local.processes))
    check_fits(table, copies=1 + 2 * local.processes)
    return lambda: _summary(run(work, table, config, local), local)


def _summary(sampled: list[dict[str, float]], local: Local) -> dict[str, float]:
    figures = {name: statistics.fmean(sample[name] for sample in sampled if name in sample) for name in sampled[0]}
    figures["pull_over_gather"] = over(figures["pull_ns"], figures["gather_ns"])
    figures["push_over_scatter_add"] = over(figures["push_ns"], figures["scatter_add_ns"])
    for name in CALLS:
        figures[f"{name}_call_us"] = figures[f"{name}_ns"] * local.batch / 1000
    for name in ("gather", "pull", "scatter_add", "push"):
        if local.processes > 1:
            figures[f"{name}_scaling"] = local.processes * over(figures[f"{name}_alone_ns"], figures[f"{name}_ns"])
    return figures


def work(worker: BlockingWorker, local: Local) -> dict[str, float]:
    """What each worker does."""
    where, node = list(local.cores), machine.nodes_beside(os.getpid())[0]
    machine.pin(os.getpid(), machine.core_of(worker.id, where))
    machine.pin(node, machine.core_of(local.processes, where))
    return _Bench(worker, local, node).measure()


class PlainTable:
    """A dense array, float32.

    Args:
        rows, dim: its shape.
        huge: in pages of 2 MiB, where the system has them for those who ask.

    Attributes:
        values: the array.
        pointer: to it.
    """

    def __init__(self, rows: int, dim: int, *, huge: bool) -> None:
        self.values = _array(rows, dim, _MADV_HUGEPAGE if huge else _MADV_NOHUGEPAGE)
        self.values[:] = np.arange(rows, dtype=np.float32)[:, None] % 1009  # tells rows apart
        self.pointer = ffi.from_buffer("float[]", self.values)
        self._dim = dim

    def check(self, keys: Keys) -> None:
        """Gathers and adds one batch, and makes sure that it was done.

        Raises:
            InternalError: it was not; then the figures would mean nothing.
        """
        slots, before = ffi.from_buffer("int64_t[]", keys), self.values[keys]
        out, ones = np.empty_like(before), np.ones_like(before)
        batch = (self._dim, slots, len(keys), _AHEAD)
        lib.adapm_bench_gather(self.pointer, *batch, ffi.from_buffer("float[]", out))
        lib.adapm_bench_scatter_add(self.pointer, *batch, ffi.from_buffer("float[]", ones))
        times = np.bincount(keys, minlength=len(self.values)).astype(np.float32)[keys, None]
        if not np.array_equal(out, before) or not np.array_equal(self.values[keys], before + times):
            raise InternalError("the plain gather or scatter-add does not do its work")


class _Bench:
    """One worker's part."""

    def __init__(self, worker: BlockingWorker, local: Local, node: int) -> None:
        self._worker, self._local, self._node = worker, local, node
        n = min(_MOST_BATCHES, max(1, _KEYS // local.batch))
        self._batches = list(draw(local.keys, local.rows, local.batch, n, worker.rng))
        self._group = max(1, _TIMED // local.batch)  # calls between two looks at the clock
        self._next = 0  # the group that is next, of whatever operation

    def measure(self) -> dict[str, float]:
        """One sample of this worker's figures."""
        operations = self._operations()
        times: dict[str, list[float]] = {name: [] for name in operations}
        for _ in range(max(1, round(self._local.seconds / _TURN))):
            for name, operation in operations.items():
                self._worker.barrier()
                times[name] += self._turn(operation)
                if self._local.processes > 1:
                    self._worker.barrier()
                    if self._worker.id == 0:
                        times.setdefault(f"{name}_alone", []).extend(self._turn(operation))
            self._signal(times.setdefault("intent", []), times.setdefault("intent_node", []))
        return {f"{name}_ns": 1e9 * statistics.median(taken) for name, taken in times.items()}

    def _operations(self) -> dict[str, Operation]:
        """What takes turns."""
        shape = (self._local.batch, self._local.dim)
        out, ones = np.empty(shape, np.float32), np.ones(shape, np.float32)
        huge, small = (PlainTable(self._local.rows, self._local.dim, huge=huge) for huge in (True, False))
        for plain in (huge, small):
            plain.check(self._batches[0])
        to, of = ffi.from_buffer("float[]", out), ffi.from_buffer("float[]", ones)
        return {
            "gather": self._plain(lib.adapm_bench_gather, huge, to),
            "pull": self._pull(out),
            "pull_new": self._pull(None),
            "gather_small_pages": self._plain(lib.adapm_bench_gather, small, to),
            "scatter_add": self._plain(lib.adapm_bench_scatter_add, huge, of),
            "push": self._push(ones),
            "scatter_add_small_pages": self._plain(lib.adapm_bench_scatter_add, small, of),
        }

    def _pull(self, out: Floats | None) -> Operation:
        pull, groups = self._worker.pull, self._groups(self._batches)

        def operation(group: int) -> None:
            for keys in groups[group]:
                pull(_TABLE, keys, out=out)

        return operation

    def _push(self, values: Floats) -> Operation:
        push, groups = self._worker.push, self._groups(self._batches)

        def operation(group: int) -> None:
            for keys in groups[group]:
                push(_TABLE, keys, values)

        return operation

    def _plain(self, function: Callable[..., None], plain: PlainTable, rows: Any) -> Operation:
        rows_of, dim, n = plain.pointer, self._local.dim, self._local.batch
        groups = self._groups([ffi.from_buffer("int64_t[]", keys) for keys in self._batches])

        def operation(group: int) -> None:
            for slots in groups[group]:
                function(rows_of, dim, slots, n, _AHEAD, rows)

        return operation

    def _groups(self, batches: Sequence[T]) -> list[Sequence[T]]:
        """What is done between two looks at the clock."""
        return [batches[i : i + self._group] for i in range(0, len(batches) - self._group + 1, self._group)]

    def _turn(self, operation: Operation) -> list[float]:
        """Seconds per key of each group of calls."""
        clock, keys, groups = time.perf_counter, self._group * self._local.batch, len(self._batches) // self._group
        stamps = [clock()]
        while stamps[-1] - stamps[0] < _TURN:
            operation(self._next)
            self._next = (self._next + 1) % groups
            stamps.append(clock())
        return [(after - before) / keys for before, after in pairwise(stamps)]

    def _signal(self, worker_side: list[float], node_side: list[float]) -> None:
        """One burst of intent for the next clock, and the CPU time that the node spends until it has ended again."""
        worker, clock = self._worker, time.perf_counter
        burst = self._batches[: max(1, _BURST // self._local.batch)]
        worker.barrier()
        cpu, begin = machine.cpu_seconds(self._node), clock()
        for keys in burst:
            worker.intent(_TABLE, keys, worker.clock + 1)
        taken = clock() - begin
        worker.advance_clock()
        worker.wait_sync()
        worker.advance_clock()
        worker.barrier()
        keys_signalled = len(burst) * self._local.batch
        worker_side.append(taken / keys_signalled)
        node_side.append((machine.cpu_seconds(self._node) - cpu) / keys_signalled / self._local.processes)


def _array(rows: int, dim: int, advice: int) -> Floats:
    """Memory of our own that begins with a huge page."""
    size = rows * dim * np.dtype(np.float32).itemsize
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(advice)
    except OSError:  # a kernel without huge pages: then there are only small ones
        pass
    raw = np.frombuffer(memory, np.uint8)
    offset = -raw.ctypes.data % _HUGE_PAGE
    return raw[offset : offset + size].view(np.float32).reshape(rows, dim)
