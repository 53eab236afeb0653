"""One worker of UCX in one asyncio loop, and the links over it: native/ucp_links.h with Python's types, asleep when
there is nothing to do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from adapm._ucp import ffi, lib
from adapm.errors import NoLanes
from adapm.transport import COPY_LIMIT, Engine

from . import ucx_library

if TYPE_CHECKING:
    from adapm._ucp import CData

FRAME: Final = lib.ADAPM_LINK_FRAME
READY: Final = lib.ADAPM_LINK_READY
REFUSED: Final = lib.ADAPM_LINK_REFUSED
COMPLETE: Final = lib.ADAPM_LINK_COMPLETE
FAILED: Final = lib.ADAPM_LINK_FAILED
STRANGER: Final = lib.ADAPM_LINK_STRANGER

_FAULTS: Final = {
    lib.ADAPM_FAULT_TWICE: "it sent frame {number} twice",
    lib.ADAPM_FAULT_TOO_LARGE: "it sent a frame of {length} bytes, which is too large",
    lib.ADAPM_FAULT_EARLY: "its frame {number} came too long before its turn: {length:,} bytes wait for theirs",
    lib.ADAPM_FAULT_STUFFED: "it goes on sending while a row that it sent for is locked: {length:,} bytes wait",
    lib.ADAPM_FAULT_NO_MEMORY: "there is no memory for its frame of {length} bytes",
}
_TURNS: Final = 64  # in a row, then others of the loop have theirs
_BUSY: Final = -15
# Seconds between looks while no descriptor will tell; the last repeats.
_WAIT: Final = (0.0, 0.0, 0.0001, 0.0001, 0.0002, 0.0005, 0.001)
_ROOM: Final = 4096


class Way:
    """What leads to one other port and back: its frames, in order.  Lost with its port."""

    def __init__(self, port: Port, handle: CData) -> None:
        self._port = port
        self._handle = handle
        self.is_open = False
        """Whether frames can be sent."""

    def open(self, address: bytes, theirs: int) -> str:
        """From now on frames go to the port of this address, with this key; "" or why not. See native/ucp.h."""
        status = lib.adapm_link_open(self._handle, ffi.from_buffer(address), theirs)
        self.is_open = status == 0
        self._port.look()
        return "" if self.is_open else f"{ucx_library.why(status)} ({ucx_library.said()})"

    def fetch_from(self, size: int, at_most: int) -> None:
        """Frames of so many bytes wait here until the receiver fetches them.

        Args:
            size: see above.
            at_most: but for those that go alone: no other is under way in either direction, and since something last
                came from the peer, no more than so many bytes have gone.
        """
        lib.adapm_link_fetched_from(self._handle, size, at_most)

    def serve(self) -> None:
        """From now on the engine's frames come from here, and go here."""
        lib.adapm_link_serve(self._handle)

    def send(self, view: memoryview, release: object = None) -> None:
        """Sends a frame after all others; one of `COPY_LIMIT` bytes or more must stay as it is until it has gone."""
        size = view.nbytes
        data, copied = ffi.from_buffer(view) if size else ffi.NULL, size < COPY_LIMIT
        lib.adapm_link_send(self._handle, data, size, copied, 0 if copied else self._port.hold(view, release))
        self._port.look()

    def expect(self, frames: int) -> None:
        """COMPLETE is to come when so many frames have, in all."""
        lib.adapm_link_expect(self._handle, frames)
        self._port.look()

    @property
    def total(self) -> int:
        """Frames accepted so far."""
        return lib.adapm_link_total(self._handle)

    @property
    def queued(self) -> int:
        """Bytes that have not gone."""
        return lib.adapm_link_queued(self._handle)

    def lanes(self) -> tuple[str, ...]:
        """Transport and device of each lane that UCX chose: "tcp/lo", "sysv/memory"."""
        text = ffi.new("char[]", _ROOM)
        return tuple(ffi.string(text).decode().split()) if lib.adapm_link_lanes(self._handle, text, _ROOM) > 0 else ()

    def close(self) -> None:
        """Nothing more comes, and what has not gone is dropped. May be called twice."""
        self.is_open = False
        lib.adapm_link_close(self._handle)
        self._port.look()


