"""Matches the ids that two neighbouring blocks gave to the same voxels.

Two blocks that overlap are segmented independently. What both saw of their overlap, without the
envelope that no field of view was ever centred near, is compared voxel by voxel:

    block A  aaaaaaaaaaaaaaaa|ooooo|eee       o: compared, on either side of the border of the
    block B              eee|ooooo|bbbbbbbbb     cores; e: the envelope of one of the two

Ids that match become edges of a graph whose connected components are the global objects.

The published rule (`'mutual'`; Januszewski et al. 2018, as used for H01, on the one plane halfway
between the blocks): ids a and b match if b is the id that shares most voxels with a, and a the one
that shares most with b. An id therefore matches at most one id on the other side. The price is paid
where an object leaves a block and comes back: one id in B meets two ids in A, which are connected
only outside of A, and the smaller of the two stays split.

The default rule (`'contained'`) adds the ids that lie for the most part inside of one id of the
other side. Such an id has one container at most, so it joins what contains it and nothing else:
a1 and a2 are joined by the b that both lie in, never by one that they merely touch. A deep overlap
makes this safe, where a single plane would often show only the tip of an object.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from h01_beam.labels import Counts, Ids, count_pairs
from h01_beam.tables import Columns

Rule: TypeAlias = Literal['contained', 'mutual']


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How ids of neighbouring blocks are matched.

    Attributes:
      rule: 'contained' or 'mutual', see the module.
      contained_fraction: an id is contained in another if more than this share of its voxels in
        the overlap lie in it, those where the other side is unlabelled included.
      min_overlap: least voxels that matched ids share. On synthetic tissue (two networks, 357
        joins) half of the joins on fewer than 200 voxels were wrong, and 8 % of the others: what
        floods across a membrane by mistake is a small tip.
      painted_fraction: two objects of one block are one if the network, which paints each as if the
        others were not there, painted the later over more than this share of the earlier, or
        painted more than this share of it there. None: never, as published, where such overlaps are
        left to agglomeration.
      min_painted: least voxels that such objects share. 0.5 and 500 were chosen on three volumes of
        synthetic tissue, easy to hard: 0.27 bits of splits fewer, 0.03 bits of mergers more.
    """

    rule: Rule = 'contained'
    contained_fraction: float = 0.5
    min_overlap: int = 200
    painted_fraction: float | None = None
    min_painted: int = 500

    def __post_init__(self) -> None:
        if self.rule not in ('contained', 'mutual'):
            raise ValueError(f"match.rule is {self.rule!r}: must be 'contained' or 'mutual'")
        if not 0.5 <= self.contained_fraction < 1:
            raise ValueError(
                f'match.contained_fraction is {self.contained_fraction}: must lie in [0.5, 1), so '
                'that an id has one container at most'
            )
        for name in ('min_overlap', 'min_painted'):
            if getattr(self, name) < 1:
                raise ValueError(f'match.{name} is {getattr(self, name)}: must be at least 1 voxel')
        if self.painted_fraction is not None and not 0 < self.painted_fraction < 1:
            raise ValueError(
                f'match.painted_fraction is {self.painted_fraction}: must lie in (0, 1), or be '
                'null for no joins within a block'
            )


@dataclasses.dataclass(frozen=True)
class Overlaps:
    """Pairs of ids that share voxels of an overlap, by ascending (a, b). All columns (n,).

    Attributes:
      a: uint64, id in the first block; never 0.
      b: uint64, id in the second block; never 0.
      overlap: int64, voxels that are a in one and b in the other.
      size_a: int64, voxels of a in the overlap, those unlabelled in the second block included.
      size_b: int64, voxels of b in the overlap.
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
    # By ascending (second, first): so the first block comes second.
    b, a, overlap = count_pairs(labels_b, labels_a)
    every = Overlaps(a, b, overlap, _sum_by(a, overlap), _sum_by(b, overlap))
    return every.select((every.a != 0) & (every.b != 0))


def match_overlap(labels_a: Ids, labels_b: Ids, config: MatchConfig | None = None) -> Overlaps:
    """Finds the ids of two blocks that are the same object.

    Args:
      labels_a: uint64 zyx, the overlap as the first block labelled it; 0 is unlabelled.
      labels_b: uint64 zyx, the same voxels as the second block labelled them.
      config: the rule; None is the default.

    Returns:
      Edges by ascending (a, b), with the voxels behind them. Swapping the blocks swaps a and b and
      changes nothing else. Equal overlaps are decided for the smaller id.
    """
    config = config or MatchConfig()
    pairs = count_overlaps(labels_a, labels_b)
    matched = mutual_maxima(pairs)
    if config.rule == 'contained':
        matched |= pairs.overlap > config.contained_fraction * pairs.size_a
        matched |= pairs.overlap > config.contained_fraction * pairs.size_b
    return pairs.select(matched & (pairs.overlap >= config.min_overlap))


def match_painted(overlaps: Columns, config: MatchConfig) -> Columns:
    """Of the pairs of objects of one block that were painted over each other, those that are one.

    Args:
      overlaps: columns a, b, overlap, size_a, size_b; sizes of the earlier object, and of all that
        was painted of the later.
      config: `painted_fraction` and `min_painted`.

    Returns:
      the same columns, fewer rows.
    """
    if config.painted_fraction is None:
        kept = np.zeros(len(overlaps['a']), np.bool_)
    else:
        least = config.painted_fraction * np.minimum(overlaps['size_a'], overlaps['size_b'])
        kept = (overlaps['overlap'] > least) & (overlaps['overlap'] >= config.min_painted)
    return {name: column[kept] for name, column in overlaps.items()}


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


def _sum_by(ids: Ids, voxels: Counts) -> Counts:
    """For each row, the voxels of all rows with its id."""
    _, row = np.unique(ids, return_inverse=True)
    totals: Counts = np.bincount(row, voxels).astype(np.int64)
    return totals[row]
