"""A worker's half of its rings: requests go out through here, and operations end here when the node has answered.

    pull/push/set -> Operation -> adapm_post ... node ... adapm_completed -> adapm_collect -> whoever awaits

Everything happens in the worker's own thread: completions are taken when somebody waits or asks, or when a ring is
full.  While an event loop waits, it watches one descriptor, an epoll over the worker's eventfd and the connection
to the node, and only that long.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import select
import time
from abc import abstractmethod
from collections.abc import Awaitable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from adapm.arguments import Pointer, Rows, Target
from adapm.errors import AdapmError, Closed
from adapm.kernel import check, error_of, ffi, lib
from adapm.statistics import COUNTERS, Statistics

if TYPE_CHECKING:
    from adapm.door import Ticket

T = TypeVar("T")

Span: TypeAlias = tuple[int, int]  # offset and length of columns, in floats

ROOM: Final = 0  # no operation: what waits for the node to make room
PULL: Final = 1  # enum adapm_op of native/layout.h
PUSH: Final = 2
SET: Final = 3
SYNC: Final = 4
BARRIER: Final = 5

_VERBS: Final = {PUSH: "push to", SET: "set of", SYNC: "wait_sync", BARRIER: "barrier"}
_Request: TypeAlias = tuple[int, int, int, int, Pointer, Pointer, int, Pointer]  # adapm_post's, from kind to vals
_NULL = ffi.NULL
_intent = lib.adapm_intent
_STEP = 0.2  # seconds after which a blocked worker looks whether its node still lives


class Outcome(Awaitable[T]):
    """What `pull`, `push` and `set` return: the operation's end, to be awaited (any number of times) or asked for.

    Works with `asyncio.gather`, `wait_for` and tasks.  A pull whose only awaiter is cancelled is cancelled: it
    never writes `out` afterwards, and awaiting it again raises CancelledError.  Pushes and sets go on when an
    awaiter is cancelled.
    """

    __slots__ = ()

    @abstractmethod
    def done(self) -> bool:
        """Whether `result` would return at once."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> T:
        """The rows of a pull, None of others; blocks the thread until they are there.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            TimeoutError: the time is over; the operation goes on, and may be asked again.
            NodeLost: another node that was needed is gone; what was local has been done.
        """


