"""Which rows are everywhere, and whether they fit."""

from __future__ import annotations

import numpy as np
import pytest

import adapm
import launch_tasks
from adapm import Table, hot
from adapm.errors import OutOfMemory, TableError
from adapm.techniques import named

TABLES = [
    Table("a", rows=4, dim=2, counts=[1, 9, 0, 3]),
    Table("b", rows=1000, dim=2),
    Table("c", rows=3, dim=2, counts=[3, 1000, 4]),
]


def keys(name: str, tables: list[Table] = TABLES) -> list[list[int]]:
    return [list(part) for part in hot.everywhere(named(name), tables)]


def test_hot_are_the_keys_that_are_counted_most_over_all_tables() -> None:
    assert keys("nups(0)") == keys("adaptive") == keys("ssp(2)") == [[], [], []]
    assert keys("nups(1)") == [[], [], [1]]
    assert keys("nups(4)") == [[1, 3], [], [1, 2]], "of equals, the first"
    assert keys("nups") == [[], [], [1]], "1000 is more than 100 times the mean, 1020 / 1007; 9 is not"
    assert keys("full") == [list(range(4)), list(range(1000)), list(range(3))]
    assert sum(map(len, keys("nups(5000)"))) == 1007


def test_without_counts_nobody_knows_what_is_hot() -> None:
    with pytest.raises(TableError, match=r"'nups\(3\)' must know how often keys are accessed: give a table counts="):
        adapm.run(launch_tasks.count, [Table("t", rows=20, dim=2)], args=(1,), nodes=2, technique="nups(3)")


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, -3], [1, 2, np.nan], "abc", [[1, 2, 3]]])
def test_counts_that_make_no_sense_are_refused(counts: object) -> None:
    with pytest.raises(TableError, match="counts"):
        Table("t", rows=3, dim=2, counts=counts)


def test_tables_with_other_counts_are_others_and_counts_survive_packing() -> None:
    table, other = TABLES[0], Table("a", rows=4, dim=2, counts=[1, 9, 0, 4])
    assert table != other != Table("a", rows=4, dim=2)
    again = Table.unpack(table.pack())
    assert again == table and again.counts.tolist() == [1, 9, 0, 3]
    assert Table.unpack(table.pack(arrays=False)).counts is None


def test_copies_that_do_not_fit_are_refused_before_anything_is_allocated() -> None:
    kept = hot.everywhere(named("full"), TABLES)
    hot.require_room(kept, TABLES, 2, 0, None)
    with pytest.raises(OutOfMemory, match=r"keeps 500 rows of table 'b' on every node .* leaves room for 700 in all"):
        hot.require_room(kept, TABLES, 2, 0, [4, 700, 3])
    large = [Table("large", rows=2**32 - 2, dim=2**20)]
    with pytest.raises(OutOfMemory, match="'large'"):
        hot.require_room([range(10**9)], large, 1000, 0, None)
