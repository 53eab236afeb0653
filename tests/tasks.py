"""What workers do in tests with real processes; in a module of its own, because child processes import it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import adapm

DIM = 4
SMALL = [adapm.Table(f"small{i}", rows=1 + 3 * i, dim=DIM) for i in range(20)]
CONSERVED = [*SMALL, adapm.Table("large", rows=100_000, dim=DIM)]

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
    """Sets all rows, pushes with and without intent, and compares every row with the exact sum; returns what differs."""
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
            worker.intent(todo[ahead][0], todo[ahead][1], worker.clock + ahead - i, worker.clock + ahead - i + 1 + int(rng.integers(3)))
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
