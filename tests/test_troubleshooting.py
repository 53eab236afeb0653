"""docs/troubleshooting.md: whoever makes the mistake gets the message that is listed there."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from adapm.transports import tcp, ucx, ucx_library

import adapm
import launch_tasks
from adapm import Config, Table, descriptors, keys
from adapm.control import VERSION, Join
from adapm.errors import AdapmError, LibraryMissing, NoWorker, TorchMissing
from adapm.gathering import Rendezvous
from adapm.node import Node
from adapm.patience import Wait
from cluster import Cluster

TABLES = [Table("a", rows=50, dim=2)]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "troubleshooting.md"
HASTE = {"startup_timeout": 0.3, "workers": "1"}


def rows() -> Iterator[tuple[str, str, str]]:
    """Message, cause and remedy of each line of the page's tables."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            yield cells[0].strip("`"), cells[1], cells[2]


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


# ---- mistakes: each returns what is said to whoever makes it


async def start(node: int = 1, nodes: int = 2, tables: list[Table] = TABLES, **settings: object) -> str:
    """One node, on its own."""
    try:
        started = Node(Config(nodes=nodes, node=node, **{**HASTE, **settings}), tables, node)
    except AdapmError as error:
        return said(error)
    try:
        await started.listen()
        await started.join()
    except AdapmError as error:
        return said(error)
    finally:
        await started.close()
    raise AssertionError("it did start")


def listener(backlog: int = 8) -> tuple[socket.socket, str]:
    server = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    return server, f"tcp://127.0.0.1:{server.getsockname()[1]}"


async def taken_port() -> str:
    server, address = listener()
    with server:
        return await start(0, rendezvous=address)


async def wrong_interface() -> str:
    return await start(0, rendezvous="tcp://198.51.100.7:7000", insecure=True)


async def no_key() -> str:
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", home)
        return await start(0, rendezvous="tcp://198.51.100.7:7000")


async def another_key() -> str:
    """Node 1 has another key than node 0; what node 1 is told."""
    with tempfile.TemporaryDirectory() as folder:
        mine, other = (keys.make(f"{folder}/{name}").path for name in ("mine", "other"))
        first = Node(Config(nodes=2, key_file=str(mine), **HASTE), TABLES, 0)
        try:
            return await start(rendezvous=await first.listen(), key_file=str(other))
        finally:
            await first.close()


async def readable_key() -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = keys.make(f"{folder}/key").path
        file.chmod(0o644)
        return await start(key_file=str(file), rendezvous="tcp://127.0.0.1:1")


async def unknown_host() -> str:
    return await start(rendezvous="tcp://no-such-host.invalid:7000")


async def nobody_there() -> str:
    return await start(rendezvous="tcp://127.0.0.1:1")


async def firewall() -> str:
    """Who listens accepts nobody, and its queue is full: the system drops what comes, as firewalls do."""
    server, address = listener(backlog=0)
    with server, socket.create_connection(server.getsockname()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tcp, "_ATTEMPT", 0.1)
        return await start(rendezvous=address)


async def another_program() -> str:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400\r\n\r\n" * 9)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        return await start(rendezvous=f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def nobody_comes() -> str:
    return await start(0, rendezvous="tcp://127.0.0.1:0")


async def same_id() -> str:
    config = Config(nodes=3, **HASTE)
    first = Node(config, TABLES, 0)
    joined = dataclasses.replace(config, rendezvous=await first.listen())
    twins = [Node(joined, TABLES, 1), Node(joined, TABLES, 1)]
    try:
        for twin in twins:
            await twin.listen()
        ends = await asyncio.gather(*(node.join() for node in (first, *twins)), return_exceptions=True)
        return " ".join(map(str, ends))
    finally:
        await asyncio.gather(*(node.close() for node in (first, *twins)))


def refusal(**theirs: object) -> str:
    """What node 0 of two answers to a node 1 that differs in this."""
    mine = Join(VERSION, 0, "", 1, [table.describe() for table in TABLES], Config(nodes=2).agreed())
    join = dataclasses.replace(mine, **{"node": 1, **theirs})  # type: ignore[arg-type]
    return str(Rendezvous(mine, 2).join(join.node, join))


