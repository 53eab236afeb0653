"""Who is believed when several members of a run fail."""

from __future__ import annotations

import pytest

from adapm.blame import Member, first_cause
from adapm.errors import Closed, NodeDied, NodeLost, TableError, WorkerDied
from adapm.task import Failure

NODES = N0, N1, N2 = Member(0), Member(1), Member(2)
WORKERS = W0, W1, W2 = Member(0, 0), Member(0, 1), Member(1, 2)
ALL = (*NODES, *WORKERS)

BUG = Failure.told(LookupError("a bug"))
WRAPPED = Failure.told(RuntimeError("my step failed"))  # what a function makes of an error that it was told
KILLED = Failure(WorkerDied("killed", worker=1, node=0, pid=7, signal=9))
NODE_KILLED = Failure(NodeDied("killed", node=1, signal=9))


def worker_died(worker: int, node: int) -> Failure:
    return Failure.told(WorkerDied("died or raised", worker=worker, node=node))


def lost(node: int) -> Failure:
    return Failure.told(NodeLost("lost", node=node))


CAUSES = {
    "a worker's own bug, once its node has nobody else to blame": ({W0: BUG, N0: worker_died(0, 0)}, BUG),
    "its node was faster": ({N0: worker_died(0, 0), W0: BUG}, BUG),
    "a worker makes its own of another's death": ({W0: WRAPPED, N0: worker_died(1, 0), W1: KILLED}, KILLED),
    "as does one of another node": ({W2: WRAPPED, N1: worker_died(1, 0), W1: KILLED, N0: worker_died(1, 0)}, KILLED),
    "or one that leaves without a word": ({W1: KILLED, N0: worker_died(0, 0), W0: BUG}, BUG),
    "a worker makes its own of a node's death": ({W0: WRAPPED, N0: lost(1), N1: NODE_KILLED}, NODE_KILLED),
    "of its own node's": ({W2: WRAPPED, N1: NODE_KILLED}, NODE_KILLED),
    "two nodes that blame each other": ({N1: lost(0), N0: lost(1)}, lost(0)),
    "a node that was given up and goes on": ({N2: lost(0), N1: lost(0), N0: lost(1)}, lost(0)),
    "a node elsewhere": ({W0: WRAPPED, N0: lost(5)}, lost(5)),
    "a worker elsewhere": ({W0: WRAPPED, N0: worker_died(9, 4)}, worker_died(9, 4)),
    "a misuse": ({W0: Failure.told(TableError("misuse"))}, Failure.told(TableError("misuse"))),
    "a result that cannot be sent": ({N0: None, W0: BUG}, BUG),
}


@pytest.mark.parametrize(("told", "cause"), CAUSES.values(), ids=CAUSES)
def test_the_first_cause(told: dict[Member, Failure | None], cause: Failure) -> None:
    found = first_cause(told, ALL)
    assert found is not None
    assert (str(found.error), vars(found.error), found.hearsay) == (str(cause.error), vars(cause.error), cause.hearsay)
    assert found in told.values()


@pytest.mark.parametrize(
    "told",
    [
        {W0: BUG},
        {W0: WRAPPED, N0: worker_died(1, 0)},
        {N0: lost(1)},
        {N0: Failure.told(Closed("it was closed"))},
    ],
)
def test_whoever_is_to_blame_is_waited_for(told: dict[Member, Failure | None]) -> None:
    assert first_cause(told, ALL) is None
