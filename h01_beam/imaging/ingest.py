"""Conversion of foreign files to volumes. Shape of the stage: blocks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from h01_beam.geometry import Block, Triple
from h01_beam.volume import Kind, VolumeSpec, VoxelSize, guess_kind

# What Neuroglancer's precomputed format can hold, and what else is turned into it.
STORED = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'float32')
LABEL_CASTS = {'int64': 'uint64', 'bool': 'uint8'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a foreign volume is stored.

    Attributes:
      voxel_size_nm: zyx.
      kind: 'image' or 'segmentation'; None takes 1-byte and 16-bit data and floats for images.
      grey_range: (low, high) grey levels that become 0 and 255 of a uint8 image; None keeps the
        values and their dtype.
      chunk: zyx.
      shard: zyx, or None for one file per chunk.
      encoding: None is 'raw' for images, 'compressed_segmentation' for uint32/uint64 labels.
    """

    voxel_size_nm: VoxelSize
    kind: Kind | None = None
    grey_range: tuple[float, float] | None = None
    chunk: Triple = (64, 64, 64)
    shard: Triple | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if not all(0 < size < math.inf for size in self.voxel_size_nm):
            raise ValueError(f'voxel_size_nm is {self.voxel_size_nm}: must be positive nm, z, y, x')
        for name, shape in (('chunk', self.chunk), ('shard', self.shard or self.chunk)):
            if min(shape) < 1:
                raise ValueError(f'{name} is {shape}: every extent must be >= 1 voxel')
        if self.grey_range and not -math.inf < self.grey_range[0] < self.grey_range[1] < math.inf:
            raise ValueError(f'grey_range is {self.grey_range}: must be LOW,HIGH with LOW < HIGH')


@dataclasses.dataclass(frozen=True)
class ConvertBlock:
    """Casts one block: zyx array of the source -> zyx array of `dtype`."""

    dtype: str
    grey_range: tuple[float, float] | None

    def __call__(self, source: np.ndarray, block: Block) -> np.ndarray:
        if source.dtype.kind == 'f' and not np.isfinite(source).all():
            wrong = np.argwhere(~np.isfinite(source))
            first = wrong[0] + block.core.start
            raise ValueError(
                f'{len(wrong)} voxels are NaN or infinite, the first at {tuple(first.tolist())} '
                '(zyx): images must be finite; fill missing voxels with 0 and mask them'
            )
        if self.grey_range:
            low, high = self.grey_range
            scaled = (source.astype(np.float32) - low) * (255.0 / (high - low))
            return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if source.dtype.kind == 'i' and np.dtype(self.dtype).kind == 'u' and (source < 0).any():
            first = np.argwhere(source < 0)[0] + block.core.start
            raise ValueError(
                f'labels are negative, the first at {tuple(first.tolist())} (zyx): ids must be '
                '>= 0, 0 for unlabelled voxels'
            )
        return source.astype(self.dtype)


def output_spec(source: VolumeSpec, uri: str, config: IngestConfig) -> VolumeSpec:
    """Specification of the volume that `source` becomes.

    Raises:
      ValueError: the dtype can be neither stored nor converted.
    """
    kind = config.kind or guess_kind(source.dtype)
    dtype = 'uint8' if config.grey_range else LABEL_CASTS.get(source.dtype, source.dtype)
    if dtype not in STORED:
        raise ValueError(
            f'{source.uri!r} has dtype {source.dtype}: must be one of {", ".join(STORED)}; give '
            '--grey_range LOW,HIGH to turn it into a uint8 image'
        )
    wide_labels = kind == 'segmentation' and dtype in ('uint32', 'uint64')
    encoding = config.encoding or ('compressed_segmentation' if wide_labels else 'raw')
    if config.encoding is None and uri.rstrip(':').endswith('zarr3'):
        encoding = 'zstd'
    return VolumeSpec(
        uri=uri,
        voxel_size_nm=config.voxel_size_nm,
        dtype=dtype,
        shape=source.shape,
        start=source.start,
        chunk=config.chunk,
        shard=config.shard,
        encoding=encoding,
        kind=kind,
    )


def block_shape(spec: VolumeSpec) -> Triple:
    """Write units per block: one along z, wide in y and x, so that sections are read few times."""
    z, y, x = spec.write_unit
    wide = max(1, 512 // max(y, x))
    return z, y * wide, x * wide
