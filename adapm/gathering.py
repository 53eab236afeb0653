"""Who is here and who is missing, when nodes come together and at barriers.

Decided without I/O: node.py and meeting.py say and hear the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from adapm.control import Arrive, Attach, End, Finished, Join, Message, Release, Welcome, brief
from adapm.errors import ProtocolError

MOST_WORKERS: Final = 1 << 16  # of one node


class RollCall:
    """Members arrive, or leave and count as arrived from then on.

    Args:
        members: whom to wait for.
    """

    def __init__(self, members: Iterable[int]) -> None:
        self._absent = set(members)
        self._arrived: set[int] = set()

    @property
    def missing(self) -> list[int]:
        """Who has neither arrived nor left."""
        return sorted(self._absent)

    @property
    def complete(self) -> bool:
        """Whether somebody has arrived and nobody is missing."""
        return bool(self._arrived) and not self._absent

    def has(self, member: int) -> bool:
        """Whether it is a member and has not left."""
        return member in self._absent or member in self._arrived

    @property
    def begun(self) -> bool:
        """Whether somebody has arrived."""
        return bool(self._arrived)

    @property
    def over(self) -> bool:
        """Whether all have left."""
        return not self._arrived and not self._absent

    def arrive(self, member: int) -> None:
        """Counts the member as present until the next call.

        Raises:
            ProtocolError: it has arrived already, or left, or is none.
        """
        if member not in self._absent:
            raise ProtocolError(f"member {member} arrived twice, after it had left, or is none")
        self._absent.remove(member)
        self._arrived.add(member)

    def leave(self, member: int) -> None:
        """Counts the member as present from now on, and not as a member any more."""
        self._absent.discard(member)
        self._arrived.discard(member)

    def call_again(self) -> None:
        """Everybody who has not left is missing again."""
        self._absent |= self._arrived
        self._arrived.clear()


class Barriers:
    """The barriers of a run as one node sees them.

        all running workers wait -> Arrive to node 0 -> Release from node 0 -> replicas refreshed -> the waits end

    A worker may be a barrier ahead of the others at its node; each of its waits counts for one barrier.

    Args:
        workers: slots of this node.
        say: sends a message to node 0.
    """

    def __init__(self, workers: int, say: Callable[[Message], None]) -> None:
        self._roll = RollCall(range(workers))
        self._say = say
        self._waits: dict[int, deque[int]] = {slot: deque() for slot in range(workers)}
        self._epoch = 0
        self._announced = False

    @property
    def waiting(self) -> bool:
        """Whether a worker of this node waits."""
        return any(self._waits.values())

    @property
    def missing(self) -> list[int]:
        """Slots of this node that have to arrive yet."""
        return self._roll.missing

    @property
    def epoch(self) -> int:
        """The number of the next barrier to be released."""
        return self._epoch

    def arrive(self, slot: int, op: int) -> None:
        """A worker waits; op is its name for that."""
        waits = self._waits[slot]
        waits.append(op)
        if len(waits) == 1:
            self._roll.arrive(slot)
        self._announce()

    def finish(self, slot: int) -> None:
        """A worker will arrive at no barrier any more."""
        if self._waits.pop(slot, None) is None:
            return
        self._roll.leave(slot)
        self._announce()
        if self._roll.over:
            self._say(Finished())

    def release(self, epoch: int) -> bool:
        """Every worker of the run has arrived; returns whether any waits here.

        Raises:
            ProtocolError: it is not this barrier's turn.
        """
        if epoch != self._epoch:
            raise ProtocolError(f"barrier {epoch} was released while this node is at barrier {self._epoch}")
        self._epoch += 1
        return self.waiting

    def end(self) -> list[tuple[int, int]]:
        """The waits, as (slot, op), that the released barrier ends."""
        ended = [(slot, waits.popleft()) for slot, waits in self._waits.items() if waits]
        self._roll.call_again()
        for slot, waits in self._waits.items():
            if waits:
                self._roll.arrive(slot)
        self._announced = False
        self._announce()
        return ended

    def _announce(self) -> None:
        if self._roll.complete and not self._announced:
            self._announced = True
            self._say(Arrive(self._epoch))


class Coordinator:
    """Node 0's part in barriers and in the end.

    Args:
        nodes: how many there are.
        say_all: sends a message to all nodes, itself included.
    """

    def __init__(self, nodes: int, say_all: Callable[[Message], None]) -> None:
        self._roll = RollCall(range(nodes))
        self._say_all = say_all
        self._epoch = 0

    @property
    def missing(self) -> list[int]:
        """Nodes whose workers have not all arrived, if others' have."""
        return self._roll.missing if self._roll.begun else []

    @property
    def epoch(self) -> int:
        """The number of the barrier that is open."""
        return self._epoch

    @property
    def over(self) -> bool:
        """Whether all nodes are finished, and have been told."""
        return self._roll.over

    def arrive(self, node: int, epoch: int) -> None:
        """All workers of the node wait at a barrier.

        Raises:
            ProtocolError: it is not this barrier's turn, or the node has arrived before.
        """
        if epoch != self._epoch:
            raise ProtocolError(f"node {node} arrived at barrier {epoch} while barrier {self._epoch} is open")
        self._roll.arrive(node)
        self._release()

    def finish(self, node: int) -> None:
        """All workers of the node are finished.

        Raises:
            ProtocolError: it has said so before.
        """
        if not self._roll.has(node):
            raise ProtocolError(f"node {node} finished twice")
        self._roll.leave(node)
        self._release()
        if self._roll.over:
            self._say_all(End())

    def _release(self) -> None:
        if self._roll.complete:
            self._roll.call_again()
            self._say_all(Release(self._epoch))
            self._epoch += 1


