"""Which of several failures is the cause of the others: decided by whom each of them blames.

A worker that fails tells its node, and a node counts the first reason only; so what a node says is what came first
there, however the function of some other worker put it when that reason reached it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from adapm.errors import NodeDied, PeerLost, UsageError, WorkerDied
from adapm.task import Failure


class Member(NamedTuple):
    """Somebody whom a launcher has started.

    Attributes:
        node: a node's id.
        worker: the global id of a worker of that node; None: the node itself.
    """

    node: int
    worker: int | None = None


def first_cause(told: Mapping[Member, Failure | None], members: Collection[Member]) -> Failure | None:
    """The failure from which the first one follows, or None while somebody who is to blame has not told why.

    Args:
        told: what has come of those who are done, in the order in which they told: a Failure, or None for a good end.
        members: everybody who was started.
    """
    followed: list[Member] = []
    member: Member | None = next(member for member, failure in told.items() if failure is not None)
    while member is not None and member not in followed:
        if member not in told:
            return None
        if (failure := told[member]) is None:  # it ended well: whoever blames it speaks for itself
            break
        followed.append(member)
        member = _blamed(member, failure, members)
    if member in followed:  # they blame each other: who saw it happen is right, or who spoke first
        circle = followed[followed.index(member) :]
        return min((failure for one, failure in told.items() if failure and one in circle), key=lambda one: one.hearsay)
    failures = [failure for failure in map(told.get, followed) if failure is not None]
    return failures[-1] if _speaks_for_itself(failures[-1]) else None


def _blamed(member: Member, failure: Failure, members: Collection[Member]) -> Member | None:
    """The member whose failure explains this one, if there may be such a member."""
    error = failure.error
    if member.worker is not None:  # a misuse is nobody else's fault
        return None if isinstance(error, UsageError) else Member(member.node)
    if not failure.hearsay:
        return None
    if isinstance(error, WorkerDied):
        return next((other for other in members if other.worker is not None and other.worker == error.worker), None)
    if isinstance(error, (PeerLost, NodeDied)) and error.node is not None and Member(error.node) in members:
        return Member(error.node)
    return None


def _speaks_for_itself(failure: Failure) -> bool:
    """Whether nobody here can know more: it was seen here, or names somebody who was started elsewhere."""
    return not failure.hearsay or getattr(failure.error, "node", None) is not None
