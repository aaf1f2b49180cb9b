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

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam.acquisition.stage import write_if_new
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
from h01_beam.stitching.frames import (
    CellsBelow,
    Frames,
    SectionRows,
    WholeSection,
    find_origins,
)
from h01_beam.stitching.tables import (
    GAINS,
    LEVELS,
    NODES,
    OFFSETS,
    ORIGINS,
    PAIRS,
    PLACES,
    SEAM_QUALITY,
    SEAMS,
    SOLVED,
)
from h01_beam.volume import VolumeSpec


def make_frames(acquisition: Acquisition, config: StitchConfig) -> Frames:
    """Frames wide enough for tiles that the stage misplaced."""
    return Frames.of(acquisition, config.frame_margin, config.cell_tiles)


def write_origins(acquisition: Acquisition, margin: int, run: Run) -> None:
    """Writes `ORIGINS` as parts of the grid of cells, where they changed."""
    origins = find_origins(acquisition, margin)
    for position, section in enumerate(acquisition.sections['section'].tolist()):
        y, x = origins[position].tolist()
        row = {'section': np.array([section]), 'y': np.array([y]), 'x': np.array([x])}
        write_if_new(run.table_part('origin', (position, 0, 0)), row, ORIGINS)


def montage_spec(
    acquisition: Acquisition, frames: Frames, config: StitchConfig, run: Run
) -> VolumeSpec:
    """The volume `montage`: z is the position of a section in the table, pixels are larger."""
    factor = config.downsample
    y, x = (-(-n // factor) for n in frames.shape)
    pixel = frames.pixel_nm * factor
    # For viewers only. That of the first, as later sections must not change the volume.
    thickness = float(acquisition.sections['thickness_nm'][0])
    return VolumeSpec(
        uri=run.volume_uri('montage'),
        voxel_size_nm=(thickness, pixel, pixel),
        dtype='uint8',
        shape=(frames.sections, y, x),
        chunk=(1, *config.montage_chunk),
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
    if not run.dry_run:
        write_origins(acquisition, config.frame_margin, run)
    cells = frames.cells
    _, rows, columns = cells.shape
    section, whole, once = SectionRows(), WholeSection(rows, columns), WholeSection(1, 1)
    placed = {'tiles': section, 'origin': section, 'places': section}

    def add(name: str, function: Any, reads: dict[str, Any], after: Any, **rest: Any) -> Any:
        return root | MapBlocks(
            function,
            stage=name,
            table_reads=reads,
            grid=rest.pop('grid', cells),
            config=function.depends_on(),
            run=run,
            after=after,
            **rest,
        )

    common = (frames, config, grey_range)
    offsets = add(
        'measure_offsets', MeasureOffsets(*common), {'tiles': section, 'origin': section}, after,
        table_writes={'offsets': OFFSETS},
    )  # fmt: skip
    places = add(
        'solve_places', SolvePlaces(*common), {'tiles': once, 'origin': once, 'offsets': whole},
        [offsets], table_writes={'places': PLACES, 'pairs': PAIRS, 'solved': SOLVED},
    )  # fmt: skip
    seams = add(
        'match_seams', MatchSeams(*common), placed, [places],
        table_writes={'seams': SEAMS, 'levels': LEVELS},
    )  # fmt: skip
    gains = add(
        'solve_gains', SolveGains(*common), {'tiles': once, 'places': once, 'levels': whole},
        [seams], table_writes={'gains': GAINS},
    )  # fmt: skip
    nodes = add(
        'bend_tiles', BendTiles(*common), {**placed, 'seams': ReadBox()}, [seams],
        table_writes={'nodes': NODES, 'seam_quality': SEAM_QUALITY},
    )  # fmt: skip
    spec = montage_spec(acquisition, frames, config, run)
    below = CellsBelow(frames, config.downsample)
    return add(
        'render_montage', RenderMontage(*common),
        {name: TableRead(region, cells)
         for name, region in (('tiles', section), ('gains', section), ('nodes', below))},
        [nodes, gains], writes={'montage': spec},
        grid=BlockGrid(spec.bounds, (1, *config.montage_block)),
    )  # fmt: skip
