"""A trace in figures, per table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adapm.trace.files import Trace
from adapm.trace.lives import Life, common, length
from adapm.trace.timing import timing
from adapm.tracing import Reason

REASONS: Final = {Reason.NO_INTENT: "no intent", Reason.LATE: "late intent", Reason.NO_ROOM: "no room"}


@dataclass(frozen=True)
class Summary:
    """What happened to the traced keys of a table.

    Attributes:
        table: its name.
        keys: to which something happened.
        relocations: times that a main copy came to another node.
        replicas: times that one was set up.
        signals: intents that nodes heard of, one per key.
        remote: keys accessed that were not local, by why.
        wanted: seconds for which nodes had active intents, all nodes and keys together.
        local: share of that in which the row was there; None: nothing was wanted.
        lead: seconds by which nodes heard of intents before their clock: the shortest 1 %, the median, the longest 1 %.
        lead_clocks: the same in clocks.
        late: share of the intents whose row was not there when their clock came.
        lateness: of those, seconds until it was: median, longest 1 %; None: none was late, or none came at all.
        never: share of the intents whose row did not come while they lasted.
    """

    table: str
    keys: int
    relocations: int
    replicas: int
    signals: int
    remote: dict[str, int]
    wanted: float
    local: float | None
    lead: tuple[float, ...] | None
    lead_clocks: tuple[float, ...] | None
    late: float | None
    lateness: tuple[float, ...] | None
    never: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarise(trace: Trace, lives: Sequence[Life]) -> list[Summary]:
    """Of each table of which keys were traced."""
    by_table = ([life for life in lives if life.table == index] for index in range(len(trace.tables)))
    return [_summary(trace, of_table) for of_table in by_table if of_table]


def _summary(trace: Trace, lives: Sequence[Life]) -> Summary:
    times = timing(trace, lives)
    reasons = np.concatenate([life.accesses["reason"] for life in lives])
    here = [presence for life in lives for presence in life.at]
    wanted = sum(length(presence.wanted) for presence in here)
    local = sum(length(common(presence.wanted, presence.local)) for presence in here)
    late = times.late[(times.late > 0) & np.isfinite(times.late)]
    known = len(times.late)
    return Summary(
        table=trace.tables[lives[0].table][0],
        keys=len(lives),
        relocations=sum(len(life.moves) for life in lives),
        replicas=sum(len(presence.replica) for presence in here),
        signals=sum(len(life.signals) for life in lives),
        remote={label: int((reasons == reason).sum()) for reason, label in REASONS.items()},
        wanted=wanted,
        local=local / wanted if wanted else None,
        lead=_quantiles(times.lead, 0.01, 0.5, 0.99),
        lead_clocks=_quantiles(times.clocks, 0.01, 0.5, 0.99),
        late=float((times.late > 0).mean()) if known else None,
        lateness=_quantiles(late, 0.5, 0.99),
        never=float(np.isinf(times.late).mean()) if known else None,
    )


def _quantiles(values: npt.NDArray[np.float64], *shares: float) -> tuple[float, ...] | None:
    return tuple(np.quantile(values, shares).tolist()) if len(values) else None


def milliseconds(quantiles: tuple[float, ...] | None) -> str:
    """As a person reads them."""
    return "-" if quantiles is None else " / ".join(f"{1e3 * value:,.3g}" for value in quantiles)


def share(value: float | None) -> str:
    """A share of 1 as a person reads it."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"
