"""How a worker gets at rows: those of this machine at once, the others through its mailbox.

    pull_now, push_now      one C call (native/call.c) for what is common: arrays that are as the kernel wants them
    intend_now              likewise of an intent
    pull_rest, push_rest    whatever that leaves: conversions and complaints, and the rows that are elsewhere

The first pair changes nothing unless its arguments are in order, so the second begins where the first has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from adapm.arguments import Columns, Pointer, Rows, Target, check_range, take_clocks, take_keys, take_out, take_values
from adapm.errors import UnknownTable, nearest
from adapm.kernel import address, caller, ffi, lib
from adapm.mailbox import NOTHING, PUSH, SET, Mailbox, Outcome, Ready
from adapm.tables import Table

Pulled: TypeAlias = "Rows | tuple[Rows, int] | None"
"""Of `pull_now`: all rows; or rows, and what the kernel said of those that are missing; or None: nothing is done."""

_SCRATCH = 1024  # keys, at first


class Access:
    """Pulls, pushes and sets of one worker.

    Args:
        mailbox: the worker's; what is not local goes through it.
        tables: all tables, in the order of their indices.

    Attributes:
        pull_now: (table, keys, columns, out) -> Pulled.
        push_now: (table, keys, columns, values) -> what the kernel said, 0: all is done; or None: it did nothing.
        intend_now: (table, keys, start, end) -> of how many keys the node has been told, or what the kernel refused;
            or None: it did nothing.
    """

    def __init__(self, mailbox: Mailbox, tables: Sequence[Table]) -> None:
        self._mailbox = mailbox
        self._handle = mailbox.worker
        self._targets = {table.name: Target(index, table) for index, table in enumerate(tables)}
        self._caller = caller(self._handle, {name: (t.index, t.spans) for name, t in self._targets.items()})
        self._make_scratch(_SCRATCH)
        self.pull_now = self._caller.pull
        self.push_now = self._caller.push
        self.intend_now = self._caller.intent

    def close(self) -> None:
        """Nothing reaches the segment any more; to be called before the mailbox closes."""
        self._caller.close()
        self._targets = {}

    def target(self, table: str) -> Target:
        """The table of this name.

        Raises:
            UnknownTable: there is none.
            Closed: the worker is closed, and knows no table.
        """
        try:
            return self._targets[table]
        except (KeyError, TypeError):
            self._mailbox.attached()
            raise UnknownTable(f"there is no table {table!r}{nearest(table, self._targets)}") from None

    def pull_rest(
        self, table: str, keys: npt.ArrayLike, columns: Columns, out: Rows | None, pulled: Pulled
    ) -> Outcome[Rows]:
        """What `pull_now` has not done, given its arguments and result; errors are those of Worker.pull."""
        target = self.target(table)
        pointer, n = take_keys(target, keys)
        span = target.span(columns)
        if isinstance(pulled, tuple):
            rows, missed = pulled
            room = take_out(target, rows, n, span[1])
        else:
            rows = np.empty((n, span[1]), np.float32) if out is None else out
            room = take_out(target, rows, n, span[1])
            self._reserve(n)
            missed = lib.adapm_pull(self._handle, target.index, *span, pointer, n, room, self._scratch)
        if not missed:
            return Ready(rows)
        check_range(missed, target, keys, pointer, n)
        return self._mailbox.read(target, span, pointer, self._scratch, missed, rows, room)

    def push_rest(
        self, table: str, keys: npt.ArrayLike, columns: Columns, values: npt.ArrayLike, pushed: int | None
    ) -> Outcome[None]:
        """What `push_now` has not done, given its arguments and result; errors are those of Worker.push."""
        return self._write(PUSH, table, keys, columns, values, pushed)

    def set(self, table: str, keys: npt.ArrayLike, columns: Columns, values: npt.ArrayLike) -> Outcome[None]:
        """Arguments and errors are those of Worker.set."""
        return self._write(SET, table, keys, columns, values, None)

    def intend_rest(self, table: str, keys: npt.ArrayLike, start: int, end: int | None, told: int | None) -> None:
        """What `intend_now` has not done, given its arguments and result; errors are those of Worker.intent."""
        target = self.target(table)
        pointer, n = take_keys(target, keys)
        first, last = take_clocks(target, start, end)
        told = self._mailbox.intend(target, pointer, n, first, last, told or 0)
        check_range(told, target, keys, pointer, n)

    def _write(
        self, kind: int, table: str, keys: npt.ArrayLike, columns: Columns, values: npt.ArrayLike, missed: int | None
    ) -> Outcome[None]:
        """Args: missed: what the kernel said, if it has been called already."""
        target = self.target(table)
        pointer, n = take_keys(target, keys)
        span = target.span(columns)
        source = take_values(target, values, n, span[1])
        if missed is None:
            self._reserve(n)
            write = lib.adapm_push if kind == PUSH else lib.adapm_set
            missed = write(self._handle, target.index, *span, pointer, n, source, self._scratch)
        check_range(missed, target, keys, pointer, n)
        if missed > 0 and kind == SET:
            missed = self._drop_overwritten(pointer, n, missed)
        if not missed:
            return NOTHING
        return self._mailbox.write(kind, target, span, pointer, self._scratch, missed, source)

    def _drop_overwritten(self, keys: Pointer, n: int, missed: int) -> int:
        """Takes misses out of the scratch whose key comes again later in the same call; returns how many are left.

        The last value of a key wins.  The local part keeps the order by itself, but a row may become local in the
        middle of a call, and requests of different chunks may overtake each other.
        """
        _, first_from_behind = np.unique(np.frombuffer(ffi.buffer(keys), np.int64)[::-1], return_index=True)
        last = np.zeros(n, np.bool_)
        last[n - 1 - first_from_behind] = True
        positions = np.frombuffer(ffi.buffer(self._scratch, 4 * missed), np.uint32)
        kept = positions[last[positions]]
        ffi.memmove(self._scratch, kept, kept.nbytes)
        return len(kept)

    def _reserve(self, n: int) -> None:
        if n > self._room:
            self._make_scratch(n)

    def _make_scratch(self, room: int) -> None:
        """Where the kernel says which keys it could not serve; it lives as long as no call needs a larger one."""
        self._scratch: Pointer = ffi.new("uint32_t[]", room)
        self._room = room
        self._caller.use_scratch(address(self._scratch), room)
