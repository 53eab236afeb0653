"""The examples in PyTorch on real data: two nodes with two workers reach what PyTorch alone does, with local rows.

PyTorch alone is trained here and now, the same model on the same data with the same settings. Runs on demand only,
being slow, and needing data: ADAPM_TEST_QUALITY=1, or `tox -e quality`.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adapm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import click_through
import graph_data
import graph_network
import session

pytestmark = pytest.mark.skipif("ADAPM_TEST_QUALITY" not in os.environ, reason="minutes; ADAPM_TEST_QUALITY=1 runs it")

SEEDS = 30  # whose accuracies on Cora's 1,000 nodes differ by 1.5 points, their means by .4


def closing_figures(script, *words):
    nodes_and_workers = ("--nodes", "2", "--workers", "2")
    command = [sys.executable, "-m", "adapm", "run", *nodes_and_workers, script, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print({name: figures[name] for name in figures.keys() - {"epoch_seconds"}})
    return figures


def alone(script, *words):
    done = subprocess.run(
        [sys.executable, script, "--plain", "--json", *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_late_flights_are_foretold_as_well_as_by_pytorch_alone():
    figures, plain = closing_figures(click_through.__file__), alone(click_through.__file__)
    print("AUC", figures["auc"], "PyTorch alone", plain["auc"])
    assert abs(figures["auc"] - plain["auc"]) <= 0.005
    assert figures["auc"] >= 0.755
    assert figures["local_share"] >= 0.99


def test_wordnet_is_classified_as_well_as_by_pytorch_alone():
    figures, plain = closing_figures(graph_network.__file__), alone(graph_network.__file__)
    print("accuracy", figures["accuracy"], "PyTorch alone", plain["accuracy"])
    assert abs(figures["accuracy"] - plain["accuracy"]) <= 0.01
    assert figures["local_share"] >= 0.99


@pytest.mark.skipif("ADAPM_DATA" not in os.environ, reason="ADAPM_DATA has to name a folder with cora.npz")
def test_cora_is_classified_as_well_as_by_pytorch_alone():
    graph = graph_data.load("cora")
    settings = graph_network.settings_for(graph, {})
    figures = {True: [], False: []}
    for seed in range(SEEDS):
        tables, args = graph_network.tables_for(graph, settings, seed), (graph, settings, seed)
        with contextlib.redirect_stderr(io.StringIO()):
            plain = [session.train_plainly(graph_network.train, tables, args, seed)]
            managed = adapm.run(graph_network.train, tables, args=args, seed=seed, nodes=2, workers="threads:2")
        for outcomes in (plain, managed):
            figures[outcomes is plain].append(
                {**graph_network.quality(outcomes), **session.summary(outcomes, "nodes", 1.0)}
            )
    accuracy = {plain: np.mean([each["accuracy"] for each in figures[plain]]) for plain in figures}
    local = min(each["local_share"] for each in figures[False])
    print("mean accuracy", accuracy[False], "PyTorch alone", accuracy[True], "least local share", local)
    assert accuracy[False] >= accuracy[True] - 0.01
    assert accuracy[True] >= 0.76
    assert local >= 0.99
