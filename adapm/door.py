"""Where a worker meets its node: an abstract unix socket through which it receives the shared segment.

    worker                                     node
      |---- Hello(version, slot, pid) ---------->|
      |<--- Admitted(...) + segment, node's eventfd, worker's eventfd
      |            ... the connection stays open for the worker's life ...
      |---- Done(error) ------------------------>|      finished, or raised
      |<--- Failed(error, message) --------------|      the node gives up, and why

An end of file without a word before it means that the other side died.  The system closes a connection after its
process has made its last store, so what the node then reads from the segment is final.  A worker's own children may
have inherited the connection and keep it open; therefore the node watches the worker's process as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapm import control
from adapm.config import Config
from adapm.control import VERSION, Admitted, Done, Failed, Hello
from adapm.errors import AdapmError, NodeDied, ProtocolError, TooManyWorkers
from adapm.segment import Segment
from adapm.stream import AsyncStream, BlockingStream, credentials, watched
from adapm.tables import Table

log = logging.getLogger(__name__)

_BACKLOG = 128
_MAX_WORD = 1 << 20  # bytes of what a worker may say at once
_EXPLANATION = 5.0  # seconds a failed node has to say why; it says so before it makes anyone ask


class Door:
    """The node's side.  It admits workers and tells of their end; it decides nothing else.

    Args:
        fds: the descriptors that every worker receives: the segment and the node's eventfd.
        worker_fds: each slot's own eventfd; their number is the number of slots.
        admission: what a worker that gets this slot is told.
        on_done: called with a slot and the exception's text, or None, when that worker says that it is finished.
        on_died: called with a slot and a pid when that worker is gone without having said so.
    """

    def __init__(
        self,
        fds: tuple[int, int],
        worker_fds: Sequence[int],
        *,
        admission: Callable[[int], Admitted],
        on_done: Callable[[int, str | None], None],
        on_died: Callable[[int, int], None],
    ) -> None:
        self._fds = fds
        self._worker_fds = worker_fds
        self._admission = admission
        self._on_done = on_done
        self._on_died = on_died
        self._free = list(range(len(worker_fds)))
        self._guests: set[AsyncStream] = set()
        self._failure: Failed | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    @property
    def vacant(self) -> list[int]:
        """Slots that no worker has asked for yet."""
        return sorted(self._free)

    async def open(self) -> str:
        """Lets workers in from now on, and returns the address for `enter`."""
        name = f"adapm-{secrets.token_hex(16)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        self._listener.bind(f"\0{name}")  # abstract: there is no file that could be left behind
        self._listener.listen(_BACKLOG)
        self._spawn(self._accept(self._listener))
        return f"@{name}"

    def fail(self, error: AdapmError) -> None:
        """Tells all workers, also those that come later, that the run is over and why."""
        self._failure = Failed.of(error)
        for guest in self._guests:
            guest.send_nowait(self._failure)

    async def close(self) -> None:
        """Ends all connections; `on_died` is not called for them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            guest, _ = await loop.sock_accept(listener)
            self._spawn(self._serve(guest))

    async def _serve(self, guest: socket.socket) -> None:
        with guest:
            pid, uid = credentials(guest)
            if uid != os.getuid():
                log.warning("turned away process %d of user %d at the door: it is not ours", pid, uid)
                return
            stream = AsyncStream(guest, _MAX_WORD)
            try:
                slot = await self._admit(stream)
            except (AdapmError, EOFError, OSError) as error:
                log.info("process %d did not get in: %s", pid, error)
                return
            self._guests.add(stream)
            try:
                with watched(stream, pid):
                    await self._attend(stream, slot, pid)
            finally:
                self._guests.discard(stream)

    async def _admit(self, stream: AsyncStream) -> int:
        try:
            slot = self._claim(control.expect(await stream.receive(), Hello))
        except AdapmError as error:
            stream.send_nowait(Failed.of(error))
            raise
        await stream.send(self._admission(slot), (*self._fds, self._worker_fds[slot]))
        if self._failure is not None:
            stream.send_nowait(self._failure)
        return slot

    def _claim(self, hello: Hello) -> int:
        if hello.version != VERSION:
            raise ProtocolError(f"the worker runs adapm {hello.version}, its node {VERSION}: install one for both")
        slots = len(self._worker_fds)
        if hello.slot is not None and hello.slot not in self._free:
            state = "taken" if hello.slot < slots else f"not one of its {slots}"
            raise TooManyWorkers(f"worker slot {hello.slot} of the node is {state}: start the node with more workers")
        if not self._free:
            raise TooManyWorkers(f"all {slots} worker slots of the node are taken: start the node with more workers")
        slot = self._free[0] if hello.slot is None else hello.slot
        self._free.remove(slot)
        return slot

    async def _attend(self, stream: AsyncStream, slot: int, pid: int) -> None:
        try:
            done = control.expect(await stream.receive(), Done)
        except EOFError:
            self._on_died(slot, pid)
        except ProtocolError as error:
            log.error("the worker in slot %d broke the protocol: %s", slot, error)
            self._on_died(slot, pid)
        else:
            self._on_done(slot, done.error)
            await stream.wait_closed()  # it may still ask why() the run failed


