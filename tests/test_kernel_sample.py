"""Keys drawn by the kernel: streams, alias tables, distributions, distinct and local keys."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapm import Table
from adapm.kernel import check, ffi, lib
from adapm.sampling import Sampling
from adapm.segment import Segment
from chi_square import FALSE_ALARM, critical, deviation
from kernel_worker import kernel_worker
from raw_segment import ABSENT, OWNED, PENDING, SHARED, RawSegment

CELL = np.dtype([("own", "<u4"), ("other", "<u4")])
FULL = 2**32
DISTINCT, LOCAL = lib.ADAPM_DISTINCT, lib.ADAPM_LOCAL


class Source:
    """A segment with one table, and a stream."""

    def __init__(self, rows: int, sampling: Sampling, seed: int = 1) -> None:
        table = Table("rows", rows=rows, dim=1, sampling=sampling)
        self.segment = Segment.create([table], heap_bytes=4096)
        self.segment.weigh(0, table)
        self.stream = stream(seed)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.segment.close()

    def draw(self, n: int, how: int = 0, before: list[int] | None = None) -> np.ndarray:
        """n keys behind those before, which are left out of the result."""
        begin = len(before or [])
        keys = np.full(begin + n + 1, -7, np.int64)
        keys[:begin] = before or []
        memory = ffi.from_buffer("int64_t[]", keys)
        check(lib.adapm_draw(self.segment.pointer, 0, self.stream, how, memory, begin, begin + n))
        assert keys[-1] == -7
        assert keys[:begin].tolist() == (before or [])
        return keys[begin:-1]


def stream(*name: int) -> Any:
    made = ffi.new("adapm_stream *")
    lib.adapm_stream_seed(made, *name, *[0] * (4 - len(name)))
    return made


@pytest.fixture
def source() -> Iterator[Callable[..., Source]]:
    with contextlib.ExitStack() as stack:
        yield lambda *args: stack.enter_context(Source(*args))


def counts(keys: np.ndarray, rows: int) -> np.ndarray:
    return np.bincount(keys, minlength=rows)


def log_uniform(rows: int) -> np.ndarray:
    k = np.arange(rows)
    return np.log((k + 2) / (k + 1)) / math.log(rows + 1)


# ---- streams


def test_numbers_are_those_of_xoshiro256(source: Callable[..., Source]) -> None:
    """The first numbers of the state 1, 2, 3, 4, as its authors' program prints them."""
    numbers = [11520, 0, 1509978240, 1215971899390074240, 1216172134540287360, 607988272756665600]
    drawn = source(1000, Sampling())
    drawn.stream.state = [1, 2, 3, 4]
    assert drawn.draw(6).tolist() == [number * 1000 >> 64 for number in numbers]


def test_every_part_of_a_streams_name_counts() -> None:
    names = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0), (2**63, 0, 0, 0), (0, 1, 1, 0)]
    assert len({tuple(stream(*name).state) for name in names}) == len(names)
    assert list(stream(3, 1, 4, 1).state) == list(stream(3, 1, 4, 1).state)


def test_a_shuffle_is_any_permutation() -> None:
    order, seen = stream(5), np.zeros(24, np.int64)
    permutations = {permutation: i for i, permutation in enumerate(itertools.permutations(range(4)))}
    for _ in range(24_000):
        keys = np.arange(4)
        lib.adapm_shuffle(order, ffi.from_buffer("int64_t[]", keys), 4)
        seen[permutations[tuple(keys.tolist())]] += 1
    assert deviation(seen, np.full(24, 1 / 24)) < 1


# ---- the test of distributions itself


