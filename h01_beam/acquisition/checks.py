"""Whether a tile is any good: measurements of its pixels, and what follows from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.acquisition.decode import to_uint8
from h01_beam.tables import Columns

# Windows of the power spectrum, pixels; and bands of spatial frequency in cycles per pixel: of
# membranes and organelles, of the finest detail, and where only noise is left.
WINDOW = 256
COARSE, FINE, NOISE = (0.02, 0.08), (0.12, 0.3), (0.42, 0.5)
# Line jitter: largest displacement of two rows that is looked for, width of the high pass, and
# the correlation below which two rows tell nothing. Pixels.
REACH, HIGH_PASS, MIN_CORRELATION = 8, 31, 0.2
# Arrays beside the file, most of them float32.
BYTES_PER_PIXEL = 24
# A section is compared with itself only if this many of its tiles have a focus.
MIN_TILES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Thresholds of tiles. Pairs are (suspect, bad): a tile beyond the first, the second.

    Attributes:
      contrast: least spread of grey levels (1st to 99th percentile, of 255).
      saturation: largest share of pixels that are 0 or 255.
      structure: least power of tissue over that of noise; below, the tile is blank, resin or tape
        only, and suspect. White noise has 0, noisy tissue 20, good images 500 and more.
      focus: least power of fine detail over that of coarse structure, without noise. It depends on
        the pixel size: at 4 to 8 nm, sharp images have 0.004 to 0.07, and a blur with a sigma of
        2 pixels takes nine tenths of it.
      section_focus: suspect is also a tile whose focus is less than this share of its section's
        median.
      line_jitter: largest displacement between adjacent rows, pixels.
      grey_range: grey levels that count as 0 and 255; 16-bit tiles need it.
      batch: tiles of one block of work; by default one field of a 61-beam microscope.
    """

    contrast: tuple[float, float] = (20.0, 6.0)
    saturation: tuple[float, float] = (0.05, 0.5)
    structure: float = 5.0
    focus: tuple[float, float] = (1e-3, 1e-4)
    section_focus: float = 0.3
    line_jitter: tuple[float, float] = (1.0, 3.0)
    grey_range: tuple[float, float] | None = None
    batch: int = 61

    def __post_init__(self) -> None:
        for name in ('contrast', 'focus', 'saturation', 'line_jitter'):
            first, second = getattr(self, name)
            low, high = (second, first) if name in ('contrast', 'focus') else (first, second)
            if not 0 <= low <= high < math.inf:
                raise ValueError(
                    f'{name} is {(first, second)}: must be (suspect, bad), not negative, the bad '
                    f'one the {"lower" if first == high else "higher"}; swap them'
                )
        if not 0 <= self.structure < math.inf:
            raise ValueError(f'structure is {self.structure}: must be >= 0; 0 turns it off')
        if not 0 <= self.section_focus <= 1:
            raise ValueError(f'section_focus is {self.section_focus}: must be 0 (off) to 1')
        if self.grey_range and not -math.inf < self.grey_range[0] < self.grey_range[1] < math.inf:
            raise ValueError(f'grey_range is {self.grey_range}: must be (low, high), low < high')
        if self.batch < 1:
            raise ValueError(f'batch is {self.batch}: must be >= 1 tile')


def check_tile(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], config: CheckConfig
) -> tuple[str, str, dict[str, float]]:
    """Measures a tile and judges it.

    Args:
      image: (height, width).
      config: thresholds.

    Returns:
      state ('good', 'suspect', 'bad'), the reasons ('' if good), and the measurements.
    """
    found = measure(to_uint8(image, config.grey_range))
    state, reasons = 'good', []
    for name, sign, what in (
        ('contrast', -1, 'low contrast'),
        ('saturation', 1, 'saturated'),
        ('focus', -1, 'out of focus'),
        ('line_jitter', 1, 'lines jitter'),
    ):
        # NaN, which is not measured, exceeds nothing.
        beyond = [sign * found[name] > sign * limit for limit in getattr(config, name)]
        if any(beyond):
            reasons.append(f'{what} ({found[name]:.2g})')
            state = 'bad' if beyond[1] else max(state, 'suspect', key=_RANK.__getitem__)
    if found['structure'] < config.structure:
        reasons.insert(0, 'blank')
        state = max(state, 'suspect', key=_RANK.__getitem__)
    return state, ', '.join(reasons), found


_RANK = {'good': 0, 'suspect': 1, 'bad': 2}


