"""What processes of test_attach.py do, each started as `python attach_tasks.py NAME ARGUMENTS`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator

import numpy as np

import adapm
from adapm import BlockingWorker
from adapm.errors import AdapmError

KEYS = np.arange(20)
TABLES = [adapm.Table("t", rows=20, dim=2)]


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Says what adapm raises, in one line, and goes on."""
    try:
        yield
    except AdapmError as error:
        print(type(error).__name__, error, flush=True)


def count(**settings: object) -> None:
    with adapm.attach(TABLES, **settings) as worker:
        worker.push("t", KEYS, np.ones((20, 2)))
        worker.barrier()
        line = f"{worker.id} {worker.node} {worker.num_workers} {worker.pull('t', KEYS).sum()}\n"
        os.write(1, line.encode())  # in one piece: several may share the pipe


def count_twice() -> None:
    count()
    count()


def differ() -> None:
    with told(), adapm.attach([adapm.Table("t", rows=20 + int(os.environ["RANK"]), dim=2)]) as worker:
        worker.barrier()


def wait(who: str) -> None:
    """Says that it is attached, and waits at a barrier, to which this worker does not come."""
    with told(), adapm.attach(TABLES) as worker:
        print("attached", flush=True)
        if worker.id == int(who):
            signal.pause()
        worker.barrier()


def leave() -> None:
    """Worker 1 leaves with an exception; worker 0 leaves, and waits for it."""
    with told(), adapm.attach(TABLES) as worker:
        if worker.id == 1:
            raise LookupError("worker 1 cannot find it")


def node_of(pid: int) -> str:
    """The process that this one has started, if any."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read()


def kill_node() -> None:
    with told(), adapm.attach(TABLES) as worker:
        worker.barrier()
        if node := node_of(os.getpid()):
            os.kill(int(node), signal.SIGKILL)
        worker.barrier()


def with_processes(method: str) -> None:
    """Two processes attach by a name, without a launcher."""
    context = multiprocessing.get_context(method)
    processes = [context.Process(target=count, kwargs={"job": f"test {os.getpid()}", "workers": 2}) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def fork() -> None:
    """A fork inside the block can do nothing with the worker, not even end it."""
    with adapm.attach(TABLES) as worker:
        plan = worker.plan("t", KEYS)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyError):
                use_in_fork(worker, plan)
                raise KeyError  # leave the block as a person's mistake would
            os._exit(1)
        os.waitpid(child, 0)
        worker.push("t", KEYS, np.ones((20, 2)))
        print(worker.pull("t", KEYS).sum(), flush=True)


def use_in_fork(worker: BlockingWorker, plan: object) -> None:
    for use in (
        lambda: worker.pull("t", KEYS),
        lambda: worker.push("t", KEYS, np.ones((20, 2))),
        lambda: worker.intent("t", KEYS, 0),
        worker.advance_clock,
        worker.barrier,
        plan.pull,
    ):
        try:
            use()
        except AdapmError as error:
            print(type(error).__name__, error, flush=True)
    worker.close()


if __name__ == "__main__":
    try:
        globals()[sys.argv[1]](*sys.argv[2:])
    except KeyError:
        os._exit(0)  # a fork that left the block
    except Exception:
        traceback.print_exc()
        sys.exit(1)
