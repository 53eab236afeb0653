"""How frames travel between nodes: the interface of every transport, and the registry that finds one by name.

A transport moves frames and nothing else: it knows no keys, no clocks and no serialization.
`adapm/transport_testing.py` holds the checks that every transport must pass, `transports/README.md` tells how to write
one.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, ClassVar, Protocol

from adapm.errors import PeerLost, TransportError, UnknownTransport, UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

OnFrame = Callable[[int, memoryview], None]
OnLost = Callable[[int, TransportError], None]

log = logging.getLogger(__name__)
_COMPLAINTS = 10  # of one transport, at once; then one a second

GROUP = "adapm.transports"
"""The entry-point group under which packages register transports: name = scheme, value = "module:class"."""

KINDS = ("shm", "tcp", "rdma")
"""Of lanes: within a machine, over the sockets of any network, past them."""

_SHM = frozenset({"cma", "ipc", "knem", "mm", "posix", "self", "sysv", "xpmem"})

COPY_LIMIT = 64 * 1024
"""Bytes.  A frame shorter than this is copied by `send`; a longer one may be used in place, without a copy."""


class PeerClosed(PeerLost):
    """The peer closed its transport properly, after its last frame; whether that was expected, the caller knows."""


@dataclass(frozen=True)
class Engine:
    """What a transport can drive without Python between its sockets and the rows: a lane of the kernel.

    Attributes:
        addresses: of the lane, adapm_lane_receive_piece, adapm_lane_take, adapm_buffer_data, adapm_buffer_len and
            adapm_buffer_free (native/kernel.h).
        on_handled: to be called after frames have been handed to the lane, with whether it could not go on in one of
            them: then `Drive.catch_up` is called soon.
        on_refused: gets a peer, and the length of a frame of it that the lane has refused; the lane gets no more.
        allowance: bytes that may wait from one peer while the lane cannot go on, where the peer cannot be held up.
    """

    addresses: tuple[int, int, int, int, int, int]
    on_handled: Callable[[bool], None]
    on_refused: Callable[[int, int], None]
    allowance: int


class Drive(Protocol):
    """A transport that drives an engine: frames whose first byte is 1 go to the lane and not to `on_frame`."""

    def flush(self) -> int:
        """Sends what the lane has to send; how many bytes.

        Raises:
            PeerLost: something was for a peer that was never linked.
        """

    def catch_up(self) -> bool:
        """Goes on where the lane could not; whether it still cannot."""


class Transport(abc.ABC):
    """Reliable, ordered frames between this node and others, inside one running asyncio loop.

    Everything is called in the loop's thread, and both callbacks run there, never inside a call of `send`.  What holds
    for each pair of nodes:

    - Frames arrive whole, once, in the order in which they were sent, or the link is lost.
    - A link that breaks is never repaired behind the caller's back: `on_lost` is called once, after the peer's last
      frame, and from then on `send` and `connect` raise `PeerLost`.  A peer that closes is reported in the same way, by
      a `PeerClosed`.
    - A slow peer delays no other peer.
    - At rest no time is spent and, apart from a transport's own sign of life, nothing is sent.

    Args:
        node: the id of this node, >= 0; no two nodes that meet may have the same.
        on_frame: gets the sender's id and the frame; the view is valid during the call only.  If it raises, the loop's
            exception handler is told, and the frames behind come all the same.
        on_lost: gets the peer's id and why it is lost.
    """

    scheme: ClassVar[str]
    """The name under which the class is registered."""

    variants: ClassVar[tuple[str, ...]] = ()
    """What may follow the scheme after a plus sign, as in "zmq+ipc"; given to the constructor as `variant`."""

    spins: ClassVar[bool] = False
    """Whether the constructor takes `spin`: seconds to look for an answer after sending something, before sleeping."""

    authenticates: ClassVar[bool] = False
    """Whether the constructor takes `key`, the cluster key or None, with which peers prove that they belong together,
    and `insecure`: whether addresses that other machines can reach are used without one, too."""

    bounds_frames: ClassVar[bool] = False
    """Whether the constructor takes `max_frame`: bytes of the longest frame that is sent or taken."""

    descriptors: ClassVar[int] = 6
    """How many files a link to another node keeps open, at most."""

    def __init__(self, node: int, *, on_frame: OnFrame, on_lost: OnLost) -> None:
        self.node = node
        self.rejected = 0
        """Connections and messages that were turned away: of strangers, and of peers that broke the rules."""
        self.last_rejected = ""
        """Who was turned away last, and why; "" for nobody."""
        self._untold, self._credit, self._asked = 0, float(_COMPLAINTS), time.monotonic()
        self._on_frame = on_frame
        self._on_lost = on_lost

    def _reject(self, who: str, why: str) -> None:
        """Counts what was turned away and tells the log; of many only some, as strangers must not fill it."""
        self.rejected += 1
        self.last_rejected = f"{who}: {why}"
        now = time.monotonic()
        self._credit, self._asked = min(_COMPLAINTS, self._credit + now - self._asked), now
        if self._credit < 1:
            self._untold += 1
            return
        more = f"; {self._untold} more before that" if self._untold else ""
        log.warning("node %d turned away %s%s", self.node, self.last_rejected, more)
        self._credit, self._untold = self._credit - 1, 0

    @abc.abstractmethod
    async def listen(self, address: str | None = None) -> str:
        """Starts to accept peers; once, and before `connect`, since peers may connect back.

        Args:
            address: where to listen, with the port 0 (or whatever the transport calls it) for any free one; None for
                any free address that this machine's own processes can reach.

        Returns:
            The address that others can connect to.

        Raises:
            AddressInUse: somebody listens there already.
            TransportError: the address cannot be used; the message says why.
            KeyNeeded: it can be reached by other machines, and there is no key.
            UsageError: this transport listens already.
        """

    @abc.abstractmethod
    async def connect(self, peer: int, address: str) -> None:
        """Links this node with the node `peer`, which listens at `address`, now or soon.

        Both sides can send when it returns.  A peer that is linked already, from whichever side, is left as it is.
        Cancelling it before the peer was reached leaves nothing behind.

        Raises:
            AuthenticationFailed: the peer has another key, or one of the two has none.
            KeyNeeded: the address is on a network, and there is no key.
            PeerLost: the link to this peer was there, and is gone.
            TransportError: the peer was not reached in time, is another node, or refused; the message names address and
                reason.
            UsageError: this transport does not listen yet, or `peer` is this node itself.
        """

    @abc.abstractmethod
    def send(self, peer: int, frame: Buffer, release: object = None) -> None:
        """Sends a frame after all earlier ones to this peer; never blocks.

        Args:
            peer: a linked node.
            frame: any C-contiguous buffer.  Under `COPY_LIMIT` bytes it is copied before `send` returns; else it must
                stay as it is until it has been sent.
            release: kept alive until `frame` is not needed any more, then dropped, possibly by another thread: its
                finalizer is where the memory of a large frame can be reused.

        Raises:
            PeerLost: the peer is lost or was never linked.
            UsageError: the frame is not contiguous, or larger than the transport allows.
        """

    @abc.abstractmethod
    def queued(self, peer: int) -> int:
        """Bytes accepted for this peer and, as far as is known, not yet on the network; 0 if it is not linked."""

    def drive(self, engine: Engine) -> Drive | None:
        """From now on this transport hands frames to the engine, and takes them from it, by itself, if it can."""
        return None

    def lanes(self, peer: int) -> tuple[str, ...]:
        """What the link to a peer runs on, if it is linked and that is known: "tcp", "tcp/eth0", "sysv/memory"."""
        return ()

    def obstacle(self, peer: int) -> str:
        """Why a call of `connect` to this peer has not come to its end yet, as far as is known; "" else."""
        return ""

    @abc.abstractmethod
    async def close(self, linger: float = 2.0) -> None:
        """Says goodbye to all peers and frees everything; no callback comes after the call.

        Closing again does nothing.

        Args:
            linger: seconds to wait, at most, until every peer has got the frames sent to it.
        """


def kind_of(lane: str) -> str:
    """Which of `KINDS` a lane is, as `Transport.lanes` names it."""
    name = lane.partition("/")[0]
    return "shm" if name in _SHM else "tcp" if name == "tcp" else "rdma"


def view_of(frame: Buffer) -> memoryview:
    """The bytes of a frame, for implementations of `send`; `nbytes` is their number.

    Raises:
        UsageError: the buffer has holes.
    """
    view = memoryview(frame)
    if not view.c_contiguous:
        raise UsageError(
            f"a buffer of shape {view.shape} with strides {view.strides} is no frame: pass a contiguous copy"
        )
    return view


_BUILT_IN = (
    EntryPoint("inproc", "adapm.transports.inproc:InprocTransport", GROUP),
    EntryPoint("tcp", "adapm.transports.tcp:TcpTransport", GROUP),
    EntryPoint("ucx", "adapm.transports.ucx:UcxTransport", GROUP),
    EntryPoint("zmq", "adapm.transports.zmq:ZmqTransport", GROUP),
)
# They are known without metadata too, so that a checkout that was never installed can run.


def known() -> list[str]:
    """The names of all transports that are installed, sorted."""
    return sorted(_registered())


def create(name: str, node: int, *, on_frame: OnFrame, on_lost: OnLost, **options: object) -> Transport:
    """A new transport of the named kind.

    Args:
        name: a scheme ("zmq"), a scheme and one of its variants ("zmq+ipc"), or a URI that begins with either.
        node, on_frame, on_lost: see `Transport`.
        options: for the transport's own constructor.

    Raises:
        UnknownTransport: there is none of this name, it has no such variant, or it cannot be imported.
    """
    cls, variant = find(name)
    if variant:
        options["variant"] = variant
    return cls(node, on_frame=on_frame, on_lost=on_lost, **options)


def find(name: str) -> tuple[type[Transport], str]:
    """The transport of this name and its variant, "" for none named.

    Raises:
        UnknownTransport: as `create`.
    """
    scheme, _, variant = name.partition("://")[0].partition("+")
    cls = _load(scheme)
    if variant and variant not in cls.variants:
        choice = ", ".join(f"{scheme}+{v}" for v in cls.variants) or f"none but plain {scheme!r}"
        raise UnknownTransport(f"transport {scheme!r} has no variant {variant!r}; it has {choice}")
    return cls, variant


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in (*_BUILT_IN, *entry_points(group=GROUP))}


def _load(scheme: str) -> type[Transport]:
    entry = _registered().get(scheme)
    if entry is None:
        raise UnknownTransport(
            f"no transport {scheme!r} is installed; there are {', '.join(known())}; "
            f"if {scheme!r} is an optional part of adapm: pip install 'adapm[{scheme or 'NAME'}]'"
        )
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        raise UnknownTransport(
            f"transport {scheme!r} ({entry.value}) cannot be loaded: {error}; try: pip install 'adapm[{scheme}]'"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Transport)):
        raise UnknownTransport(f"transport {scheme!r}: {entry.value} is not a subclass of adapm.transport.Transport")
    return cls
