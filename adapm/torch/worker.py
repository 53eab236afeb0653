"""Which worker modules and optimizers work with."""

from __future__ import annotations

import adapm
from adapm.errors import NoWorker, UsageError


def blocking_worker(given: adapm.BlockingWorker | None) -> adapm.BlockingWorker:
    """The worker that was given, or else this thread's.

    Raises:
        NoWorker: there is none; the message says how to start one.
        UsageError: it is that of a coroutine function.
    """
    try:
        worker = adapm.current_worker() if given is None else given
    except NoWorker:
        raise NoWorker(
            "modules and optimizers of adapm.torch work in a worker, and this thread is none: put the training into a"
            " function train(worker) and start it with adapm.run(train, tables), or into a block"
            " `with adapm.attach(tables):`, or pass worker=..."
        ) from None
    if not isinstance(worker, adapm.BlockingWorker):
        raise UsageError(
            f"adapm.torch needs a BlockingWorker, got a {type(worker).__name__}: make the function that adapm.run"
            " starts a plain one, def instead of async def"
        )
    return worker