class Ready(Outcome[T]):
    """Complete already when the call returned."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()  # there is nothing to wait for
        return self._value

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> T:
        return self._value


NOTHING: Final[Ready[None]] = Ready(None)  # shared by all operations that are complete and have no value


class Operation(Outcome[T]):
    """Part of it is at the node.  It is cut into as many requests as the heap asks for, and ends with the last of them.

    Args:
        mailbox: where its requests are posted.
        kind: PULL, PUSH and so on.
        what: a name for error messages, like "push to table 'entities'".
        value: its result.
        out: of a pull, where its rows go: a float pointer that keeps its memory alive.
        positions: of a pull, which rows of out are missing: a uint32_t pointer that keeps its memory alive.
    """

    __slots__ = (
        "_awaiting",
        "_cancelled",
        "_error",
        "_mailbox",
        "_open",
        "_out",
        "_positions",
        "_value",
        "_waiters",
        "kind",
        "what",
    )

    def __init__(
        self,
        mailbox: Mailbox,
        kind: int,
        what: str,
        value: T,
        out: Pointer = _NULL,
        positions: Pointer = _NULL,
    ) -> None:
        self.kind = kind
        self.what = what
        self._mailbox = mailbox
        self._value = value
        self._out = out
        self._positions = positions
        self._open = 1  # unanswered requests, plus one while they are being posted
        self._error: AdapmError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._awaiting = 0
        self._cancelled = False

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            self._awaiting += 1
            try:
                yield from self.settle().__await__()
            finally:
                self._awaiting -= 1
                if self._open and not self._awaiting and self._out != _NULL:
                    self._cancelled = True
                    self._out = _NULL
        return self._end()

    async def settle(self) -> None:
        """Waits for the end, good or bad, without claiming it: errors stay untold, cancelling it cancels no pull."""
        loop = asyncio.get_running_loop()
        with self._mailbox.waiting(self.kind):
            while self._open:
                waiter = loop.create_future()
                self._waiters.append(waiter)
                try:
                    self._mailbox.watch(loop)
                    await waiter
                finally:
                    if self._open:
                        self._waiters.remove(waiter)

    def done(self) -> bool:
        if self._open:
            self._mailbox.process()
        return not self._open

    def result(self, timeout: float | None = None) -> T:
        if not self._mailbox.run_until(self, timeout):
            raise TimeoutError(f"the {self.what} did not complete within {timeout} s; it goes on")
        return self._end()

    def posted(self) -> None:
        """A request of this operation has been posted."""
        self._open += 1

    def destination(self, offset: int) -> tuple[Pointer, Pointer]:
        """Where rows of the request that began at this offset go: a buffer (NULL drops them) and positions in it."""
        return self._out, _NULL if self._out == _NULL else self._positions + offset

    def answered(self, error: AdapmError | None = None) -> None:
        """A request has been answered, or all of them are posted."""
        self._error = self._error or error
        self._open -= 1
        if not self._open:
            self._finish()

    def fail(self, error: AdapmError) -> None:
        """No answer will come any more."""
        if self._open:
            self._error = self._error or error
            self._open = 0
            self._finish()

    def _finish(self) -> None:
        reads = self._out != _NULL or self._cancelled
        self._out = self._positions = _NULL
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        if self._error is not None and not reads:
            self._mailbox.remember(self, self._error)

    def _end(self) -> T:
        self._mailbox.forget(self)
        if self._cancelled:
            raise asyncio.CancelledError(f"the {self.what} was cancelled")
        if self._error is not None:
            raise self._error
        return self._value


_Part: TypeAlias = tuple[Operation[Any], int]  # a request's operation, and where in its positions the request begins


class Mailbox:
    """The rings of one worker.  Belongs to the thread that made it, like the worker itself.

    Args:
        ticket: the worker's place at its node; the mailbox uses it and does not close it.

    Attributes:
        worker: the kernel's handle, NULL after `close`.

    Raises:
        AdapmError: the segment refuses the worker.
    """

    def __init__(self, ticket: Ticket) -> None:
        error = ffi.new("int *")
        self.worker: Pointer = lib.adapm_worker_attach(
            ticket.segment.pointer, ticket.slot, ticket.node_fd, ticket.worker_fd, error
        )
        if self.worker == _NULL:  # a run that is over has ended for some reason
            raise ticket.why() if error[0] == -errno.ESHUTDOWN else error_of(error[0], slot=ticket.slot)
        self._ticket = ticket
        self._failure: AdapmError | None = None  # after this nothing is posted or answered any more
        self._open: dict[int, _Part] = {}
        self._unseen: dict[Operation[Any], AdapmError] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # watches _wakeups now
        self._wakeups = select.epoll()
        self._wakeups.register(ticket.worker_fd, select.EPOLLIN)
        self._wakeups.register(ticket.fileno(), select.EPOLLIN)
        self._op = ffi.new("uint32_t *")
        self._status = ffi.new("int32_t *")
        self._detail = ffi.new("uint64_t *")

    # ---- posting

    def read(
        self, target: Target, span: Span, keys: Pointer, missed: Pointer, n: int, rows: Rows, out: Pointer
    ) -> Operation[Rows]:
        """Asks the node for the n rows that the kernel missed; they go to their places in `rows`, that is `out`."""
        self._expect_misses(n)
        positions = ffi.new("uint32_t[]", n)  # the caller reuses its own before the answer comes
        ffi.memmove(positions, missed, 4 * n)
        operation = Operation(self, PULL, f"pull from table {target.name!r}", rows, out, positions)
        self._post(operation, PULL, target, span, keys, positions, n, _NULL)
        return operation

    def write(
        self, kind: int, target: Target, span: Span, keys: Pointer, missed: Pointer, n: int, values: Pointer
    ) -> Operation[None]:
        """Has the node PUSH or SET the n rows that the kernel missed."""
        self._expect_misses(n)
        operation: Operation[None] = Operation(self, kind, f"{_VERBS[kind]} table {target.name!r}", None)
        self._post(operation, kind, target, span, keys, missed, n, values)
        return operation

    def signal(self, kind: int) -> Operation[None]:
        """Posts a request that carries no rows, SYNC or BARRIER."""
        operation: Operation[None] = Operation(self, kind, _VERBS[kind], None)
        self._post_some(operation, 0, (kind, 0, 0, 0, _NULL, _NULL, 0, _NULL))
        operation.answered()
        return operation

    def intend(self, target: Target, keys: Pointer, n: int, start: int, end: int, told: int = 0) -> int:
        """Writes n keys, of which so many have been told, into the intent ring; waits for the node while that is full.

        Returns:
            The number of keys, or the kernel's -ERANGE; then it has written none.
        """
        self.check_open()
        while 0 <= told < n:
            took = _intent(self.worker, target.index, keys + told, n - told, start, end)
            if not took:
                self._make_room()
            told = told + took if took >= 0 else took
        return told

    def _expect_misses(self, n: int) -> None:
        if n < 0:  # the node failed while the kernel waited for a locked row
            self._give_up()
        self.check_open()

    def _post(
        self,
        operation: Operation[Any],
        kind: int,
        target: Target,
        span: Span,
        keys: Pointer,
        positions: Pointer,
        n: int,
        values: Pointer,
    ) -> None:
        """Posts as many requests as it takes; what they carry is copied.

        Waits in here when the heap or the ring is full: large operations are taken in as fast as the node answers,
        which bounds the memory that unanswered ones take.
        """
        begin = 0
        while begin < n:
            where = (*span, keys, positions + begin, n - begin, values)
            begin += self._post_some(operation, begin, (kind, target.index, *where))
        operation.answered()

    def _post_some(self, operation: Operation[Any], begin: int, request: _Request) -> int:
        self.check_open()
        while not (took := lib.adapm_post(self.worker, *request, self._op)):
            self._make_room()
        check(took, operation=operation.what)
        operation.posted()
        self._open[self._op[0]] = operation, begin
        return took

    # ---- completing

    def process(self) -> None:
        """Takes all completions that are there; waits for nothing."""
        while self._failure is None and lib.adapm_completed(self.worker, self._op, self._status, self._detail):
            op = self._op[0]
            operation, begin = self._open.pop(op)
            status = self._status[0]
            error = error_of(status, operation=operation.what, node=self._detail[0]) if status else None
            lib.adapm_collect(self.worker, op, *((_NULL, _NULL) if error else operation.destination(begin)))
            operation.answered(error)

    def pending(self) -> list[Operation[Any]]:
        """The operations that are not complete, each once, oldest first."""
        return list(dict.fromkeys(operation for operation, _ in self._open.values()))

    def remember(self, operation: Operation[Any], error: AdapmError) -> None:
        """The operation failed and nobody has been told yet."""
        self._unseen[operation] = error

    def forget(self, operation: Operation[Any]) -> None:
        """Somebody is told now."""
        self._unseen.pop(operation, None)

    def raise_unseen(self) -> None:
        """Raises the first failure of a push or set that nobody awaited; all of them count as told afterwards."""
        errors = list(self._unseen.values())
        self._unseen.clear()
        if errors:
            raise errors[0]

    # ---- waiting

    def run_until(self, operation: Operation[Any], timeout: float | None = None) -> bool:
        """Blocks until the operation has ended (True) or the time in seconds is over (False)."""
        if operation.done():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.waiting(operation.kind):
            while not operation.done():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._sleep(left)
        return True

    @contextlib.contextmanager
    def waiting(self, kind: int) -> Iterator[None]:
        """Counts the time within as waited for an operation of this kind, or for ROOM."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            if self.worker != _NULL:
                lib.adapm_worker_waited(self.worker, kind, time.monotonic_ns() - begin)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the loop process completions until no operation is open."""
        if self._loop is not loop:
            self._unwatch()
            loop.add_reader(self._wakeups.fileno(), self._woken)
            self._loop = loop
        self._rearm()

    def _unwatch(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._wakeups.fileno())
        self._loop = None

    def _woken(self) -> None:
        events = self._wakeups.poll(0)
        lib.adapm_drain_fd(self.worker)
        self.process()
        self._notice_hang_up(events)
        self._rearm()

    def _rearm(self) -> None:
        """Before the loop sleeps: the next completion must write the eventfd, and none may be there already."""
        while self._open and (news := lib.adapm_arm(self.worker)):
            if news < 0:
                self._give_up()
            else:
                self.process()
        if not self._open:
            self._unwatch()

    def _make_room(self) -> None:
        """A ring or the heap is full: waits until the node has taken or answered something."""
        with self.waiting(ROOM):
            self._sleep(None)
        self.process()
        self.check_open()
        if self._loop is not None:
            self._rearm()

    def _sleep(self, timeout: float | None) -> None:
        """Until completions or room may have come, the node has failed, or a while or the time in seconds is over."""
        step = _STEP if timeout is None else min(timeout, _STEP)
        news = lib.adapm_wait(self.worker, math.ceil(step * 1000))
        if news < 0:
            self._give_up()
        elif news == 0:
            self._notice_hang_up(self._wakeups.poll(0))

    def _notice_hang_up(self, events: list[tuple[int, int]]) -> None:
        """A node that was killed sets no flag, but its end of the connection closes."""
        if any(fd == self._ticket.fileno() for fd, _ in events):
            self._give_up()

    def statistics(self) -> Statistics:
        """What the worker and its node have counted so far."""
        worker = self.attached()
        counters = ffi.new("uint64_t[]", len(COUNTERS))
        lib.adapm_worker_counters(worker, counters)
        return Statistics(**dict(zip(COUNTERS, counters, strict=True)), node=self._ticket.segment.statistics())

    # ---- ending

    def attached(self) -> Pointer:
        """The kernel's handle, which works also after the node has failed.

        Raises:
            Closed: `close` has been called; or what `disown` was given.
        """
        if self.worker == _NULL:
            raise self._failure or _closed()
        return self.worker

    def check_open(self) -> None:
        """Raises what ended this mailbox, if anything did: Closed, or why the node failed."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends all open operations with Closed, and lets go of the segment. May be called twice."""
        if self.worker == _NULL:
            return
        self._end(_closed())
        lib.adapm_worker_detach(self.worker)
        self.worker = _NULL
        self._wakeups.close()

    def disown(self, error: AdapmError) -> None:
        """Everything ends with this error, now and later, and nothing that another process shares is touched."""
        self.worker = _NULL
        self._failure = error
        self._loop = None
        for operation in self.pending():
            operation.fail(error)
        self._open.clear()

    def _give_up(self) -> None:
        """The node has failed: everything ends with the reason that it gives."""
        self._end(self._ticket.why())

    def _end(self, failure: AdapmError) -> None:
        self._failure = failure
        operations = self.pending()
        self._open.clear()
        self._unwatch()
        for operation in operations:
            operation.fail(failure)


def _closed() -> Closed:
    return Closed("the worker is closed: its function has returned")
