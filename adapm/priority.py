"""Who goes first when a node and its workers want the same processor.

A node needs little time, but at once: the rows it fetches are what its workers are about to ask for.  Left to the
scheduler's fairness, workers that never sleep let it wait for milliseconds, outrun it, and then wait themselves.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

STEP: Final = 10  # in the units of nice(2): about nine tenths of a contested processor


def go_first() -> None:
    """Called by a node before it starts threads; does nothing where the system does not permit it."""
    with contextlib.suppress(PermissionError):
        _set(_get() - STEP)


def let_node_go_first() -> None:
    """Called by a worker process: where nodes may not raise their priority, workers lower theirs."""
    own = _get()
    try:
        _set(own - 1)
    except PermissionError:
        _set(min(own + STEP, 19))
    else:
        _set(own)


def _get() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _set(nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, nice)
