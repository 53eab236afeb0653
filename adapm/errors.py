"""Every error that adapm raises on purpose.

    AdapmError
    |-- UnsupportedPlatform   ImportError       not Linux on a known processor
    |-- KernelMissing         ImportError       the compiled kernel cannot be loaded
    |-- TorchMissing          ImportError       adapm.torch without PyTorch
    |-- UsageError                              you misused it: nothing has been changed
    |   |-- KeyRangeError     IndexError        a key outside 0..rows-1
    |   |-- KeyTypeError      TypeError         keys that are not integers
    |   |-- ShapeError        ValueError        rows or keys of the wrong shape
    |   |-- DtypeError        TypeError         values that float32 cannot hold without loss
    |   |-- BufferNotUsable   ValueError        an `out` that cannot be written in place
    |   |-- UnknownTable      KeyError
    |   |-- UnknownColumn     KeyError
    |   |-- IntentRangeError  ValueError        end <= start
    |   |-- TableError        ValueError        a schema that makes no sense
    |   |-- SampleError       ValueError        more keys than there are to draw, or than are left of a sample
    |   |-- ConfigError       ValueError        a setting that does not exist or does not fit
    |   |-- KeyFileError      ValueError        a file that holds no cluster key, or is open to others
    |   |-- DataError         ValueError        a malformed data file; .file .line
    |   |-- NoWorker          RuntimeError      what needs a worker is called where there is none
    |   `-- TooManyWorkers    RuntimeError      more workers than the node has slots
    |-- OutOfMemory           MemoryError       a table or buffer that does not fit
    |-- TooFewFiles           OSError           the process may not open as many files as it needs
    |-- Closed                RuntimeError      you closed it, or the run is over
    |-- TransportError        OSError           the network between nodes
    |   |-- UnknownTransport  ValueError        no transport of that name is installed
    |   |-- AddressInUse                        somebody listens there already
    |   |-- LibraryMissing                      a transport's library is not there
    |   |-- NoLanes                             UCX has nothing that it could use
    |   |-- KeyNeeded         PermissionError   an address on a network, and no cluster key
    |   |-- AuthenticationFailed PermissionError  a peer has another cluster key, or none
    |   |-- RendezvousError   ConnectionError   the nodes did not come together
    |   `-- PeerLost          ConnectionError   the link to a node is gone; .node
    |       `-- NodeLost                        that node is given up, with what it held; .node
    |-- ProtocolError         ValueError        a peer sent what it must not send
    |-- WorkerDied            RuntimeError      a worker ended without a word; .worker .node .pid .signal
    |-- NodeDied              RuntimeError      a node process of this machine ended without a word; .node .pid .signal
    `-- InternalError         RuntimeError      a bug of ours; please report it

Each takes one message, which says what was wrong, with the value, and what to do; details are keywords and become
attributes.  All survive pickling; where nothing may be unpickled they travel as class name and message (`from_wire`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class AdapmError(Exception):
    """The root of the tree."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0]) if self.args else ""


class UnsupportedPlatform(AdapmError, ImportError):
    """adapm runs on Linux, on x86-64 and aarch64."""


class KernelMissing(AdapmError, ImportError):
    """The compiled kernel is absent or does not load: adapm was not built, or for another interpreter."""


class TorchMissing(AdapmError, ImportError):
    """adapm.torch is imported, and PyTorch is not installed."""


class UsageError(AdapmError):
    """A wrong argument, refused before anything was changed."""


class KeyRangeError(UsageError, IndexError):
    """A key is negative or not below the table's number of rows."""


class KeyTypeError(UsageError, TypeError):
    """Keys are not integers."""


class ShapeError(UsageError, ValueError):
    """An array does not have the shape that the keys and columns ask for."""


class DtypeError(UsageError, TypeError):
    """Values cannot be stored as float32 without more loss than rounding a float64."""


class BufferNotUsable(UsageError, ValueError):
    """An `out` is read-only, not contiguous or not float32, so rows cannot be written into it."""


class UnknownTable(UsageError, KeyError):
    """No table has this name."""


class UnknownColumn(UsageError, KeyError):
    """The table has no such column group, or the named ones are not adjacent."""


class IntentRangeError(UsageError, ValueError):
    """An intent's clock range is empty or negative."""


