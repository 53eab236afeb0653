"""A lane: the part of a node that decides where rows live.

It is handed requests, ticks and frames, and returns frames; it reads no socket and no clock.  Every decision and all
per-key work is in the kernel (native/lane.c); this is its thin typed face.  One thread at a time may use a lane.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapm import memory
from adapm.errors import InternalError, ProtocolError
from adapm.kernel import address, check, ffi, lib
from adapm.segment import Segment
from adapm.tables import Table
from adapm.transport import KINDS

RESERVE_BYTES = 512 << 20  # of the machine's memory that growing arenas leave to others
_WHY_BYTES = 256
_DRIVEN = ("adapm_lane_receive_piece", "adapm_lane_take", "adapm_buffer_data", "adapm_buffer_len", "adapm_buffer_free")
_KEPT_AT_ONCE = 1 << 20  # keys whose numbers take memory
_MOST_HOLDERS = 4096  # that `inspect` can tell of
_FLOATS = ffi.typeof("float[]")

SHARE = 0.06  # of a core, for refreshes of replicas
FRAME_SECONDS = 20e-6  # what it costs a node to send a frame and to get one
ROW_SECONDS = 200e-9  # what it costs to move a row from the segment of one node into that of another, on either side
NUMBER_SECONDS = 2e-9  # and each number of it
MOST_SECONDS = 0.4  # that a change waits for a refresh
SIGHT_SECONDS = 0.4  # how far ahead rows count as wanted: until then a copy that stays is refreshed about once


@ffi.def_extern(error=0)
def adapm_memory_available() -> int:
    """What arenas may still take; called by the kernel."""
    return memory.available().amount


class Event(enum.IntEnum):
    """What a lane has for its node."""

    BARRIER = 1  # a worker arrived at a barrier
    FRESH = 2  # the refresh that was asked for is complete
    ARENA_FULL = 3  # for the first time a row could not be kept here and stayed remote
    COPIED = 4  # all rows that are kept from the start on are here
    TRACE = 5  # traced events are to be taken


class RowState(enum.IntEnum):
    """What a row is to one node."""

    ABSENT = 0
    PENDING = 1
    REPLICA = 2
    OWNED = 3


_STATES = tuple(RowState)


class RowView(NamedTuple):
    """One row as one node sees it; for tests and traces.

    Attributes:
        state: see RowState.
        hint: (owner, counter) that this node believes in.
        intents: active intents of this node's workers; 1 << 31 more if the node has the row for good.
        foreseen: those that are in sight and not acted on yet.
        holders: owned rows: the nodes that hold a replica.
        stale: how many of them are behind.
        dirty: updates were pushed since the last extraction.
        want: pending rows: 1 the want is due, 2 it is under way.
        value: float32 [row_len], the accumulated pushes of a pending row; None when absent.
        base: replicas: float32 [row_len], the state that the value builds on.
        asked: nodes whose wants wait here for the next tick (techniques that relocate always).
    """

    state: RowState
    hint: tuple[int, int]
    intents: int
    foreseen: int
    holders: tuple[int, ...]
    stale: int
    dirty: bool
    want: int
    value: npt.NDArray[np.float32] | None
    base: npt.NDArray[np.float32] | None
    asked: tuple[int, ...] = ()


class Wait(NamedTuple):
    """An open operation of a worker.

    Attributes:
        serial: no two operations of a lane share it.
        slot: the worker's.
        kind: enum adapm_op of native/kernel.h: 1 pull, 2 push, 3 set, 4 wait_sync, 5 barrier.
        table: the index, of pull, push and set.
        nodes: how many rows each node has to answer for; those of this node itself are on their way here.
        answers: wait_sync and barrier: all rows have left, and these nodes owe an answer.
    """

    serial: int
    slot: int
    kind: int
    table: int
    nodes: dict[int, int]
    answers: bool


@dataclass(frozen=True)
class Pace:
    """How refreshes of replicas are spaced (native/pace.h), in ticks.

    Attributes:
        row: what each row that a refresh moves puts off the next one.
        number: the same for each number in it.
        most: after this time a refresh comes whatever the last ones cost.
        frame: what each frame that leaves for a refresh puts off the next one.
    """

    row: float
    number: float
    most: float
    frame: float = 0.0

    @classmethod
    def at(cls, tick_rate: float) -> Pace:
        """The pace at so many ticks per second."""
        seconds = (ROW_SECONDS / SHARE, NUMBER_SECONDS / SHARE, MOST_SECONDS, FRAME_SECONDS / SHARE)
        return cls(*(tick_rate * some for some in seconds))


UNPACED = Pace(0.0, 0.0, 0.0)


class Frame:
    """An outgoing frame: the kernel's memory, freed with this object."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = ffi.gc(pointer, lib.adapm_buffer_free, lib.adapm_buffer_len(pointer))
        self.view = memoryview(ffi.buffer(lib.adapm_buffer_data(pointer), lib.adapm_buffer_len(pointer)))

    def __len__(self) -> int:
        return len(self.view)


