"""Live nodes under fire: three of them over a real transport; the last has passed every check, and then goes astray.

`python tests/fuzz.py nodes` makes the frames, in pieces, and runs this for each:

    python tests/fuzz_nodes.py FRAMES TRANSPORT

An ordinary node hears no second frame of who broke the protocol, and ends the run.  These forgive, so that thousands
of frames meet nodes that have rows, replicas, intents and operations under way.  What ordinary nodes do is in
test_node.py.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if path := os.environ.get("ADAPM_FUZZ_KERNEL"):  # before anything loads the other one
    spec = importlib.util.spec_from_file_location("adapm._kernel", path)
    assert spec is not None and spec.loader is not None
    sys.modules["adapm._kernel"] = kernel = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernel)

import msgpack
import numpy as np

import sanitized
from adapm import Config, Table, Worker, control
from adapm.errors import AdapmError, ProtocolError
from adapm.node import Node
from cluster import Cluster

TABLES = [Table("a", rows=23, dim=4), Table("b", rows=5, columns={"x": 2, "y": 1})]
NODES, ASTRAY = 3, 2
BURST = 64  # frames that are sent before it is waited until they were heard
LIFE = 5_000  # frames to one cluster
PIECE = 50_000  # to one process
SLOW = 1.0  # seconds of CPU time that a frame may take
GROWTH_KIB = {True: 1 << 20, False: 48 << 10}  # by which a process may grow: sanitized, or not
OPEN = 16  # operations
PATIENCE = 60.0
MARK = control.FRAME_HEADER + b"mark"  # no message: what was sent before it has been handled when it is refused


class Found(Exception):
    """Something that must not happen."""


class Lenient(Node):
    """A node that says who broke the protocol and how, as every node does, but goes on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.marks = self.refusals = 0
        self.marked = asyncio.Event()
        self.slowest = 0.0
        self.found = ""  # what must not happen
        self.ending = False

    def _on_frame(self, peer: int, frame: memoryview) -> None:
        since = time.process_time()
        super()._on_frame(peer, frame)
        self.slowest = max(self.slowest, time.process_time() - since)
        if frame == MARK:
            self.marks += 1
            self.marked.set()

    def _refuse(self, peer: int, error: ProtocolError) -> None:
        self.refusals += 1
        self._backlog.pop(peer, None)
        if len(str(error)) < 20:
            self.found = f"a refusal says only: {error}"

    def fail(self, error: AdapmError) -> None:
        if self.ending:
            super().fail(error)
        elif self.id != ASTRAY:
            self.found = f"node {self.id} fails: {error!r}"


class Siege(Cluster):
    """A cluster of lenient nodes, ended without a word about what became of its rows."""

    def _add(self, node: int) -> Node:
        make = lambda on_frame, on_lost: self._transport(node, on_frame, on_lost)  # noqa: E731
        self.nodes.append(Lenient(self._config, self.tables, node, make))
        return self.nodes[-1]

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for node in self.nodes:
            node.ending = True
        await self._close()


class Life:
    """What the honest nodes' workers do meanwhile: intents, local pushes, pulls from others of which some never end."""

    def __init__(self, workers: list[Worker], choose: random.Random) -> None:
        self._workers, self._choose = workers, choose
        self._open: set[asyncio.Task[Any]] = set()

    def step(self) -> None:
        """A little of everything."""
        for worker in self._workers:
            keys = np.array(self._choose.choices(range(TABLES[0].rows), k=4))
            worker.intent("a", keys, worker.clock, worker.clock + 3)
            worker.advance_clock()
            if len(self._open) < OPEN:
                operations = worker.push("a", keys, np.ones((4, 4))), worker.pull("a", keys)
                self._open |= {asyncio.ensure_future(operation) for operation in operations}
        self._open = {operation for operation in self._open if not operation.done()}

    async def end(self) -> None:
        """Gives up what is open."""
        for operation in self._open:
            operation.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


async def siege(frames: list[bytes], transport: str, choose: random.Random) -> int:
    """Sends the frames to the first two nodes; how many were refused.

    Raises:
        Found: a node failed, was slow, contradicts itself, or refused without a reason.
    """
    async with Siege(TABLES, NODES, transport=transport, startup_timeout=PATIENCE) as cluster:
        life = Life([await cluster.worker(node) for node in range(ASTRAY)], choose)
        targets = [node for node in cluster.nodes[:ASTRAY] if isinstance(node, Lenient)]
        astray = cluster.nodes[ASTRAY]._transport
        assert astray is not None
        sent = 0
        for bursts, burst in enumerate(range(0, len(frames), BURST), 1):
            for frame in frames[burst : burst + BURST]:
                astray.send(sent % ASTRAY, frame)
                sent += 1
            for target in range(ASTRAY):
                astray.send(target, MARK)
            life.step()
            await asyncio.wait_for(_marked(targets, bursts), PATIENCE)
            _check(targets)
        await life.end()
        return sum(node.refusals - node.marks for node in targets)


