"""The fuzzers, shortly: they run, they find what is planted, and what they find can be made small."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz
from fuzz import Attack, Tape
from test_lane_mutations import Mutation, plant

FRAMES = 15_000
LIVE = 2_000
BOUNDS = {
    "a row is one of the table's": Mutation(
        "receive.c", "if (row >= l->tables[m->table].shape->rows) return", "if (0) return"
    ),
    "an answer is to what was asked": Mutation(
        "remote.c", "if (pos >= o->asked || o->table", "if (pos >= o->n || o->table"
    ),
    "columns are the table's": Mutation("receive.c", "if (m->col_len > row_len || m->col_off", "if (m->col_off"),
    "a message ends with the frame": Mutation("wire.c", "head->bytes <= len - at ?", "1 ?"),
    "a node is one of the run": Mutation("receive.c", "return m->origin < l->nnodes ? NULL", "return 1 ? NULL"),
    "who wants a row does not hold it": Mutation("owner.c", "if (owner_find(l, m, from)) return", "if (0) return"),
    "a refused frame leaves nothing": Mutation("receive.c", "    if (p) p->resume = 0;\n    l->stats", "    l->stats"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lanes' fuzzer, with sanitizers where these are to be had."""
    if not shutil.which(fuzz.compiler()[0]):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        built = fuzz.build(folder, fuzz.SANITIZERS)
        if fuzz.play(built).returncode == 2:  # as it ends when it is not told what to do
            return built
    except subprocess.CalledProcessError:
        pass
    return fuzz.build(folder, ["-O2"])


def test_lanes_survive_what_no_correct_lane_sends(
    program: Path, tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.fuzz_lanes(program, FRAMES, pytestconfig.getoption("seed"), tmp_path), capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_live_nodes_survive_it_too(program: Path, tmp_path: Path, transport: str) -> None:
    file = tmp_path / "frames"
    file.write_bytes(subprocess.run([program, "emit", "0", str(LIVE)], check=True, capture_output=True).stdout)
    command = [sys.executable, str(Path(fuzz.__file__).with_name("fuzz_nodes.py")), str(file), transport]
    path = os.pathsep.join(filter(None, sys.path))
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "PYTHONPATH": path}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{LIVE} frames over {transport}" in ran.stdout


def test_the_same_seed_makes_the_same_frames(program: Path) -> None:
    made = [subprocess.run([program, "emit", "7", "500"], check=True, capture_output=True).stdout for _ in range(2)]
    assert made[0] == made[1]


def test_a_tape_is_read_as_it_was_written(tmp_path: Path) -> None:
    tape = Tape(5, (Attack(0, 0, 1, True, b"abc"), Attack(9, 1, 0, False, b"")))
    tape.write(tmp_path / "tape")
    assert Tape.read(tmp_path / "tape") == Tape.parse(tape.text()) == tape


def test_what_fails_is_made_small() -> None:
    attacks = tuple(Attack(i, 0, 1, False, bytes(range(i, i + 50))) for i in range(100))

    def fails(tape: Tape) -> bool:
        frames = [attack.frame for attack in tape.attacks]
        return any(b"\x1e" in frame for frame in frames) and any(b"\x78" in frame for frame in frames)

    small = fuzz.minimise(Tape(1, attacks), fails)
    assert sorted(attack.frame for attack in small.attacks) == [b"\x1e", b"\x78"]


@pytest.mark.skipif(os.environ.get("ADAPM_TEST_MUTATIONS") != "1", reason="set ADAPM_TEST_MUTATIONS=1")
@pytest.mark.parametrize("rule", BOUNDS)
def test_a_missing_check_is_found_and_made_small(rule: str, tmp_path: Path) -> None:
    program = fuzz.build(tmp_path, fuzz.SANITIZERS, plant(BOUNDS[rule], tmp_path))
    tape = tmp_path / "lanes-0.tape"
    assert not fuzz.fuzz_lanes(program, 200_000, 0, tmp_path)
    fuzz.minimise_file(program, tape)
    whole, small = Tape.read(tape), Tape.read(tape.with_suffix(".small.tape"))
    # what one frame left behind may need others to come to light, at the right moment
    assert 1 <= len(small.attacks) <= max(8, len(whole.attacks) // 3)
    assert fuzz.play(program, "replay", tape.with_suffix(".small.tape")).returncode
