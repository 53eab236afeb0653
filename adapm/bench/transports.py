"""`adapm bench transports`: frames between two processes, by each transport, against a bare TCP ping-pong.

    core 0   this process: one end of the transport, and the side of each ping-pong that asks
    core 1   a process that sends every frame back, and the sides that answer

Both ends run in asyncio's loop and do nothing with a frame, so that what is measured is the transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from adapm import memory
from adapm.bench import machine, ping_pong
from adapm.bench.harness import Measure, check_positive, over
from adapm.bench.ping_pong import Ping
from adapm.errors import TransportError
from adapm.transport import create, find
from adapm.transport_testing import ProcessPeer

TIMING = ("small_p50_us", "large_p50_us", "small_tcp_p50_us", "large_tcp_p50_us")
SMALL: Final = 64
LARGE: Final = 256 << 10
_STREAMED: Final = 1 << 20
_OUTSTANDING: Final = 8  # frames of a stream
_SETTLED: Final = 0.1  # seconds between work and rest
_STARTED: Final = 30.0  # seconds that the other process may take


@dataclass(frozen=True)
class Transports:
    """What is measured.

    Attributes:
        transports: their names.
        seconds: of each figure.
        cores: for the two machines that we play.
        with_key: each is measured a second time, with a cluster key.
    """

    transports: tuple[str, ...]
    seconds: float
    cores: tuple[int, ...]
    with_key: bool = False


def variants(wanted: Transports) -> dict[str, Measure]:
    """One for each transport, and one with a key if wanted: takes a sample of all figures, with a link of its own."""
    check_positive(seconds=wanted.seconds)
    measures: dict[str, Measure] = {}
    for name in wanted.transports:
        cls, _ = find(name)
        measures[name] = functools.partial(_pinned, name, wanted, None)
        if wanted.with_key and cls.authenticates:
            measures[f"{name}, key"] = functools.partial(_pinned, name, wanted, secrets.token_bytes(32))
    return measures


def _pinned(name: str, wanted: Transports, key: bytes | None) -> dict[str, float]:
    where = list(wanted.cores)
    try:
        memory.keep_freed()  # as nodes do
        machine.pin(os.getpid(), machine.core_of(0, where))
        figures = asyncio.run(_sample(name, wanted, key))
        for size, label in ((SMALL, "small"), (LARGE, "large")):
            figures[f"{label}_tcp_p50_us"] = _bare(size, wanted)
            figures[f"{label}_over_tcp"] = over(figures[f"{label}_p50_us"], figures[f"{label}_tcp_p50_us"])
        return figures
    finally:
        machine.pin(os.getpid(), where)


def _bare(size: int, wanted: Transports) -> float:
    with (
        ping_pong.server("tcp", machine.core_of(1, list(wanted.cores)), size) as address,
        contextlib.closing(ping_pong.connect("tcp", address)) as side,
    ):
        ping = Ping(side, size, size)
        ping()
        return _median(ping, wanted.seconds)


def _median(operation: Callable[[], object], seconds: float) -> float:
    """Of its time, in microseconds."""
    times, clock = [], time.perf_counter
    end = clock() + seconds
    while (begin := clock()) < end:
        operation()
        times.append(clock() - begin)
    return 1e6 * float(np.median(times))


class _Link:
    """Node 0, linked with a node that sends everything back."""

    def __init__(self, name: str, key: bytes | None) -> None:
        options = {} if key is None else {"key": key}
        self._peers_options = {} if key is None else {"key": key.hex()}
        self._transport = create(name, 0, on_frame=self._on_frame, on_lost=self._on_lost, **options)
        self._came = asyncio.Event()
        self._under_way = 1  # the hello

    def _on_frame(self, peer: int, frame: memoryview) -> None:
        self._under_way -= 1
        self._came.set()

    def _on_lost(self, peer: int, error: TransportError) -> None:
        self._came.set()

    @contextlib.asynccontextmanager
    async def linked(self, name: str, where: list[int]) -> AsyncIterator[int]:
        """While it is; yields the process at the other end."""
        address = await self._transport.listen()
        try:
            async with ProcessPeer(1, address, name, self._peers_options) as peer:
                machine.pin(peer.pid, where)
                await asyncio.wait_for(self.until(0), _STARTED)
                yield peer.pid
        finally:
            await self._transport.close(0.1)

    def send(self, frame: bytes) -> None:
        """Sends one that comes back."""
        self._under_way += 1
        self._transport.send(1, frame)  # a lost link raises here

    async def until(self, under_way: int) -> None:
        """Waits until so few frames have not come back."""
        while self._under_way > under_way:
            self._came.clear()
            await self._came.wait()


async def _sample(name: str, wanted: Transports, key: bytes | None) -> dict[str, float]:
    link = _Link(name, key)
    async with link.linked(name, machine.core_of(1, list(wanted.cores))) as peer:
        both = (os.getpid(), peer)
        used = _cpu(both)
        small = await _round_trips(link, SMALL, wanted.seconds)
        used = _cpu(both) - used
        return {
            "small_p50_us": 1e6 * float(np.median(small)),
            "cpu_us": 1e6 * used / len(small),
            "large_p50_us": 1e6 * float(np.median(await _round_trips(link, LARGE, wanted.seconds))),
            "mb_per_s": await _stream(link, wanted.seconds),
            "idle_share": await _rest(both, wanted.seconds),
        }


async def _round_trips(link: _Link, size: int, seconds: float) -> list[float]:
    """The time of each, in seconds."""
    frame, times, clock = bytes(size), [], time.perf_counter
    end = clock() + seconds
    while (begin := clock()) < end:
        link.send(frame)
        await link.until(0)
        times.append(clock() - begin)
    return times[len(times) // 10 :]  # the first ones warm up


async def _stream(link: _Link, seconds: float) -> float:
    """Megabytes per second in each direction, both at once."""
    frame, sent, begin = bytes(_STREAMED), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        link.send(frame)
        sent += 1
        await link.until(_OUTSTANDING - 1)
    await link.until(0)
    return sent * _STREAMED / 1e6 / (time.perf_counter() - begin)


async def _rest(pids: Iterable[int], seconds: float) -> float:
    """Share of a core that an end takes when there is nothing to do."""
    await asyncio.sleep(_SETTLED)
    used, begin = _cpu(pids), time.perf_counter()
    await asyncio.sleep(seconds)
    return (_cpu(pids) - used) / 2 / (time.perf_counter() - begin)


def _cpu(pids: Iterable[int]) -> float:
    return sum(map(machine.cpu_seconds, pids))
