"""examples/graph_data.py and graph_partition.py: graphs from archives and files, and parts with few edges between."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import graph_data
import graph_partition
from graph_data import Lists

from package_archive import make_archive

CORA = {
    "edges": np.array([[0, 1], [1, 2], [2, 0], [3, 4]]),
    "labels": np.array([0, 0, 1, 1, 1], np.int8),
    "feature_indptr": np.array([0, 1, 3, 3, 4, 5], np.int32),
    "feature_indices": np.array([5, 0, 1, 2, 3], np.int16),
    "num_features": np.array(6),
    "train_idx": np.array([0]),
    "val_idx": np.array([1]),
    "test_idx": np.array([2, 3]),
}


def neighbours_of(lists, node):
    return lists.of(np.array([node])).items.tolist()


def write_cora(folder, **changed):
    with zipfile.ZipFile(folder / "cora.npz", "w") as opened:
        for name, array in {**CORA, **changed}.items():
            if array is not None:
                content = io.BytesIO()
                np.lib.format.write_array(content, array)
                opened.writestr(f"{name}.npy", content.getvalue())


class TestLists:
    def test_some_of_them(self):
        lists = graph_data.lists(4, np.array([3, 0, 3, 1]), np.array([7, 8, 9, 6]))
        assert [neighbours_of(lists, node) for node in range(4)] == [[8], [6], [], [7, 9]]
        some = lists.of(np.array([3, 2, 3, 0]))
        assert (some.starts.tolist(), some.items.tolist()) == ([0, 2, 2, 4, 5], [7, 9, 7, 9, 8])

    def test_neighbours_know_no_direction_and_are_distinct(self):
        lists = graph_data.neighbours_of(4, np.array([[0, 1], [1, 0], [1, 2], [1, 2], [1, 1]]))
        assert [neighbours_of(lists, node) for node in range(4)] == [[0, 1], [0, 1, 2], [1, 2], [3]]


class TestWordNet:
    def test_pointers_and_files(self, tmp_path, monkeypatch):
        files = {
            "noun": "  1 the licence\n00000010 03 n 01 entity 0 001 ~ 00000050 n 0000 | something\n"
            "00000050 05 n 02 cat 0 true_cat 1 002 @ 00000010 n 0000 + 00000007 v 0101 | a | b\n",
            "verb": "00000007 30 v 01 cat 0 000 01 + 08 00 | be a cat\n",
            "adj": "00000001 00 s 0a catty 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 \\ 00000050 n 0101 | like one\n",
            "adv": "00000002 02 r 01 cattily 0 000 | so\n",
        }
        members = {f"{graph_data.FOLDER}data.{part}": text for part, text in files.items()}
        make_archive(graph_data, tmp_path, monkeypatch, members)
        graph = graph_data.load("wordnet")
        assert graph.labels.tolist() == [3, 5, 30, 0, 2]
        assert [neighbours_of(graph.neighbours, node) for node in range(5)] == [
            [0, 1],
            [0, 1, 2, 3],
            [1, 2],
            [1, 3],
            [4],
        ]
        assert (graph.classes, graph.edges, graph.words) == (31, 3, None)


class TestCora:
    def test_as_it_is(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ADAPM_DATA", str(tmp_path))
        write_cora(tmp_path)
        graph = graph_data.load("cora")
        assert (graph.nodes, graph.classes, graph.edges, graph.vocabulary) == (5, 2, 4, 6)
        assert neighbours_of(graph.words, 1) == [0, 1]
        assert neighbours_of(graph.neighbours, 2) == [0, 1, 2]
        assert (graph.train.tolist(), graph.valid.tolist(), graph.test.tolist()) == ([0], [1], [2, 3])

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"edges": np.array([[0, 5]])}, "edges has to have numbers from 0 to 4"),
            ({"labels": np.array([0, 0, -1, 1, 1])}, "labels has to have numbers from 0 to 127"),
            ({"test_idx": np.array([], np.int64)}, "test_idx has to have numbers from 0 to 4, and at least one"),
            ({"feature_indptr": np.array([0, 1])}, r"feature_indptr \(2,\)"),
            ({"feature_indptr": np.array([0, 3, 1, 3, 4, 5])}, "feature_indptr has to rise from 0 to 5"),
            ({"edges": None}, "cannot be read as an .npz file"),
            ({"edges": np.array([[0.5, 1]])}, "float64 where integers are expected"),
            ({"labels": np.array([{}, {}], object)}, "cannot be read as an .npz file"),
        ],
    )
    def test_bad_array(self, tmp_path, monkeypatch, changed, reason):
        monkeypatch.setenv("ADAPM_DATA", str(tmp_path))
        write_cora(tmp_path, **changed)
        with pytest.raises(DataError, match=reason) as caught:
            graph_data.load("cora")
        assert caught.value.file == str(tmp_path / "cora.npz")

    def test_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ADAPM_DATA", str(tmp_path))
        with pytest.raises(DataError, match=r"there is no file 'cora\.npz' in it"):
            graph_data.load("cora")
        (tmp_path / "cora.npz").write_text("no archive")
        with pytest.raises(DataError, match=r"cannot be read as an \.npz file"):
            graph_data.load("cora")


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "labels.tsv").write_text("".join(f"n{i}\t{'even' if i % 2 == 0 else 'odd'}\n" for i in range(20)))
        (tmp_path / "edges.tsv").write_text("".join(f"n{i}\tn{(i + 2) % 20}\n" for i in range(20)))
        return tmp_path

    def test_names_become_numbers_and_nodes_are_dealt_out(self, folder):
        graph = graph_data.load(str(folder))
        assert (graph.name, graph.nodes, graph.classes, graph.edges) == (folder.name, 20, 2, 20)
        assert neighbours_of(graph.neighbours, 3) == [1, 3, 5]
        assert graph.labels[:3].tolist() == [0, 1, 0]
        parts = graph.train, graph.valid, graph.test
        assert [len(part) for part in parts] == [10, 2, 8]
        assert sorted(np.concatenate(parts).tolist()) == list(range(20))
        assert sorted(graph_data.load(str(folder), split=1).train.tolist()) != sorted(graph.train.tolist())

    @pytest.mark.parametrize(
        ("file", "text", "line", "reason"),
        [
            ("edges.tsv", "n0\tn1\nn0\n", 2, "two nodes separated by a tab are 2 fields, found 1: 'n0'"),
            ("edges.tsv", "n0\tn1\nn0\t \n", 2, "an empty name"),
            ("edges.tsv", "n0\tn99\n", 1, "'n99' has no class in "),
            ("labels.tsv", "n0\ta\nn0\tb\n", 2, "'n0' has a class already"),
            ("labels.tsv", "n0\ta\tb\n", 1, "a node and its class separated by a tab are 2 fields, found 3"),
            ("labels.tsv", "", None, "holds no line with a node and its class"),
        ],
    )
    def test_bad_line(self, folder, file, text, line, reason):
        (folder / file).write_text(text)
        with pytest.raises(DataError, match=reason) as caught:
            graph_data.load(str(folder))
        assert (caught.value.file, caught.value.line) == (str(folder / file), line)

    def test_too_few_nodes_and_unknown_name(self, folder):
        (folder / "labels.tsv").write_text("n0\ta\nn1\tb\n")
        (folder / "edges.tsv").write_text("n0\tn1\n")
        with pytest.raises(DataError, match="has 2 nodes, which cannot be cut"):
            graph_data.load(str(folder))
        with pytest.raises(DataError, match="no data set and no folder 'friends'; give wordnet, cora, or a folder"):
            graph_data.load("friends")


def cliques(count, size, rng):
    """Complete graphs in a ring, each connected to the next by one edge, numbered at random."""
    edges = [(clique * size + i, clique * size + j) for clique in range(count) for i in range(size) for j in range(i)]
    edges += [(clique * size, (clique + 1) % count * size + 1) for clique in range(count)]
    return graph_data.neighbours_of(count * size, rng.permutation(count * size)[np.array(edges)])


class TestPartition:
    @pytest.mark.parametrize("parts", [1, 2, 3, 4])
    def test_parts_are_of_one_size_and_keep_cliques_together(self, parts):
        rng = np.random.default_rng(parts)
        neighbours = cliques(12, 10, rng)
        busy = np.zeros(120, np.bool_)
        busy[rng.permutation(120)[:60]] = True
        part = graph_partition.by_exchange(neighbours, busy, parts, seed=0)
        for kind in (busy, ~busy):
            sizes = np.bincount(part[kind], minlength=parts)
            assert sizes.max() - sizes.min() <= 1
        drawn = graph_partition.inside(neighbours, rng.permutation(part))
        found = graph_partition.inside(neighbours, part)
        print("inside", found, "drawn", drawn)
        assert found >= 0.8 >= drawn or parts == 1
        np.testing.assert_array_equal(part, graph_partition.by_exchange(neighbours, busy, parts, seed=0))

    def test_exchange_leaves_fewer_edges_between_parts(self):
        rng = np.random.default_rng(3)
        neighbours, busy = cliques(6, 8, rng), np.ones(48, np.bool_)
        part = rng.permutation(np.arange(48) % 2)
        before = graph_partition.inside(neighbours, part)
        for _ in range(20):
            graph_partition.exchange(neighbours, busy, part, 2, rng)
        assert np.bincount(part).tolist() == [24, 24]
        assert graph_partition.inside(neighbours, part) > before + 0.2

    def test_nodes_without_neighbours(self):
        alone = Lists(np.arange(7), np.arange(6))
        part = graph_partition.by_exchange(alone, np.ones(6, np.bool_), 3, seed=0)
        assert sorted(part.tolist()) == [0, 0, 1, 1, 2, 2]
        assert graph_partition.inside(alone, part) == 1.0

    def test_metis_cuts_as_well(self):
        pytest.importorskip(graph_partition.METIS)
        neighbours, busy = cliques(12, 10, np.random.default_rng(0)), np.ones(120, np.bool_)
        part = graph_partition.partition(neighbours, busy, 3, seed=0)
        assert graph_partition.inside(neighbours, part) >= 0.8
        assert np.bincount(part).max() <= 44
