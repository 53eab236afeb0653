"""What grows with the number of nodes: the simulation behind docs/scaling.md, at small sizes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adapm import cli, memory
from adapm.errors import InternalError, OutOfMemory, UsageError
from adapm.simulator import plot, room, scale, scale_commands
from adapm.simulator.calibration import Calibration, calibrate
from adapm.simulator.choices import Choices
from adapm.simulator.cluster import Cluster
from adapm.simulator.costs import Costs
from adapm.simulator.loop import VirtualLoop
from adapm.simulator.runs import Options
from adapm.simulator.scale import Load, Point, simulate
from adapm.simulator.wires import Line, Wires

LOAD = Load(rows=64, batch=8, warm_up=4, clocks=8)
ROW_BYTES = 4 * LOAD.dim
COUNTS = ("accesses", "bytes", "messages", "rows_moved", "ticks", "keys", "cpu_us", "wait_us", "local", "segment")


def counts(point: Point) -> dict[str, float]:
    """What does not depend on the machine."""
    return {name: getattr(point, name) for name in COUNTS}


# ---- what is simulated


def test_one_seed_is_one_result_and_another_is_another() -> None:
    first, again = (counts(simulate(3, LOAD, Costs())) for _ in range(2))
    assert first == again
    assert counts(simulate(3, dataclasses.replace(LOAD, seed=1), Costs())) != first


@pytest.mark.parametrize("keys", scale.KEYS)
def test_work_of_a_node_stays_as_it_is(keys: str) -> None:
    for nodes in (2, 8):
        point = simulate(nodes, dataclasses.replace(LOAD, keys=keys), Costs())
        assert point.rows == 64 * nodes
        assert point.accesses == pytest.approx(nodes * LOAD.batch * LOAD.clocks, rel=0.15)
        assert point.keys == pytest.approx(1, rel=0.2), "each key is signalled once"
        assert point.local > 0.95 and point.refused == 0
        assert point.bytes > point.rows_moved * ROW_BYTES * 0.5, "of replicas' updates each is sent and then made"
        assert point.memory > point.segment


def test_a_node_alone_sends_nothing() -> None:
    point = simulate(1, LOAD, Costs())
    assert (point.bytes, point.messages, point.rows_moved, point.local) == (0, 0, 0, 1)
    assert point.ticks > 0 and point.cpu_us > 0


def test_frames_per_access_grow_when_keys_are_spread_over_more_nodes() -> None:
    few, many = (simulate(nodes, LOAD, Costs()) for nodes in (2, 8))
    assert many.messages > 2 * few.messages
    thick = dataclasses.replace(LOAD, batch=128, rows=1024)
    assert simulate(8, thick, Costs()).messages < many.messages / 2, "and shrink when each of them gets more"


def test_a_fixed_table_stays_as_it_is() -> None:
    load = dataclasses.replace(LOAD, rows=100, fixed=True)
    assert [simulate(nodes, load, Costs()).rows for nodes in (2, 3)] == [100, 100]


def test_processor_time_is_counts_times_costs() -> None:
    prices = Costs(tick=1.0, frame=10.0, row=100.0, key=1000.0)
    point = simulate(2, LOAD, prices)
    expected = point.ticks + 10 * point.messages + 100 * point.rows_moved + 1000 * point.keys
    assert point.cpu_us == pytest.approx(expected)
    assert prices.of(1, 2, 3, 4) == 4321


def test_a_wrong_sum_is_said() -> None:
    with (
        mock.patch.object(Cluster, "main_copy", return_value=-1.0),
        pytest.raises(InternalError, match=r"row \d+ ends as -1, \d+ was pushed"),
    ):
        simulate(2, LOAD, Costs())


def test_nothing_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    simulate(2, LOAD, Costs())
    assert len(os.listdir("/proc/self/fd")) == before
    assert "/memfd:adapm" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"keys": "prime"}, r"keys cannot be 'prime': there are uniform, zipf"),
        ({"rows": 0}, r"rows must be above 0, got 0"),
        ({"batch": -1}, r"batch must be above 0, got -1"),
        ({"think": float("nan")}, r"think must be above 0, got nan"),
        ({"bandwidth": float("inf")}, r"bandwidth must be above 0, got inf"),
        ({"latency": -1e-6}, r"latency must be 0 or more, got -1e-06"),
        ({"clocks": 1}, r"clocks must be at least 2, got 1"),
        ({"ahead": 10_000}, r"10000 batches of 8 keys ahead are too many"),
    ],
)
def test_what_cannot_be_simulated_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        dataclasses.replace(LOAD, **given)


def test_no_cost_is_negative() -> None:
    with pytest.raises(UsageError, match=r"the cost of a frame must be 0 or more microseconds, got -1"):
        Costs(frame=-1)


# ---- room


def short_of_memory(amount: int) -> object:
    return mock.patch.object(memory, "available", return_value=memory.Available(amount, "this test"))


def test_more_nodes_than_memory_allows_are_refused_before_anything_is_allocated() -> None:
    needs = r"1,024 nodes with 65,536 rows need [\d,]{13,} bytes, but 104,857,600 are free \(this test\)"
    with (
        short_of_memory(100 << 20),
        mock.patch.object(os, "memfd_create", side_effect=AssertionError),
        pytest.raises(OutOfMemory, match=needs),
    ):
        simulate(1024, LOAD, Costs())


def test_what_is_needed_is_at_least_what_is_taken() -> None:
    with mock.patch.object(room, "require_memory") as require:
        point = simulate(8, LOAD, Costs())
    assert require.call_args.args[0] >= 8 * point.memory


def test_more_nodes_than_descriptors_allow_are_refused() -> None:
    with (
        mock.patch.object(resource, "getrlimit", return_value=(64, 256)),
        pytest.raises(UsageError, match=r"32 nodes need \d+ descriptors, a process may have 256"),
    ):
        scale.require_room(32, LOAD)


def test_what_pairs_of_nodes_take_counts_for_the_simulator_of_faults_too() -> None:
    from adapm.simulator.many import require_room

    with short_of_memory(20 << 30), pytest.raises(OutOfMemory, match=r"2000 nodes with 2 workers each need"):
        require_room(Options(nodes=(4, 2000)), jobs=1)


def test_empty_pages_are_given_back_and_others_kept() -> None:
    fd = os.memfd_create("adapm-test")
    try:
        os.posix_fallocate(fd, 0, 8 * 4096)
        os.pwrite(fd, b"x", 3 * 4096 + 17)
        room.give_back_empty_pages(fd)
        assert os.fstat(fd).st_blocks * 512 == 4096
        assert os.pread(fd, 1, 3 * 4096 + 17) == b"x" and not any(os.pread(fd, 3 * 4096, 0))
        room.give_back_empty_pages(fd)
        assert os.fstat(fd).st_size == 8 * 4096
    finally:
        os.close(fd)


# ---- the network between them


def test_frames_arrive_in_order_after_line_and_latency() -> None:
    loop = VirtualLoop(Choices(0, "wires"))  # type: ignore[abstract]
    seen: list[tuple[float, int, int]] = []

    async def main() -> None:
        wires = Wires(loop, Line(latency=1.0, bandwidth=100.0, occupied=0.25))
        ends = [
            wires.transport(i, lambda peer, frame: seen.append((loop.time(), peer, len(frame))), print)
            for i in range(3)
        ]
        ends[0].send(2, bytes(100))  # a second on the line, at both ends
        ends[0].send(2, bytes(1))  # takes the node a quarter of a second
        ends[1].send(2, bytes(1))
        await asyncio.sleep(10)
        assert (wires.frames, wires.bytes) == (3, 102)
        wires.cut = True
        ends[1].send(2, bytes(1))
        assert wires.frames == 3

    loop.run(main())
    assert [(peer, size) for _, peer, size in seen] == [(0, 100), (0, 1), (1, 1)]
    assert np.allclose([at for at, _, _ in seen], [3.0, 3.25, 3.5])


# ---- costs


def test_costs_are_measured_from_what_nodes_did() -> None:
    said: list[str] = []
    found = calibrate(said.append, repeat=1)
    assert said == ["costs, repetition 1 of 1"]
    assert 0 < found.transport < found.costs.frame
    assert min(dataclasses.astuple(found.costs)) >= 0
    assert found.worst < 1, "they explain what nodes took"


# ---- the command


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tester's environment nor an adapm.toml has a say."""
    for name in [name for name in os.environ if name.startswith("ADAPM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


QUICK = ("--batch", "8", "--warm-up", "4", "--clocks", "8")


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.main, ["scale", *QUICK, *args], prog_name="adapm")


def test_it_prints_a_table() -> None:
    result = call("--nodes", "2,8,9", "--rows", "64")
    assert result.exit_code == 0, result.output
    header, *lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert header[:3] == ["nodes", "bytes", "frames"]
    assert [line[0] for line in lines[:3]] == ["2", "8", "9"]
    assert "from 8 to 9 nodes: bytes" in result.stdout
    assert result.stderr.splitlines() == ["2 nodes", "8 nodes", "9 nodes"]


def test_json_has_everything() -> None:
    result = call("--nodes", "2,8,2", "--keys", "zipf", "--latency", "20", "--bandwidth", "25", "--json")
    tree = json.loads(result.stdout)
    assert set(tree) == {"load", "costs_us", "measured", "points", "growth", "interrupted", "version"}
    assert tree["load"]["latency"] == pytest.approx(20e-6) and tree["load"]["bandwidth"] == pytest.approx(25e9 / 8)
    assert tree["costs_us"] == dataclasses.asdict(Costs())
    assert [set(point) for point in tree["points"]] == [{field.name for field in dataclasses.fields(Point)}] * 2
    assert [point["nodes"] for point in tree["points"]] == [2, 8]
    assert tree["growth"] is None and tree["measured"] is None and tree["interrupted"] is False


def test_costs_can_be_those_of_this_machine() -> None:
    found = Calibration(Costs(1.0, 2.0, 3.0, 4.0), transport=1.5, worst=0.125)
    with mock.patch.object(scale_commands, "calibrate", return_value=found):
        result = call("--nodes", "2", "--measure")
        assert "costs in us (measured here): tick 1, frame 2, row 3, key 4" in result.stdout
        assert "they explain what nodes took here within 12%" in result.stdout
        tree = json.loads(call("--nodes", "2", "--measure", "--json").stdout)
    assert tree["measured"] == {"transport_us": 1.5, "worst_deviation": 0.125}
    assert tree["costs_us"]["row"] == 3.0


def test_an_interruption_keeps_what_is_there() -> None:
    points = [simulate(2, LOAD, Costs())]
    with mock.patch.object(scale_commands, "simulate", side_effect=[*points, KeyboardInterrupt]):
        result = call("--nodes", "2,8", "--json")
    assert result.exit_code == 130
    tree = json.loads(result.stdout)
    assert tree["interrupted"] is True and len(tree["points"]) == 1


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--nodes", "2,many"), "'many' is no number of nodes: it must be from 1 to 4,000"),
        (("--nodes", "0"), "'0' is no number of nodes"),
        (("--nodes", "4001"), "'4001' is no number of nodes"),
        (("--nodes", ""), "'' is no number of nodes"),
        (("--keys", "prime"), "'prime' is not one of 'uniform', 'zipf'"),
        (("--rows", "0"), "UsageError: rows must be above 0, got 0"),
        (("--bandwidth", "0"), "UsageError: bandwidth must be above 0, got 0"),
        (("--plot", "picture.txt"), "'picture.txt' does not say what kind of picture it is"),
        (("--plot", "nowhere/picture.svg"), "there is no folder 'nowhere' for picture.svg"),
    ],
)
def test_a_bad_option_is_said(args: tuple[str, ...], why: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())


def test_all_sizes_are_looked_at_before_the_first_is_run() -> None:
    with short_of_memory(1 << 30), mock.patch.object(scale_commands, "simulate", side_effect=AssertionError):
        result = call("--nodes", "2,4000")
    assert result.exit_code == 1
    assert "OutOfMemory: 4,000 nodes with 256,000 rows need" in result.stderr
    assert "but 1,073,741,824 are free" in result.stderr


def test_a_picture_needs_matplotlib() -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
        result = call("--plot", "picture.svg")
    assert result.exit_code == 2
    assert "pip install 'adapm[plots]'" in result.stderr


@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
def test_it_draws(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert call("--nodes", "2,3", "--plot", name).exit_code == 0
    first = (tmp_path / name).read_bytes()
    assert first.startswith((b"<?xml", b"\x89PNG"))


def test_the_same_points_make_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [simulate(nodes, LOAD, Costs()) for nodes in (2, 3)]
    files = tmp_path / "a.svg", tmp_path / "b.svg"
    for file in files:
        plot.draw(points, LOAD, file)
    assert files[0].read_bytes() == files[1].read_bytes()
