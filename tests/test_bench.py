"""The benchmarks' harness: it runs, its fields exist, its baselines do the work.  No figure is judged here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq.utils.garbage
from click.testing import CliRunner, Result

from adapm import cli
from adapm.bench import harness, machine, ping_pong, report
from adapm.bench.harness import Figure, Outcome, collect
from adapm.bench.keys import draw
from adapm.bench.local import PlainTable
from adapm.bench.sample import DISTRIBUTIONS, alias_table, dispersion, distance, numpy_draw, probabilities
from adapm.bench.traffic import TcpBytes
from adapm.errors import ConfigError, InternalError, OutOfMemory, UnknownTransport, UsageError
from adapm.kernel import ffi, lib
from adapm.tables import Table
from chi_square import deviation

TOY = ["--rows", "512", "--dim", "4"]
QUICK = ["--repeat", "1", "--seconds", "0.05", "--json"]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Neither the tester's environment nor an adapm.toml has a say."""
    for name in [name for name in os.environ if name.startswith("ADAPM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.main, ["bench", *args], prog_name="adapm")


def measured(*args: str) -> dict[str, Any]:
    result = call(*args)
    assert result.exit_code == 0, result.output
    tree: dict[str, Any] = json.loads(result.stdout)
    assert tree["repetitions"] == 1
    assert not tree["interrupted"]
    assert "repetition 1 of 1" in result.stderr
    return tree


# ---- the commands, at toy size


@pytest.mark.parametrize(("processes", "keys"), [("1", "uniform"), ("2", "zipf")])
def test_local(processes: str, keys: str) -> None:
    tree = measured("local", *TOY, "--batch", "8", "--processes", processes, "--keys", keys, *QUICK)
    for name in ("gather_ns", "pull_ns", "scatter_add_ns", "push_ns", "intent_ns", "intent_node_ns"):
        assert tree[name] > 0
    assert tree["pull_over_gather"] == pytest.approx(tree["pull_ns"] / tree["gather_ns"])
    assert tree["push_over_scatter_add"] == pytest.approx(tree["push_ns"] / tree["scatter_add_ns"])
    for name in ("pull", "pull_new", "push"):
        assert tree[f"{name}_call_us"] == pytest.approx(8 * tree[f"{name}_ns"] / 1000)
    assert ("pull_scaling" in tree) == (processes == "2")


@pytest.mark.parametrize("transport", ["tcp", "ucx+tcp", "ucx+shm", "zmq", "zmq+ipc"])
def test_remote(transport: str) -> None:
    tree = measured("remote", *TOY, "--batch", "8", "--transport", transport, *QUICK)
    for name in ("pull_p50_us", "push_p50_us", "pull_keys_per_s", "pull_socket_p50_us", "push_socket_p50_us"):
        assert tree[name] > 0
    assert tree["pull_answer_bytes"] > 8 * 4 * 4  # the rows, and more
    assert tree["push_request_bytes"] > 8 * 4 * 4


def test_remote_with_transports_side_by_side() -> None:
    tree = measured("remote", *TOY, "--batch", "8", "--transport", "tcp,zmq+ipc", *QUICK)
    for name in ("tcp", "zmq+ipc"):
        assert tree[name]["pull_over_socket"] > 0 and tree[name]["pull_over_tcp"] > 0
    assert tree["tcp"]["pull_over_tcp"] == tree["tcp"]["pull_over_socket"]


@pytest.mark.parametrize("transport", ["tcp", "ucx+tcp", "ucx+shm"])
def test_transports(transport: str) -> None:
    tree = measured("transports", transport, *QUICK)[transport]
    assert tree["small_over_tcp"] == pytest.approx(tree["small_p50_us"] / tree["small_tcp_p50_us"])
    for name in ("small_p50_us", "large_p50_us", "large_over_tcp", "mb_per_s", "cpu_us"):
        assert tree[name] > 0
    assert tree["idle_share"] >= 0


@pytest.mark.parametrize("transport", ["tcp"])
def test_transports_with_a_key_beside_those_without(transport: str) -> None:
    tree = measured("transports", transport, "--with-key", *QUICK)
    assert tree[transport]["mb_per_s"] > 0
    assert tree[f"{transport}, key"]["mb_per_s"] > 0


@pytest.mark.parametrize("keys", ["uniform", "zipf"])
def test_intent(keys: str) -> None:
    tree = measured(
        "intent", *TOY, "--batch", "8", "--ahead", "3", "--nodes", "2", "--keys", keys, "--warm-up", "0.02", *QUICK
    )
    for variant in ("single", "static", "adaptive"):
        assert tree[variant]["keys_per_s_per_worker"] > 0
        assert tree[variant]["cpu_us_per_access"] > 0
        assert 0 <= tree[variant]["local_fraction"] <= 1
        assert {"bytes_per_access", "rounds_per_s"} <= set(tree[variant])
    assert tree["single"]["local_fraction"] == 1
    assert tree["static"]["bytes_per_access"] > 0
    assert tree["static"]["rounds_per_s"] == 0
    assert tree["ratios"]["keys_per_s_per_worker_adaptive_over_static"] > 0


@pytest.mark.parametrize(("nodes", "keys"), [("1", "uniform"), ("2", "weighted")])
def test_sample(nodes: str, keys: str) -> None:
    tree = measured(
        *("sample", "--rows", "100", "--dim", "4", "--batch", "200", "--ahead", "3", "--warm-up", "0.02"),
        *("--nodes", nodes, "--keys", keys, *QUICK),
    )
    for technique in ("naive", "preloc", "pool", "local", "numpy"):
        assert tree[technique]["keys_per_s_per_worker"] > 0
        assert 0 <= tree[technique]["local_fraction"] <= 1
        assert 0 < tree[technique]["distance"] <= tree[technique]["distance_of_one_worker"] < 1
    assert tree["local"]["local_fraction"] == 1
    assert (tree["naive"]["local_fraction"] == 1) == (nodes == "1")
    assert tree["naive"]["dispersion"] == pytest.approx(1, abs=0.8)
    assert tree["pool"]["dispersion"] > 2  # it uses each draw 16 times
    for name in ("uniform", "log_uniform", "weighted"):
        assert tree["draws"][f"{name}_over_numpy"] == pytest.approx(
            tree["draws"][f"{name}_ns"] / tree["draws"][f"{name}_numpy_ns"]
        )


@pytest.mark.parametrize("keys", DISTRIBUTIONS)
def test_numpy_draws_by_the_same_distributions(keys: str, rng: np.random.Generator) -> None:
    drawn = np.bincount(numpy_draw(keys, 300, rng)(300_000), minlength=300)
    assert deviation(drawn, probabilities(keys, 300)) < 1


@pytest.mark.parametrize("shares", [[1.0], [1.0, 1.0], [1.0, 3.0, 0.0], [5.0, 0.1, 0.1, 4.0, 0.2, 0.0, 9.0]])
def test_the_baselines_alias_table_has_every_weight(shares: list[float]) -> None:
    own, other = alias_table(np.array(shares))
    found = own.copy()
    np.add.at(found, other, 1 - own)
    assert found / len(shares) == pytest.approx(np.array(shares) / sum(shares))
    assert (own >= 0).all() and (own <= 1).all()


def test_distance_and_dispersion() -> None:
    wanted = np.array([0.5, 0.25, 0.25])
    assert distance(np.array([2, 1, 1]), wanted) == dispersion(np.array([2, 1, 1]), wanted) == 0
    assert distance(np.array([4, 0, 0]), wanted) == 0.5
    assert dispersion(np.array([4, 0, 0]), wanted) == pytest.approx((2**2 / 2 + 1 + 1) / 2)


def test_idle() -> None:
    tree = measured("idle", "--nodes", "2", *TOY, "--settle", "0", *QUICK)
    assert tree["cpu_fraction_per_node"] >= 0
    assert tree["bytes_per_s"] >= 0


def test_memory() -> None:
    tree = measured("memory", "--rows", "8192", "--dim", "16", "--repeat", "1", "--json")
    assert {"bytes_per_local_row", "bytes_per_global_row"} <= set(tree)
    assert tree["bytes_of_two_nodes_per_row"] >= 8  # at least its entry


def test_people_get_a_table() -> None:
    result = call("idle", "--nodes", "1", *TOY, "--settle", "0", "--repeat", "1", "--seconds", "0.01")
    assert result.exit_code == 0, result.output
    assert "share of a core" in result.stdout
    assert "median (smallest..largest) of 1" in result.stdout


# ---- bad input


@pytest.mark.parametrize("command", ["local", "remote", "intent", "sample", "idle", "memory", "transports"])
def test_nothing_to_repeat(command: str) -> None:
    result = call(command, "--repeat", "0")
    assert result.exit_code == 2
    assert "UsageError: repeat must be above 0, got 0" in result.output


@pytest.mark.parametrize("command", ["local", "remote", "intent", "sample", "idle", "memory"])
def test_a_table_that_does_not_fit(command: str) -> None:
    result = call(command, "--rows", "4000000000", "--dim", "4096")
    assert result.exit_code == 1
    assert "OutOfMemory: the tables need" in result.output


@pytest.mark.parametrize("command", ["remote", "intent", "sample", "idle", "memory"])
def test_an_unknown_transport(command: str) -> None:
    result = call(command, "--transport", "pigeons")
    assert "UnknownTransport: no transport 'pigeons' is installed; there are inproc, tcp, ucx, zmq" in result.output
    assert result.exit_code != 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["local", "--batch", "0"], "batch must be above 0"),
        (["local", "--processes", "-1"], "processes must be above 0"),
        (["local", "--seconds", "0"], "seconds must be above 0"),
        (["remote", "--in-flight", "0"], "in_flight must be above 0"),
        (["intent", "--nodes", "1"], "nodes must be at least 2"),
        (["intent", "--ahead", "1000"], "ahead must be below 1000"),
        (["sample", "--batch", "0"], "batch must be above 0"),
        (["sample", "--ahead", "0"], "ahead must be above 0"),
        (["memory", "--dim", "0"], "dim must be above 0"),
    ],
)
def test_misuse_is_named(args: list[str], message: str) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert message in result.output