def measure(image: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Measures contrast, saturation, structure, focus and line jitter; see `CheckConfig`.

    Args:
      image: (height, width).

    Returns:
      measurements by name; NaN where the image has nothing to measure.
    """
    histogram = np.bincount(image.reshape(-1), minlength=256)
    below = np.cumsum(histogram) / image.size
    low, high = np.searchsorted(below, (0.01, 0.99))
    found = {
        'contrast': float(high - low),
        'saturation': float(histogram[[0, 255]].sum() / image.size),
    }
    structure, focus = _spectral(image)
    # In noise alone, neither detail nor rows have anything to tell.
    clear = structure > 1
    return {
        **found,
        'structure': structure,
        'focus': focus if clear else math.nan,
        'line_jitter': measure_line_jitter(image) if clear else math.nan,
    }


def _spectral(image: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Coarse power over noise power; fine over coarse power, both less the noise."""
    power, frequency = _power_spectrum(image)
    bands = [power[(frequency >= a) & (frequency < b)] for a, b in (COARSE, FINE, NOISE)]
    coarse, fine, noise = (float(band.mean()) if band.size else 0.0 for band in bands)
    coarse, fine = coarse - noise, fine - noise
    # Rounding to grey levels alone is noise of this power.
    floor = max(noise, 1 / 12)
    if coarse <= 0:
        return 0.0, math.nan
    return coarse / floor, max(0.0, fine) / coarse


def _power_spectrum(
    image: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean power of windows that do not overlap, and radial frequency, cycles per pixel.

    White noise has its variance as power at every frequency.
    """
    h, w = (min(WINDOW, n) for n in image.shape)
    taper = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1]).astype(np.float32)
    taper /= math.sqrt(float((taper**2).sum()))
    total = np.zeros((h, w // 2 + 1))
    count = 0
    for y in range(0, image.shape[0] - h + 1, h):
        for x in range(0, image.shape[1] - w + 1, w):
            window = image[y : y + h, x : x + w].astype(np.float32)
            total += np.abs(np.fft.rfft2((window - window.mean()) * taper)) ** 2
            count += 1
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    return total / count, np.hypot(fy, fx)


def measure_line_jitter(image: npt.NDArray[np.uint8]) -> float:
    """Spread of the displacements along x between adjacent rows, in pixels.

    Each displacement is the peak of the correlation of two rows after a high pass. The spread is
    half of the distance between the 16th and the 84th percentile, the standard deviation of a
    Gaussian; NaN where fewer than half of the rows have a peak, or rows are short.
    """
    if image.shape[0] < 3 or image.shape[1] < HIGH_PASS + 2 * REACH:
        return math.nan
    rows = cv2.blur(image.astype(np.float32), (3, 1))
    rows -= cv2.blur(rows, (HIGH_PASS, 1))
    first, second = rows[:-1, REACH:-REACH], rows[1:]
    width = first.shape[1]
    curves = np.stack(
        [
            np.einsum('yx,yx->y', first, second[:, lag : lag + width])
            for lag in range(2 * REACH + 1)
        ],
        axis=1,
    )
    power = np.sqrt(np.einsum('yx,yx->y', first, first) * np.einsum('yx,yx->y', second, second))
    peak = np.clip(curves.argmax(axis=1), 1, 2 * REACH - 1)
    before, at, after = (curves[np.arange(len(peak)), peak + d] for d in (-1, 0, 1))
    curvature = before - 2 * at + after
    clear = (at > MIN_CORRELATION * power) & (curvature < 0)
    if clear.mean() < 0.5:
        return math.nan
    shift = (before - after)[clear] / (2 * curvature[clear])
    low, high = np.percentile(peak[clear] + np.clip(shift, -1, 1), (16, 84))
    return float(high - low) / 2


def compare_tiles(tiles: Columns, config: CheckConfig) -> Columns:
    """Judges the tiles of a section (`CHECKED_TILES`) by each other.

    A tile with the same file as one before it is bad: the microscope wrote an old image again.
    Then, tiles far less sharp than the section's median are suspect.

    Returns:
      the same columns, with states and reasons brought up to date.
    """
    state, reason = tiles['state'].copy(), tiles['reason'].copy()
    first: dict[str, int] = {}
    for row, sha256 in enumerate(tiles['sha256']):
        original = first.setdefault(sha256, row) if sha256 else row
        if original != row and state[row] != 'bad':
            state[row] = 'bad'
            reason[row] = (
                f'same image as field {tiles["field"][original]} beam {tiles["beam"][original]}'
            )
    focus = np.where(state == 'good', tiles['focus'], np.nan)
    if np.isfinite(focus).sum() >= MIN_TILES:
        share = focus / np.nanmedian(focus)
        for row in np.flatnonzero(share < config.section_focus).tolist():
            state[row] = 'suspect'
            reason[row] = f'less sharp than its section ({share[row]:.2g} of the median)'
    return {**tiles, 'state': state, 'reason': reason}


def judge_section(counts: Mapping[str, int]) -> tuple[str, str]:
    """State and reason of a section, by the number of its tiles in each state."""
    tiles = sum(counts.values())
    lost = counts['bad'] + counts['missing']
    if not tiles:
        return 'missing', 'it has no tiles'
    if lost == tiles:
        return 'missing', f'all {tiles} tiles are bad or missing'
    if lost:
        return 'partial', f'{lost} of {tiles} tiles are bad or missing'
    return 'good', 'a single tile' if tiles == 1 else ''
