"""Intent from a data loader: batches are read before their turn, and the rows that they will access signalled.

    torch.utils.data.DataLoader --batches--> IntentLoader --batches, some steps later--> the training loop
                                               `-> Worker.intent(table, ids, the step of their turn), advance_clock

Which ids of which tables a batch will access is told by `keys`, or by the names of the batch's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Final, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, DistributedSampler

import adapm
from adapm.errors import UnknownTable, UsageError, nearest
from adapm.torch.embedding import TableModule
from adapm.torch.worker import blocking_worker

Batch = TypeVar("Batch")

Part: TypeAlias = "str | int | Callable[[Any], Any]"
"""A field of a batch by name, an item by index, or a function of the batch."""

Keys: TypeAlias = "Callable[[Any], Mapping[str, Any]] | Mapping[str, Part | Sequence[Part]] | torch.nn.Module | None"

_BRIEF: Final = 8  # parts of a batch that a message names


class IntentLoader(Generic[Batch]):
    """Wraps a data loader: the same batches in the same order, with their rows local by their turn.

        loader = adapm.torch.IntentLoader(DataLoader(...), keys={"users": "user_id", "items": ["item", "negatives"]})
        for epoch in range(10):
            for batch in loader: ...

    The worker's clock advances by one for each batch, so leave it to this loop; epochs go on from where the last one
    ended.  However a loop ends, the rows of batches that were read and not handed out stay no longer wanted.  With one
    node, where all rows are local, nothing is read early and nothing signalled.  What is not described here (`dataset`,
    `sampler`, `batch_size`, ...) is the wrapped loader's.

    Args:
        loader: a DataLoader with whatever settings, or any other iterable of batches.
        worker: None for the worker of the thread that iterates.
        keys: which rows a batch will access.  A mapping from tables' names to parts of the batch: a name (of a
            dictionary, a named tuple or an attribute), an index (of a tuple or list), a function of the batch, or a
            list of these.  Or a function from the batch to {table: ids}.  Or a model: the parts that have the names of
            its adapm.torch modules, or of their tables.  None: the parts that have names of tables.  Ids are integers
            of any shape, tensors, arrays or lists.
        ahead: how many batches are signalled beyond the one that is handed out; None: see `adapm.ahead`.

    Raises:
        UsageError: from the loop, if a batch has not the parts that keys names, or keys is None and no part of it has a
            table's name; the message says what to pass.  NoWorker, UnknownTable, IntentRangeError likewise; and what
            the loader raises.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        worker: adapm.BlockingWorker | None = None,
        keys: Keys = None,
        ahead: int | None = None,
    ) -> None:
        self.loader = loader
        self._worker = worker
        self._keys = keys
        self._ahead = ahead

    def __iter__(self) -> Iterator[Batch]:
        worker = blocking_worker(self._worker)
        keys = self._keys if callable(self._keys) and not isinstance(self._keys, torch.nn.Module) else None
        find = _Finder(worker.tables, self._keys) if keys is None else keys
        if worker.num_nodes > 1:
            return adapm.ahead(self.loader, worker, keys=find, ahead=self._ahead)
        return adapm.ahead(self.loader, worker, keys=_only_checked(find), ahead=0)

    def __len__(self) -> int:
        """How many batches there are, if the wrapped loader knows.

        Raises:
            TypeError: it does not.
        """
        return len(self._sized())

    def _sized(self) -> Sized:
        if not isinstance(self.loader, Sized):
            raise TypeError(f"{type(self.loader).__name__} has no length")
        return self.loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "loader":  # not there yet, while this is copied
            raise AttributeError(name)
        return getattr(self.loader, name)


def distributed_sampler(
    dataset: Dataset[Any],
    worker: adapm.BlockingWorker | None = None,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
) -> DistributedSampler[Any]:
    """This worker's share of a dataset: torch's DistributedSampler, with workers in place of ranks.

    Args:
        dataset: the same for all workers.
        worker: None for this thread's.
        shuffle, seed, drop_last: as of DistributedSampler, and the same for all workers; call its `set_epoch`.

    Raises:
        NoWorker: the thread is none.
    """
    worker = blocking_worker(worker)
    return DistributedSampler(dataset, worker.num_workers, worker.id, shuffle, seed, drop_last)