class Port:
    """A worker of UCX.

    Args:
        settings: of UCX, by names without their prefix; all others come from the environment as usual.
        on_event: gets each event of native/ucp_links.h that is not for the engine, valid during the call.  It does not
            raise.
        spin: seconds to look for an answer before sleeping.

    Raises:
        NoLanes: UCX cannot be opened with these settings.
    """

    def __init__(self, settings: Mapping[str, str], on_event: Callable[[CData], None], spin: float) -> None:
        self._handle = opened(settings)
        self._links = lib.adapm_links_new(self._handle, round(spin * 1e9))
        self.is_open = True
        self.engine: Engine | None = None
        self._on_event = on_event
        self._event = ffi.new("adapm_link_event *")
        self._lost = ffi.new("int64_t *")
        self._held: dict[int, tuple[memoryview, object]] = {}
        self._tokens = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._fd = lib.adapm_port_fd(self._handle)
        self._turning = False
        self._next: asyncio.Handle | None = None
        self._idle_looks = 0
        self._loop.add_reader(self._fd, self._turn)
        self.look()

    def address(self) -> bytes:
        """What other ports need to open a way to this one."""
        return address_of(self._handle)

    def way(self, peer: int, ours: int, max_frame: int) -> Way:
        """What will lead to this peer; frames that bear our key come from there, from now on."""
        return Way(self, lib.adapm_link_new(self._links, peer, ours, max_frame))

    def hold(self, view: memoryview, release: object) -> int:
        """Keeps the memory of a frame; the token with which it is given back."""
        token = next(self._tokens)
        self._held[token] = view, release
        return token

    def close(self) -> None:
        """Frees everything; no event comes afterwards."""
        self.is_open = False
        if self._next is not None:
            self._next.cancel()
        self._loop.remove_reader(self._fd)
        lib.adapm_links_free(self._links)
        self._held.clear()
        ucx_library.said()

    # ---- the engine

    def drive(self, engine: Engine) -> None:
        """See `Transport.drive`; the ways that it concerns are told by `Way.serve`."""
        self.engine = engine
        lib.adapm_links_drive(self._links, ffi.new("uint64_t[]", engine.addresses), engine.allowance)

    def leave(self) -> None:
        """The engine gets nothing more."""
        lib.adapm_links_leave(self._links)

    def flush(self) -> tuple[int, int]:
        """Sends what the engine has to send: how many bytes, and a peer that is not there for some of them, or -1."""
        sent = lib.adapm_links_flush(self._links, self._lost)
        self.look()
        return sent, self._lost[0]

    def catch_up(self) -> bool:
        """Goes on where the engine could not; whether it still cannot."""
        if not lib.adapm_links_resume(self._links):
            return False
        self._turn()
        return lib.adapm_links_blocked(self._links) > 0

    # ---- when to look

    def look(self) -> None:
        """Something was begun: UCX must have its turn before the loop sleeps, if this is not all of it."""
        if self.is_open and not self._turning and self._next is None and lib.adapm_links_rest(self._links):
            self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._turning = True
        try:
            again = self._take_turns()
        finally:
            self._turning = False
        if again is not None and self.is_open:
            self._next = self._loop.call_later(again, self._turn)

    def _take_turns(self) -> float | None:
        """Handles what there is; in how many seconds to look again, None: when the descriptor says so."""
        for _ in range(_TURNS):
            found = lib.adapm_links_turn(self._links, self._event)
            if found <= 0:
                return self._patience(found)
            self._idle_looks = 0
            self._handle_event(self._event)
        return 0.0

    def _handle_event(self, event: CData) -> None:
        if event.kind == lib.ADAPM_LINK_HANDLED:
            assert self.engine is not None
            self.engine.on_handled(event.number > 0)
        elif event.kind == lib.ADAPM_LINK_SENT:
            del self._held[event.number]
        elif event.kind != lib.ADAPM_LINK_NOTHING:
            self._on_event(event)

    def _patience(self, status: int) -> float | None:
        if status != _BUSY:
            self._idle_looks = 0
            return None
        self._idle_looks += 1
        return _WAIT[min(self._idle_looks, len(_WAIT)) - 1]


def opened(settings: Mapping[str, str]) -> CData:
    """A port of native/ucp.h; arguments and errors as of `Port`."""
    keys, values = ([ffi.new("char[]", text.encode()) for text in texts] for texts in (settings, settings.values()))
    status = ffi.new("int32_t *")
    handle = lib.adapm_port_open(ffi.new("char *[]", keys), ffi.new("char *[]", values), len(settings), status)
    if not handle:
        asked = " ".join(f"{name}={settings[name]}" for name in ("TLS", "NET_DEVICES") if name in settings)
        raise NoLanes(
            f"{ucx_library.load()} has no usable lanes (asked for: {asked or 'any'}): {ucx_library.why(status[0])}"
            f" ({ucx_library.said()}); adapm doctor says what there is: choose another variant, and look at"
            " UCX_TLS and UCX_NET_DEVICES in the environment"
        )
    return handle


def address_of(handle: CData) -> bytes:
    """Of a port of native/ucp.h: what others need to open a way to it."""
    length = ffi.new("uint64_t *")
    return bytes(ffi.buffer(lib.adapm_port_address(handle, length), length[0]))


def frame_of(event: CData) -> memoryview:
    """The bytes of a frame, until the event is handled."""
    return memoryview(ffi.buffer(event.data, event.length)) if event.length else memoryview(b"")


def accusation_of(event: CData) -> tuple[str, bool]:
    """What is wrong with a peer, and whether it is its fault."""
    why = _FAULTS[event.status].format(number=event.number, length=event.length)
    return why, event.status != lib.ADAPM_FAULT_NO_MEMORY
