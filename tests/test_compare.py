"""`adapm compare`: what is run in which order, what is made of it, and that failures and interruptions cost little."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from adapm import cli
from adapm.compare import page, plots, tables
from adapm.compare.records import FILE, Header, Records
from adapm.compare.results import Comparison, Measure, Spread, worse
from adapm.compare.running import Run, Script, run
from adapm.compare.variants import Turn, Variant, parse_link, split, turns, variants, varying
from adapm.errors import ConfigError, DataError, UnknownTransport, UsageError

# Reports what its environment and arguments make of it, without starting anything: 1 s per epoch over tcp, 2 over zmq.
FAKE = """
import json, os, sys
mode, seed = sys.argv[1], int(sys.argv[2])
zmq = os.environ.get("ADAPM_TRANSPORT") == "zmq"
with open("order.txt", "a") as file:
    file.write(f"{os.environ.get('ADAPM_TRANSPORT')} {os.environ['ADAPM_SEED']}\\n")
if mode == "crash" and zmq:
    raise ValueError("no such luck")
if mode == "hang" and zmq:
    import signal
    os.write(os.open("hanging", os.O_WRONLY), b"!")
    signal.pause()
if mode == "garbage":
    print("not for us", file=open(os.environ["ADAPM_REPORT"], "w"))
elif mode != "silent":
    seconds = [2.0 + seed if zmq else 1.0 + seed] * 3
    quality, loss = {"MRR": [0.5]}, {"loss": [3, 2, 1.5]}
    told = {"by": "script", "epoch_seconds": seconds, "quality": quality, "loss": loss, "figures": {}}
    print(json.dumps(told), file=open(os.environ["ADAPM_REPORT"], "w"))
"""

REAL = """
import numpy as np
import adapm

def work(worker):
    keys = np.arange(64)
    for _ in range(20):
        worker.intent("t", keys, start=worker.clock + 1)
        worker.advance_clock()
        worker.push("t", keys, worker.pull("t", keys))
    worker.barrier()

if __name__ == "__main__":
    adapm.run(work, [adapm.Table("t", rows=64, dim=4)])
"""

HEADER = Header("train.py", ["--data", "a b"], {"heap": "1MiB"}, "1", "2 cores of a machine", "2026-01-02")
TCP = Variant("adaptive", "tcp", "none", 2, "1")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the tester's environment nor an adapm.toml has a say; the fake script is there."""
    for name in [name for name in os.environ if name.startswith("ADAPM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake.py").write_text(FAKE)


def call(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["compare", *args], prog_name="adapm")
    assert result.exit_code == code, result.output
    return result


def variant(technique: str = "adaptive", nodes: int = 2, link: str = "none", transport: str = "tcp") -> Variant:
    alone = nodes == 1
    return Variant(technique, "-" if alone else transport, "-" if alone else link, nodes, "1")


def ran(
    which: Variant, seconds: list[float], rmse: list[float] | None = None, error: str | None = None, **figures: float
) -> list[Run]:
    """A run per seed, with this median time of an epoch and this RMSE."""
    return [
        Run(
            Turn(which, seed),
            error,
            {"epoch_s": each, "wall_s": 9.0, **figures},
            [each] * 2,
            loss={} if rmse is None else {"RMSE": [rmse[seed]], "training loss": [2.0, 1.0]},
        )
        for seed, each in enumerate(seconds)
    ]


def compared(*runs: list[Run]) -> Comparison:
    return Comparison(HEADER, [run for each in runs for run in each])


# ---- what is compared


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("adaptive", ["adaptive"]),
        ("adaptive, ssp(3),nups(10,20)", ["adaptive", "ssp(3)", "nups(10,20)"]),
        ("a,a,b", ["a", "b"]),
        ("nups((1,2),3),x", ["nups((1,2),3)", "x"]),
    ],
)
def test_lists(text: str, parts: list[str]) -> None:
    assert split(text, "technique") == parts


