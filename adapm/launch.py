"""Runs a task: starts nodes and workers, watches over them, and returns what the workers return.

    this process, the launcher
      |-- node processes, one per node started here       a socket pair: orders, and why the run failed
      `-- worker processes or threads, some per node      a pipe: the task, and what came of it

Whatever ends the run - all workers returned, one raised, a process was killed, Ctrl-C - ends all that was started.
When the launcher itself is killed, its children notice and end, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from adapm import descriptors, hot, profile, reporting, techniques, transport
from adapm.blame import Member, first_cause
from adapm.config import Config
from adapm.errors import AdapmError, Closed, ConfigError, RendezvousError, UsageError
from adapm.processes import NodeProcess, ProcessWorker, ThreadWorker, check_main_is_guarded
from adapm.tables import Table, check_tables
from adapm.task import Failure, Task

GRACE: Final = 2.0  # seconds in which the cause of a failure may turn up after its consequences

_LAUNCHER: Final = Member(-1)  # who can see a failure, too

Outcome: TypeAlias = list[Any] | Failure


def run(
    fn: Callable[..., Any],
    tables: Iterable[Table],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    config: Config | Mapping[str, object] | None = None,
    **overrides: object,
) -> list[Any]:
    """Runs `fn(worker, *args, **kwargs)` as each worker of all nodes that are started here.

    Args:
        fn: a coroutine function gets a Worker, a plain function a BlockingWorker.  For worker processes it must be
            importable, and args, kwargs and results must pickle.
        tables: the tables, the same on all nodes.
        args: for fn, after the worker.
        kwargs: for fn.
        config: settings, see `Config`.
        overrides: more settings, as keywords: `nodes=2, workers="threads:4"`.

    Returns:
        What fn returned, in order of worker ids.

    Raises:
        UsageError: tables, settings or fn make no sense; nothing was started.
        RendezvousError: the nodes did not come together.
        OutOfMemory: the tables do not fit.
        TooFewFiles: the limit of open files is too low for so many nodes and workers.
        WorkerDied: a worker process ended without a word; NodeDied: a node process did.
        NodeLost: a node on another machine is gone.
        Exception: what fn raised in a worker; its `__cause__` shows the traceback there.
    """
    if _in_a_loop():
        raise UsageError(
            "an event loop runs in this thread: write `await adapm.run_async(...)` with the same arguments"
        )
    crew = _crew(fn, tables, args, kwargs, config, overrides)
    return _result(asyncio.run(_interruptible(_conduct(crew))))


async def run_async(
    fn: Callable[..., Any],
    tables: Iterable[Table],
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    config: Config | Mapping[str, object] | None = None,
    **overrides: object,
) -> list[Any]:
    """The same as `run`, for use in a running event loop.  Cancelling it ends the run."""
    return _result(await _conduct(_crew(fn, tables, args, kwargs, config, overrides)))


def _crew(
    fn: Callable[..., Any],
    tables: Iterable[Table],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    config: Config | Mapping[str, object] | None,
    overrides: Mapping[str, object],
) -> _Crew:
    settings = Config.load(config, overrides)
    checked = check_run(settings, tables)
    nodes = settings.nodes if settings.node is None else 1
    descriptors.allow(
        descriptors.of_launcher(nodes, nodes * settings.worker_count), f"a launcher of {nodes} nodes and their workers"
    )
    return _Crew(settings, checked, Task(fn, tuple(args), dict(kwargs or {})))


def check_run(config: Config, tables: Iterable[Table]) -> list[Table]:
    """The tables; what would keep nodes from starting with them is to be known before anything is started.

    Raises:
        TableError: tables make no sense.
        UnknownTransport: there is no such transport.
        ConfigError: it cannot do what is asked of it, or there is no place for the report.
        KeyFileError: the key file cannot be used.
    """
    kind, _ = transport.find(config.transport)  # a wrong name is a mistake with one node, too
    if config.spin and not kind.spins:
        raise ConfigError(f"spin={config.spin}, but transport {kind.scheme!r} cannot spin: use 'ucx', or set spin to 0")
    if config.report is not None:
        reporting.check(config.report)
    if config.nodes > 1:
        _check_protection(config, kind)
    if config.nodes > 1 and config.transport == "inproc":
        raise ConfigError("transport 'inproc' connects nodes of one process, but each node is a process: use 'tcp'")
    checked = check_tables(tables)
    hot.everywhere(techniques.named(config.technique), checked)  # what the technique lacks
    return checked


def tell_profiles(config: Config, profiles: Sequence[profile.Profile]) -> None:
    """Shows and reports what nodes counted, as far as the settings ask for it."""
    if config.profile:
        profile.show(profiles)
    if config.report is not None:
        reporting.report_run(config.report, profiles)


def _check_protection(config: Config, kind: type[transport.Transport]) -> None:
    """A key that cannot be used is to be known before anything is started; a transport that uses none, too.

    Raises:
        KeyFileError: the key file cannot be used.
        ConfigError: the transport would meet others in the open.
    """
    key = config.cluster_key()
    if kind.authenticates or config.insecure:
        return
    given = key is not None and config.key_file is not None
    if given or config.rendezvous is not None or config.bind is not None:
        raise ConfigError(
            f"transport {kind.scheme!r} does not use cluster keys, so whoever reaches its addresses can read and change"
            " all rows: use tcp, zmq or ucx, or say insecure=true"
        )


async def _conduct(crew: _Crew) -> Outcome:
    outcome: Outcome = Failure(asyncio.CancelledError())
    try:
        outcome = await crew.work()
    finally:
        await _whole(crew.dismiss(outcome))
    return outcome


def _result(outcome: Outcome) -> list[Any]:
    if isinstance(outcome, Failure):
        raise outcome.error
    return outcome


class _Crew:
    """Everything that one run starts.

    Raises:
        UsageError: the task cannot be given to worker processes.
    """

    def __init__(self, config: Config, tables: Sequence[Table], task: Task) -> None:
        if not config.threads:
            check_main_is_guarded()
        self._config = config
        self._tables = tables
        self._task = task
        self._packed = b"" if config.threads else task.pack()
        self._nodes: list[NodeProcess] = []
        self._workers: list[ProcessWorker | ThreadWorker] = []
        self._watches: list[asyncio.Task[Any]] = []
        self._over: list[asyncio.Task[Any]] = []  # those of them that have told so, the first to end first
        self._members: dict[asyncio.Task[Any], Member] = {}  # whom they watch

    async def work(self) -> Outcome:
        """The workers' results, or why there are none."""
        for node in range(self._config.nodes) if self._config.node is None else [self._config.node]:
            self._nodes.append(NodeProcess(node))
            self._watch(self._nodes[-1].watch(), Member(node))
        failure = await self._completion(self._watch(self._introduce(), _LAUNCHER))
        if failure is not None:
            return failure
        results = [self._watch(worker.watch(), member) for member, worker in self._hired()]
        failure = await self._completion(*self._watches)
        if failure is None:
            tell_profiles(self._config, [node.profile for node in self._nodes if node.profile is not None])
        return [result.result() for result in results] if failure is None else failure

    async def dismiss(self, outcome: Outcome) -> None:
        """Ends everything that is still there."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if isinstance(outcome, Failure):
            for node in self._nodes:
                node.tell(_reason(outcome.error))  # before the workers end: other machines are to know the true reason
        await asyncio.gather(*(member.end() for member in (*self._workers, *self._nodes)))

    async def _introduce(self) -> Failure | None:
        """Tells the nodes what they are, and waits until workers can enter; a Failure if one does not answer."""
        config = self._config
        try:
            for node in self._nodes:
                if node.id == 0:
                    config = dataclasses.replace(
                        config, rendezvous=await self._begun(node, config) or config.rendezvous
                    )
            others = (self._begun(node, config) for node in self._nodes if node.id != 0)
            for outcome in await asyncio.gather(*others, return_exceptions=True):  # all have the same time
                if isinstance(outcome, BaseException):
                    raise outcome
        except RendezvousError as error:
            return Failure(error)
        for node in self._nodes:
            await node.ready()
        return None

    async def _begun(self, node: NodeProcess, config: Config) -> str:
        """The address at which the node listens, once it does."""
        seconds = config.startup_timeout
        try:
            await asyncio.wait_for(node.begin(config, self._tables), seconds)
            return await asyncio.wait_for(node.listening(), seconds + GRACE)
        except asyncio.TimeoutError as error:  # a node that can speak would have said sooner what it waits for
            raise RendezvousError(
                f"node {node.id} (process {node.pid}) did not listen within startup_timeout={seconds:g} seconds:"
                " its process hangs as it starts, or is stopped"
            ) from error

    def _hired(self) -> Iterator[tuple[Member, ProcessWorker | ThreadWorker]]:
        for node in self._nodes:
            for slot in range(self._config.worker_count):
                self._workers.append(self._hire(node, slot))
                yield Member(node.id, node.first_worker + slot), self._workers[-1]

    def _hire(self, node: NodeProcess, slot: int) -> ProcessWorker | ThreadWorker:
        return ThreadWorker(self._task, node, slot) if self._config.threads else ProcessWorker(self._packed, node, slot)

    def _watch(self, coroutine: Coroutine[Any, Any, Any], member: Member | None = None) -> asyncio.Task[Any]:
        watch = asyncio.get_running_loop().create_task(coroutine)
        self._watches.append(watch)
        if member is not None:
            self._members[watch] = member
        watch.add_done_callback(self._over.append)
        return watch

    async def _completion(self, *awaited: asyncio.Task[Any]) -> Failure | None:
        """Waits for these watches, or for the failure of any."""
        while not all(watch.done() for watch in awaited):
            await self._news()
            if self._failures():
                break
        return await self._cause() if self._failures() else None

    async def _cause(self) -> Failure:
        """The failure that explains the others, as far as is known soon: of mere hearsay, what was heard first."""
        deadline = asyncio.get_running_loop().time() + GRACE
        while (cause := first_cause(self._told(), self._members.values())) is None:
            if not await self._news(deadline - asyncio.get_running_loop().time()):
                return min(self._failures(), key=lambda failure: failure.hearsay)
        return cause

    async def _news(self, seconds: float | None = None) -> bool:
        """Waits until one more watch is over; returns whether it came to that."""
        pending = [watch for watch in self._watches if not watch.done()]
        if not pending:
            return False
        done, _ = await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    def _told(self) -> dict[Member, Failure | None]:
        """What came of those who are done, in the order in which they told."""
        done = (watch for watch in self._watches if watch.done())  # some may be about to tell
        outcomes = {watch: watch.result() for watch in dict.fromkeys((*self._over, *done)) if watch in self._members}
        return {self._members[watch]: come if isinstance(come, Failure) else None for watch, come in outcomes.items()}

    def _failures(self) -> list[Failure]:
        """In the order in which they came."""
        return [failure for failure in self._told().values() if failure is not None]


def _reason(error: BaseException) -> AdapmError:
    if isinstance(error, AdapmError):
        return error
    if isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
        return Closed("the run was interrupted")
    return Closed(f"the run ended because a worker raised {type(error).__name__}: {error}")


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _interruptible(coroutine: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Cancels the coroutine on the first Ctrl-C; further ones must not disturb the cleaning up."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            task.cancel()

    with contextlib.suppress(ValueError, RuntimeError):  # not the main thread, which gets the signals
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if interrupted:
            return Failure(KeyboardInterrupt())
        raise


async def _whole(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs the coroutine to its end, and passes on a cancellation only then."""
    task = asyncio.get_running_loop().create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
