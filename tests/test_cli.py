import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import adapm
from adapm import cli, doctor
from adapm.config import option_name, settings
from adapm.doctor import Finding

SCRIPT = """
import json, os, sys
ours = {name: value for name, value in os.environ.items() if name.startswith("ADAPM_")}
print(json.dumps({"args": sys.argv[1:], "env": ours, "path": sys.path[0], "python": sys.executable}))
"""


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """Neither the tester's environment nor an adapm.toml has a say."""
    for name in [name for name in os.environ if name.startswith("ADAPM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.main, args, prog_name="adapm")


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adapm", *map(str, args)], capture_output=True, text=True, check=False, timeout=60
    )


def test_run_hands_settings_over_and_leaves_the_scripts_options_alone(script):
    done = command("run", "--nodes", 2, "--heap", "1MiB", script, "--nodes", "7", "--", "-x")
    seen = json.loads(done.stdout)
    assert seen["args"] == ["--nodes", "7", "--", "-x"]
    assert seen["env"] == {"ADAPM_NODES": "2", "ADAPM_HEAP": "1MiB"}
    assert seen["path"] == str(script.parent)
    assert seen["python"] == sys.executable


def test_run_ends_as_the_script_ends(script):
    script.write_text("raise SystemExit(7)")
    assert command("run", script).returncode == 7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "missing.py"], "'missing.py' does not exist"),
        (["run"], "Missing argument 'SCRIPT'"),
        (["run", "--nodse", "2", "missing.py"], "No such option"),
        (["config", "--nodes", "x"], "nodes must be an integer from 1 to 4000, got 'x' (from: command line)"),
        (["config", "--node", "0", "--nodes", "2"], "needs rendezvous"),
        (["cofnig"], "No such command 'cofnig'"),
    ],
)
def test_misuse_says_why_and_exits_with_2(args, message):
    result = call(*args)
    assert result.exit_code == 2
    assert message.replace(" ", "") in result.output.replace(" ", "").replace("\n", "")


def test_a_wrong_setting_stops_run_before_the_script(script):
    result = call("run", "--technique", "magic", str(script))
    assert result.exit_code == 2
    assert "technique must be" in result.output


def test_config_shows_values_and_where_they_come_from(tmp_path, monkeypatch):
    (tmp_path / "adapm.toml").write_text("seed = 5\n")
    monkeypatch.setenv("ADAPM_NODES", "3")
    tree = json.loads(call("config", "--json", "--tick-rate", "500").stdout)
    assert tree["seed"] == {"value": 5, "from": "adapm.toml"}
    assert tree["nodes"] == {"value": 3, "from": "environment ADAPM_NODES"}
    assert tree["tick_rate"] == {"value": 500, "from": "command line"}
    assert tree["heap"] == {"value": 2**24, "from": "default"}
    assert set(tree) == set(settings())


def test_config_for_people_fits_a_terminal():
    lines = call("config").stdout.splitlines()
    assert ["heap", "16MiB", "default"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 80


def test_every_setting_is_an_option_of_run_and_config():
    for name in ("run", "config"):
        text = call(name, "--help").stdout
        assert [option for option in map(option_name, settings()) if option not in text] == []


@pytest.mark.parametrize("name", ["run", "config", "doctor", None])
def test_help_fits_a_terminal(name):
    result = call(*filter(None, [name, "-h"]))
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_ends_with_1_if_something_needed_fails(monkeypatch, status, code):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("memory", status, "7B free", "buy more")])
    result = call("doctor", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == [
        {"check": "memory", "status": status, "found": "7B free", "advice": "buy more"}
    ]
    people = call("doctor")
    assert people.exit_code == code
    assert "buy more" in people.output


def test_doctor_here():
    lines = call("doctor").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "adapm can run here."


def test_version_and_module():
    assert command("--version").stdout == f"adapm, version {adapm.__version__}\n"
