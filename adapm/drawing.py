"""Pictures in files, the same for the same data; needs matplotlib."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from adapm.errors import UsageError

KINDS: Final = (".svg", ".png", ".pdf")
_STYLE: Final = {"svg.hashsalt": "adapm", "svg.fonttype": "none", "font.size": 9}


def require(file: Path, kinds: tuple[str, ...] = KINDS) -> None:
    """Nothing, if a picture can be drawn into this file.

    Raises:
        UsageError: matplotlib is not there, or the file's name or folder is none for a picture.
    """
    if file.suffix not in kinds:
        raise UsageError(f"{file.name!r} does not say what kind of picture it is: let it end in {', '.join(kinds)}")
    if not file.parent.is_dir():
        raise UsageError(f"there is no folder {str(file.parent)!r} for {file.name}: make it first")
    _matplotlib()


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A new matplotlib figure of so many inches; to be drawn and saved within.

    Raises:
        UsageError: matplotlib is not there.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_STYLE):
        yield matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, file: Any, kind: str) -> None:
    """Writes a figure.

    Args:
        drawn: from `figure`.
        file: a path, or a file open for bytes.
        kind: one of `KINDS`.
    """
    drawn.savefig(file, format=kind[1:], dpi=150, metadata={"Date": None} if kind == ".svg" else None)


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UsageError(f"drawing needs matplotlib ({error}): pip install 'adapm[plots]'") from error
    return matplotlib
