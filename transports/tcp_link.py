"""One connection as a stream of frames and notes: how they are cut from it, and how they wait to be sent.

Each begins with 8 bytes, little-endian: its length, and whether it is a note.  A sign of life is a note of length 0.

Reading costs one system call per event, however many frames it brings; they are handed over where they lie, and a
connection keeps its buffer only while a frame has begun and not ended.  Sending is tried at once; what the socket does
not take waits for it to become writable.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np

from adapm.errors import ProtocolError
from adapm.transport import COPY_LIMIT

from .note import TEXT_LIMIT

HEAD: Final = struct.Struct("<Q")
NOTE: Final = 1 << 63
NOTE_LIMIT: Final = 2 * TEXT_LIMIT  # bytes, more than any note has
_FIRST: Final = HEAD.size + NOTE_LIMIT  # bytes of a stranger's buffer
_USUAL: Final = 2 << 20  # bytes of a buffer; longer frames get one of their own
_SOCKET_BUFFER: Final = 4 << 20  # bytes that may wait in a socket, if the system allows so many: a whole round
_POOLED: Final = 4  # buffers that are kept for the next event
_GATHERED: Final = 64  # pieces that one system call sends


class Buffers:
    """What the connections of one transport receive into: a few buffers that go round, each warm from its last use."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, size: int = _USUAL) -> memoryview:
        """A buffer of at least so many bytes."""
        for i, buffer in enumerate(self._free):
            if size <= len(buffer):
                return self._free.pop(i)
        return np.empty(size, np.uint8).data  # not cleared: what was announced takes no memory before it comes

    def give(self, buffer: memoryview) -> None:
        """The buffer is not needed any more."""
        if len(buffer) == _USUAL and len(self._free) < _POOLED:
            self._free.append(buffer)


