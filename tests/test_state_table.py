"""The state table of docs/architecture.md is what the kernel does: every cell is played, and compared.

`python tests/test_state_table.py` prints the table's rows as the kernel has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from adapm.engine import RowState
from adapm.errors import ProtocolError
from adapm.simulator.frames import Type
from lanes import FOREVER, on_link, rows_of
from test_lane_frames import frame, item, message
from test_lane_sets import SettingWorld

ARCHITECTURE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"
HERE, OWNER, OTHER = 0, 1, 2  # the node that is looked at; who owns the row if HERE does not; a third one
NAMES = {OWNER: "o", OTHER: "x"}
ENDS = {Type.ROUND_END, Type.REPLY_END}
VALUE = [1.0, 2.0, 3.0]


class Stage(SettingWorld):
    """Three nodes with a worker each, and one row."""

    row: int

    def __init__(self) -> None:
        super().__init__(3, 1, (64,))

    def check(self) -> None:
        """Messages are made up here, so values mean nothing; but no lane contradicts itself."""
        for lane in self.lanes:
            lane.validate()

    def want(self, node: int) -> None:
        self.intent(self.workers[node], 0, [self.row], 0, FOREVER)

    def receive(self, sender: int, *messages: bytes) -> None:
        self.lanes[HERE].receive(sender, frame(*messages))
        self.collect(HERE)


# ---- the columns: how HERE comes to have the row in that state


def absent(stage: Stage) -> None:
    stage.row = rows_of(stage, OWNER)[0]


def pending(stage: Stage) -> None:
    replica(stage, HERE, until=Type.WANT)


def replica(stage: Stage, holder: int = HERE, until: Type | None = None) -> None:
    absent(stage)
    stage.want(OWNER)
    stage.drain()
    stage.want(holder)
    if until:
        stage.tick(holder)
        assert on_link(stage, holder, OWNER)[0].type is until
    else:
        stage.drain()


def owned(stage: Stage) -> None:
    stage.row = rows_of(stage, HERE)[0]


def wanted(stage: Stage) -> None:
    owned(stage)
    stage.want(HERE)
    stage.drain()


def held(stage: Stage) -> None:
    wanted(stage)
    stage.want(OTHER)
    stage.drain()


STATES: dict[str, Callable[[Stage], None]] = {
    "absent": absent,
    "pending": pending,
    "replica": replica,
    "owned": owned,
    "wanted": wanted,
    "held": held,
}


# ---- the rows: what happens to it there


def intent_begins(stage: Stage) -> None:
    stage.want(HERE)


def intent_ends(stage: Stage) -> None:
    stage.lanes[HERE].worker_gone(0)


def pull(stage: Stage) -> None:
    stage.pull(stage.workers[HERE], 0, [stage.row])


def push(stage: Stage) -> None:
    stage.push(stage.workers[HERE], 0, [stage.row])


def set_(stage: Stage) -> None:
    stage.set(stage.workers[HERE], (0, stage.row))


def of_a_round(kind: Type, *rest: object, columns: tuple[int, int] = (0, 0)) -> Callable[[Stage], None]:
    """x's round says this of the row."""

    def happens(stage: Stage) -> None:
        said = message(kind, item(stage.row, *rest), columns=columns)
        stage.receive(OTHER, said, message(Type.ROUND_END))

    return happens


def access(kind: Type, *rest: object) -> Callable[[Stage], None]:
    """x's worker has no copy, and x believes that HERE owns the row."""

    def happens(stage: Stage) -> None:
        position = 0
        sent = item(stage.row) + item(position, *rest)
        stage.receive(OTHER, message(kind, sent, origin=OTHER, columns=(0, len(VALUE))))

    return happens


def of_the_owner(kind: Type, *rest: object) -> Callable[[Stage], None]:
    """o says this of the row."""

    def happens(stage: Stage) -> None:
        stage.receive(OWNER, message(kind, item(stage.row, *rest)))

    return happens


def moved(stage: Stage) -> None:
    stage.receive(OTHER, message(Type.MOVED, item(stage.row, 7)))


EVENTS: dict[str, Callable[[Stage], None]] = {
    "intent begins": intent_begins,
    "intent ends": intent_ends,
    "pull by a worker": pull,
    "push by a worker": push,
    "set by a worker": set_,
    "WANT of x": of_a_round(Type.WANT),
    "DELTA of x": of_a_round(Type.DELTA, VALUE),
    "DROP of x": of_a_round(Type.DROP),
    "SET_ROW of x": of_a_round(Type.SET_ROW, VALUE, columns=(0, len(VALUE))),
    "PULL of x": access(Type.PULL),
    "PUSH of x": access(Type.PUSH, VALUE),
    "SET of x": access(Type.SET, VALUE),
    "STATE of o": of_the_owner(Type.STATE, 3, VALUE),
    "GRANT of o": of_the_owner(Type.GRANT, 3, VALUE),
    "GRANT_CURRENT of o": of_the_owner(Type.GRANT_CURRENT, 3),
    "MOVED of x": moved,
}


# ---- a cell


def name_of(stage: Stage) -> str:
    """The state at HERE, as the table calls it."""
    view = stage.lanes[HERE].inspect(0, stage.row)
    if view.state is not RowState.OWNED:
        return view.state.name.lower()
    return "held" if view.holders else "wanted" if view.intents else "owned"


def sent(stage: Stage) -> list[str]:
    return [
        f"{said.type.name} to {name}"
        for node, name in NAMES.items()
        for said in on_link(stage, HERE, node)
        if said.type not in ENDS
    ]


def play(event: str, state: str) -> str:
    """What comes of the event: the state if it is another one, and what leaves until HERE has no more to do."""
    stage = Stage()
    try:
        STATES[state](stage)
        assert name_of(stage) == state
        for link in stage.links.values():
            link.clear()
        hint = stage.lanes[HERE].inspect(0, stage.row).hint
        try:
            EVENTS[event](stage)
        except ProtocolError:
            return "error"
        for _ in range(3):
            stage.serve(HERE)
            stage.tick(HERE)
        stage.check()
        now = stage.lanes[HERE].inspect(0, stage.row)
        outcome = [name_of(stage)] if name_of(stage) != state else []
        outcome += sent(stage)
        if now.hint != hint and now.hint[0] in NAMES:
            outcome.append(f"hint: {NAMES[now.hint[0]]}")
        if not outcome and stage.workers[HERE].open:
            outcome.append("waits")
        return ", ".join(outcome) or "-"
    finally:
        stage.close()


def written() -> dict[str, dict[str, str]]:
    """The cells of the table, by event and state."""
    lines = ARCHITECTURE.read_text().split("## State table")[1].split("\n## ")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {event: dict(zip(head[1:], cells, strict=True)) for event, *cells in rows}


def test_the_table_has_every_event_in_every_state() -> None:
    table = written()
    assert list(table) == list(EVENTS)
    assert all(list(cells) == list(STATES) for cells in table.values())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_the_kernel_does_what_is_written(event: str, state: str) -> None:
    assert play(event, state) == written()[event][state]


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        for event in EVENTS:
            print(f"| {event} |", " | ".join(play(event, state) for state in STATES), "|")
