r"""Rough alignment without features: one thumbnail is looked up in another, turned in every way.

    second thumbnail -> turned by 0, 5, ..., 355 degrees, as it is and upside down
                     -> correlated with the first at all shifts          few pixels
                     -> the best few once more: finer turns, then affine more pixels

What decides is how far the best turn stands out of all others: each turn's best shift is a draw
from what chance gives, so a stranger's best turn lies near the rest. Correlation is weighed by the
root of the pixels it rests on, which makes draws of large and of small overlaps comparable. What
does not stand out is None, never a guess.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.registration.correlation import correlate_masked, vertex
from h01_beam.registration.flow import local_contrast
from h01_beam.registration.maps import invert_affine

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]

# Shares of a step by which the second look turns further; pixels to every side that it shifts.
_FINER_TURNS, _FINER_SHIFT = (-0.5, -0.25, 0.0, 0.25, 0.5), 4
_AFFINE_ROUNDS, _AFFINE_CHANGE, _AFFINE_BLUR = 60, 1e-4, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookupConfig:
    """How thumbnails are looked up in each other.

    Attributes:
      side: pixels that the longer side of a thumbnail is reduced to for the first look.
      fine_side: and for the second.
      step_deg: between turns of the first look.
      allow_mirrored: whether sections may have been picked up upside down.
      scales: of the second section that are tried.
      max_shift: of the middles of both, as a share of the longer side.
      min_overlap: tissue that both must show, as a share of the smaller section's.
      contrast_sigma: of the Gaussian windows in which contrast is made even; pixels of either look.
      candidates: turns that get a second look.
      min_sharpness: by how much the best turn stands out, in deviations of all others.
      min_peak: least correlation after the second look.
      max_stretch: by which the affine map may stretch or shrink what was found.
    """

    side: int = 96
    fine_side: int = 192
    step_deg: float = 5.0
    allow_mirrored: bool = True
    scales: tuple[float, ...] = (1.0,)
    max_shift: float = 0.5
    min_overlap: float = 0.3
    contrast_sigma: float = 6.0
    candidates: int = 3
    min_sharpness: float = 8.0
    min_peak: float = 0.1
    max_stretch: float = 0.12

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.side < 32:
            raise ValueError(f'lookup.side is {self.side}: must be 32 pixels or more')
        if self.fine_side < self.side:
            raise ValueError(
                f'lookup.fine_side is {self.fine_side}: must be at least lookup.side, {self.side}'
            )
        if not 0 < self.step_deg <= 30:
            raise ValueError(f'lookup.step_deg is {self.step_deg}: must lie in (0, 30] degrees')
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f'lookup.scales is {self.scales}: must hold factors above 0, say 1.0')
        if self.candidates < 1:
            raise ValueError(f'lookup.candidates is {self.candidates}: must be 1 or more')
        for name in ('max_shift', 'min_overlap', 'min_peak', 'max_stretch'):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f'lookup.{name} is {getattr(self, name)}: must lie in (0, 1)')
        for name in ('contrast_sigma', 'min_sharpness'):
            if not getattr(self, name) > 0:
                raise ValueError(f'lookup.{name} is {getattr(self, name)}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Lookup:
    """How one section lies in another.

    Attributes:
      affine: (2, 3), first -> second, for (y, x, 1) in pixels of the thumbnails.
      flipped: whether one of them is the mirror image of the other.
      peak: correlation there, of the second look.
      sharpness: by how much the turn stands out of all others, in their deviations.
    """

    affine: Reals
    flipped: bool
    peak: float
    sharpness: float


@dataclasses.dataclass(frozen=True)
class _Try:
    """One way to lay the second section on the first: its map, second -> first, and how good."""

    affine: Reals
    angle: float
    flipped: bool
    strength: float
    peak: float


def look_up(
    first: Image, second: Image, first_mask: Bools, second_mask: Bools, config: LookupConfig
) -> Lookup | None:
    """Finds how one section lies in another; None if that does not stand out of chance.

    Args:
      first: (h, w) uint8 thumbnail.
      second: likewise; its shape may differ.
      first_mask: (h, w), where it shows tissue.
      second_mask: likewise.
      config: reach and rules.

    Raises:
      ValueError: a mask has not the shape of its image.
    """
    for name, image, mask in (('first', first, first_mask), ('second', second, second_mask)):
        if image.ndim != 2 or image.shape != mask.shape:
            raise ValueError(
                f'{name}_mask has shape {mask.shape}: must be that of {name}, {image.shape}'
            )
    if min(first_mask.sum(), second_mask.sum()) < 64:
        return None
    coarse, fine = (
        _Look.at(first, second, first_mask, second_mask, side, config)
        for side in (config.side, config.fine_side)
    )
    tries = _all_turns(coarse, config)
    chosen = _best_few(tries, config)
    finer = [_refined(fine, one, config) for one in chosen]
    best = max(range(len(chosen)), key=lambda n: finer[n].strength)
    found, sharpness = finer[best], _sharpness(chosen[best], tries, config)
    if not (sharpness >= config.min_sharpness and found.peak >= config.min_peak):
        return None
    affine = fine.stretched(found.affine, config.max_stretch)
    return Lookup(invert_affine(affine), found.flipped, found.peak, sharpness)


def _best_few(tries: Sequence[_Try], config: LookupConfig) -> list[_Try]:
    """The strongest, none of them a neighbour of a stronger one."""
    chosen: list[_Try] = []
    for one in sorted(tries, key=lambda t: t.strength, reverse=True):
        if len(chosen) < config.candidates and all(_differ(one, c, config) for c in chosen):
            chosen.append(one)
    return chosen


def _sharpness(best: _Try, tries: Sequence[_Try], config: LookupConfig) -> float:
    """By how much one try is stronger than all that are not its neighbours, in their deviations."""
    rest = np.array([t.strength for t in tries if _differ(t, best, config)])
    return float((best.strength - rest.mean()) / max(float(rest.std()), 1e-6)) if rest.size else 0.0


def _differ(a: _Try, b: _Try, config: LookupConfig) -> bool:
    """Whether two tries are of other hands or more than two steps apart."""
    apart = abs((a.angle - b.angle + 180) % 360 - 180)
    return a.flipped != b.flipped or apart > 2 * config.step_deg


def _all_turns(look: _Look, config: LookupConfig) -> list[_Try]:
    """The best shift of every turn, of either hand and of every scale."""
    angles = np.arange(0, 360 - 1e-6, config.step_deg).tolist()
    hands = (False, True) if config.allow_mirrored else (False,)
    search = round(config.max_shift * config.side)
    return [
        look.best_shift(look.laid(angle, flipped, scale), search, angle, flipped)
        for flipped, scale, angle in itertools.product(hands, config.scales, angles)
    ]


def _refined(look: _Look, coarse: _Try, config: LookupConfig) -> _Try:
    """The best of turns and scales near one, with more pixels."""
    scales = [1.0]
    if len(config.scales) > 1:
        step = np.diff(np.sort(config.scales)).min() / 2
        scales = [1 - step, 1.0, 1 + step]
    finer = []
    for part, scale in itertools.product(_FINER_TURNS, scales):
        turn = part * config.step_deg
        affine = look.turned(coarse.affine, turn, scale)
        finer.append(look.best_shift(affine, _FINER_SHIFT, coarse.angle + turn, coarse.flipped))
    return max(finer, key=lambda t: t.strength)


@dataclasses.dataclass(frozen=True)
class _Look:
    """Two thumbnails with even contrast and few pixels; maps stay those of the thumbnails.

    Attributes:
      first, second, first_mask, second_mask: the images.
      shrunk: (2, 2), by how much, y and x, either.
      middles: (2, 2) of the thumbnails.
      least: pixels that both must show.
    """

    first: Real
    second: Real
    first_mask: Bools
    second_mask: Bools
    shrunk: Reals
    middles: Reals
    least: float

    @classmethod
    def at(
        cls,
        first: Image,
        second: Image,
        first_mask: Bools,
        second_mask: Bools,
        side: int,
        config: LookupConfig,
    ) -> _Look:
        factor = max(1.0, max(*first.shape, *second.shape) / side)
        a, in_a = _shrink(first, first_mask, factor)
        b, in_b = _shrink(second, second_mask, factor)
        shapes = np.array([first.shape, second.shape], np.float64)
        return cls(
            local_contrast(a, in_a, config.contrast_sigma),
            local_contrast(b, in_b, config.contrast_sigma),
            in_a,
            in_b,
            shapes / [a.shape, b.shape],
            (shapes - 1) / 2,
            config.min_overlap * float(min(in_a.sum(), in_b.sum())),
        )

    def laid(self, angle: float, flipped: bool, scale: float) -> Reals:
        """The map second -> first by which both middles meet."""
        linear = scale * _rotation(angle) @ np.diag([1.0, -1.0 if flipped else 1.0])
        return np.c_[linear, self.middles[0] - linear @ self.middles[1]]

    def turned(self, affine: Reals, angle: float, scale: float) -> Reals:
        """A map turned further about the middle of the second section."""
        linear = scale * _rotation(angle) @ affine[:, :2]
        middle = affine[:, :2] @ self.middles[1] + affine[:, 2]
        return np.c_[linear, middle - linear @ self.middles[1]]

    def best_shift(self, affine: Reals, search: int, angle: float, flipped: bool) -> _Try:
        """Shifts a map by up to `search` pixels of this look to where it fits best."""
        small = self._shrunk_map(affine)
        moved, inside, corner = _warped(self.second, self.second_mask, small)
        scores, counts, start = correlate_masked(
            self.first, self.first_mask, moved, inside, corner, search, self.least
        )
        strengths = np.where(scores > -1, scores * np.sqrt(counts), -1.0)
        y, x = np.unravel_index(int(strengths.argmax()), scores.shape)
        shift = np.array([start[0] + y - corner[0], start[1] + x - corner[1]], np.float64)
        for axis, at in enumerate((y, x)):
            line = scores[:, x] if axis == 0 else scores[y]
            if 0 < at < len(line) - 1:
                shift[axis] += vertex(*line[at - 1 : at + 2].tolist())
        affine = affine.copy()
        affine[:, 2] += shift * self.shrunk[0]
        return _Try(affine, angle, flipped, float(strengths[y, x]), float(scores[y, x]))

    def stretched(self, affine: Reals, most: float) -> Reals:
        """The affine map near a rigid one that correlates best; or the rigid one."""
        start = invert_affine(self._shrunk_map(affine))
        xy = np.ascontiguousarray(start[::-1][:, [1, 0, 2]], np.float32)
        rule = (
            cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _AFFINE_ROUNDS, _AFFINE_CHANGE,
        )  # fmt: skip
        try:
            _, xy = cv2.findTransformECC(
                self.first, self.second, xy, cv2.MOTION_AFFINE, rule,
                self.second_mask.astype(np.uint8), _AFFINE_BLUR,
            )  # fmt: skip
        except cv2.error:  # It did not converge.
            return affine
        found = invert_affine(np.asarray(xy, np.float64)[::-1][:, [1, 0, 2]])
        change = found[:, :2] @ np.linalg.inv(self._shrunk_map(affine)[:, :2])
        moved = (found - self._shrunk_map(affine)) @ [*(self.middles[1] / self.shrunk[1]), 1.0]
        if np.abs(change - np.eye(2)).max() > most or np.abs(moved).max() > 2 * _FINER_SHIFT:
            return affine
        return self._whole_map(found)

    def _shrunk_map(self, affine: Reals) -> Reals:
        """A map of thumbnails for pixels of this look: p is at (p + 1/2) / shrunk - 1/2."""
        of, to = self.shrunk[1], self.shrunk[0]
        linear = affine[:, :2] * of / to[:, None]
        shift = (affine[:, :2] @ (0.5 * of - 0.5) + affine[:, 2] + 0.5) / to - 0.5
        return np.c_[linear, shift]

    def _whole_map(self, small: Reals) -> Reals:
        """Inverse of `_shrunk_map`."""
        of, to = self.shrunk[1], self.shrunk[0]
        linear = small[:, :2] * to[:, None] / of
        return np.c_[linear, (small[:, 2] + 0.5) * to - 0.5 - linear @ (0.5 * of - 0.5)]


def _rotation(angle: float) -> Reals:
    a = np.deg2rad(angle)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


def _shrink(image: Image, mask: Bools, factor: float) -> tuple[Real, Bools]:
    """Means over tissue, of about `factor` pixels a side; masked where that is less than half."""
    h, w = (max(1, round(n / factor)) for n in image.shape)
    weight = mask.astype(np.float32)
    share = cv2.resize(weight, (w, h), interpolation=cv2.INTER_AREA)
    values = cv2.resize(image * weight, (w, h), interpolation=cv2.INTER_AREA)
    inside = share > 0.5
    return np.where(inside, values / np.maximum(share, 1e-3), 0).astype(np.float32), inside


def _warped(image: Real, mask: Bools, affine: Reals) -> tuple[Real, Bools, tuple[int, int]]:
    """An image laid by a map, on the smallest canvas that holds it; and that canvas's corner."""
    h, w = image.shape
    ends = np.array([[y, x, 1.0] for y in (0, h - 1) for x in (0, w - 1)]) @ affine.T
    low = np.floor(ends.min(axis=0)).astype(int)
    size = np.ceil(ends.max(axis=0)).astype(int) - low + 1
    local = affine - np.c_[np.zeros((2, 2)), low]
    xy = local[::-1][:, [1, 0, 2]]
    moved = cv2.warpAffine(image, xy, (int(size[1]), int(size[0])))
    inside = cv2.warpAffine(mask.astype(np.float32), xy, (int(size[1]), int(size[0]))) > 0.9
    return moved * inside, inside, (int(low[0]), int(low[1]))
