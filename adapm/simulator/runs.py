"""One seed, one history: everything about a run is drawn from its seed and its options, and then it is run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapm import techniques
from adapm.errors import AdapmError
from adapm.simulator import faults, workloads
from adapm.simulator.choices import Choices
from adapm.simulator.invariants import Row, Violation
from adapm.simulator.loop import VirtualLoop
from adapm.simulator.world import Shape, World
from adapm.tables import Table
from adapm.techniques import Everywhere

OTHERS = (
    "replicate-only",
    "relocate-only",
    "immediate",
    "static",
    "lapse",
    "full",
    "nups(4)",
    "essp",
    "ssp(0)",
    "ssp(3)",
)
ALL = tuple(name for other in OTHERS for name in ("adaptive", other))
"""Of all techniques, what seeds take by turns: the adaptive one every other time."""

_CRAMPED_SHARE = 0.05  # of the runs of a workload that can be
_TICK_RATES = (250, 1000, 1000, 4000, 32_000)  # at the last one, moving a row costs a good part of a tick


@dataclass(frozen=True)
class Options:
    """What is asked for; the rest is the seed's.

    Attributes:
        nodes: fewest and most.
        workers: per node, fewest and most.
        workloads: names; each seed draws one.
        faults: names; each seed draws from them.
        until: virtual seconds for which workers work.
        techniques: names; seeds take them by turns.
    """

    nodes: tuple[int, int] = (4, 8)
    workers: tuple[int, int] = (1, 2)
    workloads: tuple[str, ...] = tuple(workloads.WORKLOADS)
    faults: tuple[str, ...] = tuple(faults.FAULTS)
    until: float = 0.04
    techniques: tuple[str, ...] = ("adaptive",)


@dataclass
class Outcome:
    """What came of a seed.

    Attributes:
        seed: this one.
        nodes, workers, workload: that it drew.
        technique: whose turn it was.
        fatal: the fault that ended the run, None if none did.
        events, frames, bytes: how many of them.
        faults: how often each fault struck.
        hash: of the log of events.
        staleness_ms, staleness_rounds: of replicas, each time that one caught up.
        virtual, wall: seconds that it took, there and here.
        violation: what did not hold; None if all did.
        row: of which row.
        trace: the last events that touch it.
    """

    seed: int
    nodes: int = 0
    workers: int = 0
    workload: str = ""
    technique: str = ""
    fatal: str | None = None
    events: int = 0
    frames: int = 0
    bytes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    hash: str = ""
    staleness_ms: list[float] = field(default_factory=list)
    staleness_rounds: list[int] = field(default_factory=list)
    virtual: float = 0.0
    wall: float = 0.0
    violation: str | None = None
    row: Row | None = None
    trace: list[str] = field(default_factory=list)


def run_seed(seed: int, options: Options) -> Outcome:
    """Runs it, to its end or to the first violation."""
    begin, before = time.perf_counter(), _belongings()
    outcome = Outcome(seed)
    choices = Choices(seed, "run")
    loop = VirtualLoop(choices.stream("loop"))  # type: ignore[abstract]  # it has what is asked of it here
    run = _Run(choices, options, loop, outcome)
    try:
        loop.run(run.live())
    except (Violation, AdapmError) as violation:
        outcome.violation = f"{type(violation).__name__}: {violation}"
        outcome.row = getattr(violation, "row", None)
    run.note()
    if outcome.violation is None and _belongings() > before:
        outcome.violation = f"left behind: {_belongings() - before} descriptors and mappings of segments"
    outcome.wall = time.perf_counter() - begin
    return outcome


class _Run:
    def __init__(self, choices: Choices, options: Options, loop: VirtualLoop, outcome: Outcome) -> None:
        drawn = choices.stream("shape")
        self._loop, self._outcome = loop, outcome
        outcome.nodes = _within(options.nodes, drawn)
        outcome.workers = _within(options.workers, drawn)
        outcome.workload = drawn.pick(options.workloads)
        cramped = drawn.chance(_CRAMPED_SHARE) and "memory" in options.faults
        cramped = cramped and outcome.workload == "mix" and outcome.nodes > 1
        outcome.technique = options.techniques[outcome.seed % len(options.techniques)]
        technique = techniques.named(outcome.technique)
        cramped = cramped and technique.everywhere is Everywhere.NONE  # there must be room for what is
        work = workloads.named(outcome.workload)
        setting = workloads.Setting.draw(outcome.nodes * outcome.workers, options.until, cramped, drawn)
        tables = tuple(_counted(table) for table in work.tables(setting, drawn))
        memory = workloads.too_little_memory(tables, outcome.nodes) if cramped else None
        tick_rate = drawn.pick(_TICK_RATES)
        shape = Shape(outcome.nodes, outcome.workers, tables, work.shared, tick_rate, memory, technique)
        self._plan = faults.Plan(options.faults, options.until, outcome.nodes, choices.stream("faults"))
        self._world = World(shape, loop, choices.stream("world"))
        self._task = work.task(setting)
        if cramped:
            self._world.faults["memory"] = 1
        outcome.fatal = self._plan.fatal

    async def live(self) -> None:
        """The whole run."""
        async with self._world as world:
            self._plan.begin(world)
            workers = await world.run(self._task)
            if self._plan.fatal is not None:
                faults.check_ends(world, self._plan.fatal, workers, await world.verdicts())
                world.watch.validate()
                return
            _all_well(workers)
            await world.settle()
            world.watch.check_rest()
            await world.finish()
            _all_well(await world.verdicts())

    def note(self) -> None:
        """What is to be said of it."""
        world, outcome = self._world, self._outcome
        outcome.events, outcome.hash = world.history.events, world.history.hash
        outcome.frames, outcome.bytes = world.network.frames, world.network.bytes
        outcome.faults = dict(world.faults)
        outcome.staleness_ms = [seconds * 1e3 for seconds in world.watch.staleness.seconds]
        outcome.staleness_rounds = world.watch.staleness.rounds
        outcome.virtual = self._loop.time()
        if outcome.violation is not None:
            outcome.trace = world.history.trace(outcome.row)


def _belongings() -> int:
    """How many descriptors this process has, and how many mappings of segments."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")) + maps.count("/memfd:adapm")


def _counted(table: Table) -> Table:
    """The table with counts that fall, as Zipf's law has it."""
    counts = 1 / np.arange(1, table.rows + 1)
    return Table(table.name, table.rows, columns=table.columns, sampling=table.sampling, counts=counts)


def _within(span: tuple[int, int], choices: Choices) -> int:
    return span[0] + choices.below(span[1] - span[0] + 1)


def _all_well(ended: Sequence[AdapmError | None]) -> None:
    for who, error in enumerate(ended):
        if error is not None:
            raise Violation(f"nothing fatal has happened, but {who} ended with {error!r}")
