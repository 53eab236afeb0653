"""This machine and our processes on it: cores, CPU time, and who belongs to a run.

Workers look for their relatives in /proc: a run's launcher is the parent of its workers and of its nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_NODE_PROCESS = b"adapm.node_process"  # in the command line of every node that adapm.run starts
_CPUCLOCK_SCHED = 2  # time spent running, by the scheduler's account (linux/posix-timers.h)
_LOAD_PER_CORE = 0.5  # before we start anything
_STOLEN = 0.02  # share of the time that the hypervisor gave to others


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def core_of(machine: int, available: list[int]) -> list[int]:
    """One core for everything that belongs to one machine of those that we play."""
    return [available[machine % len(available)]]


def share_of(machine: int, machines: int, available: list[int]) -> list[int]:
    """The cores of one machine of several that we play; machines share cores only if there are too few."""
    each = len(available) // machines
    return available[machine * each : (machine + 1) * each] if each else core_of(machine, available)


def pin(pid: int, where: Iterable[int]) -> None:
    """Keeps a process, with the threads that it has and will have, on these cores."""
    wanted = set(where)
    for thread in (_PROC / str(pid) / "task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), wanted)
        except ProcessLookupError:  # it has just ended
            pass


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, of all its threads, also of those that have ended; to the nanosecond."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)  # what clock_getcpuclockid(3) returns


def nodes_beside(worker: int) -> list[int]:
    """The processes of the nodes that the parent of this worker process has started, in the order of the nodes.

    Args:
        worker: the worker's process.
    """
    siblings = _children(int(_stat(worker)[1]))
    nodes = [pid for pid in siblings if _NODE_PROCESS in (_PROC / str(pid) / "cmdline").read_bytes()]
    return sorted(nodes, key=lambda pid: (int(_stat(pid)[19]), pid))


def load_warnings() -> list[str]:
    """Why figures taken now would be doubtful."""
    load, available = os.getloadavg()[0], len(cores())
    if load > _LOAD_PER_CORE * available:
        return [f"the machine was busy before we began: load average {load:.1f} on {available} cores"]
    return []


class Steal:
    """How much of the processors the hypervisor gives to other machines, from now on."""

    def __init__(self) -> None:
        self._before = _processor_times()

    def warnings(self) -> list[str]:
        """Why figures taken since then are doubtful."""
        spent = [now - before for now, before in zip(_processor_times(), self._before, strict=True)]
        stolen = spent[7] / max(1, sum(spent))
        return [f"the hypervisor took {stolen:.0%} of the processors for others"] if stolen > _STOLEN else []


def _processor_times() -> list[int]:
    """The first eight columns of all processors' line: user nice system idle iowait irq softirq steal."""
    return [int(ticks) for ticks in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]


def _children(pid: int) -> list[int]:
    """Child processes that are still there."""
    tasks = (_PROC / str(pid) / "task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ..., [19] the start time."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
