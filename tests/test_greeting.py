"""The greeting, note by note, without sockets: who is trusted, and that nobody else ever is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from adapm.transports.greeting import Caller, Distrust, Host, derive
from adapm.transports.note import NO_TOKEN, TEXT_LIMIT, Kind, Note

from adapm.errors import ProtocolError

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def caller(key: bytes | None = KEY, node: int = 1, to: int = 0) -> Caller:
    return Caller(key, Note(Kind.HELLO, node, to, b"c" * 16, "tcp://127.0.0.1:1"))


def host(key: bytes | None = KEY, node: int = 0) -> Host:
    return Host(key, Note(Kind.CHALLENGE, node, 0, b"h" * 16))


def proof(a: Caller, node: int = 1, to: int = 0) -> bytes:
    return Note(Kind.PROOF, node, to, b"c" * 16, token=a.proof()).pack()


def welcome(b: Host, node: int = 0, to: int = 1) -> bytes:
    return Note(Kind.WELCOME, node, to, b"h" * 16, token=b.token).pack()


def test_who_has_the_key_is_trusted_by_both_sides() -> None:
    a, b = caller(), host()
    challenge = b.hear(a.hello.pack())
    assert (challenge.kind, challenge.to) == (Kind.CHALLENGE, 1)
    assert a.hear(challenge.pack()).kind is Kind.CHALLENGE
    assert b.hear(proof(a)) == a.hello
    assert a.hear(welcome(b)).kind is Kind.WELCOME


def test_without_keys_a_hello_is_enough() -> None:
    a, b = caller(None), host(None)
    assert b.hear(a.hello.pack()) == a.hello
    assert b.token == a.hello.token == NO_TOKEN
    assert a.hear(welcome(b)).kind is Kind.WELCOME


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [(KEY, None, "node 1 has a cluster key and node 0 has none"), (None, KEY, "node 0 has a cluster key and node 1")],
)
def test_a_key_at_one_end_only_is_said_with_the_remedy(theirs: bytes | None, ours: bytes | None, words: str) -> None:
    with pytest.raises(Distrust, match=f"{words}.*same key file"):
        host(ours).hear(caller(theirs).hello.pack())


def test_another_key_is_said_with_the_remedy() -> None:
    a, b = caller(OTHER), host(KEY)
    a.hear(b.hear(a.hello.pack()).pack())
    with pytest.raises(Distrust, match=r"node 1 has another cluster key than node 0.*same key file"):
        b.hear(proof(a))


def test_a_host_must_prove_itself_too() -> None:
    a, b = caller(KEY), host(OTHER)
    a.hear(b.hear(a.hello.pack()).pack())
    for token in (NO_TOKEN, a.proof(), b.token, bytes(32)):  # silence, our own proof sent back, nothing
        with pytest.raises(Distrust, match="node 0 has another cluster key than node 1"):
            a.hear(Note(Kind.WELCOME, 0, 1, b"h" * 16, token=token).pack())


def test_a_welcome_without_a_challenge_is_not_trusted() -> None:
    with pytest.raises(Distrust, match="node 0 has no cluster key and node 1 has one"):
        caller().hear(Note(Kind.WELCOME, 0, 1, b"h" * 16).pack())


def test_a_greeting_that_was_recorded_is_of_no_use() -> None:
    a, b = caller(), host()
    recorded = [a.hello.pack()]
    challenge = b.hear(recorded[0])
    a.hear(challenge.pack())
    recorded.append(proof(a))
    b.hear(recorded[1])
    again = host()
    assert again.hear(recorded[0]).kind is Kind.CHALLENGE
    with pytest.raises(Distrust):
        again.hear(recorded[1])

    late = caller()  # and from the other side: what the host had said
    late.hear(challenge.pack())
    with pytest.raises(Distrust):
        late.hear(welcome(b))


def test_a_challenge_that_is_sent_back_is_no_proof() -> None:
    b = host()
    hello = caller().hello.pack()
    challenge = b.hear(hello)
    with pytest.raises(Distrust):
        b.hear(Note(Kind.PROOF, 1, 0, b"c" * 16, token=challenge.token).pack())


def test_a_node_cannot_be_made_to_answer_its_own_challenge() -> None:
    """Node 0 is called by an attacker who says to be node 1, and calls node 1, which is the attacker, too."""
    as_host, as_caller = host(), caller(node=0, to=1)
    challenge = as_host.hear(caller().hello.pack())
    passed_on = Note(Kind.CHALLENGE, 1, 0, b"h" * 16, token=challenge.token)
    as_caller.hear(passed_on.pack())
    with pytest.raises(Distrust):
        as_host.hear(proof(as_caller))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def nobody(data: bytes) -> bytes:
    return data


def is_trusted(hello: Callable[[bytes], bytes], challenge: Callable[[bytes], bytes]) -> bool:
    """Whether the host trusts a caller with the key where the two notes are changed on the way."""
    a, b = caller(), host()
    try:
        asked = b.hear(hello(a.hello.pack()))
        told = a.hear(challenge(asked.pack()))
        return told.kind is Kind.CHALLENGE and b.hear(proof(a)).kind is Kind.HELLO
    except (ProtocolError, Distrust):
        return False


def test_whatever_bit_is_changed_on_the_way_there_is_no_trust() -> None:
    assert is_trusted(nobody, nobody)
    hello, challenge = caller().hello.pack(), Note(Kind.CHALLENGE, 0, 1, b"h" * 16).pack()
    assert not [bit for bit in range(8 * len(hello)) if is_trusted(lambda data, bit=bit: flipped(data, bit), nobody)]
    assert not [
        bit for bit in range(8 * len(challenge)) if is_trusted(nobody, lambda data, bit=bit: flipped(data, bit))
    ]


def test_whatever_bit_of_a_welcome_is_changed_who_said_it_is_not_mistaken() -> None:
    a, b = caller(), host()
    a.hear(b.hear(a.hello.pack()).pack())
    b.hear(proof(a))
    data = welcome(b)
    addressee = range(8 * 12, 8 * 16)  # who it is for: the connection says that
    for bit in set(range(8 * len(data))) - set(addressee):
        told = Kind.REFUSED
        try:
            told = a.hear(flipped(data, bit)).kind
        except (ProtocolError, Distrust):
            continue
        assert told is not Kind.WELCOME, bit


def test_notes_out_of_turn() -> None:
    with pytest.raises(ProtocolError, match="first note"):
        host().hear(Note(Kind.PROOF, 1, 0, bytes(16)).pack())
    b = host()
    b.hear(caller().hello.pack())
    with pytest.raises(ProtocolError, match="answered by a proof"):
        b.hear(caller().hello.pack())
    with pytest.raises(ProtocolError, match="cannot expect"):
        caller(None).hear(Note(Kind.CHALLENGE, 0, 1, bytes(16)).pack())
    a = caller()
    a.hear(host().hear(a.hello.pack()).pack())
    with pytest.raises(ProtocolError, match="cannot expect"):
        a.hear(host().hear(a.hello.pack()).pack())


def test_derived_keys_tell_purposes_and_keys_apart() -> None:
    assert len({derive(key, purpose) for key in (KEY, OTHER) for purpose in (b"a", b"b")}) == 4
    assert KEY not in {derive(KEY, b"a"), derive(KEY, b"")}


def test_rubbish_is_never_trusted_and_never_raises_anything_else() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        b = host()
        for _ in range(2):
            data = chance.randbytes(chance.choice([0, 1, 5, 6, 70, 71, 72, 100, TEXT_LIMIT]))
            data = b"adpm\2\0" + data if chance.random() < 0.5 else data
            with pytest.raises((ProtocolError, Distrust)):
                b.hear(data)


def test_what_a_note_says_can_be_printed() -> None:
    data = Note(Kind.REFUSED, 1, 0, bytes(16), "\x1b[2Jgone\n\x07").pack()
    assert Note.unpack(data).text == "\ufffd[2Jgone\ufffd\ufffd"
