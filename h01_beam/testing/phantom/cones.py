"""Cones with round ends, and the division of space among those who own them.

Every point of space belongs to the owner whose surface it is least far outside of (or deepest
inside of), an additively weighted Voronoi diagram. Where an owner's cones hang together and none of
their axes lies inside of another owner, what it gets hangs together too: from any of its points,
the way straight to the nearest axis stays within.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Real = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int32]
Axes = tuple[Reals, Reals, Reals]

# Beyond this distance from every surface there is nothing but extracellular space.
REACH_NM = 190.0
NOBODY = -1
_SLAB_POINTS = 32_768


@dataclasses.dataclass(frozen=True)
class Cones:
    """Cones with round ends: (n, 3) ends, (n,) radii at the ends (world nm), and whose they are."""

    start: Reals
    end: Reals
    radius_start: Reals
    radius_end: Reals
    owner: Ids

    @classmethod
    def join(cls, parts: Sequence[Cones]) -> Cones:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def take(self, where: npt.NDArray[np.generic]) -> Cones:
        return Cones(*(getattr(self, field.name)[where] for field in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.owner)

    def windows(self, axes_nm: Axes, reach_nm: float) -> npt.NDArray[np.int64]:
        """(n, 3, 2) index ranges of the grid points that each cone can reach.

        A rule on coordinates: a point is within reach or not, whatever box it is part of.
        """
        radius = np.maximum(self.radius_start, self.radius_end) + reach_nm
        low = np.minimum(self.start, self.end) - radius[:, None]
        high = np.maximum(self.start, self.end) + radius[:, None]
        ranges = [
            np.stack([np.searchsorted(axis, low[:, a]), np.searchsorted(axis, high[:, a])], axis=1)
            for a, axis in enumerate(axes_nm)
        ]
        return np.stack(ranges, axis=1)


@dataclasses.dataclass(frozen=True)
class Partition:
    """Who owns each point of a grid; zyx arrays.

    Attributes:
      owner: int32, place of the owner in the list of owners; NOBODY far from everything.
      first: float32 nm, signed distance to the nearest surface, negative inside.
      second: float32 nm, likewise to the nearest surface of another owner.
    """

    owner: Index
    first: Real
    second: Real


def partition(
    cones: Cones, ids: Ids, points: tuple[Real, Real, Real], axes_nm: Axes, slack_nm: float
) -> Partition:
    """Divides a grid of points among the owners of cones.

    Args:
      cones: sorted by owner.
      ids: the owners, ascending.
      points: z, y and x of each point, zyx float32 nm; within `slack_nm` of the grid.
      axes_nm: coordinates of the grid.
      slack_nm: how far points lie from the grid at most.
    """
    shape = points[0].shape
    owner = np.full(shape, NOBODY, np.int32)
    first = np.full(shape, REACH_NM, np.float32)
    second = np.full(shape, REACH_NM, np.float32)
    windows = cones.windows(axes_nm, REACH_NM + slack_nm)
    rank = np.searchsorted(ids, cones.owner).astype(np.int32)
    # One set of buffers for all cones, small enough to stay in a core's cache.
    buffers = np.empty((6, max(_SLAB_POINTS, shape[1] * shape[2])), np.float32)
    for n in np.flatnonzero((windows[:, :, 0] < windows[:, :, 1]).all(axis=1)).tolist():
        for window in _slabs(windows[n]):
            z, y, x = (p[window] for p in points)
            scratch = buffers[:, : z.size].reshape(6, *z.shape)
            distance = distance_to_cone(cones, n, z, y, x, scratch)
            _merge(distance, rank[n], owner[window], first[window], second[window], scratch[4:])
    return Partition(owner, first, second)


def _slabs(ranges: npt.NDArray[np.int64]) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts a window, (3, 2) index ranges, into slabs along z of at most `_SLAB_POINTS` points."""
    (z0, z1), (y0, y1), (x0, x1) = ranges.tolist()
    step = max(1, _SLAB_POINTS // ((y1 - y0) * (x1 - x0)))
    for z in range(z0, z1, step):
        yield slice(z, min(z + step, z1)), slice(y0, y1), slice(x0, x1)


def distance_to_cone(
    cones: Cones, n: int, z: Real, y: Real, x: Real, scratch: Real | None = None
) -> Real:
    """Signed distance (float32 nm) of points to the surface of one cone, negative inside.

    Only correctly rounded operations, so a point's value does not depend on its place in an array.
    `scratch`, of five or more arrays of the points' shape, is written to; the first is returned.
    """
    start, end = cones.start[n].astype(np.float32), cones.end[n].astype(np.float32)
    along = end - start
    squared = np.float32(max(float((along.astype(np.float64) ** 2).sum()), 1e-6))
    if scratch is None:
        scratch = np.empty((5, *z.shape), np.float32)
    away, part, product = scratch[:3], scratch[3], scratch[4]
    np.subtract(z, start[0], out=away[0])
    np.subtract(y, start[1], out=away[1])
    np.subtract(x, start[2], out=away[2])
    np.multiply(away[0], along[0], out=part)
    for axis in (1, 2):
        np.multiply(away[axis], along[axis], out=product)
        part += product
    part *= np.float32(1) / squared
    np.maximum(part, np.float32(0), out=part)
    np.minimum(part, np.float32(1), out=part)
    for axis in range(3):
        np.multiply(part, along[axis], out=product)
        away[axis] -= product
        away[axis] *= away[axis]
    distance = away[0]
    distance += away[1]
    distance += away[2]
    np.sqrt(distance, out=distance)
    part *= np.float32(cones.radius_end[n] - cones.radius_start[n])
    distance -= part
    distance -= np.float32(cones.radius_start[n])
    return distance


def _merge(
    distance: Real, rank: np.int32, owner: Index, first: Real, second: Real, scratch: Real
) -> None:
    """Enters one cone: `second` stays the nearest surface of any owner but the first."""
    rival, penalty = scratch
    # The rival of the nearer of the two, unless both are one owner's.
    np.maximum(first, distance, out=rival)
    np.multiply(owner == rank, np.float32(1e9), out=penalty)
    rival += penalty
    np.minimum(second, rival, out=second)
    np.copyto(owner, rank, where=distance < first)
    np.minimum(first, distance, out=first)


def nearest_two(cones: Cones, points: Reals) -> tuple[Ids, Ids]:
    """Ids of the owners of the nearest and the second nearest surface at (n, 3) points (nm).

    0 stands for nobody within `REACH_NM`.
    """
    reach = np.maximum(cones.radius_start, cones.radius_end) + REACH_NM
    low = np.minimum(cones.start, cones.end) - reach[:, None]
    high = np.maximum(cones.start, cones.end) + reach[:, None]
    found = np.zeros((2, len(points)), np.uint64)
    for n, point in enumerate(points):
        near = np.flatnonzero(((low <= point) & (point <= high)).all(axis=1))
        z, y, x = (np.full(1, p, np.float32) for p in point)
        distance = np.array([distance_to_cone(cones, m, z, y, x)[0] for m in near.tolist()])
        order = np.argsort(distance, kind='stable')
        owners = cones.owner[near][order]
        if len(owners):
            found[0, n] = owners[0]
            others = owners[owners != owners[0]]
            found[1, n] = others[0] if len(others) else 0
    return found[0], found[1]
