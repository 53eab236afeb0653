"""What a node traces: the events of known histories, which keys, what becomes of too many, and of whole runs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from adapm import Config, Table
from adapm.engine import Event, RowState
from adapm.errors import ConfigError
from adapm.kernel import lib
from adapm.segment import Segment
from adapm.selection import Selection
from adapm.trace import files
from adapm.trace.lives import Life, replay
from adapm.tracing import EVENT, Kind, Reason, Tracer
from cluster import Cluster
from lanes import FOREVER, Make, deliver, rows_of, step, worlds
from world import World

ALL = 1 << 32
SEED = 20_260


@pytest.fixture
def make() -> Iterator[Make]:
    with worlds() as made:
        yield made


def traced(world: World, room: int = 1024) -> World:
    for lane in world.lanes:
        lane.trace(room, [ALL] * len(world.tables), [])
    return world


def take(world: World, node: int, room: int = 4096) -> np.ndarray:
    events = np.zeros(room, EVENT)
    return events[: world.lanes[node].traced(events)]


def told(world: World, node: int) -> list[tuple[Kind, int]]:
    """What happened at a node since it was last asked, but for clocks, each with the other node or 0."""
    return [(Kind(e["kind"]), int(e["peer"])) for e in take(world, node) if e["kind"] not in (Kind.CLOCK, Kind.SIGNAL)]


# ---- events of known histories


def test_the_numbers_are_the_kernels() -> None:
    for number in (*Kind, *Reason):
        assert getattr(lib, f"ADAPM_TRACE_{number.name}") == number
    assert lib.ADAPM_EVENT_TRACE == Event.TRACE


def test_a_relocation_is_told_by_giver_and_taker(make: Make) -> None:
    world = traced(make())
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 0, 1)
    world.drain()
    assert told(world, 0) == [(Kind.WANTED, 0), (Kind.OWNED, 1)]
    assert told(world, 1) == [(Kind.GIVEN, 0)]
    step(world, world.workers[0])
    assert told(world, 0) == [(Kind.UNWANTED, 0)]


def test_a_replica_comes_and_goes_and_may_become_the_main_copy(make: Make) -> None:
    world = traced(make(nodes=3))
    row = rows_of(world, 1)[0]
    for worker, clocks in zip(world.workers, (9, 6, 3), strict=True):
        world.intent(worker, 0, [row], 0, clocks)
        world.drain()
    assert told(world, 0) == [(Kind.WANTED, 0), (Kind.OWNED, 1)]
    assert told(world, 1) == [(Kind.GIVEN, 0), (Kind.WANTED, 1), (Kind.REPLICA, 0)]
    assert told(world, 2) == [(Kind.WANTED, 2), (Kind.REPLICA, 0)]
    for _ in range(10):
        step(world, world.workers[0])
    world.drain()
    assert told(world, 0) == [(Kind.UNWANTED, 0)]
    step(world, world.workers[2], 3)
    world.drain()
    assert told(world, 2) == [(Kind.UNWANTED, 2), (Kind.DROPPED, 0)]
    assert told(world, 0) == [(Kind.GIVEN, 1)]  # the last who wants it
    assert told(world, 1) == [(Kind.OWNED, 0)]


def test_an_intent_is_told_with_its_clocks_and_the_workers_clock_before_it(make: Make) -> None:
    world = traced(make())
    worker = world.workers[0]
    for _ in range(3):
        world.advance(worker)
    world.intent(worker, 0, [5, 7], 40, 2)
    world.tick(0)
    clock, *signals = take(world, 0)
    assert (clock["kind"], clock["clock"], clock["worker"]) == (Kind.CLOCK, 3, 0)
    found = [(event["kind"], event["row"], event["clock"], event["end"]) for event in signals]
    assert found[:2] == [(Kind.SIGNAL, 5, 40, 42), (Kind.SIGNAL, 7, 40, 42)]
    assert (np.diff(take(world, 0)["time"].astype(np.int64)) >= 0).all()


@pytest.mark.parametrize("access", ["pull", "push"])
def test_an_access_without_intent_is_told_by_who_asks_and_by_who_answers(make: Make, access: str) -> None:
    world = traced(make())
    row = rows_of(world, 1)[0]
    world.advance(world.workers[0])
    getattr(world, access)(world.workers[0], 0, [row])
    world.drain()
    event = take(world, 0)[0]
    assert (event["kind"], event["reason"]) == (Kind[access.upper()], Reason.NO_INTENT)
    assert (event["row"], event["peer"], event["clock"]) == (row, 1, 1)
    assert told(world, 1) == [(Kind.SERVED, 0)]
    assert world.segments[0].statistics().accesses_late == 0


def test_an_access_of_a_row_on_its_way_is_late(make: Make) -> None:
    world = traced(make())
    row = rows_of(world, 1)[0]
    world.intent(world.workers[0], 0, [row], 0, FOREVER)
    world.tick(0)
    world.pull(world.workers[0], 0, [row])
    world.serve(0)
    event = take(world, 0)[-1]
    assert (event["kind"], event["reason"], event["peer"]) == (Kind.PULL, Reason.LATE, 0)
    assert world.segments[0].statistics().accesses_late == 1
    deliver(world, 0, 1)
    deliver(world, 1, 0)
    assert not world.workers[0].open


class Heard(World):
    """A world that takes what lanes have for their nodes, and may have no room."""

    full = True

    def tick(self, node: int) -> bool:
        self.heard = [*getattr(self, "heard", ()), *((node, event) for event, *_ in self.lanes[node].events())]
        return super().tick(node)


def test_an_access_of_a_row_that_has_no_room_says_so(make: Make) -> None:
    homes = [lib.adapm_home_of(0, row, 2) for row in range(32)]
    capacity, create = [max(homes.count(0), homes.count(1))], Segment.create
    with mock.patch.object(Segment, "create", lambda *args, **kwargs: create(*args, **kwargs, capacity=capacity)):
        world = traced(make(kind=Heard))
    keys = rows_of(world, 1)
    world.intent(world.workers[0], 0, keys, 0, FOREVER)
    world.drain()
    there = [row for row in keys if world.lanes[0].inspect(0, row).state is RowState.OWNED]
    away = next(row for row in keys if row not in there)
    take(world, 0)
    world.pull(world.workers[0], 0, [away])
    world.drain()
    event = take(world, 0)[-1]
    assert (event["kind"], event["reason"], event["row"]) == (Kind.PULL, Reason.NO_ROOM, away)
    assert world.segments[0].statistics().accesses_no_room == 1


# ---- which keys, and how many events


def test_all_nodes_choose_the_same_keys_about_as_many_as_were_asked_for_of_all_homes() -> None:
    rows, wanted = 4096, 400
    with contextlib.closing(World(2, rows=(rows, rows))) as world:
        chosen = _chosen(world, rows, wanted)
    assert chosen[0] == chosen[1]
    assert chosen[0][-1] == (1, 7)
    keys = [row for table, row in chosen[0] if table == 0]
    assert len(chosen[0]) == len(keys) + 1
    assert abs(len(keys) - wanted) < 6 * wanted**0.5  # of a binomial number; the hash is fixed
    at_home = sum(lib.adapm_home_of(0, row, 2) == 0 for row in keys)
    assert abs(at_home - len(keys) / 2) < 6 * (len(keys) / 4) ** 0.5


def _chosen(world: World, rows: int, wanted: int) -> list[list[tuple[int, int]]]:
    """The keys (table, row) that each node traces: so many of table 0, and one of table 1."""
    below = [Selection.parse(str(wanted)).below(rows), 0]
    for lane in world.lanes:
        lane.trace(1 << 16, below, [1 << 32 | 7])
    chosen = []
    for node, worker in enumerate(world.workers):
        for table in (0, 1):
            world.intent(worker, table, list(range(rows)), 0, FOREVER)
        world.tick(node)
        events = take(world, node, 1 << 16)
        signals = events[events["kind"] == Kind.SIGNAL]
        chosen.append(sorted(map(tuple, signals[["table", "row"]].tolist())))
    return chosen


def test_what_finds_the_ring_full_is_counted(make: Make) -> None:
    world = traced(make(kind=Heard), room=16)
    world.intent(world.workers[0], 0, list(range(32)), 0, 1)
    world.tick(0)
    events = take(world, 0)
    assert len(events) == 17
    assert events[-1]["kind"] == Kind.LOST
    assert events[-1]["clock"] == 32 + len(rows_of(world, 1)) + len(rows_of(world, 0)) - 16  # signals and wanted rows
    assert not len(take(world, 0))
    world.drain()
    step(world, world.workers[0], 2)
    told_of = [(0, Event.TRACE), (0, Event.TRACE), (1, Event.TRACE)]
    assert sorted(world.heard) == told_of  # once, until they are taken
    assert len(take(world, 0)) == 17  # it goes on


def test_a_lane_without_a_trace_has_nothing_to_tell(make: Make) -> None:
    world = make()
    world.intent(world.workers[0], 0, [1, 2, 3], 0, 1)
    world.drain()
    assert not len(take(world, 0))
    assert Event.TRACE not in [event for event, _, _ in world.lanes[0].events()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100", Selection(100)),
        ("0", Selection(0)),
        ("2.5 %", Selection(0, 0.025)),
        (" 5, a:3 , b c:1-4", Selection(5, 0.0, (("a", 3, 3), ("b c", 1, 4)))),
    ],
)
def test_what_is_to_be_traced_is_read(text: str, expected: Selection) -> None:
    assert Selection.parse(text) == expected


@pytest.mark.parametrize("text", ["", "many", "-3", "101%", "a:", "a:4-2", "1,,2", "a:0-100000", ":3"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^trace_keys must be keys per table .*, got "):
        Config(trace_keys=text)


def test_a_selection_chooses_as_much_as_it_says() -> None:
    assert Selection.parse("25%").below(1_000) == ALL // 4
    assert Selection.parse("10,25%").below(20) == ALL // 2
    assert Selection.parse("10").below(5) == ALL
    assert Selection.parse("a:1").below(5) == 0
    assert Selection.parse("b:1-2,a:0").refs({"a": 1, "b": 3}) == [1 << 32 | 1, 1 << 32 | 2, 0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("row:1", "trace_keys names table 'row', which there is not; did you mean 'rows'?"),
        ("rows:30-64", "trace_keys names key 64 of table 'rows', whose last key is 63"),
    ],
)
def test_keys_that_do_not_exist_are_refused_before_anything_is_written(tmp_path: Path, keys: str, message: str) -> None:
    async def main() -> None:
        async with Cluster(TABLES, trace=str(tmp_path / "t"), trace_keys=keys):
            raise AssertionError("it must not start")

    with pytest.raises(ConfigError) as caught:
        asyncio.run(main())
    assert str(caught.value) == message
    assert not (tmp_path / "t").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        async with Cluster(TABLES, trace=str(tmp_path / "file")):
            raise AssertionError("it must not start")

    with pytest.raises(ConfigError, match=r"file' must be a folder to write traces into: File exists"):
        asyncio.run(main())


# ---- whole runs

TABLES = [Table("rows", rows=64, dim=2), Table("more", rows=16, dim=1)]


async def _wander(worker: object, seed: int, clocks: int = 40) -> None:
    """Accesses random rows, most of them with intent."""
    choice = random.Random(seed)
    for clock in range(clocks):
        keys = sorted(choice.sample(range(64), 8))
        if choice.random() < 0.8:
            worker.intent("rows", keys, clock + 3, clock + 3 + choice.randrange(1, 5))
        await worker.push("rows", keys, np.ones((8, 2)))
        await worker.pull("more", [choice.randrange(16)])
        worker.advance_clock()


async def _run(folder: Path, **settings: object) -> list[list[list[RowState]]]:
    """The states of all rows at the end."""
    print(f"seed {SEED}")
    async with Cluster(TABLES, nodes=3, workers=2, trace=str(folder), trace_keys="100%", **settings) as cluster:
        await cluster.run(lambda worker: _wander(worker, SEED + worker.id))
        await cluster.finish()
        await cluster.settle()
        return [[cluster.states(table.name, key) for key in range(table.rows)] for table in TABLES]


def test_replaying_a_run_gives_one_owner_at_a_time_and_at_last_the_one_there_is(tmp_path: Path) -> None:
    states = asyncio.run(_run(tmp_path))
    trace = files.read([tmp_path])
    assert trace.nodes == 3
    assert not trace.missing
    assert not any(trace.lost.values())
    lives = replay(trace)
    assert len(lives) == 64 + 16
    assert sum(len(life.moves) for life in lives) > 50
    for life in lives:
        _one_owner_at_a_time(life, trace.seconds)
        at_last = [presence.owned[-1:] and presence.owned[-1].end == trace.seconds for presence in life.at]
        assert [bool(here) for here in at_last] == [s is RowState.OWNED for s in states[life.table][life.key]]
        assert all(span.end < trace.seconds for presence in life.at for span in presence.wanted[:-1])
        assert len(life.accesses) == len(life.served) + (life.accesses["peer"] == life.accesses["node"]).sum()


def _one_owner_at_a_time(life: Life, seconds: float) -> None:
    owned = sorted((span, node) for node, presence in enumerate(life.at) for span in presence.owned)
    assert owned[0] == (owned[0][0], life.home)
    assert owned[0][0].begin == 0
    assert owned[-1][0].end in (seconds, owned[-1][0].begin)
    for (before, giver), (after, taker) in pairwise(owned):
        assert giver != taker
        assert before.end <= after.begin
    assert [node for _, node in owned[1:]] == [move.taker for move in life.moves]
    assert [node for _, node in owned[:-1]] == [move.giver for move in life.moves]


def test_without_the_setting_there_is_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        async with Cluster(TABLES, nodes=2) as cluster:
            await cluster.run(lambda worker: _wander(worker, SEED, clocks=3))
            assert [lane.traced(np.zeros(64, EVENT)) for lane in (node.lane for node in cluster.nodes)] == [0, 0]

    with mock.patch.object(Tracer, "__init__", side_effect=AssertionError):
        asyncio.run(main())
    assert not list(tmp_path.iterdir())


def test_the_file_says_whose_trace_it_is(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))
    for node in range(3):
        with (tmp_path / f"node-{node}.trace").open("rb") as file:
            header = json.loads(file.readline())
            rest = file.read()
        assert (header["node"], header["nodes"], header["workers"], header["trace_keys"]) == (node, 3, 2, "100%")
        assert header["tables"] == [{"name": table.name, "rows": table.rows} for table in TABLES]
        assert len(rest) % EVENT.itemsize == 0


def test_a_full_disk_ends_the_trace_and_not_the_run(
    tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    world = make()
    config = dataclasses.replace(Config(nodes=2), trace=str(tmp_path), trace_keys="100%")
    tracer = Tracer(config, world.tables, 0, world.lanes[0])
    world.intent(world.workers[0], 0, [1, 2, 3], 0, 1)
    world.tick(0)
    with mock.patch.object(tracer, "_file") as file:
        file.name = "node-0.trace"
        file.write.side_effect = OSError(errno.ENOSPC, "No space left on device")
        tracer.drain()
        tracer.drain()
        assert file.write.call_count == 1
    assert "node 0: the trace ends here, node-0.trace cannot be written: [Errno 28]" in caplog.text
    assert not len(take(world, 0))  # the ring is emptied all the same
    tracer.close()
