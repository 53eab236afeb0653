"""One connection as a stream of frames and notes: native/tcp.h with Python's types, driven by asyncio's loop.

Each begins with 8 bytes, little-endian: its length, and whether it is a note.  A sign of life is a note of length 0.

Reading costs one system call per event, however many frames it brings; they are handed over where they lie, and a
connection keeps its buffer only while a frame has begun and not ended.  Sending is tried at once; what the socket does
not take waits for it to become writable.

Once a transport is driven (see `Transport.drive`), the engine's frames go from the socket into the engine and back
within C: here is only noticed that there is something to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from adapm._tcp import ffi, lib
from adapm.errors import ProtocolError
from adapm.transport import COPY_LIMIT, Engine

from .note import TEXT_LIMIT

if TYPE_CHECKING:
    from adapm._tcp import CData

HEAD: Final = struct.Struct("<Q")
NOTE: Final = 1 << 63
NOTE_LIMIT: Final = 2 * TEXT_LIMIT  # bytes, more than any note has
_SOCKET_BUFFER: Final = 4 << 20  # bytes that may wait in a socket, if the system allows so many: a whole round
_BROKE: Final = "the connection broke: its process died, or closed it without a word"


class Hub:
    """What the connections of one transport have in common: buffers that go round, and the engine if there is one."""

    def __init__(self) -> None:
        self.handle = ffi.gc(lib.adapm_hub_new(), lib.adapm_hub_free)
        self.engine: Engine | None = None
        self._connections: dict[int, Connection] = {}
        self._tags = itertools.count()
        self._lost = ffi.new("int64_t *")

    def enter(self, connection: Connection) -> int:
        """A new connection's tag."""
        tag = next(self._tags)
        self._connections[tag] = connection
        return tag

    def leave(self, tag: int) -> None:
        """It is closed."""
        del self._connections[tag]

    def drive(self, engine: Engine) -> None:
        """See `Transport.drive`; the connections that it concerns are told by `Connection.serve`."""
        self.engine = engine
        lib.adapm_hub_drive(self.handle, ffi.new("uint64_t[]", engine.addresses))

    def flush(self) -> tuple[int, int]:
        """Sends what the engine has to send: how many bytes, and a peer that is not there for some of them, or -1."""
        sent = lib.adapm_hub_flush(self.handle, self._lost)
        self.attend()
        return sent, self._lost[0]

    def catch_up(self) -> bool:
        """Goes on where the engine could not; whether it still cannot."""
        blocked = [connection for connection in self._connections.values() if connection.blocked]
        for connection in blocked:
            if not connection.closed:
                connection.go_on()
        return any(connection.blocked for connection in blocked)

    def attend(self) -> None:
        """Connections that have begun to wait for their sockets do so."""
        while (tag := lib.adapm_hub_waiting(self.handle)) >= 0:
            self._connections[tag].wait_for_room()


