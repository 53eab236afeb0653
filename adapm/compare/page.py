"""A comparison as one HTML page that needs nothing else: verdicts, pictures, the table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from adapm.compare import plots, tables
from adapm.compare.results import Comparison, Row
from adapm.compare.variants import value, varying
from adapm.errors import UsageError

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #0a7d33; --bad: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --good: #5fd38a; --bad: #ff8a75; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; } th { vertical-align: bottom; }
th.name, td.name { text-align: left; }
td small { display: block; opacity: .65; }
.good { color: var(--good); } .bad { color: var(--bad); }
.best td { font-weight: 600; }
figure { margin: 0; } svg { width: 100%; max-width: 1000px; height: auto; }
footer { margin-top: 2rem; opacity: .8; font-size: .9em; }
"""


def write(comparison: Comparison, file: Path) -> None:
    """Writes the page; without matplotlib it says what is missing."""
    file.write_text("\n".join(_page(comparison)) + "\n", encoding="utf-8")


def _page(comparison: Comparison) -> Iterator[str]:
    header = comparison.header
    title = escape(f"{Path(header.script).name}, compared")
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{title}</h1>"
    yield f"<p><code>{escape(tables.command(comparison))}</code></p>"
    yield from _verdicts(comparison)
    yield from _pictures(comparison)
    yield from _table(comparison)
    yield f"<footer>{escape(tables.provenance(comparison))}.</footer></body></html>"


def _verdicts(comparison: Comparison) -> Iterator[str]:
    failed = tables.failures(comparison)
    if comparison.verdicts or failed:
        yield "<ul>"
        for verdict in comparison.verdicts:
            yield f'<li class="{"good" if verdict.holds else "bad"}">{escape(verdict.text)}</li>'
        yield from (f'<li class="bad">{escape(note)}</li>' for note in failed)
        yield "</ul>"


def _pictures(comparison: Comparison) -> Iterator[str]:
    try:
        for caption, picture in plots.pictures(comparison):
            yield f"<figure><h2>{escape(caption[0].upper() + caption[1:])}</h2>{picture}</figure>"
    except UsageError as error:
        yield f"<p>{escape(str(error))}</p>"


def _table(comparison: Comparison) -> Iterator[str]:
    shown, names = tables.columns(comparison), varying([row.variant for row in comparison.rows])
    yield '<h2>All figures</h2><div class="wide"><table><thead><tr>'
    yield "".join(f'<th class="name">{escape(name)}</th>' for name in names)
    yield "".join(f"<th>{escape(column.title)}</th>" for column in shown) + "</tr></thead><tbody>"
    for row in comparison.rows:
        yield '<tr class="best">' if comparison.is_best(row) else "<tr>"
        yield "".join(f'<td class="name">{escape(str(value(row.variant, name)))}</td>' for name in names)
        yield (
            "".join(_cell(column, row) for column in shown)
            if row.runs
            else f'<td class="bad name" colspan="{len(shown)}">failed</td>'
        )
        yield "</tr>"
    yield "</tbody></table></div>"


def _cell(column: tables.Column, row: Row) -> str:
    spread = column.of(row)
    if spread is None:
        return "<td>-</td>"
    median, low, high = (escape(column.show(part)) for part in (spread.median, spread.low, spread.high))
    return f"<td>{median}</td>" if low == high else f"<td>{median}<small>{low}..{high}</small></td>"
