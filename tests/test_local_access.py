"""A pull or push of local rows makes no system call, and no other process notices it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tasks


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="system calls are counted with strace, which is not installed"
)
def test_local_rows_cost_no_system_call(tmp_path: Path) -> None:
    command = ["strace", "-ff", "-qq", "-o", str(tmp_path / "trace"), sys.executable, tasks.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 0]\n"  # the node did not tick
    # Threads with the two marks right after each other in their own trace: one per worker.
    traces = [path.read_text() for path in tmp_path.iterdir()]
    marked = [re.split(r"^getsid\(.*\n", trace, flags=re.M) for trace in traces if trace.count("getsid(") == 2]
    assert [between for _, between, _ in marked] == ["", ""]
