"""Three orthogonal planes through the centre of a volume: what a figure shows of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox, Triple
from h01_beam.volume import Volume, VoxelSize


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planes:
    """Three planes of one box.

    Attributes:
      yx, zx, zy: the planes; the axes of the arrays are as named.
      box: zyx voxels that the planes span.
      centre: the voxel (zyx) in which they meet.
    """

    yx: npt.NDArray[Any]
    zx: npt.NDArray[Any]
    zy: npt.NDArray[Any]
    box: BoundingBox
    centre: Triple

    @classmethod
    def of(cls, array: npt.NDArray[Any], start: Triple = (0, 0, 0)) -> Planes:
        """The planes through the centre of a zyx array whose first voxel is `start`."""
        z, y, x = (n // 2 for n in array.shape)
        box = BoundingBox(start, array.shape)
        centre = (start[0] + z, start[1] + y, start[2] + x)
        return cls(yx=array[z], zx=array[:, y], zy=array[:, :, x], box=box, centre=centre)


def central_box(bounds: BoundingBox, voxel_size_nm: VoxelSize, voxels: int = 512) -> BoundingBox:
    """The middle of a volume: as close to a cube in nm as it has room for.

    Args:
      bounds: of the volume.
      voxel_size_nm: zyx.
      voxels: edge of the cube, in voxels of the finest axis.
    """
    edge_nm = voxels * min(voxel_size_nm)
    shape = [
        max(1, min(n, round(edge_nm / size)))
        for n, size in zip(bounds.shape, voxel_size_nm, strict=True)
    ]
    start = [s + (n - m) // 2 for s, n, m in zip(bounds.start, bounds.shape, shape, strict=True)]
    return BoundingBox((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))


def read_planes(volume: Volume, box: BoundingBox) -> Planes:
    """Reads the three planes through the centre of a box, and no more than them."""
    z, y, x = (s + n // 2 for s, n in zip(box.start, box.shape, strict=True))
    thin = [(z, 0), (y, 1), (x, 2)]
    yx, zx, zy = (
        np.squeeze(volume.read(_slab(box, axis, voxel)), axis=axis) for voxel, axis in thin
    )
    return Planes(yx=yx, zx=zx, zy=zy, box=box, centre=(z, y, x))


def _slab(box: BoundingBox, axis: int, voxel: int) -> BoundingBox:
    start, shape = list(box.start), list(box.shape)
    start[axis], shape[axis] = voxel, 1
    return BoundingBox((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))
