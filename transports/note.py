"""What two transports say to each other about their link: one small message format, checked byte by byte."""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from adapm.errors import ProtocolError

MAGIC = b"adpm"
VERSION = 2
TEXT_LIMIT = 1024
LAST_ID = 65_534  # of a node
TOKEN = 32  # bytes
NO_TOKEN = bytes(TOKEN)

_HEAD = struct.Struct("<4sHHII16s32sI")  # magic, version, kind, sender, receiver, incarnation, token, bytes of text
_FIXED = struct.Struct("<4sH")
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
    CHALLENGE = 8
    """Answer to HELLO: show that you have the cluster key."""
    PROOF = 9
    """Answer to CHALLENGE."""
    DISTRUSTED = 10
    """Answer to HELLO or PROOF [why]: the keys of the two do not match."""


@dataclass(frozen=True)
class Note:
    """One such message.

    Attributes:
        kind: what it says.
        node: who says it.
        to: who is meant.
        incarnation: 16 random bytes that tell this transport from any other with the same node id.
        text: see `Kind`; cut to `TEXT_LIMIT` bytes on the way, and what could not be printed arrives as a mark.
        token: random bytes or a proof, see `greeting`; `NO_TOKEN` where there is none.
    """

    kind: Kind
    node: int
    to: int
    incarnation: bytes
    text: str = ""
    token: bytes = NO_TOKEN

    def pack(self) -> bytes:
        """The note as bytes."""
        text = self.text.encode()[:TEXT_LIMIT]
        head = _HEAD.pack(MAGIC, VERSION, self.kind, self.node, self.to, self.incarnation, self.token, len(text))
        return head + text

    @staticmethod
    def unpack(data: bytes) -> Note:
        """The note that `pack` made.

        Raises:
            ProtocolError: these bytes are no note, or one of another version.
        """
        if len(data) < _FIXED.size or data[: len(MAGIC)] != MAGIC:
            raise ProtocolError(
                f"{data[:16]!r} is no greeting between adapm nodes; is another program using this port?"
            )
        version = _FIXED.unpack_from(data)[1]
        if version != VERSION:
            raise ProtocolError(f"the peer speaks version {version} of the link protocol, this node version {VERSION}")
        if len(data) < _HEAD.size:
            raise ProtocolError(f"a note of {len(data)} bytes is shorter than any")
        _, _, kind, node, to, incarnation, token, length = _HEAD.unpack_from(data)
        if length > TEXT_LIMIT or len(data) != _HEAD.size + length:
            raise ProtocolError(f"a note of {len(data)} bytes announces {length} bytes of text")
        try:
            return Note(Kind(kind), node, to, incarnation, _printable(data[_HEAD.size :]), token)
        except ValueError as error:
            raise ProtocolError(f"a note of unknown kind {kind}") from error


def _printable(data: bytes) -> str:
    """Text that may go to a log or a terminal as it is."""
    return "".join(c if c.isprintable() else "\ufffd" for c in data.decode(errors="replace"))
