"""Who is here and who is missing."""

from __future__ import annotations

import dataclasses
import re

import pytest

from adapm.control import Arrive, End, Finished, Join, Message, Release, Welcome
from adapm.errors import ProtocolError
from adapm.gathering import Barriers, Coordinator, Rendezvous, RollCall

MINE = Join("1.0", 0, "", 2, [{"name": "t", "rows": 5}], {"seed": 1, "nodes": 3})


def test_a_roll_call_is_complete_when_nobody_is_missing() -> None:
    roll = RollCall(range(3))
    assert not roll.complete
    roll.arrive(0)
    roll.leave(1)
    assert roll.missing == [2]
    roll.arrive(2)
    assert roll.complete
    roll.call_again()
    assert roll.missing == [0, 2]
    with pytest.raises(ProtocolError):
        roll.arrive(1)


def test_nobody_arrived_is_not_complete_but_over() -> None:
    roll = RollCall(range(2))
    roll.leave(0)
    assert not roll.over
    roll.leave(1)
    assert roll.over
    assert not roll.complete


class Ear(list[Message]):
    def heard(self) -> list[Message]:
        messages = list(self)
        self.clear()
        return messages


def test_a_barrier_is_announced_when_the_last_worker_arrives() -> None:
    said = Ear()
    barriers = Barriers(2, said.append)
    barriers.arrive(0, 10)
    assert (barriers.missing, said.heard()) == ([1], [])
    barriers.arrive(1, 20)
    assert said.heard() == [Arrive(0)]
    assert barriers.release(0)
    assert barriers.end() == [(0, 10), (1, 20)]
    assert not barriers.waiting


def test_a_worker_may_be_a_barrier_ahead() -> None:
    said = Ear()
    barriers = Barriers(2, said.append)
    for slot, op in ((0, 1), (0, 2), (1, 3)):
        barriers.arrive(slot, op)
    barriers.release(0)
    assert barriers.end() == [(0, 1), (1, 3)]
    assert said.heard() == [Arrive(0)]
    barriers.arrive(1, 4)
    assert said.heard() == [Arrive(1)]
    barriers.release(1)
    assert barriers.end() == [(0, 2), (1, 4)]


def test_finished_workers_are_not_waited_for() -> None:
    said = Ear()
    barriers = Barriers(2, said.append)
    barriers.arrive(0, 1)
    barriers.finish(1)
    assert said.heard() == [Arrive(0)]
    barriers.release(0)
    assert barriers.end() == [(0, 1)]
    barriers.finish(0)
    assert said.heard() == [Finished()]
    assert not barriers.release(1), "others go on meeting"


def test_a_release_out_of_turn_is_refused() -> None:
    with pytest.raises(ProtocolError, match="barrier 1 was released while this node is at barrier 0"):
        Barriers(1, Ear().append).release(1)


def test_node_0_releases_when_all_nodes_arrived_or_finished() -> None:
    said = Ear()
    coordinator = Coordinator(3, said.append)
    coordinator.arrive(2, 0)
    coordinator.finish(1)
    assert (coordinator.missing, said.heard()) == ([0], [])
    coordinator.arrive(0, 0)
    assert said.heard() == [Release(0)]
    coordinator.arrive(0, 1)
    coordinator.finish(2)
    assert said.heard() == [Release(1)]
    coordinator.finish(0)
    assert said.heard() == [End()]


def test_node_0_refuses_arrivals_out_of_turn() -> None:
    coordinator = Coordinator(2, Ear().append)
    coordinator.arrive(0, 0)
    for epoch in (0, 1):
        with pytest.raises(ProtocolError):
            coordinator.arrive(0, epoch)


def test_all_who_agree_are_welcome() -> None:
    hall = Rendezvous(MINE, 3)
    for node in (2, 1):
        assert hall.join(node, dataclasses.replace(MINE, node=node, address=f"a{node}", workers=node)) is None
    assert hall.missing == []
    assert hall.welcome() == Welcome(["", "a1", "a2"], [2, 1, 2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "2.0"}, "node 1 runs adapm 2.0, node 0 runs 1.0"),
        ({"config": {"seed": 2, "nodes": 3}}, "seed is 2 on node 1 and 1 on node 0"),
        ({"config": {"nodes": 3}}, "seed is None on node 1 and 1 on node 0"),
        ({"tables": [{"name": "t", "rows": 6}]}, "table 't' differs: rows is 6 on node 1 and 5 on node 0"),
        ({"tables": [{"name": "u", "rows": 5}]}, r"tables differ: \['u'\] on node 1, \['t'\] on node 0"),
        ({"tables": []}, r"tables differ: \[\] on node 1"),
        ({"tables": [{}]}, r"tables differ: \[None\] on node 1"),
        ({"node": 2}, "no room for a node 2"),
    ],
)
def test_who_differs_is_refused_with_both_values(change: dict[str, object], reason: str) -> None:
    hall = Rendezvous(MINE, 3)
    refusal = hall.join(1, dataclasses.replace(dataclasses.replace(MINE, node=1), **change))
    assert refusal is not None
    assert re.search(reason, refusal), refusal
    assert hall.missing == [1, 2]


def test_an_id_is_taken_once_and_in_time() -> None:
    hall = Rendezvous(MINE, 3)
    assert "no room for a node 3" in str(hall.join(3, dataclasses.replace(MINE, node=3)))
    hall.join(1, dataclasses.replace(MINE, node=1))
    assert "there is a node 1 already" in str(hall.join(1, dataclasses.replace(MINE, node=1)))
    hall.join(2, dataclasses.replace(MINE, node=2))
    assert "too late" in str(hall.join(2, dataclasses.replace(MINE, node=2)))
