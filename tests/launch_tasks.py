"""What workers of test_launch.py do: worker processes must be able to import it."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from adapm import BlockingWorker, Worker
from adapm.errors import AdapmError

KEYS = np.arange(20)


class Picky(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


async def count(worker: Worker, times: int, *, step: float = 1.0) -> tuple[int, int, float]:
    for _ in range(times):
        await worker.push("t", KEYS, np.full((20, 2), step))
    await worker.barrier()
    return worker.id, worker.node, float((await worker.pull("t", KEYS)).sum())


def count_blocking(worker: BlockingWorker, times: int) -> tuple[int, int, float]:
    for _ in range(times):
        worker.push("t", KEYS, np.ones((20, 2)))
    worker.barrier()
    return worker.id, worker.node, float(worker.pull("t", KEYS).sum())


def fail(worker: BlockingWorker, who: int) -> None:
    if worker.id == who:
        raise LookupError(f"worker {who} cannot find it")
    worker.barrier()


def fail_pickily(worker: BlockingWorker) -> None:
    raise Picky(1, 2)


def return_lambda(worker: BlockingWorker) -> object:
    return lambda: None


def die(worker: BlockingWorker, who: int, how: int) -> None:
    if worker.id == who:
        if how < 0:
            os.kill(os.getpid(), -how)
        os._exit(how)
    worker.barrier()


def kill_node(worker: BlockingWorker, pids: str) -> None:
    """Worker 0 kills the first node, whose id is in the file: the parent of none of us, so we are told."""
    if worker.id == 0:
        with open(pids) as file:
            os.kill(int(file.read()), signal.SIGKILL)
    worker.barrier()


def exit_quietly(worker: BlockingWorker) -> None:
    sys.exit(3)


def wait(worker: BlockingWorker, path: str) -> None:
    """When all are there, says so in a fifo; then some wait at a barrier, and the last for nothing."""
    worker.barrier()
    if worker.id == 0:
        with open(path, "w") as fifo:
            fifo.write("here")
    if worker.id != worker.num_workers - 1:
        worker.barrier()
    signal.pause()


def make_their_own(worker: BlockingWorker) -> None:
    """Worker 0 dies; the others raise something of their own when they are told, at once, or leave."""
    if worker.id == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        worker.barrier()
    except AdapmError:
        failed = True
    if worker.id == 1:
        os._exit(4)
    raise RuntimeError(f"the step failed: {failed}")
