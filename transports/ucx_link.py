"""One peer of the ucx transport: how far the two have come with each other."""

from __future__ import annotations

import asyncio

from .ucx_port import Way


class Link:
    """A peer, as one transport sees it.

    Args:
        peer: its id.
        way: where frames come and go.
    """

    def __init__(self, peer: int, way: Way) -> None:
        self.peer = peer
        self.way = way
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when frames have come through, or it is lost."""
        self.broken = ""
        """What UCX has complained of."""
        self.timer: asyncio.TimerHandle | None = None
        """Until when it must be ready, or its end must be explained."""
        self.ends = False
        """The peer has said how many frames it has sent in all."""
        self.complete = False
        """They are all here."""
        self.over = asyncio.Event()
        """Set when the peer has got everything, or is lost."""

    def stop_timer(self) -> None:
        """Nothing more is expected by a certain time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
