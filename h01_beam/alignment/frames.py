r"""The frames that a pixel passes on its way from the aligned volume to a tile.

    aligned, full size --(downsample)--> aligned --(mesh)--> rough --(affine)--> montage
        --(downsample)--> frame of the section --(nodes of stitching)--> tile

A pixel of a frame that is `f` times coarser covers f x f of the finer one: coarse pixel p has its
centre at f p + (f - 1) / 2 of the finer. The aligned frame is `margin` pixels wider on all sides
than the frame of the montage.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Block, BoundingBox, Triple
from h01_beam.registration.maps import CoordinateMap, from_affine, grid_points, invert_affine
from h01_beam.stitching.frames import Frames
from h01_beam.tables import Columns, Schema
from h01_beam.volume import VolumeSpec

Reals = npt.NDArray[np.float64]

# Affine maps, montage -> aligned, of all sections, for (y, x, 1). Sections of one group hang
# together by matches; state: 'placed', 'loose' (part of a smaller group) or 'unmatched'.
AFFINES = Schema(
    {
        'section': 'int64',
        'yy': 'float64', 'yx': 'float64', 'y1': 'float64',
        'xy': 'float64', 'xx': 'float64', 'x1': 'float64',
        'group': 'int64',
        'matches': 'int64',
        'misfit': 'float64',
        'state': 'str',
    }
)  # fmt: skip
# Pixels between the nodes at which the composed map is exact.
RENDER_STRIDE = 32


def aligned_shape(montage: VolumeSpec, margin: int) -> Triple:
    """Zyx pixels of the aligned frame, at the size of the montage's pixels."""
    sections, height, width = montage.shape
    return sections, height + 2 * margin, width + 2 * margin


def affine_of(affines: Columns, position: int) -> Reals:
    """The (2, 3) map of a section, montage -> aligned; rows may be of any sections."""
    row = _row_of(affines, position)
    names = (('yy', 'yx', 'y1'), ('xy', 'xx', 'x1'))
    return np.array([[float(affines[name][row]) for name in several] for several in names])


def state_of(affines: Columns, position: int) -> str:
    """Whether a section is 'placed'."""
    return str(affines['state'][_row_of(affines, position)])


def _row_of(affines: Columns, position: int) -> int:
    return int(np.flatnonzero(affines['section'] == position)[0])


def rescale_affine(affine: Reals, factor: float, margin: float = 0.0) -> Reals:
    """A map between frames that are `factor` times coarser, as one between the finer ones.

    Args:
      affine: (2, 3), between coarse frames.
      factor: of their pixels to those of the finer ones.
      margin: pixels of the finer frame that places move by.
    """
    half = np.full(2, (factor - 1) / 2)
    linear = affine[:, :2]
    shift = factor * affine[:, 2] + half - linear @ half + margin
    return np.concatenate([linear, shift[:, None]], axis=1)


def reduce_affine(affine: Reals, factor: float, margin: float = 0.0) -> Reals:
    """The inverse of `rescale_affine`."""
    half = np.full(2, (factor - 1) / 2)
    linear = affine[:, :2]
    shift = (affine[:, 2] - half + linear @ half - margin) / factor
    return np.concatenate([linear, shift[:, None]], axis=1)


