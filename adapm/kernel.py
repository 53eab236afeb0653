"""The compiled kernel, and the one place where its error numbers become exceptions.

Nobody else imports `adapm._kernel` and `adapm._call`.  `lib` has the functions of native/kernel.h, `ffi` is cffi's;
neither keeps arrays alive, so whoever passes memory holds on to it during the call.  `caller` makes the short way in,
which takes numpy arrays.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

from adapm.errors import (
    AdapmError,
    Closed,
    InternalError,
    KernelMissing,
    NodeDied,
    NodeLost,
    OutOfMemory,
    ProtocolError,
    TooManyWorkers,
)

try:
    from adapm._call import Caller
    from adapm._kernel import ffi, lib
except ImportError as error:
    raise KernelMissing(
        f"adapm's compiled kernel does not load ({error}); install adapm for this Python (pip install .), or in a"
        " checkout run python native/build.py"
    ) from error

__all__ = ["Caller", "address", "caller", "check", "error_of", "ffi", "lib"]


def _node_lost(message: str, context: dict[str, object]) -> AdapmError:
    node = context.get("node")
    return NodeLost(message, node=node if isinstance(node, int) else None)


# What the kernel means by an error number: a sentence, and how the exception is made of message and context.
_MEANINGS: dict[int, tuple[str, Callable[[str, dict[str, object]], AdapmError]]] = {
    errno.EBUSY: ("another worker has this slot", lambda message, _: TooManyWorkers(message)),
    errno.ECONNRESET: ("a node that was needed is lost; what was local has been done", _node_lost),
    errno.ENOMEM: ("the machine has no memory left for it", lambda message, _: OutOfMemory(message)),
    errno.ENOSPC: ("the machine has no memory left for it", lambda message, _: OutOfMemory(message)),
    errno.EOVERFLOW: ("it is larger than memory can be", lambda message, _: OutOfMemory(message)),
    errno.EOWNERDEAD: ("the node is gone", lambda message, _: NodeDied(message)),
    errno.EPROTO: ("not written by this version of adapm", lambda message, _: ProtocolError(message)),
    errno.ESHUTDOWN: ("the run is over", lambda message, _: Closed(message)),
}


def _unexpected(code: int) -> tuple[str, Callable[[str, dict[str, object]], AdapmError]]:
    return f"the kernel refused: {os.strerror(-code)}", lambda message, _: InternalError(message)


def error_of(code: int, **context: object) -> AdapmError:
    """The exception for a negative errno of the kernel.

    Args:
        code: negative errno.
        context: what was being done with what, for the message; `node` also becomes NodeLost's attribute.
    """
    text, make = _MEANINGS.get(-code, _unexpected(code))
    values = ", ".join(f"{name} {value}" for name, value in context.items())
    return make(f"{values}: {text}" if values else text, context)


def check(code: int, **context: object) -> int:
    """The code itself if it is a result (>= 0).

    Raises:
        AdapmError: the exception for a negative errno, see `error_of`.
    """
    if code < 0:
        raise error_of(code, **context)
    return code


def address(pointer: Any) -> int:
    """Where a cffi pointer points."""
    return int(ffi.cast("uintptr_t", pointer))


def caller(worker: Any, tables: Mapping[str, tuple[int, Mapping[Any, tuple[int, int]]]]) -> Caller:
    """What calls adapm_pull, adapm_push and adapm_intent for a worker; close it before the worker is detached.

    Args:
        worker: the kernel's handle.
        tables: the index of each table, and offset and length of what may be asked for as its columns.
    """
    names = "adapm_pull", "adapm_push", "adapm_intent", "adapm_worker_yield_with"
    pull, push, intent, yield_with = (address(ffi.addressof(lib, name)) for name in names)
    return Caller(address(worker), pull, push, intent, yield_with, tables)
