"""What `adapm scale` found, as a picture; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapm.errors import UsageError
from adapm.simulator.scale import Load, Point

KINDS = (".svg", ".png", ".pdf")
_PANELS = (
    ("bytes", "bytes per access", 1),
    ("messages", "frames per access", 1),
    ("cpu_us", "CPU of nodes per access, us", 1),
    ("memory", "memory of a node, MiB", 1 << 20),
)


def require(file: Path) -> None:
    """Nothing, if a picture can be drawn into this file.

    Raises:
        UsageError: matplotlib is not there, or the file's name or folder is none for a picture.
    """
    if file.suffix not in KINDS:
        raise UsageError(f"{file.name!r} does not say what kind of picture it is: let it end in {', '.join(KINDS)}")
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {str(file.parent)!r} for {file.name}: make it first")
    _figures()


def draw(points: Sequence[Point], load: Load, file: Path) -> None:
    """Draws the points; the same points make the same file."""
    matplotlib = _figures()
    with matplotlib.rc_context({"svg.hashsalt": "adapm", "svg.fonttype": "none", "font.size": 9}):
        figure = matplotlib.figure.Figure(figsize=(10, 2.8), layout="constrained")
        nodes = [point.nodes for point in points]
        for axes, (name, title, unit) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
            axes.plot(nodes, [getattr(point, name) / unit for point in points], marker="o", markersize=3)
            axes.set(title=title, xlabel="nodes", ylim=(0, None))
            axes.set_xscale("log", base=2)
            axes.set_xticks(nodes, [f"{number:,}" for number in nodes], rotation=45)
            axes.grid(alpha=0.3)
        table = f"{load.rows:,} rows" + ("" if load.fixed else " per node")
        figure.suptitle(f"{load.keys} keys, {load.batch} per clock, {table}, {load.dim} numbers each", fontsize=9)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _figures() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UsageError(f"drawing needs matplotlib ({error}): pip install 'adapm[plots]'") from error
    return matplotlib
