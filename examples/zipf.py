"""A loop whose keys are few often and many seldom: what `adapm trace` draws in docs/traces.md.

    adapm run --nodes 4 --workers 1 --trace traces --trace-keys 200,rows:0-9 examples/zipf.py
    adapm trace traces --out lives.svg

Every worker draws batches of keys, key k with a probability of about 1 / (k + 1), pulls their rows, takes a while over
them and pushes what it made of them.
"""

import time
from collections.abc import Iterator

import numpy as np

import adapm

ROWS, KEYS, CLOCKS = 10_000, 32, 400
THINK = 4e-3  # seconds of work per batch
TABLES = [adapm.Table("rows", rows=ROWS, dim=16)]


def batches(worker: adapm.Worker) -> Iterator[np.ndarray]:
    random = np.random.default_rng(worker.id)
    for _ in range(CLOCKS):
        yield np.unique(np.exp(random.uniform(0, np.log(ROWS), KEYS)).astype(np.int64) - 1)


def work(worker: adapm.BlockingWorker) -> float:
    worker.barrier()  # all begin at once
    for keys in adapm.ahead(batches(worker), worker, keys=lambda keys: {"rows": keys}):
        worker.pull("rows", keys)
        time.sleep(THINK)
        worker.push("rows", keys, np.ones((len(keys), 16), np.float32))
    return worker.statistics().local_fraction


if __name__ == "__main__":
    shares = adapm.run(work, TABLES)
    print("pulled locally: " + ", ".join(f"{share:.1%}" for share in shares))
