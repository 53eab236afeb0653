"""native/call.c: which calls it takes to the kernel, that it takes no others, and what it leaves of its arguments."""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapm import Table
from adapm.kernel import Caller, address, caller, ffi
from adapm.worker import BlockingWorker
from desk import Desk
from raw_segment import RawSegment

ROWS, LENGTH = 400, 5
TABLES = [Table("other", rows=4, dim=1), Table("t", rows=ROWS, columns={"value": 3, "sums": 2})]
COLUMNS = {None: (0, LENGTH), "sums": (3, 2), ("value", "sums"): (0, LENGTH)}
MANY = 2048  # keys: with so many, others may run Python meanwhile


class Bench:
    """A Caller for the only worker of two nodes."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.worker: BlockingWorker = desk.blocking_worker()
        self.local = np.flatnonzero(self.worker.is_local("t", np.arange(ROWS)))
        self.remote = np.flatnonzero(~self.worker.is_local("t", np.arange(ROWS)))
        self.scratch = ffi.new("uint32_t[]", MANY)
        self.tables: dict[Any, Any] = {"other": (0, {None: (0, 1)}), "t": (1, COLUMNS)}
        self.caller: Caller = caller(self.worker._mailbox.worker, self.tables)
        self.caller.use_scratch(address(self.scratch), MANY)

    def counted(self) -> tuple[int, int]:
        """Keys that the kernel was given: pulled, pushed."""
        statistics = self.worker.statistics()
        return statistics.pull_keys, statistics.push_keys


@pytest.fixture
def bench() -> Iterator[Bench]:
    with contextlib.closing(Desk(TABLES)) as desk:
        bench = Bench(desk)
        yield bench
        bench.caller.close()


@pytest.fixture
def greedy() -> Iterator[None]:
    """A thread keeps the interpreter until it gives it away.

    Should two wait for each other, the tests end after a minute; nothing written in Python could bring that about.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    sys.setswitchinterval(interval)


def rows_of(n: int, value: float = 1.0) -> np.ndarray:
    return np.full((n, LENGTH), value, np.float32)


# ---- what it takes


def test_local_rows_are_read_and_added_to(bench: Bench) -> None:
    keys, out = bench.local[:3], rows_of(3, -1)
    assert bench.caller.push("t", keys, None, rows_of(3, 2.0)) == 0
    assert bench.caller.pull("t", keys, None, out) is out
    assert out.tolist() == [[2.0] * LENGTH] * 3
    fresh = bench.caller.pull("t", keys, None, None)
    assert isinstance(fresh, np.ndarray) and fresh.dtype == np.float32 and fresh.tolist() == out.tolist()
    assert bench.counted() == (6, 3)


@pytest.mark.parametrize("columns", COLUMNS)
def test_columns_are_looked_up(bench: Bench, columns: Any) -> None:
    offset, length = COLUMNS[columns]
    keys = bench.local[:1]
    assert bench.caller.push("t", keys, columns, np.ones((1, length), np.float32)) == 0
    expected = [1.0 if offset <= i < offset + length else 0.0 for i in range(LENGTH)]
    assert bench.caller.pull("t", keys, None, None).tolist() == [expected]
    assert bench.caller.pull("t", keys, columns, None).tolist() == [[1.0] * length]


def test_no_keys_are_legal(bench: Bench) -> None:
    nothing = np.empty(0, np.int64)
    assert bench.caller.pull("t", nothing, None, None).shape == (0, LENGTH)
    assert bench.caller.push("t", nothing, None, rows_of(0)) == 0


def test_what_is_only_read_may_be_read_only(bench: Bench) -> None:
    keys, values = bench.local[:2].copy(), rows_of(2)
    keys.flags.writeable = values.flags.writeable = False
    assert bench.caller.push("t", keys, None, values) == 0
    assert bench.caller.pull("t", keys, None, None).tolist() == values.tolist()


def test_what_is_missed_is_told_and_the_rest_is_done(bench: Bench) -> None:
    keys = np.array([bench.local[0], bench.remote[0], bench.local[1], bench.remote[1]])
    assert bench.caller.push("t", keys, None, rows_of(4)) == 2
    assert list(bench.scratch[0:2]) == [1, 3]
    out = rows_of(4, -1)
    rows, missed = bench.caller.pull("t", keys, None, out)
    assert rows is out and missed == 2 and list(bench.scratch[0:2]) == [1, 3]
    assert out[:, 0].tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize(("end", "until"), [(None, 4), (9, 9), (2**63 - 1, 2**63 - 1)])
def test_intents_reach_the_ring(bench: Bench, end: int | None, until: int) -> None:
    keys = np.array([7, 3, 7])
    with contextlib.closing(RawSegment(bench.desk.segments[0].fd)) as raw:
        assert bench.caller.intent("t", keys, 3, end) == 3
        assert bench.caller.intent("t", keys[:0], 3, end) == 0
        assert raw.intents() == [(1, 3, until, [7, 3, 7])]


