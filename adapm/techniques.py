"""How rows are managed: each technique is one frozen value, read by the same engine.

    adaptive            the default, and the only one that users need
    the others          what the adaptive one is compared with, see docs/techniques.md

A technique says whether intents count and when they are acted on, what the owner of a row does when another node wants
it, what a pull of a row that is elsewhere leads to, and which rows are everywhere from the start.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MOST_CLOCKS: Final = 10_000  # that a copy may be old with ssp
MOST_HOT: Final = 2**32 - 2  # keys: as many as a table can have
FOR_GOOD: Final = -1  # clocks for which a copy stays that is never given up


class Intents(enum.Enum):
    """What becomes of the intents that workers signal."""

    IGNORED = "ignored"
    TIMED = "timed"  # acted on when the worker's clock is near, as late as is early enough
    AT_ONCE = "at once"


class OnWant(enum.IntEnum):
    """What the owner of a row does when another node wants it; the numbers are the kernel's."""

    DECIDE = 0  # relocate it to a node that alone wants it, replicate it to several
    REPLICATE = 1
    RELOCATE = 2


class Everywhere(enum.Enum):
    """Which rows all nodes have from the start on, and keep."""

    NONE = "none"
    HOT = "hot"  # those that are accessed most, as the tables' counts say
    ALL = "all"


@dataclass(frozen=True)
class Technique:
    """See above.

    Attributes:
        name: with its number, as in a configuration: "ssp(3)".
        stands_for: the systems or the variant that it is.
        intents: see Intents.
        on_want: see OnWant.
        copies: whether a pull of a row that is elsewhere sets up a copy of it, instead of asking its owner once.
        clocks: for so many clocks of the worker that pulled, or FOR_GOOD; no pull reads a copy that is older.
        everywhere: see Everywhere.
        hot: with Everywhere.HOT, of how many keys; None: those counted more than a hundred times as often as the mean.
    """

    name: str
    stands_for: str
    intents: Intents = Intents.IGNORED
    on_want: OnWant = OnWant.REPLICATE
    copies: bool = False
    clocks: int = FOR_GOOD
    everywhere: Everywhere = Everywhere.NONE
    hot: int | None = None

    @property
    def bound(self) -> int | None:
        """How many clocks old a copy may be when it is pulled; None: there is no such bound."""
        return self.clocks if self.copies and self.clocks != FOR_GOOD else None

    @property
    def brings_what_is_wanted(self) -> bool:
        """Whether a row is at every node that has active intent for it, once there was time to bring it."""
        wanted = self.intents is not Intents.IGNORED and self.on_want is not OnWant.RELOCATE
        return wanted or self.everywhere is Everywhere.ALL

    @property
    def keeps_copies(self) -> bool:
        """Whether copies stay although nobody has active intent."""
        return self.everywhere is not Everywhere.NONE or (self.copies and self.clocks == FOR_GOOD)


ADAPTIVE: Final = Technique("adaptive", "AdaPM", Intents.TIMED, OnWant.DECIDE)

# Those that are complete by their names.
FIXED: Final[Mapping[str, Technique]] = MappingProxyType(
    {
        technique.name: technique
        for technique in (
            ADAPTIVE,
            Technique("replicate-only", "AdaPM without relocation", Intents.TIMED, OnWant.REPLICATE),
            Technique("relocate-only", "AdaPM without replication", Intents.TIMED, OnWant.RELOCATE),
            Technique("immediate", "AdaPM without action timing", Intents.AT_ONCE, OnWant.DECIDE),
            Technique("static", "a classic parameter server"),
            Technique("full", "static full replication", everywhere=Everywhere.ALL),
            Technique("essp", "Petuum, eager stale synchronous parallel", copies=True),
            Technique("lapse", "Lapse, dynamic allocation", Intents.AT_ONCE, OnWant.RELOCATE),
        )
    }
)

KNOWN: Final = (
    f"one of {', '.join(FIXED)}; or ssp(s), where no copy that is read is older than s clocks, 0 to {MOST_CLOCKS:,}; or"
    " nups(n), with copies everywhere of the n keys that the tables' counts call the hottest, or nups, with those that"
    " they count more than 100 times as often as the mean"
)
"""What a technique must be: names, and what each needs."""

_CALL: Final = re.compile(r"([a-z-]+)(?:\(\s*(\d+)\s*\))?")


def named(text: str) -> Technique:
    """The technique of a name such as "adaptive" or "ssp(3)"; letters may be capitals.

    Raises:
        ValueError: there is none, or its number is missing or does not fit.
    """
    match = _CALL.fullmatch(text.strip().lower())
    name, number = (match[1], match[2]) if match else ("", None)
    if name in FIXED and number is None:
        return FIXED[name]
    if name == "ssp" and number is not None and int(number) <= MOST_CLOCKS:
        return _ssp(int(number))
    if name == "nups" and (number is None or int(number) <= MOST_HOT):
        return _nups(None if number is None else int(number))
    raise ValueError(text)


def _ssp(clocks: int) -> Technique:
    return Technique(f"ssp({clocks})", "Petuum, stale synchronous parallel", copies=True, clocks=clocks)


def _nups(hot: int | None) -> Technique:
    name = "nups" if hot is None else f"nups({hot})"
    stands_for = "NuPS, several techniques side by side"
    return Technique(name, stands_for, Intents.AT_ONCE, OnWant.RELOCATE, everywhere=Everywhere.HOT, hot=hot)
