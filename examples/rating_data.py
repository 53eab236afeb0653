"""Ratings, or any other matrix of which some entries are known: where they come from, and how they become integers.

    load("movielens")       MovieLens-100K, read from the recbole package's archive, which pip fetches once
    load("some/file")       one file, of which a tenth, drawn at random, is kept for the test
    load("some/folder")     train and test in it

Files are .mtx or .mmc (MatrixMarket, "coordinate real general") or .tsv, .txt or .inter: one rating a line - row,
column, value and whatever else, separated by tabs - with or without a heading. Rows and columns of these may be names
or ids. All may be packed: .xz, .bz2. Whatever is wrong with a file is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from data_files import PACKED, Archive, Named, find, quoted, read_file

from adapm.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MATRICES = (".mtx", ".mmc")
LISTS = (".tsv", ".txt", ".inter")
SUFFIXES = tuple(suffix + packed for suffix in MATRICES + LISTS for packed in ("", *PACKED))
TESTED = 0.1  # of one file

ARCHIVE = Archive(
    requirement="recbole==1.2.1",
    file="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
MOVIELENS = "recbole/dataset_example/ml-100k/ml-100k.inter"


@dataclass(frozen=True, eq=False)
class Entries:
    """Known entries of a matrix.

    Attributes:
        rows, columns: int64 [n].
        values: float32 [n].
    """

    rows: Ints
    columns: Ints
    values: Floats

    def __len__(self) -> int:
        """How many there are."""
        return len(self.values)

    def __getitem__(self, which: npt.NDArray[np.generic] | slice) -> Entries:
        """Some of them: a mask, positions or a slice."""
        return Entries(self.rows[which], self.columns[which], self.values[which])


@dataclass(frozen=True, eq=False)
class Ratings:
    """A matrix, entries of it to learn from, and others to test with.

    Attributes:
        rows, columns: how many there are.
    """

    name: str
    rows: int
    columns: int
    train: Entries
    test: Entries


def load(name: str, split: int = 0) -> Ratings:
    """The ratings of this name, or in this file or folder.

    Args:
        name: see above.
        split: which tenth of one file is kept for the test: the seed by which it is drawn.

    Raises:
        DataError: there is none, it cannot be fetched, or a file is malformed.
    """
    if name == "movielens":
        return _split("movielens", _parse(ARCHIVE.read(MOVIELENS)), split)
    path = Path(name)
    if path.is_dir():
        files = [read_file(find(path, part, SUFFIXES)) for part in ("train", "test")]
        return _together(path.name, _parse(files))
    if path.is_file():
        return _split(path.name, _parse([read_file(path)]), split)
    raise DataError(
        f"no data set, file or folder {name!r}; give movielens, a file of ratings, or a folder with train and test"
    )


def _split(name: str, parsed: tuple[int, int, list[Entries]], seed: int) -> Ratings:
    rows, columns, (entries,) = parsed
    tested = np.zeros(len(entries), np.bool_)
    tested[np.random.default_rng(seed).permutation(len(entries))[: math.ceil(TESTED * len(entries))]] = True
    if tested.all():
        raise DataError(f"{name} has 1 rating, which cannot be cut into some to learn from and some to test with")
    return Ratings(name, rows, columns, entries[~tested], entries[tested])


def _together(name: str, parsed: tuple[int, int, list[Entries]]) -> Ratings:
    rows, columns, (train, test) = parsed
    return Ratings(name, rows, columns, train, test)


def _parse(files: list[Named]) -> tuple[int, int, list[Entries]]:
    """The number of rows, of columns, and each file's entries."""
    if all(_is_matrix(content) for _, content in files):
        return _matrices(files)
    rows, columns = _Numbering(), _Numbering()
    entries = [_list(*file, rows, columns) for file in files]
    return len(rows), len(columns), entries


# ---- MatrixMarket

BANNER = b"%%MatrixMarket"
UNDERSTOOD = [b"matrix", b"coordinate", b"real", b"general"], [b"matrix", b"coordinate", b"integer", b"general"]


def _is_matrix(content: bytes) -> bool:
    return content.startswith(BANNER)


def _matrices(files: list[Named]) -> tuple[int, int, list[Entries]]:
    shapes, entries = zip(*(_matrix(*file) for file in files), strict=True)
    if len(set(shapes)) > 1:
        sizes = " and ".join(f"{rows} x {columns}" for rows, columns in shapes)
        raise DataError(
            f"is {sizes}: train and test are entries of one matrix, so must say the same", file=files[-1][0]
        )
    return *shapes[0], list(entries)


