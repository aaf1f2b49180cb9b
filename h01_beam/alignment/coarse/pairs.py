"""What two sections share: by features where they do, by correlation where they fail.

Features place a pair to a pixel or so but need structure that both sections show alike; serial
sections of real tissue, thick or dark ones above all, may share none two sections apart. Then the
whole thumbnails are correlated (see `lookup`), which places a pair within a few pixels, so that
such a match is only a grid of points with less weight.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from h01_beam.alignment.coarse.features import (
    CoarseConfig,
    Features,
    Match,
    detect_features,
    match_sections,
)
from h01_beam.alignment.coarse.lookup import Lookup, LookupConfig, look_up

Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Points that are asked for, each way; the most of a match by correlation, the least that tell of an
# affine map, and its weight.
_GRID, _MOST, _LEAST, _WEIGHT = 15, 25, 4, 0.25


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A section with few pixels.

    Attributes:
      image: (h, w) uint8.
      mask: (h, w), where it shows tissue.
      features: of both.
    """

    image: npt.NDArray[np.uint8]
    mask: Bools
    features: Features

    @classmethod
    def of(cls, image: npt.NDArray[np.uint8], mask: Bools, config: CoarseConfig) -> Thumbnail:
        return cls(image, mask, detect_features(image, mask, config))


def find_match(
    first: int, second: int, a: Thumbnail, b: Thumbnail, config: CoarseConfig, lookup: LookupConfig
) -> Match | None:
    """What two sections share: by features, else by correlation, else None.

    Args:
      first: place of one section in the stack.
      second: of the other.
      a: thumbnail of the first.
      b: of the second.
      config: of features; decides whether sections may be upside down in either way.
      lookup: of correlation.
    """
    match = match_sections(first, second, a.features, b.features, config)
    if match is not None:
        return match
    lookup = dataclasses.replace(
        lookup, allow_mirrored=lookup.allow_mirrored and config.allow_mirrored
    )
    found = look_up(a.image, b.image, a.mask, b.mask, lookup)
    return None if found is None else as_match(first, second, a.mask, b.mask, found)


def as_match(
    first: int, second: int, first_mask: Bools, second_mask: Bools, found: Lookup
) -> Match | None:
    """A grid of points that both sections show, by a map between them; None if too few are.

    Args:
      first: place of one section in the stack.
      second: of the other.
      first_mask: (h, w), where it shows tissue.
      second_mask: likewise.
      found: how the first lies in the second.
    """
    lines = [(np.arange(_GRID) + 0.5) * n / _GRID - 0.5 for n in first_mask.shape]
    points = np.stack(np.meshgrid(*lines, indexing='ij'), axis=-1).reshape(-1, 2)
    other = points @ found.affine[:, :2].T + found.affine[:, 2]
    keep = np.flatnonzero(_shows(first_mask, points) & _shows(second_mask, other))
    if len(keep) < _LEAST:
        return None
    keep = keep[np.linspace(0, len(keep) - 1, min(len(keep), _MOST)).astype(np.int64)]
    return Match(
        first, second, points[keep], other[keep], found.flipped,
        by='correlation', weight=_WEIGHT, peak=found.peak,
    )  # fmt: skip


def _shows(mask: Bools, points: Reals) -> Bools:
    index = np.rint(points).astype(np.int64)
    y, x = index.T
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    return np.asarray(inside & mask[np.where(inside, y, 0), np.where(inside, x, 0)])
