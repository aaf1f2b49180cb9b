"""Straight dark bands in the image of a section: where it lies folded on itself.

Membranes and organelles are dark as well, but not along a straight line for long. So a band is
sought piece by piece, each darker than what lies to both of its sides, and all but one of five
pieces in a row must be.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from h01_beam.alignment.mesh import Bools, Real, Reals

_DIRECTIONS = 16
_PIECES = (-2, -1, 0, 1, 2)


def find_dark_bands(
    image: npt.NDArray[np.generic], mask: Bools, unit: float, darkness: float
) -> Bools:
    """Finds straight dark bands.

    Args:
      image: (height, width) of a section.
      mask: where it shows tissue.
      unit: length of a piece in pixels; bands are about a third as wide, and five times as long.
      darkness: by how much pieces must be darker than their sides, in standard deviations of what
        pieces are elsewhere.

    Returns:
      (height, width) pixels of bands.
    """
    found = np.zeros(mask.shape, np.bool_)
    if not mask.any():
        return found
    tissue = image.astype(np.float32)
    values = np.where(mask, tissue, np.median(tissue[mask])).astype(np.float32)
    for n in range(_DIRECTIONS):
        angle = np.pi * n / _DIRECTIONS
        normal = np.array([np.sin(angle), np.cos(angle)])
        core, before, behind = (cv2.filter2D(values, -1, k) for k in _kernels(normal, unit))
        # Darker than both sides: else every border of something dark would be a band.
        depth = np.minimum(before, behind) - core
        middle = float(np.median(depth[mask]))
        spread = 1.48 * float(np.median(np.abs(depth[mask] - middle)))
        tangent = np.array([normal[1], -normal[0]])
        row = np.stack([_shifted(depth, np.rint(k * unit * tangent)) for k in _PIECES])
        least = np.sort(row, axis=0)[1]
        found |= mask & (least > darkness * max(spread, 1e-3))
    return _long(ndimage.binary_dilation(found, iterations=int(unit / 8) + 1) & mask, unit)


def _long(bands: Bools, unit: float) -> Bools:
    """Without what goes on for less than three pieces, as many a membrane does."""
    labels, _ = ndimage.label(bands, np.ones((3, 3)))
    kept = np.zeros(int(labels.max()) + 1, np.bool_)
    for n, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        kept[n] = np.hypot(y.stop - y.start, x.stop - x.start) >= 3 * unit
    return np.asarray(kept[labels])


def _kernels(normal: Reals, unit: float) -> list[Real]:
    """Means over a piece of band and over what lies to both sides of it."""
    reach = int(np.ceil(unit))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    t, s = normal[0] * y + normal[1] * x, normal[1] * y - normal[0] * x
    core, off, half = unit / 8, 0.55 * unit, unit / 5
    parts = [np.abs(t) <= core, np.abs(t - off) <= half, np.abs(t + off) <= half]
    kernels = [(part & (np.abs(s) <= unit / 2)).astype(np.float32) for part in parts]
    return [np.asarray(kernel / kernel.sum()) for kernel in kernels]


def _shifted(array: Real, by: Reals) -> Real:
    """What is `by` further on; what is beyond the border is as at the border."""
    y, x = (np.clip(np.arange(n) + int(d), 0, n - 1) for n, d in zip(array.shape, by, strict=True))
    return array[y[:, None], x]
