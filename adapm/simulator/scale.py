"""How cost grows with the number of nodes: a trainer on 2, 8, ... 1,024 real nodes, and what an access takes.

Each node has one worker, which signals its batches ahead, pulls and pushes one per clock, and computes in between.
Every worker does the same whatever the number of nodes.  Counters are read at three moments, when all workers together
have done so many clocks; nobody stops for it.  The two spans between them should not differ: that is how it is seen
that the run was steady.  In the end the nodes come to rest, and main copies are compared with what was pushed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapm.errors import InternalError, UsageError
from adapm.segment import capacities, home_rows, needed_bytes, row_bytes
from adapm.simulator import room
from adapm.simulator.choices import Choices
from adapm.simulator.cluster import Cluster, Sizes, TimedLoop
from adapm.simulator.costs import Costs
from adapm.simulator.wires import Line
from adapm.statistics import NodeStatistics
from adapm.tables import Table
from adapm.worker import Worker

Keys = npt.NDArray[np.int64]

KEYS = ("uniform", "zipf")
MOST_NODES = 4000  # of a run
DEADLINE = 1e6  # virtual seconds
_TABLE = "rows"
_LEAST_MEMORY = 1 << 20  # bytes of rows that a node can be limited to
_LEAST_HEAP = 1 << 16  # bytes that a worker's heap can be
_LINE = 64  # bytes
_MOST_SIGNALLED = 1 << 19  # bytes of intents that a worker signals at once: half of its ring
_SPANS = 2  # of a measurement
_MAY_BE_ZERO = ("fixed", "latency", "warm_up", "seed")
_CHECKED = 1000  # rows whose sums are compared at the end
_NODE_BYTES = 2_000_000  # of a node and its worker, beside segment, rows and what it keeps for each other node
_PAIR_BYTES = 3000  # that a node keeps for each other node
_DESCRIPTORS = 12  # of a node and its worker
_OTHER_DESCRIPTORS = 64


@dataclass(frozen=True)
class Load:
    """What is simulated.

    Attributes:
        keys: how they are drawn, "uniform" or "zipf" (exponent 1).
        rows: of the table: per node, or in all if `fixed`.
        fixed: whether the table stays as it is when nodes are added.
        dim: floats in a row.
        batch: keys of a clock.
        ahead: clocks between signal and access.
        think: seconds that a worker computes per clock.
        warm_up, clocks: of each worker, before and while it is measured.
        latency: seconds between two nodes.
        bandwidth: bytes per second of each node, in and out.
        tick_rate: of the nodes, per second.
        seed: of everything.
    """

    keys: str = "uniform"
    rows: int = 64
    fixed: bool = False
    dim: int = 16
    batch: int = 16
    ahead: int = 4
    think: float = 4e-3
    warm_up: int = 12
    clocks: int = 12
    latency: float = 50e-6
    bandwidth: float = 1.25e9
    tick_rate: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keys not in KEYS:
            raise UsageError(f"keys cannot be {self.keys!r}: there are {', '.join(KEYS)}")
        if self.clocks < _SPANS:
            raise UsageError(f"clocks must be at least {_SPANS}, got {self.clocks}")
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name in _MAY_BE_ZERO else math.ulp(0.0)
            if isinstance(value, (int, float)) and not least <= value < math.inf:
                raise UsageError(f"{name} must be {'0 or more' if least == 0 else 'above 0'}, got {value}")
        if (self.ahead + 1) * (self.batch * 4 + 40) > _MOST_SIGNALLED:
            raise UsageError(f"{self.ahead} batches of {self.batch} keys ahead are too many: signal fewer at once")

    def table(self, nodes: int) -> Table:
        """The table of so many nodes."""
        return Table(_TABLE, rows=self.rows if self.fixed else self.rows * nodes, dim=self.dim)

    def memory(self, nodes: int) -> int:
        """Bytes of rows that each of so many nodes may keep: those at home, and twice what its worker wants at once."""
        table = self.table(nodes)
        kept = home_rows(table, nodes) + 2 * self.batch * (self.ahead + 1)
        return max(_LEAST_MEMORY, min(kept, table.rows) * row_bytes(table))

    def heap(self, nodes: int) -> int:
        """Bytes that hold a worker's pull or push many times over."""
        return max(_LEAST_HEAP, 8 * self.batch * (row_bytes(self.table(nodes)) + _LINE))