def test_settings_from_outside_must_not_change_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPM_NODES", "3")
    with pytest.raises(ConfigError, match="nodes is set \\(from: environment ADAPM_NODES\\)"):
        harness.settings(workers="1")


def test_other_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPM_TICK_RATE", "500")
    assert harness.settings(nodes=2).tick_rate == 500


def test_checks() -> None:
    with pytest.raises(OutOfMemory):
        harness.check_fits(Table("t", rows=2**32 - 2, dim=2**20), copies=1)
    with pytest.raises(UnknownTransport):
        harness.settings(transport="pigeons")


# ---- repetitions


class Steps:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def step(self, what: str) -> None:
        self.seen.append(what)


def test_variants_take_turns() -> None:
    order: list[str] = []
    variants = {name: lambda name=name: order.append(name) or {"x": float(len(order))} for name in "ab"}
    steps = Steps()
    outcome = collect(variants, 3, steps, ())
    assert order == list("ababab")
    assert outcome.variants["a"]["x"].samples == [1, 3, 5]
    assert outcome.ratio("x", "b", "a").samples == [2, 4 / 3, 6 / 5]
    assert outcome.repetitions == 3
    assert steps.seen[:2] == ["repetition 1 of 3: a", "repetition 1 of 3: b"]


def test_interrupted_repetitions_keep_what_is_there() -> None:
    samples = iter([1.0, 2.0])

    def measure() -> dict[str, float]:
        for sample in samples:
            return {"x": sample}
        raise KeyboardInterrupt

    outcome = collect({"": measure}, 5, Steps(), ())
    assert outcome.interrupted
    assert outcome.variants[""]["x"].samples == [1, 2]
    assert json.loads(report.as_json(outcome, {}, {}))["interrupted"] is True


