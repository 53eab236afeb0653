"""What processes say to each other besides moving rows: every control message, its schema and its encoding.

Four conversations use it, and each reads only messages of its own kind:

    node <-> node       control frames over the transport      `encode_frame`, `decode_frame`
    worker <-> node     the door, a unix stream socket         `encode_stream`, `StreamDecoder`
    launcher <-> node   a socket pair                          the same
    attaching <-> node  the porch, a unix stream socket        the same

A message is a frozen dataclass; on the wire it is the msgpack list [class name, field, field, ...].  Whatever arrives
is checked against the dataclass's annotations before anyone looks at it, so a stranger's bytes end in ProtocolError and
nowhere else.  Integers on the wire are never negative.
"""

from __future__ import annotations

import dataclasses
import reprlib
import struct
import types
import typing
from typing import Any, TypeVar

import msgpack

from adapm import __version__
from adapm.errors import AdapmError, ProtocolError, from_wire

VERSION = __version__  # what Join and Hello compare
FRAME_HEADER = bytes(8)  # first byte 0: control; the kernel's frames begin with 1
MAX_MESSAGE = 64 << 20  # bytes of one message between processes of this machine: tables with their initial values
MAX_FRAME = 4 << 20  # bytes of one control frame: descriptions of tables are the largest
_BRIEF = 100  # characters of what others say, in our messages
_LENGTH = struct.Struct("<Q")  # before each message on a stream

M = TypeVar("M", bound="Message")


@dataclasses.dataclass(frozen=True)
class Message:
    """The base of all messages."""


# ---- node to node: coming together


@dataclasses.dataclass(frozen=True)
class Join(Message):
    """Node -> node 0: let me in.

    The others reach me at `address`; `tables` and `config` describe what must be equal everywhere.
    """

    version: str
    node: int
    address: str
    workers: int
    tables: list[dict[str, Any]]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Welcome(Message):
    """Node 0 -> node, once all have joined: each node's address (node 0's is "") and number of workers."""

    addresses: list[str]
    workers: list[int]


@dataclasses.dataclass(frozen=True)
class Refused(Message):
    """Node 0 -> node: you cannot be part of this run."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Linked(Message):
    """Node -> node 0: my rows are filled, and I am connected to everyone below me."""


@dataclasses.dataclass(frozen=True)
class Start(Message):
    """Node 0 -> node: everyone is linked, let workers in."""


# ---- node to node: barriers, the end


@dataclasses.dataclass(frozen=True)
class Arrive(Message):
    """Node -> node 0: all my running workers wait at a barrier, the epoch-th of the run."""

    epoch: int


@dataclasses.dataclass(frozen=True)
class Release(Message):
    """Node 0 -> node: every worker of the run has arrived at this barrier."""

    epoch: int


@dataclasses.dataclass(frozen=True)
class Awaited(Message):
    """Node 0 -> node, when a barrier takes long: these nodes have not arrived."""

    nodes: list[int]


@dataclasses.dataclass(frozen=True)
class Finished(Message):
    """Node -> node 0: all my workers are finished."""


@dataclasses.dataclass(frozen=True)
class End(Message):
    """Node 0 -> node: all workers of all nodes are finished."""


@dataclasses.dataclass(frozen=True)
class Bye(Message):
    """Node -> node: I close properly; that our link ends next is no loss."""


@dataclasses.dataclass(frozen=True)
class Failed(Message):
    """Anyone -> anyone: the run is over because of this error, whose attributes (node, worker, ...) are `details`."""

    error: str
    message: str
    details: dict[str, int]

    @classmethod
    def of(cls, error: AdapmError) -> Failed:
        """The error as a message."""
        details = {key: value for key, value in vars(error).items() if isinstance(value, int) and value >= 0}
        return cls(type(error).__name__, str(error), details)

    def rebuild(self) -> AdapmError:
        """The error again; details that its class does not know are dropped."""
        error = from_wire(self.error, self.message)
        for key, value in self.details.items():
            if key in vars(error):
                setattr(error, key, value)
        return error


# ---- worker and node, at the door


@dataclasses.dataclass(frozen=True)
class Hello(Message):
    """Worker -> node: I want this slot (None: any)."""

    version: str
    slot: int | None
    pid: int


@dataclasses.dataclass(frozen=True)
class Admitted(Message):
    """Node -> worker: come in.  Three descriptors come with it: the segment, the eventfds of node and worker."""

    slot: int
    worker: int
    node: int
    num_nodes: int
    num_workers: int
    seed: int
    tables: list[dict[str, Any]]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Done(Message):
    """Worker -> node: I am finished; `error` says with what exception, None: as I should."""

    error: str | None


# ---- launcher and node


@dataclasses.dataclass(frozen=True)
class Spec(Message):
    """Launcher -> node: what you are."""

    node: int
    tables: list[dict[str, Any]]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Listening(Message):
    """Node 0 -> launcher: the others can join at this address."""

    address: str


@dataclasses.dataclass(frozen=True)
class Ready(Message):
    """Node -> launcher: workers may enter at this door; the first one's global id."""

    door: str
    first_worker: int