def test_more_intents_than_there_is_room_for_are_told_in_part(bench: Bench) -> None:
    keys = np.resize(bench.local, 1 << 20)
    told = bench.caller.intent("t", keys, 0, None)
    assert 0 < told < len(keys)
    assert bench.worker.statistics().intent_keys == told


def test_the_kernels_refusal_is_handed_on(bench: Bench) -> None:
    keys = np.array([bench.local[0], ROWS])
    assert bench.caller.push("t", keys, None, rows_of(2)) < 0
    _, code = bench.caller.pull("t", keys, None, None)
    assert code < 0
    assert bench.caller.intent("t", keys, 0, None) < 0
    assert bench.caller.pull("t", bench.local[:1], None, None).tolist() == [[0.0] * LENGTH]


# ---- what it leaves to others


class Name(str):
    """Not quite a str: comparing it may run anything."""

    __slots__ = ()


def key_arrays(keys: np.ndarray) -> dict[str, Any]:
    """The same two keys, but not as the kernel takes them."""
    strided = np.repeat(keys, 2)[::2]
    unaligned = np.frombuffer(b"\0" + keys.tobytes(), np.uint8)[1:].view(np.int64)
    return {
        "list": keys.tolist(),
        "int32": keys.astype(np.int32),
        "uint64": keys.astype(np.uint64),
        "float64": keys.astype(np.float64),
        "other byte order": keys.astype(">i8"),
        "subclass": keys.view(np.recarray),
        "two dimensions": keys.reshape(1, 2),
        "no dimension": keys[0],
        "strided": strided,
        "unaligned": unaligned,
        "none": None,
    }


def row_arrays() -> dict[str, Any]:
    return {
        "list": rows_of(2).tolist(),
        "float64": np.ones((2, LENGTH)),
        "int32": np.ones((2, LENGTH), np.int32),
        "other byte order": rows_of(2).astype(">f4"),
        "more rows": rows_of(3),
        "longer rows": np.ones((2, LENGTH + 1), np.float32),
        "flat": rows_of(2).ravel(),
        "three dimensions": rows_of(2)[None],
        "strided": np.ones((2, 2 * LENGTH), np.float32)[:, ::2],
        "transposed": np.ones((LENGTH, 2), np.float32).T,
    }


@pytest.mark.parametrize("name", key_arrays(np.arange(2)))
def test_other_keys_are_left(bench: Bench, name: str) -> None:
    keys = key_arrays(bench.local[:2])[name]
    assert bench.caller.pull("t", keys, None, None) is None
    assert bench.caller.push("t", keys, None, rows_of(2)) is None
    assert bench.caller.intent("t", keys, 0, None) is None
    assert bench.counted() == (0, 0)


@pytest.mark.parametrize("name", row_arrays())
def test_other_rows_are_left(bench: Bench, name: str) -> None:
    rows = row_arrays()[name]
    assert bench.caller.pull("t", bench.local[:2], None, rows) is None
    assert bench.caller.push("t", bench.local[:2], None, rows) is None
    assert bench.counted() == (0, 0)


def test_out_that_is_read_only_is_left(bench: Bench) -> None:
    out = rows_of(2)
    out.flags.writeable = False
    assert bench.caller.pull("t", bench.local[:2], None, out) is None
    assert out.tolist() == rows_of(2).tolist()
    assert bench.caller.push("t", bench.local[:2], None, None) is None  # only a pull makes room itself


@pytest.mark.parametrize("table", ["u", Name("t"), b"t", None, 1, ["t"]])
def test_other_tables_are_left(bench: Bench, table: Any) -> None:
    assert bench.caller.pull(table, bench.local[:1], None, None) is None
    assert bench.caller.push(table, bench.local[:1], None, rows_of(1)) is None
    assert bench.caller.intent(table, bench.local[:1], 0, None) is None


@pytest.mark.parametrize("columns", ["vallue", Name("sums"), ["sums"], ("sums", "value"), ([],), 1, b"sums"])
def test_other_columns_are_left(bench: Bench, columns: Any) -> None:
    assert bench.caller.pull("t", bench.local[:1], columns, None) is None
    assert bench.caller.push("t", bench.local[:1], columns, rows_of(1)) is None


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 0), (1, 0), (-1, None), (-1, 3), (2**63 - 1, None), (2**63, None), (0, 2**63), (0, 2**70), (-(2**70), 1),
        (0.0, None), (0, 1.0), (True, None), (np.int64(1), None), (0, np.int64(1)), ("0", None), (None, None),
    ],
)  # fmt: skip
def test_other_clocks_are_left(bench: Bench, start: Any, end: Any) -> None:
    assert bench.caller.intent("t", bench.local[:1], start, end) is None


@pytest.mark.parametrize(
    "entry",
    [
        None, (), (1,), [1, COLUMNS], (1, COLUMNS, 0), (1, None),
        ("1", COLUMNS), (-1, COLUMNS), (2**32, COLUMNS), (2**70, COLUMNS),
        (1, {None: None}), (1, {None: (0,)}), (1, {None: (0, -5)}), (1, {None: (0, 5.0)}),
    ],
)  # fmt: skip
def test_a_table_that_is_described_badly_is_left(bench: Bench, entry: Any) -> None:
    bench.tables["t"] = entry
    assert bench.caller.pull("t", bench.local[:1], None, None) is None
    assert bench.caller.push("t", bench.local[:1], None, rows_of(1)) is None