class Connection:
    """A connected socket.  Everything runs in the loop, and no callback inside a call of `send`.

    Args:
        sock: connected, non-blocking; it belongs to this object.
        hub: the transport's.
        on_frame: gets each frame; the view is valid during the call.
        on_note: gets each note but signs of life.
        on_end: called once, with the reason, when nothing more will come; not after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        hub: Hub,
        *,
        on_frame: Callable[[memoryview], None],
        on_note: Callable[[bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.on_frame, self.on_note, self.on_end = on_frame, on_note, on_end
        self.closed = self.blocked = self.broke_rules = False
        self._sock, self._hub = sock, hub
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        """When something came from the peer."""
        self._said = (0, self.heard)  # bytes sent, and when that was noticed
        self._peer = -1  # the engine's, if it is served
        self._held: dict[int, tuple[memoryview, object]] = {}
        self._tokens = itertools.count()
        self._closing = self._looking = False
        self._tag = hub.enter(self)
        self._wire: CData = lib.adapm_wire_new(hub.handle, sock.fileno(), self._tag)
        self._piece = ffi.new("adapm_piece *")
        self.allow(0)
        _tune(sock)
        self._loop.add_reader(sock.fileno(), self._read)

    def allow(self, max_frame: int) -> None:
        """A peer that announces frames of more bytes than this is dropped; 0 until its greeting is over."""
        lib.adapm_wire_allow(self._wire, max_frame, NOTE_LIMIT)

    def serve(self, peer: int) -> None:
        """From now on the engine's frames come from here, and go here."""
        self._peer = peer
        lib.adapm_wire_serve(self._wire, peer)

    @property
    def queued(self) -> int:
        """Bytes that the socket has not taken yet."""
        return 0 if self.closed else lib.adapm_wire_queued(self._wire)

    @property
    def room(self) -> int:
        """Bytes that are kept for what has begun to come."""
        return 0 if self.closed else lib.adapm_wire_room(self._wire)

    @property
    def said(self) -> float:
        """When it was last noticed, here, that something had been sent. Not of a closed one."""
        said = lib.adapm_wire_said(self._wire)
        if said != self._said[0]:
            self._said = said, self._loop.time()
        return self._said[1]

    # ---- receiving

    def _read(self) -> None:
        came = lib.adapm_wire_read(self._wire)
        if came > 0:
            self.heard = self._loop.time()
            self.go_on()
        elif came < 0:
            self.stop(_BROKE if came == -errno.EPIPE else os.strerror(-came))

    def go_on(self) -> None:
        """Hands over what has come whole."""
        was_blocked, self.blocked, self._looking = self.blocked, False, True
        while not (self.closed or self.blocked) and self._hand_over(lib.adapm_wire_next(self._wire, self._piece)):
            pass
        self._looking = False
        if self.closed:
            self._free()
        elif self.blocked != was_blocked:
            self._watch()
        if self._peer >= 0:
            assert self._hub.engine is not None
            self._hub.engine.on_handled(self.blocked)

    def _watch(self) -> None:
        """Nothing is read while the engine cannot go on, whatever comes."""
        if self.blocked:
            self._loop.remove_reader(self._sock.fileno())
        else:
            self.heard = self._loop.time()
            self._loop.add_reader(self._sock.fileno(), self._read)

    def _hand_over(self, came: int) -> bool:
        """Whether there may be more."""
        if came in (lib.ADAPM_CAME_FRAME, lib.ADAPM_CAME_NOTE):
            self._call_back(is_note=came == lib.ADAPM_CAME_NOTE)
        elif came == lib.ADAPM_CAME_BLOCKED:
            self.blocked = True
        elif came == -errno.EMSGSIZE:
            self._fault(f"it announced a frame of {self._piece.length} bytes, which is too large")
        elif came < 0:
            self._refused()
        return came != lib.ADAPM_CAME_NOTHING

    def _refused(self) -> None:
        assert self._hub.engine is not None
        lib.adapm_wire_mute(self._wire)
        self._hub.engine.on_refused(self._peer, self._piece.length)

    def _call_back(self, *, is_note: bool) -> None:
        """A callback that raises must not cost the frames behind it: the loop is told, and reading goes on."""
        if self._closing:
            return
        view = memoryview(ffi.buffer(self._piece.data, self._piece.length))
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
        """Sends a frame or a note after all earlier ones, unless it is closed; see `Transport.send` for `release`."""
        if self.closed:  # by the peer, in the same turn of the loop: who waits for an answer is told of that
            return
        size, token = view.nbytes, next(self._tokens)
        waits = lib.adapm_wire_send(self._wire, note, ffi.from_buffer(view), size, size < COPY_LIMIT, token)
        if waits > 0:
            self._held[token] = view, release
        if waits < 0:
            self._loop.call_soon(self.stop, os.strerror(-waits))  # no callback inside send
        self._hub.attend()

    def wait_for_room(self) -> None:
        """Sends the rest when the socket takes it."""
        self._loop.add_writer(self._sock.fileno(), self._write)

    def _write(self) -> None:
        waits = lib.adapm_wire_write(self._wire)
        while (token := lib.adapm_wire_sent(self._wire)) >= 0:
            del self._held[token]
        if waits < 0:
            self.stop(os.strerror(-waits))
        elif not waits:
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
        if self.closed:
            closed()
            return
        self._closing = True
        self.serve(lib.ADAPM_NOBODY)
        self.on_end = lambda reason: closed()
        if not self.queued:
            self._say_last()

    def _say_last(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Frees everything; what has not been sent is dropped. May be called twice."""
        if self.closed:
            return
        self.serve(lib.ADAPM_NOBODY)
        self.closed, self.blocked = True, False
        self._hub.leave(self._tag)
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._held.clear()
        if not self._looking:  # else somebody looks at its buffer just now
            self._free()

    def _free(self) -> None:
        lib.adapm_wire_free(self._wire)
        self._wire = None


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
