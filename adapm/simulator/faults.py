"""What befalls a run, by name: disturbances, which must leave no trace, and ends, which must end everything, named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapm.errors import AdapmError, NodeDied, NodeLost, UsageError, WorkerDied
from adapm.simulator.choices import Choices
from adapm.simulator.invariants import Violation
from adapm.simulator.world import WAYS_TO_DIE, World

Strike = Callable[[World, Choices], None]

LEAST = 20  # disturbances of a run, if there are to be any
MOST = 40
SOON = 1.0  # virtual seconds from a fatal fault to everyone's end, beside what the workers still have to do
FATAL_SHARE = 0.25  # of runs, where ends are among the faults


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        help: what it does.
        strike: does it; None for what is part of a run's shape.
        fatal: whether the run must end with an error.
    """

    help: str
    strike: Strike | None
    fatal: bool = False


def _slow_link(world: World, choices: Choices) -> None:
    a, b = _pair(world, choices)
    link, more, seconds = world.network.link(a, b), choices.scale(100e-6, 5), choices.scale(1e-3, 5)
    world.disturb("slow-link", a, b, seconds)
    link.latency += more

    def over() -> None:
        link.latency -= more

    world.loop.call_later(seconds, over)


def _jitter(world: World, choices: Choices) -> None:
    a, b = _pair(world, choices)
    link, more, seconds = world.network.link(a, b), choices.scale(100e-6, 5), choices.scale(1e-3, 5)
    world.disturb("jitter", a, b, seconds)
    link.jitter += more

    def over() -> None:
        link.jitter -= more

    world.loop.call_later(seconds, over)


def _narrow_link(world: World, choices: Choices) -> None:
    a, b = _pair(world, choices)
    link, more, seconds = world.network.link(a, b), choices.scale(50e-9, 5), choices.scale(1e-3, 5)
    world.disturb("narrow-link", a, b, seconds)
    link.per_byte += more

    def over() -> None:
        link.per_byte -= more

    world.loop.call_later(seconds, over)


def _stall(world: World, choices: Choices) -> None:
    a, b = _pair(world, choices)
    link, seconds = world.network.link(a, b), choices.scale(1e-3, 5)
    world.disturb("stall", a, b, seconds)
    link.stalled_until = max(link.stalled_until, world.loop.time() + seconds)


def _pause_node(world: World, choices: Choices) -> None:
    node, seconds = choices.below(world.shape.nodes), choices.scale(1e-3, 5)
    world.disturb("pause-node", node, 0, seconds)
    world.hold(("node", node), seconds)


def _late_node(world: World, choices: Choices) -> None:
    node, times, seconds = choices.below(world.shape.nodes), choices.between(2, 50), choices.scale(1e-3, 5)
    world.disturb("late-node", node, 0, seconds)
    factors = world.loop.wake_up_factor
    factors["node", node] = factors.get(("node", node), 1.0) + times

    def over() -> None:
        factors["node", node] -= times

    world.loop.call_later(seconds, over)


def _pause_worker(world: World, choices: Choices) -> None:
    worker, seconds = choices.below(len(world.actors)), choices.scale(1e-3, 5)
    world.disturb("pause-worker", worker, 0, seconds)
    world.hold(("worker", worker), seconds)


def _slow_worker(world: World, choices: Choices) -> None:
    actor, times, seconds = choices.pick(world.actors), choices.between(2, 20), choices.scale(1e-3, 5)
    world.disturb("slow-worker", actor.id, 0, seconds)
    actor.slowness += times

    def over() -> None:
        actor.slowness -= times

    world.loop.call_later(seconds, over)


def _kill_worker(world: World, choices: Choices) -> None:
    worker, way = choices.below(len(world.actors)), choices.below(WAYS_TO_DIE)
    world.disturb("kill-worker", worker, way, 0)
    world.kill_worker(worker, way)


def _kill_node(world: World, choices: Choices) -> None:
    node = choices.below(world.shape.nodes)
    notice = [choices.scale(50e-6, 6) for _ in range(world.shape.nodes)]
    world.disturb("kill-node", node, 0, 0)
    world.kill_node(node, notice)


def _cut_link(world: World, choices: Choices) -> None:
    a, b = _pair(world, choices)
    world.disturb("cut-link", a, b, 0)
    world.cut(a, b, (choices.scale(50e-6, 6), choices.scale(50e-6, 6)))


