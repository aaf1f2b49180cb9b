"""Random changes to training examples, so that the network meets more tissue than there is.

Flips, transposition, contrast, brightness and noise as usual; and what happens to serial sections:
one goes missing, or all from one on are displaced (Lee et al., "Superhuman accuracy on the SNEMI3D
connectomics challenge", arXiv 1706.00120).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.ffn.train_config import AugmentConfig

Real = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def augment(
    image: Real, mask: Mask, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Real, Mask]:
    """Changes an example.

    Args:
      image: zyx float32 grey levels.
      mask: zyx bool, the object; its centre voxel stays where it is, and in the object.
      config: which changes.
      rng: of the example.

    Returns:
      image and mask of the same shape; new arrays.
    """
    if config.flip:
        image, mask = _flip(image, mask, rng)
    image = np.array(image, np.float32)
    # Always the same number of draws, so that one setting does not shift the others.
    draw = rng.random(8)
    centre = image.shape[0] // 2
    if draw[0] < config.shifted_section and image.shape[0] > 2:
        image, mask = _displace(image, mask, config.shift, draw[1:4])
    if draw[4] < config.missing_section and image.shape[0] > 2:
        others = [z for z in range(image.shape[0]) if z != centre]
        image[others[int(draw[5] * len(others))]] = 0.0
    mean = image.mean()
    gain = 1 + config.contrast * (2 * draw[6] - 1)
    image = (image - mean) * np.float32(gain)
    image += np.float32(mean + config.brightness * (2 * draw[7] - 1))
    level = config.noise * rng.random()
    image += rng.standard_normal(image.shape, np.float32) * np.float32(level)
    return image, np.ascontiguousarray(mask)


def _flip(image: Real, mask: Mask, rng: np.random.Generator) -> tuple[Real, Mask]:
    """Mirrors and transposes; the centre of an odd patch stays the centre."""
    turns = rng.random(4) < 0.5
    for axis in range(3):
        if turns[axis]:
            image, mask = np.flip(image, axis), np.flip(mask, axis)
    if turns[3] and image.shape[1] == image.shape[2]:
        image, mask = image.swapaxes(1, 2), mask.swapaxes(1, 2)
    return image, mask


def _displace(
    image: Real, mask: Mask, shift: int, draw: npt.NDArray[np.float64]
) -> tuple[Real, Mask]:
    """Moves image and object of all sections beyond one, away from the centre.

    The labels move with the image: the object goes on where the network sees it go on.
    """
    depth, height, width = image.shape
    first = int(draw[0] * (depth - 1)) + 1
    dy, dx = (int(np.rint((2 * d - 1) * shift)) for d in draw[1:])
    # The centre's section must not move: take the part that does not hold it.
    part = slice(first, None) if first > depth // 2 else slice(0, first)
    image, mask = image.copy(), mask.copy()
    # What comes in from outside repeats the edge in the image, and is no object's.
    rows, columns = np.arange(height) - dy, np.arange(width) - dx
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    grid = np.ix_(np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))
    image[part] = image[part][:, grid[0], grid[1]]
    mask[part] = mask[part][:, grid[0], grid[1]] & inside
    return image, mask
