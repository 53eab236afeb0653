"""What a task works with: `Worker` in coroutines, `BlockingWorker` in plain functions.

    local rows      one C call in this process: no system call, no other process takes part
    other rows      a request to the node of this machine, see access.py and mailbox.py

Both faces share `_Core`; they differ in how they wait for operations.  A worker belongs to the
thread that created it: none of its methods may be called from another.  In a process that is forked from
its own it is closed, and the original goes on.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adapm import memory
from adapm.access import Access
from adapm.arguments import FLOAT32, Columns, Keys, Rows, Target, check_range, take_clocks, take_keys, take_out
from adapm.errors import OutOfMemory, UsageError
from adapm.kernel import ffi, lib
from adapm.mailbox import BARRIER, NOTHING, SYNC, Mailbox, Operation, Outcome, Ready
from adapm.plan import BlockingPlan, Plan
from adapm.sampler import Sample, Sampled, Sampler
from adapm.statistics import Statistics
from adapm.tables import Table

if TYPE_CHECKING:
    from adapm.door import Ticket

_READ_BYTES = 1 << 20  # of rows that read_table asks for at once
_BYTES = ffi.typeof("uint8_t[]")
_ndarray = np.ndarray
_alive: weakref.WeakSet[_Core] = weakref.WeakSet()


class _Core:
    """What both kinds of worker can do without waiting.

    Attributes:
        id: of this worker, 0 to num_workers-1 over all nodes.
        node: the id of its node.
        num_nodes, num_workers: of the whole run.
        rng: a numpy.random.Generator of this worker's own, seeded by the run's seed and `id`.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.id = ticket.worker
        self.node = ticket.node
        self.num_nodes = ticket.num_nodes
        self.num_workers = ticket.num_workers
        self.rng = np.random.default_rng([ticket.seed, ticket.worker])
        self._tables = {table.name: table for table in ticket.tables}
        self._mailbox = Mailbox(ticket)
        self._handle = self._mailbox.worker
        self._access = access = Access(self._mailbox, ticket.tables)
        self._segment = ticket.segment.pointer
        self._seed = ticket.seed
        self._samplers: dict[str, Sampler] = {}
        self._clock: int = lib.adapm_clock(self._handle)
        # Looked up at each access of a few rows, where every step counts.
        self._pull_now, self._pull_rest = access.pull_now, access.pull_rest
        self._push_now, self._push_rest = access.push_now, access.push_rest
        self._intend_now, self._check_open = access.intend_now, self._mailbox.check_open
        _alive.add(self)

    def __reduce__(self) -> Any:
        raise UsageError(
            f"worker {self.id} cannot be sent to another process: a worker belongs to the process and thread that made"
            " it; send keys and rows as arrays, or let that process be a worker of its own (adapm.attach)"
        )

    @property
    def tables(self) -> Mapping[str, Table]:
        """The run's tables by name."""
        return MappingProxyType(self._tables)

    @property
    def clock(self) -> int:
        """This worker's logical clock: 0 at first, and moved by `advance_clock` only."""
        return self._clock

    def advance_clock(self) -> int:
        """Adds 1 to the clock, which ends intents up to there, and returns it. Purely local."""
        self._clock = lib.adapm_advance_clock(self._mailbox.attached())
        return self._clock

    def intent(self, table: str, keys: npt.ArrayLike, start: int, end: int | None = None) -> None:
        """Announces that this worker will access these rows while start <= clock < end.

        The rows will be local by then if there is time enough.  Intents add up; the clock ends them.  A start that
        has passed already is legal and acted on at once.  Waits for the node when that is some 200,000 keys behind.

        Args:
            table: a table's name.
            keys: integers [n], any array-like, duplicates legal.
            start: the first clock.
            end: the clock after the last, start + 1 unless given.

        Raises:
            UsageError: UnknownTable, KeyTypeError, ShapeError, KeyRangeError, or IntentRangeError for a range of
                clocks that is empty or begins before 0.
        """
        self._check_open()
        told = self._intend_now(table, keys, start, end)
        if told is None or told != len(keys):  # type: ignore[arg-type]
            self._access.intend_rest(table, keys, start, end, told)

    def is_local(self, table: str, keys: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of the rows can be pulled from this machine's memory now: bool [n]. It may be different soon."""
        target = self._access.target(table)
        pointer, n = take_keys(target, keys)
        local = np.empty(n, np.bool_)
        refused = lib.adapm_is_local(self._handle, target.index, pointer, n, ffi.from_buffer(_BYTES, local))
        check_range(refused, target, keys, pointer, n)
        return local

    def prepare_sample(self, table: str, n: int, start: int, end: int | None = None) -> Sample:
        """A sample of rows that this worker will pull while start <= clock < end, drawn as the table's `sampling` says.

        With the techniques "preloc" and "pool" its keys are drawn now, and their intent is signalled, as by `intent`;
        so prepare it some clocks ahead.  With "naive" they are drawn now, too, with "local" when they are pulled.  The
        same seed, node, worker and table give the same keys, but for "local", where it depends on what is local.

        Args:
            table: a table's name.
            n: how many keys, at most 2**31 - 1.
            start: the first clock.
            end: the clock after the last, start + 1 unless given.

        Raises:
            UsageError: UnknownTable, IntentRangeError, or SampleError if n is no such number or, without replacement,
                larger than the number of rows that can be drawn or than the pool.
            MemoryError: there is none for 8 bytes per key; without replacement some 60, and at times 8 per row.
        """
        sampler = self._sampler(table)
        start, end = take_clocks(sampler.target, start, end)
        sample = sampler.prepare(n)
        if sampler.announces and self.num_nodes > 1:  # on one node all rows are local
            self._mailbox.intend(sampler.target, *take_keys(sampler.target, sample.keys), start, end)
        return sample

    def statistics(self) -> Statistics:
        """What this worker and its node have counted so far."""
        return self._mailbox.statistics()

    def close(self) -> None:
        """Gives the worker's place in the segment back; `adapm.run` does it when the function returns.

        What is not complete ends with Closed, and so does every later call.
        """
        self._access.close()
        self._mailbox.close()

    def _disown(self) -> None:
        self._access.close()
        self._mailbox.disown(
            UsageError(
                f"process {os.getpid()} is forked from that of worker {self.id}, and cannot be it, too: give it what it"
                " needs as arrays, or let it be a worker of its own (adapm.attach)"
            )
        )

    # ---- operations, which the faces name pull, push and set

    def _start_pull(self, table: str, keys: npt.ArrayLike, columns: Columns, out: Rows | None) -> Outcome[Rows]:
        pulled = self._pull_now(table, keys, columns, out)
        return Ready(pulled) if type(pulled) is _ndarray else self._pull_rest(table, keys, columns, out, pulled)

    def _start_push(self, table: str, keys: npt.ArrayLike, columns: Columns, values: npt.ArrayLike) -> Outcome[None]:
        pushed = self._push_now(table, keys, columns, values)
        return NOTHING if pushed == 0 else self._push_rest(table, keys, columns, values, pushed)

    # ---- samples

    def _sampler(self, table: str) -> Sampler:
        target = self._access.target(table)
        if table not in self._samplers:
            self._samplers[table] = Sampler(self._segment, target, self._seed, self.node, self.id)
        return self._samplers[table]

    def _start_sample(self, sample: Sample, n: int | None, columns: Columns, out: Rows | None) -> Sampled:
        sampler = self._sampler(sample.table)
        count = sampler.count(sample, n)
        length = sampler.target.span(columns)[1]
        if out is not None:
            take_out(sampler.target, out, count, length)
        keys = sampler.take(sample, count)  # from here on nothing is refused any more
        return Sampled(keys, self._start_pull(sample.table, keys, columns, out))

    # ---- what waits, written once: each face waits in its own way for every operation that these yield

    def _steps_of(self, *kinds: int) -> Iterator[Operation[None]]:
        yield from self._mailbox.pending()
        for kind in kinds:
            yield self._mailbox.signal(kind)
        self._mailbox.raise_unseen()  # only now: whoever catches the error is in step with the others

    def _steps_of_read(self, target: Target, columns: Columns, rows: Rows) -> Iterator[Outcome[Rows]]:
        step = max(1, _READ_BYTES // max(1, rows[:1].nbytes))
        for begin in range(0, target.rows, step):
            end = min(begin + step, target.rows)
            yield self._start_pull(target.name, np.arange(begin, end), columns, rows[begin:end])

    def _room_for(self, target: Target, columns: Columns) -> Rows:
        shape = (target.rows, target.span(columns)[1])
        needed = shape[0] * shape[1] * FLOAT32.itemsize
        free = memory.available()
        if needed > free.amount:
            raise OutOfMemory(
                f"all {shape[0]:,} rows of table {target.name!r} take {needed:,} bytes here, but {free.amount:,} are"
                f" free ({free.source}): pull them in pieces"
            )
        return np.empty(shape, FLOAT32)


class Worker(_Core):
    """The worker that a coroutine function gets; `pull`, `push` and `set` start at the call and end at the await.

    Inputs are read before the call returns and may be reused at once.  What does not fit into the worker's buffer
    (config `heap`) makes the call itself wait for the node, which bounds memory: then the event loop waits too.
    """

    def pull(
        self, table: str, keys: npt.ArrayLike, *, columns: Columns = None, out: Rows | None = None
    ) -> Outcome[Rows]:
        """Reads rows.

        Args:
            table: a table's name.
            keys: integers [n], any array-like, duplicates legal.
            columns: a column group, or names of adjacent ones; None for the whole row.
            out: a writable C-contiguous float32 array [n, length of the columns] that is filled and returned.

        Returns:
            An awaitable of float32 [n, length of the columns]: `out`, or a new array.  Rows that are local are read
            before this returns, the others by the end of the await; a cancelled pull never writes `out` afterwards.

        Raises:
            UsageError: UnknownTable, KeyTypeError, ShapeError, KeyRangeError, UnknownColumn or BufferNotUsable, at
                the call.
            NodeLost: a node that was needed is gone; from the await.
        """
        pulled = self._pull_now(table, keys, columns, out)
        return Ready(pulled) if type(pulled) is _ndarray else self._pull_rest(table, keys, columns, out, pulled)

    def push(self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None) -> Outcome[None]:
        """Adds to rows; duplicate keys add up.

        Args:
            table: a table's name.
            keys: integers [n], any array-like.
            values: [n, length of the columns], float32 or what converts without loss; float64 is rounded.
            columns: a column group, or names of adjacent ones; None for the whole row.

        Returns:
            An awaitable of None: done when the update is in a local copy or in the main copy, so that this worker's
            pulls see it.  If nobody awaits it, its failure is raised by the next `wait_sync` or `barrier`.

        Raises:
            UsageError: UnknownTable, KeyTypeError, ShapeError, KeyRangeError, UnknownColumn or DtypeError; at the call,
                before anything is added.
            NodeLost: a node that was needed is gone; what was local has been added. From the await.
        """
        pushed = self._push_now(table, keys, columns, values)
        return NOTHING if pushed == 0 else self._push_rest(table, keys, columns, values, pushed)

    def set(self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None) -> Outcome[None]:
        """Overwrites rows, at their main copies; of duplicate keys the last value stays.

        Arguments, result and errors are those of `push`.  Concurrent pushes come wholly before or after it.
        """
        return self._access.set(table, keys, columns, values)

    def pull_sample(
        self, sample: Sample, n: int | None = None, *, columns: Columns = None, out: Rows | None = None
    ) -> Sampled:
        """Reads the next rows of a sample.

        Args:
            sample: of `prepare_sample`.
            n: how many, at most `sample.left`; None for all that are left.
            columns, out: as in pull.

        Returns:
            An awaitable of (keys, rows): int64 [n], float32 [n, length of the columns]; otherwise as of pull.

        Raises:
            UsageError: SampleError, UnknownColumn, ShapeError or BufferNotUsable; at the call, before any key is used.
            MemoryError: as prepare_sample, of the technique "local".
            NodeLost: a node that was needed is gone; from the await. The keys are used up.
        """
        return self._start_sample(sample, n, columns, out)

    def plan(self, table: str, keys: npt.ArrayLike, out: Rows | None = None, *, columns: Columns = None) -> Plan:
        """Pulls and pushes of the same arrays, prepared once: for small batches, where arguments cost more than rows.

        Args:
            table: a table's name.
            keys: integers [n]; an int64 array is used as it is, and its keys may be changed between calls.
            out: a writable C-contiguous float32 array [n, length of the columns] for the rows; a new one if None.
            columns: as in pull.

        Raises:
            UsageError: as pull; keys out of range are refused when they are used.
        """
        return Plan(self._access, table, keys, columns, out)

    async def wait_sync(self) -> None:
        """Returns when all updates of this worker are merged at the main copies, and its due intents satisfied.

        Due are those with start <= clock.

        Raises:
            AdapmError: an earlier push or set failed and nobody awaited it; each is raised once at most.
        """
        for operation in self._steps_of(SYNC):
            await operation.settle()

    async def barrier(self) -> None:
        """Returns when every worker that still runs has called it; pulls then see every push made before it by anyone.

        Raises:
            AdapmError: as `wait_sync`.
        """
        for operation in self._steps_of(SYNC, BARRIER):
            await operation.settle()

    async def read_table(self, table: str, columns: Columns = None) -> Rows:
        """All rows of a table: float32 [rows, length of the columns]. They are pulled in pieces, and count as pulls.

        Raises:
            OutOfMemory: they do not fit into the memory that is free; nothing has been pulled.
        """
        target = self._access.target(table)
        rows = self._room_for(target, columns)
        for pull in self._steps_of_read(target, columns, rows):
            await pull
        return rows


class BlockingWorker(_Core):
    """The worker that a plain function gets: the methods of Worker, which here return when the operation has ended.

    `pull_later`, `push_later`, `set_later` and `pull_sample_later` return at once; their `.result()` waits.
    """

    def pull(self, table: str, keys: npt.ArrayLike, *, columns: Columns = None, out: Rows | None = None) -> Rows:
        """Reads rows; see Worker.pull."""
        pulled = self._pull_now(table, keys, columns, out)
        return pulled if type(pulled) is _ndarray else self._pull_rest(table, keys, columns, out, pulled).result()

    def push(self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None) -> None:
        """Adds to rows; see Worker.push."""
        pushed = self._push_now(table, keys, columns, values)
        if pushed != 0:
            self._push_rest(table, keys, columns, values, pushed).result()

    def set(self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None) -> None:
        """Overwrites rows; see Worker.set."""
        self._access.set(table, keys, columns, values).result()

    def pull_later(
        self, table: str, keys: npt.ArrayLike, *, columns: Columns = None, out: Rows | None = None
    ) -> Outcome[Rows]:
        """Starts a pull, as Worker.pull; `.result(timeout=None)` waits for the rows, `.done()` does not wait."""
        return self._start_pull(table, keys, columns, out)

    def push_later(
        self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None
    ) -> Outcome[None]:
        """Starts a push, as Worker.push; see pull_later."""
        return self._start_push(table, keys, columns, values)

    def set_later(
        self, table: str, keys: npt.ArrayLike, values: npt.ArrayLike, *, columns: Columns = None
    ) -> Outcome[None]:
        """Starts a set, as Worker.set; see pull_later."""
        return self._access.set(table, keys, columns, values)

    def pull_sample(
        self, sample: Sample, n: int | None = None, *, columns: Columns = None, out: Rows | None = None
    ) -> tuple[Keys, Rows]:
        """Reads the next rows of a sample: keys, int64 [n], and rows; see Worker.pull_sample."""
        return self._start_sample(sample, n, columns, out).result()

    def pull_sample_later(
        self, sample: Sample, n: int | None = None, *, columns: Columns = None, out: Rows | None = None
    ) -> Sampled:
        """Starts a pull of a sample, as Worker.pull_sample; see pull_later."""
        return self._start_sample(sample, n, columns, out)

    def plan(
        self, table: str, keys: npt.ArrayLike, out: Rows | None = None, *, columns: Columns = None
    ) -> BlockingPlan:
        """Pulls and pushes of the same arrays, prepared once; see Worker.plan.

        Args:
            table: a table's name.
            keys: integers [n]; an int64 array is used as it is, and its keys may be changed between calls.
            out: a writable C-contiguous float32 array [n, length of the columns] for the rows; a new one if None.
            columns: as in pull.

        Raises:
            UsageError: as pull; keys out of range are refused when they are used.
        """
        return BlockingPlan(self._access, table, keys, columns, out)

    def wait_sync(self) -> None:
        """Blocks until this worker's updates are merged and its intents satisfied; see Worker.wait_sync."""
        for operation in self._steps_of(SYNC):
            self._mailbox.run_until(operation)

    def barrier(self) -> None:
        """Blocks until every worker is here; see Worker.barrier."""
        for operation in self._steps_of(SYNC, BARRIER):
            self._mailbox.run_until(operation)

    def read_table(self, table: str, columns: Columns = None) -> Rows:
        """All rows of a table; see Worker.read_table."""
        target = self._access.target(table)
        rows = self._room_for(target, columns)
        for pull in self._steps_of_read(target, columns, rows):
            pull.result()
        return rows


@contextlib.contextmanager
def forks_go_on_as(worker: _Core) -> Iterator[None]:
    """A process that is forked meanwhile is this worker, too, as others are not: to see what one leaves that dies."""
    _alive.discard(worker)
    try:
        yield
    finally:
        _alive.add(worker)


def _disown_all() -> None:
    for worker in _alive:
        worker._disown()


os.register_at_fork(after_in_child=_disown_all)
