"""The shared segment: created by a node, attached by its workers.

It lives in an anonymous file (memfd): there is no name to clean up, and the memory is gone with the last process that
maps it, however that process ended.  Everything but the rows is backed with memory at once; rows get theirs as the node
takes slots.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from adapm import memory
from adapm.errors import OutOfMemory
from adapm.kernel import check, ffi, lib
from adapm.statistics import COUNTERS, NodeStatistics, WorkerStatistics
from adapm.tables import Table
from adapm.techniques import ADAPTIVE, Intents, Technique

_FLOAT = 4  # bytes
_LINE = 64  # bytes; rows begin at multiples of it


class Segment:
    """One process's mapping of the segment, and the file behind it.

    Attributes:
        fd: the file's descriptor; it belongs to this object.
        pointer: the kernel's handle.
    """

    def __init__(self, fd: int, pointer: Any) -> None:
        self.fd = fd
        self.pointer = pointer

    @classmethod
    def create(
        cls,
        tables: Sequence[Table],
        *,
        node: int = 0,
        nodes: int = 1,
        workers: int = 1,
        seed: int = 0,
        heap_bytes: int = 16 << 20,
        capacity: Sequence[int] | None = None,
        technique: Technique = ADAPTIVE,
    ) -> Segment:
        """A new segment, all rows absent.

        Args:
            tables: all tables, in the order on which all nodes agree.
            node: this node's id, below `nodes`.
            nodes: how many nodes there are.
            workers: how many workers can attach.
            seed: of the initial values.
            heap_bytes: room per worker for the rows of operations that the node serves; raised where rows are wide.
            capacity: for each table, how many rows this node can keep; None: all.
            technique: how rows are managed.

        Raises:
            OutOfMemory: it does not fit into the memory that is free, counting the rows whose home is here.
        """
        spec = _Spec(tables, node, nodes, workers, seed, heap_bytes, capacity, technique)
        require_memory(spec.needed, tables)
        fd = os.memfd_create("adapm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        segment = cls._map(fd, lambda error: lib.adapm_segment_create(fd, spec.pointer, error), bytes=spec.size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return segment

    @classmethod
    def attach(cls, fd: int) -> Segment:
        """The segment behind a descriptor that its node has passed on; it is taken over, even if this fails.

        Args:
            fd: the descriptor.

        Raises:
            ProtocolError: it is no segment, or one of another version.
        """
        return cls._map(fd, lambda error: lib.adapm_segment_attach(fd, error), segment=f"descriptor {fd}")

    @classmethod
    def _map(cls, fd: int, step: Callable[[Any], Any], **context: object) -> Segment:
        error = ffi.new("int *")
        pointer = step(error)
        if pointer == ffi.NULL:
            os.close(fd)
            check(error[0], **context)
        return cls(fd, pointer)

    def close(self) -> None:
        """Unmaps it and closes the descriptor; may be called twice.

        No worker or lane of this process may be left on it.
        """
        if self.pointer == ffi.NULL:
            return
        lib.adapm_segment_close(self.pointer)
        self.pointer = ffi.NULL
        os.close(self.fd)

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def weigh(self, index: int, table: Table) -> None:
        """Makes what samples of a table with weights are drawn from; nothing for others. Before workers attach."""
        if table.sampling.weights is not None:
            lib.adapm_alias_build(self.pointer, index, ffi.from_buffer("double[]", table.sampling.weights))

    def fail(self, code: int, wake: Iterable[int] = ()) -> None:
        """Ends every wait of every worker, now and later.

        Args:
            code: negative errno that the kernel's functions return from now on.
            wake: the workers' eventfds, for those that sleep.
        """
        lib.adapm_segment_fail(self.pointer, code)
        for worker_fd in wake:
            os.write(worker_fd, (1).to_bytes(8, "little"))

    def statistics(self) -> NodeStatistics:
        """What the node has counted so far."""
        struct = ffi.new("adapm_lane_stats *")
        lib.adapm_segment_statistics(self.pointer, struct)
        return NodeStatistics.read(struct)

    def worker_statistics(self, slot: int) -> WorkerStatistics:
        """What the worker in this slot, below the segment's number of workers, has counted so far."""
        counters = ffi.new("uint64_t[]", len(COUNTERS))
        lib.adapm_segment_counters(self.pointer, slot, counters)
        return WorkerStatistics(*counters)


