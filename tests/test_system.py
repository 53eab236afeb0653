"""Whole runs with real processes and real sockets: nothing is lost, whatever moves."""

from __future__ import annotations

import tasks

import adapm


def test_every_row_equals_the_exact_sum() -> None:
    """3 nodes x 2 workers, 20 small tables and a large one, random intents, 20 seeds."""
    wrong = adapm.run(
        tasks.conserve, tables=tasks.CONSERVED, args=(list(range(20)), 60), nodes=3, workers="2", transport="zmq"
    )
    assert wrong == [[]] * 6


def test_one_row_pushed_by_everybody() -> None:
    counts = adapm.run(
        tasks.contend, tables=[adapm.Table("row", rows=1, dim=1)], args=(100_000,), nodes=3, workers="2"
    )
    assert counts == [600_000.0] * 6


def test_own_pushes_are_seen_at_once_and_always() -> None:
    tables = [adapm.Table("rows", rows=2_000, dim=4)]
    assert adapm.run(tasks.keep_reading, tables=tables, args=(200,), nodes=2, workers="2") == [200 * 500 * 4] * 4
