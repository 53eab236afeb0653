"""How far ahead intents were signalled, and whether the row was there when its clock came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapm.trace.files import Trace
from adapm.trace.lives import ACCESSES, Life, Span
from adapm.tracing import Kind

_Array = npt.NDArray[np.float64]


class Timing(NamedTuple):
    """Of intents; all arrays are float64 [n], one element per intent and key.

    Attributes:
        node: whose worker it was.
        lead: seconds from when the node heard of it until the worker came to its clock; negative: that had been before.
        clocks: the same in clocks of the worker.
        late: seconds from when the worker came to that clock until the row was there; negative: so long was it there
            before, or so long has the intent been known; inf: it did not come while the intent lasted.
    """

    node: _Array
    lead: _Array
    clocks: _Array
    late: _Array


class _Clock:
    """When a worker came to which clock, as far as it was noted; a straight line in between."""

    def __init__(self, notes: npt.NDArray[np.void]) -> None:
        self._at = notes["at"]
        self._values = np.maximum.accumulate(notes["clock"])
        self._clocks, first = np.unique(self._values, return_index=True)
        self._times = self._at[first]

    def times(self, clocks: npt.NDArray[np.int64]) -> _Array:
        """float64 [n]: when it came to these clocks; nan: it has not, as far as is known."""
        return np.asarray(np.interp(clocks, self._clocks, self._times, right=np.nan))

    def clocks(self, times: _Array) -> npt.NDArray[np.int64]:
        """int64 [n]: the clock noted last at these times, 0 before the first."""
        noted = np.searchsorted(self._at, times, side="right")
        return np.concatenate([[0], self._values])[noted]


def timing(trace: Trace, lives: Sequence[Life]) -> Timing:
    """Of all intents for these keys whose clock came while the trace went on."""
    clocks = _clocks(trace)
    parts = [_of_key(life, clocks) for life in lives if len(life.signals)]
    if not parts:
        return Timing(*(np.zeros(0) for _ in Timing._fields))
    return Timing(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _clocks(trace: Trace) -> dict[tuple[int, int], _Clock]:
    notes = trace.of_kind(Kind.CLOCK, *ACCESSES)
    whose = np.unique(trace.of_kind(Kind.CLOCK, Kind.SIGNAL, *ACCESSES)[["node", "worker"]]).tolist()
    begin = np.zeros(1, trace.events.dtype)  # workers begin at clock 0
    return {
        (node, worker): _Clock(np.concatenate([begin, notes[(notes["node"] == node) & (notes["worker"] == worker)]]))
        for node, worker in whose
    }


def _of_key(life: Life, clocks: dict[tuple[int, int], _Clock]) -> Timing:
    signals = life.signals
    reached, noted = np.empty(len(signals)), np.empty(len(signals), np.int64)
    late = np.empty(len(signals))
    for node, worker in np.unique(signals[["node", "worker"]]).tolist():
        mine = (signals["node"] == node) & (signals["worker"] == worker)
        clock = clocks[node, worker]
        reached[mine] = clock.times(signals["clock"][mine])
        noted[mine] = clock.clocks(signals["at"][mine])
        ended = np.nan_to_num(clock.times(signals["end"][mine]), nan=np.inf)
        late[mine] = _late(life.at[node].local, signals["at"][mine], reached[mine], ended)
    known = ~np.isnan(reached)
    values = (
        signals["node"].astype(np.float64),
        reached - signals["at"],
        (signals["clock"] - noted).astype(float),
        late,
    )
    return Timing(*(value[known] for value in values))


def _late(local: Sequence[Span], signalled: _Array, reached: _Array, ended: _Array) -> _Array:
    """See Timing."""
    begins, ends = np.array([span.begin for span in local]), np.array([span.end for span in local])
    place = np.searchsorted(ends, reached, side="right")  # the span that reached is in, or the next one
    begin = np.concatenate([begins, [np.inf]])[place]
    known = np.maximum(begin, np.minimum(signalled, reached))  # of a row that is there: since when that matters
    return np.where(begin <= reached, known, np.where(begin < ended, begin, np.inf)) - reached
