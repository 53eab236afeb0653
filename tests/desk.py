"""Nodes without processes, for tests of workers: real segments and lanes, whose frames are handed over by `turn`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import threading
from collections.abc import Iterator, Sequence

from adapm import Table, control
from adapm.config import Config
from adapm.control import Failed
from adapm.door import Ticket
from adapm.engine import Event, Lane
from adapm.errors import AdapmError
from adapm.segment import Segment
from adapm.stream import BlockingStream
from adapm.worker import BlockingWorker, Worker, _Core

HANGS = 60.0  # seconds, of which nothing here takes more than one


class Desk:
    """Some nodes, each with some places for workers; nothing moves but in `turn`.

    A row's home is drawn by hash: with two nodes and some rows, each worker finds some of them local and some not.
    """

    def __init__(self, tables: Sequence[Table], nodes: int = 2, workers: int = 1, heap_bytes: int = 1 << 16) -> None:
        self.tables = list(tables)
        self._undo = contextlib.ExitStack()
        self.segments: list[Segment] = []
        self.lanes: list[Lane] = []
        self.fds: list[list[int]] = []  # of each node: its own eventfd, then its workers'
        self.links: dict[tuple[int, int], socket.socket] = {}  # the nodes' ends of the workers' connections
        self.workers = workers
        self._arrived: list[tuple[int, int, int]] = []
        self._stale = 0  # nodes that do not yet have what is needed to release a barrier
        for node in range(nodes):
            self._open(node, nodes, heap_bytes)

    def _open(self, node: int, nodes: int, heap_bytes: int) -> None:
        segment = Segment.create(
            self.tables, node=node, nodes=nodes, workers=self.workers, seed=7, heap_bytes=heap_bytes
        )
        self._undo.callback(segment.close)
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(self.workers + 1)]
        for fd in fds:
            self._undo.callback(os.close, fd)
        lane = Lane(segment, fds[1:])
        self._undo.callback(lane.close)
        for index, table in enumerate(self.tables):
            lane.populate(index, table)
        self.segments.append(segment)
        self.lanes.append(lane)
        self.fds.append(fds)

    def worker(self, node: int = 0, slot: int = 0) -> Worker:
        return self._sit(Worker(self.ticket(node, slot)))

    def blocking_worker(self, node: int = 0, slot: int = 0) -> BlockingWorker:
        return self._sit(BlockingWorker(self.ticket(node, slot)))

    def _sit(self, worker: _Core) -> _Core:
        self._undo.callback(worker.close)
        return worker

    def ticket(self, node: int, slot: int) -> Ticket:
        ours, theirs = _connection()
        self.links[node, slot] = ours
        self._undo.callback(ours.close)
        ticket = Ticket(
            segment=Segment.attach(os.dup(self.segments[node].fd)),
            slot=slot,
            worker=node * self.workers + slot,
            node=node,
            num_nodes=len(self.lanes),
            num_workers=len(self.lanes) * self.workers,
            node_fd=os.dup(self.fds[node][0]),
            worker_fd=os.dup(self.fds[node][1 + slot]),
            tables=self.tables,
            config=Config(),
            seed=7,
            connection=theirs,
        )
        self._undo.callback(ticket.close)
        return ticket

    def turn(self) -> None:
        """Everything that is waiting at the nodes now is handled, and what it leads to."""
        busy = True
        while busy:
            busy = False
            for node, lane in enumerate(self.lanes):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.fds[node][0])
                lane.kicked()
                lane.serve()
                busy |= lane.tick(1.0)
                busy |= self._flush(node)
                busy |= not lane.rest()

    def _flush(self, node: int) -> bool:
        busy = False
        while (outgoing := self.lanes[node].take()) is not None:
            busy = True
            peer, frame = outgoing
            assert self.lanes[peer].receive(node, frame.view) == len(frame)
        for event, slot, op in self.lanes[node].events():
            busy = True
            self._on_event(node, event, slot, op)
        return busy

    def _on_event(self, node: int, event: Event, slot: int, op: int) -> None:
        if event is Event.BARRIER:
            self._arrived.append((node, slot, op))
            if len(self._arrived) == len(self.lanes) * self.workers:
                self._stale = len(self.lanes)
                for lane in self.lanes:
                    lane.fresh()
        elif event is Event.FRESH:
            self._stale -= 1
            while self._arrived and not self._stale:
                waiting, its_slot, its_op = self._arrived.pop()
                self.lanes[waiting].complete(its_slot, its_op)

    @contextlib.contextmanager
    def running(self, after: threading.Event | None = None) -> Iterator[None]:
        """Turns in a thread of its own meanwhile, whenever a worker kicks a node, but not before `after` is set."""
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        thread = threading.Thread(target=self._run, args=(stop, after), name="desk")
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(stop, 1)
            thread.join()
            os.close(stop)

    def _run(self, stop: int, after: threading.Event | None) -> None:
        if after is not None:
            after.wait(HANGS)
        poll = select.poll()
        for fd in (stop, *(fds[0] for fds in self.fds)):
            poll.register(fd, select.POLLIN)
        self.turn()  # only a node that has come to rest is kicked
        while not any(fd == stop for fd, _ in poll.poll()):
            self.turn()

    def lose(self, peer: int) -> None:
        """The other nodes learn that this one is gone."""
        for node, lane in enumerate(self.lanes):
            if node != peer:
                lane.peer_lost(peer)

    def fail(self, node: int, error: AdapmError) -> None:
        """The node says why it gives up, and gives up."""
        for (of, _), link in self.links.items():
            if of == node:
                link.sendall(control.encode_stream(Failed.of(error)))
        self.segments[node].fail(-errno.ESHUTDOWN, wake=self.fds[node][1:])

    def kill(self, node: int) -> None:
        """The node dies without a word."""
        for (of, _), link in self.links.items():
            if of == node:
                link.close()

    def close(self) -> None:
        self._undo.close()


def _connection() -> tuple[socket.socket, BlockingStream]:
    """Both ends of what a worker and its node say to each other, the node's first."""
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"adapm-desk-{secrets.token_hex(8)}"
        listener.bind(f"\0{name}")
        listener.listen()
        stream = BlockingStream()
        stream.connect(f"@{name}")
        return listener.accept()[0], stream
