"""`attach`: processes that somebody else has started come together, and nothing of them is left however they end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import adapm
from adapm.control import VERSION, Attach, Entered, Failed, Listening
from adapm.errors import AdapmError, ConfigError, ProtocolError, RendezvousError, TooManyWorkers, UsageError, WorkerDied
from adapm.porch import Porch
from adapm.stream import AsyncStream, BlockingStream

HERE = Path(__file__).parent
TABLES = [adapm.Table("t", rows=20, dim=2)]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_", "SLURM_", "OMPI_", "PMIX_")
MARK = "MARK_OF_A_TEST"


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


class Job:
    """Processes that are started by hand, as a launcher would; all they start bears the job's mark.

    Attributes:
        port: free when the job begins, like the next one.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.port = free_port()
        self._stack = contextlib.ExitStack()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **env: object) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(HERE), *sys.path])
        variables = {**os.environ, **{k: str(v) for k, v in env.items()}, "PYTHONPATH": path, MARK: self._mark}
        process = subprocess.Popen(
            [sys.executable, *command], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(self._stack.enter_context(process))
        return process

    def rank(self, rank: int, size: int, task: str, *args: str, local: int = 2, **env: object) -> subprocess.Popen[str]:
        """The task as one of so many processes."""
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port}
        return self.start(str(HERE / "attach_tasks.py"), task, *args, **place, **master, **env)

    def said(self) -> list[str]:
        """What each has printed until it ended, errors first."""
        return [err + out for out, err in [process.communicate(timeout=60) for process in self.processes]]

    def end(self) -> None:
        """Fails the test if anything does not end by itself."""
        with self._stack:
            for pid in self.members():
                with contextlib.suppress(ProcessLookupError), pidfd(pid) as ended:
                    if not select.select([ended], [], [], 30)[0]:
                        os.kill(pid, signal.SIGKILL)
                        pytest.fail(f"process {pid} is left")

    def members(self) -> list[int]:
        """The processes that bear the mark."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if f"{MARK}={self._mark}".encode() in environment(pid)]


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or somebody else's
        return b""


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """Readable when the process has ended."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.end()


