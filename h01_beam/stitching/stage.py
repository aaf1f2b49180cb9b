"""Stitching as Beam stages. Shape: blocks of cells of tiles, one graph per section, blocks.

measure_offsets   cells     pairs of tiles whose first is in the cell -> offsets
solve_places      sections  offsets of all cells -> places, pairs (numbers only, no pixels)
match_seams       cells     tiles at their places -> seams, levels
solve_gains       sections  levels of all cells -> gains (numbers only)
bend_tiles        cells     seams of the cell and of those around -> nodes
render_montage    blocks    tiles through their nodes -> the volume `montage`, downsampled

No worker holds more images than `cached_tiles`, whatever the size of the section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from h01_beam.acquisition.tables import Acquisition
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, ReadBox
from h01_beam.plan import TableRead
from h01_beam.run import Run
from h01_beam.stitching.blocks import (
    BendTiles,
    MatchSeams,
    MeasureOffsets,
    RenderMontage,
    SolveGains,
    SolvePlaces,
)
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.frames import CellsBelow, Frames, SectionRows, WholeSection
from h01_beam.stitching.tables import (
    GAINS,
    LEVELS,
    NODES,
    OFFSETS,
    PAIRS,
    PLACES,
    SEAM_QUALITY,
    SEAMS,
    SOLVED,
)
from h01_beam.volume import VolumeSpec


def make_frames(acquisition: Acquisition, config: StitchConfig) -> Frames:
    """Frames wide enough for tiles that the stage misplaced as far as they are looked for."""
    return Frames.of(acquisition, config.offsets.search, config.cell_tiles)


def montage_spec(
    acquisition: Acquisition, frames: Frames, config: StitchConfig, run: Run
) -> VolumeSpec:
    """The volume `montage`: z is the position of a section in the table, pixels are larger."""
    factor = config.downsample
    y, x = (-(-n // factor) for n in frames.shape)
    pixel = frames.pixel_nm * factor
    thickness = float(acquisition.sections['thickness_nm'].min())
    return VolumeSpec(
        uri=run.volume_uri('montage'),
        voxel_size_nm=(thickness, pixel, pixel),
        dtype='uint8',
        shape=(frames.sections, y, x),
        chunk=(1, 256, 256),
    )


def build_stitching(
    root: Any,
    acquisition: Acquisition,
    config: StitchConfig,
    run: Run,
    grey_range: tuple[float, float] | None = None,
    after: Sequence[beam.PCollection] = (),
) -> beam.PCollection:
    """Adds the stages from checked tiles to the montages of all sections.

    Args:
      root: the pipeline.
      acquisition: the manifest.
      config: see `StitchConfig`.
      run: the run; its table `tiles` is written by the stages in `after`.
      grey_range: of 16-bit tiles.
      after: the checks.

    Returns:
      block records of the last stage; the volume is that of `montage_spec`.
    """
    frames = make_frames(acquisition, config)
    cells = frames.cells
    _, rows, columns = cells.shape
    section, whole = SectionRows(), WholeSection(rows, columns)

    def add(name: str, function: Any, reads: dict[str, Any], after: Any, **rest: Any) -> Any:
        reads = {'tiles': section, **reads}
        return root | MapBlocks(
            function(frames, config, grey_range),
            stage=name,
            table_reads=reads,
            grid=rest.pop('grid', cells),
            config=[_that_counts(config), frames, grey_range],
            run=run,
            after=after,
            **rest,
        )

    offsets = add('measure_offsets', MeasureOffsets, {}, after, table_writes={'offsets': OFFSETS})
    places = add(
        'solve_places', SolvePlaces, {'offsets': whole, 'tiles': WholeSection(1, 1)}, [offsets],
        table_writes={'places': PLACES, 'pairs': PAIRS, 'solved': SOLVED},
    )  # fmt: skip
    seams = add(
        'match_seams',
        MatchSeams,
        {'places': section},
        [places],
        table_writes={'seams': SEAMS, 'levels': LEVELS},
    )
    gains = add(
        'solve_gains', SolveGains,
        {'tiles': WholeSection(1, 1), 'places': WholeSection(1, 1), 'levels': whole}, [seams],
        table_writes={'gains': GAINS},
    )  # fmt: skip
    nodes = add(
        'bend_tiles', BendTiles, {'places': section, 'seams': ReadBox()}, [seams],
        table_writes={'nodes': NODES, 'seam_quality': SEAM_QUALITY},
    )  # fmt: skip
    spec = montage_spec(acquisition, frames, config, run)
    factor = config.downsample
    return add(
        'render_montage', RenderMontage,
        {
            'tiles': TableRead(section, cells),
            'gains': TableRead(section, cells),
            'nodes': TableRead(CellsBelow(frames, factor), cells),
        },
        [nodes, gains], writes={'montage': spec},
        grid=BlockGrid(spec.bounds, (1, *config.montage_block)),
    )  # fmt: skip


def _that_counts(config: StitchConfig) -> StitchConfig:
    """The configuration without what does not change results."""
    return dataclasses.replace(config, cached_tiles=1, montage_block=(1024, 1024))
