"""A real worker, and the books that are kept of what it does and sees."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapm.mailbox import NOTHING, Outcome, Ready
from adapm.sampler import Sample
from adapm.simulator.choices import Choices
from adapm.simulator.history import History
from adapm.simulator.invariants import Row
from adapm.simulator.ledger import Doubt, Eyes, Float, Int, Ledger
from adapm.simulator.loop import VirtualLoop
from adapm.simulator.watch import Watch
from adapm.tables import Table
from adapm.worker import Worker

LEAP = 1000  # a set raises its column by so much: a lost or doubled one can not look like pushes


class Actor:
    """See above; its methods are those of Worker, on numbers of tables.

    Args:
        worker: the real one.
        tables: all tables.
        shared: numbers of tables in which everyone writes to column 0, and sums alone count.
        loop, ledger, watch, history: of the whole run.
        choices: its own.

    Attributes:
        clock: of the worker.
        slowness: how many times longer than usual it thinks.
        doubts: updates that its node has not taken yet.
    """

    def __init__(
        self,
        worker: Worker,
        tables: Sequence[Table],
        shared: frozenset[int],
        loop: VirtualLoop,
        ledger: Ledger,
        watch: Watch,
        history: History,
        choices: Choices,
    ) -> None:
        self.worker = worker
        self.id = worker.id
        self.choices = choices
        self.slowness = 1.0
        self.doubts: list[Doubt] = []
        self.tables = tables
        self._own = [(i, slice(self.id, self.id + 1)) for i in range(len(tables)) if i not in shared]
        self._shared = shared
        self._loop = loop
        self._ledger = ledger
        self._watch = watch
        self._history = history
        self._eyes = Eyes(ledger, self.id, [None if i in shared else table for i, table in enumerate(tables)])
        self._busy: dict[Row, int] = {}  # rows with updates of this worker that are not complete
        self._setting: set[Row] = set()
        self._changed: dict[Row, None] = {}  # since the last sync, by updates whose sum the ledger knows
        self._began: deque[list[Float]] = deque()  # the main copies when recent clocks began
        self._wanted: list[tuple[Row, int, int]] = []  # rows, and the clocks of their intents

    @property
    def clock(self) -> int:
        return self.worker.clock

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._loop.time()

    async def think(self, seconds: float) -> None:
        """Computes for a while."""
        await asyncio.sleep(seconds * self.slowness)

    @property
    def bound(self) -> int | None:
        """How many clocks old a copy may be that it reads."""
        return self._watch.technique.bound

    def advance(self) -> None:
        """The next clock; where copies may be too old, it must see from now on what main copies were so long ago."""
        if self.bound is not None:
            self._began.append(self._watch.main_copies())
        clock = self.worker.advance_clock()
        self._history.add("clock", self.id, clock)
        if self.bound is not None and clock > self.bound:
            self._eyes.must_see(self._began.popleft())

    def intent(self, table: int, keys: Int, start: int, end: int) -> None:
        """As Worker.intent."""
        self._wants(table, keys, start, end)
        self.worker.intent(self.tables[table].name, keys, start, end)

    def prepare_sample(self, table: int, n: int, start: int, end: int) -> Sample:
        """As Worker.prepare_sample."""
        sample = self.worker.prepare_sample(self.tables[table].name, n, start, end)
        if self.tables[table].sampling.technique in ("preloc", "pool"):
            self._wants(table, sample.keys, start, end)
        return sample

    # ---- access; the work begins at the call, what is returned is to be awaited

    def push(self, table: int, keys: Int, amounts: Int | None = None) -> Writing:
        """Pushes ones to the worker's own column, or these amounts, int64 [n], to the shared one."""
        values = self._values(table, keys, amounts)
        doubt = self._ledger.pushed(table, keys, values)
        self._watch.touch(table, keys.tolist())
        self._note("push", table, keys)
        outcome = self.worker.push(self.tables[table].name, keys, values.astype(np.float32))
        return Writing(self, outcome, doubt, table, keys)

    def last_push(self, table: int, keys: Int) -> Int:
        """The values of a push in which the worker is going to die: for ever in doubt."""
        values = self._values(table, keys)
        self._ledger.pushed(table, keys, values)
        self._note("push", table, keys)
        return values

    def set(self, table: int, key: int, times: int = 1) -> Writing:
        """Raises the worker's own column by leaps, in one call that names the row so often: the last value stays."""
        values = int(self._ledger.totals[table][key, self.id]) + LEAP * np.arange(1, times + 1)
        doubt = self._ledger.set(table, key, self.id, int(values[-1]))
        keys = np.full(times, key, np.int64)
        self._watch.touch(table, [key])
        self._note("set", table, keys)
        self._setting.add((table, key))
        name, column = self.tables[table].name, f"worker{self.id}"
        outcome = self.worker.set(name, keys, values.astype(np.float32)[:, None], columns=column)
        return Writing(self, outcome, doubt, table, keys, sets=int(values[-1]))

    def pull(self, table: int, keys: Int) -> Reading:
        """Pulls the rows, and checks what it sees."""
        expected = self._eyes.expected(table, keys)
        self._note("pull", table, keys)
        return Reading(self, self.worker.pull(self.tables[table].name, keys), table, keys, expected)

    def pull_sample(self, table: int, sample: Sample, n: int) -> Reading:
        """Pulls the next rows of a sample, and checks what it sees."""
        sampled = self.worker.pull_sample(sample, n)
        self._note("pull", table, sampled.keys)
        return Reading(self, sampled.rows, table, sampled.keys, self._eyes.expected(table, sampled.keys))

    def may_push(self, table: int, key: int) -> bool:
        """Whether no set of this worker is under way there: what a push beside it should lead to is nobody's to say."""
        return (table, key) not in self._setting

    def may_set(self, table: int, key: int) -> bool:
        """Whether nothing of this worker is under way there."""
        return table not in self._shared and (table, key) not in self._busy

    async def sync(self) -> None:
        """As Worker.wait_sync: afterwards its updates are in the main copies, and what it wants is here."""
        self._history.add("sync", self.id)
        promise = self._promise()
        await self.worker.wait_sync()
        self._history.add("synced", self.id)
        self._kept(promise)

    async def barrier(self) -> None:
        """As Worker.barrier: afterwards it sees all that was pushed before by anyone."""
        self._history.add("barrier", self.id)
        promise, number = self._promise(), self._ledger.arrives(self.id, self._own)
        await self.worker.barrier()
        self._history.add("passed", self.id, number)
        self._kept(promise)
        self._eyes.passed_barrier(number)

    def served(self) -> None:
        """Its node has taken all requests: what was pushed is in rows or frames now."""
        for doubt in self.doubts:
            self._ledger.settled(doubt)
        self.doubts.clear()

    # ---- what a sync promises

    def _promise(self) -> _Promise:
        settled = [row for row in self._changed if row not in self._busy]
        done = {row: int(self._ledger.totals[row[0]][row[1], self.id]) for row in settled}
        self._changed = {row: None for row in self._changed if row not in done}
        clock = self.clock
        self._wanted = [(row, start, end) for row, start, end in self._wanted if end > clock]
        return _Promise(done, [(row, end) for row, start, end in self._wanted if start <= clock])

    def _kept(self, promise: _Promise) -> None:
        for row, own in promise.done.items():
            self._watch.is_merged(row, self.id, own)
        for row, end in promise.wanted:
            if end > self.clock:
                self._watch.is_here(row, self.worker.node)

    # ---- parts

    def _values(self, table: int, keys: Int, amounts: Int | None = None) -> Int:
        values = np.zeros((len(keys), self.tables[table].row_len), np.int64)
        values[:, 0 if table in self._shared else self.id] = 1 if amounts is None else amounts
        return values

    def _wants(self, table: int, keys: Int, start: int, end: int) -> None:
        rows = [(table, key) for key in keys.tolist()]
        self._history.add("intent", self.id, start, keys.tobytes(), rows)
        self._wanted += [(row, start, end) for row in rows]

    def _note(self, what: str, table: int, keys: Int, data: bytes = b"") -> None:
        self._history.add(what, self.id, table, keys.tobytes() + data, [(table, key) for key in keys.tolist()])

    def _begins(self, table: int, keys: Int) -> None:
        for key in keys.tolist():
            self._busy[table, key] = self._busy.get((table, key), 0) + 1
            if table not in self._shared:
                self._changed[table, key] = None

    def _ends(self, table: int, keys: Int, sets: int | None) -> None:
        for key in keys.tolist():
            left = self._busy.pop((table, key)) - 1
            if left:
                self._busy[table, key] = left
            self._setting.discard((table, key))
        if sets is None:
            self._eyes.pushed(table, keys)
        else:
            self._eyes.set(table, int(keys[0]), sets)


