"""The virtual loop: time, order, owners; what a program of asyncio may count on, and what is the seed's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from adapm.simulator.choices import Choices
from adapm.simulator.invariants import Violation
from adapm.simulator.loop import LATENESS, OWNER, VirtualLoop, context_of

NODE = "node", 0


def run(main: Callable[[VirtualLoop], Coroutine[Any, Any, Any]], seed: int = 0, **options: float) -> Any:
    loop = VirtualLoop(Choices(seed, "loop"))
    return loop.run(main(loop), **options)


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(8)]
    yield fds
    for fd in fds:
        os.close(fd)


# ---- time


def test_an_hour_passes_at_once() -> None:
    async def main(loop: VirtualLoop) -> float:
        await asyncio.sleep(3600)
        return loop.time()

    assert run(main, deadline=4000) == 3600


def test_timers_come_in_order_and_callbacks_in_that_of_their_calls() -> None:
    seen: list[object] = []

    async def main(loop: VirtualLoop) -> None:
        for delay in (0.3, 0.1, 0.2):
            loop.call_later(delay, seen.append, delay)
        loop.call_later(0.15, seen.append, "never").cancel()
        for i in range(3):
            loop.call_soon(seen.append, i)
        await asyncio.sleep(1)

    run(main)
    assert seen == [0, 1, 2, 0.1, 0.2, 0.3]


def test_timers_of_owners_are_a_little_late_and_never_early() -> None:
    late: list[float] = []

    async def main(loop: VirtualLoop) -> None:
        for i in range(50):
            context_of(NODE).run(loop.call_at, 0.001 * i, lambda due: late.append(loop.time() - due), 0.001 * i)
        await asyncio.sleep(1)

    run(main)
    assert min(late) >= 0
    assert 0 < max(late) <= LATENESS


def test_what_asyncio_offers_works_on_it() -> None:
    async def main(loop: VirtualLoop) -> None:
        assert await loop.run_in_executor(None, sum, [1, 2]) == 3
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.create_future(), 5)
        assert loop.time() == pytest.approx(5)
        event = asyncio.Event()
        loop.call_later(1, event.set)
        await asyncio.gather(event.wait(), asyncio.sleep(0.5))
        assert loop.is_running() and asyncio.get_running_loop() is loop

    run(main)


def test_an_end_that_never_comes_is_noticed() -> None:
    async def waits(loop: VirtualLoop) -> None:
        await loop.create_future()

    async def turns(loop: VirtualLoop) -> None:
        while True:  # noqa: ASYNC110  # that is what is to be noticed
            await asyncio.sleep(1)

    with pytest.raises(Violation, match="waits for ever"):
        run(waits)
    with pytest.raises(Violation, match="no end"):
        run(turns, deadline=10)


def test_an_exception_that_nobody_awaits_ends_the_run() -> None:
    async def main(loop: VirtualLoop) -> None:
        loop.call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(Violation, match="ZeroDivisionError"):
        run(main)


def test_tasks_that_are_left_are_cancelled() -> None:
    ended: list[str] = []

    async def lasting() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append("cancelled")

    async def main(loop: VirtualLoop) -> None:
        loop.create_task(lasting())
        await asyncio.sleep(1)

    run(main)
    assert ended == ["cancelled"]


# ---- descriptors


def noticed(fds: list[int], seed: int) -> list[tuple[int, float]]:
    """Which of them are noticed when, by their place in the order of registration."""
    seen: list[tuple[int, float]] = []

    async def main(loop: VirtualLoop) -> None:
        def read(place: int, fd: int) -> None:
            os.eventfd_read(fd)
            seen.append((place, loop.time()))

        for place, fd in enumerate(fds):
            os.eventfd_write(fd, 1)
            context_of(("node", place)).run(loop.add_reader, fd, read, place, fd)
        await asyncio.sleep(1)
        for fd in fds:
            assert loop.remove_reader(fd)
            assert not loop.remove_reader(fd)

    run(main, seed)
    return seen


def test_when_descriptors_are_noticed_is_the_seeds_and_not_their_numbers(eventfds: list[int]) -> None:
    first = noticed(eventfds, seed=1)
    assert sorted(place for place, _ in first) == list(range(8))
    assert first == noticed(eventfds[::-1], seed=1)
    assert first != noticed(eventfds, seed=2)


def test_sockets_accept_send_and_receive() -> None:
    async def main(loop: VirtualLoop) -> bytes:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as guest:
            listener.bind("\0adapm-test-simulator")
            listener.listen()
            listener.setblocking(False)
            loop.call_later(1, guest.connect, "\0adapm-test-simulator")
            host, _ = await loop.sock_accept(listener)
            with host:
                receiving = loop.create_task(loop.sock_recv(host, 100))
                await asyncio.sleep(1)
                guest.setblocking(False)
                await loop.sock_sendall(guest, b"hello")
                return await receiving

    assert run(main) == b"hello"


# ---- owners


def test_a_paused_owner_does_nothing_and_then_everything_in_order(eventfds: list[int]) -> None:
    seen: list[tuple[str, float]] = []

    async def main(loop: VirtualLoop) -> None:
        def note(what: str) -> None:
            seen.append((what, loop.time()))

        def read() -> None:
            os.eventfd_read(eventfds[0])
            note("read")

        owned = context_of(NODE)
        loop.pause(NODE)
        assert loop.paused(NODE)
        owned.run(loop.call_soon, note, "soon")
        owned.run(loop.call_later, 1, note, "later")
        owned.run(loop.add_reader, eventfds[0], read)
        loop.call_later(2, note, "not its own")
        loop.call_later(5, loop.resume, NODE)
        await asyncio.sleep(6)
        loop.remove_reader(eventfds[0])

    run(main)
    assert [what for what, _ in seen] == ["not its own", "soon", "later", "read"]
    assert [int(at) for _, at in seen] == [2, 5, 5, 5]


def test_a_dead_owner_does_nothing_until_it_is_buried(eventfds: list[int]) -> None:
    seen: list[str] = []

    async def main(loop: VirtualLoop) -> None:
        owned = context_of(NODE)
        owned.run(loop.call_later, 1, seen.append, "timer")
        owned.run(loop.add_reader, eventfds[0], seen.append, "reader")
        assert loop.kill(NODE) == [eventfds[0]]
        await asyncio.sleep(2)
        assert seen == []
        loop.remove_reader(eventfds[0])
        loop.bury(NODE)
        owned.run(loop.call_soon, seen.append, "afterwards")
        await asyncio.sleep(1)

    run(main)
    assert seen == ["afterwards"]


def test_what_an_owner_starts_is_its_own() -> None:
    async def deeper() -> object:
        await asyncio.sleep(0.1)
        return OWNER.get()

    async def main(loop: VirtualLoop) -> object:
        async def task() -> object:
            return await asyncio.gather(deeper(), loop.create_task(deeper()))

        return await context_of(NODE).run(loop.create_task, task())

    assert run(main) == [NODE, NODE]


# ---- choices


def test_streams_do_not_move_each_other() -> None:
    one, other = Choices(5, "a"), Choices(5, "a")
    one.random()
    assert one.stream("x").random() == other.stream("x").random()
    assert one.stream("x").random() != one.stream("y").random()
    assert Choices(6, "a").stream("x").random() != other.stream("x").random()


def test_choices_keep_to_their_bounds() -> None:
    choices = Choices(0, "bounds")
    assert {choices.below(3) for _ in range(200)} == {0, 1, 2}
    assert {choices.pick("ab") for _ in range(200)} == {"a", "b"}
    scaled = [choices.scale(1.0, 4) for _ in range(400)]
    assert 1 <= min(scaled) < 2 and 8 < max(scaled) <= 16
    assert all(2 <= choices.between(2, 3) <= 3 for _ in range(50))
    assert 20 < sum(choices.chance(0.5) for _ in range(100)) < 80