def _matrix(file: str, content: bytes) -> tuple[tuple[int, int], Entries]:
    lines = content.splitlines()
    if lines[0].lower().split()[1:] not in UNDERSTOOD:
        problem = f"{quoted(lines[0])}: only `matrix coordinate real general` (or integer) is understood; convert it"
        raise DataError(problem, file=file, line=1)
    at = next((i for i, line in enumerate(lines) if _says_something(line)), None)
    if at is None:
        raise DataError("ends before the line with rows, columns and entries", file=file, line=len(lines))
    rows, columns, count = _size(file, at + 1, lines[at])
    try:
        table = np.loadtxt(lines[at + 1 :], np.float64, comments="%", ndmin=2) if count else np.empty((0, 3))
    except ValueError:
        table = np.empty((0, 0))  # which line it is, is found below
    if table.shape != (count, 3) or not _fits(table, rows, columns):
        _blame(file, lines, at + 1, (rows, columns, count))
    places = table[:, :2].astype(np.int64) - 1
    return (rows, columns), Entries(places[:, 0].copy(), places[:, 1].copy(), table[:, 2].astype(np.float32))


def _says_something(line: bytes) -> bool:
    return not line.startswith(b"%") and not line.isspace() and line != b""


def _size(file: str, number: int, line: bytes) -> tuple[int, int, int]:
    try:
        rows, columns, count = map(int, line.split())
    except ValueError:
        rows = columns = count = 0
    if min(rows, columns, count) < 1:
        problem = f"rows, columns and entries are three whole numbers above 0, found {quoted(line)}"
        raise DataError(problem, file=file, line=number)
    return rows, columns, count


def _fits(table: npt.NDArray[np.float64], rows: int, columns: int) -> bool:
    places = table[:, :2]
    inside = (places >= 1) & (places <= (rows, columns)) & (places == np.floor(places))
    return bool(inside.all() and np.isfinite(table[:, 2]).all())


def _blame(file: str, lines: list[bytes], begin: int, size: tuple[int, int, int]) -> NoReturn:
    """Finds what is wrong with the entries, which begin at this line."""
    rows, columns, count = size
    found = 0
    for number, line in enumerate(lines[begin:], start=begin + 1):
        if _says_something(line):
            found += 1
            if not _is_entry(line, rows, columns):
                problem = f"an entry is a row (1 to {rows}), a column (1 to {columns}) and a finite number"
                raise DataError(f"{problem}, found {quoted(line)}", file=file, line=number)
    problem = f"line {begin} says {count} entries, but {found} follow; correct it, or get the rest of the file"
    raise DataError(problem, file=file)


def _is_entry(line: bytes, rows: int, columns: int) -> bool:
    try:
        table = np.array([[float(field) for field in line.split(b"%")[0].split()]])
    except ValueError:
        return False
    if b"_" in line:  # which Python takes for a thousands separator, but numpy does not
        return False
    return table.shape == (1, 3) and _fits(table, rows, columns)


# ---- lists of ratings


class _Numbering(dict[bytes, int]):
    """Numbers names 0, 1, 2, ... as they first appear."""

    def __missing__(self, name: bytes) -> int:
        number = self[name] = len(self)
        return number


def _list(file: str, content: bytes, rows: _Numbering, columns: _Numbering) -> Entries:
    entries = [(rows[row], columns[column], value) for row, column, value in _rated(file, content)]
    if not entries:
        raise DataError("holds no rating", file=file)
    i, j, values = zip(*entries, strict=True)
    return Entries(np.array(i, np.int64), np.array(j, np.int64), np.array(values, np.float32))


def _rated(file: str, content: bytes) -> Iterator[tuple[bytes, bytes, float]]:
    for line, text in enumerate(content.splitlines(), start=1):
        row, column, value = _three(file, line, text)
        try:
            number = float(value)
        except ValueError:
            if line == 1:
                continue  # a heading
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"the third field is no finite number: {quoted(text)}", file=file, line=line)
        yield row, column, number


def _three(file: str, line: int, text: bytes) -> list[bytes]:
    fields = text.split(b"\t")
    if len(fields) < 3:
        problem = f"row, column and value separated by tabs are 3 fields, found {len(fields)}: {quoted(text)}"
        raise DataError(problem, file=file, line=line)
    if not all(field.strip() for field in fields[:3]):
        raise DataError(f"an empty field: {quoted(text)}", file=file, line=line)
    return fields[:3]
