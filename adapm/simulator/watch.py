"""The watch over a whole run: what is under way, and after every frame whether everything holds.

A frame's rows are looked at when it has been handled, on all nodes; so are the rows of the frames it led to.  All rows
are looked at from time to time, and at the end.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adapm import control
from adapm.engine import Lane, RowState
from adapm.errors import InternalError
from adapm.simulator import invariants
from adapm.simulator.frames import Item, Type, items
from adapm.simulator.history import History
from adapm.simulator.invariants import FOR_GOOD, Moving, Row, Scene, Violation
from adapm.simulator.ledger import Float, Ledger
from adapm.simulator.staleness import Staleness
from adapm.tables import Table
from adapm.techniques import Technique

FULL_CHECK = 500  # frames between looks at all rows
_UNNAMED = (Type.ANSWER, Type.ACK)  # these name a place in an operation, no row


@dataclass
class _Parcel:
    """A frame under way: its items, and their numbers among what moves."""

    items: list[Item]
    rows: set[Row]
    numbers: list[tuple[Row, int]]


class Watch:
    """See above; an Observer of the network.

    Args:
        tables: all tables.
        lanes: of all nodes, filled in as they are made.
        ledger: what should be.
        history: where frames are noted.
        home_of: a row's home.
        cramped: whether arenas may be full.
        technique: how rows are managed.

    Attributes:
        active: while frames are checked; after something fatal, only what is said of ends holds.
        staleness: how far replicas were behind.
        technique: how rows are managed.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        lanes: Sequence[Lane],
        ledger: Ledger,
        history: History,
        staleness: Staleness,
        home_of: Callable[[Row], int],
        cramped: bool,
        technique: Technique,
    ) -> None:
        self.active = True
        self.staleness = staleness
        self._tables = tables
        self._row_len = [table.row_len for table in tables]
        self._rows = [(i, key) for i, table in enumerate(tables) for key in range(table.rows)]
        self._lanes = lanes
        self._ledger = ledger
        self._history = history
        self._home_of = home_of
        self._cramped = cramped
        self.technique = technique
        self._links: dict[tuple[int, int], deque[_Parcel | None]] = defaultdict(deque)
        self._moving: dict[Row, dict[int, Moving]] = defaultdict(dict)
        self._numbered = 0
        self._touched: dict[Row, None] = {}
        self._owners: dict[Row, tuple[int, int]] = {}  # who has or gets it, by which grant
        self._frames = 0
        self._handling: _Parcel | None = None

    # ---- frames

    def sent(self, source: int, target: int, frame: bytes) -> None:
        """A frame is under way."""
        if control.is_control(memoryview(frame)):
            self._links[source, target].append(None)
            return
        parcel = _Parcel(list(items(frame, self._row_len)), set(), [])
        for item in parcel.items:
            if item.row >= 0 and item.type not in _UNNAMED:
                self._number(Moving(source, target, item), parcel)
        self._links[source, target].append(parcel)

    def _number(self, moving: Moving, parcel: _Parcel) -> None:
        row = moving.item.table, moving.item.row
        self._numbered += 1
        self._moving[row][self._numbered] = moving
        parcel.numbers.append((row, self._numbered))
        parcel.rows.add(row)
        self._touched[row] = None
        if self.active and moving.item.type in (Type.GRANT, Type.GRANT_CURRENT):
            self._granted(row, moving)

    def _granted(self, row: Row, moving: Moving) -> None:
        """Ownership goes from hand to hand: neither two have it, nor does a counter come twice."""
        owner, counter = self._owners.get(row, (self._home_of(row), 0))
        if (moving.source, moving.item.counter) != (owner, counter + 1):
            raise Violation(
                f"node {moving.source} grants {row} with counter {moving.item.counter}, but it is node {owner}'s"
                f" by grant {counter}",
                row,
            )
        self._owners[row] = moving.target, moving.item.counter

    def arrived(self, source: int, target: int, frame: bytes) -> None:
        """It is about to be handled."""
        parcel = self._handling = self._links[source, target].popleft()
        if parcel is None:
            name = type(control.decode_frame(memoryview(frame))).__name__
            self._history.add(name, source, target)
            return
        self._history.add("frame", source, target, frame, parcel.rows, parcel.items)
        self.staleness.arrives(source, target, parcel.items)

    def handled(self, source: int, target: int) -> None:
        """It has been: what it and its consequences have touched must hold together."""
        if self._handling is None:
            return
        for row, number in self._handling.numbers:
            del self._moving[row][number]
            self._touched[row] = None
        self._frames += 1
        if not self.active:
            return
        if self._frames % FULL_CHECK == 0:
            self.check_all()
        else:
            self._check_touched()

    def touch(self, table: int, keys: Sequence[int]) -> None:
        """A worker changes these rows."""
        for key in keys:
            self._touched[table, key] = None

    def is_merged(self, row: Row, column: int, least: int) -> None:
        """A worker has synced: the main copy, wherever it is, has so much in its column.

        Raises:
            Violation: it has less.
        """
        scene = self.scene(row)
        copies = [view.value for view in scene.views if view.state is RowState.OWNED]
        copies += [moving.item.value for moving in scene.moving if moving.item.type is Type.GRANT]
        for value in copies if self.active else ():
            if value is not None and value[column] < least:
                raise Violation(f"worker {column} has synced, but {row} has {value[column]:g} of its {least}", row)

    def is_here(self, row: Row, node: int) -> None:
        """A worker of the node wants the row and has synced.

        Raises:
            Violation: the row is elsewhere, although there is room and nobody may take it away.
        """
        state = self._lanes[node].inspect(*row).state
        kept = self.technique.brings_what_is_wanted and not self._cramped
        if self.active and kept and state in (RowState.ABSENT, RowState.PENDING):
            raise Violation(f"{row} is wanted at node {node}, whose worker has synced, but it is {state.name}", row)

    def main_copies(self) -> list[Float]:
        """The rows of each table as they are, with a technique that leaves them at their homes."""
        values = {row: self._lanes[self._home_of(row)].inspect(*row).value for row in self._rows}
        return [
            np.stack([values[index, key] for key in range(table.rows)])  # type: ignore[misc]  # main copies have values
            for index, table in enumerate(self._tables)
        ]

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way."""
        return not any(self._links.values())

    # ---- checks

    def _check_touched(self) -> None:
        touched, self._touched = self._touched, {}
        for row in touched:
            self._check(row)

    def check_all(self) -> None:
        """Every row, and every lane by itself.

        Raises:
            Violation: something does not hold.
        """
        self._touched = {}
        self.validate()
        for row in self._rows:
            self._check(row)

    def validate(self) -> None:
        """Every lane by itself.

        Raises:
            Violation: one contradicts itself.
        """
        for node, lane in enumerate(self._lanes):
            try:
                lane.validate()
            except InternalError as error:
                raise Violation(f"node {node}: {error}") from error

    def scene(self, row: Row) -> Scene:
        """All there is of a row."""
        views = [lane.inspect(*row) for lane in self._lanes]
        moving = list(self._moving[row].values())
        return Scene(row, self._row_len[row[0]], views, moving, self._cramped, self.technique)

    def _check(self, row: Row) -> None:
        scene = self.scene(row)
        owner = invariants.one_main_copy(scene)
        if owner != self._owners.get(row, (self._home_of(row), 0))[0]:
            raise Violation(f"{row} is at node {owner} without a grant", row)
        self._ledger.check(row, invariants.sum_of_updates(scene))
        invariants.wants_in_pairs(scene)
        invariants.hints_lead_to(owner, scene)
        invariants.holders_known(scene)
        self.staleness.look(scene)

    def check_rest(self) -> None:
        """At rest, with no intent left: one copy of each row, known to its home, and nothing under way.

        Raises:
            Violation: something does not hold.
        """
        self.check_all()
        for row in self._rows:
            scene = self.scene(row)
            invariants.at_rest(scene, self._home_of(row))
            states = [view.state for view in scene.views]
            kept = [view.state is RowState.REPLICA and view.intents >= FOR_GOOD for view in scene.views]
            if states.count(RowState.ABSENT) != len(states) - 1 - sum(kept):
                raise Violation(f"{row} is at rest without intents: {[state.name for state in states]}", row)
            main = next(view for view in scene.views if view.state is RowState.OWNED)
            total = self._ledger.totals[row[0]][row[1]]
            if not np.array_equal(main.value, total):  # type: ignore[arg-type]  # an owned row has a value
                raise Violation(f"{row} ends as {main.value}, {total} was made", row)
