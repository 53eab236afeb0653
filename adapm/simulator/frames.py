"""Reads the frames that lanes exchange: what is under way belongs to the accounts. native/wire.h is the format."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FRAME_HEAD = 8  # bytes
HEAD = struct.Struct("<IIBBHIIIII")


class Type(enum.IntEnum):
    """Of a message; the numbers are the kernel's."""

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


_TYPES = {int(kind): kind for kind in Type}

WITH_COUNTER = {Type.STATE, Type.GRANT, Type.GRANT_CURRENT, Type.MOVED, Type.ANSWER, Type.ACK}
WITH_POS = {Type.PULL, Type.PUSH, Type.SET}
WHOLE_ROW = {Type.DELTA, Type.STATE, Type.GRANT}
COLUMNS = {Type.SET_ROW, Type.PUSH, Type.SET, Type.ANSWER}


MORE = 1  # flag of REPLY_END: the budget left stale rows behind
REFRESH = 2  # flag of ROUND_END: the reply is to bring what is stale; of NUDGE: the round is to ask for it


class Item(NamedTuple):
    """One item of a message.

    Attributes:
        type: of its message.
        origin: the node on whose behalf it travels, where that is not the sender.
        table, row: which row; row is the position in the operation for ANSWER and ACK, -1 for ends and nudges.
        counter: of the hint that it brings, 0 if it brings none.
        columns: offset and length of the columns that `value` has, where it is not the whole row.
        value: float32; None for what carries no values.
        flags: of its message.
    """

    type: Type
    origin: int
    table: int
    row: int
    counter: int
    columns: tuple[int, int]
    value: npt.NDArray[np.float32] | None
    flags: int = 0


def items(frame: bytes | memoryview, row_len: Sequence[int]) -> Iterator[Item]:
    """Every item of a frame in order; an end or a nudge counts as one without a row.

    Args:
        frame: as a lane made it.
        row_len: floats in a row of each table.
    """
    data = bytes(frame)
    at = FRAME_HEAD
    while at < len(data):
        n, size, kind, flags, origin, table, _worker, _op, offset, length = HEAD.unpack_from(data, at)
        kind = _TYPES[kind]
        floats = row_len[table] if kind in WHOLE_ROW else length if kind in COLUMNS else 0
        extra = 8 if kind in WITH_COUNTER else 4 if kind in WITH_POS else 0
        for i in range(n):
            start = at + HEAD.size + i * (4 + extra + 4 * floats)
            (row,) = struct.unpack_from("<I", data, start)
            counter = struct.unpack_from("<Q", data, start + 4)[0] if kind in WITH_COUNTER else 0
            value = np.frombuffer(data, np.float32, floats, start + 4 + extra) if floats else None
            yield Item(kind, origin, table, row, counter, (offset, length), value, flags)
        if n == 0:
            yield Item(kind, origin, table, -1, 0, (0, 0), None, flags)
        at += size
