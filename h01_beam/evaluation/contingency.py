"""Contingency rows: how many voxels each segment shares with each truth object.

The joint table of a large volume does not fit in one process, but it never has to. Rows form a
commutative monoid under `merge_rows`; `partition_rows` splits them by truth or by segment id, and
all rows of one id meet in one partition. Every score is a sum over partitions (see `scores`).

    block -> count_overlaps -> partition_rows -> merge_rows per key -> sums or tables per key
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from h01_beam import tables
from h01_beam.labels import Counts, Ids, count_pairs, sum_pairs

Column = Literal['segment', 'truth']

OVERLAPS = tables.Schema({'segment': 'uint64', 'truth': 'uint64', 'voxels': 'int64'})


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Columnar contingency rows, one per (segment, truth) pair that occurs.

    Attributes:
      segment: (n,) uint64; 0 means that the voxels are unlabelled in the segmentation.
      truth: (n,) uint64; never 0, since voxels without truth are not scored.
      voxels: (n,) int64, at least 1.
    """

    segment: Ids
    truth: Ids
    voxels: Counts

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.voxels)

    @classmethod
    def empty(cls) -> Overlaps:
        """Returns the table without rows, the neutral element of `merge_rows`."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Overlaps:
        """Returns the table held in a mapping of equally long columns; see `columns`."""
        return cls(
            np.asarray(columns['segment'], np.uint64),
            np.asarray(columns['truth'], np.uint64),
            np.asarray(columns['voxels'], np.int64),
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the columns by name, as they travel and are stored."""
        return {'segment': self.segment, 'truth': self.truth, 'voxels': self.voxels}

    def take(self, rows: NDArray[Any]) -> Overlaps:
        """Returns the rows chosen by an index or boolean array."""
        return Overlaps(self.segment[rows], self.truth[rows], self.voxels[rows])


def check_labels(name: str, labels: NDArray[Any]) -> None:
    """Raises TypeError or ValueError unless `labels` holds non-negative integers."""
    if labels.dtype.kind not in 'ui':
        raise TypeError(
            f'{name} has dtype {labels.dtype}: labels must be integers; '
            f'give the label volume, not an image or a probability map'
        )
    if labels.dtype.kind == 'i' and labels.size and int(labels.min()) < 0:
        raise ValueError(
            f'{name} has the label {int(labels.min())}: labels must be 0 (none) or positive; '
            f'relabel the ignored voxels to 0'
        )


def count_overlaps(segmentation: NDArray[Any], truth: NDArray[Any]) -> Overlaps:
    """Returns the contingency rows of one block, sorted by truth, then segment.

    Args:
      segmentation: zyx integer labels; 0 = unlabelled.
      truth: zyx integer labels of the same shape; 0 = not scored.

    Raises:
      TypeError: if either is not of an integer type.
      ValueError: if the shapes differ or a label is negative.
    """
    if segmentation.shape != truth.shape:
        raise ValueError(
            f'segmentation has shape {segmentation.shape} and truth {truth.shape}: '
            f'they must cover the same voxels; crop the larger one'
        )
    check_labels('segmentation', segmentation)
    check_labels('truth', truth)
    if truth.size == 0:
        return Overlaps.empty()
    rows = Overlaps(*count_pairs(segmentation, truth))
    return rows.take(rows.truth != 0)


def merge_rows(batches: Iterable[Overlaps]) -> Overlaps:
    """Returns the sum of contingency tables: associative, commutative and compact.

    The result has one row per pair, sorted by truth, then segment, whatever the order and the
    grouping of the batches.
    """
    parts = list(batches)
    if not parts:
        return Overlaps.empty()
    return Overlaps(
        *sum_pairs(
            np.concatenate([part.segment for part in parts]),
            np.concatenate([part.truth for part in parts]),
            np.concatenate([part.voxels for part in parts]),
        )
    )


def partition_rows(
    rows: Overlaps, column: Column, partitions: int
) -> Iterator[tuple[int, Overlaps]]:
    """Yields (partition, rows) so that all rows of one id of `column` share a partition."""
    if partitions < 1:
        raise ValueError(f'partitions is {partitions}: must be at least 1')
    key = mix_ids(getattr(rows, column)) % np.uint64(partitions)
    for partition in np.unique(key):
        yield int(partition), rows.take(key == partition)


def mix_ids(ids: Ids) -> Ids:
    """Returns ids hashed to even spread: (n,) uint64.

    Ids made from a block index and a local id are far from evenly spread. The hash is the finalizer
    of SplitMix64 (Steele et al., OOPSLA 2014).
    """
    mixed = ids.copy()
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
