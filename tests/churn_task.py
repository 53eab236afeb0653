"""What workers of test_churn.py do: they move rows about as fast as they can, push to them, and keep books of it.

Each worker pushes small integers to a column of its own.  The books lie in files that all processes of a run map: what
has been pushed is written there before it is pushed, so that nobody may ever see more of it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

import adapm
from adapm.errors import AdapmError
from adapm.kernel import lib
from adapm.mailbox import Outcome
from adapm.simulator.ledger import Eyes, Int, Ledger

TABLE = "rows"
MARK = b"."  # of progress; a worker that is going to stop itself gives its id
AHEAD = 6  # clocks by which intents come before their pushes, at most
LONGEST = 3  # clocks that an intent lasts, at most
UNAWAITED = 16  # batches under way, at most
MOST = 3  # what is added to a row at once, at most
CALM = 500  # looks at whether everything has come to rest


@dataclass(frozen=True)
class Load:
    """How much is done, and where its traces are.

    Attributes:
        folder: of the books and of "progress", a fifo.
        seed: of everything random.
        rows: of the table; the first `hot` are what half of the keys are among.
        steps: batches that each worker pushes.
        keys: of each batch, at most.
        single: whether every row is pushed by a call of its own.
        barriers: steps between two.
        halts: how often each worker of even id stops (SIGSTOP) in the middle of a push, while it has rows locked.
        marks: signs of progress that each worker gives, evenly spaced, and one more when all its rows are right.
    """

    folder: Path
    seed: int
    workers: int
    rows: int
    steps: int
    keys: int
    single: bool = False
    hot: int = 100
    barriers: int = 400
    halts: int = 0
    marks: int = 50

    @property
    def table(self) -> adapm.Table:
        return adapm.Table(TABLE, rows=self.rows, dim=self.workers)

    @property
    def progress(self) -> Path:
        return self.folder / "progress"

    def prepare(self) -> None:
        """Makes the empty books and the fifo."""
        self.folder.mkdir()
        os.mkfifo(self.progress)
        for path, shape in Books.files(self):
            path.write_bytes(bytes(8 * int(np.prod(shape))))


class Books(Ledger):
    """The simulator's books, in files: a worker writes to its own column alone."""

    def __init__(self, load: Load) -> None:
        super().__init__([load.table], load.workers)
        maps = [np.memmap(path, np.int64, "r+", shape=shape) for path, shape in self.files(load)]
        totals, *arrivals, self.unrest = map(np.asarray, maps)  # plain arrays are faster
        self.totals, self._of_barriers = [totals], arrivals

    @staticmethod
    def files(load: Load) -> list[tuple[Path, tuple[int, int]]]:
        """Totals, totals at the last barrier of even and of odd number, replicas and pending rows by worker."""
        of_rows = [(load.folder / name, (load.rows, load.workers)) for name in ("totals", "even", "odd")]
        return [*of_rows, (load.folder / "unrest", (load.workers, 2))]

    def note(self, worker: int, keys: Int, amounts: Int) -> None:
        """This is about to be pushed."""
        np.add.at(self.totals[0][:, worker], keys, amounts)

    def arrives(self, worker: int, columns: Iterable[tuple[int, slice]] = ()) -> int:
        """As in Ledger. Nobody comes to the barrier after next before everybody is done with this one."""
        barrier = self._at[worker]
        self._at[worker] += 1
        self._of_barriers[barrier % 2][:, worker] = self.totals[0][:, worker]
        return barrier

    def before(self, barrier: int) -> list[Int]:
        return [self._of_barriers[barrier % 2]]


class Batch(NamedTuple):
    keys: Int
    amounts: Int


