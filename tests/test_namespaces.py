"""Hosts of their own (network namespaces), whose cables are cut, whose nodes are stopped or killed while rows move.

Every run must end in completion, with exact sums, or in an error that names a node, everywhere within ten seconds.
`tox -e hosts` adds a hundred random plans, ADAPM_TEST_HOSTS=N so many.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

import namespaces
from churn_task import Load
from hosts_plan import FOR_EVER, NAMED_WITHIN, Act, Report, carry_out, draw

HOSTS = 3
PLANS = int(os.environ.get("ADAPM_TEST_HOSTS", "0"))
TRANSPORTS = ("tcp", "tcp", "zmq", "tcp", "ucx+tcp")  # in turn
NAMING = {"NodeLost", "NodeDied"}


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if reason := namespaces.why_not():
        pytest.skip(reason)


def load(folder: Path, rng: np.random.Generator, workers: int = 1, steps: int = 400) -> Load:
    """About two seconds of work on a quiet machine."""
    return Load(folder / "run", int(rng.integers(2**31)), HOSTS * workers, rows=1_000, steps=steps, keys=20, marks=30)


def check(report: Report, acts: list[Act]) -> None:
    """Either of the two ends that a run may have."""
    for said in (*report.hosts, *report.workers):
        print(said)
    if report.completed:
        assert not report.workers
        assert all(act.kind not in ("kill", "power") and act.seconds != FOR_EVER for act in acts), "nobody noticed"
        return
    fatal = [act for act in acts if not act.must_pass]
    assert fatal, "this should have been outlasted"
    concerned = {host for act in fatal for host in (act.host, act.other if act.kind == "silence" else act.host)}
    for said in (*report.hosts, *report.workers):
        assert said.error in NAMING, said
        # Of a broken connection either end may speak first, and the others believe it.
        ends = {int(node) for pair in re.findall(r"node (\d+) is lost to node (\d+)", said.message) for node in pair}
        assert ends & concerned or said.node in concerned or said.who.startswith("worker"), said
    assert report.longest < NAMED_WITHIN


@pytest.mark.parametrize("transport", ["tcp"])
@pytest.mark.parametrize(
    "act",
    [
        Act(20, "kill", 2, 0, FOR_EVER),
        Act(20, "cut", 1, 0, FOR_EVER),
    ],
    ids=lambda act: act.kind,
)
def test_a_node_that_cannot_be_reached_is_named_everywhere(
    act: Act, transport: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    report = carry_out([act], load(tmp_path, rng, steps=4_000), HOSTS, transport)
    check(report, [act])
    assert not report.completed


@pytest.mark.parametrize("transport", ["tcp"])
def test_short_disturbances_cost_nothing(transport: str, tmp_path: Path, rng: np.random.Generator) -> None:
    acts = [Act(10, "cut", 1, 0, 0.7), Act(20, "silence", 0, 2, 0.5), Act(30, "pause", 2, 0, 0.7)]
    report = carry_out(acts, load(tmp_path, rng), HOSTS, transport)
    check(report, acts)
    assert report.completed


@pytest.mark.skipif(not PLANS, reason="set ADAPM_TEST_HOSTS=100")
@pytest.mark.parametrize(
    ("number", "transport"), [(number, TRANSPORTS[number % len(TRANSPORTS)]) for number in range(PLANS)]
)
def test_a_plan(number: int, transport: str, tmp_path: Path, rng: np.random.Generator) -> None:
    work = load(tmp_path, rng, workers=int(rng.integers(1, 3)))
    acts = draw(rng, HOSTS, work.marks * work.workers)
    print(f"{number}: {transport}, {work.workers} workers, {[tuple(act) for act in acts]}")
    report = carry_out(acts, work, HOSTS, transport)
    check(report, acts)
    errors = sorted({said.error or "" for said in report.hosts})
    end = "completed" if report.completed else f"{' and '.join(errors)} after {report.longest:.1f} s"
    print(f"plan {number}: {transport}: {end}")
