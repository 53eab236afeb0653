"""The commands `adapm bench ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import click
from rich.table import Table

from adapm.bench import idle as idles
from adapm.bench import intent as intents
from adapm.bench import local as locals_
from adapm.bench import machine, report
from adapm.bench import memory as memories
from adapm.bench import remote as remotes
from adapm.bench import sample as samples_
from adapm.bench import transports as transports_
from adapm.bench.harness import Figure, Figures, Measure, Outcome, collect
from adapm.bench.keys import DISTRIBUTIONS
from adapm.bench.report import cell, grid, number
from adapm.errors import AdapmError, UsageError
from adapm.sampling import TECHNIQUES

F = TypeVar("F", bound=Callable[..., Any])

_INTERRUPTED = 130  # as if SIGINT had ended us


@click.group(short_help="Measure access to rows against its limits.")
def bench() -> None:
    r"""Measures what access to rows costs here, beside what it would cost without a manager.

    Each command measures its limit or baseline in the same repetitions, and prints the ratio.

    \b
    adapm bench local                    rows of this machine, against a plain gather
    adapm bench remote                   rows of another node, against a bare ping-pong
    adapm bench intent --keys zipf       a loop with intent, without, and on one node
    adapm bench idle --nodes 4           nodes that have nothing to do
    adapm bench memory                   bytes beside the values
    adapm bench sample --nodes 2         keys that the manager draws, against numpy
    adapm bench torch                    an epoch through adapm.torch, against PyTorch alone
    adapm bench transports               frames between two processes, against a bare ping-pong
    """


def _options(*, seconds: float | None = None) -> Callable[[F], F]:
    """What all commands have, and how long a measurement takes where that is for the user to say."""

    def add(command: F) -> F:
        command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
        if seconds is not None:
            text = "Length of one measurement."
            command = click.option("--seconds", default=seconds, show_default=True, help=text)(command)
        return click.option("--repeat", default=5, show_default=True, help="Repetitions; the median counts.")(command)

    return add


def _table_size(*, rows: int, dim: int = 64) -> Callable[[F], F]:
    def add(command: F) -> F:
        command = click.option("--dim", default=dim, show_default=True, help="Floats in a row.")(command)
        return click.option("--rows", default=rows, show_default=True, help="Rows of the table.")(command)

    return add


def _sizes(command: F) -> F:
    """Of table and batch."""
    batch = click.option("--batch", default=1024, show_default=True, help="Keys of one operation.")
    return _table_size(rows=1_000_000)(batch(command))


def _one(measure: Measure) -> dict[str, Measure]:
    """The variants of a benchmark that has none."""
    return {"": measure}


_transport = click.option("--transport", default="tcp", show_default=True, help="Between the nodes.")
_keys = click.option(
    "--keys", type=click.Choice(DISTRIBUTIONS), default="uniform", show_default=True, help="How keys are drawn."
)


@bench.command(short_help="Rows of this machine, against a plain gather.")
@_sizes
@click.option("--processes", default=1, show_default=True, help="Workers, each a process.")
@_keys
@_options(seconds=0.5)
def local(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures pull and push of rows that are on this machine, against a gather and a scatter-add on a plain array.

    All times are per key and process.  The plain array is in huge pages, and for comparison in pages of 4 KiB.
    """
    local = locals_.Local(**given, cores=tuple(machine.cores()))
    _bench(lambda: _one(locals_.measure(local)), locals_.TIMING, repeat, as_json, asdict(local), _local)


