"""`adapm bench intent`: a loop that signals what it will access, against the same loop without, and on one node.

Each worker signals its batches `ahead` clocks in advance; at each clock it pulls and pushes one batch, and computes
nothing in between.  An access is one key pulled and pushed.  Batches are drawn before the clock starts, and come again
after a long time.  A node and its worker have the cores of one machine: with two cores and two nodes, one each.

    single      one node, one worker, the same program
    static      all nodes, no intent: rows stay where they were at the start
    adaptive    all nodes, with intent

CPU time is that of all workers and nodes, between two moments in the middle of the loop at which nobody stops.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from adapm import BlockingWorker, Table
from adapm.bench import machine
from adapm.bench.harness import Measure, check_fits, check_positive, over, run, settings
from adapm.bench.keys import Keys, draw
from adapm.errors import InternalError, UsageError

TIMING = ("keys_per_s_per_worker", "cpu_us_per_access")
_TABLE = "rows"
_BATCHES = 1000  # different ones; more than anybody looks ahead
_CHECKED = 512  # rows whose sums are compared at the end
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Loop:
    """What is measured.

    Attributes:
        nodes: with one worker each.
        rows, dim: of the table.
        batch: keys at one clock.
        ahead: clocks between signal and access.
        keys: see `draw`.
        transport: between the nodes.
        seconds: of one measurement; warm_up: before it.
        cores: for the machines that we play.
        signals: whether intent is signalled.
    """

    nodes: int
    rows: int
    dim: int
    batch: int
    ahead: int
    keys: str
    transport: str
    seconds: float
    warm_up: float
    cores: tuple[int, ...]
    signals: bool = True


def variants(loop: Loop) -> dict[str, Measure]:
    """One measurement of each variant per call."""
    check_positive(rows=loop.rows, dim=loop.dim, batch=loop.batch, ahead=loop.ahead, seconds=loop.seconds)
    if loop.nodes < 2:
        raise UsageError(f"nodes must be at least 2, got {loop.nodes}: `single` is measured anyway")
    if loop.ahead >= _BATCHES:
        raise UsageError(f"ahead must be below {_BATCHES}, got {loop.ahead}")
    check_fits(Table(_TABLE, rows=loop.rows, dim=loop.dim), copies=1)
    return {
        "single": _measure(replace(loop, nodes=1)),
        "static": _measure(replace(loop, signals=False)),
        "adaptive": _measure(loop),
    }


def _measure(loop: Loop) -> Measure:
    table = Table(_TABLE, rows=loop.rows, dim=loop.dim)
    config = settings(nodes=loop.nodes, workers="1", transport=loop.transport)
    return lambda: _summary([_Count(**counted) for counted in run(work, table, config, loop)], loop)


@dataclass(frozen=True)
class _Count:
    """What one worker and its node did between the two moments, and whether the sums were right at the end."""

    seconds: float
    accesses: float
    local: float
    cpu_worker: float
    cpu_node: float
    bytes_out: float
    rounds: float
    ticks: float
    moved: float
    late: float


def _summary(counts: list[_Count], loop: Loop) -> dict[str, float]:
    total = {name: sum(asdict(count)[name] for count in counts) for name in asdict(counts[0])}
    accesses, seconds = total["accesses"], total["seconds"] / len(counts)
    return {
        "keys_per_s_per_worker": sum(count.accesses / count.seconds for count in counts) / len(counts),
        "local_fraction": total["local"] / accesses,
        "bytes_per_access": total["bytes_out"] / accesses,
        "rounds_per_s": total["rounds"] / len(counts) / seconds,
        "cpu_us_per_access": 1e6 * (total["cpu_worker"] + total["cpu_node"]) / accesses,
        "cpu_us_per_access_nodes": 1e6 * total["cpu_node"] / accesses,
        "cpu_us_per_access_workers": 1e6 * total["cpu_worker"] / accesses,
        "ticks_per_s": total["ticks"] / len(counts) / seconds,
        "rows_moved_per_access": total["moved"] / accesses,
        "bytes_over_moved_rows": over(total["bytes_out"], total["moved"] * loop.dim * _FLOAT),
        "late_per_access": total["late"] / accesses,
    }


def work(worker: BlockingWorker, loop: Loop) -> dict[str, float]:
    """What each worker does."""
    node = machine.nodes_beside(os.getpid())[worker.node]
    for pid in (os.getpid(), node):
        machine.pin(pid, machine.share_of(worker.node, max(loop.nodes, 2), list(loop.cores)))
    driver = _Driver(worker, loop)
    worker.barrier()
    driver.run_for(loop.warm_up)
    before = _State.of(worker, node)
    accesses = driver.run_for(loop.seconds)
    after = _State.of(worker, node)
    worker.barrier()
    driver.check()
    return asdict(_difference(before, after, accesses))


class _Driver:
    """The loop itself."""

    def __init__(self, worker: BlockingWorker, loop: Loop) -> None:
        self._worker = worker
        self._loop = loop
        self._batches = draw(loop.keys, loop.rows, loop.batch, _BATCHES, worker.rng)
        self._done = np.zeros(_BATCHES, np.int64)  # how often each batch was pushed
        self._out = np.empty((loop.batch, loop.dim), np.float32)
        self._ones = np.ones((loop.batch, loop.dim), np.float32)
        if loop.signals:
            for clock in range(loop.ahead):
                self._signal(clock)

    def run_for(self, seconds: float) -> int:
        """Goes on with the loop for that long; returns the number of accesses."""
        begin = self._worker.clock
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._step()
        return (self._worker.clock - begin) * self._loop.batch

    def check(self) -> None:
        """Compares some rows with what everybody says to have pushed; all workers must call it.

        Raises:
            InternalError: an update was lost, or made twice.
        """
        worker, loop = self._worker, self._loop
        checked = np.unique(draw(loop.keys, loop.rows, min(loop.rows, _CHECKED), 1, np.random.default_rng(1)))
        seen = worker.pull(_TABLE, checked)
        worker.barrier()
        worker.push(_TABLE, checked, np.repeat(-self._pushed(checked)[:, None], loop.dim, axis=1))
        worker.barrier()
        left = worker.pull(_TABLE, checked)
        if np.any(left):
            wrong = int(checked[np.flatnonzero(left.any(axis=1))[0]])
            raise InternalError(
                f"row {wrong} has the sum {seen[checked == wrong][0, 0]:g}, which is not what was pushed"
            )

    def _step(self) -> None:
        worker, clock = self._worker, self._worker.clock
        if self._loop.signals:
            self._signal(clock + self._loop.ahead)
        keys = self._at(clock)
        worker.pull(_TABLE, keys, out=self._out)
        worker.push(_TABLE, keys, self._ones)
        self._done[clock % _BATCHES] += 1
        worker.advance_clock()

    def _signal(self, clock: int) -> None:
        self._worker.intent(_TABLE, self._at(clock), clock)

    def _at(self, clock: int) -> Keys:
        keys: Keys = self._batches[clock % _BATCHES]
        return keys

    def _pushed(self, checked: Keys) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """How often this worker pushed each of these rows."""
        times = np.repeat(self._done, self._loop.batch)
        sums = np.bincount(self._batches.ravel(), weights=times, minlength=self._loop.rows)
        return sums[checked].astype(np.float32)


@dataclass(frozen=True)
class _State:
    """Counters of one worker and its node at one moment."""

    time: float
    local: int
    cpu_worker: float
    cpu_node: float
    bytes_out: int
    rounds: int
    ticks: int
    moved: int
    late: int

    @classmethod
    def of(cls, worker: BlockingWorker, node: int) -> _State:
        """Now."""
        counted = worker.statistics()
        its = counted.node
        return cls(
            time=time.perf_counter(),
            local=counted.pull_local,
            cpu_worker=machine.cpu_seconds(os.getpid()),
            cpu_node=machine.cpu_seconds(node),
            bytes_out=its.bytes_out,
            rounds=its.rounds,
            ticks=its.ticks,
            moved=its.relocations_in + its.states_in + its.deltas_out + its.pull_remote + its.push_remote,
            late=its.intents_late,
        )


def _difference(before: _State, after: _State, accesses: int) -> _Count:
    return _Count(
        seconds=after.time - before.time,
        accesses=accesses,
        **{name: getattr(after, name) - getattr(before, name) for name in asdict(before) if name != "time"},
    )
