"""CURVE, ZeroMQ's encryption, with keys that follow from the cluster key; and what is known of those that it refuses.

All nodes have the same two key pairs: one that they show when they are connected to, one when they connect. Who has the
cluster key can make both, so a pair for each node would tell no more; and two roles mean that what a node has said can
never be its own answer.
"""

from __future__ import annotations

import asyncio
import hmac
import struct
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

from adapm.errors import LibraryMissing

from .greeting import REMEDY, derive

FAILED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_DOOR: Final = "inproc://zeromq.zap.01"  # where libzmq asks who may come in
_DOMAIN: Final = b"adapm"
_MECHANISM_DIFFERS: Final = 0x11000002  # of libzmq's numbers for what was wrong with a handshake
_DOES_NOT_DECRYPT: Final = 0x11000001
_EVENT: Final = struct.Struct("=HI")

_Socket = zmq.Socket[bytes]


class Curve:
    """The keys of sockets.

    Args:
        key: the cluster key; None for no encryption.

    Raises:
        LibraryMissing: libzmq was built without CURVE.
    """

    def __init__(self, key: bytes | None) -> None:
        self.on = key is not None
        if key is None:
            return
        if not zmq.has("curve"):
            raise LibraryMissing(
                f"this libzmq {zmq.zmq_version()} was built without CURVE (libsodium), which a cluster key needs:"
                " reinstall pyzmq as a wheel (pip install --force-reinstall pyzmq), or use the transport tcp"
            )
        self._host, self._caller = _pair(key, b"adapm-zmq-host"), _pair(key, b"adapm-zmq-caller")

    def protect(self, router: _Socket) -> None:
        """From then on a socket that is to be bound lets in only whom a `Doorkeeper` of its context knows."""
        if self.on:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, self._host[1])
            router.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def introduce(self, dealer: _Socket) -> None:
        """From then on a socket that is to connect knows whom it wants, and shows who it is."""
        if self.on:
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._host[0])
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._caller[0])
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._caller[1])

    def knows(self, public: bytes) -> bool:
        """Whether this is the public key, 32 bytes, of a node that connects."""
        return self.on and hmac.compare_digest(public, z85.decode(self._caller[0]))

    def is_about_keys(self, event: int, detail: int) -> bool:
        """Whether that a handshake failed can only mean that the keys do not match."""
        return bool(event & zmq.EVENT_HANDSHAKE_FAILED_AUTH) or detail in (_MECHANISM_DIFFERS, _DOES_NOT_DECRYPT)

    def why(self, event: int, detail: int) -> str:
        """What a failed handshake means: "it ..."."""
        if detail == _MECHANISM_DIFFERS:
            return f"it has {'no' if self.on else 'a'} cluster key, this node {'one' if self.on else 'none'}: {REMEDY}"
        if self.is_about_keys(event, detail):
            return f"it has another cluster key than this node: {REMEDY}"
        if self.on:
            return f"it broke off the greeting, as nodes do that have another cluster key, or none: {REMEDY}"
        return f"it is no adapm node (is the port right?), or it has a cluster key and this node none: {REMEDY}"


class Monitor:
    """Tells in the loop what becomes of a socket's connections.

    Args:
        context: of the socket.
        socket: not bound or connected yet.
        events: which to tell, of zmq's EVENT_ numbers.
        on_event: gets each, and the detail that comes with it.
    """

    def __init__(
        self, context: zmq.Context[_Socket], socket: _Socket, events: int, on_event: Callable[[int, int], None]
    ) -> None:
        name = f"inproc://monitor-{id(self)}"
        socket.monitor(name, events)
        self._loop = asyncio.get_running_loop()
        self._on_event, self._watched = on_event, socket
        self._socket = context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(name)
        self._loop.add_reader(self._socket.fileno(), self._read)
        self._loop.call_soon(self._read)  # the descriptor tells of changes only

    def _read(self) -> None:
        while not self._socket.closed:
            try:
                head, _ = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_event(*_EVENT.unpack(head))

    def close(self) -> None:
        """Before the socket that is watched."""
        self._loop.remove_reader(self._socket.fileno())
        self._watched.disable_monitor()
        self._socket.close()


class Doorkeeper:
    """Answers libzmq's questions who may come in, for all sockets of a context (ZeroMQ's RFC 27).

    Raises:
        zmq.ZMQError: the context has one already.
    """

    def __init__(self, context: zmq.Context[_Socket], curve: Curve) -> None:
        self._curve = curve
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_DOOR)
        self._loop.add_reader(self._socket.fileno(), self._answer)

    def _answer(self) -> None:
        while not self._socket.closed:
            try:
                question = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(_reply(question, self._curve.knows))

    def close(self) -> None:
        """After the sockets that it keeps."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()


def _reply(question: list[bytes], knows: Callable[[bytes], bool]) -> list[bytes]:
    """To libzmq, in this process: version, number, domain, address, routing id, mechanism, public key."""
    version, number, _, _, _, mechanism, *credentials = question
    welcome = mechanism == b"CURVE" and len(credentials) == 1 and knows(credentials[0])
    return [version, number, b"200" if welcome else b"400", b"" if welcome else b"unknown key", b"", b""]


def _pair(key: bytes, purpose: bytes) -> tuple[bytes, bytes]:
    """Public and secret key, as zmq writes them: any 32 bytes are a secret key of Curve25519."""
    secret = z85.encode(derive(key, purpose))
    return zmq.curve_public(secret), secret
