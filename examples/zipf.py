"""A loop whose keys are few often and most of them seldom: docs/traces.md shows what became of them.

    adapm run --nodes 4 --workers 1 --trace traces --trace-keys 300,rows:0-9 examples/zipf.py
    adapm trace traces --out lives.svg

Every worker draws batches of keys, key k with a probability of about 1 / (k + 1), signals them ahead, pulls their rows,
takes a while over them and pushes what it made of them. So that there is something to see, it also does what one should
not: now and then it pulls keys that it has not signalled, or signalled just before.
"""

import time
from collections.abc import Iterator

import numpy as np

import adapm

ROWS, DIM, KEYS, CLOCKS = 10_000, 16, 32, 300
THINK = 5e-3  # seconds of work per batch
TABLES = [adapm.Table("rows", rows=ROWS, dim=DIM)]


def draw(random: np.random.Generator) -> np.ndarray:
    return np.unique(np.exp(random.uniform(0, np.log(ROWS), KEYS)).astype(np.int64) - 1)


def batches(random: np.random.Generator) -> Iterator[np.ndarray]:
    for _ in range(CLOCKS):
        yield draw(random)


def work(worker: adapm.BlockingWorker) -> float:
    random, surprises = np.random.default_rng(worker.id).spawn(2)
    worker.barrier()  # all begin at once
    for keys in adapm.ahead(batches(random), worker, keys=lambda keys: {"rows": keys}):
        worker.pull("rows", keys)
        time.sleep(THINK)
        worker.push("rows", keys, np.ones((len(keys), DIM), np.float32))
        if surprises.random() < 0.04:
            worker.pull("rows", draw(surprises))  # without intent
        elif surprises.random() < 0.04:
            worker.intent("rows", late := draw(surprises), worker.clock, worker.clock + 1)
            worker.pull("rows", late)
    return worker.statistics().local_fraction


if __name__ == "__main__":
    shares = adapm.run(work, TABLES)
    print("pulled locally: " + ", ".join(f"{share:.1%}" for share in shares))