def free_port() -> int:
    """Of two that follow each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1] - 1


# ---- coming together


def test_alone() -> None:
    for _ in range(2):  # again and again, as in a notebook
        with adapm.attach(TABLES) as worker:
            worker.push("t", [1], np.ones((1, 2)))
            worker.barrier()
            assert (worker.id, worker.num_workers, worker.pull("t", [1]).sum()) == (0, 1, 2.0)


@pytest.mark.parametrize(("size", "task", "times"), [(2, "count_twice", 2), (4, "count", 1)])
def test_ranks_are_workers(job: Job, size: int, task: str, times: int) -> None:
    for rank in reversed(range(size)):
        job.rank(rank, size, task)
    expected = {rank: f"{rank} {rank // 2} {size} {40.0 * size}\n" * times for rank in range(size)}
    assert job.said() == [expected[rank] for rank in reversed(range(size))]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_find_each_other_by_name(job: Job, method: str) -> None:
    job.start(str(HERE / "attach_tasks.py"), "with_processes", method)
    assert sorted(job.said()[0].splitlines()) == ["0 0 2 80.0", "1 0 2 80.0"]


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


@needs_torch
def test_torchrun_on_two_machines(job: Job) -> None:
    task = [str(HERE / "attach_tasks.py"), "count"]
    for node in range(2):
        where = ["--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={job.port}"]
        job.start("-m", "torch.distributed.run", "--nproc-per-node=2", *where, *task, OMP_NUM_THREADS=1)
    lines = [line for said in job.said() for line in said.splitlines() if re.match(r"\d+ \d+ \d+ ", line)]
    assert sorted(lines) == [f"{rank} {rank // 2} 4 160.0" for rank in range(4)]


# ---- what goes wrong


def test_tables_that_differ_are_told_to_all(job: Job) -> None:
    job.rank(0, 2, "differ")
    job.rank(1, 2, "differ")
    for said in job.said():
        assert "ConfigError processes of node 0 attach with different arguments: table 't' differs: rows is" in said


@pytest.mark.parametrize(("size", "who"), [(2, 0), (4, 1)])
def test_a_process_that_is_killed_is_named_by_the_others(job: Job, size: int, who: int) -> None:
    ranks = [job.rank(rank, size, "wait", str(who)) for rank in range(size)]
    for process in ranks:
        assert process.stdout is not None and process.stdout.readline() == "attached\n"
    ranks[who].kill()
    for rank, said in enumerate(job.said()):
        expected = f"WorkerDied worker {who} (slot {who} of node 0), process {ranks[who].pid}, died without a word\n"
        assert said == ("" if rank == who else expected)


def test_an_exception_ends_the_run_also_for_those_who_have_left(job: Job) -> None:
    job.rank(0, 2, "leave")
    job.rank(1, 2, "leave")
    first, second = job.said()
    assert first == "WorkerDied worker 1 (slot 1 of node 0) raised LookupError: worker 1 cannot find it\n"
    assert "LookupError: worker 1 cannot find it" in second


def test_a_node_that_is_killed_is_named(job: Job) -> None:
    job.rank(0, 2, "kill_node")
    job.rank(1, 2, "kill_node")
    for said in job.said():
        assert "NodeDied node 0 died without a word" in said


def test_a_process_that_never_comes_is_named(job: Job) -> None:
    job.rank(0, 2, "wait", "1", ADAPM_STARTUP_TIMEOUT=1)
    assert "RendezvousError workers [1] of node 0 did not enter within startup_timeout=1 seconds" in job.said()[0]


def test_a_machine_that_never_comes_is_named(job: Job) -> None:
    for rank in range(2):
        job.rank(rank, 4, "wait", "3", ADAPM_STARTUP_TIMEOUT=1.5)
    for said in job.said():
        assert "RendezvousError nodes 1 have not joined node 0 at tcp://127.0.0.1" in said


def test_who_hears_nothing_from_the_name_s_owner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch)
    with (
        claimed(monkeypatch) as listener,
        pytest.raises(RendezvousError, match="did not listen within startup_timeout"),
    ):
        listener.listen()
        with adapm.attach(TABLES, startup_timeout=0.1):
            pass


def test_another_user_s_process_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_rank(monkeypatch)
    monkeypatch.setattr(BlockingStream, "peer", lambda self: (77, os.getuid() + 1))
    with claimed(monkeypatch) as listener, pytest.raises(RendezvousError, match=r"process 77 of user .* has the name"):
        listener.listen()
        with adapm.attach(TABLES, startup_timeout=0.1):
            pass


def set_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@contextlib.contextmanager
def claimed(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that has the name of every run."""
    name = f"adapm-test-{uuid.uuid4().hex}"
    module = importlib.import_module("adapm.attach")  # the attribute of that name is the function
    monkeypatch.setattr(module, "_name", lambda place: name)
    monkeypatch.setattr(module, "GRACE", 0.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        yield listener


# ---- forks


def test_a_fork_cannot_use_the_worker_nor_end_it(job: Job) -> None:
    job.start(str(HERE / "attach_tasks.py"), "fork")
    *refusals, last = job.said()[0].splitlines()
    assert last == "40.0" and len(refusals) == 6
    for line in refusals:
        assert re.match(r"UsageError process \d+ is forked from that of worker 0, and cannot be it, too", line)


def test_a_worker_does_not_pickle() -> None:
    with adapm.attach(TABLES) as worker, pytest.raises(UsageError, match="worker 0 cannot be sent to another process"):
        pickle.dumps(worker)


# ---- the porch


class Stage:
    """A porch in this loop, and those who come to it.

    Attributes:
        address: the name.
        host: the line of the process that has started the node, as place 0.
        trouble: what the porch has told of.
    """

    async def __aenter__(self) -> Stage:
        self._stack = contextlib.ExitStack()
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind("")  # the kernel finds a name
        self._listener.listen()
        self.address = self._listener.getsockname()
        self.trouble: asyncio.Queue[AdapmError] = asyncio.Queue()
        self.porch = Porch(self._listener, 3, said(slot=0), self.trouble.put_nowait)
        self.host, line = (self._enter(AsyncStream(sock)) for sock in socket.socketpair())
        self.porch.open(line)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.porch.close()
        self._stack.close()

    def visit(self, **changes: object) -> AsyncStream:
        """A process that attaches as place 1, or as changed."""
        guest = socket.socket(socket.AF_UNIX)
        guest.connect(self.address)
        stream = self._enter(AsyncStream(guest))
        stream.send_nowait(said(**changes))
        return stream

    def _enter(self, stream: AsyncStream) -> AsyncStream:
        return self._stack.enter_context(contextlib.closing(stream))


def said(**changes: object) -> Attach:
    whole = {"version": VERSION, "pid": os.getpid(), "slot": 1, "workers": 2, "tables": [], "config": {"seed": 0}}
    return Attach(**{**whole, **changes})


def staged(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Stage() as stage:
            await asyncio.wait_for(scene(stage), 30)

    asyncio.run(main())


def test_all_hear_what_is_said_before_and_after_they_come() -> None:
    async def scene(stage: Stage) -> None:
        stage.porch.tell(Listening("here"))
        both = stage.host, stage.visit()
        assert [await one.receive() for one in both] == [Listening("here")] * 2
        for one in both:
            one.send_nowait(Entered())
        stage.porch.tell(Failed("Closed", "over", {}))
        assert [await one.receive() for one in both] == [Failed("Closed", "over", {})] * 2
        assert stage.trouble.empty()

    staged(scene)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"slot": 0}, TooManyWorkers, "place 0 of the 2 at node 3 is taken, by process"),
        ({"version": "9"}, ProtocolError, "this process has adapm 9, its node"),
    ],
)
def test_one_too_many_is_turned_away_and_the_run_goes_on(
    changes: dict[str, object], kind: type[AdapmError], message: str
) -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.visit(**changes).receive()
        assert isinstance(answer, Failed) and isinstance(answer.rebuild(), kind) and message in answer.message
        assert stage.trouble.empty()

    staged(scene)


