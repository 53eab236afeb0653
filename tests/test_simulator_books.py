"""The simulator's books: what is lost, doubled, unseen or late is found, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from adapm.engine import RowState, RowView
from adapm.simulator.frames import REFRESH, Item, Type
from adapm.simulator.history import History
from adapm.simulator.invariants import Moving, Scene, Violation
from adapm.simulator.ledger import Eyes, Ledger
from adapm.simulator.staleness import Staleness
from adapm.tables import Table

TABLE = Table("rows", rows=4, columns={"worker0": 1, "worker1": 1})
ROW = 0, 2
KEYS = np.array([2, 2, 1])
ONES = np.array([[1, 0], [1, 0], [1, 0]])


def found(*values: int) -> np.ndarray:
    return np.array(values, np.float64)


# ---- conservation


def test_what_adds_up_passes_and_what_does_not_is_told() -> None:
    ledger = Ledger([TABLE], 2)
    ledger.settled(ledger.pushed(0, KEYS, ONES))
    ledger.check(ROW, found(2, 0))
    for wrong in (found(1, 0), found(3, 0), found(2, 1)):
        with pytest.raises(Violation, match=r"\(0, 2\): updates in column \d add up to") as caught:
            ledger.check(ROW, wrong)
        assert caught.value.row == ROW


def test_a_doubtful_push_may_be_missing_but_not_be_there_twice() -> None:
    ledger = Ledger([TABLE], 2)
    doubt = ledger.pushed(0, KEYS, ONES)
    for fine in range(3):
        ledger.check(ROW, found(fine, 0))
    with pytest.raises(Violation, match="instead of 0 to 2"):
        ledger.check(ROW, found(3, 0))
    ledger.settled(doubt)
    ledger.settled(doubt)
    with pytest.raises(Violation, match=r"instead of 2$"):
        ledger.check(ROW, found(1, 0))


def test_doubtful_transfers_go_both_ways() -> None:
    ledger = Ledger([TABLE], 2)
    ledger.pushed(0, np.array([1, 2]), np.array([[-5, 0], [5, 0]]))
    for key, fine in ((1, (-5, 0)), (2, (0, 5))):
        ledger.check((0, key), found(fine[0], 0))
        ledger.check((0, key), found(fine[1], 0))
        with pytest.raises(Violation):
            ledger.check((0, key), found(fine[0] - 1, 0))


def test_a_set_under_way_may_show_the_old_or_the_new_value() -> None:
    ledger = Ledger([TABLE], 2)
    ledger.settled(ledger.pushed(0, KEYS, ONES))
    doubt = ledger.set(0, 2, 0, 1000)
    ledger.check(ROW, found(2, 0))
    ledger.check(ROW, found(1000, 0))
    ledger.settled(doubt)
    with pytest.raises(Violation):
        ledger.check(ROW, found(2, 0))


# ---- what workers see


def pulled(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_own_updates_and_what_was_seen_stay_seen() -> None:
    ledger = Ledger([TABLE], 2)
    mine, other = (Eyes(ledger, worker, [TABLE]) for worker in (0, 1))
    key = np.array([2])
    ledger.pushed(0, key, np.array([[1, 0]]))
    mine.sees(0, key, pulled(0, 0), mine.expected(0, key))  # it is under way
    mine.pushed(0, key)
    with pytest.raises(Violation, match="worker 0 sees 0 updates of worker 0"):
        mine.sees(0, key, pulled(0, 0), mine.expected(0, key))
    other.sees(0, key, pulled(0, 0), other.expected(0, key))
    before = other.expected(0, key)
    other.sees(0, key, pulled(1, 0), other.expected(0, key))
    other.sees(0, key, pulled(0, 0), before)  # it began earlier
    with pytest.raises(Violation, match="it has seen 1"):
        other.sees(0, key, pulled(0, 0), other.expected(0, key))


def test_a_push_that_is_complete_says_nothing_of_an_earlier_one() -> None:
    ledger = Ledger([TABLE], 2)
    eyes, key = Eyes(ledger, 0, [TABLE]), np.array([2])
    for _ in range(2):
        ledger.pushed(0, key, np.array([[1, 0]]))
    eyes.pushed(0, key)
    eyes.sees(0, key, pulled(1, 0), eyes.expected(0, key))
    eyes.pushed(0, key)
    with pytest.raises(Violation, match="it has seen 2"):
        eyes.sees(0, key, pulled(1, 0), eyes.expected(0, key))
    ledger.set(0, 2, 0, 1000)
    eyes.set(0, 2, 1000)
    eyes.pushed(0, key)
    assert eyes.expected(0, key)[0, 0] == 1001


def test_nobody_sees_what_was_never_made() -> None:
    ledger = Ledger([TABLE], 2)
    eyes, key = Eyes(ledger, 1, [TABLE]), np.array([2])
    with pytest.raises(Violation, match="no more than 0"):
        eyes.sees(0, key, pulled(1, 0), eyes.expected(0, key))
    with pytest.raises(Violation, match="fractions"):
        eyes.sees(0, key, pulled(0.5, 0), eyes.expected(0, key))


def test_after_a_barrier_everyone_sees_what_was_pushed_before_it() -> None:
    ledger = Ledger([TABLE], 2)
    eyes, key = [Eyes(ledger, worker, [TABLE]) for worker in (0, 1)], np.array([2])
    ledger.pushed(0, key, np.array([[1, 0]]))
    numbers = [ledger.arrives(worker, [(0, slice(worker, worker + 1))]) for worker in (0, 1)]
    assert numbers == [0, 0]
    ledger.pushed(0, key, np.array([[1, 0]]))  # behind it
    eyes[1].passed_barrier(0)
    eyes[1].sees(0, key, pulled(1, 0), eyes[1].expected(0, key))
    with pytest.raises(Violation, match="it has seen 1"):
        eyes[1].sees(0, key, pulled(0, 0), eyes[1].expected(0, key))


def test_in_a_table_of_accounts_sums_alone_count() -> None:
    ledger = Ledger([TABLE], 2)
    eyes, key = Eyes(ledger, 0, [None]), np.array([2])
    assert eyes.expected(0, key) is None
    eyes.sees(0, key, pulled(-7, 0), None)
    eyes.pushed(0, key)


# ---- staleness


def view(state: RowState, value: float, *holders: int, dirty: bool = False) -> RowView:
    row = np.full(2, value, np.float32)
    base = row if state is RowState.REPLICA else None
    return RowView(state, (0, 0), 0, 0, holders, 0, dirty, 0, row, base)


def scene(main: float, base: float, *coming: float, dirty: bool = False) -> Scene:
    views = [view(RowState.OWNED, main, 1, dirty=dirty), view(RowState.REPLICA, base)]
    return Scene(ROW, 2, views, [Moving(0, 1, item_of(Type.STATE, value)) for value in coming])


def item_of(kind: Type, value: float = 0.0, flags: int = 0) -> Item:
    named = kind is Type.STATE
    row = np.full(2, value, np.float32) if named else None
    return Item(kind, 0, 0, ROW[1] if named else -1, 0, (0, 0), row, flags)


class Times:
    def __init__(self) -> None:
        self.now = 0.0
        self.scene = scene(0, 0)
        self.staleness = Staleness(lambda: self.now, lambda since: 0.0, lambda node, row: self.scene.views[node])

    def look(self, now: float, scene: Scene) -> None:
        self.now, self.scene = now, scene
        self.staleness.look(scene)

    def arrives(self, now: float, source: int, target: int, item: Item) -> None:
        self.now = now
        self.staleness.arrives(source, target, [item])


def test_a_replica_is_behind_from_the_change_to_the_state_that_has_it() -> None:
    times = Times()
    times.look(1.0, scene(1, 0))
    times.look(1.01, scene(2, 0))  # what counts is the oldest change
    times.arrives(1.02, 1, 0, item_of(Type.ROUND_END, flags=REFRESH))
    times.look(1.03, scene(2, 0, 2))
    times.arrives(1.04, 0, 1, item_of(Type.STATE, 2))
    assert times.staleness.seconds == [pytest.approx(0.04)]
    assert times.staleness.rounds == [1]


def test_a_replica_that_is_behind_for_too_long_is_told() -> None:
    times = Times()
    times.look(1.0, scene(1, 0))
    times.look(2.0, scene(1, 0, 1))
    with pytest.raises(Violation, match=r"behind for 1000\.0 ms"):
        times.arrives(2.0, 0, 1, item_of(Type.STATE, 1))


def test_a_round_that_the_owner_answers_without_the_row_is_told_unless_it_could_not_know() -> None:
    for dirty, told in ((True, False), (False, True)):
        times = Times()
        times.look(1.0, scene(1, 0, dirty=dirty))
        for _ in range(2):
            times.arrives(1.0, 1, 0, item_of(Type.ROUND_END, flags=REFRESH))
        times.look(1.0, scene(1, 0, 1))
        if told:
            with pytest.raises(Violation, match="2 refreshing rounds"):
                times.arrives(1.0, 0, 1, item_of(Type.STATE, 1))
        else:
            times.arrives(1.0, 0, 1, item_of(Type.STATE, 1))


def test_a_dropped_replica_is_not_behind() -> None:
    times = Times()
    times.look(1.0, scene(1, 0))
    times.look(1.1, Scene(ROW, 2, [view(RowState.OWNED, 1), view(RowState.PENDING, 0)], []))
    times.look(5.0, scene(2, 1, 2))
    times.arrives(5.01, 0, 1, item_of(Type.STATE, 2))
    assert times.staleness.seconds == []


# ---- the log


def test_a_trace_has_what_touches_the_row_and_what_concerns_all() -> None:
    history = History(lambda: 0.5)
    history.add("push", 3, rows=[(0, 1)])
    history.add("stall", 1, 2, rows=None)
    history.add("frame", 0, 1, b"x", rows=[ROW], items=[item_of(Type.STATE, 7)])
    history.add("clock", 1, 2)
    lines = history.trace(ROW)
    assert [line.split()[2] for line in lines] == ["stall", "frame"]
    assert "STATE [7.0, 7.0]" in lines[1]
    assert len(history.trace(None)) == history.events == 4
    assert len(history.trace(None, lines=2)) == 2


def test_the_hash_is_of_everything_that_was_said() -> None:
    def told(*says: tuple[str, int]) -> str:
        history = History(lambda: 1.0)
        for what, a in says:
            history.add(what, a)
        return history.hash

    assert told(("push", 1), ("pull", 2)) == told(("push", 1), ("pull", 2))
    assert len({told(("push", 1)), told(("push", 2)), told(("pull", 1)), told(("push", 1), ("push", 1))}) == 4
