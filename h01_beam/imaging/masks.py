"""Tissue masks: where a section shows tissue, as against resin, tape and nothing at all.

    section, downsampled -> band-pass -> texture beyond noise -> share of it around -> clean up

Resin and tape are smooth but for noise; tissue is full of membranes. Strong lines alone (scratches,
the edge of the tape) are texture too, but only on a small share of what surrounds them.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Noise is that of the smoothest parts of a section: this share of its windows has less.
_SMOOTHEST = 0.02
# Less noise is not believed: rounding to grey levels is not white, but makes steps on slopes.
_LEAST_NOISE = 1.0
# Tissue decides what counts as texture in it: this share of its own typical deviation.
_TYPICAL = 0.5
# Share of the texture of tissue that its edge has.
_EDGE = 0.6
# Second differences along both axes: blind to slopes and to most of what is wider than noise.
_SECOND = np.array([1.0, -2.0, 1.0], np.float32) / np.float32(math.sqrt(6.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TissueConfig:
    """What counts as tissue; lengths in pixels of the image that is asked about.

    Tissue should have about 30 to 100 nm per pixel: membranes and organelles are then texture of
    a few pixels, and the noise of the detector is mostly averaged out.

    Attributes:
      fine: sigma of the Gaussian that takes noise away.
      coarse: sigma of the one that takes slopes and shading away.
      threshold: a pixel is textured if it deviates by more than this many deviations of noise,
        and by more than half of what is typical of the pixels around which there is texture.
      window: sigma of the surroundings of which texture is counted.
      density: least share of textured pixels in tissue; noise alone has 0.01 at a threshold of 2.5.
      noise: deviation of it, grey levels; None measures it where the image is smoothest.
      radius: islands, bridges and bays narrower than twice this are removed.
      max_hole: pixels; larger holes stay holes.
      min_share: of the largest area; smaller ones are dropped.
    """

    fine: float = 1.0
    coarse: float = 3.0
    threshold: float = 2.5
    window: float = 12.0
    density: float = 0.1
    noise: float | None = None
    radius: int = 12
    max_hole: int = 20_000
    min_share: float = 0.05

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('fine', 'threshold', 'window'):
            if not getattr(self, name) > 0:
                raise ValueError(f'tissue.{name} is {getattr(self, name)}: must be above 0')
        if not self.coarse > self.fine:
            raise ValueError(
                f'tissue.coarse is {self.coarse}: must be above tissue.fine, {self.fine}'
            )
        for name in ('density', 'min_share'):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f'tissue.{name} is {getattr(self, name)}: must lie in (0, 1)')
        if self.noise is not None and not self.noise > 0:
            raise ValueError(f'tissue.noise is {self.noise}: must be above 0, or None to measure')
        for name in ('radius', 'max_hole'):
            if getattr(self, name) < 0:
                raise ValueError(f'tissue.{name} is {getattr(self, name)}: must not be negative')


def estimate_noise(image: Bytes, valid: Bools, window: float = 8.0) -> float:
    """Deviation of white noise where an image is smoothest.

    Of an image that is tissue all over, it is an upper limit: part of it is tissue. Better, then,
    to measure at full size and to divide by the factor by which the image is downsampled.

    Args:
      image: (h, w) uint8.
      valid: (h, w), pixels that count.
      window: sigma of the Gaussian windows over which noise is averaged, pixels.

    Returns:
      grey levels; never less than 1, which is more than rounding makes.
    """
    differences = cv2.sepFilter2D(image.astype(np.float32), -1, _SECOND, _SECOND)
    inside = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
    if not inside.any():
        return _LEAST_NOISE
    power = _local_mean(differences**2, inside, window)
    return max(_LEAST_NOISE, math.sqrt(float(np.quantile(power[inside], _SMOOTHEST))))


def measure_texture(image: Bytes, valid: Bools, config: TissueConfig) -> Real:
    """Share of textured pixels around each pixel.

    Args:
      image: (h, w) uint8, a downsampled section.
      valid: (h, w), where it shows anything.
      config: band, threshold and window.

    Returns:
      (h, w) float32, 0 to 1; 0 outside of `valid`.
    """
    noise = config.noise or estimate_noise(image, valid, config.window)
    values = image.astype(np.float32)
    # Means of what is valid only: else its edge would be a line of texture.
    band = _local_mean(values, valid, config.fine) - _local_mean(values, valid, config.coarse)
    strength = np.abs(band)
    limit = config.threshold * noise * _band_gain(config.fine, config.coarse)
    share = _share(strength > limit, valid, config)
    textured = strength[share > config.density]
    if textured.size:
        # A strong line has its band-passed ghost far to either side: far weaker than tissue.
        limit = max(limit, _TYPICAL * float(np.median(textured)))
    return _share(strength > limit, valid, config)


def _share(textured: Bools, valid: Bools, config: TissueConfig) -> Real:
    share = _local_mean((textured & valid).astype(np.float32), valid, config.window)
    return np.where(valid, share, np.float32(0))


def find_tissue(image: Bytes, valid: Bools, config: TissueConfig) -> Bools:
    """Finds tissue.

    Args:
      image: (h, w) uint8, a downsampled section.
      valid: (h, w), where it shows anything.
      config: thresholds and sizes.

    Returns:
      (h, w), where tissue is; within `valid`.

    Raises:
      ValueError: image and valid differ in shape.
    """
    if image.shape != valid.shape:
        raise ValueError(f'valid has shape {valid.shape}: must be {image.shape}, as the image')
    share = measure_texture(image, valid, config)
    tissue = share > config.density
    if tissue.any():
        # Half of a window lies in tissue where the edge is. A little more than half of the texture
        # is asked for, because the edge itself is texture, too.
        tissue &= share > _EDGE * float(np.median(share[tissue]))
    clean = _clean(tissue, valid, config)
    return clean & valid


def _clean(tissue: Bools, valid: Bools, config: TissueConfig) -> Bools:
    side = 2 * config.radius + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # What lies beyond the image is unknown: it must not eat into tissue at the edge.
    wide = np.pad((tissue | ~valid).astype(np.uint8), side, mode='edge')
    opened = cv2.morphologyEx(wide, cv2.MORPH_OPEN, disc)
    closed = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, disc)
    clean = (closed[side:-side, side:-side] > 0) & valid
    holes, _ = _areas(~clean & valid)
    # Holes that reach the edge are not holes.
    rim = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    sizes = np.bincount(holes.ravel())
    small = sizes <= config.max_hole
    small[0] = False
    small[rim] = False
    clean |= small[holes]
    labels, areas = _areas(clean)
    if areas.size:
        keep = np.concatenate([[False], areas >= config.min_share * areas.max()])
        clean = keep[labels]
    return clean


def _areas(mask: Bools) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Labels of connected areas from 1 on, and the pixels of each."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return labels, np.bincount(labels.ravel(), minlength=count)[1:]


def _local_mean(values: Real, valid: Bools, sigma: float) -> Real:
    """Gaussian mean of what is valid."""
    weight = valid.astype(np.float32)
    total = cv2.GaussianBlur(values * weight, (0, 0), sigma)
    return total / (cv2.GaussianBlur(weight, (0, 0), sigma) + np.float32(1e-6))


def _band_gain(fine: float, coarse: float) -> float:
    """Deviation of white noise of deviation 1 after the band-pass."""
    side = 2 * math.ceil(4 * coarse) + 1
    dot = np.zeros((side, side), np.float32)
    dot[side // 2, side // 2] = 1
    kernel = cv2.GaussianBlur(dot, (0, 0), fine) - cv2.GaussianBlur(dot, (0, 0), coarse)
    return float(np.sqrt((kernel.astype(np.float64) ** 2).sum()))
