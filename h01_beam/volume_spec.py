"""What is known of a volume without reading a voxel: its name, and its specification."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, Literal, TypeAlias

import numpy as np

from h01_beam import formats, storage
from h01_beam.geometry import BoundingBox, Triple

VoxelSize: TypeAlias = tuple[float, float, float]
Kind: TypeAlias = Literal['image', 'segmentation']

# Formats that are written, and how each can encode chunks.
ENCODINGS = {
    'neuroglancer-precomputed': ('raw', 'compressed_segmentation', 'jpeg', 'png'),
    'zarr3': ('zstd',),
}
WRITABLE = tuple(ENCODINGS)
CHUNKED = (*WRITABLE, 'zarr2')


@dataclasses.dataclass(frozen=True)
class VolumeUri:
    """A parsed URI: `path|driver:argument?mip=N`."""

    path: str
    driver: str
    argument: str = ''
    mip: int = 0

    @classmethod
    def parse(cls, uri: str) -> VolumeUri:
        """Parses a URI, finding the driver where it is left out.

        Raises:
          FileNotFoundError: nothing is there, so that the driver cannot be found either.
          ValueError: an unknown driver or a malformed mip.
        """
        path, bar, rest = uri.partition('|')
        path = path.removeprefix('file://').rstrip('/') or '/'
        rest, _, query = rest.partition('?')
        driver, _, argument = rest.partition(':')
        if not bar:
            driver = _find_driver(path)
        known = (*CHUNKED, 'hdf5', 'npy', 'npz', 'tiff', 'images')
        if driver not in known:
            raise ValueError(
                f'volume {uri!r}: unknown driver {driver!r}; known: {", ".join(known)}'
            )
        if query and not (query.startswith('mip=') and query[4:].isdigit()):
            raise ValueError(f'volume {uri!r}: {query!r} must be mip=N, for example ?mip=2')
        return cls(path, driver, argument, int(query[4:] or 0) if query else 0)

    def __str__(self) -> str:
        suffix = f'?mip={self.mip}' if self.mip else ''
        return f'{self.path}|{self.driver}:{self.argument}{suffix}'

    def at(self, mip: int) -> VolumeUri:
        """The same volume at another level of its pyramid."""
        return dataclasses.replace(self, mip=mip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeSpec:
    """Everything that is known of a volume without reading a voxel. Serializable.

    Attributes:
      uri: see `h01_beam.volume`; holds the mip.
      voxel_size_nm: zyx; None where the format has no place for it.
      dtype: NumPy name, for example 'uint8'.
      shape: zyx voxels.
      start: zyx voxel of the lowest corner.
      chunk: zyx shape of the smallest unit that is read.
      shard: zyx shape of the unit that is written when the volume is sharded, else None.
      encoding: precomputed: 'raw', 'compressed_segmentation', 'jpeg' or 'png'; zarr3: 'zstd'.
      kind: 'image' or 'segmentation'.
      channels: arrays are zyx when this is 1, else czyx.
    """

    uri: str
    voxel_size_nm: VoxelSize | None
    dtype: str
    shape: Triple
    start: Triple = (0, 0, 0)
    chunk: Triple = (64, 64, 64)
    shard: Triple | None = None
    encoding: str = 'raw'
    kind: Kind = 'image'
    channels: int = 1

    @property
    def bounds(self) -> BoundingBox:
        return BoundingBox(self.start, self.shape)

    @property
    def write_unit(self) -> Triple:
        """Zyx shape that a writer must own whole: a shard, or a chunk."""
        return self.shard or self.chunk

    @property
    def path(self) -> str:
        return VolumeUri.parse(self.uri).path

    @property
    def mip(self) -> int:
        return VolumeUri.parse(self.uri).mip

    def voxel_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.channels


def check_spec(spec: VolumeSpec) -> VolumeSpec:
    """Returns the specification, its URI in normal form.

    The shard of a precomputed volume shrinks where the volume ends before it.

    Raises:
      ValueError: it cannot be created.
    """
    parsed = VolumeUri.parse(spec.uri)
    if parsed.driver not in WRITABLE:
        raise ValueError(
            f'volume {spec.uri!r}: {parsed.driver} can be read, not written; write to one of '
            + ', '.join(f'PATH|{driver}:' for driver in WRITABLE)
        )
    if spec.voxel_size_nm is None or not all(0 < v < math.inf for v in spec.voxel_size_nm):
        raise ValueError(
            f'volume {spec.uri!r}: voxel_size_nm is {spec.voxel_size_nm}: must be three positive '
            'lengths in nm, z, y, x; give --voxel_size_nm'
        )
    if spec.bounds.size == 0:
        raise ValueError(f'volume {spec.uri!r} is empty: shape {spec.shape} has no voxel')
    if min(spec.chunk) < 1 or min(spec.write_unit) < 1:
        raise ValueError(
            f'volume {spec.uri!r}: chunk is {spec.chunk}, shard is {spec.shard}: must be >= 1'
        )
    _check_encoding(spec, ENCODINGS[parsed.driver])
    shard = spec.shard
    if shard and parsed.driver == 'neuroglancer-precomputed':
        shard = fitting_shard(spec.shape, spec.chunk, shard)
    return dataclasses.replace(spec, uri=str(parsed), shard=shard)


def _check_encoding(spec: VolumeSpec, known: tuple[str, ...]) -> None:
    problem = ''
    if spec.encoding not in known:
        problem = f'must be one of {", ".join(known)}'
    elif spec.encoding == 'compressed_segmentation' and spec.dtype not in ('uint32', 'uint64'):
        problem = f'needs uint32 or uint64, not {spec.dtype}; use encoding raw'
    elif spec.encoding == 'jpeg' and (spec.kind != 'image' or spec.dtype != 'uint8'):
        problem = f'would change labels and needs uint8, not {spec.dtype} {spec.kind}; use raw'
    if problem:
        raise ValueError(f'volume {spec.uri!r}: encoding {spec.encoding} {problem}')


def fitting_shard(shape: Triple, chunk: Triple, shard: Triple) -> Triple:
    """A shard along each axis, but no more chunks than the volume has.

    The compressed Morton order of the chunks leaves out the bits that an axis does not need.
    """
    z, y, x = (min(s, -(-n // c) * c) for n, c, s in zip(shape, chunk, shard, strict=True))
    return z, y, x


def describe_difference(wanted: VolumeSpec, got: VolumeSpec) -> str:
    """What an error says when a volume came out otherwise than asked for."""
    pairs = [
        f'{f.name} {getattr(wanted, f.name)} became {getattr(got, f.name)}'
        for f in dataclasses.fields(wanted)
        if getattr(wanted, f.name) != getattr(got, f.name)
    ]
    return (
        f'volume {wanted.uri!r} cannot be stored as specified: {"; ".join(pairs)}. '
        'Use the values on the right, or another format'
    )


def guess_kind(dtype: str) -> Kind:
    """What a file probably holds that does not say so: wide integers are labels."""
    images = ('uint8', 'int8', 'uint16', 'int16', 'float16', 'float32', 'float64')
    return 'image' if dtype in images else 'segmentation'


def read_json(path: str, parsed: VolumeUri) -> dict[str, Any]:
    """Metadata of a volume; errors name the volume."""
    try:
        return dict(json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        raise FileNotFoundError(f'volume {str(parsed)!r}: there is no {path!r}') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'volume {str(parsed)!r}: {path!r} is not JSON ({error})') from error


def _find_driver(path: str) -> str:
    for name, driver in (
        ('info', 'neuroglancer-precomputed'),
        ('zarr.json', 'zarr3'),
        ('.zattrs', 'zarr2'),
        ('.zarray', 'zarr2'),
    ):
        if storage.exists(storage.join(path, name)):
            return driver
    guess = formats.driver_of(path)
    if guess is None:
        raise FileNotFoundError(
            f'volume {path!r}: nothing there that is a volume; give a folder with an info or '
            'zarr.json file, an .h5, .npy, .npz or .tif file, a folder of sections, or name the '
            'driver, as in PATH|neuroglancer-precomputed:'
        )
    return guess
