r"""Coordinate maps: where each place of one frame lies in another.

A map is a grid of nodes in its domain; at each, a vector to the place it stands for:

        x ->
      y  +----+----+----+      node (i, j) lies at   q = start + stride * (i, j)
      |  |    |    |    |      and maps to           q + vectors[:, i, j]
      v  +----+----+----+      between nodes: bilinear; outside of the grid: nowhere (NaN)

Places and vectors are y, x in pixels, the centre of the first pixel at (0, 0). An *inverse* map has
its domain in the aligned frame and leads to the raw one; a renderer reads through it:

    aligned(q) = raw(inverse(q))

A *forward* map leads from raw to aligned. Maps compose as functions do, so, for inverse maps,
`warp(image, compose(a, b)) = warp(warp(image, a), b)`: `b` is looked at first, and leads into the
domain of `a`. NaN vectors stand for places that have no counterpart: they stay NaN under
all operations.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]

# OpenCV addresses an image of at most this many pixels a side.
_MOST_NODES = 32_766
# A place this far (in strides) beyond the last node counts as at it: rounding.
_SLACK = 1e-4


@dataclasses.dataclass(frozen=True)
class CoordinateMap:
    """A map from places of one frame to those of another; see the module.

    Attributes:
      vectors: (2, h, w) float32, y and x, pixels; NaN where there is no counterpart.
      start: y, x of the first node, pixels.
      stride: pixels between nodes.
    """

    vectors: Real
    start: tuple[float, float] = (0.0, 0.0)
    stride: float = 1.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        shape = self.vectors.shape
        if len(shape) != 3 or shape[0] != 2 or min(shape) < 1 or max(shape) > _MOST_NODES:
            raise ValueError(
                f'CoordinateMap.vectors has shape {shape}: must be (2, h, w), the y and x of '
                f'each of 1 to {_MOST_NODES} nodes a side; cut larger maps into blocks'
            )
        if self.vectors.dtype != np.float32:
            raise ValueError(
                f'CoordinateMap.vectors has dtype {self.vectors.dtype}: must be float32'
            )
        if not self.stride > 0:
            raise ValueError(f'CoordinateMap.stride is {self.stride}: must be above 0 pixels')

    @property
    def shape(self) -> tuple[int, int]:
        """Number of nodes, y and x."""
        return self.vectors.shape[1], self.vectors.shape[2]

    def nodes(self) -> Reals:
        """(2, h, w) places of the nodes in the map's domain."""
        return grid_points(self.start, self.stride, self.shape)

    def places(self) -> Reals:
        """(2, h, w) places that the nodes map to."""
        return self.nodes() + self.vectors

    def __call__(self, points: npt.ArrayLike) -> Reals:
        """Maps points, (2, ...) y and x; NaN where the map leads nowhere.

        A point on a line of nodes does not care for NaN on either side of the line.
        """
        points = np.asarray(points, np.float64)
        return points + _interpolate(self, points)


def grid_points(start: tuple[float, float], stride: float, shape: tuple[int, int]) -> Reals:
    """(2, h, w) places of a grid of nodes."""
    y = start[0] + stride * np.arange(shape[0], dtype=np.float64)
    x = start[1] + stride * np.arange(shape[1], dtype=np.float64)
    return np.stack(np.meshgrid(y, x, indexing='ij'))


def from_affine(
    matrix: npt.ArrayLike, start: tuple[float, float], stride: float, shape: tuple[int, int]
) -> CoordinateMap:
    """The map q -> matrix @ (y, x, 1), `matrix` being (2, 3), on a grid."""
    affine = np.asarray(matrix, np.float64)
    nodes = grid_points(start, stride, shape)
    places = np.tensordot(affine[:, :2], nodes, axes=1) + affine[:, 2, None, None]
    return CoordinateMap((places - nodes).astype(np.float32), start, stride)


