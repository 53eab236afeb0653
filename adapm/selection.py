"""Which keys are traced: some of each table by their hash, and those that are named.

As the setting `trace_keys` says it:

"256"                           about 256 keys of each table
"1%"                            a hundredth of each table
"100, words:0-31, entities:7"   about 100 of each table, these 32 words and this entity
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from adapm.errors import ConfigError, nearest

MOST_NAMED: Final = 100_000  # keys
_WHOLE: Final = 1 << 32  # hashes are below
_SAMPLE: Final = re.compile(r"(\d{1,12})|(\d+(?:\.\d+)?)\s*%", re.ASCII)
_NAMED: Final = re.compile(r"(.+):(\d{1,12})(?:-(\d{1,12}))?", re.ASCII)


@dataclass(frozen=True)
class Selection:
    """See above.

    Attributes:
        keys: sampled of each table, about.
        share: sampled of each table, from 0 to 1; what of the two is more counts.
        named: (table, first, last) of keys that are traced whatever their hash.
    """

    keys: int = 0
    share: float = 0.0
    named: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Reads what the setting `trace_keys` says.

        Raises:
            ValueError: it says something else, or names too many keys.
        """
        keys, share, named = 0, 0.0, []
        for item in (item.strip() for item in text.split(",")):
            if sample := _SAMPLE.fullmatch(item):
                keys, share = int(sample[1] or keys), float(sample[2] or 100 * share) / 100
            elif name := _NAMED.fullmatch(item):
                named.append((name[1].strip(), int(name[2]), int(name[3] or name[2])))
            else:
                raise ValueError(text)
        if share > 1 or any(first > last for _, first, last in named):
            raise ValueError(text)
        if sum(last - first + 1 for _, first, last in named) > MOST_NAMED:
            raise ValueError(text)
        return cls(keys, share, tuple(named))

    def below(self, rows: int) -> int:
        """The bound that the 32-bit hashes of traced keys stay below, in a table of so many rows."""
        return round(_WHOLE * min(1.0, max(self.share, self.keys / rows)))

    def refs(self, rows: Mapping[str, int]) -> list[int]:
        """The keys that are named, each as index of its table << 32 | key.

        Args:
            rows: of each table, in the order that numbers them.

        Raises:
            ConfigError: there is no such table, or it has no such key.
        """
        index = {name: place for place, name in enumerate(rows)}
        refs = []
        for name, first, last in self.named:
            if name not in rows:
                raise ConfigError(f"trace_keys names table {name!r}, which there is not{nearest(name, rows)}")
            if last >= rows[name]:
                raise ConfigError(f"trace_keys names key {last} of table {name!r}, whose last key is {rows[name] - 1}")
            refs += [index[name] << 32 | key for key in range(first, last + 1)]
        return refs
