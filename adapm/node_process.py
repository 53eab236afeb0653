"""A node as a process of its own, which obeys its launcher through a socket pair.

    launcher                        node process
      |---- Spec(node, tables, config) -->|
      |<--- Listening(address) -----------|      node 0's is the rendezvous of the others
      |<--- Ready(door, first_worker) ----|      workers may enter
      |<--- Ran(counters) ----------------|      all workers of all nodes are finished
      |<--- Failed(error) ----------------|      if it comes to that, then the node closes
      |---- Failed(error) --------------->|      end the run for this reason
      |==== end of file =================>|      either way: the other is gone

What the node has to tell people goes to standard error.

A node of processes that attach (attach.py) has no launcher: the first of them says Spec, and then all are told the same
through the porch (porch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from adapm import control, descriptors, memory, priority, transport
from adapm.config import Config
from adapm.control import Attach, Failed, Listening, Message, Ran, Ready, Spec
from adapm.errors import AdapmError, Closed, ProtocolError
from adapm.node import Node
from adapm.porch import Porch
from adapm.stream import AsyncStream
from adapm.tables import Table

CLOSING_TIME: Final = 5  # seconds that a node has to close when it is told to end
MAX_SPEC: Final = 1 << 40  # bytes: initial values given as arrays are part of it


def main(fd: int, listener: int | None = None) -> None:
    """Runs a node until its run is over, and exits; with 1 if it failed.

    Args:
        fd: this process's end of the socket pair.
        listener: a listening socket at which processes attach; None: the other end of the pair is a launcher.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which then ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    priority.go_first()
    memory.keep_freed()
    line = AsyncStream(socket.socket(fileno=fd), MAX_SPEC)
    sys.exit(0 if _run(_obey(line) if listener is None else _host(line, socket.socket(fileno=listener))) else 1)


def _run(main: Coroutine[Any, Any, bool]) -> bool:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    loop = uvloop.new_event_loop()  # uvloop.run is newer than what we support
    asyncio.set_event_loop(loop)
    try:
        return bool(loop.run_until_complete(main))
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _obey(line: AsyncStream) -> bool:
    """A launcher's node; whether the run ended well."""
    with contextlib.closing(line):
        order = await line.receive()
        if isinstance(order, Failed):  # the run is over before it began
            return False
        try:
            node = _made(control.expect(order, Spec))
        except AdapmError as error:
            line.send_nowait(Failed.of(error))
            return False
        leash = asyncio.ensure_future(_be_led(line, node))
        try:
            end = await _live(line.send_nowait, node)
            line.send_nowait(end)
            return isinstance(end, Ran)
        finally:
            await node.close()
            leash.cancel()
            await asyncio.wait({leash})


async def _host(line: AsyncStream, listener: socket.socket) -> bool:
    """A node of processes that attach; whether the run ended well."""
    with contextlib.closing(line), contextlib.closing(listener):
        try:
            spec = control.expect(await line.receive(), Spec)
            first = control.expect(await line.receive(), Attach)
        except EOFError:  # whoever waits for us already starts another
            return False
        try:
            node = _made(spec)
        except AdapmError as error:
            line.send_nowait(Failed.of(error))
            return False
        porch = Porch(listener, spec.node, first, partial(_end, node))
        porch.open(line)
        try:
            end = await _live(porch.tell, node)
            if isinstance(end, Failed):
                porch.tell(end)
            await porch.shut()
            await node.close()
            if isinstance(end, Ran):  # only now: who is told may start the next run at once
                porch.tell(end)
            return isinstance(end, Ran)
        finally:
            await node.close()
            await porch.close()


def _made(spec: Spec) -> Node:
    """The node that is asked for.

    Raises:
        AdapmError: it cannot be.
    """
    config = Config(**spec.config)
    logging.basicConfig(
        level=config.log_level.upper(),
        format=f"%(asctime)s adapm node {spec.node} %(levelname)s: %(message)s",
    )
    kind, _ = transport.find(config.transport)
    needed = descriptors.of_node(config.nodes, config.worker_count, kind.descriptors)
    descriptors.allow(needed, f"node {spec.node}")
    return Node(config, [Table.unpack(table) for table in spec.tables], spec.node)


async def _live(tell: Callable[[Message], None], node: Node) -> Ran | Failed:
    """How the run ends, which remains to be told."""
    try:
        tell(Listening(await node.listen()))
        tell(Ready(await node.join(), node.first_worker))
        await node.ended()
    except AdapmError as error:
        node.fail(error)
        return Failed.of(error)
    return node.ran()


async def _be_led(line: AsyncStream, node: Node) -> None:
    """Ends the run when the launcher says so, or is gone."""
    try:
        error = control.expect(await line.receive(), Failed).rebuild()
    except EOFError:
        error = Closed("the process that had started the run is gone")
    except ProtocolError as broken:
        error = broken
    _end(node, error)


def _end(node: Node, error: AdapmError) -> None:
    signal.alarm(CLOSING_TIME)  # whatever may keep us from closing
    node.fail(error)