def test_an_intent_needs_no_scratch(bench: Bench) -> None:
    bench.caller.use_scratch(0, 0)
    assert bench.caller.intent("t", bench.local[:2], 0, None) == 2


def test_more_keys_than_there_is_scratch_for_are_left(bench: Bench) -> None:
    keys = np.resize(bench.local, MANY + 1)
    assert bench.caller.pull("t", keys, None, None) is None
    assert bench.caller.pull("t", keys[1:], None, None).shape == (MANY, LENGTH)
    bench.caller.use_scratch(address(bench.scratch), 1)
    assert bench.caller.push("t", keys[:2], None, rows_of(2)) is None
    assert bench.caller.push("t", keys[:1], None, rows_of(1)) == 0


def test_when_it_is_closed_everything_is_left(bench: Bench) -> None:
    bench.caller.close()
    bench.caller.close()
    assert bench.caller.pull("t", bench.local[:1], None, None) is None
    assert bench.caller.push("t", bench.local[:1], None, rows_of(1)) is None
    assert bench.caller.intent("t", bench.local[:1], 0, None) is None


@pytest.mark.parametrize("arguments", [(), ("t",), ("t", None, None), ("t", None, None, None, None)])
def test_the_number_of_arguments_is_four(bench: Bench, arguments: tuple[Any, ...]) -> None:
    for method in (bench.caller.pull, bench.caller.push, bench.caller.intent):
        with pytest.raises(TypeError, match=f"takes 4 arguments, got {len(arguments)}"):
            method(*arguments)


# ---- what it holds on to: nothing


def test_references_are_given_back(bench: Bench) -> None:
    keys = {"here": bench.local[:2].copy(), "elsewhere": bench.remote[:2].copy(), "nowhere": np.array([0, ROWS])}
    rows = {"usual": rows_of(2), "unusual": np.ones((2, LENGTH))}
    held: list[Any] = [*keys.values(), *rows.values(), COLUMNS, COLUMNS[None], bench.tables, bench.tables["t"]]

    def call_all() -> None:
        for these in keys.values():
            for out in (*rows.values(), None):
                bench.caller.pull("t", these, None, out)
                bench.caller.push("t", these, None, out)
                bench.caller.pull("u", these, "no such", out)
                bench.caller.intent("t", these, 0, out)
            bench.caller.intent("t", these, 0, None)

    call_all()
    before = [sys.getrefcount(one) for one in held]
    for _ in range(100):
        call_all()
    assert [sys.getrefcount(one) for one in held] == before


def test_new_rows_belong_to_who_asked(bench: Bench) -> None:
    rows = bench.caller.pull("t", bench.local[:2], None, None)
    partly, missed = bench.caller.pull("t", bench.remote[:2], None, None)
    assert missed == 2 and rows.base is None and rows.flags.writeable
    gone = [weakref.ref(rows), weakref.ref(partly)]
    del rows, partly
    assert [ref() for ref in gone] == [None, None]


def test_a_caller_that_goes_gives_everything_back(bench: Bench) -> None:
    tables, kind = sys.getrefcount(bench.tables), sys.getrefcount(Caller)
    for _ in range(10):
        another = caller(bench.worker._mailbox.worker, bench.tables)
        another.close()
        del another
    assert (sys.getrefcount(bench.tables), sys.getrefcount(Caller)) == (tables, kind)
    with pytest.raises(TypeError):
        Caller(0, 0, 0, 0, 0, ())  # type: ignore[arg-type]
    assert sys.getrefcount(Caller) == kind


# ---- threads


@pytest.mark.usefixtures("greedy")
@pytest.mark.parametrize("n", [1, MANY])
@pytest.mark.parametrize("name", ["pull", "push"])
def test_whoever_is_waited_for_can_run(bench: Bench, name: str, n: int) -> None:
    """The row is unlocked by a thread that needs the interpreter, which the waiting one holds in short calls."""
    with contextlib.closing(RawSegment(bench.desk.segments[0].fd)) as raw:
        table, row = raw.tables[1], int(bench.local[0])
        call: Callable[..., Any] = getattr(bench.caller, name)
        unlocked = table.lock(row)
        about_to_call = threading.Event()

        def unlock() -> None:
            about_to_call.wait()
            table.put_word(row, unlocked)

        other = threading.Thread(target=unlock)
        other.start()
        about_to_call.set()
        done = call("t", np.full(n, row), None, rows_of(n))
        other.join()
    assert done == 0 if name == "push" else done.shape == (n, LENGTH)
    assert bench.counted() == ((n, 0) if name == "pull" else (0, n))


# ---- the stub


def test_the_stub_names_what_there_is() -> None:
    stub = Path(__file__).resolve().parent.parent / "adapm" / "_call.pyi"
    (described,) = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef)]
    names = {node.name for node in described.body if isinstance(node, ast.FunctionDef)}
    assert names - {"__new__"} == {name for name in vars(Caller) if not name.startswith("_")}
