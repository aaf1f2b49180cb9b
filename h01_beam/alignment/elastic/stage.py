"""Elastic alignment as Beam stages. Shape: blocks, by levels and sweeps.

flow_K              blocks    `rough` of a section and of the K-th before -> the volume `flow_K`
find_damage         blocks    bands of a section -> the volumes `sheets` and `damage`, the table
                              `damage`
coarsen_sheets_F    blocks    sheets of a level -> of the next coarser
coarsen_flow_F      blocks    flow of a level -> of the next coarser, one node in place of four
relax_mesh_F_S      blocks    flow, and vectors of the sweep before -> the volume `mesh_F_S`
measure_links       blocks    vectors and flow -> the table `links`

F is the level's factor, S the sweep; the last one's volume is called `mesh`. No worker holds more
than a block of a level: see `mesh_blocks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam

from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.elastic.blocks import (
    LINKS,
    CoarsenFlow,
    CoarsenSheets,
    EstimateFlow,
    MeasureLinks,
    RelaxMesh,
    flow_halo,
)
from h01_beam.alignment.elastic.damage import DAMAGE, HALO, FindDamage
from h01_beam.alignment.elastic.mesh_blocks import HALVING, MeshGrid, plan_levels
from h01_beam.alignment.elastic.regions import (
    AroundNodes,
    CoarserNodes,
    EarlierNodes,
    FinerNodes,
    OwnNodes,
    ReadNodes,
)
from h01_beam.alignment.frames import Shifted
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, CoreBox
from h01_beam.plan import Read, Write
from h01_beam.run import Run
from h01_beam.volume import VolumeSpec

Records = Sequence[beam.PCollection]


def build_elastic(
    root: Any,
    rough: VolumeSpec,
    bands: VolumeSpec | None,
    downsample: int,
    config: AlignConfig,
    run: Run,
    after: Records,
) -> tuple[VolumeSpec, VolumeSpec | None, beam.PCollection]:
    """Adds the stages from roughly aligned sections to the vectors of the mesh.

    Args:
      root: the pipeline.
      rough: the roughly aligned sections; 0 is no tissue.
      bands: folds and tears of them, see `find_lines`; None: they are not looked for.
      downsample: of the montage, and of `rough`.
      config: see `AlignConfig`.
      run: the run.
      after: the stages that make `rough`.

    Returns:
      the volume `mesh`, aligned -> rough, pixels of the montage; `damage`, pixels of `rough` that
      show folds and gaps, or None if it was not asked for; block records of all.
    """
    flows, done = _estimate_flow(root, rough, config, run, after)
    levels, damage = [flows], None
    if bands is not None:
        sheets, damage, found = _find_damage(root, bands, flows, downsample, config, run, after)
        levels, done = [{**flows, 'sheets': sheets}], [*done, found]
    mesh, meshes = _relax(root, levels, config, run, done)
    halo = config.mesh_blocks.halo
    region = AroundNodes(mesh.bounds, halo, config.neighbours)
    stride = config.flow.stride
    root | MapBlocks(
        MeasureLinks(region, stride, downsample),
        stage='measure_links',
        reads={
            'mesh': Read(mesh, region),
            **{n: Read(spec, AroundNodes(mesh.bounds, halo)) for n, spec in flows.items()},
        },
        table_writes={'links': LINKS},
        grid=BlockGrid(mesh.bounds, (1, config.mesh_blocks.tile, config.mesh_blocks.tile)),
        config=[stride, downsample],
        run=run,
        after=[meshes],
    )
    return mesh, damage, meshes


def _find_damage(
    root: Any,
    bands: VolumeSpec,
    flows: Mapping[str, VolumeSpec],
    downsample: int,
    config: AlignConfig,
    run: Run,
    after: Records,
) -> tuple[VolumeSpec, VolumeSpec, beam.PCollection]:
    stride, flow = config.flow.stride, flows['flow_1']
    sheets = dataclasses.replace(flow, uri=run.volume_uri('sheets'), channels=2)
    unit = tuple(n * stride for n in flow.chunk[1:])
    damage = dataclasses.replace(
        bands, uri=run.volume_uri('damage'), chunk=(1, unit[0], unit[1]), kind='segmentation'
    )
    done = root | MapBlocks(
        FindDamage(Shifted(flow.bounds, 0, 1, HALO), stride, downsample),
        stage='find_damage',
        reads={'bands': Read(bands, Shifted(bands.bounds, 0, stride, HALO * stride))},
        writes={
            'sheets': sheets,
            'damage': Write(damage, CoreBox((1, stride, stride), bands.bounds),
                            BlockGrid(bands.bounds, damage.chunk)),
        },
        table_writes={'damage': DAMAGE},
        grid=BlockGrid(flow.bounds, flow.chunk),
        config=[stride, downsample],
        run=run,
        after=after,
    )  # fmt: skip
    return sheets, damage, done


def _estimate_flow(
    root: Any, rough: VolumeSpec, config: AlignConfig, run: Run, after: Records
) -> tuple[dict[str, VolumeSpec], Records]:
    stride = config.flow.stride
    assert rough.voxel_size_nm is not None
    thickness, pixel, _ = rough.voxel_size_nm
    y, x = (-(-n // stride) for n in rough.shape[1:])
    block = (1, config.flow_block[0] // stride, config.flow_block[1] // stride)
    halo = flow_halo(config)
    flows, waits = {}, []
    for back in range(1, config.neighbours + 1):
        spec = VolumeSpec(
            uri=run.volume_uri(f'flow_{back}'),
            voxel_size_nm=(thickness, pixel * stride, pixel * stride),
            dtype='float32',
            shape=(rough.shape[0], y, x),
            chunk=block,
            channels=3,
        )
        done = root | MapBlocks(
            EstimateFlow(config),
            stage=f'flow_{back}',
            reads={
                'fixed': Read(rough, Shifted(rough.bounds, 0, stride, halo)),
                'moving': Read(rough, Shifted(rough.bounds, back, stride, halo)),
            },
            writes={'flow': spec},
            grid=BlockGrid(spec.bounds, block),
            config=[config.flow, halo, back],
            run=run,
            after=after,
        )
        flows[f'flow_{back}'] = spec
        waits.append(done)
    return flows, waits


def _relax(
    root: Any,
    levels: list[dict[str, VolumeSpec]],
    config: AlignConfig,
    run: Run,
    after: Records,
) -> tuple[VolumeSpec, beam.PCollection]:
    """All levels, coarsest first; each begins with what the one before found.

    Args:
      root: the pipeline.
      levels: flow and sheets at all nodes; coarser ones are added.
      config: of alignment.
      run: the run.
      after: the stages that make them.
    """
    first = levels[0]['flow_1']
    grids = plan_levels(
        first.shape, config.mesh_blocks, reach=config.neighbours, causal=config.causal
    )
    waits = after
    for grid in grids[-2::-1]:
        coarse, waits = _coarsen(root, levels[-1], grid, config, run, waits)
        levels.append(coarse)
        after = [*after, *waits]
    before: VolumeSpec | None = None
    for grid, level in zip(grids, levels[::-1], strict=True):
        for sweep in range(grid.sweeps):
            last = grid is grids[-1] and sweep == grid.sweeps - 1
            before, done = _sweep(
                root, grid, sweep, level, before, 'mesh' if last else '', config, run, after
            )
            after = [done]
    assert before is not None
    return before, after[0]


def _level_spec(
    flow: VolumeSpec, grid: MeshGrid, name: str, channels: int, config: AlignConfig, run: Run
) -> VolumeSpec:
    """A volume at the nodes of a level, cut so that blocks of all sweeps own whole chunks."""
    assert flow.voxel_size_nm is not None
    thickness = flow.voxel_size_nm[0]
    pixel = flow.voxel_size_nm[1] * flow.shape[1] / grid.shape[1]
    half = config.mesh_blocks.tile // 2
    return dataclasses.replace(
        flow,
        uri=run.volume_uri(name),
        voxel_size_nm=(thickness, pixel, pixel),
        shape=grid.shape,
        chunk=(1, half, half),
        channels=channels,
    )


def _coarsen(
    root: Any,
    fine: Mapping[str, VolumeSpec],
    grid: MeshGrid,
    config: AlignConfig,
    run: Run,
    after: Records,
) -> tuple[dict[str, VolumeSpec], Records]:
    specs = {
        name: _level_spec(spec, grid, f'{name}_x{grid.factor}', spec.channels, config, run)
        for name, spec in fine.items()
    }
    bounds = fine['flow_1'].bounds
    blocks = BlockGrid(specs['flow_1'].bounds, (1, *grid.cut[1:]))
    names = [name for name in fine if name != 'sheets']
    done = [
        root
        | MapBlocks(
            CoarsenFlow(),
            stage=f'coarsen_flow_{grid.factor}',
            reads={name: Read(fine[name], FinerNodes(bounds)) for name in names},
            writes={name: specs[name] for name in names},
            grid=blocks,
            run=run,
            after=after,
        )
    ]
    if 'sheets' in fine:
        sheets = root | MapBlocks(
            CoarsenSheets(),
            stage=f'coarsen_sheets_{grid.factor}',
            reads={'sheets': Read(fine['sheets'], FinerNodes(bounds, HALVING))},
            writes={'sheets': specs['sheets']},
            grid=blocks,
            run=run,
            after=after,
        )
        done.append(sheets)
    return specs, done


def _sweep(
    root: Any,
    grid: MeshGrid,
    sweep: int,
    flows: Mapping[str, VolumeSpec],
    before: VolumeSpec | None,
    name: str,
    config: AlignConfig,
    run: Run,
    after: Records,
) -> tuple[VolumeSpec, beam.PCollection]:
    stride = config.flow.stride * grid.factor
    flow = flows['flow_1']
    assert flow.voxel_size_nm is not None
    pixel = flow.voxel_size_nm[1] / stride
    name = name or f'mesh_{grid.factor}_{sweep}'
    spec = _level_spec(flow, grid, name, 2, config, run)
    reads = {n: Read(s, ReadNodes(grid)) for n, s in flows.items()}
    coarser = None
    if before is not None and sweep == 0:
        coarser = CoarserNodes(grid, before.bounds)
    if before is not None:
        reads['before'] = Read(before, coarser or ReadNodes(grid))
    if config.causal:
        reads['earlier'] = Read(spec, EarlierNodes(grid))
    done = root | MapBlocks(
        RelaxMesh(grid, config.mesh, stride, pixel, config.neighbours, coarser),
        stage=f'relax_mesh_{grid.factor}_{sweep}',
        reads=reads,
        writes={'mesh': Write(spec, OwnNodes(grid))},
        grid=grid.grid(sweep),
        # All of the level but the number of sections.
        config=[config.mesh, dataclasses.replace(grid, shape=(1, *grid.shape[1:])), stride, pixel],
        chained=config.causal,
        run=run,
        after=after,
    )
    return spec, done