@pytest.mark.parametrize("text", ["", "a,,b", " ", ",a", "ssp(3", "ssp)3(", "a)"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"technique '.*'(: parentheses do not match| has an empty place)"):
        split(text, "technique")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("none", ("0", "0")),
        ("1Gbit", ("1Gbit", "0")),
        ("0.5ms", ("0", "500us")),
        ("1Gbit+0.5ms", ("1Gbit", "500us")),
        ("500us+1000Mbit", ("1Gbit", "500us")),
    ],
)
def test_links(text: str, shape: tuple[str, str]) -> None:
    assert parse_link(text) == shape


@pytest.mark.parametrize("text", ["5", "fast", "1Gbit+2Gbit", "1Gbit+", "", "none+1ms"])
def test_links_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is neither 'none' nor a rate, a time, or both"):
        parse_link(text)


def test_every_combination_is_compared_and_a_single_node_once() -> None:
    found = variants({"transport": "tcp,zmq", "link": "none,1Gbit+0.5ms", "nodes": "1,2", "workers": "1"})
    assert [each.name for each in found] == [
        "adaptive, 1x1",
        "adaptive, tcp, none, 2x1",
        "adaptive, tcp, 1Gbit+500us, 2x1",
        "adaptive, zmq, none, 2x1",
        "adaptive, zmq, 1Gbit+500us, 2x1",
    ]
    assert found[4].settings() == {
        "technique": "adaptive",
        "nodes": "2",
        "workers": "1",
        "transport": "zmq",
        "link_bandwidth": "1Gbit",
        "link_latency": "500us",
    }
    assert "transport" not in found[0].settings()


