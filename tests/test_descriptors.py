"""Limits of open files: raised where that is allowed, and else refused before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapm import descriptors
from adapm.errors import TooFewFiles

RUN = """
import resource, adapm, launch_tasks
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
    adapm.run(launch_tasks.count, [adapm.Table("t", 20, 2)], args=(1,), nodes={nodes}, workers="threads:1")
    print("done")
"""


def test_what_is_needed_grows_with_nodes_and_workers() -> None:
    assert descriptors.of_node(100, 4, 2) - descriptors.of_node(1, 4, 2) == 198
    assert descriptors.of_node(1, 8, 2) > descriptors.of_node(1, 4, 2)
    assert descriptors.of_launcher(2, 8) > descriptors.of_launcher(1, 4)


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, timeout=60)


def test_the_limit_is_raised_if_it_may_be(tmp_path: Path) -> None:
    ended = run(RUN.format(soft=24, hard=256, nodes=2), tmp_path)
    assert ended.stdout == "done\n", ended.stderr


def test_else_it_is_refused(tmp_path: Path) -> None:
    ended = run(RUN.format(soft=24, hard=70, nodes=4), tmp_path)
    assert ended.returncode == 1
    assert "TooFewFiles: a launcher of 4 nodes" in ended.stderr
    assert "but 70 is the limit" in ended.stderr


def test_a_node_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (64, 64))
    with pytest.raises(TooFewFiles, match=r"node 3 opens up to 450 files, but 64 is the limit: .*ulimit -Hn 450"):
        descriptors.allow(descriptors.of_node(200, 4, 2) - 20, "node 3")
