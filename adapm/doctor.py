"""What adapm needs of a machine: each thing is tried, not guessed from names and versions.

A check is a function that returns findings; `examine` runs them all.  What they look at can be given, for tests.
"""

from __future__ import annotations

import array
import asyncio
import importlib
import importlib.metadata
import mmap
import os
import platform
import re
import resource
import shutil
import socket
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from adapm.config import Config, format_bytes
from adapm.errors import AdapmError, ConfigError, KeyFileError
from adapm.memory import Available, available
from adapm.transport import GROUP, create

Status = Literal["ok", "warn", "fail"]

_TESTED = ((3, 10), (3, 13))
_LITTLE_MEMORY = 2**30
_TOO_LITTLE_MEMORY = 2**26
_VECTORS = ("avx512f", "avx2")  # what native/simd.c is compiled for, best first
_LINKED = 10.0  # seconds in which two ends on this machine are linked
_FEW_FILES = 1024  # a node with 100 workers or peers stays well below


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        check: what was looked at.
        status: "fail" if adapm cannot run, "warn" if something will be missing or slow.
        found: what is there.
        advice: what to do about it, "" if nothing.
    """

    check: str
    status: Status
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """As the JSON output has it."""
        return asdict(self)


def examine() -> list[Finding]:
    """Runs every check; takes well below a second and leaves nothing behind."""
    return [finding for check in CHECKS for finding in check()]


def interpreter(
    version: tuple[int, int] = sys.version_info[:2], name: str = sys.implementation.name
) -> Iterator[Finding]:
    """CPython, of a version that the tests run on."""
    found = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    low, high = (".".join(map(str, v)) for v in _TESTED)
    if name != "cpython" or version < _TESTED[0]:
        yield Finding("Python", "fail", found, f"use CPython {low} to {high}")
    elif version > _TESTED[1]:
        yield Finding("Python", "warn", found, f"tested are {low} to {high}; run the tests before you trust it")
    else:
        yield Finding("Python", "ok", found)


def kernel() -> Iterator[Finding]:
    """The compiled kernel loads."""
    try:
        module = importlib.import_module("adapm.kernel")
    except Exception as error:  # whatever keeps it from loading is the finding
        advice = f"loaded from {Path(__file__).parent}: if adapm is installed elsewhere, change to another folder"
        yield Finding("kernel", "fail", str(error), advice)
        return
    yield Finding("kernel", "ok", f"{Path(module.__file__ or '').parent}")


def vectors(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()) -> Iterator[Finding]:
    """The instructions with which the kernel copies and adds rows; it picks the widest that the processor has."""
    if machine == "x86_64":
        flags = set(re.findall(r"\w+", next(re.finditer(r"^flags\s*:.*$", cpuinfo.read_text(), re.M), [""])[0]))
        found = next((name for name in _VECTORS if name in flags), "sse2, slower than avx2 but correct")
    else:
        found = "the processor's basic ones"
    yield Finding("vectors", "ok", found)


def compiler(command: str | None = None) -> Iterator[Finding]:
    """A C compiler, which only building from source needs."""
    words = (command or os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    path = shutil.which(words[0]) or shutil.which("cc")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if path is None:
        yield Finding(
            "compiler", "warn", f"no {words[0]}", "only needed to build adapm from source: apt install gcc libc6-dev"
        )
    elif not header.is_file():
        yield Finding(
            "compiler", "warn", f"{path}, but no {header}", "only needed to build from source: apt install python3-dev"
        )
    else:
        yield Finding("compiler", "ok", path)


def processors(count: int | None = None) -> Iterator[Finding]:
    """Processors that this process may use."""
    n = len(os.sched_getaffinity(0)) if count is None else count
    advice = "" if n > 1 else "it works, but a node and its workers will take turns"
    yield Finding("processors", "ok" if n > 1 else "warn", str(n), advice)


def memory(available: Callable[[], Available] = available) -> Iterator[Finding]:
    """Memory that tables can have: what is free, within the limit of the container or job."""
    room = available()
    found = f"{format_bytes(room.amount)} may be taken (by {room.source})"
    if room.amount >= _LITTLE_MEMORY:
        yield Finding("memory", "ok", found)
    else:
        status: Status = "fail" if room.amount < _TOO_LITTLE_MEMORY else "warn"
        yield Finding("memory", status, found, "larger tables are refused: free memory or raise the limit")


def shared_memory() -> Iterator[Finding]:
    """An anonymous file can be made, sized, reserved and mapped, as a node does for its tables."""
    size = 2**20
    try:
        fd = os.memfd_create("adapm-doctor", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
            with mmap.mmap(fd, size) as mapped:
                mapped[:4] = b"adap"
        finally:
            os.close(fd)
    except OSError as error:
        advice = (
            "a node keeps its tables there; allow memfd_create in the container's seccomp profile, and raise ulimit -f"
        )
        yield Finding("shared memory", "fail", f"memfd: {error}", advice)
    else:
        yield Finding("shared memory", "ok", "memfd can be made, reserved and mapped")


def door() -> Iterator[Finding]:
    """Processes of one user can meet at an abstract unix socket, know each other, and hand over descriptors."""
    address = b"\0adapm-doctor-" + os.urandom(8).hex().encode()
    try:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as one:
            listener.bind(address)
            listener.listen()
            one.connect(address)
            other, _ = listener.accept()
            with other:
                uid = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
                if uid != os.getuid():
                    raise OSError(f"the peer's user id is {uid}, expected {os.getuid()}")
                _hand_over(one, other)
    except OSError as error:
        advice = "workers meet their node there; allow unix sockets, and use one user id for a node and its workers"
        yield Finding("unix sockets", "fail", f"abstract: {error}", advice)
    else:
        yield Finding("unix sockets", "ok", "abstract ones work and carry descriptors")


def _hand_over(one: socket.socket, other: socket.socket) -> None:
    with tempfile.TemporaryFile() as file:
        socket.send_fds(one, [b"x"], [file.fileno()])
        _, descriptors, _, _ = socket.recv_fds(other, 1, 1)
        for descriptor in array.array("i", descriptors):
            os.close(descriptor)
    if len(descriptors) != 1:
        raise OSError("a descriptor sent through it did not arrive")


def loopback() -> Iterator[Finding]:
    """Nodes on this machine can reach each other over TCP."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            pass
    except OSError as error:
        advice = "several nodes on this machine need 127.0.0.1: look at the firewall and the container's network"
        yield Finding("loopback", "warn", f"tcp: {error}", advice)
    else:
        yield Finding("loopback", "ok", "tcp connects on 127.0.0.1")


