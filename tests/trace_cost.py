"""What traces cost a lane, in instructions; needs valgrind (docs/traces.md).

    for trace in off on; do
        valgrind --tool=callgrind --callgrind-out-file=$trace.out --toggle-collect=adapm_lane_tick \
            --toggle-collect=adapm_lane_receive --toggle-collect=adapm_lane_serve python tests/trace_cost.py $trace
        callgrind_annotate --auto=no --threshold=100 $trace.out > $trace.txt
    done

Two lanes and their workers do the same each time: keys drawn as in examples/zipf.py, with intent that mostly comes in
time, and some without.  With an older kernel in place, "off" says what was added since.  Of the functions listed, those
of native/ count; Python and the memory allocator vary.
"""

from __future__ import annotations

import random
import sys

from world import World

ROWS, KEYS, CLOCKS, AHEAD = 4_000, 64, 150, 4
TRACED = (256 << 32) // ROWS  # the bound of the hashes of 256 keys, about


def loop(world: World) -> None:
    """Signals, pushes and pulls, and lets the nodes catch up."""
    choice = random.Random(1)
    for clock in range(CLOCKS):
        for worker in world.workers:
            keys = sorted({int(ROWS ** choice.random()) - 1 for _ in range(KEYS)})
            world.intent(worker, 0, keys, clock + AHEAD, 2)
            world.push(worker, 0, keys)
            if clock % 10 == 0:
                world.pull(worker, 0, sorted(choice.sample(range(ROWS), KEYS // 2)))
            world.advance(worker)
        for node in (0, 1):
            world.serve(node)
        for _ in range(4):
            _pass(world)


def _pass(world: World) -> None:
    for node in (0, 1):
        world.tick(node)
    for (a, b), link in world.links.items():
        while link:
            world.deliver(a, b)


def main() -> None:
    world = World(2, rows=(ROWS,))
    if sys.argv[1:] == ["on"]:
        for lane in world.lanes:
            lane.trace(1 << 16, [TRACED], [])
    elif sys.argv[1:] != ["off"]:
        sys.exit("say on or off")
    loop(world)
    for segment in world.segments:
        counted = segment.statistics()
        print(counted.relocations_in, counted.replicas_made, counted.pull_remote, counted.push_remote)
    world.close()


if __name__ == "__main__":
    main()
