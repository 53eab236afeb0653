"""A segment, one worker on it, and the kernel's functions on arrays instead of pointers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from adapm.kernel import check, ffi, lib
from adapm.segment import Segment
from adapm.statistics import COUNTERS
from adapm.tables import Table
from raw_segment import RawSegment

Array = np.ndarray[Any, Any]


class KernelWorker:
    """One worker's handle.

    Attributes:
        node_fd, worker_fd: the eventfds; whoever made them closes them.
    """

    def __init__(self, segment: Segment, slot: int, node_fd: int, worker_fd: int) -> None:
        error = ffi.new("int *")
        self.pointer = lib.adapm_worker_attach(segment.pointer, slot, node_fd, worker_fd, error)
        check(error[0], slot=slot)
        self.node_fd, self.worker_fd = node_fd, worker_fd

    def detach(self) -> None:
        lib.adapm_worker_detach(self.pointer)

    def pull(self, keys: npt.ArrayLike, columns: tuple[int, int], table: int = 0) -> tuple[Array, list[int]]:
        """Rows (nan where missed) and the indices of misses."""
        k, (col_off, col_len) = np.asarray(keys, np.int64), columns
        out = np.full((len(k), col_len), np.nan, np.float32)
        miss = np.zeros(max(1, len(k)), np.uint32)
        n = lib.adapm_pull(self.pointer, table, col_off, col_len, _int64(k), len(k), _float(out), _uint32(miss))
        return out, miss[: check(n)].tolist()

    def push(self, keys: npt.ArrayLike, values: npt.ArrayLike, col_off: int = 0, table: int = 0) -> list[int]:
        return self._write(lib.adapm_push, keys, values, col_off, table)

    def set(self, keys: npt.ArrayLike, values: npt.ArrayLike, col_off: int = 0, table: int = 0) -> list[int]:
        return self._write(lib.adapm_set, keys, values, col_off, table)

    def _write(self, call: Any, keys: npt.ArrayLike, values: npt.ArrayLike, col_off: int, table: int) -> list[int]:
        k, v = np.asarray(keys, np.int64), np.ascontiguousarray(values, np.float32)
        miss = np.zeros(max(1, len(k)), np.uint32)
        n = call(self.pointer, table, col_off, v.shape[1], _int64(k), len(k), _float(v), _uint32(miss))
        return miss[: check(n)].tolist()

    def is_local(self, keys: npt.ArrayLike, table: int = 0) -> list[bool]:
        k = np.asarray(keys, np.int64)
        out = np.zeros(len(k), np.uint8)
        lib.adapm_is_local(self.pointer, table, _int64(k), len(k), ffi.from_buffer("uint8_t[]", out))
        return out.astype(bool).tolist()

    def intent(self, keys: npt.ArrayLike, start: int, end: int, table: int = 0) -> int:
        k = np.asarray(keys, np.int64)
        return lib.adapm_intent(self.pointer, table, _int64(k), len(k), start, end)

    def post(
        self,
        kind: int,
        keys: Sequence[int] = (),
        values: npt.ArrayLike | None = None,
        *,
        positions: Sequence[int] | None = None,
        columns: tuple[int, int] = (0, 1),
        table: int = 0,
    ) -> tuple[int, int]:
        """The number of keys taken, and the op."""
        k = np.asarray(keys, np.int64)
        idx = ffi.NULL if positions is None else _uint32(np.asarray(positions, np.uint32))
        vals = ffi.NULL if values is None else _float(np.ascontiguousarray(values, np.float32))
        op = ffi.new("uint32_t *")
        n = len(k) if positions is None else len(positions)
        took = check(lib.adapm_post(self.pointer, kind, table, *columns, _int64(k), idx, n, vals, op))
        return took, op[0]

    def completed(self) -> tuple[int, int, int] | None:
        op, status, detail = ffi.new("uint32_t *"), ffi.new("int32_t *"), ffi.new("uint64_t *")
        return (op[0], status[0], detail[0]) if lib.adapm_completed(self.pointer, op, status, detail) else None

    def collect(self, op: int, out: Array | None = None, positions: Sequence[int] | None = None) -> None:
        idx = ffi.NULL if positions is None else _uint32(np.asarray(positions, np.uint32))
        lib.adapm_collect(self.pointer, op, ffi.NULL if out is None else _float(out), idx)

    def wait(self, timeout_ms: int = 10_000) -> int:
        return lib.adapm_wait(self.pointer, timeout_ms)

    def counters(self) -> dict[str, int]:
        out = ffi.new("uint64_t[]", len(COUNTERS))
        lib.adapm_worker_counters(self.pointer, out)
        return dict(zip(COUNTERS, out, strict=True))


def fired(fd: int) -> bool:
    """Whether the eventfd was written since the last look."""
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return False
    return True


@contextmanager
def kernel_worker(tables: Sequence[Table], **options: Any) -> Iterator[tuple[Segment, RawSegment, KernelWorker]]:
    """A segment with all rows absent, its memory, and a worker in slot 0."""
    segment = Segment.create(tables, **options)
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    raw = RawSegment(segment.fd)
    try:
        worker = KernelWorker(segment, 0, *fds)
        yield segment, raw, worker
        worker.detach()
    finally:
        raw.close()
        segment.close()
        for fd in fds:
            os.close(fd)


# Pointers that keep their array alive.


def _int64(array: Array) -> Any:
    return ffi.from_buffer("int64_t[]", array)


def _uint32(array: Array) -> Any:
    return ffi.from_buffer("uint32_t[]", array)


def _float(array: Array) -> Any:
    return ffi.from_buffer("float[]", array)
