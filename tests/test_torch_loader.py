"""adapm.torch.IntentLoader over all kinds of loaders, what batches may look like, and what forks may not do."""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

import adapm
from adapm.current import being
from adapm.errors import IntentRangeError, NoWorker, UnknownTable, UsageError
from adapm.torch import Embedding, IntentLoader, distributed_sampler
from desk import Desk
from torch_numbers import Numbers

TABLES = [adapm.Table("users", rows=100, dim=2), adapm.Table("items", rows=100, dim=2)]
AHEAD = 3
Pair = namedtuple("Pair", ["users", "items"])


class Recorded:
    """A worker of one of so many nodes, and what it signals: (table, ids, clock) in order."""

    def __init__(self, worker: adapm.BlockingWorker) -> None:
        self.worker = worker
        self.intents: list[tuple[str, list[int], int]] = []
        signal = worker.intent

        def intent(table: str, keys: Any, start: int, end: int | None = None) -> None:
            signal(table, keys, start, end)
            self.intents.append((table, np.asarray(keys).tolist(), start))

        worker.intent = intent  # type: ignore[method-assign]


@contextlib.contextmanager
def recorded(nodes: int = 2) -> Iterator[Recorded]:
    with contextlib.closing(Desk(TABLES, nodes=nodes)) as desk, being(desk.blocking_worker()) as worker:
        yield Recorded(worker)


@pytest.fixture
def notes() -> Iterator[Recorded]:
    with recorded() as notes:
        yield notes


class Stream(IterableDataset[int]):
    """0 to 11, shared by the loader's processes."""

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(12) if info is None else range(info.id, 12, info.num_workers))


