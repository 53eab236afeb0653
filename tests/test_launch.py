"""`run` and `run_async`: results, every way to fail, and that nothing is left, which conftest.py looks for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapm
import launch_tasks
from adapm import processes
from adapm.errors import (
    AdapmError,
    AddressInUse,
    ConfigError,
    NodeDied,
    NodeLost,
    OutOfMemory,
    RendezvousError,
    TableError,
    UnknownTransport,
    UsageError,
    WorkerDied,
)
from adapm.task import Failure

TABLES = [adapm.Table("t", rows=20, dim=2)]
HERE = Path(__file__).parent
BOTH_KINDS = pytest.mark.parametrize("workers", ["2", "threads:2"])


def start(script: str, *args: str, **popen: object) -> subprocess.Popen[str]:
    """Python with this script as its standard input or file, able to import launch_tasks."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, script, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def script(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# ---- results


@BOTH_KINDS
@pytest.mark.parametrize("nodes", [1, 2])
def test_results_come_in_order_of_worker_ids(nodes: int, workers: str) -> None:
    results = adapm.run(launch_tasks.count, TABLES, args=(3,), kwargs={"step": 2.0}, nodes=nodes, workers=workers)
    assert results == [(i, i // 2, 40 * 3 * 2.0 * 2 * nodes) for i in range(2 * nodes)]


@BOTH_KINDS
def test_a_plain_function_gets_a_blocking_worker(workers: str) -> None:
    assert adapm.run(launch_tasks.count_blocking, TABLES, args=(3,), workers=workers) == [(0, 0, 240.0), (1, 0, 240.0)]


def test_run_async_works_in_a_loop_and_run_says_so() -> None:
    async def main() -> list[object]:
        with pytest.raises(UsageError, match=r"await adapm\.run_async"):
            adapm.run(launch_tasks.count, TABLES, args=(1,))
        return await adapm.run_async(launch_tasks.count, TABLES, args=(1,), workers="threads:1")

    assert asyncio.run(main()) == [(0, 0, 40.0)]


def test_only_some_transports_spin() -> None:
    with pytest.raises(ConfigError, match="spin=50, but transport 'tcp' cannot spin: use 'ucx'"):
        adapm.run(launch_tasks.count, TABLES, nodes=2, spin=50)


@pytest.mark.parametrize("transport", ["ucx"])
def test_a_run_that_spins(transport: str) -> None:
    assert len(adapm.run(launch_tasks.count, TABLES, args=(1,), nodes=2, transport=transport, spin=50)) > 0


def test_a_single_node_runs_with_any_transport() -> None:
    assert len(adapm.run(launch_tasks.count, TABLES, args=(1,), workers="threads:1", transport="inproc")) == 1


# ---- refused before anything starts


def test_lambdas_are_for_threads_only() -> None:
    with pytest.raises(UsageError, match=r'fn cannot be sent.*workers="threads:N"'):
        adapm.run(lambda worker: None, TABLES)
    assert adapm.run(lambda worker: worker.id, TABLES, workers="threads:2") == [0, 1]


def test_arguments_must_pickle() -> None:
    with pytest.raises(UsageError, match="args cannot be sent to worker processes"):
        adapm.run(launch_tasks.count, TABLES, args=(threading.Lock(),))


def test_tables_and_settings_are_checked() -> None:
    with pytest.raises(TableError, match="two tables are named 't'"):
        adapm.run(launch_tasks.count, [*TABLES, *TABLES])
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        adapm.run(launch_tasks.count, TABLES, worker=2)
    with pytest.raises(ConfigError, match="inproc"):
        adapm.run(launch_tasks.count, TABLES, nodes=2, transport="inproc")
    with pytest.raises(UnknownTransport, match="no transport 'pigeons' is installed; there are inproc, tcp, ucx, zmq"):
        adapm.run(launch_tasks.count, TABLES, transport="pigeons")


def test_a_table_that_does_not_fit() -> None:
    huge = adapm.Table("huge", rows=2**32 - 2, dim=1024)
    with pytest.raises(OutOfMemory, match="'huge'"):
        adapm.run(launch_tasks.count, [huge], workers="threads:1")


# ---- failures


@BOTH_KINDS
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_worker_s_exception_is_raised_here(nodes: int, workers: str) -> None:
    with pytest.raises(LookupError, match="worker 1 cannot find it") as caught:
        adapm.run(launch_tasks.fail, TABLES, args=(1,), nodes=nodes, workers=workers)
    if workers == "2":
        assert "launch_tasks.py" in str(caught.value.__cause__)


def test_an_exception_that_does_not_pickle_is_told_as_text() -> None:
    with pytest.raises(AdapmError, match=r"a worker raised Picky, which does not pickle: 1 and 2") as caught:
        adapm.run(launch_tasks.fail_pickily, TABLES, workers=1)
    assert "raise Picky(1, 2)" in str(caught.value.__cause__)


def test_a_result_that_does_not_pickle() -> None:
    with pytest.raises(UsageError, match="the worker's result, a function, cannot be sent back"):
        adapm.run(launch_tasks.return_lambda, TABLES, workers=1)


@BOTH_KINDS
def test_system_exit_passes_through(workers: str) -> None:
    with pytest.raises(SystemExit) as caught:
        adapm.run(launch_tasks.exit_quietly, TABLES, workers=workers)
    assert caught.value.code == 3


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_worker_is_named(nodes: int) -> None:
    with pytest.raises(
        WorkerDied, match=r"worker 1 of node 0 \(process \d+\) was killed by signal 9 \(SIGKILL\)"
    ) as caught:
        adapm.run(launch_tasks.die, TABLES, args=(1, -9), nodes=nodes)
    assert (caught.value.worker, caught.value.node, caught.value.signal) == (1, 0, 9)


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_functions_make_of_an_error_does_not_hide_it(nodes: int) -> None:
    with pytest.raises(WorkerDied, match=r"worker 0 of node 0 .* was killed by signal 9"):
        adapm.run(launch_tasks.make_their_own, TABLES, nodes=nodes, workers=3)


def test_a_worker_that_exits_is_named() -> None:
    with pytest.raises(WorkerDied, match="exited with code 5"):
        adapm.run(launch_tasks.die, TABLES, args=(0, 5))


@BOTH_KINDS
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_node_is_named(nodes: int, workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pid"

    class Recorded(processes.NodeProcess):
        def __init__(self, node: int) -> None:
            super().__init__(node)
            if node == nodes - 1:
                pids.write_text(str(self._process.pid))

    monkeypatch.setattr("adapm.launch.NodeProcess", Recorded)
    with pytest.raises(NodeDied, match="was killed by signal 9") as caught:
        adapm.run(launch_tasks.kill_node, TABLES, args=(str(pids),), nodes=nodes, workers=workers)
    assert (caught.value.node, caught.value.signal) == (nodes - 1, 9)


def test_of_two_nodes_that_blame_each_other_the_first_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 0 was stopped for too long: it goes on, finds that node 1 has broken their link, and calls that a loss."""

    class Blaming(processes.NodeProcess):
        async def watch(self) -> Failure:
            if self.id == 0:
                await told.wait()
            told.set()
            return Failure.told(NodeLost(f"node {1 - self.id} is lost", node=1 - self.id))

    told = asyncio.Event()
    monkeypatch.setattr("adapm.launch.NodeProcess", Blaming)
    monkeypatch.setattr("adapm.launch.GRACE", 0.1)
    with pytest.raises(NodeLost, match="node 0 is lost"):
        adapm.run(launch_tasks.count, TABLES, args=(1,), nodes=2)


def test_a_node_that_hangs_before_it_can_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapm.processes._BOOT", "import signal; signal.pause()")
    monkeypatch.setattr("adapm.processes.CLOSING_TIME", 0.1)
    monkeypatch.setattr("adapm.launch.GRACE", 0.1)
    with pytest.raises(RendezvousError, match=r"node 0 \(process \d+\) did not listen within startup_timeout=0.2 s"):
        adapm.run(launch_tasks.count, TABLES, args=(1,), nodes=2, startup_timeout=0.2)


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=address):
            adapm.run(launch_tasks.count, TABLES, args=(1,), nodes=2, rendezvous=address)


def test_cancelling_run_async_ends_everything() -> None:
    async def main() -> None:
        running = asyncio.ensure_future(adapm.run_async(launch_tasks.die, TABLES, args=(99, 0), nodes=2))
        await asyncio.wait({running}, timeout=0.3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())


# ---- several launchers


def test_one_launcher_per_node() -> None:
    async def main() -> list[list[object]]:
        first, second = await asyncio.gather(*(launch(node) for node in range(2)))
        return [first, second]

    async def launch(node: int) -> list[object]:
        where = {"nodes": 2, "node": node, "rendezvous": address, "workers": "threads:2"}
        return await adapm.run_async(launch_tasks.count, TABLES, args=(1,), **where)

    address = f"tcp://127.0.0.1:{free_port()}"
    assert asyncio.run(main()) == [[(0, 0, 160.0), (1, 0, 160.0)], [(2, 1, 160.0), (3, 1, 160.0)]]


def test_nodes_that_differ_refuse_each_other() -> None:
    async def main() -> list[object]:
        return await asyncio.gather(launch(0, 7), launch(1, 8), return_exceptions=True)

    async def launch(node: int, seed: int) -> object:
        where = {"nodes": 2, "node": node, "rendezvous": address, "workers": "threads:1", "startup_timeout": 2.0}
        return await adapm.run_async(launch_tasks.count, TABLES, args=(1,), seed=seed, **where)

    address = f"tcp://127.0.0.1:{free_port()}"
    first, second = asyncio.run(main())
    for error in (first, second):
        assert isinstance(error, RendezvousError)
        assert "seed is 8 on node 1 and 7 on node 0" in str(error)
    assert "nodes 1 have not joined" in str(first)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- scripts


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    path = script(
        tmp_path / "bare.py", "import adapm, launch_tasks\nadapm.run(launch_tasks.count, [adapm.Table('t', 20, 2)])\n"
    )
    with start(path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("Traceback") == 1
    assert 'if __name__ == "__main__":' in err


def test_a_function_from_standard_input_is_told_so() -> None:
    text = "import adapm\ndef f(worker): pass\nadapm.run(f, [adapm.Table('t', 20, 2)])\n"
    with start("-", stdin=subprocess.PIPE) as process:
        _, err = process.communicate(text, timeout=60)
    assert process.returncode == 1
    assert "move it into a file that you import" in err


def session(leader: int) -> list[int]:
    """The processes of a session."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if session_of(pid) == leader]


def session_of(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """Readable when the process has ended."""
    fd = os.pidfd_open(pid)
    yield fd
    os.close(fd)


WAITING = """
import adapm, launch_tasks, sys
if __name__ == "__main__":
    adapm.run(launch_tasks.wait, [adapm.Table("t", 20, 2)], args=(sys.argv[1],), nodes=2, workers=sys.argv[2])
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_whatever_ends_the_launcher_ends_its_children(tmp_path: Path, signum: int) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = script(tmp_path / "waiting.py", WAITING)
    with start(path, str(fifo), "2", start_new_session=True) as process, contextlib.ExitStack() as stack:
        assert fifo.read_text() == "here"
        members = [stack.enter_context(pidfd(pid)) for pid in session(process.pid)]
        assert len(members) >= 1 + 2 + 4  # and the helper of multiprocessing
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # as a terminal does
        else:
            process.send_signal(signum)
        _, err = process.communicate(timeout=30)
        for member in members:
            assert select.select([member], [], [], 30)[0], "a process is left"
    if signum == signal.SIGINT:
        assert err.count("Traceback") == 1
        assert "KeyboardInterrupt" in err