class Lane:
    """The engine of one lane of a node.

    Args:
        segment: the node's.
        worker_fds: each worker slot's eventfd; they must outlive the lane.
        tick_keys: keys of intents that one tick handles at most.
        round_bytes: bytes of rows in one round or reply, about.
        reserve_bytes: memory of the machine that a growing arena leaves free.
        pace: how refreshes of replicas are spaced.
        sight: ticks; rows that an intent names whose start is so near, at the worker's pace, count as wanted where
            they are: they are not given away and not dropped. 0: those of active intents only.
        tick_us: what statistics take a tick for.
    """

    def __init__(
        self,
        segment: Segment,
        worker_fds: Sequence[int],
        *,
        tick_keys: int = 65_536,
        round_bytes: int = 1 << 21,
        reserve_bytes: int = RESERVE_BYTES,
        pace: Pace = UNPACED,
        sight: float = 0.0,
        tick_us: float = 1000.0,
    ) -> None:
        self._segment = segment
        config = ffi.new(
            "adapm_lane_config *",
            {
                "lane": 0,
                "tick_keys": tick_keys,
                "round_bytes": round_bytes,
                "reserve_bytes": reserve_bytes,
                "available": lib.adapm_memory_available,
                "timer_start": 10.0,  # e0, a, p of the paper, section 4.2
                "timer_decay": 0.1,
                "timer_quantile": 0.9999,
                "pace_frame": pace.frame,
                "pace_row": pace.row,
                "pace_float": pace.number,
                "pace_most": pace.most,
                "sight": sight,
                "tick_us": tick_us,
            },
        )
        error = ffi.new("int *")
        self._lane = lib.adapm_lane_new(segment.pointer, segment.fd, config, list(worker_fds), error)
        if self._lane == ffi.NULL:
            check(error[0])
        self._peer, self._worker, self._op = (ffi.new("uint32_t *") for _ in range(3))
        self._view, self._holders = ffi.new("adapm_row_view *"), ffi.new("uint32_t[]", _MOST_HOLDERS)

    def populate(self, index: int, table: Table) -> int:
        """Takes the rows of a table whose home is here and fills in their initial values; returns their number.

        Also makes what workers draw samples from, where the table has weights.

        Raises:
            OutOfMemory: the machine has no room for them.
        """
        rows = check(lib.adapm_lane_populate(self._lane, index), table=table.name)
        for column, (name, initial) in enumerate(table.initial.items()):
            offset, length = table.span(name)
            array = ffi.NULL if initial.array is None else ffi.from_buffer("float[]", initial.array)
            fill = (index, column, offset, length, int(initial.kind), initial.a, initial.b, array)
            check(lib.adapm_lane_fill(self._lane, *fill), table=table.name, column=name)
        self._segment.weigh(index, table)
        return rows

    def keep(self, index: int, keys: npt.NDArray[np.int64] | range) -> int:
        """Wants these rows of a table for good, as all nodes must; after `populate`, before any frame.

        Returns:
            How many of them have to come; if there are any of any table, Event.COPIED says that all are here.

        Raises:
            OutOfMemory: there is no room for them.
        """
        asked = 0
        for begin in range(0, len(keys), _KEPT_AT_ONCE):
            some = keys[begin : begin + _KEPT_AT_ONCE]
            array = (
                np.arange(some.start, some.stop) if isinstance(some, range) else np.ascontiguousarray(some, np.int64)
            )
            asked += check(lib.adapm_lane_keep(self._lane, index, ffi.from_buffer("int64_t[]", array), len(array)))
        return asked

    def serve(self) -> bool:
        """Handles the workers' requests; True if some wait for a locked row and must be served again."""
        return bool(lib.adapm_lane_serve(self._lane))

    def tick(self, elapsed: float) -> int:
        """Acts on intents, sends rounds and nudges; returns in how many ticks the next is due, 0 if nothing is left.

        Args:
            elapsed: time since the last tick, in ticks.
        """
        return lib.adapm_lane_tick(self._lane, elapsed)

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for what only the next tick can do."""
        return bool(lib.adapm_lane_urgent(self._lane))

    def rest(self) -> bool:
        """True: nothing to do, and whoever changes that will kick the node.  False: tick again."""
        return bool(lib.adapm_lane_rest(self._lane))

    def kicked(self) -> None:
        """The node's eventfd fired: to be called before `serve`."""
        lib.adapm_lane_kicked(self._lane)

    def receive(self, peer: int, frame: memoryview | bytes, offset: int = 0) -> int:
        """Handles a frame from its offset on; returns how many bytes it handled.

        Fewer than all means that a row was locked, or that what was asked for is to be taken first: call again later
        with the rest, before the peer's next frame.

        Raises:
            ProtocolError: the frame is not one that a correct peer sends.  The items before the one that is named have
                been handled; a frame whose first item is named has changed nothing.
        """
        handled = lib.adapm_lane_receive(self._lane, peer, ffi.from_buffer(frame), len(frame), offset)
        if handled < 0:
            raise self.refusal(peer, len(frame))
        return handled

    def refusal(self, peer: int, length: int) -> ProtocolError:
        """Why the lane has just refused a frame of so many bytes."""
        why = ffi.new("char[]", _WHY_BYTES)
        lib.adapm_lane_refusal(self._lane, why, _WHY_BYTES)
        return ProtocolError(f"node {peer} broke the protocol in a frame of {length} bytes: {ffi.string(why).decode()}")

    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """See `adapm.transport.Engine`."""
        receive, take, data, length, free = (address(ffi.addressof(lib, name)) for name in _DRIVEN)
        return address(self._lane), receive, take, data, length, free

    @property
    def frame_limit(self) -> int:
        """Bytes of the longest frame that a lane makes of these tables, and that is received."""
        return lib.adapm_lane_frame_limit(self._lane)

    def take(self) -> tuple[int, Frame] | None:
        """The next frame to send, with its peer; frames of one peer are to be sent in this order."""
        pointer = lib.adapm_lane_take(self._lane, self._peer)
        return None if pointer == ffi.NULL else (self._peer[0], Frame(pointer))

    def events(self) -> Iterator[tuple[Event, int, int]]:
        """What happened for the node itself: the event, and for a barrier the worker's slot and its operation."""
        while kind := lib.adapm_lane_event(self._lane, self._worker, self._op):
            yield Event(kind), self._worker[0], self._op[0]

    def waits(self, nodes: int) -> list[Wait]:
        """All open operations of workers, and for whom of so many nodes they wait; takes time, and is for messages."""
        place, wait, counts = ffi.new("uint32_t *"), ffi.new("adapm_open_op *"), ffi.new("uint64_t[]", nodes)
        found = []
        while lib.adapm_lane_next_open(self._lane, place, wait, counts):
            of = {node: int(count) for node, count in enumerate(counts) if count}
            found.append(Wait(wait.serial, wait.worker, wait.kind, wait.table, of, bool(wait.answers)))
        return found

    def complete(self, worker: int, op: int, status: int = 0, detail: int = 0) -> None:
        """Ends a worker's operation that the node took over (a barrier)."""
        lib.adapm_lane_complete(self._lane, worker, op, status, detail)

    def fresh(self) -> None:
        """Asks for everything that replicas here have missed; Event.FRESH follows."""
        lib.adapm_lane_fresh(self._lane)

    def worker_gone(self, worker: int) -> None:
        """The worker in this slot finished or died: its locks are undone, its intents end."""
        lib.adapm_lane_worker_gone(self._lane, worker)

    def peer_lost(self, peer: int) -> None:
        """A node is lost: every open operation ends with an error that names it."""
        lib.adapm_lane_peer_lost(self._lane, peer)

    def count_links(self, kinds: Sequence[str]) -> None:
        """What the links to other nodes run on (`adapm.transport.kind_of`), for the statistics."""
        lib.adapm_lane_links(self._lane, *(kinds.count(kind) for kind in KINDS))

    def trace(self, room: int, below: Sequence[int], refs: Sequence[int]) -> None:
        """Begins to trace keys; once, before anything happens.

        Args:
            room: events that may wait to be taken, a power of two; what finds it full is counted.
            below: for each table, the bound of the hashes of keys that are traced, 2**32 for all.
            refs: further keys, as table << 32 | key.
        """
        check(lib.adapm_lane_trace(self._lane, room, list(below), list(refs), len(refs)))

    def traced(self, out: npt.NDArray[np.void]) -> int:
        """Takes the oldest events, as many as there are or fit.

        Args:
            out: `adapm.tracing.EVENT` [room]; the first so many are overwritten.
        """
        events = ffi.from_buffer("adapm_trace_event[]", out)
        return lib.adapm_lane_trace_take(self._lane, events, len(out))

    def validate(self) -> None:
        """Checks everything that must hold within one lane while its workers are quiet.

        Raises:
            InternalError: something does not.
        """
        why = ffi.new("char[]", _WHY_BYTES)
        if lib.adapm_lane_validate(self._lane, why, _WHY_BYTES):
            raise InternalError(f"the lane contradicts itself: {ffi.string(why).decode()}; please report this")

    def inspect(self, table: int, row: int) -> RowView:
        """One row as this node sees it, for tests and traces."""
        length = lib.adapm_segment_row_len(self._segment.pointer, table)
        value, base = np.empty(length, np.float32), np.empty(length, np.float32)
        view, holders = self._view, self._holders
        buffers = (ffi.from_buffer(_FLOATS, value), ffi.from_buffer(_FLOATS, base), holders, _MOST_HOLDERS)
        check(lib.adapm_lane_inspect(self._lane, table, row, view, *buffers), table=table, row=row)
        state = _STATES[view.state]
        return RowView(
            state=state,
            hint=(view.hint_owner, view.hint_counter),
            intents=view.intents,
            foreseen=view.foreseen,
            holders=tuple(sorted(holders[0 : view.holders])) if view.holders else (),
            stale=view.stale,
            dirty=bool(view.dirty),
            want=view.want,
            value=None if state is RowState.ABSENT else value,
            base=base if state is RowState.REPLICA else None,
            asked=tuple(holders[view.holders : view.holders + view.asked]) if view.asked else (),
        )

    def close(self) -> None:
        """Frees the lane; may be called twice."""
        lane, self._lane = self._lane, ffi.NULL
        if lane != ffi.NULL:
            lib.adapm_lane_free(lane)
