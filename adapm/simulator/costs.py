"""What things cost a node: what turns the simulator's counts into processor time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from adapm.errors import UsageError


@dataclass(frozen=True)
class Costs:
    """Microseconds of processor time of nodes; see `calibration` for where the defaults come from.

    Attributes:
        tick: a tick of a node, whatever it finds.
        frame: a frame, on both sides together: the lanes', the nodes' and the transport's part.
        row: a row in it, on both sides together.
        key: a key of an intent, from the worker's ring to the end of the intent.

    Raises:
        UsageError: one is negative, or no number.
    """

    tick: float = 11.0
    frame: float = 19.0
    row: float = 0.135
    key: float = 0.03

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"the cost of a {name} must be 0 or more microseconds, got {value}")

    def of(self, ticks: float, frames: float, rows: float, keys: float) -> float:
        """Microseconds for so many of them."""
        return self.tick * ticks + self.frame * frames + self.row * rows + self.key * keys
