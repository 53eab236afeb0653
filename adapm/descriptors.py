"""How many files a process may have open: sockets, pipes and eventfds are files, too.

Systems start processes with a low limit for the sake of programs that use select(), and let them raise it.
"""

from __future__ import annotations

import resource
from typing import Final

from adapm.errors import TooFewFiles

_BASE: Final = 48  # of an interpreter, its loop, a segment
_PER_WORKER: Final = 6  # its eventfd, its connection, its pidfd; of a launcher its pipes
_PER_NODE: Final = 6  # of a launcher, for each node that it starts


def of_node(nodes: int, workers: int, per_link: int) -> int:
    """What a node opens, at most.

    Args:
        nodes: of the run.
        workers: of this node.
        per_link: what its transport opens for each other node.
    """
    return _BASE + per_link * (nodes - 1) + _PER_WORKER * workers


def of_launcher(nodes: int, workers: int) -> int:
    """What a launcher opens that starts so many nodes and, in all, workers."""
    return _BASE + _PER_NODE * nodes + _PER_WORKER * workers


def allow(needed: int, who: str) -> None:
    """Makes sure that this process may open so many files, by raising its own limit if need be.

    Raises:
        TooFewFiles: it may not be raised that far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not _below(soft, needed):
        return
    if _below(hard, needed):
        raise TooFewFiles(
            f"{who} opens up to {needed:,} files, but {hard:,} is the limit: raise it (ulimit -Hn {needed},"
            " LimitNOFILE= of the service, --ulimit nofile= of the container), or use fewer nodes or workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _below(limit: int, needed: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < needed
