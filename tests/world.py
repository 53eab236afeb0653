"""A few lanes, their workers and the links between them, in one thread: every step is a call, nothing else happens.

It checks the invariants of docs/architecture.md after each step: one main copy, nothing lost or doubled, wants and
answers in pairs, holders known to owners, hints that lead to the owner. Rows have one integer per worker, so that a
lost, a doubled and an unseen update look different.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from adapm import Table, hot
from adapm.engine import Event, Lane
from adapm.kernel import check, ffi, lib
from adapm.segment import Segment
from adapm.simulator import invariants
from adapm.simulator.frames import Item, Type, items
from adapm.simulator.invariants import Moving, Row, Scene, Violation
from adapm.techniques import ADAPTIVE, Technique

PULL, PUSH, SET, SYNC = 1, 2, 3, 4

Rows = list[npt.NDArray[np.float32]]


@dataclass
class Operation:
    kind: int
    table: int
    keys: list[int]
    count: int = 0  # pushed to each key
    need: npt.NDArray[np.float32] | None = None  # pulls: own updates that must be seen
    least: Rows | None = None  # and main copies as they were, where copies may be too old
    served: bool = False


@dataclass
class WorldWorker:
    """One worker: a handle of the kernel, and what it knows to be true."""

    node: int
    slot: int
    id: int
    handle: object
    total: list[npt.NDArray[np.int64]]  # per table and row: pushed so far
    done: list[npt.NDArray[np.int64]]  # of these, known to be applied
    open: dict[int, Operation] = field(default_factory=dict)
    began: list[Rows] = field(
        default_factory=list
    )  # the main copies when each clock began, where it matters how old copies are


class World:
    full = False  # whether rows may stay remote because there is no room

    def __init__(
        self,
        nodes: int,
        workers_per_node: int = 1,
        rows: tuple[int, ...] = (3,),
        technique: Technique = ADAPTIVE,
        **lane_options: Any,
    ) -> None:
        count = nodes * workers_per_node
        self.technique = technique
        self.tables = [Table(f"t{i}", rows=n, dim=count, counts=np.arange(n, 0, -1)) for i, n in enumerate(rows)]
        self.row_len = [count] * len(rows)
        self.rows: list[Row] = [(t, r) for t, n in enumerate(rows) for r in range(n)]
        self.links: dict[tuple[int, int], deque[bytes]] = {p: deque() for p in product(range(nodes), repeat=2)}
        self.segments, self.lanes, self.workers, self._fds = [], [], [], []
        coming = 0
        for node in range(nodes):
            shape = {"node": node, "nodes": nodes, "workers": workers_per_node, "heap_bytes": 1 << 16}
            segment = Segment.create(self.tables, technique=technique, **shape)
            fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(workers_per_node + 1)]
            lane = Lane(segment, fds[1:], **lane_options)
            for index, table in enumerate(self.tables):
                lane.populate(index, table)
            kept = hot.everywhere(technique, self.tables)
            coming += sum(lane.keep(index, keys) for index, keys in enumerate(kept)) > 0
            self.segments.append(segment)
            self.lanes.append(lane)
            self._fds += fds
            for slot in range(workers_per_node):
                self._attach(node, slot, fds)
        self._await_copies(coming)

    def _await_copies(self, nodes: int) -> None:
        """As nodes do before they let workers in."""
        for _ in range(1000 if nodes else 0):
            for node, lane in enumerate(self.lanes):
                self.tick(node)
                nodes -= sum(event is Event.COPIED for event, *_ in lane.events())
            if not nodes:
                return
            for link, queue in self.links.items():
                while queue:
                    self.deliver(*link)
        if nodes:
            raise Violation(f"what is everywhere has not come to {nodes} nodes")

    def _attach(self, node: int, slot: int, fds: list[int]) -> None:
        error = ffi.new("int *")
        handle = lib.adapm_worker_attach(self.segments[node].pointer, slot, fds[0], fds[1 + slot], error)
        check(error[0])
        counts = [[np.zeros(t.rows, np.int64) for t in self.tables] for _ in range(2)]
        self.workers.append(WorldWorker(node, slot, len(self.workers), handle, *counts))

    def close(self) -> None:
        for worker in self.workers:
            lib.adapm_worker_detach(worker.handle)
        for lane in self.lanes:
            lane.close()
        for segment in self.segments:
            segment.close()
        for fd in self._fds:
            os.close(fd)

    # ---- steps

    def collect(self, node: int) -> bool:
        """Puts what the lane wants to send onto its links."""
        sent = False
        while (out := self.lanes[node].take()) is not None:
            peer, frame = out
            if peer == node:
                raise Violation(f"node {node} sends to itself")
            self.links[node, peer].append(bytes(frame.view))
            sent = True
        return sent

    def tick(self, node: int) -> bool:
        """True if it led to frames, or left work."""
        more = self.lanes[node].tick(1.0) > 0
        sent = self.collect(node)
        self.completions(node)
        return more or sent

    def serve(self, node: int) -> None:
        self.lanes[node].serve()
        for worker in self.workers:
            if worker.node == node:
                for operation in worker.open.values():
                    operation.served = True
        self.collect(node)
        self.completions(node)

    def deliver(self, a: int, b: int) -> None:
        frame = self.links[a, b].popleft()
        if self.lanes[b].receive(a, frame) != len(frame):
            raise Violation("a frame was not handled although nothing is locked")
        self.collect(b)
        self.completions(b)

    def completions(self, node: int) -> None:
        op, status, detail = ffi.new("uint32_t *"), ffi.new("int32_t *"), ffi.new("uint64_t *")
        for worker in self.workers:
            while worker.node == node and lib.adapm_completed(worker.handle, op, status, detail):
                check(status[0])
                self._completed(worker, op[0], worker.open.pop(op[0]))

    def _completed(self, worker: WorldWorker, op: int, operation: Operation) -> None:
        if operation.kind != PULL:
            lib.adapm_collect(worker.handle, op, ffi.NULL, ffi.NULL)
            np.add.at(worker.done[operation.table], operation.keys, operation.count)
            return
        out = np.empty((len(operation.keys), self.row_len[operation.table]), np.float32)
        lib.adapm_collect(worker.handle, op, ffi.from_buffer("float[]", out), ffi.NULL)
        for i, key in enumerate(operation.keys):
            self._seen(worker, operation.table, key, out[i], operation.need[i])
            self._young(worker, operation.table, key, out[i], operation.least)

    def _young(
        self, worker: WorldWorker, table: int, key: int, row: npt.NDArray[np.float32], main: Rows | None
    ) -> None:
        if main is not None and (row < main[table][key]).any():
            raise Violation(f"worker {worker.id} sees {row} of {(table, key)}, which is too old for {main[table][key]}")

    def _seen(self, worker: WorldWorker, table: int, key: int, row: npt.NDArray[np.float32], need: float) -> None:
        mine = row[worker.id]
        if mine < need:
            raise Violation(f"worker {worker.id} sees {mine} of its own {need} updates of {(table, key)}")
        for other in self.workers:
            if row[other.id] > other.total[table][key]:
                raise Violation(f"{(table, key)} has {row[other.id]} updates of worker {other.id}: too many")

    def intent(self, worker: WorldWorker, table: int, keys: list[int], start: int, length: int) -> None:
        array = np.array(keys, np.int64)
        pointer = ffi.from_buffer("int64_t[]", array)
        if lib.adapm_intent(worker.handle, table, pointer, len(keys), start, start + length) != len(keys):
            raise Violation("the intent ring is full")

    def clock(self, worker: WorldWorker) -> int:
        return lib.adapm_clock(worker.handle)

    def advance(self, worker: WorldWorker) -> None:
        worker.began.append(self._main_copies())
        lib.adapm_advance_clock(worker.handle)

    def _main_copies(self) -> Rows:
        """By table, where the technique bounds how old copies may be: then rows stay at their homes."""
        if self.technique.bound is None:
            return []
        homes = [[lib.adapm_home_of(t, r, len(self.lanes)) for r in range(n.rows)] for t, n in enumerate(self.tables)]
        return [
            np.stack([self.lanes[home].inspect(t, r).value for r, home in enumerate(nodes)])
            for t, nodes in enumerate(homes)
        ]

    def _least(self, worker: WorldWorker) -> Rows | None:
        """What a pull of the worker has to see, by table: the main copies as they were `bound` clocks ago."""
        bound = self.technique.bound
        clock = 0 if bound is None else self.clock(worker) - bound
        return worker.began[clock - 1] if clock > 0 else None

    def push(self, worker: WorldWorker, table: int, keys: list[int]) -> None:
        values = np.zeros((len(keys), self.row_len[table]), np.float32)
        values[:, worker.id] = 1
        np.add.at(worker.total[table], keys, 1)
        array, miss = np.array(keys, np.int64), np.empty(len(keys), np.uint32)
        pointers = (ffi.from_buffer("int64_t[]", array), len(keys), ffi.from_buffer("float[]", values))
        missed = lib.adapm_push(
            worker.handle, table, 0, self.row_len[table], *pointers, ffi.from_buffer("uint32_t[]", miss)
        )
        np.add.at(worker.done[table], np.delete(array, miss[:missed]), 1)
        if missed:
            rest = [keys[i] for i in miss[:missed]]
            self._post(worker, Operation(PUSH, table, rest, count=1), values)

    def pull(self, worker: WorldWorker, table: int, keys: list[int]) -> None:
        out = np.empty((len(keys), self.row_len[table]), np.float32)
        array, miss = np.array(keys, np.int64), np.empty(len(keys), np.uint32)
        need, least = worker.done[table][array].astype(np.float32), self._least(worker)
        pointers = (ffi.from_buffer("int64_t[]", array), len(keys), ffi.from_buffer("float[]", out))
        missed = lib.adapm_pull(
            worker.handle, table, 0, self.row_len[table], *pointers, ffi.from_buffer("uint32_t[]", miss)
        )
        for i in np.setdiff1d(np.arange(len(keys)), miss[:missed]):
            self._seen(worker, table, keys[i], out[i], need[i])
            self._young(worker, table, keys[i], out[i], least)
        if missed:
            rest = [keys[i] for i in miss[:missed]]
            self._post(worker, Operation(PULL, table, rest, need=need[miss[:missed]], least=least), None)

    def sync(self, worker: WorldWorker) -> None:
        self._post(worker, Operation(SYNC, 0, []), None)

    def _post(self, worker: WorldWorker, operation: Operation, values: npt.NDArray[np.float32] | None) -> None:
        keys, op = np.array(operation.keys, np.int64), ffi.new("uint32_t *")
        pointers = (
            ffi.from_buffer("int64_t[]", keys) if len(keys) else ffi.NULL,
            ffi.NULL,
            len(keys),
            ffi.NULL if values is None else ffi.from_buffer("float[]", values),
        )
        columns = (0, self.row_len[operation.table] if len(keys) else 0)
        posted = lib.adapm_post(worker.handle, operation.kind, operation.table, *columns, *pointers, op)
        if posted != max(1, len(keys)):
            raise Violation(f"{posted} of {len(keys)} keys were posted")
        worker.open[op[0]] = operation

    # ---- invariants

    def scene(self, row: Row, moving: list[Moving] | None = None) -> Scene:
        """All there is of one row; moving: `under_way`, if it is known already."""
        moving = self.under_way() if moving is None else moving
        views = [lane.inspect(*row) for lane in self.lanes]
        of_row = [m for m in moving if _is_of(m.item, row)]
        return Scene(row, self.row_len[row[0]], views, of_row, self.full, self.technique)

    def under_way(self) -> list[Moving]:
        return [
            Moving(a, b, item)
            for (a, b), link in self.links.items()
            for frame in link
            for item in items(frame, self.row_len)
        ]

    def check(self) -> None:
        """Everything that holds at any moment (docs/architecture.md, invariants)."""
        for lane in self.lanes:
            lane.validate()
        moving = self.under_way()
        for row in self.rows:
            scene = self.scene(row, moving)
            owner = invariants.one_main_copy(scene)
            self._nothing_lost(scene)
            invariants.wants_in_pairs(scene)
            invariants.hints_lead_to(owner, scene)
            invariants.holders_known(scene)

    def _nothing_lost(self, scene: Scene) -> None:
        table, key = scene.row
        found = invariants.sum_of_updates(scene)
        for worker in self.workers:
            for operation in worker.open.values():
                if operation.kind == PUSH and operation.table == table and not operation.served:
                    found[worker.id] += operation.keys.count(key)
            made = worker.total[table][key]
            if found[worker.id] != made:
                raise Violation(f"{scene.row}: {found[worker.id]} updates of worker {worker.id} found, {made} made")

    # ---- coming to rest

    def drain(self, limit: int = 4000) -> None:
        """Delivers, serves and ticks until nothing changes."""
        for _ in range(limit):
            busy = False
            for a, b in self.links:
                while self.links[a, b]:
                    self.deliver(a, b)
                    busy = True
            for node in range(len(self.lanes)):
                self.serve(node)
                busy |= self.tick(node)
                busy |= not self.lanes[node].rest()
                self.lanes[node].kicked()
            if not busy and not any(self.links.values()):
                return
        raise Violation("the world does not come to rest")

    def check_rest(self) -> None:
        """What must hold when nothing is under way and no tick is due."""
        self.check()
        for worker in self.workers:
            if worker.open:
                raise Violation(f"worker {worker.id} still waits for {worker.open}")
        for row in self.rows:
            invariants.at_rest(self.scene(row), lib.adapm_home_of(*row, len(self.lanes)))


def _is_of(item: Item, row: Row) -> bool:
    return (item.table, item.row) == row and item.type not in (Type.ANSWER, Type.ACK)
