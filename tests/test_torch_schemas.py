"""The tables that modules ask for."""

import pytest
import torch

import adapm
from adapm.errors import TableError
from adapm.torch import (
    Embedding,
    EmbeddingBag,
    RowwiseAdagrad,
    SparseAdagrad,
    SparseAdam,
    SparseSGD,
    dense_table,
    embedding_table,
    tables,
)


@pytest.mark.parametrize(
    ("optimizer", "columns"),
    [
        (SparseSGD, {"value": 8}),
        (SparseAdagrad, {"value": 8, "adagrad": 8}),
        (RowwiseAdagrad, {"value": 8, "rowwise_adagrad": 1}),
        (SparseAdam, {"value": 8, "adam_m": 8, "adam_v": 8}),
    ],
)
def test_columns_are_those_of_the_optimizer(optimizer, columns):
    table = embedding_table("t", 5, 8, optimizer)
    assert dict(table.columns) == columns
    assert table.initial["value"] == adapm.normal(std=1)  # as torch.nn.Embedding's
    assert embedding_table("t", 5, 8, optimizer, init=adapm.constant(2)).initial["value"] == adapm.constant(2)


def test_a_models_tables():
    model = torch.nn.ModuleDict(
        {
            "users": Embedding(5, 8, table="users"),
            "tags": torch.nn.Sequential(EmbeddingBag(7, 2, table="tags"), torch.nn.Linear(2, 1)),
            "friends": Embedding(5, 8, table="users"),
        }
    )
    expected = [embedding_table("users", 5, 8, SparseAdam), embedding_table("tags", 7, 2, SparseAdam)]
    assert tables(model, SparseAdam) == [*expected, dense_table(model)]
    assert [table.name for table in tables(model, dense="layers")] == ["users", "tags", "layers"]
    assert [table.name for table in tables(model["users"])] == ["users"]


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        ([Embedding(5, 8, table="t"), Embedding(6, 8, table="t")], r"two modules want table 't', one as Table\("),
        ([Embedding(5, 8, table="dense"), torch.nn.Linear(1, 1)], "named 'dense': .* another, dense="),
        ([torch.nn.ReLU()], "neither embeddings of adapm.torch nor parameters"),
    ],
)
def test_what_cannot_be_is_named(modules, text):
    with pytest.raises(TableError, match=text):
        tables(torch.nn.ModuleList(modules))
