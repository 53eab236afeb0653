"""The action timer's arithmetic: quantiles of Poisson distributions, against sums of their probabilities."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from adapm.kernel import lib

P = 0.9999


def quantile(rate: float, p: float) -> int:
    """The smallest k with P(X <= k) >= p, added up from 0 without rounding worth mentioning."""
    terms: list[float] = []
    k = -1
    while math.fsum(terms) < p:
        k += 1
        terms.append(math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)))
    return k


@pytest.mark.parametrize(
    ("used", "window"), [(0.5, 6), (1, 9), (2, 13), (5, 24), (10, 39), (50, 139), (100, 255), (300, 693)]
)
def test_windows_of_the_paper(used: float, window: int) -> None:
    assert lib.adapm_timer_window(used, P) == window


def test_windows_are_quantiles_of_a_poisson_distribution(rng: np.random.Generator) -> None:
    for used in 10 ** rng.uniform(-3, 2.3, size=150):
        for p in (0.5, 0.9, P, 0.999999):
            assert lib.adapm_timer_window(used, p) == quantile(2 * used, p), (used, p)


def test_windows_grow_with_the_rate_and_with_the_quantile() -> None:
    rates = [0.01 * 1.3**i for i in range(90)]  # up to 1.4e8, over the border at 5e5
    assert all(np.diff([lib.adapm_timer_window(rate, P) for rate in rates]) >= 0)
    assert all(np.diff([lib.adapm_timer_window(7, p) for p in (0.01, 0.5, 0.9, 0.99, P)]) > 0)


def test_a_worker_that_stands_still_has_no_window() -> None:
    assert lib.adapm_timer_window(0, P) == 0


@pytest.mark.parametrize("used", [500_001, 1e7, 3e9])
@pytest.mark.parametrize("p", [0.5, 0.99, P])
def test_large_windows_are_those_of_a_normal_distribution(used: float, p: float) -> None:
    assert lib.adapm_timer_window(used, p) == math.ceil(NormalDist(2 * used, math.sqrt(2 * used)).inv_cdf(p))


def test_the_two_ways_agree_where_they_meet() -> None:
    below, above = (lib.adapm_timer_window(used, P) for used in (500_000, 500_000.5))
    assert 0 <= above - below <= 10  # the normal distribution lacks the skew, which is worth two or three clocks
