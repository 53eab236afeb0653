"""Frames that no correct peer sends: refused, or at worst believed, but nobody crashes."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from adapm import Table
from adapm.engine import Lane
from adapm.errors import ProtocolError
from adapm.kernel import ffi, lib
from adapm.segment import Segment
from adapm.simulator.frames import FRAME_HEAD, HEAD, Type, items
from lanes import FOREVER, Make, worlds
from test_lane_random import step as random_step
from test_lane_trouble import locked
from world import PULL, Operation, World, WorldWorker


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
    "no items": frame(message(Type.WANT)),
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
    "a pull that comes back as a push": frame(
        message(Type.PUSH, item(ELSEWHERE, 0, TWO)[:8] + item(0, TWO)[4:], columns=(0, 2), origin=1)
    ),
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


def test_a_refusal_says_what_was_wrong_and_where(make: Make) -> None:
    lane = besieged(make).lanes[1]
    said = frame(message(Type.NUDGE), message(Type.DROP, item(HELD), item(ROW)))
    why = rf"node 0 .*its sender does not hold the row \(DROP at byte 40, item 1 of 2: table 0, row {ROW},"
    with pytest.raises(ProtocolError, match=why):
        lane.receive(0, said)
    with pytest.raises(ProtocolError, match=r"there is no such kind of message \(kind 18, at byte 8\)"):
        lane.receive(0, frame(message(18)))


def test_refused_frames_are_counted(make: Make) -> None:
    world = besieged(make)
    for _ in range(3):
        with pytest.raises(ProtocolError):
            world.lanes[1].receive(0, HOSTILE["type 0"])
    assert world.segments[1].statistics().refused == 3


def test_after_a_refusal_nothing_is_left_of_the_frame(make: Make) -> None:
    """The place at which a frame was refused must not be where the next one begins."""
    lane = besieged(make).lanes[1]
    with pytest.raises(ProtocolError):
        lane.receive(0, frame(message(Type.DROP, item(HELD), item(ROW))))
    with pytest.raises(ProtocolError, match="item 0 of 1"):
        lane.receive(0, frame(message(Type.DROP, item(ROW))))


def test_an_answer_to_what_is_not_asked_yet_is_refused(make: Make) -> None:
    """A request stops at a locked row; taking an answer to a later key would send the lane to a row that is none."""
    world = make()
    with locked(world, 1, ROW):
        keys = [AT_0[0], ROW, AT_0[1]]
        world._post(world.workers[1], Operation(PULL, 0, keys, need=np.zeros(3, np.float32)), None)
        world.serve(1)
        with pytest.raises(ProtocolError, match="has not asked for that"):
            world.lanes[1].receive(0, frame(message(Type.ANSWER, item(2, 0, TWO), columns=(0, 2))))
    world.drain()
    assert not world.workers[1].open


MOST = 2**52 - 1


@pytest.mark.parametrize("kind", [Type.MOVED, Type.STATE, Type.GRANT, Type.ANSWER])
def test_a_counter_that_no_row_reaches_is_refused(make: Make, kind: Type) -> None:
    world = besieged(make)
    world.intent(world.workers[1], 0, [AT_0[3]], 0, FOREVER)
    world.tick(1)
    row, values = (0, [TWO]) if kind is Type.ANSWER else (AT_0[3], [] if kind is Type.MOVED else [TWO])
    said = frame(message(kind, item(row, MOST + 1, *values), columns=(0, 2) if kind is Type.ANSWER else (0, 0)))
    with pytest.raises(ProtocolError, match="no row moves so often"):
        world.lanes[1].receive(0, said)


def test_the_largest_counter_stays_what_it_is(make: Make) -> None:
    """Beginning anew, hints could lead in a circle."""
    world = make(kind=LawlessWorld)
    row = AT_0[0]
    world.intent(world.workers[1], 0, [row], 0, 1)
    world.tick(1)
    world.lanes[1].receive(0, frame(message(Type.GRANT, item(row, MOST, TWO))))
    world.advance(world.workers[1])
    world.tick(1)
    assert world.lanes[1].inspect(0, row).hint == (1, MOST)
    world.lanes[1].receive(0, frame(message(Type.WANT, item(row))))
    assert world.lanes[1].inspect(0, row).hint == (0, MOST)


def test_a_frame_longer_than_any_lane_makes_is_refused(make: Make) -> None:
    lane = make().lanes[1]
    nudge = message(Type.NUDGE)
    long = frame(*[nudge] * (lane.frame_limit // len(nudge)))
    assert lane.receive(0, long) == len(long) <= lane.frame_limit
    with pytest.raises(ProtocolError, match="no lane makes so long a frame"):
        lane.receive(0, long + nudge)


def test_a_frame_at_an_odd_address_is_received(make: Make) -> None:
    world = make()
    world.intent(world.workers[0], 0, [ROW], 0, FOREVER)
    world.tick(0)
    said = world.links[0, 1].popleft()
    assert world.lanes[1].receive(0, memoryview(b"x" + said)[1:]) == len(said)
    world.collect(1)
    world.drain()
    world.check_rest()


@pytest.mark.parametrize(
    ("receive", "length", "asked", "pieces"),
    [("receive", 1 << 20, 40, 3), ("receive", 64, 1000, 1), ("piece", 1 << 20, 40, 40), ("piece", 64, 1000, 5)],
)
def test_what_a_frame_asks_for_is_answered_in_pieces(receive: str, length: int, asked: int, pieces: int) -> None:
    """Some bytes that ask for many rows must not make a node hold all these at once; and the first can leave early."""
    table = Table("t", rows=2, dim=length)
    segment = Segment.create([table], node=1, nodes=2, workers=0)
    lane = Lane(segment, [])
    try:
        row = next(row for row in range(2) if lib.adapm_home_of(0, row, 2) == 1)
        lane.populate(0, table)
        said = frame(message(Type.PULL, *[item(row, 0)[:8]] * asked, columns=(0, length)))
        handled, answers, calls = 0, 0, 0
        while handled < len(said):
            if receive == "piece":
                handled += lib.adapm_lane_receive_piece(lane._lane, 0, ffi.from_buffer(said), len(said), handled)
            else:
                handled += lane.receive(0, said, handled)
            waiting = 0
            while (out := lane.take()) is not None:
                waiting += len(out[1])
                answers += sum(1 for _ in items(out[1].view, [length]))
            assert waiting < (
                80 << 20 if receive == "receive" else (64 << 10) + 4 * length + 100
            )  # a row more than fits
            calls += 1
        assert (answers, calls) == (asked, pieces)
    finally:
        lane.close()
        segment.close()


def test_a_lost_peer_that_is_none_is_nothing(make: Make) -> None:
    """A transport may lose a stranger, whose number can be anything."""
    lane = make().lanes[1]
    for stranger in (2, 5000, 0xFFFFFFFF):
        lane.peer_lost(stranger)
    lane.receive(0, frame(message(Type.NUDGE)))


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
