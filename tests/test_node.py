"""The node, whole, among others in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from adapm.transports.inproc import InprocNetwork, InprocTransport

from adapm import BlockingWorker, Config, Table, Worker, control
from adapm import node as node_module
from adapm.door import enter
from adapm.errors import (
    AdapmError,
    AddressInUse,
    Closed,
    NodeLost,
    OutOfMemory,
    ProtocolError,
    RendezvousError,
    WorkerDied,
)
from adapm.node import Node
from adapm.simulator.frames import HEAD, Type
from adapm.transport import create
from cluster import Cluster
from raw_segment import LOCK, SEQ, RawSegment

TABLES = [Table("a", rows=50, dim=3), Table("b", rows=7, columns={"x": 2, "y": 1}, init={"y": np.ones((7, 1))})]
KEYS = np.arange(50)
ONES = np.ones((50, 3))
LANE_HEAD = b"\1" + bytes(7)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(params=["inproc", "tcp", "zmq", "ucx+tcp", "ucx+shm"])
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- the work


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_workers_of_all_nodes_push_to_the_same_rows(nodes: int, transport: str) -> None:
    async def task(worker: Worker) -> float:
        for _ in range(10):
            await worker.push("a", KEYS, ONES)
        await worker.barrier()
        return float((await worker.pull("a", KEYS)).sum())

    async def main() -> None:
        async with Cluster(TABLES, nodes, workers=2, transport=transport) as cluster:
            assert await cluster.run(task) == [50 * 3 * 10 * 2 * nodes] * (2 * nodes)
            await cluster.finish()
            await cluster.settle()
            assert (cluster.main_copies("a") == 20 * nodes).all()
            assert (cluster.main_copies("b") == [0, 0, 1]).all()

    run(main())


def test_blocking_workers_work_in_threads(transport: str) -> None:
    def task(worker: BlockingWorker) -> tuple[int, float]:
        worker.intent("a", KEYS, 0, 100)
        worker.push("a", KEYS, ONES)
        worker.barrier()
        return worker.id, float(worker.pull("a", KEYS).sum())

    async def main() -> None:
        async with Cluster(TABLES, 2, workers=2, transport=transport) as cluster:
            assert await cluster.run_threads(task) == [(i, 600.0) for i in range(4)]

    run(main())


def test_sole_interest_relocates_and_stays(transport: str) -> None:
    async def main() -> None:
        async with Cluster(TABLES, 2, transport=transport) as cluster:
            worker = await cluster.worker(node=1)
            worker.intent("a", KEYS, 0, 5)
            await worker.wait_sync()
            assert worker.is_local("a", KEYS).all()
            await cluster.settle()
            assert {cluster.owner("a", key) for key in KEYS} == {1}
            for _ in range(6):
                worker.advance_clock()
            await cluster.settle()
            assert {cluster.owner("a", key) for key in KEYS} == {1}

    run(main())


def test_a_cluster_at_rest_sends_nothing_and_sets_no_timer(transport: str) -> None:
    async def main() -> None:
        async with Cluster(TABLES, 2, transport=transport) as cluster:
            workers = [await cluster.worker(node) for node in range(2)]
            for worker in workers:
                worker.intent("a", KEYS, 0, 1000)
                await worker.push("a", KEYS, ONES)
                await worker.wait_sync()
            await cluster.settle()
            frames = cluster.frames
            for worker in workers:
                await worker.pull("a", KEYS)  # all local
            await cluster.settle()
            assert cluster.frames == frames
            assert all(node.resting for node in cluster.nodes)

    run(main())


# ---- barriers and the end


def test_barriers_hold_everyone_and_wait_for_no_one_who_is_finished(transport: str) -> None:
    passed: list[tuple[int, int]] = []

    async def task(worker: Worker) -> None:
        for round_ in range(worker.id + 1):  # worker 3 goes on when the others are finished
            await worker.barrier()
            passed.append((round_, worker.id))

    async def whole(cluster: Cluster, node: int) -> None:
        ticket = await cluster.enter(node)
        worker = Worker(ticket)
        await task(worker)
        worker.close()
        ticket.finished()

    async def main() -> None:
        async with Cluster(TABLES, 2, workers=2, transport=transport) as cluster:
            await asyncio.gather(*(whole(cluster, node) for node in (0, 0, 1, 1)))
            await asyncio.gather(*(node.ended() for node in cluster.nodes))

    run(main())
    assert [round_ for round_, _ in passed] == sorted(round_ for round_, _ in passed)
    assert len(passed) == 1 + 2 + 3 + 4


def test_after_a_barrier_everyone_sees_everything(transport: str) -> None:
    async def task(worker: Worker) -> None:
        worker.intent("a", KEYS, 0, 1000)
        await worker.wait_sync()
        for round_ in range(1, 20):
            await worker.push("a", KEYS, ONES)
            await worker.barrier()
            assert (await worker.pull("a", KEYS) == round_ * worker.num_workers).all()
            await worker.barrier()

    async def main() -> None:
        async with Cluster(TABLES, 3, workers=2, transport=transport) as cluster:
            await cluster.run(task)

    run(main())


def test_nodes_end_when_the_last_worker_of_all_is_finished(transport: str) -> None:
    async def main() -> None:
        async with Cluster(TABLES, 2, transport=transport) as cluster:
            tickets = [await cluster.enter(node) for node in range(2)]
            ended = [asyncio.ensure_future(node.ended()) for node in cluster.nodes]
            tickets[0].finished()
            await cluster.settle()
            assert not any(end.done() for end in ended)
            tickets[1].finished()
            await asyncio.gather(*ended)

    run(main())


# ---- failures: everyone is told


async def failures(*waiting: Any) -> list[BaseException]:
    return await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("end", ["raises", "dies"])
def test_a_worker_that_fails_ends_the_run_everywhere(end: str, transport: str) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 2, workers=2, transport=transport)
        with pytest.raises(WorkerDied):
            async with cluster:
                await cluster.enter(0)
                bad = await cluster.enter(0)
                others = [await cluster.worker(1), await cluster.worker(1)]
                waiting = [asyncio.ensure_future(worker.barrier()) for worker in others]
                if end == "raises":
                    bad.finished("ValueError: no")
                bad.close()
                errors = await failures(*waiting, *(node.ended() for node in cluster.nodes))
                assert {type(error) for error in errors} == {WorkerDied}
                what = "raised ValueError: no" if end == "raises" else f"process {os.getpid()}, died without a word"
                assert all(what in str(error) and "worker 1 (slot 1 of node 0)" in str(error) for error in errors)
                raise errors[0]

    run(main())


def test_a_cut_link_is_a_lost_node_for_both_and_all_of_their_workers() -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 3)
        with pytest.raises(NodeLost):
            async with cluster:
                workers = [await cluster.worker(node) for node in range(3)]
                waiting = [asyncio.ensure_future(worker.barrier()) for worker in workers[:2]]
                await cluster.settle()
                cluster.network.cut(1, 2)
                errors = await failures(*waiting, *(node.ended() for node in cluster.nodes))
                assert {type(error) for error in errors} == {NodeLost}
                assert {error.node for error in errors} <= {1, 2}
                with pytest.raises(NodeLost):
                    await workers[2].wait_sync()
                raise errors[0]

    run(main())


def test_open_operations_end_when_a_node_is_lost(transport: str) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 2, transport=transport)
        with pytest.raises(AdapmError):
            async with cluster:
                worker = await cluster.worker(0)
                await cluster.nodes[1].close()
                await worker.pull("a", KEYS)

    run(main())


def test_closing_before_the_end_tells_workers(transport: str) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 1, transport=transport)
        with pytest.raises(Closed, match="closed before the run had ended"):
            async with cluster:
                worker = await cluster.worker(0)
                waiting = asyncio.ensure_future(worker.wait_sync())
                await waiting
                await asyncio.gather(cluster.nodes[0].close(), cluster.nodes[0].close())
                await worker.barrier()

    run(main())


@pytest.mark.parametrize(
    "frame", [control.encode_frame(control.Welcome([""], [1])), bytes(8) + b"noise", b"\1" + bytes(7) + b"noise"]
)
def test_a_peer_that_talks_nonsense_ends_the_run(frame: bytes) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 2)
        with pytest.raises(ProtocolError):
            async with cluster:
                cluster.nodes[1]._transport.send(0, frame)
                await cluster.nodes[0].ended()

    run(main())


def test_who_breaks_the_protocol_is_named_everywhere_and_heard_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            cluster = Cluster(TABLES, 3)
            await cluster._open()
            stack.push_async_callback(cluster._close)
            astray = cluster.nodes[2]._transport
            for _ in range(3):
                astray.send(0, LANE_HEAD + b"noise")
            why = "node 0 dropped node 2: node 2 broke the protocol in a frame of 13 bytes: its head is cut off"
            for node in cluster.nodes:
                with pytest.raises(ProtocolError, match=why):
                    await node.ended()
            await _turns()
            assert cluster.nodes[0]._store.segment.statistics().refused == 1

    run(main())
    assert "node 0 drops node 2, the 1. of those it had to: node 2 broke" in caplog.text


def test_a_stranger_cannot_end_the_run() -> None:
    """Whatever it says or sends before it has joined, and whichever number it gives itself."""

    async def main() -> None:
        cluster = Cluster(TABLES, 2)
        async with cluster:
            for number, target in ((7, 0), (70_000, 1)):
                for said in (LANE_HEAD + b"noise", bytes(8) + b"noise", control.encode_frame(control.Linked())):
                    stranger = InprocTransport(
                        number, on_frame=lambda *_: None, on_lost=lambda *_: None, network=cluster.network
                    )
                    await stranger.listen()
                    await stranger.connect(target, cluster.nodes[target]._meeting._address)
                    stranger.send(target, said)
                    stranger.send(target, said)
                    await _turns()
                    await stranger.close()
                    number += 1
            assert not any(node._end.done() for node in cluster.nodes)
            assert await cluster.run(lambda worker: worker.pull("a", KEYS[:1])) is not None

    run(main())


def test_rows_that_come_too_early_are_refused() -> None:
    async def main() -> list[object]:
        config = Config(nodes=2, workers="1", transport="inproc", startup_timeout=5.0)
        network = InprocNetwork()
        make = lambda on_frame, on_lost: InprocTransport(0, on_frame=on_frame, on_lost=on_lost, network=network)  # noqa: E731
        node = Node(config, TABLES, 0, make)
        other = InprocTransport(1, on_frame=lambda *_: None, on_lost=lambda *_: None, network=network)
        address = await node.listen()
        await other.listen()
        await other.connect(0, address)
        joining = asyncio.ensure_future(node.join())
        await _turns()
        tables, agreed = [table.describe() for table in TABLES], config.agreed()
        other.send(0, control.encode_frame(control.Join(control.VERSION, 1, "inproc://x", 1, tables, agreed)))
        other.send(0, LANE_HEAD)
        try:
            return await asyncio.gather(joining, return_exceptions=True)
        finally:
            await node.close()
            await other.close()

    (error,) = run(main())
    assert isinstance(error, ProtocolError)
    assert "node 0 dropped node 1: node 1 sent rows before this node had its own" in str(error)


@pytest.mark.parametrize("name", ["tcp", "ucx+tcp", "ucx+shm"])
def test_nothing_is_kept_of_a_frame_that_no_node_of_the_run_makes(name: str) -> None:
    """Though its sender is a node like others, to the transport."""

    async def main() -> None:
        lost = asyncio.get_running_loop().create_future()
        node = Node(Config(nodes=2, transport=name), TABLES, 0)
        member = create(name, 1, on_frame=lambda *_: None, on_lost=lambda peer, error: lost.set_result(peer))
        try:
            address, _ = await node.listen(), await member.listen()
            await member.connect(0, address)
            member.send(0, bytes(control.MAX_FRAME))
            assert not lost.done()
            member.send(0, bytes(control.MAX_FRAME + 1))
            assert await lost == 0
        finally:
            await asyncio.gather(node.close(), member.close())

    run(main())


@pytest.mark.parametrize(("leaves", "notices"), [(2, 0), (0, 1)])
def test_who_says_goodbye_before_the_end_is_noticed(leaves: int, notices: int) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 3)
        why = f"node {notices} dropped node {leaves}: node {leaves} said goodbye before the run had ended"
        with pytest.raises(ProtocolError, match=why):
            async with cluster:
                cluster.nodes[leaves]._transport.send(notices, control.encode_frame(control.Bye()))
                await cluster.nodes[2 - leaves].ended()

    run(main())


def test_a_member_may_say_goodbye_before_node_0_has_heard_its_own_word_of_the_end() -> None:
    async def main() -> None:
        async with Cluster(TABLES, 2) as cluster:
            head = cluster.nodes[0]
            for node in range(2):
                head._coordinator.finish(node)
            head._on_frame(1, memoryview(control.encode_frame(control.Bye())))
            await head.ended()

    run(main())


def test_only_node_0_starts_a_run() -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 3)
        with pytest.raises(ProtocolError, match="node 1 dropped node 2: node 2 sent Start to node 1"):
            async with cluster:
                cluster.nodes[2]._transport.send(1, control.encode_frame(control.Start()))
                await cluster.nodes[1].ended()

    run(main())


def test_a_frame_that_met_a_locked_row_goes_on_though_its_node_rests() -> None:
    """Nobody tells the node when a stopped worker goes on: it has to look."""

    async def main() -> None:
        async with Cluster(TABLES, 2) as cluster:
            worker = await cluster.worker(node=0)
            await cluster.settle()
            key = next(key for key in range(50) if cluster.owner("a", key) == 1)
            segment = RawSegment(cluster.nodes[1]._store.segment.fd)
            with contextlib.closing(segment):
                table = segment.tables[0]
                word = table.word(key)
                table.put_word(key, word & ~SEQ | LOCK | 9)
                pull = asyncio.ensure_future(worker.pull("a", [key]))
                await _turns()
                assert cluster.nodes[1]._backlog
                table.put_word(key, word & ~SEQ | word + 1 & SEQ)
                assert (await pull == 0).all()

    run(main())


def test_who_floods_a_node_or_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "ALLOWANCE", 1000)
    monkeypatch.setattr(node_module, "CHECK", 0)

    async def main(attack: Callable[[Cluster], None], error: type[AdapmError], why: str) -> None:
        cluster = Cluster(TABLES, 2, heap=2**16)
        with pytest.raises(error, match=why):
            async with cluster:
                attack(cluster)
                await cluster.nodes[0].ended()

    def flood(cluster: Cluster) -> None:
        key = next(key for key in range(50) if cluster.owner("a", key) == 0)
        node = cluster.nodes[0]
        with contextlib.closing(RawSegment(node._store.segment.fd)) as segment:
            segment.tables[0].put_word(key, segment.tables[0].word(key) & ~SEQ | LOCK | 9)
        pull = HEAD.pack(1, 40, Type.PULL, 0, 1, 0, 0, 0, 0, 3) + struct.pack("<II", key, 0)
        for _ in range(6_000):
            cluster.nodes[1]._transport.send(0, LANE_HEAD + pull)

    def stall(cluster: Cluster) -> None:
        cluster.network.stall(1)
        for _ in range(400):
            cluster.nodes[0]._send(1, memoryview(bytes(1000)))

    run(main(flood, ProtocolError, "node 0 dropped node 1: it goes on sending while a row"))
    run(main(stall, NodeLost, "node 1 is lost to node 0: it takes nothing of what it asked for"))


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_bug_in_a_callback_ends_the_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = Cluster(TABLES, 1)
        with pytest.raises(AdapmError, match=r"node 0 met a bug: ZeroDivisionError\('oops'\)"):
            async with cluster:
                worker = await cluster.worker(0)

                def tick(elapsed: float) -> bool:
                    raise ZeroDivisionError("oops")

                monkeypatch.setattr(cluster.nodes[0].lane, "tick", tick)
                await worker.wait_sync()
                await cluster.nodes[0].ended()

    run(main())


# ---- coming together


async def meet(*nodes: Node) -> list[object]:
    """What each node's `join` comes to; closes them all."""
    try:
        return await asyncio.gather(*(node.join() for node in nodes), return_exceptions=True)
    finally:
        await asyncio.gather(*(node.close() for node in nodes))