def invert_affine(matrix: Reals) -> Reals:
    """The inverse of an affine map; both (2, 3), for (y, x, 1)."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2:])], axis=1)


def compose(outer: CoordinateMap, inner: CoordinateMap) -> CoordinateMap:
    """The map q -> outer(inner(q)), on the nodes of `inner`.

    Exact at the nodes; between them it is as good as both maps are smooth over a stride of `inner`.
    """
    vectors = outer(inner.places()) - inner.nodes()
    return dataclasses.replace(inner, vectors=vectors.astype(np.float32))


def resample(
    source: CoordinateMap, start: tuple[float, float], stride: float, shape: tuple[int, int]
) -> CoordinateMap:
    """The same map on another grid of the same frame."""
    nodes = grid_points(start, stride, shape)
    return CoordinateMap((source(nodes) - nodes).astype(np.float32), start, stride)


def invert(
    source: CoordinateMap,
    start: tuple[float, float],
    stride: float,
    shape: tuple[int, int],
    tolerance: float = 0.01,
    most_steps: int = 100,
) -> CoordinateMap:
    """The inverse of a map, on a grid of the frame that the map leads to.

    Solves source(p) = q for each node q by p <- p + (q - source(p)), which converges where the map
    folds nothing and its vectors, less their mean affine part, change by less than their distance.

    Args:
      source: the map to invert.
      start: y, x of the grid's first node.
      stride: pixels between its nodes.
      shape: its number of nodes, y and x.
      tolerance: pixels by which source(p) may miss q.
      most_steps: nodes that have not come that near by then are NaN: the map folds there.
    """
    targets = grid_points(start, stride, shape)
    affine, inverse = _fit_affine(source)
    if inverse is None:
        return CoordinateMap(np.full((2, *shape), np.nan, np.float32), start, stride)
    # Outside of the grid, while under way, the map goes on as at its border.
    wide = _extended(source, affine)
    points = _apply(inverse, targets)
    miss = np.zeros_like(targets)
    for _ in range(most_steps):
        miss = targets - wide(points)
        if not (np.abs(miss) > 0.1 * tolerance).any():
            break
        points = points + np.tensordot(inverse[:, :2], np.nan_to_num(miss), axes=1)
    found = source(points)
    good = np.sqrt(((found - targets) ** 2).sum(axis=0)) <= tolerance
    vectors = np.where(good, points - targets, np.nan)
    return CoordinateMap(vectors.astype(np.float32), start, stride)


def warp(
    image: npt.NDArray[np.generic], inverse: CoordinateMap, outside: float = 0.0
) -> npt.NDArray[np.generic]:
    """Renders the box of pixels that a map's grid spans, through the map: bilinear.

    Args:
      image: (h, w), uint8, uint16 or float32; its first pixel is at (0, 0) of the frame that the
        map leads to.
      inverse: the map; its first pixel is the one at `start`, its last at or before the last node.
      outside: for pixels that map nowhere or beyond the image.
    """
    return sample(image, dense_places(inverse), outside)


def sample(
    image: npt.NDArray[np.generic], places: tuple[Real, Real], outside: float = 0.0
) -> npt.NDArray[np.generic]:
    """An image, as in `warp`, at places of pixels: y and x, see `dense_places`."""
    y, x = places
    # False beside NaN too.
    inside = (y >= 0) & (y <= image.shape[0] - 1) & (x >= 0) & (x <= image.shape[1] - 1)
    x, y = (np.where(inside, v, np.float32(0)) for v in (x, y))
    seen = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(inside, seen, np.asarray(outside, image.dtype))


def dense_places(source: CoordinateMap) -> tuple[Real, Real]:
    """Where a map leads from every pixel of its grid's box: y and x, (rows, columns) float32."""
    steps = [_between(n, source.stride) for n in source.shape]
    vectors = source.vectors
    # Columns first, while rows are few; no product of matrices, which would begin threads.
    for axis in (2, 1):
        low, part = steps[axis - 1]
        high = np.minimum(low + 1, source.shape[axis - 1] - 1)
        share = part if axis == 2 else part[:, None]
        before, after = vectors.take(low, axis), vectors.take(high, axis)
        # A node of no weight counts for nothing, NaN or not.
        np.copyto(before, 0, where=share == 1)
        np.copyto(after, 0, where=share == 0)
        before *= 1 - share
        after *= share
        before += after
        vectors = before
    along = [
        (start + np.arange(len(part), dtype=np.float64)).astype(np.float32)
        for start, (_, part) in zip(source.start, steps, strict=True)
    ]
    vectors[0] += along[0][:, None]
    vectors[1] += along[1]
    return vectors[0], vectors[1]


