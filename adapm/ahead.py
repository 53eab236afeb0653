"""Intent from the batches themselves: they are read some steps before their turn, and their keys signalled.

    clock            c        c+1      c+2      ...      c+ahead
    handed out    batch 0
    signalled     batch 0   batch 1  batch 2    ...    batch `ahead`         each for one clock

When the loop asks for the next batch, the clock moves to c+1: the intent for batch 0 has expired, that for batch 1
is active.
"""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar, overload

import numpy.typing as npt

from adapm.errors import Closed, IntentRangeError
from adapm.worker import BlockingWorker, Worker

Batch = TypeVar("Batch")

# How far ahead: rows that are wanted on two nodes meanwhile stay on both. If it is short, they move to and fro; if
# it is long, many rows are replicated, whose copies lack what others changed in so many batches.
BATCHES = 40
LEAST_SECONDS, MOST_SECONDS = 0.1, 0.4  # however short a batch is, and however long
FEWEST, MOST = 20, 1000  # batches, in any case


@overload
def ahead(
    batches: AsyncIterable[Batch],
    worker: Worker,
    *,
    keys: Callable[[Batch], Mapping[str, npt.ArrayLike]],
    ahead: int | None = None,
) -> AsyncIterator[Batch]: ...
@overload
def ahead(
    batches: Iterable[Batch],
    worker: Worker | BlockingWorker,
    *,
    keys: Callable[[Batch], Mapping[str, npt.ArrayLike]],
    ahead: int | None = None,
) -> Iterator[Batch]: ...
def ahead(
    batches: Iterable[Batch] | AsyncIterable[Batch],
    worker: Worker | BlockingWorker,
    *,
    keys: Callable[[Batch], Mapping[str, npt.ArrayLike]],
    ahead: int | None = None,
) -> Iterator[Batch] | AsyncIterator[Batch]:
    """Hands out the batches in order, with their rows made local before their turn; the clock moves by one per batch.

        for batch in adapm.ahead(batches, worker, keys=lambda b: {"entities": b.entities}): ...
        async for batch in adapm.ahead(loader, worker, keys=...): ...        # if the source is asynchronous

    Each batch's keys are signalled for the one clock at which it is handed out, so leave the clock to this loop.
    However the loop ends - exhausted, left with `break`, or because the source or `keys` raised - the clock ends
    behind the last batch that was read, so that no row stays wanted.  Batches that were read and not handed out by
    then are gone, if the source is an iterator that can be read once only.

    Args:
        batches: any iterable or asynchronous iterable of batches; it is read from this thread, some batches early.
        worker: the worker that will pull and push the batches' rows.
        keys: gives the rows that a batch will access: a mapping from tables' names to keys, as `pull` takes them.
        ahead: how many batches are signalled beyond the one that is handed out.  By default 40, but what the loop works
            through in 0.1 to 0.4 s, and 20 to 1,000: the manager needs some milliseconds to act, and does not take a
            row from a worker that it knows to need it again soon.

    Raises:
        IntentRangeError: ahead is not a number of batches.  What `intent`, the source and `keys` raise comes through.
    """
    window = _Window(worker, keys, _checked(ahead))
    if isinstance(batches, AsyncIterable):
        return _hand_out_async(batches, window)
    return _hand_out(batches, window)


def _checked(ahead: int | None) -> int | None:
    try:
        count = None if ahead is None else operator.index(ahead)
    except TypeError:
        count = -1
    if count is not None and count < 0:
        raise IntentRangeError(f"ahead={ahead!r}: give a number of batches, or leave it out to have one chosen")
    return count


class _Window(Generic[Batch]):
    """The batches that are signalled and not handed out yet."""

    def __init__(
        self,
        worker: Worker | BlockingWorker,
        keys: Callable[[Batch], Mapping[str, npt.ArrayLike]],
        fixed: int | None,
    ) -> None:
        self._worker = worker
        self._keys = keys
        self._pace = _Pace(fixed)
        self._base: int | None = None  # clock of batch 0, known when it is read
        self._read = 0
        self._waiting: deque[Batch] = deque()

    def add(self, batch: Batch) -> None:
        """Signals a batch, for the clock at which it will be handed out."""
        if self._base is None:
            self._base = self._worker.clock
        due = self._base + self._read
        self._read += 1  # counted before it is signalled: whatever is signalled must expire
        for table, keys in self._keys(batch).items():
            self._worker.intent(table, keys, due)
        self._waiting.append(batch)

    def ready(self) -> bool:
        """Whether enough batches are read to hand one out."""
        return len(self._waiting) > self._pace.ahead

    def take(self) -> Batch:
        """The next batch, after the clock has been moved to it."""
        self._reach(self._read - len(self._waiting))
        self._pace.step(time.perf_counter())
        return self._waiting.popleft()

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Moves the clock behind everything that was signalled."""
        with contextlib.suppress(Closed):  # a generator may outlive its worker; then nothing is wanted any more
            self._reach(self._read)

    def _reach(self, batch: int) -> None:
        while self._base is not None and self._worker.clock < self._base + batch:
            self._worker.advance_clock()


class _Pace:
    """How far to be ahead: as told, or as far as the loop's measured pace asks for."""

    def __init__(self, fixed: int | None) -> None:
        self.ahead = FEWEST if fixed is None else fixed
        self._fixed = fixed is not None
        self._last: float | None = None
        self._mean: float | None = None  # seconds per batch, recent ones counting more

    def step(self, now: float) -> None:
        """A batch is handed out now, in seconds of any clock."""
        if self._fixed:
            return
        if self._last is not None:
            seconds = now - self._last
            self._mean = seconds if self._mean is None else 0.9 * self._mean + 0.1 * seconds
            horizon = min(MOST_SECONDS, max(LEAST_SECONDS, BATCHES * self._mean))
            self.ahead = min(MOST, max(FEWEST, math.ceil(horizon / max(self._mean, 1e-9))))
        self._last = now


def _hand_out(batches: Iterable[Batch], window: _Window[Batch]) -> Iterator[Batch]:
    try:
        for batch in batches:
            window.add(batch)
            while window.ready():
                yield window.take()
        while window:
            yield window.take()
    finally:
        window.close()


async def _hand_out_async(batches: AsyncIterable[Batch], window: _Window[Batch]) -> AsyncIterator[Batch]:
    try:
        async for batch in batches:
            window.add(batch)
            while window.ready():
                yield window.take()
        while window:
            yield window.take()
    finally:
        window.close()
