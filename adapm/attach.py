"""Makes the calling process a worker: for those whose processes belong to torchrun, srun, mpirun, Ray or a notebook.

    with adapm.attach(TABLES) as worker:
        ...

The first process on a machine that claims the name of its run starts the node, as a process of its own; the others come
to it (porch.py).  Names are abstract ones, so the kernel decides who is first, and frees them with their processes.
The node ends with its workers: it watches each of them, by the door and, until it has entered, from the porch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from adapm import control, launchers, memory, priority
from adapm.config import Config
from adapm.control import VERSION, Attach, Entered, Failed, Message, Ran, Ready, Spec
from adapm.current import being
from adapm.door import Ticket, enter
from adapm.errors import ConfigError, NodeDied, RendezvousError
from adapm.launch import GRACE, check_run, tell_profiles
from adapm.launchers import Place
from adapm.processes import CLOSING_TIME, start_node, way_of_dying
from adapm.profile import Profile
from adapm.stream import BlockingStream
from adapm.tables import Table
from adapm.worker import BlockingWorker

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

# What a line raises whose other end is gone; our own errors are ConnectionErrors, too.
_GONE: Final = (EOFError, BrokenPipeError, ConnectionRefusedError, ConnectionResetError)
_BACKLOG: Final = 128
_PAUSE: Final = 0.02  # seconds between attempts while one node of the name ends and the next has not begun
_PATIENCE: Final = 10.0  # seconds after which it is told what the end of the block waits for


@contextlib.contextmanager
def attach(
    tables: Iterable[Table],
    config: Config | Mapping[str, object] | None = None,
    **overrides: object,
) -> Iterator[BlockingWorker]:
    """Makes this process a worker of a run whose processes somebody else has started.

        with adapm.attach(TABLES) as worker:        # in each process of torchrun, srun, mpirun, Ray, or in a notebook
            ...

    Which node and which worker of how many it is, and where nodes meet, is in the launcher's variables
    (`adapm.launchers`); the worker's id is the process's rank.  Without a launcher, it is the only one.  The block ends
    when all workers have ended theirs, as `adapm.run` returns when all functions have; an exception that leaves it ends
    the run.  The worker belongs to the thread that entered the block, and is of no use to processes forked from it.

    Args:
        tables: the tables, the same in all processes.
        config: settings, see `Config`.
        overrides: more settings, as keywords: `job="ratings", workers=4`.

    Raises:
        ConfigError: the launcher's variables or the settings make no sense, contradict each other, or differ from those
            of another process of this machine; or tables do.
        UsageError: tables make no sense.
        TooManyWorkers: this process's place is taken.
        RendezvousError: processes or nodes did not come together.
        OutOfMemory, TooFewFiles: as of `adapm.run`.
        WorkerDied: another process left its block with an exception, or died; NodeDied, NodeLost: a node did.  All that
            are attached get it, at what they do next or wait for.
    """
    settings, place = launchers.settle(Config.load(config, overrides))
    with contextlib.closing(_Membership(settings, place, check_run(settings, tables))) as member:
        with (
            contextlib.closing(member.enter()) as ticket,
            contextlib.closing(BlockingWorker(ticket)) as worker,
            being(worker),
        ):
            try:
                yield worker
                worker.wait_sync()
            except BaseException as error:
                ticket.finished(f"{type(error).__name__}: {error}")
                raise
            ticket.finished()
        member.wait()


class _Membership:
    """This process's part in a run: its line to its node and, if it was the first, the node's process.

    Raises: what `attach` does.
    """

    def __init__(self, config: Config, place: Place, tables: Sequence[Table]) -> None:
        self._config = config
        self._place = place
        self._tables = tables
        self._pid = os.getpid()
        self._line = BlockingStream()
        self._process: subprocess.Popen[bytes] | None = None
        self._first_worker = 0

    def enter(self) -> Ticket:
        """Goes through the node's door once that is open."""
        ready = self._ready()
        self._first_worker = ready.first_worker
        rank, slot = self._place.rank, self._place.slot
        if rank is not None and slot is not None and ready.first_worker + slot != rank:
            raise ConfigError(
                f"{self._place.launcher} says that this process has rank {rank}, but as number {slot} of node"
                f" {self._place.node} its worker is {ready.first_worker + slot}: number processes machine by machine"
                " (srun --distribution=block, mpirun --map-by slot)"
            )
        ticket = enter(ready.door, slot)
        self._line.send(Entered())
        _become_a_worker()
        return ticket

    def wait(self) -> None:
        """Returns when all workers of all nodes are finished."""
        while True:
            try:
                ran = self._hear(Ran, _PATIENCE)
            except TimeoutError:
                log.warning("node %d: a process that has left `attach` waits for others to leave", self._place.node)
                continue
            if self._process is not None:
                tell_profiles(self._config, [Profile.of(self._place.node, self._first_worker, ran)])
            return

    def close(self) -> None:
        """Hangs up; returns when the node's process is gone, if we have started it."""
        if self._pid != os.getpid():  # a fork of ours
            return
        self._line.close()
        if self._process is None:
            return
        try:
            self._process.wait(CLOSING_TIME)
        except subprocess.TimeoutExpired:
            log.warning("node %d did not close in %g seconds: killed", self._place.node, CLOSING_TIME)
            self._process.kill()
            self._process.wait()

    # ---- coming together

    def _ready(self) -> Ready:
        name = _name(self._place)
        deadline = time.monotonic() + self._config.startup_timeout
        while not self._call(name):
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"somebody has the name of this run, @{name}, but hangs up on process {self._pid} for"
                    f" startup_timeout={self._config.startup_timeout:g} seconds"
                )
            time.sleep(_PAUSE)
        return self._hear(Ready)

    def _call(self, name: str) -> bool:
        """Starts or finds the node, and hears that it listens; False if the one that was found was just ending."""
        self._line.close()
        listener = _claimed(name)
        try:
            if listener is None:
                self._line = _connected(name)
            else:
                self._start(listener)
            self._line.send(self._introduction())
            first_word = self._line.receive(self._config.startup_timeout + GRACE)
        except TimeoutError as error:  # a node that can speak would have said sooner what it waits for
            raise RendezvousError(
                f"node {self._place.node} did not listen within startup_timeout={self._config.startup_timeout:g}"
                " seconds: its process hangs as it starts, or is stopped"
            ) from error
        except _GONE as error:
            if self._process is not None:
                raise self._died() from error
            return False
        _raise_failure(first_word)
        return True

    def _start(self, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        self._line = BlockingStream(ours)
        with theirs, listener:
            self._process = start_node(theirs, listener, session=True)
        packed = [table.pack() for table in self._tables]
        self._line.send(Spec(self._place.node, packed, self._config.as_dict()))

    def _introduction(self) -> Attach:
        config = self._config
        described = [table.describe() for table in self._tables]
        # What the nodes agree about, and what is this node's.
        equal = {**config.agreed(), "workers": config.workers, "rendezvous": config.rendezvous}
        return Attach(VERSION, self._pid, self._place.slot, config.worker_count, described, equal)

    # ---- the line

    def _hear(self, kind: type[M], timeout: float | None = None) -> M:
        try:
            message = self._line.receive(timeout)
        except _GONE as error:
            raise self._died() from error
        _raise_failure(message)
        return control.expect(message, kind)

    def _died(self) -> NodeDied:
        node = self._place.node
        if self._process is None:
            return NodeDied(f"node {node} died without a word: see its output or the system's log", node=node)
        pid = self._process.pid
        how, by = way_of_dying(self._process.wait())
        return NodeDied(f"node {node} (process {pid}) {how}; rows it held are gone", node=node, pid=pid, signal=by)


def _name(place: Place) -> str:
    """Of the socket at which the node's processes meet: nobody else's is the same, and another user's neither."""
    if place.workers == 1:
        return f"adapm-{secrets.token_hex(16)}"
    what = f"{os.getuid()} {place.node} {place.job}"
    return f"adapm-job-{hashlib.sha256(what.encode()).hexdigest()[:32]}"


def _claimed(name: str) -> socket.socket | None:
    """A socket that listens under this name; None if somebody else has it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"\0{name}")
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return listener


def _connected(name: str) -> BlockingStream:
    """A line to whoever has this name."""
    line = BlockingStream()
    try:
        line.connect(f"@{name}")
        pid, uid = line.peer()
        if uid != os.getuid():
            raise RendezvousError(
                f"process {pid} of user {uid} has the name of this run, @{name}: give the run another job=NAME"
            )
    except BaseException:
        line.close()
        raise
    return line


def _raise_failure(message: Message) -> None:
    if isinstance(message, Failed):
        raise message.rebuild()


@functools.cache  # priorities add up
def _become_a_worker() -> None:
    priority.let_node_go_first()
    memory.keep_freed()
