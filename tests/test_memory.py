"""What may still be taken, read from copies of /proc and /sys/fs/cgroup."""

from __future__ import annotations

from pathlib import Path

from adapm.memory import Available, available


def files(root: Path, **contents: str) -> None:
    """Writes files whose names are given with __ for slashes."""
    for name, text in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:  100 kB\nMemAvailable:  64 kB\n"


def look(tmp_path: Path) -> Available:
    return available(tmp_path / "proc", tmp_path / "cgroup")


def test_machine_without_control_groups(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO)
    assert look(tmp_path) == Available(64 * 1024, "MemAvailable")


def test_unlimited_group(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a\n", cgroup__a__memory__max="")
    files(tmp_path / "cgroup" / "a", **{"memory.max": "max\n", "memory.current": "5000\n"})
    assert look(tmp_path).source == "MemAvailable"


def test_tightest_ancestor_counts(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n")
    files(tmp_path / "cgroup" / "a", **{"memory.max": "30000", "memory.current": "20000"})
    files(tmp_path / "cgroup" / "a" / "b", **{"memory.max": "40000", "memory.current": "10000"})
    limit = tmp_path / "cgroup" / "a" / "memory.max"
    assert look(tmp_path) == Available(10_000, f"the limit in {limit}")


def test_cached_files_give_way(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    group = {"memory.max": "30000", "memory.current": "20000", "memory.stat": "anon 5\ninactive_file 7000\n"}
    files(tmp_path / "cgroup", **group)
    assert look(tmp_path).amount == 17_000


def test_group_that_is_over_its_limit(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    files(tmp_path / "cgroup", **{"memory.max": "100", "memory.current": "200"})
    assert look(tmp_path).amount == 0


def test_version_1(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="3:cpu,memory:/job\n1:pids:/x\n")
    group = {
        "memory.limit_in_bytes": "9000",
        "memory.usage_in_bytes": "1000",
        "memory.stat": "total_inactive_file 500\n",
    }
    files(tmp_path / "cgroup" / "memory" / "job", **group)
    assert look(tmp_path).amount == 8500


def test_this_machine() -> None:
    assert 0 < available().amount < 2**63 - 1