def config(**settings: object) -> str:
    with pytest.raises(AdapmError) as caught:
        Config(**settings)  # type: ignore[arg-type]
    return said(caught.value)


async def late_workers() -> str:
    node = Node(Config(**HASTE), TABLES, 0)
    try:
        await node.join()
        await node.ended()
    except AdapmError as error:
        return said(error)
    finally:
        await node.close()
    raise AssertionError("it did not mind")


def run(task: Callable[..., object], *args: object, **settings: object) -> str:
    tables = [settings.pop("table", Table("t", rows=20, dim=2))]
    with pytest.raises(AdapmError) as caught:
        adapm.run(task, tables, args=args, **settings)  # type: ignore[arg-type]
    return said(caught.value)


def few_files() -> str:
    with pytest.raises(AdapmError) as caught:
        descriptors.allow(1 << 40, "node 3")
    return said(caught.value)


def no_ucx() -> str:
    with pytest.raises(LibraryMissing) as caught:
        ucx_library.load_first(["/no/such/libucp.so.0"])
    return said(caught.value)


def no_lanes() -> str:
    async def listen() -> None:
        end = ucx.UcxTransport(0, on_frame=lambda peer, frame: None, on_lost=lambda peer, error: None)
        await end.listen()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCX_TLS", "no_such_lane")
        with pytest.raises(AdapmError) as caught:
            asyncio.run(listen())
    return said(caught.value)