def test_no_more_come_than_there_are_places() -> None:
    async def scene(stage: Stage) -> None:
        stage.porch.tell(Listening("here"))
        await stage.visit(slot=None).receive()
        answer = await stage.visit(slot=None).receive()
        assert isinstance(answer, Failed) and "all places of the 2 at node 3 are taken" in answer.message

    staged(scene)


def test_what_differs_ends_the_run() -> None:
    async def scene(stage: Stage) -> None:
        answer = await stage.visit(config={"seed": 1}).receive()
        assert isinstance(answer, Failed) and "seed is 1 on process" in answer.message
        assert isinstance(await stage.trouble.get(), ConfigError)

    staged(scene)


@pytest.mark.parametrize("who", ["host", "guest"])
def test_whoever_ends_before_it_has_entered_ends_the_run(who: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.porch.tell(Listening("here"))
        guest = stage.visit()
        await guest.receive()
        (stage.host if who == "host" else guest).close()
        trouble = await stage.trouble.get()
        assert isinstance(trouble, WorkerDied) and "ended before it was attached" in str(trouble)

    staged(scene)


def test_a_porch_that_is_shut_leaves_its_name_to_others() -> None:
    async def scene(stage: Stage) -> None:
        name = stage.address
        with socket.socket(socket.AF_UNIX) as other:
            with pytest.raises(OSError, match="in use"):
                other.bind(name)
            await stage.porch.shut()
            other.bind(name)

    staged(scene)
