"""When ticks come, on a clock that only tests move."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

import pytest

from adapm.pulse import SLOWEST, Pulse

BUSY, QUIET, RESTING = 1, 0, None


class Timer:
    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due, self.callback, self.cancelled = due, callback, False

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """As much of an event loop as timers need."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(due, callback)
        heapq.heappush(self.timers, timer)
        return timer

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0].due <= end:
            timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                self.now = max(self.now, timer.due)
                timer.callback()
        self.now = end


class Heart:
    """A pulse, and what its ticks find next."""

    def __init__(self, rate: float = 1000) -> None:
        self.clock = Clock()
        self.finds: int | None = RESTING
        self.ticks: list[tuple[float, float]] = []
        self.pulse = Pulse(self.clock, rate, self.tick)  # type: ignore[arg-type]

    def tick(self, elapsed: float) -> int | None:
        self.ticks.append((round(self.clock.now - 100, 6), round(elapsed, 3)))
        return self.finds


def test_at_rest_there_is_no_timer() -> None:
    heart = Heart()
    heart.clock.run(10)
    assert heart.ticks == []
    assert heart.pulse.resting


def test_the_rate_is_kept_however_often_something_happens() -> None:
    heart = Heart()
    for _ in range(99):
        for _ in range(5):
            heart.pulse.quicken()
        heart.clock.run(0.0001)
    assert len(heart.ticks) == 10


def test_work_is_ticked_at_the_rate_and_bounded_by_it() -> None:
    heart = Heart(rate=500)
    heart.finds = BUSY
    heart.pulse.quicken()
    heart.clock.run(0.0099)
    assert heart.ticks == [(0.0, 1.0), (0.002, 1.0), (0.004, 1.0), (0.006, 1.0), (0.008, 1.0)]


def test_work_that_can_wait_is_ticked_when_it_is_due() -> None:
    heart = Heart()
    heart.finds = 4
    heart.pulse.quicken()
    heart.clock.run(0.0099)
    assert heart.ticks == [(0.0, 1.0), (0.004, 4.0), (0.008, 4.0)]
    heart.finds = BUSY
    heart.pulse.quicken()  # it can not wait any more
    heart.clock.run(0.0011)
    assert heart.ticks[3:] == [(0.0099, 1.9), (0.0109, 1.0)]


def test_quiet_ticks_become_seldom_and_tell_how_long_it_was() -> None:
    heart = Heart()
    heart.finds = QUIET
    heart.pulse.quicken()
    heart.clock.run(0.05)
    assert heart.ticks == [(0.0, 1.0), (0.002, 2.0), (0.006, 4.0), (0.014, 8.0), (0.03, 16.0), (0.046, 16.0)]
    assert SLOWEST == 0.016


def test_what_happens_in_between_brings_the_tick_forward() -> None:
    heart = Heart()
    heart.finds = QUIET
    heart.pulse.quicken()
    heart.clock.run(0.020)
    heart.ticks.clear()
    heart.pulse.quicken()
    heart.clock.run(0)
    assert [elapsed for _, elapsed in heart.ticks] == [6.0]
    assert not heart.pulse.resting


def test_rest_is_told_and_ended_by_what_happens() -> None:
    async def main() -> None:
        heart = Heart()
        await heart.pulse.rest()
        heart.pulse.quicken()
        waiting = asyncio.ensure_future(heart.pulse.rest())
        await asyncio.sleep(0)
        assert not waiting.done()
        heart.clock.run(1)
        await waiting

    asyncio.run(main())


@pytest.mark.parametrize("finds", [BUSY, RESTING])
def test_work_found_within_a_tick_is_ticked_next(finds: int | None) -> None:
    heart = Heart()
    heart.finds = finds
    count = 0

    def tick(elapsed: float) -> int | None:
        nonlocal count
        count += 1
        if count == 1:
            pulse.quicken()
        return RESTING

    pulse = Pulse(heart.clock, 1000, tick)  # type: ignore[arg-type]
    pulse.quicken()
    heart.clock.run(1)
    assert count == 2


def test_after_stop_nothing_ticks() -> None:
    heart = Heart()
    heart.pulse.quicken()
    heart.pulse.stop()
    heart.pulse.quicken()
    heart.clock.run(1)
    assert heart.ticks == []
