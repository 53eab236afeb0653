"""What befalls the hosts of test_namespaces.py: seeded plans, and how they are carried out on real processes."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

import namespaces
from churn_task import MARK, Load
from namespaces import Hosts

HERE: Final = Path(__file__).parent
PORT: Final = 7070
SHORT: Final = (0.05, 2.0)  # seconds of a disturbance that a run must outlast: TCP may take twice as long to go on
LONG: Final = (2.0, 20.0)  # of one that it may outlast
FOR_EVER: Final = math.inf
NAMED_WITHIN: Final = 10.0  # seconds
AT_MOST: Final = 100.0  # seconds of a run, on a busy machine
LAST_WORD: Final = 30.0  # seconds in which a node that goes on after all others have failed must fail, too


class Act(NamedTuple):
    """Something that befalls a host, as soon as there are so many signs of progress.

    Attributes:
        kind: "cut" its cable, "silence" what it sends to the `other`, "pause" or "kill" its node process, or "power":
            its cable is cut and all of it killed.
        seconds: until it is undone; FOR_EVER: never.
    """

    after: int
    kind: str
    host: int
    other: int
    seconds: float

    @property
    def must_pass(self) -> bool:
        """Whether the run has to outlast it."""
        return self.kind not in ("kill", "power") and self.seconds <= SHORT[1]


class Said(NamedTuple):
    """What a host or a worker left.

    Attributes:
        error: the class's name, None if it ended well.
        after: seconds from the beginning of the last disturbance that may end the run.
        freed: its node was stopped, and went on only after all others had ended.
    """

    who: str
    error: str | None
    message: str
    node: int | None
    after: float
    freed: bool


class Report(NamedTuple):
    """How a run ended: what each host that was not killed said, and each of its workers that was told of an error."""

    hosts: list[Said]
    workers: list[Said]

    @property
    def completed(self) -> bool:
        return all(said.error is None for said in self.hosts)

    @property
    def longest(self) -> float:
        """Seconds from the disturbance until the last one was told."""
        return max((said.after for said in (*self.hosts, *self.workers) if not said.freed), default=0.0)


def settings(hosts: int, workers: int, transport: str) -> dict[str, Any]:
    """What all hosts are told; the only place that knows it."""
    return {
        "nodes": hosts,
        "workers": workers,
        "transport": transport,
        "rendezvous": f"tcp://{namespaces.address(0)}:{PORT}",
        "insecure": True,
    }


def draw(rng: np.random.Generator, hosts: int, marks: int) -> list[Act]:
    """A plan: up to three disturbances that must pass, and in two of three plans one more that need not."""
    acts = [
        _act(rng, hosts, marks, str(rng.choice(["cut", "silence", "pause"])), _seconds(rng, SHORT))
        for _ in range(rng.integers(0, 4))
    ]
    if rng.random() < 2 / 3:
        kind = str(rng.choice(["cut", "silence", "pause", "kill", "power"]))
        lasting = kind in ("kill", "power") or rng.random() < 0.6
        acts.append(_act(rng, hosts, marks, kind, FOR_EVER if lasting else _seconds(rng, LONG)))
    return sorted(acts)


def _seconds(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return round(float(np.exp(rng.uniform(*np.log(span)))), 2)


def _act(rng: np.random.Generator, hosts: int, marks: int, kind: str, seconds: float) -> Act:
    host, other = rng.choice(hosts, 2, replace=False).tolist()
    return Act(int(rng.integers(1, marks * 2 // 3)), kind, host, other, seconds)


def carry_out(acts: list[Act], load: Load, hosts: int, transport: str) -> Report:
    """Runs the load on so many hosts, on which these acts befall; returns when nothing of it is left."""
    load.prepare()
    (load.folder / "load").write_bytes(pickle.dumps(load))
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Hosts(hosts))
        run = _Run(load, net, settings(hosts, load.workers // hosts, transport), stack)
        run.until_the_end(sorted(acts))
        return run.report()


class _Run:
    """The hosts' processes, and the clock by which things befall them."""

    def __init__(self, load: Load, net: Hosts, settings: dict[str, Any], stack: contextlib.ExitStack) -> None:
        self._folder, self._net, self._per_host = load.folder, net, settings["workers"]
        self._progress = os.open(load.progress, os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, self._progress)
        self._processes = [self._start(host, json.dumps(settings), stack) for host in range(len(net.namespaces))]
        self._pidfds = [os.pidfd_open(process.pid) for process in self._processes]
        for pidfd in self._pidfds:
            stack.callback(os.close, pidfd)
        self._due: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._stopped: set[int] = set()  # hosts whose nodes are
        self._freed: set[int] = set()
        self._gone: set[int] = set()  # hosts without power
        self._for_ever: set[tuple[str, int]] = set()  # what is not to be undone, whatever began before it
        self._disturbed = math.nan

    def until_the_end(self, acts: list[Act]) -> None:
        marks, end = 0, time.monotonic() + AT_MOST
        while running := self._running():
            assert time.monotonic() < end, f"hosts {running} did not end: a silent hang"
            if not set(running) - self._stopped:
                self._let_go()
                end = min(end, time.monotonic() + LAST_WORD)
            ready, _, _ = select.select(
                [self._progress, *map(self._pidfds.__getitem__, running)], [], [], self._seconds(end)
            )
            if self._progress in ready:
                marks += os.read(self._progress, 4096).count(MARK)
            while acts and acts[0].after <= marks:
                self._befall(acts.pop(0))
            while self._due and self._due[0][0] <= time.monotonic():
                self._undo(heapq.heappop(self._due)[2])

    def report(self) -> Report:
        hosts = [host for host in range(len(self._processes)) if host not in self._gone]
        codes = [self._processes[host].wait() for host in hosts]
        assert codes == [0] * len(hosts), f"hosts {hosts} exited with {codes}: see their output"
        return Report([self._said(f"host{host}", host) for host in hosts], list(self._workers(hosts)))

    def _workers(self, hosts: list[int]) -> Iterator[Said]:
        for host in hosts:
            for worker in range(host * self._per_host, (host + 1) * self._per_host):
                if (self._folder / f"worker{worker}.json").exists():
                    yield self._said(f"worker{worker}", host)

    def _said(self, who: str, host: int) -> Said:
        said = json.loads((self._folder / f"{who}.json").read_text())
        assert said["error"] is None or "AdapmError" in said["is"], said
        after = said["at"] - self._disturbed
        return Said(who, said["error"], said.get("message", ""), said.get("node"), after, host in self._freed)

    def _running(self) -> list[int]:
        over = select.select(self._pidfds, [], [], 0)[0]
        return [host for host, pidfd in enumerate(self._pidfds) if pidfd not in over]

    def _seconds(self, end: float) -> float:
        due = self._due[0][0] if self._due else end
        return max(0.0, min(due, end) - time.monotonic())

    def _start(self, host: int, settings: str, stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
        namespace = self._net.namespaces[host]
        command = [sys.executable, str(HERE / "host.py"), str(namespace), str(self._folder), str(host), settings]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        process = subprocess.Popen(command, env=env, pass_fds=[namespace])
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    # ---- what befalls them

    def _befall(self, act: Act) -> None:
        if not act.must_pass:
            self._disturbed = time.monotonic()
        if act.kind == "power":
            self._gone.add(act.host)
            self._net.cut(act.host)
            self._for_ever.add(("cut", act.host))
            self._processes[act.host].kill()
        if act.kind in ("kill", "power"):
            self._signal(act.host, signal.SIGKILL)
            return
        {"cut": self._cut, "silence": self._silence, "pause": self._pause}[act.kind](act)
        if act.seconds == FOR_EVER:
            self._for_ever.add((act.kind, act.host))
        else:
            heapq.heappush(self._due, (time.monotonic() + act.seconds, next(self._numbers), act))

    def _undo(self, act: Act) -> None:
        if (act.kind, act.host) in self._for_ever:
            return
        if act.kind == "cut":
            self._net.mend(act.host)
        elif act.kind == "silence":
            self._net.unsilence(act.host, act.other)
        else:
            self._stopped.discard(act.host)
            self._signal(act.host, signal.SIGCONT)

    def _cut(self, act: Act) -> None:
        self._net.cut(act.host)

    def _silence(self, act: Act) -> None:
        self._net.silence(act.host, act.other)

    def _pause(self, act: Act) -> None:
        self._stopped.add(act.host)
        self._signal(act.host, signal.SIGSTOP)

    def _let_go(self) -> None:
        for host in self._stopped:
            self._freed.add(host)
            self._signal(host, signal.SIGCONT)
        self._stopped.clear()

    def _signal(self, host: int, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(int((self._folder / f"node{host}.pid").read_text()), signum)
