"""Contrast of the aligned volume as Beam stages. Shape: blocks, and sections with their neighbours.

downsample_*      blocks    the pyramids of `image` and of `mask`
count_levels      blocks    both at a coarse level, and tissue -> histograms
measure_levels    sections  histograms of a section -> its grey levels at a few quantiles
solve_levels      sections  levels of those around it -> the table of a section
even_contrast     blocks    `image`, `mask` and the section's table -> `even`
downsample_even_* blocks    its pyramid

Histograms of a section are added up once, so that those around it read a few numbers each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from h01_beam.alignment.contrast.blocks import (
    HISTOGRAMS,
    LEVEL_TABLES,
    LEVELS_MOVED,
    SECTION_LEVELS,
    CountLevels,
    EvenContrast,
    MeasureLevels,
    SolveLevels,
)
from h01_beam.alignment.contrast.regions import TissueOfSlice
from h01_beam.alignment.frames import OfSlice, Slices
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import (
    BlockGrid,
    BoundingBox,
    CoreBox,
    ReadBox,
    SectionsAround,
    Triple,
    by_section,
)
from h01_beam.imaging.contrast import ContrastConfig, MatchConfig
from h01_beam.imaging.downsample import DownsampleConfig, pyramid_specs
from h01_beam.imaging.stage import build_downsample
from h01_beam.plan import Read, TableRead
from h01_beam.run import Run
from h01_beam.volume import VolumeSpec

Records = Sequence[beam.PCollection]


@dataclasses.dataclass(frozen=True)
class Tissue:
    """Where to look up what of a section is tissue; else resin, tape and dirt had their say.

    Attributes:
      spec: tissue of the thumbnails of all sections.
      montage: bounds of their montages.
      factor: pixels of the montage to one of the thumbnail.
      downsample: full-size pixels to one of the montage.
      slices: which section every z shows.
    """

    spec: VolumeSpec
    montage: BoundingBox
    factor: int
    downsample: int
    slices: Slices


def build_contrast(
    root: Any,
    image: VolumeSpec,
    mask: VolumeSpec,
    tissue: Tissue | None,
    block: tuple[int, int],
    config: ContrastConfig,
    causal: bool,
    run: Run,
    after: Records,
) -> VolumeSpec:
    """Adds the stages that make the volume `even`, and all pyramids.

    Args:
      root: the pipeline.
      image: sections at full size.
      mask: of the same shape; 0 is what shows nothing, or no tissue.
      tissue: of the sections; None: all that the mask shows is.
      block: y and x pixels that are made even at once; whole chunks.
      config: see `ContrastConfig`.
      causal: whether sections are matched to those before only; the first few, which have few to be
        matched to, then keep more of their own levels than later ones.
      run: the run.
      after: the stages that make `image` and `mask`.

    Returns:
      the volume `even`; 0 where the mask is 0, and nowhere else.
    """
    sections = by_section(image.shape[0], image.start[0])
    levels = levels_of_sections(image, config)
    height = max(len(levels), len(pyramid_specs(image, DownsampleConfig())))
    coarser = build_downsample(root, image, DownsampleConfig(levels=height), run, after)
    table_reads, solved = {}, after
    if config.match is not None:
        shown = coarser[: len(levels)][-1:] or after
        counts, counted = _count(root, image, mask, tissue, levels, config, run, after, shown)
        solved = [_solve(root, counts, sections, config.match, causal, run, counted)]
        table_reads['level_tables'] = TableRead(SectionsAround(sections.bounds), sections)
    function = EvenContrast(config.clahe)
    even = dataclasses.replace(image, uri=run.volume_uri('even'))
    done = root | MapBlocks(
        function,
        stage='even_contrast',
        reads={'image': image, 'mask': mask},
        table_reads=table_reads,
        writes={'even': even},
        grid=BlockGrid(image.bounds, (1, *block), (0, function.halo, function.halo)),
        config=config.clahe,
        run=run,
        after=solved,
    )
    build_downsample(root, even, DownsampleConfig(), run, [done])
    return even


def levels_of_sections(
    image: VolumeSpec, config: ContrastConfig
) -> list[tuple[Triple, VolumeSpec]]:
    """Levels up to the one that is counted on, in which sections are not merged yet.

    The height of the whole pyramid must not count: it grows with sections that are added later.
    """
    levels = pyramid_specs(image, DownsampleConfig(levels=config.level_mip))
    merged = [n for n, (factor, _) in enumerate(levels) if factor != (1, 2, 2)]
    return levels[: merged[0]] if merged else levels


def _count(
    root: Any,
    image: VolumeSpec,
    mask: VolumeSpec,
    tissue: Tissue | None,
    levels: Sequence[tuple[Triple, VolumeSpec]],
    config: ContrastConfig,
    run: Run,
    after: Records,
    shown: Records,
) -> tuple[BlockGrid, beam.PCollection]:
    """The stage that counts, on the last of the levels of the image, which `shown` makes."""
    factors = tuple(factor for factor, _ in levels)
    pyramid = DownsampleConfig(levels=len(levels), factors=factors)
    masked = build_downsample(root, mask, pyramid, run, after)
    masks = pyramid_specs(mask, pyramid)
    if levels:
        image, mask = levels[-1][1], masks[-1][1]
    scale = 2 ** len(levels)
    reads = {'image': Read(image, CoreBox()), 'mask': Read(mask, ReadBox())}
    table_reads, seen = {}, None
    if tissue is not None:
        seen = TissueOfSlice(tissue.slices, tissue.montage, tissue.factor, tissue.downsample, scale)
        reads['tissue'] = Read(tissue.spec, seen, by='affines')
        table_reads['affines'] = TableRead(
            OfSlice(tissue.slices), by_section(tissue.montage.shape[0])
        )
    grid = BlockGrid(image.bounds, (1, *config.level_block), (0, 1, 1))
    counted = root | MapBlocks(
        CountLevels(seen),
        stage='count_levels',
        reads=reads,
        table_reads=table_reads,
        table_writes={'histograms': HISTOGRAMS},
        grid=grid,
        config=[scale, tissue.factor, tissue.downsample] if tissue else scale,
        run=run,
        after=[*shown, *masked[-1:]],
    )
    return grid, counted


def _solve(
    root: Any,
    counts: BlockGrid,
    sections: BlockGrid,
    config: MatchConfig,
    causal: bool,
    run: Run,
    counted: beam.PCollection,
) -> beam.PCollection:
    measured = root | MapBlocks(
        MeasureLevels(config),
        stage='measure_levels',
        table_reads={'histograms': TableRead(SectionsAround(counts.bounds), counts)},
        table_writes={'section_levels': SECTION_LEVELS},
        grid=sections,
        config=[config.quantiles, config.min_pixels],
        run=run,
        after=[counted],
    )
    window = SectionsAround(sections.bounds, config.window, 0 if causal else config.window)
    return root | MapBlocks(
        SolveLevels(config),
        stage='solve_levels',
        table_reads={'section_levels': TableRead(window, sections)},
        table_writes={'level_tables': LEVEL_TABLES, 'levels_moved': LEVELS_MOVED},
        grid=sections,
        config=[config.quantiles, config.sigma, config.tolerance],
        run=run,
        after=[measured],
    )