def cluster_key(load: Callable[[], Config] = Config.load) -> Iterator[Finding]:
    """The key that nodes of several machines must share: whether there is one, for this user only."""
    try:
        config = load()
        key = config.cluster_key()
    except ConfigError as error:
        yield Finding("cluster key", "fail", str(error), "correct the settings: `adapm config` prints them")
    except KeyFileError as error:
        yield Finding("cluster key", "fail", str(error), "nodes will not start before this is put right")
    else:
        if key is not None:
            found, advice = f"{key.path}, fingerprint {key.fingerprint}", "must be the same on all hosts"
        elif config.insecure:
            found, advice = "none, since insecure=true", "everybody who reaches the nodes may read and change all rows"
        else:
            found, advice = "none", "needed by nodes on several machines only: `adapm keys` makes one"
        yield Finding("cluster key", "warn" if config.insecure else "ok", found, advice)


def limits(
    files: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0], space: int = resource.getrlimit(resource.RLIMIT_AS)[0]
) -> Iterator[Finding]:
    """What ulimit allows: open files, and address space, of which a node maps more than it uses."""
    unlimited = resource.RLIM_INFINITY
    few = files != unlimited and files < _FEW_FILES
    advice = f"ulimit -n {_FEW_FILES}, or many workers and nodes will not find room" if few else ""
    yield Finding(
        "open files", "warn" if few else "ok", "no limit" if files == unlimited else f"up to {files:,}", advice
    )
    if space != unlimited:
        advice = "ulimit -v unlimited: a node maps all of its tables, also those parts that never become memory"
        yield Finding("address space", "warn", f"up to {format_bytes(space)}", advice)


def transports() -> Iterator[Finding]:
    """Every registered transport loads."""
    found = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in found:
        try:
            entry.load()
        except Exception as error:  # whatever keeps it from loading is the finding
            advice = f"not needed if you use another; else reinstall {entry.dist.name if entry.dist else entry.value}"
            yield Finding(f"transport {entry.name}", "warn", f"{type(error).__name__}: {error}", advice)
        else:
            yield Finding(f"transport {entry.name}", "ok", _transport_version(entry))
    if not found:
        yield Finding("transports", "warn", "adapm is on the path but not installed", "install it: pip install .")


def _find_ucx() -> object:
    return importlib.import_module("adapm.transports.ucx_library").load()


def ucx(find: Callable[[], object] = _find_ucx, devices: Path = Path("/sys/class/infiniband")) -> Iterator[Finding]:
    """UCX's library, and the lanes that it really gives to two ends on this machine."""
    try:
        library = find()
    except AdapmError as error:
        yield Finding("ucx", "warn", str(error), "needed by the transport ucx only")
        return
    passed_over = "; ".join(getattr(library, "passed_over", ()))
    yield Finding("ucx", "ok", f"{library}", f"passed over: {passed_over}" if passed_over else "")
    for variant in ("tcp", "shm", *(["ib"] if devices.is_dir() and any(devices.iterdir()) else [])):
        yield _lanes(f"ucx+{variant}")


def _lanes(name: str) -> Finding:
    """What two transports of this kind use between them."""
    try:
        lanes = asyncio.run(asyncio.wait_for(_linked_lanes(name), _LINKED))
    except (AdapmError, asyncio.TimeoutError) as error:
        advice = "the site's own UCX is needed: the wheel has no InfiniBand" if name == "ucx+ib" else "choose another"
        return Finding(name, "warn", f"{type(error).__name__}: {error}", advice)
    return Finding(name, "ok", f"lanes {' '.join(lanes)}")


async def _linked_lanes(name: str) -> tuple[str, ...]:
    ends = [create(name, node, on_frame=lambda peer, frame: None, on_lost=lambda peer, error: None) for node in (0, 1)]
    try:
        addresses = [await end.listen() for end in ends]
        await ends[1].connect(0, addresses[0])
        return ends[1].lanes(0)
    finally:
        await asyncio.gather(*(end.close(0.5) for end in ends))


def _transport_version(entry: importlib.metadata.EntryPoint) -> str:
    by = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    if entry.name != "zmq":
        return f"from {by}"
    zmq = importlib.import_module("zmq")
    return f"from {by}, pyzmq {zmq.pyzmq_version()} with libzmq {zmq.zmq_version()}"


def event_loop() -> Iterator[Finding]:
    """Uvloop, which nodes use when it is there."""
    try:
        yield Finding("event loop", "ok", f"uvloop {importlib.metadata.version('uvloop')}")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("event loop", "ok", "asyncio", "optional: pip install uvloop shortens the way to other nodes")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    interpreter,
    kernel,
    vectors,
    compiler,
    processors,
    memory,
    shared_memory,
    door,
    loopback,
    cluster_key,
    limits,
    transports,
    ucx,
    event_loop,
)
