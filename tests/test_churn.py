"""Real processes, stopped (SIGSTOP) and continued at random while rows move: every update counts, once, everywhere.

What is checked of the rows is what the simulator checks, by the same functions.  A long version runs on demand only:
ADAPM_TEST_CHURN=1, or `tox -e churn`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import adapm
import churn_node
import churn_task
from adapm import processes
from adapm.engine import RowView
from adapm.errors import NodeLost
from adapm.kernel import lib
from adapm.simulator import invariants
from adapm.simulator.invariants import Scene
from churn_task import Books, Load

NODES, WORKERS = 4, 8
BREATH = 0.5  # seconds between two stops of one process: it must be able to give a sign of life
LOST_AFTER = 1.0  # seconds of silence, where nodes are to be lost
LAUNCHER = 1.0  # seconds that the launcher then gives what does not end by itself
MOVED = ("relocations_in", "replicas_made", "replicas_dropped", "push_remote", "pull_remote", "forwards")

BOTH = pytest.mark.parametrize("transport", ["tcp", "zmq"])
ON_DEMAND = pytest.mark.skipif(os.environ.get("ADAPM_TEST_CHURN") != "1", reason="set ADAPM_TEST_CHURN=1")


class Stop(NamedTuple):
    """A process is to be stopped for so many seconds, as soon as there are so many signs of progress."""

    after: int
    victim: str
    seconds: float


class Crew:
    """The processes of a run, as its launcher starts them."""

    def __init__(self) -> None:
        self.nodes: list[WatchedNode] = []
        self.outcomes: dict[int, object] = {}
        """What came of each node, as far as the launcher was told."""
        self.told = asyncio.Event()
        """Set whenever something is added there."""
        self._pidfds: dict[str, int] = {}

    def add(self, name: str, pid: int) -> None:
        self._pidfds[name] = os.pidfd_open(pid)

    def signal(self, name: str, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(self._pidfds[name], signum)

    def close(self) -> None:
        for pidfd in self._pidfds.values():
            os.close(pidfd)


class WatchedNode(processes.NodeProcess):
    crew: Crew

    def __init__(self, node: int) -> None:
        super().__init__(node)
        self.code: int | None = None
        self.crew.nodes.append(self)
        self.crew.add(f"node {node}", self._process.pid)

    async def watch(self) -> processes.Failure | None:
        outcome = self.crew.outcomes[self.id] = await super().watch()
        self.crew.told.set()
        return outcome

    async def end(self) -> None:
        await super().end()
        self.code = self._process.returncode


class WatchedWorker(processes.ProcessWorker):
    crew: Crew

    def __init__(self, packed: bytes, node: processes.NodeProcess, slot: int) -> None:
        super().__init__(packed, node, slot)
        self.crew.add(f"worker {self._worker}", self._pid)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """The processes of the run that the test starts."""
    crew = WatchedNode.crew = WatchedWorker.crew = Crew()
    monkeypatch.setattr("adapm.launch.NodeProcess", WatchedNode)
    monkeypatch.setattr("adapm.launch.ProcessWorker", WatchedWorker)
    with contextlib.closing(crew):
        yield crew


class Stopper:
    """Stops and continues processes while they make progress."""

    def __init__(self, crew: Crew, stops: Sequence[Stop], progress: Path) -> None:
        self._crew = crew
        self._stops = deque(stops)
        self._marks = self.done = 0
        self._fifo = os.open(progress, os.O_RDWR | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fifo, self._read)
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """Whoever is stopped goes on; returns when that is so."""
        self._loop.remove_reader(self._fifo)
        os.close(self._fifo)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read(self) -> None:
        self._marks += len(os.read(self._fifo, 4096))
        while self._stops and self._stops[0].after <= self._marks:
            self._tasks.append(self._loop.create_task(self._carry_out(self._stops.popleft())))

    async def _carry_out(self, stop: Stop) -> None:
        async with self._turns[stop.victim]:
            self._crew.signal(stop.victim, signal.SIGSTOP)
            try:
                await asyncio.sleep(stop.seconds)
            finally:
                self._crew.signal(stop.victim, signal.SIGCONT)
            self.done += 1
            await asyncio.sleep(BREATH)


def plan(rng: np.random.Generator, load: Load, number: int, longest: float) -> list[Stop]:
    """So many stops, half of them of nodes and half of workers: most are short, none is longer than that."""
    after = np.sort(rng.integers(1, load.marks * load.workers + 1, size=number))
    victims = [f"node {i}" for i in range(NODES)] * (WORKERS // NODES) + [f"worker {i}" for i in range(WORKERS)]
    seconds = np.exp(rng.uniform(np.log(0.005), np.log(longest), size=number))
    return [Stop(int(a), str(rng.choice(victims)), round(float(s), 3)) for a, s in zip(after, seconds, strict=True)]


async def conduct(crew: Crew, load: Load, task: Callable[..., None], stops: Sequence[Stop], **settings: object) -> int:
    """Runs the task and carries out the stops; returns how many of them came to their end."""
    load.prepare()
    stopper = Stopper(crew, stops, load.progress)
    try:
        await adapm.run_async(task, [load.table], args=(load,), **settings)
    finally:
        await stopper.close()
    return stopper.done


# ---- stopped for a while


def churn(crew: Crew, load: Load, stops: Sequence[Stop], transport: str, longest: float = 0) -> dict[str, float]:
    """A whole run, of which nothing may be lost; returns its figures."""
    print(f"{load}\nstops: {[tuple(stop) for stop in stops]}")
    settings = {"nodes": NODES, "workers": WORKERS // NODES, "transport": transport}
    begun = time.monotonic()
    done = asyncio.run(conduct(crew, load, churn_task.churn, stops, **settings))
    seconds = time.monotonic() - begun
    check_rows(load)
    figures = {"pushes": load.steps * WORKERS, "stops": done, "seconds": round(seconds, 1), **counted(crew)}
    print(f"{transport}: {figures}")
    assert done >= 0.9 * len(stops)  # the last ones may have come too late
    return figures


def counted(crew: Crew) -> dict[str, int]:
    """What nodes and workers counted, all together."""
    profiles = [node.profile for node in crew.nodes if node.profile is not None]
    assert len(profiles) == NODES
    moved = {name: sum(getattr(profile.counters, name) for profile in profiles) for name in MOVED}
    return {"rows pushed": sum(w.push_keys for profile in profiles for w in profile.workers), **moved}


def check_rows(load: Load) -> None:
    """Everything is at rest: each row is at its owner and nowhere else, and is the sum of what was pushed to it."""
    nodes = [pickle.loads((load.folder / f"node{node}").read_bytes())[0] for node in range(NODES)]
    totals = Books(load).totals[0]
    for row, views in enumerate(zip(*nodes, strict=True)):
        check_row(Scene((0, row), load.workers, views, moving=()), totals[row])


def check_row(scene: Scene, total: np.ndarray) -> None:
    owner = invariants.one_main_copy(scene)
    elsewhere = [view for node, view in enumerate(scene.views) if node != owner]
    assert all(view.state is invariants.ABSENT for view in elsewhere), scene
    assert not any(view.intents for view in scene.views), scene
    assert np.array_equal(invariants.sum_of_updates(scene), total), (scene, total)
    invariants.wants_in_pairs(scene)
    invariants.hints_lead_to(owner, scene)
    invariants.holders_known(scene)
    invariants.at_rest(scene, lib.adapm_home_of(*scene.row, NODES))


@BOTH
def test_nothing_is_lost_while_processes_stop_and_go_on(
    crew: Crew, transport: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load(tmp_path / "run", int(rng.integers(2**31)), WORKERS, rows=3_000, steps=500, keys=20)
    monkeypatch.setattr("adapm.processes._BOOT", churn_node.boot(load.folder, {}))
    figures = churn(crew, load, plan(rng, load, 30, 0.5), transport)
    assert figures["rows pushed"] > 30_000
    assert min(figures[name] for name in MOVED) > 100


@ON_DEMAND
@BOTH
@pytest.mark.parametrize(("steps", "keys"), [(4_200, 60), (125_000, 2)], ids=["rows", "pushes"])
def test_a_million(
    crew: Crew,
    steps: int,
    keys: int,
    transport: str,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = Load(tmp_path / "run", int(rng.integers(2**31)), WORKERS, rows=20_000, steps=steps, keys=keys, marks=500)
    monkeypatch.setattr("adapm.processes._BOOT", churn_node.boot(load.folder, {}))
    figures = churn(crew, load, plan(rng, load, 200, 2.0), transport)
    assert figures["rows pushed"] > 1_000_000
