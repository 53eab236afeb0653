"""What workers do in tests with real processes; in a module of its own, because child processes import it."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import adapm
from adapm.kernel import lib

DIM = 4
SMALL = [adapm.Table(f"small{i}", rows=1 + 3 * i, dim=DIM) for i in range(20)]
CONSERVED = [*SMALL, adapm.Table("large", rows=100_000, dim=DIM)]

Keys = npt.NDArray[np.int64]
Batch = tuple[str, npt.NDArray[np.int64], npt.NDArray[np.float32]]


def batches(seed: int, worker: int, tables: list[adapm.Table], n: int) -> Iterator[Batch]:
    """The same pushes for everybody who asks: table, keys, values that are small integers."""
    rng = np.random.default_rng([seed, worker])
    for _ in range(n):
        table = tables[int(rng.integers(len(tables)))]
        keys = rng.integers(table.rows, size=int(rng.integers(1, 200)))
        if rng.random() < 0.5:
            keys %= 7  # a few rows that everybody fights for
        yield table.name, keys, rng.integers(-3, 4, size=(len(keys), DIM)).astype(np.float32)


def start_values(seed: int, table: adapm.Table) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng([seed, 1_000_000, table.rows])
    return rng.integers(-9, 10, size=(table.rows, DIM)).astype(np.float32)


async def conserve(worker: adapm.Worker, seeds: list[int], n: int) -> list[str]:
    """Sets all rows, pushes with and without intent, compares every row with the exact sum; returns what differs."""
    wrong: list[str] = []
    for seed in seeds:
        for table in worker.tables.values():
            mine = np.arange(worker.id, table.rows, worker.num_workers)
            await worker.set(table.name, mine, start_values(seed, table)[mine])
        await worker.barrier()
        await _push_all(worker, seed, n)
        await worker.barrier()
        wrong += [f"seed {seed}: {name}" for name in await _wrong_tables(worker, seed, n)]
        await worker.barrier()
    return wrong


async def _push_all(worker: adapm.Worker, seed: int, n: int) -> None:
    rng = np.random.default_rng([seed, worker.id, 7])
    todo = list(batches(seed, worker.id, CONSERVED, n))
    pending = []
    for i, (table, keys, values) in enumerate(todo):
        ahead = i + int(rng.integers(0, 12))
        if ahead < n and rng.random() < 0.7:
            worker.intent(
                todo[ahead][0],
                todo[ahead][1],
                worker.clock + ahead - i,
                worker.clock + ahead - i + 1 + int(rng.integers(3)),
            )
        pushed = worker.push(table, keys, values)
        if rng.random() < 0.3:
            await pushed
        else:
            pending.append(pushed)
        if rng.random() < 0.1:
            await worker.pull(table, keys)
        if rng.random() < 0.02:
            await worker.wait_sync()
        worker.advance_clock()
    for pushed in pending:
        await pushed


async def _wrong_tables(worker: adapm.Worker, seed: int, n: int) -> list[str]:
    expected = {table.name: start_values(seed, table) for table in worker.tables.values()}
    for other in range(worker.num_workers):
        for table, keys, values in batches(seed, other, CONSERVED, n):
            np.add.at(expected[table], keys, values)
    return [name for name, rows in expected.items() if not np.array_equal(await worker.read_table(name), rows)]


def contend(worker: adapm.BlockingWorker, pushes: int) -> float:
    """Everybody pushes the same row, most of the time with intent; its final value is everybody's count."""
    one = np.ones((1, 1), np.float32)
    for i in range(pushes):
        if i % 100 == 0:
            worker.intent("row", [0], worker.clock, worker.clock + 60)
        worker.push("row", [0], one)
        worker.advance_clock()
    worker.barrier()
    return float(worker.pull("row", [0])[0, 0])


