"""One worker of UCX in one asyncio loop: native/ucp.h with Python's types, asleep when there is nothing to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from adapm._ucp import ffi, lib
from adapm.errors import NoLanes
from adapm.transport import COPY_LIMIT

from . import ucx_library

if TYPE_CHECKING:
    from adapm._ucp import CData

FRAME: Final = lib.ADAPM_UCP_FRAME
OFFER: Final = lib.ADAPM_UCP_OFFER
SENT: Final = lib.ADAPM_UCP_SENT
FAILED: Final = lib.ADAPM_UCP_FAILED

_TURNS: Final = 64  # in a row, then others of the loop have theirs
_BUSY: Final = -15
# Seconds between looks while no descriptor will tell; the last repeats.
_WAIT: Final = (0.0, 0.0, 0.0001, 0.0001, 0.0002, 0.0005, 0.001)
_ROOM: Final = 4096


class Way:
    """What leads to one other port. Lost with its port."""

    def __init__(self, port: Port, handle: CData) -> None:
        self._port = port
        self._handle = handle

    def send(self, number: int, view: memoryview, *, rendezvous: bool) -> int:
        """Hands a frame to UCX; 0: it is gone, 1: a SENT with its number will come, < 0: an error.

        Under `COPY_LIMIT` bytes it is copied; else it must stay as it is until then.
        """
        size = view.nbytes
        data = ffi.from_buffer(view) if size else ffi.NULL
        status = lib.adapm_way_send(self._handle, number, data, size, size < COPY_LIMIT, rendezvous)
        self._port.look()
        return status

    def lanes(self) -> tuple[str, ...]:
        """Transport and device of each lane that UCX chose: "tcp/lo", "sysv/memory"."""
        text = ffi.new("char[]", _ROOM)
        return tuple(ffi.string(text).decode().split()) if lib.adapm_way_lanes(self._handle, text, _ROOM) > 0 else ()

    def close(self) -> None:
        """Drops what has not gone. May be called twice."""
        if self._handle is not None and self._port.is_open:
            lib.adapm_way_close(self._handle)
            self._port.look()
        self._handle = None


class Port:
    """A worker of UCX.

    Args:
        settings: of UCX, by names without their prefix; all others come from the environment as usual.
        on_event: gets each event of native/ucp.h, valid during the call.  It does not raise.
        spin: seconds to look for an answer before sleeping.

    Raises:
        NoLanes: UCX cannot be opened with these settings.
    """

    def __init__(self, settings: Mapping[str, str], on_event: Callable[[CData], None], spin: float) -> None:
        keys, values = ([ffi.new("char[]", text.encode()) for text in texts] for texts in (settings, settings.values()))
        status = ffi.new("int32_t *")
        self._handle = lib.adapm_port_open(
            ffi.new("char *[]", keys), ffi.new("char *[]", values), len(settings), status
        )
        if not self._handle:
            asked = " ".join(f"{name}={settings[name]}" for name in ("TLS", "NET_DEVICES") if name in settings)
            raise NoLanes(
                f"{ucx_library.load()} has no usable lanes (asked for: {asked or 'any'}): {ucx_library.why(status[0])}"
                f" ({ucx_library.said()}); adapm doctor says what there is: choose another variant, and look at"
                " UCX_TLS and UCX_NET_DEVICES in the environment"
            )
        self.is_open = True
        self.asked = False
        """Whether something was sent since something last came in."""
        self._spin = round(spin * 1e9)
        self._on_event = on_event
        self._events = ffi.new("adapm_ucp_event **")
        self._loop = asyncio.get_running_loop()
        self._fd = lib.adapm_port_fd(self._handle)
        self._turning = False
        self._next: asyncio.Handle | None = None
        self._idle_looks = 0
        self._loop.add_reader(self._fd, self._turn)
        self.look()

    def address(self) -> bytes:
        """What other ports need to open a way to this one."""
        length = ffi.new("uint64_t *")
        return bytes(ffi.buffer(lib.adapm_port_address(self._handle, length), length[0]))

    def open_way(self, address: bytes, ours: int, theirs: int) -> Way | str:
        """A way to the port of this address, or why there is none; see native/ucp.h."""
        status = ffi.new("int32_t *")
        handle = lib.adapm_way_open(self._handle, ffi.from_buffer(address), ours, theirs, status)
        self.look()
        return Way(self, handle) if handle else f"{ucx_library.why(status[0])} ({ucx_library.said()})"

    def give(self, event: CData) -> None:
        """A frame is read, or an offer is refused."""
        lib.adapm_port_give(self._handle, event)

    def take(self, event: CData) -> bool:
        """An offer is accepted: it will come as a frame, unless there is no memory for it."""
        return lib.adapm_port_take(self._handle, event) >= 0

    def close(self) -> None:
        """Frees everything; no event comes afterwards."""
        self.is_open = False
        if self._next is not None:
            self._next.cancel()
        self._loop.remove_reader(self._fd)
        lib.adapm_port_close(self._handle)
        ucx_library.said()

    # ---- when to look

    def look(self) -> None:
        """Something was begun: UCX must have its turn before the loop sleeps."""
        if not self._turning and self._next is None:
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
            found = lib.adapm_port_turn(self._handle, self._spin if self.asked else 0, self._events)
            if found <= 0:
                self.asked = False
                return self._patience(found)
            self._idle_looks = 0
            for i in range(found):
                self._on_event(self._events[0] + i)
        return 0.0

    def _patience(self, status: int) -> float | None:
        if status != _BUSY:
            self._idle_looks = 0
            return None
        self._idle_looks += 1
        return _WAIT[min(self._idle_looks, len(_WAIT)) - 1]


def kept(event: CData) -> CData:
    """The event, beyond the call in which it came."""
    return ffi.new("adapm_ucp_event *", event[0])


def view(event: CData) -> memoryview:
    """The bytes of a frame, until it is given back."""
    return memoryview(ffi.buffer(event.data, event.length)) if event.length else memoryview(b"")
