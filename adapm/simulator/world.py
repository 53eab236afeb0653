"""One run in a virtual world: real nodes and workers, the network between them, and the watch over all of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
import socket
import stat
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from adapm.config import Config
from adapm.door import Ticket, knock, welcomed
from adapm.engine import Lane
from adapm.errors import AdapmError, InternalError
from adapm.kernel import lib
from adapm.node import Node
from adapm.simulator.actor import Actor
from adapm.simulator.choices import Choices
from adapm.simulator.history import History
from adapm.simulator.invariants import Row, Violation
from adapm.simulator.ledger import Int, Ledger
from adapm.simulator.loop import Owner, VirtualLoop, context_of
from adapm.simulator.network import Network
from adapm.simulator.staleness import Staleness
from adapm.simulator.watch import Watch
from adapm.tables import Table
from adapm.techniques import ADAPTIVE, Technique
from adapm.transport import OnFrame, OnLost
from adapm.transports.inproc import InprocTransport
from adapm.worker import Worker, forks_go_on_as

T = TypeVar("T")

HEAP = 1 << 17  # bytes per worker: more than its operations ever fill, because it cannot wait in a call
PATIENCE = 10.0  # virtual seconds until what should come to rest or to an end counts as not doing so
_LOOK = 0.002  # virtual seconds between looks whether it has

_PROCESS = 1  # the number of any worker's process: the real one would show in messages, whose length takes time
_KILLED_AT_STEPS = 5  # of a push, at which a worker can be cut off; see adapm_die_at in native/kernel.h
_KILLED_IN_ROWS = 4  # of it, at most: at any of them
WAYS_TO_DIE = _KILLED_AT_STEPS * _KILLED_IN_ROWS


@dataclass(frozen=True)
class Shape:
    """What a world consists of.

    Attributes:
        nodes, workers: how many nodes, and how many workers each has.
        tables: all tables, zeros at first.
        shared: numbers of those in which all workers write to one column.
        tick_rate: of the nodes.
        memory: of the nodes, bytes; None: enough.
        technique: how rows are managed.
    """

    nodes: int
    workers: int
    tables: tuple[Table, ...]
    shared: frozenset[int] = frozenset()
    tick_rate: int = 1000
    memory: int | None = None
    technique: Technique = ADAPTIVE


class World:
    """See above.  `async with World(...) as world` opens and closes it.

    Args:
        shape: what there is.
        loop: the running loop.
        choices: where everything is drawn from.

    Attributes:
        nodes: by id.
        actors: by worker id.
        network, watch, history, ledger: see their modules.
        lost: nodes that were killed.
        died: workers that were killed.
        faults: how often each fault has struck.
        struck: when the latest did, in virtual seconds.
    """

    def __init__(self, shape: Shape, loop: VirtualLoop, choices: Choices) -> None:
        self.shape = shape
        self.loop = loop
        self.nodes: list[Node] = []
        self.actors: list[Actor] = []
        self.lost: set[int] = set()
        self.died: set[int] = set()
        self.faults: Counter[str] = Counter()
        self.struck = 0.0
        self.history = History(loop.time)
        self.ledger = Ledger(shape.tables, shape.nodes * shape.workers)
        self._choices = choices
        self._lanes: list[Lane] = []
        self._disturbances: list[tuple[float, float]] = []
        self._held: Counter[Owner] = Counter()
        staleness = Staleness(loop.time, self._disturbed, lambda node, row: self._lanes[node].inspect(*row))
        cramped = shape.memory is not None
        books = self.ledger, self.history, staleness
        self.watch = Watch(shape.tables, self._lanes, *books, self.home_of, cramped, shape.technique)
        self.network = Network(loop, choices.stream("network"), self.watch)
        self._config = Config(
            nodes=shape.nodes,
            workers=str(shape.workers),
            transport="inproc",
            technique=shape.technique.name,
            tick_rate=shape.tick_rate,
            memory=shape.memory,
            heap=HEAP,
        )
        self._tickets: list[Ticket] = []
        self._performing: list[asyncio.Task[AdapmError | None]] = []
        self._ends: list[asyncio.Future[AdapmError | None]] = [
            loop.create_future() for _ in range(shape.nodes * shape.workers)
        ]

    def home_of(self, row: Row) -> int:
        """The row's home."""
        return lib.adapm_home_of(*row, self.shape.nodes)

    # ---- beginning and end

    async def __aenter__(self) -> World:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _open(self) -> None:
        address = await self._add(0).listen() or None
        self._config = dataclasses.replace(self._config, rendezvous=address)
        for node in range(1, self.shape.nodes):
            await self._add(node).listen()
        doors = await asyncio.gather(*(self._as(("node", node.id), self._join(node)) for node in self.nodes))
        for node, door in enumerate(doors):
            for slot in range(self.shape.workers):
                owner = "worker", node * self.shape.workers + slot
                self.actors.append(await self._as(owner, self._enter(door, slot)))

    def _add(self, number: int) -> Node:
        def make(on_frame: OnFrame, on_lost: OnLost) -> InprocTransport:
            return InprocTransport(number, on_frame=on_frame, on_lost=on_lost, network=self.network)

        owner = "node", number
        node = context_of(owner).run(Node, self._config, self.shape.tables, number, make, patience=0)
        self.nodes.append(node)
        self._lanes.append(node.lane)
        _after(node.lane, "serve", lambda: self._served(number))
        died = node._door._on_died
        node._door._on_died = lambda slot, _: died(slot, _PROCESS)
        return node

    async def _join(self, node: Node) -> str:
        await asyncio.sleep(self._choices.stream(f"start {node.id}").between(0, 1e-3))  # no two are alike
        return await node.join()

    async def _enter(self, door: str, slot: int) -> Actor:
        connection = knock(door, slot)
        await self.loop.readable(connection.fileno())
        ticket = welcomed(connection)
        self._tickets.append(ticket)
        worker = Worker(ticket)
        drawn = self._choices.stream(f"worker {worker.id}")
        tables, shared = self.shape.tables, self.shape.shared
        return Actor(worker, tables, shared, self.loop, self.ledger, self.watch, self.history, drawn)

    def _as(self, owner: Owner, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return context_of(owner).run(self.loop.create_task, coroutine)

    def _served(self, node: int) -> None:
        for actor in self.actors[node * self.shape.workers : (node + 1) * self.shape.workers]:
            actor.served()

    async def _close(self) -> None:
        """Gives everything back; for those that were killed, as their system would."""
        self.network.observer = None
        for node in self.lost:
            self.loop.bury(("node", node))
        for worker in self.died:
            self.loop.bury(("worker", worker))
        for actor in self.actors:
            actor.worker.close()
        for ticket in self._tickets:
            ticket.close()
        await asyncio.gather(*(self._as(("node", node.id), node.close()) for node in self.nodes))

    # ---- running

    async def run(self, task: Callable[[Actor], Awaitable[None]]) -> list[AdapmError | None]:
        """Runs the task as every worker; the errors that ended them."""
        for actor, end in zip(self.actors, self._ends, strict=True):
            performing = self._as(("worker", actor.id), self._perform(task, actor))
            performing.add_done_callback(functools.partial(_hand_on, end))
            self._performing.append(performing)  # that of a dead worker never ends, but must not vanish either
        return await asyncio.gather(*self._ends)

    async def _perform(self, task: Callable[[Actor], Awaitable[None]], actor: Actor) -> AdapmError | None:
        try:
            await task(actor)
        except AdapmError as error:
            self.history.add(type(error).__name__, actor.id)
            return error
        return None

    async def settle(self) -> None:
        """Returns when every node rests and nothing is under way.

        Raises:
            Violation: it does not come to rest.
        """
        await self._until(lambda: self.watch.quiet and all(node.resting for node in self.nodes), "come to rest")

    async def finish(self) -> None:
        """All workers are done; returns when all nodes know that the run is over."""
        for actor, ticket in zip(self.actors, self._tickets, strict=True):
            actor.worker.close()
            ticket.finished()
        await asyncio.wait_for(asyncio.gather(*(node.ended() for node in self.nodes)), PATIENCE)

    async def verdicts(self) -> list[AdapmError | None]:
        """How each node ended; None for those that were killed.

        Raises:
            Violation: one does not end, or another error than one of ours ends it.
        """
        endings = {node.id: self.loop.create_task(_ending(node)) for node in self.nodes if node.id not in self.lost}
        await self._until(lambda: all(ending.done() for ending in endings.values()), "end")
        return [endings[node].result() if node in endings else None for node in range(len(self.nodes))]

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.loop.time() + PATIENCE
        while not condition():
            if self.loop.time() > deadline:
                busy = [node.id for node in self.nodes if not node.resting]
                raise Violation(f"nodes {busy} do not {what} within {PATIENCE:g} virtual seconds")
            await asyncio.sleep(_LOOK)

    # ---- faults

    def disturb(self, name: str, a: int, b: int, seconds: float) -> None:
        """A fault strikes, for so long."""
        self.faults[name] += 1
        self.struck = self.loop.time()
        self.history.add(name, a, b, rows=None)
        self._disturbances.append((self.loop.time(), self.loop.time() + seconds))

    def hold(self, owner: Owner, seconds: float) -> None:
        """The owner gets no processor for so long."""
        self._held[owner] += 1
        self.loop.pause(owner)
        self.loop.call_later(seconds, self._let_go, owner)

    def _let_go(self, owner: Owner) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            self.loop.resume(owner)

    def _disturbed(self, since: float) -> float:
        """Seconds between then and now for which some fault was at work, or several."""
        now, total = self.loop.time(), 0.0
        for begin, end in sorted(self._disturbances):
            begin, end = max(begin, since), min(end, now)
            if begin < end:
                total, since = total + end - begin, end
        return total

    def kill_worker(self, number: int, way: int) -> None:
        """A worker ends without a word, if it can in a push of rows that are there: in one of WAYS_TO_DIE.

        The others at its node wait meanwhile, as they would for the lock that it holds.
        """
        self.watch.active = False
        self.died.add(number)
        actor, node = self.actors[number], number // self.shape.workers
        self.loop.kill(("worker", number))
        self._ends[number].set_result(None)
        for other in range(node * self.shape.workers, (node + 1) * self.shape.workers):
            if other != number:
                self.loop.pause(("worker", other))
        _die_in_push(actor, way)
        _hang_up(self._tickets[number].fileno())
        self.loop.create_task(self._wake_others(node))

    async def _wake_others(self, node: int) -> None:
        with contextlib.suppress(AdapmError):
            await self.nodes[node].ended()
        for other in range(node * self.shape.workers, (node + 1) * self.shape.workers):
            self.loop.resume(("worker", other))

    def kill_node(self, number: int, notice: list[float]) -> None:
        """A node ends without a word; each other node notices after so many seconds.

        Args:
            number: its id.
            notice: by node.
        """
        self.watch.active = False
        self.lost.add(number)
        for fd in self.loop.kill(("node", number)):
            _hang_up(fd)
        for peer, seconds in enumerate(notice):
            if peer != number:
                self.loop.call_later(seconds, self.network.lose, peer, number, "its process is gone")

    def cut(self, a: int, b: int, notice: tuple[float, float]) -> None:
        """The link between two nodes breaks; they notice after so many seconds."""
        self.watch.active = False
        self.loop.call_later(notice[0], self.network.lose, a, b, "the connection broke")
        self.loop.call_later(notice[1], self.network.lose, b, a, "the connection broke")


def _hand_on(end: asyncio.Future[T], task: asyncio.Future[T]) -> None:
    """Makes the end of the task that of the future, unless that has come already or is no longer waited for."""
    error = None if task.cancelled() else task.exception()
    if end.done():
        return
    if error is not None:
        end.set_exception(error)
    elif not task.cancelled():
        end.set_result(task.result())


async def _ending(node: Node) -> AdapmError | None:
    try:
        await node.ended()
    except AdapmError as error:
        return error
    return None


def _after(lane: Lane, method: str, then: Callable[[], None]) -> None:
    """Has something done after every call of the method: a lane tells nobody what it has taken from its workers."""
    call = getattr(lane, method)

    def called(*args: Any) -> Any:
        result = call(*args)
        then()
        return result

    setattr(lane, method, called)


def _die_in_push(actor: Actor, way: int) -> None:
    """A copy of this process is killed inside the kernel, as this worker, on the same segment."""
    for index, table in enumerate(actor.tables):
        local = np.flatnonzero(actor.worker.is_local(table.name, np.arange(table.rows)))
        if len(local):
            keys = local[:_KILLED_IN_ROWS].astype(np.int64)
            values = actor.last_push(index, keys)
            with forks_go_on_as(actor.worker):
                _in_a_copy(functools.partial(_push_and_die, actor.worker, table.name, keys, values, way))
            return


def _push_and_die(worker: Worker, table: str, keys: Int, values: Int, way: int) -> None:
    """A push that does not come to the step is complete when the worker dies."""
    after, step = divmod(way, _KILLED_AT_STEPS)
    lib.adapm_die_at(worker._handle, step + 1, after % len(keys))  # which users have no use for
    worker.push(table, keys, values.astype(np.float32))


def _in_a_copy(call: Callable[[], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the copy calls the kernel and dies
        pid = os.fork()
    if not pid:
        try:
            call()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise InternalError("a worker that was to die in a push did not come to it")


def _hang_up(fd: int) -> None:
    """Whoever is at the other end of this socket, if it is a connected one, finds that nobody is here any more."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock:
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sock.shutdown(socket.SHUT_RDWR)
