"""Going in, being turned away, and noticing that the other side is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from adapm import Config, Table, control, door
from adapm.control import VERSION, Admitted, Done, Failed, Hello
from adapm.door import Door, Ticket, enter
from adapm.errors import AdapmError, NodeDied, OutOfMemory, ProtocolError, TooManyWorkers
from adapm.segment import Segment
from adapm.stream import BlockingStream

T = TypeVar("T")
TABLES = [Table("t", rows=10, dim=4)]


class House:
    """What is behind the door, and what it says; blocking functions of workers run in threads."""

    def __init__(self, slots: int = 2) -> None:
        self.undo = contextlib.ExitStack()
        self.segment = Segment.create(TABLES, workers=slots)
        self.undo.callback(self.segment.close)
        self.fds = [os.eventfd(0) for _ in range(slots + 1)]
        for fd in self.fds:
            self.undo.callback(os.close, fd)
        self.heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
        self.door = Door(
            (self.segment.fd, self.fds[0]),
            self.fds[1:],
            admission=self.admission,
            on_done=lambda slot, error: self.heard.put_nowait(("done", slot, error)),
            on_died=lambda slot, pid: self.heard.put_nowait(("died", slot, pid)),
        )

    def admission(self, slot: int) -> Admitted:
        tables = [table.pack(arrays=False) for table in TABLES]
        return Admitted(slot, 10 + slot, 5, 6, 20, 99, tables, Config(tick_rate=7).as_dict())

    async def __aenter__(self) -> House:
        self.address = await self.door.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.close()
        self.undo.close()

    async def enter(self, slot: int | None = None) -> Ticket:
        ticket = await asyncio.to_thread(enter, self.address, slot)
        self.undo.callback(ticket.close)
        return ticket

    async def talk(self, stream: BlockingStream, message: control.Message) -> control.Message:
        await asyncio.to_thread(stream.connect, self.address)
        stream.send(message)
        return await asyncio.to_thread(stream.receive, 10.0)


def inside(body: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with House() as house:
            await body(house)

    asyncio.run(asyncio.wait_for(main(), 30))


@contextlib.contextmanager
def stream() -> Iterator[BlockingStream]:
    with contextlib.closing(BlockingStream()) as made:
        yield made


def test_a_worker_gets_everything_it_needs() -> None:
    async def body(house: House) -> None:
        ticket = await house.enter()
        assert (ticket.slot, ticket.worker, ticket.node, ticket.num_nodes, ticket.num_workers) == (0, 10, 5, 6, 20)
        assert (ticket.seed, ticket.config, ticket.tables) == (99, Config(tick_rate=7), TABLES)
        os.eventfd_write(ticket.node_fd, 3)
        assert os.eventfd_read(house.fds[0]) == 3
        os.eventfd_write(ticket.worker_fd, 4)
        assert os.eventfd_read(house.fds[1]) == 4
        assert not any(os.get_inheritable(fd) for fd in (ticket.node_fd, ticket.worker_fd, ticket.segment.fd))

    inside(body)


def test_slots_are_given_out_once() -> None:
    async def body(house: House) -> None:
        assert (await house.enter(1)).slot == 1
        with pytest.raises(TooManyWorkers, match="slot 1 of the node is taken"):
            await house.enter(1)
        with pytest.raises(TooManyWorkers, match="slot 2 of the node is not one of its 2"):
            await house.enter(2)
        ticket = await house.enter()
        assert ticket.slot == 0
        ticket.finished()
        ticket.close()
        assert await house.heard.get() == ("done", 0, None)
        with pytest.raises(TooManyWorkers, match="all 2 worker slots of the node are taken: start"):
            await house.enter()

    inside(body)


def test_another_version_is_turned_away_with_both() -> None:
    async def body(house: House) -> None:
        with stream() as worker:
            answer = await house.talk(worker, Hello("0.0", None, 1))
        error = control.expect(answer, Failed).rebuild()
        assert isinstance(error, ProtocolError)
        assert "adapm 0.0" in str(error)
        assert VERSION in str(error)

    inside(body)


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", bytes(64), control.encode_stream(Done(None))])
def test_noise_is_turned_away_and_costs_nothing(noise: bytes) -> None:
    async def body(house: House) -> None:
        with socket.socket(socket.AF_UNIX) as stranger:
            await asyncio.to_thread(stranger.connect, house.address.replace("@", "\0"))
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            while await asyncio.to_thread(stranger.recv, 4096):
                pass
        assert {(await house.enter()).slot, (await house.enter()).slot} == {0, 1}

    inside(body)


def test_a_worker_says_how_it_ended() -> None:
    async def body(house: House) -> None:
        (await house.enter()).finished()
        (await house.enter()).finished("ValueError: no")
        assert {await house.heard.get(), await house.heard.get()} == {("done", 0, None), ("done", 1, "ValueError: no")}

    inside(body)


def test_hanging_up_without_a_word_is_death() -> None:
    async def body(house: House) -> None:
        (await house.enter()).close()
        assert await house.heard.get() == ("died", 0, os.getpid())

    inside(body)


CHILD_WITH_HEIR = """
import os, subprocess, sys
from adapm.door import enter
ticket = enter(sys.argv[1])
os.set_inheritable(ticket.fileno(), True)
heir = subprocess.Popen(["cat"], close_fds=False)  # ends with its standard input
print(os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_worker_is_noticed_though_its_child_holds_the_connection() -> None:
    async def body(house: House) -> None:
        command = [sys.executable, "-c", CHILD_WITH_HEIR, house.address]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env) as worker:  # noqa: ASYNC220  # to know its pid
            assert await house.heard.get() == ("died", 0, worker.pid)

    inside(body)


def test_a_failed_node_says_why_also_to_who_comes_later() -> None:
    async def body(house: House) -> None:
        early = await house.enter()
        house.door.fail(OutOfMemory("no room"))
        late = await house.enter()
        for ticket in (early, late):
            error = ticket.why()
            assert isinstance(error, OutOfMemory)
            assert str(error) == "no room"

    inside(body)


def test_a_dead_node_says_nothing() -> None:
    tickets: list[Ticket] = []

    async def body(house: House) -> None:
        tickets.append(await asyncio.to_thread(enter, house.address))

    inside(body)
    error = tickets[0].why()
    tickets[0].finished()
    tickets[0].close()
    tickets[0].close()
    assert isinstance(error, NodeDied)
    assert error.node == 5


def test_nobody_behind_the_door() -> None:
    with pytest.raises(NodeDied, match="nobody answers at the door @adapm-nowhere"):
        enter("@adapm-nowhere")


def test_a_door_that_closes_during_the_welcome() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0adapm-test-slam")
        listener.listen()

        async def main() -> None:
            entering = asyncio.ensure_future(asyncio.to_thread(enter, "@adapm-test-slam"))
            guest, _ = await asyncio.to_thread(listener.accept)
            guest.close()
            with pytest.raises(NodeDied):
                await entering

        asyncio.run(main())


def test_other_users_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(house: House) -> None:
        monkeypatch.setattr(door.os, "getuid", lambda: 123456)
        with pytest.raises(AdapmError):
            await house.enter()

    inside(body)
