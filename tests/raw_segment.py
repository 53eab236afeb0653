"""A segment's memory as arrays, for tests that play the node of the kernel's worker half: layout.h in numpy."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

LOCK, READ, WRITE, TRACK, DIRTY, SEQ = 1 << 31, 1 << 30, 1 << 29, 1 << 28, 1 << 27, (1 << 27) - 1
OWNED, SHARED, PENDING, ABSENT = READ | WRITE, READ | WRITE | TRACK, WRITE | TRACK, 0  # SHARED: replicas too
STATE = READ | WRITE | TRACK | DIRTY
LANE = 0x04000000  # a lane's id when it locks

_U32, _U64, _I64 = np.dtype("<u4"), np.dtype("<u8"), np.dtype("<i8")


def _struct(itemsize: int, /, **fields: tuple[Any, int]) -> np.dtype[np.void]:
    """A C struct: name=(type, offset)."""
    return np.dtype(
        {
            "names": list(fields),
            "formats": [kind for kind, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": itemsize,
        }
    )


HEADER = _struct(
    192,
    magic=(_U64, 0), version=(_U32, 8), node=(_U32, 12), nnodes=(_U32, 16), ntables=(_U32, 20), nlanes=(_U32, 24),
    nworkers=(_U32, 28), size=(_U64, 32), seed=(_U64, 40), off_tables=(_U64, 48), off_lanes=(_U64, 56),
    off_workers=(_U64, 64), failed=(_U32, 128),
)  # fmt: skip
TABLE = _struct(
    72,
    rows=(_U64, 0), row_len=(_U32, 8), stride=(_U32, 12), eighth=(_U64, 16), capacity=(_U64, 24),
    off_entries=(_U64, 32), off_arena=(_U64, 40), off_cells=(_U64, 48), distribution=(_U64, 56),
    off_stamps=(_U64, 64),
)  # fmt: skip
LANE_SHARED = _struct(128, asleep=(_U32, 0), kicked=(_U32, 4), moment=(_U64, 8))
RING = _struct(192, off=(_U64, 0), mask=(_U64, 8), head=(_U64, 64), tail=(_U64, 128))
HELD = _struct(16, row=(_U64, 0), old=(_U64, 8))
WORKER = _struct(
    1600,
    clock=(_I64, 0), state=(_U32, 8), waiting=(_U32, 12), oldest=(_U64, 16), wake_clock=(_I64, 64),
    hold_table=(_U64, 128), hold_rows=(_U64, 136), hold_saved=(_U64, 144),
    off_undo=(_U64, 152), off_heap=(_U64, 160), heap_bytes=(_U64, 168), held=(np.dtype((HELD, 32)), 192),
    intent=(RING, 832), dirty=(RING, 1024), request=(RING, 1216), done=(RING, 1408),
)  # fmt: skip
REQUEST = _struct(
    32,
    op=(_U32, 0),
    kind=(_U32, 4),
    table=(_U32, 8),
    n=(_U32, 12),
    col_off=(_U32, 16),
    col_len=(_U32, 20),
    off=(_U64, 24),
)
COMPLETION = _struct(16, op=(_U32, 0), status=(np.dtype("<i4"), 4), detail=(_U64, 8))
INTENT = _struct(32, table=(_U32, 0), n=(_U32, 4), start=(_I64, 8), end=(_I64, 16))
SKIP = 0xFFFFFFFF


class RawTable:
    """One table's entries and arena."""

    def __init__(self, raw: RawSegment, table: np.void) -> None:
        self.rows, self.row_len = int(table["rows"]), int(table["row_len"])
        self._eighth = int(table["eighth"])
        self._entries = raw.array(_U64, int(table["off_entries"]), 8 * self._eighth)
        shape = int(table["capacity"]), int(table["stride"])
        self.arena = raw.array(np.dtype("<f4"), int(table["off_arena"]), shape[0] * shape[1]).reshape(shape)

    def word(self, row: int) -> int:
        return int(self._entries[self._position(row)])

    def put_word(self, row: int, word: int) -> None:
        self._entries[self._position(row)] = word

    def state(self, row: int) -> int:
        return self.word(row) & STATE

    def slot(self, row: int) -> int:
        return self.word(row) >> 32

    def value(self, row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self.arena[self.slot(row), : self.row_len]

    def place(self, row: int, state: int, slot: int, value: Any = 0.0) -> None:
        """Gives the row a slot and a state, as a node would."""
        self.arena[slot, : self.row_len] = value
        self.put_word(row, slot << 32 | state | (self.word(row) + 1 & SEQ))

    def evict(self, row: int) -> None:
        self.put_word(row, self.word(row) + 1 & SEQ)

    def lock(self, row: int) -> int:
        """Locks the row for lane 0 and returns the word to unlock it with."""
        word = self.word(row)
        self.put_word(row, word & ~SEQ | LOCK | LANE + 1)
        return word & ~SEQ | (word + 1 & SEQ)

    def _position(self, row: int) -> int:
        return (row & 7) * self._eighth + (row >> 3)


class RawSegment:
    """Views of everything that node and workers share."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, 0)
        self.header = self.array(HEADER, 0, 1)[0]
        self.shapes = self.array(TABLE, int(self.header["off_tables"]), int(self.header["ntables"]))
        self.tables = [RawTable(self, shape) for shape in self.shapes]
        self.lane = self.array(LANE_SHARED, int(self.header["off_lanes"]), 1)[0]
        self.workers = self.array(WORKER, int(self.header["off_workers"]), int(self.header["nworkers"]))

    def close(self) -> None:
        """Drops all views: the file stays open as long as there is one."""
        for holder in (*self.tables, self):
            vars(holder).clear()

    def array(self, dtype: np.dtype[Any], offset: int, count: int) -> np.ndarray[Any, Any]:
        return np.frombuffer(self._memory, dtype, count, offset)

    def ring(self, worker: int, name: str, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A ring's data, to be indexed with position & mask."""
        ring = self.workers[worker][name]
        return self.array(
            dtype, int(ring["off"]), (int(ring["mask"]) + 1) // (dtype.itemsize if name == "intent" else 1)
        )

    def dirty(self, worker: int = 0) -> list[tuple[int, int]]:
        """Takes (table, row) of all dirty records."""
        ring, records = self.workers[worker]["dirty"], self.ring(worker, "dirty", _U64)
        taken = [int(records[at & int(ring["mask"])]) for at in range(int(ring["tail"]), int(ring["head"]))]
        ring["tail"] = ring["head"]
        return [(record >> 32, record & 0xFFFFFFFF) for record in taken]

    def requests(self, worker: int = 0) -> list[np.void]:
        """Takes all requests."""
        ring, records = self.workers[worker]["request"], self.ring(worker, "request", REQUEST)
        taken = [records[at & int(ring["mask"])].copy() for at in range(int(ring["tail"]), int(ring["head"]))]
        ring["tail"] = ring["head"]
        return taken

    def request_keys(self, request: np.void) -> np.ndarray[Any, np.dtype[np.uint32]]:
        return self.array(_U32, int(request["off"]), int(request["n"]))

    def request_rows(self, request: np.void) -> np.ndarray[Any, np.dtype[np.float32]]:
        n, col_len = int(request["n"]), int(request["col_len"])
        at = int(request["off"]) + (4 * n + 63) // 64 * 64
        return self.array(np.dtype("<f4"), at, n * col_len).reshape(n, col_len)

    def complete(self, op: int, status: int = 0, detail: int = 0, worker: int = 0) -> None:
        ring, records = self.workers[worker]["done"], self.ring(worker, "done", COMPLETION)
        records[int(ring["head"]) & int(ring["mask"])] = (op, status, detail)
        ring["head"] += 1

    def intents(self, worker: int = 0) -> list[tuple[int, int, int, list[int]]]:
        """Takes all intent records as (table, start, end, keys)."""
        ring, taken = self.workers[worker]["intent"], []
        base, size, at = int(ring["off"]), int(ring["mask"]) + 1, int(ring["tail"])
        while at < int(ring["head"]):
            place = base + at % size
            if self.array(_U32, place, 1)[0] == SKIP:
                at += size - at % size
                continue
            record = self.array(INTENT, place, 1)[0]
            n = int(record["n"])
            keys = self.array(_U32, place + INTENT.itemsize, n).tolist()
            taken.append((int(record["table"]), int(record["start"]), int(record["end"]), keys))
            at += INTENT.itemsize + (n + n % 2) * 4
        ring["tail"] = at
        return taken
