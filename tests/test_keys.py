"""Cluster keys: their files, the settings that name them, and what is said of those that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapm import Config, cli, doctor, keys
from adapm.errors import ConfigError, KeyFileError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_read_as_it_was_made(tmp_path):
    made = keys.make(tmp_path / "a" / "key")
    assert keys.read(made.path) == made
    assert len(made.secret) == 32
    assert made.secret.hex() not in repr(made)
    assert (made.path.stat().st_mode & 0o777, made.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert os.listdir(made.path.parent) == ["key"]


def test_every_key_is_another_and_so_is_its_fingerprint(tmp_path):
    made = [keys.make(tmp_path / str(i)) for i in range(10)]
    assert len({key.secret for key in made}) == len({key.fingerprint for key in made}) == 10
    assert all(key.fingerprint not in key.secret.hex() for key in made)


def test_whatever_the_umask_a_file_is_private_from_its_first_moment(tmp_path):
    before = os.umask(0)
    try:
        path = keys.make(tmp_path / "key").path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_is_replaced_only_when_that_is_said(tmp_path):
    first = keys.make(tmp_path / "key")
    with pytest.raises(KeyFileError, match=r"there is a file .*key already.*--overwrite"):
        keys.make(tmp_path / "key")
    assert keys.read(first.path) == first
    second = keys.make(tmp_path / "key", overwrite=True)
    assert keys.read(first.path) == second != first
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_file_that_others_can_use_is_refused_with_the_remedy(tmp_path, mode):
    path = keys.make(tmp_path / "key").path
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode 0{mode:o}.*chmod 600 {path}"):
        keys.read(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_is_private_will_do(tmp_path, mode):
    path = keys.make(tmp_path / "key").path
    path.chmod(mode)
    assert keys.read(path)


def test_a_file_of_another_user_is_refused(tmp_path, monkeypatch):
    path = keys.make(tmp_path / "key").path
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 4711)
    if path.stat().st_uid == 0:
        assert keys.read(path)  # root can read everything anyway
        return
    with pytest.raises(KeyFileError, match="belongs to user"):
        keys.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only words\n",
        b"adapm-key-1 " + b"0" * 63,
        b"adapm-key-1 " + b"0" * 65,
        b"adapm-key-2 " + b"0" * 64,
        b"adapm-key-1 " + b"g" * 64,
        (b"adapm-key-1 " + b"0" * 64 + b"\n") * 2,
        b"adapm-key-1 " + b"0" * 64 + b"\n" * 5000,
        b"\xff" * 80,
    ],
)
def test_a_file_that_holds_no_key_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="holds no cluster key"):
        keys.read(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(KeyFileError, match="is no file"):
            keys.read(path)
    with pytest.raises(KeyFileError, match="adapm keys --path"):
        keys.read(tmp_path / "absent")
    with pytest.raises(KeyFileError, match="cannot make"):
        keys.make("/dev/null/key")


def test_the_default_place_counts_if_there_is_one_and_a_named_file_must_be_there(home):
    assert Config().cluster_key() is None
    made = keys.make()
    assert made.path == home / ".config" / "adapm" / "cluster.key"
    assert Config().cluster_key() == made
    assert Config(insecure=True).cluster_key() is None
    with pytest.raises(KeyFileError, match="absent"):
        Config(key_file="absent").cluster_key()
    made.path.unlink()
    made.path.symlink_to(home / "gone")
    with pytest.raises(KeyFileError, match="cannot read"):  # not: silently without a key
        Config().cluster_key()


def test_a_key_and_no_key_contradict_each_other():
    with pytest.raises(ConfigError, match="insecure=true means without a key"):
        Config(insecure=True, key_file="some")


def test_the_command(home):
    call = CliRunner().invoke
    made = call(cli.main, ["keys"])
    assert made.exit_code == 0
    assert keys.read().fingerprint in made.output
    assert keys.read().secret.hex() not in made.output
    again = call(cli.main, ["keys"])
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    assert call(cli.main, ["keys", "--overwrite"]).exit_code == 0
    assert call(cli.main, ["keys", "--path", str(home / "other")]).exit_code == 0
    assert keys.read(home / "other") != keys.read()


def test_the_doctor_knows_keys(home):
    def status(**settings: object) -> tuple[str, str]:
        (finding,) = doctor.cluster_key(lambda: Config(**settings))
        return finding.status, finding.found

    assert status() == ("ok", "none")
    assert status(insecure=True)[0] == "warn"
    made = keys.make()
    assert status() == ("ok", f"{made.path}, fingerprint {made.fingerprint}")
    made.path.chmod(0o644)
    assert status()[0] == "fail"
    assert "chmod 600" in status()[1]
    assert status(key_file=str(home / "absent"))[0] == "fail"

    def wrong() -> Config:
        raise ConfigError("nodes must be an integer")

    (finding,) = doctor.cluster_key(wrong)
    assert finding.status == "fail"