@pytest.mark.parametrize("degrees", [2, 6, 22, 98, 998, 69_998])
def test_false_alarms_are_as_rare_as_they_should_be(degrees: int) -> None:
    """An even number of degrees has a closed form, a Poisson distribution's."""
    half = critical(degrees) / 2
    alarm = math.fsum(math.exp(k * math.log(half) - half - math.lgamma(k + 1)) for k in range(degrees // 2))
    assert FALSE_ALARM / 4 < alarm < 1.01 * FALSE_ALARM


def test_a_wrong_distribution_is_turned_down(source: Callable[..., Source]) -> None:
    drawn = counts(source(100, Sampling()).draw(100_000), 100)
    skewed = 1 + 0.1 * np.sin(np.arange(100))
    assert deviation(drawn, np.full(100, 0.01)) < 1
    assert deviation(drawn, skewed / skewed.sum()) > 1
    assert deviation(drawn, log_uniform(100)) > 100
    assert deviation(drawn, np.append(0.0, np.full(99, 1 / 99))) == math.inf


# ---- distributions


@pytest.mark.parametrize("rows", [1, 2, 7, 1000, 70_000])
def test_uniform(source: Callable[..., Source], rows: int) -> None:
    drawn = counts(source(rows, Sampling()).draw(1_000_000), rows)
    assert rows == 1 or deviation(drawn, np.full(rows, 1 / rows)) < 1


@pytest.mark.parametrize("rows", [1, 2, 7, 1000, 70_000])
def test_log_uniform(source: Callable[..., Source], rows: int) -> None:
    drawn = counts(source(rows, Sampling("log-uniform")).draw(1_000_000), rows)
    assert rows == 1 or deviation(drawn, log_uniform(rows)) < 1


@pytest.mark.parametrize("rows", [2, 7, 1000, 70_000])
def test_weighted(source: Callable[..., Source], rng: np.random.Generator, rows: int) -> None:
    weights = rng.pareto(1.0, rows) * (rng.random(rows) < 0.8)
    weights[0] = 1.0
    drawn = counts(source(rows, Sampling(weights=weights)).draw(1_000_000), rows)
    assert np.count_nonzero(weights) == 1 or deviation(drawn, weights / weights.sum()) < 1


def units(source: Source) -> list[int]:
    """What the alias table gives to each row, of FULL per row: as the sum over cells."""
    raw = RawSegment(source.segment.fd)
    cells = raw.array(CELL, int(raw.shapes[0]["off_cells"]), int(raw.shapes[0]["rows"])).tolist()
    raw.close()
    found = [0] * len(cells)
    for row, (own, other) in enumerate(cells):
        found[row] += own
        found[other] += FULL - own
    return found


# Weights of all magnitudes, zeros among them, at least one above zero.
WEIGHTS = st.lists(st.just(0.0) | st.floats(0, 1e308) | st.integers(1, 5).map(float), min_size=1, max_size=60).filter(
    any
)


@given(weights=WEIGHTS)
def test_an_alias_table_has_every_weight(weights: list[float]) -> None:
    """Each row gets its share to within half a unit and what floating point loses, the heaviest the rest of the sum."""
    with Source(len(weights), Sampling(weights=weights)) as source:
        found = units(source)
    largest = max(weights)
    total, scaled = len(weights) * FULL, [weight / largest for weight in weights]
    assert sum(found) == total
    for row, (weight, got) in enumerate(zip(weights, found, strict=True)):
        share = scaled[row] / math.fsum(scaled) * total
        assert (got == 0) == (weight == 0)
        slack = len(weights) if row == weights.index(largest) else 1
        assert abs(got - share) <= slack + 1e-12 * share


# ---- distinct keys


@given(data=st.data())
def test_distinct_keys(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 50))
    weights = data.draw(st.none() | st.lists(st.floats(0, 1e9), min_size=rows, max_size=rows).filter(any))
    sampling = (
        Sampling(weights=weights) if weights else data.draw(st.sampled_from([Sampling(), Sampling("log-uniform")]))
    )
    support = [row for row in range(rows) if weights is None or weights[row] > 0]
    n = data.draw(st.integers(0, len(support)))
    before = data.draw(st.permutations(support))[: data.draw(st.integers(0, len(support) - n))]
    seed, local = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.sampled_from([0, LOCAL]))
    with Source(rows, sampling, seed) as source:
        keys = source.draw(n, DISTINCT | local, before).tolist()
    assert len({*before, *keys}) == len(before) + n
    assert set(keys) <= set(support)


