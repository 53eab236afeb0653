"""Long waits are explained: by whom for whom, at growing intervals, and no longer than they last."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from adapm import Config, Table
from adapm.errors import NodeLost, RendezvousError
from adapm.node import Node
from adapm.patience import Patience, Wait
from adapm.worker import Worker
from cluster import Cluster

TABLES = [Table("a", rows=50, dim=2)]
KEYS = np.arange(50)


class Clock:
    """As much of an event loop as timers need."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        timer = (self.now + delay, callback)
        self.timers.append(timer)
        return Cancelled(lambda: self.timers.remove(timer))  # type: ignore[return-value]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and min(self.timers)[0] <= end:
            timer = min(self.timers)
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end


class Cancelled:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


class Log:
    """Patience over a list of topics, and when it told what."""

    def __init__(self, seconds: float = 3.0) -> None:
        self.clock = Clock()
        self.topics: list[str] = []
        self.told: list[tuple[float, str, float]] = []
        self.patience = Patience(self.clock, seconds, self.waits, self.tell)  # type: ignore[arg-type]

    def waits(self) -> Iterator[Wait]:
        for topic in self.topics:
            yield Wait(topic, topic.upper)

    def tell(self, explanation: str, seconds: float) -> None:
        self.told.append((self.clock.now, explanation, seconds))


def test_a_wait_is_told_at_growing_intervals() -> None:
    log = Log()
    log.topics = ["x"]
    log.patience.wake()
    log.patience.wake()
    log.clock.run(60)
    assert log.told == [(6, "X", 3), (9, "X", 6), (15, "X", 12), (27, "X", 24), (51, "X", 48)]


def test_waits_that_end_are_forgotten_and_nothing_is_looked_at_when_there_is_none() -> None:
    log = Log()
    log.topics = ["x", "y"]
    log.patience.wake()
    log.clock.run(4)
    log.topics = ["y", "z"]
    log.clock.run(3)
    assert log.told == [(6, "Y", 3)]
    log.topics = []
    log.clock.run(3)
    assert log.clock.timers == []
    log.topics = ["y"]
    log.patience.wake()
    log.clock.run(3)
    assert len(log.told) == 1
    log.patience.stop()
    assert log.clock.timers == []
    log.patience.wake()
    assert log.clock.timers == []


def test_no_patience_never_looks() -> None:
    log = Log(0)
    log.patience.wake()
    assert log.clock.timers == []


# ---- what nodes tell


@contextmanager
def awaited_log() -> Iterator[Callable[[str], Awaitable[None]]]:
    """Returns once a warning with this text has been logged."""
    news, lines = asyncio.Event(), list[str]()

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            news.set()

    async def heard(text: str) -> None:
        while not any(text in line for line in lines):
            news.clear()
            await asyncio.wait_for(news.wait(), 20)

    ear = Ear(logging.WARNING)
    logging.getLogger("adapm.node").addHandler(ear)
    try:
        yield heard
    finally:
        logging.getLogger("adapm.node").removeHandler(ear)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapm.node.PATIENCE", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_barrier_names_the_workers_of_the_node_and_everybody_is_told_of_the_nodes() -> None:
    async def main() -> None:
        with awaited_log() as heard:
            async with Cluster(TABLES, 3, workers=2) as cluster:
                workers = [await cluster.worker(node) for node in (0, 0, 1, 1, 2, 2)]
                waiting = [asyncio.ensure_future(worker.barrier()) for worker in workers[3:]]
                await heard(
                    "node 1: workers [2] of node 1 have not come to a barrier at which others of this node wait"
                )
                await heard("node 0: a barrier waits for nodes [0, 1], and here for workers [0, 1] of node 0")
                await heard("node 1: a barrier waits for nodes [0, 1], and here for workers [2] of node 1")
                await heard("node 2: a barrier waits for workers of nodes [0, 1]")
                await asyncio.gather(*waiting, *(worker.barrier() for worker in workers[:3]))

    asyncio.run(main())


def at_home(cluster: Cluster, node: int) -> list[int]:
    return [key for key in KEYS if cluster.owner("a", key) == node]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("verb", ["pull", "push", "set"])
