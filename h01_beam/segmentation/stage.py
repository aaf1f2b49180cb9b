"""From an image to one segmentation: flood -> match -> components, fill -> relabel -> pyramid.

flood        blocks   image + halo -> block labels (core + halo, each block its own), object rows
match        pairs    block labels of two neighbours in their overlap -> edges
components   graph    edges -> smallest supervoxel of each component, one part per block
fill         blocks   block labels -> supervoxels: the cores, blanks filled by the neighbours
relabel      blocks   supervoxels -> segmentation with global ids
downsample   blocks   segmentation -> its pyramid

With the truth, also evaluation/ (scores) and baseline/ (the same job without a network).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import fastremap
import numpy as np

from h01_beam import generations, storage, tables
from h01_beam.agglomeration.stage import AssignSegments
from h01_beam.blockwise import MapBlocks
from h01_beam.evaluation.baseline import WatershedBlock
from h01_beam.evaluation.config import EvaluateConfig, Evaluation
from h01_beam.evaluation.stage import build_evaluate
from h01_beam.geometry import BlockGrid, Border, CoreBox, Overlap, ReadBox, Triple
from h01_beam.imaging.stage import build_downsample
from h01_beam.labels import LOCAL_BITS
from h01_beam.models import ModelRef
from h01_beam.plan import BlockResult, Read, Write
from h01_beam.run import Run, volume_state
from h01_beam.segmentation.config import SegmentConfig, make_envelope, make_grid
from h01_beam.segmentation.fill import FACES, Face, fill_blanks
from h01_beam.segmentation.flood import FloodBlock
from h01_beam.segmentation.reconcile import MatchConfig, match_overlap, match_painted
from h01_beam.slots import SeenBy, SlotBox, Slots
from h01_beam.subrun import SubRun
from h01_beam.volume import Volume, VolumeSpec

# Of an evaluation, in its run directory.
SCORES = 'scores.json'
# Beside the labels: where runs start, and the runs (`count_pairs`).
COUNT_BYTES_PER_VOXEL = 16
# Beside the labels: the filled ones, distances, and what is compared (`fill_blanks`).
FILL_BYTES_PER_VOXEL = 24


@dataclasses.dataclass(frozen=True)
class Segmented:
    """What a segmentation job yields.

    Attributes:
      labels: specification of the segmentation.
      done: block records of the stage that wrote it.
    """

    labels: VolumeSpec
    done: beam.PCollection


def build_segment(root: Any, config: SegmentConfig, run: Run) -> Segmented:
    """Adds all stages of the segmentation job.

    Raises:
      ValueError, FileNotFoundError: an input does not fit; nothing has been written yet.
    """
    layout = _Layout.of(config, run)
    run.write_manifest(
        'segmentation', config, {'ffn': layout.model.sha256}, lambda: list_inputs(config)
    )
    flood = _flood(config, layout, run)
    return _reconcile(root, root | flood, config, layout, run, overlaps=True)


def list_inputs(config: SegmentConfig) -> dict[str, str]:
    """A fingerprint for each input."""
    result = {
        'image': volume_state(generations.resolve(config.image)),
        'model': ModelRef.resolve(config.model).sha256,
    }
    for name, uri in (('mask', config.mask), ('truth', config.truth)):
        if uri is not None:
            result[name] = volume_state(generations.resolve(uri))
    return result


def build_baseline(root: Any, config: SegmentConfig, run: Run) -> Segmented:
    """Adds the same job without a network: the same blocks, joined in the same way.

    So its scores are not the best that can be had without a network. Means over three synthetic
    tissues, VOI in bits and adapted Rand error: 2.1 and 0.54 in 8 blocks, 1.9 and 0.37 in blocks
    with `match.rule: mutual`, 1.7 and 0.31 for the whole volume at once (`segment_by_watershed`).
    """
    assert config.baseline is not None, 'the caller asks for one'
    layout = _Layout.of(config, run)
    run.write_manifest('segmentation', config, {})
    voxel_size_nm = layout.image.voxel_size_nm
    assert voxel_size_nm is not None, 'checked with the grid'
    watershed = MapBlocks(
        WatershedBlock(voxel_size_nm, config.baseline, layout.slots),
        stage='watershed',
        reads=_image_reads(config, layout),
        writes={'block_labels': layout.slot_write},
        grid=layout.slots.grid,
        config=[config.baseline, layout.slots.grid.halo],
        run=run,
    )
    return _reconcile(root, root | watershed, config, layout, run, overlaps=False)


def build_scored(root: Any, config: SegmentConfig, run: Run) -> Segmented:
    """Adds the job and, where the truth is known, its scores and those of the baseline, if any.

    The baseline is a run of its own in `RUN_DIR/baseline`; scores lie in `RUN_DIR/evaluation` and
    `RUN_DIR/baseline/evaluation`.

    Raises:
      ValueError, FileNotFoundError: an input does not fit; nothing has been written yet.
    """
    segmented = build_segment(root, config, run)
    if config.truth is None:
        return segmented

    def score(of: Segmented) -> Callable[[Any, Run], Any]:
        return lambda root, inner: _evaluate(root, of, config, inner)

    def baseline(root: Any, inner: Run) -> Any:
        return root | SubRun(inner, 'evaluation', score(build_baseline(root, config, inner)))

    root | SubRun(run, 'evaluation', score(segmented))
    if config.baseline is not None:
        root | SubRun(run, 'baseline', baseline)
    return segmented


def _evaluate(root: Any, segmented: Segmented, config: SegmentConfig, run: Run) -> Any:
    assert config.truth is not None
    evaluation = Evaluation(
        segmentation=segmented.labels,
        truth=Volume.open(generations.resolve(config.truth)).spec,
        image=Volume.open(generations.resolve(config.image)).spec,
        output=storage.join(run.path, SCORES),
        config=_evaluated_part(config),
    )
    run.write_manifest('evaluate', evaluation, {})
    return build_evaluate(root, evaluation, run, after=[segmented.done])


def _evaluated_part(config: SegmentConfig) -> EvaluateConfig:
    """Of the truth, what is segmented: there is nothing to score outside of `box`."""
    evaluate, box = config.evaluate, config.box
    if box is None or evaluate.start is not None or evaluate.shape is not None:
        return evaluate
    return dataclasses.replace(evaluate, start=box.start, shape=box.shape)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Inputs and volumes of a job, checked against each other."""

    image: VolumeSpec
    model: ModelRef
    labels: VolumeSpec
    slots: Slots
    block_labels: VolumeSpec
    envelope: Triple

    @classmethod
    def of(cls, config: SegmentConfig, run: Run) -> _Layout:
        image = Volume.open(generations.resolve(config.image)).spec
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
        slots = Slots(grid, config.output.chunk)
        return cls(
            image=image,
            model=model,
            labels=labels,
            slots=slots,
            block_labels=_slot_volume(labels, slots, run),
            envelope=make_envelope(config.reconcile, grid, model.card),
        )

    @property
    def slot_write(self) -> Write:
        return Write(self.block_labels, SlotBox(self.slots), self.slots.as_grid)


