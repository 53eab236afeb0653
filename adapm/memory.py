"""How much memory may still be taken: the machine's and the control groups' word on it.

Shared memory that does not fit ends in SIGBUS or in the kernel killing some process, never in an error at the call that
asked for it; so we ask first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO_UNIT = 1024


@dataclass(frozen=True)
class Available:
    """Memory that may be taken.

    Attributes:
        amount: bytes.
        source: who says so, for messages.
    """

    amount: int
    source: str


def available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Available:
    """The tightest of what the machine has free and what each control group of this process allows.

    Args:
        proc: where that file system is mounted.
        cgroups: likewise.
    """
    return min(
        [_machine(proc), *_unified(proc, cgroups), *_legacy(proc, cgroups)], key=lambda candidate: candidate.amount
    )


def _machine(proc: Path) -> Available:
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return Available(int(line.split()[1]) * _MEMINFO_UNIT, "MemAvailable")
    return Available(2**63 - 1, "a system without MemAvailable")


def _unified(proc: Path, cgroups: Path) -> Iterator[Available]:
    """Control groups, version 2: one hierarchy, in which every ancestor may set a limit."""
    for group in _groups(proc, cgroups, controller=""):
        yield from _room(group, "memory.max", "memory.current", "inactive_file")


def _legacy(proc: Path, cgroups: Path) -> Iterator[Available]:
    """Control groups, version 1: a hierarchy of its own for memory."""
    for group in _groups(proc, cgroups / "memory", controller="memory"):
        yield from _room(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(proc: Path, mount: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and its ancestors, as far as they can be seen from in here."""
    lines = _text(proc / "self" / "cgroup").splitlines()
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controller in controllers.split(","):
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _room(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[Available]:
    """The limit less what is used; cached files count as used, but give way."""
    limit_bytes, used = _text(group / limit), _text(group / usage)
    if limit_bytes.strip().isdigit() and used.strip().isdigit():
        cached = next((int(n) for n in _stat(group / "memory.stat", reclaimable)), 0)
        yield Available(max(0, int(limit_bytes) - int(used) + cached), f"the limit in {group / limit}")


def _stat(file: Path, name: str) -> Iterator[str]:
    return (line.split()[1] for line in _text(file).splitlines() if line.split()[:1] == [name])


def _text(file: Path) -> str:
    """The file's text, empty where there is no such file or it may not be read."""
    try:
        return file.read_text()
    except OSError:
        return ""
