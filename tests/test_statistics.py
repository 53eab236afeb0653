"""Counters as frozen values."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle

import numpy as np
import pytest

from adapm import Table
from adapm.kernel import ffi, lib
from adapm.statistics import COUNTERS, NodeStatistics, Statistics
from desk import Desk


def node(**counts: int) -> NodeStatistics:
    return NodeStatistics(**{field.name: counts.get(field.name, 0) for field in dataclasses.fields(NodeStatistics)})


def worker(**counts: int) -> Statistics:
    return Statistics(**{name: counts.get(name, 0) for name in COUNTERS}, node=node())


def test_the_fields_are_the_kernels() -> None:
    assert [field.name for field in dataclasses.fields(NodeStatistics)] == [
        name for name, _ in ffi.typeof("adapm_lane_stats").fields
    ]
    assert len(COUNTERS) == lib.ADAPM_COUNTERS


def test_a_struct_is_read_field_by_field() -> None:
    struct = ffi.new("adapm_lane_stats *", {"rounds": 3, "bytes_out": 1 << 40})
    assert NodeStatistics.read(struct) == node(rounds=3, bytes_out=1 << 40)


@pytest.mark.parametrize(("pulled", "local", "share"), [(0, 0, 1.0), (4, 3, 0.75), (4, 0, 0.0)])
def test_shares(pulled: int, local: int, share: float) -> None:
    assert worker(pull_keys=pulled, pull_local=local).local_fraction == share
    assert worker(push_keys=pulled, push_local=local).push_local_fraction == share


def test_they_are_values() -> None:
    one = worker(pull_keys=1)
    assert one == worker(pull_keys=1) != worker(pull_keys=2)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.pull_keys = 2  # type: ignore[misc]


def test_every_counter_of_a_worker_comes_from_its_own_calls() -> None:
    keys = np.arange(100)
    with contextlib.closing(Desk([Table("rows", rows=100, dim=4)])) as desk:
        worker = desk.worker()
        here = int(worker.is_local("rows", keys).sum())
        with desk.running():
            worker.pull("rows", keys).result()
            worker.push("rows", keys, np.ones((100, 4))).result()
            worker.set("rows", keys[:7], np.ones((7, 4))).result()
            worker.intent("rows", keys[:5], start=10**6)
        statistics = worker.statistics()
    assert {name: getattr(statistics, name) for name in COUNTERS if not name.endswith("_ns")} == {
        "pull_keys": 100,
        "pull_local": here,
        "push_keys": 100,
        "push_local": here,
        "set_keys": 7,
        "intent_keys": 5,
        "waits": 0,
        "retries": 0,
    }
    assert statistics.node.rows_owned == here
    assert statistics.node.pull_remote == 100 - here


def test_bytes_are_counted_by_what_they_are_for() -> None:
    keys = np.arange(100)
    with contextlib.closing(Desk([Table("rows", rows=100, dim=4)])) as desk:
        one, two = desk.blocking_worker(0), desk.blocking_worker(1)
        with desk.running():
            one.pull("rows", keys)
            away = one.statistics().node
            assert (away.update_bytes, away.state_bytes, away.grant_bytes) == (0, 0, 0)
            assert 0 < away.access_bytes < away.bytes_out
            for worker in (one, two):
                worker.intent("rows", keys, start=0, end=10)
                worker.wait_sync()
            one.push("rows", keys, np.ones((100, 4)))
            one.wait_sync()
            two.wait_sync()
        ended = [worker.statistics().node for worker in (one, two)]
    assert ended[0].grant_bytes + ended[1].grant_bytes >= 100 // 4 * 16  # what was elsewhere moved to the first
    assert ended[0].state_bytes >= 100 * 16 > 0 == ended[0].update_bytes  # and is copied to the second
    assert all(
        each.update_bytes + each.state_bytes + each.grant_bytes + each.access_bytes < each.bytes_out for each in ended
    )
