from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam import tables

SCHEMA = tables.Schema({'id': 'uint64', 'z': 'int64', 'score': 'float32', 'name': 'str'})

rows = st.lists(
    st.tuples(
        st.integers(0, 2**64 - 1),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(width=32, allow_nan=False),
        st.text(st.characters(exclude_categories=['Cs'])),
    )
)


def columns(values):
    parts = zip(*values) if values else [[]] * 4
    return SCHEMA.conform(
        {name: np.array(list(part), dtype=object) for name, part in zip(SCHEMA.columns, parts)}
    )


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


@given(rows)
def test_tables_round_trip_through_parquet(values):
    table = columns(values)
    data = tables.to_parquet(table, SCHEMA)
    assert_same(tables.from_parquet(data), table)
    assert tables.to_parquet(table, SCHEMA) == data
    assert tables.length(table) == len(values)


@given(st.lists(rows, max_size=4))
def test_joined_parts_are_one_table(parts):
    joined = tables.concatenate(map(columns, parts), SCHEMA)
    assert_same(joined, columns([row for part in parts for row in part]))


def test_others_can_read_the_files():
    data = tables.to_parquet(columns([(2**64 - 1, -1, 0.5, 'a')]), SCHEMA)
    table = pq.read_table(io.BytesIO(data))
    assert table.to_pylist() == [{'id': 2**64 - 1, 'z': -1, 'score': 0.5, 'name': 'a'}]
    assert str(table.schema.field('id').type) == 'uint64'


def test_columns_are_cast_and_ordered():
    table = tables.SEGMENT_OF.conform({'segment': [3], 'supervoxel': np.array([2], np.int32)})
    assert list(table) == ['supervoxel', 'segment']
    assert all(column.dtype == np.uint64 for column in table.values())


@pytest.mark.parametrize(
    ('given_columns', 'message'),
    [
        ({'supervoxel': [1]}, r"columns are \['supervoxel'\]: must be \['segment', 'supervoxel'\]"),
        ({'supervoxel': [1], 'segment': [1], 'x': [1]}, "columns are .*'x'"),
        ({'supervoxel': [1], 'segment': [1, 2]}, 'columns differ in length'),
    ],
)
def test_wrong_columns_are_refused(given_columns, message):
    with pytest.raises(ValueError, match=message):
        tables.to_parquet(given_columns, tables.SEGMENT_OF)


def test_empty_tables_keep_their_types():
    empty = tables.from_parquet(tables.to_parquet(SCHEMA.empty(), SCHEMA))
    assert_same(empty, SCHEMA.empty())
    assert tables.length(empty) == 0 and tables.length({}) == 0
