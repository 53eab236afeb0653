"""The worker that this thread is: what `adapm.run` hands to a task, for code that it is not handed on to.

A worker belongs to the thread that created it, and so does being the current one: threads and pools that a task starts
have none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeVar

from adapm.errors import NoWorker
from adapm.worker import BlockingWorker, Worker

AnyWorker = TypeVar("AnyWorker", Worker, BlockingWorker)

_here = threading.local()


def current_worker() -> Worker | BlockingWorker:
    """The worker that this thread runs as: a Worker in a coroutine function, a BlockingWorker in a plain one.

    Raises:
        NoWorker: the thread is none, or not any more.
    """
    worker: Worker | BlockingWorker | None = getattr(_here, "worker", None)
    if worker is None:
        raise NoWorker(
            "this thread is no worker of a run: call this from the function that adapm.run(fn, tables) runs,"
            " in the thread that it was called in, or in a block `with adapm.attach(tables):`"
        )
    return worker


@contextlib.contextmanager
def being(worker: AnyWorker) -> Iterator[AnyWorker]:
    """Makes a worker this thread's until the block ends."""
    before = getattr(_here, "worker", None)
    _here.worker = worker
    try:
        yield worker
    finally:
        _here.worker = before
