"""`adapm trace`: what is read from events that are known, and what people get to see of it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner, Result

from adapm.cli import main
from adapm.errors import DataError, UsageError
from adapm.kernel import lib
from adapm.trace import choice, files, summary, timing
from adapm.trace.lives import Life, Span, common, length, merged, replay
from adapm.tracing import EVENT, FORMAT, Kind, Reason

MS = 1_000_000
ROWS = 100
HOME = int(lib.adapm_home_of(0, 7, 2))
OTHER = 1 - HOME

# (milliseconds, kind, and what else is not 0)
Told = tuple[float, Kind, dict[str, int]]


def header(node: int, **changes: Any) -> dict[str, Any]:
    return {
        "adapm_trace": FORMAT,
        "node": node,
        "nodes": 2,
        "workers": 1,
        "technique": "adaptive",
        "tables": [{"name": "rows", "rows": ROWS}],
        "trace_keys": "100%",
        "host": "here",
        "boot": "a",
        "monotonic_ns": 1_000 * MS,
        "unix_ns": 5_000 * MS,
    } | changes


def write(folder: Path, node: int, told: Sequence[Told] = (), rest: bytes = b"", **changes: Any) -> Path:
    """A trace of row 7, unless told otherwise."""
    events = np.zeros(len(told), EVENT)
    for event, (at, kind, more) in zip(events, told, strict=True):
        for name, value in {"time": round(1_000 * MS + at * MS), "kind": kind, "row": 7, **more}.items():
            event[name] = value
    file = folder / f"node-{node}.trace"
    file.write_bytes(json.dumps(header(node, **changes)).encode() + b"\n" + events.tobytes() + rest)
    return file


def one_life(folder: Path) -> Life:
    (life,) = replay(files.read([folder]))
    return life


def signal(at: float, start: int, end: int) -> Told:
    return at, Kind.SIGNAL, {"clock": start, "end": end}


def clock(at: float, now: int) -> Told:
    return at, Kind.CLOCK, {"clock": now}


# ---- lives


def test_a_life_is_replayed_node_by_node(tmp_path: Path) -> None:
    write(
        tmp_path, HOME, [(0, Kind.WANTED, {}), (10, Kind.GIVEN, {"peer": OTHER}), (30, Kind.REPLICA, {"peer": OTHER})]
    )
    write(
        tmp_path,
        OTHER,
        [(11, Kind.OWNED, {"peer": HOME}), (20, Kind.WANTED, {}), (40, Kind.UNWANTED, {}), (50, Kind.SERVED, {})],
    )
    life = one_life(tmp_path)
    assert (life.table, life.key, life.home) == (0, 7, HOME)
    home, other = life.at[HOME], life.at[OTHER]
    assert home.owned == [Span(0, 0.010)]
    assert home.replica == [Span(0.030, 0.050)]
    assert home.wanted == [Span(0, 0.050)]
    assert other.owned == [Span(0.011, 0.050)]
    assert other.wanted == [Span(0.020, 0.040)]
    assert home.local == [Span(0, 0.010), Span(0.030, 0.050)]
    assert [(move.at, move.giver, move.taker) for move in life.moves] == [(0.011, HOME, OTHER)]
    assert len(life.served) == 1


def test_a_replica_that_becomes_the_main_copy_was_here_all_the_time(tmp_path: Path) -> None:
    write(tmp_path, HOME, [(0, Kind.SERVED, {}), (20, Kind.GIVEN, {"peer": OTHER})])
    write(tmp_path, OTHER, [(10, Kind.REPLICA, {"peer": HOME}), (21, Kind.OWNED, {"peer": HOME}), (30, Kind.PULL, {})])
    here = one_life(tmp_path).at[OTHER]
    assert (here.replica, here.owned) == ([Span(0.010, 0.021)], [Span(0.021, 0.030)])
    assert here.local == [Span(0.010, 0.030)]


def test_spans() -> None:
    assert merged([Span(3, 4), Span(1, 2), Span(2, 2.5), Span(1.5, 1.7)]) == [Span(1, 2.5), Span(3, 4)]
    one, other = [Span(0, 2), Span(3, 6)], [Span(1, 4), Span(5, 7)]
    assert list(common(one, other)) == [Span(1, 2), Span(3, 4), Span(5, 6)]
    assert length(one) == 5


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([], Reason.NO_INTENT),
        ([signal(1, 3, 6)], Reason.LATE),  # known, and not acted on
        ([signal(9, 3, 6)], Reason.LATE),  # the node heard of it after the access
        ([signal(1, 5, 6)], Reason.NO_INTENT),  # for a later clock
        ([signal(1, 3, 4)], Reason.NO_INTENT),  # over
        ([signal(1, 3, 9), signal(2, 4, 5)], Reason.NO_INTENT),
    ],
)
def test_why_an_access_was_not_local(tmp_path: Path, told: list[Told], reason: Reason) -> None:
    at = 4 if reason is Reason.LATE or len(told) < 2 else 9
    access = (8.0, Kind.PULL, {"clock": at, "reason": Reason.NO_INTENT})
    write(tmp_path, 0, sorted([*told, access]))
    write(tmp_path, 1, [signal(1, 0, 100)])  # another node's intent excuses nothing
    assert one_life(tmp_path).accesses["reason"].tolist() == [reason]


def test_what_the_node_knows_better_stays(tmp_path: Path) -> None:
    accesses = [(1, Kind.PUSH, {"reason": Reason.NO_ROOM}), (2, Kind.SET, {"reason": Reason.LATE})]
    write(tmp_path, 0, [signal(0, 0, 9), *accesses])
    assert one_life(tmp_path).accesses["reason"].tolist() == [Reason.NO_ROOM, Reason.LATE]


# ---- timing


def test_how_intents_were_timed(tmp_path: Path) -> None:
    told = [
        clock(0, 1),
        signal(0, 11, 21),  # the row comes 2 ms before clock 11
        (8, Kind.OWNED, {"peer": HOME}),
        (15, Kind.GIVEN, {"peer": HOME}),
        clock(20, 21),
        signal(20, 23, 27),  # the row comes 3 ms after clock 23
        (25, Kind.OWNED, {"peer": HOME}),
        (26, Kind.GIVEN, {"peer": HOME}),
        clock(26, 27),
        signal(27, 27, 28),  # its clock is past already, and the row does not come
        clock(40, 31),
        signal(40, 99, 100),  # nobody knows how it ends
    ]
    write(tmp_path, OTHER, told)
    trace = files.read([tmp_path])
    times = timing.timing(trace, replay(trace))
    assert times.node.tolist() == [OTHER] * 3
    np.testing.assert_allclose(times.lead, [0.010, 0.002, -0.001], atol=1e-9)
    assert times.clocks.tolist() == [10, 2, 0]
    np.testing.assert_allclose(times.late, [-0.002, 0.003, np.inf], atol=1e-9)
    (found,) = summary.summarise(trace, replay(trace))
    assert found.late == pytest.approx(2 / 3)
    assert found.never == pytest.approx(1 / 3)
    assert found.lateness == pytest.approx((0.003, 0.003))


def test_a_row_that_was_there_long_before_counts_from_the_signal(tmp_path: Path) -> None:
    write(tmp_path, HOME, [clock(0, 1), signal(4, 11, 12), clock(10, 11), (11, Kind.SERVED, {})])
    trace = files.read([tmp_path])
    np.testing.assert_allclose(timing.timing(trace, replay(trace)).late, [-0.006], atol=1e-9)


def test_a_summary_counts(tmp_path: Path) -> None:
    reasons = (Reason.NO_INTENT, Reason.NO_INTENT, Reason.NO_ROOM)
    pulls = [(30 + i, Kind.PULL, {"reason": reason, "clock": 90}) for i, reason in enumerate(reasons)]
    write(tmp_path, OTHER, [(0, Kind.WANTED, {}), (10, Kind.REPLICA, {}), (20, Kind.UNWANTED, {}), *pulls])
    trace = files.read([tmp_path])
    (found,) = summary.summarise(trace, replay(trace))
    assert (found.table, found.keys, found.relocations, found.replicas, found.signals) == ("rows", 1, 0, 1, 0)
    assert found.remote == {"no intent": 2, "late intent": 0, "no room": 1}
    assert (found.wanted, found.local) == pytest.approx((0.020, 0.5))
    assert (found.lead, found.late, found.lateness) == (None, None, None)


# ---- files


def test_nodes_of_several_hosts_are_put_on_one_time_axis(tmp_path: Path) -> None:
    write(tmp_path, 0, [(0, Kind.WANTED, {}), (10, Kind.UNWANTED, {})])
    later = {"boot": "b", "monotonic_ns": 500 * MS, "unix_ns": 4_400 * MS}  # its clock is 100 ms ahead of node 0's
    write(tmp_path, 1, [(-95, Kind.WANTED, {})], **later)
    trace = files.read([tmp_path])
    assert trace.hosts == 2
    assert [(int(e["node"]), round(float(e["at"]), 9)) for e in trace.events] == [(1, 0.0), (0, 0.195), (0, 0.205)]


def test_what_was_lost_and_what_is_missing_is_known(tmp_path: Path) -> None:
    lost = [(1, Kind.LOST, {"clock": 5, "row": 0}), (2, Kind.LOST, {"clock": 2, "row": 0})]
    write(tmp_path, 1, [(0, Kind.WANTED, {}), *lost], rest=b"half an event")
    trace = files.read([tmp_path])
    assert (trace.lost, trace.missing, len(trace.events)) == ({1: 7}, (0,), 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no trace: those are written by runs with --trace DIR"),
        (b"\x00\xff" * 500, "it is no trace"),
        (b'{"a": 1}\n', "it is no trace"),
        (b"[1]\n", "it is no trace"),
        (json.dumps(header(0, adapm_trace=99)).encode(), "it has format 99, this adapm reads format 1"),
        (json.dumps(header(0, nodes="2")).encode(), "its first line is damaged: 'nodes' is missing or no int"),
        (json.dumps(header(0, tables=[{}])).encode(), "its first line is damaged: {} is no table"),
        (json.dumps(header(2)).encode(), "its first line is damaged: node 2 of 2"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "node-0.trace"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.read([file])
    assert str(caught.value).startswith(f"{file}: {message}")


@pytest.mark.parametrize("wrong", [{"kind": 99}, {"kind": 0}, {"table": 1}, {"row": ROWS}])
def test_events_that_cannot_be_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    write(tmp_path, 0, [(0, Kind.WANTED, {}), (1, Kind.WANTED, wrong)])
    with pytest.raises(DataError, match="it is damaged: its event 1 is none that adapm writes"):
        files.read([tmp_path])


def test_traces_of_several_runs_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 0)
    older = write(tmp_path, 1, nodes=3)
    with pytest.raises(DataError, match=r"it is of another run than .*node-0\.trace: remove what is older") as caught:
        files.read([tmp_path])
    assert caught.value.file == str(older)
    older.unlink()
    with pytest.raises(UsageError, match=r"there are several traces of a node, of nodes \[0, 0\]"):
        files.read([tmp_path, tmp_path])


# ---- which keys


def with_heats(folder: Path, heats: Sequence[int]) -> files.Trace:
    """Row i has so many intents."""
    told = [(i, Kind.SIGNAL, {"row": row, "end": 1}) for row, heat in enumerate(heats) for i in range(heat)]
    write(folder, 0, [*told, (0, Kind.SERVED, {"row": len(heats)})])
    return files.read([folder])


def test_hot_warm_and_cold_keys_are_found_and_named_ones_kept(tmp_path: Path) -> None:
    trace = with_heats(tmp_path, [3, 100, 1, 9, 50])
    lives = replay(trace)
    chosen = choice.choose(trace, lives, "hot,warm, cold,rows:3-5", 1)
    assert [(each.life.key, each.why) for each in chosen] == [(1, "hot"), (3, "warm"), (2, "cold"), (4, ""), (5, "")]
    assert [each.life.key for each in choice.choose(trace, lives, "hot", 9)] == [1, 4, 3, 0, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hott", "there are no keys 'hott': name hot, warm, cold, TABLE:KEY or TABLE:FIRST-LAST"),
        ("10", "there are no keys '10': name hot"),
        ("row:1", "--keys names table 'row', which there is not; did you mean 'rows'?"),
        ("rows:100", "--keys names key 100 of table 'rows', whose last key is 99"),
        ("rows:50", "the trace has nothing of key 50 of table 'rows': it was not traced"),
    ],
)
def test_keys_that_nobody_knows_are_refused(tmp_path: Path, words: str, message: str) -> None:
    trace = with_heats(tmp_path, [1, 2])
    with pytest.raises(UsageError) as caught:
        choice.choose(trace, replay(trace), words, 1)
    assert str(caught.value).startswith(message)


# ---- what people see


def call(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, ["trace", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two nodes, and something of everything."""
    write(
        tmp_path,
        OTHER,
        [
            clock(0, 1),
            signal(0, 3, 9),
            (1, Kind.WANTED, {}),
            (2, Kind.PULL, {"clock": 2, "reason": Reason.LATE, "peer": OTHER}),
            (3, Kind.OWNED, {"peer": HOME}),
            clock(9, 9),
            (9, Kind.UNWANTED, {}),
            (11, Kind.PUSH, {"clock": 10, "reason": Reason.NO_INTENT, "row": 8, "peer": HOME}),
        ],
    )
    write(tmp_path, HOME, [(2.5, Kind.GIVEN, {"peer": OTHER}), (12, Kind.SERVED, {"row": 8, "peer": OTHER})])
    return tmp_path


