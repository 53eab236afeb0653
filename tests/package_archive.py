"""An archive as a package index would give it, in a cache of its own."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile


def make_archive(module, cache, monkeypatch, members):
    """Puts a small archive with these members (name: text or bytes) where the module's data is read from."""
    monkeypatch.setenv("ADAPM_CACHE", str(cache))
    path = cache / module.ARCHIVE.file
    contents = {name: content.encode() if isinstance(content, str) else content for name, content in members.items()}
    path.write_bytes(_source(contents) if module.ARCHIVE.is_source else _wheel(contents))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "ARCHIVE", dataclasses.replace(module.ARCHIVE, sha256=digest))


def _wheel(contents):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name, content in contents.items():
            opened.writestr(name, content)
    return packed.getvalue()


def _source(contents):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as opened:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
