"""How much memory may still be taken: the machine's and the control groups' word on it; and keeping what was taken.

Shared memory that does not fit ends in SIGBUS or in the kernel killing some process, never in an error at the call that
asked for it; so we ask first.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO_UNIT = 1024

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT = 32 << 20  # bytes: what glibc allows
_KEPT = 256 << 20  # bytes, in all


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


def peak(proc: Path = _PROC) -> int:
    """The most bytes that this process ever had in memory, shared ones that it touched among them.

    Unlike getrusage's ru_maxrss, it does not begin with what the parent process had.
    """
    return next((_MEMINFO_UNIT * int(n) for n in _stat(proc / "self" / "status", "VmHWM:")), 0)


def keep_freed() -> None:
    """Has the C library keep the memory that this process frees, for the next of its kind.

    Minibatches and frames are large and are made anew all the time; to return each to the system and to get it
    again, page by page and cleared, costs more than most of what is computed with them.  What the user has set in the
    environment stays as it is; elsewhere than with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, name, size in ((_M_MMAP_THRESHOLD, "MMAP", _LARGEST_KEPT), (_M_TRIM_THRESHOLD, "TRIM", _KEPT)):
        if mallopt is not None and f"MALLOC_{name}_THRESHOLD_" not in os.environ:
            mallopt(option, size)