class _Spec:
    """What a segment is made from, its size, and how much of that needs memory at once."""

    def __init__(
        self,
        tables: Sequence[Table],
        node: int,
        nodes: int,
        workers: int,
        seed: int,
        heap_bytes: int,
        capacity: Sequence[int] | None,
        technique: Technique = ADAPTIVE,
    ) -> None:
        slots = [table.rows for table in tables] if capacity is None else list(capacity)
        self._arrays = (
            ffi.new("uint64_t[]", [table.rows for table in tables]),
            ffi.new("uint64_t[]", slots),
            ffi.new("uint32_t[]", [table.row_len for table in tables]),
            ffi.new("uint32_t[]", [int(table.sampling.distribution) for table in tables]),
        )
        numbers = (node, nodes, workers, 1, len(tables), seed, heap_bytes)
        self.pointer = ffi.new("adapm_spec *", (*numbers, *self._arrays, _managed(technique)))
        self.size = check(lib.adapm_segment_size(self.pointer), tables=", ".join(table.name for table in tables))
        rows = sum(n * row_bytes(table) for n, table in zip(slots, tables, strict=True))
        self.needed = self.size - rows + sum(home_rows(table, nodes) * row_bytes(table) for table in tables)


def _managed(technique: Technique) -> tuple[int, ...]:
    """The kernel's adapm_technique."""
    ignores, at_once = technique.intents is Intents.IGNORED, technique.intents is Intents.AT_ONCE
    ages = 0 if technique.bound is None else technique.bound + 1
    return ignores, at_once, int(technique.on_want), technique.copies, ages


def needed_bytes(
    tables: Sequence[Table], nodes: int, workers: int, heap_bytes: int, capacity: Sequence[int] | None = None
) -> int:
    """Bytes of memory that the segment of one of so many nodes takes when it is created; arguments as of `create`."""
    return _Spec(tables, 0, nodes, workers, 0, heap_bytes, capacity).needed


def row_bytes(table: Table) -> int:
    """Bytes that one row takes in memory."""
    return math.ceil(table.row_len * _FLOAT / _LINE) * _LINE


def home_rows(table: Table, nodes: int) -> int:
    """At most how many rows of the table have one node as their home.

    Homes are drawn by hash, so this is the mean and six standard deviations.
    """
    mean = table.rows / nodes
    return min(table.rows, math.ceil(mean + 6 * math.sqrt(mean)))


def capacities(tables: Sequence[Table], nodes: int, budget: int) -> list[int]:
    """How many rows of each table a node can keep: those at home there, and equal shares of the others.

    Args:
        tables: all tables.
        nodes: how many nodes there are.
        budget: bytes of rows.

    Raises:
        OutOfMemory: the budget is too small for the rows at home.
    """
    homes = [home_rows(table, nodes) for table in tables]
    spare = budget - sum(n * row_bytes(table) for n, table in zip(homes, tables, strict=True))
    if spare < 0:
        raise OutOfMemory(
            f"the rows at home on one of {nodes} nodes take {budget - spare:,} bytes, but memory={budget:,} is set:"
            " raise it, or use more nodes"
        )
    others = sum((table.rows - n) * row_bytes(table) for n, table in zip(homes, tables, strict=True))
    share = min(1.0, spare / others) if others else 0.0
    return [n + int((table.rows - n) * share) for n, table in zip(homes, tables, strict=True)]


def require_memory(needed: int, tables: Sequence[Table]) -> None:
    """Nothing, if so many bytes are free.

    Args:
        needed: bytes.
        tables: what they are for.

    Raises:
        OutOfMemory: with both figures and the largest table.
    """
    free = memory.available()
    if needed > free.amount:
        largest = max(tables, key=lambda table: table.rows * row_bytes(table))
        raise OutOfMemory(
            f"the tables need {needed:,} bytes on this node, but {free.amount:,} are free ({free.source}); the largest"
            f" is {largest.name!r} with {largest.rows:,} rows of {row_bytes(largest):,} bytes: use more nodes"
        )
