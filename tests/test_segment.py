"""The segment: created, attached, refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import numpy as np
import pytest

from adapm import memory
from adapm.errors import InternalError, OutOfMemory, ProtocolError
from adapm.kernel import ffi, lib
from adapm.segment import Segment, capacities, home_rows, row_bytes
from adapm.statistics import NodeStatistics
from adapm.tables import Table
from raw_segment import RawSegment

TABLES = [Table("a", rows=1000, dim=20), Table("b", rows=7, columns={"x": 16, "y": 1})]


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(TABLES, node=1, nodes=3, workers=2, seed=9, heap_bytes=4096, capacity=[400, 7])
    yield made
    made.close()


def test_layout(segment: Segment) -> None:
    raw = RawSegment(segment.fd)
    header = raw.header
    assert [int(header[f]) for f in ("node", "nnodes", "ntables", "nlanes", "nworkers", "seed")] == [1, 3, 2, 1, 2, 9]
    assert [(table.rows, table.row_len, table.arena.shape) for table in raw.tables] == [
        (1000, 20, (400, 32)),
        (7, 17, (7, 32)),
    ]
    assert header["size"] == os.fstat(segment.fd).st_size
    assert all(raw.tables[0].word(row) == 0 for row in range(1000))
    raw.close()


def test_only_rows_wait_for_their_memory(segment: Segment) -> None:
    with Segment.create([Table("a", rows=10**6, dim=1024)], heap_bytes=4096) as large:
        backed = os.fstat(large.fd).st_blocks * 512
        assert 8 * 10**6 < backed < 8 * 10**6 + (4 << 20)
        assert os.fstat(large.fd).st_size > 4 * 10**9


def test_attached_segment_is_the_same(segment: Segment) -> None:
    with Segment.attach(os.dup(segment.fd)) as other:
        segment.fail(-errno.EOWNERDEAD)
        raw = RawSegment(other.fd)
        assert int(raw.header["failed"]) == 2**32 - errno.EOWNERDEAD
        raw.close()


def test_large_parts_begin_at_huge_pages_and_keep_what_they_hold(rng: np.random.Generator) -> None:
    tables = [Table("a", rows=300_000, dim=7), Table("b", rows=5, dim=1)]
    with Segment.create(tables, heap_bytes=4096) as segment:
        raw = RawSegment(segment.fd)
        values = rng.normal(size=(300_000, 16)).astype(np.float32)
        raw.tables[0].arena[:] = values
        raw.tables[0].put_word(7, 7)
        with Segment.attach(os.dup(segment.fd)):  # merges the pages, where the system does that
            assert (raw.tables[0].arena == values).all()
            assert [raw.tables[0].word(row) for row in (6, 7, 8)] == [0, 7, 0]
            at = raw.array(np.dtype("<u8"), int(raw.header["off_tables"]), 6)
            assert not (at[4:6] % (2 << 20)).any(), "entries and arena"
        raw.close()


def test_merging_takes_no_memory_for_rows_that_are_not_there() -> None:
    with Segment.create([Table("a", rows=10**6, dim=64)], heap_bytes=4096) as segment:
        before = os.fstat(segment.fd).st_blocks
        raw = RawSegment(segment.fd)
        raw.tables[0].arena[10_000:40_000] = 1
        filled = os.fstat(segment.fd).st_blocks
        assert filled > before
        with Segment.attach(os.dup(segment.fd)):
            assert os.fstat(segment.fd).st_blocks == filled
        raw.close()


def test_statistics_start_at_zero(segment: Segment) -> None:
    assert segment.statistics() == NodeStatistics(**dict.fromkeys(NodeStatistics.__dataclass_fields__, 0))


def test_close_twice(segment: Segment) -> None:
    segment.close()
    segment.close()


def test_size_cannot_change(segment: Segment) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 4096)


@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 20])
def test_what_is_no_segment_is_refused(size: int) -> None:
    fd = os.memfd_create("adapm-test")
    os.ftruncate(fd, size)
    with pytest.raises(ProtocolError, match=f"descriptor {fd}"):
        Segment.attach(fd)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("field", ["magic", "version", "size", "off_tables", "off_workers", "ntables", "nworkers"])
def test_damaged_header_is_refused(segment: Segment, field: str) -> None:
    raw = RawSegment(segment.fd)
    raw.header[field] += 2**20 + 1
    raw.close()
    with pytest.raises(ProtocolError):
        Segment.attach(os.dup(segment.fd))


@pytest.mark.parametrize(("row_field", "value"), [(0, 2**40), (24, 2**50), (32, 1), (40, 2**62)])
def test_damaged_table_is_refused(segment: Segment, row_field: int, value: int) -> None:
    raw = RawSegment(segment.fd)
    raw.array(np.dtype("<u8"), int(raw.header["off_tables"]) + row_field, 1)[0] = value
    raw.close()
    with pytest.raises(ProtocolError):
        Segment.attach(os.dup(segment.fd))


def test_file_with_contents_is_not_taken(segment: Segment) -> None:
    error = ffi.new("int *")
    one, length = ffi.new("uint64_t[]", [1]), ffi.new("uint32_t[]", [1])
    spec = ffi.new("adapm_spec *", (0, 1, 1, 1, 1, 0, 4096, one, one, length))
    assert lib.adapm_segment_create(segment.fd, spec, error) == ffi.NULL
    assert error[0] == -errno.EEXIST


def test_nonsense_is_refused() -> None:
    with pytest.raises(InternalError, match="tables a"):
        Segment.create([Table("a", rows=1, dim=1)], node=3, nodes=3)
    with pytest.raises(InternalError, match="tables a"):
        Segment.create([Table("a", rows=1, dim=1)], capacity=[0])
    with pytest.raises(OutOfMemory, match="tables a"):
        Segment.create([Table("a", rows=2**32 - 2, dim=2**20) for _ in range(1024)][:1] * 1024)


def test_too_large_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: memory.Available(50_000_000, "a test"))
    with pytest.raises(OutOfMemory, match=r"need 1[\d,]+ bytes .* 50,000,000 are free \(a test\).*'big'"):
        Segment.create([Table("small", rows=3, dim=3), Table("big", rows=10**6, dim=30)])
    Segment.create([Table("big", rows=10**6, dim=30)], nodes=10).close()


def test_home_rows() -> None:
    table = Table("a", rows=10_000, dim=1)
    homes = np.bincount([lib.adapm_home_of(0, row, 7) for row in range(table.rows)])
    assert homes.max() <= home_rows(table, 7) < 10_000 / 7 * 1.2
    assert home_rows(table, 1) == table.rows


def test_capacities() -> None:
    tables = [Table("a", rows=1000, dim=16), Table("b", rows=1000, dim=32)]
    total = sum(table.rows * row_bytes(table) for table in tables)
    homes = [home_rows(table, 4) for table in tables]
    least = sum(n * row_bytes(table) for n, table in zip(homes, tables, strict=True))
    assert capacities(tables, 4, total) == [1000, 1000]
    assert capacities(tables, 4, 10 * total) == [1000, 1000]
    assert capacities(tables, 4, least) == homes
    middle = capacities(tables, 4, (total + least) // 2)
    assert least < sum(n * row_bytes(table) for n, table in zip(middle, tables, strict=True)) <= (total + least) // 2
    with pytest.raises(OutOfMemory, match=f"take {least:,} bytes"):
        capacities(tables, 4, least - 1)
