"""The simulator's checks have teeth: kernels with one rule of the protocol taken out fail within so many seeds.

On demand only, like test_lane_mutations.py, whose planted bugs it takes: ADAPM_TEST_MUTATIONS=1, or `tox -e mutations`.
Each prints how many seeds it took.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_lane_mutations import CAUGHT, MUTATIONS, PATCHED, TECHNIQUES, TESTS, build

pytestmark = pytest.mark.skipif(os.environ.get("ADAPM_TEST_MUTATIONS") != "1", reason="set ADAPM_TEST_MUTATIONS=1")

SEEDS = 250
UNSEEN = {
    "a want waits for the answers to pushes": "it takes a push on a slow way and a want on a fast one: not met so far",
    "a holder may be nudged again after its round": "barriers and drops refresh what no nudge does: not met so far",
    "a set comes behind the last delta": "refreshes go at nearly every tick, and deltas with them: not met so far",
    "a row stays for an intent in sight": "without it rows go and come back, and nothing else",
    "the end of a worker forgets what was in sight": "workers that end have none, and those that die end the run",
    "a sync makes rounds go": "without it wait_sync is slower, and nothing else",
    "sets that were parked keep their order": "a worker posts the last set of a row only, and waits before the next",
    "a reply that refreshes brings what is not marked yet": "the sync before a barrier has marked all of it",
    "a row that several hold is not granted": "it takes a reply that its budget cuts short: rows are too small",
    "what a dead worker has half written is undone": "the run ends then, and its sums count no more",
    "what a dead worker has not saved is left alone": "the run ends then, and its sums count no more",
}

HUNT = """
import logging
from adapm.simulator.runs import Options, run_seed

logging.disable(logging.CRITICAL)
CALM = {"nodes": (3, 4), "faults": (), "until": 0.2}  # long enough for what is never refreshed
RUNS = {"everything": Options(), **{f"calm {name}": Options(workloads=(name,), **CALM) for name in ("mix", "chase")}}
for seed in range(int(sys.argv[2])):
    for name, options in RUNS.items():
        outcome = run_seed(seed, options)
        if outcome.violation is not None:
            print(f"{seed + 1} seeds: {name}, {outcome.workload}: {outcome.violation}")
            sys.exit(int(sys.argv[3]))
"""


HUNTED = [name for name, m in MUTATIONS.items() if m.rule and name not in UNSEEN and m.by != TECHNIQUES]
"""Those of other techniques have schedules of their own, in test_lane_techniques.py."""


@pytest.mark.parametrize("rule", HUNTED)
def test_a_missing_rule_is_noticed(rule: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PATCHED + HUNT, build(MUTATIONS[rule], tmp_path), str(SEEDS), str(CAUGHT)]
    path = os.pathsep.join(filter(None, sys.path))
    hunt = subprocess.run(command, cwd=TESTS, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    print(f"{rule}: {hunt.stdout}{hunt.stderr}")
    assert hunt.returncode == CAUGHT


def test_what_is_not_seen_is_planted_all_the_same() -> None:
    assert set(UNSEEN) <= set(MUTATIONS)
