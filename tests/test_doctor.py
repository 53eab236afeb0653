import errno
import importlib.metadata
import os
import socket

import pytest

from adapm import doctor
from adapm.doctor import Finding
from adapm.errors import LibraryMissing
from adapm.memory import Available


def only(findings) -> Finding:
    (finding,) = findings
    return finding


def test_every_check_reports_here_and_what_is_not_ok_has_advice():
    findings = doctor.examine()
    assert len(findings) >= len(doctor.CHECKS)
    assert [f for f in findings if f.status == "fail"] == []
    assert [f for f in findings if f.status != "ok" and not f.advice] == []


@pytest.mark.parametrize(
    ("version", "name", "status"),
    [((3, 9), "cpython", "fail"), ((3, 10), "cpython", "ok"), ((3, 99), "cpython", "warn"), ((3, 11), "pypy", "fail")],
)
def test_interpreter(version, name, status):
    assert only(doctor.interpreter(version, name)).status == status


def test_a_kernel_that_does_not_load_is_a_finding(monkeypatch):
    def broken(name: str):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = only(doctor.kernel())
    assert (finding.status, "libgomp" in finding.found) == ("fail", True)


@pytest.mark.parametrize(
    ("flags", "found"), [("fpu avx2 avx512f", "avx512f"), ("fpu avx2 avx512fp", "avx2"), ("fpu sse2", "sse2")]
)
def test_vectors(tmp_path, flags, found):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: x\nflags\t\t: {flags}\nbugs\t\t: avx2\n")
    assert only(doctor.vectors(cpuinfo, "x86_64")).found.startswith(found)


def test_no_compiler_is_no_failure(monkeypatch):
    monkeypatch.setenv("PATH", "")
    finding = only(doctor.compiler("no-such-compiler"))
    assert (finding.status, finding.found) == ("warn", "no no-such-compiler")


@pytest.mark.parametrize(("amount", "status"), [(2**20, "fail"), (2**28, "warn"), (2**34, "ok")])
def test_memory(amount, status):
    finding = only(doctor.memory(lambda: Available(amount, "a test")))
    assert finding.status == status
    assert "a test" in finding.found


def test_shared_memory_refused(monkeypatch):
    def refused(name: str, flags: int):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    finding = only(doctor.shared_memory())
    assert finding.status == "fail"
    assert "seccomp" in finding.advice


def test_unix_sockets_refused(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: -2)
    finding = only(doctor.door())
    assert finding.status == "fail"
    assert "expected -2" in finding.found


def test_no_loopback(monkeypatch):
    def refused(*args, **kwargs):
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_server", refused)
    assert only(doctor.loopback()).status == "warn"


def test_limits():
    plenty, tight = list(doctor.limits(4096, -1)), list(doctor.limits(256, 2**30))
    assert [(f.check, f.status) for f in plenty] == [("open files", "ok")]
    assert [(f.check, f.status) for f in tight] == [("open files", "warn"), ("address space", "warn")]


def test_transports_that_do_not_load_are_named(monkeypatch):
    broken = importlib.metadata.EntryPoint("carrier", "no.such.module:Pigeon", "adapm.transports")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    finding = only(doctor.transports())
    assert (finding.check, finding.status) == ("transport carrier", "warn")


def test_ucx_that_is_missing_is_no_failure():
    def missing() -> object:
        raise LibraryMissing("no libucp.so.0: pip install 'adapm[ucx]'")

    finding = only(doctor.ucx(missing))
    assert (finding.check, finding.status, "adapm[ucx]" in finding.found) == ("ucx", "warn", True)


@pytest.mark.parametrize("transport", ["ucx"])
def test_ucx_and_the_lanes_that_it_gives(transport, tmp_path):
    (tmp_path / "mlx5_0").touch()  # a machine with InfiniBand
    first, tcp, shm, ib = doctor.ucx(devices=tmp_path)
    assert (first.check, first.status) == (transport, "ok")
    assert (tcp.check, tcp.status, tcp.found) == ("ucx+tcp", "ok", "lanes tcp/lo")
    assert (shm.check, shm.status, "memory" in shm.found) == ("ucx+shm", "ok", True)
    assert ib.check == "ucx+ib"
    assert ib.status == "ok" or ("NoLanes" in ib.found and "the site's own UCX" in ib.advice)


def test_processors():
    assert only(doctor.processors(1)).status == "warn"
    assert only(doctor.processors(2)).status == "ok"
