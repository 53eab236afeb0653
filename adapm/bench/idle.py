"""`adapm bench idle`: what nodes cost that have worked and now have nothing to do.

Every worker signals, pulls and pushes for a while, waits until all is merged, lets the nodes come to rest, and sleeps.
The baseline is nothing.  CPU time is that of each node's process, threads of the transport included; bytes are what all
nodes send over TCP (traffic.py), which includes the transport's signs of life.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapm import BlockingWorker, Table
from adapm.bench import machine
from adapm.bench.harness import Measure, check_fits, check_positive, run, settings
from adapm.bench.traffic import TcpBytes

TIMING: Final = ()
_TABLE: Final = "rows"
_CLOCKS: Final = 50  # of work before
_BATCH: Final = 256


@dataclass(frozen=True)
class Idle:
    """What is measured.

    Attributes:
        nodes: with one worker each.
        rows, dim: of the table.
        transport: between the nodes.
        settle: seconds between work and measurement.
        seconds: of measurement.
    """

    nodes: int
    rows: int
    dim: int
    transport: str
    settle: float
    seconds: float


def measure(idle: Idle) -> Measure:
    """Takes one sample of all figures at each call, with nodes and workers of its own."""
    check_positive(nodes=idle.nodes, rows=idle.rows, dim=idle.dim, seconds=idle.seconds)
    table = Table(_TABLE, rows=idle.rows, dim=idle.dim)
    config = settings(nodes=idle.nodes, workers="1", transport=idle.transport)
    check_fits(table, copies=1)
    return lambda: run(work, table, config, idle)[0]


def work(worker: BlockingWorker, idle: Idle) -> dict[str, float]:
    """What each worker does; worker 0 measures."""
    _work_for_a_while(worker, idle)
    worker.barrier()
    figures = _watch(idle) if worker.id == 0 else {}
    worker.barrier()
    return figures


def _work_for_a_while(worker: BlockingWorker, idle: Idle) -> None:
    ones = np.ones((_BATCH, idle.dim), np.float32)
    for _ in range(_CLOCKS):
        keys = worker.rng.integers(idle.rows, size=_BATCH)
        worker.intent(_TABLE, keys, worker.clock + 1)
        worker.advance_clock()
        worker.pull(_TABLE, keys)
        worker.push(_TABLE, keys, ones)
    worker.advance_clock()


def _watch(idle: Idle) -> dict[str, float]:
    nodes = machine.nodes_beside(os.getpid())
    time.sleep(idle.settle)  # we measure what happens while nothing does
    wire, before, begin = TcpBytes(nodes), [machine.cpu_seconds(pid) for pid in nodes], time.perf_counter()
    time.sleep(idle.seconds)
    elapsed = time.perf_counter() - begin
    spent = [machine.cpu_seconds(pid) - earlier for pid, earlier in zip(nodes, before, strict=True)]
    return {
        "cpu_fraction_per_node": sum(spent) / len(nodes) / elapsed,
        "cpu_fraction_of_busiest": max(spent) / elapsed,
        "bytes_per_s": wire.sent() / len(nodes) / elapsed,
    }
