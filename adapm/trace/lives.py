"""The life of each key, replayed from events: where it was when, who wanted it, who accessed it from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adapm.kernel import lib
from adapm.trace.files import Trace
from adapm.tracing import Kind, Reason

ACCESSES: Final = (Kind.PULL, Kind.PUSH, Kind.SET)


class Span(NamedTuple):
    """A time, in seconds."""

    begin: float
    end: float


class Move(NamedTuple):
    """The main copy went from one node to another, and came at this time."""

    at: float
    giver: int
    taker: int


@dataclass
class Presence:
    """What a key was to one node; spans are in order and do not overlap."""

    owned: list[Span] = field(default_factory=list)
    replica: list[Span] = field(default_factory=list)
    wanted: list[Span] = field(default_factory=list)

    @property
    def local(self) -> list[Span]:
        """When the row was here, as main copy or replica."""
        return merged([*self.owned, *self.replica])


@dataclass
class Life:
    """One key.

    Attributes:
        table: its index.
        key: the key.
        home: the node that owned it first.
        at: for each node, what it was there.
        moves: of the main copy, by time.
        accesses: the events of accesses that were not local, with `reason` as far as the trace knows; by time.
        signals: the events of intents that nodes heard of; by time.
        served: the events of accesses of other nodes that a node served; by time.
    """

    table: int
    key: int
    home: int
    at: list[Presence]
    moves: list[Move]
    accesses: npt.NDArray[np.void]
    signals: npt.NDArray[np.void]
    served: npt.NDArray[np.void]

    @property
    def heat(self) -> int:
        """How often workers are known to have accessed it, or to have meant to."""
        return len(self.signals) + int((self.accesses["reason"] == Reason.NO_INTENT).sum())


def replay(trace: Trace) -> list[Life]:
    """The lives of all keys to which something happened, by table and key."""
    events = trace.events[trace.events["kind"] != Kind.CLOCK]
    order = np.lexsort((np.arange(len(events)), events["row"], events["table"]))
    events = events[order]
    ref = events["table"].astype(np.uint64) << np.uint64(32) | events["row"]
    return [_life(part, trace) for part in np.split(events, np.flatnonzero(np.diff(ref)) + 1) if len(part)]


def _life(events: npt.NDArray[np.void], trace: Trace) -> Life:
    table, key = int(events["table"][0]), int(events["row"][0])
    home = int(lib.adapm_home_of(table, key, trace.nodes))
    signals, accesses = (events[np.isin(events["kind"], kinds)] for kinds in (Kind.SIGNAL, ACCESSES))
    came = events[events["kind"] == Kind.OWNED]
    return Life(
        table=table,
        key=key,
        home=home,
        at=[_presence(events[events["node"] == node], node == home, trace.seconds) for node in range(trace.nodes)],
        moves=[Move(float(event["at"]), int(event["peer"]), int(event["node"])) for event in came],
        accesses=_with_reasons(accesses, signals),
        signals=signals,
        served=events[events["kind"] == Kind.SERVED],
    )


# What ends with an event, and what begins.
_CHANGES: Final = {
    Kind.OWNED: ("replica", "owned"),
    Kind.GIVEN: ("owned", None),
    Kind.REPLICA: (None, "replica"),
    Kind.DROPPED: ("replica", None),
    Kind.WANTED: (None, "wanted"),
    Kind.UNWANTED: ("wanted", None),
}


def _presence(events: npt.NDArray[np.void], at_home: bool, end: float) -> Presence:
    """Of one node: what other nodes' clocks say plays no part."""
    found, since = Presence(), {"owned": 0.0} if at_home else {}
    for kind, at in zip(events["kind"].tolist(), events["at"].tolist(), strict=True):
        ends, begins = _CHANGES.get(kind, (None, None))
        if ends in since:
            getattr(found, ends).append(Span(since.pop(ends), at))
        if begins is not None:
            since.setdefault(begins, at)
    for name, begin in since.items():
        getattr(found, name).append(Span(begin, end))
    return found


def _with_reasons(accesses: npt.NDArray[np.void], signals: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """What has not acted on an intent yet, or not heard of it, finds none: all the signals there were tell better."""
    accesses = accesses.copy()
    accesses["reason"][(accesses["reason"] == Reason.NO_INTENT) & _covered(accesses, signals)] = Reason.LATE
    return accesses


def _covered(accesses: npt.NDArray[np.void], signals: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Whether the access's worker has signalled an intent for its clock, whenever that was heard of."""
    covered = np.zeros(len(accesses), np.bool_)
    for node, worker in np.unique(accesses[["node", "worker"]]).tolist():
        mine = (accesses["node"] == node) & (accesses["worker"] == worker)
        its = signals[(signals["node"] == node) & (signals["worker"] == worker)]
        its = its[np.argsort(its["clock"], kind="stable")]
        last = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(its["end"])])
        begun = np.searchsorted(its["clock"], accesses["clock"][mine], side="right")
        covered[mine] = last[begun] > accesses["clock"][mine]
    return covered


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that neither touch nor overlap, in order."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and span.begin <= result[-1].end:
            result[-1] = Span(result[-1].begin, max(result[-1].end, span.end))
        else:
            result.append(span)
    return result


def common(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Span]:
    """The time that both cover; each in order and without overlaps."""
    i = j = 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i].begin, other[j].begin), min(one[i].end, other[j].end)
        if begin < end:
            yield Span(begin, end)
        if one[i].end < other[j].end:
            i += 1
        else:
            j += 1


def length(spans: Iterable[Span]) -> float:
    """Seconds in all."""
    return sum(span.end - span.begin for span in spans)
