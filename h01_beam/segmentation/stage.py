"""From an image to one segmentation: flood -> match -> components, fill -> relabel -> pyramid.

flood        blocks   image + halo -> block labels (core + halo, each block its own), object rows
match        pairs    block labels of two neighbours in their overlap -> edges
components   graph    edges -> smallest supervoxel of each component, one part per block
fill         blocks   block labels -> supervoxels: the cores, blanks filled by the neighbours
relabel      blocks   supervoxels -> segmentation with global ids
downsample   blocks   segmentation -> its pyramid
"""

from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import fastremap
import numpy as np

from h01_beam import tables
from h01_beam.agglomeration.stage import AssignSegments
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, Border, CoreBox, Overlap, ReadBox, Triple
from h01_beam.imaging.stage import build_downsample
from h01_beam.models import ModelRef
from h01_beam.plan import BlockResult, Read, Write
from h01_beam.run import Run
from h01_beam.segmentation.config import SegmentConfig, make_envelope, make_grid
from h01_beam.segmentation.fill import FACES, Face, fill_blanks
from h01_beam.segmentation.flood import LOCAL_BITS, FloodBlock
from h01_beam.segmentation.reconcile import MatchConfig, match_overlap
from h01_beam.slots import SeenBy, SlotBox, Slots
from h01_beam.volume import Volume, VolumeSpec

# Beside the labels: where runs start, and the runs (`count_pairs`).
COUNT_BYTES_PER_VOXEL = 16
# Beside the labels: the filled ones, distances, and what is compared (`fill_blanks`).
FILL_BYTES_PER_VOXEL = 24


def build_segment(root: Any, config: SegmentConfig, run: Run) -> VolumeSpec:
    """Adds all stages of the segmentation job; returns the specification of its result.

    Raises:
      ValueError, FileNotFoundError: an input does not fit; nothing has been written yet.
    """
    image = Volume.open(config.image).spec
    model = ModelRef.resolve(config.model)
    run.resources.check_reachable('model', config.model)
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
    envelope = make_envelope(config.reconcile, grid, model.card)
    reach = _reach(grid, envelope)
    run.write_manifest('segmentation', config, {'ffn': model.sha256})
    slots = Slots(grid, config.output.chunk)
    block_labels = _slot_volume(labels, slots, run)
    supervoxels = _work_volume(labels, 'supervoxels', run)

    flooded = root | _flood(config, image, model, slots, block_labels, run)
    matched = root | _match(config.reconcile.match, envelope, slots, block_labels, run, flooded)
    assigned = matched | AssignSegments(
        grid, run, local_bits=LOCAL_BITS, shard_rows=config.reconcile.shard_rows
    )
    reach = reach if config.reconcile.fill else (0, 0, 0)
    filled = root | _fill(reach, slots, block_labels, supervoxels, run, flooded)
    relabelled = root | MapBlocks(
        relabel,
        stage='relabel',
        reads={'supervoxels': Read(supervoxels, CoreBox())},
        # Filled voxels belong to supervoxels of the neighbours.
        table_reads={'segment_of': CoreBox(margin=reach)},
        writes={'segmentation': labels},
        grid=grid,
        run=run,
        after=[assigned, filled],
    )
    build_downsample(root, labels, config.downsample, run, after=[relabelled])
    return labels


def _work_volume(labels: VolumeSpec, name: str, run: Run) -> VolumeSpec:
    return dataclasses.replace(labels, uri=run.volume_uri(name, 'zarr3'), encoding='zstd')


def _slot_volume(labels: VolumeSpec, slots: Slots, run: Run) -> VolumeSpec:
    """Where the blocks lay down all that they saw; sharded, a slot is one object."""
    grid = slots.as_grid
    return dataclasses.replace(
        _work_volume(labels, 'block_labels', run),
        shape=grid.bounds.shape,
        start=grid.bounds.start,
        shard=grid.block_shape if labels.shard else None,
    )


def _flood(
    config: SegmentConfig,
    image: VolumeSpec,
    model: ModelRef,
    slots: Slots,
    block_labels: VolumeSpec,
    run: Run,
) -> MapBlocks:
    ffn = config.ffn.for_model(model.card)
    reads = {'image': Read(image, ReadBox())}
    if config.mask:
        mask = Volume.open(config.mask).spec
        if not mask.bounds.contains(slots.grid.bounds):
            raise ValueError(
                f'mask {mask.uri!r} covers {mask.bounds}: must cover {slots.grid.bounds}'
            )
        reads['mask'] = Read(mask, ReadBox())
    return MapBlocks(
        FloodBlock(model, ffn, config.inference, slots),
        stage='flood',
        reads=reads,
        writes={'block_labels': Write(block_labels, SlotBox(slots), slots.as_grid)},
        table_writes={'objects': tables.OBJECTS},
        grid=slots.grid,
        # A block lies in its slot behind a halo, which its read box does not tell where it clips.
        config=[ffn, config.inference.precision, config.inference.batch_size, slots.grid.halo],
        model_hash=model.sha256,
        concurrency=config.inference.canvases,
        run=run,
    )


