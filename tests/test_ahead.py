"""Intent from batches: what is signalled when, and where the clock stands, seen by a worker that only takes notes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import adapm
from adapm import Table, errors
from adapm.ahead import BATCHES, FEWEST, LEAST_SECONDS, MOST, MOST_SECONDS, _Pace
from desk import Desk


class Notes:
    """Has the three methods of a worker that `ahead` uses."""

    def __init__(self, clock: int = 0) -> None:
        self.clock = clock
        self.intents: list[tuple[str, Any, int, int]] = []  # table, keys, start, clock at the call

    def intent(self, table: str, keys: Any, start: int) -> None:
        self.intents.append((table, keys, start, self.clock))

    def advance_clock(self) -> int:
        self.clock += 1
        return self.clock


def keys(batch: int) -> dict[str, int]:
    return {"rows": batch}


def ahead(batches: Any, worker: Notes, **options: Any) -> Any:
    return adapm.ahead(batches, worker, **{"keys": keys, **options})


def test_each_batch_is_handed_out_at_the_clock_of_its_intent() -> None:
    worker = Notes(clock=7)
    seen = [(batch, worker.clock) for batch in ahead(range(50), worker, ahead=3)]
    assert seen == [(i, 7 + i) for i in range(50)]
    assert [(table, batch, start) for table, batch, start, _ in worker.intents] == [
        ("rows", i, 7 + i) for i in range(50)
    ]
    assert worker.clock == 57


def test_batches_are_signalled_the_given_number_of_batches_before() -> None:
    worker = Notes()
    for batch in ahead(range(30), worker, ahead=4):
        assert len(worker.intents) == min(30, batch + 5)
    assert all(start - clock == min(start, 4) or start >= 4 for _, _, start, clock in worker.intents)


def test_no_batch_ahead_is_possible() -> None:
    worker = Notes()
    for batch in ahead(range(5), worker, ahead=0):
        assert worker.intents[-1] == ("rows", batch, batch, max(0, batch - 1))
    assert worker.clock == 5


def test_fewer_batches_than_the_look_ahead() -> None:
    worker = Notes()
    assert list(ahead(range(3), worker)) == [0, 1, 2]
    assert worker.clock == 3
    assert list(ahead([], worker)) == []
    assert worker.clock == 3


def test_a_batch_may_touch_several_tables() -> None:
    worker = Notes()
    list(ahead([1], worker, keys=lambda b: {"heads": [b], "tails": [b + 1]}))
    assert worker.intents == [("heads", [1], 0, 0), ("tails", [2], 0, 0)]


def test_leaving_the_loop_lets_everything_signalled_expire() -> None:
    worker = Notes()
    for batch in ahead(range(100), worker, ahead=10):
        if batch == 5:
            break
    assert max(start for *_, start, _ in worker.intents) == 15
    assert worker.clock == 16


def test_an_error_in_the_loop_lets_everything_signalled_expire() -> None:
    worker = Notes()
    batches = ahead(range(100), worker, ahead=10)
    with pytest.raises(ZeroDivisionError):
        for _ in batches:
            1 / 0  # noqa: B018
    batches.close()
    assert worker.clock == 11


def test_an_error_of_the_source_comes_through() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk")

    worker = Notes()
    with pytest.raises(OSError, match="disk"):
        list(ahead(source(), worker, ahead=2))
    assert worker.clock == 5


def test_an_error_of_keys_comes_through_and_nothing_stays_wanted() -> None:
    worker = Notes()
    with pytest.raises(ZeroDivisionError):
        list(ahead(range(5), worker, ahead=2, keys=lambda b: {"rows": 1 // (3 - b)}))
    assert worker.clock == 4 > max(start for *_, start, _ in worker.intents)


def test_nothing_happens_before_the_first_batch_is_asked_for() -> None:
    worker = Notes()
    batches = ahead(range(5), worker)
    worker.clock = 40
    assert next(batches) == 0
    assert worker.intents[0] == ("rows", 0, 40, 40)
    batches.close()


def test_a_generator_that_outlives_its_worker_closes_quietly() -> None:
    class Gone(Notes):
        def advance_clock(self) -> int:
            raise errors.Closed("the worker is closed")

    batches = ahead(range(5), Gone())
    next(batches)
    batches.close()


@pytest.mark.parametrize("count", [-1, 1.5, "20"])
def test_an_impossible_look_ahead_is_refused_at_the_call(count: Any) -> None:
    with pytest.raises(errors.IntentRangeError, match=f"ahead={count!r}"):
        ahead(range(5), Notes(), ahead=count)


def test_asynchronous_sources() -> None:
    async def source(n: int) -> AsyncIterator[int]:
        for i in range(n):
            await asyncio.sleep(0)
            yield i

    async def task() -> None:
        worker = Notes()
        seen = [(batch, worker.clock) async for batch in ahead(source(40), worker, ahead=3)]
        assert seen == [(i, i) for i in range(40)]
        assert worker.clock == 40
        batches = ahead(source(40), worker, ahead=3)
        async for batch in batches:
            if batch == 2:
                break
        await batches.aclose()
        assert worker.clock == 46

    asyncio.run(task())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.0, FEWEST),
        (MOST_SECONDS / 25, 25),
        (MOST_SECONDS / BATCHES, BATCHES),
        (LEAST_SECONDS / BATCHES, BATCHES),
        (LEAST_SECONDS / 80, 80),
        (LEAST_SECONDS / 1e6, MOST),
        (0.0, MOST),
    ],
)
def test_the_look_ahead_covers_the_managers_reaction_time(seconds: float, expected: int) -> None:
    pace = _Pace(None)
    assert pace.ahead == FEWEST
    for i in range(300):
        pace.step(i * seconds)
    assert pace.ahead == pytest.approx(expected, abs=1)


def test_a_given_look_ahead_stays() -> None:
    pace = _Pace(3)
    for i in range(10):
        pace.step(i * 1e-6)
    assert pace.ahead == 3


@pytest.mark.parametrize("kind", ["worker", "blocking_worker"])
def test_rows_are_local_by_their_turn(kind: str) -> None:
    with contextlib.closing(Desk([Table("rows", rows=1_000, dim=4)])) as desk:
        worker = getattr(desk, kind)()
        batches = np.arange(1_000).reshape(50, 20)
        for batch in ahead(batches, worker, keys=lambda b: {"rows": b}, ahead=20):
            desk.turn()
            assert worker.is_local("rows", batch).all()
        assert worker.clock == 50
