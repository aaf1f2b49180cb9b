"""What the stages of contrast do with one block: grey levels to histograms, tables, and back."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.alignment.contrast.regions import TissueOfSlice
from h01_beam.geometry import Block, Triple
from h01_beam.imaging.contrast import (
    ClaheConfig,
    MatchConfig,
    count_levels,
    equalize,
    match_levels,
    measure_levels,
    table_of_section,
)
from h01_beam.plan import BlockResult
from h01_beam.tables import Columns, Schema

Bytes = npt.NDArray[np.uint8]

# Pixels of each grey level that occurs in a block.
HISTOGRAMS = Schema({'grey': 'int64', 'pixels': 'int64'})
# Grey levels at the quantiles of a section, ascending; no row if it shows too little. Sections are
# known by their z.
SECTION_LEVELS = Schema({'section': 'int64', 'quantile': 'float64', 'grey': 'float64'})
# What becomes of each of the 256 grey levels of a section.
LEVEL_TABLES = Schema({'section': 'int64', 'grey': 'int64', 'even': 'int64'})
# Grey levels by which those at the quantiles of a section are moved, in the mean.
LEVELS_MOVED = Schema({'section': 'int64', 'moved': 'float64'})


@dataclasses.dataclass(frozen=True)
class CountLevels:
    """Histogram of the tissue in a block of a coarse level.

    Attributes:
      tissue: of the section; None: all that the mask shows counts.
    """

    tissue: TissueOfSlice | None

    def working_bytes(self, read_shape: Triple) -> int:
        # Pixels that count, and these as indices of 8 bytes.
        return 16 * math.prod(read_shape)

    def __call__(
        self,
        image: Bytes,
        mask: Bytes,
        block: Block,
        tissue: Bytes | None = None,
        affines: Columns | None = None,
    ) -> BlockResult:
        # Coarse pixels at an edge are means of tissue and of nothing.
        inner = cv2.erode((mask[0] > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        counted = inner[block.core_in_read[1:]] > 0
        if self.tissue is not None and counted.any():
            if tissue is None or affines is None:
                return BlockResult()
            counted &= self.tissue.spread(tissue, affines, block)
        histogram = count_levels(image[0], counted)
        grey = np.flatnonzero(histogram)
        return BlockResult(
            rows={'histograms': {'grey': grey, 'pixels': histogram[grey]}},
            metrics={'pixels': float(histogram.sum())},
        )


@dataclasses.dataclass(frozen=True)
class MeasureLevels:
    """Levels of a section, from the histograms of its blocks."""

    config: MatchConfig

    def __call__(self, histograms: Columns, block: Block) -> BlockResult:
        total = np.zeros(256, np.int64)
        np.add.at(total, histograms['grey'], histograms['pixels'])
        levels = measure_levels(total, self.config)
        if not np.isfinite(levels).all():
            return BlockResult(metrics={'sections_without_levels': 1.0})
        rows = {
            'section': np.full(len(levels), block.core.start[0]),
            'quantile': np.array(self.config.quantiles),
            'grey': levels,
        }
        return BlockResult(rows={'section_levels': rows}, metrics={'sections_with_levels': 1.0})


@dataclasses.dataclass(frozen=True)
class SolveLevels:
    """The lookup table of a section, from the levels of those around it."""

    config: MatchConfig

    def __call__(self, section_levels: Columns, block: Block) -> BlockResult:
        own, section = block.core.start[0], section_levels['section']
        found = {
            z: section_levels['grey'][section == z].astype(np.float64)
            for z in np.unique(section).tolist()
        }
        table = table_of_section(found, own, self.config)
        grey = np.arange(256)
        rows = {'section': np.full(256, own), 'grey': grey, 'even': table.astype(np.int64)}
        if own not in found:
            return BlockResult(rows={'level_tables': rows})
        moved = float(np.abs(np.interp(found[own], grey, table) - found[own]).mean())
        told = {'section': np.array([own]), 'moved': np.array([moved])}
        return BlockResult(
            rows={'level_tables': rows, 'levels_moved': told}, metrics={'peak_levels_moved': moved}
        )


@dataclasses.dataclass(frozen=True)
class EvenContrast:
    """A block of a section with matched levels and even contrast; 0 where the mask is.

    Attributes:
      clahe: lattice and clip; None leaves contrast as it is.
    """

    clahe: ClaheConfig | None

    @property
    def halo(self) -> int:
        """Pixels around a block that it reads, y and x alike."""
        return 0 if self.clahe is None else self.clahe.halo

    def working_bytes(self, read_shape: Triple) -> int:
        # Sums, weights, shares and indices by pixel; histograms and tables by cell, some copies.
        cells = 0 if self.clahe is None else 12 * 1024 // self.clahe.cell**2 + 1
        return (40 + cells) * math.prod(read_shape)

    def __call__(
        self, image: Bytes, mask: Bytes, block: Block, level_tables: Columns | None = None
    ) -> BlockResult:
        core, there = block.core_in_read[1:], mask[0] > 0
        if not there[core].any():
            return BlockResult(arrays={'even': np.zeros(block.core.shape, np.uint8)})
        section = image[0]
        if level_tables is not None:
            section = match_levels(section, there, level_tables['even'].astype(np.uint8))
        if self.clahe is not None:
            (_, y, x), (_, top, left) = block.read.start, block.core.start
            shape = (block.core.shape[1], block.core.shape[2])
            section = equalize(section, there, (y, x), (top, left), shape, self.clahe)
        else:
            section = section[core]
        # 0 is left to what is masked, so that the volume tells where it shows nothing.
        even = np.where(there[core], np.maximum(section, 1), 0).astype(np.uint8)
        return BlockResult(
            arrays={'even': even[None]}, metrics={'pixels': float(there[core].sum())}
        )