LOADERS = {
    "in this process": {},
    "shuffled": {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
    "forked": {"num_workers": 2, "multiprocessing_context": "fork"},
    "forked once": {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True},
}


# ---- the loop


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_come_in_order_at_the_clocks_of_their_intents(notes: Recorded, kind: str) -> None:
    loader = IntentLoader(DataLoader(Numbers(), batch_size=2, **LOADERS[kind]), ahead=AHEAD)
    for epoch in range(2):
        for step, batch in enumerate(loader):
            assert notes.worker.clock == 6 * epoch + step
            assert notes.intents[6 * epoch + step] == ("users", batch["users"].tolist(), notes.worker.clock)
            assert len(notes.intents) == 6 * epoch + min(6, step + 1 + AHEAD)
        assert step == 5 and notes.worker.clock == 6 * (epoch + 1)


def test_iterable_datasets_and_any_iterable(notes: Recorded) -> None:
    streams = DataLoader(Stream(), batch_size=3, num_workers=2, multiprocessing_context="fork")
    for source in (streams, [torch.arange(6), torch.arange(6, 12)]):
        seen = [i for batch in IntentLoader(source, keys=lambda batch: {"items": batch}) for i in batch.tolist()]
        assert sorted(seen) == list(range(12))
    assert sorted(i for _, ids, _ in notes.intents for i in ids) == sorted([*range(12)] * 2)


def test_leaving_early_ends_the_intents_of_what_was_read(notes: Recorded) -> None:
    for _ in IntentLoader(DataLoader(Numbers(), batch_size=1), ahead=AHEAD):
        break
    assert len(notes.intents) == notes.worker.clock == 1 + AHEAD


def test_errors_of_the_loader_come_through(notes: Recorded) -> None:
    loader = IntentLoader(DataLoader(Failing(), num_workers=1, multiprocessing_context="fork"))
    error = failure(loader)
    assert isinstance(error, LookupError) and "cannot read number 3" in str(error)
    assert notes.worker.clock == len(notes.intents) == 3


def failure(loader: IntentLoader[Any]) -> Exception:
    """What the loop raises, without the frames that would keep the loader's processes alive for seconds."""
    try:
        raise AssertionError(f"it went through: {list(loader)}")
    except (LookupError, UsageError) as error:
        return error.with_traceback(None)


class Failing(Numbers):
    def __getitem__(self, i: int) -> dict[str, int]:
        if i == 3:
            raise LookupError("cannot read number 3")
        return super().__getitem__(i)


def test_on_one_node_only_the_clock_goes_on() -> None:
    with recorded(nodes=1) as notes:
        for step, _ in enumerate(IntentLoader(DataLoader(Numbers(), batch_size=2))):
            assert notes.worker.clock == step
        assert notes.intents == [] and notes.worker.clock == 6
        with pytest.raises(UsageError, match="has the name of a table"):  # as it would be with two
            next(iter(IntentLoader([torch.arange(3)])))


def test_it_is_the_loader_where_it_is_nothing_else() -> None:
    inner = DataLoader(Numbers(), batch_size=5)
    loader = IntentLoader(inner)
    assert len(loader) == 3 and loader.batch_size == 5 and len(loader.dataset) == 12 and loader.sampler is inner.sampler
    with pytest.raises(TypeError, match="generator has no length"):
        len(IntentLoader(i for i in range(3)))
    with pytest.raises(AttributeError):
        _ = loader.no_such_thing


def test_the_worker_is_this_thread_s_or_the_one_that_is_given(notes: Recorded) -> None:
    with being(None), pytest.raises(NoWorker, match=r"start it with adapm\.run"):  # type: ignore[type-var]
        iter(IntentLoader([]))
    with being(None):  # type: ignore[type-var]
        assert list(IntentLoader([], notes.worker)) == []
    with pytest.raises(IntentRangeError, match="ahead=-1"):
        iter(IntentLoader([], ahead=-1))


# ---- where the ids are

IDS = torch.tensor([[1, 2], [2, 3]])
FOUND = [1, 2, 2, 3]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.person = Embedding(100, 2, table="users")
        self.item = Embedding(100, 2, table="items")


@pytest.mark.parametrize(
    ("batch", "keys", "found"),
    [
        ({"users": IDS, "label": 0}, None, {"users": FOUND}),
        (Pair(IDS, IDS + 1), None, {"users": FOUND, "items": [2, 3, 3, 4]}),
        ({"u": IDS}, {"users": "u"}, {"users": FOUND}),
        ((IDS, IDS + 1, 0.5), {"users": 0, "items": 1}, {"users": FOUND, "items": [2, 3, 3, 4]}),
        ([IDS.int(), 7], {"items": [0, -1, lambda batch: [9]]}, {"items": [*FOUND, 7, 9]}),
        (IDS, {"users": lambda batch: batch[0]}, {"users": [1, 2]}),
        (IDS, lambda batch: {"users": batch[1]}, {"users": [2, 3]}),
        ({"u": [IDS[0], IDS[1]]}, {"users": "u"}, {"users": FOUND}),
        ({"u": [[1], [2, 3]]}, {"users": "u"}, {"users": [1, 2, 3]}),
        ({"u": IDS.numpy()}, {"users": "u"}, {"users": FOUND}),
        ({"person": IDS, "item": 4}, Model(), {"users": FOUND, "items": [4]}),
        ({"users": IDS, "label": 1}, Model(), {"users": FOUND}),
    ],
)
def test_ids_are_found(notes: Recorded, batch: Any, keys: Any, found: dict[str, list[int]]) -> None:
    assert list(IntentLoader([batch], keys=keys)) == [batch]
    assert {table: ids for table, ids, _ in notes.intents} == found


@pytest.mark.parametrize(
    ("batch", "keys", "message"),
    [
        ((IDS, IDS), None, r"a tuple with 0, 1, has the name of a table.*pass IntentLoader\(loader, keys=\{'users': 0"),
        ({"a": IDS}, None, r"a dict with 'a', has the name.*keys=\{'users': 'a'\}.*tables: users, items"),
        (IDS, None, "a Tensor, has the name of a table"),
        (
            {"a": IDS},
            {"users": "b"},
            r"table 'users' are in 'b' of a batch, but a batch is a dict with 'a': pass keys=",
        ),
        ((IDS,), {"users": 1}, "in 1 of a batch, but a batch is a tuple with 0"),
        ({"a": IDS}, torch.nn.Linear(1, 1), "keys is a model, Linear, without any module of adapm.torch"),
        ({"a": IDS}, ["users"], r"keys must map tables to parts of a batch, as \{'users': 'id'\}.*got \['users'\]"),
    ],
)
def test_hidden_ids_are_asked_for(notes: Recorded, batch: Any, keys: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(IntentLoader([batch], keys=keys))
    assert notes.intents == []


def test_an_unknown_table_is_named(notes: Recorded) -> None:
    with pytest.raises(UnknownTable, match="keys names the table 'user', which is not there; did you mean 'users'"):
        iter(IntentLoader([IDS], keys={"user": 0}))


# ---- shares, and processes of the loader


def test_shares_are_torch_s_with_workers_for_ranks() -> None:
    dataset = TensorDataset(torch.arange(10))
    with contextlib.closing(Desk(TABLES, nodes=2, workers=2)) as desk:
        shares = []
        for node in range(2):
            for slot in range(2):
                worker = desk.blocking_worker(node, slot)
                sampler = distributed_sampler(dataset, worker, shuffle=False)
                assert (sampler.num_replicas, sampler.rank) == (4, worker.id)
                shares.append(list(sampler))
        assert shares == [[0, 4, 8], [1, 5, 9], [2, 6, 0], [3, 7, 1]]


def test_the_loader_s_processes_cannot_use_the_worker_that_they_inherit() -> None:
    loader = DataLoader(Pulling(), num_workers=1, multiprocessing_context="fork")
    with recorded(nodes=1) as notes:
        error = failure(IntentLoader(loader))
        assert isinstance(error, UsageError) and "is forked from that of worker 0, and cannot be it, too" in str(error)
        notes.worker.push("users", [1], np.ones((1, 2)))  # it goes on here
        assert notes.worker.pull("users", [1]).tolist() == [[1, 1]]


class Pulling(Numbers):
    def __getitem__(self, i: int) -> dict[str, int]:
        adapm.current_worker().pull("users", [i])
        raise AssertionError("it could")


def test_spawned_processes_read_batches_and_the_worker_is_not_sent_to_them(notes: Recorded) -> None:
    assert len(list(IntentLoader(DataLoader(Numbers(), 4, num_workers=1, multiprocessing_context="spawn")))) == 3
    loader = DataLoader(Holding(notes.worker), num_workers=1, multiprocessing_context="spawn")
    error = failure(IntentLoader(loader))
    assert isinstance(error, UsageError) and "worker 0 cannot be sent to another process" in str(error)


class Holding(Numbers):
    def __init__(self, worker: adapm.BlockingWorker) -> None:
        self.worker = worker
