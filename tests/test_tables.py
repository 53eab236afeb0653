import pickle

import msgpack
import numpy as np
import pytest

from adapm import Table, constant, normal, uniform
from adapm.errors import TableError, UnknownColumn
from adapm.tables import Initial, Kind, check_tables, digest


def optimised(**more) -> Table:
    return Table("entities", rows=5, columns={"value": 4, "adagrad": 2}, **more)


def test_dim_is_short_for_one_column_group():
    table = Table("t", 7, dim=3)
    assert dict(table.columns) == {"value": 3}
    assert table.row_len == 3
    assert table == Table("t", 7, columns={"value": 3})


@pytest.mark.parametrize(
    ("columns", "span"),
    [(None, (0, 6)), ("value", (0, 4)), ("adagrad", (4, 2)), (["value", "adagrad"], (0, 6)), (("adagrad",), (4, 2))],
)
def test_span(columns, span):
    assert optimised().span(columns) == span


@pytest.mark.parametrize(
    ("columns", "message"),
    [("adagard", "did you mean 'adagrad'"), (["adagrad", "value"], "not adjacent"), ([], "not adjacent")],
)
def test_span_refuses(columns, message):
    with pytest.raises(UnknownColumn, match=message):
        optimised().span(columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "", "rows": 1, "dim": 1}, "name"),
        ({"name": 3, "rows": 1, "dim": 1}, "name"),
        ({"name": "t", "rows": 0, "dim": 1}, "rows .* got 0"),
        ({"name": "t", "rows": 2**32 - 1, "dim": 1}, "rows .* got 4294967295"),
        ({"name": "t", "rows": 1.0, "dim": 1}, "rows .* got 1.0"),
        ({"name": "t", "rows": True, "dim": 1}, "rows .* got True"),
        ({"name": "t", "rows": 1, "dim": 0}, "dim .* got 0"),
        ({"name": "t", "rows": 1, "dim": 2**21}, "dim .* got 2097152"),
        ({"name": "t", "rows": 1}, "either dim"),
        ({"name": "t", "rows": 1, "dim": 1, "columns": {"value": 1}}, "either dim"),
        ({"name": "t", "rows": 1, "columns": {}}, "columns must map"),
        ({"name": "t", "rows": 1, "columns": ["value"]}, "columns must map"),
        ({"name": "t", "rows": 1, "columns": {"": 1}}, "column group's name"),
        ({"name": "t", "rows": 1, "columns": {"a": 2**20, "b": 1}}, "length of a row"),
        ({"name": "t", "rows": 1, "dim": 1, "init": {"valeu": normal(1)}}, "'valeu'; did you mean 'value'"),
        ({"name": "t", "rows": 2, "dim": 3, "init": np.zeros((3, 2))}, r"shape \[2, 3\], got \[3, 2\]"),
        ({"name": "t", "rows": 2, "dim": 3, "init": 0.5}, "adapm.constant"),
        ({"name": "t", "rows": 1, "dim": 1, "init": np.array([[2**30]])}, "int64"),
        ({"name": "t", "rows": 1, "dim": 1, "init": [[1e300]]}, "too large"),
    ],
)
def test_schema_refuses(arguments, message):
    with pytest.raises(TableError, match=message):
        Table(**arguments)


@pytest.mark.parametrize(
    "make",
    [lambda: normal(-1), lambda: normal(float("nan")), lambda: normal(1, float("inf")), lambda: uniform(1, 0),
     lambda: uniform(0, float("inf")), lambda: constant(float("nan"))],
)  # fmt: skip
def test_distributions_refuse(make):
    with pytest.raises(TableError, match="finite"):
        make()


def test_initial_values_per_column_group():
    table = optimised(init={"value": normal(std=2, mean=1)})
    assert table.initial["value"] == Initial(Kind.NORMAL, 1.0, 2.0)
    assert table.initial["adagrad"] == Initial()
    assert optimised(init=uniform(-1, 1)).initial["adagrad"] == Initial(Kind.UNIFORM, -1.0, 1.0)
    assert optimised(init=constant(3)).initial["value"] == Initial(Kind.CONSTANT, 3.0)


def test_one_array_for_the_whole_row_is_cut_into_column_groups():
    whole = np.arange(30, dtype=np.float64).reshape(5, 6)
    table = optimised(init=whole)
    np.testing.assert_array_equal(table.initial["value"].array, whole[:, :4])
    np.testing.assert_array_equal(table.initial["adagrad"].array, whole[:, 4:])
    assert table.initial["adagrad"].array.dtype == np.float32


def test_an_array_is_used_in_place_and_cannot_be_changed_through_the_table():
    mine = np.ones((5, 2), np.float32)
    array = optimised(init={"adagrad": mine}).initial["adagrad"].array
    assert np.shares_memory(array, mine)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 2
    mine[0, 0] = 2  # the user's own array stays as it was: theirs


def test_a_table_is_frozen():
    with pytest.raises(AttributeError):
        optimised().rows = 3
    with pytest.raises(TypeError):
        optimised().columns["more"] = 3


def packed_tables() -> list[Table]:
    array = np.arange(10, dtype=np.float32).reshape(5, 2)
    return [Table("t", 3, dim=2, init=normal(0.5)), optimised(init={"adagrad": array, "value": uniform(0, 1)})]


@pytest.mark.parametrize("table", packed_tables())
def test_survives_msgpack_and_pickle(table):
    assert Table.unpack(msgpack.unpackb(msgpack.packb(table.pack()))) == table
    assert pickle.loads(pickle.dumps(table)) == table


def test_without_arrays_the_schema_survives():
    table = packed_tables()[1]
    light = Table.unpack(table.pack(arrays=False))
    assert light.columns == table.columns
    assert light.initial["adagrad"].array is None


@pytest.mark.parametrize("packed", [{}, {"name": "t"}, {"name": "t", "rows": 1, "columns": [["a", 1]], "init": []}, []])
def test_unpack_refuses_what_is_not_packed(packed):
    with pytest.raises(TableError, match="not a packed table"):
        Table.unpack(packed)


def test_description_is_small_and_tells_arrays_apart():
    one, other = (Table("t", 2, dim=2, init=np.full((2, 2), x)) for x in (1.0, 2.0))
    assert one.describe() != other.describe()
    assert one != other
    assert len(msgpack.packb(one.describe())) < 200


def test_digest_depends_on_order_of_tables_and_columns():
    a, b = Table("a", 1, dim=1), Table("b", 1, dim=1)
    assert digest([a, b]) == digest([a, b]) != digest([b, a])
    assert digest([Table("a", 1, columns={"x": 1, "y": 1})]) != digest([Table("a", 1, columns={"y": 1, "x": 1})])


def test_check_tables():
    a = Table("a", 1, dim=1)
    assert check_tables(iter([a])) == [a]
    for tables, message in (
        ([], "at least one"),
        ([a, Table("a", 2, dim=2)], "two tables are named 'a'"),
        (["a"], "found 'a'"),
    ):
        with pytest.raises(TableError, match=message):
            check_tables(tables)
