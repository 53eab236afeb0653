"""One peer of the ucx transport: the order of frames, and how many of them UCX has at a time.

UCX starts frames in order but lets a short one overtake a large one that the receiver fetches.  So every frame has a
number; the receiver keeps what comes early, and the sender hands no frame to UCX while one that began `WINDOW` bytes
before is under way.  That bounds what the receiver keeps, what UCX holds for a peer that takes nothing, and what a lost
peer may still be reading.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from adapm.transport import COPY_LIMIT

from .ucx_port import Way

if TYPE_CHECKING:
    from adapm._ucp import CData

WINDOW: Final = 16 << 20  # bytes


class _Flight(NamedTuple):
    """A frame that UCX has."""

    begin: int  # bytes handed to UCX before it
    size: int
    memory: object  # what must live until it is gone


class Outgoing:
    """Frames to the peer.

    Args:
        way: where they go.
        fetched_from: bytes from which on a frame waits here until the receiver fetches it.
    """

    def __init__(self, way: Way, fetched_from: int) -> None:
        self.queued = 0
        """Bytes that have not gone."""
        self._way = way
        self._fetched_from = fetched_from
        self._number = 0  # of the next frame
        self._handed = 0
        self._flying: dict[int, _Flight] = {}
        self._waiting: deque[tuple[memoryview, object]] = deque()
        self._kept: list[object] = []

    @property
    def total(self) -> int:
        """Frames accepted so far."""
        return self._number + len(self._waiting)

    def send(self, view: memoryview, release: object = None) -> int:
        """Sends a frame after all others; < 0: the error that UCX has with it."""
        if not self._waiting and self._has_room():
            return self._hand(view, release)
        small = view.nbytes < COPY_LIMIT
        self._waiting.append((memoryview(bytes(view)), None) if small else (view, release))
        self.queued += view.nbytes
        return 0

    def sent(self, number: int, status: int) -> int:
        """UCX is done with a frame; what follows may go. Result as of `send`."""
        flight = self._flying.pop(number)
        self.queued -= flight.size
        if status < 0:
            self._kept.append(flight.memory)  # whoever was cut off may be reading it until this process closes the port
        while self._waiting and self._has_room() and status >= 0:
            view, release = self._waiting.popleft()
            self.queued -= view.nbytes
            status = self._hand(view, release)
        return status

    def drop(self) -> None:
        """Nothing goes any more; `sent` is still to be called for what UCX has."""
        self._waiting.clear()

    def _has_room(self) -> bool:
        oldest = next(iter(self._flying.values()), None)
        return oldest is None or self._handed - oldest.begin < WINDOW

    def _hand(self, view: memoryview, release: object) -> int:
        size, number = view.nbytes, self._number
        status = self._way.send(number, view, rendezvous=size >= self._fetched_from)
        if status > 0:
            memory = (view, release) if size >= COPY_LIMIT else None
            self._flying[number] = _Flight(self._handed, size, memory)
            self.queued += size
        self._number += 1
        self._handed += size
        return status


class Incoming:
    """Frames from the peer.

    Args:
        limit: bytes that may be kept, frames that are under way included.
    """

    def __init__(self, limit: int) -> None:
        self.next = 0
        """The number of the frame whose turn it is."""
        self._limit = limit
        self._bytes = 0
        self._fetched: dict[int, int] = {}  # number of each frame under way: its length
        self._early: dict[int, CData] = {}

    def fetch(self, number: int, length: int) -> str:
        """A frame is about to be fetched: "" if there is room for it, or what is wrong."""
        wrong = self._wrong(number, length)
        if not wrong:
            self._fetched[number] = length
            self._bytes += length
        return wrong

    def arrived(self, number: int, length: int) -> str:
        """A frame is there: "" if that is right, or what is wrong."""
        if number in self._fetched:
            self._bytes -= self._fetched.pop(number)
        return self._wrong(number, length)

    def keep(self, number: int, event: CData, length: int) -> None:
        """It came before its turn."""
        self._early[number] = event
        self._bytes += length

    def take(self) -> CData | None:
        """The frame whose turn it is, if it came early."""
        event = self._early.pop(self.next, None)
        if event is not None:
            self._bytes -= event.length
        return event

    def drop(self) -> list[CData]:
        """What was kept; nothing is, from now on."""
        kept = list(self._early.values())
        self._early.clear()
        return kept

    def _wrong(self, number: int, length: int) -> str:
        if number < self.next or number in self._early or number in self._fetched:
            return f"it sent frame {number} twice"
        if self._bytes + length > self._limit:
            return f"frames of {self._bytes + length} bytes in all came before their turn, more than {self._limit}"
        return ""


class Link:
    """A peer, as one transport sees it.

    Args:
        peer: its id.
        ours: the key by which its frames are known, random.
        limit: see `Incoming`.
    """

    def __init__(self, peer: int, ours: int, limit: int) -> None:
        self.peer = peer
        self.ours = ours
        self.incoming = Incoming(limit)
        self.way: Way | None = None
        self.outgoing: Outgoing | None = None
        """None until the peer has said where it is."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when frames have come through, or it is lost."""
        self.lost = False
        self.broken = ""
        """What UCX has complained of."""
        self.timer: asyncio.TimerHandle | None = None
        """Until when it must be ready, or its end must be explained."""
        self.end: int | None = None
        """How many frames the peer has sent in all, once it closes."""
        self.over = asyncio.Event()
        """Set when the peer has got everything, or is lost."""

    @property
    def is_complete(self) -> bool:
        """Whether the peer has said goodbye and all of its frames are here."""
        return self.end is not None and self.incoming.next >= self.end

    def open(self, way: Way, fetched_from: int) -> None:
        """From now on frames can be sent."""
        self.way, self.outgoing = way, Outgoing(way, fetched_from)

    def stop_timer(self) -> None:
        """Nothing more is expected by a certain time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