def test_more_distinct_keys_than_there_are_end_with_an_error(source: Callable[..., Source]) -> None:
    few = source(5, Sampling(weights=[1, 0, 2, 0, 0]))
    keys = ffi.new("int64_t[]", 3)
    assert lib.adapm_draw(few.segment.pointer, 0, few.stream, DISTINCT, keys, 0, 3) < 0


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([4, 3, 2, 1], id="by repeated draws"),
        pytest.param([3e-7, 2e-7, 1e-7, 1], id="with the rest by arrivals"),
    ],
)
def test_distinct_keys_are_draws_without_repetitions(source: Callable[..., Source], weights: list[float]) -> None:
    """Every order of all rows has the probability that successive draws among those left give it."""
    drawn, orders = source(4, Sampling(weights=weights)), list(itertools.permutations(range(4)))
    probabilities = np.array([successive(weights, order) for order in orders])
    seen = np.zeros(24, np.int64)
    for _ in range(20_000):
        seen[orders.index(tuple(drawn.draw(4, DISTINCT).tolist()))] += 1
    assert deviation(seen, probabilities) < 1


def successive(weights: list[float], order: tuple[int, ...]) -> float:
    probability, left = 1.0, sum(weights)
    for row in order:
        probability *= weights[row] / left
        left -= weights[row]
    return probability


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform"])
def test_all_rows_in_one_sample(source: Callable[..., Source], distribution: str) -> None:
    keys = source(100_000, Sampling(distribution)).draw(100_000, DISTINCT)
    assert np.array_equal(np.sort(keys), np.arange(100_000))
    early = keys[:50_000].mean()
    assert abs(early - 50_000) < 1_000 if distribution == "uniform" else early < 40_000  # frequent rows come first


# ---- local keys


def test_local_keys_are_of_rows_that_are_here_as_long_as_they_are_found() -> None:
    rows, here = 1000, {OWNED: 3, SHARED: 5}
    with kernel_worker([Table("rows", rows=rows, dim=1)]) as (segment, raw, _):
        for state, every in {PENDING: 7, ABSENT: 11, **here}.items():
            for row in range(0, rows, every):
                raw.tables[0].place(row, state, row)
        local = np.array([raw.tables[0].word(row) & OWNED == OWNED for row in range(rows)])
        keys = np.empty(300_000, np.int64)
        check(lib.adapm_draw(segment.pointer, 0, stream(3), LOCAL, ffi.from_buffer("int64_t[]", keys), 0, len(keys)))
        assert 0 < local.sum() < rows
        assert deviation(counts(keys, rows), local / local.sum()) < 1


def test_too_few_local_rows_are_no_endless_search() -> None:
    """One row in a hundred thousand is here: the search gives up, and the rest comes from everywhere, as it should."""
    rows = 100_000
    with kernel_worker([Table("rows", rows=rows, dim=1)]) as (segment, raw, _):
        raw.tables[0].place(77, OWNED, 0)
        keys = np.empty(rows, np.int64)
        check(lib.adapm_draw(segment.pointer, 0, stream(4), LOCAL, ffi.from_buffer("int64_t[]", keys), 0, rows))
        found = int(np.argmin(keys == 77))
        assert 8 < found < 80  # 32 tries per key, one in so many is local: 32 on average
        assert deviation(counts(keys[found:] // 100, rows // 100), np.full(rows // 100, 100 / rows)) < 1


def test_distinct_local_keys_come_first() -> None:
    rows = 50
    with kernel_worker([Table("rows", rows=rows, dim=1)]) as (segment, raw, _):
        for row in range(0, rows, 10):
            raw.tables[0].place(row, OWNED, row)
        keys = np.empty(rows, np.int64)
        how = LOCAL | DISTINCT
        check(lib.adapm_draw(segment.pointer, 0, stream(4), how, ffi.from_buffer("int64_t[]", keys), 0, rows))
        assert sorted(keys[:5].tolist()) == [0, 10, 20, 30, 40]
        assert np.array_equal(np.sort(keys), np.arange(rows))