def _reconcile(
    root: Any,
    flooded: beam.PCollection,
    config: SegmentConfig,
    layout: _Layout,
    run: Run,
    overlaps: bool,
) -> Segmented:
    """From block labels, and the table `overlaps` if there is one, to one segmentation."""
    labels, slots, block_labels = layout.labels, layout.slots, layout.block_labels
    supervoxels = _work_volume(labels, 'supervoxels', run)
    matched = root | _match(
        config.reconcile.match, layout.envelope, slots, block_labels, run, flooded, overlaps
    )
    assigned = matched | AssignSegments(
        slots.grid, run, local_bits=LOCAL_BITS, shard_rows=config.reconcile.shard_rows
    )
    reach = _reach(slots.grid, layout.envelope) if config.reconcile.fill else (0, 0, 0)
    filled = root | _fill(reach, slots, block_labels, supervoxels, run, flooded)
    relabelled = root | MapBlocks(
        relabel,
        stage='relabel',
        reads={'supervoxels': Read(supervoxels, CoreBox())},
        # Filled voxels belong to supervoxels of the neighbours.
        table_reads={'segment_of': CoreBox(margin=reach)},
        writes={'segmentation': labels},
        grid=slots.grid,
        run=run,
        after=[assigned, filled],
    )
    build_downsample(root, labels, config.downsample, run, after=[relabelled])
    return Segmented(labels, relabelled)


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


def _image_reads(config: SegmentConfig, layout: _Layout) -> dict[str, Read]:
    reads = {'image': Read(layout.image, ReadBox())}
    if config.mask:
        mask = Volume.open(generations.resolve(config.mask)).spec
        bounds = layout.slots.grid.bounds
        if not mask.bounds.contains(bounds):
            raise ValueError(f'mask {mask.uri!r} covers {mask.bounds}: must cover {bounds}')
        reads['mask'] = Read(mask, ReadBox())
    return reads


def _flood(config: SegmentConfig, layout: _Layout, run: Run) -> MapBlocks:
    model, slots = layout.model, layout.slots
    ffn = config.ffn.for_model(model.card)
    return MapBlocks(
        FloodBlock(model, ffn, config.inference, slots),
        stage='flood',
        reads=_image_reads(config, layout),
        writes={'block_labels': layout.slot_write},
        table_writes={'objects': tables.OBJECTS, 'overlaps': tables.EDGES},
        grid=slots.grid,
        # A block lies in its slot behind a halo, which its read box does not tell where it clips.
        config=[ffn, config.inference.precision, config.inference.batch_size, slots.grid.halo],
        model_hash=model.sha256,
        version=2,  # 2: the table `overlaps`
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
    overlaps: bool,
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
        table_reads={'overlaps': CoreBox()} if overlaps else {},
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
    """Matches a block with its three predecessors: what either saw of their overlap.

    And its own objects with each other, where one was painted over another.
    """

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
        overlaps: tables.Columns | None = None,
    ) -> BlockResult:
        seen = ((before_z, after_z), (before_y, after_y), (before_x, after_x))
        parts = [
            match_overlap(before, after, self._config).columns()
            for before, after in seen
            if before is not None and after is not None
        ]
        if overlaps is not None:
            parts.append(match_painted(overlaps, self._config))
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
