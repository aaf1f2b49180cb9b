"""A tiny tissue with truth, and networks that need no training to segment it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from h01_beam.segmentation.ffn import FfnConfig

Float32 = npt.NDArray[np.float32]

# All different along the three axes, so a transposed axis fails.
SHAPE = (28, 37, 46)
FOV_SHAPE = (5, 9, 11)
DELTAS = (1, 3, 4)
CONFIG = FfnConfig(min_segment_size=100, seed_policy='grid_3d')


def tissue(cells: int = 12, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.uint8]:
    """Voronoi cells of grey levels 60, 70, 80... with membranes of grey level 0 between them."""
    sites = np.random.default_rng(3).random((cells, 3)) * shape
    voxels = np.stack(np.indices(shape), axis=-1)
    cell = spatial.cKDTree(sites).query(voxels)[1]
    inside = ndimage.minimum_filter(cell, size=2) == ndimage.maximum_filter(cell, size=2)
    return np.where(inside, 60 + 10 * cell, 0).astype(np.uint8)


def predict(image_fov: Float32, logit_fov: Float32) -> Float32:
    """Claims what has the grey level of the centre, nothing if that is membrane."""
    mean, stddev = CONFIG.grey_levels
    grey = np.rint(image_fov * stddev + mean)
    centre = grey[tuple(size // 2 for size in grey.shape)]
    offsets = np.indices(grey.shape) - np.reshape(grey.shape, (3, 1, 1, 1)) // 2
    # Surest near the centre, so that the field of view moves straight on.
    certainty = 5.0 - 0.1 * np.sqrt(np.sum(offsets**2, axis=0))
    target = np.where((grey == centre) & (centre > 0), certainty, -certainty)
    return np.asarray((3 * target + logit_fov) / 4, np.float32)


def network(batch: Float32) -> Float32:
    """Is `predict` for a batch (b, z, y, x, 2)."""
    return np.stack([predict(sample[..., 0], sample[..., 1]) for sample in batch])


def restless_predict(image_fov: Float32, logit_fov: Float32) -> Float32:
    """Depends on all of its input, changes its mind, and leaks through membranes at times."""
    brightness = ndimage.gaussian_filter(image_fov, (0.5, 1.0, 1.5), mode='nearest')
    wave = np.sin(np.arange(image_fov.size).reshape(image_fov.shape) * image_fov.mean())
    logits = 0.5 * logit_fov + 8.0 * brightness + 0.8 * wave + 0.5
    return np.clip(logits, -6, 6).astype(np.float32)