def keep_reading(worker: adapm.BlockingWorker, rounds: int) -> int:
    """Many random keys per operation; a worker's own pushes never disappear from what it pulls."""
    rng = np.random.default_rng(worker.id)
    mine = np.zeros(2_000, np.float32)
    for i in range(rounds):
        keys = rng.integers(2_000, size=500)
        if i % 3:
            worker.intent("rows", keys, worker.clock, worker.clock + 4)
        values = np.zeros((500, worker.num_workers), np.float32)
        values[:, worker.id] = 1
        worker.push("rows", keys, values)
        np.add.at(mine, keys, 1)
        seen = worker.pull("rows", keys)[:, worker.id]
        if not np.array_equal(seen, mine[keys]):
            raise AssertionError(f"round {i}: own updates {mine[keys]} are seen as {seen}")
        worker.advance_clock()
    worker.barrier()
    return int(worker.read_table("rows").sum())


def links(worker: adapm.BlockingWorker) -> tuple[int, int, int]:
    """How many other nodes this worker's node reaches over shared memory, over TCP, past both."""
    node = worker.statistics().node
    return node.links_shm, node.links_tcp, node.links_rdma


def locality(worker: adapm.BlockingWorker) -> list[list[bool]]:
    """Where rows are during and after intents of two workers: one row each, and one shared."""
    seen = []

    def look(clock: int) -> None:
        while worker.clock < clock:
            worker.advance_clock()
        worker.wait_sync()
        worker.barrier()
        seen.append(worker.is_local("rows", np.arange(3)).tolist())
        worker.barrier()

    worker.intent("rows", [worker.id, 2], 1, 10)  # row 0 for worker 0, row 1 for worker 1, row 2 for both
    look(1)
    if worker.id == 0:
        worker.intent("rows", [2], 10, 20)
    look(10)  # worker 0 alone wants row 2
    look(20)  # nobody wants anything
    return seen


def set_then_push(worker: adapm.BlockingWorker, rounds: int) -> list[float]:
    """Home, replica, relocated or remote: a set is behind earlier and before later pushes."""
    keys = np.arange(8)
    final = []
    for i in range(rounds):
        if worker.id == i % worker.num_workers:
            worker.intent("rows", keys[:4], worker.clock, worker.clock + 2)
            worker.push("rows", keys, np.full((8, 1), 100.0))
            worker.set("rows", keys, np.full((8, 1), float(i)))
            worker.push("rows", np.concatenate([keys, keys]), np.ones((16, 1)))
            assert np.array_equal(worker.pull("rows", keys), np.full((8, 1), i + 2.0))
        else:
            worker.intent("rows", keys[2:6], worker.clock, worker.clock + 3)
        worker.advance_clock()
        worker.barrier()
        final.append(float(worker.pull("rows", keys).sum()))
        worker.barrier()
    return final


def die_in_push(worker: adapm.BlockingWorker, who: int, pushes: int, step: int) -> None:
    """Pushes for ever; one worker is killed, by itself, at a step inside the kernel (see adapm_die_at)."""
    keys, ones = np.arange(20), np.ones((20, 2), np.float32)
    for i in range(1_000_000):
        if i % 10 == 0:
            worker.intent("t", keys, worker.clock, worker.clock + 20)
        if worker.id == who and i == pushes:
            lib.adapm_die_at(worker._handle, step, pushes % len(keys))
        worker.push("t", keys, ones)
        worker.advance_clock()
        if i % 50 == 0:
            worker.pull("t", keys)


