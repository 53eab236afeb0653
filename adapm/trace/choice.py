"""Which keys are looked at: hot, warm and cold ones, and those that are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from adapm.errors import ConfigError, UsageError
from adapm.selection import Selection
from adapm.trace.files import Trace
from adapm.trace.lives import Life


@dataclass(frozen=True)
class Chosen:
    """A key to be looked at, and why: "hot", "warm", "cold" or "" for one that was named."""

    life: Life
    why: str


def _hot(lives: Sequence[Life], count: int) -> list[Life]:
    return sorted(lives, key=lambda life: -life.heat)[:count]


def _cold(lives: Sequence[Life], count: int) -> list[Life]:
    return sorted(lives, key=lambda life: (life.heat, -len(life.moves)))[:count]


def _warm(lives: Sequence[Life], count: int) -> list[Life]:
    """Halfway between the hottest and the coldest, in orders of magnitude."""
    heats = [life.heat for life in lives]
    middle = math.sqrt(max(heats) * min(heats))
    return sorted(lives, key=lambda life: abs(math.log(life.heat / middle)))[:count]


TEMPERATURES: Final[dict[str, Callable[[Sequence[Life], int], list[Life]]]] = {
    "hot": _hot,
    "warm": _warm,
    "cold": _cold,
}


def choose(trace: Trace, lives: Sequence[Life], words: str, count: int) -> list[Chosen]:
    """The keys to look at, each once, as they were asked for.

    Args:
        trace: where they come from.
        lives: of all keys.
        words: hot, warm, cold, and keys as `trace_keys` names them, separated by commas.
        count: of each of hot, warm and cold.

    Raises:
        UsageError: a word is none of those, or nothing is known of a key that is named.
    """
    by_ref = {life.table << 32 | life.key: life for life in lives}
    accessed = [life for life in lives if life.heat]
    chosen: dict[int, Chosen] = {}
    for word in (word.strip() for word in words.split(",")):
        if word in TEMPERATURES:
            found = [Chosen(life, word) for life in TEMPERATURES[word](accessed, count)] if accessed else []
        else:
            found = [Chosen(_known(trace, by_ref, ref), "") for ref in _named(trace, word)]
        for each in found:
            chosen.setdefault(each.life.table << 32 | each.life.key, each)
    return list(chosen.values())


def _named(trace: Trace, word: str) -> list[int]:
    try:
        selection = Selection.parse(word)
    except ValueError:
        selection = Selection()
    if not selection.named:
        raise UsageError(f"there are no keys {word!r}: name hot, warm, cold, TABLE:KEY or TABLE:FIRST-LAST")
    try:
        return selection.refs(dict(trace.tables))
    except ConfigError as error:
        raise UsageError(str(error).replace("trace_keys names", "--keys names")) from error


def _known(trace: Trace, lives: dict[int, Life], ref: int) -> Life:
    if ref not in lives:
        name = f"key {ref & 0xFFFFFFFF} of table {trace.tables[ref >> 32][0]!r}"
        raise UsageError(
            f"the trace has nothing of {name}: it was not traced (see trace_keys), or nothing happened to it"
        )
    return lives[ref]
