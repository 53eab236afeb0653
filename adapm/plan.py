"""Accesses to the same arrays again and again, prepared once: what a small batch costs is mostly its arguments."""

from __future__ import annotations

from functools import partial
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from adapm.arguments import (
    FLOAT32,
    Columns,
    Pointer,
    Rows,
    Target,
    check_range,
    take_keys,
    take_out,
    take_values,
    used_in_place,
)
from adapm.kernel import ffi, lib
from adapm.mailbox import NOTHING, PUSH, Mailbox, Operation, Outcome, Ready


class Binding:
    """A table, keys and a buffer, as the kernel takes them.

    Args:
        mailbox: of the worker; what is not local goes through it.
        target: the table.
        keys: as `take_keys`; they stay as they are in memory, and the kernel looks at them in every call.
        columns: as in a pull.
        out: where the rows go; None makes a buffer.

    Raises:
        UsageError: UnknownColumn, KeyTypeError, ShapeError or BufferNotUsable.
    """

    def __init__(
        self, mailbox: Mailbox, target: Target, keys: npt.ArrayLike, columns: Columns, out: Rows | None
    ) -> None:
        self.name = target.name, columns
        self.keys = keys
        self._mailbox = mailbox
        self._target = target
        self._span = span = target.span(columns)
        self._pointer, self._n = take_keys(target, keys)
        self.rows: Rows = np.empty((self._n, span[1]), np.float32) if out is None else out
        self._room = take_out(target, self.rows, self._n, span[1])
        self._missed: Pointer = ffi.new("uint32_t[]", self._n)
        self._values: npt.ArrayLike | None = None  # the last ones, and where they are
        self._source: Pointer = ffi.NULL
        where = (mailbox.attached(), target.index, *span, self._pointer, self._n)
        self.pull_local = partial(lib.adapm_pull, *where, self._room, self._missed)
        self._push_local = partial(lib.adapm_push, *where)

    def close(self) -> None:
        """The worker ends: from now on the kernel must not be called with it."""
        self.pull_local = self._push_local = partial(_refuse, self._mailbox)  # type: ignore[assignment]

    def pull_rest(self, missed: int) -> Operation[Rows]:
        """Asks for the rows that `pull_local` has missed, that is when it did not return 0."""
        check_range(missed, self._target, self.keys, self._pointer, self._n)
        where = (self._target, self._span, self._pointer, self._missed, missed)
        return self._mailbox.read(*where, self.rows, self._room)

    def push(self, values: npt.ArrayLike) -> Operation[None] | None:
        """Adds the values; what is still to come of it, if anything is."""
        if values is not self._values:
            self._source = take_values(self._target, values, self._n, self._span[1])
            self._values = values if used_in_place(values, FLOAT32) else None
        missed = self._push_local(self._source, self._missed)
        if not missed:
            return None
        check_range(missed, self._target, self.keys, self._pointer, self._n)
        return self._mailbox.write(PUSH, self._target, self._span, self._pointer, self._missed, missed, self._source)


class Plan:
    """Prepared pulls and pushes of a Worker, made by `Worker.plan`.

    The arrays given to it are used where they are: change what they hold as you like, but neither their shape nor
    their memory.  Belongs to the worker's thread; pull again only after the last pull has ended.

    Attributes:
        rows: float32 [n, length of the columns], which every pull fills.
    """

    __slots__ = ("__weakref__", "_binding", "_ready", "rows")

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self.rows = binding.rows
        self._ready = Ready(binding.rows)

    def pull(self) -> Outcome[Rows]:
        """Reads the rows into `rows`; result and errors are those of Worker.pull."""
        binding = self._binding
        missed = binding.pull_local()
        return binding.pull_rest(missed) if missed else self._ready

    def push(self, values: npt.ArrayLike) -> Outcome[None]:
        """Adds values [n, length of the columns]; result and errors are those of Worker.push.

        Fastest with the same float32 array again and again.
        """
        return self._binding.push(values) or NOTHING


class BlockingPlan:
    """Prepared pulls and pushes of a BlockingWorker; see Plan."""

    __slots__ = ("__weakref__", "_binding", "rows")

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self.rows = binding.rows

    def pull(self) -> Rows:
        """Reads the rows into `rows`, and returns that."""
        binding = self._binding
        missed = binding.pull_local()
        return binding.pull_rest(missed).result() if missed else self.rows

    def push(self, values: npt.ArrayLike) -> None:
        """Adds values [n, length of the columns]; see Plan.push."""
        rest = self._binding.push(values)
        if rest is not None:
            rest.result()


def _refuse(mailbox: Mailbox, *_: object) -> NoReturn:
    mailbox.attached()
    raise AssertionError("a plan was closed before its worker")