@dataclass(frozen=True)
class Point:
    """What so many nodes came to.

    Attributes:
        nodes: how many.
        rows: of the table.
        accesses: that were measured; one is a key that is pulled and pushed.
        bytes: sent by all nodes on behalf of rows, per access; and so on:
        messages: frames.
        rounds, nudges, forwards: of these, rounds sent (each is answered), nudges, and wants that were passed on.
        busiest: frames that the busiest node sends and receives, over the mean of all nodes.
        rows_moved: rows in them.
        ticks: of nodes.
        keys: of intents that began.
        cpu_us: of nodes, by the costs.
        here_us: of nodes, that they took in this process: all but the transport, and with a cold cache.
        wait_us: virtual time of a worker, beside what it computes.
        local: share of keys that were at their worker's node when pulled.
        segment: bytes of one node's segment.
        memory: that, and what a node and its worker keep otherwise.
        drift: bytes per access in the second half of the measurement over those in the first, less 1.
        refused: rows that were wanted and not taken in, because memory for rows was used up.
        seconds: that the run took here.
    """

    nodes: int
    rows: int
    accesses: int
    bytes: float
    messages: float
    rounds: float
    nudges: float
    forwards: float
    busiest: float
    rows_moved: float
    ticks: float
    keys: float
    cpu_us: float
    here_us: float
    wait_us: float
    local: float
    segment: int
    memory: int
    drift: float
    refused: int
    seconds: float


def simulate(nodes: int, load: Load, costs: Costs) -> Point:
    """Runs the trainer on so many nodes.

    Raises:
        OutOfMemory: they do not fit into memory; nothing has been allocated.
        UsageError: they need more descriptors than a process may have.
        InternalError: a main copy is not what was pushed.
    """
    require_room(nodes, load)
    begin = time.perf_counter()
    run = _Run(nodes, load, costs)
    run.loop.run(run.live(), DEADLINE)
    return run.point(time.perf_counter() - begin)


def require_room(nodes: int, load: Load) -> None:
    """Nothing, if a run of so many nodes fits; raises what `simulate` does, before anything is allocated."""
    needed = nodes * (_segment_bytes(nodes, load) + _NODE_BYTES + nodes * _PAIR_BYTES)
    room.require_memory(needed, f"{nodes:,} nodes with {load.table(nodes).rows:,} rows")
    room.require_descriptors(nodes * _DESCRIPTORS, f"{nodes:,} nodes")


def _segment_bytes(nodes: int, load: Load) -> int:
    """Of a node's segment, with all the rows that it may keep."""
    tables, budget = [load.table(nodes)], load.memory(nodes)
    return needed_bytes(tables, nodes, 1, load.heap(nodes), capacities(tables, nodes, budget)) + budget


@dataclass(frozen=True)
class _Moment:
    """Counters of all nodes and workers together.

    Attributes:
        node: of all nodes; the sum of each.
        frames: sent and received by each node.
        keys, local: that were pulled; of these, at their worker's node.
        clocks: that workers have done.
        cpu: seconds that nodes have taken here.
        virtual: seconds.
    """

    node: NodeStatistics
    frames: tuple[int, ...]
    keys: int
    local: int
    clocks: int
    cpu: float
    virtual: float


class _Keys:
    """Where batches of keys come from."""

    def __init__(self, distribution: str, rows: int, batch: int) -> None:
        self._rows, self._batch = rows, batch
        self._weights = np.cumsum(1.0 / np.arange(1, rows + 1)) if distribution == "zipf" else None

    def draw(self, rng: np.random.Generator) -> Keys:
        """A batch, with repetitions."""
        if self._weights is None:
            return rng.integers(self._rows, size=self._batch)
        at = rng.random(self._batch) * self._weights[-1]
        ranks: Keys = np.searchsorted(self._weights, at, side="right").clip(max=self._rows - 1).astype(np.int64)
        return ranks