class Churner:
    """One worker's work."""

    def __init__(self, worker: adapm.BlockingWorker, load: Load) -> None:
        self._worker, self._load = worker, load
        self._rng = np.random.default_rng([load.seed, worker.id])
        self._books = Books(load)
        self._eyes = Eyes(self._books, worker.id, [load.table])
        self._batches = deque(self._drawn() for _ in range(AHEAD))
        self._pending: deque[tuple[list[Outcome[None]], Batch]] = deque()
        self._progress = load.progress.open("wb", buffering=0)
        halts = 0 if worker.id % 2 else load.halts
        self._halts = set(self._rng.choice(load.steps, halts, replace=False).tolist())

    def step(self, number: int) -> None:
        """Some intents, one push, and now and then a pull, a sync or a barrier."""
        self._signal()
        if number in self._halts:
            self._progress.write(b"%c" % self._worker.id)
            step, after = self._rng.integers((2, 0), (6, self._load.keys // 2)).tolist()
            lib.adapm_stop_at(self._worker._handle, step, after)
        self._push(self._batches.popleft())
        if self._rng.random() < 0.3:
            self._pull()
        if self._rng.random() < 0.01:
            self._settle()
            self._worker.wait_sync()
        if number % self._load.barriers == self._load.barriers - 1:
            self._meet()
        if self._marks(number + 1) > self._marks(number):
            self._progress.write(MARK)
        self._worker.advance_clock()

    def finish(self) -> None:
        """Lets all intents expire, waits until nothing moves any more, and compares all rows with the books."""
        lib.adapm_stop_at(self._worker._handle, 0, 0)
        self._settle()
        for _ in range(AHEAD + LONGEST):
            self._worker.advance_clock()
        self._meet()
        for _ in range(CALM):
            if self._at_rest():
                break
        else:
            raise AssertionError(f"replicas and pending rows, by worker: {self._books.unrest.tolist()}")
        found = self._worker.read_table(TABLE)
        wrong = np.argwhere(found != self._books.totals[0])
        assert not len(wrong), f"{len(wrong)} sums are wrong: {self._wrong(found, wrong[:5])}"
        self._worker.barrier()
        self._progress.write(MARK)

    # ---- operations

    def _marks(self, steps: int) -> int:
        """How many there are in so many steps."""
        return steps * self._load.marks // self._load.steps

    def _drawn(self, most: int | None = None) -> Batch:
        rng, n = self._rng, int(self._rng.integers(1, (most or self._load.keys) + 1))
        keys = np.where(
            rng.random(n) < 0.5, rng.integers(self._load.hot, size=n), rng.integers(self._load.rows, size=n)
        )
        return Batch(keys, rng.integers(1, MOST + 1, size=n))

    def _signal(self) -> None:
        """Draws the batch after next few and says when it will come; or asks for rows that it will not need."""
        self._batches.append(self._drawn())
        clock, kind = self._worker.clock, self._rng.random()
        if kind < 0.6:
            self._intend(self._batches[-1].keys, clock + AHEAD)
        elif kind < 0.75:
            self._intend(self._drawn().keys, clock)

    def _intend(self, keys: Int, start: int) -> None:
        self._worker.intent(TABLE, keys, start, start + int(self._rng.integers(1, LONGEST + 1)))

    def _push(self, batch: Batch) -> None:
        values = np.zeros((len(batch.keys), self._load.workers), np.float32)
        values[:, self._worker.id] = batch.amounts
        self._books.note(self._worker.id, *batch)
        size = 1 if self._load.single else len(values)
        parts = [slice(i, i + size) for i in range(0, len(values), size)]
        self._pending.append(
            ([self._worker.push_later(TABLE, batch.keys[part], values[part]) for part in parts], batch)
        )
        if len(self._pending) > UNAWAITED or self._rng.random() < 0.3:
            self._settle()

    def _settle(self) -> None:
        while self._pending:
            pushes, batch = self._pending.popleft()
            for pushed in pushes:
                pushed.result()
            self._eyes.pushed(0, *batch)

    def _pull(self) -> None:
        keys = self._drawn(2 * self._load.keys).keys
        expected = self._eyes.expected(0, keys)
        self._eyes.sees(0, keys, self._worker.pull(TABLE, keys), expected)

    def _meet(self) -> None:
        self._settle()
        barrier = self._books.arrives(self._worker.id)
        self._worker.barrier()
        self._eyes.passed_barrier(barrier)

    def _at_rest(self) -> bool:
        """Whether there are neither replicas nor pending rows anywhere; the same answer for every worker."""
        self._worker.wait_sync()
        node = self._worker.statistics().node
        self._books.unrest[self._worker.id] = node.rows_replica, node.rows_pending
        self._worker.barrier()
        calm = not self._books.unrest.any()
        self._worker.barrier()  # until all have read it
        return calm

    def _wrong(self, found: npt.NDArray[np.float32], where: npt.NDArray[np.int64]) -> str:
        totals = self._books.totals[0]
        return ", ".join(f"row {r}, column {c}: {found[r, c]:g} instead of {totals[r, c]}" for r, c in where)


def churn(worker: adapm.BlockingWorker, load: Load) -> None:
    """Does all of it."""
    churner = Churner(worker, load)
    for number in range(load.steps):
        churner.step(number)
    churner.finish()


def churn_until_lost(worker: adapm.BlockingWorker, load: Load) -> None:
    """The same, but the run fails meanwhile: leaves the error's name, node and message in a file, and raises it."""
    try:
        churn(worker, load)
    except AdapmError as error:
        said = [type(error).__name__, getattr(error, "node", None), str(error)]
        (load.folder / f"worker{worker.id}").write_text(json.dumps(said))
        raise
