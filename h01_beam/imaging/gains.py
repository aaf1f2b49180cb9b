"""Gain and offset of each tile, so that neighbours look alike where they overlap.

    corrected = gain * grey + offset

What two tiles share has one mean and one spread, seen by either. First the gains are solved for,
as logs, from the spreads; then offsets, from the means. Both are robust sparse least squares; what
no pair ties down stays at gain 1 and offset 0. Logs, because least squares on the gains themselves
shrink all contrast to nothing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Place = tuple[float, float]

_ROUNDS = 10
# Grey levels beyond these shares of an overlap count as if they lay there.
_TAILS = (0.02, 0.98)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainConfig:
    """How gains and offsets are solved for.

    Attributes:
      min_pixels: that two tiles must share, or their pair does not count.
      min_spread: grey levels; overlaps with less tell the offset, but not the gain.
      gain_tolerance: by which a pair's ratio of spreads may disagree with the other pairs before
        it loses its pull; relative.
      level_tolerance: likewise for means, grey levels. Tiles that are brighter in their middle
        disagree by some levels around every ring of tiles: that is shared out, not disbelieved.
      anchor: weight of gain 1 and offset 0 against that of the best pair.
    """

    min_pixels: int = 1000
    min_spread: float = 4.0
    gain_tolerance: float = 0.2
    level_tolerance: float = 12.0
    anchor: float = 0.01

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.min_pixels < 1:
            raise ValueError(f'gains.min_pixels is {self.min_pixels}: must be 1 or more')
        for name in ('min_spread', 'gain_tolerance', 'level_tolerance', 'anchor'):
            if not getattr(self, name) > 0:
                raise ValueError(f'gains.{name} is {getattr(self, name)}: must be above 0')


class OverlapLevels(NamedTuple):
    """What two tiles show of the place that they share.

    Attributes:
      levels: (2, 2) float64: mean and spread in the first tile, then in the second; grey levels.
      pixels: that both show; with 0 the levels are 0.
    """

    levels: Reals
    pixels: int


@dataclasses.dataclass(frozen=True)
class Gains:
    """What makes tiles alike.

    Attributes:
      gain: (n,) float64.
      offset: (n,) float64, grey levels.
      gain_misfit: (m,) by which the spreads of a pair still differ, log of their ratio; NaN where
        a pair does not tell.
      level_misfit: (m,) by which the means still differ, grey levels; NaN likewise.
      outlier: (m,) pairs that were not believed.
    """

    gain: Reals
    offset: Reals
    gain_misfit: Reals
    level_misfit: Reals
    outlier: Bools


def measure_overlap_levels(
    first: Bytes, second: Bytes, first_mask: Bools, second_mask: Bools, offset: Place
) -> OverlapLevels:
    """Measures mean and spread of what two tiles share, in either.

    The darkest and brightest 2 % are cut back to their limits, so that neither dirt nor
    saturation decides.

    Args:
      first: (h, w) uint8.
      second: (h, w) uint8.
      first_mask: (h, w), what of it counts.
      second_mask: likewise.
      offset: of the second in the first, y and x pixels.
    """
    shift = [round(o) for o in offset]
    low = [max(0, s) for s in shift]
    high = [min(n, m + s) for n, m, s in zip(first.shape, second.shape, shift, strict=True)]
    if min(h - a for h, a in zip(high, low, strict=True)) < 1:
        return OverlapLevels(np.zeros((2, 2)), 0)
    a = tuple(slice(s, e) for s, e in zip(low, high, strict=True))
    b = tuple(slice(s - o, e - o) for s, e, o in zip(low, high, shift, strict=True))
    both = first_mask[a] & second_mask[b]
    if not both.any():
        return OverlapLevels(np.zeros((2, 2)), 0)
    found = np.array([_mean_and_spread(first[a][both]), _mean_and_spread(second[b][both])])
    return OverlapLevels(found, int(both.sum()))


def _mean_and_spread(values: Bytes) -> tuple[float, float]:
    counts = np.bincount(values, minlength=256)
    below = np.cumsum(counts) / len(values)
    grey = np.clip(np.arange(256.0), *np.searchsorted(below, _TAILS))
    mean = float(counts @ grey) / len(values)
    return mean, float(np.sqrt(counts @ (grey - mean) ** 2 / len(values)))


def solve_gains(tiles: int, pairs: Ints, levels: Reals, pixels: Ints, config: GainConfig) -> Gains:
    """Solves for gain and offset of all tiles at once.

    As a whole, tiles keep their brightness and contrast: the mean of the logs of gains is 0, and
    so is that of the shifts of the tiles' own means.

    Args:
      tiles: their number n.
      pairs: (m, 2) rows of two tiles.
      levels: (m, 2, 2) mean and spread of the shared place, in the first tile and the second.
      pixels: (m,) that they share; larger overlaps weigh more.
      config: tolerances and anchor.

    Raises:
      ValueError: arrays do not fit together, or a pair names a tile that is not there.
    """
    _check(tiles, pairs, levels, pixels)
    counts = pixels >= config.min_pixels
    weights = np.where(counts, pixels / max(1, int(pixels.max(initial=1))), 0.0)
    mean, spread = levels[..., 0], levels[..., 1]
    tells = weights * (spread.min(axis=1, initial=np.inf) >= config.min_spread)
    logs = np.log(np.maximum(spread, 1e-6))
    design = _design(tiles, pairs)
    wanted = logs[:, 0] - logs[:, 1]
    log_gain, gain_misfit = _solve(design, wanted, tells, config.gain_tolerance, config.anchor)
    gain = np.exp(log_gain)
    believed = ~((np.abs(gain_misfit) > config.gain_tolerance) & (tells > 0))
    # About the mean of a tile, a gain does not change its brightness, and offsets stay small.
    middle = _tile_means(tiles, pairs, mean, weights * believed)
    seen = gain[pairs] * (mean - middle[pairs]) + middle[pairs]
    shift, level_misfit = _solve(
        design, seen[:, 0] - seen[:, 1], weights * believed, config.level_tolerance, config.anchor
    )
    outlier = counts & (~believed | (np.abs(level_misfit) > config.level_tolerance))
    return Gains(
        gain,
        middle * (1 - gain) + shift,
        np.where(tells > 0, gain_misfit, np.nan),
        np.where(counts, level_misfit, np.nan),
        outlier,
    )


def apply_gain(image: Bytes, gain: float, offset: float) -> Bytes:
    """Multiplies and adds.

    Args:
      image: (h, w) uint8.
      gain: of its tile.
      offset: of its tile, grey levels.

    Returns:
      (h, w) uint8, rounded and clipped.
    """
    table = np.clip(np.rint(gain * np.arange(256.0) + offset), 0, 255).astype(np.uint8)
    return table[image]


def _check(tiles: int, pairs: Ints, levels: Reals, pixels: Ints) -> None:
    m = len(pairs)
    if pairs.shape != (m, 2) or levels.shape != (m, 2, 2) or pixels.shape != (m,):
        raise ValueError(
            f'pairs {pairs.shape}, levels {levels.shape} and pixels {pixels.shape} must be '
            '(m, 2), (m, 2, 2) and (m,)'
        )
    if m and not (0 <= pairs.min() and pairs.max() < tiles):
        raise ValueError(f'pairs name tiles {pairs.min()} to {pairs.max()}: there are {tiles}')
    if not np.isfinite(levels).all():
        raise ValueError('levels are not all finite: must be 0, with 0 pixels, where none are')


def _design(tiles: int, pairs: Ints) -> scipy.sparse.csr_matrix:
    """(m, n) differences second less first."""
    rows = np.arange(len(pairs))
    ones = np.ones(len(pairs))
    entries = (
        np.concatenate([-ones, ones]),
        (np.concatenate([rows, rows]), np.concatenate([pairs[:, 0], pairs[:, 1]])),
    )
    return scipy.sparse.csr_matrix(entries, shape=(len(pairs), tiles))


def _solve(
    design: scipy.sparse.csr_matrix,
    wanted: Reals,
    weights: Reals,
    tolerance: float,
    anchor: float,
) -> tuple[Reals, Reals]:
    """(n,) unknowns whose differences are those wanted, and (m,) what is left of them."""
    found = np.zeros(design.shape[1])
    misfit = wanted
    trust = np.ones(len(wanted))
    hold = anchor**2 * scipy.sparse.identity(design.shape[1])
    for step in range(_ROUNDS):
        weighted = scipy.sparse.diags(weights * trust) @ design
        normal = (design.T @ weighted + hold).tocsc()
        found = scipy.sparse.linalg.splu(normal).solve(weighted.T @ wanted)
        misfit = wanted - design @ found
        # Lenient at first: one wrong pair makes its neighbours look wrong.
        limit = tolerance * 2.0 ** max(0, 4 - step)
        trust = 1 / (1 + (misfit / limit) ** 2) ** 2
    return found, misfit


def _tile_means(tiles: int, pairs: Ints, mean: Reals, weights: Reals) -> Reals:
    """(n,) mean grey level of each tile over its overlaps; of tiles without, that of all."""
    weight = np.repeat(weights, 2)
    total = np.bincount(pairs.ravel(), weight * mean.ravel(), minlength=tiles)
    count = np.bincount(pairs.ravel(), weight, minlength=tiles)
    typical = total.sum() / count.sum() if count.sum() > 0 else 0.0
    return np.where(count > 0, total / np.where(count > 0, count, 1), typical)
