"""Runs tests with a kernel and transports that are compiled with AddressSanitizer and UBSan: see `tox -e sanitized`.

    python tests/sanitized.py test_drive.py test_ucx.py -k large

What is found ends the run, with a report of the place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def build(folder: Path) -> None:
    """Compiles ./native into folder/adapm, with sanitizers."""
    shutil.copytree(TESTS.parent / "native", folder / "native")
    (folder / "adapm").mkdir(exist_ok=True)
    env = {**os.environ, "ADAPM_SANITIZE": "address,undefined"}
    subprocess.run([sys.executable, folder / "native" / "build.py"], check=True, capture_output=True, env=env)


def environment() -> dict[str, str]:
    """What a Python needs that is to load what `build` has made."""
    # The interpreter does not free all it has at its end, and has an allocator of its own that hides what happens.
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=8", "PYTHONMALLOC": "malloc"}
    env |= {"LD_PRELOAD": " ".join(_library(name) for name in ("libasan.so", "libubsan.so"))}
    return env | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def _library(name: str) -> str:
    command = [*shlex.split(os.environ.get("CC", "cc")), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str]) -> int:
    """Runs pytest on a copy of the package; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("adapm", "transports"):
            shutil.copytree(TESTS.parent / part, Path(folder) / part, ignore=shutil.ignore_patterns("*.so"))
        build(Path(folder))
        env = environment() | {"PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}
        tests = [sys.executable, "-m", "pytest", "-c", TESTS.parent / "pyproject.toml", "--rootdir", TESTS.parent]
        return subprocess.run([*tests, *arguments], check=False, cwd=TESTS, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