def test_different_settings_are_refused_on_both_sides() -> None:
    async def main() -> list[object]:
        config = Config(nodes=2, workers="1", seed=3, startup_timeout=1.0)
        first = Node(config, TABLES, 0)
        second = Node(dataclasses.replace(config, rendezvous=await first.listen(), seed=4), TABLES, 1)
        await second.listen()
        return await meet(first, second)

    first, second = run(main())
    assert isinstance(first, RendezvousError)
    assert isinstance(second, RendezvousError)
    assert "seed is 4 on node 1 and 3 on node 0" in str(first)
    assert "nodes 1 have not joined node 0 at tcp://" in str(first)
    assert "seed is 4 on node 1 and 3 on node 0" in str(second)


def test_different_tables_are_refused_on_both_sides() -> None:
    async def main() -> list[object]:
        config = Config(nodes=2, workers="1", startup_timeout=1.0)
        first = Node(config, TABLES, 0)
        joined = dataclasses.replace(config, rendezvous=await first.listen())
        second = Node(joined, [Table("a", rows=51, dim=3), TABLES[1]], 1)
        await second.listen()
        return await meet(first, second)

    for error in run(main()):
        assert isinstance(error, RendezvousError)
        assert "table 'a' differs: rows is 51 on node 1 and 50 on node 0" in str(error)


