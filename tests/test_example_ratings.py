"""examples/rating_data.py: ratings from files, and what is said about files that are wrong."""

import bz2
import sys
from pathlib import Path

import numpy as np
import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import rating_data

from package_archive import make_archive

MATRIX = "%%MatrixMarket matrix coordinate real general\n% a comment\n\n3 4 2\n1 2 0.5\n3 4 -1e1\n"
LIST = "user\titem\trating\tyear\nanna\tjaws\t5\t1999\nben\tjaws\t3.5\t2000\n"


def written(path, text):
    path.write_bytes(text.encode())
    return str(path)


def triples(entries):
    return list(zip(entries.rows.tolist(), entries.columns.tolist(), entries.values.tolist(), strict=True))


class TestMatrix:
    def test_folder(self, tmp_path):
        written(tmp_path / "train.mmc", MATRIX)
        written(tmp_path / "test.mmc", MATRIX.replace("4 2\n", "4 1\n").replace("1 2 0.5\n", ""))
        ratings = rating_data.load(str(tmp_path))
        assert (ratings.name, ratings.rows, ratings.columns) == (tmp_path.name, 3, 4)
        assert triples(ratings.train) == [(0, 1, 0.5), (2, 3, -10.0)]
        assert triples(ratings.test) == [(2, 3, -10.0)]
        assert (ratings.train.rows.dtype, ratings.train.values.dtype) == (np.int64, np.float32)

    def test_comments_and_empty_lines_among_the_entries(self, tmp_path):
        text = MATRIX.replace("1 2 0.5\n", "\n% another\n1 2 0.5\n").replace("real", "Integer")
        ratings = rating_data.load(written(tmp_path / "a.mtx", text))
        assert sorted(triples(ratings.train) + triples(ratings.test)) == [(0, 1, 0.5), (2, 3, -10.0)]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("0 2 0.5", r"a row \(1 to 3\), a column \(1 to 4\) and a finite number, found '0 2 0.5'"),
            ("4 2 0.5", "found '4 2 0.5'"),
            ("1 5 0.5", "found '1 5 0.5'"),
            ("1.5 2 0.5", "found"),
            ("1 2", "found '1 2'"),
            ("1 2 3 4", "found"),
            ("1 2 x", "found"),
            ("1 1_0 2", "found"),
            ("1 2 nan", "found"),
            ("1 2 inf", "found"),
        ],
    )
    def test_bad_entry(self, tmp_path, line, reason):
        file = written(tmp_path / "a.mtx", MATRIX.replace("3 4 -1e1", line))
        with pytest.raises(DataError, match=reason) as caught:
            rating_data.load(file)
        assert (caught.value.file, caught.value.line) == (file, 6)

    @pytest.mark.parametrize("size", ["3 4", "3 4 x", "0 4 2", "3 4 0", "3 4 2 2"])
    def test_bad_size(self, tmp_path, size):
        with pytest.raises(DataError, match=r"line 4: rows, columns and entries are three whole numbers") as caught:
            rating_data.load(written(tmp_path / "a.mtx", MATRIX.replace("3 4 2", size)))
        assert caught.value.line == 4

    @pytest.mark.parametrize("said", [1, 3])
    def test_other_number_of_entries_than_said(self, tmp_path, said):
        with pytest.raises(DataError, match=f"line 4 says {said} entries, but 2 follow"):
            rating_data.load(written(tmp_path / "a.mtx", MATRIX.replace("3 4 2", f"3 4 {said}")))

    def test_ends_early(self, tmp_path):
        with pytest.raises(DataError, match="line 3: ends before the line with rows"):
            rating_data.load(written(tmp_path / "a.mtx", MATRIX[: MATRIX.index("3 4")]))

    @pytest.mark.parametrize("kind", ["array real general", "coordinate pattern general", "coordinate real symmetric"])
    def test_other_kinds_of_matrix(self, tmp_path, kind):
        with pytest.raises(DataError, match=r"line 1: .*only `matrix coordinate real general`.*convert"):
            rating_data.load(written(tmp_path / "a.mtx", MATRIX.replace("coordinate real general", kind)))

    def test_parts_of_different_matrices(self, tmp_path):
        written(tmp_path / "train.mtx", MATRIX)
        written(tmp_path / "test.mtx", MATRIX.replace("3 4 2", "3 5 2"))
        with pytest.raises(DataError, match=r"test.mtx: is 3 x 4 and 3 x 5"):
            rating_data.load(str(tmp_path))


class TestList:
    def test_with_and_without_heading(self, tmp_path):
        for text in (LIST, LIST[LIST.index("\n") + 1 :]):
            ratings = rating_data.load(written(tmp_path / "a.tsv", text))
            assert (ratings.rows, ratings.columns) == (2, 1)
            assert sorted(triples(ratings.train) + triples(ratings.test)) == [(0, 0, 5.0), (1, 0, 3.5)]

    def test_names_are_numbered_over_both_parts(self, tmp_path):
        (tmp_path / "train.tsv.bz2").write_bytes(bz2.compress(LIST.encode()))
        written(tmp_path / "test.tsv", "ben\tbambi\t1\n")
        ratings = rating_data.load(str(tmp_path))
        assert (ratings.rows, ratings.columns) == (2, 2)
        assert triples(ratings.test) == [(1, 1, 1.0)]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("a\tb", r"3 fields, found 2: 'a\\tb'"),
            ("a b 3", "found 1"),
            ("", "found 1"),
            ("a\t\t3", "an empty field"),
            ("a\tb\tfive", "no finite number: 'a\\\\tb\\\\tfive'"),
            ("a\tb\tnan", "no finite number"),
        ],
    )
    def test_bad_line(self, tmp_path, line, reason):
        file = written(tmp_path / "a.tsv", LIST + line + "\n")
        with pytest.raises(DataError, match=reason) as caught:
            rating_data.load(file)
        assert (caught.value.file, caught.value.line) == (file, 4)

    @pytest.mark.parametrize("text", ["", LIST[: LIST.index("\n")]])
    def test_no_rating(self, tmp_path, text):
        with pytest.raises(DataError, match="holds no rating"):
            rating_data.load(written(tmp_path / "a.tsv", text))

    def test_one_rating(self, tmp_path):
        with pytest.raises(DataError, match="has 1 rating, which cannot be cut"):
            rating_data.load(written(tmp_path / "a.tsv", "a\tb\t1\n"))


class TestSplit:
    def test_a_tenth_is_kept_and_nothing_lost(self, tmp_path):
        file = written(tmp_path / "a.tsv", "".join(f"{n}\t0\t{n}\n" for n in range(41)))
        first, again, other = (rating_data.load(file, split) for split in (3, 3, 4))
        assert len(first.test) == 5
        assert sorted([*first.train.rows, *first.test.rows]) == list(range(41))
        assert triples(first.test) == triples(again.test) != triples(other.test)

    def test_movielens_from_the_package_archive(self, tmp_path, monkeypatch):
        make_archive(rating_data, tmp_path, monkeypatch, {rating_data.MOVIELENS: LIST})
        ratings = rating_data.load("movielens")
        assert (ratings.name, len(ratings.train), len(ratings.test)) == ("movielens", 1, 1)

    def test_unknown_name(self):
        with pytest.raises(DataError, match=r"'netflix'; give movielens, a file of ratings, or a folder"):
            rating_data.load("netflix")
