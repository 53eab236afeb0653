"""The node, whole, among others in one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
from cluster import Cluster

from adapm import Table, Worker

TABLES = [Table("a", rows=50, dim=3), Table("b", rows=7, columns={"x": 2, "y": 1}, init={"y": np.ones((7, 1))})]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_workers_of_all_nodes_push_to_the_same_rows(nodes: int, transport: str) -> None:
    async def task(worker: Worker) -> float:
        keys = np.arange(50)
        for _ in range(10):
            await worker.push("a", keys, np.ones((50, 3)))
        await worker.barrier()
        return float((await worker.pull("a", keys)).sum())

    async def main() -> None:
        async with Cluster(TABLES, nodes, workers=2, transport=transport) as cluster:
            sums = await cluster.run(task)
            assert sums == [50 * 3 * 10 * 2 * nodes] * (2 * nodes)
            await cluster.finish()
            await cluster.settle()
            assert (cluster.main_copies("a") == 20 * nodes).all()
            assert (cluster.main_copies("b") == [0, 0, 1]).all()

    run(main())