def test_a_second_node_of_the_same_id_is_refused() -> None:
    async def main() -> list[object]:
        config = Config(nodes=3, workers="1", startup_timeout=1.0)
        first = Node(config, TABLES, 0)
        joined = dataclasses.replace(config, rendezvous=await first.listen())
        twins = [Node(joined, TABLES, 1), Node(joined, TABLES, 1)]
        for twin in twins:
            await twin.listen()
        return await meet(first, *twins)

    first, *twins = run(main())
    assert all(isinstance(error, RendezvousError) for error in (first, *twins))
    assert "nodes 2 have not joined" in str(first)
    assert any("refused" in str(twin) for twin in twins)


def test_a_node_that_nobody_joins_names_the_missing() -> None:
    async def main() -> list[object]:
        node = Node(Config(nodes=3, startup_timeout=0.05), TABLES, 0)
        await node.listen()
        return await meet(node)

    with pytest.raises(
        RendezvousError, match=r"nodes 1, 2 have not joined node 0 at tcp://\S+ after startup_timeout=0.05"
    ):
        raise run(main())[0]


def test_a_node_that_finds_nobody_names_the_address() -> None:
    async def main() -> list[object]:
        node = Node(Config(nodes=2, node=1, rendezvous="tcp://127.0.0.1:1", startup_timeout=0.05), TABLES, 1)
        await node.listen()
        return await meet(node)

    with pytest.raises(RendezvousError, match=r"node 1 cannot .* node 0 at tcp://127.0.0.1:1"):
        raise run(main())[0]