async def _marked(nodes: list[Lenient], count: int) -> None:
    for node in nodes:
        while node.marks < count:
            node.marked.clear()
            await node.marked.wait()


def _check(targets: list[Lenient]) -> None:
    for node in targets:
        node.lane.validate()
        if node.found:
            raise Found(node.found)
        if node.slowest > SLOW:
            raise Found(f"node {node.id} took {node.slowest:.2f} seconds for a frame")


def control_frames(choose: random.Random) -> Iterator[bytes]:
    """Control messages that are none: real ones with a value, a byte or the length changed."""
    real = [
        control.Join(control.VERSION, 2, "tcp://h:1", 1, [t.describe() for t in TABLES], Config().agreed()),
        control.Welcome(["", "tcp://h:1", "tcp://h:2"], [1, 1, 1]),
        control.Refused("no"), control.Linked(), control.Start(), control.Arrive(1), control.Release(1),
        control.Hello("1", None, 7), control.Done("no"), control.Ran(1, 1, [1], [[1]]),
    ]  # fmt: skip
    values = [
        None,
        True,
        -1,
        2**63,
        2**64 - 1,
        1.5,
        "x" * 1000,
        "",
        b"\xff",
        [],
        {},
        [[]],
        {"a": 1},
        "\u20ac",
        nested(400),
    ]
    while True:
        fields = msgpack.unpackb(control.encode(choose.choice(real)))
        for _ in range(choose.randrange(3)):
            fields[choose.randrange(len(fields))] = choose.choice(values)
        data = bytearray(control.FRAME_HEADER + msgpack.packb(fields))
        way = choose.randrange(4)
        if way == 0:
            data[choose.randrange(8, len(data))] ^= 1 << choose.randrange(8)
        elif way == 1:
            del data[choose.randrange(8, len(data)) :]
        elif way == 2:
            data += choose.randbytes(choose.randrange(1, 40))
        if not _is_believed(data):
            yield bytes(data)


def nested(depth: int) -> object:
    """Lists in lists, as deep as msgpack goes along."""
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def _is_believed(data: bytearray) -> bool:
    """Whether a member may say this: a barrier's messages, or that the run is over, are no attack."""
    try:
        message = control.decode_frame(memoryview(data))
    except ProtocolError:
        return False
    said = (
        control.Arrive,
        control.Release,
        control.Finished,
        control.End,
        control.Bye,
        control.Failed,
        control.Refused,
    )
    return isinstance(message, (*said, control.Linked, control.Start))


def read(path: Path) -> Iterator[bytes]:
    """The frames that the lanes' fuzzer has made; every eighth is a control message instead."""
    messages = control_frames(random.Random(path.stat().st_size))
    data, at = path.read_bytes(), 0
    for i in itertools.count():
        if at >= len(data):
            return
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        yield next(messages) if i % 8 == 0 else data[at - length : at]


def piece(path: Path, transport: str) -> None:
    """Plays a file of frames, one cluster after the other.

    Raises:
        Found: see `siege`, or memory has grown.
    """
    frames, since, refused = list(read(path)), time.monotonic(), 0
    choose, before = random.Random(len(frames)), 0
    for first in range(0, len(frames), LIFE):
        refused += asyncio.run(siege(frames[first : first + LIFE], transport, choose))
        if first < 3 * LIFE:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = time.monotonic() - since
    rate = f"{len(frames)} frames over {transport} in {seconds:.1f} s, {len(frames) / seconds:.0f} frames/s"
    print(f"{rate}: {refused} refused; memory grew by {grown} KiB", flush=True)
    if grown > GROWTH_KIB["ADAPM_FUZZ_KERNEL" in os.environ]:
        raise Found(f"memory grew by {grown} KiB")


# ---- pieces


def run(program: Path, chosen: argparse.Namespace) -> bool:
    """Makes frames and plays them, each piece in a process of its own; False when something is found."""
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ) if chosen.unsanitized else checked(Path(folder))
        for number, first in enumerate(range(0, chosen.frames, PIECE)):
            file = Path(folder) / "frames"
            with file.open("wb") as out:
                count = str(min(PIECE, chosen.frames - first))
                subprocess.run([program, "emit", str(chosen.seed + number), count], stdout=out, check=True)
            command = [sys.executable, __file__, str(file), chosen.transport]
            if subprocess.run(command, check=False, env=env, timeout=3600).returncode:
                kept = shutil.copy(file, f"nodes-{chosen.seed + number}.frames")
                print(f"seed {chosen.seed + number}; again: python tests/fuzz_nodes.py {kept} {chosen.transport}")
                return False
    return True


def checked(folder: Path) -> dict[str, str]:
    """The environment of a Python with a kernel that is compiled with sanitizers."""
    sanitized.build(folder)
    return sanitized.environment() | {"ADAPM_FUZZ_KERNEL": str(next((folder / "adapm").glob("_kernel*.so")))}


if __name__ == "__main__":
    piece(Path(sys.argv[1]), sys.argv[2])
