r"""Offsets of pairs of tiles: where one tile lies in the pixels of another.

    +-----------------+
    |  first      +---|-------------+      offset = place of the second tile's first pixel in the
    |             |###|             |               first tile's frame, y and x in pixels
    |             |###|   second    |
    +-----------------+             |      ### what both show: the strip that is correlated
                  +-----------------+

A pair is looked up twice: with few pixels wherever the stage may have erred to, then with all
pixels around what that found. Correlation is normalized over what both tiles show at each shift, so
neither masks nor small overlaps draw the peak to themselves.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.registration.correlation import correlate_masked, vertex
from h01_beam.registration.flow import local_contrast

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffsetConfig:
    """How offsets are found; lengths in pixels of the tiles.

    Attributes:
      search: how far the stage may have erred, y and x alike.
      downsample: of the first look.
      contrast_sigma: of the Gaussian windows in which contrast is made even.
      min_overlap: pixels that both tiles must show, as a share of a tile.
      min_peak: least correlation at the peak.
      min_sharpness: by how much the peak stands out of the rest, in deviations of the rest.
    """

    search: int = 128
    downsample: int = 4
    contrast_sigma: float = 12.0
    min_overlap: float = 0.01
    min_peak: float = 0.15
    min_sharpness: float = 6.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('search', 'downsample'):
            if getattr(self, name) < 1:
                raise ValueError(f'offsets.{name} is {getattr(self, name)}: must be 1 or more')
        for name in ('min_overlap', 'min_peak'):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f'offsets.{name} is {getattr(self, name)}: must lie in (0, 1)')
        for name in ('contrast_sigma', 'min_sharpness'):
            if not getattr(self, name) > 0:
                raise ValueError(f'offsets.{name} is {getattr(self, name)}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Offset:
    """What a pair of tiles says about its offset.

    Attributes:
      offset: y and x, pixels; where it is not found, what the stage said.
      peak: correlation there.
      sharpness: by how much it stands out, in deviations of all other shifts.
      found: whether both are good enough to be believed.
    """

    offset: Place
    peak: float
    sharpness: float
    found: bool


def measure_offset(
    first: npt.NDArray[np.generic],
    second: npt.NDArray[np.generic],
    first_mask: Bools,
    second_mask: Bools,
    expected: Place,
    config: OffsetConfig,
) -> Offset:
    """Finds where the second tile lies in the first.

    Args:
      first: (h, w) image.
      second: (h, w) image.
      first_mask: (h, w), where it can be believed.
      second_mask: likewise.
      expected: y and x of the second's first pixel in the first's frame, by the stage.
      config: reach and rules.
    """
    search, factor = config.search, config.downsample
    cut = _Strip.around(first.shape, second.shape, expected, search)
    if cut is None:
        return Offset(expected, 0.0, 0.0, False)
    a, in_a, b, in_b = cut.take(first, first_mask, second, second_mask)
    a, b = (local_contrast(i, m, config.contrast_sigma) for i, m in ((a, in_a), (b, in_b)))
    least = config.min_overlap * min(first.size, second.size)
    small = [_shrink(i, m, factor) for i, m in ((a, in_a), (b, in_b))]
    middle = tuple(v / factor for v in cut.inner(expected))
    scores, _, corner = correlate_masked(
        *small[0], *small[1], (middle[0], middle[1]), -(-search // factor), least / factor**2
    )
    coarse, _, sharpness = _peak(scores, corner)
    place = (coarse[0] * factor, coarse[1] * factor)
    near = _Strip.around(a.shape, b.shape, place, 2 * factor)
    if near is None:
        return Offset(expected, 0.0, 0.0, False)
    scores, _, corner = correlate_masked(
        *near.take(a, in_a, b, in_b), near.inner(place), 2 * factor, least
    )
    fine, peak, _ = _peak(scores, corner)
    offset = cut.outer(near.outer(fine))
    found = peak >= config.min_peak and sharpness >= config.min_sharpness
    return Offset(offset if found else expected, peak, sharpness, found)


@dataclasses.dataclass(frozen=True)
class _Strip:
    """The parts of two images that overlap, or may: their first pixels and shapes."""

    first: tuple[int, int]
    second: tuple[int, int]
    first_shape: tuple[int, int]
    second_shape: tuple[int, int]

    @classmethod
    def around(
        cls,
        first_shape: tuple[int, ...],
        second_shape: tuple[int, ...],
        offset: Place,
        search: int,
    ) -> _Strip | None:
        spans = []
        for n, m, o in zip(first_shape, second_shape, offset, strict=True):
            low, high = max(0, int(o) - search), min(n, int(o) + m + search + 1)
            other_low, other_high = max(0, -int(o) - search), min(m, n - int(o) + search + 1)
            if high - low < 4 or other_high - other_low < 4:
                return None
            spans.append((low, other_low, high - low, other_high - other_low))
        y, x = spans
        return cls((y[0], x[0]), (y[1], x[1]), (y[2], x[2]), (y[3], x[3]))

    def take(
        self,
        first: npt.NDArray[np.generic],
        first_mask: Bools,
        second: npt.NDArray[np.generic],
        second_mask: Bools,
    ) -> tuple[npt.NDArray[np.generic], Bools, npt.NDArray[np.generic], Bools]:
        a, b = (
            tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
            for start, shape in (
                (self.first, self.first_shape),
                (self.second, self.second_shape),
            )
        )
        return first[a], first_mask[a], second[b], second_mask[b]

    def inner(self, offset: Place) -> Place:
        """An offset between the images, as one between their parts."""
        y, x = (o - a + b for o, a, b in zip(offset, self.first, self.second, strict=True))
        return y, x

    def outer(self, offset: Place) -> Place:
        """Inverse of `inner`."""
        y, x = (o + a - b for o, a, b in zip(offset, self.first, self.second, strict=True))
        return y, x


def _shrink(image: Real, mask: Bools, factor: int) -> tuple[Real, Bools]:
    if factor == 1:
        return image, mask
    h, w = (max(1, n // factor) for n in image.shape)
    cut = (slice(h * factor), slice(w * factor))
    small = cv2.resize(image[cut], (w, h), interpolation=cv2.INTER_AREA)
    share = cv2.resize(mask[cut].astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
    return small, share > 0.99


def _peak(scores: Reals, corner: tuple[int, int]) -> tuple[Place, float, float]:
    """Offset at the highest score, to parts of a pixel; the score; how far it stands out."""
    y, x = np.unravel_index(int(scores.argmax()), scores.shape)
    peak = float(scores[y, x])
    away = np.ones(scores.shape, np.bool_)
    away[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = False
    rest = scores[away & (scores > -1)]
    sharpness = (peak - rest.mean()) / max(float(rest.std()), 1e-6) if rest.size > 8 else 0.0
    place = [float(corner[0] + y), float(corner[1] + x)]
    for axis, at in enumerate((y, x)):
        if 0 < at < scores.shape[axis] - 1:
            line = scores[:, x] if axis == 0 else scores[y]
            place[axis] += vertex(*line[at - 1 : at + 2].tolist())
    return (place[0], place[1]), peak, float(sharpness)
