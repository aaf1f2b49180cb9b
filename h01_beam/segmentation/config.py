"""Configuration of the segmentation job, and the checks that need no voxel."""

from __future__ import annotations

import dataclasses
from typing import Literal

from h01_beam.evaluation.baseline_config import BaselineConfig
from h01_beam.evaluation.config import EvaluateConfig
from h01_beam.geometry import BlockGrid, BoundingBox, Triple
from h01_beam.imaging.downsample import DownsampleConfig
from h01_beam.model_file import ModelCard
from h01_beam.segmentation.ffn_config import FfnConfig
from h01_beam.segmentation.reconcile import MatchConfig
from h01_beam.volume import VolumeSpec, VoxelSize

# Nominal voxel sizes are rounded (30 or 33 nm sections): this much is no contradiction.
VOXEL_SIZE_TOLERANCE = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """How the volume is cut; see `h01_beam.geometry.BlockGrid`.

    Attributes:
      block_shape: zyx core; a multiple of the chunk on every axis that has several blocks.
      halo: zyx; half of the overlap of two neighbours. Objects are followed into it; what lies in
        it serves to match the ids of neighbours and to fill what they left blank.
    """

    block_shape: Triple
    halo: Triple


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """A part of the volume: zyx voxels."""

    start: Triple
    shape: Triple


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How the network is run; only `precision` and `batch_size` change results.

    Attributes:
      precision: 'float32', or 'bfloat16' where the processor has it.
      batch_size: FOVs per call of the network; the shape is fixed and padded. Networks of another
        batch shape round otherwise.
      canvases: blocks that one worker process floods at once.
      threads: of one worker process, for the network; DirectRunner has one process per core.
    """

    precision: Literal['float32', 'bfloat16'] = 'float32'
    batch_size: int = 1
    canvases: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ('batch_size', 'canvases'):
            if getattr(self, name) < 1:
                raise ValueError(f'inference.{name} is {getattr(self, name)}: must be at least 1')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconcileConfig:
    """How the ids of neighbouring blocks become one.

    Attributes:
      envelope: zyx voxels at the faces of what a block saw that count for nothing; less than the
        halo. None: half a field of view less a move, that is, voxels further from every possible
        centre of the field of view than any voxel inside of the block is. The published rule is
        a halo less one, so that two planes are compared, and `match.rule: mutual`.
      match: which ids of two blocks are one object.
      fill: whether voxels that a block left blank take the label of a neighbour that saw them.
      shard_rows: rows that a worker holds while it finds components.
    """

    envelope: Triple | None = None
    match: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    fill: bool = True
    shard_rows: int = 1 << 20

    def __post_init__(self) -> None:
        if self.shard_rows < 2:
            raise ValueError(f'reconcile.shard_rows is {self.shard_rows}: must be at least 2')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How the segmentation is stored: zyx chunk, and shard or None."""

    chunk: Triple = (64, 64, 64)
    shard: Triple | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """The segmentation job.

    Attributes:
      image: URI of a uint8 image volume.
      model: path of a `.keras` file with its card.
      mask: URI of a volume whose nonzero voxels are not to be segmented, or None.
      box: part of the image to segment; None for all of it.
      model_voxel_size_nm: zyx; for models whose card does not say. None trusts the image.
      truth: URI of the true labels, 0 = not scored. If given, the segmentation is scored, and with
        it one of the same blocks that was made without a network.
      evaluate: how it is scored; where `box` is set, within it unless a part is named here.
      baseline: how the other one is made; None makes none.
    """

    image: str
    model: str
    grid: GridConfig
    mask: str | None = None
    box: BoxConfig | None = None
    model_voxel_size_nm: VoxelSize | None = None
    truth: str | None = None
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    baseline: BaselineConfig | None = dataclasses.field(default_factory=BaselineConfig)
    ffn: FfnConfig = dataclasses.field(default_factory=FfnConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    reconcile: ReconcileConfig = dataclasses.field(default_factory=ReconcileConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    downsample: DownsampleConfig = dataclasses.field(default_factory=DownsampleConfig)


def make_grid(config: SegmentConfig, image: VolumeSpec, card: ModelCard) -> BlockGrid:
    """Checks image, model and blocks against each other, and cuts the volume.

    Raises:
      ValueError: names what contradicts what, and the way out.
    """
    check_image_spec(image)
    check_voxel_size(image, card, config.model_voxel_size_nm)
    bounds = image.bounds
    if config.box:
        box = BoundingBox(config.box.start, config.box.shape)
        if box.size == 0 or not bounds.contains(box):
            raise ValueError(f'box is {box}: must be a non-empty part of the image, {bounds}')
        bounds = box
    if any(n < f for n, f in zip(bounds.shape, card.fov_shape, strict=True)):
        raise ValueError(
            f'the volume has shape {bounds.shape}, smaller than one field of view of the model, '
            f'{card.fov_shape} (zyx): use a larger volume, or a model with a smaller field of view'
        )
    grid = BlockGrid(bounds, config.grid.block_shape, config.grid.halo)
    _check_halo(grid, card.fov_shape)
    return grid


def make_envelope(config: ReconcileConfig, grid: BlockGrid, card: ModelCard) -> Triple:
    """The envelope (zyx voxels) of a configuration for a grid and a network.

    Raises:
      ValueError: it leaves nothing of the overlap of two blocks.
    """
    half = (n // 2 - d for n, d in zip(card.fov_shape, card.deltas, strict=True))
    z, y, x = config.envelope or half
    for axis, (voxels, name) in enumerate(zip((z, y, x), 'zyx', strict=True)):
        if grid.shape[axis] > 1 and not 0 <= voxels < grid.halo[axis]:
            raise ValueError(
                f'reconcile.envelope is {(z, y, x)}: along {name} must be less than grid.halo, '
                f'{grid.halo[axis]}, or neighbours would have nothing to compare'
            )
    z, y, x = (min(e, h) for e, h in zip((z, y, x), grid.halo, strict=True))
    return z, y, x


def check_image_spec(image: VolumeSpec) -> None:
    """Raises a ValueError unless the volume is one that a network can read."""
    if image.dtype != 'uint8' or image.channels != 1:
        raise ValueError(
            f'image {image.uri!r} is {image.dtype} with {image.channels} channel(s): must be uint8 '
            'with one; convert it with `python -m pipelines.ingest --grey_range LOW,HIGH`'
        )
    if image.voxel_size_nm is None:
        raise ValueError(
            f'image {image.uri!r} does not say its voxel size: convert it with '
            '`python -m pipelines.ingest --voxel_size_nm Z,Y,X`, which also splits it into chunks'
        )


def check_voxel_size(image: VolumeSpec, card: ModelCard, stated: VoxelSize | None) -> None:
    """Raises a ValueError where the image's voxels are not those that the model was made for."""
    wanted = card.voxel_size_nm or stated
    have = image.voxel_size_nm
    assert have is not None
    if wanted is None or _agree(have, wanted):
        return
    swapped = _agree(have[::-1], wanted)
    way_out = (
        'z and x seem swapped: give the voxel size of the image in z, y, x order at ingest'
        if swapped
        else 'resample the image (pipelines.downsample), name another mip (URI?mip=N), or use a '
        'model for this voxel size'
    )
    raise ValueError(
        f'image voxel_size_nm is {tuple(have)} but the model {card.name!r} was made for '
        f'{tuple(wanted)} (z, y, x): {way_out}'
    )


def _agree(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(p - q) <= VOXEL_SIZE_TOLERANCE * q for p, q in zip(a, b, strict=True))


def _check_halo(grid: BlockGrid, fov_shape: Triple) -> None:
    for axis, name in enumerate('zyx'):
        blocks = grid.shape[axis]
        if blocks == 1:
            continue
        needed = fov_shape[axis] // 2 + 1
        if grid.halo[axis] < needed:
            raise ValueError(
                f'grid.halo is {grid.halo}: along {name} must be at least {needed} (more than half '
                'a field of view), or seeds next to a face would be lost'
            )
        last = grid.bounds.shape[axis] - (blocks - 1) * grid.block_shape[axis] + grid.halo[axis]
        if last < fov_shape[axis]:
            raise ValueError(
                f'grid.block_shape is {grid.block_shape}: leaves a last block of {last} voxels '
                f'(halo included) along {name}, less than the field of view {fov_shape[axis]}; '
                'choose blocks that divide the volume more evenly, or a larger halo'
            )
