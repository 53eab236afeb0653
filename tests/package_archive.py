"""An archive as a package index would give it, in a cache of its own."""

import dataclasses
import hashlib
import zipfile


def make_archive(module, cache, monkeypatch, members):
    """Puts a small archive with these members (name: text or bytes) where the module's data is read from."""
    monkeypatch.setenv("ADAPM_CACHE", str(cache))
    path = cache / module.ARCHIVE.file
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "ARCHIVE", dataclasses.replace(module.ARCHIVE, sha256=digest))
