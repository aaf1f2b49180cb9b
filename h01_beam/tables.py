"""Columnar tables: how rows leave a block, and how a stage's rows become one table.

A table is a mapping of column names to NumPy arrays of one length. On disk it is Parquet, one
part per block beside the block's marker; `h01_beam.finish.CompactTable` joins the parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Columns: TypeAlias = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Schema:
    """Column names and NumPy dtypes of a table; 'str' is text."""

    columns: Mapping[str, str]

    def empty(self) -> Columns:
        return {name: np.empty(0, _dtype(dtype)) for name, dtype in self.columns.items()}

    def conform(self, columns: Mapping[str, np.ndarray]) -> Columns:
        """Casts to the schema's dtypes, in its order.

        Raises:
          ValueError: a column is missing, unknown, or of another length than the others.
        """
        if set(columns) != set(self.columns):
            raise ValueError(f'columns are {sorted(columns)}: must be {sorted(self.columns)}')
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'columns differ in length: {lengths}')
        return {
            name: np.asarray(columns[name]).astype(_dtype(dtype), copy=False)
            for name, dtype in self.columns.items()
        }


# Objects that flood filling made and that reach the core of their block, one row each. Seeds are
# voxels of the volume, and may lie in the block's halo; `voxels` are those in the core.
OBJECTS = Schema(
    {
        'supervoxel': 'uint64',
        'seed_z': 'int64',
        'seed_y': 'int64',
        'seed_x': 'int64',
        'voxels': 'int64',
        'fov_steps': 'int64',
    }
)
# Pairs of supervoxels of neighbouring blocks that are one object, with the overlap in voxels.
EDGES = Schema(
    {'a': 'uint64', 'b': 'uint64', 'overlap': 'int64', 'size_a': 'int64', 'size_b': 'int64'}
)
# Supervoxels whose segment (the smallest supervoxel of its component) is another supervoxel.
SEGMENT_OF = Schema({'supervoxel': 'uint64', 'segment': 'uint64'})


def to_parquet(columns: Mapping[str, np.ndarray], schema: Schema) -> bytes:
    """Serializes columns; the same columns give the same bytes."""
    conformed = schema.conform(columns)
    table = pa.table({name: pa.array(column) for name, column in conformed.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression='zstd')
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_parquet(data: bytes) -> Columns:
    """Inverse of `to_parquet`."""
    table = pq.read_table(pa.BufferReader(data))
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def from_parquets(data: Iterable[bytes]) -> Columns:
    """Joins serialized parts of one table row-wise, in the order given; {} if there are none."""
    parts = [from_parquet(part) for part in data]
    names = parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def concatenate(parts: Iterable[Mapping[str, np.ndarray]], schema: Schema) -> Columns:
    """Joins tables row-wise, in the order given."""
    rows = [schema.conform(part) for part in parts]
    if not rows:
        return schema.empty()
    return {name: np.concatenate([part[name] for part in rows]) for name in schema.columns}


def length(columns: Mapping[str, np.ndarray]) -> int:
    """Number of rows."""
    return len(next(iter(columns.values()))) if columns else 0


def _dtype(name: str) -> np.dtype:
    return np.dtype(object) if name == 'str' else np.dtype(name)