def test_a_taken_address_is_named() -> None:
    async def main() -> None:
        first = Node(Config(nodes=2), TABLES, 0)
        address = await first.listen()
        second = Node(Config(nodes=2, bind=address), TABLES, 0)
        try:
            with pytest.raises(AddressInUse, match=address):
                await second.listen()
        finally:
            await asyncio.gather(first.close(), second.close())

    run(main())


def test_joining_can_be_cancelled() -> None:
    async def main() -> None:
        node = Node(Config(nodes=2), TABLES, 0)
        await node.listen()
        joining = asyncio.ensure_future(node.join())
        await asyncio.sleep(0)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        await node.close()

    run(main())


def test_a_memory_limit_below_the_rows_at_home_is_refused() -> None:
    async def main() -> None:
        big = Table("big", rows=100_000, dim=16)
        with pytest.raises(OutOfMemory, match="memory=1,048,576"):
            Node(Config(memory="1MiB"), [big], 0)

    run(main())


def test_a_node_closes_at_any_moment_of_its_life() -> None:
    async def main() -> None:
        config = Config(workers="1")
        await Node(config, TABLES, 0).close()
        listening = Node(config, TABLES, 0)
        await listening.listen()
        await listening.close()
        joined = Node(config, TABLES, 0)
        await joined.listen()
        address = await joined.join()
        ticket = await asyncio.to_thread(enter, address)
        await joined.close()
        assert isinstance(ticket.why(), Closed)
        ticket.close()

    run(main())
