"""From an image to one segmentation: flood -> match -> components -> relabel -> pyramid.

flood        blocks   image + halo -> supervoxels (core), overlap planes, object rows
match        pairs    supervoxels and overlap planes -> edges between neighbours' supervoxels
components   graph    edges -> smallest supervoxel of each component, one part per block
relabel      blocks   supervoxels -> segmentation with global ids
downsample   blocks   segmentation -> its pyramid
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam import tables
from h01_beam.agglomeration.stage import AssignSegments
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, CoreBox, LowerFace, ReadBox, UpperOverlap
from h01_beam.imaging.stage import build_downsample
from h01_beam.models import ModelRef
from h01_beam.plan import BlockResult, Read, Write
from h01_beam.run import Run
from h01_beam.segmentation.config import ReconcileConfig, SegmentConfig, make_grid
from h01_beam.segmentation.flood import AXES, LOCAL_BITS, FloodBlock
from h01_beam.segmentation.reconcile import MatchConfig, match_overlap
from h01_beam.volume import Volume, VolumeSpec


def build_segment(root: Any, config: SegmentConfig, run: Run) -> VolumeSpec:
    """Adds all stages of the segmentation job; returns the specification of its result.

    Raises:
      ValueError, FileNotFoundError: an input does not fit; nothing has been written yet.
    """
    image = Volume.open(config.image).spec
    model = ModelRef.resolve(config.model)
    grid = make_grid(config, image, model.card)
    labels = VolumeSpec(
        uri=run.volume_uri('segmentation'),
        voxel_size_nm=image.voxel_size_nm,
        dtype='uint64',
        shape=grid.bounds.shape,
        start=grid.bounds.start,
        chunk=config.output.chunk,
        shard=config.output.shard,
        encoding='compressed_segmentation',
        kind='segmentation',
    )
    run.write_manifest('segmentation', config, {'ffn': model.sha256})
    supervoxels = _work_volume(labels, 'supervoxels', run)
    overlaps = {axis: _overlap_volume(labels, axis, config, run) for axis in AXES}

    flooded = root | _flood(config, image, model, grid, supervoxels, overlaps, run)
    matched = root | _match(config.reconcile, grid, supervoxels, overlaps, run, flooded)
    assigned = matched | AssignSegments(
        grid, run, local_bits=LOCAL_BITS, shard_rows=config.reconcile.shard_rows
    )
    relabelled = root | MapBlocks(
        relabel,
        stage='relabel',
        reads={'supervoxels': Read(supervoxels, CoreBox())},
        table_reads=('segment_of',),
        writes={'segmentation': labels},
        grid=grid,
        run=run,
        after=[assigned],
    )
    build_downsample(root, labels, config.downsample, run, after=[relabelled])
    return labels


def _work_volume(labels: VolumeSpec, name: str, run: Run) -> VolumeSpec:
    return VolumeSpec(
        uri=run.volume_uri(name, 'zarr3'),
        voxel_size_nm=labels.voxel_size_nm,
        dtype='uint64',
        shape=labels.shape,
        start=labels.start,
        chunk=labels.chunk,
        shard=labels.shard,
        encoding='zstd',
        kind='segmentation',
    )


def _overlap_volume(labels: VolumeSpec, axis: int, config: SegmentConfig, run: Run) -> VolumeSpec:
    """Sparse: only the first planes of every core are written, one layer of chunks each."""
    thickness, chunk = config.reconcile.thickness, list(labels.chunk)
    if config.grid.block_shape[axis] % thickness:
        raise ValueError(
            f'reconcile.thickness is {thickness}: must divide grid.block_shape '
            f'{config.grid.block_shape}, so that overlap planes fill whole chunks'
        )
    chunk[axis] = thickness
    spec = _work_volume(labels, f'overlap_{"zyx"[axis]}', run)
    return dataclasses.replace(spec, chunk=(chunk[0], chunk[1], chunk[2]), shard=None)


def _flood(
    config: SegmentConfig,
    image: VolumeSpec,
    model: ModelRef,
    grid: BlockGrid,
    supervoxels: VolumeSpec,
    overlaps: dict[int, VolumeSpec],
    run: Run,
) -> MapBlocks:
    thickness = config.reconcile.thickness
    reads = {'image': Read(image, ReadBox())}
    if config.mask:
        mask = Volume.open(config.mask).spec
        if not mask.bounds.contains(grid.bounds):
            raise ValueError(f'mask {mask.uri!r} covers {mask.bounds}: must cover {grid.bounds}')
        reads['mask'] = Read(mask, ReadBox())
    writes = {'supervoxels': Write(supervoxels)}
    for axis, spec in overlaps.items():
        reach = [0, 0, 0]
        reach[axis] = thickness
        writes[f'overlap_{"zyx"[axis]}'] = Write(
            spec, UpperOverlap(axis, thickness), (reach[0], reach[1], reach[2])
        )
    return MapBlocks(
        FloodBlock(model, config.ffn, config.inference, thickness, grid.shape),
        stage='flood',
        reads=reads,
        writes=writes,
        table_writes={'objects': tables.OBJECTS},
        grid=grid,
        config=[config.ffn, config.inference.precision, thickness],
        model_hash=model.sha256,
        concurrency=config.inference.canvases,
        run=run,
    )


def _match(
    config: ReconcileConfig,
    grid: BlockGrid,
    supervoxels: VolumeSpec,
    overlaps: dict[int, VolumeSpec],
    run: Run,
    flooded: beam.PCollection,
) -> MapBlocks:
    reads = {}
    for axis, spec in overlaps.items():
        face = LowerFace(axis, config.thickness)
        reads[f'before_{"zyx"[axis]}'] = Read(spec, face)
        reads[f'after_{"zyx"[axis]}'] = Read(supervoxels, face)
    return MapBlocks(
        MatchFaces(config.match),
        stage='match',
        reads=reads,
        table_writes={'edges': tables.EDGES},
        grid=grid,
        config=config.match,
        run=run,
        after=[flooded],
    )


class MatchFaces:
    """Matches a block with its three predecessors: their labels and its own, plane by plane."""

    def __init__(self, config: MatchConfig):
        self._config = config

    def __call__(
        self,
        before_z: np.ndarray | None,
        after_z: np.ndarray | None,
        before_y: np.ndarray | None,
        after_y: np.ndarray | None,
        before_x: np.ndarray | None,
        after_x: np.ndarray | None,
    ) -> BlockResult:
        faces = ((before_z, after_z), (before_y, after_y), (before_x, after_x))
        parts = [
            match_overlap(before, after, self._config).columns()
            for before, after in faces
            if before is not None and after is not None
        ]
        return BlockResult(rows={'edges': tables.concatenate(parts, tables.EDGES)})


def relabel(supervoxels: np.ndarray, segment_of: tables.Columns) -> np.ndarray:
    """Gives every supervoxel (zyx uint64) the id of its segment.

    `segment_of` lists only supervoxels whose segment differs; the others keep their id.
    """
    ids, inverse = np.unique(supervoxels, return_inverse=True)
    renamed = ids.copy()
    where = np.searchsorted(ids, segment_of['supervoxel'])
    found = where < len(ids)
    found[found] = ids[where[found]] == segment_of['supervoxel'][found]
    renamed[where[found]] = segment_of['segment'][found]
    return renamed[inverse].reshape(supervoxels.shape)
