r"""Frames of sections, and the cells by which their tiles are dealt out.

Stage positions of all sections are put into frames that start near 0: each is moved by a whole
number of pixels, so that its first tile lies `margin` pixels inside. All sections then share one
extent, cut into square cells; a tile belongs to the cell that holds its first pixel by the stage.

    (0, 0) of the frame
    +-------+-------+-------+
    |  +----|--+    |       |    cells are the unit of work: block (position of the section,
    |  | tile  |    |       |    row, column) of the stages of stitching
    |  +----|--+    |       |
    +-------+-------+-------+
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from h01_beam.acquisition.tables import Acquisition
from h01_beam.geometry import Block, BlockGrid, BoundingBox
from h01_beam.tables import Columns, length

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames and cells of all sections of an acquisition.

    Attributes:
      pixel_nm: of the tiles.
      margin: pixels between the frame's border and the first tile by the stage.
      tile_shape: of the largest tile, pixels.
      sections: number of sections.
      shape: y and x pixels of the largest section, margins included.
      cell: pixels along a side of a cell, y and x.
    """

    pixel_nm: float
    margin: int
    tile_shape: tuple[int, int]
    sections: int
    shape: tuple[int, int]
    cell: tuple[int, int]

    @classmethod
    def of(cls, acquisition: Acquisition, margin: int, cell_tiles: int) -> Frames:
        """Lays out the frames of an acquisition."""
        tiles = acquisition.tiles
        tile_shape = (int(tiles['height'].max()), int(tiles['width'].max()))
        extent = np.zeros(2)
        for _, rows in acquisition.by_section():
            if length(rows):
                places = _stage(rows, acquisition.pixel_nm)
                extent = np.maximum(extent, np.ptp(places, axis=0))
        shape = [math.ceil(e) + n + 2 * margin for e, n in zip(extent, tile_shape, strict=True)]
        return cls(
            acquisition.pixel_nm,
            margin,
            tile_shape,
            length(acquisition.sections),
            (shape[0], shape[1]),
            (tile_shape[0] * cell_tiles, tile_shape[1] * cell_tiles),
        )

    @property
    def cells(self) -> BlockGrid:
        """One block for each cell; it reads one cell around."""
        rows, columns = (-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))
        return BlockGrid(
            BoundingBox((0, 0, 0), (self.sections, rows, columns)), (1, 1, 1), (0, 1, 1)
        )

    def stage_places(self, tiles: Columns) -> Reals:
        """(n, 2) places of the first pixels of a section's tiles in its frame, by the stage."""
        places = _stage(tiles, self.pixel_nm)
        origin = np.floor(places.min(axis=0)) if len(places) else np.zeros(2)
        return places - origin + self.margin

    def cell_of(self, places: Reals) -> Ints:
        """(n, 2) row and column of the cells of tiles, from their places by the stage."""
        return (places // np.array(self.cell)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class WholeSection:
    """All cells of a section for its first cell, nothing for the others."""

    rows: int
    columns: int

    def __call__(self, block: Block) -> BoundingBox | None:
        z, y, x = block.index
        return None if y or x else BoundingBox((z, 0, 0), (1, self.rows, self.columns))


@dataclasses.dataclass(frozen=True)
class SectionRows:
    """The rows of a section that are kept with its first cell, for all of its blocks."""

    def __call__(self, block: Block) -> BoundingBox:
        return BoundingBox((block.core.start[0], 0, 0), (1, 1, 1))


@dataclasses.dataclass(frozen=True)
class CellsBelow:
    """The cells whose tiles may reach a block of the montage.

    Attributes:
      frames: of the sections.
      downsample: pixels of a frame to a pixel of the montage.
    """

    frames: Frames
    downsample: int

    def __call__(self, block: Block) -> BoundingBox:
        low, high = [], []
        for axis in range(2):
            start = block.core.start[1 + axis] * self.downsample
            end = block.core.end[1 + axis] * self.downsample
            # Tiles move from where the stage has them by no more than the margin.
            first = start - self.frames.tile_shape[axis] - self.frames.margin
            last = end + self.frames.margin
            low.append(max(0, first // self.frames.cell[axis]))
            high.append(last // self.frames.cell[axis] + 1)
        z = block.core.start[0]
        return BoundingBox.from_bounds((z, low[0], low[1]), (z + 1, high[0], high[1]))


def _stage(tiles: Columns, pixel_nm: float) -> Reals:
    return np.stack([tiles['y_nm'], tiles['x_nm']], axis=1) / pixel_nm
