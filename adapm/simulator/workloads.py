"""What workers do, by name: each workload makes tables, and a task that every worker runs until its time is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from adapm.errors import UsageError
from adapm.sampler import Sample
from adapm.sampling import TECHNIQUES, Sampling
from adapm.segment import home_rows, row_bytes
from adapm.simulator.actor import Actor, Reading, Writing
from adapm.simulator.choices import Choices
from adapm.simulator.ledger import Int
from adapm.tables import Table

Task = Callable[[Actor], Awaitable[None]]

_MOST_PHASES = 3  # between barriers
_OPEN = 4  # operations that a worker has under way, at most
_WIDE_TABLE = 2  # the number of the table of which memory does not hold enough
_WIDE = 4096  # floats in its rows
_WIDE_ROWS = 96
_SPARE_ROWS = 8  # of them that a node has room for, beside those at home there
_LEAST_MEMORY = 1 << 20  # bytes that a node can be limited to


@dataclass(frozen=True)
class Setting:
    """A run's own variety.

    Args:
        workers: of the whole run.
        until: virtual seconds.
        choices: where all of it is drawn from.
        cramped: whether memory is to be too small.

    Attributes:
        pace: seconds between a worker's steps, about.
        zipf: whether keys are drawn by Zipf's law instead of uniformly.
        bursts: whether workers hurry and rest by turns.
        pauses: whether they stop for long now and then, as for an evaluation.
        phases: of a run, with a barrier after each.
    """

    workers: int
    until: float
    pace: float
    zipf: bool
    bursts: bool
    pauses: bool
    cramped: bool
    phases: int = 1

    @classmethod
    def draw(cls, workers: int, until: float, cramped: bool, choices: Choices) -> Setting:
        """Any."""
        pace = choices.scale(60e-6 * max(1.0, workers / 8), 4)
        zipf, bursts, pauses = (choices.chance(0.3) for _ in range(3))
        return cls(workers, until, pace, zipf, bursts, pauses, cramped, 1 + choices.below(_MOST_PHASES))


def too_little_memory(tables: Sequence[Table], nodes: int) -> int:
    """Bytes of rows that are enough for those at home on a node, and not for all that its workers want."""
    homes = sum(home_rows(table, nodes) * row_bytes(table) for table in tables)
    return max(_LEAST_MEMORY, homes + _SPARE_ROWS * max(row_bytes(table) for table in tables))


@dataclass(frozen=True)
class Workload:
    """One kind of work.

    Attributes:
        help: what it is.
        tables: makes the tables.
        shared: numbers of tables in which all write to one column.
        step: one step of a worker, called again and again.
    """

    help: str
    tables: Callable[[Setting, Choices], list[Table]]
    step: Callable[[Performer], Awaitable[None]]
    shared: frozenset[int] = frozenset()

    def task(self, setting: Setting) -> Task:
        """What each worker does, from its start to its end."""

        async def task(actor: Actor) -> None:
            await Performer(actor, setting, self.step).perform()

        return task


class Performer:
    """A worker at its work: steps, barriers between phases, and a clean end.

    Attributes:
        actor: the worker.
        setting: of the run.
        ahead: batches that are signalled and not yet used.
        samples: that are prepared and not yet used up, with the numbers of their tables.
        last_end: the clock at which its last intent ends.
    """

    def __init__(self, actor: Actor, setting: Setting, step: Callable[[Performer], Awaitable[None]]) -> None:
        self.actor = actor
        self.setting = setting
        self.choices = actor.choices
        self.ahead: deque[tuple[int, Int]] = deque()
        self.samples: deque[tuple[int, Sample]] = deque()
        self.last_end = 0
        self._step = step
        self._open: deque[Writing | Reading] = deque()
        self._weights = [list(accumulate(1.0 / (1 + i) for i in range(table.rows))) for table in actor.tables]

    async def perform(self) -> None:
        """All phases; in the end nothing is under way, and no intent is left."""
        begin = self.actor.now
        for phase in range(1, self.setting.phases + 1):
            while self.actor.now - begin < self.setting.until * phase / self.setting.phases:
                await self._step(self)
                await self._think()
            await self.finish_open()
            await self.actor.barrier()
        copies_end = 0 if self.actor.bound is None else self.actor.clock + self.actor.bound + 1
        while self.actor.clock < max(self.last_end, copies_end):
            self.actor.advance()
        await self.actor.sync()

    async def _think(self) -> None:
        seconds = self.setting.pace * (0.5 + self.choices.random())
        if self.setting.bursts:
            seconds *= 0.2 if self.actor.clock % 8 < 6 else 4
        if self.setting.pauses and self.choices.chance(0.01):
            seconds += self.choices.scale(1e-3, 4)
        await self.actor.think(seconds)

    def keys(self, table: int, n: int) -> Int:
        """So many keys, uniform or by Zipf's law."""
        rows, weights = self.actor.tables[table].rows, self._weights[table]
        if not self.setting.zipf:
            return np.array([self.choices.below(rows) for _ in range(n)], np.int64)
        at = [self.choices.random() * weights[-1] for _ in range(n)]
        return np.searchsorted(weights, at).astype(np.int64)

    def intend(self, table: int, keys: Int, start: int, clocks: int) -> None:
        """Signals intent, for the end to wait for."""
        self.last_end = max(self.last_end, start + clocks)
        self.actor.intent(table, keys, start, start + clocks)

    def prepare_sample(self, table: int, n: int, start: int, clocks: int) -> None:
        """Prepares a sample, with an intent for the end to wait for."""
        self.last_end = max(self.last_end, start + clocks)
        self.samples.append((table, self.actor.prepare_sample(table, n, start, start + clocks)))

    async def under_way(self, operation: Writing | Reading) -> None:
        """Lets it go on, unless too many do."""
        self._open.append(operation)
        while len(self._open) > _OPEN:
            await self._open.popleft().wait()

    async def finish_open(self) -> None:
        """Waits for everything that is under way."""
        while self._open:
            await self._open.popleft().wait()


