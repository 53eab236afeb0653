"""AdapmCallback with the real Lightning, where that is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import adapm
from adapm.errors import UsageError

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")


def test_validation_sees_what_all_workers_have_learned() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "lightning_task.py")]
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=120)
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    steps = [(step, step + 3 * epoch) for epoch in range(2) for step in range(3)]
    assert lines == [f"RESULT {worker} {steps} [48.0, 96.0] 6" for worker in range(2)], done.stderr


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_processes_that_are_not_the_workers_are_told_so() -> None:
    from adapm.torch.lightning import AdapmCallback

    with adapm.attach([adapm.Table("t", rows=1, dim=1)]) as worker:
        AdapmCallback(worker).setup(SimpleNamespace(global_rank=0, world_size=1), None, "fit")
        with pytest.raises(UsageError, match=r"Lightning's process 1 of 2 is adapm's worker 0 of 1: start as many"):
            AdapmCallback(worker).setup(SimpleNamespace(global_rank=1, world_size=2), None, "fit")
