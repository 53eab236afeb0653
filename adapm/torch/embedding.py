"""Modules that look rows of a table up: torch.nn's Embedding and EmbeddingBag, without a weight of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import adapm
from adapm.errors import DtypeError, KeyRangeError, KeyTypeError, UsageError
from adapm.torch.rows import TableRows

_MODES = ("sum", "mean", "max")


class TableModule(torch.nn.Module):
    """What both have in common.

    Attributes:
        rows: where its rows come from, and gradients go.
        anchor: stands for the rows where torch's optimizers want a tensor; it is empty.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        table: str,
        worker: adapm.BlockingWorker | None,
        device: Any,
        dtype: Any,
        refused: dict[str, Any],
    ) -> None:
        super().__init__()
        _refuse(type(self).__name__, refused)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _padding(table, padding_idx, num_embeddings)
        self.rows = TableRows(table, num_embeddings, embedding_dim, worker)
        self.anchor = torch.empty(0, requires_grad=True)
        # Empty, too: it follows .to(device) and .to(dtype), which say where results are wanted and as what.
        self.register_buffer("placement", torch.empty(0, device=device, dtype=dtype), persistent=False)

    def extra_repr(self) -> str:
        """What print(module) shows of it."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, table={self.rows.table!r}{padding}"

    def full_weight(self) -> Tensor:
        """The values of all rows, what torch.nn has as `weight`: to export them, or to compare something with each.

        It waits for rows that are elsewhere, and pulls a megabyte at a time; all of the result is in this process's
        memory. It is a copy: changing it changes no row, and gradients do not come back through it. It has all that
        this worker has pushed, and what others have pushed before a barrier (`DenseParameters.barrier`,
        `BlockingWorker.barrier`); of what they push meanwhile, some rows may have more than others.

        Returns:
            [num_embeddings, embedding_dim], of the module's device and dtype; padding is zero, as in calls.

        Raises:
            UsageError: NoWorker, UnknownTable, or TableError for a table that is not as said.
            Closed: the worker is closed.
        """
        return self.rows.pull_all(self.padding_idx).to(self.placement)

    def __getattr__(self, name: str) -> Any:
        if name == "weight":  # an attribute would be read for its dtype or device, and bring all rows each time
            raise AttributeError(
                f"{type(self).__name__} has no weight, its rows are those of table {self.rows.table!r}: full_weight()"
                " reads them all, and optimizers of adapm.torch take the module itself"
            )
        return super().__getattr__(name)

    def _look_up(self, ids: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """As `TableRows.pull`, after a look at the ids."""
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise KeyTypeError(f"table {self.rows.table!r}: ids must be a tensor of integers, got {got}")
        self._check_device("ids", ids)
        placement: Tensor = self.placement
        return self.rows.pull(ids, placement.device, self.padding_idx)

    def _check_device(self, what: str, given: Tensor) -> None:
        here = self.placement.device
        if given.device.type != "cpu" and given.device != here:
            raise UsageError(
                f"table {self.rows.table!r}: {what} are on {given.device}, and the module's results on {here}:"
                f" move one, with module.to({str(given.device)!r}) or {what}.to({str(here)!r})"
            )


class Embedding(TableModule):
    """Rows of a table by id: torch.nn.Embedding, whose weight is the column group "value" of a table.

    The module has no parameters: rows are pulled when they are looked up, and optimizers of adapm.torch take the
    module itself.  Call it as often per step as you like; what it returns is of the module's device and dtype (see
    `Module.to`).

    Args:
        num_embeddings: the table's number of rows.
        embedding_dim: the width of its column group "value".
        padding_idx: an id whose row is zero, whatever the table says, and is never trained; negative ones count from
            the end.
        table: the table's name.
        worker: None for the worker of the thread that calls the module.
        device, dtype: of what it returns, as after `Module.to`.

    Raises:
        UsageError: an argument of torch.nn.Embedding that a table cannot have, or padding_idx out of range
            (KeyRangeError); from calls also NoWorker, UnknownTable or TableError for a table that is not as said,
            KeyTypeError and KeyRangeError for ids.
        Closed: the worker is closed; from calls.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        table: str,
        worker: adapm.BlockingWorker | None = None,
        device: Any = None,
        dtype: Any = None,
        **refused: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, table, worker, device, dtype, refused)

    def forward(self, input: Tensor) -> Tensor:
        """The rows.

        Args:
            input: ids, integers of any shape, on the CPU or the module's device.

        Returns:
            [*input.shape, embedding_dim].
        """
        values, index, padding = self._look_up(input)
        found = functional.embedding(index.view(-1), values, padding, sparse=True)
        return found.view(*input.shape, self.embedding_dim).to(self.placement.dtype)


class EmbeddingBag(TableModule):
    """Sums, means or maxima of bags of rows: torch.nn.EmbeddingBag, whose weight is a table's; see Embedding.

    Args:
        num_embeddings, embedding_dim, padding_idx, table, worker, device, dtype: as of Embedding; padding is no part of
            bags.
        mode: "sum", "mean" or "max".
        include_last_offset: `offsets` ends with the number of ids.

    Raises:
        UsageError: as of Embedding.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        table: str,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        worker: adapm.BlockingWorker | None = None,
        device: Any = None,
        dtype: Any = None,
        **refused: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, table, worker, device, dtype, refused)
        if mode not in _MODES:
            raise UsageError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """One row for each bag; empty bags give zeros.

        Args:
            input: ids, integers [bags, n], or [n] with offsets.
            offsets: integers [bags]: where each bag begins in `input`.
            per_sample_weights: of `input`'s shape, what each row counts; for sums only.

        Returns:
            [bags, embedding_dim].
        """
        self._check_weights(per_sample_weights)
        values, index, padding = self._look_up(input)
        values = values.to(self.placement.dtype)
        return functional.embedding_bag(
            index,
            values,
            None if offsets is None else offsets.to(index),
            mode=self.mode,
            # Of maxima torch has no sparse gradients, and those of other types do not come back through the conversion.
            sparse=self.mode != "max" and values.dtype == torch.float32,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def _check_weights(self, weights: Tensor | None) -> None:
        if weights is None:
            return
        placement: Tensor = self.placement
        if (weights.dtype, weights.device) != (placement.dtype, placement.device):
            raise DtypeError(
                f"table {self.rows.table!r}: per_sample_weights are {weights.dtype} on {weights.device}, and the rows"
                f" {placement.dtype} on {placement.device}; convert them with .to(...)"
            )


def table_modules(module: torch.nn.Module) -> list[TableModule]:
    """The Embeddings and EmbeddingBags in it."""
    return [part for part in module.modules() if isinstance(part, TableModule)]


def _padding(table: str, padding: int | None, count: int) -> int | None:
    if padding is None:
        return None
    if not -count <= padding < count:
        raise KeyRangeError(f"table {table!r}: padding_idx={padding} is out of range; ids are 0 to {count - 1}")
    return padding % count


def _refuse(module: str, given: dict[str, Any]) -> None:
    remedies = {
        "max_norm": "rows are shared, and a lookup changes none: scale what the module returns",
        "norm_type": "it belongs to max_norm",
        "scale_grad_by_freq": "weight the loss instead",
        "sparse": "gradients are always sparse",
        "_weight": "give the initial values to the table: adapm.Table(..., init={'value': array})",
    }
    for name, value in given.items():
        if name not in remedies:
            raise UsageError(f"adapm.torch.{module} has no argument {name!r}")
        if value not in (None, False) and not (name == "norm_type" and value == 2.0):
            raise UsageError(f"adapm.torch.{module} cannot have {name}={value!r}: {remedies[name]}")