def test_ctrl_c_prints_partial_results_and_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run", interrupt)
    monkeypatch.setattr("adapm.bench.idle.run", interrupt)
    result = call("idle", *TOY)
    assert result.exit_code == 130
    assert "interrupted: these are partial results" in result.output


def test_an_interrupted_variant_leaves_the_others_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> dict[str, float]:
        raise KeyboardInterrupt

    variants = {"single": lambda: {"local_fraction": 1.0}, "static": interrupt, "adaptive": interrupt}
    monkeypatch.setattr("adapm.bench.intent.variants", lambda _: variants)
    people, program = call("intent", *TOY), call("intent", *TOY, "--json")
    assert people.exit_code == program.exit_code == 130
    assert "local" in people.stdout
    assert json.loads(program.stdout)["single"] == {"local_fraction": 1.0}
    assert json.loads(program.stdout)["repetitions"] == 0


def test_noise_is_said() -> None:
    samples = iter([1.0, 1.1, 1.5])
    outcome = collect({"v": lambda: {"x": next(samples), "y": 1.0}}, 3, Steps(), ("x", "y"))
    assert "v: x varied by 45% between repetitions" in outcome.warnings
    assert not any("y varied" in warning for warning in outcome.warnings)


def test_nothing_is_measured_without_repetitions() -> None:
    with pytest.raises(UsageError, match="repeat must be above 0"):
        collect({}, 0, Steps(), ())


# ---- figures for people and programs


def test_json_has_medians_spreads_and_ratios() -> None:
    outcome = Outcome({"a": {"x": Figure([1, 2, 9])}, "b": {"x": Figure([2, 4, 0])}})
    tree = json.loads(report.as_json(outcome, {"rows": 5}, {"x_a_over_b": outcome.ratio("x", "a", "b")}))
    assert tree["a"] == {"x": 2}
    assert tree["spread"]["a"] == {"x": [1, 9]}
    assert tree["settings"] == {"rows": 5}
    assert "x_a_over_b" in tree["ratios"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567, "1,234,567"), (123.4, "123"), (12.34, "12.3"), (0.01234, "0.0123"), (float("nan"), "-")],
)
def test_numbers(value: float, shown: str) -> None:
    assert report.number(value) == shown


