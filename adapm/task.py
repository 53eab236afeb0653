"""What workers run, and what comes of it: the user's function, from entering a node's door to telling it the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapm import priority
from adapm.current import being
from adapm.door import Ticket, enter
from adapm.errors import AdapmError, Closed, NodeDied, PeerLost, UsageError, WorkerDied
from adapm.worker import BlockingWorker, Worker

# What somebody reports who did not cause a failure but was told of it.
_CONSEQUENCES = (Closed, NodeDied, PeerLost, WorkerDied)


class RemoteTraceback(Exception):
    """The cause of an exception that comes from another process: the traceback there, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Failure:
    """Why something did not come to its end.

    Attributes:
        error: what will be raised.
        hearsay: it was told by somebody who may only suffer from what happened elsewhere.
    """

    error: BaseException
    hearsay: bool = False

    @classmethod
    def told(cls, error: BaseException) -> Failure:
        """The failure that somebody reports."""
        return cls(error, isinstance(error, _CONSEQUENCES))


@dataclass(frozen=True)
class Task:
    """The user's function and its arguments, after the worker."""

    fn: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def perform(self, door: str, slot: int) -> Any:
        """Runs the function as the worker in this slot of the node behind the door; returns or raises what it does."""
        ticket = enter(door, slot)
        with contextlib.closing(ticket):
            try:
                result = self._call(ticket)
            except BaseException as error:
                ticket.finished(f"{type(error).__name__}: {error}")
                raise
            ticket.finished()
            return result

    def pack(self) -> bytes:
        """The task for another process.

        Raises:
            UsageError: a part of it cannot be sent there.
        """
        self._check_main_can_be_imported()
        parts = {"fn": self.fn, "args": self.args, "kwargs": self.kwargs}
        for name, part in parts.items():
            try:
                pickle.dumps(part)
            except Exception as error:  # classes may raise anything from their __reduce__
                raise UsageError(
                    f"{name} cannot be sent to worker processes ({error}): define it at the top level of a module,"
                    ' or use workers="threads:N", which share this process'
                ) from error
        return pickle.dumps(self)

    def _call(self, ticket: Ticket) -> Any:
        if self._is_coroutine_function():
            return asyncio.run(self._call_async(ticket))
        with contextlib.closing(BlockingWorker(ticket)) as worker, being(worker):
            result = self.fn(worker, *self.args, **self.kwargs)
            worker.wait_sync()
            return result

    async def _call_async(self, ticket: Ticket) -> Any:
        with contextlib.closing(Worker(ticket)) as worker, being(worker):
            result = await self.fn(worker, *self.args, **self.kwargs)
            await worker.wait_sync()
            return result

    def _is_coroutine_function(self) -> bool:
        return inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(type(self.fn).__call__)

    def _check_main_can_be_imported(self) -> None:
        """Worker processes import the main module first, if it says that it is a file, and then the function's."""
        main = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        if getattr(main, "__spec__", None) is not None or (file is not None and Path(file).exists()):
            return
        if file is not None or getattr(self.fn, "__module__", None) == "__main__":
            raise UsageError(
                f"worker processes cannot import {getattr(self.fn, '__qualname__', self.fn)!r} from a notebook,"
                " a console or standard input: move it into a file that you import,"
                ' or use workers="threads:N", which share this process'
            )


def perform_packed(packed: bytes, door: str, slot: int) -> bytes:
    """Performs a packed task; returns what came of it, for `unpack_outcome`."""
    priority.let_node_go_first()
    try:
        task: Task = pickle.loads(packed)  # noqa: S301  # from our own parent, through a pipe of its own making
        return _pack_result(task.perform(door, slot))
    except BaseException as error:
        return _pack_error(error)


def unpack_outcome(packed: bytes) -> Any:
    """The function's result, or a Failure."""
    error, text, result = pickle.loads(packed)  # noqa: S301  # from our own child, through a pipe of our own making
    if error is None:
        return result
    error.__cause__ = RemoteTraceback(text)
    return Failure.told(error)


def _pack_result(result: object) -> bytes:
    try:
        return pickle.dumps((None, "", result))
    except Exception as error:
        raise UsageError(
            f"the worker's result, a {type(result).__name__}, cannot be sent back ({error}):"
            ' return something that pickles, or use workers="threads:N"'
        ) from error


def _pack_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, text, None))
        pickle.loads(packed)  # noqa: S301  # many exceptions pickle and then cannot be made again
    except Exception:
        named = AdapmError(f"a worker raised {type(error).__name__}, which does not pickle: {error}")
        return pickle.dumps((named, text, None))
    return packed