@dataclass
class Ticket:
    """The worker's side: everything a worker needs of its node.  Made by `enter`.

    Attributes:
        segment: attached; closed with the ticket.
        slot: the worker's place at its node.
        worker: its global id; node: its node's id; num_nodes, num_workers: of the whole run.
        node_fd, worker_fd: the eventfds of the node and of the worker.
        tables: the schemas, in the order that numbers them; arrays of initial values stay with the node.
        config: the node's settings.
        pid: of the process that has entered; those that it forks inherit the ticket, and must not speak for it.
        seed: of the run; mix in `worker` for a generator of the worker's own.
    """

    segment: Segment
    slot: int
    worker: int
    node: int
    num_nodes: int
    num_workers: int
    node_fd: int
    worker_fd: int
    tables: list[Table]
    config: Config
    seed: int
    connection: BlockingStream
    pid: int = field(default_factory=os.getpid)

    def fileno(self) -> int:
        """The connection: it becomes readable when the node has failed or died, then `why()` does not block."""
        return self.connection.fileno()

    def finished(self, error: str | None = None) -> None:
        """Tells the node that this worker is done: all its operations are complete, and it starts no more.

        Args:
            error: the exception that ended it, as text; the node then ends the run.
        """
        if self.pid != os.getpid():
            return
        with contextlib.suppress(OSError):  # a node that is gone need not be told
            self.connection.send(Done(error))

    def why(self) -> AdapmError:
        """The reason for which the node has failed; a NodeDied if it has not said anything."""
        silent = NodeDied(f"node {self.node} died without a word: see its output or the system's log", node=self.node)
        try:
            message = self.connection.receive(timeout=_EXPLANATION)
        except (OSError, EOFError):
            return silent
        except ProtocolError as error:
            return error
        return message.rebuild() if isinstance(message, Failed) else silent

    def close(self) -> None:
        """Gives everything back. May be called twice."""
        if self.connection.fileno() < 0:
            return
        self.segment.close()
        os.close(self.node_fd)
        os.close(self.worker_fd)
        self.connection.close()


def enter(address: str, slot: int | None = None) -> Ticket:
    """Goes through a node's door; blocks until the node answers.

    Args:
        address: what `Door.open` returned.
        slot: the worker's place at its node; None takes the first free one.

    Raises:
        TooManyWorkers: the slot, or every slot, is taken.
        ProtocolError: the node runs another version of adapm.
        NodeDied: nobody is behind the door, or it ended during the welcome.
        AdapmError: the run has failed already, and this is why.
    """
    return welcomed(knock(address, slot))


def knock(address: str, slot: int | None = None) -> BlockingStream:
    """The first half of `enter`: connects and says hello. The connection becomes readable when the node answers.

    Raises:
        NodeDied: nobody is behind the door.
    """
    connection = BlockingStream()
    with _entering(connection, f" {address}"):
        connection.connect(address)
        connection.send(Hello(VERSION, slot, os.getpid()))
    return connection


def welcomed(connection: BlockingStream) -> Ticket:
    """The second half: takes over the connection, and waits for the node's answer. Raises what `enter` does."""
    with _entering(connection):
        message = connection.receive()
        if isinstance(message, Failed):
            raise message.rebuild()
        return _ticket(control.expect(message, Admitted), connection)


@contextlib.contextmanager
def _entering(connection: BlockingStream, where: str = "") -> Iterator[None]:
    """Closes the connection if this fails."""
    try:
        yield
    except BaseException as error:
        connection.close()
        if isinstance(error, (OSError, EOFError)) and not isinstance(error, AdapmError):
            raise NodeDied(f"nobody answers at the door{where}: the node is gone ({error})") from error
        raise


def _ticket(admitted: Admitted, connection: BlockingStream) -> Ticket:
    segment_fd, node_fd, worker_fd = connection.take_fds(3)
    try:
        segment = Segment.attach(segment_fd)
    except BaseException:
        os.close(node_fd)
        os.close(worker_fd)
        raise
    return Ticket(
        segment=segment,
        slot=admitted.slot,
        worker=admitted.worker,
        node=admitted.node,
        num_nodes=admitted.num_nodes,
        num_workers=admitted.num_workers,
        node_fd=node_fd,
        worker_fd=worker_fd,
        tables=[Table.unpack(packed) for packed in admitted.tables],
        config=Config(**admitted.config),
        seed=admitted.seed,
        connection=connection,
    )
