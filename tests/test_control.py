"""Control messages: what is said is heard, and nothing else is believed."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest

from adapm import control
from adapm.control import Admitted, Arrive, Done, Failed, Hello, Join, Message, Spec, Start, StreamDecoder, Welcome
from adapm.errors import NodeLost, ProtocolError, WorkerDied

MESSAGES = [
    Join("1", 2, "tcp://h:1", 3, [{"name": "t"}], {"seed": 0, "memory": None}),
    Welcome(["", "tcp://h:1"], [2, 0]),
    Start(),
    Arrive(2**40),
    Hello("1", None, 77),
    Hello("1", 3, 77),
    Done(None),
    Done("ValueError: no"),
    Admitted(0, 1, 0, 1, 2, 0, [{}], {}),
    Spec(0, [{"init": [[4, 0.0, 0.0, b"\0" * 8]]}], {"startup_timeout": 60.0}),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_said_is_heard(message: Message) -> None:
    assert control.decode(control.encode(message)) == message
    frame = memoryview(control.encode_frame(message))
    assert control.is_control(frame)
    assert control.decode_frame(frame) == message


def test_frames_of_rows_are_not_control() -> None:
    assert not control.is_control(memoryview(b"\1" + bytes(7)))
    assert not control.is_control(memoryview(b""))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["Arrive", "1"], "Arrive.epoch cannot be '1'"),
        (["Arrive", -1], "Arrive.epoch cannot be '-1'"),
        (["Arrive", True], "Arrive.epoch cannot be 'True'"),
        (["Arrive"], "Arrive has 1 fields, not 0"),
        (["Arrive", 1, 2], "Arrive has 1 fields, not 2"),
        (["Welcome", ["", 3], [1, 1]], "Welcome.addresses cannot be"),
        (["Welcome", [""], {}], "Welcome.workers cannot be"),
        (["Hello", "1", "0", 7], "Hello.slot cannot be '0'"),
        (["Failed", "X", "y", {"node": "1"}], "Failed.details cannot be"),
        (["Message"], "no control message"),
        (["os.system", "ls"], "no control message"),
        ([], "no control message"),
        ({}, "no control message"),
        ([["Arrive"], 1], "no control message"),
        (7, "no control message"),
    ],
)
def test_other_shapes_are_refused(said: object, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        control.decode(msgpack.packb(said))


def test_noise_is_refused(rng: np.random.Generator) -> None:
    for _ in range(500):
        with pytest.raises(ProtocolError):
            control.decode(rng.bytes(int(rng.integers(0, 40))))


def test_damaged_messages_never_raise_anything_else(rng: np.random.Generator) -> None:
    for message in MESSAGES * 20:
        data = bytearray(control.encode(message))
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            heard = control.decode(bytes(data))
        except ProtocolError:
            continue
        assert len(dataclasses.astuple(heard)) == len(dataclasses.fields(heard))


def test_a_stream_may_be_cut_anywhere() -> None:
    data = b"".join(control.encode_stream(message) for message in MESSAGES)
    for step in (1, 7, len(data)):
        decoder, heard = StreamDecoder(), []
        for start in range(0, len(data), step):
            decoder.feed(data[start : start + step])
            while (message := decoder.next()) is not None:
                heard.append(message)
        assert heard == MESSAGES


def test_a_length_beyond_the_limit_is_not_waited_for() -> None:
    decoder = StreamDecoder(limit=100)
    decoder.feed((101).to_bytes(8, "little"))
    with pytest.raises(ProtocolError, match="101 bytes is longer than the limit of 100"):
        decoder.next()


def test_expect_names_both() -> None:
    with pytest.raises(ProtocolError, match="expected Hello, got Start"):
        control.expect(Start(), Hello)


def test_errors_travel_with_their_details() -> None:
    failed = Failed.of(WorkerDied("gone", worker=3, node=1, pid=77, signal=9))
    error = control.expect(control.decode(control.encode(failed)), Failed).rebuild()
    assert isinstance(error, WorkerDied)
    assert (str(error), error.worker, error.node, error.pid, error.signal) == ("gone", 3, 1, 77, 9)


def test_details_that_a_class_does_not_have_are_dropped() -> None:
    error = Failed("NodeLost", "gone", {"node": 2, "__class__": 1, "shoe_size": 44}).rebuild()
    assert isinstance(error, NodeLost)
    assert vars(error) == {"node": 2}
