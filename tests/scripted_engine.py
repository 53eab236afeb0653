"""A lane that does as it is told, for transports that drive one."""

from __future__ import annotations

from collections import deque
from typing import Any

from cffi import FFI

from adapm.transport import Engine

ffi = FFI()


class Scripted:
    """See above.

    Attributes:
        script: of each call with a frame: how many bytes it handles at most, or an error; all of them once it is empty.
        received: peer, frame and offset of each call.
        whole: the frames that it has handled to their end.
        outgoing: peer and frame of what it has to send.
        freed: how many frames that it has sent are not needed any more.
        handled, refused: what the transport has told the node.
    """

    def __init__(self) -> None:
        self.script: deque[int] = deque()
        self.received: list[tuple[int, bytes, int]] = []
        self.whole: list[bytes] = []
        self.outgoing: deque[tuple[int, bytes]] = deque()
        self.freed = 0
        self.handled: list[bool] = []
        self.refused: list[tuple[int, int]] = []
        self._taken: dict[int, Any] = {}
        self._functions = [
            ffi.callback("int64_t(void *, uint32_t, const uint8_t *, int64_t, int64_t)", self._receive),
            ffi.callback("void *(void *, uint32_t *)", self._take),
            ffi.callback("const uint8_t *(void *)", lambda frame: self._frame(frame)),
            ffi.callback("int64_t(void *)", lambda frame: len(self._frame(frame))),
            ffi.callback("void(void *)", self._free),
        ]

    def engine(self, allowance: int) -> Engine:
        addresses = (int(ffi.cast("uintptr_t", function)) for function in self._functions)
        return Engine(
            (1, *addresses),  # type: ignore[arg-type]
            on_handled=self.handled.append,
            on_refused=lambda *refused: self.refused.append(refused),
            allowance=allowance,
        )

    def _receive(self, lane: object, peer: int, frame: object, length: int, offset: int) -> int:
        copy = bytes(ffi.buffer(frame, length))
        self.received.append((peer, copy, offset))
        handled = min(self.script.popleft(), length - offset) if self.script else length - offset
        if handled == length - offset:
            self.whole.append(copy)
        return handled

    def _take(self, lane: object, peer: Any) -> object:
        if not self.outgoing:
            return ffi.NULL
        peer[0], frame = self.outgoing.popleft()
        number = len(self._taken) + 1
        self._taken[number] = ffi.from_buffer("uint8_t[]", frame)
        return ffi.cast("void *", number)

    def _frame(self, number: object) -> Any:
        return self._taken[int(ffi.cast("uintptr_t", number))]

    def _free(self, number: object) -> None:
        assert self._taken[int(ffi.cast("uintptr_t", number))] is not None, "freed twice"
        self._taken[int(ffi.cast("uintptr_t", number))] = None
        self.freed += 1
