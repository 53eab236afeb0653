"""The members of a run that a launcher starts: nodes as processes, workers as processes or threads.

Each is started by its constructor, is waited for with `watch`, which returns what came of it or a Failure, and is ended
with `end`, whatever state it is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.spawn
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from adapm import memory, task
from adapm.config import Config
from adapm.control import Failed, Listening, Message, Ran, Ready, Spec
from adapm.errors import AdapmError, NodeDied, ProtocolError, UsageError, WorkerDied
from adapm.profile import Profile
from adapm.stream import AsyncStream
from adapm.tables import Table
from adapm.task import Failure, Task

log = logging.getLogger(__name__)

CLOSING_TIME: Final = 5.0  # seconds to end in peace
UNGUARDED: Final = 97  # exit code of a worker process that imported a script which calls `run` without a guard
_NAME: Final = "adapm worker "
_PR_SET_PDEATHSIG: Final = 1

# The node must run the same adapm as the launcher, wherever that came from: it gets our sys.path as it is.
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from adapm.node_process import main;"
    " main(*map(int, sys.argv[1].split(',')))"
)


class NodeProcess:
    """A node in a process of its own, see node_process.py.

    Attributes:
        id: the node's.
        door: the address of its door, first_worker: the global id of its first worker; both after `ready`.
        profile: where the time went; after `watch` has returned None.
    """

    def __init__(self, node: int) -> None:
        self.id = node
        self.door = ""
        self.first_worker = 0
        self.profile: Profile | None = None
        loop = asyncio.get_running_loop()
        self._listening: asyncio.Future[str] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        ours, theirs = socket.socketpair()
        with theirs:
            self._line = AsyncStream(ours)
            self._process = start_node(theirs)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def begin(self, config: Config, tables: Sequence[Table]) -> None:
        """Tells the process what node it is."""
        packed = [table.pack() for table in tables]
        with contextlib.suppress(OSError):  # it has died: `watch` tells
            await self._line.send(Spec(self.id, packed, config.as_dict()))

    async def listening(self) -> str:
        """The address at which other nodes reach it."""
        return await self._listening

    async def ready(self) -> None:
        """Returns when workers can enter."""
        await self._ready

    async def watch(self) -> Failure | None:
        """Returns when the run is over, or with the reason why it failed."""
        try:
            while not isinstance(said := await self._line.receive(), Failed):
                self._note(said)
            return Failure.told(said.rebuild())
        except ProtocolError as error:
            return Failure(error)
        except EOFError:
            await _exit_of(self._process.pid)
        code = self._process.wait()
        if code == 0:
            return None
        how, by = way_of_dying(code)
        message = f"node {self.id} (process {self._process.pid}) {how}; rows it held are gone"
        return Failure(NodeDied(message, node=self.id, pid=self._process.pid, signal=by))

    def tell(self, error: AdapmError) -> None:
        """Has the node end the run for this reason."""
        self._line.send_nowait(Failed.of(error))

    async def end(self) -> None:
        """Returns when the process is gone; `watch` must have returned."""
        self._line.close()
        if self._process.poll() is None and not await _exits(self._process.pid, CLOSING_TIME):
            log.warning("node %d did not close in %g seconds: killed", self.id, CLOSING_TIME)
            self._process.kill()
        self._process.wait()

    def _note(self, message: Message) -> None:
        if isinstance(message, Listening) and not self._listening.done():
            self._listening.set_result(message.address)
        elif isinstance(message, Ready) and not self._ready.done():
            self.door, self.first_worker = message.door, message.first_worker
            self._ready.set_result(None)
        elif isinstance(message, Ran) and self.profile is None:
            self.profile = Profile.of(self.id, self.first_worker, message)
        else:
            raise ProtocolError(f"node {self.id} sent {type(message).__name__} to its launcher")


def start_node(*sockets: socket.socket, session: bool = False) -> subprocess.Popen[bytes]:
    """A process that becomes a node.

    Args:
        sockets: the arguments of `node_process.main`.
        session: put it into a session of its own, where signals for our process group do not reach it.
    """
    fds = [sock.fileno() for sock in sockets]
    with _sigint_blocked():
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, ",".join(map(str, fds)), *sys.path],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            start_new_session=session,
        )


class ProcessWorker:
    """A worker in a process of its own.

    Args:
        packed: a packed Task.
        node: its node, which is ready.
        slot: its place there.
    """

    def __init__(self, packed: bytes, node: NodeProcess, slot: int) -> None:
        self._packed = packed
        self._node = node.id
        self._worker = node.first_worker + slot
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with theirs, _sigint_blocked():
            self._process = context.Process(target=_work, args=(theirs, node.door, slot), name=f"{_NAME}{self._worker}")
            self._process.start()
        assert self._process.pid is not None
        self._pid: int = self._process.pid

    async def watch(self) -> Any:
        """What the task returned, or a Failure."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, self._pipe.send_bytes, self._packed)  # blocks while the process starts
            await _readable(self._pipe.fileno())
            return task.unpack_outcome(await loop.run_in_executor(None, self._pipe.recv_bytes))
        except (EOFError, OSError):
            await _exit_of(self._pid)
        self._process.join()
        return self._died(self._process.exitcode or 0)

    async def end(self) -> None:
        """Returns when the process is gone; `watch` must have returned."""
        if self._process.is_alive():
            self._process.terminate()
            if not await _exits(self._pid, CLOSING_TIME):
                log.warning("worker %d did not end in %g seconds: killed", self._worker, CLOSING_TIME)
                self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def _died(self, code: int) -> Failure:
        if code == UNGUARDED:
            return Failure(_unguarded())
        how, by = way_of_dying(code)
        message = f"worker {self._worker} of node {self._node} (process {self._pid}) {how} before its function returned"
        return Failure(WorkerDied(message, worker=self._worker, node=self._node, pid=self._pid, signal=by))


