"""Random schedules of real lanes with every invariant checked after every step."""

from __future__ import annotations

import random

import pytest

from adapm.engine import UNPACED, Pace
from adapm.techniques import ADAPTIVE, Technique
from world import World


def run_schedule(seed: int, steps: int = 250, technique: Technique = ADAPTIVE) -> World:
    choose = random.Random(seed)
    nodes = choose.choice([2, 3, 3, 4])
    workers = choose.choice([1, 1, 2])
    rows = choose.choice([(1,), (2,), (3, 2)])
    world = World(
        nodes,
        workers,
        rows,
        technique,
        round_bytes=choose.choice([4, 64, 1 << 20]),
        tick_keys=choose.choice([1, 3, 1 << 16]),
        pace=choose.choice([UNPACED, Pace(row=choose.choice([0.3, 3.0]), number=0.1, most=20.0)]),
        sight=choose.choice([0.0, 5.0, 50.0]),
    )
    speed = {link: 10 ** choose.uniform(-1.7, 0.3) for link in world.links}
    tick_speed = [10 ** choose.uniform(-1.3, 0.3) for _ in range(nodes)]
    want, push, pull, forward = (10 ** choose.uniform(-1.5, -0.1) for _ in range(4))
    for _ in range(steps):
        steps_now = [("deliver", link, speed[link]) for link, queue in world.links.items() if queue]
        steps_now += [("tick", n, tick_speed[n]) for n in range(nodes)]
        steps_now += [("serve", n, 0.5) for n in range(nodes)]
        for worker in world.workers:
            steps_now += [("intent", worker, want), ("push", worker, push), ("pull", worker, pull)]
            steps_now += [("advance", worker, forward), ("sync", worker, 0.02)]
        if choose.random() < 0.02:  # a link stalls or catches up
            speed[choose.choice(list(speed))] = 10 ** choose.uniform(-2.5, 0.5)
        kind, who, _ = choose.choices(steps_now, [weight for *_, weight in steps_now])[0]
        step(world, choose, kind, who)
        world.check()
    return world


def step(world: World, choose: random.Random, kind: str, who: object) -> None:
    if kind == "deliver":
        world.deliver(*who)
    elif kind == "tick":
        world.tick(who)
    elif kind == "serve":
        world.serve(who)
    elif kind == "advance":
        world.advance(who)
    elif kind == "sync":
        world.sync(who)
    else:
        table = choose.randrange(len(world.tables))
        keys = choose.choices(range(world.tables[table].rows), k=choose.choice([1, 1, 2, 4]))
        if kind == "intent":
            world.intent(who, table, keys, world.clock(who) + choose.randrange(5), choose.choice([1, 2, 8]))
        elif kind == "push":
            world.push(who, table, keys)
        else:
            world.pull(who, table, keys)


@pytest.mark.parametrize("block", range(10))
def test_random_schedules_keep_every_invariant(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        print(f"seed {seed}")
        world = run_schedule(seed)
        try:
            world.drain()
            world.check_rest()
            for worker in world.workers:  # the last intents expire
                for _ in range(20):
                    world.advance(worker)
            world.drain()
            world.check_rest()
            assert all(lane.inspect(*row).state in (0, 3) for lane in world.lanes for row in world.rows)
        finally:
            world.close()