def test_the_tables(folder: Path) -> None:
    shown = call(folder)
    assert shown.exit_code == 0, shown.output
    for expected in ("What happened to traced keys in 0.0 s on 2 nodes", "not local: late intent", f"{HOME} {OTHER}"):
        assert expected in shown.output
    assert "missing" not in shown.output
    (folder / f"node-{HOME}.trace").unlink()
    assert f"the traces of nodes [{HOME}] are missing" in call(folder).output


def test_json(folder: Path) -> None:
    tree = json.loads(call(folder, "--json", "--keys", "rows:7").output)
    (table,) = tree["tables"]
    assert (table["keys"], table["relocations"], table["signals"]) == (2, 1, 1)
    assert table["remote"] == {"no intent": 1, "late intent": 1, "no room": 0}
    (key,) = tree["keys"]
    assert (key["key"], key["home"], key["intents"]) == (7, HOME, 1)
    assert key["moves"] == [{"at": pytest.approx(0.003), "giver": HOME, "taker": OTHER}]
    assert key["nodes"][OTHER]["owned"] == [pytest.approx([0.003, 0.012])]


def test_csv(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(call(folder, "--csv", "--keys", "rows:7,rows:8").output)))
    events = ["signal", "wanted", "pull", "given", "owned", "unwanted", "push", "served"]
    assert [row["event"] for row in rows] == events
    by_event = {row["event"]: row for row in rows}
    assert (by_event["signal"]["clock"], by_event["signal"]["end"], by_event["signal"]["peer"]) == ("3", "9", "")
    assert (by_event["pull"]["reason"], by_event["push"]["reason"]) == ("late intent", "no intent")
    assert (by_event["served"]["node"], by_event["served"]["peer"]) == (str(HOME), str(OTHER))
    assert by_event["wanted"]["clock"] == ""


