"""Alignment as Beam stages. Shape: pairs of sections, two graphs, blocks.

find_lines        blocks    montage -> the volume `lines`: folds and tears
match_sections, ...         thumbnails -> affines of sections: see `coarse.stage`
render_rough      blocks    montage and lines through its affine -> `rough`, `bands`
flow_K, ...       blocks    `rough` -> the volume `mesh`: see `elastic.stage`
render_image      blocks    tiles, through stitching, affine and mesh at once -> `image`, `mask`
count_levels, ... blocks    `image`, `mask` -> the volume `even`, if asked for: see `contrast.stage`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam.acquisition.stage import build_checks
from h01_beam.acquisition.tables import Acquisition
from h01_beam.alignment.blocks import FindLines, RenderAligned, RenderRough
from h01_beam.alignment.coarse.stage import build_coarse
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.contrast.stage import Tissue, build_contrast
from h01_beam.alignment.elastic.stage import build_elastic
from h01_beam.alignment.frames import (
    CellsOfSlice,
    NodesOfSlice,
    OfSlice,
    PixelsOfRough,
    PixelsOfSlice,
    Slices,
    aligned_shape,
)
from h01_beam.alignment.job import AlignJob
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, OfSection, by_section
from h01_beam.imaging.contrast import ContrastConfig
from h01_beam.imaging.downsample import DownsampleConfig
from h01_beam.imaging.stage import build_downsample
from h01_beam.plan import Read, TableRead
from h01_beam.run import Run
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.lighting import Lights
from h01_beam.stitching.stage import build_stitching, make_frames, montage_spec
from h01_beam.volume import VolumeSpec


def build_align_job(root: Any, acquisition: Acquisition, job: AlignJob, run: Run) -> None:
    """Adds all stages from tiles to the aligned volume."""
    grey_range = job.checks.grey_range
    checked = build_checks(root, acquisition, job.checks, run)
    montages = build_stitching(
        root, acquisition, job.stitch, run, grey_range, [checked], job.align.causal
    )
    build_alignment(
        root, acquisition, job.stitch, job.align, run, grey_range, [montages], job.contrast
    )


def build_alignment(
    root: Any,
    acquisition: Acquisition,
    stitch: StitchConfig,
    config: AlignConfig,
    run: Run,
    grey_range: tuple[float, float] | None = None,
    after: Sequence[beam.PCollection] = (),
    contrast: ContrastConfig | None = None,
) -> beam.PCollection:
    """Adds the stages from the montages of all sections to one aligned volume.

    Args:
      root: the pipeline.
      acquisition: the manifest.
      stitch: how the montages were made.
      config: see `AlignConfig`.
      run: the run.
      grey_range: of 16-bit tiles.
      after: the stages of stitching.
      contrast: of the volume `even` beside the image; None makes none.

    Returns:
      block records of the stage that renders `image` and `mask`.
    """
    frames = make_frames(acquisition, stitch)
    montage = montage_spec(acquisition, frames, stitch, run)
    lines, lined = _find_lines(root, montage, config, run, after)
    tissue, coarseness, affines = build_coarse(root, montage, config, run, after)
    rough, bands, roughs = build_rough(
        root, montage, tissue, lines, coarseness, config, run, [affines, *lined]
    )
    mesh, damage, meshes = build_elastic(
        root, rough, bands, stitch.downsample, config, run, [roughs]
    )
    nominal = _nominal_nm(acquisition, config)
    slices = Slices.of(acquisition.sections, nominal)
    factor = stitch.downsample
    specs = _aligned_specs(
        acquisition, frames.pixel_nm, nominal, slices, rough, factor, config.chunk, run
    )
    cells = frames.cells
    reach = config.mesh_blocks.halo * config.flow.stride
    pitch = config.flow.stride * factor
    lights = Lights.of(acquisition)
    reads = {'mesh': Read(mesh, NodesOfSlice(slices, pitch, mesh.bounds))}
    if damage is not None:
        reads['damage'] = Read(damage, PixelsOfSlice(slices, factor, reach, damage.bounds))
    render = RenderAligned(frames, stitch, grey_range, config, slices)
    done = root | MapBlocks(
        render,
        stage='render_image',
        reads=reads,
        table_reads={
            'tiles': TableRead(OfSlice(slices), cells),
            'nodes': TableRead(CellsOfSlice(slices, frames, factor, reach), cells, by='affines'),
            'gains': TableRead(OfSlice(slices), cells),
            'affines': TableRead(OfSlice(slices), by_section(rough.shape[0])),
            **lights.reads(stitch.flat_field, OfSlice(slices)),
        },
        writes=dict(specs),
        grid=BlockGrid(specs['image'].bounds, (1, *config.block)),
        config=render.depends_on(),
        run=run,
        after=[meshes],
    )
    if contrast is None:
        build_downsample(root, specs['image'], DownsampleConfig(), run, [done])
    else:
        shown = Tissue(tissue, montage.bounds, coarseness, factor, slices)
        build_contrast(
            root, specs['image'], specs['mask'], shown, config.block, contrast, config.causal, run,
            [done],
        )  # fmt: skip
    return done


def _aligned_specs(
    acquisition: Acquisition,
    pixel_nm: float,
    nominal_nm: float,
    slices: Slices,
    rough: VolumeSpec,
    factor: int,
    chunk: tuple[int, int],
    run: Run,
) -> dict[str, VolumeSpec]:
    """The volumes `image` and `mask`, at full size."""
    return {
        name: VolumeSpec(
            uri=run.volume_uri(name),
            voxel_size_nm=(nominal_nm, pixel_nm, pixel_nm),
            dtype='uint8',
            shape=(len(slices.positions), rough.shape[1] * factor, rough.shape[2] * factor),
            start=(int(acquisition.sections['section'][0]), 0, 0),
            chunk=(1, *chunk),
            kind='image' if name == 'image' else 'segmentation',
        )
        for name in ('image', 'mask')
    }


def _nominal_nm(acquisition: Acquisition, config: AlignConfig) -> float:
    """Thickness of one z of the result; of causal runs it must not change with later sections."""
    thickness = acquisition.sections['thickness_nm']
    return float(thickness[0] if config.causal else np.median(thickness))


def _find_lines(
    root: Any,
    montage: VolumeSpec,
    config: AlignConfig,
    run: Run,
    after: Sequence[beam.PCollection],
) -> tuple[VolumeSpec | None, Sequence[beam.PCollection]]:
    """Folds and tears in the frame of the montage."""
    wanted = config.lines
    if wanted is None:
        return None, ()
    assert montage.voxel_size_nm is not None
    pixel = montage.voxel_size_nm[1]
    lines = dataclasses.replace(montage, uri=run.volume_uri('lines'), kind='segmentation')
    reach = wanted.reach(pixel)
    found = root | MapBlocks(
        FindLines(wanted, pixel),
        stage='find_lines',
        reads={'montage': montage},
        writes={'lines': lines},
        grid=BlockGrid(montage.bounds, (1, *config.line_block), (0, reach, reach)),
        config=[wanted, pixel],
        run=run,
        after=after,
    )
    return lines, [found]


def build_rough(
    root: Any,
    montage: VolumeSpec,
    tissue: VolumeSpec,
    lines: VolumeSpec | None,
    factor: int,
    config: AlignConfig,
    run: Run,
    after: Sequence[beam.PCollection],
) -> tuple[VolumeSpec, VolumeSpec | None, beam.PCollection]:
    """Adds the stage that puts montages into the aligned frame by their affine maps.

    Args:
      root: the pipeline.
      montage: all sections.
      tissue: what of them is tissue, on their thumbnails.
      lines: folds and tears of them; None: they are not looked for.
      factor: pixels of the montage to one of the thumbnail.
      config: see `AlignConfig`.
      run: the run; its table `affines` has a part for each section.
      after: the stages that make all of these.

    Returns:
      the volumes `rough` and, with lines, `bands`; block records.
    """
    shape = aligned_shape(montage, config.margin)
    rough = dataclasses.replace(montage, uri=run.volume_uri('rough'), shape=shape)
    shown = PixelsOfRough(montage.bounds)
    reads = {
        'montage': Read(montage, shown, by='affines'),
        'tissue': Read(tissue, PixelsOfRough(montage.bounds, factor), by='affines'),
    }
    writes, bands = {'rough': rough}, None
    if lines is not None:
        bands = dataclasses.replace(rough, uri=run.volume_uri('bands'), kind='segmentation')
        reads['lines'] = Read(lines, shown, by='affines')
        writes['bands'] = bands
    done = root | MapBlocks(
        RenderRough(factor, shown, bands is not None),
        stage='render_rough',
        reads=reads,
        table_reads={'affines': TableRead(OfSection(), by_section(montage.shape[0]))},
        writes=dict(writes),
        grid=BlockGrid(rough.bounds, (1, *config.rough_block)),
        config=factor,
        run=run,
        after=after,
    )
    return rough, bands, done
