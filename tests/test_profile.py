"""Where the time went: what is counted, and what a person sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from adapm import Table
from adapm.profile import Profile, show
from adapm.statistics import COUNTERS, NodeStatistics, WorkerStatistics
from desk import Desk

SCRIPT = """
import numpy as np
import adapm

def work(worker):
    keys = np.arange(64)
    for _ in range(20):
        worker.intent("t", keys, start=worker.clock + 1)
        worker.advance_clock()
        worker.push("t", keys, worker.pull("t", keys))
    worker.barrier()

if __name__ == "__main__":
    adapm.run(work, [adapm.Table("t", rows=64, dim=4)])
"""


def node(**counts: int) -> NodeStatistics:
    return NodeStatistics(**{field.name: counts.get(field.name, 0) for field in dataclasses.fields(NodeStatistics)})


def worker(**counts: int) -> WorkerStatistics:
    return WorkerStatistics(**{name: counts.get(name, 0) for name in COUNTERS})


def shown(*profiles: Profile) -> str:
    out = io.StringIO()
    show(profiles, out)
    return out.getvalue()


def test_what_is_not_accounted_for_is_receiving_and_the_event_loop() -> None:
    profile = Profile(0, 0, 10.0, node(send_ns=2_000_000_000, apply_ns=1_000_000_000, cpu_ns=4_500_000_000), [], 0)
    assert profile.work["send"] == 2.0
    assert profile.work["receive, event loop, transport's threads"] == 1.5
    assert sum(profile.work.values()) == 4.5


def test_the_tables_show_every_node_and_worker() -> None:
    workers = [worker(pull_keys=2000, pull_local=1999, barrier_ns=2_500_000_000), worker()]
    text = shown(
        Profile(1, 2, 10.0, node(cpu_ns=10**9, bytes_out=7_000_000), workers, 0),
        Profile(
            0, 0, 10.0, node(cpu_ns=10**9, refreshes=2, refresh_wait_us=7000, refresh_wait_most_us=6000), workers, 0
        ),
    )
    assert text.index("node 0") < text.index("node 1")
    for expected in ("0 (node 0)", "3 (node 1)", "99.95 %", "2.500", "25.0 %", "9.000 90.0 %", "3.5", "6.0"):
        assert expected in text, expected


def test_waits_are_counted_by_what_is_waited_for() -> None:
    async def waited_for(desk: Desk, start: Callable[[], Awaitable[object]]) -> None:
        async def wait() -> None:
            await start()

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # it waits now, and nothing comes until the nodes have their turn
        assert not waiting.done()
        while not waiting.done():
            desk.turn()
            await asyncio.sleep(0)
        await waiting

    with contextlib.closing(Desk([Table("t", rows=32, dim=2)])) as desk:
        worker = desk.worker(0)
        remote = [key for key in range(32) if not worker.is_local("t", [key])[0]]
        asyncio.run(waited_for(desk, lambda: worker.push("t", remote, np.ones((len(remote), 2), np.float32))))
        counted = worker.statistics()
        assert counted.push_ns > 0
        assert (counted.pull_ns, counted.sync_ns, counted.room_ns) == (0, 0, 0)
        asyncio.run(waited_for(desk, lambda: worker.pull("t", remote)))
        asyncio.run(waited_for(desk, worker.wait_sync))
        assert worker.statistics().pull_ns > 0
        assert worker.statistics().sync_ns > 0
        assert (worker.statistics().set_ns, worker.statistics().barrier_ns) == (0, 0)
        assert desk.segments[0].worker_statistics(0).pull_ns == worker.statistics().pull_ns


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_tells_where_its_time_went(tmp_path: Path, nodes: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "adapm", "run", "--nodes", str(nodes), "--workers", "1", "--profile", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for title in ("Where the nodes' time went", "What the nodes sent", "What the workers waited for"):
        assert title in done.stderr
    assert f"{nodes - 1} (node {nodes - 1})" in done.stderr
