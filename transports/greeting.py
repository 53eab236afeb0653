"""The greeting at the start of a connection, and how both ends show in it that they have the cluster key.

    A, who connects                                        B, who is connected to
      |---- HELLO, 32 random bytes of A ------------------->|
      |<--- CHALLENGE, 32 random bytes of B ----------------|
      |---- PROOF: keyed hash of "caller" and both notes -->|    B knows that A has the key
      |<--- WELCOME: keyed hash of "host" and both notes ---|    A knows that B has it

The hashes cover both notes whole: versions, node ids, incarnations, addresses and the random bytes of both sides. So a
proof is good for one connection, one direction and one pair of nodes; who records it or sends it back gains nothing.
Without a key WELCOME follows HELLO at once; with a key at one end only, both ends say so.

Nothing here reads a socket: notes come in as bytes, and what to say goes out as values.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import Final

from adapm.errors import ProtocolError

from .note import NO_TOKEN, TOKEN, Kind, Note

REMEDY: Final = "give all nodes the same key file (key_file; `adapm keys` makes one, `adapm doctor` shows which it is)"
_CALLER: Final = b"caller"
_HOST: Final = b"host"


class Distrust(Exception):
    """The other end has not shown that it has our key; the message is for both ends."""


def derive(key: bytes, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose, at most 16 bytes long, that tells nothing of others or of the cluster key."""
    return hashlib.blake2b(key=key, digest_size=32, person=purpose).digest()


class Caller:
    """The side that connects.

    Args:
        key: the cluster key, None for none.
        hello: how the greeting begins; `self.hello` is what to say.
    """

    def __init__(self, key: bytes | None, hello: Note) -> None:
        self.hello = replace(hello, token=secrets.token_bytes(TOKEN) if key else NO_TOKEN)
        self._key = key
        self._challenge = b""

    def hear(self, data: bytes) -> Note:
        """What the other end says; to a CHALLENGE say `proof()`, and a WELCOME can be trusted.

        Raises:
            ProtocolError: it is no note, or should not come now.
            Distrust: it is the welcome of somebody who has not our key.
        """
        told = Note.unpack(data)
        if told.kind is Kind.CHALLENGE:
            if self._key is None or self._challenge:
                raise ProtocolError("it asked for a proof that it cannot expect")
            self._challenge = data
        elif told.kind is Kind.WELCOME and self._key is not None:
            self._check(self._key, told)
        return told

    def proof(self) -> bytes:
        """The token of the PROOF that follows the challenge."""
        assert self._key is not None and self._challenge
        return _proof(self._key, _CALLER, self.hello.pack(), self._challenge)

    def _check(self, key: bytes, welcome: Note) -> None:
        if not self._challenge:
            raise Distrust(f"node {self.hello.to} has no cluster key and node {self.hello.node} has one: {REMEDY}")
        challenge = Note.unpack(self._challenge)
        expected = _proof(key, _HOST, self.hello.pack(), self._challenge)
        same = (challenge.node, challenge.incarnation) == (welcome.node, welcome.incarnation)
        if not (same and hmac.compare_digest(welcome.token, expected)):
            raise Distrust(_other_key(self.hello.to, self.hello.node))


class Host:
    """The side that is connected to.

    Args:
        key: the cluster key, None for none.
        challenge: what to answer to a HELLO, but for receiver and token.
    """

    def __init__(self, key: bytes | None, challenge: Note) -> None:
        self._key, self._challenge = key, challenge
        self._said = self._hello = b""
        self.token = NO_TOKEN
        """What WELCOME must bear."""

    def hear(self, data: bytes) -> Note:
        """What to say in turn if it is a CHALLENGE, else the other end's hello: it can be trusted.

        Raises:
            ProtocolError: it is no note, or should not come now.
            Distrust: the other end has not our key.
        """
        told = Note.unpack(data)
        if self._said:
            return self._trusted(told)
        if told.kind is not Kind.HELLO:
            raise ProtocolError("the first note on a connection must be a hello")
        theirs, ours = told.token != NO_TOKEN, self._key is not None
        if theirs != ours:
            with_key, without = (told.node, told.to) if theirs else (told.to, told.node)
            raise Distrust(f"node {with_key} has a cluster key and node {without} has none: {REMEDY}")
        if not ours:
            return told
        challenge = replace(self._challenge, to=told.node, token=secrets.token_bytes(TOKEN))
        self._hello, self._said = data, challenge.pack()
        return challenge

    def _trusted(self, told: Note) -> Note:
        assert self._key is not None
        hello = Note.unpack(self._hello)
        if told.kind is not Kind.PROOF:
            raise ProtocolError("a challenge must be answered by a proof")
        if not hmac.compare_digest(told.token, _proof(self._key, _CALLER, self._hello, self._said)):
            raise Distrust(_other_key(hello.node, hello.to))
        self.token = _proof(self._key, _HOST, self._hello, self._said)
        return hello


def _proof(key: bytes, role: bytes, hello: bytes, challenge: bytes) -> bytes:
    text = role + len(hello).to_bytes(8, "little") + hello + challenge
    return hashlib.blake2b(text, key=derive(key, b"adapm-greeting"), digest_size=TOKEN, person=b"adapm-proof").digest()


def _other_key(one: int, other: int) -> str:
    return f"node {one} has another cluster key than node {other}: {REMEDY}"