@dataclass
class _Promise:
    """What is to be true when a sync ends.

    Attributes:
        done: by row, what its worker had added to its own column.
        wanted: rows that are to be at its node, as long as its clock is before this one.
    """

    done: dict[Row, int]
    wanted: list[tuple[Row, int]]


class Writing:
    """A push or set, complete or under way."""

    def __init__(
        self, actor: Actor, outcome: Outcome[None], doubt: Doubt, table: int, keys: Int, sets: int | None = None
    ) -> None:
        self._actor = actor
        self._outcome = outcome
        self._doubt = doubt
        self._table, self._keys = table, keys
        self._sets = sets
        actor._begins(table, keys)
        if outcome is NOTHING:
            self._complete()
        elif sets is None:
            actor.doubts.append(doubt)

    async def wait(self) -> None:
        """Returns when it is complete."""
        if self._outcome is not NOTHING:
            await self._outcome
            self._complete()

    def _complete(self) -> None:
        self._actor._ledger.settled(self._doubt)
        self._actor._ends(self._table, self._keys, self._sets)
        self._actor._note("written", self._table, self._keys)


class Reading:
    """A pull of these keys, complete or under way; raises Violation if it saw what it must not."""

    def __init__(self, actor: Actor, outcome: Outcome[Float], table: int, keys: Int, expected: Float | None) -> None:
        self._actor = actor
        self._outcome: Outcome[Float] | None = outcome
        self.keys = keys
        self._table, self._expected = table, expected
        if isinstance(outcome, Ready):
            self._complete(outcome.result())

    async def wait(self) -> None:
        """Returns when it is complete."""
        if self._outcome is not None:
            self._complete(await self._outcome)

    def _complete(self, rows: Float) -> None:
        self._outcome = None
        self._actor._note("read", self._table, self.keys, rows.tobytes())
        self._actor._eyes.sees(self._table, self.keys, rows, self._expected)
