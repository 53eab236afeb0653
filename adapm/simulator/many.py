"""Many seeds: in parallel processes, and what they come to together."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapm.errors import DataError
from adapm.segment import needed_bytes
from adapm.simulator import room, workloads
from adapm.simulator.choices import Choices
from adapm.simulator.runs import Options, Outcome, run_seed
from adapm.simulator.world import HEAP

_CHUNK = 4  # seeds that a process is given at a time
_OTHER_DESCRIPTORS = 64  # that a process has anyhow
_OF_NODE, _OF_WORKER = 8, 12  # descriptors, at most
_PAIR_BYTES = 12_000  # that one node, its links, and what is drawn for them take for each other one


@dataclass
class Summary:
    """What many seeds come to.

    Attributes:
        seeds: how many have been run.
        failed: those in which something did not hold.
        events, frames, bytes, virtual: sums; virtual in seconds.
        faults: how often each struck.
        fatal: how many runs each fatal fault has ended.
        staleness_ms, staleness_rounds: of all replicas that caught up.
    """

    seeds: int = 0
    failed: list[Outcome] = field(default_factory=list)
    events: int = 0
    frames: int = 0
    bytes: int = 0
    virtual: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    fatal: Counter[str] = field(default_factory=Counter)
    staleness_ms: list[float] = field(default_factory=list)
    staleness_rounds: list[int] = field(default_factory=list)
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, outcome: Outcome) -> None:
        """One more seed, in order."""
        self.seeds += 1
        self.events += outcome.events
        self.frames += outcome.frames
        self.bytes += outcome.bytes
        self.virtual += outcome.virtual
        self.faults.update(outcome.faults)
        self.fatal.update([outcome.fatal] if outcome.fatal else [])
        self.staleness_ms += outcome.staleness_ms
        self.staleness_rounds += outcome.staleness_rounds
        self._hash.update(f"{outcome.seed} {outcome.hash}\n".encode())
        if outcome.violation is not None:
            self.failed.append(outcome)

    @property
    def hash(self) -> str:
        """Of all seeds' hashes, in order."""
        digest: str = self._hash.hexdigest()
        return digest

    def staleness(self, share: float) -> float | None:
        """Milliseconds: so large a share of replicas caught up sooner; None if none was behind."""
        ordered = sorted(self.staleness_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def run_many(seeds: Sequence[int], options: Options, jobs: int) -> Iterator[Outcome]:
    """Runs them, in so many processes; their outcomes, in order.

    Raises:
        OutOfMemory: so many nodes do not fit into memory; nothing has been allocated.
        UsageError: they need more descriptors than a process may have.
    """
    require_room(options, jobs)
    if jobs == 1:
        with quiet():
            yield from (run_seed(seed, options) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(options,)) as pool:
        try:
            yield from pool.map(run_seed, seeds, [options] * len(seeds), chunksize=_CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def require_room(options: Options, jobs: int) -> None:
    """Nothing, if the largest runs that these options allow fit; raises what `run_many` does."""
    nodes, workers = options.nodes[1], options.workers[1]
    _require_memory(options, nodes, workers, jobs)
    descriptors = _OTHER_DESCRIPTORS + nodes * (_OF_NODE + workers * _OF_WORKER)
    room.require_descriptors(descriptors, f"{nodes} nodes with {workers} workers each")


def read_seeds(path: Path) -> list[int]:
    """The seeds in a file, one per line; what follows a # is a comment.

    Raises:
        DataError: a line is none, or there are none.
    """
    seeds = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=path) from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not (text.isascii() and text.isdigit()):
            raise DataError(
                f"{text!r} is no seed: write one whole number per line, 0 or more",
                file=path,
                line=number,
            )
        seeds += [int(text)] if text else []
    if not seeds:
        raise DataError("there is no seed in it: write one whole number per line", file=path)
    return seeds


def _require_memory(options: Options, nodes: int, workers: int, jobs: int) -> None:
    count = nodes * workers
    setting = workloads.Setting(count, options.until, 0.0, zipf=False, bursts=False, pauses=False, cramped=False)
    tables = [workloads.named(name).tables(setting, Choices(0, "size")) for name in options.workloads]
    node = max(needed_bytes(some, nodes, workers, HEAP) for some in tables)
    needed = jobs * nodes * (node + nodes * _PAIR_BYTES)
    room.require_memory(needed, f"{jobs} at a time of {nodes} nodes with {workers} workers each")


def _begin(options: Options) -> None:
    """A process of many begins."""
    logging.getLogger("adapm").setLevel(logging.CRITICAL + 1)
    require_room(options, 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nodes have much to log when everything goes wrong on purpose."""
    logger = logging.getLogger("adapm")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