def _pair(world: World, choices: Choices) -> tuple[int, int]:
    """Two different nodes."""
    a = choices.below(world.shape.nodes)
    return a, (a + 1 + choices.below(world.shape.nodes - 1)) % world.shape.nodes


FAULTS: dict[str, Fault] = {
    "slow-link": Fault("one direction of a link takes milliseconds longer", _slow_link),
    "jitter": Fault("its delays vary by milliseconds", _jitter),
    "narrow-link": Fault("it carries few bytes per second", _narrow_link),
    "stall": Fault("nothing arrives there for a while", _stall),
    "pause-node": Fault("a node gets no processor for a while", _pause_node),
    "late-node": Fault("a node is slow to notice what happens", _late_node),
    "pause-worker": Fault("a worker gets no processor for a while", _pause_worker),
    "slow-worker": Fault("a worker computes up to 20 times as long", _slow_worker),
    "memory": Fault("nodes have no room for all rows that are wanted", None),
    "kill-worker": Fault("a worker is killed inside a push", _kill_worker, fatal=True),
    "kill-node": Fault("a node is killed", _kill_node, fatal=True),
    "cut-link": Fault("the connection of two nodes breaks", _cut_link, fatal=True),
}
GROUPS = {
    "all": tuple(FAULTS),
    "harmless": tuple(name for name, fault in FAULTS.items() if not fault.fatal),
    "none": (),
}


def named(names: Sequence[str]) -> tuple[str, ...]:
    """The faults of these names, or names of groups of them, each once.

    Raises:
        UsageError: there is none of this name.
    """
    known = [*GROUPS, *FAULTS]
    for name in names:
        if name not in known:
            raise UsageError(f"there is no fault {name!r}; there are {', '.join(known)}")
    return tuple(dict.fromkeys(fault for name in names for fault in GROUPS.get(name, (name,))))


class Plan:
    """What will befall one run, and when.

    Args:
        names: the faults that may.
        until: virtual seconds that the run takes.
        nodes: how many there are; with one, nothing befalls links.
        choices: where it is drawn from.

    Attributes:
        fatal: the name of the fault that ends the run, None: none does.
    """

    def __init__(self, names: Sequence[str], until: float, nodes: int, choices: Choices) -> None:
        self._choices = choices
        able = [name for name in names if FAULTS[name].strike is not None and (nodes > 1 or "link" not in name)]
        able = [name for name in able if nodes > 1 or name not in ("jitter", "stall")]
        passing = [name for name in able if not FAULTS[name].fatal]
        fatal = [name for name in able if FAULTS[name].fatal]
        count = LEAST + choices.below(MOST - LEAST + 1) if passing else 0
        self.fatal = choices.pick(fatal) if fatal and (not passing or choices.chance(FATAL_SHARE)) else None
        self._times = sorted((choices.between(0, 0.75 * until), choices.pick(passing)) for _ in range(count))
        if self.fatal is not None:
            self._times.append((choices.between(0.75, 0.9) * until, self.fatal))

    def begin(self, world: World) -> None:
        """From now on."""
        for number, (seconds, name) in enumerate(self._times):
            strike = FAULTS[name].strike
            assert strike is not None
            world.loop.call_later(seconds, strike, world, self._choices.stream(str(number)))


def check_ends(
    world: World, fatal: str, workers: Sequence[AdapmError | None], nodes: Sequence[AdapmError | None]
) -> None:
    """After a fatal fault: everyone has ended with the error that is promised, and soon.

    Raises:
        Violation: somebody has not.
    """
    lasted = world.loop.time() - world.struck
    if lasted > SOON:
        raise Violation(f"it took {lasted:.3f} virtual seconds from {fatal} until everyone had ended")
    for node, error in enumerate(nodes):
        if node not in world.lost:
            _expect(f"node {node}", error, _promised(world, fatal, own_node_lost=False))
    for worker, error in enumerate(workers):
        if worker not in world.died:
            own = worker // world.shape.workers in world.lost
            _expect(f"worker {worker}", error, _promised(world, fatal, own_node_lost=own))


def _promised(world: World, fatal: str, *, own_node_lost: bool) -> type[AdapmError]:
    if fatal == "kill-worker":
        return WorkerDied
    return NodeDied if own_node_lost else NodeLost


def _expect(who: str, error: AdapmError | None, promised: type[AdapmError]) -> None:
    if not isinstance(error, promised):
        raise Violation(f"{who} ended with {error!r} instead of {promised.__name__}")
