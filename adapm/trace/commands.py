"""The command `adapm trace`."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from adapm import drawing
from adapm.errors import DataError, UsageError
from adapm.trace import choice, files, pictures
from adapm.trace.choice import Chosen
from adapm.trace.files import Trace
from adapm.trace.lives import Life, replay
from adapm.trace.summary import REASONS, Summary, milliseconds, share, summarise
from adapm.tracing import Kind, Reason

_PAGE: Final = ".html"
_CAPTIONS: Final = {
    "lives": "The lives of keys",
    "locality": "Where accesses were served",
    "intents": "How intents were timed",
}


@click.command(short_help="Draw what happened to keys in a run that was traced.")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--keys", default="hot,warm,cold", show_default=True, metavar="KEYS", help="Which keys to look at.")
@click.option("--count", type=click.IntRange(1), default=2, show_default=True, help="How many of hot, warm, cold each.")
@click.option("--picture", type=click.Choice(list(pictures.PICTURES)), default="lives", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Draw into this file: .svg, .png, .pdf, or .html for all.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the events of the keys as CSV.")
def trace(
    *, sources: Sequence[Path], keys: str, count: int, picture: str, out: Path | None, as_json: bool, as_csv: bool
) -> None:
    """Says and draws what happened to the keys of a run with `--trace DIR`; SOURCES are that folder, or its files.

    KEYS are hot, warm, cold, and keys such as entities:7 or words:0-3. How hot a key is, is how often workers signalled
    it or accessed it without. The pictures: lives (where each key was, who wanted it, what was not local and why),
    locality (the same of all keys over time, and who answered whom), intents (lead and lateness).

    \b
    adapm run --nodes 4 --workers 1 --trace traces train.py
    adapm trace traces
    adapm trace traces --out lives.svg --keys hot,words:0-3
    adapm trace traces --out intents.png --picture intents
    adapm trace traces --out everything.html
    """  # noqa: D301
    try:
        if out is not None:
            drawing.require(out, (*drawing.KINDS, _PAGE))
        read = files.read(sources)
        lives = replay(read)
        chosen = choice.choose(read, lives, keys, count)
        if out is not None:
            _draw(read, lives, chosen, picture, out)
    except (UsageError, DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_csv:
        click.echo(_csv(read, chosen), nl=False)
    elif as_json:
        click.echo(json.dumps(_tree(read, lives, chosen), indent=2))
    else:
        _show(read, lives, chosen)


def _draw(trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen], picture: str, out: Path) -> None:
    if out.suffix == _PAGE:
        out.write_text(_page(trace, lives, chosen), encoding="utf-8")
    else:
        out.write_bytes(pictures.draw(picture, trace, lives, chosen, out.suffix))


# ---- for people


def _show(trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> None:
    console = Console(highlight=False)
    for title, header, rows in _tables(trace, lives, chosen):
        console.print(title, style="italic", soft_wrap=True)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, column in enumerate(header):
            table.add_column(column, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
    for note in _notes(trace, lives):
        console.print(note, style="yellow")


_Grid = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def _tables(trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> Iterator[_Grid]:
    """(title, columns, rows), for a terminal as for a page."""
    summaries = summarise(trace, lives)
    yield (
        f"What happened to traced keys in {trace.seconds:,.1f} s on {trace.nodes} nodes",
        (
            "table",
            "keys",
            "relocations",
            "replicas",
            "wanted: local",
            *(f"not local: {why}" for why in REASONS.values()),
        ),
        [_row(summary) for summary in summaries],
    )
    yield (
        "How intents were timed (ms: shortest 1 % / median / longest 1 %; late: median / longest 1 %)",
        ("table", "intents", "lead, ms", "lead, clocks", "late", "late by, ms", "never came"),
        [_intent_row(summary) for summary in summaries],
    )
    yield (
        "Keys",
        ("key", "", "home", "intents", "relocations", "replicas", "not local", "owners, in order"),
        [_key_row(trace, each) for each in chosen],
    )


def _row(summary: Summary) -> tuple[str, ...]:
    counts = (summary.keys, summary.relocations, summary.replicas)
    return (
        summary.table,
        *(f"{count:,}" for count in counts),
        share(summary.local),
        *(f"{count:,}" for count in summary.remote.values()),
    )


def _intent_row(summary: Summary) -> tuple[str, ...]:
    clocks = "-" if summary.lead_clocks is None else " / ".join(f"{value:g}" for value in summary.lead_clocks)
    times = (milliseconds(summary.lead), clocks, share(summary.late), milliseconds(summary.lateness))
    return (summary.table, f"{summary.signals:,}", *times, share(summary.never))


def _key_row(trace: Trace, chosen: Chosen) -> tuple[str, ...]:
    life = chosen.life
    replicas = sum(len(presence.replica) for presence in life.at)
    owners = [str(node) for node in (life.home, *(move.taker for move in life.moves))]
    shown = " ".join(owners if len(owners) <= 12 else [*owners[:8], "...", *owners[-3:]])
    counts = (len(life.signals), len(life.moves), replicas, len(life.accesses))
    name = f"{trace.tables[life.table][0]}:{life.key}"
    return (name, chosen.why, str(life.home), *(f"{count:,}" for count in counts), shown)


def _notes(trace: Trace, lives: Sequence[Life]) -> Iterator[str]:
    """What makes it doubtful."""
    if not lives:
        yield "nothing happened to the traced keys: trace more of them (trace_keys)"
    if trace.missing:
        yield f"the traces of nodes {list(trace.missing)} are missing: what happened there is not shown"
    for node, lost in trace.lost.items():
        if lost:
            yield f"node {node} lost {lost:,} events because they came too fast: trace fewer keys (trace_keys)"
    if trace.hosts > 1:
        yield f"the nodes ran on {trace.hosts} hosts: times on different hosts differ as much as their times of day"


def _page(trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> str:
    """Tables and pictures as one HTML file that needs no other."""
    parts = [f"<p>{html.escape(note)}</p>" for note in _notes(trace, lives)]
    for title, header, rows in _tables(trace, lives, chosen):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{body}</table>")
    for name, caption in _CAPTIONS.items():
        data = base64.b64encode(pictures.draw(name, trace, lives, chosen)).decode()
        parts.append(f'<h2>{caption}</h2><img alt="{caption}" src="data:image/svg+xml;base64,{data}">')
    style = (
        "body{font:14px sans-serif;max-width:72em;margin:2em auto}img{width:100%}"
        "td,th{padding:.2em .8em;text-align:right}td:first-child,th:first-child{text-align:left}"
    )
    head = f'<meta charset="utf-8"><title>A trace of adapm</title><style>{style}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


# ---- for programs


def _tree(trace: Trace, lives: Sequence[Life], chosen: Sequence[Chosen]) -> dict[str, Any]:
    return {
        "seconds": trace.seconds,
        "nodes": trace.nodes,
        "missing": list(trace.missing),
        "lost": trace.lost,
        "hosts": trace.hosts,
        "tables": [summary.as_dict() for summary in summarise(trace, lives)],
        "keys": [_key_tree(trace, each) for each in chosen],
    }


def _key_tree(trace: Trace, chosen: Chosen) -> dict[str, Any]:
    life = chosen.life
    return {
        "table": trace.tables[life.table][0],
        "key": life.key,
        "why": chosen.why,
        "home": life.home,
        "intents": len(life.signals),
        "moves": [move._asdict() for move in life.moves],
        "nodes": [
            {name: [list(span) for span in getattr(presence, name)] for name in ("owned", "replica", "wanted")}
            for presence in life.at
        ],
        "not_local": {label: int((life.accesses["reason"] == reason).sum()) for reason, label in REASONS.items()},
    }


_COLUMNS: Final = ("at", "node", "table", "key", "event", "clock", "end", "peer", "worker", "reason")
_HAS_CLOCK: Final = (Kind.SIGNAL, Kind.PULL, Kind.PUSH, Kind.SET)


def _csv(trace: Trace, chosen: Sequence[Chosen]) -> str:
    """The events of these keys by time; what a kind of event does not have stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    wanted = {(each.life.table, each.life.key) for each in chosen}
    reasons = {ref: iter(each.life.accesses["reason"].tolist()) for each in chosen for ref in [_ref(each.life)]}
    for event in trace.events[trace.events["kind"] != Kind.CLOCK]:
        ref = int(event["table"]), int(event["row"])
        if ref in wanted:
            writer.writerow(_csv_row(trace, event, reasons[ref]))
    return text.getvalue()


def _ref(life: Life) -> tuple[int, int]:
    return life.table, life.key


def _csv_row(trace: Trace, event: Any, reasons: Iterator[int]) -> list[object]:
    kind = Kind(event["kind"])
    clocked, access = kind in _HAS_CLOCK, kind in (Kind.PULL, Kind.PUSH, Kind.SET)
    return [
        f"{event['at']:.9f}",
        event["node"],
        trace.tables[event["table"]][0],
        event["row"],
        kind.name.lower(),
        event["clock"] if clocked else "",
        event["end"] if kind is Kind.SIGNAL else "",
        "" if kind in (Kind.SIGNAL, Kind.WANTED, Kind.UNWANTED) else event["peer"],
        event["worker"] if clocked else "",
        REASONS[Reason(next(reasons))] if access else "",
    ]
