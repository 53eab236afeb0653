"""Options, seeds, and the watch over what a test leaves behind."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing.resource_tracker
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from adapm.transports import ucx_library

from adapm import transport as registry
from adapm.errors import LibraryMissing

_KEPT_FDS = ("memfd:", "anon_inode:[eventfd]", "anon_inode:[pidfd]")


# What needs PyTorch, which nothing else does.
_HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if _HAS_TORCH else ["test_torch_*.py"]

# The same examples in every run, none remembered from an earlier one, and no clock in the verdict.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seed of everything random in the tests (default 0)")
    parser.addoption(
        "--transport", action="append", metavar="NAME", help="leave out tests on other transports; repeatable"
    )


def pytest_report_header(config: pytest.Config) -> str:
    seed, transports = config.getoption("seed"), ", ".join(_transports(config))
    left_out = "" if _HAS_TORCH else "; PyTorch is not installed: test_torch_*.py are left out"
    return f"seed: {seed} (change with --seed), transports: {transports}{left_out}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what runs on a transport that was not asked for: tests with a parameter such as "zmq" or "zmq+ipc"."""
    unwanted = set(registry.known()) - set(_transports(config))
    out = [item for item in items if unwanted & _schemes(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    _skip_without_ucx(item for item in items if "ucx" in _schemes(item))


def _skip_without_ucx(items: Iterable[pytest.Item]) -> None:
    """UCX cannot be had everywhere: its wheels are for x86-64 and aarch64 only."""
    try:
        ucx_library.load()
    except LibraryMissing as error:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=str(error)))


def _schemes(item: pytest.Item) -> set[str]:
    parameters = (
        item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    )
    return {value.partition("+")[0] for value in parameters if isinstance(value, str)}


def _transports(config: pytest.Config) -> list[str]:
    return config.getoption("transport") or registry.known()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A random generator that depends on --seed and on the test's name, not on what ran before."""
    seed = [request.config.getoption("seed"), zlib.crc32(request.node.nodeid.encode())]
    print(f"rng: seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


def _join_feeders() -> None:
    """Waits for threads of multiprocessing whose queue is closed: they are about to end, and nobody else waits."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(5)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test after which there are more processes, threads or kernel descriptors than before."""
    before = _belongings()
    yield
    left = _belongings() - before
    if left:
        gc.collect()  # what only an unreachable cycle holds is not lost
        _join_feeders()
        left = _belongings() - before
    if left:
        pytest.fail(f"left behind: {', '.join(sorted(left))}", pytrace=False)


def _belongings() -> set[str]:
    threads = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    return threads | _children() | _descriptors()


def _children() -> set[str]:
    """Child processes, running or not yet waited for, but for the helper that multiprocessing keeps."""
    helper = getattr(multiprocessing.resource_tracker._resource_tracker, "_pid", None)
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in _text(task / "children").split()]
    return {f"process {pid}" for pid in children if int(pid) != helper}


def _descriptors() -> set[str]:
    links = {path.name: _link(path) for path in Path("/proc/self/fd").iterdir()}
    return {f"descriptor {fd} {link}" for fd, link in links.items() if link.lstrip("/").startswith(_KEPT_FDS)}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a thread that has just ended
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # the descriptor of the listing itself
        return ""
