"""What runs and scripts report into a file, and what is read back."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import adapm
from adapm import reporting
from adapm.errors import ConfigError, DataError, UsageError
from adapm.profile import Profile
from adapm.statistics import COUNTERS, NodeStatistics, Statistics, WorkerStatistics

SCRIPT = """
import numpy as np
import adapm

def work(worker):
    keys = np.arange(worker.id, 64, worker.num_workers)
    worker.intent("t", keys, start=0, end=2)
    worker.wait_sync()
    worker.push("t", keys, worker.pull("t", keys))
    worker.barrier()
    counted = worker.node, worker.statistics()
    worker.read_table("t")
    return counted

if __name__ == "__main__":
    table = adapm.Table("t", rows=64, dim=4)
    adapm.run(work, [table])
    results = adapm.run(work, [table])
    adapm.report(epoch_seconds=[0.5, 0.25], loss={"RMSE": 2}, seconds_of_test=3)
    adapm.report(quality={"MRR": [0.5, 0.75]}, epoch_seconds=[0.5, 0.25])
    if ENDED:
        adapm.report(statistics={node: [counted] for node, counted in results})
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is reported goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPM_REPORT", str(tmp_path / "report.jsonl"))
    return tmp_path / "report.jsonl"


def node(**counts: int) -> NodeStatistics:
    return NodeStatistics(**{field.name: counts.get(field.name, 0) for field in dataclasses.fields(NodeStatistics)})


def worker(pulls: int, ticks: int) -> Statistics:
    return Statistics(**{name: pulls if name == "pull_keys" else 0 for name in COUNTERS}, node=node(ticks=ticks))


def run(script: Path, text: str) -> reporting.Report:
    script.write_text(text)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    report = script.with_suffix(".jsonl")
    command = [sys.executable, "-m", "adapm", "run", "--nodes", "2", "--workers", "1", "--report", str(report)]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return reporting.read(report)


def test_a_script_of_two_runs(tmp_path: Path) -> None:
    told = run(tmp_path / "script.py", SCRIPT.replace("ENDED", "False"))
    assert (told.epoch_seconds, told.loss, told.quality) == ([0.5, 0.25], {"RMSE": [2.0]}, {"MRR": [0.5, 0.75]})
    assert told.figures == {"seconds_of_test": 3.0}
    assert told.seconds is not None
    assert told.seconds > 0
    assert 1 << 20 < told.peak_memory < 1 << 30
    assert sorted(told.counters) == ["0", "1"]
    pulled = [counter["pull_keys"] for each in told.counters.values() for counter in each["workers"]]
    assert pulled == [32 + 64, 32 + 64] * 2
    assert all(each["node"]["bytes_out"] > 0 for each in told.counters.values())


def test_what_comes_after_training_does_not_count_if_the_script_says_so(tmp_path: Path) -> None:
    told = run(tmp_path / "script.py", SCRIPT.replace("ENDED", "True"))
    assert {name: [w["pull_keys"] for w in each["workers"]] for name, each in told.counters.items()} == {
        "0": [32],
        "1": [32],
    }


def test_without_a_file_it_only_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADAPM_REPORT", raising=False)
    adapm.report(epoch_seconds=[1], loss={"x": 1})
    with pytest.raises(UsageError, match="z must be a number, got 'much'"):
        adapm.report(z="much")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch_seconds": ["x"]}, r"epoch_seconds must be a number, got 'x'"),
        ({"quality": {"MRR": [1, 2]}}, r"quality\['MRR'\] has 2 numbers, but there are 0 epoch_seconds"),
        ({"epoch_seconds": [1, 2, 3], "loss": {"a": [1, 2]}}, r"loss\['a'\] has 2 numbers, but there are 3"),
        ({"statistics": {1: []}}, "statistics of node 1 are of no worker"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(file: Path, given: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adapm.report(**given)
    assert not file.exists()


def test_the_last_word_counts_and_what_is_not_finite_is_none(file: Path) -> None:
    adapm.report(epoch_seconds=[1.0], quality={"a": 1, "b": float("nan")}, more=1)
    adapm.report(quality={"a": 2}, more=float("inf"))
    told = reporting.read(file)
    assert (told.epoch_seconds, told.quality, told.figures) == ([1.0], {"a": [2.0], "b": [None]}, {"more": None})


def test_of_a_nodes_workers_the_latest_word_about_the_node_counts(file: Path) -> None:
    adapm.report(statistics={3: [worker(5, ticks=7), worker(6, ticks=4)]})
    counted = reporting.read(file).counters["3"]
    assert counted["node"]["ticks"] == 7
    assert [each["pull_keys"] for each in counted["workers"]] == [5, 6]


def test_nothing_reported_is_an_empty_report(tmp_path: Path) -> None:
    assert reporting.read(tmp_path / "none") == reporting.Report()


@pytest.mark.parametrize("line", ["{", "[]", '{"by": "script"}', '{"by": "run", "seconds": "x"}'])
def test_a_line_that_is_none_of_ours_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "r.jsonl"
    good = {"by": "script", "epoch_seconds": [], "quality": {}, "loss": {}, "figures": {}}
    file.write_text(f"{json.dumps(good)}\n{line}")
    with pytest.raises(DataError, match=r"r\.jsonl, line 2: is no line of a report"):
        reporting.read(file)


def test_a_folder_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*: make it first"):
        adapm.run(print, [adapm.Table("t", rows=1, dim=1)], workers="threads:1", report=str(tmp_path / "no" / "file"))


def test_a_run_does_not_lose_its_results_to_its_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted = Profile(0, 0, 1.0, node(), [WorkerStatistics(*[0] * len(COUNTERS))], 5)
    with caplog.at_level(logging.WARNING):
        reporting.report_run(str(tmp_path), [counted])  # a folder
    assert "the run's report was not written" in caplog.text
    reporting.report_run(str(tmp_path / "file"), [counted])
    assert reporting.read(tmp_path / "file").peak_memory == 5
