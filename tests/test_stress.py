"""Compiles and runs the stress programs of tests/native, plainly and under sanitizers."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE, PROGRAMS = ROOT / "native", ROOT / "tests" / "native"
SOURCES = [NATIVE / f"{name}.c" for name in ("heap", "rows", "segment", "simd", "worker")] + [PROGRAMS / "harness.c"]
BUILDS = {
    "plain": ["-O3"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DADAPM_SANITIZED"],
    # The thread sanitizer knows C11's rules, so it gets the build that keeps all of them.
    "thread": ["-O1", "-g", "-fsanitize=thread", "-Wno-tsan", "-DADAPM_SANITIZED", "-DADAPM_STRICT"],
}
SECONDS = "0.7"


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def compile_to(program: Path, sources: list[Path], options: list[str]) -> subprocess.CompletedProcess[str]:
    options = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", *options, "-pthread", "-lm"]
    command = [*compiler(), *map(str, sources), "-o", str(program), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(params=BUILDS)
def options(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A build's options, if compiler and machine can run what they make."""
    if not shutil.which(compiler()[0]):
        pytest.skip("no C compiler")
    empty, program = tmp_path / "empty.c", tmp_path / "empty"
    empty.write_text("int main(void) { return 0; }\n")
    options = BUILDS[request.param]
    if compile_to(program, [empty], options).returncode or subprocess.run([program], check=False).returncode:
        pytest.skip(f"cannot build or run with {shlex.join(options)}")
    return options


@pytest.mark.parametrize("name", ["stress_rows", "stress_rings"])
def test_stress(name: str, options: list[str], tmp_path: Path) -> None:
    program = tmp_path / name
    built = compile_to(program, [PROGRAMS / f"{name}.c", *SOURCES], options)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program, SECONDS], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
