"""Whether so many nodes fit into one process, asked before anything is allocated."""

from __future__ import annotations

import ctypes
import os
import resource

import numpy as np

from adapm import memory
from adapm.errors import OutOfMemory, UsageError

_PAGE = 4096
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE with FALLOC_FL_KEEP_SIZE


def require_memory(needed: int, what: str) -> None:
    """Nothing, if so many bytes are free.

    Args:
        needed: bytes.
        what: needs them, in the plural.

    Raises:
        OutOfMemory: they are not; with both figures.
    """
    free = memory.available()
    if needed > free.amount:
        raise OutOfMemory(
            f"{what} need {needed:,} bytes, but {free.amount:,} are free ({free.source}): simulate fewer nodes, or"
            " less at a time"
        )


def require_descriptors(needed: int, what: str) -> None:
    """Nothing, if this process may have so many descriptors; its own limit is raised for them.

    Args:
        needed: how many.
        what: needs them, in the plural.

    Raises:
        UsageError: it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(
            f"{what} need {needed:,} descriptors, a process may have {hard:,}: simulate fewer nodes, or raise the limit"
            " of open files (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def give_back_empty_pages(fd: int) -> None:
    """Frees the pages of a memory file that hold nothing but zeros, which they still do when they are used next.

    A node reserves its rings and rows, so that a full machine ends in an error; a thousand nodes that use a small part
    of theirs would not fit into one.
    """
    pages = os.fstat(fd).st_size // _PAGE
    used = np.frombuffer(os.pread(fd, pages * _PAGE, 0), np.uint64).reshape(pages, -1).any(axis=1)
    # Where runs of empty ones begin and end, by turns.
    edges = np.flatnonzero(np.diff(used, prepend=True, append=True)).reshape(-1, 2)
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    for begin, end in edges.tolist():
        if fallocate(fd, _PUNCH_HOLE, begin * _PAGE, (end - begin) * _PAGE):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