def _match(
    config: MatchConfig,
    envelope: Triple,
    slots: Slots,
    block_labels: VolumeSpec,
    run: Run,
    flooded: beam.PCollection,
) -> MapBlocks:
    reads = {}
    for axis, name in enumerate('zyx'):
        overlap = Overlap(slots.grid, axis, envelope)
        for side, offset in (('before', _offset(axis, -1)), ('after', (0, 0, 0))):
            reads[f'{side}_{name}'] = Read(block_labels, SeenBy(slots, overlap, offset))
    return MapBlocks(
        MatchOverlaps(config, _reach(slots.grid, envelope)),
        stage='match',
        reads=reads,
        table_writes={'edges': tables.EDGES},
        grid=slots.grid,
        config=[config, envelope],
        run=run,
        after=[flooded],
    )


def _reach(grid: BlockGrid, envelope: Triple) -> Triple:
    """How far (zyx voxels) a block's labels may reach into its neighbours' cores."""
    z, y, x = (h - e for h, e in zip(grid.halo, envelope, strict=True))
    return z, y, x


def _fill(
    reach: Triple,
    slots: Slots,
    block_labels: VolumeSpec,
    supervoxels: VolumeSpec,
    run: Run,
    flooded: beam.PCollection,
) -> MapBlocks:
    reads = {'own': Read(block_labels, SeenBy(slots, CoreBox()))}
    for axis, side in FACES:
        offset = _offset(axis, side)
        view = SeenBy(slots, Border(slots.grid, offset, reach), offset)
        reads[_face_name((axis, side))] = Read(block_labels, view)
    return MapBlocks(
        FillBlanks(),
        stage='fill',
        reads=reads,
        writes={'supervoxels': supervoxels},
        grid=slots.grid,
        config=reach,
        run=run,
        after=[flooded],
    )


def _offset(axis: int, step: int) -> Triple:
    z, y, x = (step if a == axis else 0 for a in range(3))
    return z, y, x


def _face_name(face: Face) -> str:
    axis, side = face
    return f'{"lower" if side < 0 else "upper"}_{"zyx"[axis]}'


class MatchOverlaps:
    """Matches a block with its three predecessors: what either saw of their overlap."""

    def __init__(self, config: MatchConfig, reach: Triple):
        self._config = config
        self._reach = reach

    def working_bytes(self, read_shape: Triple) -> int:
        planes = max(2 * r / n for r, n in zip(self._reach, read_shape, strict=True))
        return int(COUNT_BYTES_PER_VOXEL * planes * np.prod(read_shape))

    def __call__(
        self,
        before_z: np.ndarray | None,
        after_z: np.ndarray | None,
        before_y: np.ndarray | None,
        after_y: np.ndarray | None,
        before_x: np.ndarray | None,
        after_x: np.ndarray | None,
    ) -> BlockResult:
        overlaps = ((before_z, after_z), (before_y, after_y), (before_x, after_x))
        parts = [
            match_overlap(before, after, self._config).columns()
            for before, after in overlaps
            if before is not None and after is not None
        ]
        return BlockResult(rows={'edges': tables.concatenate(parts, tables.EDGES)})


class FillBlanks:
    """A core with its blanks filled from the six neighbours; see `fill_blanks`."""

    def working_bytes(self, read_shape: Triple) -> int:
        return FILL_BYTES_PER_VOXEL * int(np.prod(read_shape))

    def __call__(
        self,
        own: np.ndarray,
        lower_z: np.ndarray | None,
        upper_z: np.ndarray | None,
        lower_y: np.ndarray | None,
        upper_y: np.ndarray | None,
        lower_x: np.ndarray | None,
        upper_x: np.ndarray | None,
    ) -> np.ndarray:
        views = (lower_z, upper_z, lower_y, upper_y, lower_x, upper_x)
        return fill_blanks(own, {f: v for f, v in zip(FACES, views, strict=True) if v is not None})


def relabel(supervoxels: np.ndarray, segment_of: tables.Columns) -> np.ndarray:
    """Gives every supervoxel (zyx uint64) the id of its segment.

    `segment_of` lists only supervoxels whose segment differs; the others keep their id.
    """
    ids, inverse = fastremap.unique(supervoxels, return_inverse=True)
    renamed = ids.copy()
    where = np.searchsorted(ids, segment_of['supervoxel'])
    found = where < len(ids)
    found[found] = ids[where[found]] == segment_of['supervoxel'][found]
    renamed[where[found]] = segment_of['segment'][found]
    return renamed[inverse].reshape(supervoxels.shape)
