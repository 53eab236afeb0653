"""What the gradients of examples are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def differences(function: Callable[[], float], array: npt.NDArray[Any], step: float = 1e-5) -> npt.NDArray[Any]:
    """The central differences of function() for every float of the array, which it reads."""
    result = np.zeros_like(array)
    for where in np.ndindex(array.shape):
        kept = array[where]
        array[where] = kept + step
        above = function()
        array[where] = kept - step
        result[where] = (above - function()) / (2 * step)
        array[where] = kept
    return result
