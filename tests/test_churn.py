"""Real processes, stopped (SIGSTOP) and continued at random while rows move: every update counts, once, everywhere.

What is checked of the rows is what the simulator checks, by the same functions.  A long version runs on demand only:
ADAPM_TEST_CHURN=1, or `tox -e churn`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import pickle
import select
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import adapm
import churn_node
import churn_task
from adapm import processes
from adapm.errors import NodeLost
from adapm.kernel import lib
from adapm.launch import GRACE
from adapm.processes import CLOSING_TIME
from adapm.simulator import invariants
from adapm.simulator.invariants import Scene
from adapm.task import Failure
from churn_task import MARK, Books, Load

NODES, WORKERS = 4, 8
LOSERS = 3  # nodes, with one worker each, where one of them is to be lost
HALT = 0.1  # seconds that a worker stays stopped where it has stopped itself, in a push
FOR_EVER = 600.0  # seconds
LOST_AFTER = 1.0  # seconds of silence, where nodes are to be lost
LAUNCHER = 3.0  # seconds that the launcher then gives others to explain, and those who do not end by themselves
HEARTBEAT = 2.0  # seconds between signs of life, unless a node is told otherwise
SLACK = 3.0  # seconds, for a busy machine
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
        self.stopped = 0.0
        """When a process was stopped, last."""
        self._pidfds: dict[str, int] = {}

    def add(self, name: str, pid: int) -> None:
        self._pidfds[name] = os.pidfd_open(pid)

    def signal(self, name: str, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            signal.pidfd_send_signal(self._pidfds[name], signum)
        if signum is signal.SIGSTOP:
            self.stopped = time.monotonic()

    def wait_stopped(self, name: str) -> bool:
        """Blocks until the process is stopped, or has ended: then it is not."""
        try:
            return os.waitid(os.P_PIDFD, self._pidfds[name], os.WSTOPPED) is not None
        except ChildProcessError:
            return False

    def all_ended(self) -> bool:
        """Whether no process and no door is left."""
        pidfds = list(self._pidfds.values())
        names = {line.rpartition(" ")[2] for line in Path("/proc/net/unix").read_text().splitlines()}
        return select.select(pidfds, [], [], 0)[0] == pidfds and not names & {node.door for node in self.nodes}

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

    async def watch(self) -> Failure | None:
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
        self._marks = self.done = self.revived = 0
        self._fifo = os.open(progress, os.O_RDWR | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fifo, self._read)
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: list[asyncio.Task[None]] = []
        self._threads = ThreadPoolExecutor(WORKERS)

    async def close(self) -> None:
        """Whoever is stopped goes on; returns when that is so."""
        self._loop.remove_reader(self._fifo)
        os.close(self._fifo)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown()

    def _read(self) -> None:
        signs = os.read(self._fifo, 4096)
        self._marks += signs.count(MARK)
        for worker in signs.replace(MARK, b""):
            self._tasks.append(self._loop.create_task(self._revive(f"worker {worker}")))
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
            await asyncio.sleep(stop.seconds)  # it must be able to give a sign of life before its next one

    async def _revive(self, worker: str) -> None:
        """It is about to stop itself, and is left so for a while."""
        async with self._turns[worker]:
            if await self._loop.run_in_executor(self._threads, self._crew.wait_stopped, worker):
                await asyncio.sleep(HALT)
                self._crew.signal(worker, signal.SIGCONT)
                self.revived += 1


def plan(rng: np.random.Generator, load: Load, number: int, longest: float) -> list[Stop]:
    """So many stops of nodes and of the workers that do not stop themselves: most are short, none longer than that."""
    after = np.sort(rng.integers(1, (load.marks + 1) * load.workers + 1, size=number))
    after[-3:] = (load.marks + 1) * load.workers  # while all that is left to do is to end
    victims = [f"node {i}" for i in range(NODES)] + [f"worker {i}" for i in range(1, WORKERS, 2)]
    seconds = np.exp(rng.uniform(np.log(0.005), np.log(longest), size=number))
    return [Stop(int(a), str(rng.choice(victims)), round(float(s), 3)) for a, s in zip(after, seconds, strict=True)]


async def conduct(
    crew: Crew, load: Load, task: Callable[..., None], stops: Sequence[Stop], **settings: object
) -> Stopper:
    """Runs the task and carries out the stops."""
    load.prepare()
    stopper = Stopper(crew, stops, load.progress)
    try:
        await adapm.run_async(task, [load.table], args=(load,), **settings)
    finally:
        await stopper.close()
    return stopper


# ---- stopped for a while


def churn(crew: Crew, load: Load, stops: Sequence[Stop], transport: str) -> dict[str, float]:
    """A whole run, of which nothing may be lost; returns its figures."""
    print(f"{load}\nstops: {[tuple(stop) for stop in stops]}")
    settings = {"nodes": NODES, "workers": WORKERS // NODES, "transport": transport}
    begun = time.monotonic()
    stopper = asyncio.run(conduct(crew, load, churn_task.churn, stops, **settings))
    seconds = time.monotonic() - begun
    check_rows(load)
    stopped = {"stops": stopper.done, "with rows locked": stopper.revived}
    figures = {**stopped, "seconds": round(seconds, 1), **counted(crew)}
    print(f"{transport}: {figures}")
    assert stopper.done >= 0.8 * len(stops)  # the last ones may have come too late
    assert stopper.revived >= 0.8 * load.halts * WORKERS / 2  # as may these; and not every push finds a row to lock
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
    load = Load(tmp_path / "run", int(rng.integers(2**31)), WORKERS, rows=2_000, steps=300, keys=20, halts=3)
    monkeypatch.setattr("adapm.processes._BOOT", churn_node.boot(load.folder, {}))
    figures = churn(crew, load, plan(rng, load, 30, 0.3), transport)
    assert figures["rows pushed"] > 20_000
    assert min(figures[name] for name in MOVED) > 100


@ON_DEMAND
@BOTH
@pytest.mark.parametrize("single", [False, True], ids=["rows", "pushes"])
def test_a_million(
    crew: Crew,
    single: bool,
    transport: str,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = {"rows": 20_000, "steps": 4_200, "keys": 60, "single": single, "halts": 25, "marks": 500}
    load = Load(tmp_path / "run", int(rng.integers(2**31)), WORKERS, **size)
    monkeypatch.setattr("adapm.processes._BOOT", churn_node.boot(load.folder, {}))
    figures = churn(crew, load, plan(rng, load, 300, 2.0), transport)
    assert figures["rows pushed"] > 1_000_000


# ---- stopped for too long


async def lose(crew: Crew, load: Load, stop: Stop, goes_on: bool, transport: str) -> BaseException:
    """A run that ends because a node is stopped; returns what it raises.

    Args:
        goes_on: whether that node is continued once all others have failed; else it is for the launcher to end it.
        crew, load, stop, transport: the run's, and of the node.
    """
    settings = {"nodes": LOSERS, "workers": 1, "transport": transport}
    running = asyncio.ensure_future(conduct(crew, load, churn_task.churn_until_lost, [stop], **settings))
    others = {node for node in range(LOSERS) if f"node {node}" != stop.victim}
    while not running.done() and not others <= crew.outcomes.keys():
        told = asyncio.ensure_future(crew.told.wait())
        await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        crew.told.clear()
    if goes_on:
        await noted(load, others)
        crew.signal(stop.victim, signal.SIGCONT)
    await asyncio.wait({running})
    error = running.exception()
    assert error is not None, "nobody missed the node"
    return error


async def noted(load: Load, nodes: set[int]) -> None:
    """Until the workers of these nodes have written down their errors: what the victim says ends the run at once."""
    notes = [load.folder / f"worker{node}" for node in nodes]
    for _ in range(2_000):
        if all(note.is_file() and note.stat().st_size for note in notes):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not all of {notes} were written")


def check_loss(crew: Crew, load: Load, error: BaseException, victim: int, *, goes_on: bool) -> None:
    """Everybody ended, with the promised error, and there is nothing left of them."""
    assert isinstance(error, NodeLost) and error.node == victim, error
    for node in crew.nodes:
        if node.id == victim:
            assert node.code == (1 if goes_on else -signal.SIGKILL)
        else:
            outcome = crew.outcomes[node.id]
            assert isinstance(outcome, Failure) and isinstance(outcome.error, NodeLost), outcome
            assert outcome.error.node == victim, outcome
            assert node.code == 1
            name, lost, message = json.loads((load.folder / f"worker{node.first_worker}").read_text())
            assert (name, lost) == ("NodeLost", victim), message
    assert crew.all_ended()


SOME = {("tcp", 0, True), ("zmq", 1, False)}
LOSSES = [
    pytest.param(*which, marks=[] if which in SOME else ON_DEMAND)
    for which in itertools.product(["tcp", "zmq"], range(LOSERS), [True, False])
]


@pytest.mark.parametrize(("transport", "victim", "goes_on"), LOSSES)
def test_a_node_that_stays_stopped_is_given_up(
    crew: Crew,
    transport: str,
    victim: int,
    goes_on: bool,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = Load(tmp_path / "run", int(rng.integers(2**31)), LOSERS, rows=500, steps=100_000, keys=20, marks=10_000)
    stop = Stop(int(rng.integers(30, 300)), f"node {victim}", FOR_EVER)
    print(f"{load}, {stop}")
    impatient = {"heartbeat": LOST_AFTER / 4, "heartbeat_timeout": LOST_AFTER}
    monkeypatch.setattr("adapm.processes._BOOT", churn_node.boot(load.folder, impatient))
    monkeypatch.setattr("adapm.processes.CLOSING_TIME", LAUNCHER)
    monkeypatch.setattr("adapm.launch.GRACE", LAUNCHER)
    error = asyncio.run(lose(crew, load, stop, goes_on, transport))
    seconds = time.monotonic() - crew.stopped
    check_loss(crew, load, error, victim, goes_on=goes_on)
    assert seconds < LOST_AFTER + 2 * LAUNCHER + SLACK


@ON_DEMAND
@pytest.mark.parametrize(("transport", "patience"), [("tcp", 7.0), ("zmq", 6.0)])
def test_with_the_patience_that_nodes_have(
    crew: Crew, transport: str, patience: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    load = Load(tmp_path / "run", int(rng.integers(2**31)), LOSERS, rows=500, steps=500_000, keys=20, marks=50_000)
    victim = int(rng.integers(LOSERS))
    stop = Stop(int(rng.integers(30, 300)), f"node {victim}", FOR_EVER)
    print(f"{load}, {stop}")
    error = asyncio.run(lose(crew, load, stop, False, transport))
    seconds = time.monotonic() - crew.stopped
    check_loss(crew, load, error, victim, goes_on=False)
    assert seconds < patience + HEARTBEAT + GRACE + CLOSING_TIME + SLACK
