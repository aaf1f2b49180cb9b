"""Cones with round ends, and the division of space among those who own them.

Every point of space belongs to the owner whose surface it is least far outside of (or deepest
inside of), an additively weighted Voronoi diagram. Where an owner's cones hang together and none of
their axes lies inside of another owner, what it gets hangs together too: from any of its points,
the way straight to the nearest axis stays within.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Real = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint64]
Index = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
Axes = tuple[Reals, Reals, Reals]

# Beyond this distance from every surface there is nothing but extracellular space.
REACH_NM = 190.0
NOBODY = -1
# Grid points along z, y, x that all cones are entered in before the next: they fit a core's cache.
_TILE = (8, 8, 256)


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
    there = np.flatnonzero((windows[:, :, 0] < windows[:, :, 1]).all(axis=1))
    shapes = _Shapes.of(cones.take(there))
    _divide(points, windows[there], rank[there], shapes, owner, first, second)
    return Partition(owner, first, second)


class _Shapes(NamedTuple):
    """Cones as `distance_to_cone` takes them: (n, 3) and (n,) float32."""

    start: Real
    along: Real
    scale: Real
    radius: Real
    widens: Real

    @classmethod
    def of(cls, cones: Cones) -> _Shapes:
        start, along = cones.start.astype(np.float32), cones.end.astype(np.float32)
        along -= start
        squared = np.maximum((along.astype(np.float64) ** 2).sum(axis=1), 1e-6)
        return cls(
            start=start,
            along=along,
            scale=np.float32(1) / squared.astype(np.float32),
            radius=cones.radius_start.astype(np.float32),
            widens=(cones.radius_end - cones.radius_start).astype(np.float32),
        )


# Compiled: it is most of the work, and thirty passes over memory as NumPy does it.
@numba.njit(cache=True, nogil=True)
def _divide(
    points: tuple[Real, Real, Real],
    windows: npt.NDArray[np.int64],
    rank: Index,
    shapes: _Shapes,
    owner: Index,
    first: Real,
    second: Real,
) -> None:
    """Enters one cone after the other: `second` is the nearest surface of any owner but the first.

    Only correctly rounded operations, so a point's value does not depend on its place in an array.
    """
    shape = points[0].shape
    row = np.empty(_TILE[2], np.float32)
    for tile_z in range(0, shape[0], _TILE[0]):
        for tile_y in range(0, shape[1], _TILE[1]):
            for tile_x in range(0, shape[2], _TILE[2]):
                for n in range(len(rank)):
                    (z0, z1), (y0, y1), (x0, x1) = windows[n]
                    x0, x1 = max(x0, tile_x), min(x1, tile_x + _TILE[2])
                    if x0 >= x1:
                        continue
                    for i in range(max(z0, tile_z), min(z1, tile_z + _TILE[0])):
                        for j in range(max(y0, tile_y), min(y1, tile_y + _TILE[1])):
                            z, y, x = points[0][i, j], points[1][i, j], points[2][i, j]
                            _measure(z[x0:x1], y[x0:x1], x[x0:x1], shapes, n, row)
                            _enter(
                                rank[n], row,
                                owner[i, j, x0:x1], first[i, j, x0:x1], second[i, j, x0:x1],
                            )  # fmt: skip


# Two loops of few arrays, without branches: these the compiler turns into vector instructions.
@numba.njit(inline='always')
def _measure(z: Real, y: Real, x: Real, shapes: _Shapes, n: int, row: Real) -> None:
    """`distance_to_cone` of a row of points."""
    zero, one = np.float32(0), np.float32(1)
    z0, y0, x0 = shapes.start[n]
    along_z, along_y, along_x = shapes.along[n]
    scale, radius, widens = shapes.scale[n], shapes.radius[n], shapes.widens[n]
    for k in range(len(z)):
        dz, dy, dx = z[k] - z0, y[k] - y0, x[k] - x0
        part = (dz * along_z + dy * along_y + dx * along_x) * scale
        part = part if part > zero else zero
        part = part if part < one else one
        dz -= part * along_z
        dy -= part * along_y
        dx -= part * along_x
        row[k] = np.sqrt(dz * dz + dy * dy + dx * dx) - part * widens - radius


@numba.njit(inline='always')
def _enter(rank: np.int32, row: Real, owner: Index, first: Real, second: Real) -> None:
    for k in range(len(owner)):
        distance, nearest, of = row[k], first[k], owner[k]
        nearer = distance < nearest
        rival = nearest if nearer else distance
        rival = second[k] if of == rank else rival
        second[k] = rival if rival < second[k] else second[k]
        first[k] = distance if nearer else nearest
        owner[k] = rank if nearer else of


def distance_to_cone(cones: Cones, which: Places, z: Real, y: Real, x: Real) -> Real:
    """Signed distances (float32 nm) of points to the surfaces of cones, negative inside.

    Only correctly rounded operations, so a value does not depend on its place in an array.

    Args:
      cones: some.
      which: (k,) places of those that count.
      z: (1, n) float32 nm.
      y: (1, n) float32 nm.
      x: (1, n) float32 nm.

    Returns:
      (k, n).
    """
    shapes = _Shapes.of(cones.take(which))
    start, along = shapes.start[..., None], shapes.along[..., None]
    away = [point - start[:, axis] for axis, point in enumerate((z, y, x))]
    part = away[0] * along[:, 0]
    for axis in (1, 2):
        part += away[axis] * along[:, axis]
    part *= shapes.scale[:, None]
    np.clip(part, np.float32(0), np.float32(1), out=part)
    for axis in range(3):
        away[axis] -= part * along[:, axis]
        away[axis] *= away[axis]
    distance = np.sqrt(away[0] + away[1] + away[2])
    distance -= part * shapes.widens[:, None]
    distance -= shapes.radius[:, None]
    return distance


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
        z, y, x = (np.full((1, 1), p, np.float32) for p in point)
        order = np.argsort(distance_to_cone(cones, near, z, y, x)[:, 0], kind='stable')
        owners = cones.owner[near][order]
        if len(owners):
            found[0, n] = owners[0]
            others = owners[owners != owners[0]]
            found[1, n] = others[0] if len(others) else 0
    return found[0], found[1]
