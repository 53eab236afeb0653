"""Where the time of a run went: what nodes and workers counted, as tables for people.

The counters are always on: a few readings of the clock per tick, frame and wait (native/profile.h).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from adapm.control import Ran
from adapm.statistics import NodeStatistics, WorkerStatistics

# What a node spends time on, in the order in which it does it, and how that reads.
NODE_WORK: Final = {
    "serve_ns": "requests of workers",
    "drain_ns": "drain rings of intents and changed rows",
    "calendar_ns": "calendar: intents begin and end",
    "extract_ns": "extract rounds and replies",
    "apply_ns": "apply frames",
    "send_ns": "send",
}
WAITS: Final = ("pull", "push", "set", "sync", "barrier", "room")


@dataclass(frozen=True)
class Profile:
    """What one node and its workers did between the first worker's way in and the end of the run.

    Attributes:
        node: its id.
        first_worker: the global id of the worker in slot 0.
        seconds: how long that was.
        counters: the node's.
        workers: each of its workers', by slot.
        peak_memory: the most bytes that the node's process had in memory, rows included.
    """

    node: int
    first_worker: int
    seconds: float
    counters: NodeStatistics
    workers: Sequence[WorkerStatistics]
    peak_memory: int

    @classmethod
    def of(cls, node: int, first_worker: int, ran: Ran) -> Profile:
        """What the node has told at its end."""
        workers = [WorkerStatistics(*counters) for counters in ran.workers]
        return cls(node, first_worker, ran.microseconds / 1e6, NodeStatistics(*ran.node), workers, ran.peak_memory)

    @property
    def work(self) -> dict[str, float]:
        """Seconds of CPU time by what they were spent on; "receive, event loop" is what nothing else accounts for."""
        spent = {label: getattr(self.counters, name) / 1e9 for name, label in NODE_WORK.items()}
        rest = self.counters.cpu_ns / 1e9 - sum(spent.values())
        return {**spent, "receive, event loop, transport's threads": max(0.0, rest)}


def show(profiles: Iterable[Profile], file: TextIO | None = None) -> None:
    """Prints the tables; to standard error unless told otherwise."""
    console = Console(file=file or sys.stderr, highlight=False)
    profiles = sorted(profiles, key=lambda profile: profile.node)
    for table in (_nodes(profiles), _refreshes(profiles), _workers(profiles)):
        console.print()
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _nodes(profiles: Sequence[Profile]) -> Table:
    table = _table("Where the nodes' time went", "CPU seconds", *(f"node {profile.node}" for profile in profiles))
    for label in profiles[0].work:
        table.add_row(label, *(_seconds(profile.work[label], profile.seconds) for profile in profiles))
    totals = [sum(profile.work.values()) for profile in profiles]
    table.add_row(
        "together", *(_seconds(total, p.seconds) for total, p in zip(totals, profiles, strict=True)), style="bold"
    )
    idle = [max(0.0, profile.seconds - total) for total, profile in zip(totals, profiles, strict=True)]
    table.add_row("idle", *(_seconds(rest, p.seconds) for rest, p in zip(idle, profiles, strict=True)), style="dim")
    return table


def _refreshes(profiles: Sequence[Profile]) -> Table:
    columns = ("ticks", "rounds", "frames", "MB", "refreshes", "mean wait, ms", "most")
    table = _table("What the nodes sent, and how long updates waited for it", "node", *columns)
    for profile in profiles:
        c = profile.counters
        mean = c.refresh_wait_us / c.refreshes / 1e3 if c.refreshes else 0.0
        counts = (c.ticks, c.rounds, c.frames_out, round(c.bytes_out / 1e6), c.refreshes)
        waits = (f"{mean:.1f}", f"{c.refresh_wait_most_us / 1e3:.1f}")
        table.add_row(str(profile.node), *(f"{count:,}" for count in counts), *waits)
    return table


def _workers(profiles: Sequence[Profile]) -> Table:
    table = _table("What the workers waited for, in seconds", "worker", *WAITS, "in all", "pulls local")
    for profile in profiles:
        for slot, counters in enumerate(profile.workers):
            waits = [getattr(counters, f"{kind}_ns") / 1e9 for kind in WAITS]
            share = f"{100 * sum(waits) / profile.seconds if profile.seconds else 0:.1f} %"
            local = f"{100 * counters.local_fraction:.2f} %"
            name = f"{profile.first_worker + slot} (node {profile.node})"
            table.add_row(name, *(f"{wait:.3f}" for wait in waits), share, local)
    return table


def _seconds(seconds: float, of: float) -> str:
    return f"{seconds:.3f} {100 * seconds / of if of else 0:4.1f} %"
