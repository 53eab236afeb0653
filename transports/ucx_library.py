"""Where libucp comes from: the system's, which knows its network, else the wheel's; and what is said without one.

Nothing of UCX is needed to build or install adapm: `adapm._ucp` looks for the library when it is used.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapm._ucp import ffi, lib
from adapm.errors import LibraryMissing

log = logging.getLogger("adapm.transports.ucx")

_SONAME: Final = "libucp.so.0"
_WHEEL: Final = "libucx"  # the package that the wheels libucx-cu12 and so on bring
_ABSENT: Final = "No such file"  # what the loader says of a library that is not there
_ROOM: Final = 4096  # bytes of a text


@dataclass(frozen=True)
class Library:
    """The libucp that this process uses.

    Attributes:
        path: what was loaded; a bare name was found by the system's loader.
        version: of UCX, such as "1.18.1".
        passed_over: what was found before it and does not do, each with why.
    """

    path: str
    version: str
    passed_over: tuple[str, ...]

    def __str__(self) -> str:
        return f"UCX {self.version} ({self.path})"


@functools.cache
def load() -> Library:
    """The library, found and loaded once for the process.

    Raises:
        LibraryMissing: there is none that can be used.
    """
    return load_first(list(candidates()))


def candidates() -> Iterator[str]:
    """Where to look, the best first."""
    yield _SONAME
    spec = importlib.util.find_spec(_WHEEL)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        yield str(Path(folder, "lib", _SONAME))


def load_first(paths: Sequence[str]) -> Library:
    """The first of these that can be used.

    Raises:
        LibraryMissing: none can.
    """
    passed_over: list[str] = []
    error = ffi.new("char[]", _ROOM)
    for path in paths:
        if not lib.adapm_ucp_load(path.encode(), error, _ROOM):
            return Library(path, _version(), tuple(why for why in passed_over if _ABSENT not in why))
        passed_over.append(f"{path}: {_text(error)}")
    raise LibraryMissing(
        f"the ucx transport needs UCX's library {_SONAME}, 1.14 or newer: pip install 'adapm[ucx]', or on a site with"
        f" InfiniBand its own UCX; tried were {'; '.join(passed_over)}"
    )


def why(status: int) -> str:
    """What UCX's error number means."""
    return _text(lib.adapm_ucp_why(status))


def said() -> str:
    """What UCX has complained of since the last call, "" for nothing; it is logged, too."""
    text = ffi.new("char[]", _ROOM)
    length = lib.adapm_ucp_said(text, _ROOM)
    complaint = bytes(ffi.buffer(text, length)).decode(errors="replace").replace("\n", "; ")
    if complaint:
        log.debug("UCX says: %s", complaint)
    return complaint


def _version() -> str:
    numbers = ffi.new("uint32_t[3]")
    lib.adapm_ucp_version(numbers, numbers + 1, numbers + 2)
    return ".".join(map(str, numbers))


def _text(chars: object) -> str:
    return ffi.string(chars).decode(errors="replace")