def test_what_is_not_given_is_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPM_LINK_LATENCY", "1ms")
    Path("adapm.toml").write_text('transport = "zmq"\nnodes = 3\n')
    assert [each.name for each in variants({})] == ["adaptive, zmq, 1ms, 3x2"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"technique": "magic"}, ConfigError, "technique must be .*, got 'magic'"),
        ({"transport": "pigeon"}, UnknownTransport, "no transport 'pigeon' is installed"),
        ({"transport": "inproc"}, ConfigError, "'inproc' connects nodes of one process"),
        ({"nodes": "0"}, ConfigError, "nodes must be an integer from 1"),
        ({"workers": "many"}, ConfigError, "workers must be a number of processes"),
    ],
)
def test_what_does_not_exist_is_named(given: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        variants({"nodes": "2", **given})


def test_settings_of_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPM_RENDEZVOUS", "tcp://h:1")
    with pytest.raises(ConfigError, match=r"rendezvous is set .* all nodes are to start here"):
        variants({})


def test_every_round_has_everyone_once_in_an_order_of_its_own() -> None:
    some = [variant(f"t{number}") for number in range(4)]
    rounds = [[turn.variant for turn in turns(some, 4) if turn.seed == seed] for seed in range(4)]
    assert all(sorted(each, key=some.index) == some for each in rounds)
    assert len({tuple(each) for each in rounds}) == 4
    assert len({each[0] for each in rounds}) > 1


def test_a_single_nodes_transport_makes_no_difference() -> None:
    assert varying([variant(nodes=1), variant(nodes=2)]) == ["technique", "nodes"]


# ---- a run


@pytest.fixture
def turn() -> Turn:
    return Turn(TCP, 3)


def script(*args: str, timeout: float = 60, file: str = "fake.py") -> Script:
    return Script(file, args, timeout)


def test_a_run_measures_what_the_script_reports(turn: Turn, tmp_path: Path) -> None:
    done = run(script("fine", "{seed}"), turn, tmp_path)
    assert done.error is None
    assert done.figures["epoch_s"] == 4.0
    assert done.epoch_seconds == [4.0] * 3
    assert (done.quality, done.loss) == ({"MRR": [0.5]}, {"loss": [3, 2, 1.5]})
    assert done.figures["wall_s"] > 0 < done.figures["cpu_s"]
    assert Path("order.txt").read_text() == "tcp 3\n"
    assert [file.suffix for file in tmp_path.iterdir() if "adaptive" in file.name] == [".log"]


def test_a_script_that_reports_nothing_has_a_time(turn: Turn, tmp_path: Path) -> None:
    done = run(script("silent", "0"), turn, tmp_path)
    assert done.error is None
    assert set(done.figures) == {"wall_s", "cpu_s"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise ValueError('no such luck')", r"exit code 1: ValueError: no such luck"),
        ("raise SystemExit(7)", r"exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", r"killed by signal 9 \(SIGKILL\)"),
        ("import os; open(os.environ['ADAPM_REPORT'], 'w').write('{')", r".*line 1: is no line of a report .*"),
    ],
)
def test_a_run_that_fails_says_how(text: str, error: str, turn: Turn, tmp_path: Path) -> None:
    Path("bad.py").write_text(text)
    done = run(script(file="bad.py"), turn, tmp_path)
    assert re.fullmatch(error, done.error or "")
    assert set(done.figures) == {"wall_s", "cpu_s"}


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_run_that_takes_too_long_is_ended(
    stubborn: bool, turn: Turn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapm.compare.running.GRACE", 0.2)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if stubborn else ""
    Path("slow.py").write_text(f"import signal\n{ignore}while True: signal.pause()")
    done = run(script(file="slow.py", timeout=0.5), turn, tmp_path)
    assert done.error == "took longer than 0.5 seconds"


# ---- runs in a file


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    records = Records.begin(tmp_path / "new", HEADER)
    runs = ran(TCP, [1.0, 2.0], [0.5, 0.25]) + ran(variant(nodes=1), [3.0], error="exit code 1")
    for each in runs:
        records.add(each)
    again = Records.read(tmp_path / "new")
    assert again.header == HEADER
    assert again.runs == runs
    assert [again.has(each.turn) for each in runs] == [True, True, False]


def test_a_line_that_was_being_written_is_run_again(tmp_path: Path) -> None:
    records = Records.begin(tmp_path, HEADER)
    first, second = ran(TCP, [1.0, 2.0])
    records.add(first)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"variant": {"tech')
    resumed = Records.resume(tmp_path, HEADER)
    assert resumed.runs == [first]
    resumed.add(second)
    assert Records.read(tmp_path).runs == [first, second]


@pytest.mark.parametrize(("name", "other"), [("script", "b.py"), ("args", []), ("settings", {}), ("version", "2")])
def test_a_comparison_of_something_else_does_not_go_on(tmp_path: Path, name: str, other: object) -> None:
    Records.begin(tmp_path, HEADER)
    with pytest.raises(UsageError, match=rf"is of {name} .*, not .*: choose another folder"):
        Records.resume(tmp_path, dataclasses.replace(HEADER, **{name: other}))


def test_runs_are_not_overwritten_and_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--out names the folder"):
        Records.read(tmp_path)
    Records.begin(tmp_path, HEADER)
    with pytest.raises(UsageError, match="has runs already: go on with --resume"):
        Records.begin(tmp_path, HEADER)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"variant": 3}\n')
    with pytest.raises(DataError, match=r"line 2: is no run"):
        Records.read(tmp_path)
    (tmp_path / FILE).write_text("")
    with pytest.raises(DataError, match=r"line 1: does not say what is compared"):
        Records.read(tmp_path)


# ---- what it comes to


def test_ratios_are_of_the_same_round() -> None:
    comparison = compared(ran(TCP, [1.0, 10.0, 4.0]), ran(variant("static"), [2.0, 20.0, 8.0]))
    assert comparison.time == "epoch_s"
    assert [comparison.ratio(row) for row in comparison.rows] == [Spread(1, 1, 1), Spread(2, 2, 2)]
    assert [comparison.is_best(row) for row in comparison.rows] == [True, False]
    assert comparison.rows[0].spread("epoch_s") == Spread(4.0, 1.0, 10.0)


def test_of_one_technique_transports_are_compared_and_one_alone_with_nobody() -> None:
    comparison = compared(ran(TCP, [1.0]), ran(variant(transport="zmq"), [3.0]), ran(variant(nodes=1), [0.5]))
    ratios = {row.variant.transport: comparison.ratio(row) for row in comparison.rows}
    assert ratios == {"-": None, "tcp": Spread(1, 1, 1), "zmq": Spread(3, 3, 3)}


def test_rounds_that_have_nothing_in_common_are_compared_by_medians() -> None:
    first, second = ran(TCP, [1.0, 2.0])
    comparison = compared([first], [Run(Turn(variant("static"), 1), None, second.figures)])
    assert comparison.ratio(comparison.rows[1]) == Spread(2, 2, 2)


@pytest.mark.parametrize(
    ("adaptive", "holds", "place"),
    [
        ([1.0, 1.0], True, "is first: 0.50 (0.50..0.50) times static"),
        ([2.08, 2.08], True, "is within 5% of the best: 1.04 (1.04..1.04) times static"),
        ([3.0, 2.5], False, "is behind: 1.38 (1.25..1.50) times static"),
    ],
)
def test_the_verdict(adaptive: list[float], holds: bool, place: str) -> None:
    rmse = [0.9, 0.91]
    comparison = compared(ran(TCP, adaptive, rmse), ran(variant("static"), [2.0, 2.0], rmse))
    [verdict] = comparison.verdicts
    assert verdict.holds == holds
    assert verdict.text == f"tcp, none, 2x1: adaptive {place}; equal RMSE"


def test_what_is_fast_and_wrong_does_not_count() -> None:
    comparison = compared(
        ran(TCP, [2.0], [0.9]), ran(variant("static"), [4.0], [0.91]), ran(variant("essp(1,2)"), [1.0], [0.95])
    )
    [verdict] = comparison.verdicts
    assert verdict.text.endswith(
        "adaptive is first: 0.50 (0.50..0.50) times static; worse RMSE: essp(1,2) (in 0.50 of its time)"
    )
    assert verdict.holds


def test_who_reaches_more_is_named() -> None:
    comparison = compared(ran(TCP, [2.0], [0.95]), ran(variant("static"), [4.0], [0.9]))
    [verdict] = comparison.verdicts
    assert verdict.text.endswith("times static; better RMSE: static")
    assert not verdict.holds


def test_who_diverges_is_worse() -> None:
    diverged = [dataclasses.replace(run, loss={"RMSE": [None]}) for run in ran(variant("essp"), [1.0])]
    comparison = compared(ran(TCP, [2.0], [0.95]), ran(variant("static"), [4.0], [0.95]), diverged)
    [verdict] = comparison.verdicts
    assert verdict.text.endswith("times static; worse RMSE: essp (in 0.50 of its time)")
    assert "| essp | 1.00 | 1.00 | - |" in tables.markdown(comparison)


def test_on_one_node_there_is_nothing_to_judge() -> None:
    assert compared(ran(variant(nodes=1), [2.0]), ran(variant("static", nodes=1), [1.0])).verdicts == []


def test_without_quality_or_others() -> None:
    comparison = compared(ran(TCP, [2.0]), ran(variant("static"), [4.0]), ran(variant(nodes=3), [1.0]))
    assert [verdict.text.rpartition("; ")[2] for verdict in comparison.verdicts] == ["no quality was reported"]


@pytest.mark.parametrize(
    ("one", "other", "smaller", "is_worse"),
    [
        (Spread(1.0, 1.0, 1.0), Spread(0.9, 0.9, 0.9), True, True),
        (Spread(1.0, 1.0, 1.0), Spread(0.9, 0.9, 0.9), False, False),
        (Spread(0.9, 0.9, 0.9), Spread(1.0, 1.0, 1.0), False, True),
        (Spread(0.99, 0.99, 0.99), Spread(1.0, 1.0, 1.0), False, False),  # by less than the small part
        (Spread(1.0, 0.85, 1.1), Spread(0.9, 0.8, 0.95), True, False),  # seeds differ by more
        (None, Spread(0.9, 0.8, 0.95), True, True),  # it is not finite
        (Spread(0.9, 0.8, 0.95), None, True, False),
        (None, None, True, False),
    ],
)
def test_quality_differs_by_more_than_seeds_do(
    one: Spread | None, other: Spread | None, smaller: bool, is_worse: bool
) -> None:
    assert worse(one, other, Measure("x", smaller)) == is_worse


def test_the_time_is_the_best_that_all_have() -> None:
    some = ran(TCP, [1.0])
    silent = [Run(Turn(variant("static"), 0), None, {"wall_s": 5.0, "run_s": 3.0})]
    assert compared(some, silent).time == "wall_s"
    assert compared(silent).time == "run_s"
    assert compared([]).time == "wall_s"


def test_what_is_not_finite_has_no_spread() -> None:
    assert Spread.of([1.0, None]) is None
    assert Spread.of([]) is None
    assert Spread.of([3.0, 1.0]) == Spread(2.0, 1.0, 3.0)


# ---- how it is shown


@pytest.fixture
def comparison() -> Comparison:
    """Two techniques on two nodes and one, of which one failed on one node."""
    figures = {"local_share": 0.99999, "bytes": 5e6, "update_bytes": 5e6, "wait_ms": 1.5}
    return compared(
        ran(TCP, [1.0, 1.5], [0.9, 0.91], **figures),
        ran(variant("ssp(1,2)"), [2.0, 2.5], [0.91, 0.9], **figures),
        ran(variant(nodes=1), [1.0, 1.0], [0.9, 0.9], **{**figures, "bytes": 0.0}),
        ran(variant("ssp(1,2)", nodes=1), [1.0], error="exit code 1: <no> | luck"),
    )


def test_csv_has_every_figure(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(comparison))))
    assert [(row["technique"], row["nodes"], row["runs"], row["failed"]) for row in rows] == [
        ("adaptive", "1", "2", "0"),
        ("ssp(1,2)", "1", "0", "1"),
        ("adaptive", "2", "2", "0"),
        ("ssp(1,2)", "2", "2", "0"),
    ]
    assert (rows[2]["epoch_s"], rows[2]["epoch_s_low"], rows[2]["epoch_s_high"]) == ("1.25", "1.0", "1.5")
    assert float(rows[3]["ratio_to_best"]) == pytest.approx((2 + 5 / 3) / 2)
    assert rows[1]["error"] == "exit code 1: <no> | luck"
    assert rows[1]["epoch_s"] == ""


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminals_tables_fit(comparison: Comparison, width: int) -> None:
    out = io.StringIO()
    for table in tables.terminal(comparison, width):
        Console(file=out, width=width, highlight=False).print(table)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for expected in ("1.25", "1.00..1.50", "ssp(1,2)", "failed", "99.99", "5.00", "0.905"):
        assert expected in text