# ---- baselines do the work


@pytest.mark.parametrize("dim", [1, 7, 16, 64, 100, 128, 300])
@pytest.mark.parametrize("ahead", [0, 16, 5000])
def test_plain_gather_and_scatter_add(dim: int, ahead: int, rng: np.random.Generator) -> None:
    rows = rng.integers(-9, 9, (1000, dim)).astype(np.float32)
    slots = rng.integers(1000, size=777)
    values = rng.integers(-9, 9, (777, dim)).astype(np.float32)
    out, expected = np.empty((777, dim), np.float32), rows.copy()
    np.add.at(expected, slots, values)
    keys = ffi.from_buffer("int64_t[]", slots)
    lib.adapm_bench_gather(ffi.from_buffer("float[]", rows), dim, keys, 777, ahead, ffi.from_buffer("float[]", out))
    assert np.array_equal(out, rows[slots])
    lib.adapm_bench_scatter_add(
        ffi.from_buffer("float[]", rows), dim, keys, 777, ahead, ffi.from_buffer("float[]", values)
    )
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("huge", [True, False])
def test_plain_table_checks_itself(huge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PlainTable(100, 8, huge=huge)
    plain.check(np.array([3, 1, 3, 99]))
    assert plain.values[3, 0] == 3 + 2

    class Lazy:
        def __getattr__(self, _: str) -> Any:
            return lambda *_: None

    monkeypatch.setattr("adapm.bench.local.lib", Lazy())
    with pytest.raises(InternalError, match="does not do its work"):
        plain.check(np.array([3, 1, 3, 99]))


@pytest.mark.parametrize("kind", ["zmq", "zmq+ipc", "tcp"])
@pytest.mark.parametrize(("request_bytes", "answer_bytes"), [(8, 1), (48, 3_000_000), (200_000, 16)])
def test_ping_pong(
    kind: str, request_bytes: int, answer_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ping_pong.server(kind, machine.cores()[:1], request_bytes) as address:
        side = ping_pong.connect(kind, address)
        try:
            ping = ping_pong.Ping(side, request_bytes, answer_bytes)
            assert [ping(), ping()] == [answer_bytes, answer_bytes]
        finally:
            side.close()
            zmq.utils.garbage.gc.stop()  # a thread that pyzmq starts for zero-copy messages and keeps
    assert not list(tmp_path.iterdir())


def test_the_answering_process_does_not_outlive_a_killed_asker() -> None:
    code = (
        "import os, signal\n"
        "from adapm.bench import ping_pong\n"
        "if __name__ == '__main__':\n"
        "    with ping_pong.server('zmq', [min(os.sched_getaffinity(0))], 8) as address:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # Whoever still lives holds the pipe open; the call returns when all have closed it.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("transport", "kind"), [("zmq", "zmq"), ("zmq+ipc", "zmq+ipc"), ("tcp", "tcp"), ("ucx", "tcp")]
)
def test_baseline_of_a_transport(transport: str, kind: str) -> None:
    assert ping_pong.kind_for(transport) == kind


# ---- keys, machine, traffic


def test_uniform_batches_are_distinct(rng: np.random.Generator) -> None:
    keys = draw("uniform", 50, 40, 20, rng)
    assert all(len(np.unique(batch)) == 40 for batch in keys)
    assert keys.min() >= 0 and keys.max() < 50
    assert draw("uniform", 5, 40, 2, rng).shape == (2, 40)  # more than there are


def test_zipf_follows_its_law(rng: np.random.Generator) -> None:
    keys = draw("zipf", 1000, 1000, 200, rng)
    counts = np.sort(np.bincount(keys.ravel(), minlength=1000))[::-1]
    harmonic = (1 / np.arange(1, 1001)).sum()
    assert counts[0] == pytest.approx(200_000 / harmonic, rel=0.05)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)


def test_draw_from_given_ids(rng: np.random.Generator) -> None:
    ids = np.array([5, 50, 500])
    assert set(draw("uniform", 3, 3, 4, rng, ids).ravel()) == set(ids)


def test_cores_are_dealt_out() -> None:
    assert [machine.share_of(i, 2, [0, 1, 2, 3, 4]) for i in range(2)] == [[0, 1], [2, 3]]
    assert [machine.share_of(i, 3, [4, 6]) for i in range(3)] == [[4], [6], [4]]


def test_cpu_time_of_a_process() -> None:
    before = machine.cpu_seconds(os.getpid())
    sum(range(200_000))
    assert machine.cpu_seconds(os.getpid()) > before


def test_tcp_bytes_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
        with left, right:
            counted = TcpBytes([os.getpid()])
            left.sendall(bytes(1234))
            right.sendall(bytes(11))
            right.recv(1234, socket.MSG_WAITALL)
            assert counted.sent() == 1245
