"""Very many real nodes with a worker each, in one process and in virtual time, to see what an access costs them.

Everything is as in a `World`, but nothing befalls the nodes, nothing is checked after every frame, and nothing is kept
for each pair of them that they do not keep themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from adapm.config import Config
from adapm.door import Ticket, knock, welcomed
from adapm.engine import RowState
from adapm.errors import InternalError
from adapm.kernel import lib
from adapm.node import Node
from adapm.simulator import room
from adapm.simulator.choices import Choices
from adapm.simulator.loop import Owner, VirtualLoop, context_of
from adapm.simulator.wires import Line, Wires
from adapm.tables import Table
from adapm.transport import OnFrame, OnLost, Transport
from adapm.worker import Worker

T = TypeVar("T")

PATIENCE = 100.0  # virtual seconds
_LOOK = 0.002  # virtual seconds between looks whether all nodes rest
_JOINING = 1e-3  # virtual seconds within which nodes start


class TimedLoop(VirtualLoop):
    """A virtual loop that takes the time of what it runs.

    Attributes:
        cpu: seconds of this thread's processor time, by kind of owner ("node", "worker").
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__(choices)
        self.cpu = {"node": 0.0, "worker": 0.0}

    def _run_handle(self, handle: asyncio.Handle, owner: Owner | None) -> None:
        before = time.thread_time()
        super()._run_handle(handle, owner)
        if owner is not None:
            self.cpu[owner[0]] += time.thread_time() - before


@dataclass(frozen=True)
class Sizes:
    """Of each node.

    Attributes:
        tick_rate: ticks per second, at most.
        memory: bytes of rows that it may keep.
        heap: bytes for its worker's remote operations; more than they ever fill, because it cannot wait in a call.
    """

    tick_rate: int
    memory: int
    heap: int


class Cluster:
    """See above.  `async with Cluster(...) as cluster` opens and closes it.

    Args:
        nodes: how many, with one worker each.
        tables: all tables, zeros at first.
        sizes: of each of them.
        line: that connects each of them.
        loop: the running loop.
        choices: where everything is drawn from.

    Attributes:
        nodes, workers: by id.
        wires: between the nodes.
    """

    def __init__(
        self,
        nodes: int,
        tables: Sequence[Table],
        sizes: Sizes,
        line: Line,
        loop: VirtualLoop,
        choices: Choices,
    ) -> None:
        self.nodes: list[Node] = []
        self.workers: list[Worker] = []
        self.wires = Wires(loop, line)
        self._tables = tuple(tables)
        self._loop = loop
        self._choices = choices
        self._tickets: list[Ticket] = []
        self._config = Config(
            nodes=nodes,
            workers="1",
            transport="inproc",  # which is not used: nodes are given theirs
            rendezvous="wire://0",
            tick_rate=sizes.tick_rate,
            memory=sizes.memory,
            heap=sizes.heap,
            startup_timeout=PATIENCE,
        )

    async def __aenter__(self) -> Cluster:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _open(self) -> None:
        for number in range(self._config.nodes):
            await self._add(number).listen()
        doors = await asyncio.gather(*(self._as(("node", node.id), self._join(node)) for node in self.nodes))
        self._loop.forget_cancelled()  # of the time in which each of all these links should have come about
        for number, door in enumerate(doors):
            self.workers.append(await self._as(("worker", number), self._enter(door)))

    def _add(self, number: int) -> Node:
        def make(on_frame: OnFrame, on_lost: OnLost) -> Transport:
            return self.wires.transport(number, on_frame, on_lost)

        node = context_of(("node", number)).run(Node, self._config, self._tables, number, make, patience=0)
        self.nodes.append(node)
        room.give_back_empty_pages(node.lane._segment.fd)  # of the rings; nobody else has a use for it
        return node

    async def _join(self, node: Node) -> str:
        await asyncio.sleep(self._choices.stream(f"start {node.id}").between(0, _JOINING))
        return await node.join()

    async def _enter(self, door: str) -> Worker:
        connection = knock(door, 0)
        await self._loop.readable(connection.fileno())
        ticket = welcomed(connection)
        self._tickets.append(ticket)
        room.give_back_empty_pages(ticket.segment.fd)  # of the rows
        return Worker(ticket)

    def _as(self, owner: Owner, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return context_of(owner).run(self._loop.create_task, coroutine)

    async def _close(self) -> None:
        self.wires.cut = True
        for worker in self.workers:
            worker.close()
        for ticket in self._tickets:
            ticket.close()
        await asyncio.gather(*(self._as(("node", node.id), node.close()) for node in self.nodes))

    async def run(self, task: Callable[[Worker], Awaitable[None]]) -> None:
        """Runs the task as every worker.

        Raises:
            AdapmError: what ended one of them, or a node.
        """
        await asyncio.gather(*(self._as(("worker", worker.id), _perform(task, worker)) for worker in self.workers))

    async def settle(self) -> None:
        """Returns when every node rests.

        Raises:
            InternalError: they do not come to rest.
        """
        deadline = self._loop.time() + PATIENCE
        while not all(node.resting for node in self.nodes):
            if self._loop.time() > deadline:
                raise InternalError(f"nodes do not rest within {PATIENCE:g} virtual seconds: please report this")
            await asyncio.sleep(_LOOK)

    async def finish(self) -> None:
        """All workers are done; returns when all nodes know that the run is over."""
        for worker, ticket in zip(self.workers, self._tickets, strict=True):
            worker.close()
            ticket.finished()
        await asyncio.gather(*(node.ended() for node in self.nodes))

    def main_copy(self, table: int, row: int) -> float:
        """The first number of the row's main copy; to be asked at rest, when the row's home knows its owner.

        Raises:
            InternalError: the home does not.
        """
        home = lib.adapm_home_of(table, row, len(self.nodes))
        owner = self.nodes[home].lane.inspect(table, row).hint[0]
        view = self.nodes[owner].lane.inspect(table, row)
        if view.state is not RowState.OWNED or view.value is None:
            raise InternalError(f"row {row} is not at node {owner}, where its home says it is: please report this")
        return float(view.value[0])


async def _perform(task: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
    await task(worker)