def rough_map(affine: Reals, core: BoundingBox) -> CoordinateMap:
    """Where in the montage a block of the roughly aligned section is found."""
    start, shape = core.start[1:], core.shape[1:]
    nodes = tuple(-(-n // RENDER_STRIDE) + 1 for n in shape)
    back = invert_affine(affine)
    return from_affine(back, (start[0], start[1]), RENDER_STRIDE, (nodes[0], nodes[1]))


@dataclasses.dataclass(frozen=True)
class ToFrame:
    """From the aligned volume at full size to the frame of a section.

    Attributes:
      affine: (2, 3) montage -> aligned.
      mesh: aligned -> rough, both at the montage's pixels.
      downsample: of the montage.
    """

    affine: Reals
    mesh: CoordinateMap
    downsample: int

    def __call__(self, points: Reals) -> Reals:
        """Maps points, (2, ...) y and x; beyond the last nodes vectors are those of the border."""
        half = (self.downsample - 1) / 2
        rough = self.rough(points)
        back = invert_affine(self.affine)
        shift = back[:, 2].reshape((2,) + (1,) * (points.ndim - 1))
        return (np.tensordot(back[:, :2], rough, axes=1) + shift) * self.downsample + half

    def rough(self, points: Reals) -> Reals:
        """Where points are found in the roughly aligned section, in its pixels."""
        half = (self.downsample - 1) / 2
        places = (points - half) / self.downsample
        ends = (2,) + (1,) * (points.ndim - 1)
        first = np.reshape(self.mesh.start, ends)
        last = first + (np.reshape(self.mesh.shape, ends) - 1) * self.mesh.stride
        inside = np.clip(places, first, last)
        return places + (self.mesh(inside) - inside)

    def over(self, start: tuple[int, int], shape: tuple[int, int]) -> CoordinateMap:
        """The map on a lattice that does not depend on the box of pixels that it covers."""
        return self._on_lattice(self, start, shape)

    def rough_over(self, start: tuple[int, int], shape: tuple[int, int]) -> CoordinateMap:
        """The map to the roughly aligned section, on the same lattice."""
        return self._on_lattice(self.rough, start, shape)

    @staticmethod
    def _on_lattice(
        places: Callable[[Reals], Reals], start: tuple[int, int], shape: tuple[int, int]
    ) -> CoordinateMap:
        low = [math.floor(s / RENDER_STRIDE) for s in start]
        high = [math.ceil((s + n) / RENDER_STRIDE) for s, n in zip(start, shape, strict=True)]
        first = (float(low[0] * RENDER_STRIDE), float(low[1] * RENDER_STRIDE))
        nodes = (high[0] - low[0] + 1, high[1] - low[1] + 1)
        points = grid_points(first, RENDER_STRIDE, nodes)
        return CoordinateMap((places(points) - points).astype(np.float32), first, RENDER_STRIDE)


@dataclasses.dataclass(frozen=True)
class Slices:
    """Which section every z of the aligned volume shows.

    Attributes:
      positions: of the section, for each z; -1 where it is missing.
    """

    positions: tuple[int, ...]

    @classmethod
    def of(cls, sections: Columns, nominal_nm: float) -> Slices:
        """Sections at their numbers; one that is twice as thick fills the next z too."""
        numbers = sections['section'].tolist()
        repeats = np.maximum(1, np.rint(sections['thickness_nm'] / nominal_nm)).astype(int)
        last = max(n + r for n, r in zip(numbers, repeats.tolist(), strict=True))
        positions = [-1] * (last - numbers[0])
        for position, (number, repeat) in enumerate(zip(numbers, repeats.tolist(), strict=True)):
            for z in range(number, number + repeat):
                if z == number or z not in numbers:
                    positions[z - numbers[0]] = position
        return cls(tuple(positions))


@dataclasses.dataclass(frozen=True)
class OfSlice:
    """The rows of the section that a block of the aligned volume shows.

    Attributes:
      slices: which that is.
    """

    slices: Slices

    def __call__(self, block: Block) -> BoundingBox | None:
        position = self.slices.positions[block.index[0]]
        return None if position < 0 else BoundingBox((position, 0, 0), (1, 1, 1))


@dataclasses.dataclass(frozen=True)
class CellsOfSlice:
    """The cells whose tiles a block of the aligned volume may show; read by the table of affines.

    Attributes:
      slices: which section that is.
      frames: of the sections.
      downsample: of the montage.
      reach: pixels of the montage that the mesh leads away at most.
    """

    slices: Slices
    frames: Frames
    downsample: int
    reach: int

    def __call__(self, block: Block, affines: Columns) -> BoundingBox | None:
        position = self.slices.positions[block.index[0]]
        if position < 0 or state_of(affines, position) != 'placed':
            return None
        low, high = self._rough(block)
        back = invert_affine(affine_of(affines, position))
        corners = np.array([[y, x, 1.0] for y in (low[0], high[0]) for x in (low[1], high[1])])
        places = corners @ back.T * self.downsample + (self.downsample - 1) / 2
        return self.frames.cells_below(position, places.min(axis=0), places.max(axis=0))

    def largest(self, block: Block) -> BoundingBox | None:
        """Of a section that is turned by 45 degrees: see `RowRegion`."""
        position = self.slices.positions[block.index[0]]
        if position < 0:
            return None
        low, high = self._rough(block)
        extent = np.full(2, (high - low).sum() / math.sqrt(2)) * self.downsample
        last = np.maximum(extent, self.frames.shape) - extent / 2
        middle = np.clip((low + high) / 2 * self.downsample, extent / 2, last)
        cells = self.frames.cells_below(position, middle - extent / 2, middle + extent / 2)
        return cells.intersection(self.frames.cells.bounds)

    def _rough(self, block: Block) -> tuple[Reals, Reals]:
        """Corners of what the block may show of the roughly aligned section."""
        start, end = np.array(block.core.start[1:]), np.array(block.core.end[1:])
        low = (start - RENDER_STRIDE) / self.downsample - self.reach
        return low, (end + RENDER_STRIDE) / self.downsample + self.reach


@dataclasses.dataclass(frozen=True)
class PixelsOfRough:
    """The pixels that a block of the roughly aligned section shows; read by the table of affines.

    Attributes:
      bounds: of the montage.
      factor: pixels of the montage to one of what is read: its thumbnail, or itself.
    """

    bounds: BoundingBox
    factor: int = 1

    def __call__(self, block: Block, affines: Columns) -> BoundingBox | None:
        position = block.core.start[0]
        if state_of(affines, position) != 'placed':
            return None
        places = rough_map(affine_of(affines, position), block.core).places().reshape(2, -1)
        # What is sampled at a place lies up to two pixels away.
        low = np.floor(places.min(axis=1)).astype(int) - 2
        high = np.ceil(places.max(axis=1)).astype(int) + 3
        box = BoundingBox.from_bounds((position, *low.tolist()), (position + 1, *high.tolist()))
        inside = box.intersection(self.bounds)
        return inside.scale_down((1, self.factor, self.factor)) if inside else None

    def largest(self, block: Block) -> BoundingBox:
        """Of a section that is turned by 45 degrees: see `RowRegion`."""
        # The nodes of the map reach up to a stride beyond the block.
        side = math.ceil((sum(block.core.shape[1:]) + 2 * RENDER_STRIDE) / math.sqrt(2)) + 6
        low, high = [block.core.start[0]], [block.core.end[0]]
        for axis in (1, 2):
            size = min(side, self.bounds.shape[axis])
            start = (block.core.start[axis] + block.core.end[axis] - size) // 2
            start = min(max(start, self.bounds.start[axis]), self.bounds.end[axis] - size)
            low, high = [*low, start], [*high, start + size]
        box = BoundingBox.from_bounds((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        return box.scale_down((1, self.factor, self.factor))


@dataclasses.dataclass(frozen=True)
class NodesOfSlice:
    """The nodes of the mesh around a block of the aligned volume.

    Attributes:
      slices: which section that is.
      pitch: full-size pixels between nodes.
      bounds: of the mesh.
    """

    slices: Slices
    pitch: int
    bounds: BoundingBox

    def __call__(self, block: Block) -> BoundingBox | None:
        position = self.slices.positions[block.index[0]]
        if position < 0:
            return None
        low = [(s - RENDER_STRIDE) // self.pitch - 1 for s in block.core.start[1:]]
        high = [(e + RENDER_STRIDE) // self.pitch + 3 for e in block.core.end[1:]]
        box = BoundingBox.from_bounds((position, low[0], low[1]), (position + 1, high[0], high[1]))
        return box.intersection(self.bounds)


@dataclasses.dataclass(frozen=True)
class PixelsOfSlice:
    """The pixels of a roughly aligned section that a block of the aligned volume may show.

    Attributes:
      slices: which section that is.
      factor: full-size pixels to one of the rough section.
      reach: pixels of it that the mesh leads away at most.
      bounds: of the rough sections.
    """

    slices: Slices
    factor: int
    reach: int
    bounds: BoundingBox

    def __call__(self, block: Block) -> BoundingBox | None:
        position = self.slices.positions[block.index[0]]
        if position < 0:
            return None
        low = [s // self.factor - self.reach for s in block.core.start[1:]]
        high = [-(-e // self.factor) + self.reach for e in block.core.end[1:]]
        box = BoundingBox.from_bounds((position, low[0], low[1]), (position + 1, high[0], high[1]))
        return box.intersection(self.bounds)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """The box of a block in another section of a volume.

    Attributes:
      bounds: of the volume.
      back: sections before the block's own; those behind it are negative.
      scale: voxels of the volume to one of the block's grid, y and x.
      halo: voxels of the volume around, y and x.
    """

    bounds: BoundingBox
    back: int = 0
    scale: int = 1
    halo: int = 0

    def __call__(self, block: Block) -> BoundingBox | None:
        z = block.core.start[0] - self.back
        if not self.bounds.start[0] <= z < self.bounds.end[0]:
            return None
        low = [s * self.scale - self.halo for s in block.core.start[1:]]
        high = [e * self.scale + self.halo for e in block.core.end[1:]]
        box = BoundingBox.from_bounds((z, low[0], low[1]), (z + 1, high[0], high[1]))
        return box.intersection(self.bounds)


@dataclasses.dataclass(frozen=True)
class Everything:
    """One box for all blocks."""

    box: BoundingBox

    def __call__(self, block: Block) -> BoundingBox:
        return self.box
