"""What two transports say to each other about their link: one small message format, checked byte by byte."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from adapm.errors import ProtocolError

MAGIC = b"adpm"
VERSION = 1
TEXT_LIMIT = 1024

_HEAD = struct.Struct("<4sHHII16sI")  # magic, version, kind, sender, receiver, incarnation, bytes of text
# Magic and version keep their place in every version, so that different ones can tell each other apart.


class Kind(enum.IntEnum):
    """What a note says; the text is in brackets."""

    HELLO = 1
    """First message of a connection: this is who I am [where I listen]."""
    WELCOME = 2
    """Answer to HELLO: and this is who I am."""
    REFUSED = 3
    """Answer to HELLO [why not]."""
    GOODBYE = 4
    """Last message of a connection: I close."""
    FAREWELL = 5
    """Answer to GOODBYE: I have got all you sent."""
    GIVEN_UP = 6
    """I regard you as lost [why]."""
    WAIT = 7
    """Answer to HELLO: I have said hello to you, too, and that connection counts."""


@dataclass(frozen=True)
class Note:
    """One such message.

    Attributes:
        kind: what it says.
        node: who says it.
        to: who is meant.
        incarnation: 16 random bytes that tell this transport from any other with the same node id.
        text: see `Kind`; cut to `TEXT_LIMIT` bytes on the way.
    """

    kind: Kind
    node: int
    to: int
    incarnation: bytes
    text: str = ""

    def pack(self) -> bytes:
        """The note as bytes."""
        text = self.text.encode()[:TEXT_LIMIT]
        return _HEAD.pack(MAGIC, VERSION, self.kind, self.node, self.to, self.incarnation, len(text)) + text

    @staticmethod
    def unpack(data: bytes) -> Note:
        """The note that `pack` made.

        Raises:
            ProtocolError: these bytes are no note, or one of another version.
        """
        if len(data) < _HEAD.size or data[: len(MAGIC)] != MAGIC:
            raise ProtocolError(
                f"{data[:16]!r} is no greeting between adapm nodes; is another program using this port?"
            )
        _, version, kind, node, to, incarnation, length = _HEAD.unpack_from(data)
        if version != VERSION:
            raise ProtocolError(f"the peer speaks version {version} of the link protocol, this node version {VERSION}")
        if length > TEXT_LIMIT or len(data) != _HEAD.size + length:
            raise ProtocolError(f"a note of {len(data)} bytes announces {length} bytes of text")
        try:
            return Note(Kind(kind), node, to, incarnation, data[_HEAD.size :].decode(errors="replace"))
        except ValueError as error:
            raise ProtocolError(f"a note of unknown kind {kind}") from error
