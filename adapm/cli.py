"""The `adapm` command.  Options for settings are made from the settings' own descriptions in adapm.config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import adapm
from adapm import doctor as checks
from adapm import keys
from adapm.config import Config, Rule, environment_name, option_name, reference, settings, show
from adapm.errors import ConfigError, KernelMissing, KeyFileError

try:
    from adapm.bench.commands import bench
    from adapm.compare.commands import compare
    from adapm.simulator.commands import simulate
    from adapm.simulator.scale_commands import scale
    from adapm.trace.commands import trace
except KernelMissing as _error:  # all else works without, and doctor says what is missing
    _why = str(_error)

    @click.command(short_help="Measure access to rows against its limits.")
    def bench() -> None:
        """Needs the compiled kernel, which does not load here."""
        raise click.ClickException(_why)

    @click.command(short_help="Run a script under several techniques and sizes, and compare.")
    def compare() -> None:
        """Needs the compiled kernel, which does not load here."""
        raise click.ClickException(_why)

    @click.command(short_help="Run nodes and workers in a virtual world, with faults, from seeds.")
    def simulate() -> None:
        """Needs the compiled kernel, which does not load here."""
        raise click.ClickException(_why)

    @click.command(short_help="What an access costs on 2, 8, ... 1,024 nodes, simulated.")
    def scale() -> None:
        """Needs the compiled kernel, which does not load here."""
        raise click.ClickException(_why)

    @click.command(short_help="Draw what happened to keys in a run that was traced.")
    def trace() -> None:
        """Needs the compiled kernel, which does not load here."""
        raise click.ClickException(_why)


F = TypeVar("F", bound=Callable[..., Any])

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def settings_options(command: F) -> F:
    """Adds an option for every setting; values come through as text, None where the option is not given."""
    for name, field in reversed(settings().items()):
        rule: Rule = field.metadata["rule"]
        default = show(name, field.default)
        text = field.metadata["help"] + (f"  [default: {default}]" if default and not rule.flag else "")
        takes: dict[str, Any] = {"flag_value": rule.flag, "default": None} if rule.flag else {"metavar": rule.metavar}
        command = click.option(option_name(name), name, help=text, **takes)(command)
    return command


@click.group(context_settings=_CONTEXT)
@click.version_option(adapm.__version__, prog_name="adapm")
def main() -> None:
    """Trains models with large, sparsely used tables: rows are where they are needed, when they are needed.

    \b
    adapm run train.py                                one node, two workers
    adapm run --nodes 2 --workers 4 train.py          two nodes on this machine
    adapm doctor                                      is this machine fit for it?
    adapm keys                                        so that strangers stay out
    """  # noqa: D301


@main.command(
    context_settings={"allow_interspersed_args": False}, short_help="Run a script with settings of your choice."
)
@settings_options
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str, args: tuple[str, ...], **given: str | None) -> NoReturn:
    """Runs SCRIPT with ARGS, and with these settings for its `adapm.run`.

    SCRIPT runs once, in this Python; the `adapm.run` in it starts the nodes and workers. Options before SCRIPT are
    adapm's, those after it are the script's. Settings that are not given come from the environment, the script,
    adapm.toml or their defaults.

    \b
    adapm run --nodes 2 --workers 2 --transport zmq train.py --epochs 10
    adapm run --workers threads:4 --profile train.py

    One process per machine: start the same script everywhere, and tell each its number and where node 0 is.
    All of them need the same key, which `adapm keys` makes.

    \b
    adapm run --nodes 2 --node 0 --rendezvous tcp://10.0.0.1:7000 train.py
    adapm run --nodes 2 --node 1 --rendezvous tcp://10.0.0.1:7000 train.py
    """  # noqa: D301
    _load(given)  # what is wrong is said now, not by every process later
    chosen = {environment_name(name): value for name, value in given.items() if value is not None}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, script, *args], {**os.environ, **chosen})  # noqa: S606  # no shell is wanted


@main.command(short_help="Print the settings and where they come from.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--reference", "as_reference", is_flag=True, help="Print the reference page of all settings, in Markdown."
)
def config(*, as_json: bool, as_reference: bool, **given: str | None) -> None:
    """Prints the settings in effect here, and where each came from.

    \b
    adapm config
    ADAPM_NODES=2 adapm config --json
    """  # noqa: D301
    if as_reference:
        click.echo(reference(), nl=False)
        return
    loaded = _load(given)
    if as_json:
        tree = {name: {"value": value, "from": loaded.origin(name)} for name, value in loaded.as_dict().items()}
        click.echo(json.dumps(tree, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    for name in settings():
        origin = loaded.origin(name)
        style = "dim" if origin == "default" else ""
        table.add_row(name, loaded.show(name) or "-", origin, style=style)
    Console().print(table)


@main.command(short_help="Check whether this machine can run adapm.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--meet", is_flag=True, help="Have the nodes of this run meet; on all its machines at once.")
def doctor(*, as_json: bool, meet: bool, **given: str | None) -> None:
    """Checks whether this machine can run adapm, and says what to do where it cannot.

    With the settings of a run of several nodes it also looks at what that needs: whether a node can listen, whether the
    others can be reached, and, with --meet, whether all come together. Ends with exit code 1 if something that is
    needed fails.

    \b
    adapm doctor
    adapm doctor --nodes 3 --node 1 --rendezvous tcp://10.0.0.1:7000
    adapm doctor --nodes 3 --node 1 --rendezvous tcp://10.0.0.1:7000 --meet
    """  # noqa: D301
    findings = checks.examine() + _examine_cluster(_load(given), meet)
    failed = sum(finding.status == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        _print_findings(findings, failed)
    sys.exit(1 if failed else 0)


@main.command(name="keys", short_help="Make the key that keeps strangers out of a cluster.")
@click.option("--path", default=keys.DEFAULT, show_default=True, metavar="PATH", help="Where to write it.")
@click.option("--overwrite", is_flag=True, help="Replace a key that is there; all hosts then need the new one.")
def make_keys(*, path: str, overwrite: bool) -> None:
    r"""Makes a cluster key, in a file that nobody else can read.

    Nodes on different hosts need it, and need the same: copy the file to every host, or to a folder that all of them
    see. Nodes of one host need none.

    \b
    adapm keys
    scp -p ~/.config/adapm/cluster.key other-host:.config/adapm/
    """
    try:
        key = keys.make(path, overwrite=overwrite)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{key.path} holds a new cluster key with the fingerprint {key.fingerprint}.")
    click.echo("Copy it to every host, readable by you only: scp -p keeps its mode. `adapm doctor` checks it there.")


main.add_command(bench)
main.add_command(compare)
main.add_command(simulate)
main.add_command(scale)
main.add_command(trace)


def _examine_cluster(planned: Config, meet: bool) -> list[checks.Finding]:
    try:
        from adapm import cluster_checks
    except KernelMissing:  # which is a finding already
        return []
    findings = cluster_checks.examine(planned)
    if meet and not any(finding.status == "fail" for finding in findings):
        findings.append(cluster_checks.meet(planned))
    return findings


def _print_findings(findings: list[checks.Finding], failed: int) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        text = Text(finding.found)
        if finding.advice:
            text.append(f"\n-> {finding.advice}", style="bold" if finding.status != "ok" else "dim")
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.check, text)
    console = Console(highlight=False)
    console.print(table)
    summary = "adapm can run here." if not failed else f"adapm cannot run here: see the {failed} marked fail."
    console.print(f"\n{summary}", style="bold")


def _load(given: dict[str, str | None]) -> Config:
    try:
        return Config.load(cli=given)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
