"""Which objects are split, which segments merge, and where to look at it.

Tables are columnar and sorted by how much each row adds to the VOI; the contributions of all rows
sum to `voi_split` and `voi_merge` of the foreground. A table needs only the contingency rows that
are complete for its ids, so it can be made for each partition and the partitions' heads merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h01_beam import tables
from h01_beam.evaluation.contingency import Column, Overlaps
from h01_beam.evaluation.scores import nlogn, sum_by
from h01_beam.geometry import BoundingBox
from h01_beam.labels import Counts, Ids

Table = dict[str, NDArray[Any]]
TRUTHS = tables.Schema(
    {
        'truth': 'uint64',
        'voxels': 'int64',
        'labelled_voxels': 'int64',
        'segments': 'int64',
        'largest_segment': 'uint64',
        'largest_fraction': 'float64',
        'voi_split': 'float64',
    }
)
SEGMENTS = tables.Schema(
    {
        'segment': 'uint64',
        'voxels': 'int64',
        'truths': 'int64',
        'largest_truth': 'uint64',
        'largest_fraction': 'float64',
        'voi_merge': 'float64',
    }
)


def tabulate_truths(rows: Overlaps, scored_voxels: int, min_fraction: float = 0.01) -> Table:
    """Returns one row per truth object, the most split first.

    Args:
      rows: merged rows, complete for the truth ids in them.
      scored_voxels: labelled voxels of the whole volume, by which contributions are divided.
      min_fraction: a segment counts if it holds at least this fraction of the object's labelled
        voxels.

    Returns:
      Columns truth, voxels (all with this truth), labelled_voxels, segments (that count),
      largest_segment, largest_fraction (of labelled voxels), voi_split (bits of the whole
      volume's score).
    """
    table = _tabulate(rows.take(rows.segment != 0), 'truth', 'segment', scored_voxels, min_fraction)
    ids, voxels = sum_by(rows.truth, rows.voxels)
    # An object that is not labelled at all has no row above; it is not split, but it is missing.
    found = dict(zip(table['ids'].tolist(), range(len(table['ids'])), strict=True))
    source = np.array([found.get(int(one), -1) for one in ids], np.int64)
    hit = source >= 0
    result: Table = {'truth': ids, 'voxels': voxels}
    for name, column in (
        ('labelled_voxels', 'voxels'),
        ('segments', 'parts'),
        ('largest_segment', 'largest'),
        ('largest_fraction', 'fraction'),
        ('voi_split', 'bits'),
    ):
        values = np.zeros(len(ids), table[column].dtype)
        values[hit] = table[column][source[hit]]
        result[name] = values
    return _sorted(result, 'voi_split', 'truth')


def tabulate_segments(rows: Overlaps, scored_voxels: int, min_fraction: float = 0.01) -> Table:
    """Returns one row per segment, the most merged first.

    Args:
      rows: merged rows, complete for the segment ids in them.
      scored_voxels: as in `tabulate_truths`.
      min_fraction: an object counts if it holds at least this fraction of the segment's voxels that
        have truth.

    Returns:
      Columns segment, voxels, truths (that count), largest_truth, largest_fraction, voi_merge.
    """
    table = _tabulate(rows.take(rows.segment != 0), 'segment', 'truth', scored_voxels, min_fraction)
    result = {
        'segment': table['ids'],
        'voxels': table['voxels'],
        'truths': table['parts'],
        'largest_truth': table['largest'],
        'largest_fraction': table['fraction'],
        'voi_merge': table['bits'],
    }
    return _sorted(result, 'voi_merge', 'segment')


def _tabulate(
    rows: Overlaps, key: Column, other: Column, scored_voxels: int, min_fraction: float
) -> Table:
    """Returns ids, voxels, parts, largest, fraction and bits for each id of `key`."""
    ids, others = getattr(rows, key), getattr(rows, other)
    # Largest part first within an id; equal parts by id, so that the table is reproducible.
    order = np.lexsort((others, -rows.voxels, ids))
    ids, others, voxels = ids[order], others[order], rows.voxels[order]
    if len(ids) == 0:
        none = np.empty(0, np.int64)
        return {
            'ids': ids,
            'voxels': none,
            'parts': none,
            'largest': others,
            'fraction': np.empty(0),
            'bits': np.empty(0),
        }
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    total = np.add.reduceat(voxels, first)
    share = voxels / np.repeat(total, np.diff(first, append=len(ids)))
    bits = nlogn(total) - np.add.reduceat(nlogn(voxels), first)
    return {
        'ids': ids[first],
        'voxels': total,
        'parts': np.add.reduceat((share >= min_fraction).astype(np.int64), first),
        'largest': others[first],
        'fraction': share[first],
        'bits': np.maximum(bits, 0.0) / max(scored_voxels, 1),
    }


def _sorted(table: Table, descending: str, ascending: str) -> Table:
    order = np.lexsort((table[ascending], -table[descending]))
    return {name: column[order] for name, column in table.items()}


def join_tables(
    tables: Iterable[Table], descending: str, ascending: str, rows: int | None = None
) -> Table:
    """Returns the head of several tables of disjoint ids, for example one per partition.

    Args:
      tables: with the same columns; at least one.
      descending: the column to sort by, greatest first.
      ascending: the column that decides between equals.
      rows: how many to keep; None keeps all.
    """
    parts = list(tables)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: column[:rows] for name, column in _sorted(whole, descending, ascending).items()}


@dataclass(frozen=True, eq=False)
class PlaneParts:
    """Columnar rows: the part of one target that one other label takes in one section.

    Attributes:
      target, other: (n,) uint64; other is 0 where the other volume is unlabelled.
      section: (n,) int64, z.
      voxels, sum_y, sum_x: (n,) int64; the sums give the part's centre.
    """

    target: Ids
    other: Ids
    section: Counts
    voxels: Counts
    sum_y: Counts
    sum_x: Counts


_NO_PARTS = PlaneParts(
    np.empty(0, np.uint64), np.empty(0, np.uint64), *(np.empty(0, np.int64) for _ in range(4))
)


def locate_parts(
    labels: NDArray[Any], others: NDArray[Any], start: tuple[int, int, int], targets: Ids
) -> PlaneParts:
    """Return, for a few target labels in a block, their parts by section.

    Args:
      labels: zyx integer labels in which the targets are (truth, to look at splits; segmentation,
        to look at merges).
      others: zyx integer labels that divide the targets.
      start: zyx voxel at which the block begins.
      targets: (k,) uint64.
    """
    z, y, x = np.nonzero(np.isin(labels, targets.astype(labels.dtype)))
    columns = (
        labels[z, y, x].astype(np.uint64),
        others[z, y, x].astype(np.uint64),
        (z + start[0]).astype(np.int64),
        np.ones(len(z), np.int64),
        (y + start[1]).astype(np.int64),
        (x + start[2]).astype(np.int64),
    )
    return merge_parts([PlaneParts(*columns)])


def merge_parts(batches: Iterable[PlaneParts]) -> PlaneParts:
    """Returns the sum of part tables, sorted: associative, commutative and compact."""
    parts = [_NO_PARTS, *batches]
    columns = [np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(PlaneParts)]
    if len(columns[0]) == 0:
        return PlaneParts(*columns)
    order = np.lexsort((columns[1], columns[2], columns[0]))
    columns = [column[order] for column in columns]
    keys = np.stack([column.astype(np.uint64) for column in columns[:3]])
    first = np.flatnonzero(np.r_[True, np.any(keys[:, 1:] != keys[:, :-1], axis=0)])
    sums = [np.add.reduceat(column, first) for column in columns[3:]]
    return PlaneParts(*(column[first] for column in columns[:3]), *sums)


@dataclass(frozen=True, kw_only=True)
class View:
    """Where to look at an error.

    Attributes:
      target: label of the object or segment.
      parts: other labels in this section, the largest first.
      centre: zyx voxel in the middle of the second largest part.
    """

    target: int
    parts: tuple[int, ...]
    centre: tuple[int, int, int]


def choose_view(parts: PlaneParts, target: int) -> View:
    """Returns the section in which the target's error is the largest, and its centre there.

    The error of a section is its VOI contribution, counted over labelled voxels: largest where
    two large parts meet, zero where one label holds all of the target.

    Raises:
      ValueError: if the target has no labelled voxel.
    """
    chosen = np.flatnonzero((parts.target == target) & (parts.other != 0))
    if len(chosen) == 0:
        raise ValueError(f'target {target} has no labelled voxel: there is no error to look at')
    section = parts.section[chosen]
    sections, index = np.unique(section, return_inverse=True)
    total = np.bincount(index, parts.voxels[chosen]).astype(np.int64)
    bits = nlogn(total) - np.bincount(index, nlogn(parts.voxels[chosen]))
    # Of equal sections the one with most of the target in it, then the first.
    best = int(np.lexsort((sections, -total, -bits))[0])
    here = chosen[index == best]
    here = here[np.lexsort((parts.other[here], -parts.voxels[here]))]
    # The largest part is what should be there; the second one is the error.
    aim = here[:2][-1]
    centre_y = round(parts.sum_y[aim] / parts.voxels[aim])
    centre_x = round(parts.sum_x[aim] / parts.voxels[aim])
    return View(
        target=int(target),
        parts=tuple(int(other) for other in parts.other[here]),
        centre=(int(sections[best]), int(centre_y), int(centre_x)),
    )


def crop_around(view: View, shape: tuple[int, int, int], bounds: BoundingBox) -> BoundingBox:
    """Returns a box of one section about the view, moved into the bounds, no larger than them.

    Args:
      view: where to look.
      shape: zyx; only y and x matter.
      bounds: of the volume.
    """
    extent = (1, min(shape[1], bounds.shape[1]), min(shape[2], bounds.shape[2]))
    z, y, x = (
        min(max(c - n // 2, low), high - n)
        for c, n, low, high in zip(view.centre, extent, bounds.start, bounds.end, strict=True)
    )
    return BoundingBox((z, y, x), extent)