class Connection:
    """A connected socket.  Everything runs in the loop, and no callback inside a call of `send`.

    Args:
        sock: connected, non-blocking; it belongs to this object.
        buffers: the transport's; who is not known yet (see `max_frame`) has a small one instead.
        on_frame: gets each frame; the view is valid during the call.
        on_note: gets each note but signs of life.
        on_end: called once, with the reason, when nothing more will come; not after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffers: Buffers,
        *,
        on_frame: Callable[[memoryview], None],
        on_note: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.on_frame, self.on_note, self.on_end = on_frame, on_note, on_end
        self.closed = self.broke_rules = False
        self.queued = 0
        """Bytes that the socket has not taken yet."""
        self.max_frame = 0
        """Bytes; a peer that announces more is dropped.  0 until its greeting is over: it sends no frames before."""
        self._sock, self._buffers = sock, buffers
        self._loop = asyncio.get_running_loop()
        self.heard = self.said = self._loop.time()
        """When something came from the peer, and when something was sent to it."""
        self._buffer: memoryview | None = None  # while a frame has begun and not ended
        self._begin = self._end = 0  # where what has come lies in it
        self._queue: deque[tuple[memoryview, object]] = deque()
        self._closing = False
        _tune(sock)
        self._loop.add_reader(sock.fileno(), self._read)

    # ---- receiving

    def _read(self) -> None:
        if self._buffer is None:
            self._buffer = self._buffers.take() if self.max_frame else memoryview(bytearray(_FIRST))
        try:
            came = self._sock.recv_into(self._buffer[self._end :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.stop(error.strerror or str(error))
            return
        if not came:
            self.stop("the connection broke: its process died, or closed it without a word")
            return
        self.heard = self._loop.time()
        self._end += came
        needed = self._cut(self._buffer)
        if not self.closed:
            self._make_room(needed)

    def _cut(self, buffer: memoryview) -> int:
        """Hands over what has come whole; how many bytes what is left will take in all."""
        while self._end - self._begin >= HEAD.size and not self.closed:
            word: int = HEAD.unpack_from(buffer, self._begin)[0]
            length, is_note = word & ~NOTE, word >= NOTE
            if length > (NOTE_LIMIT if is_note else self.max_frame):
                self._fault(f"it announced {'a note' if is_note else 'a frame'} of {length} bytes, which is too large")
                break
            begin = self._begin + HEAD.size
            if begin + length > self._end:
                return HEAD.size + length
            self._begin = begin + length
            self._hand_over(is_note, buffer[begin : begin + length])
        return HEAD.size

    def _make_room(self, needed: int) -> None:
        """What is left, if anything, gets a buffer in which there is room for the rest of it."""
        assert self._buffer is not None
        left = self._end - self._begin
        if not left:
            self._let_go()
        elif self._begin + needed > len(self._buffer):
            old = self._buffer
            self._buffer = old if needed <= len(old) else self._buffers.take(needed)
            self._buffer[:left] = old[self._begin : self._end]
            if self._buffer is not old:
                self._buffers.give(old)
            self._begin, self._end = 0, left

    def _let_go(self) -> None:
        if self._buffer is not None:
            self._buffers.give(self._buffer)
        self._buffer, self._begin, self._end = None, 0, 0

    def _hand_over(self, is_note: bool, view: memoryview) -> None:
        """A callback that raises must not cost the frames behind it: the loop is told, and reading goes on."""
        if self._closing or self.closed:
            return
        try:
            if not is_note:
                self.on_frame(view)
            elif view:
                self.on_note(bytes(view))
        except ProtocolError as error:
            self._fault(str(error))
        except Exception as error:
            self._loop.call_exception_handler({"message": "a callback of a transport raised", "exception": error})

    # ---- sending

    def send(self, view: memoryview, release: object = None, *, note: bool = False) -> None:
        """Sends a frame or a note after all earlier ones; see `Transport.send` for `release`."""
        if self.closed:  # by the peer, in the same turn of the loop: who waits for an answer is told of that
            return
        size = view.nbytes
        head = HEAD.pack(size | NOTE if note else size)
        sent = 0
        if not self._queue:
            sent = self._take(head, view)
            if sent == HEAD.size + size:
                return
        if sent < HEAD.size:
            self._wait(memoryview(head[sent:]), None)
        rest = view[max(0, sent - HEAD.size) :]
        if rest.nbytes:
            self._wait(rest, release) if size >= COPY_LIMIT else self._wait(memoryview(bytes(rest)), None)

    def _take(self, *pieces: bytes | memoryview) -> int:
        """How many bytes of these the socket takes now."""
        try:
            sent = self._sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._loop.call_soon(self.stop, error.strerror or str(error))  # no callback inside send
            return 0
        self.said = self._loop.time()
        return sent

    def _wait(self, view: memoryview, release: object) -> None:
        if not self._queue:
            self._loop.add_writer(self._sock.fileno(), self._write)
        self._queue.append((view, release))
        self.queued += view.nbytes

    def _write(self) -> None:
        sent = self._take(*(view for view, _ in list(self._queue)[:_GATHERED]))
        self.queued -= sent
        while self._queue and sent >= self._queue[0][0].nbytes:
            sent -= self._queue.popleft()[0].nbytes
        if sent:
            view, release = self._queue[0]
            self._queue[0] = view[sent:], release
        if not self._queue:
            self._loop.remove_writer(self._sock.fileno())
            if self._closing:
                self._say_last()

    # ---- the end

    def _fault(self, reason: str) -> None:
        self.broke_rules = True
        self.stop(reason)

    def stop(self, reason: str) -> None:
        """Ends it, and calls `on_end` with the reason; nothing if it is closed."""
        if self.closed:
            return
        self.close()
        self.on_end(reason)

    def finish(self, closed: Callable[[], None]) -> None:
        """Nothing that comes counts any more; closes when all is sent and the peer has closed its end, or by `close`.

        To close at once would cost the peer what it has not read yet, if it sent something meanwhile.

        Args:
            closed: called when that has happened, unless by `close`.
        """
        self._closing = True
        self.on_end = lambda reason: closed()
        if not self._queue:
            self._say_last()

    def _say_last(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Frees everything; what has not been sent is dropped. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._queue.clear()
        self.queued = 0
        self._buffer = None  # not for others: somebody may look at it just now


def _tune(sock: socket.socket) -> None:
    """Small frames leave at once, large ones need few turns of the loop."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A low-water mark makes room for so many bytes at once.  SO_RCVBUF would be cut to rmem_max, 208 KiB where nobody
    # has changed it, and keep Linux from making more for fast or distant peers; the sending side grows by itself.
    for mark in (_SOCKET_BUFFER, 1):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