def _between(nodes: int, stride: float) -> tuple[npt.NDArray[np.int64], Real]:
    """Of each pixel from the first node to the last: the node before, the share of the next."""
    place = np.arange(int((nodes - 1) * stride) + 1, dtype=np.float64) / stride
    low = np.minimum(place.astype(np.int64), max(nodes - 2, 0))
    return low, (place - low).astype(np.float32)


def _interpolate(source: CoordinateMap, points: Reals) -> Reals:
    """(2, ...) vectors at points; NaN outside of the grid and beside NaN."""
    h, w = source.shape
    place = (points - np.reshape(source.start, (2,) + (1,) * (points.ndim - 1))) / source.stride
    last = np.reshape([h - 1.0, w - 1.0], (2,) + (1,) * (points.ndim - 1))
    with np.errstate(invalid='ignore'):
        inside = ((place >= -_SLACK) & (place <= last + _SLACK)).all(axis=0)
    place = np.where(inside, np.clip(place, 0, last), 0.0)
    low = np.minimum(np.floor(place), np.maximum(last - 1, 0)).astype(np.int64)
    part = place - low
    result = np.zeros(points.shape)
    for step in np.ndindex(2, 2):
        weight = np.ones(points.shape[1:])
        for axis in range(2):
            weight = weight * (part[axis] if step[axis] else 1 - part[axis])
        y, x = np.minimum(low[0] + step[0], h - 1), np.minimum(low[1] + step[1], w - 1)
        value = source.vectors[:, y, x].astype(np.float64)
        # NaN of no weight counts for nothing.
        result += np.where(weight > 0, value * weight, 0.0)
    result[:, ~inside] = np.nan
    return result


def _fit_affine(source: CoordinateMap) -> tuple[Reals, Reals | None]:
    """The (2, 3) affine map nearest to a map, and its inverse; None where there is none."""
    nodes, places = source.nodes().reshape(2, -1), source.places().reshape(2, -1)
    known = np.isfinite(places).all(axis=0)
    identity = np.eye(2, 3)
    if not known.any():
        return identity, None
    if known.sum() < 3:
        identity[:, 2] = (places - nodes)[:, known].mean(axis=1)
        affine = identity
    else:
        design = np.stack([*nodes[:, known], np.ones(int(known.sum()))], axis=1)
        affine = np.linalg.lstsq(design, places[:, known].T, rcond=None)[0].T
    if abs(np.linalg.det(affine[:, :2])) < 1e-6:
        # All on one line: take the shift alone.
        affine = np.eye(2, 3)
        affine[:, 2] = (places - nodes)[:, known].mean(axis=1)
    return affine, invert_affine(affine)


def _apply(affine: Reals, points: Reals) -> Reals:
    shift = affine[:, 2].reshape((2,) + (1,) * (points.ndim - 1))
    return np.tensordot(affine[:, :2], points, axes=1) + shift


@dataclasses.dataclass(frozen=True)
class _Extended:
    """A map that goes on beyond its grid and over its gaps, as its mean affine part does."""

    rest: CoordinateMap
    affine: Reals

    def __call__(self, points: Reals) -> Reals:
        start = np.reshape(self.rest.start, (2, 1, 1))
        last = start + (np.reshape(self.rest.shape, (2, 1, 1)) - 1) * self.rest.stride
        return _apply(self.affine, points) + _interpolate(self.rest, np.clip(points, start, last))


def _extended(source: CoordinateMap, affine: Reals) -> _Extended:
    rest = source.places() - _apply(affine, source.nodes())
    vectors = np.nan_to_num(rest).astype(np.float32)
    return _Extended(dataclasses.replace(source, vectors=vectors), affine)
