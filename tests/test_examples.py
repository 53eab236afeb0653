"""The examples as a user runs them: on one node and on two, on real data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from adapm import reporting

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "adapm", "run", *words], capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_knowledge_graph_reaches_its_quality_on_two_nodes_with_local_rows() -> None:
    script = str(EXAMPLES / "knowledge_graph.py")
    figures = json.loads(run("--nodes", "2", "--workers", "1", script, "--data", "umls", "--json"))
    print(figures)
    assert figures["mrr"] >= 0.85
    assert figures["local_share"] >= 0.99
    assert figures["relocations"] > 0
    assert figures["replicas"] > 0


def test_knowledge_graph_without_a_manager(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.del").write_text("".join(f"{hour}\t0\t{(hour + 1) % 12}\n" for hour in range(12)))
    script = str(EXAMPLES / "knowledge_graph.py")
    few = ("--data", str(tmp_path), "--epochs", "2", "--negatives", "6", "--chunk", "8", "--loss", "logistic")
    chosen = ("--nodes", "1", "--workers", "1", "--seed", "3", "--report", str(tmp_path / "report"))
    figures = json.loads(run(*chosen, script, *few, "--plain", "--json"))
    assert figures["manager"] == "none"
    assert figures["seed"] == 3
    told = reporting.read(tmp_path / "report")
    assert (told.epoch_seconds, told.quality["MRR"]) == (figures["epoch_seconds"], [figures["mrr"]])
    assert told.counters == {}
    assert len(figures["epoch_seconds"]) == 2
    assert 0 < figures["evaluation_loss"] < 1
    assert "local_share" not in figures
    table = run("--nodes", "1", "--workers", "1", script, *few, "--plain")
    assert "manager" in table
    assert "pulled rows" not in table


def test_matrix_factorization_on_two_nodes(tmp_path: Path) -> None:
    ratings = tmp_path / "ratings.tsv"
    ratings.write_text("".join(f"{row}\t{column}\t{row * column % 3}\n" for row in range(40) for column in range(30)))
    words = ("--data", str(ratings), "--dim", "4", "--epochs", "30", "--batch", "100", "--l2", "0.01", "--json")
    chosen = ("--nodes", "2", "--workers", "1", "--report", str(tmp_path / "report"))
    figures = json.loads(run(*chosen, str(EXAMPLES / "matrix_factorization.py"), *words))
    print(figures)
    told = reporting.read(tmp_path / "report")
    assert told.loss["RMSE"] == [figures["rmse"]]
    assert len(told.loss["training loss"]) == len(told.epoch_seconds) == 30
    assert told.loss["training loss"][-1] == figures["training_loss"]
    workers = [worker for node in told.counters.values() for worker in node["workers"]]
    pulled, local = (sum(worker[name] for worker in workers) for name in ("pull_keys", "pull_local"))
    assert local / pulled == figures["local_share"]  # when training had ended: the test does not count
    assert (figures["nodes"], figures["workers"], figures["tested"]) == (2, 2, 120)
    assert figures["rmse"] < 0.5  # the values' standard deviation is .69
    assert figures["relocations"] > 0


def test_word_vectors_on_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nthe dog lay on a rug\n" * 200)
    words = ("--data", str(tmp_path / "text.txt"), "--dim", "8", "--epochs", "3", "--batch", "100", "--subsample", "0")
    table = run("--nodes", "2", "--workers", "1", str(EXAMPLES / "word_vectors.py"), *words)
    assert "text.txt: 9 different words, 2,400 in all" in table
    assert "evaluation loss" in table
    assert "relocations" in table


def test_quickstart_runs_on_one_node_and_on_two() -> None:
    assert run(str(EXAMPLES / "quickstart.py"))
    assert run("--nodes", "2", "--workers", "2", str(EXAMPLES / "quickstart.py"))
