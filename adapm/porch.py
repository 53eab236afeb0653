"""Where processes that attach by themselves hear of their node: a unix socket under a name that they can know.

    attaching process                        node process
      |---- Attach(slot, tables, ...) ------------>|      the one that has started the node says Spec before
      |<--- Listening(address) --------------------|      where other nodes join
      |<--- Ready(door, first_worker) -------------|      workers may enter
      |---- Entered() ---------------------------->|      and has; the door watches it from now on
      |<--- Ran(counters) | Failed(error) ---------|      how the run ended

The name is an abstract one, and belongs to the listening socket: it is free as soon as nobody has that open, however
its processes ended, and no file is left that could be stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from adapm import control
from adapm.control import VERSION, Attach, Entered, Failed, Message
from adapm.errors import AdapmError, ConfigError, ProtocolError, TooManyWorkers, WorkerDied
from adapm.gathering import difference
from adapm.stream import AsyncStream, credentials, watched

log = logging.getLogger(__name__)


class Porch:
    """The node's side.

    Args:
        listener: bound to the name, and listening.
        node: the node's id, for messages.
        host: what the process that has started the node says; the others must say the same, but for their place.
        on_trouble: called with the reason why the run cannot go on, if a process is gone before it has entered the door
            or differs from the host.
    """

    def __init__(
        self, listener: socket.socket, node: int, host: Attach, on_trouble: Callable[[AdapmError], None]
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._node = node
        self._host = host
        self._on_trouble = on_trouble
        self._guests: dict[AsyncStream, Attach] = {}
        self._said: list[Message] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def open(self, host: AsyncStream) -> None:
        """Hears the process that has started the node, which has said what it is, and all others that come."""
        self._spawn(self._entertain(host, self._host))
        self._accepting = self._spawn(self._accept())

    def tell(self, message: Message) -> None:
        """Says it to all that are there, and to all that come."""
        self._said.append(message)
        for guest in self._guests:
            guest.send_nowait(message)

    async def shut(self) -> None:
        """Lets nobody in any more; the name is free then."""
        if self._accepting is not None:
            self._accepting.cancel()  # while the loop watches the socket it must not be closed
            await asyncio.wait({self._accepting})
        self._listener.close()

    async def close(self) -> None:
        """Hangs up on everybody."""
        await self.shut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            guest, _ = await loop.sock_accept(self._listener)
            self._spawn(self._receive(guest))

    async def _receive(self, guest: socket.socket) -> None:
        pid, uid = credentials(guest)
        with contextlib.closing(AsyncStream(guest)) as stream:
            if uid != os.getuid():
                log.warning("turned away process %d of user %d: it is not ours", pid, uid)
                return
            try:
                attach = control.expect(await stream.receive(), Attach)
                self._check(attach)
            except (AdapmError, EOFError) as error:
                if isinstance(error, AdapmError):
                    stream.send_nowait(Failed.of(error))
                if isinstance(error, ConfigError):  # the others need not wait for it
                    self._on_trouble(error)
                return
            await self._entertain(stream, attach)

    async def _entertain(self, stream: AsyncStream, attach: Attach) -> None:
        self._guests[stream] = attach
        for message in self._said:
            stream.send_nowait(message)
        with watched(stream, attach.pid):
            try:
                control.expect(await stream.receive(), Entered)
            except (EOFError, ProtocolError):
                who = f"{self._name(attach)} of node {self._node}"
                self._on_trouble(WorkerDied(f"{who} ended before it was attached", node=self._node, pid=attach.pid))
            else:
                await stream.wait_closed()

    def _check(self, attach: Attach) -> None:
        """Raises: ProtocolError, TooManyWorkers: nothing comes of it; ConfigError: nor of the run."""
        if attach.version != VERSION:
            raise ProtocolError(f"this process has adapm {attach.version}, its node {VERSION}: install one for both")
        taken = [guest for guest in self._guests.values() if guest.slot is not None and guest.slot == attach.slot]
        if taken or len(self._guests) == self._host.workers:
            pids = ", ".join(str(guest.pid) for guest in taken or self._guests.values())
            which = f"place {attach.slot}" if taken else "all places"
            taken_by = f"{'is' if taken else 'are'} taken, by process {pids}"
            raise TooManyWorkers(
                f"{which} of the {self._host.workers} at node {self._node} {taken_by}: if that belongs to another run,"
                " give each its own job=NAME"
            )
        who, host = self._name(attach), self._name(self._host)
        if differs := difference(attach, self._host, who, host):
            raise ConfigError(f"processes of node {self._node} attach with different arguments: {differs}")

    @staticmethod
    def _name(attach: Attach) -> str:
        slot = "" if attach.slot is None else f" (place {attach.slot})"
        return f"process {attach.pid}{slot}"
