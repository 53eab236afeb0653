"""Whole runs in the virtual world: nothing breaks, one seed is one history, and what is broken is found and told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adapm import cli, door, memory, techniques
from adapm.engine import Lane
from adapm.errors import DataError, NodeDied, NodeLost, OutOfMemory, UsageError, WorkerDied
from adapm.sampler import Sampler
from adapm.simulator import faults, runs, workloads
from adapm.simulator.actor import Actor
from adapm.simulator.choices import Choices
from adapm.simulator.frames import Type, items
from adapm.simulator.invariants import Violation
from adapm.simulator.loop import VirtualLoop
from adapm.simulator.many import Summary, read_seeds, require_room, run_many
from adapm.simulator.network import DelayedPipe
from adapm.simulator.runs import Options, Outcome, run_seed
from adapm.simulator.world import WAYS_TO_DIE, Shape, World
from adapm.tables import Table

SEEDS = 300
SMALL = Options(nodes=(3, 3), workers=(1, 1), until=0.02)


def calm(workload: str, **given: Any) -> Options:
    return Options(workloads=(workload,), faults=(), **{"nodes": (3, 3), "workers": (2, 2), "until": 0.02, **given})


# ---- many seeds


def test_hundreds_of_seeds_with_everything_that_can_happen_hold() -> None:
    summary = Summary()
    for outcome in run_many(range(SEEDS), Options(techniques=runs.ALL), jobs=2):
        summary.add(outcome)
        assert outcome.violation is None, f"seed {outcome.seed}: {outcome.violation}\n" + "\n".join(outcome.trace)
        assert sum(outcome.faults.values()) >= faults.LEAST
    assert summary.seeds == SEEDS
    assert set(summary.faults) == set(faults.FAULTS)  # every kind has struck
    assert set(summary.fatal) == {name for name, fault in faults.FAULTS.items() if fault.fatal}
    assert max(summary.staleness_rounds) == 1


@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_each_workload_runs_calmly(workload: str) -> None:
    outcome = run_seed(1, calm(workload))
    assert outcome.violation is None
    assert (outcome.workload, outcome.fatal, outcome.faults) == (workload, None, {})
    assert outcome.frames > 50


def test_samples_that_signal_no_intent_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sampler.__init__

    def silent(sampler: Sampler, *args: Any) -> None:
        made(sampler, *args)
        sampler.announces = False

    monkeypatch.setattr(Sampler, "__init__", silent)
    assert "is wanted at node" in str(run_seed(1, calm("sampler")).violation)


@pytest.mark.parametrize("fault", faults.FAULTS)
def test_each_fault_alone_is_survived_or_ends_the_run_as_promised(fault: str) -> None:
    options = Options(nodes=(3, 4), workers=(1, 2), workloads=("mix",), faults=(fault,), until=0.03)
    struck = 0
    for seed in range(60 if fault == "memory" else 4):  # few runs are cramped
        outcome = run_seed(seed, options)
        assert outcome.violation is None, f"seed {seed}: {outcome.violation}"
        struck += outcome.faults.get(fault, 0)
    assert struck


def test_one_node_alone_has_no_network() -> None:
    outcome = run_seed(3, Options(nodes=(1, 1), workers=(3, 3), until=0.02))
    assert (outcome.violation, outcome.frames) == (None, 0)
    assert not {"stall", "jitter", "slow-link"} & set(outcome.faults)


# ---- one seed, one history


def test_a_seed_twice_is_one_history() -> None:
    first, again, other = (run_seed(seed, SMALL) for seed in (5, 5, 6))
    assert first.hash == again.hash != other.hash
    assert (first.events, first.staleness_ms) == (again.events, again.staleness_ms)


def test_neither_the_process_nor_its_hashes_of_objects_matter() -> None:
    code = "from adapm.simulator.runs import Options, run_seed\n"
    code += "print(*(run_seed(s, Options(nodes=(3, 3), workers=(1, 1), until=0.02)).hash for s in (11, 12, 13)))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split()[0:3][order]
        for hashing, order in (("0", 1), ("1", 1), ("2024", 1))
    }
    assert seen == {run_seed(12, SMALL).hash}


def test_the_number_of_the_process_does_not_matter() -> None:
    """It would be in the message that a worker has died, which takes the longer the more digits it has."""
    options = Options(nodes=(3, 3), workers=(1, 1), faults=("kill-worker",), until=0.03)

    def history(pid: int) -> str:
        with (
            mock.patch.object(door, "credentials", return_value=(pid, os.getuid())),
            mock.patch.object(door, "watched", return_value=contextlib.nullcontext()),
        ):
            outcome = run_seed(0, options)
        assert outcome.fatal == "kill-worker"
        return outcome.hash

    assert history(7) == history(4_000_000)


def test_jobs_do_not_matter() -> None:
    hashes = [[outcome.hash for outcome in run_many(range(6), SMALL, jobs)] for jobs in (1, 2)]
    assert hashes[0] == hashes[1]


# ---- what is broken is found


def broken(target: Any, method: str, instead: Callable[..., Any], options: Options, seeds: int = 5) -> Outcome:
    """The first seed that fails when a method is replaced; instead gets the method itself as well."""
    genuine = getattr(target, method)
    with mock.patch.object(target, method, lambda *args: instead(genuine, *args)):
        outcomes = [run_seed(seed, options) for seed in range(seeds)]
    return next(outcome for outcome in outcomes if outcome.violation is not None)


def test_a_frame_that_comes_twice_is_noticed() -> None:
    def twice(hand_over: Callable[..., None], pipe: DelayedPipe, frame: bytes | None) -> None:
        if frame is not None and any(item.type is Type.PUSH for item in _items(frame)):
            pipe.target._on_frame(pipe.source.node, memoryview(frame))
        hand_over(pipe, frame)

    def _items(frame: bytes) -> list[Any]:
        return list(items(frame, [6])) if frame[0] else []

    outcome = broken(DelayedPipe, "hand_over", twice, calm("counter"))
    assert "updates in column" in outcome.violation or "ProtocolError" in outcome.violation


def test_a_lost_update_is_noticed_with_its_row_and_its_trace() -> None:
    def forgetful(receive: Callable[..., int], lane: Lane, peer: int, frame: Any, offset: int = 0) -> int:
        data = bytearray(frame)
        delta = next((item for item in items(data, [6]) if item.type is Type.DELTA), None)
        if delta is not None:
            assert delta.value is not None
            at = data.index(delta.value.tobytes())
            data[at : at + delta.value.nbytes] = bytes(delta.value.nbytes)
        return receive(lane, peer, bytes(data), offset)

    outcome = broken(Lane, "receive", forgetful, calm("counter"))
    assert "add up to" in outcome.violation
    assert outcome.row == (0, 0)
    assert "DELTA" in outcome.trace[-1]
    assert all("ms" in line for line in outcome.trace)


def test_a_worker_that_waits_for_ever_is_noticed() -> None:
    def deaf(receive: Callable[..., int], lane: Lane, peer: int, frame: Any, offset: int = 0) -> int:
        if any(item.type in (Type.ANSWER, Type.ACK) for item in items(frame, [2])):
            return len(frame)
        return receive(lane, peer, frame, offset)

    outcome = broken(Lane, "receive", deaf, calm("bank"))
    assert "waits for ever" in outcome.violation or "no end" in outcome.violation


def test_a_node_that_meets_a_bug_is_noticed() -> None:
    def bad(tick: Callable[..., int], lane: Lane, elapsed: float) -> int:
        raise ZeroDivisionError

    outcome = broken(Lane, "tick", bad, calm("mix"))
    assert "InternalError" in outcome.violation


def test_descriptors_that_are_left_are_noticed() -> None:
    left: list[int] = []

    async def leaky(live: Any, run: Any) -> None:
        await live(run)
        left.append(os.open("/dev/null", os.O_RDONLY))

    outcome = broken(runs._Run, "live", leaky, SMALL, seeds=1)
    for fd in left:
        os.close(fd)
    assert "left behind" in outcome.violation


def test_an_end_other_than_the_promised_one_is_noticed() -> None:
    world = mock.Mock(lost={1}, died=set(), struck=1.0, shape=mock.Mock(workers=1), loop=mock.Mock())
    world.loop.time.return_value = 1.5
    lost, died = NodeLost("lost"), NodeDied("died")
    faults.check_ends(world, "kill-node", [lost, died, lost], [lost, None, lost])
    for workers, nodes in (
        ([lost, lost, lost], [lost] * 3),
        ([lost, died, None], [lost] * 3),
        ([lost, died, lost], [died] * 3),
    ):
        with pytest.raises(Violation, match="ended with"):
            faults.check_ends(world, "kill-node", workers, nodes)
    world.loop.time.return_value = 5.0
    with pytest.raises(Violation, match="virtual seconds"):
        faults.check_ends(world, "kill-node", [lost, died, lost], [lost, None, lost])


# ---- ends, one by one


def world_of(body: Callable[[World], Any], nodes: int = 3, workers: int = 2) -> Any:
    """Runs the body in an opened world with one table."""
    loop = VirtualLoop(Choices(0, "loop"))
    columns = {f"worker{i}": 1 for i in range(nodes * workers)}
    shape = Shape(nodes, workers, (Table("rows", rows=8, columns=columns),))

    async def main() -> Any:
        async with World(shape, loop, Choices(0, "world")) as world:
            return await body(world)

    return loop.run(main())


async def busy(actor: Actor) -> None:
    """Pushes to everything, until the run fails."""
    keys = np.arange(8)
    while True:
        await actor.push(0, keys).wait()
        await actor.think(1e-4)
        actor.advance()


@pytest.mark.parametrize("way", range(WAYS_TO_DIE))
def test_a_worker_killed_inside_a_push_ends_everyone_and_leaves_no_lock(way: int) -> None:
    async def body(world: World) -> None:
        world.loop.call_later(0.01, world.kill_worker, 3, way)
        workers = await world.run(busy)
        assert workers[3] is None
        assert all(isinstance(workers[i], WorkerDied) and workers[i].worker == 3 for i in (0, 1, 2, 4, 5))
        assert all(isinstance(error, WorkerDied) for error in await world.verdicts())
        world.watch.validate()

    world_of(body)


def test_a_killed_node_is_lost_to_the_others_and_dead_to_its_own_workers() -> None:
    async def body(world: World) -> None:
        world.loop.call_later(0.01, world.kill_node, 1, [1e-4, 0.0, 5e-3])
        workers = await world.run(busy)
        assert [type(error) for error in workers] == [NodeLost, NodeLost, NodeDied, NodeDied, NodeLost, NodeLost]
        assert [getattr(error, "node", None) for error in await world.verdicts()] == [1, None, 1]

    world_of(body)


def test_a_broken_connection_ends_all_nodes() -> None:
    async def body(world: World) -> None:
        world.loop.call_later(0.01, world.cut, 0, 2, (1e-3, 2e-3))
        workers = await world.run(busy)
        assert all(isinstance(error, NodeLost) for error in [*workers, *await world.verdicts()])

    world_of(body)


def test_pauses_of_one_owner_add_up() -> None:
    async def body(world: World) -> None:
        owner = "node", 0
        world.hold(owner, 0.01)
        world.hold(owner, 0.03)
        await asyncio.sleep(0.02)
        assert world.loop.paused(owner)
        await asyncio.sleep(0.02)
        assert not world.loop.paused(owner)

    world_of(body)


# ---- bad input


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'flood'; there are all, harmless, none, slow-link, .*cut-link"):
        faults.named(["stall", "flood"])
    with pytest.raises(UsageError, match=r"'sleep'; there are mix, chase, counter, bank, trainer"):
        workloads.named("sleep")
    assert faults.named(["stall", "all", "jitter"])[0] == "stall"
    assert sorted(faults.named(["stall", "all", "jitter"])) == sorted(faults.FAULTS)
    assert faults.named(["none"]) == ()


@pytest.mark.parametrize("text", ["1\n2 # fine\nthree\n", "1\n\n-3", "1\n1.5\n", "5\n0x10"])
def test_a_seed_file_that_does_not_parse_says_where(text: str, tmp_path: Path) -> None:
    file = tmp_path / "seeds"
    file.write_text(text)
    line = next(i for i, part in enumerate(text.splitlines(), 1) if part in ("three", "-3", "1.5", "0x10"))
    with pytest.raises(DataError, match=f"seeds, line {line}: .* is no seed") as caught:
        read_seeds(file)
    assert caught.value.line == line


def test_a_seed_file_without_seeds_or_without_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# nothing\n\n")
    with pytest.raises(DataError, match="no seed in it"):
        read_seeds(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be read"):
        read_seeds(tmp_path / "missing")
    (tmp_path / "good").write_text("3\n# and\n 17 # again\n")
    assert read_seeds(tmp_path / "good") == [3, 17]


def test_more_nodes_than_memory_allows_are_refused_before_anything_is_allocated() -> None:
    with (
        mock.patch.object(memory, "available", return_value=memory.Available(100 << 20, "this test")),
        mock.patch.object(os, "memfd_create", side_effect=AssertionError),
        pytest.raises(OutOfMemory, match=r"64 nodes with 2 workers each need .* bytes, but 104,857,600 are free"),
    ):
        next(iter(run_many([0], Options(nodes=(2, 64), workers=(1, 2)), jobs=1)))


def test_more_nodes_than_descriptors_allow_are_refused() -> None:
    with (
        mock.patch.object(resource, "getrlimit", return_value=(64, 256)),
        pytest.raises(UsageError, match=r"need .* descriptors, a process may have 256"),
    ):
        require_room(Options(nodes=(8, 8)), 1)


# ---- the command


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tester's environment nor an adapm.toml has a say."""
    for name in [name for name in os.environ if name.startswith("ADAPM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.main, ["simulate", "--jobs", "1", *args], prog_name="adapm")


QUICK = ("--nodes", "3", "--workers", "1", "--until", "0.01")


def test_it_prints_figures_and_the_hash() -> None:
    result = call(*QUICK, "--seeds", "2", "--seed", "7")
    assert result.exit_code == 0, result.output
    for word in ("seeds", "events", "frames", "faults", "hash", "Everything held."):
        assert word in result.stdout
    assert "1 of 2 seeds, 0 failed" in result.stderr


def test_seeds_take_the_techniques_by_turns() -> None:
    ran = [run_seed(seed, dataclasses.replace(SMALL, techniques=("lapse", "ssp(0)"))) for seed in (0, 1, 2)]
    assert [outcome.technique for outcome in ran] == ["lapse", "ssp(0)", "lapse"]
    assert [outcome.violation for outcome in ran] == [None] * 3
    assert runs.ALL[::2] == ("adaptive",) * len(runs.OTHERS)
    assert {name.partition("(")[0] for name in runs.OTHERS} >= set(techniques.FIXED) - {"adaptive"} | {"ssp", "nups"}


def test_an_unknown_technique_is_refused_with_those_that_there_are() -> None:
    refused = call(*QUICK, "--technique", "lapse,slow")
    assert refused.exit_code == 2
    assert "there is no technique slow: name one of adaptive, " in refused.output


def test_json_has_the_same(tmp_path: Path) -> None:
    (tmp_path / "seeds").write_text("7\n8\n")
    by_file = json.loads(call(*QUICK, "--seed-file", "seeds", "--json").stdout)
    tree = json.loads(call(*QUICK, "--seeds", "2", "--seed", "7", "--json").stdout)
    assert tree["seeds"] == 2 and tree["failed"] == []
    assert tree["hash"] == by_file["hash"]
    assert tree["events"] > tree["frames"] > 0
    assert sum(tree["faults"].values()) >= 2 * faults.LEAST
    assert set(tree["staleness"]) == {"caught_up", "p50_ms", "p99_ms", "max_ms", "max_rounds"}


def test_a_failure_is_told_with_the_command_that_repeats_it() -> None:
    def forgetful(receive: Callable[..., int], lane: Lane, peer: int, frame: Any, offset: int = 0) -> int:
        raise ZeroDivisionError

    with mock.patch.object(Lane, "receive", forgetful):
        given = (*QUICK, "--faults", "stall,jitter", "--workload", "bank")
        result = call(*given, "--seed", "4", "--seeds", "1")
        tree = json.loads(call(*given, "--seed", "4", "--seeds", "1", "--json").stdout)
    assert result.exit_code == 1
    replay = (
        "adapm simulate --seed 4 --seeds 1 --nodes 3 --workers 1 --faults stall,jitter --workload bank --until 0.01"
    )
    assert f"again: {replay}" in result.stdout
    assert "1 seeds failed" in result.stdout
    assert tree["failed"][0]["replay"] == replay
    assert tree["failed"][0]["trace"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--faults", "flood"), "no fault 'flood'"),
        (("--workload", "sleep"), "no workload 'sleep'"),
        (("--nodes", "4-"), "neither a number"),
        (("--nodes", "0"), "at least 1"),
        (("--nodes", "8-4"), "at least 1"),
        (("--nodes", "5000"), "at most 4,000"),
        (("--until", "0"), "more than 0"),
        (("--until", "inf"), "more than 0"),
        (("--seed-file", "nowhere"), "cannot be read"),
        (("--seed-file", "nowhere", "--seed", "1"), "leave out"),
    ],
)
def test_bad_options_are_refused(args: tuple[str, ...], words: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_help_names_everything_that_can_be_asked_for() -> None:
    text = call("--help").stdout
    for name in (*faults.FAULTS, *faults.GROUPS, *workloads.WORKLOADS):
        assert name in text
