"""Reads the frames that lanes exchange, for tests: what is under way belongs to the accounts."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FRAME_HEAD = 8
HEAD = struct.Struct("<IIBBHIIIII")


class Type(enum.IntEnum):
    DELTA = 1
    DROP = 2
    SET_ROW = 3
    WANT = 4
    ROUND_END = 5
    STATE = 6
    GRANT = 7
    GRANT_CURRENT = 8
    REPLY_END = 9
    FORWARDED_WANT = 10
    MOVED = 11
    NUDGE = 12
    PULL = 13
    PUSH = 14
    SET = 15
    ANSWER = 16
    ACK = 17


WITH_COUNTER = {Type.STATE, Type.GRANT, Type.GRANT_CURRENT, Type.MOVED, Type.ANSWER, Type.ACK}
WITH_POS = {Type.PULL, Type.PUSH, Type.SET}
WHOLE_ROW = {Type.DELTA, Type.STATE, Type.GRANT}
COLUMNS = {Type.SET_ROW, Type.PUSH, Type.SET, Type.ANSWER}


@dataclass(frozen=True)
class Item:
    """One item of a message. row is the position in the operation for ANSWER and ACK."""

    type: Type
    origin: int
    table: int
    row: int
    counter: int
    columns: tuple[int, int]
    value: npt.NDArray[np.float32] | None


def items(frame: bytes | memoryview, row_len: Sequence[int]) -> Iterator[Item]:
    """Every item of a frame in order; an end or a nudge counts as one without a row (-1)."""
    data = bytes(frame)
    at = FRAME_HEAD
    while at < len(data):
        n, size, kind, _flags, origin, table, _worker, _op, offset, length = HEAD.unpack_from(data, at)
        kind = Type(kind)
        floats = row_len[table] if kind in WHOLE_ROW else length if kind in COLUMNS else 0
        extra = 8 if kind in WITH_COUNTER else 4 if kind in WITH_POS else 0
        for i in range(n):
            start = at + HEAD.size + i * (4 + extra + 4 * floats)
            (row,) = struct.unpack_from("<I", data, start)
            counter = struct.unpack_from("<Q", data, start + 4)[0] if kind in WITH_COUNTER else 0
            value = np.frombuffer(data, np.float32, floats, start + 4 + extra) if floats else None
            yield Item(kind, origin, table, row, counter, (offset, length), value)
        if n == 0:
            yield Item(kind, origin, table, -1, 0, (0, 0), None)
        at += size
