"""The tests' own reader of frames, against frames of real lanes: the accounts of all other tests rest on it."""

from __future__ import annotations

import pytest

from adapm.simulator.frames import COLUMNS, FRAME_HEAD, HEAD, WHOLE_ROW, WITH_COUNTER, WITH_POS, Type, items
from test_lane_random import run_schedule
from world import World

ENDS = (Type.ROUND_END, Type.REPLY_END, Type.NUDGE)


def test_the_head_of_a_message_is_32_bytes() -> None:
    assert HEAD.size == 32


def test_what_a_message_has_is_told_for_every_type() -> None:
    bare = {Type.DROP, Type.WANT, Type.FORWARDED_WANT, *ENDS}
    assert bare | WITH_COUNTER | WITH_POS | WHOLE_ROW | COLUMNS == set(Type)
    assert not WITH_COUNTER & WITH_POS
    assert not WHOLE_ROW & COLUMNS


def delivered(seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], World]:
    """The frames of a random schedule, and its world, closed."""
    frames: list[bytes] = []
    deliver = World.deliver

    def noting(world: World, a: int, b: int) -> None:
        frames.append(world.links[a, b][0])
        deliver(world, a, b)

    monkeypatch.setattr(World, "deliver", noting)
    world = run_schedule(seed)
    world.drain()
    world.close()
    return frames, world


@pytest.mark.parametrize("seed", range(8))
def test_every_byte_of_a_frame_belongs_to_one_message(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, world = delivered(seed, monkeypatch)
    assert frames
    for frame in frames:
        head, at = frame[:FRAME_HEAD], FRAME_HEAD
        assert head == b"\1\0\0\0\0\0\0\0"
        while at < len(frame):
            n, size, kind, *_ = HEAD.unpack_from(frame, at)
            read = list(items(head + frame[at : at + size], world.row_len))
            assert {item.type for item in read} == {Type(kind)}
            assert len(read) == (1 if kind in ENDS else n)
            assert kind in ENDS or kind in (Type.ANSWER, Type.ACK) or all((i.table, i.row) in world.rows for i in read)
            at += size
        assert at == len(frame)
