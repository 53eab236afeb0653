"""The virtual network: a transport like any other, whose delays are known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from adapm.transports.inproc import InprocTransport

from adapm.simulator.choices import Choices
from adapm.simulator.loop import VirtualLoop
from adapm.simulator.network import Network
from adapm.transport import OnFrame, OnLost, Transport
from adapm.transport_testing import CHECKS, Check, Lab, Party, Peer, Unsuitable, echo, parties


class VirtualPeer(Peer):
    def __init__(self, network: Network, node: int) -> None:
        self._network, self._node = network, node

    async def stop(self) -> None:
        self._network.stall(self._node)

    async def resume(self) -> None:
        self._network.resume(self._node)

    async def kill(self) -> None:
        self._network.lose(0, self._node, "it was killed")
        self._network.lose(self._node, 0, "it was killed")


class VirtualLab(Lab):
    notices_stopped = False

    def __init__(self, loop: VirtualLoop) -> None:
        self.network = Network(loop, Choices(0, "network"))
        self._addresses = 0

    def create(self, node: int, *, on_frame: OnFrame, on_lost: OnLost, hasty: bool = False) -> Transport:
        timeout = 0.2 if hasty else 60.0
        transport: Transport = InprocTransport(
            node, on_frame=on_frame, on_lost=on_lost, network=self.network, connect_timeout=timeout
        )
        return transport

    def free_address(self) -> str:
        self._addresses += 1
        return f"inproc://free-{self._addresses}"

    @contextlib.asynccontextmanager
    async def peer(self, node: int, address: str, *, hasty: bool = False) -> AsyncIterator[Peer]:
        over = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            echo(lambda on_frame, on_lost: self.create(node, on_frame=on_frame, on_lost=on_lost), address, over)
        )
        yield VirtualPeer(self.network, node)
        over.set_result(None)
        await task


APPLYING = [check for check in CHECKS if str(check) != "idle_costs_nothing"]  # it sets processor time against real time


@pytest.mark.parametrize("check", APPLYING, ids=str)
def test_it_is_a_transport(check: Check) -> None:
    loop = VirtualLoop(Choices(0, "loop"))
    try:
        check.run(VirtualLab(loop), lambda body: loop.run(body, deadline=float("inf")))
    except Unsuitable as why:
        pytest.skip(str(why))


def run(main: Callable[[Party, Party, Network, VirtualLoop], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop(Choices(0, "loop"))
    lab = VirtualLab(loop)

    async def whole() -> None:
        async with parties(lab, 2) as (a, b):
            await main(a, b, lab.network, loop)

    loop.run(whole())


def test_a_frame_takes_as_long_as_its_bytes_and_the_way() -> None:
    async def main(a: Party, b: Party, network: Network, loop: VirtualLoop) -> None:
        link = network.link(0, 1)
        link.latency, link.jitter, link.per_byte = 0.5, 0.0, 0.001
        begin = loop.time()
        a.send(1, bytes(1000))
        a.send(1, bytes(2000))
        assert a.transport.queued(1) == 3000
        await b.has(1)
        assert loop.time() - begin == pytest.approx(1.5)
        await b.has(2)
        assert loop.time() - begin == pytest.approx(3.5)
        b.send(0, b"the other way has its own delays")
        await a.has(1)
        assert loop.time() - begin < 3.6

    run(main)


def test_a_stalled_link_delivers_everything_later_in_order() -> None:
    async def main(a: Party, b: Party, network: Network, loop: VirtualLoop) -> None:
        network.link(0, 1).stalled_until = loop.time() + 2
        for i in range(20):
            a.send(1, bytes([i]))
        await asyncio.sleep(1.9)
        assert b.received == 0
        network.link(0, 1).stalled_until = loop.time() + 1  # and again
        await asyncio.sleep(0.9)
        assert b.received == 0
        await b.has(20)
        assert b.from_peer(0) == [bytes([i]) for i in range(20)]

    run(main)


def test_each_end_of_a_broken_link_learns_of_it_in_its_own_time() -> None:
    async def main(a: Party, b: Party, network: Network, loop: VirtualLoop) -> None:
        network.lose(0, 1, "somebody stumbled over the cable")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [peer for peer, _ in a.lost] == [1]
        assert "stumbled" in str(a.lost[0][1])
        b.send(0, b"into the void")
        await asyncio.sleep(1)
        assert (a.received, b.lost) == (0, [])
        network.lose(1, 0, "here, too")
        await asyncio.sleep(1)
        assert [peer for peer, _ in b.lost] == [0]

    run(main)
