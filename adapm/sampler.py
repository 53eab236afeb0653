"""Samples of a table's rows, as a worker draws them; what is drawn, and how, is in sampling.py.

    naive            keys are drawn when the sample is prepared
    preloc, pool     likewise, and their intent is signalled
    local            keys are drawn when they are pulled

All keys come from the kernel (native/sample.c), whole samples at once.
"""

from __future__ import annotations

import operator
from collections.abc import Generator
from typing import Any

import numpy as np

from adapm.arguments import Keys, Pointer, Rows, Target
from adapm.errors import SampleError
from adapm.kernel import check, ffi, lib
from adapm.mailbox import Outcome

_INT64S = ffi.typeof("int64_t[]")
_OF_NODE = 2**32 - 1  # in place of a worker's id: the stream of a node's pools
_MOST = 2**31 - 1  # keys of a sample


class Sample:
    """Keys that a worker is going to pull, made by `prepare_sample`, used up by `pull_sample`.

    Attributes:
        table: the table's name.
        n: of keys.
        left: how many of them have not been pulled yet.
        keys: int64 [n], read-only, in the order in which they are pulled; of the technique "local", which draws them
            only then, int64 [n - left].
    """

    __slots__ = ("_keys", "_sampler", "left", "n", "table")

    def __init__(self, sampler: Sampler, keys: Keys) -> None:
        self.table = sampler.target.name
        self.n = self.left = len(keys)
        self._sampler = sampler
        self._keys = keys

    @property
    def keys(self) -> Keys:
        known = self._keys[: self.n - self.left if self._sampler.late else self.n]
        known.flags.writeable = False  # of this view
        return known


class Sampled(Outcome[tuple[Keys, Rows]]):
    """What `Worker.pull_sample` returns: an awaitable of keys, int64 [n], and rows, float32 [n, length of the columns].

    Attributes:
        keys: the same keys, known at once.
        rows: the outcome of their pull alone.
    """

    __slots__ = ("keys", "rows")

    def __init__(self, keys: Keys, rows: Outcome[Rows]) -> None:
        self.keys = keys
        self.rows = rows

    def __await__(self) -> Generator[Any, None, tuple[Keys, Rows]]:
        rows = yield from self.rows.__await__()
        return self.keys, rows

    def done(self) -> bool:
        return self.rows.done()

    def result(self, timeout: float | None = None) -> tuple[Keys, Rows]:
        return self.keys, self.rows.result(timeout)


