"""A port of UCX in an asyncio loop, without the order of frames: sends and takes what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from adapm.transports.ucx_port import address_of, opened

from adapm._ucp import ffi, lib  # noqa: TID251


class RawPort:
    """See above.

    Args:
        settings: of UCX.

    Attributes:
        frames: the numbers of those that came.
        offers: the large frames that wait with their senders, by number; see `take`.
        on_news: called after each event.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.frames: list[int] = []
        self.offers: dict[int, Any] = {}
        self.on_news: Callable[[], None] = lambda: None
        self._handle = opened(settings)
        self._events = ffi.new("adapm_ucp_event **")
        self._sent: dict[int, bytes] = {}  # what UCX may still read
        self._loop = asyncio.get_running_loop()
        self._fd = lib.adapm_port_fd(self._handle)
        self._loop.add_reader(self._fd, self._turn)
        self._turn()

    @property
    def address(self) -> bytes:
        return address_of(self._handle)

    def way(self, address: bytes, ours: int, theirs: int) -> RawWay:
        """What leads to the port of this address."""
        status = ffi.new("int32_t *")
        handle = lib.adapm_way_open(self._handle, ffi.from_buffer(address), ours, theirs, status)
        assert handle, status[0]
        return RawWay(self, handle)

    def send(self, way: object, number: int, frame: bytes, *, rendezvous: bool) -> None:
        token = len(self._sent) + 1
        self._sent[token] = frame
        mine = ffi.cast("void *", token)
        assert lib.adapm_way_send(way, number, ffi.from_buffer(frame), len(frame), rendezvous, mine) >= 0
        self._loop.call_soon(self._turn)

    def take(self, number: int) -> None:
        """Fetches a large frame."""
        assert lib.adapm_port_take(self._handle, self.offers.pop(number)) >= 0
        self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Without a word to anybody. May be called twice."""
        if self._handle is not None:
            self._loop.remove_reader(self._fd)
            for offer in self.offers.values():
                lib.adapm_port_give(self._handle, offer)
            lib.adapm_port_close(self._handle)
            self._handle = None

    def _turn(self) -> None:
        if self._handle is None:
            return
        found = lib.adapm_port_turn(self._handle, 0, self._events)
        for i in range(found):
            self._on_event(self._events[0] + i)
        if found:  # there may be more, or no descriptor will tell
            self._loop.call_soon(self._turn)

    def _on_event(self, event: Any) -> None:
        if event.kind == lib.ADAPM_UCP_OFFER:
            self.offers[event.number] = ffi.new("adapm_ucp_event *", event[0])
        elif event.kind == lib.ADAPM_UCP_FRAME:
            self.frames.append(event.number)
            lib.adapm_port_give(self._handle, event)
        self.on_news()


class RawWay:
    """To one other port."""

    def __init__(self, port: RawPort, handle: object) -> None:
        self._port, self._handle = port, handle

    def send(self, number: int, frame: bytes, *, rendezvous: bool = False) -> None:
        self._port.send(self._handle, number, frame, rendezvous=rendezvous)