class _Finder:
    """The ids in a batch, by table.

    Args:
        tables: all there are.
        keys: as of IntentLoader, but no function.
    """

    def __init__(self, tables: Mapping[str, adapm.Table], keys: Any) -> None:
        self._tables = tables
        self._names: dict[str, list[str]] = {}  # parts whose names say it, by table
        self._parts: dict[str, list[Part]] = {}  # parts that must be there
        if keys is None:
            self._names = {table: [table] for table in tables}
        elif isinstance(keys, torch.nn.Module):
            self._names = _names_of(keys)
        elif isinstance(keys, Mapping):
            self._parts = {table: _listed(parts) for table, parts in keys.items()}
        else:
            raise UsageError(
                f"keys must map tables to parts of a batch, as {{{next(iter(tables))!r}: 'id'}}, be a function of the"
                f" batch, or a model; got {keys!r}"
            )
        for table in {**self._names, **self._parts}:
            if table not in tables:
                raise UnknownTable(f"keys names the table {table!r}, which is not there{nearest(table, tables)}")

    def __call__(self, batch: Any) -> dict[str, npt.NDArray[Any]]:
        found = {table: [self._part(batch, table, part) for part in parts] for table, parts in self._parts.items()}
        for table, names in self._names.items():
            present = [_get(batch, name) for name in names if _has(batch, name)]
            if present:
                found[table] = present
        if not found:
            raise UsageError(
                f"no part of a batch, {_described(batch)}, has the name of a table, so nothing says which rows it will"
                f" access: pass IntentLoader(loader, keys={{{self._example(batch)}}}), or keys=a function of the batch"
                f" that returns {{table: ids}}; tables: {', '.join(self._tables)}"
            )
        return {table: _ids(table, parts) for table, parts in found.items()}

    def _part(self, batch: Any, table: str, part: Part) -> Any:
        if callable(part):
            return part(batch)
        if not _has(batch, part):
            raise UsageError(
                f"keys says that ids of table {table!r} are in {part!r} of a batch, but a batch is {_described(batch)}:"
                f" pass keys={{{self._example(batch)}}}"
            )
        return _get(batch, part)

    def _example(self, batch: Any) -> str:
        name = next(iter(_part_names(batch)), None)
        return f"{next(iter(self._tables))!r}: {0 if name is None else name!r}"


def _only_checked(find: Callable[[Any], Mapping[str, Any]]) -> Callable[[Any], Mapping[str, Any]]:
    """Finds the ids, so that what is wrong with them is known, and signals none."""

    def keys(batch: Any) -> Mapping[str, Any]:
        find(batch)
        return {}

    return keys


def _names_of(model: torch.nn.Module) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, TableModule):
            names.setdefault(module.rows.table, [module.rows.table]).append(path.rpartition(".")[2])
    if not names:
        raise UsageError(
            f"keys is a model, {type(model).__name__}, without any module of adapm.torch: pass keys={{table: part}}"
        )
    return {table: list(dict.fromkeys(parts)) for table, parts in names.items()}


def _listed(parts: Any) -> list[Part]:
    return list(parts) if isinstance(parts, (list, tuple)) else [parts]


def _has(batch: Any, part: str | int) -> bool:
    if isinstance(batch, Mapping):
        return part in batch
    if isinstance(part, str):
        return hasattr(batch, part)
    return isinstance(batch, (list, tuple)) and -len(batch) <= part < len(batch)


def _get(batch: Any, part: str | int) -> Any:
    return getattr(batch, part) if isinstance(part, str) and not isinstance(batch, Mapping) else batch[part]


def _ids(table: str, parts: Sequence[Any]) -> npt.NDArray[Any]:
    arrays = [array for part in parts for array in _arrays(table, part)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _arrays(table: str, part: Any) -> Iterator[npt.NDArray[Any]]:
    """The ids as flat arrays: of a tensor, an array, or lists of these."""
    if isinstance(part, torch.Tensor):
        yield part.detach().cpu().reshape(-1).numpy()
        return
    if isinstance(part, (list, tuple)) and any(isinstance(item, (list, tuple, torch.Tensor)) for item in part):
        for item in part:
            yield from _arrays(table, item)
        return
    yield np.asarray(part).reshape(-1)


def _part_names(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return list(batch._fields)
    return list(range(len(batch))) if isinstance(batch, (list, tuple)) else []


def _described(batch: Any) -> str:
    names = _part_names(batch)
    if not names:
        return f"a {type(batch).__name__}"
    shown = ", ".join(map(repr, names[:_BRIEF])) + (", ..." if len(names) > _BRIEF else "")
    return f"a {type(batch).__name__} with {shown}"
