"""examples/kg_data.py: triples from files, and what is said about files that are wrong."""

import lzma
import sys
from pathlib import Path

import numpy as np
import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import kg_data

from package_archive import make_archive

TRAIN = "anna\tknows\tben\nben\tknows\tcleo\n"
VALID = "cleo\tlikes\tanna\n"
TEST = "dora\tknows\tanna\n"


@pytest.fixture
def folder(tmp_path):
    for part, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        (tmp_path / f"{part}.txt").write_text(text)
    return tmp_path


class TestFolder:
    def test_names_are_numbered_as_they_appear(self, folder):
        graph = kg_data.load(str(folder))
        assert (graph.name, graph.entities, graph.relations) == (folder.name, 4, 2)
        assert graph.train.tolist() == [[0, 0, 1], [1, 0, 2]]
        assert graph.valid.tolist() == [[2, 1, 0]]
        assert graph.test.tolist() == [[3, 0, 0]]
        assert graph.train.dtype == np.int64

    def test_ids_are_names(self, folder):
        (folder / "train.txt").write_text("1000000007\t5\t3\n")
        assert kg_data.load(str(folder)).train.tolist() == [[0, 0, 1]]

    def test_last_newline_is_optional_and_lines_may_end_as_on_windows(self, folder):
        (folder / "train.txt").write_bytes(TRAIN.replace("\n", "\r\n").rstrip().encode())
        assert kg_data.load(str(folder)).train.tolist() == [[0, 0, 1], [1, 0, 2]]

    def test_tsv_and_xz(self, folder):
        (folder / "train.txt").rename(folder / "train.tsv")
        (folder / "valid.txt").unlink()
        (folder / "valid.txt.xz").write_bytes(lzma.compress(VALID.encode()))
        graph = kg_data.load(str(folder))
        assert graph.train.tolist() == [[0, 0, 1], [1, 0, 2]]
        assert graph.valid.tolist() == [[2, 1, 0]]

    def test_del(self, folder):
        for part in kg_data.PARTS:
            (folder / f"{part}.txt").rename(folder / f"{part}.del")
        assert kg_data.load(str(folder)).train.tolist() == [[0, 0, 1], [1, 0, 2]]

    def test_data_beside_the_project(self, folder, monkeypatch):
        (folder / "wn18rr").mkdir()
        for part in kg_data.PARTS:
            (folder / f"{part}.txt").rename(folder / "wn18rr" / f"{part}.txt")
        monkeypatch.setenv("ADAPM_DATA", str(folder))
        assert kg_data.load("wn18rr").entities == 4


class TestMalformed:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("a\tknows", "found 2: 'a\\tknows'"),
            ("a knows b", "found 1: 'a knows b'"),
            ("a\tknows\tb\t0.5", "found 4"),
            ("", "found 1: ''"),
            ("a\t\tb", "empty name: 'a\\t\\tb'"),
            ("a\t \tb", "empty name"),
        ],
    )
    def test_line(self, folder, line, reason):
        (folder / "valid.txt").write_text(VALID + line + "\n" + VALID)
        with pytest.raises(DataError) as caught:
            kg_data.load(str(folder))
        assert (caught.value.file, caught.value.line) == (str(folder / "valid.txt"), 2)
        assert reason in str(caught.value)

    def test_quote_of_bytes_that_are_no_text_is_short(self, folder):
        (folder / "valid.txt").write_bytes(b"\xff" * 10_000)
        with pytest.raises(DataError, match=r"line 1: .*\\xff") as caught:
            kg_data.load(str(folder))
        assert len(str(caught.value)) < 300 + len(str(folder))

    def test_empty_file(self, folder):
        (folder / "test.txt").write_text("")
        with pytest.raises(DataError, match="holds no triple"):
            kg_data.load(str(folder))

    @pytest.mark.parametrize("content", [b"no xz at all", lzma.compress(TEST.encode())[:-5]])
    def test_broken_xz(self, folder, content):
        (folder / "test.txt").unlink()
        (folder / "test.txt.xz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read") as caught:
            kg_data.load(str(folder))
        assert caught.value.file == str(folder / "test.txt.xz")

    def test_missing_part(self, folder):
        (folder / "valid.txt").unlink()
        with pytest.raises(DataError, match=r"exactly one of valid.txt, .*; there is none"):
            kg_data.load(str(folder))

    def test_part_twice(self, folder):
        (folder / "valid.tsv").write_text(VALID)
        with pytest.raises(DataError, match=r"found valid.txt and valid.tsv"):
            kg_data.load(str(folder))

    def test_unknown_name(self):
        with pytest.raises(DataError, match=r"'freebase'; give one of umls, kinships, nations, wn18rr, or a folder"):
            kg_data.load("freebase")

    def test_data_folder_not_set(self, monkeypatch):
        monkeypatch.delenv("ADAPM_DATA", raising=False)
        with pytest.raises(DataError, match="ADAPM_DATA names; it is not set"):
            kg_data.load("wn18rr")

    def test_data_folder_without_it(self, monkeypatch, tmp_path):
        monkeypatch.setenv("ADAPM_DATA", str(tmp_path))
        with pytest.raises(DataError, match="no folder 'wn18rr' in it"):
            kg_data.load("wn18rr")


def test_from_the_package_archive(tmp_path, monkeypatch):
    make_archive(
        kg_data, tmp_path, monkeypatch, {f"pykeen/datasets/nations/{part}.txt": TRAIN for part in kg_data.PARTS}
    )
    assert kg_data.load("nations").train.tolist() == [[0, 0, 1], [1, 0, 2]]
