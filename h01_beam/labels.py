"""Label volumes: ids of blocks, and tables of how many voxels each pair of labels shares."""

from __future__ import annotations

from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Counts = NDArray[np.int64]
# Pairs of labels with their voxels: three columns (n,).
Pairs = tuple[Ids, Ids, Counts]

# A supervoxel id is the block's number, then this many bits for the object within the block.
LOCAL_BITS = 24
# A table of at most this many pairs is counted densely: 64 MB of int64.
_MAX_BINS = 1 << 23


def count_pairs(first: NDArray[Any], second: NDArray[Any]) -> Pairs:
    """Counts the voxels of every pair of labels that occurs, 0 included.

    Labels come in runs along x, so the voxels are first contracted to runs (a tenth of them, in
    dense neuropil) and only the runs are counted.

    Args:
      first: integer labels, any shape (zyx).
      second: integer labels of the same shape.

    Returns:
      Labels of the first, of the second, and their shared voxels, by ascending (second, first).
    """
    if first.size == 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64)
    first, second = first.ravel(), second.ravel()
    starts_run = np.empty(first.size, bool)
    starts_run[0] = True
    np.not_equal(first[1:], first[:-1], out=starts_run[1:])
    starts_run[1:] |= second[1:] != second[:-1]
    start = np.flatnonzero(starts_run)
    return sum_pairs(first[start], second[start], np.diff(start, append=first.size))


def sum_pairs(first: NDArray[Any], second: NDArray[Any], voxels: Counts) -> Pairs:
    """Adds up rows of equal pairs.

    Args:
      first: (n,) integer labels.
      second: (n,) integer labels.
      voxels: (n,) int64.

    Returns:
      One row per pair, by ascending (second, first).
    """
    if len(voxels) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64)
    first_ids, first_index = fastremap.unique(
        np.ascontiguousarray(first, np.uint64), return_inverse=True
    )
    second_ids, second_index = fastremap.unique(
        np.ascontiguousarray(second, np.uint64), return_inverse=True
    )
    pair = second_index.astype(np.int64) * len(first_ids) + first_index.astype(np.int64)
    if len(first_ids) * len(second_ids) <= _MAX_BINS:
        # Counts stay exact: a float64 weight holds every integer below 2**53.
        counts = np.bincount(pair, voxels).astype(np.int64)
        pair = np.flatnonzero(counts)
        counts = counts[pair]
    else:
        order = np.argsort(pair, kind='stable')
        pair = pair[order]
        start = np.flatnonzero(np.diff(pair, prepend=-1))
        counts = np.add.reduceat(voxels[order], start)
        pair = pair[start]
    return first_ids[pair % len(first_ids)], second_ids[pair // len(first_ids)], counts


def supervoxel_ids(labels: np.ndarray, voxels: np.ndarray, base: np.uint64) -> np.ndarray:
    """Supervoxel ids (zyx uint64) of local labels.

    `voxels` counts, by local id, those in the core: an object without any exists for nobody
    else, and must not be matched.
    """
    ids = np.arange(len(voxels), dtype=np.uint64)
    table = np.where((voxels > 0) & (ids > 0), base + ids, np.uint64(0))
    return table[labels]
