"""Neuroglancer's precomputed metadata: xyz there, zyx here. JSON only; no voxel passes here.

Source: the specification in google/neuroglancer, `datasource/precomputed`.
"""

from __future__ import annotations

from typing import Any

from h01_beam.geometry import Triple
from h01_beam.volume_spec import VolumeSpec


def scale_of(spec: VolumeSpec) -> dict[str, Any]:
    """The entry of `scales` in the info file that describes one level."""
    assert spec.voxel_size_nm is not None
    scale: dict[str, Any] = {
        'size': spec.shape[::-1],
        'voxel_offset': spec.start[::-1],
        'resolution': spec.voxel_size_nm[::-1],
        'chunk_sizes': [spec.chunk[::-1]],
        'encoding': spec.encoding,
        'key': '_'.join(f'{v:.12g}' for v in spec.voxel_size_nm[::-1]),
    }
    if spec.encoding == 'compressed_segmentation':
        scale['compressed_segmentation_block_size'] = [8, 8, 8]
    if spec.encoding == 'jpeg':
        scale['jpeg_quality'] = 90
    if spec.shard:
        scale['sharding'] = _sharding(spec)
    return scale


def info_of(spec: VolumeSpec) -> dict[str, Any]:
    """What the info file says of all levels."""
    return {'type': spec.kind, 'data_type': spec.dtype, 'num_channels': spec.channels}


def spec_of(uri: str, info: dict[str, Any], mip: int, write_chunk_xyz: Any) -> VolumeSpec:
    """The specification of a level, inverse of `scale_of`.

    Args:
      uri: of the volume.
      info: content of the info file.
      mip: the level.
      write_chunk_xyz: what a writer must own whole, as TensorStore derives it.
    """
    scale = info['scales'][mip]
    x, y, z = scale['resolution']
    return VolumeSpec(
        uri=uri,
        voxel_size_nm=(float(z), float(y), float(x)),
        dtype=info['data_type'],
        shape=_reverse(scale['size']),
        start=_reverse(scale.get('voxel_offset', (0, 0, 0))),
        chunk=_reverse(scale['chunk_sizes'][0]),
        shard=_reverse(write_chunk_xyz) if scale.get('sharding') else None,
        encoding=scale['encoding'],
        kind=info['type'],
        channels=info['num_channels'],
    )


def _sharding(spec: VolumeSpec) -> dict[str, Any]:
    """Bits such that one shard of the compressed Morton order is the asked-for box."""
    assert spec.shard is not None
    cells = [-(-n // c) for n, c in zip(spec.shape, spec.chunk, strict=True)]
    bits = 0
    for size, chunk, count in zip(spec.shard, spec.chunk, cells, strict=True):
        ratio = size // chunk
        if size % chunk or (ratio & (ratio - 1) and ratio != count):
            raise ValueError(
                f'volume {spec.uri!r}: shard {spec.shard} must be chunk {spec.chunk} times powers '
                'of 2'
            )
        bits += (ratio - 1).bit_length()
    total = sum(max(0, (n - 1).bit_length()) for n in cells)
    # Each minishard is fetched whole when one chunk is asked for its index: keep them small.
    preshift = min(bits, 6)
    return {
        '@type': 'neuroglancer_uint64_sharded_v1',
        'preshift_bits': preshift,
        'minishard_bits': bits - preshift,
        'shard_bits': max(0, total - bits),
        'hash': 'identity',
        'minishard_index_encoding': 'gzip',
        'data_encoding': 'raw' if spec.encoding in ('jpeg', 'png') else 'gzip',
    }


def _reverse(xyz: Any) -> Triple:
    x, y, z = (int(v) for v in xyz)
    return z, y, x
