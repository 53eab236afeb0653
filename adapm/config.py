"""The settings of a run: one frozen tree, from which flags, environment names and the reference page are made.

A field's metadata holds its rule (how a value is read, checked and shown) and its help.  Values come from, the highest
first: the command line, the environment (`ADAPM_NODES=2`), keywords of `adapm.run`, the file `adapm.toml`,
the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapm import keys, techniques
from adapm.errors import ConfigError, nearest
from adapm.keys import ClusterKey
from adapm.selection import Selection

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "ADAPM_"
FILE = "adapm.toml"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_RATES = {"bit": 1 / 8, "kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_WORKERS = re.compile(r"(threads:)?([1-9]\d*)")


@dataclass(frozen=True)
class Rule:
    """What values a setting takes.

    Attributes:
        what: completes "must be ...".
        metavar: stands for a value in help texts.
        read: the value that something given stands for; ValueError or TypeError if it stands for none.
        show: the value as a person would write it.
    """

    what: str
    metavar: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str
    flag: str = ""  # on a command line, the option takes no value and stands for this one


def parse_bytes(value: object) -> int:
    """Bytes from an integer or from text such as "16MiB", "1.5 GB" or "4096".

    Raises:
        ValueError, TypeError: it is neither.
    """
    return round(_parse(value, _UNITS)) if isinstance(value, str) else _integer(value)


def _parse(text: str, units: Mapping[str, float]) -> float:
    match = _AMOUNT.fullmatch(text)
    factors = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in factors:
        raise ValueError(text)
    return float(match[1]) * factors[match[2].lower()]


def format_bytes(n: int) -> str:
    """Bytes for people, exact if a unit divides them, else rounded: "16MiB", "1.4GiB", "700B"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if n >= _UNITS[unit]:
            whole, rest = divmod(n, _UNITS[unit])
            return f"{whole}{unit}" if rest == 0 else f"{n / _UNITS[unit]:.1f}{unit}"
    return f"{n}B"


