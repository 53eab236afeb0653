"""The node: the asyncio shell around a lane engine.

It owns the segment, the transport, the door and the ticks, and decides nothing about rows.  Whatever happens is one of
these, and ends with the frames it caused being sent:

    a worker wrote the eventfd   -> the lane serves requests
    a frame came                 -> the lane receives it, or it is a control message
    the pulse beats              -> the lane ticks
    a worker is done, or died    -> the door says so

Nodes are values: any number of them can live in one process and one loop, whose clock is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from adapm import control, hot, memory, network, techniques
from adapm.config import Config
from adapm.control import Admitted, Arrive, Awaited, Bye, End, Failed, Finished, Join, Message, Ran, Release, Welcome
from adapm.door import Door
from adapm.engine import SIGHT_SECONDS, Event, Frame, Lane, Pace
from adapm.engine import Wait as LaneWait
from adapm.errors import (
    AdapmError,
    Closed,
    InternalError,
    NodeLost,
    PeerLost,
    ProtocolError,
    RendezvousError,
    TransportError,
    WorkerDied,
)
from adapm.gathering import Barriers, Coordinator
from adapm.meeting import Meeting, Messages
from adapm.patience import Patience, Wait
from adapm.pulse import Pulse
from adapm.segment import Segment, capacities, needed_bytes
from adapm.tables import Table
from adapm.tracing import Tracer
from adapm.transport import Drive, Engine, OnFrame, OnLost, Transport, kind_of

log = logging.getLogger(__name__)

PATIENCE: Final = 3.0  # seconds after which a wait is explained in the log; at the latest it takes twice as long
_LINGER: Final = 2.0  # seconds in which peers get the rest when all went well
_LAST_WORDS: Final = 0.5  # seconds in which they hear why it did not: who cannot be reached need not hold us up
_OPERATIONS: Final = {1: "a pull from", 2: "a push to", 3: "a set of", 4: "wait_sync", 5: "a barrier"}
ALLOWANCE: Final = 256 << 20  # bytes that may wait for a peer besides what workers have asked for
CHECK: Final = 16 << 20  # bytes that are sent before somebody looks how much waits

MakeTransport = Callable[[OnFrame, OnLost], Transport]


class Node:
    """One node of a run: `listen`, `join`, `ended`, and `close` at any time.

    Args:
        config: the node's settings.
        tables: all tables, in the order that numbers them.
        node: its id, 0 to config.nodes - 1.
        make_transport: makes the transport that will call these two callbacks; None: the one that config names.
        patience: seconds between two looks at who waits for whom, None for `PATIENCE`, 0: never.
    """

    def __init__(
        self,
        config: Config,
        tables: Sequence[Table],
        node: int,
        make_transport: MakeTransport | None = None,
        *,
        patience: float | None = None,
    ) -> None:
        self.id = node
        self._config = config
        self._tables = list(tables)
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            self._store = stack.enter_context(contextlib.closing(_Store(config, tables, node)))
            make = make_transport or self._configured_transport
            self._transport = make(self._on_frame, self._on_lost) if config.nodes > 1 else None
            stack.pop_all()  # from now on it is close() that closes it
        self._door = Door(
            (self._store.segment.fd, self._store.node_fd),
            self._store.worker_fds,
            admission=self._admission,
            on_done=self._on_done,
            on_died=self._on_died,
        )
        self._meeting = Meeting(config, tables, node, self._transport, self._say)
        self._welcome = Welcome([""], [config.worker_count])  # until we know better
        self._filling: asyncio.Future[None] | None = None
        self._pulse = Pulse(self._loop, config.tick_rate, self._on_tick)
        self._backlog: dict[int, _Backlog] = {}  # of each peer, from the frame that met a locked row on
        self._refused: set[int] = set()  # who broke the protocol
        self._allowance = 0  # bytes that may wait here from one peer, or for it; known after `join`
        self._unchecked = 0  # bytes sent since somebody looked whether more waits
        self._barriers = Barriers(config.worker_count, lambda message: self._say(0, message))
        self._coordinator = Coordinator(config.nodes, self._say_all)
        self._patience = Patience(self._loop, PATIENCE if patience is None else patience, self._waits, self._tell)
        self._roll_call: asyncio.TimerHandle | None = None  # until all workers have entered
        self._drive: Drive | None = None
        self._copied: asyncio.Future[None] = self._loop.create_future()  # what is everywhere is here, too
        self._departed: set[int] = set()  # nodes that said goodbye
        self._opened, self._cpu_ns = self._loop.time(), time.process_time_ns()  # when workers were let in
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        self._guard = _Guard(self)

    @property
    def lane(self) -> Lane:
        """The engine, for tests and tools that look into it; events are for the node to handle."""
        return self._store.lane

    @property
    def first_worker(self) -> int:
        """The global id of the worker in slot 0; known after `join`."""
        return sum(self._welcome.workers[: self.id])

    def ran(self) -> Ran:
        """What was counted since workers were let in, and how long that was."""
        segment = self._store.segment
        counted = segment.statistics()
        counters = [segment.worker_statistics(slot) for slot in range(self._config.worker_count)]
        return Ran(
            microseconds=round((self._loop.time() - self._opened) * 1e6),
            peak_memory=memory.peak(),
            node=list(dataclasses.astuple(dataclasses.replace(counted, cpu_ns=time.process_time_ns() - self._cpu_ns))),
            workers=[list(dataclasses.astuple(counter)) for counter in counters],
        )

    @property
    def resting(self) -> bool:
        """Whether nothing is to be done until a worker or another node does something."""
        return self._pulse.resting

    async def rest(self) -> None:
        """Returns as soon as the node is resting."""
        await self._pulse.rest()

    # ---- its life

    async def listen(self) -> str:
        """Lets other nodes connect; returns the address, for node 0 the rendezvous ("" if there are no others).

        Raises:
            AddressInUse, TransportError: the transport cannot listen there.
        """
        self._patience.wake()
        return await self._meeting.listen()

    async def join(self) -> str:
        """Meets the other nodes at config.rendezvous, fills the rows at home here, and lets workers in.

        Returns:
            The door's address.

        Raises:
            RendezvousError: the nodes did not come together.
            OutOfMemory: the tables do not fit.
            AdapmError: the run failed meanwhile.
        """
        joining = self._loop.create_task(self._join())
        either: set[asyncio.Future[Any]] = {joining, self._end}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not joining.done():
                joining.cancel()
                await asyncio.wait({joining})
        if self._end.done():
            self._end.result()
        try:
            return joining.result()
        except AdapmError as error:
            self.fail(error)
            raise

    async def ended(self) -> None:
        """Returns when all workers of all nodes are finished.

        Raises:
            AdapmError: why the run failed.
        """
        await asyncio.shield(self._end)

    def fail(self, error: AdapmError) -> None:
        """Ends the run for this reason: workers and the other nodes are told. Only the first reason counts."""
        if self._end.done():
            return
        log.info("node %d fails: %s", self.id, error)
        self._end.set_exception(error)
        self._end.exception()  # it counts as seen, even if nobody waits
        self._door.fail(error)  # before the workers wake up and ask
        self._store.fail()
        self._say_others(Failed.of(error))

    async def close(self) -> None:
        """Ends everything this node started and frees what it holds; a run that has not ended fails with Closed."""
        if self._closed:
            return
        self.fail(Closed(f"node {self.id} was closed before the run had ended"))
        self._say_others(Bye())
        self._closed = True
        self._loop.remove_reader(self._store.node_fd)
        self._pulse.stop()
        self._patience.stop()
        self._end_roll_call()
        if self._transport is not None:
            await self._transport.close(_LINGER if self._end.exception() is None else _LAST_WORDS)
        await self._door.close()
        if self._filling is not None:
            await asyncio.wait({self._filling})
        self._store.close()

    # ---- coming together

    async def _join(self) -> str:
        self._welcome = await self._meeting.meet()
        self._allowance = ALLOWANCE + 2 * sum(self._welcome.workers) * self._config.heap
        self._filling = self._loop.run_in_executor(None, self._store.fill, self._tables)
        await asyncio.shield(self._filling)  # the thread cannot be stopped; close() waits for it
        if self._transport is not None:
            self._drive = self._transport.drive(
                Engine(self.lane.addresses(), self._on_handled, self._on_refused, self._allowance)
            )
        await self._meeting.link(self._welcome)
        self._count_links()
        self._loop.add_reader(self._store.node_fd, self._on_kick)
        self._pulse.quicken()  # the first rest arms the kicks
        if self._store.copies:
            await self._copied
        self._opened, self._cpu_ns = self._loop.time(), time.process_time_ns()
        self._roll_call = self._loop.call_later(self._config.startup_timeout, self._call_roll)
        return await self._door.open()

    def _call_roll(self) -> None:
        seconds = self._config.startup_timeout
        self.fail(
            RendezvousError(
                f"{self._workers(self._door.vacant)} did not enter within startup_timeout={seconds:g} seconds: they"
                " still import the script, hang there, or were not started; raise startup_timeout if they need longer"
            )
        )

    def _end_roll_call(self) -> None:
        if self._roll_call is not None:
            self._roll_call.cancel()
            self._roll_call = None

    def _count_links(self) -> None:
        if self._transport is not None:
            lanes = [self._transport.lanes(peer) for peer in range(self._config.nodes) if peer != self.id]
            self.lane.count_links([kind for link in lanes for kind in {kind_of(lane) for lane in link}])

    def _configured_transport(self, on_frame: OnFrame, on_lost: OnLost) -> Transport:
        longest = max(self.lane.frame_limit, control.MAX_FRAME)
        return network.configured(self._config, self.id, on_frame=on_frame, on_lost=on_lost, max_frame=longest)

    def _admission(self, slot: int) -> Admitted:
        if not self._door.vacant:
            self._end_roll_call()
        return Admitted(
            slot=slot,
            worker=self.first_worker + slot,
            node=self.id,
            num_nodes=self._config.nodes,
            num_workers=sum(self._welcome.workers),
            seed=self._config.seed,
            tables=[table.pack(arrays=False) for table in self._tables],
            config=self._config.as_dict(),
        )

    # ---- what happens

    def _on_kick(self) -> None:
        with self._guard:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._store.node_fd)
            self.lane.kicked()
            self.lane.serve()
            self._carry_out()
            self._patience.wake()

    def _on_tick(self, elapsed: float) -> int | None:
        with self._guard:
            gap = self.lane.tick(elapsed)
            blocked = self._catch_up() | self.lane.serve()
            if (self._flush() and not gap) or blocked:
                gap = 1
            if gap or not self.lane.rest():
                return gap
        return None

    def _on_frame(self, peer: int, frame: memoryview) -> None:
        with self._guard:
            if peer in self._refused:
                return
            try:
                if control.is_control(frame):
                    self._hear(peer, control.decode_frame(frame))
                else:
                    self._receive(peer, frame)
                    self._carry_out()
            except ProtocolError as error:
                self._refuse(peer, error)

    def _on_handled(self, blocked: bool) -> None:
        with self._guard:
            self._carry_out()
            if blocked:
                self._pulse.quicken()  # the lane does not know that it is to go on

    def _on_refused(self, peer: int, length: int) -> None:
        with self._guard:
            self._refuse(peer, self.lane.refusal(peer, length))

    def _refuse(self, peer: int, error: ProtocolError) -> None:
        """Hears nothing more from a node that broke the protocol; without a member of the run, the run is over."""
        self._refused.add(peer)
        self._backlog.pop(peer, None)
        log.warning("node %d drops node %d, the %d. of those it had to: %s", self.id, peer, len(self._refused), error)
        if not self._meeting.is_stranger(peer):
            raise ProtocolError(f"node {self.id} dropped node {peer}: {error}") from error

    def _on_lost(self, peer: int, error: TransportError) -> None:
        if peer in self._departed or self._meeting.is_stranger(peer) or self._end.done():
            return
        with self._guard:
            self._backlog.pop(peer, None)
            self.lane.peer_lost(peer)
            self._flush()
        why = str(error).removeprefix(f"node {peer} is lost: ")
        # Where one connection of many broke, either end is lost to the other: others are to know whose word it is.
        self.fail(NodeLost(f"node {peer} is lost to node {self.id}: {why}; rows it held are gone", node=peer))

    def _on_done(self, slot: int, error: str | None) -> None:
        with self._guard:
            self.lane.worker_gone(slot)
            if error is not None:
                raise WorkerDied(f"{self._name(slot)} raised {error}", worker=self.first_worker + slot, node=self.id)
            self._barriers.finish(slot)
            self._carry_out()

    def _on_died(self, slot: int, pid: int) -> None:
        with self._guard:
            self.lane.worker_gone(slot)
            message = f"{self._name(slot)}, process {pid}, died without a word"
            raise WorkerDied(message, worker=self.first_worker + slot, node=self.id, pid=pid)

    # ---- rows

    def _carry_out(self) -> None:
        """What follows from everything that happened, but from a tick."""
        self._flush()
        if not self.lane.rest() if self._pulse.resting else self.lane.urgent:
            self._pulse.quicken()

    def _receive(self, peer: int, frame: memoryview) -> None:
        if peer in self._backlog:  # frames stay in order
            self._keep(self._backlog[peer], frame, 0)
            return
        if self._filling is None or not self._filling.done():
            raise ProtocolError(f"node {peer} sent rows before this node had its own")
        handled = self.lane.receive(peer, frame)
        if handled < len(frame):
            self._keep(self._backlog.setdefault(peer, _Backlog(peer)), frame, handled)
            self._pulse.quicken()  # the lane does not know that it is to go on

    def _keep(self, backlog: _Backlog, frame: memoryview, handled: int) -> None:
        backlog.frames.append((memoryview(bytes(frame)), handled))
        backlog.bytes += len(frame)
        if backlog.bytes > self._allowance:
            raise ProtocolError(
                f"it goes on sending while a row that it sent something for is locked: {backlog.bytes:,} bytes wait"
            )

    def _catch_up(self) -> bool:
        """Handles frames that had to wait; returns whether some still do."""
        for backlog in list(self._backlog.values()):
            try:
                if self._handle(backlog):
                    del self._backlog[backlog.peer]
            except ProtocolError as error:
                self._refuse(backlog.peer, error)
        driven = self._drive is not None and self._drive.catch_up()
        return bool(self._backlog) or driven

    def _handle(self, backlog: _Backlog) -> bool:
        while backlog.frames:
            frame, offset = backlog.frames.popleft()
            offset += self.lane.receive(backlog.peer, frame, offset)
            if offset < len(frame):
                backlog.frames.appendleft((frame, offset))
                return False
            backlog.bytes -= len(frame)
        return True

    def _flush(self) -> bool:
        """Handles the lane's events and sends its frames; returns whether there were any."""
        any_ = False
        for kind, slot, op in self.lane.events():
            any_ = True
            self._on_event(kind, slot, op)
        if self._drive is not None:
            return self._flush_driven(self._drive) or any_
        while (outgoing := self.lane.take()) is not None:
            any_ = True
            peer, frame = outgoing
            self._send(peer, frame.view, frame)
        return any_

    def _flush_driven(self, drive: Drive) -> bool:
        try:
            sent = drive.flush()
        except PeerLost as error:
            if error.node is None:
                raise
            self._on_lost(error.node, error)
            return True
        self._has_sent(sent)
        return sent > 0

    def _on_event(self, kind: Event, slot: int, op: int) -> None:
        if kind is Event.BARRIER:
            self._barriers.arrive(slot, op)
        elif kind is Event.FRESH:
            for waiting, its_op in self._barriers.end():
                self.lane.complete(waiting, its_op)
        elif kind is Event.COPIED:
            self._copied.set_result(None)
        elif kind is Event.TRACE:
            self._store.drain_trace()
        else:
            log.warning("node %d has no room for more rows: some stay remote (see the setting `memory`)", self.id)

    # ---- other nodes

    def _hear(self, peer: int, message: Message) -> None:
        """Handles what a node says, this one included."""
        if self._meeting.is_stranger(peer) and not isinstance(message, (Join, Failed, Bye)):
            raise ProtocolError(f"node {peer} sent {type(message).__name__} to node {self.id} before it had joined")
        if isinstance(message, Messages):
            self._meeting.hear(peer, message)
        elif isinstance(message, Arrive) and self.id == 0:
            self._coordinator.arrive(peer, message.epoch)
            self._patience.wake()
        elif isinstance(message, Finished) and self.id == 0:
            self._coordinator.finish(peer)
        elif isinstance(message, Release) and peer == 0:
            self._on_release(message.epoch)
        elif isinstance(message, End) and peer == 0:
            self._on_end()
        elif isinstance(message, Awaited) and peer == 0:
            log.warning("node %d: %s", self.id, self._who_is_awaited(message.nodes))
        elif isinstance(message, Failed):
            if not self._meeting.is_stranger(peer):
                self.fail(message.rebuild())
        elif isinstance(message, Bye):
            self._on_bye(peer)
        else:
            raise ProtocolError(f"node {peer} sent {type(message).__name__} to node {self.id}")

    def _on_bye(self, peer: int) -> None:
        # Others may hear of the end from node 0 only after this; but node 0 ends it, and says so first, to itself last.
        over = self._end.done() or self._coordinator.over
        if 0 in (peer, self.id) and not over and not self._meeting.is_stranger(peer):
            raise ProtocolError(f"node {peer} said goodbye before the run had ended")
        self._departed.add(peer)

    def _on_release(self, epoch: int) -> None:
        if self._barriers.release(epoch):
            self.lane.fresh()
            self._carry_out()

    def _on_end(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    def _say(self, peer: int, message: Message) -> None:
        if peer == self.id:
            self._loop.call_soon(self._hear_self, message)
        else:
            self._send(peer, memoryview(control.encode_frame(message)))

    def _hear_self(self, message: Message) -> None:
        if not self._closed:
            with self._guard:
                self._hear(self.id, message)

    def _say_all(self, message: Message) -> None:
        for peer in range(self._config.nodes):
            self._say(peer, message)

    def _say_others(self, message: Message) -> None:
        for peer in range(self._config.nodes):
            if peer != self.id:
                self._say(peer, message)

    def _send(self, peer: int, frame: memoryview, release: Frame | None = None) -> None:
        assert self._transport is not None
        try:
            self._transport.send(peer, frame, release)
        except PeerLost as error:
            self._on_lost(peer, error)
        self._has_sent(frame.nbytes)

    def _has_sent(self, size: int) -> None:
        self._unchecked += size
        if self._unchecked > CHECK:
            self._check_queues()

    def _check_queues(self) -> None:
        """Gives up who takes too little of what it gets: more than all workers together may have asked for waits."""
        assert self._transport is not None
        self._unchecked = 0
        for peer in range(self._config.nodes):
            waits = self._transport.queued(peer)
            if waits > self._allowance and self._allowance:
                why = f"it takes nothing of what it asked for: {waits:,} bytes wait, {self._allowance:,} may"
                self._on_lost(peer, PeerLost(why, node=peer))

    # ---- explaining waits

    def _tell(self, explanation: str, seconds: float) -> None:
        log.warning("node %d: %s; that has lasted for %g s or longer", self.id, explanation, seconds)

    def _waits(self) -> Iterator[Wait]:
        """All that somebody waits for, and that this node knows of."""
        if self._end.done():
            return
        yield from self._meeting.waits()
        if self._store.copies and not self._copied.done():
            yield Wait("copies", lambda: f"not all of {self._store.copies:,} rows that are to be here have come")
        if self._roll_call is not None and self._door.vacant:
            yield Wait("workers", lambda: f"{self._workers(self._door.vacant)} have not entered")
        if self._barriers.waiting and self._barriers.missing:
            where = "have not come to a barrier at which others of this node wait"
            missing = self._workers(self._barriers.missing)
            yield Wait(("here", self._barriers.epoch), lambda: f"{missing} {where}")
        if self.id == 0 and self._coordinator.missing:
            yield Wait(("barrier", self._coordinator.epoch), self._tell_who_is_awaited)
        for wait in self.lane.waits(self._config.nodes):
            if wait.nodes or wait.kind <= 4:  # without nodes, a barrier waits for arrivals, which are told of above
                yield Wait(wait.serial, partial(self._operation, wait))

    def _tell_who_is_awaited(self) -> str:
        """Says it to the other nodes, too: only node 0 knows."""
        nodes = self._coordinator.missing
        self._say_others(Awaited(nodes))
        return self._who_is_awaited(nodes)

    def _who_is_awaited(self, nodes: list[int]) -> str:
        if self.id in nodes:
            return f"a barrier waits for nodes {nodes}, and here for {self._workers(self._barriers.missing)}"
        return f"a barrier waits for workers of nodes {nodes}"

    def _operation(self, wait: LaneWait) -> str:
        """What an operation of a worker waits for."""
        name = _OPERATIONS[wait.kind]
        if wait.kind <= 3:
            name += f" table {self._tables[wait.table].name!r}"
        if wait.answers:
            return f"{self._name(wait.slot)} waits in {name} for answers of nodes {list(wait.nodes)}"
        if not wait.nodes:
            return f"{self._name(wait.slot)} waits in {name} until its intents that are due have been acted on"
        rows = ", ".join(
            f"{count} rows on their way here" if node == self.id else f"{count} rows at node {node}"
            for node, count in wait.nodes.items()
        )
        return f"{self._name(wait.slot)} waits in {name} for {rows}"

    def _workers(self, slots: Sequence[int]) -> str:
        return f"workers {[self.first_worker + slot for slot in slots]} of node {self.id}"

    def _name(self, slot: int) -> str:
        return f"worker {self.first_worker + slot} (slot {slot} of node {self.id})"


class _Guard:
    """Makes any exception in a callback the end of the run: the loop would only log it, and everyone would wait."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> bool:
        if isinstance(error, AdapmError):
            self._node.fail(error)
        elif isinstance(error, Exception):
            name = f"node {self._node.id}"
            log.error("%s met a bug", name, exc_info=error)
            self._node.fail(InternalError(f"{name} met a bug: {error!r}; its log has the traceback"))
        else:
            return False
        return True


class _Store:
    """A node's rows: the segment, the eventfds that workers and node wake each other with, the lane."""

    def __init__(self, config: Config, tables: Sequence[Table], node: int) -> None:
        capacity = None if config.memory is None else capacities(tables, config.nodes, config.memory)
        technique = techniques.named(config.technique)
        self._kept = hot.everywhere(technique, tables)
        self.copies = 0  # of rows that are everywhere, known when it is filled
        needed = needed_bytes(tables, config.nodes, config.worker_count, config.heap, capacity)
        hot.require_room(self._kept, tables, config.nodes, needed, capacity)
        with contextlib.ExitStack() as stack:
            self.node_fd = _eventfd(stack)
            self.worker_fds = [_eventfd(stack) for _ in range(config.worker_count)]
            self.segment = Segment.create(
                tables,
                node=node,
                nodes=config.nodes,
                workers=config.worker_count,
                seed=config.seed,
                heap_bytes=config.heap,
                capacity=capacity,
                technique=technique,
            )
            stack.callback(self.segment.close)
            rate = config.tick_rate
            self.lane = Lane(
                self.segment, self.worker_fds, pace=Pace.at(rate), sight=SIGHT_SECONDS * rate, tick_us=1e6 / rate
            )
            stack.callback(self.lane.close)
            self._tracer = None if config.trace is None else Tracer(config, tables, node, self.lane)
            if self._tracer is not None:
                stack.callback(self._tracer.close)
            self._undo = stack.pop_all()

    def fill(self, tables: Sequence[Table]) -> None:
        """Takes the rows at home here, gives them their initial values, and asks for those that are everywhere."""
        for index, table in enumerate(tables):
            self.lane.populate(index, table)
        for index, keys in enumerate(self._kept):
            self.copies += self.lane.keep(index, keys)

    def drain_trace(self) -> None:
        """Writes what the lane has traced."""
        if self._tracer is not None:
            self._tracer.drain()

    def fail(self) -> None:
        """Ends all waits of workers."""
        self.segment.fail(-errno.ESHUTDOWN, wake=self.worker_fds)

    def close(self) -> None:
        self._undo.close()


def _eventfd(stack: contextlib.ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


@dataclasses.dataclass
class _Backlog:
    """Frames of one peer, each with how much of it is handled, that wait until a row is unlocked."""

    peer: int
    frames: deque[tuple[memoryview, int]] = dataclasses.field(default_factory=deque)
    bytes: int = 0
