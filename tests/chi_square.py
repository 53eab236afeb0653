"""Whether counts can come from a distribution."""

from __future__ import annotations

import math
import statistics

import numpy as np

FALSE_ALARM = 1e-6  # the probability that counts that do come from it are turned down
_LEAST_EXPECTED = 5.0  # what is expected to be counted less often than that is counted together


def deviation(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's statistic over the value that it exceeds with probability FALSE_ALARM; above 1: turn it down.

    What has probability 0 must not be counted at all: then this is infinite.  The critical value is Wilson and
    Hilferty's, which errs on the side of fewer false alarms (test_kernel_sample.py).
    """
    if counts[probabilities == 0].any():
        return math.inf
    expected = counts.sum() * probabilities
    rare = expected < _LEAST_EXPECTED
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(((observed - expected) ** 2 / expected).sum()) / critical(len(observed) - 1)


def critical(degrees: int) -> float:
    """The value that a chi-square variable exceeds with probability FALSE_ALARM."""
    z = statistics.NormalDist().inv_cdf(1 - FALSE_ALARM)
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3
