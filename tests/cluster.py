"""Whole nodes in one loop, without processes: real doors, segments, lanes and transports.

Workers are coroutines or threads:

    async with Cluster(TABLES, nodes=2, workers=2) as cluster:
        results = await cluster.run(train)              # train(worker), a coroutine function, for each worker
        ...cluster.main_copies("entities")...

When the body ends, workers are finished, everything comes to rest, and then what must hold of a run at rest is checked.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from adapm.transports.inproc import InprocNetwork

from adapm import Config, Table, keys
from adapm.door import Ticket, enter
from adapm.engine import RowState
from adapm.node import Node
from adapm.transport import OnFrame, OnLost, Transport, create
from adapm.worker import BlockingWorker, Worker

T = TypeVar("T")
CHECKED_ROWS = 2_000  # of each table, looked at on every node when the cluster is left


class Cluster:
    """See above.

    Args:
        tables: as of `adapm.run`.
        nodes, workers: how many nodes, and how many workers each has.
        transport: "inproc", or any other that is installed.
        settings: further settings of `Config`.

    Attributes:
        nodes: by id, open while inside.
        doors: the address of each node's door.
        network: cuts and stalls links; inproc only.
    """

    def __init__(
        self, tables: Sequence[Table], nodes: int = 1, workers: int = 1, transport: str = "inproc", **settings: Any
    ) -> None:
        self.tables = list(tables)
        self.nodes: list[Node] = []
        self.doors: list[str] = []
        self.network = InprocNetwork()
        settings.setdefault("startup_timeout", 10.0)
        self._config = Config(nodes=nodes, workers=str(workers), transport=transport, **settings)
        self._tickets: list[Ticket] = []
        self._workers: list[Worker | BlockingWorker] = []
        self._sent = self._received = 0
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Cluster:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                await self.finish()
                await self.settle()
                self.check()
        finally:
            await self._close()

    # ---- workers

    async def enter(self, node: int, slot: int | None = None) -> Ticket:
        """Goes through a node's door; the ticket is closed with the cluster."""
        ticket = await asyncio.to_thread(enter, self.doors[node], slot)  # it blocks until this loop has answered
        self._tickets.append(ticket)
        return ticket

    async def worker(self, node: int = 0) -> Worker:
        """One more worker, in this loop."""
        worker = Worker(await self.enter(node))
        self._workers.append(worker)
        return worker

    async def run(self, task: Callable[[Worker], Awaitable[T]]) -> list[T]:
        """Runs the task as all workers that are not there yet, at once; their results, in order of worker ids."""
        workers = [await self.worker(node) for node in self._vacancies()]
        return list(await asyncio.gather(*(self._whole(worker, task) for worker in workers)))

    async def run_threads(self, task: Callable[[BlockingWorker], T]) -> list[T]:
        """The same with blocking workers, each in a thread."""
        tickets = [await self.enter(node) for node in self._vacancies()]
        return list(await asyncio.gather(*(asyncio.to_thread(self._whole_blocking, t, task) for t in tickets)))

    async def finish(self) -> None:
        """Ends all workers; their intents are over, and they count as arrived at barriers."""
        for worker in self._workers:
            if isinstance(worker, Worker):
                await worker.wait_sync()
            worker.close()
        self._workers.clear()
        for ticket in self._tickets:
            ticket.finished()
        if not self._vacancies() and self._tickets:
            await asyncio.gather(*(node.ended() for node in self.nodes))

    # ---- looking at it

    async def settle(self) -> None:
        """Returns when all nodes rest and no frame is under way."""
        while True:
            await _turn()  # eventfds that have been written are seen
            for node in self.nodes:
                await node.rest()
            if self._sent > self._received:
                self._arrived.clear()
                await self._arrived.wait()
            elif all(node.resting for node in self.nodes):
                return

    @property
    def frames(self) -> int:
        """How many frames have been sent so far, control messages included."""
        return self._sent

    def owner(self, table: str, key: int) -> int:
        """Which node has the main copy of the row."""
        owners = [node for node, state in enumerate(self.states(table, key)) if state is RowState.OWNED]
        assert len(owners) == 1, f"row {key} of {table} is owned by nodes {owners}"
        return owners[0]

    def states(self, table: str, key: int) -> list[RowState]:
        """What the row is to each node."""
        return [node.lane.inspect(self._index(table), key).state for node in self.nodes]

    def main_copies(self, table: str, keys: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """The rows as their owners have them, [rows, row_len]; to be called when settled."""
        index = self._index(table)
        keys = range(self.tables[index].rows) if keys is None else keys
        return np.stack([self.nodes[self.owner(table, key)].lane.inspect(index, key).value for key in keys])

    def check(self) -> None:
        """What must hold of a cluster that is settled and has no intents."""
        for node in self.nodes:
            node.lane.validate()
        for table in self.tables:
            for key in range(0, table.rows, max(1, table.rows // CHECKED_ROWS)):
                states = self.states(table.name, key)
                assert states.count(RowState.OWNED) == 1, f"row {key} of {table.name}: {states}"
                assert states.count(RowState.ABSENT) == len(states) - 1, f"row {key} of {table.name}: {states}"

    # ---- beginning and end

    async def _open(self) -> None:
        first = self._add(0)
        address = await first.listen() or None
        self._config = dataclasses.replace(self._config, rendezvous=address)
        for node in range(1, self._config.nodes):
            await self._add(node).listen()
        self.doors = list(await asyncio.gather(*(node.join() for node in self.nodes)))

    def _add(self, node: int) -> Node:
        self.nodes.append(
            Node(self._config, self.tables, node, lambda on_frame, on_lost: self._transport(node, on_frame, on_lost))
        )
        return self.nodes[-1]

    def _transport(self, node: int, on_frame: OnFrame, on_lost: OnLost) -> Transport:
        def count_received(peer: int, frame: memoryview) -> None:
            self._received += 1
            self._arrived.set()
            on_frame(peer, frame)

        def count_sent(peer: int, frame: Any, release: object = None) -> None:
            send(peer, frame, release)
            self._sent += 1

        name = self._config.transport
        options: dict[str, Any] = {"network": self.network} if name == "inproc" else {}
        if self._config.key_file is not None:
            options["key"] = keys.read(self._config.key_file).secret
        transport = create(name, node, on_frame=count_received, on_lost=on_lost, **options)
        send, transport.send = transport.send, count_sent  # type: ignore[method-assign]
        return transport

    async def _close(self) -> None:
        for worker in self._workers:
            worker.close()
        for ticket in self._tickets:
            ticket.close()
        await asyncio.gather(*(node.close() for node in self.nodes))

    async def _whole(self, worker: Worker, task: Callable[[Worker], Awaitable[T]]) -> T:
        result = await task(worker)
        await worker.wait_sync()
        return result

    def _whole_blocking(self, ticket: Ticket, task: Callable[[BlockingWorker], T]) -> T:
        worker = BlockingWorker(ticket)
        try:
            result = task(worker)
            worker.wait_sync()
            return result
        finally:
            worker.close()

    def _vacancies(self) -> list[int]:
        """For each worker that is not there, its node."""
        taken = [ticket.node for ticket in self._tickets]
        slots = range(len(self.nodes))
        return [node for node in slots for _ in range(self._config.worker_count - taken.count(node))]

    def _index(self, table: str) -> int:
        return [t.name for t in self.tables].index(table)


async def _turn() -> None:
    """Lets the loop look at all descriptors once and handle what it found."""
    for _ in range(2):
        await asyncio.sleep(0)