class Rendezvous:
    """Node 0's list of who has joined.

    Args:
        mine: what node 0 itself would say to join.
        nodes: how many there must be.
    """

    def __init__(self, mine: Join, nodes: int) -> None:
        self._mine = mine
        self._nodes = nodes
        self._joined = {0: mine}

    @property
    def missing(self) -> list[int]:
        """Nodes that have not joined."""
        return [node for node in range(self._nodes) if node not in self._joined]

    def join(self, node: int, theirs: Join) -> str | None:
        """A node wants to join: the reason why it cannot, or None: it has."""
        refusal = self._refusal(node, theirs)
        if refusal is None:
            self._joined[node] = theirs
        return refusal

    def has(self, node: int) -> bool:
        """Whether the node has joined."""
        return node in self._joined

    def welcome(self) -> Welcome:
        """What everyone is told when nobody is missing."""
        joined = [self._joined[node] for node in range(self._nodes)]
        return Welcome([join.address for join in joined], [join.workers for join in joined])

    def _refusal(self, node: int, theirs: Join) -> str | None:
        mine = self._mine
        if theirs.version != mine.version:
            theirs_is = f"node {theirs.node} runs adapm {brief(theirs.version)}"
            return f"{theirs_is}, node 0 runs {mine.version}: install one for both"
        if theirs.node != node or not 0 < node < self._nodes:
            return f"there is no room for a node {theirs.node}: the run has nodes 0 to {self._nodes - 1}"
        if not self.missing:
            return f"node {node} is too late: the run has begun"
        if node in self._joined:
            return f"there is a node {node} already: give each node its own ADAPM_NODE"
        if theirs.workers > MOST_WORKERS:
            return f"node {node} has {theirs.workers} workers: no machine has so many"
        return difference(theirs, mine, f"node {node}", "node 0")


def difference(theirs: Join | Attach, mine: Join | Attach, they: str, we: str) -> str | None:
    """What differs of settings and tables that must be equal, with both values; None if nothing does.

    Args:
        theirs, mine: what both have said.
        they, we: who they are.
    """
    settings = _differences(theirs.config, mine.config, they, we)
    return f"settings differ: {settings}" if settings else _differing_tables(theirs.tables, mine.tables, they, we)


def _differing_tables(theirs: list[dict[str, Any]], mine: list[dict[str, Any]], they: str, we: str) -> str | None:
    if theirs == mine:
        return None
    names = [table.get("name") for table in theirs], [table.get("name") for table in mine]
    if names[0] != names[1]:
        return f"tables differ: {brief(names[0])} on {they}, {names[1]} on {we}"
    name, a, b = next((b["name"], a, b) for a, b in zip(theirs, mine, strict=True) if a != b)
    return f"table {name!r} differs: {_differences(a, b, they, we)}"


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], they: str, we: str) -> str:
    return "; ".join(
        f"{brief(key)} is {brief(theirs.get(key))} on {they} and {mine.get(key)} on {we}"
        for key in sorted({*theirs, *mine})
        if theirs.get(key) != mine.get(key)
    )
