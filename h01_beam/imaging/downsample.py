"""Pyramids: which factors, and the reduction of one block. Shape of the stage: blocks.

The reduction itself is TensorStore's (`h01_beam.volume.downsample`): exact means for images,
the most frequent label for segmentations.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from h01_beam.geometry import Block, CoreBox, Triple, as_triple
from h01_beam.volume import DownsampleMethod, VolumeSpec, VoxelSize, downsample


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownsampleConfig:
    """How a pyramid is made.

    Attributes:
      levels: how many levels above mip 0; None goes on until one chunk holds the volume.
      factors: zyx factor of each level to the one below; None chooses by voxel size.
      method: None is the mean for images and the mode for segmentations.
      block_chunks: zyx chunks (shards, when sharded) per block of work.
      shard: zyx shape of a shard; None keeps the sharding of mip 0.
    """

    levels: int | None = None
    factors: tuple[Triple, ...] | None = None
    method: DownsampleMethod | None = None
    block_chunks: Triple = (2, 2, 2)
    shard: Triple | None = None

    def __post_init__(self) -> None:
        for factor in self.factors or ():
            if min(as_triple('downsample.factors', factor)) < 1 or max(factor) == 1:
                raise ValueError(
                    f'downsample.factors holds {factor}: each factor must be >= 1, one of them > 1'
                )
        if self.levels is not None and self.levels < 0:
            raise ValueError(f'downsample.levels is {self.levels}: must be >= 0')


@dataclasses.dataclass(frozen=True)
class DownsampleBlock:
    """Reduces one block: zyx array over `region` -> smaller zyx array of the same dtype."""

    factor: Triple
    method: DownsampleMethod
    region: CoreBox

    def __call__(self, source: np.ndarray, block: Block) -> np.ndarray:
        box = self.region(block)
        assert box is not None
        return downsample(source, self.factor, self.method, box.start)


def choose_factor(voxel_size_nm: VoxelSize) -> Triple:
    """Halves the axes that are fine, so that voxels approach cubes: (1, 2, 2) at 30x8x8 nm."""
    finest = min(voxel_size_nm)
    z, y, x = (2 if size < 2 * finest else 1 for size in voxel_size_nm)
    return z, y, x


def pyramid_specs(base: VolumeSpec, config: DownsampleConfig) -> list[tuple[Triple, VolumeSpec]]:
    """Factor to the level below and specification of every level above mip 0.

    Raises:
      ValueError: `base` has no voxel size.
    """
    if base.voxel_size_nm is None:
        raise ValueError(
            f'volume {base.uri!r} does not say its voxel size, which a pyramid needs; give it one '
            'with `python -m pipelines.ingest --voxel_size_nm Z,Y,X`'
        )
    levels: list[tuple[Triple, VolumeSpec]] = []
    spec = base
    count = config.levels if config.levels is not None else 32
    if config.factors is not None:
        count = (
            min(count, len(config.factors)) if config.levels is not None else len(config.factors)
        )
    for level in range(count):
        fits = all(n <= c for n, c in zip(spec.shape, spec.chunk, strict=True))
        if fits and config.levels is None and config.factors is None:
            break
        assert spec.voxel_size_nm is not None
        factor = config.factors[level] if config.factors else choose_factor(spec.voxel_size_nm)
        spec = _next_level(spec, factor, config.shard or base.shard)
        levels.append((factor, spec))
    return levels


def _next_level(below: VolumeSpec, factor: Triple, shard: Triple | None) -> VolumeSpec:
    assert below.voxel_size_nm is not None
    bounds = below.bounds.scale_down(factor)
    path, _, mip = below.uri.partition('?mip=')
    z, y, x = (size * f for size, f in zip(below.voxel_size_nm, factor, strict=True))
    return dataclasses.replace(
        below,
        uri=f'{path}?mip={int(mip or 0) + 1}',
        voxel_size_nm=(z, y, x),
        start=bounds.start,
        shape=bounds.shape,
        shard=shard,
    )
