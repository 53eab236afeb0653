"""An asyncio event loop whose clock is virtual: time passes only when nothing is left to do, and then at once.

Order is a function of the seed alone.  What asyncio promises is kept - callbacks run in the order of `call_soon` -
and what it does not promise is drawn: how late a timer fires, how long it takes until a ready descriptor is noticed.
Descriptors are real (eventfds, the door's sockets); they are looked at whenever nothing else is left to do, and taken
in the order in which they were registered, whatever their numbers.

Every callback belongs to the owner in whose context it was made, a node or a worker.  An owner can be paused, like a
process that gets no processor, and killed, like a process that ends without a word.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from adapm.simulator.choices import Choices
from adapm.simulator.invariants import Violation

T = TypeVar("T")
Owner = tuple[str, int]
"""What a callback belongs to: ("node", id) or ("worker", id)."""

OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


def context_of(owner: Owner) -> contextvars.Context:
    """A context in which everything belongs to the owner."""
    context = contextvars.copy_context()
    context.run(OWNER.set, owner)
    return context


LATENESS = 20e-6  # seconds: timers fire up to so late
WAKE_UP = 5e-6, 4  # seconds, doublings: from a descriptor that is ready to its callback
PATIENCE = 100.0  # virtual seconds
NAP = 50.0  # times the usual, in the worst one of a hundred wake-ups


@dataclass(eq=False)
class _Reader:
    order: int
    owner: Owner | None
    handle: asyncio.Handle
    due: float | None = None  # when its owner notices that it is ready


class VirtualLoop(asyncio.AbstractEventLoop):
    """See above.  `run` is the way in; it closes the loop.

    Args:
        choices: where order and lateness are drawn from.

    Attributes:
        steps: how many callbacks have run.
        wake_up_factor: by owner, how many times longer than usual its wake-ups take.
    """

    def __init__(self, choices: Choices) -> None:
        self.steps = 0
        self.wake_up_factor: dict[Owner, float] = {}
        self._choices = choices
        self._streams: dict[Owner, Choices] = {}
        self._now = 0.0
        self._ready: deque[tuple[asyncio.Handle, Owner | None]] = deque()
        self._timers: list[tuple[float, int, asyncio.Handle, Owner | None]] = []
        self._numbered = 0  # timers and readers so far
        self._readers: dict[int, _Reader] = {}
        self._noticed: list[_Reader] = []
        self._poll = select.epoll()
        self._paused: dict[Owner, deque[asyncio.Handle]] = {}
        self._dead: set[Owner] = set()
        self._failure: BaseException | None = None
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self._running = False

    # ---- running

    def run(self, main: Coroutine[Any, Any, T], deadline: float = PATIENCE) -> T:
        """The coroutine's result; tasks that are left are cancelled, and the loop is closed.

        Args:
            main: what to run.
            deadline: virtual seconds after which it must have ended.

        Raises:
            Violation: it does not end - nothing can happen any more, or things happen for too long - or a callback
                raised one.
        """
        asyncio._set_running_loop(self)
        self._running = True
        try:
            task: asyncio.Task[T] = self.create_task(main)
            self._run_until(task, deadline)
            return task.result()
        finally:
            self._cancel_all()
            self._running = False
            asyncio._set_running_loop(None)
            self.close()

    def _run_until(self, task: asyncio.Future[Any], deadline: float) -> None:
        while not task.done():
            if self._failure is not None:
                raise self._failure
            if self._ready:
                self._step()
            elif not self._advance():
                raise Violation(f"everything waits for ever, at {self._now * 1e3:.3f} ms")
            elif self._now > deadline:
                raise Violation(f"there is no end: {self.steps:,} callbacks in {self._now:g} virtual seconds")

    def _step(self) -> None:
        handle, owner = self._ready.popleft()
        if handle.cancelled() or (owner is not None and self._withheld(handle, owner)):
            return
        self.steps += 1
        self._run_handle(handle, owner)

    def _run_handle(self, handle: asyncio.Handle, owner: Owner | None) -> None:
        handle._run()

    def _withheld(self, handle: asyncio.Handle, owner: Owner) -> bool:
        if owner in self._dead:
            return True
        if owner in self._paused:
            self._paused[owner].append(handle)
            return True
        return False

    def _advance(self) -> bool:
        """Goes on to the next moment at which anything happens; False: there is none."""
        readers = self._look()
        due = [reader.due for reader in readers if reader.due is not None]
        if self._timers:
            due.append(self._timers[0][0])
        if not due:
            return False
        self._now = max(self._now, min(due))
        while self._timers and self._timers[0][0] <= self._now:
            _, _, handle, owner = heapq.heappop(self._timers)
            self._ready.append((handle, owner))
        for reader in readers:
            if reader.due is not None and reader.due <= self._now:
                reader.due = None
                self._ready.append((reader.handle, reader.owner))
        return True

    def _look(self) -> list[_Reader]:
        """The readers whose descriptors are ready and whose owners get to see it, in order of registration."""
        ready = [self._readers[fd] for fd, _ in self._poll.poll(0, max(1, len(self._readers)))]
        ready = [reader for reader in ready if reader.owner not in self._paused and reader.owner not in self._dead]
        ready.sort(key=lambda reader: reader.order)
        still = {reader.order for reader in ready}
        for reader in self._noticed:
            if reader.order not in still:
                reader.due = None  # somebody else has read what was there
        for reader in ready:
            if reader.due is None:
                reader.due = self._now + self._wake_up(reader.owner)
        self._noticed = ready
        return ready

    def _wake_up(self, owner: Owner | None) -> float:
        if owner is None:
            return 0.0
        stream = self._stream(owner)
        delay = stream.scale(*WAKE_UP) * self.wake_up_factor.get(owner, 1.0)
        return delay * NAP if stream.chance(0.01) else delay

    def _stream(self, owner: Owner) -> Choices:
        if owner not in self._streams:
            self._streams[owner] = self._choices.stream(f"{owner[0]} {owner[1]}")
        return self._streams[owner]

    def _cancel_all(self) -> None:
        """Ends what is left, as asyncio.run does; it is not given for ever."""
        for owner in list(self._paused):
            self.resume(owner)
        self._dead.clear()
        tasks = sorted(
            asyncio.all_tasks(self), key=lambda task: (len(task.get_name()), task.get_name())
        )  # in order of their making
        for task in tasks:
            task.cancel()
        for _ in range(100_000):
            if all(task.done() for task in tasks) or not (self._ready or self._advance()):
                break
            if self._ready:
                self._step()

    # ---- owners

    def pause(self, owner: Owner) -> None:
        """From now on nothing of it runs; what becomes due waits, in order."""
        self._paused.setdefault(owner, deque())

    def resume(self, owner: Owner) -> None:
        """What has waited runs now."""
        self._ready.extend((handle, owner) for handle in self._paused.pop(owner, ()))

    def kill(self, owner: Owner) -> list[int]:
        """Nothing of it runs ever again; returns the descriptors it was watching."""
        self._paused.pop(owner, None)
        self._dead.add(owner)
        return [fd for fd, reader in self._readers.items() if reader.owner == owner]

    def bury(self, owner: Owner) -> None:
        """A dead owner's callbacks may run again: for giving back what it held, as its system would."""
        self._dead.discard(owner)

    def paused(self, owner: Owner) -> bool:
        """Whether it is."""
        return owner in self._paused

    # ---- callbacks

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def call_soon(  # type: ignore[override]  # typeshed's has a variadic type that says the same
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((handle, context.get(OWNER)))
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)  # there is one thread

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        owner = context.get(OWNER)
        if owner is not None:
            when += LATENESS * self._stream(owner).random()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbered += 1
        heapq.heappush(self._timers, (when, self._numbered, handle, owner))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when its time comes."""

    def forget_cancelled(self) -> None:
        """Drops timers that have been cancelled, where there are very many: each is kept until its time otherwise."""
        self._timers = [timer for timer in self._timers if not timer[2].cancelled()]
        heapq.heapify(self._timers)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Calls it here and now: there is one thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    # ---- descriptors

    def add_reader(  # type: ignore[override]
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        self._numbered += 1
        known = number in self._readers
        context = contextvars.copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._readers.pop(number, None)  # the dictionary is in order of registration
        self._readers[number] = _Reader(self._numbered, context.get(OWNER), handle)
        if not known:
            self._poll.register(number, select.EPOLLIN)

    def remove_reader(self, fd: Any) -> bool:
        number = fd if isinstance(fd, int) else fd.fileno()
        reader = self._readers.pop(number, None)
        if reader is None:
            return False
        self._poll.unregister(number)
        reader.handle.cancel()
        return True

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        while True:
            try:
                guest, address = sock.accept()
            except BlockingIOError:
                await self.readable(sock.fileno())
            else:
                guest.setblocking(False)
                return guest, address

    async def sock_recv(self, sock: socket.socket, nbytes: int) -> bytes:
        while True:
            try:
                return sock.recv(nbytes)
            except BlockingIOError:
                await self.readable(sock.fileno())

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        sock.sendall(data)  # what is said at doors fits into their sockets' buffers

    async def readable(self, fd: int) -> None:
        """Returns when something can be read there."""
        waiter = self.create_future()
        self.add_reader(fd, _set, waiter)
        try:
            await waiter
        finally:
            self.remove_reader(fd)

    # ---- the rest of what asyncio asks of a loop

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._poll.closed

    def close(self) -> None:
        self._poll.close()

    def get_debug(self) -> bool:
        return False

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        return self._handler

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self._handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody awaits ends the run."""
        if self._handler is not None:
            self._handler(self, context)
        elif self._failure is None:
            error = context.get("exception")
            said = f"{context.get('message')}: {error!r}"
            self._failure = error if isinstance(error, Violation) else Violation(said)


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
