r"""Frames of sections, and the cells by which their tiles are dealt out.

Stage positions of all sections are put into frames that start near 0: each section is moved by a
whole number of pixels, its origin, so that all its tiles lie `margin` pixels inside or more.
Sections whose stage positions share a frame are moved by one and the same origin, so that one that
lacks its first tiles is not shifted against the others. All sections share one extent, cut into
square cells; a tile belongs to the cell that holds its first pixel by the stage.

    (0, 0) of the frame
    +-------+-------+-------+
    |  +----|--+    |       |    cells are the unit of work: block (position of the section,
    |  | tile  |    |       |    row, column) of the stages of stitching
    |  +----|--+    |       |
    +-------+-------+-------+

A section added later must not move those that are there, or all of them would have to be stitched
again: origins and extents are whole multiples of the margin, so that a stage that returns to within
a few pixels of where it was leaves them as they are.
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

# Two sections share a frame of the stage if their extents overlap by this share of the smaller.
SHARED = 0.8
# Pixels by which bent tiles may reach beyond where they would lie unbent.
_BENDING = 64


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames and cells of all sections of an acquisition.

    Attributes:
      pixel_nm: of the tiles.
      margin: pixels that tiles may be away from where the stage has them, y and x alike.
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
        _, ends = _extents(acquisition)
        reach = np.nanmax(ends - find_origins(acquisition, margin), axis=0) + margin
        y, x = (math.ceil(n / margin) * margin for n in reach.tolist())
        return cls(
            acquisition.pixel_nm,
            margin,
            tile_shape,
            length(acquisition.sections),
            (y, x),
            (tile_shape[0] * cell_tiles, tile_shape[1] * cell_tiles),
        )

    @property
    def cells(self) -> BlockGrid:
        """One block for each cell; it reads one cell around."""
        rows, columns = (-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))
        return BlockGrid(
            BoundingBox((0, 0, 0), (self.sections, rows, columns)), (1, 1, 1), (0, 1, 1)
        )

    def stage_places(self, tiles: Columns, origin: Columns) -> Reals:
        """(n, 2) places of the first pixels of a section's tiles in its frame, by the stage.

        Args:
          tiles: of the section.
          origin: its row of `ORIGINS`.
        """
        return _stage(tiles, self.pixel_nm) - np.stack([origin['y'], origin['x']], axis=1)

    def cell_of(self, places: Reals) -> Ints:
        """(n, 2) row and column of the cells of tiles, from their places by the stage."""
        return (places // np.array(self.cell)).astype(np.int64)

    def cells_below(self, position: int, low: Reals, high: Reals) -> BoundingBox:
        """The cells of a section whose tiles may reach a box, given by its corners, of its frame.

        Tiles that move further than the margin are left out: see `SolvePlaces`.
        """
        reach = self.margin + _BENDING
        first = (np.floor(low) - self.tile_shape - reach) // self.cell
        last = (np.ceil(high) + reach) // self.cell
        y, x = np.maximum(first, 0).astype(int).tolist()
        h, w = np.maximum(last - np.maximum(first, 0) + 1, 0).astype(int).tolist()
        return BoundingBox((position, y, x), (1, h, w))


@dataclasses.dataclass(frozen=True)
class WholeSection:
    """All cells of a section for its first cell, nothing for the others."""

    rows: int
    columns: int

    def __call__(self, block: Block) -> BoundingBox | None:
        z, y, x = block.index
        return None if y or x else BoundingBox((z, 0, 0), (1, self.rows, self.columns))


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
        low, high = (
            np.array(corner[1:], np.float64) * self.downsample
            for corner in (block.core.start, block.core.end)
        )
        return self.frames.cells_below(block.core.start[0], low, high)


def find_origins(acquisition: Acquisition, margin: int) -> Ints:
    """What of the stage comes to lie at (0, 0) of each section's frame.

    Sections share an origin if their extents by the stage overlap (see `SHARED`) that of the first
    of them; then the rest is dealt with likewise. So later sections change nothing for earlier ones
    but where they reach further. Some microscopes begin every section, or every session, anywhere
    on the wafer: those have origins of their own.

    Args:
      acquisition: the manifest.
      margin: pixels between the frame's border and the first tile at the least.

    Returns:
      (n, 2) y and x pixels of the stage, multiples of `margin`; 0 for sections without tiles.
    """
    starts, ends = _extents(acquisition)
    frames = _group_extents(starts, ends)
    origins = np.zeros(starts.shape, np.int64)
    for frame in range(frames.max() + 1):
        members = frames == frame
        first = np.floor(starts[members].min(axis=0) / margin).astype(np.int64)
        origins[members] = (first - 1) * margin
    return origins


def _extents(acquisition: Acquisition) -> tuple[Reals, Reals]:
    """(n, 2) first and last pixels (excluded) of sections by the stage; NaN without tiles."""
    count = length(acquisition.sections)
    starts, ends = np.full((count, 2), np.nan), np.full((count, 2), np.nan)
    for position, (_, tiles) in enumerate(acquisition.by_section()):
        if length(tiles):
            places = _stage(tiles, acquisition.pixel_nm)
            starts[position] = places.min(axis=0)
            ends[position] = places.max(axis=0) + (tiles['height'][0], tiles['width'][0])
    return starts, ends


def _group_extents(starts: Reals, ends: Reals) -> Ints:
    """(n,) numbers of the frames that sections share; -1 for those that have no extent."""
    areas = (ends - starts).prod(axis=1)
    # Small ones tell little of what lies around them.
    small = ~(areas >= np.nanmax(areas) / 2)
    frames = np.full(len(starts), -1)
    number = 0
    for one in np.argsort(small, kind='stable').tolist():
        if frames[one] >= 0 or np.isnan(areas[one]):
            continue
        shared = np.ones(len(areas))
        for low, high in zip(starts.T, ends.T, strict=True):
            span = np.minimum(high, high[one]) - np.maximum(low, low[one])
            shared *= np.maximum(span, 0)
        # NaN, where there is no extent, exceeds nothing.
        enough = shared >= SHARED * np.minimum(areas, areas[one])
        frames[enough & (frames < 0)] = number
        number += 1
    return frames


def _stage(tiles: Columns, pixel_nm: float) -> Reals:
    return np.stack([tiles['y_nm'], tiles['x_nm']], axis=1) / pixel_nm