def no_torch() -> str:
    """Where it is installed, as if it were not."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TorchMissing) as caught:
        patch.delitem(sys.modules, "adapm.torch", raising=False)
        patch.setitem(sys.modules, "torch", None)
        importlib.import_module("adapm.torch")
    return said(caught.value)


def no_worker() -> str:
    with pytest.raises(NoWorker) as caught:
        adapm.current_worker()
    return said(caught.value)


def module_without_worker() -> str:
    torch = pytest.importorskip("torch")
    from adapm.torch import Embedding

    with pytest.raises(NoWorker) as caught:
        Embedding(50, 2, table="a")(torch.arange(3))
    return said(caught.value)


async def lost(cut: Callable[[Cluster], None]) -> str:
    with pytest.raises(AdapmError) as caught:
        async with Cluster(TABLES, 2, transport="tcp") as cluster:
            cut(cluster)
            await cluster.nodes[0].ended()
    return said(caught.value)


def silence(cluster: Cluster) -> None:
    """Node 1 says nothing any more; a second has passed when it is missed."""
    first, second = (node._transport for node in cluster.nodes)
    second._timer.cancel()
    first._patience, first._heartbeat = 0.3, 0.1
    first._timer.cancel()
    first._beat(asyncio.get_running_loop().time())


def breakage(cluster: Cluster) -> None:
    for link in cluster.nodes[1]._transport._links.values():
        link.connection._sock.shutdown(socket.SHUT_RDWR)


def killed_node() -> str:
    pids: list[int] = []

    class Recorded(adapm.launch.NodeProcess):
        def __init__(self, node: int) -> None:
            super().__init__(node)
            pids.append(self._process.pid)

        async def ready(self) -> None:
            await super().ready()
            os.kill(pids[0], signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapm.launch.NodeProcess", Recorded)
        return run(launch_tasks.count, 1, workers="threads:1")


async def explanations() -> str:
    """All that a node has to say about who waits."""
    async with Cluster(TABLES, 2, workers=3) as cluster:
        pulls, syncs, *others = [await cluster.worker(node) for node in (0, 0, 0, 1, 1, 1)]
        node, far = cluster.nodes[0], [key for key in range(50) if cluster.owner("a", key) == 1]
        tasks = [asyncio.ensure_future(worker.barrier()) for worker in others]
        text = await _until(node._waits, "a barrier waits for")
        cluster.network.stall(1)
        tasks.append(asyncio.ensure_future(_await(pulls.pull("a", far))))
        syncs.intent("a", far, 0, 9)
        tasks.append(asyncio.ensure_future(syncs.wait_sync()))
        text += await _until(node._waits, "wait_sync for")
        cluster.network.resume(1)
        await asyncio.gather(*tasks, pulls.barrier(), syncs.barrier())
    return text


async def _await(wait: Awaitable[object]) -> None:
    await wait


async def _until(waits: Callable[[], Iterator[Wait]], text: str) -> str:
    """All explanations, once one of them has this text."""
    for _ in range(100_000):
        found = "".join(f"{wait.explanation()}\n" for wait in waits())
        if text in found:
            return found
        await asyncio.sleep(0)
    raise AssertionError(found)


def done(coroutine: Callable[..., Awaitable[str]], *args: object) -> Callable[[], str]:
    async def main() -> str:
        return await coroutine(*args)

    return lambda: asyncio.run(main())


WAITING = functools.cache(done(explanations))  # one run gives them all

MISTAKES: dict[str, Callable[[], str]] = {
    "AddressInUse: … is in use: another process listens there": done(taken_port),
    "cannot listen at …; is it an address of this machine?": done(wrong_interface),
    "there is no way to the rendezvous …": done(unknown_host),
    "cannot reach node 0 at …: nobody listens there": done(nobody_there),
    "cannot reach node 0 at …: no answer; is a firewall in between?": done(firewall),
    "something answers there that is no adapm node; is the port right?": done(another_program),
    "nodes … have not joined node 0 at …": done(nobody_comes),
    "there is no room for a node …: the run has nodes 0 to …": lambda: refusal(node=2),
    "settings differ: …": lambda: refusal(config=Config(nodes=3).agreed()),
    "node … runs adapm …, node 0 runs …: install one for both": lambda: refusal(version="0.0.1"),
    "tables differ: …": lambda: refusal(tables=[Table("b", rows=50, dim=2).describe()]),
    "there is another node with the id … already": done(same_id),
    "KeyNeeded: … is on a network, and this node has no cluster key": done(no_key),
    "AuthenticationFailed: … give all nodes the same key file": done(another_key),
    "KeyFileError: the key file … has mode …": done(readable_key),
    "ConfigError: node=… but nodes=…": lambda: config(node=2, nodes=2),
    "ConfigError: node=… of … needs rendezvous": lambda: config(node=1, nodes=2),
    "workers … of node … did not enter within startup_timeout=…": done(late_workers),
    "TooFewFiles: … is the limit": few_files,
    "OutOfMemory: the tables need … bytes on this node, but … are free": lambda: run(
        launch_tasks.count, 1, table=Table("huge", rows=2**32 - 2, dim=1024), workers="threads:1"
    ),
    "UnknownTransport: no transport … is installed": lambda: run(launch_tasks.count, 1, transport="pigeon"),
    "LibraryMissing: the ucx transport needs UCX's library": no_ucx,
    "NoLanes: …": no_lanes,
    "TorchMissing: adapm.torch needs PyTorch …": no_torch,
    "NoWorker: this thread is no worker of a run: …": no_worker,
    "NoWorker: modules and optimizers of adapm.torch work in a worker, …": module_without_worker,
    "NodeLost: node … is lost to node …: nothing was heard from it for … s": done(lost, silence),
    "NodeLost: node … is lost to node …: the connection broke": done(lost, breakage),
    "NodeDied: node … was killed by signal 9": killed_node,
    "WorkerDied: worker … was killed by signal …": lambda: run(launch_tasks.die, 1, -9),
    "workers … of node … have not come to a barrier": WAITING,
    "a barrier waits for nodes …": WAITING,
    "waits in a pull from table … for … rows at node …": WAITING,
    "waits in wait_sync for … rows at node …": WAITING,
}


def test_every_line_is_provoked() -> None:
    assert [message for message, _, _ in rows()] == list(MISTAKES)
    assert all(cause and remedy for _, cause, remedy in rows())


@pytest.mark.parametrize("message", MISTAKES)
def test_the_mistake_gets_the_message(message: str, request: pytest.FixtureRequest) -> None:
    if message.startswith("NoLanes"):
        try:
            ucx_library.load()
        except LibraryMissing as error:
            pytest.skip(str(error))
    found = MISTAKES[message]()
    assert re.search(".+?".join(map(re.escape, message.split("…"))), found, re.DOTALL), found
