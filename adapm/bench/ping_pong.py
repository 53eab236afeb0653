"""Bare blocking ping-pong between two processes: what a round trip costs when nobody does anything with it.

The other side is a process of its own.  It receives requests of one size and answers each with as many bytes as the
request's first 8 say.  One request is outstanding; both sides block.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import secrets
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zmq

_LENGTH: Final = struct.Struct("<q")
_ZERO_COPY: Final = 64 * 1024  # bytes from which on zmq is faster without copies
_CHUNK: Final = 1 << 20
_STARTED: Final = 30.0  # seconds that the other process may take


class Side(Protocol):
    """One end of a connection."""

    def send(self, message: memoryview) -> None:
        """Sends all of it."""

    def receive(self, length: int) -> bytes | bytearray | memoryview:
        """The next message; where the connection does not say how long it is, it is of this length."""

    def close(self) -> None:
        """Ends the connection."""


class ZmqSide:
    """A PAIR socket, which does the least of all kinds."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, bind: bool) -> None:
        self._context = context
        self._socket = context.socket(zmq.PAIR)
        self._socket.linger = 0
        (self._socket.bind if bind else self._socket.connect)(endpoint)

    @property
    def endpoint(self) -> str:
        """Where the other side connects to."""
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, message: memoryview) -> None:
        self._socket.send(message, 0, len(message) < _ZERO_COPY)

    def receive(self, length: int) -> bytes | memoryview:
        if length < _ZERO_COPY:
            return self._socket.recv()
        return self._socket.recv(copy=False).buffer

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class TcpSide:
    """A TCP socket without Nagle's algorithm."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(_CHUNK)

    def send(self, message: memoryview) -> None:
        self._socket.sendall(message)

    def receive(self, length: int) -> memoryview:
        if length > len(self._buffer):
            self._buffer = bytearray(length)
        view, have = memoryview(self._buffer)[:length], 0
        while have < length:
            got = self._socket.recv_into(view[have:])
            if not got:
                raise EOFError("the other side is gone")
            have += got
        return view

    def close(self) -> None:
        self._socket.close()


def _zmq_server(endpoint: str) -> tuple[str, Callable[[], Side]]:
    side = ZmqSide(zmq.Context(), endpoint, bind=True)
    return side.endpoint, lambda: side


def _tcp_server() -> tuple[str, Callable[[], Side]]:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()

    def accept() -> Side:
        with listener:
            return TcpSide(listener.accept()[0])

    return f"{host}:{port}", accept


def _serve(kind: str) -> tuple[str, Callable[[], Side]]:
    if kind == "zmq":
        return _zmq_server("tcp://127.0.0.1:*")
    if kind == "zmq+ipc":
        return _zmq_server(f"ipc://@adapm-ping-pong-{secrets.token_hex(8)}")  # "*" would leave a folder where we are
    return _tcp_server()


def connect(kind: str, address: str) -> Side:
    """The side that asks.

    Args:
        kind: "zmq", "zmq+ipc" or "tcp".
        address: what `server` yielded.
    """
    if kind != "tcp":
        return ZmqSide(zmq.Context(), address, bind=False)
    host, port = address.rsplit(":", 1)
    return TcpSide(socket.create_connection((host, int(port))))


def kind_for(transport: str) -> str:
    """The baseline for a transport: the same library where there is one, else plain TCP."""
    if transport.startswith("zmq"):
        return "zmq+ipc" if "ipc" in transport else "zmq"
    return "tcp"


@contextlib.contextmanager
def server(kind: str, where: list[int], request: int) -> Iterator[str]:
    """A process that answers; yields the address for `connect`.

    Args:
        kind: see there.
        where: its cores.
        request: bytes of a request, at least 8.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(kind, where, request, theirs), daemon=True)
    with ours:
        process.start()
        theirs.close()
        try:
            if not ours.poll(_STARTED):
                raise TimeoutError(f"the other side of the ping-pong did not start in {_STARTED:g} seconds")
            yield ours.recv()
        finally:
            _end(process)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    process.terminate()
    process.join()
    process.close()


def _answer(kind: str, where: list[int], request: int, pipe: multiprocessing.connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent ends us
    threading.Thread(target=_die_with, args=(pipe,), daemon=True).start()
    os.sched_setaffinity(0, where)  # before zmq starts threads
    address, accept = _serve(kind)
    pipe.send(address)
    side, answer = accept(), memoryview(bytearray(_CHUNK))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            (length,) = _LENGTH.unpack_from(side.receive(request))
            if length > len(answer):
                answer = memoryview(bytearray(length))
            side.send(answer[:length])


def _die_with(pipe: multiprocessing.connection.Connection) -> None:
    """Ends this process when the other end of the pipe is gone, however that happened."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(0)


class Ping:
    """Repeats one round trip.

    Args:
        side: a connected one.
        request: bytes of the request, at least 8.
        answer: bytes of the answer.
    """

    def __init__(self, side: Side, request: int, answer: int) -> None:
        self._side = side
        self._request = memoryview(bytearray(request))
        _LENGTH.pack_into(self._request, 0, answer)
        self._answer = answer

    def __call__(self) -> int:
        """Makes one; returns how many bytes came back."""
        self._side.send(self._request)
        return len(self._side.receive(self._answer))
