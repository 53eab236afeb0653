"""Frames that no correct peer sends: refused, or at worst believed, but nobody crashes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from adapm.errors import ProtocolError
from adapm.kernel import lib
from adapm.simulator.frames import FRAME_HEAD, HEAD, Type
from lanes import FOREVER, Make, worlds
from test_lane_random import step as random_step
from world import World, WorldWorker


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


def message(
    kind: int, *content: bytes, n: int | None = None, size: int | None = None, origin: int = 0, table: int = 0,
    worker: int = 0, op: int = 0, columns: tuple[int, int] = (0, 0),
) -> bytes:  # fmt: skip
    body = b"".join(content)
    n, size = len(content) if n is None else n, HEAD.size + len(body) if size is None else size
    return HEAD.pack(n, size, kind, 0, origin, table, worker, op, *columns) + body


def frame(*messages: bytes, head: bytes = b"\1\0\0\0\0\0\0\0") -> bytes:
    return head + b"".join(messages)


def item(row: int, *rest: object) -> bytes:
    """Row or position; then ints are counters or positions, lists are floats."""
    packed = struct.pack("<I", row)
    for part in rest:
        packed += struct.pack(f"<{len(part)}f", *part) if isinstance(part, list) else struct.pack("<Q", part)
    return packed


AT_1 = [row for row in range(32) if lib.adapm_home_of(0, row, 2) == 1]  # owned by the receiver
AT_0 = [row for row in range(32) if lib.adapm_home_of(0, row, 2) == 0]
ROW, HELD, ELSEWHERE, TWO = AT_1[0], AT_1[1], AT_0[0], [1.0, 1.0]
HOSTILE = {
    "nothing": b"",
    "half a head": b"\1\0\0",
    "a control frame": frame(head=b"\0\0\0\0\0\0\0\0"),
    "another lane": frame(message(Type.NUDGE), head=b"\1\1\0\0\0\0\0\0"),
    "half a message": frame(message(Type.NUDGE))[:-1],
    "type 0": frame(message(0)),
    "unknown type": frame(message(max(Type) + 1)),
    "shorter than its head": frame(message(Type.NUDGE, size=31)),
    "longer than the frame": frame(message(Type.NUDGE, size=33)),
    "larger than memory": frame(message(Type.NUDGE, size=0xFFFFFFFF)),
    "a nudge with items": frame(message(Type.NUDGE, item(0))),
    "a nudge that counts items": frame(message(Type.NUDGE, n=1)),
    "an end with a table": frame(message(Type.ROUND_END, table=1)),
    "fewer items than counted": frame(message(Type.WANT, item(ELSEWHERE), n=2)),
    "more items than counted": frame(message(Type.WANT, item(ROW), n=0)),
    "as many items as overflow": frame(message(Type.WANT, item(ROW), n=0x40000001)),
    "items of another table's length": frame(message(Type.DELTA, item(HELD, TWO + TWO))),
    "unknown table": frame(message(Type.WANT, item(ROW), table=1)),
    "largest table": frame(message(Type.WANT, item(ROW), table=0xFFFFFFFF)),
    "row out of range": frame(message(Type.WANT, item(32))),
    "largest row": frame(message(Type.WANT, item(0xFFFFFFFF))),
    "unknown origin": frame(message(Type.FORWARDED_WANT, item(ROW), origin=2)),
    "columns out of range": frame(message(Type.SET_ROW, item(HELD, TWO), columns=(1, 2))),
    "columns that overflow": frame(message(Type.SET_ROW, item(HELD, TWO), columns=(0xFFFFFFFF, 2))),
    "columns of the largest length": frame(message(Type.SET_ROW, item(HELD, TWO), columns=(0, 0xFFFFFFFF))),
    "a want of a holder": frame(message(Type.WANT, item(HELD))),
    "a want for our own": frame(message(Type.FORWARDED_WANT, item(ELSEWHERE), origin=1)),
    "a want that comes back": frame(message(Type.WANT, item(ELSEWHERE))),
    "a delta of a row not held": frame(message(Type.DELTA, item(ROW, TWO))),
    "a delta of a row not owned": frame(message(Type.DELTA, item(ELSEWHERE, TWO))),
    "a drop of a row not held": frame(message(Type.DROP, item(ROW))),
    "a drop twice": frame(message(Type.DROP, item(HELD), item(HELD))),
    "a set of a row not held": frame(message(Type.SET_ROW, item(ROW, TWO), columns=(0, 2))),
    "a state nobody asked for": frame(message(Type.STATE, item(ELSEWHERE, 5, TWO))),
    "a state of an owned row": frame(message(Type.STATE, item(ROW, 5, TWO))),
    "a grant nobody asked for": frame(message(Type.GRANT, item(ELSEWHERE, 5, TWO))),
    "a grant of an owned row": frame(message(Type.GRANT, item(ROW, 5, TWO))),
    "yours is current, without one": frame(message(Type.GRANT_CURRENT, item(ELSEWHERE, 5))),
    "more replies than rounds": frame(message(Type.REPLY_END), message(Type.REPLY_END)),
    "an answer to an unknown worker": frame(message(Type.ANSWER, item(0, 5, TWO), worker=1, columns=(0, 2))),
    "an answer to an unknown operation": frame(message(Type.ANSWER, item(0, 5, TWO), op=1024, columns=(0, 2))),
    "an answer beyond the operation": frame(message(Type.ANSWER, item(2, 5, TWO), columns=(0, 2))),
    "an answer of other columns": frame(message(Type.ANSWER, item(0, 5, [1.0]), columns=(0, 1))),
    "an answer twice": frame(message(Type.ANSWER, item(0, 5, TWO), item(0, 5, TWO), columns=(0, 2))),
    "an answer to what is parked": frame(message(Type.ANSWER, item(1, 5, TWO), columns=(0, 2))),
    "an acknowledged pull": frame(message(Type.ACK, item(0, 5))),
    "an access that comes back": frame(message(Type.PULL, item(ELSEWHERE, 0), columns=(0, 2), origin=1)),
}


class LawlessWorld(World):
    """Values mean nothing once a frame has been tampered with; but nobody crashes and no lane contradicts itself."""

    def _seen(self, worker: WorldWorker, table: int, key: int, row: npt.NDArray[np.float32], need: float) -> None:
        pass

    def check(self) -> None:
        for lane in self.lanes:
            lane.validate()


def besieged(make: Make) -> World:
    """Node 0 holds one of node 1's rows; its worker's operation 0 asks for two: one is under way, one parked."""
    world = make(kind=LawlessWorld)
    first, second = AT_0[1], AT_0[2]
    other = world.workers[1]
    for worker in world.workers[::-1]:
        world.intent(worker, 0, [HELD], 0, FOREVER)
        world.drain()
    world.intent(other, 0, [second], 0, FOREVER)
    world.lanes[1].tick(1.0)
    world.push(other, 0, [second])
    world.pull(other, 0, [first, second])
    world.serve(1)
    world.tick(1)
    return world


@pytest.mark.parametrize("what", HOSTILE)
def test_a_frame_no_correct_peer_sends_is_refused(make: Make, what: str) -> None:
    world = besieged(make)
    with pytest.raises(ProtocolError, match="node 0 broke the protocol in a frame of"):
        world.lanes[1].receive(0, HOSTILE[what])
    world.lanes[1].validate()


@pytest.mark.parametrize("peer", [1, 2, 0xFFFFFFFF])
def test_a_frame_of_nobody_is_refused(make: Make, peer: int) -> None:
    with pytest.raises(ProtocolError):
        make().lanes[1].receive(peer, frame(message(Type.NUDGE)))


def tampered(choose: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    way = choose.randrange(6)
    at = choose.randrange(FRAME_HEAD, len(data))
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        data[at] ^= 1 << choose.randrange(8)
    elif way == 2:
        at -= at % 4
        data[at : at + 4] = struct.pack("<I", choose.choice([0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
    elif way == 3:
        data[FRAME_HEAD + 8] = choose.randrange(20)  # the first message's type
    elif way == 4:
        data += data[FRAME_HEAD:]
    else:
        length = choose.randrange(1, 64)
        data[at : at + length] = choose.randbytes(min(length, len(data) - at))
    return bytes(data)


@pytest.mark.parametrize("block", range(4))
def test_tampered_frames_crash_nobody(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        with worlds() as make:
            run_lawless(make(nodes=3, rows=(5,), kind=LawlessWorld), random.Random(seed))


def run_lawless(world: World, choose: random.Random) -> None:
    for _ in range(400):
        links = [link for link, queue in world.links.items() if queue]
        kind = choose.choice(["tick", "serve", "intent", "push", "pull", "advance", "sync"] + ["deliver"] * len(links))
        who = choose.choice(links if kind == "deliver" else [0, 1, 2] if kind in ("tick", "serve") else world.workers)
        if kind == "deliver" and choose.random() < 0.1:
            world.links[who][0] = tampered(choose, world.links[who][0])
        try:
            random_step(world, choose, kind, who)
        except ProtocolError:
            return  # the node ends the run
        finally:
            world.check()
