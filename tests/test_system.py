"""Whole runs with real processes and real sockets: nothing is lost, whatever moves."""

from __future__ import annotations

import numpy as np
import pytest

import adapm
import tasks
from adapm import Table
from adapm.kernel import lib
from adapm.simulator.runs import OTHERS


@pytest.mark.parametrize("transport", ["tcp", "zmq", "ucx+tcp", "ucx+shm"])
def test_every_row_equals_the_exact_sum(transport: str) -> None:
    """3 nodes x 2 workers, 20 small tables and a large one, random intents, 20 seeds."""
    wrong = adapm.run(
        tasks.conserve, tables=tasks.CONSERVED, args=(list(range(20)), 60), nodes=3, workers="2", transport=transport
    )
    assert wrong == [[]] * 6


@pytest.mark.parametrize("technique", OTHERS)
def test_every_row_equals_the_exact_sum_with_each_technique(technique: str) -> None:
    tables = [Table(t.name, t.rows, columns=t.columns, counts=np.arange(t.rows, 0, -1)) for t in tasks.CONSERVED]
    wrong = adapm.run(tasks.conserve, tables, args=([1], 60), nodes=2, workers="threads:2", technique=technique)
    assert wrong == [[]] * 4


@pytest.mark.parametrize("bound", [0, 2])
def test_no_pull_reads_a_copy_that_is_too_old(bound: int) -> None:
    keys = np.array([row for row in range(600) if lib.adapm_home_of(0, row, 2) == 1])
    args = (tasks.Turns(), keys, bound, 200)
    settings = {"nodes": 2, "workers": "threads:1", "technique": f"ssp({bound})"}
    assert adapm.run(tasks.read_young, [Table("rows", rows=600, dim=1)], args=args, **settings) == [0, 0]


@pytest.mark.parametrize(
    ("transport", "links"),
    [("tcp", (0, 2, 0)), ("zmq+ipc", (2, 0, 0)), ("ucx+tcp", (0, 2, 0)), ("ucx+shm", (2, 0, 0)), ("ucx", (2, 0, 0))],
)
def test_statistics_tell_what_links_run_on(transport: str, links: tuple[int, int, int]) -> None:
    tables = [adapm.Table("rows", rows=10, dim=1)]
    assert adapm.run(tasks.links, tables=tables, nodes=3, workers="1", transport=transport) == [links] * 3


def test_one_row_pushed_by_everybody() -> None:
    counts = adapm.run(tasks.contend, tables=[adapm.Table("row", rows=1, dim=1)], args=(100_000,), nodes=3, workers="2")
    assert counts == [600_000.0] * 6


def test_own_pushes_are_seen_at_once_and_always() -> None:
    tables = [adapm.Table("rows", rows=2_000, dim=4)]
    assert adapm.run(tasks.keep_reading, tables=tables, args=(200,), nodes=2, workers="2") == [200 * 500 * 4] * 4


def test_rows_are_where_they_are_wanted_as_long_as_they_are() -> None:
    first, second = adapm.run(tasks.locality, tables=[adapm.Table("rows", rows=3, dim=1)], nodes=2, workers="1")
    # While the intents are active: one's own row, and the shared one at both.
    assert first[0] == [True, False, True]
    assert second[0] == [False, True, True]
    # Relocated rows stay where they were last wanted; the shared row is where the last interest was, and only there.
    assert first[1] == [True, False, True]
    assert second[1] == [False, True, False]
    assert first[2] == [True, False, True]
    assert second[2] == [False, True, False]


def test_set_then_push_in_every_state_of_a_row() -> None:
    sums = adapm.run(tasks.set_then_push, tables=[adapm.Table("rows", rows=8, dim=1)], args=(40,), nodes=2, workers="2")
    assert sums == [[8 * (i + 2.0) for i in range(40)]] * 4


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_worker_killed_inside_the_kernel_ends_the_run(step: int, rng: np.random.Generator) -> None:
    who, pushes = int(rng.integers(4)), int(rng.integers(20, 2_000))
    print(f"worker {who} dies at step {step} of a push after {pushes}")
    with pytest.raises(adapm.errors.WorkerDied, match=f"worker {who}.*SIGKILL"):
        adapm.run(
            tasks.die_in_push, tables=[adapm.Table("t", rows=20, dim=2)], args=(who, pushes, step), nodes=2, workers="2"
        )


def test_an_idle_cluster_sends_nothing_and_sleeps() -> None:
    seen = adapm.run(tasks.pause, tables=[adapm.Table("rows", rows=1_000, dim=4)], args=(2.0,), nodes=2, workers="2")
    assert [one is None for one in seen] == [False, True, False, True]
    for frames, ticks, cpu in seen[::2]:
        assert (frames, ticks) == (0, 0)
        assert cpu <= 0.04  # seconds of both nodes in two seconds, in clock ticks of 0.01: 1 % of a core each
