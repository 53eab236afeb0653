"""What is compared: every technique with every transport, link and size; and who is run when."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from adapm.config import Config, environment_name, settings, show
from adapm.errors import ConfigError, UsageError
from adapm.transport import find

NONE: Final = "none"  # a link as fast as the machine makes it
ANY: Final = "-"  # what makes no difference: transport and link of a single node
_ELSEWHERE: Final = ("node", "rendezvous", "bind")  # settings of runs over several machines
_BANDWIDTH, _LATENCY = "link_bandwidth", "link_latency"

T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """One way to run the script.

    Attributes:
        technique: as the setting.
        transport: as the setting; ANY of a single node, as link.
        link: NONE, or bandwidth and latency of each link as in "1Gbit+500us".
        nodes: how many.
        workers: on each, as the setting.
    """

    technique: str
    transport: str
    link: str
    nodes: int
    workers: str

    @property
    def size(self) -> str:
        """Nodes x workers on each."""
        return f"{self.nodes}x{self.workers}"

    @property
    def name(self) -> str:
        """All of it, for people."""
        return ", ".join(part for part in (self.technique, self.transport, self.link, self.size) if part != ANY)

    def settings(self) -> dict[str, str]:
        """The settings that make it."""
        chosen = {"technique": self.technique, "nodes": str(self.nodes), "workers": self.workers}
        if self.nodes > 1:
            bandwidth, latency = parse_link(self.link)
            chosen |= {"transport": self.transport, _BANDWIDTH: bandwidth, _LATENCY: latency}
        return chosen

    def environment(self, **more: object) -> dict[str, str]:
        """The same, and more settings, for the environment of a script."""
        return {environment_name(name): str(value) for name, value in {**self.settings(), **more}.items()}


@dataclass(frozen=True)
class Turn:
    """A run that is to be done."""

    variant: Variant
    seed: int


def split(text: str, what: str) -> list[str]:
    """The parts of a list, which commas separate that are not in parentheses; each once.

    Raises:
        UsageError: there are none, one is empty, or parentheses do not match.
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise UsageError(f"{what} {text!r}: parentheses do not match")
    found = [part.strip() for part in parts]
    if not all(found):
        raise UsageError(f"{what} {text!r} has an empty place: name what is to be compared, separated by commas")
    return list(dict.fromkeys(found))


def parse_link(text: str) -> tuple[str, str]:
    """Bandwidth and latency, as the settings show them, of "none", "1Gbit", "0.5ms" or "1Gbit+0.5ms".

    Raises:
        UsageError: it is no such thing.
    """
    values = {_BANDWIDTH: 0.0, _LATENCY: 0.0}
    named: set[str] = set()
    for part in [] if text == NONE else text.split("+"):
        name, value = next(_readings(part), ("", 0.0))
        if not name or name in named:
            raise UsageError(
                f"link {text!r} is neither {NONE!r} nor a rate, a time, or both, such as 1Gbit, 0.5ms or 1Gbit+0.5ms"
            )
        named.add(name)
        values[name] = value
    bandwidth, latency = (show(name, value) for name, value in values.items())
    return bandwidth, latency


def _readings(part: str) -> Iterator[tuple[str, float]]:
    """Which settings a part of a link can be meant for; a mere number can be either, and so is none."""
    if not part.strip() or part.strip()[-1].isdigit():
        return
    for name in (_BANDWIDTH, _LATENCY):
        try:
            yield name, settings()[name].metadata["rule"].read(part)
        except ValueError:
            pass


def _link(text: str) -> str:
    """The same link is always written the same way."""
    return "+".join(part for part in parse_link(text) if part != "0") or NONE


def variants(given: Mapping[str, str | None]) -> list[Variant]:
    """All combinations; a single node has neither transport nor link.

    Args:
        given: lists by name - technique, transport, link, nodes, workers - or None for what the settings say.

    Raises:
        UsageError: a list is empty or has something that does not exist, or the settings are those of several machines.
    """
    loaded = Config.load()
    for name in _ELSEWHERE:
        if getattr(loaded, name) is not None:
            raise ConfigError(f"{name} is set (from: {loaded.origin(name)}), but all nodes are to start here: unset it")
    product = itertools.product(
        _each(given, "technique", loaded.technique, lambda text: str(_checked(technique=text).technique)),
        _each(given, "transport", loaded.transport, lambda text: str(_checked(transport=text).transport)),
        _each(given, "link", _of_settings(loaded), _link),
        _each(given, "nodes", str(loaded.nodes), lambda text: _checked(nodes=text).nodes),
        _each(given, "workers", loaded.workers, lambda text: str(_checked(workers=text).workers)),
    )
    found = dict.fromkeys(_make(*parts) for parts in product)
    for variant in found:
        _check(variant)
    return list(found)


def _of_settings(loaded: Config) -> str:
    shape = [loaded.show(name) for name in (_BANDWIDTH, _LATENCY) if getattr(loaded, name)]
    return "+".join(shape) or NONE


def _each(given: Mapping[str, str | None], name: str, default: str, read: Callable[[str], T]) -> list[T]:
    text = given.get(name)
    return [read(part) for part in split(default if text is None else text, name)]


def _checked(**setting: str) -> Config:
    return Config.load(cli=setting, env={}, file=None)


def _make(technique: str, transport: str, link: str, nodes: int, workers: str) -> Variant:
    if nodes == 1:
        transport, link = ANY, ANY
    return Variant(technique, transport, link, nodes, workers)


def _check(variant: Variant) -> None:
    Config.load(cli=variant.settings())
    if variant.transport == ANY:
        return
    find(variant.transport)
    if variant.transport == "inproc":
        raise ConfigError("transport 'inproc' connects nodes of one process, but scripts start processes: leave it out")


def turns(compared: Sequence[Variant], seeds: int) -> list[Turn]:
    """Every variant once per seed. Each round begins elsewhere, and every other one goes backwards.

    So what changes on the machine meanwhile hits all alike, and nobody always comes after the same.
    """
    found = []
    for seed in range(seeds):
        first = seed * len(compared) // seeds
        order = [*compared[first:], *compared[:first]]
        found += [Turn(variant, seed) for variant in (order[::-1] if seed % 2 else order)]
    return found


def varying(compared: Sequence[Variant]) -> list[str]:
    """The names of the fields in which variants differ, in order; the technique in any case."""
    names = [field.name for field in dataclasses.fields(Variant)]
    different = {name: {value(each, name) for each in compared} - {ANY} for name in names}
    return [name for name in names if name == "technique" or len(different[name]) > 1]


def value(variant: Variant, name: str) -> Any:
    """A field."""
    return getattr(variant, name)
