"""The tables that modules need: each is told before the run what its optimizer will keep of a row."""

from __future__ import annotations

from typing import Any

import torch

import adapm
from adapm.errors import TableError
from adapm.torch.dense import dense_table
from adapm.torch.embedding import table_modules
from adapm.torch.optim import SparseSGD, TableOptimizer
from adapm.torch.rows import VALUE


def embedding_table(
    name: str,
    rows: int,
    dim: int,
    optimizer: type[TableOptimizer] = SparseSGD,
    init: Any = None,
    counts: Any = None,
) -> adapm.Table:
    """A table for an Embedding or EmbeddingBag, with room for what its optimizer keeps of each row.

    Args:
        name, rows: as of adapm.Table.
        dim: the width of the values.
        optimizer: the class of the optimizer.
        init: initial values, as of adapm.Table; by default torch.nn.Embedding's, normal with standard deviation 1.
        counts: how often each id is accessed, about, as of adapm.Table.

    Raises:
        TableError: as of adapm.Table.
    """
    values = adapm.normal(std=1.0) if init is None else init
    return adapm.Table(name, rows=rows, columns=optimizer.columns(dim), init={VALUE: values}, counts=counts)


def tables(
    module: torch.nn.Module, optimizer: type[TableOptimizer] = SparseSGD, dense: str = "dense"
) -> list[adapm.Table]:
    """All tables of a model: an `embedding_table` for each that a module in it names, and a `dense_table`.

    Args:
        module: the model; seed what initializes its parameters (torch.manual_seed), as of `dense_table`.
        optimizer: the class of the embeddings' optimizer.
        dense: the name of the table for parameters; it is left out if there are none.

    Raises:
        TableError: two modules name the same table and want it different, or there is nothing that needs a table.
    """
    found: dict[str, adapm.Table] = {}
    for part in table_modules(module):
        name = part.rows.table
        table = embedding_table(name, part.num_embeddings, part.embedding_dim, optimizer)
        if found.setdefault(name, table) != table:
            raise TableError(f"two modules want table {name!r}, one as {found[name]!r}, the other as {table!r}")
    if any(parameter.requires_grad for parameter in module.parameters()):
        if dense in found:
            raise TableError(f"an embedding's table is named {dense!r}: give that of the parameters another, dense=...")
        found[dense] = dense_table(module, dense)
    if not found:
        raise TableError("the module has neither embeddings of adapm.torch nor parameters, so it needs no tables")
    return list(found.values())
