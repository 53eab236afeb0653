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
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any, Final

from adapm import control, descriptors, memory, priority, transport
from adapm.config import Config
from adapm.control import Failed, Listening, Ready, Spec
from adapm.errors import AdapmError, Closed, ProtocolError
from adapm.node import Node
from adapm.stream import AsyncStream
from adapm.tables import Table

CLOSING_TIME: Final = 5  # seconds that a node has to close when it is told to end
MAX_SPEC: Final = 1 << 40  # bytes: initial values given as arrays are part of it


def main(fd: int) -> None:
    """Runs a node until its run is over, and exits; with 1 if it failed.

    Args:
        fd: this process's end of the socket pair.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which then ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    priority.go_first()
    memory.keep_freed()
    sys.exit(0 if _run(_obey(AsyncStream(socket.socket(fileno=fd), MAX_SPEC))) else 1)


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
    """Whether the run ended well."""
    with contextlib.closing(line):
        order = await line.receive()
        if isinstance(order, Failed):  # the run is over before it began
            return False
        spec = control.expect(order, Spec)
        config = Config(**spec.config)
        logging.basicConfig(
            level=config.log_level.upper(),
            format=f"%(asctime)s adapm node {spec.node} %(levelname)s: %(message)s",
        )
        try:
            kind, _ = transport.find(config.transport)
            needed = descriptors.of_node(config.nodes, config.worker_count, kind.descriptors)
            descriptors.allow(needed, f"node {spec.node}")
            node = Node(config, [Table.unpack(table) for table in spec.tables], spec.node)
        except AdapmError as error:
            line.send_nowait(Failed.of(error))
            return False
        leash = asyncio.ensure_future(_be_led(line, node))
        try:
            return await _live(line, node)
        finally:
            await node.close()
            leash.cancel()
            await asyncio.wait({leash})


async def _live(line: AsyncStream, node: Node) -> bool:
    try:
        line.send_nowait(Listening(await node.listen()))
        line.send_nowait(Ready(await node.join(), node.first_worker))
        await node.ended()
    except AdapmError as error:
        node.fail(error)
        line.send_nowait(Failed.of(error))
        return False
    line.send_nowait(node.ran())
    return True


async def _be_led(line: AsyncStream, node: Node) -> None:
    """Ends the run when the launcher says so, or is gone."""
    try:
        error = control.expect(await line.receive(), Failed).rebuild()
    except EOFError:
        error = Closed("the process that had started the run is gone")
    except ProtocolError as broken:
        error = broken
    signal.alarm(CLOSING_TIME)  # whatever may keep us from closing
    node.fail(error)
