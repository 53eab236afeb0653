"""What doctor finds of a planned run before it is started; each mistake with cause and remedy."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapm import Config, cluster_checks, doctor
from adapm.cli import main
from adapm.doctor import Finding


def only(findings) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def far(rendezvous: str, **more) -> Config:
    return Config(nodes=2, node=1, rendezvous=rendezvous, **more)


def test_one_node_needs_nothing():
    assert cluster_checks.examine(Config()) == []


def test_nodes_of_this_machine():
    findings = cluster_checks.examine(Config(nodes=2))
    assert [(f.check, f.status) for f in findings] == [
        ("transport", "ok"),
        ("listening", "ok"),
        ("open files", "ok"),
    ]


def test_a_port_that_is_taken(server):
    finding = only(cluster_checks.listening(Config(nodes=2, node=0, rendezvous=server)))
    assert (finding.status, server in finding.found, "ss -ltnp" in finding.advice) == ("fail", True, True)


@pytest.mark.parametrize("setting", ["bind", "rendezvous"])
def test_an_address_of_another_machine(setting):
    given = {"nodes": 2, "node": 0, "rendezvous": "tcp://127.0.0.1:0", setting: "tcp://198.51.100.7:0"}
    finding = only(cluster_checks.listening(Config(**given, insecure=True)))
    assert (finding.status, "is it an address of this machine?" in finding.found) == ("fail", True)
    finding = only(cluster_checks.listening(Config(**given, key_file=os.devnull)))
    assert (finding.status, "no file that could hold a key" in finding.found) == ("fail", True)


def test_an_unknown_host_name():
    config = far("tcp://no-such-host.invalid:7000")
    for finding in (only(cluster_checks.listening(config)), only(cluster_checks.reaching(config))):
        assert finding.status == "fail"
        assert finding.found.startswith("no way to tcp://no-such-host.invalid:7000: ")
        assert "getent" in finding.advice


def test_nobody_at_the_rendezvous():
    finding = only(cluster_checks.reaching(far("tcp://127.0.0.1:1")))
    assert (finding.status, finding.found) == ("warn", "nobody listens at tcp://127.0.0.1:1")
    assert "--meet" in finding.advice


def test_somebody_at_the_rendezvous(server):
    assert only(cluster_checks.reaching(far(server))).status == "ok"


def test_no_answer_from_the_rendezvous(monkeypatch):
    async def silent(host: str, port: int) -> None:
        raise cluster_checks.asyncio.TimeoutError

    monkeypatch.setattr(cluster_checks, "_knock", silent)
    finding = only(cluster_checks.reaching(far("tcp://10.0.0.1:7000")))
    assert (finding.status, "firewall" in finding.advice) == ("fail", True)


def test_too_few_files():
    finding = only(cluster_checks.open_files(Config(nodes=1000), limit=1024))
    assert (finding.status, finding.advice) == ("fail", "raise it: ulimit -Hn 2058")
    assert only(cluster_checks.open_files(Config(nodes=2), limit=1024)).status == "ok"


@pytest.mark.parametrize("transport", ["ucx"])
def test_little_room_for_lanes_in_shared_memory(transport):
    crowd = Config(nodes=8, transport=transport)
    finding = only(cluster_checks.shared_memory(crowd, lambda: 64 << 20))
    assert (finding.status, finding.found) == ("warn", "64MiB free, about 448MiB needed")
    assert only(cluster_checks.shared_memory(crowd, lambda: 1 << 30)).status == "ok"
    assert list(cluster_checks.shared_memory(Config(nodes=8), lambda: 0)) == []


def test_an_unknown_transport():
    finding = only(cluster_checks.known_transport(Config(nodes=2, transport="pigeon")))
    assert (finding.status, "no transport 'pigeon'" in finding.found) == ("fail", True)


def test_nodes_meet():
    finding = cluster_checks.meet(Config(nodes=2, workers="3"))
    assert (finding.status, "links here: 1 over tcp" in finding.found) == ("ok", True)


def test_nodes_that_do_not_meet():
    finding = cluster_checks.meet(Config(nodes=2, node=0, rendezvous="tcp://127.0.0.1:0", startup_timeout=0.2))
    assert (finding.status, "troubleshooting" in finding.advice) == ("fail", True)
    assert "RendezvousError: nodes 1 have not joined node 0 at tcp://127.0.0.1:" in finding.found


def test_the_command_looks_at_the_planned_run(server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "CHECKS", ())
    (tmp_path / "adapm.toml").write_text(f'nodes = 2\nrendezvous = "{server}"\n')
    ended = CliRunner().invoke(main, ["doctor", "--node", "0", "--json"])
    found = {finding["check"]: finding["status"] for finding in json.loads(ended.stdout)}
    assert (ended.exit_code, found["listening"]) == (1, "fail")
    ended = CliRunner().invoke(main, ["doctor", "--rendezvous", "tcp://127.0.0.1:0", "--meet", "--json"])
    assert {finding["check"]: finding["status"] for finding in json.loads(ended.stdout)}["meeting"] == "ok"
    assert ended.exit_code == 0