@dataclasses.dataclass(frozen=True)
class Attach(Message):
    """Attaching process -> node: I belong to you; `tables` and `config` describe what must be equal.

    `slot` is its place among the node's workers, None: any.  The answers are those that a launcher gets.
    """

    version: str
    pid: int
    slot: int | None
    workers: int
    tables: list[dict[str, Any]]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entered(Message):
    """Attaching process -> node: I am through your door, which watches me from now on."""


@dataclasses.dataclass(frozen=True)
class Ran(Message):
    """Node -> launcher: what it and its workers counted, in the order of their statistics' fields."""

    microseconds: int
    peak_memory: int
    node: list[int]
    workers: list[list[int]]


_BY_NAME = {cls.__name__: cls for cls in Message.__subclasses__()}
_HINTS = {cls: typing.get_type_hints(cls) for cls in Message.__subclasses__()}


def encode(message: Message) -> bytes:
    """The message in msgpack."""
    values = [getattr(message, field.name) for field in dataclasses.fields(message)]
    packed: bytes = msgpack.packb([type(message).__name__, *values])
    return packed


def decode(data: bytes | memoryview) -> Message:
    """The message behind the bytes.

    Raises:
        ProtocolError: this is not msgpack, not a message we know, or not of its shape.
    """
    try:
        name, *values = msgpack.unpackb(data)
        cls = _BY_NAME[name]
    except Exception as error:  # whatever msgpack and a stranger's bytes come up with
        raise ProtocolError(f"these {len(data)} bytes are no control message ({brief(repr(error))})") from error
    hints = _HINTS[cls]
    if len(hints) != len(values):
        raise ProtocolError(f"{name} has {len(hints)} fields, not {len(values)}")
    for (field, hint), value in zip(hints.items(), values, strict=True):
        if not _fits(value, hint):
            raise ProtocolError(f"{name}.{field} cannot be {brief(value)!r}: it must be {hint}")
    message: Message = cls(*values)
    return message


def expect(message: Message, cls: type[M]) -> M:
    """The message, which must be of this class.

    Raises:
        ProtocolError: it is another one.
    """
    if not isinstance(message, cls):
        raise ProtocolError(f"expected {cls.__name__}, got {type(message).__name__}")
    return message


def encode_frame(message: Message) -> bytes:
    """The message as a frame between nodes.

    Raises:
        ProtocolError: it is longer than other nodes would believe.
    """
    frame = FRAME_HEADER + encode(message)
    _check_length(frame)
    return frame


def is_control(frame: memoryview) -> bool:
    """Whether a frame between nodes is for the node itself and not for a lane."""
    return len(frame) > 0 and frame[0] == FRAME_HEADER[0]


def decode_frame(frame: memoryview) -> Message:
    """The message in a control frame.

    Raises:
        ProtocolError: as `decode`, or the frame is too long.
    """
    _check_length(frame)
    return decode(frame[len(FRAME_HEADER) :])


def _check_length(frame: bytes | memoryview) -> None:
    """Before it is unpacked: the objects that a message becomes can take sixty times its bytes."""
    if len(frame) > MAX_FRAME:
        raise ProtocolError(f"a control frame of {len(frame):,} bytes is longer than the limit of {MAX_FRAME:,}")


def encode_stream(message: Message) -> bytes:
    """The message as it goes over a stream: its length, then itself."""
    data = encode(message)
    return _LENGTH.pack(len(data)) + data


class StreamDecoder:
    """Cuts a stream's bytes into messages.  It reads no socket; feed it what came.

    Args:
        limit: bytes of the longest message that is believed.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes what came."""
        self._bytes += data

    def next(self) -> Message | None:
        """The next message, None if it is not complete yet.

        Raises:
            ProtocolError: as `decode`, or the message is longer than the limit.
        """
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if length > self._limit:
            raise ProtocolError(f"a control message of {length:,} bytes is longer than the limit of {self._limit:,}")
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        data = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        return decode(data)


def brief(value: object) -> str:
    """What another process said, for a message: at most 100 characters, however long or deep it is."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:_BRIEF]


def _fits(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is int:
        return type(value) is int and value >= 0  # bool is an int, too
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    return isinstance(value, hint)