def test_markdown(comparison: Comparison) -> None:
    text = tables.markdown(comparison)
    lines = text.splitlines()
    assert lines[0].startswith("| technique | nodes | epoch, s | x best | RMSE | training loss | local, % | MB |")
    assert {line.count("|") - line.count("\\|") for line in lines[:6]} == {lines[0].count("|")}
    assert "| adaptive | 2 | 1.25 (1.00..1.50) | 1.00 | 0.905 |" in lines[4]
    assert "`adapm compare train.py --technique 'adaptive,ssp(1,2)' --transport tcp --link none --nodes 1,2" in text
    assert "-- --data 'a b'`: median (smallest..largest) of 2 runs, 2 cores of a machine" in text
    assert "heap=1MiB" in text
    assert "- failed: ssp(1,2), 1x1, seed 0: exit code 1: <no> \\| luck" in lines


def test_of_nothing_there_is_nothing(tmp_path: Path) -> None:
    nothing = compared([])
    page.write(nothing, tmp_path / "page.html")
    assert tables.as_csv(nothing).startswith("technique,transport")
    assert tables.markdown(nothing).startswith("| technique |")
    assert tables.terminal(nothing, 80) == []
    assert tables.tree(nothing)["rows"] == []


def test_runs_that_failed_alike_are_named_together() -> None:
    comparison = compared(ran(TCP, [1.0] * 3, error="exit code 1"))
    assert tables.failures(comparison) == ["failed: adaptive, tcp, none, 2x1, seed 0, 1, 2: exit code 1"]
    assert tables.columns(comparison) == []
    assert tables.markdown(comparison).startswith("| technique |")


