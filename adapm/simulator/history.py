"""What happened, in order: its hash says whether two runs were the same, its end explains a failure."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from adapm.simulator.frames import Item
from adapm.simulator.invariants import Row

KEPT = 20_000  # events, of which a trace is made
_NUMBERS = struct.Struct("<dqq")


class Happening(NamedTuple):
    """One event: when, what, to whom; which rows it touches (None: it concerns all), and a frame's items."""

    time: float
    what: str
    a: int
    b: int
    rows: Collection[Row] | None
    items: Collection[Item]


class History:
    """The log of one run.

    Args:
        clock: virtual seconds.

    Attributes:
        events: how many so far.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.events = 0
        self._clock = clock
        self._hash = hashlib.blake2b(digest_size=16)
        self._latest: deque[Happening] = deque(maxlen=KEPT)

    @property
    def hash(self) -> str:
        """Of everything so far, in hexadecimal."""
        return self._hash.hexdigest()

    def add(
        self,
        what: str,
        a: int = 0,
        b: int = 0,
        data: bytes = b"",
        rows: Collection[Row] | None = (),
        items: Collection[Item] = (),
    ) -> None:
        """Something happened.

        Args:
            what: in a word or two.
            a, b: to whom or between whom, or how much.
            data: what else makes it this event and no other.
            rows: that it touches; None: it concerns them all.
            items: of a frame.
        """
        now = self._clock()
        self.events += 1
        self._hash.update(_NUMBERS.pack(now, a, b))
        self._hash.update(what.encode())
        self._hash.update(data)
        self._latest.append(Happening(now, what, a, b, rows, items))

    def trace(self, row: Row | None, lines: int = 40) -> list[str]:
        """The last events that touch the row, one per line; of all rows if None."""
        about = [one for one in self._latest if row is None or one.rows is None or row in one.rows]
        return [_line(happening, row) for happening in about[-lines:]]


def _line(happening: Happening, row: Row | None) -> str:
    text = f"{happening.time * 1e3:10.3f} ms  {happening.what} {happening.a} {happening.b}"
    for item in happening.items:
        if row is None or (item.table, item.row) == row:
            text += f"  {item.type.name}"
            if item.counter:
                text += f" #{item.counter}"
            if item.value is not None:
                text += f" {item.value.tolist()}"
    return text