@bench.command(short_help="Rows of another node, against a bare ping-pong.")
@_sizes
@_transport
@click.option("--in-flight", default=8, show_default=True, help="Pulls under way where throughput is measured.")
@_options(seconds=2.0)
def remote(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures pull and push of rows that another node owns, against a bare blocking ping-pong.

    Two nodes on this machine, one worker that accesses without intent.  Worker, its node and the asking side of the
    ping-pong are on one core, the other node and the answering side on another.  One operation is outstanding, back to
    back; the ping-pong's messages are as large as those of the operation.  Several transports, as in
    `--transport tcp,ucx+shm`, take turns.
    """
    settings = remotes.Remote(**given, cores=tuple(machine.cores()))
    _bench(lambda: remotes.variants(settings), remotes.TIMING, repeat, as_json, asdict(settings), _remote)


@bench.command(short_help="A loop with intent, without, and on one node.")
@_sizes
@click.option("--nodes", default=2, show_default=True, help="Nodes, with one worker each.")
@click.option("--ahead", default=100, show_default=True, help="Clocks between signal and access.")
@_keys
@_transport
@click.option("--warm-up", default=1.0, show_default=True, help="Seconds before each measurement.")
@_options(seconds=2.0)
def intent(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures a loop that pulls and pushes a batch at each clock and signals it long before.

    Three variants: one node; all nodes without intent; all nodes with intent.  An access is one key pulled and pushed;
    CPU time is that of all workers and nodes.
    """
    settings = intents.Loop(**given, cores=tuple(machine.cores()))
    _bench(lambda: intents.variants(settings), intents.TIMING, repeat, as_json, asdict(settings), _intent)


@bench.command(short_help="Keys that the manager draws, against numpy.")
@_sizes
@click.option("--nodes", default=1, show_default=True, help="Nodes, with one worker each.")
@click.option("--ahead", default=100, show_default=True, help="Clocks between prepare and pull.")
@click.option(
    "--keys",
    type=click.Choice(samples_.DISTRIBUTIONS),
    default="uniform",
    show_default=True,
    help="How keys are drawn.",
)
@_transport
@click.option("--warm-up", default=0.5, show_default=True, help="Seconds before each measurement.")
@_options(seconds=1.0)
def sample(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures a loop that prepares and pulls a sample at each clock, with every technique.

    Against the same loop with keys that numpy draws; and what drawing alone costs, by distribution. With few rows (at
    most 10,000), also how far the keys of each technique are from those of independent draws.
    """
    settings = samples_.Samples(**given, cores=tuple(machine.cores()))
    _bench(lambda: samples_.variants(settings), samples_.TIMING, repeat, as_json, asdict(settings), _sample)


@bench.command(short_help="An epoch through adapm.torch, against PyTorch alone.")
@click.option("--entities", default=20_000, show_default=True, help="Of the graph.")
@click.option("--relations", default=100, show_default=True, help="Of the graph.")
@click.option("--triples", default=100_000, show_default=True, help="Of the graph, and of an epoch.")
@click.option("--dim", default=64, show_default=True, help="Floats of an embedding.")
@click.option("--batch", default=512, show_default=True, help="Triples of a step.")
@click.option("--negatives", default=16, show_default=True, help="Objects drawn for each triple.")
@_transport
@_options()
def torch(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures an epoch of ComplEx on a random graph: with one worker, with two, and on two nodes.

    In the same processes, right before each of them, an epoch of PyTorch alone: nn.Embedding(sparse=True) and
    optim.Adagrad in one process, with one thread. Needs PyTorch: pip install 'adapm[torch]'.
    """
    given["cores"] = tuple(machine.cores())
    _bench(lambda: _torch_variants(given), ("epoch_s", "torch_s"), repeat, as_json, given, _torch)


def _torch_variants(given: dict[str, Any]) -> dict[str, Measure]:
    import adapm.torch  # noqa: F401  # only now: the other commands work without; this says what to install
    from adapm.bench import pytorch

    return pytorch.variants(pytorch.Training(**given))


@bench.command(short_help="Nodes that have nothing to do.")
@_table_size(rows=100_000)
@click.option("--nodes", default=2, show_default=True, help="Nodes, with one worker each.")
@_transport
@click.option("--settle", default=1.0, show_default=True, help="Seconds between work and measurement.")
@_options(seconds=5.0)
def idle(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures what nodes cost that have worked and now have nothing to do.

    Bytes are what a node sends over TCP, the transport's signs of life included, headers not.
    """
    settings = idles.Idle(**given)
    _bench(lambda: _one(idles.measure(settings)), idles.TIMING, repeat, as_json, asdict(settings), _idle)


@bench.command(short_help="Bytes beside the values.")
@_table_size(rows=2_000_000, dim=16)
@_transport
@_options()
def memory(*, as_json: bool, repeat: int, **given: Any) -> None:
    """Measures the memory that a node takes beside the rows' values, per row kept there and per row of the table."""
    settings = memories.Memory(**given)
    _bench(lambda: _one(memories.measure(settings)), memories.TIMING, repeat, as_json, asdict(settings), _memory)


@bench.command(short_help="Frames between two processes, against a bare ping-pong.")
@click.option("--with-key", is_flag=True, help="Each once more with a cluster key.")
@click.argument("names", nargs=-1, metavar="[TRANSPORT]...")
@_options(seconds=0.5)
def transports(*, names: tuple[str, ...], with_key: bool, as_json: bool, repeat: int, seconds: float) -> None:
    """Measures each of the named transports alone, without rows: round trips, bandwidth, processor time, rest.

    The other process sends every frame back.  Without names: tcp, zmq+tcp, zmq+ipc.
    """
    wanted = transports_.Transports(names or ("tcp", "zmq+tcp", "zmq+ipc"), seconds, tuple(machine.cores()), with_key)
    _bench(lambda: transports_.variants(wanted), transports_.TIMING, repeat, as_json, asdict(wanted), _transports)


Present = Callable[[Outcome], tuple[Table, dict[str, Figure], list[str]]]
"""A table, ratios between variants, and notes."""


def _bench(
    prepare: Callable[[], Mapping[str, Measure]],
    timing: tuple[str, ...],
    repeat: int,
    as_json: bool,
    settings: Mapping[str, Any],
    present: Present,
) -> None:
    try:
        with report.ShownProgress(click.get_current_context().command_path) as progress:
            outcome = collect(prepare(), repeat, progress, timing)
    except UsageError as error:
        raise click.UsageError(f"{type(error).__name__}: {error}") from error
    except AdapmError as error:
        raise click.ClickException(f"{type(error).__name__}: {error}") from error
    table, ratios, notes = (None, {}, []) if outcome.empty else present(outcome)
    if as_json:
        click.echo(report.as_json(outcome, settings, ratios))
    else:
        report.show(outcome, table, notes)
    if outcome.interrupted:
        sys.exit(_INTERRUPTED)


def _local(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    figures = outcome.variants[""]
    table = grid("ns per key", "adapm", "plain array", "ratio", "plain, 4 KiB pages", "scaling")
    for name, plain in (("pull", "gather"), ("push", "scatter_add")):
        table.add_row(
            f"{name}, {plain.replace('_', '-')}",
            cell(figures[f"{name}_ns"]),
            cell(figures[f"{plain}_ns"]),
            cell(figures[f"{name}_over_{plain}"]),
            cell(figures[f"{plain}_small_pages_ns"]),
            cell(figures.get(f"{name}_scaling")),
        )
    table.add_row("intent, worker", cell(figures["intent_ns"]))
    table.add_row("intent, node", cell(figures["intent_node_ns"]))
    calls = [f"{name} {number(figures[f'{name}_call_us'].median)} us" for name in locals_.CALLS]
    return table, {}, [f"one call: {', '.join(calls)} (pull_new: without out)"]


def _remote(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    table = grid("one outstanding", "adapm, us", "ping-pong, us", "ratio", "bare TCP, us", "ratio")
    notes = []
    for variant, figures in outcome.variants.items():
        for name in ("pull", "push"):
            table.add_row(
                f"{variant} {name}, median".lstrip(),
                cell(figures[f"{name}_p50_us"]),
                cell(figures[f"{name}_socket_p50_us"]),
                cell(figures[f"{name}_over_socket"]),
                cell(figures.get(f"{name}_tcp_p50_us")),
                cell(figures[f"{name}_over_tcp"]),
            )
        under_way = f"{variant} pull, several under way".lstrip()
        sizes = [f"{name} {figures[f'{name}_{way}_bytes'].median:,.0f} B" for name, way in _WAYS]
        notes += [f"{under_way}: {number(figures['pull_keys_per_s'].median)} keys/s", ", ".join(sizes)]
    return table, {}, notes


_WAYS = (("pull", "request"), ("pull", "answer"), ("push", "request"), ("push", "answer"))

_INTENT_ROWS = {
    "keys/s/worker": "keys_per_s_per_worker",
    "local": "local_fraction",
    "bytes/access": "bytes_per_access",
    "rounds/s": "rounds_per_s",
    "CPU us/access": "cpu_us_per_access",
    "  of workers": "cpu_us_per_access_workers",
    "  of nodes": "cpu_us_per_access_nodes",
    "bytes/moved rows": "bytes_over_moved_rows",
}


def _intent(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    table = grid("", *outcome.variants, "adaptive/static")
    for label, name in _INTENT_ROWS.items():
        ratio = cell(outcome.ratio(name, "adaptive", "static"))
        table.add_row(label, *(cell(figures.get(name)) for figures in outcome.variants.values()), ratio)
    ratios = {
        f"{name}_adaptive_over_{other}": outcome.ratio(name, "adaptive", other)
        for name in ("keys_per_s_per_worker", "cpu_us_per_access")
        for other in ("static", "single")
    }
    return table, ratios, ["an access is one key pulled and pushed"]


_SAMPLE_ROWS = {
    "keys/s/worker": "keys_per_s_per_worker",
    "local": "local_fraction",
    "bytes/key": "bytes_per_key",
    "CPU us/key": "cpu_us_per_key",
    "distance": "distance",
    "  of one worker": "distance_of_one_worker",
    "dispersion": "dispersion",
}


def _sample(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    figures = dict(outcome.variants)
    draws = figures.pop(samples_.DRAWS)
    table = grid("", *figures)
    for label, name in _SAMPLE_ROWS.items():
        if name in figures[samples_.NUMPY]:
            table.add_row(label, *(cell(of_variant.get(name)) for of_variant in figures.values()))
    name = "keys_per_s_per_worker"
    ratios = {f"{name}_{one}_over_numpy": outcome.ratio(name, one, samples_.NUMPY) for one in TECHNIQUES}
    return table, ratios, [_draw_note(keys, draws) for keys in samples_.DISTRIBUTIONS if draws]


def _draw_note(keys: str, draws: Figures) -> str:
    ours, numpy, ratio = (
        number(draws[keys.replace("-", "_") + part].median) for part in ("_ns", "_numpy_ns", "_over_numpy")
    )
    return f"drawing alone, {keys}: {ours} ns per key, numpy {numpy}, ratio {ratio}"


def _torch(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    table = grid("an epoch", "adapm, s", "PyTorch, s", "ratio", "local")
    for variant, figures in outcome.variants.items():
        columns = ("epoch_s", "torch_s", "over_torch", "local_fraction")
        table.add_row(variant, *(cell(figures.get(column)) for column in columns))
    return table, {}, ["PyTorch: one process, one thread, sparse AdaGrad, in the same repetition"]


def _idle(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    figures = outcome.variants[""]
    table = grid("idle", "per node")
    table.add_row("share of a core", cell(figures["cpu_fraction_per_node"]))
    table.add_row("  of the busiest", cell(figures["cpu_fraction_of_busiest"]))
    table.add_row("bytes/s sent", cell(figures["bytes_per_s"]))
    return table, {}, ["bytes that nodes send over TCP, without headers, with the transport's signs of life"]


_TRANSPORT_COLUMNS = (
    "small_p50_us",
    "small_over_tcp",
    "large_p50_us",
    "large_over_tcp",
    "mb_per_s",
    "cpu_us",
    "idle_share",
)


def _transports(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    table = grid("", "64 B, us", "over TCP", "256 KiB, us", "over TCP", "MB/s", "CPU, us", "at rest")
    for name, figures in outcome.variants.items():
        table.add_row(name, *(cell(figures[column]) for column in _TRANSPORT_COLUMNS))
    notes = [
        "round trips, one outstanding, and over those of a bare TCP ping-pong; MB/s of 1 MiB frames, in each direction",
        "CPU: of both ends, for a round trip of 64 B; at rest: share of a core, of one end",
    ]
    return table, {}, notes


def _memory(outcome: Outcome) -> tuple[Table, dict[str, Figure], list[str]]:
    figures = outcome.variants[""]
    table = grid("bytes beside the values", "")
    table.add_row("per row on the node", cell(figures["bytes_per_local_row"]))
    table.add_row("per row of the table", cell(figures["bytes_per_global_row"]))
    return table, {}, []