def test_the_table_is_put_into_its_place_and_only_there(comparison: Comparison, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    begin, end = tables.marks("a")
    file.write_text(f"before\n{begin}\nold\n{end}\nafter\n<!-- adapm compare: b -->\n")
    tables.insert(file, "a", tables.markdown(comparison))
    once = file.read_text()
    assert once.startswith(f"before\n{begin}\n\n| technique")
    assert once.endswith(f"\n{end}\nafter\n<!-- adapm compare: b -->\n")
    assert "old" not in once
    tables.insert(file, "a", tables.markdown(comparison))
    assert file.read_text() == once
    with pytest.raises(UsageError, match="has no place for the table: write '<!-- adapm compare: b -->'"):
        tables.insert(file, "b", "")
    with pytest.raises(UsageError, match="there is no file"):
        tables.check_marks(tmp_path / "none.md", "a")


def test_the_page_needs_nothing_else(comparison: Comparison, tmp_path: Path) -> None:
    page.write(comparison, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', re.sub(r'xlink:href="#', "", text))
    assert "@import" not in text
    assert "url(http" not in text
    assert "<no>" not in text
    assert "&lt;no&gt; | luck" in text
    assert text.count("<tr") == 1 + 4
    for mode in ("light", "dark"):
        assert mode in text


def test_the_page_has_its_pictures(comparison: Comparison) -> None:
    pytest.importorskip("matplotlib")
    captions, drawn = zip(*plots.pictures(comparison), strict=True)
    assert captions == (
        "epoch time against nodes",
        "epoch time over that of the best",
        "RMSE against time",
        "training loss against time",
        "bytes between nodes, by what they are for",
    )
    assert all(picture.startswith("<svg") and "currentColor" in picture for picture in drawn)
    ids = re.findall(r'\bid="([^"]*)"', "".join(drawn))
    assert len(ids) == len(set(ids))
    assert "adaptive, 2x1" in drawn[1]


def test_techniques_are_drawn_link_by_link() -> None:
    pytest.importorskip("matplotlib")
    slow = "1Gbit+500us"
    some = [variant(technique, link=link) for technique in ("adaptive", "static") for link in ("none", slow)]
    drawn = dict(plots.pictures(compared(*(ran(each, [1.0, 2.0], [0.5, 0.5]) for each in some))))
    assert list(drawn) == ["epoch time over that of the best", "RMSE against time", "training loss against time"]
    for caption in ("RMSE against time", "training loss against time"):
        words = re.findall(r"<text[^>]*>([^<]*)</text>", drawn[caption])
        assert {"tcp none 2x1", f"tcp {slow} 2x1"} <= set(words)
        assert (words.count("adaptive"), words.count("static")) == (1, 1)  # one legend for both


def test_without_matplotlib_the_page_says_what_is_missing(comparison: Comparison, tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None, "matplotlib.figure": None}):
        page.write(comparison, tmp_path / "page.html")
    assert "pip install &#x27;adapm[plots]&#x27;" in (tmp_path / "page.html").read_text()


# ---- the command

TWO = ("fake.py", "--nodes", "2", "--workers", "1", "--transport", "tcp,zmq", "--seeds", "2")


def test_everyone_has_a_turn_per_seed_and_the_others_go_on() -> None:
    result = call(*TWO, "--json", "--", "crash", "{seed}")
    assert Path("order.txt").read_text().splitlines() == ["tcp 0", "zmq 0", "tcp 1", "zmq 1"]
    tree = json.loads(result.stdout)
    rows = {row["transport"]: row for row in tree["rows"]}
    assert rows["tcp"]["figures"]["epoch_s"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert rows["zmq"]["errors"] == dict.fromkeys("01", "exit code 1: ValueError: no such luck")
    assert (tree["interrupted"], tree["script"], tree["args"]) == (False, "fake.py", ["crash", "{seed}"])
    assert "1/4 adaptive, tcp, none, 2x1, seed 0: 1.00 s; 0:00:0" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["fake.py", "order.txt"]


def test_a_comparison_goes_on_where_it_was() -> None:
    call(*TWO, "--out", "results", "--", "crash", "{seed}")
    assert "has runs already" in call(*TWO, "--out", "results", "--", "crash", "{seed}", code=2).output
    (Path("fake.py")).write_text(FAKE.replace("raise", "pass #"))
    Path("order.txt").unlink()
    result = call(*TWO, "--out", "results", "--resume", "--", "crash", "{seed}")
    assert Path("order.txt").read_text().splitlines() == ["zmq 0", "zmq 1"]
    assert "2.00" in result.stdout
    files = {path.name for path in Path("results").iterdir()}
    assert files == {"runs.jsonl", "comparison.html", "comparison.csv", "comparison.json", "logs"}


def test_a_table_is_made_again_without_running() -> None:
    Path("README.md").write_text("<!-- adapm compare: fake --><!-- end of fake -->")
    call(*TWO, "--out", "results", "--", "fine", "{seed}")
    Path("order.txt").unlink()
    first = Path("results/comparison.csv").read_text()
    Path("results/comparison.csv").unlink()
    call("--from", "results", "--markdown", "README.md")
    assert not Path("order.txt").exists()
    assert Path("results/comparison.csv").read_text() == first
    assert "| adaptive | zmq | 2.50 (2.00..3.00) | 1.75 (1.50..2.00) | 0.5 | 1.5 |" in Path("README.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.py"], "there is no script 'missing.py'"),
        ([], "SCRIPT is missing"),
        ([*TWO, "--technique", "magic"], "technique must be"),
        ([*TWO, "--transport", ""], "has an empty place"),
        ([*TWO, "--resume"], "--resume needs --out"),
        ([*TWO, "--out", "fake.py"], "is a file: name a folder"),
        ([*TWO, "--markdown", "none.md"], "there is no file 'none.md'"),
        ([*TWO, "--seeds", "0"], "0 is not in the range"),
        (["--from", "nothing"], "there is no nothing/runs.jsonl"),
        (["fake.py", "--from", "x", "--technique", "adaptive"], "runs nothing, so script, technique cannot be given"),
    ],
)
def test_misuse_is_said_before_anything_runs(args: list[str], message: str) -> None:
    result = call(*args, code=2)
    assert message.replace(" ", "") in result.output.replace(" ", "").replace("\n", "")
    assert sorted(path.name for path in Path().iterdir()) == ["fake.py"]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_what_there_is(by: int) -> None:
    command = [sys.executable, "-m", "adapm", "compare", *TWO, "--out", "results", "--", "hang", "{seed}"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    os.mkfifo("hanging")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    assert "1/4" in process.stderr.readline()
    with os.fdopen(os.open("hanging", os.O_RDONLY | os.O_NONBLOCK)) as hanging:
        assert select.select([hanging], [], [], 60)[0]
    process.send_signal(by)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: these are partial results" in out
    assert len(Path("results", FILE).read_text().splitlines()) == 1 + 1
    assert Path("results/comparison.html").exists()


def test_a_script_that_reports_nothing_on_one_node_and_on_two() -> None:
    Path("real.py").write_text(REAL)
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
        tree = json.loads(call("real.py", "--nodes", "1,2", "--workers", "1", "--seeds", "1", "--json").stdout)
    assert tree["time"] == "run_s"
    alone, both = (row["figures"] for row in tree["rows"])
    assert (alone["bytes"]["median"], alone["local_share"]["median"]) == (0, 1)
    assert both["bytes"]["median"] > 0
    assert 0 < both["local_share"]["median"] <= 1
    assert both["relocations"]["median"] + both["replicas"]["median"] > 0
    kinds = ("update_bytes", "state_bytes", "grant_bytes", "access_bytes", "other_bytes")
    assert sum(both[kind]["median"] for kind in kinds) == both["bytes"]["median"]
    assert both["cpu_s"]["median"] > both["node_cpu_s"]["median"] > 0
    assert both["memory"]["median"] > 1 << 20
