"""Stitching as Beam stages. Shape: blocks of cells of tiles, one graph per section, blocks.

sum_lighting      beams     good tiles of a beam in a section -> light_sums
solve_lighting    sections  light_sums of the sections around -> lighting (numbers only)
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
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam.acquisition.stage import write_if_new
from h01_beam.acquisition.tables import Acquisition
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, OfSection, ReadBox, Region, SectionsAround, by_section
from h01_beam.plan import TableRead
from h01_beam.run import Run
from h01_beam.stitching.blocks import (
    BendTiles,
    MatchSeams,
    MeasureOffsets,
    RenderMontage,
    SolveGains,
    SolvePlaces,
    StitchBlock,
)
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.frames import (
    CellsBelow,
    Frames,
    WholeSection,
    find_origins,
)
from h01_beam.stitching.lighting import Lights, SolveLighting, SumLighting
from h01_beam.stitching.tables import (
    GAINS,
    LEVELS,
    LIGHT_SUMS,
    LIGHTING,
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

# Rows that are kept with the first cell of a section, for that cell alone.
ONCE = WholeSection(1, 1)


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
    causal: bool = False,
) -> beam.PCollection:
    """Adds the stages from checked tiles to the montages of all sections.

    Args:
      root: the pipeline.
      acquisition: the manifest.
      config: see `StitchConfig`.
      run: the run; its table `tiles` is written by the stages in `after`.
      grey_range: of 16-bit tiles.
      after: the checks.
      causal: whether sections that are added later must change nothing of those that are there.

    Returns:
      block records of the last stage; the volume is that of `montage_spec`.
    """
    frames = make_frames(acquisition, config)
    if not run.dry_run:
        write_origins(acquisition, config.frame_margin, run)
    job = _Stitching(root, run, frames, config, grey_range, Lights.of(acquisition))
    lit = _find_lighting(job, causal, after)
    places = _place_tiles(job, after)
    seams = job.add(
        'match_seams', MatchSeams, {**job.placed, **job.lighting}, [places, *lit],
        table_writes={'seams': SEAMS, 'levels': LEVELS},
    )  # fmt: skip
    gains = job.add(
        'solve_gains', SolveGains, {'tiles': ONCE, 'places': ONCE, 'levels': job.whole}, [seams],
        table_writes={'gains': GAINS},
    )  # fmt: skip
    nodes = job.add(
        'bend_tiles', BendTiles, {**job.placed, 'seams': ReadBox()}, [seams],
        table_writes={'nodes': NODES, 'seam_quality': SEAM_QUALITY},
    )  # fmt: skip
    return _render_montage(job, montage_spec(acquisition, frames, config, run), [nodes, gains])


@dataclasses.dataclass(frozen=True)
class _Stitching:
    """What the stages have in common."""

    root: Any
    run: Run
    frames: Frames
    config: StitchConfig
    grey_range: tuple[float, float] | None
    lights: Lights

    @property
    def lighting(self) -> dict[str, TableRead]:
        return self.lights.reads(self.config.flat_field, OfSection())

    @property
    def whole(self) -> WholeSection:
        _, rows, columns = self.frames.cells.shape
        return WholeSection(rows, columns)

    @property
    def placed(self) -> dict[str, Region]:
        return dict.fromkeys(('tiles', 'origin', 'places'), OfSection())

    def add(
        self,
        name: str,
        function: type[StitchBlock],
        reads: Mapping[str, TableRead | Region],
        after: Sequence[beam.PCollection],
        grid: BlockGrid | None = None,
        **writes: Any,
    ) -> beam.PCollection:
        """Adds a stage, by cells unless another grid is given."""
        block: Any = function(self.frames, self.config, self.grey_range)
        return self.root | MapBlocks(
            block,
            stage=name,
            table_reads=reads,
            grid=grid or self.frames.cells,
            config=block.depends_on(),
            run=self.run,
            after=after,
            **writes,
        )


def _find_lighting(
    job: _Stitching, causal: bool, after: Sequence[beam.PCollection]
) -> list[beam.PCollection]:
    config, lights = job.config.flat_field, job.lights
    if config is None:
        return []
    tiles = TableRead(OfSection(), job.frames.cells)
    add = SumLighting(config, job.grey_range, lights, job.frames.tile_shape)
    summed = job.root | MapBlocks(
        add,
        stage='sum_lighting',
        table_reads={'tiles': tiles},
        table_writes={'light_sums': LIGHT_SUMS},
        grid=lights.grid,
        config=add.depends_on(),
        run=job.run,
        after=after,
    )
    before, later = (2 * config.sections, 0) if causal else (config.sections, config.sections)
    sums = TableRead(SectionsAround(lights.grid.bounds, before, later), lights.grid)
    solved = job.root | MapBlocks(
        SolveLighting(config),
        stage='solve_lighting',
        table_reads={'tiles': tiles, 'light_sums': sums},
        table_writes={'lighting': LIGHTING},
        grid=by_section(lights.sections),
        config=config,
        run=job.run,
        after=[summed],
    )
    return [solved]


def _place_tiles(job: _Stitching, after: Sequence[beam.PCollection]) -> beam.PCollection:
    offsets = job.add(
        'measure_offsets', MeasureOffsets, {'tiles': OfSection(), 'origin': OfSection()},
        after, table_writes={'offsets': OFFSETS},
    )  # fmt: skip
    return job.add(
        'solve_places', SolvePlaces, {'tiles': ONCE, 'origin': ONCE, 'offsets': job.whole},
        [offsets], table_writes={'places': PLACES, 'pairs': PAIRS, 'solved': SOLVED},
    )  # fmt: skip


def _render_montage(
    job: _Stitching, spec: VolumeSpec, after: Sequence[beam.PCollection]
) -> beam.PCollection:
    regions: dict[str, Region] = {
        'tiles': OfSection(),
        'gains': OfSection(),
        'nodes': CellsBelow(job.frames, job.config.downsample),
    }
    reads = {name: TableRead(region, job.frames.cells) for name, region in regions.items()}
    reads |= job.lighting
    grid = BlockGrid(spec.bounds, (1, *job.config.montage_block))
    return job.add('render_montage', RenderMontage, reads, after, grid, writes={'montage': spec})
