"""Configuration of an evaluation, and what it is of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from h01_beam.geometry import BoundingBox, Triple, as_triple
from h01_beam.morphology.teasar import SkeletonConfig
from h01_beam.volume_spec import VolumeSpec, VoxelSize


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a segmentation is scored.

    Attributes:
      start: zyx voxel at which the evaluated box begins; None begins with the truth.
      shape: zyx shape of the evaluated box; None reaches to the end of the truth.
      block_shape: zyx shape of a block of work.
      partitions: parts in which overlaps and skeletons are joined; None suits the number of blocks.
      min_fraction: a part of an object counts in the tables if it holds at least this fraction.
      merge_tolerance_nodes: nodes of another object that a segment may hold without being a merger
        (`erl.find_mergers`). In dense truth the border between two objects is uncertain by some
        voxels, which is as much as thin neurites are wide; a real merger holds a stretch of both.
      skeletons: how truth skeletons are drawn.
      max_object_voxels: largest box of a truth object that one worker may load.
      table_rows: longest table of objects or segments that is written, the worst first.
      pictured: how many splits and how many merges are drawn.
      crop: zyx shape cut out around an error; only y and x matter.
    """

    start: Triple | None = None
    shape: Triple | None = None
    block_shape: Triple = (256, 256, 256)
    partitions: int | None = None
    min_fraction: float = 0.01
    merge_tolerance_nodes: int = 2
    skeletons: SkeletonConfig = field(default_factory=SkeletonConfig)
    max_object_voxels: int = 2**28
    table_rows: int = 1_000_000
    pictured: int = 4
    crop: Triple = (1, 200, 200)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if min(as_triple('evaluate.block_shape', self.block_shape)) < 1:
            raise ValueError(f'evaluate.block_shape is {self.block_shape}: extents must be >= 1')
        if min(as_triple('evaluate.crop', self.crop)) < 1:
            raise ValueError(f'evaluate.crop is {self.crop}: extents must be >= 1')
        if not 0 <= self.min_fraction <= 1:
            raise ValueError(f'evaluate.min_fraction is {self.min_fraction}: must lie in [0, 1]')
        for name, least in (
            ('partitions', 1),
            ('merge_tolerance_nodes', 0),
            ('max_object_voxels', 1),
            ('table_rows', 1),
            ('pictured', 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'evaluate.{name} is {value}: must be at least {least}')


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated, and where the results go.

    Attributes:
      segmentation: volume of labels, 0 = unlabelled.
      truth: volume of labels, 0 = not scored.
      image: what the picture of the errors shows below the labels, or None.
      output: path of the scores, `PATH.json`; `PATH.png`, `PATH_truths.parquet` and
        `PATH_segments.parquet` are written beside it.
      voxel_size_nm: zyx, for volumes that do not know it; None leaves run lengths out then.
      config: see `EvaluateConfig`.
    """

    segmentation: VolumeSpec
    truth: VolumeSpec
    image: VolumeSpec | None = None
    output: str
    voxel_size_nm: VoxelSize | None = None
    config: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        """Checks that the volumes belong together and settles the voxel size."""
        sizes = {
            name: spec.voxel_size_nm
            for name in ('segmentation', 'truth')
            if (spec := getattr(self, name)).voxel_size_nm is not None
        }
        if self.voxel_size_nm is not None:
            if len(self.voxel_size_nm) != 3 or not all(
                0 < v < math.inf for v in self.voxel_size_nm
            ):
                raise ValueError(
                    f'--voxel_size_nm is {self.voxel_size_nm}: must be three positive lengths in '
                    'nm, z, y, x'
                )
            sizes['--voxel_size_nm'] = self.voxel_size_nm
        first, *others = [*sizes.items()] or [('', None)]
        for name, size in others:
            if not np.allclose(first[1], size, rtol=1e-3):
                raise ValueError(
                    f'voxel_size_nm of {first[0]} is {first[1]}, but that of {name} is {size}: '
                    'must be the same (z, y, x); choose mips that agree, with ?mip=N'
                )
        object.__setattr__(self, 'voxel_size_nm', first[1])
        for name in ('truth', 'segmentation', 'image'):
            spec = getattr(self, name)
            if spec is not None and not spec.bounds.contains(self.bounds):
                raise ValueError(
                    f'{name} covers {spec.bounds}, but the evaluated box is {self.bounds}: it must '
                    'lie within; choose a box with --set start=[z,y,x] --set shape=[z,y,x], '
                    'or check that the volumes belong together'
                )

    @property
    def bounds(self) -> BoundingBox:
        """The evaluated box: that of the truth, or the one that was asked for."""
        whole, config = self.truth.bounds, self.config
        start = config.start or whole.start
        end = whole.end if config.shape is None else BoundingBox(start, config.shape).end
        return BoundingBox.from_bounds(start, end)
