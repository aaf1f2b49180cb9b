"""What the stages of lighting do: tiles of beams in, flat fields out.

sum_lighting     (section, beam)   tiles of the beam in the section -> sums
solve_lighting   section           sums of all beams in the sections around -> flat fields
"""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from h01_beam.acquisition.tables import Acquisition
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Region, Triple, by_section
from h01_beam.imaging.illumination import (
    FlatField,
    FlatFieldConfig,
    FlatFieldSums,
    estimate_flat_field,
    sums_shape,
)
from h01_beam.plan import BlockResult, TableRead
from h01_beam.stitching.tiles import TileImages
from h01_beam.tables import Columns, length

Ints = npt.NDArray[np.int64]

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

    def reads(self, config: FlatFieldConfig | None, region: Region) -> dict[str, TableRead]:
        """What stages that show tiles read of their lighting; nothing without a config.

        Args:
          config: of flat fields.
          region: its z is the position of the section that a block shows.
        """
        return {'lighting': TableRead(region, by_section(self.sections))} if config else {}


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
        section = int(tiles['section'][0])
        images = TileImages(tiles, self.grey_range, keep=1)
        shape = int(tiles['height'][0]), int(tiles['width'][0])
        sums, there = FlatFieldSums.empty(shape, self.config), np.ones(shape, np.bool_)
        for row in rows[self._picked(len(rows), section)].tolist():
            sums = sums.add(images[row], there, self.config)
        cells = sums.total.size
        numbers = {'section': section, 'beam': self.lights.beams[block.index[1]],
                   'height': shape[0], 'width': shape[1], 'tiles': sums.tiles}  # fmt: skip
        columns = {name: np.full(cells, value) for name, value in numbers.items()}
        columns |= {'total': sums.total.ravel(), 'count': sums.count.ravel()}
        return BlockResult(
            rows={'light_sums': columns}, metrics={'tiles': sums.tiles, 'skipped': sums.skipped}
        )

    def _picked(self, count: int, section: int) -> Ints:
        """Which of so many tiles are read: spread over all, others in the sections around."""
        step = max(1.0, count / self.config.max_tiles)
        window = 2 * self.config.sections + 1
        first = section % window * step / window
        return (first + np.arange(min(count, self.config.max_tiles)) * step).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class SolveLighting:
    """Estimates the flat fields of all beams in one section: numbers only.

    A beam of which a section has too few tiles gets what all beams have in common, if these are
    enough together: most of a vignette is of the column, not of the beam.

    Attributes:
      config: of flat fields.
    """

    config: FlatFieldConfig

    def __call__(self, tiles: Columns, light_sums: Columns | None) -> BlockResult:
        if not length(tiles) or not light_sums or not length(light_sums):
            return BlockResult()
        shape = int(tiles['height'][0]), int(tiles['width'][0])
        sums = self._by_beam(light_sums, shape)
        common, most = FlatFieldSums.empty(shape, self.config), 0
        for merged, tiles_of_one in sums.values():
            common, most = common.merge(merged), most + tiles_of_one
        shared = estimate_flat_field(common, self.config)
        found, metrics = [], collections.defaultdict[str, float](float)
        for beam, (merged, tiles_of_one) in sums.items():
            own = tiles_of_one >= self.config.min_tiles
            if not own and most < self.config.min_tiles:
                metrics['neutral'] += 1
                continue
            field = estimate_flat_field(merged, self.config) if own else shared
            metrics['fields' if own else 'common_fields'] += 1
            metrics['peak_gain'] = max(metrics['peak_gain'], float(field.gain.max()))
            found.append((np.full(field.gain.size, beam), field.gain.ravel()))
        if not found:
            return BlockResult(metrics=metrics)
        beams, gains = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return BlockResult(rows={'lighting': {'beam': beams, 'gain': gains}}, metrics=metrics)

    def _by_beam(
        self, light_sums: Columns, shape: tuple[int, int]
    ) -> dict[int, tuple[FlatFieldSums, int]]:
        """Sums of each beam over all sections, and the most tiles that one of these has."""
        grid = sums_shape(shape, self.config)
        # Sections of other tiles tell nothing of these.
        alike = (light_sums['height'] == shape[0]) & (light_sums['width'] == shape[1])
        result: dict[int, tuple[FlatFieldSums, int]] = {}
        for beam in np.unique(light_sums['beam'][alike]).tolist():
            rows = alike & (light_sums['beam'] == beam)
            total, count, tiles = (
                light_sums[name][rows].reshape(-1, *grid) for name in ('total', 'count', 'tiles')
            )
            each = tiles[:, 0, 0]
            merged = FlatFieldSums(shape, total.sum(axis=0), count.sum(axis=0), int(each.sum()))
            result[beam] = merged, int(each.max())
        return result


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
        cell = config.cell_of(shape)
        result[beam] = FlatField(shape, cell, config.zero_level, gain, 0, False, math.nan)
    return result


def zero_level(config: FlatFieldConfig | None) -> float | None:
    """What images depend on beside the rows of `LIGHTING`; the cells' size these tell."""
    return None if config is None else config.zero_level
