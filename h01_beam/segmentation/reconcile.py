"""Matches the ids that two neighbouring blocks gave to the same voxels.

Two blocks that overlap are segmented independently. Where they overlap, a thin slab (one plane is
the published choice) halfway between them is compared voxel by voxel:

    block A  aaaaaaaaaaaaaaaaaa|S|hhhhhhhh            S: the slab, at the border of the cores;
    block B           hhhhhhhhh|S|bbbbbbbbbbbbbbbbb   h: overlap, closer to an edge of a block

Ids that match become edges of a graph whose connected components are the global objects.

The published rule (`'mutual'`; Januszewski et al. 2018, as used for H01): ids a and b match if b is
the id that shares most voxels with a, and a the one that shares most with b. An id therefore
matches at most one id on the other side, so one slab can never join two ids of one block. The
price is paid where an object leaves a block and comes back: one id in B meets two ids in A, which
are connected only outside of A, and the smaller of the two stays split.

The alternative (`'contained'`) adds to these edges the fragments that lie almost wholly inside one
id of the other side, unless both sides of the new edge are large. A fragment is joined to what
contains it and to nothing else, so still no slab joins two *large* ids of one block; what remains
split is a re-entrant object with two large parts, which only agglomeration can tell from a merge
error on the other side. It gains little where fragments are rare and spreads a merge error of one
block by its small neighbours, so it is off by default: measure before turning it on.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rule: TypeAlias = Literal['mutual', 'contained']
Ids: TypeAlias = NDArray[np.uint64]
Counts: TypeAlias = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How ids of neighbouring blocks are matched. The defaults are the published rule.

    Attributes:
      rule: 'mutual' or 'contained', see the module.
      min_overlap: least voxels that matched ids share in the slab.
      min_fraction: least share of the smaller id's slab voxels that lie in the other. 0: off.
      min_iou: least intersection over union of mutual matches in the slab. 0: off.
      contained_fraction: share of a fragment's slab voxels that its container must hold.
      large: voxels from which on an id is large; two large ids match only mutually.
    """

    rule: Rule = 'mutual'
    min_overlap: int = 1
    min_fraction: float = 0.0
    min_iou: float = 0.0
    contained_fraction: float = 0.9
    large: int = 1000

    def __post_init__(self) -> None:
        if self.rule not in ('mutual', 'contained'):
            raise ValueError(f"match.rule is {self.rule!r}: must be 'mutual' or 'contained'")
        for name in ('min_overlap', 'large'):
            if getattr(self, name) < 1:
                raise ValueError(f'match.{name} is {getattr(self, name)}: must be at least 1 voxel')
        for name in ('min_fraction', 'min_iou'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'match.{name} is {getattr(self, name)}: must lie in [0, 1]')
        if not 0.5 < self.contained_fraction <= 1:
            raise ValueError(
                f'match.contained_fraction is {self.contained_fraction}: must lie in (0.5, 1], so '
                'that an id has one container at most'
            )


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Pairs of ids that share voxels of a slab, by ascending (a, b). All columns (n,).

    Attributes:
      a: uint64, id in the first block; never 0.
      b: uint64, id in the second block; never 0.
      overlap: int64, voxels that are a in one and b in the other.
      size_a: int64, voxels of a in the slab, those unlabelled in the second block included.
      size_b: int64, voxels of b in the slab.
    """

    a: Ids
    b: Ids
    overlap: Counts
    size_a: Counts
    size_b: Counts

    def __len__(self) -> int:
        return len(self.a)

    def select(self, kept: NDArray[np.bool_]) -> Overlaps:
        """The rows where `kept` is true."""
        return Overlaps(
            self.a[kept], self.b[kept], self.overlap[kept], self.size_a[kept], self.size_b[kept]
        )

    def columns(self) -> dict[str, NDArray[np.uint64] | NDArray[np.int64]]:
        """The columns by name: a batch of edges as `ConnectedComponents` takes it."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class ObjectSizes:
    """Voxels of the objects of a block.

    Attributes:
      ids: (n,) uint64, any order.
      voxels: (n,) int64.
    """

    ids: Ids
    voxels: Counts

    def of(self, wanted: Ids) -> Counts:
        """Voxels of each wanted id; KeyError if one is missing."""
        order = np.argsort(self.ids)
        position = np.searchsorted(self.ids, wanted, sorter=order)
        found = order[np.minimum(position, max(0, len(order) - 1))] if len(order) else order
        if len(wanted) and (not len(found) or not np.array_equal(self.ids[found], wanted)):
            raise KeyError(f'sizes of {len(self.ids)} objects lack some of {wanted[:5]}...')
        return self.voxels[found]