class ThreadWorker:
    """A worker in a thread of this process.

    Args:
        what: its task.
        node: its node, which is ready.
        slot: its place there.
    """

    def __init__(self, what: Task, node: NodeProcess, slot: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Any] = self._loop.create_future()
        name = f"{_NAME}{node.first_worker + slot}"
        self._thread = threading.Thread(target=self._work, args=(what, node.door, slot), name=name, daemon=True)
        self._thread.start()

    async def watch(self) -> Any:
        """What the task returned, or a Failure."""
        return await asyncio.shield(self._outcome)

    async def end(self) -> None:
        """Returns when the thread is gone, or cannot be ended: it notices the end of the run at its next operation."""
        await asyncio.wait({self._outcome}, timeout=CLOSING_TIME)
        if self._outcome.done():
            self._thread.join()
        else:
            log.warning("thread %r is still in its function, which cannot be stopped from outside", self._thread.name)

    def _work(self, what: Task, door: str, slot: int) -> None:
        try:
            outcome = what.perform(door, slot)
        except BaseException as error:
            outcome = Failure.told(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waited for us
            self._loop.call_soon_threadsafe(self._outcome.set_result, outcome)


def check_main_is_guarded() -> None:
    """Makes sure that this process may start worker processes.

    Raises:
        UsageError: it is just importing the script to become such a process itself.
        SystemExit: it is a worker process of ours, whose launcher then raises that UsageError.
    """
    try:
        multiprocessing.spawn.get_preparation_data("")
    except RuntimeError:
        if multiprocessing.current_process().name.startswith(_NAME):
            raise SystemExit(UNGUARDED) from None
        raise _unguarded() from None


def _unguarded() -> UsageError:
    return UsageError(
        "the script calls adapm.run when it is imported, and worker processes import it: put the call under"
        ' `if __name__ == "__main__":`, or use workers="threads:N"'
    )


def _work(pipe: multiprocessing.connection.Connection, door: str, slot: int) -> None:
    """The life of a worker process, once Python has imported what it needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which then ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with_parent()
    memory.keep_freed()
    with pipe, contextlib.suppress(OSError, EOFError):  # then nobody wants to know
        pipe.send_bytes(task.perform_packed(pipe.recv_bytes(), door, slot))


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before we said that
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Processes started inside do not see Ctrl-C until they can deal with it; for us it waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def way_of_dying(code: int) -> tuple[str, int | None]:
    """How a process ended, in words, and the signal, from what subprocess and multiprocessing call its exit code."""
    if code >= 0:
        return f"exited with code {code}", None
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have no names
        name = str(-code)
    return f"was killed by signal {-code} ({name})", -code


async def _exit_of(pid: int) -> None:
    """Returns when our child process has exited; it remains to be waited for."""
    pidfd = os.pidfd_open(pid)
    try:
        await _readable(pidfd)
    finally:
        os.close(pidfd)


async def _exits(pid: int, seconds: float) -> bool:
    """Whether our child process exits within so many seconds."""
    try:
        await asyncio.wait_for(_exit_of(pid), seconds)
    except asyncio.TimeoutError:
        return False
    return True


async def _readable(fd: int) -> None:
    """Returns when there is something to read from the descriptor."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(fd, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(fd)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():  # a descriptor stays readable
        future.set_result(None)
