"""What users can rely on: the names, and that they are there however adapm is imported."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import adapm

NAMES = {
    "AdapmError",
    "BlockingWorker",
    "Config",
    "Sampling",
    "Statistics",
    "Table",
    "Worker",
    "ahead",
    "attach",
    "constant",
    "current_worker",
    "errors",
    "normal",
    "report",
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


@pytest.mark.parametrize("folder", [Path(__file__).parent.parent, Path("/")])
def test_the_parts_are_found_from_the_checkout_and_from_elsewhere(folder):
    parts = "import adapm.transports.inproc, adapm.transports.zmq, adapm.native"
    subprocess.run([sys.executable, "-c", parts], cwd=folder, check=True, timeout=60)


@pytest.mark.parametrize(
    "first",
    [
        "",
        "import adapm.ahead",
        "import adapm.worker",
        "import adapm.launch",
        "import adapm.attach",
        "from adapm import *",
    ],
)
def test_some_are_functions_in_whatever_order_their_modules_come(first):
    code = f"{first}\nimport adapm\nassert callable(adapm.ahead) and callable(adapm.attach)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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


def test_without_a_kernel_adapm_imports_and_says_so_when_it_is_used():
    code = """
import sys
sys.modules["adapm._kernel"] = None  # Python's way to say: not to be imported
import adapm, adapm.cli
try:
    adapm.run
except ImportError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "KernelMissing\n"
