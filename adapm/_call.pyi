"""adapm._call, see native/call.c."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

class Caller:
    def __new__(
        cls,
        worker: int,
        pull: int,
        push: int,
        intent: int,
        yield_with: int,
        tables: Mapping[str, tuple[int, Mapping[Any, tuple[int, int]]]],
    ) -> Caller: ...
    def pull(
        self, table: object, keys: object, columns: object, out: object, /
    ) -> npt.NDArray[np.float32] | tuple[npt.NDArray[np.float32], int] | None: ...
    def push(self, table: object, keys: object, columns: object, values: object, /) -> int | None: ...
    def intent(self, table: object, keys: object, start: object, end: object, /) -> int | None: ...
    def use_scratch(self, address: int, room: int, /) -> None: ...
    def close(self) -> None: ...
