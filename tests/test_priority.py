"""Nodes go before workers, by whichever way the system permits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from adapm import priority


@pytest.fixture
def nice(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """This process's priority, without changing it; those below zero need permission."""
    now = [0]
    monkeypatch.setattr(os, "getpriority", lambda which, who: now[0])
    monkeypatch.setattr(os, "setpriority", lambda which, who, value: now.__setitem__(0, value))
    return now


@pytest.fixture
def forbidden(nice: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    def refuse_to_raise(which: int, who: int, value: int) -> None:
        if value < nice[0]:
            raise PermissionError
        nice[0] = value

    monkeypatch.setattr(os, "setpriority", refuse_to_raise)
    return nice


def test_a_node_raises_its_priority_and_workers_keep_theirs(nice: list[int]) -> None:
    priority.let_node_go_first()
    assert nice == [0]
    priority.go_first()
    assert nice == [-priority.STEP]


def test_without_permission_workers_lower_theirs(forbidden: list[int]) -> None:
    priority.go_first()
    assert forbidden == [0]
    priority.let_node_go_first()
    assert forbidden == [priority.STEP]
    priority.let_node_go_first()
    assert forbidden == [19]  # the lowest there is