def test_an_operation_names_table_rows_and_node(verb: str) -> None:
    async def main() -> None:
        with awaited_log() as heard:
            async with Cluster(TABLES, 2) as cluster:
                worker: Worker = await cluster.worker(0)
                far = at_home(cluster, 1)
                values = () if verb == "pull" else (np.ones((len(far), 2)),)
                cluster.network.stall(1)
                done = asyncio.ensure_future(asyncio.wait_for(getattr(worker, verb)("a", far, *values), 30))
                preposition = {"pull": "from", "push": "to", "set": "of"}[verb]
                who = "node 0: worker 0 (slot 0 of node 0) waits in a"
                await heard(f"{who} {verb} {preposition} table 'a' for {len(far)} rows at node 1")
                cluster.network.resume(1)
                await done

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_wait_sync_names_rows_and_then_answers() -> None:
    async def main() -> None:
        with awaited_log() as heard:
            async with Cluster(TABLES, 2) as cluster:
                worker = await cluster.worker(0)
                far = at_home(cluster, 1)
                other = await cluster.worker(1)
                other.intent("a", far, 0, 9)  # so that node 0 gets replicas
                await other.wait_sync()
                cluster.network.stall(1)
                worker.intent("a", far, 0, 9)
                synced = asyncio.ensure_future(worker.wait_sync())
                who = "node 0: worker 0 (slot 0 of node 0) waits in wait_sync"
                await heard(f"{who} for {len(far)} rows at node 1")
                cluster.network.resume(1)
                await synced
                cluster.nodes[1].lane.receive = lambda peer, frame, offset=0: len(frame) - offset  # it answers nothing
                await worker.push("a", far, np.ones((len(far), 2)))
                synced = asyncio.ensure_future(worker.wait_sync())
                await heard(f"{who} for answers of nodes [1]")
                synced.cancel()
                raise Enough

    with pytest.raises(Enough):
        asyncio.run(main())


class Enough(Exception):
    """The rest of the run is of no interest."""


@pytest.mark.usefixtures("impatient")
def test_a_start_says_who_is_missing_and_why() -> None:
    async def main() -> None:
        with awaited_log() as heard:
            config = Config(nodes=2, node=1, rendezvous="tcp://127.0.0.1:1", workers="1", startup_timeout=20.0)
            lonely, first = Node(config, TABLES, 1), Node(Config(nodes=2, workers="1"), TABLES, 0)
            await lonely.listen()
            address = await first.listen()
            joining = [asyncio.ensure_future(node.join()) for node in (lonely, first)]
            await heard("node 1: node 1 cannot reach node 0 at tcp://127.0.0.1:1: nobody listens there, or it cannot")
            await heard(f"node 0: nodes 1 have not joined node 0 at {address}")
            await asyncio.gather(lonely.close(), first.close())
            await asyncio.gather(*joining, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_a_rendezvous_without_a_way_there() -> None:
    async def main() -> None:
        with awaited_log() as heard:
            there = "tcp://no-such-host.invalid:7000"
            node = Node(Config(nodes=2, node=1, rendezvous=there, startup_timeout=0.4), TABLES, 1)
            try:
                with pytest.raises(RendezvousError, match=rf"no way to the rendezvous {there}: .* startup_timeout=0.4"):
                    await node.listen()
                await heard(f"node 1: there is no way to the rendezvous {there}")
            finally:
                await node.close()

    asyncio.run(main())


@pytest.mark.usefixtures("impatient")
def test_workers_that_do_not_enter_are_named_and_given_up() -> None:
    async def main() -> None:
        with awaited_log() as heard:
            async with Cluster(TABLES, 1, workers=3, startup_timeout=0.4) as cluster:
                await cluster.worker(0)
                await heard("node 0: workers [1, 2] of node 0 have not entered")
                await cluster.nodes[0].ended()

    with pytest.raises(RendezvousError, match=r"workers \[1, 2\] of node 0 did not enter within startup_timeout=0.4 s"):
        asyncio.run(main())


def test_a_lost_node_is_named_once() -> None:
    async def main() -> None:
        async with Cluster(TABLES, 2, transport="tcp") as cluster:
            await cluster.worker(0)
            for link in list(cluster.nodes[1]._transport._links.values()):
                link.connection._sock.shutdown(socket.SHUT_RDWR)
            await cluster.nodes[0].ended()

    with pytest.raises(NodeLost) as caught:
        asyncio.run(main())
    assert str(caught.value).count("node 1 is lost") == 1
    assert str(caught.value).endswith("; rows it held are gone")
