"""The cluster key: one secret that all nodes of a run share, in a file that only its user can read.

Nothing ever sends it. Transports prove to each other that they have it, with keys that they derive from it;
docs/security.md says what that protects.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adapm.errors import KeyFileError

DEFAULT: Final = "~/.config/adapm/cluster.key"
_SIZE: Final = 32  # bytes of the secret
_LIMIT: Final = 4096  # bytes that a key file may have
_TEXT: Final = """\
# The key of a cluster of adapm nodes: who can read this can join. Copy it to every host, for one user only (mode 0600).
adapm-key-1 {}
"""
_LINE: Final = re.compile(r"adapm-key-1 ([0-9a-f]{64})")


@dataclass(frozen=True)
class ClusterKey:
    """A secret and where it was found.

    Attributes:
        path: of its file.
        secret: 32 random bytes.
    """

    path: Path
    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Tells keys apart, and nothing else about them: 16 hexadecimal digits that may be shown to anybody."""
        return hashlib.blake2b(key=self.secret, digest_size=8, person=b"adapm-name").hexdigest()


def make(path: str | os.PathLike[str] = DEFAULT, *, overwrite: bool = False) -> ClusterKey:
    """A new key in a new file, mode 0600, in a folder that is made if need be.

    Raises:
        KeyFileError: there is a file already (unless it is to be overwritten), or none can be made.
    """
    place = Path(path).expanduser()
    key = ClusterKey(place, secrets.token_bytes(_SIZE))
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(place, _TEXT.format(key.secret.hex()), overwrite=overwrite)
    except OSError as error:
        if isinstance(error, FileExistsError) and os.path.lexists(place):
            raise KeyFileError(
                f"there is a file {place} already: copy that to the other hosts, or say --overwrite to make a new key,"
                " which then all hosts need"
            ) from error
        why = error.strerror or error
        raise KeyFileError(f"cannot make the key file {place}: {why}; name another place (--path)") from error
    return key


def read(path: str | os.PathLike[str] = DEFAULT) -> ClusterKey:
    """The key in a file.

    Raises:
        KeyFileError: there is none, others can read or change it, or it holds no key.
    """
    place = Path(path).expanduser()
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not hold us up
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key file {place}: {error.strerror or error}; make one by `adapm keys --path {place}`,"
            " or copy that of the other hosts"
        ) from error
    try:
        _check_private(place, os.fstat(descriptor))
        return ClusterKey(place, _parse(place, os.read(descriptor, _LIMIT + 1)))
    finally:
        os.close(descriptor)


def find(key_file: str | None) -> ClusterKey | None:
    """The key in the file, or if none is named in that of the default place, if there is one.

    Raises:
        KeyFileError: as `read`.
    """
    if key_file is None and not os.path.lexists(Path(DEFAULT).expanduser()):
        return None
    return read(key_file or DEFAULT)


def _write(place: Path, text: str, *, overwrite: bool) -> None:
    """Either the whole file is there afterwards or what was there before, and nobody else can read it at any time."""
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")  # mode 0600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if overwrite:
            Path(name).replace(place)
        else:
            os.link(name, place)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()


def _check_private(place: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{place} is no file that could hold a key; name another (key_file)")
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(
            f"the key file {place} belongs to user {status.st_uid}, who can read and change it; use a copy of your own"
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"the key file {place} has mode {stat.S_IMODE(status.st_mode):04o}, so others may have read the key:"
            f" chmod 600 {place}, and if they are not to be trusted make a new one (adapm keys --overwrite)"
        )


def _parse(place: Path, data: bytes) -> bytes:
    lines = [line for line in data.decode("ascii", "replace").splitlines() if line.strip() and line[0] != "#"]
    match = _LINE.fullmatch(lines[0].strip()) if len(data) <= _LIMIT and len(lines) == 1 else None
    if match is None:
        raise KeyFileError(
            f"{place} holds no cluster key; copy the file from another host, or make one by `adapm keys`"
        )
    return bytes.fromhex(match[1])
