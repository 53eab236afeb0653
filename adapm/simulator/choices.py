"""Everything random in a simulation: one seed, and a stream of its own for each purpose.

A stream's draws depend on the seed and its name alone, so what one part draws moves no other part.  Only arithmetic
that is the same everywhere is used: no logarithms, no hashes of objects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A stream of choices."""

    def __init__(self, seed: int, name: str) -> None:
        self._seed = seed
        self._name = name
        self.random = random.Random(f"{seed}/{name}").random  # noqa: S311  # nobody is to be surprised
        """The next number in [0, 1)."""

    def stream(self, name: str) -> Choices:
        """The stream of this name below this one; always the same, whatever has been drawn here."""
        return Choices(self._seed, f"{self._name}/{name}")

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.random() < probability

    def between(self, low: float, high: float) -> float:
        """Anything from low to high."""
        return low + (high - low) * self.random()

    def scale(self, low: float, doublings: int) -> float:
        """From low to low * 2**doublings; every order of magnitude is as likely."""
        return low * float(1 << self.below(doublings)) * (1.0 + self.random())