def test_a_run_of_processes_is_traced(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "examples" / "zipf.py"
    folder = tmp_path / "new" / "traces"
    options = ("--nodes", "2", "--workers", "1", "--trace", str(folder), "--trace-keys", "100%")
    command = [sys.executable, "-m", "adapm", "run", *options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    tree = json.loads(call(folder, "--json", "--keys", "rows:0", "--count", "1").output)
    assert tree["lost"] == {"0": 0, "1": 0}
    (rows,) = tree["tables"]
    assert rows["keys"] > 1_000
    assert rows["relocations"] > 500
    assert rows["replicas"] > 50
    assert rows["remote"]["no intent"] > 0  # the loop pulls keys that it has not signalled
    assert rows["remote"]["no room"] == 0
    assert rows["local"] > 0.9
    (hottest,) = tree["keys"]
    assert hottest["intents"] > 400
    assert hottest["nodes"][hottest["home"]]["owned"][0][0] == 0


def test_notes_of_what_makes_it_doubtful(tmp_path: Path) -> None:
    write(tmp_path, 0, [(1, Kind.LOST, {"clock": 5, "row": 0})])
    write(tmp_path, 1, boot="b")
    shown = call(tmp_path)
    assert shown.exit_code == 0, shown.output
    for note in ("nothing happened to the traced keys", "node 0 lost 5 events", "the nodes ran on 2 hosts"):
        assert note in shown.output


@pytest.mark.parametrize("words", [("--out", "x.txt"), ("--out", "nowhere/x.svg"), ("--keys", "hut")])
def test_what_cannot_be_done_is_said(folder: Path, words: tuple[str, str]) -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
        shown = call(folder, *words)
    assert shown.exit_code == 1
    assert shown.output.startswith("Error: ")
    assert "Traceback" not in shown.output


def test_a_picture_needs_matplotlib(folder: Path) -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
        assert "pip install 'adapm[plots]'" in call(folder, "--out", folder / "x.svg").output
    assert not (folder / "x.svg").exists()


@pytest.mark.parametrize("picture", ["lives", "locality", "intents"])
def test_pictures_are_drawn_and_the_same_each_time(folder: Path, picture: str) -> None:
    pytest.importorskip("matplotlib")
    first, second = folder / "first.svg", folder / "second.svg"
    for file in (first, second):
        assert call(folder, "--picture", picture, "--out", file).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    text = {"lives": "rows:7 (", "locality": "late intent: 1", "intents": "0.00 % of 1 late"}[picture]
    assert text in first.read_text()


def test_a_page_has_everything_in_one_file(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    assert call(folder, "--out", folder / "all.html").exit_code == 0
    page = (folder / "all.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "rows:7" in page
    assert "http" not in page


def test_pictures_of_nothing_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write(tmp_path, 0)
    assert call(tmp_path, "--out", tmp_path / "all.html").exit_code == 0