def pause(worker: adapm.BlockingWorker, seconds: float) -> tuple[int, int, float] | None:
    """What the node did while its workers did nothing: frames sent, ticks, and the CPU seconds of all nodes.

    The first worker of each node looks in turn, the others wait at a barrier meanwhile.
    """
    worker.intent("rows", np.arange(100), worker.clock, worker.clock + 5)
    worker.push("rows", np.arange(100), np.ones((100, 4)))
    worker.wait_sync()
    seen = None
    for looking in range(0, worker.num_workers, worker.num_workers // worker.num_nodes):
        worker.barrier()
        if worker.id == looking:
            _wait_until_quiet(worker)
            before, cpu = worker.statistics().node, _cpu_seconds_of_nodes()
            _wait(seconds)  # the duration is what is measured
            after, busy = worker.statistics().node, _cpu_seconds_of_nodes() - cpu
            seen = after.frames_out - before.frames_out, after.ticks - before.ticks, busy
    worker.barrier()
    return seen


def _wait_until_quiet(worker: adapm.BlockingWorker) -> None:
    for _ in range(50):
        ticks = worker.statistics().node.ticks
        _wait(0.5)  # much longer than any answer takes
        if worker.statistics().node.ticks == ticks:
            return
    raise AssertionError("the node does not come to rest")


def _wait(seconds: float) -> None:
    select.select([], [], [], seconds)


def _cpu_seconds_of_nodes() -> float:
    """Of the processes that run nodes, among our siblings."""
    siblings = [
        pid for task in Path(f"/proc/{os.getppid()}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    nodes = [pid for pid in siblings if b"adapm.node" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if not nodes:
        raise AssertionError("no node process found")
    times = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in nodes]
    return sum(int(user) + int(system) for user, system in times) / os.sysconf("SC_CLK_TCK")


def local_access(worker: adapm.BlockingWorker, calls: int) -> int:
    """Pulls and pushes local rows between two getsid() calls, for a tracer to find; returns the ticks of the node."""
    keys = np.flatnonzero(worker.is_local("rows", np.arange(10_000)))[:256]
    rows, ones = worker.pull("rows", keys), np.ones((256, 16), np.float32)
    worker.push("rows", keys, ones)
    before = worker.statistics().node.ticks
    os.getsid(0)
    for _ in range(calls):
        worker.pull("rows", keys, out=rows)
        worker.push("rows", keys, ones)
    os.getsid(0)
    return worker.statistics().node.ticks - before


class Turns:
    """Two threads of one process by turns."""

    def __init__(self) -> None:
        self.mine, self.yours = threading.Semaphore(0), threading.Semaphore(0)


def read_young(worker: adapm.BlockingWorker, turns: Turns, keys: Keys, bound: int, clocks: int) -> int:
    """Worker 1 pushes ones to rows at its home, once for each clock of worker 0; that counts what it reads too old."""
    ones, late = np.ones((len(keys), 1), np.float32), 0
    for clock in range(clocks):
        if worker.id == 1:
            turns.yours.acquire()
            worker.push("rows", keys, ones)
            turns.mine.release()
        else:
            late += int((worker.pull("rows", keys) < clock - bound).sum())
            turns.yours.release()
            turns.mine.acquire()
            worker.advance_clock()
    worker.barrier()
    return late


if __name__ == "__main__":  # what a tracer runs
    print(adapm.run(local_access, [adapm.Table("rows", rows=10_000, dim=16)], args=(1_000,), nodes=2, workers="1"))


async def sample(worker: adapm.Worker, batches: int) -> tuple[list[str], dict[str, int]]:
    """Samples from each table, some batches ahead; returns what is wrong, and a number that depends on all keys."""
    wrong: list[str] = []
    sums = dict.fromkeys((name for name in worker.tables if name != "local"), 0)
    ahead = {name: [worker.prepare_sample(name, 64, clock) for clock in range(4)] for name in worker.tables}
    for batch in range(batches):
        for name, prepared in ahead.items():
            prepared.append(worker.prepare_sample(name, 64, batch + 4))
            keys, rows = await worker.pull_sample(prepared.pop(0))
            if not np.array_equal(rows, np.stack([2 * keys, 2 * keys + 1], axis=1)):
                wrong.append(f"{name}, batch {batch}")
            if name in sums:
                sums[name] = (31 * sums[name] + int(keys @ np.arange(1, 65))) % 2**40
        worker.advance_clock()
    await worker.barrier()
    return wrong, sums