class Sampler:
    """Draws one worker's samples of one table.

    Args:
        segment: the kernel's handle; it must outlive this.
        target: the table.
        seed, node, worker: what the stream of random numbers depends on, beside the table.

    Attributes:
        target: the table.
        announces: whether a sample signals its intent when it is prepared.
        late: whether keys are drawn when they are pulled.
    """

    def __init__(self, segment: Pointer, target: Target, seed: int, node: int, worker: int) -> None:
        sampling = target.table.sampling
        self.target = target
        self.announces = sampling.technique in ("preloc", "pool")
        self.late = sampling.technique == "local"
        self._segment = segment
        self._distinct = not sampling.replacement
        self._how = lib.ADAPM_DISTINCT * self._distinct | lib.ADAPM_LOCAL * self.late
        self._support = sampling.support(target.rows)
        self._stream = self._seeded(seed, node, worker)
        self._pool: _Pool | None = None
        if sampling.technique == "pool":
            size = min(sampling.pool, self._support) if self._distinct else sampling.pool
            self._pool = _Pool(self, self._seeded(seed, node, _OF_NODE), size, sampling.uses)

    def prepare(self, n: int) -> Sample:
        """A sample of n keys.

        Raises:
            SampleError: n is no number of keys, or there are not so many different ones.
        """
        keys = np.empty(self._check_size(n), np.int64)
        if self._pool is not None:
            self._pool.take(keys, self._stream)
        elif not self.late:
            self.draw(self._stream, keys)
        return Sample(self, keys)

    def count(self, sample: Sample, n: int | None) -> int:
        """How many keys a pull takes from a sample.

        Raises:
            SampleError: the sample is another worker's, or has not so many left.
        """
        if sample._sampler is not self:
            raise SampleError(f"this sample of table {sample.table!r} was prepared by another worker: prepare one here")
        wanted = sample.left if n is None else _index(n)
        if not 0 <= wanted <= sample.left:
            raise SampleError(
                f"table {sample.table!r}: {n!r} keys cannot be pulled from a sample with {sample.left:,} left of"
                f" {sample.n:,}: prepare a larger one, or another"
            )
        return wanted

    def take(self, sample: Sample, n: int) -> Keys:
        """The next n keys of a sample, which has them: int64 [n]."""
        begin = sample.n - sample.left
        if self.late:
            self.draw(self._stream, sample._keys, begin, begin + n)
        sample.left -= n
        return sample._keys[begin : begin + n]

    def draw(self, stream: Pointer, keys: Keys, begin: int = 0, end: int | None = None) -> None:
        """Draws keys[begin:end], where keys[:begin] belong to the same sample."""
        where = begin, len(keys) if end is None else end
        drawn = lib.adapm_draw(
            self._segment, self.target.index, stream, self._how, ffi.from_buffer(_INT64S, keys), *where
        )
        check(drawn, table=self.target.name, keys=len(keys))

    def _check_size(self, n: int) -> int:
        size, table = _index(n), self.target.name
        if not 0 <= size <= _MOST:
            raise SampleError(f"table {table!r}: a sample has 0 to {_MOST:,} keys, got {n!r}")
        if self._distinct and size > self._support:
            raise SampleError(
                f"table {table!r}: a sample of {size:,} keys without replacement, but only {self._support:,} rows can"
                " be drawn: ask for fewer, or sample with replacement"
            )
        if self._distinct and self._pool is not None and size > self._pool.size:
            raise SampleError(
                f"table {table!r}: a sample of {size:,} keys without replacement from pools of {self._pool.size:,}:"
                " ask for fewer, or give Sampling(pool=...) more"
            )
        return size

    def _seeded(self, seed: int, node: int, worker: int) -> Pointer:
        stream = ffi.new("adapm_stream *")
        lib.adapm_stream_seed(stream, seed, node, worker, self.target.index)
        return stream


class _Pool:
    """Keys that are drawn once and used several times, in a new order each time.

    All workers of a node draw the same pools one after the other, from streams that begin alike; each at its own pace
    and in its own orders.  So what one of them has had brought to the node serves the others, and nobody waits.

    Args:
        sampler: draws the keys.
        stream: of the node's pools.
        size: keys in a pool.
        uses: of each pool.
    """

    def __init__(self, sampler: Sampler, stream: Pointer, size: int, uses: int) -> None:
        self.size = size
        self._sampler = sampler
        self._stream = stream
        self._keys = np.empty(size, np.int64)
        self._uses = uses
        self._uses_left = 0
        self._at = size
        self._whole = not sampler.target.table.sampling.replacement

    def take(self, keys: Keys, order: Pointer) -> None:
        """Fills keys with the next ones; `order` is the stream that mixes the pool anew for each use."""
        begin = 0
        if self._whole and len(keys) > self.size - self._at:
            self._at = self.size  # a sample of distinct keys lies within one use
        while begin < len(keys):
            if self._at == self.size:
                self._begin_use(order)
            taken = self._keys[self._at : self._at + len(keys) - begin]
            keys[begin : begin + len(taken)] = taken
            begin += len(taken)
            self._at += len(taken)

    def _begin_use(self, order: Pointer) -> None:
        if not self._uses_left:
            self._sampler.draw(self._stream, self._keys)
            self._uses_left = self._uses
        self._uses_left -= 1
        self._at = 0
        lib.adapm_shuffle(order, ffi.from_buffer(_INT64S, self._keys), self.size)


def _index(n: object) -> int:
    """The integer, or -1 if it is none."""
    try:
        return -1 if isinstance(n, (bool, np.bool_)) else operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        return -1