def _integer(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    return int(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]  # refuses floats


def _integers(low: int, high: int) -> Rule:
    def read(value: object) -> int:
        number = _integer(value)
        if not low <= number <= high:
            raise ValueError(value)
        return number

    return Rule(f"an integer from {low} to {high}", "N", read)


def _bytes(low: str) -> Rule:
    def read(value: object) -> int:
        size = parse_bytes(value)
        if size < parse_bytes(low):
            raise ValueError(value)
        return size

    return Rule(f"a size of at least {low}, such as 16MiB", "SIZE", read, format_bytes)


def _amount(units: Mapping[str, float], what: str, metavar: str) -> Rule:
    """A number >= 0, or text with one of these units, which rise."""

    def read(value: object) -> float:
        number = _parse(value, {**units, "": 1}) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
        if isinstance(value, bool) or not (math.isfinite(number) and number >= 0):
            raise ValueError(value)
        return number

    def show(number: float) -> str:
        unit = max((unit for unit in units if units[unit] <= number), key=units.__getitem__, default="")
        return f"{number / units.get(unit, 1):g}{unit}"

    return Rule(what, metavar, read, show)


def _choice(*names: str) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in names:
            raise ValueError(value)
        return value.lower()

    return Rule(f"one of {', '.join(names)}" if len(names) > 1 else f'"{names[0]}"', "NAME", read)


def _flag() -> Rule:
    yes, no = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.lower() not in (*yes, *no):
            raise ValueError(value)
        return value.lower() in yes

    return Rule("true or false", "", read, lambda value: str(value).lower(), flag="true")


def _text(pattern: str, what: str, metavar: str) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(value)
        return value

    return Rule(what, metavar, read)


def _selection(value: object) -> str:
    text = value if isinstance(value, str) else str(_integer(value))
    Selection.parse(text)
    return text


def _seconds(value: object) -> float:
    seconds = float(value)  # type: ignore[arg-type]  # refuses what is not a number
    if isinstance(value, bool) or not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(value)
    return seconds


def _workers(value: object) -> str:
    text = value if isinstance(value, str) else str(_integer(value))
    if not _WORKERS.fullmatch(text):
        raise ValueError(value)
    return text


def _technique(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return techniques.named(value).name


def _setting(default: Any, rule: Rule, help: str, *, agreed: bool = False) -> Any:
    return field(default=default, metadata={"rule": rule, "help": help, "agreed": agreed})


_ADDRESS = _text(r"[a-z][a-z0-9+.-]*://.+", "an address such as tcp://host:port", "ADDRESS")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run, checked when made.

    Raises:
        ConfigError: a value does not fit its field, or fields contradict each other.
    """

    nodes: int = _setting(1, _integers(1, 4_000), "Number of nodes of the whole run.", agreed=True)
    workers: str = _setting(
        "2",
        Rule("a number of processes such as 2, or of threads such as threads:2", "N|threads:N", _workers),
        "Workers on each node that is started here: processes, or threads:N for threads of this process.",
    )
    transport: str = _setting(
        "tcp",
        _text(r"[a-z][a-z0-9+.-]*", "the name of a transport, such as tcp, zmq or ucx", "NAME"),
        "What carries frames between nodes; `adapm doctor` lists what is installed.",
        agreed=True,
    )
    technique: str = _setting(
        "adaptive",
        Rule(techniques.KNOWN, "NAME", _technique),
        "How rows are managed; the others are there to be compared with, see [techniques.md](techniques.md).",
        agreed=True,
    )
    seed: int = _setting(
        0, _integers(0, 2**63 - 1), "Seed of initial values and of the workers' random generators.", agreed=True
    )
    node: int | None = _setting(
        None, _integers(0, 65_534), "Start only this node, which joins the others at the rendezvous; unset: all nodes."
    )
    rendezvous: str | None = _setting(
        None, _ADDRESS, "Where node 0 listens and the others join; unset: chosen on this machine."
    )
    bind: str | None = _setting(
        None, _ADDRESS, "Where the transport of this node listens; unset: on the interface that reaches the rendezvous."
    )
    job: str | None = _setting(
        None,
        _text(r".+", "a name", "NAME"),
        "What processes of one machine that call `adapm.attach` find each other by; unset: what their launcher tells.",
    )
    key_file: str | None = _setting(
        None,
        _text(r".+", "the path of a file", "PATH"),
        "The cluster key, which all nodes must have on networks; `adapm keys` makes one."
        f" Unset: {keys.DEFAULT}, if that is there.",
    )
    insecure: bool = _setting(
        False,
        _flag(),
        "Use no cluster key, on networks neither: everybody there may read and change all rows.",
    )
    tick_rate: int = _setting(1000, _integers(1, 100_000), "Ticks per second of a node that has work, at most.")
    memory: int | None = _setting(
        None, _bytes("1MiB"), "Bytes of rows that a node may keep; unset: what is free when it starts, minus a reserve."
    )
    heap: int = _setting(2**24, _bytes("64KiB"), "Bytes of shared memory in which a worker's remote operations wait.")
    spin: int = _setting(
        0,
        _integers(0, 10_000),
        "Microseconds for which a node that has sent something looks for what comes back before it sleeps; ucx only.",
    )
    link_bandwidth: float = _setting(
        0.0,
        _amount(_RATES, "a rate such as 1Gbit (a second), or 0 for no limit", "RATE"),
        "Of each link in each direction, for experiments on one machine that are to stand for a slower network.",
        agreed=True,
    )
    link_latency: float = _setting(
        0.0,
        _amount(_TIMES, "a time such as 500us or 0.5ms", "TIME"),
        "That each frame takes longer, for such experiments.",
        agreed=True,
    )
    startup_timeout: float = _setting(
        60.0,
        Rule("a positive number of seconds", "SECONDS", _seconds),
        "Seconds until all nodes and workers must be there.",
    )
    profile: bool = _setting(False, _flag(), "At the end, tell on standard error where the time went.")
    report: str | None = _setting(
        None,
        _text(r".+", "the path of a file", "PATH"),
        "At the end, add what was counted to this file, and what the script tells `adapm.report`: lines of JSON.",
    )
    trace: str | None = _setting(
        None,
        _text(r".+", "the path of a folder", "DIR"),
        "Where each node writes what happens to some keys; `adapm trace DIR` draws it. Unset: no trace.",
    )
    trace_keys: str = _setting(
        "256",
        Rule(
            "keys per table such as 256, a share such as 1%, names such as words:0-31, or several", "KEYS", _selection
        ),
        "Which keys are traced: so many of each table, chosen by a hash, and those that are named.",
        agreed=True,
    )
    log_level: str = _setting("warning", _choice(*LOG_LEVELS), "What nodes write to standard error.")
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in settings():
            value = _read(name, getattr(self, name), self.origins.get(name, "keyword"))
            object.__setattr__(self, name, value)  # this is how a frozen value is filled
        if self.node is not None and self.node >= self.nodes:
            raise ConfigError(f"node={self.node} but nodes={self.nodes}: nodes are numbered from 0 to {self.nodes - 1}")
        if self.node is not None and self.nodes > 1 and self.rendezvous is None:
            raise ConfigError(
                f"node={self.node} of {self.nodes} needs rendezvous, the address of node 0, to find the others"
            )
        if self.insecure and self.key_file is not None:
            raise ConfigError(f"insecure=true means without a key, but key_file={self.key_file!r}: leave out one")

    @classmethod
    def load(
        cls,
        config: Config | Mapping[str, object] | None = None,
        overrides: Mapping[str, object] | None = None,
        *,
        env: Mapping[str, str] = os.environ,
        file: str | os.PathLike[str] | None = FILE,
        cli: Mapping[str, object] | None = None,
    ) -> Config:
        """The effective settings.

        Args:
            config: keywords as one value; of a Config, the fields that are not at their default.
            overrides: keywords; they go before those in config.
            env: where names such as ADAPM_NODES are looked up; an empty value counts as unset.
            file: a TOML file with one line per setting; need not exist.
            cli: values from a command line, None for options that were not given.

        Raises:
            ConfigError: a setting does not exist or its value does not fit; the message says where it came from.
        """
        layers: list[tuple[str, Mapping[str, object]]] = [
            (str(file), _from_file(file)),
            ("keyword", _given(config)),
            ("keyword", overrides or {}),
            ("environment", _from_environment(env)),
            ("command line", cli or {}),
        ]
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for source, layer in layers:
            for name, value in layer.items():
                _check_known(name, source)
                if value is not None:
                    origins[name] = f"{source} {environment_name(name)}" if source == "environment" else source
                    values[name] = _read(name, value, origins[name])
        return cls(**values, origins=origins)

    def origin(self, name: str) -> str:
        """Where a value came from: "default", "keyword", the file's name, "environment ADAPM_..." or "command line"."""
        at_default = getattr(self, name) == settings()[name].default
        return self.origins.get(name, "default" if at_default else "keyword")

    def as_dict(self) -> dict[str, Any]:
        """All settings, msgpack-able; `Config(**that)` is this value again."""
        return {name: getattr(self, name) for name in settings()}

    def agreed(self) -> dict[str, Any]:
        """The settings that all nodes of a run must share."""
        return {name: getattr(self, name) for name, f in settings().items() if f.metadata["agreed"]}

    def cluster_key(self) -> ClusterKey | None:
        """The key that nodes are to show each other, None for none.

        Raises:
            KeyFileError: the file cannot be used; see `keys.read`.
        """
        return None if self.insecure else keys.find(self.key_file)

    def show(self, name: str) -> str:
        """A setting's value as a person would write it; "" if it is unset."""
        return show(name, getattr(self, name))

    @property
    def worker_count(self) -> int:
        """Workers per node that is started here."""
        return int(self.workers.removeprefix("threads:"))

    @property
    def threads(self) -> bool:
        """Whether the workers are threads of the launching process."""
        return self.workers.startswith("threads:")


def settings() -> dict[str, dataclasses.Field[Any]]:
    """The fields of Config that are settings, in order; their metadata has "rule", "help" and "agreed"."""
    return {f.name: f for f in dataclasses.fields(Config) if f.metadata}


def environment_name(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def show(name: str, value: Any) -> str:
    """A value of a setting as a person would write it; "" for None."""
    rule: Rule = settings()[name].metadata["rule"]
    return "" if value is None else rule.show(value)


def reference() -> str:
    """The reference page, as Markdown: `adapm config --reference > docs/configuration.md`."""
    lines = [
        "# Settings",
        "",
        "<!-- Made by `adapm config --reference`; do not edit. -->",
        "",
        "A setting comes from, highest first: the command line (`adapm run --tick-rate 500`), the environment",
        "(`ADAPM_TICK_RATE=500`), a keyword (`adapm.run(..., tick_rate=500)`),",
        f"the file `{FILE}` in the current folder (`tick_rate = 500`), its default.",
        "`adapm config` prints the values in effect and where each came from. None of them needs tuning.",
        "What `key_file` protects, and what `insecure` gives up, is in [security.md](security.md).",
        "",
        "| keyword | option | environment | default | takes | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, f in settings().items():
        rule: Rule = f.metadata["rule"]
        meaning = f.metadata["help"] + (" Must be the same on all nodes." if f.metadata["agreed"] else "")
        cells = [
            f"`{name}`",
            f"`{option_name(name)}`",
            f"`{environment_name(name)}`",
            show(name, f.default) or "unset",
            rule.what,
            meaning,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def option_name(name: str) -> str:
    """The command-line option of a setting."""
    return "--" + name.replace("_", "-")


def _read(name: str, value: object, origin: str) -> Any:
    f = settings()[name]
    if value is None and f.default is None:
        return None
    rule: Rule = f.metadata["rule"]
    try:
        return rule.read(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{name} must be {rule.what}, got {value!r} (from: {origin})") from error


def _check_known(name: str, origin: str) -> None:
    if name not in settings():
        raise ConfigError(f"there is no setting {name!r} (from: {origin}){nearest(name, settings())}")


def _given(config: Config | Mapping[str, object] | None) -> Mapping[str, object]:
    if isinstance(config, Config):
        return {name: value for name, value in config.as_dict().items() if config.origin(name) != "default"}
    return config or {}


def _from_file(file: str | os.PathLike[str] | None) -> dict[str, object]:
    if file is None or not Path(file).is_file():
        return {}
    try:
        found: dict[str, object] = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        return found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"cannot read settings from {os.fspath(file)}: {error}") from error


def _from_environment(env: Mapping[str, str]) -> dict[str, object]:
    known = {environment_name(name): name for name in settings()}
    for variable in env:
        # Other programs may use our prefix for their own purposes; what looks like a slip of the keyboard is refused.
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if close:
                raise ConfigError(f"there is no setting {variable} (from: environment); did you mean {close[0]}?")
    return {name: env[variable] for variable, name in known.items() if env.get(variable)}
