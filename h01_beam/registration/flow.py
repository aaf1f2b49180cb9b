"""Flow between two sections: where each place of one is found in the other.

Patches around a grid of nodes are looked up by masked normalized cross-correlation, from coarse to
fine: each level looks around what the one before found, which has been cleaned and smoothed.

    fixed, moving  ->  local contrast  ->  [ warp moving by what is known
                                             correlate patches, find peaks
                                             drop what is doubtful, fill ]  for each level

What is doubtful at the last level is NaN in the result, never a guess: of sections that have
nothing to do with each other, the default rules let pass one node in a hundred. The rules by which
flow is judged (peak ratio, deviation from the neighbours, size of connected parts) are those of
SOFIMA (Januszewski et al., github.com/google-research/sofima); the correlation and the levels are
our own.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import cv2
import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy import ndimage

from h01_beam.registration.maps import CoordinateMap

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_BATCH = 64
# Contrast beyond this many deviations (dirt, holes) is cut off, so that it cannot decide alone.
_MOST_CONTRAST = 3.0
_SMOOTHING_REACH = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowLevel:
    """One step from coarse to fine; lengths in pixels of the downsampled image.

    Attributes:
      downsample: factor on the images that the flow is asked for.
      patch: side of the square that is looked up.
      search: how far from the known place it is looked for, to every side.
      stride: between its nodes; None: that of the flow.
    """

    downsample: int
    patch: int
    search: int
    stride: int | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.downsample < 1:
            raise ValueError(f'flow.levels.downsample is {self.downsample}: must be 1 or more')
        if self.patch < 8 or self.patch % 2:
            raise ValueError(f'flow.levels.patch is {self.patch}: must be even and at least 8')
        if self.search < 2:
            raise ValueError(f'flow.levels.search is {self.search}: must be 2 pixels or more')
        if self.stride is not None and self.stride < 1:
            raise ValueError(f'flow.levels.stride is {self.stride}: must be 1 pixel or more')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How flow is estimated; lengths in pixels of the images that it is asked for.

    Attributes:
      stride: between nodes.
      levels: from coarse to fine.
      contrast_sigma: of the Gaussian windows in which contrast is made even.
      min_valid: share of a patch that must be tissue, in both sections.
      min_peak: least correlation.
      min_peak_ratio: of the highest peak to the next.
      max_deviation: from the median of the nodes around (5 x 5).
      min_component: connected nodes that deviate less; smaller islands are dropped.
    """

    stride: int = 16
    levels: tuple[FlowLevel, ...] = (
        FlowLevel(downsample=2, patch=64, search=12),
        FlowLevel(downsample=1, patch=80, search=10),
        FlowLevel(downsample=1, patch=48, search=5),
    )
    contrast_sigma: float = 12.0
    min_valid: float = 0.5
    min_peak: float = 0.2
    min_peak_ratio: float = 1.1
    max_deviation: float = 3.0
    min_component: int = 12

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.stride < 1:
            raise ValueError(f'flow.stride is {self.stride}: must be 1 pixel or more')
        if not self.levels:
            raise ValueError('flow.levels is empty: must hold at least one level')
        last = self.levels[-1].stride
        if last not in (None, self.stride):
            raise ValueError(
                f'flow.levels ends with stride {last}: must be that of the flow, {self.stride}; '
                'leave it out'
            )
        for name in ('contrast_sigma', 'max_deviation'):
            if not getattr(self, name) > 0:
                raise ValueError(f'flow.{name} is {getattr(self, name)}: must be above 0 pixels')
        for name in ('min_valid', 'min_peak'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'flow.{name} is {getattr(self, name)}: must lie in [0, 1]')
        if self.min_peak_ratio < 1:
            raise ValueError(f'flow.min_peak_ratio is {self.min_peak_ratio}: must be at least 1')

    def pitch(self, level: FlowLevel) -> int:
        """Pixels of the images between the nodes of a level."""
        return (level.stride or self.stride) * level.downsample

    @property
    def unit(self) -> int:
        """Pixels of the images after which the nodes of all levels repeat."""
        return math.lcm(self.stride, *(self.pitch(level) for level in self.levels))

    @property
    def reach(self) -> int:
        """How far from a place its flow depends on the images; pixels."""
        return self.reach_from(0) + int(4 * self.contrast_sigma) + 1

    def reach_from(self, first: int) -> int:
        """How far from a place its flow depends on the images of levels from the `first` on."""
        return sum(
            (level.patch // 2 + level.search) * level.downsample + self._around(level)
            for level in self.levels[first:]
        )

    def nodes_from(self, first: int) -> int:
        """How far from a place its flow depends on the nodes of the `first` level."""
        return self._around(self.levels[first]) + self.reach_from(first + 1)

    def _around(self, level: FlowLevel) -> int:
        # Smoothing, the median of the nodes around, and one for the interpolation between nodes.
        return (int(_SMOOTHING_REACH) + 3) * self.pitch(level)


@dataclasses.dataclass(frozen=True)
class Flow:
    """Where places of the fixed section are found in the moving one.

    Attributes:
      map: fixed -> moving; NaN where it is not known.
      peak: (h, w) float32, correlation at the highest peak; 0 where nothing was looked up.
      ratio: (h, w) float32, of it to the next peak.
    """

    map: CoordinateMap
    peak: Real
    ratio: Real

    @property
    def known(self) -> Bools:
        return np.isfinite(self.map.vectors[0])


def estimate_flow(
    fixed: npt.NDArray[np.generic],
    moving: npt.NDArray[np.generic],
    fixed_mask: Bools,
    moving_mask: Bools,
    config: FlowConfig,
    wanted: tuple[slice, slice] | None = None,
) -> Flow:
    """Finds the places of one section in another.

    Args:
      fixed: (h, w) image.
      moving: (h, w) image, roughly aligned: within the reach of the coarsest level's search.
      fixed_mask: where `fixed` shows tissue.
      moving_mask: where `moving` does.
      config: levels and rules.
      wanted: rows and columns of pixels at whose nodes flow is asked for; None for all. There it is
        the same; elsewhere only what it depends on is looked up.

    Returns:
      flow at the nodes 0, stride, 2 stride, ... of both axes.

    Raises:
      ValueError: shapes differ.
    """
    shapes = {a.shape for a in (fixed, moving, fixed_mask, moving_mask)}
    if len(shapes) != 1 or len(fixed.shape) != 2:
        raise ValueError(
            f'fixed, moving and their masks have shapes {sorted(shapes)}: must be one (h, w)'
        )
    finest = [
        (local_contrast(image, mask, config.contrast_sigma), mask)
        for image, mask in ((fixed, fixed_mask), (moving, moving_mask))
    ]
    nodes = tuple(-(-n // config.stride) for n in fixed.shape)
    known = np.zeros((2, *nodes), np.float32)
    for n, level in enumerate(config.levels):
        factor, pitch = level.downsample, config.pitch(level)
        (a, in_a), (b, in_b) = (_shrink(image, mask, factor) for image, mask in finest)
        grid = tuple(-(-s * factor // pitch) for s in a.shape)
        coarser = pitch / config.stride
        found, peak, ratio = _look_up(
            a, b, in_a, in_b, _regrid(known, coarser, grid) / np.float32(factor), level,
            pitch // factor, config, _near_wanted(grid, wanted, pitch, config.nodes_from(n)),
        )  # fmt: skip
        good = _trusted(found, peak, ratio, config)
        found = np.where(good, found, np.float32(np.nan))
        if n + 1 < len(config.levels):
            filled = fill_smoothly(found, sigma=1.0) * np.float32(factor)
            known = _regrid(filled, 1 / coarser, nodes)
    scale = np.float32(factor)
    start = (factor - 1) / 2
    flow = CoordinateMap(found * scale, (start, start), float(pitch))
    return Flow(flow, peak, ratio)


def local_contrast(image: npt.NDArray[np.generic], mask: Bools, sigma: float) -> Real:
    """Makes mean and deviation even over windows; 0 outside of the mask.

    Returns:
      (h, w) float32 of about mean 0 and variance 1.
    """
    weight = mask.astype(np.float32)
    values = image.astype(np.float32) * weight

    def mean(array: Real) -> Real:
        return cv2.GaussianBlur(array, (0, 0), sigma)

    total = mean(weight) + np.float32(1e-3)
    centred = (values - mean(values) / total) * weight
    spread = np.sqrt(mean(centred * centred) / total) + np.float32(1e-2)
    return np.clip(centred / spread, -_MOST_CONTRAST, _MOST_CONTRAST) * weight


def fill_smoothly(vectors: Real, sigma: float) -> Real:
    """(2, h, w) vectors smoothed over a Gaussian of nodes, NaN filled from those around.

    Far from what is known, the mean of all that is known around; 0 if nothing is.
    """
    known = np.isfinite(vectors[0])
    if not known.any():
        return np.zeros_like(vectors)
    weight = _blur(known.astype(np.float32), sigma)
    around = _mean_around(known.astype(np.float32), sigma)
    faith = np.float32(1e-3)
    parts = []
    for vector in vectors:
        values = np.where(known, vector, np.float32(0))
        typical = _mean_around(values, sigma) / np.maximum(around, np.float32(1e-6))
        parts.append((_blur(values, sigma) + faith * typical) / (weight + faith))
    return np.stack(parts)


def _mean_around(array: Real, sigma: float) -> Real:
    side = 2 * int(_SMOOTHING_REACH * sigma) + 1
    return cv2.blur(array, (side, side), borderType=cv2.BORDER_CONSTANT)


def _blur(array: Real, sigma: float) -> Real:
    return ndimage.gaussian_filter(array, sigma, mode='constant', truncate=_SMOOTHING_REACH)


def _shrink(image: Real, mask: Bools, factor: int) -> tuple[Real, Bools]:
    """Means over squares that lie within the mask; others are masked."""
    if factor == 1:
        return image, mask
    h, w = (n // factor for n in image.shape)
    cut = (slice(h * factor), slice(w * factor))
    squares = (h, factor, w, factor)
    whole = np.asarray(mask[cut].reshape(squares).all(axis=(1, 3)))
    return image[cut].reshape(squares).mean(axis=(1, 3), dtype=np.float32) * whole, whole


def _regrid(nodes: Real, factor: float, shape: tuple[int, ...]) -> Real:
    """Values (2, h, w) at nodes `factor` times as far apart, by linear interpolation."""
    if factor == 1 and nodes.shape[1:] == shape:
        return nodes
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing='ij')
    place = (x * np.float32(factor), y * np.float32(factor))
    parts = [
        cv2.remap(
            np.ascontiguousarray(v), *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        for v in nodes
    ]
    return np.stack(parts)


# ------------------------------------------------------------------ one level


def _look_up(
    fixed: Real,
    moving: Real,
    fixed_mask: Bools,
    moving_mask: Bools,
    known: Real,
    level: FlowLevel,
    stride: int,
    config: FlowConfig,
    near: Bools,
) -> tuple[Real, Real, Real]:
    """Looks up a patch around each `near` node; vectors (2, h, w), NaN without a peak; ratios."""
    patch, search = level.patch, level.search
    moved, moved_mask = _warp_by(moving, moving_mask, known, stride)
    pad = patch // 2 + search
    a, b, in_a, in_b = (
        np.pad(array.astype(np.float32), pad) for array in (fixed, moved, fixed_mask, moved_mask)
    )
    corners = np.stack(
        np.meshgrid(*(stride * np.arange(n) for n in known.shape[1:]), indexing='ij'), axis=-1
    ).reshape(-1, 2)
    # Corner (y, x) of the window of the moving section; the patch begins `search` further in.
    least = config.min_valid * patch * patch
    tissue = [cv2.integral(m) for m in (in_a, in_b)]
    enough = near.ravel().copy()
    for table in tissue:
        enough &= _box_sum(table, corners + search, patch, 0)[:, 0, 0] >= least
    vectors = np.full((len(corners), 2), np.nan, np.float32)
    peaks, ratios = np.zeros((2, len(corners)), np.float32)
    energy = cv2.integral(b * b)
    for begin in range(0, int(enough.sum()), _BATCH):
        rows = np.flatnonzero(enough)[begin : begin + _BATCH]
        scores = _correlate(a, b, energy, corners[rows], patch, search)
        vectors[rows], peaks[rows], ratios[rows] = _find_peaks(scores, search)
    shape = known.shape[1:]
    vectors = vectors.T.reshape(2, *shape) + known
    return vectors, peaks.reshape(shape), ratios.reshape(shape)


def _near_wanted(
    grid: tuple[int, ...], wanted: tuple[slice, slice] | None, pitch: int, reach: int
) -> Bools:
    """(h, w) nodes, `pitch` pixels apart, that lie at most `reach` from what is asked for."""
    if wanted is None:
        return np.ones(grid, np.bool_)
    y, x = (
        (np.arange(n) * pitch >= part.start - reach) & (np.arange(n) * pitch < part.stop + reach)
        for n, part in zip(grid, wanted, strict=True)
    )
    return np.asarray(y[:, None] & x)


def _warp_by(image: Real, mask: Bools, known: Real, stride: int) -> tuple[Real, Bools]:
    if not known.any():
        return image, mask
    h, w = image.shape
    y, x = np.meshgrid(
        np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32), indexing='ij'
    )
    dy, dx = _regrid(known, 1 / stride, (h, w))
    place = (x + dx, y + dy)
    moved = cv2.remap(image, *place, cv2.INTER_LINEAR)
    whole = cv2.remap(mask.astype(np.float32), *place, cv2.INTER_LINEAR) > 0.99
    return moved * whole, whole


def _box_sum(table: Reals, corners: Ints, side: int, search: int) -> Reals:
    """(n, 2 search + 1, 2 search + 1) sums over squares from an integral image."""
    steps = np.arange(2 * search + 1)
    y = corners[:, 0, None, None] + steps[:, None]
    x = corners[:, 1, None, None] + steps
    return table[y + side, x + side] - table[y, x + side] - table[y + side, x] + table[y, x]


def _correlate(a: Real, b: Real, energy: Reals, corners: Ints, patch: int, search: int) -> Real:
    """(n, 2 search + 1, 2 search + 1) normalized correlation of patches with their windows."""
    size = scipy.fft.next_fast_len(patch + 2 * search, real=True)
    windows = np.lib.stride_tricks.sliding_window_view(b, (patch + 2 * search,) * 2)
    patches = np.lib.stride_tricks.sliding_window_view(a, (patch, patch))
    of_b = windows[corners[:, 0], corners[:, 1]]
    of_a = patches[corners[:, 0] + search, corners[:, 1] + search]
    spectrum = scipy.fft.rfft2(of_b, (size, size))
    spectrum *= np.conj(scipy.fft.rfft2(of_a, (size, size)))
    wanted = 2 * search + 1
    scores = scipy.fft.irfft2(spectrum, (size, size))[:, :wanted, :wanted]
    norm = _box_sum(energy, corners, patch, search)
    norm *= (of_a * of_a).sum(axis=(1, 2), dtype=np.float64)[:, None, None]
    return (scores / np.sqrt(np.maximum(norm, 1e-6))).astype(np.float32)


def _find_peaks(scores: Real, search: int) -> tuple[Real, Real, Real]:
    """Offset (n, 2) of the highest peak, its height, and its ratio to the next one.

    NaN for peaks at the border of the window: the true one may lie beyond.
    """
    n, side, _ = scores.shape
    rows = np.arange(n)
    y, x = np.divmod(scores.reshape(n, -1).argmax(axis=1), side)
    peak = scores[rows, y, x]
    inner = (y > 0) & (y < side - 1) & (x > 0) & (x < side - 1)
    iy, ix = np.clip(y, 1, side - 2), np.clip(x, 1, side - 2)
    offset = np.stack(
        [
            iy - search + _vertex(*(scores[rows, iy + d, ix] for d in (-1, 0, 1))),
            ix - search + _vertex(*(scores[rows, iy, ix + d] for d in (-1, 0, 1))),
        ],
        axis=1,
    )
    near = max(3, search // 4)
    steps = np.arange(side)
    beside = np.abs(steps - y[:, None])[:, :, None] <= near
    beside = beside & (np.abs(steps - x[:, None])[:, None, :] <= near)
    second = np.where(beside, np.float32(-1), scores).max(axis=(1, 2))
    ratio = peak / np.maximum(second, np.float32(1e-3))
    return np.where(inner[:, None], offset, np.nan).astype(np.float32), peak, ratio


def _vertex(before: Real, at: Real, after: Real) -> Real:
    """Where a parabola through three values is highest, in [-0.5, 0.5] around the middle."""
    bend = np.maximum(2 * at - before - after, np.float32(1e-6))
    return np.clip(0.5 * (after - before) / bend, -0.5, 0.5)


def _trusted(vectors: Real, peak: Real, ratio: Real, config: FlowConfig) -> Bools:
    """Which nodes' vectors keep all rules."""
    good = np.isfinite(vectors[0]) & (peak >= config.min_peak) & (ratio >= config.min_peak_ratio)
    around = np.pad(
        np.where(good, vectors, np.nan), ((0, 0), (2, 2), (2, 2)), constant_values=np.nan
    )
    around = np.lib.stride_tricks.sliding_window_view(around, (5, 5), axis=(1, 2))
    around = around.reshape(*vectors.shape, 25)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # nodes with nothing around
        median = np.nanmedian(around, axis=-1)
    with np.errstate(invalid='ignore'):
        good &= np.hypot(*(vectors - median)) <= config.max_deviation
    parts, _ = ndimage.label(good, np.ones((3, 3)))
    return good & (np.bincount(parts.ravel())[parts] >= config.min_component)