class TableError(UsageError, ValueError):
    """A table's schema or initial value makes no sense, or two tables share a name."""


class SampleError(UsageError, ValueError):
    """A sample is larger than what it is drawn from, has fewer keys left than are asked for, or is another worker's."""


class ConfigError(UsageError, ValueError):
    """A setting does not exist, or its value does not fit."""


class KeyFileError(UsageError, ValueError):
    """A cluster key's file is missing, holds no key, or others than its user can read it."""


class DataError(UsageError, ValueError):
    """A data file is malformed.

    Attributes:
        file: the file's name, or None.
        line: the line's number, counted from 1, or None.
    """

    def __init__(self, reason: str, *, file: str | os.PathLike[str] | None = None, line: int | None = None) -> None:
        where = "" if file is None else f"{os.fspath(file)}: " if line is None else f"{os.fspath(file)}, line {line}: "
        super().__init__(where + reason)
        self.file = None if file is None else os.fspath(file)
        self.line = line


class NoWorker(UsageError, RuntimeError):
    """Something that works through this thread's worker is used by a thread that is none."""


class TooManyWorkers(UsageError, RuntimeError):
    """A worker asks for a slot that the node does not have, or all its slots are taken."""


class OutOfMemory(AdapmError, MemoryError):
    """Something does not fit into the memory that is free."""


class TooFewFiles(AdapmError, OSError):
    """The limit of open files (ulimit -n) is below what a node or a launcher needs."""


class Closed(AdapmError, RuntimeError):
    """The worker, node or transport was closed by its own user, or the run is over."""


class TransportError(AdapmError, OSError):
    """Something about the network between nodes."""


class UnknownTransport(TransportError, ValueError):
    """No installed transport goes by this name."""


class LibraryMissing(TransportError):
    """A transport needs a library that is not there, or is too old."""


class NoLanes(TransportError):
    """UCX is there, but nothing of what it may use leads anywhere."""


class AddressInUse(TransportError):
    """Another process listens at the address already."""


class KeyNeeded(TransportError, PermissionError):
    """Other machines can reach the address, and there is no cluster key that would keep strangers out."""


class AuthenticationFailed(TransportError, PermissionError):
    """A peer has not the cluster key that this node has, or has one where this node has none."""


class RendezvousError(TransportError, ConnectionError):
    """The nodes, or the workers of one, did not come together: one refused, differed or did not come in time."""


class PeerLost(TransportError, ConnectionError):
    """The link to another node is gone, or there never was one.

    Attributes:
        node: the other node's id, None if it is not known.
    """

    def __init__(self, message: str, *, node: int | None = None) -> None:
        super().__init__(message)
        self.node = node


class NodeLost(PeerLost):
    """A node is given up with the rows it held; an operation that needed it fails, its local part may be done."""


class ProtocolError(AdapmError, ValueError):
    """Bytes from another process are not what this version of adapm speaks."""


class WorkerDied(AdapmError, RuntimeError):
    """A worker process ended without saying why.

    Attributes:
        worker: its global id.
        node: its node's id.
        pid: its process id.
        signal: the number of the signal that killed it; None if it exited.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: int | None = None,
        node: int | None = None,
        pid: int | None = None,
        signal: int | None = None,
    ) -> None:
        super().__init__(message)
        self.worker, self.node, self.pid, self.signal = worker, node, pid, signal


class NodeDied(AdapmError, RuntimeError):
    """A node process of this machine ended without saying why.

    Attributes:
        node: its id.
        pid: its process id.
        signal: the number of the signal that killed it; None if it exited.
    """

    def __init__(
        self, message: str, *, node: int | None = None, pid: int | None = None, signal: int | None = None
    ) -> None:
        super().__init__(message)
        self.node, self.pid, self.signal = node, pid, signal


class InternalError(AdapmError, RuntimeError):
    """Something that cannot happen did: a bug in adapm."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that comes closest, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def from_wire(name: str, message: str) -> AdapmError:
    """The error that another process described by its class's name and its message.

    Only classes of this module are ever made; any other name (a newer version's) gives an AdapmError that quotes it.
    """
    cls = globals().get(name)
    if isinstance(cls, type) and issubclass(cls, AdapmError):
        return cls(message)
    return AdapmError(f"{name}: {message}")
