"""Extents: the size and the bounding box of every label, as rows that merge over blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from h01_beam import tables

Ids = NDArray[np.uint64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Extents:
    """Columnar rows, one per label, sorted by label.

    Attributes:
      label: (n,) uint64, never 0.
      voxels: (n,) int64.
      start_z, start_y, start_x: (n,) int64, first voxel of the label along each axis.
      end_z, end_y, end_x: (n,) int64, one past its last voxel.
    """

    label: Ids
    voxels: Counts
    start_z: Counts
    start_y: Counts
    start_x: Counts
    end_z: Counts
    end_y: Counts
    end_x: Counts

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.label)

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Extents:
        """Returns the table held in a mapping of equally long columns."""
        return cls(**{f.name: columns[f.name] for f in fields(cls)})

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns by name, as they travel and are stored."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def take(self, rows: NDArray[Any]) -> Extents:
        """The rows chosen by an index or boolean array."""
        return Extents(*(column[rows] for column in self.columns().values()))


EXTENTS = tables.Schema({'label': 'uint64', **{f.name: 'int64' for f in fields(Extents)[1:]}})
_NO_EXTENTS = Extents(np.empty(0, np.uint64), *(np.empty(0, np.int64) for _ in range(7)))


def measure_extents(labels: NDArray[Any], start: tuple[int, int, int]) -> Extents:
    """Returns the extents of the labels of one block.

    Args:
      labels: zyx integer labels; 0 = none.
      start: zyx voxel at which the block begins.
    """
    ids, index, voxels = fastremap.unique(labels, return_inverse=True, return_counts=True)
    # find_objects takes 0 for background; id 0 must stay that and no other id may become it.
    index = index.reshape(labels.shape).astype(np.int32) + (0 if ids[0] == 0 else 1)
    first = 1 if ids[0] == 0 else 0
    boxes = [box for box in ndimage.find_objects(index) if box is not None]
    corners = np.array(
        [[axis.start for axis in box] + [axis.stop for axis in box] for box in boxes], np.int64
    ).reshape(-1, 6) + np.tile(np.asarray(start, np.int64), 2)
    return Extents(ids[first:].astype(np.uint64), voxels[first:].astype(np.int64), *corners.T)


def merge_extents(batches: Iterable[Extents]) -> Extents:
    """Returns the union of extents: associative, commutative and compact."""
    parts = [_NO_EXTENTS, *batches]
    columns = {
        f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Extents)
    }
    order = np.argsort(columns['label'], kind='stable')
    label = columns['label'][order]
    if len(label) == 0:
        return _NO_EXTENTS
    first = np.flatnonzero(np.r_[True, label[1:] != label[:-1]])
    merged = [label[first]]
    for name in list(columns)[1:]:
        how = np.add if name == 'voxels' else np.minimum if name.startswith('start') else np.maximum
        merged.append(how.reduceat(columns[name][order], first))
    return Extents(*merged)
