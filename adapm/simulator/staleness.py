"""How far replicas are behind their main copies: in virtual time, and in answered rounds.

A replica is behind from the moment at which the main copy changes until a state that was made later arrives; what
counts is the oldest change that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from adapm.engine import MOST_SECONDS, RowState, RowView
from adapm.pulse import SLOWEST
from adapm.simulator.frames import REFRESH, Item, Type
from adapm.simulator.invariants import Row, Scene, Violation

Held = tuple[Row, int]  # a row, and who holds a replica of it

MOST_ROUNDS = 1  # the first that is answered after the owner took note brings the row


@dataclass
class _Lag:
    since: float
    rounds: int = 0


@dataclass
class Staleness:
    """What was measured.

    Args:
        clock: virtual seconds.
        disturbed: seconds between then and now for which faults may have held something up.
        view: what a row is to a node.

    Attributes:
        seconds: of each time that a replica caught up, how long it had been behind.
        rounds: likewise, refreshing rounds of its holder that were answered after the owner's node took note.
    """

    clock: Callable[[], float]
    disturbed: Callable[[float], float]
    view: Callable[[int, Row], RowView]
    seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    _behind: dict[Held, _Lag] = field(default_factory=dict)
    _coming: dict[Held, _Lag] = field(default_factory=dict)  # those whose state is under way

    def look(self, scene: Scene) -> None:
        """A row has been looked at: which of its replicas are behind now?"""
        main = next((view for view in scene.views if view.state is RowState.OWNED), None)
        if main is None:
            return
        for node, view in enumerate(scene.views):
            held = scene.row, node
            if view.state is not RowState.REPLICA:
                self._coming.pop(held, None)
                self._in_time(held, self._behind.pop(held, None))
            elif node in main.holders and not _has_latest(scene, main, node):
                self._behind.setdefault(held, _Lag(self.clock()))
            elif held in self._behind:
                self._coming.setdefault(held, self._behind.pop(held))

    def arrives(self, source: int, target: int, items: Iterable[Item]) -> None:
        """A frame is about to be handled: its states bring replicas up to date, its end asks for states.

        Raises:
            Violation: a replica was behind for too long.
        """
        for item in items:
            if item.type is Type.STATE or item.type is Type.GRANT:
                self._caught_up(((item.table, item.row), target))
            elif item.type is Type.ROUND_END and item.flags & REFRESH:
                self._asked(source, target)

    def _asked(self, holder: int, owner: int) -> None:
        """The owner's node knows of what is not marked dirty any more: that it must answer with."""
        for (row, node), lag in self._behind.items():
            if node == holder:
                view = self.view(owner, row)
                lag.rounds += view.state is RowState.OWNED and not view.dirty

    def _caught_up(self, held: Held) -> None:
        lag = self._coming.pop(held, None)
        if lag is None:
            return
        self.seconds.append(self.clock() - lag.since)
        self.rounds.append(lag.rounds)
        self._in_time(held, lag)

    def _in_time(self, held: Held, lag: _Lag | None) -> None:
        """What was behind is not any more, or no replica any more."""
        if lag is None:
            return
        seconds = self.clock() - lag.since
        limit = MOST_SECONDS + 3 * SLOWEST + 2 * self.disturbed(lag.since)
        if seconds > limit or lag.rounds > MOST_ROUNDS:
            raise Violation(
                f"the replica of {held[0]} at {held[1]} was behind for {seconds * 1e3:.1f} ms (at most"
                f" {limit * 1e3:.1f} are allowed) and {lag.rounds} refreshing rounds (at most {MOST_ROUNDS})",
                held[0],
            )


def _has_latest(scene: Scene, main: RowView, holder: int) -> bool:
    """Whether the holder's base, or the state that is under way to it, is the main copy as it is."""
    view = scene.views[holder]
    base = view.base
    for _, target, item in scene.moving:
        if target == holder and item.type is Type.STATE:
            base = item.value
    return base is not None and np.array_equal(base, main.value)  # type: ignore[arg-type]  # an owned row has a value
