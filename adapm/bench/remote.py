"""`adapm bench remote`: rows that another node owns, without intent, against a bare ping-pong of the same sizes.

    core 0   worker 0, node 0, and the side of each ping-pong that asks (in worker 0's process)
    core 1   node 1, and the sides that answer

Worker 0 has one operation outstanding, back to back, and takes turns: pulls, the pull's ping-pong, pushes, the push's
ping-pong.  The sizes of the ping-pongs are the bytes that the nodes hand to the transport for one such operation, as
they count them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from adapm import BlockingWorker, Table
from adapm.bench import machine, ping_pong
from adapm.bench.harness import Measure, check_fits, check_positive, over, run, settings
from adapm.bench.keys import Keys, draw
from adapm.bench.ping_pong import Ping, kind_for
from adapm.errors import InternalError

TIMING = ("pull_p50_us", "push_p50_us", "pull_socket_p50_us", "push_socket_p50_us")
_TABLE = "rows"
_BATCHES = 64  # different ones, in turn
_TURN = 50  # operations of one kind before the next kind has its turn
_SIZED = 10  # operations from which sizes are told


@dataclass(frozen=True)
class Remote:
    """What is measured.

    Attributes:
        rows, dim: of the table.
        batch: keys of one operation.
        transport: between the nodes; for `variants` also several, between commas.
        in_flight: operations under way at once where throughput is measured.
        seconds: of each repetition's turns.
        cores: for the two machines that we play.
    """

    rows: int
    dim: int
    batch: int
    transport: str
    in_flight: int
    seconds: float
    cores: tuple[int, ...]


def variants(remote: Remote) -> dict[str, Measure]:
    """One for each transport, if there are several between commas."""
    names = [name.strip() for name in remote.transport.split(",")]
    if len(names) == 1:
        return {"": measure(remote)}
    return {name: measure(replace(remote, transport=name)) for name in names}


def measure(remote: Remote) -> Measure:
    """Takes one sample of all figures at each call, with nodes and workers of its own."""
    check_positive(rows=remote.rows, dim=remote.dim, batch=remote.batch, in_flight=remote.in_flight)
    check_positive(seconds=remote.seconds)
    table = Table(_TABLE, rows=remote.rows, dim=remote.dim)
    config = settings(nodes=2, workers="1", transport=remote.transport)
    check_fits(table, copies=1)
    return lambda: run(work, table, config, remote)[0]


def work(worker: BlockingWorker, remote: Remote) -> dict[str, float]:
    """What each of the two workers does; worker 0 measures."""
    where = list(remote.cores)
    machine.pin(os.getpid(), machine.core_of(worker.node, where))
    machine.pin(machine.nodes_beside(os.getpid())[worker.node], machine.core_of(worker.node, where))
    worker.barrier()
    figures = _Asker(worker, remote).measure() if worker.id == 0 else {}
    worker.barrier()
    return figures


class _Asker:
    """Worker 0."""

    def __init__(self, worker: BlockingWorker, remote: Remote) -> None:
        self._worker = worker
        self._remote = remote
        away = np.flatnonzero(~worker.is_local(_TABLE, np.arange(remote.rows)))
        self._batches = draw("uniform", len(away), remote.batch, _BATCHES, worker.rng, away)
        self._out = np.empty((remote.batch, remote.dim), np.float32)
        self._ones = np.ones((remote.batch, remote.dim), np.float32)
        self._turn = 0

    def measure(self) -> dict[str, float]:
        """One sample of all figures."""
        pull_sizes, push_sizes = self._sizes(self._pull), self._sizes(self._push)
        kind = kind_for(self._remote.transport)
        with contextlib.ExitStack() as stack:
            operations: dict[str, Callable[[], object]] = {
                "pull": self._pull,
                "pull_socket": self._ping(stack, kind, pull_sizes),
                "push": self._push,
                "push_socket": self._ping(stack, kind, push_sizes),
            }
            for other in {"tcp", "zmq"} - {kind}:
                operations[f"pull_{other}"] = self._ping(stack, other, pull_sizes)
                operations[f"push_{other}"] = self._ping(stack, other, push_sizes)
            figures = _take_turns(operations, self._remote.seconds)
        for name in ("pull", "push"):
            took, socket = figures[f"{name}_p50_us"], figures[f"{name}_socket_p50_us"]
            figures[f"{name}_over_socket"] = over(took, socket)
            figures[f"{name}_over_tcp"] = over(took, figures.get(f"{name}_tcp_p50_us", socket))
        figures["pull_request_bytes"], figures["pull_answer_bytes"] = pull_sizes
        figures["push_request_bytes"], figures["push_answer_bytes"] = push_sizes
        return {**figures, "pull_keys_per_s": self._throughput()}

    def _pull(self) -> object:
        return self._worker.pull(_TABLE, self._keys(), out=self._out)

    def _push(self) -> None:
        self._worker.push(_TABLE, self._keys(), self._ones)

    def _keys(self) -> Keys:
        self._turn += 1
        keys: Keys = self._batches[self._turn % _BATCHES]
        return keys

    def _sizes(self, operation: Callable[[], object]) -> tuple[int, int]:
        """Bytes that one operation sends and receives, by the node's account."""
        before = self._worker.statistics()
        for _ in range(_SIZED):
            operation()
        after = self._worker.statistics()
        if after.pull_local != before.pull_local or after.push_local != before.push_local:
            raise InternalError("rows that were to be remote are local: without intent nothing may move")
        node, earlier = after.node, before.node
        return (node.bytes_out - earlier.bytes_out) // _SIZED, (node.bytes_in - earlier.bytes_in) // _SIZED

    def _ping(self, stack: contextlib.ExitStack, kind: str, sizes: tuple[int, int]) -> Ping:
        request, answer = sizes
        address = stack.enter_context(ping_pong.server(kind, machine.core_of(1, list(self._remote.cores)), request))
        side = ping_pong.connect(kind, address)
        stack.callback(side.close)
        ping = Ping(side, request, answer)
        if ping() != answer:
            raise InternalError(f"the {kind} ping-pong does not answer with {answer} bytes")
        return ping

    def _throughput(self) -> float:
        """Keys per second with several pulls under way."""
        buffers = [np.empty_like(self._out) for _ in range(self._remote.in_flight)]
        under_way = [self._worker.pull_later(_TABLE, self._keys(), out=out) for out in buffers]
        begin, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < self._remote.seconds / 4:
            out = under_way.pop(0).result()
            under_way.append(self._worker.pull_later(_TABLE, self._keys(), out=out))
            done += 1
        for pull in under_way:
            pull.result()
        return done * self._remote.batch / elapsed


def _take_turns(operations: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Medians of each operation's time, and their 99th percentiles, in microseconds."""
    times: dict[str, list[float]] = {name: [] for name in operations}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, operation in operations.items():
            operation()  # brings its code and data back into the caches
            times[name] += _timed(operation)
    figures = {f"{name}_p50_us": 1e6 * float(np.percentile(taken, 50)) for name, taken in times.items()}
    return figures | {f"{name}_p99_us": 1e6 * float(np.percentile(taken, 99)) for name, taken in times.items()}


def _timed(operation: Callable[[], object]) -> list[float]:
    clock = time.perf_counter
    stamps = [clock()]
    for _ in range(_TURN):
        operation()
        stamps.append(clock())
    return [after - before for before, after in pairwise(stamps)]