def count_overlaps(labels_a: Ids, labels_b: Ids) -> Overlaps:
    """Counts the shared voxels of every pair of ids.

    Args:
      labels_a: uint64, any shape (zyx), ids of the first block; 0 is unlabelled.
      labels_b: the same voxels as the second block labelled them.

    Returns:
      All pairs of ids that share a voxel.
    """
    for name, labels in (('labels_a', labels_a), ('labels_b', labels_b)):
        if labels.dtype != np.uint64:
            raise ValueError(f'{name} is {labels.dtype}: must be uint64 supervoxel ids')
    if labels_a.shape != labels_b.shape:
        raise ValueError(
            f'labels_a is {labels_a.shape} and labels_b {labels_b.shape}: both must be the labels '
            'of the same voxels'
        )
    ids_a, index_a, voxels_a = np.unique(labels_a, return_inverse=True, return_counts=True)
    ids_b, index_b, voxels_b = np.unique(labels_b, return_inverse=True, return_counts=True)
    pair = index_a.ravel() * len(ids_b) + index_b.ravel()
    pairs, overlap = np.unique(pair, return_counts=True)
    row_a, row_b = np.divmod(pairs, max(1, len(ids_b)))
    every = Overlaps(ids_a[row_a], ids_b[row_b], overlap, voxels_a[row_a], voxels_b[row_b])
    return every.select((every.a != 0) & (every.b != 0))


def match_overlap(
    labels_a: Ids,
    labels_b: Ids,
    config: MatchConfig | None = None,
    *,
    object_sizes_a: ObjectSizes | None = None,
    object_sizes_b: ObjectSizes | None = None,
) -> Overlaps:
    """Finds the ids of two blocks that are the same object.

    Args:
      labels_a: uint64 zyx, slab labelled by the first block; 0 is unlabelled.
      labels_b: uint64 zyx, the same voxels labelled by the second block.
      config: the rule; None is the published one.
      object_sizes_a: voxels of the first block's objects, by which the contained rule tells large
        from small. None: their voxels in the slab, which understate an object that touches it
        with a tip.
      object_sizes_b: the same for the second block.

    Returns:
      Edges by ascending (a, b), with the voxels behind them. Swapping the blocks swaps a and b and
      changes nothing else. Equal overlaps are decided for the smaller id.
    """
    config = config or MatchConfig()
    pairs = count_overlaps(labels_a, labels_b)
    smaller = np.minimum(pairs.size_a, pairs.size_b)
    enough = pairs.overlap >= np.maximum(config.min_overlap, config.min_fraction * smaller)
    union = pairs.size_a + pairs.size_b - pairs.overlap
    matched = mutual_maxima(pairs) & (pairs.overlap >= config.min_iou * union)
    if config.rule == 'contained':
        voxels_a = object_sizes_a.of(pairs.a) if object_sizes_a else pairs.size_a
        voxels_b = object_sizes_b.of(pairs.b) if object_sizes_b else pairs.size_b
        small_a, small_b = voxels_a < config.large, voxels_b < config.large
        in_b = small_a & (pairs.overlap >= config.contained_fraction * pairs.size_a)
        in_a = small_b & (pairs.overlap >= config.contained_fraction * pairs.size_b)
        matched |= in_b | in_a
    return pairs.select(matched & enough)


def mutual_maxima(pairs: Overlaps) -> NDArray[np.bool_]:
    """(n,) bool: whether each id of the pair is the one that the other overlaps most.

    Equal overlaps are decided for the smaller id.
    """
    best = np.ones(len(pairs), bool)
    for own, other in ((pairs.a, pairs.b), (pairs.b, pairs.a)):
        order = np.lexsort((other, -pairs.overlap, own))
        first = np.ones(len(pairs), bool)
        first[1:] = own[order[1:]] != own[order[:-1]]
        best[order] &= first
    return best
