"""A section with structure at all scales, and tiles cut out of it."""

import cv2
import numpy as np


def section(shape, seed=0):
    """(h, w) float32 grey values from 0 to 255."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(shape).astype(np.float32)
    image = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (1.5, 4, 12))
    return np.clip(128 + 45 * image / image.std(), 0, 255).astype(np.float32)


def cut(image, place, shape):
    """The tile whose first pixel lies at a place (y, x, to parts of a pixel)."""
    h, w = shape
    y, x = np.meshgrid(np.arange(h) + place[0], np.arange(w) + place[1], indexing='ij')
    seen = cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)