class _Run:
    """One number of nodes.

    Attributes:
        loop: that it runs in.
    """

    def __init__(self, nodes: int, load: Load, costs: Costs) -> None:
        choices = Choices(load.seed, "scale")
        self.loop = TimedLoop(choices.stream("loop"))  # type: ignore[abstract]  # it has what is asked of it here
        self._load, self._costs, self._nodes = load, costs, nodes
        self._table = load.table(nodes)
        line = Line(load.latency, load.bandwidth, costs.frame / 2 * 1e-6)
        sizes = Sizes(load.tick_rate, load.memory(nodes), load.heap(nodes))
        self._cluster = Cluster(nodes, [self._table], sizes, line, self.loop, choices.stream("cluster"))
        self._keys = _Keys(load.keys, self._table.rows, load.batch)
        self._pushed = np.zeros(self._table.rows, np.int64)  # times that each row was
        self._clocks = 0  # of all workers
        spans = [load.warm_up + load.clocks * span // _SPANS for span in range(_SPANS + 1)]
        self._due = deque(nodes * clocks for clocks in spans)
        self._moments: list[_Moment] = []
        self._anonymous = 0

    async def live(self) -> None:
        """The whole run."""
        before = _anonymous_bytes()
        async with self._cluster as cluster:
            await cluster.run(self._train)
            self._anonymous = _anonymous_bytes() - before
            await cluster.settle()
            self._check()
            await cluster.finish()

    def point(self, seconds: float) -> Point:
        """What came of it, in so many seconds here."""
        first, last = self._moments[0], self._moments[-1]
        counted, accesses = _since(first.node, last.node), last.keys - first.keys
        moved = counted["relocations_in"] + counted["states_in"] + counted["deltas_in"]
        parts = (counted["ticks"], counted["frames_out"], moved, counted["intents_started"])
        clocks = last.clocks - first.clocks
        elapsed = (last.virtual - first.virtual) * self._nodes / clocks - self._load.think
        segment = _segment_bytes(self._nodes, self._load)
        halves = [_bytes_per_key(a, b) for a, b in zip(self._moments, self._moments[1:], strict=False)]
        return Point(
            nodes=self._nodes,
            rows=self._table.rows,
            accesses=accesses,
            bytes=counted["bytes_out"] / accesses,
            messages=counted["frames_out"] / accesses,
            rounds=counted["rounds"] / accesses,
            nudges=counted["nudges"] / accesses,
            forwards=counted["forwards"] / accesses,
            busiest=_most_over_mean(first.frames, last.frames),
            rows_moved=moved / accesses,
            ticks=counted["ticks"] / accesses,
            keys=counted["intents_started"] / accesses,
            cpu_us=self._costs.of(*parts) / accesses,
            here_us=(last.cpu - first.cpu) * 1e6 / accesses,
            wait_us=elapsed * 1e6 / self._load.batch,
            local=(last.local - first.local) / accesses,
            segment=segment,
            memory=segment + self._anonymous // self._nodes,
            drift=halves[1] / halves[0] - 1 if halves[0] else 0.0,
            refused=counted["not_wanted_full"],
            seconds=seconds,
        )

    # ---- the worker

    async def _train(self, worker: Worker) -> None:
        """What each of them does, until all together have done enough."""
        load, rng = self._load, np.random.default_rng([self._load.seed, worker.id])
        batches: deque[Keys] = deque()
        await asyncio.sleep(load.think * rng.random())  # no two are in step
        while self._due:
            while len(batches) <= load.ahead:
                batches.append(self._keys.draw(rng))
                worker.intent(_TABLE, batches[-1], worker.clock + len(batches) - 1)
            await self._access(worker, batches.popleft())
            await asyncio.sleep(load.think)
            worker.advance_clock()
            self._count_clock()
        for _ in batches:  # so that intents end
            worker.advance_clock()

    async def _access(self, worker: Worker, keys: Keys) -> None:
        await worker.pull(_TABLE, keys)
        await worker.push(_TABLE, keys, np.ones((len(keys), self._load.dim), np.float32))
        np.add.at(self._pushed, keys, 1)

    def _count_clock(self) -> None:
        """A worker has done one more; when all together have done enough, counters are read."""
        self._clocks += 1
        if self._due and self._clocks >= self._due[0]:
            self._due.popleft()
            self._moments.append(self._moment())

    def _moment(self) -> _Moment:
        counted = [worker.statistics() for worker in self._cluster.workers]
        sums = map(sum, zip(*(dataclasses.astuple(one.node) for one in counted), strict=True))
        return _Moment(
            node=NodeStatistics(*sums),
            frames=tuple(one.node.frames_in + one.node.frames_out for one in counted),
            keys=sum(one.pull_keys for one in counted),
            local=sum(one.pull_local for one in counted),
            clocks=self._clocks,
            cpu=self.loop.cpu["node"],
            virtual=self.loop.time(),
        )

    def _check(self) -> None:
        """Some rows, or all if there are few, are what was pushed."""
        rows = np.random.default_rng(self._load.seed).permutation(self._table.rows)[:_CHECKED]
        for row in rows.tolist():
            value = self._cluster.main_copy(0, row)
            if value != self._pushed[row]:
                raise InternalError(f"row {row} ends as {value:g}, {self._pushed[row]} was pushed: please report this")


def _since(before: NodeStatistics, after: NodeStatistics) -> dict[str, int]:
    return {field.name: getattr(after, field.name) - getattr(before, field.name) for field in dataclasses.fields(after)}


def _most_over_mean(before: Sequence[int], after: Sequence[int]) -> float:
    gained = np.subtract(after, before)
    return float(gained.max() / gained.mean()) if gained.any() else 1.0


def _bytes_per_key(before: _Moment, after: _Moment) -> float:
    return (after.node.bytes_out - before.node.bytes_out) / (after.keys - before.keys)


def _anonymous_bytes() -> int:
    """Memory of this process that is nobody else's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0
