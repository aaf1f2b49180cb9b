"""The colour of a segment: the one that Neuroglancer gives it, so that figures and viewer agree.

Source: Neuroglancer's documented default, a hash of the 64-bit id with color seed 0 that gives hue
and saturation at full brightness (src/segment_color.ts; the hash is one round of MurmurHash3's
32-bit body per half of the id, without its finalizer).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = np.uint64(0xFFFFFFFF)


def segment_colors(ids: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Returns Neuroglancer's colours.

    Args:
      ids: segment ids, any shape, nonnegative. 0 (unlabelled) has a colour like any other.

    Returns:
      uint8 RGB, shape (*ids.shape, 3).
    """
    ids = np.asarray(ids).astype(np.uint64)
    mixed = _mix(_mix(np.zeros_like(ids), ids & _MASK), ids >> np.uint64(32))
    hue = (mixed & np.uint64(0xFF)).astype(np.float64) / 255
    saturation = 0.5 + 0.5 * ((mixed >> np.uint64(8)) & np.uint64(0xFF)).astype(np.float64) / 255
    # Each channel is a trapezoid over the hue circle, a third of a turn apart.
    offsets = np.array([5.0, 3.0, 1.0])
    turn = (offsets + 6 * hue[..., None]) % 6
    strength = np.clip(np.minimum(turn, 4 - turn), 0, 1)
    return np.rint(255 * (1 - saturation[..., None] * strength)).astype(np.uint8)


def paint_segments(
    image: npt.NDArray[np.uint8], labels: npt.NDArray[np.unsignedinteger], alpha: float = 0.45
) -> npt.NDArray[np.uint8]:
    """Returns the image with every segment tinted in its colour.

    Args:
      image: yx grey.
      labels: yx ids; 0 stays grey.
      alpha: weight of the colour.

    Returns:
      yx RGB, uint8.
    """
    ids, inverse = np.unique(labels, return_inverse=True)
    palette = segment_colors(ids).astype(np.float32)
    weight = np.where(ids == 0, 0, alpha).astype(np.float32)[inverse].reshape(*labels.shape, 1)
    grey = image.astype(np.float32)[..., None]
    color = palette[inverse].reshape(*labels.shape, 3)
    return np.rint((1 - weight) * grey + weight * color).astype(np.uint8)


def _mix(state: npt.NDArray[np.uint64], value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One round of the 32-bit hash, in 64-bit lanes so that products do not overflow."""
    value = _rotate_left(value * np.uint64(0xCC9E2D51) & _MASK, 15)
    state = _rotate_left(state ^ (value * np.uint64(0x1B873593) & _MASK), 13)
    return (state * np.uint64(5) + np.uint64(0xE6546B64)) & _MASK


def _rotate_left(value: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    return ((value << np.uint64(bits)) | (value >> np.uint64(32 - bits))) & _MASK
