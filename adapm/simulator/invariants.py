"""What holds of every row at any moment: docs/architecture.md, invariants, as functions of one row's scene.

A scene is all there is of a row: what it is to each node, and what of it is under way.  Each function raises Violation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapm.engine import RowState, RowView
from adapm.simulator.frames import Item, Type
from adapm.techniques import ADAPTIVE, OnWant, Technique

Row = tuple[int, int]
"""The number of a table, and a key."""

ABSENT, PENDING, REPLICA, OWNED = RowState.ABSENT, RowState.PENDING, RowState.REPLICA, RowState.OWNED
FOR_GOOD = 1 << 31
"""In the intents of a row that its node keeps."""

_GRANTS = (Type.GRANT, Type.GRANT_CURRENT)


class Violation(AssertionError):
    """Something that must hold does not.

    Attributes:
        row: of which row it must; None if it is not about one.
    """

    def __init__(self, message: str, row: Row | None = None) -> None:
        super().__init__(message)
        self.row = row


class Moving(NamedTuple):
    """An item between two nodes."""

    source: int
    target: int
    item: Item


class Scene(NamedTuple):
    """All there is of one row.

    Attributes:
        row_len: floats in it.
        views: what it is to each node, by node.
        moving: what of it is under way, in the order of sending; no answers and acknowledgements.
        full: whether some node's arena has no more room, so that intents may stay unmet.
        technique: how rows are managed.
    """

    row: Row
    row_len: int
    views: Sequence[RowView]
    moving: Sequence[Moving]
    full: bool = False
    technique: Technique = ADAPTIVE

    @property
    def unmet(self) -> bool:
        """Whether a row may be elsewhere although it is wanted."""
        return self.full or self.technique.on_want is OnWant.RELOCATE


def one_main_copy(scene: Scene) -> int:
    """There is one main copy, or one grant that carries it; returns where it is, or is going."""
    owners = [node for node, view in enumerate(scene.views) if view.state is OWNED]
    granted = [target for _, target, item in scene.moving if item.type in _GRANTS]
    if len(owners) + len(granted) != 1:
        raise Violation(f"{scene.row} has owners {owners} and grants to {granted}", scene.row)
    return (owners + granted)[0]


def sum_of_updates(scene: Scene) -> npt.NDArray[np.float64]:
    """Main copy, what replicas and pending rows have gained, and what is under way: float64 [row_len]."""
    found = np.zeros(scene.row_len)
    bases: dict[int, npt.NDArray[np.float32]] = {}  # of each node, what a grant of its own value will build on
    for node, view in enumerate(scene.views):
        if view.value is not None:
            found += view.value
        if view.base is not None:
            found -= view.base
            bases[node] = view.base
    for _, target, item in scene.moving:
        if item.type is Type.PUSH:
            offset, length = item.columns
            found[offset : offset + length] += _value(item)
        elif item.type is Type.DELTA or item.type is Type.GRANT:
            found += _value(item)
        elif item.type is Type.STATE:
            bases[target] = _value(item)
        elif item.type is Type.GRANT_CURRENT:
            found += bases[target]
    return found


def _value(item: Item) -> npt.NDArray[np.float32]:
    assert item.value is not None
    return item.value


def wants_in_pairs(scene: Scene) -> None:
    """A pending row has one want or answer under way, no other row has; what is wanted is not absent."""
    waiting = [node for view in scene.views for node in view.asked]
    asking = waiting + [
        source if item.type is Type.WANT else item.origin for source, _, item in scene.moving if _is_want(item)
    ]
    answered = {target for _, target, item in scene.moving if item.type is Type.STATE or item.type in _GRANTS}
    for node, view in enumerate(scene.views):
        asked = asking.count(node)
        if view.state is PENDING and asked + (view.want == 1) + (node in answered) != 1:
            raise Violation(
                f"{scene.row} is pending at {node} with {asked} wants under way, answered: {node in answered}",
                scene.row,
            )
        if view.state is not PENDING and asked:
            raise Violation(f"{scene.row} is {view.state.name} at {node} with {asked} wants under way", scene.row)
        if view.intents and view.state is ABSENT and not scene.unmet:
            raise Violation(f"{scene.row} is absent at {node} in spite of active intent", scene.row)


def _is_want(item: Item) -> bool:
    return item.type is Type.WANT or item.type is Type.FORWARDED_WANT


def hints_lead_to(owner: int, scene: Scene) -> None:
    """From every node, hints lead to the owner."""
    for start in range(len(scene.views)):
        node = start
        for _ in range(len(scene.views) + 1):
            if node == owner:
                break
            node = scene.views[node].hint[0]
        else:
            raise Violation(f"{scene.row}: the hints of node {start} do not lead to {owner}", scene.row)


def holders_known(scene: Scene) -> None:
    """The owner knows its holders, and which of them are behind."""
    granted = {target for _, target, item in scene.moving if item.type in _GRANTS}
    for node, view in enumerate(scene.views):
        if view.state is REPLICA and node not in granted:
            source = scene.views[view.hint[0]]
            if source.state is not OWNED or node not in source.holders:
                raise Violation(f"the replica of {scene.row} at {node} is unknown to its owner", scene.row)
        elif view.state is OWNED and view.holders:
            _holders_hold(scene, node, view)


def _holders_hold(scene: Scene, owner: int, main: RowView) -> None:
    dropped = {source for source, target, item in scene.moving if item.type is Type.DROP and target == owner}
    coming = {target for _, target, item in scene.moving if item.type is Type.STATE}
    in_delta = {source for source, _, item in scene.moving if item.type is Type.DELTA}
    for holder in main.holders:
        view = scene.views[holder]
        replica = view.state is REPLICA and view.hint[0] == owner
        if not (replica or holder in coming or holder in dropped):
            raise Violation(f"{owner} believes that {holder} holds {scene.row}", scene.row)
        fresh = replica and not main.stale and not main.dirty and holder not in coming and holder not in in_delta
        if fresh and not np.array_equal(view.base, main.value):  # type: ignore[arg-type]  # both have one
            raise Violation(f"the replica of {scene.row} at {holder} is behind and not flagged stale", scene.row)


def at_rest(scene: Scene, home: int) -> None:
    """Nothing is under way and no tick is due: nothing is pending or stale, and rows are where they are wanted."""
    owner = next(node for node, view in enumerate(scene.views) if view.state is OWNED)
    main = scene.views[owner]
    wanting = [node for node, view in enumerate(scene.views) if view.intents]
    kept = any(view.foreseen and view.state is not ABSENT for view in scene.views if not view.intents)
    if scene.views[home].hint[0] != owner:
        hint = scene.views[home].hint
        raise Violation(f"the home of {scene.row} believes in {hint}, its owner is {owner}", scene.row)
    alone = scene.technique.on_want is OnWant.DECIDE and len(wanting) == 1 and not kept
    if alone and owner != wanting[0] and not scene.full:
        raise Violation(f"{wanting[0]} alone wants {scene.row}, its owner is {owner}", scene.row)
    for node, view in enumerate(scene.views):
        if view.state is PENDING or main.stale:
            raise Violation(f"{scene.row} is at rest but pending at {node} or stale somewhere", scene.row)
        if view.state is REPLICA and not (view.intents or view.foreseen):
            raise Violation(f"the replica of {scene.row} at {node} is unwanted", scene.row)
        if view.state is REPLICA and not np.array_equal(view.value, main.value):  # type: ignore[arg-type]
            raise Violation(f"the replica of {scene.row} at {node} differs", scene.row)
        if view.intents and view.state is ABSENT and not scene.unmet:
            raise Violation(f"the intent of {node} for {scene.row} is not satisfied", scene.row)
