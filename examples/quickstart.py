"""The API on one screen: workers count the letters of a text together, in one table.

    python examples/quickstart.py                                            one node, two workers
    adapm run --nodes 2 --workers 2 --transport zmq examples/quickstart.py   two nodes, four workers

Each command prints what was counted, and how much of it without leaving the worker's machine.
"""

import numpy as np

import adapm

TEXT = "the quick brown fox jumps over the lazy dog " * 50
TABLES = [adapm.Table("letters", rows=128, columns={"count": 1, "last": 1}, init={"last": adapm.constant(-1)})]


async def count(worker: adapm.Worker, size: int) -> float:
    letters = np.frombuffer(TEXT.encode(), np.uint8)[worker.id :: worker.num_workers]  # this worker's share
    batches = [letters[i : i + size] for i in range(0, len(letters), size)]
    for batch in adapm.ahead(batches, worker, keys=lambda batch: {"letters": batch}):  # signals intent, moves the clock
        await worker.push("letters", batch, np.ones((len(batch), 1)), columns="count")  # adds; duplicate keys add up
    await worker.set("letters", [ord("!")], [[0, worker.id]])  # overwrites
    await worker.barrier()  # now every pull sees every push
    e, x = await worker.pull("letters", [ord("e"), ord("x")], columns="count")
    if worker.id == 0:
        table = await worker.read_table("letters", columns="count")
        print(f"'e' {e[0]:.0f} times, 'x' {x[0]:.0f} times, {table.sum():.0f} letters in all")
    return worker.statistics().push_local_fraction


if __name__ == "__main__":
    shares = adapm.run(count, TABLES, args=(16,))
    print("pushed locally: " + ", ".join(f"{share:.0%}" for share in shares))
