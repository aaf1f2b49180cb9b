"""Renders boxes of a section's montage from its tiles: each tile through its map, blended.

Every pixel is the mean of the tiles that show it, each with a weight that falls to 0 at its
edges, so that seams fade. A box needs only the tiles that reach it, and its bytes do not depend on
how the montage is cut into boxes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.registration.maps import CoordinateMap, dense_places, invert, sample

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Pixels from its edge over which a tile's weight rises.
BLEND = 32


@dataclasses.dataclass(frozen=True)
class PlacedTile:
    """A tile and where it lies.

    Attributes:
      image: (h, w).
      mask: (h, w), what of it counts.
      inverse: montage -> tile, pixels.
    """

    image: npt.NDArray[np.generic]
    mask: Bools
    inverse: CoordinateMap


def forward_map(place: npt.NDArray[np.float64], vectors: Reals, stride: float) -> CoordinateMap:
    """The map of a tile to its section: (2,) place and (2, h, w) vectors of its nodes."""
    moved = (vectors + np.asarray(place).reshape(2, 1, 1)).astype(np.float32)
    return CoordinateMap(moved, (0.0, 0.0), stride)


def inverse_map(forward: CoordinateMap, stride: float = 32.0) -> CoordinateMap:
    """The inverse of a tile's map, on a grid of whole strides of the section that covers it.

    It reaches two strides beyond the tile: maps that are composed with it have nodes of their own
    there, and a pixel within the tile needs all nodes around it.
    """
    places = forward.places()
    low = np.floor(places.min(axis=(1, 2)) / stride) - 2
    high = np.ceil(places.max(axis=(1, 2)) / stride) + 2
    shape = (high - low).astype(np.int64) + 1
    start = (float(low[0] * stride), float(low[1] * stride))
    wide = _widened(forward, 1 + math.ceil(3 * stride / forward.stride))
    return invert(wide, start, stride, (int(shape[0]), int(shape[1])))


def _widened(source: CoordinateMap, nodes: int) -> CoordinateMap:
    """A map that goes on for some nodes on every side, straight."""
    vectors = source.vectors
    for _ in range(nodes):
        vectors = np.pad(vectors, ((0, 0), (1, 1), (1, 1)), mode='reflect', reflect_type='odd')
    reach = nodes * source.stride
    start = (source.start[0] - reach, source.start[1] - reach)
    return CoordinateMap(vectors.astype(np.float32), start, source.stride)


def render_montage(
    tiles: Iterable[PlacedTile], start: tuple[int, int], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], Bools]:
    """Renders a box of the montage.

    Args:
      tiles: those that may reach the box, in an order that does not depend on the box.
      start: y and x of the box's first pixel.
      shape: h and w of it.

    Returns:
      image, (h, w) uint8, 0 where no tile is; and where one is.
    """
    total = np.zeros(shape, np.float32)
    weight = np.zeros(shape, np.float32)
    for tile in tiles:
        grid = _part(tile.inverse, start, shape)
        if grid is None:
            continue
        at = tuple(
            slice(int(g) - s, int(g) - s + int((n - 1) * grid.stride) + 1)
            for g, s, n in zip(grid.start, start, grid.shape, strict=True)
        )
        cut = tuple(
            slice(max(0, -a.start), a.stop - a.start - max(0, a.stop - n))
            for a, n in zip(at, shape, strict=True)
        )
        into = tuple(slice(max(0, a.start), min(n, a.stop)) for a, n in zip(at, shape, strict=True))
        places = dense_places(grid)
        share = sample(edge_weights(tile.mask), places)[cut].astype(np.float32)
        seen = sample(tile.image.astype(np.float32), places)[cut].astype(np.float32)
        total[into] += seen * share
        weight[into] += share
    there = weight > 0
    image = np.rint(total / np.where(there, weight, np.float32(1)))
    return np.where(there, np.clip(image, 0, 255), 0).astype(np.uint8), there


def edge_weights(mask: Bools) -> Real:
    """(h, w) float32 weights, 0 outside of the mask and rising to 1 within `BLEND` pixels."""
    return _whole_weights(mask.shape) if mask.all() else _edge_weights(mask)


@functools.lru_cache(maxsize=4)
def _whole_weights(shape: tuple[int, int]) -> Real:
    weights = _edge_weights(np.ones(shape, np.bool_))
    weights.setflags(write=False)
    return weights


def _edge_weights(mask: Bools) -> Real:
    framed = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    # What one tile alone shows is seen up to its very edge.
    return np.where(mask, np.clip(depth / np.float32(BLEND), np.float32(0.01), 1), 0).astype(
        np.float32
    )


def _part(
    source: CoordinateMap, start: tuple[int, int], shape: tuple[int, int]
) -> CoordinateMap | None:
    """The nodes of a map that a box needs, less the border of those that lead nowhere."""
    ranges = []
    known = np.isfinite(source.vectors[0])
    for axis in range(2):
        first = int((start[axis] - source.start[axis]) // source.stride)
        last = int(-(-(start[axis] + shape[axis] - 1 - source.start[axis]) // source.stride))
        lines = np.flatnonzero(known.any(axis=1 - axis))
        if not len(lines):
            return None
        first, last = max(int(lines[0]), first), min(int(lines[-1]), last)
        if last <= first:
            return None
        ranges.append((first, last))
    (y0, y1), (x0, x1) = ranges
    return CoordinateMap(
        np.ascontiguousarray(source.vectors[:, y0 : y1 + 1, x0 : x1 + 1]),
        (source.start[0] + y0 * source.stride, source.start[1] + x0 * source.stride),
        source.stride,
    )
