"""What a planned run needs of this machine and of the way to others: tried here, before anything is started.

`examine` looks at what can be seen from this machine alone; `meet` has the nodes of all machines come together for a
moment, without rows or work, and so finds everything that would keep them apart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from adapm import descriptors, launch, network, transport
from adapm.config import Config, format_bytes
from adapm.doctor import Finding
from adapm.errors import AdapmError, AddressInUse, KeyFileError, KeyNeeded, TransportError
from adapm.meeting import interface_towards
from adapm.tables import Table
from adapm.worker import BlockingWorker

_REACHED: Final = 3.0  # seconds in which another machine answers
_SHM: Final = Path("/dev/shm")  # noqa: S108  # nothing is put there by us
_SHM_PER_LINK: Final = 8 << 20  # bytes that UCX takes there for a pair of nodes, about


def examine(config: Config) -> list[Finding]:
    """What can be said of this run without the other machines; nothing if it has one node."""
    if config.nodes == 1:
        return []
    return [finding for check in CHECKS for finding in check(config)]


def known_transport(config: Config) -> Iterator[Finding]:
    """The transport is installed, and can be made."""
    try:
        _end(config)
    except AdapmError as error:
        yield Finding("transport", "fail", str(error), "adapm doctor lists those that are there")
    else:
        yield Finding("transport", "ok", config.transport)


def listening(config: Config) -> Iterator[Finding]:
    """A node can listen where it is to listen."""
    where = config.bind or (config.rendezvous if config.node in (None, 0) else None)
    try:
        if where is None and config.rendezvous is not None:
            where = asyncio.run(interface_towards(config.rendezvous))
        yield Finding("listening", "ok", f"possible at {asyncio.run(_listen(config, where))}")
    except AddressInUse as error:
        yield Finding("listening", "fail", str(error), "adapm runs there already, or another program: see ss -ltnp")
    except (KeyFileError, KeyNeeded) as error:
        yield Finding("listening", "fail", str(error), "adapm keys makes a key; every host needs the same")
    except TransportError as error:
        advice = "rendezvous is an address of node 0's machine, bind one of this machine: see ip addr"
        yield Finding("listening", "fail", str(error), advice)
    except OSError as error:
        yield Finding("listening", "fail", *_no_way(config, error))


def _end(config: Config) -> transport.Transport:
    return network.configured(config, 0, on_frame=lambda peer, frame: None, on_lost=lambda peer, error: None)


async def _listen(config: Config, where: str | None) -> str:
    end = _end(config)
    try:
        return await end.listen(where)
    finally:
        await end.close(0)


def reaching(config: Config) -> Iterator[Finding]:
    """Somebody answers at the rendezvous; for nodes other than node 0."""
    if config.rendezvous is None or config.node in (None, 0):
        return
    parts = urllib.parse.urlsplit(config.rendezvous)
    try:
        asyncio.run(_knock(parts.hostname or "", parts.port or 0))
    except ConnectionRefusedError:
        advice = "right if node 0 is not started yet; adapm doctor --meet on all machines at once finds out"
        yield Finding("rendezvous", "warn", f"nobody listens at {config.rendezvous}", advice)
    except asyncio.TimeoutError:
        advice = "look at the firewalls in between, and whether the address is one that this network leads to"
        yield Finding("rendezvous", "fail", f"no answer from {config.rendezvous} in {_REACHED:g} s", advice)
    except OSError as error:
        yield Finding("rendezvous", "fail", *_no_way(config, error))
    else:
        yield Finding("rendezvous", "ok", f"somebody listens at {config.rendezvous}")


async def _knock(host: str, port: int) -> None:
    _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _REACHED)
    writer.close()
    await writer.wait_closed()


def _no_way(config: Config, error: OSError) -> tuple[str, str]:
    found = f"no way to {config.rendezvous}: {error.strerror or error}"
    return found, "correct the name or address, or the machine's routes and name service (getent hosts NAME, ip route)"


def open_files(config: Config, limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[1]) -> Iterator[Finding]:
    """Nodes may open a file for each link and worker."""
    per_link = transport.find(config.transport)[0].descriptors
    needed = descriptors.of_node(config.nodes, config.worker_count, per_link)
    found = f"a node opens up to {needed:,}"
    if limit != resource.RLIM_INFINITY and limit < needed:
        yield Finding("open files", "fail", f"{found}, {limit:,} is the limit", f"raise it: ulimit -Hn {needed}")
    else:
        yield Finding("open files", "ok", found)


def shared_memory(config: Config, free: Callable[[], int] | None = None) -> Iterator[Finding]:
    """UCX may keep its lanes between nodes of this machine in /dev/shm; rows are not there."""
    scheme, _, variant = config.transport.partition("+")
    if scheme != "ucx" or variant not in ("", "shm") or config.node is not None:
        return
    room, needed = (free or _free)(), _SHM_PER_LINK * config.nodes * (config.nodes - 1)
    if room < needed:
        found = f"{format_bytes(room)} free, about {format_bytes(needed)} needed"
        advice = "enlarge it (mount -o remount,size=..., --shm-size of the container), or use transport ucx+tcp"
        yield Finding(f"{_SHM}", "warn", found, advice)
    else:
        yield Finding(f"{_SHM}", "ok", f"{format_bytes(room)} free")


def _free() -> int:
    found = os.statvfs(_SHM)
    return found.f_bavail * found.f_frsize


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    known_transport,
    listening,
    reaching,
    open_files,
    shared_memory,
)


def meet(config: Config) -> Finding:
    """Has the node or nodes of this machine meet those of the others, which must do the same now."""
    table = Table("doctor", rows=config.nodes, dim=1)
    begun = time.monotonic()
    try:
        links = launch.run(_links, [table], config=dataclasses.replace(config, workers="threads:1"))
    except (AdapmError, OSError) as error:
        advice = "docs/troubleshooting.md says what each message means"
        return Finding("meeting", "fail", f"{type(error).__name__}: {error}", advice)
    return Finding("meeting", "ok", f"all nodes met, in {time.monotonic() - begun:.1f} s; links here: {links[0]}")


def _links(worker: BlockingWorker) -> str:
    node = worker.statistics().node
    kinds = {"shared memory": node.links_shm, "tcp": node.links_tcp, "rdma": node.links_rdma}
    return ", ".join(f"{count} over {kind}" for kind, count in kinds.items() if count) or "none"
