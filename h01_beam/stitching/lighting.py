"""What the stages of lighting do: tiles of a beam in, flat fields out; a block is (section, beam).

sum_lighting     tiles of the beam in the section -> sums
solve_lighting   sums of the beam in the sections around -> its flat field in the section
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from h01_beam.acquisition.tables import Acquisition
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Region, Triple
from h01_beam.imaging.illumination import (
    FlatField,
    FlatFieldConfig,
    FlatFieldSums,
    estimate_flat_field,
    sums_shape,
)
from h01_beam.plan import BlockResult, TableRead
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.tiles import TileImages
from h01_beam.tables import Columns, length

# Floats that the means of a tile's cells take, for each pixel.
_WORKING_FLOATS = 6


@dataclasses.dataclass(frozen=True)
class Lights:
    """The beams of an acquisition, whose lighting is known section by section.

    Attributes:
      beams: their numbers, ascending.
      sections: number of sections.
    """

    beams: tuple[int, ...]
    sections: int

    @classmethod
    def of(cls, acquisition: Acquisition) -> Lights:
        """All beams that any tile is of."""
        beams = np.unique(acquisition.tiles['beam']).tolist()
        return cls(tuple(beams), length(acquisition.sections))

    @property
    def grid(self) -> BlockGrid:
        """One block for each section and beam."""
        return BlockGrid(BoundingBox((0, 0, 0), (self.sections, len(self.beams), 1)), (1, 1, 1))


@dataclasses.dataclass(frozen=True)
class SectionsAround:
    """The blocks of a beam in the sections around.

    Attributes:
      sections: number of all.
      before: how many before.
      after: how many after.
    """

    sections: int
    before: int
    after: int

    def __call__(self, block: Block) -> BoundingBox:
        z, beam, _ = block.index
        start, end = max(0, z - self.before), min(self.sections, z + self.after + 1)
        return BoundingBox((start, beam, 0), (end - start, 1, 1))


@dataclasses.dataclass(frozen=True)
class SumLighting:
    """Adds up what the good tiles of one beam in one section say.

    Attributes:
      config: of flat fields.
      grey_range: of 16-bit tiles.
      lights: which beam a block is of.
      tile_shape: of the largest tile, pixels.
    """

    config: FlatFieldConfig
    grey_range: tuple[float, float] | None
    lights: Lights
    tile_shape: tuple[int, int]

    def depends_on(self) -> list[Any]:
        config = self.config
        summed = [config.cell, config.zero_level, config.min_tissue, config.max_tiles]
        return [*summed, self.grey_range, self.lights.beams]

    def working_bytes(self, read_shape: Triple) -> int:
        return 4 * _WORKING_FLOATS * math.prod(self.tile_shape)

    def __call__(self, tiles: Columns, block: Block) -> BlockResult:
        if not length(tiles):
            return BlockResult()
        mine = tiles['beam'] == self.lights.beams[block.index[1]]
        # Suspect ones are blurred, charged, or show no tissue.
        rows = np.flatnonzero(mine & (tiles['state'].astype(str) == 'good'))
        if not len(rows):
            return BlockResult()
        spread = np.linspace(0, len(rows) - 1, min(len(rows), self.config.max_tiles))
        images = TileImages(tiles, self.grey_range, keep=1)
        shape = int(tiles['height'][0]), int(tiles['width'][0])
        sums, there = FlatFieldSums.empty(shape, self.config), np.ones(shape, np.bool_)
        for row in rows[np.unique(np.rint(spread).astype(np.int64))].tolist():
            sums = sums.add(images[row], there, self.config)
        cells = sums.total.size
        columns = {
            'section': np.full(cells, tiles['section'][0]),
            'total': sums.total.ravel(),
            'count': sums.count.ravel(),
            'columns': np.full(cells, sums.total.shape[1]),
            'tiles': np.full(cells, sums.tiles),
        }
        return BlockResult(
            rows={'light_sums': columns}, metrics={'tiles': sums.tiles, 'skipped': sums.skipped}
        )


@dataclasses.dataclass(frozen=True)
class SolveLighting:
    """Estimates the flat field of one beam in one section: numbers only.

    Attributes:
      config: of flat fields.
      lights: which beam a block is of.
    """

    config: FlatFieldConfig
    lights: Lights

    def depends_on(self) -> list[Any]:
        return [self.config, self.lights.beams]

    def __call__(self, tiles: Columns, light_sums: Columns, block: Block) -> BlockResult:
        if not length(tiles) or not length(light_sums):
            return BlockResult()
        shape = int(tiles['height'][0]), int(tiles['width'][0])
        found = estimate_flat_field(self._merge(light_sums, shape), self.config)
        if found.neutral:
            return BlockResult(metrics={'neutral': 1})
        beam = np.full(found.gain.size, self.lights.beams[block.index[1]])
        return BlockResult(
            rows={'lighting': {'beam': beam, 'gain': found.gain.ravel()}},
            metrics={
                'fields': 1,
                'peak_spread': found.spread,
                'peak_gain': float(found.gain.max()),
            },
        )

    def _merge(self, light_sums: Columns, shape: tuple[int, int]) -> FlatFieldSums:
        grid = sums_shape(shape, self.config)
        merged = FlatFieldSums.empty(shape, self.config)
        for section in np.unique(light_sums['section']).tolist():
            one = {n: column[light_sums['section'] == section] for n, column in light_sums.items()}
            # A section of other tiles tells nothing of these.
            if (length(one) // one['columns'][0], one['columns'][0]) == grid:
                total, count = (one[name].reshape(grid) for name in ('total', 'count'))
                merged = merged.merge(FlatFieldSums(shape, total, count, int(one['tiles'][0])))
        return merged


def read_lighting(config: StitchConfig, lights: Lights, region: Region) -> dict[str, TableRead]:
    """The table read of stages that show tiles; none where all parts of tiles count as lit alike.

    Args:
      config: of stitching.
      lights: beams and sections.
      region: all beams of the section that a block of the stage shows.
    """
    return {} if config.flat_field is None else {'lighting': TableRead(region, lights.grid)}


def flat_fields(
    lighting: Columns | None, shape: tuple[int, int], config: FlatFieldConfig | None
) -> dict[int, FlatField]:
    """The flat fields of a section's beams.

    Args:
      lighting: rows of `LIGHTING`, of all beams of the section.
      shape: h and w of its tiles.
      config: that they were made with.

    Returns:
      by beam; those that are neutral are left out.
    """
    if config is None or lighting is None or not length(lighting):
        return {}
    grid = sums_shape(shape, config)
    result = {}
    for beam in np.unique(lighting['beam']).tolist():
        gain = lighting['gain'][lighting['beam'] == beam].reshape(grid)
        # How many tiles it is learned from, and how well it fits, is no matter here.
        result[beam] = FlatField(shape, config.cell, config.zero_level, gain, 0, False, math.nan)
    return result


def zero_level(config: FlatFieldConfig | None) -> float | None:
    """What images depend on beside the rows of `LIGHTING`; the cells' size these tell."""
    return None if config is None else config.zero_level
