"""What users can rely on: the names, and that they are there however adapm is imported."""

import inspect
import subprocess
import sys

import pytest

import adapm

NAMES = {
    "AdapmError",
    "BlockingWorker",
    "Config",
    "Statistics",
    "Table",
    "Worker",
    "ahead",
    "constant",
    "errors",
    "normal",
    "run",
    "run_async",
    "uniform",
}


def test_the_list():
    assert set(adapm.__all__) == NAMES
    assert set(dir(adapm)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_is_there_and_says_what_it_is(name):
    assert inspect.getdoc(getattr(adapm, name))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'pul'"):
        adapm.pul()


@pytest.mark.parametrize(
    "first", ["", "import adapm.ahead", "import adapm.worker", "import adapm.launch", "from adapm import *"]
)
def test_ahead_is_the_function_in_whatever_order_modules_come(first):
    subprocess.run(
        [sys.executable, "-c", f"{first}\nimport adapm\nassert callable(adapm.ahead)"], check=True, timeout=60
    )


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_other_platforms_are_told_so_at_import(system, machine):
    code = f"""
import platform, sys
sys.platform = {system!r}
platform.machine = lambda: {machine!r}
try:
    import adapm
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("UnsupportedPlatform adapm runs on Linux")