# ---- mix


def _own_columns(name: str, rows: int, workers: int, sampling: Sampling | None = None) -> Table:
    return Table(name, rows=rows, columns={f"worker{i}": 1 for i in range(workers)}, sampling=sampling)


def _mix_tables(setting: Setting, choices: Choices) -> list[Table]:
    tables = [
        _own_columns("hot", 1 + choices.below(3), setting.workers),
        _own_columns("spread", 16 + choices.below(48), setting.workers),
    ]
    if setting.cramped:
        columns = {**{f"worker{i}": 1 for i in range(setting.workers)}, "rest": _WIDE - setting.workers}
        tables.append(Table("wide", rows=_WIDE_ROWS, columns=columns))
    return tables


async def _mix(performer: Performer) -> None:
    actor, choices = performer.actor, performer.choices
    table = choices.below(2)
    keys = performer.keys(table, choices.pick((1, 1, 2, 4)))
    what = choices.random()
    if performer.setting.cramped and choices.chance(0.1):
        table, keys = _WIDE_TABLE, performer.keys(_WIDE_TABLE, 1)
    if performer.setting.cramped and choices.chance(0.02):
        keys = performer.keys(_WIDE_TABLE, _WIDE_ROWS // 2)
        performer.intend(_WIDE_TABLE, keys, actor.clock + choices.below(3), 2 + choices.below(8))
    elif what < 0.25:
        performer.intend(table, keys, actor.clock + choices.below(6), choices.pick((1, 2, 8, 30)))
    elif what < 0.50:
        await _push(performer, table, keys)
    elif what < 0.75:
        await performer.under_way(actor.pull(table, keys))
    elif what < 0.80:
        await _set(performer, table, int(keys[0]))
    elif what < 0.82:
        await actor.sync()
    elif what < 0.84:
        await performer.finish_open()
    else:
        actor.advance()


async def _push(performer: Performer, table: int, keys: Int) -> None:
    keys = np.array([key for key in keys.tolist() if performer.actor.may_push(table, key)], np.int64)
    if len(keys):
        await performer.under_way(performer.actor.push(table, keys))


async def _set(performer: Performer, table: int, key: int) -> None:
    """Often right behind a push: one must not overtake the other."""
    if performer.choices.chance(0.5):
        await _push(performer, table, np.array([key], np.int64))
    if performer.actor.may_set(table, key):
        times = performer.choices.pick((1, 1, 2, 3))
        await performer.under_way(performer.actor.set(table, key, times))


# ---- chase


def _chase_tables(setting: Setting, choices: Choices) -> list[Table]:
    return [_own_columns("few", 2 + choices.below(6), setting.workers)]


async def _chase(performer: Performer) -> None:
    """Short intents move the rows about; pushes and pulls run after them, by hints that are old."""
    actor, choices = performer.actor, performer.choices
    keys = performer.keys(0, choices.pick((1, 1, 2)))
    what = choices.random()
    if what < 0.15:
        await _push(performer, 0, keys)
    elif what < 0.35:
        await _push_and_look(performer, int(keys[0]))
    elif what < 0.7:
        await performer.under_way(actor.pull(0, keys))
    elif what < 0.8:
        await _set(performer, 0, int(keys[0]))
    else:
        actor.advance()


async def _push_and_look(performer: Performer, key: int) -> None:
    """A row that is pushed to, wanted while that is under way, and read as soon as it is done."""
    keys = np.array([key], np.int64)
    if performer.actor.may_push(0, key):
        writing = performer.actor.push(0, keys)
        performer.intend(0, keys, performer.actor.clock, 1 + performer.choices.below(2))
        await writing.wait()
        await performer.under_way(performer.actor.pull(0, keys))


# ---- counter


def _counter_tables(setting: Setting, choices: Choices) -> list[Table]:
    return [_own_columns("counter", 1, setting.workers)]


async def _counter(performer: Performer) -> None:
    actor, choices = performer.actor, performer.choices
    key = np.zeros(1, np.int64)
    if choices.chance(0.2):
        performer.intend(0, key, actor.clock + choices.below(3), 1 + choices.below(6))
    await performer.under_way(actor.push(0, key))
    if choices.chance(0.3):
        await performer.under_way(actor.pull(0, key))
    if choices.chance(0.3):
        actor.advance()


# ---- bank


def _bank_tables(setting: Setting, choices: Choices) -> list[Table]:
    return [Table("accounts", rows=6 + choices.below(30), dim=2)]


async def _bank(performer: Performer) -> None:
    """A transfer: one push that takes from an account and gives to another."""
    actor, choices = performer.actor, performer.choices
    keys = performer.keys(0, 2)
    if choices.chance(0.5):
        performer.intend(0, keys, actor.clock + choices.below(2), 1 + choices.below(3))
    amount = 1 + choices.below(100)
    await performer.under_way(actor.push(0, keys, np.array([-amount, amount], np.int64)))
    if choices.chance(0.3):
        await performer.under_way(actor.pull(0, keys))
    actor.advance()


# ---- trainer


def _trainer_tables(setting: Setting, choices: Choices) -> list[Table]:
    return [
        _own_columns("entities", 60 + choices.below(60), setting.workers),
        _own_columns("relations", 4, setting.workers),
    ]


async def _trainer(performer: Performer) -> None:
    """One batch: the next ones are signalled ahead, this one is pulled, and its update pushed."""
    actor, choices = performer.actor, performer.choices
    ahead = 2 + actor.id % 4
    while len(performer.ahead) < ahead:
        table = int(choices.chance(0.2))
        keys = performer.keys(table, 4)
        performer.intend(table, keys, actor.clock + len(performer.ahead), 1)
        performer.ahead.append((table, keys))
    table, keys = performer.ahead.popleft()
    await actor.pull(table, keys).wait()
    await performer.under_way(actor.push(table, keys))
    actor.advance()


# ---- sampler


def _sampling(technique: str, rows: int, choices: Choices) -> Sampling:
    """Without logarithms, which are not the same everywhere."""
    weights = [1.0 / (1 + row) for row in range(rows)] if choices.chance(0.5) else None
    pool, uses = 8 + choices.below(16), 1 + choices.below(4)
    return Sampling(weights=weights, technique=technique, replacement=choices.chance(0.5), pool=pool, uses=uses)


def _sampler_tables(setting: Setting, choices: Choices) -> list[Table]:
    rows = 40 + choices.below(60)
    return [_own_columns(name, rows, setting.workers, _sampling(name, rows, choices)) for name in TECHNIQUES]


async def _sampler(performer: Performer) -> None:
    """Samples are prepared ahead, pulled in two parts, and what has been pulled is pushed to."""
    actor, choices = performer.actor, performer.choices
    ahead = 2 + actor.id % 4
    while len(performer.samples) < ahead:
        table = choices.below(len(TECHNIQUES))
        performer.prepare_sample(
            table, 1 + choices.below(6), actor.clock + len(performer.samples), 1 + choices.below(2)
        )
    table, sample = performer.samples.popleft()
    for n in (sample.n // 2, sample.n - sample.n // 2):
        reading = actor.pull_sample(table, sample, n)
        await reading.wait()
        await performer.under_way(actor.push(table, reading.keys))
    actor.advance()


WORKLOADS: dict[str, Workload] = {
    "mix": Workload("everything, on few contended and many spread rows", _mix_tables, _mix),
    "chase": Workload("short intents move few rows about, accesses run after them", _chase_tables, _chase),
    "counter": Workload("all push to one row", _counter_tables, _counter),
    "bank": Workload("transfers between accounts, whose total stays", _bank_tables, _bank, shared=frozenset({0})),
    "trainer": Workload("batches, signalled ahead, pulled and pushed", _trainer_tables, _trainer),
    "sampler": Workload("samples of every technique, pulled and pushed to", _sampler_tables, _sampler),
}


def named(name: str) -> Workload:
    """The workload of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in WORKLOADS:
        raise UsageError(f"there is no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]
