"""What `adapm scale` found, as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapm import drawing
from adapm.simulator.scale import Load, Point

_PANELS = (
    ("bytes", "bytes per access", 1),
    ("messages", "frames per access", 1),
    ("cpu_us", "CPU of nodes per access, us", 1),
    ("memory", "memory of a node, MiB", 1 << 20),
)


def draw(points: Sequence[Point], load: Load, file: Path) -> None:
    """Draws the points; the same points make the same file.

    Raises:
        UsageError: matplotlib is not there.
    """
    with drawing.figure(10, 2.8) as figure:
        nodes = [point.nodes for point in points]
        for axes, (name, title, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            axes.plot(nodes, [getattr(point, name) / unit for point in points], marker="o", markersize=3)
            axes.set(title=title, xlabel="nodes", ylim=(0, None))
            axes.set_xscale("log", base=2)
            axes.set_xticks(nodes, [f"{number:,}" for number in nodes], rotation=45)
            axes.grid(alpha=0.3)
        table = f"{load.rows:,} rows" + ("" if load.fixed else " per node")
        figure.suptitle(f"{load.keys} keys, {load.batch} per clock, {table}, {load.dim} numbers each", fontsize=9)
        drawing.save(figure, file, file.suffix)
