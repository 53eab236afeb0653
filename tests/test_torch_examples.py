"""The plain script, its twin, and the lines in which docs/pytorch.md says that they differ."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import pytest

import adapm.torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import pytorch_adapm
import pytorch_plain

ROOT = Path(__file__).resolve().parents[1]
MOST = 10  # lines, but for what says how to start it


def code(name: str) -> list[str]:
    """The lines of an example after its docstring."""
    return (ROOT / "examples" / name).read_text().split('"""\n', 1)[1].splitlines()


def test_ten_lines_make_it_distributed() -> None:
    changes = list(difflib.unified_diff(code("pytorch_plain.py"), code("pytorch_adapm.py"), n=0, lineterm=""))[2:]
    lines = [line for line in changes if not line.startswith("@@")]
    assert len([line for line in lines if line.startswith("+") and line != "+"]) <= MOST
    shown = (ROOT / "docs" / "pytorch.md").read_text().split("```diff\n")[1].split("```")[0].splitlines()
    assert [line for line in shown if line[:1] in ("+", "-")] == [line for line in lines if line != "+"]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own optimizer
def test_both_learn_the_same() -> None:
    plain = pytorch_plain.train()
    model = pytorch_adapm.Clicks()
    tables = adapm.torch.tables(model, adapm.torch.SparseAdagrad)
    distributed = adapm.run(pytorch_adapm.train, tables, workers="threads:2")
    assert distributed[0] == pytest.approx(distributed[1])  # after the barrier, both see all
    assert plain < 0.52  # .69 without having learned anything
    assert distributed[0] < plain + 0.04
