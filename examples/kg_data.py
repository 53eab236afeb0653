"""Knowledge graphs: where they come from, and how they become integers.

    load("umls")          umls, kinships, nations: read from the pykeen package's archive, which pip fetches once
    load("wn18rr")        the folder wn18rr in the folder that ADAPM_DATA names
    load("some/folder")   train, valid and test in it, each .txt, .tsv or .del, plain or .xz

A file has one triple a line: head, relation and tail, separated by tabs. They may be names or ids; ids are taken as
names, so they need not be contiguous. Whatever is wrong with a file is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from data_files import Archive, Named, data_folder, find, quoted, read_file

from adapm.errors import DataError

Triples = npt.NDArray[np.int64]

PARTS = ("train", "valid", "test")
SUFFIXES = (".txt", ".tsv", ".del", ".txt.xz", ".tsv.xz", ".del.xz")

ARCHIVE = Archive(
    requirement="pykeen==1.11.1",
    file="pykeen-1.11.1-py3-none-any.whl",
    sha256="b6cc0ab012fc6ba4f37b58fb7081a409a5c1f04cbbb0e0e9c2256e911757d4ba",
)
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
        return _number(name, ARCHIVE.read(*(f"pykeen/datasets/{name}/{part}.txt" for part in PARTS)))
    if name in BESIDE:
        return _number(name, _read_folder(data_folder(name)))
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


def _number(name: str, files: list[Named]) -> Graph:
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
            problem = f"head, relation and tail separated by tabs are 3 fields, found {len(fields)}: {quoted(text)}"
            raise DataError(problem, file=file, line=line)
        if not all(field.strip() for field in fields):
            raise DataError(f"an empty name: {quoted(text)}", file=file, line=line)
        yield fields


def _read_folder(folder: Path) -> list[Named]:
    return [read_file(find(folder, part, SUFFIXES)) for part in PARTS]
