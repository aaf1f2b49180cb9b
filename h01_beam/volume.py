"""Volumes: where the xyz of Neuroglancer meets the zyx of NumPy, and nowhere else.

A volume is named by a URI, `PATH|DRIVER:ARGUMENT?mip=N`:

    gs://bucket/image|neuroglancer-precomputed:        read and written
    /data/em.zarr|zarr3:                               read and written (OME-Zarr 0.5 pyramid)
    /data/em.zarr|zarr2:                               read (OME-Zarr 0.4)
    /data/em.h5|hdf5:raw  /data/em.npz|npz:image       read (see `h01_beam.formats`)
    /data/em.tif|tiff:    /data/sections|images:       read

The driver may be left out where the name of the file or the contents of the folder tell it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorstore as ts

from h01_beam import formats, storage
from h01_beam.geometry import BoundingBox, Triple

VoxelSize: TypeAlias = tuple[float, float, float]
Kind: TypeAlias = Literal['image', 'segmentation']
DownsampleMethod: TypeAlias = Literal['mean', 'mode', 'min', 'max', 'median', 'stride']

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
            raise ValueError(f'volume {uri!r}: unknown driver {driver!r}; known: {", ".join(known)}')
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
      uri: see the module docstring; holds the mip.
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


class Volume:
    """An open volume: reads and writes boxes as zyx arrays (czyx when it has channels)."""

    def __init__(self, spec: VolumeSpec, array: Any, fingerprint: str):
        self.spec = spec
        self.fingerprint = fingerprint
        self._array = array

    @property
    def bounds(self) -> BoundingBox:
        return self.spec.bounds

    @classmethod
    def open(cls, uri: str) -> Volume:
        """Opens an existing volume.

        Raises:
          FileNotFoundError: nothing is there.
          ValueError: what is there is not a volume of that format.
        """
        parsed = VolumeUri.parse(uri)
        if parsed.driver == 'neuroglancer-precomputed':
            return _open_precomputed(parsed)
        if parsed.driver in CHUNKED:
            return _open_zarr(parsed)
        reader = formats.open_reader(parsed.driver, parsed.path, parsed.argument)
        z, y, x = reader.shape
        spec = VolumeSpec(
            uri=str(parsed),
            voxel_size_nm=None,
            dtype=np.dtype(reader.dtype).name,
            shape=(z, y, x),
            kind=guess_kind(np.dtype(reader.dtype).name),
        )
        return cls(spec, _ForeignArray(reader), _file_fingerprint(parsed))

    @classmethod
    def create(cls, spec: VolumeSpec) -> tuple[Volume, bool]:
        """Opens the volume that `spec` describes, creating it where it is absent or differs.

        A volume at the same place with another specification is deleted (this level only).

        Returns:
          the volume, and whether it was made anew (so that no earlier block of it counts).
        """
        spec = check_spec(spec)
        if cls.is_there(spec):
            return cls.open(spec.uri), False
        parsed = VolumeUri.parse(spec.uri)
        make = _create_zarr3 if parsed.driver == 'zarr3' else _create_precomputed
        make(spec, parsed)
        created = cls.open(spec.uri)
        if created.spec != spec:
            raise ValueError(_spec_difference(spec, created.spec))
        return created, True

    @classmethod
    def is_there(cls, spec: VolumeSpec) -> bool:
        """Whether there is a volume that `spec` describes, so that `create` will keep it."""
        try:
            return cls.open(spec.uri).spec == check_spec(spec)
        except (FileNotFoundError, ValueError):
            return False

    def read(self, box: BoundingBox) -> np.ndarray:
        """Reads a box, zyx (czyx with channels), in C order.

        Voxels of chunks that were never written are 0.

        Raises:
          IndexError: the box reaches out of the volume.
          ValueError: a chunk is corrupt; the message names the volume and the box.
        """
        self._check_inside(box)
        try:
            return np.ascontiguousarray(self._array[self._slices(box)].read().result())
        except (ValueError, OSError) as error:
            raise ValueError(f'cannot read {box} of {self.spec.uri!r}: {error}') from error

    def write(self, box: BoundingBox, array: np.ndarray) -> None:
        """Writes a box in one transaction: all of it is stored when this returns."""
        self._check_inside(box)
        expected = box.shape if self.spec.channels == 1 else (self.spec.channels, *box.shape)
        if array.shape != expected or array.dtype != np.dtype(self.spec.dtype):
            raise ValueError(
                f'cannot write {array.dtype} of shape {array.shape} to {box} of {self.spec.uri!r}: '
                f'must be {self.spec.dtype} of shape {expected} (zyx)'
            )
        with ts.Transaction() as transaction:
            target = self._array.with_transaction(transaction)
            target[self._slices(box)].write(array).result()

    def _slices(self, box: BoundingBox) -> tuple[Any, ...]:
        return (..., *box.slices)

    def _check_inside(self, box: BoundingBox) -> None:
        if not self.bounds.contains(box):
            raise IndexError(f'box {box} reaches out of {self.spec.uri!r}, whose bounds are {self.bounds}')


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
        shard = _fitting_shard(spec.shape, spec.chunk, shard)
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


class _ForeignArray:
    """Gives a `formats.ArrayReader` the part of TensorStore's interface that `read` uses."""

    def __init__(self, reader: formats.ArrayReader):
        self._reader = reader

    def __getitem__(self, slices: tuple[Any, ...]) -> Any:
        array = np.asarray(self._reader[slices[1:]])
        # Files may be big-endian, which TensorStore takes for native.
        return ts.array(array.astype(array.dtype.newbyteorder('='), copy=False))


# ---------------------------------------------------------------- precomputed: xyz <-> zyx


def _open_precomputed(parsed: VolumeUri) -> Volume:
    info = _read_json(storage.join(parsed.path, 'info'), parsed)
    scales = info.get('scales', [])
    if parsed.mip >= len(scales):
        raise FileNotFoundError(f'{str(parsed)!r}: there is no mip {parsed.mip}, only {len(scales)} levels')
    scale = scales[parsed.mip]
    array = _tensorstore_open(
        {'driver': 'neuroglancer_precomputed', 'kvstore': _kvstore(parsed.path),
         'scale_index': parsed.mip},
        parsed,
    )  # fmt: skip
    channels = info['num_channels']
    layout = array.chunk_layout
    write_unit = _reverse(layout.write_chunk.shape[:3])
    chunk = _reverse(scale['chunk_sizes'][0])
    x, y, z = scale['resolution']
    spec = VolumeSpec(
        uri=str(parsed),
        voxel_size_nm=(float(z), float(y), float(x)),
        dtype=info['data_type'],
        shape=_reverse(scale['size']),
        start=_reverse(scale.get('voxel_offset', (0, 0, 0))),
        chunk=chunk,
        shard=write_unit if scale.get('sharding') else None,
        encoding=scale['encoding'],
        kind=info['type'],
        channels=channels,
    )
    zyx = array[..., 0] if channels == 1 else array
    # Other levels of the pyramid may come and go: only this one counts.
    return Volume(spec, zyx.T, _hash([{**info, 'scales': []}, scale]))


def _create_precomputed(spec: VolumeSpec, parsed: VolumeUri) -> None:
    assert spec.voxel_size_nm is not None
    scale: dict[str, Any] = {
        'size': spec.shape[::-1],
        'voxel_offset': spec.start[::-1],
        'resolution': spec.voxel_size_nm[::-1],
        'chunk_size': spec.chunk[::-1],
        'encoding': spec.encoding,
        'key': '_'.join(f'{v:.12g}' for v in spec.voxel_size_nm[::-1]),
    }
    if spec.encoding == 'compressed_segmentation':
        scale['compressed_segmentation_block_size'] = [8, 8, 8]
    if spec.encoding == 'jpeg':
        scale['jpeg_quality'] = 90
    if spec.shard:
        scale['sharding'] = _sharding(spec)
    info_path = storage.join(parsed.path, 'info')
    if storage.exists(info_path):
        _drop_levels(info_path, parsed.mip)
    elif parsed.mip:
        raise FileNotFoundError(f'{spec.uri!r}: mip 0 must be created before mip {parsed.mip}')
    if parsed.mip:
        # One driver makes all levels, so the update need not be conditional, as TensorStore's is
        # (bucket emulators know no conditions). Opening it afterwards checks it.
        info = json.loads(storage.read_bytes(info_path))
        scale['chunk_sizes'] = [scale.pop('chunk_size')]
        info['scales'].append(scale)
        storage.write_bytes(info_path, json.dumps(info).encode())
        return
    _tensorstore_open(
        {
            'driver': 'neuroglancer_precomputed',
            'kvstore': _kvstore(parsed.path),
            'multiscale_metadata': {
                'type': spec.kind, 'data_type': spec.dtype, 'num_channels': spec.channels,
            },
            'scale_metadata': scale,
        },
        parsed,
        create=True,
    )  # fmt: skip


def _drop_levels(info_path: str, mip: int) -> None:
    """Removes a level that is to be remade, and those made from it, with their chunks."""
    folder = info_path.rpartition('/')[0]
    info = _read_json(info_path, VolumeUri(folder, 'neuroglancer-precomputed', mip=mip))
    for scale in info['scales'][mip:]:
        _kv_delete_folder(storage.join(folder, scale['key']))
    info['scales'] = info['scales'][:mip]
    if mip == 0:
        _kv_delete(info_path)
    else:
        storage.write_bytes(info_path, json.dumps(info).encode())


def _fitting_shard(shape: Triple, chunk: Triple, shard: Triple) -> Triple:
    """A shard along each axis, but no more chunks than the volume has.

    The compressed Morton order of the chunks leaves out the bits that an axis does not need.
    """
    z, y, x = (min(s, -(-n // c) * c) for n, c, s in zip(shape, chunk, shard, strict=True))
    return z, y, x


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


# ---------------------------------------------------------------- zarr


def _open_zarr(parsed: VolumeUri) -> Volume:
    scale_nm, array_path = _ome_level(parsed)
    driver = 'zarr3' if parsed.driver == 'zarr3' else 'zarr'
    array = _tensorstore_open({'driver': driver, 'kvstore': _kvstore(array_path)}, parsed)
    channels = 1
    while array.rank > 3 and array.shape[0] == 1:
        array, scale_nm = array[0], scale_nm and scale_nm[1:]
    if array.rank == 4:
        channels = array.shape[0]
    elif array.rank != 3:
        raise ValueError(f'{str(parsed)!r} has rank {array.rank}: must be zyx or czyx')
    voxel_size = tuple(scale_nm[-3:]) if scale_nm else None
    layout = array.chunk_layout
    chunk, unit = layout.read_chunk.shape[-3:], layout.write_chunk.shape[-3:]
    dtype = array.dtype.numpy_dtype.name
    attributes = _zarr_attributes(array_path, parsed)
    start = tuple(attributes.get('start', (0, 0, 0)))
    spec = VolumeSpec(
        uri=str(parsed),
        voxel_size_nm=voxel_size,  # type: ignore[arg-type]
        dtype=dtype,
        shape=tuple(array.shape[-3:]),
        start=start,
        chunk=tuple(chunk),
        shard=tuple(unit) if tuple(unit) != tuple(chunk) else None,
        encoding='zstd',
        kind=attributes.get('kind', guess_kind(dtype)),
        channels=channels,
    )
    moved = array.translate_to[(0,) * (array.rank - 3) + start]
    return Volume(spec, moved, _hash([array.spec().to_json(), scale_nm]))


def _create_zarr3(spec: VolumeSpec, parsed: VolumeUri) -> None:
    codecs: list[dict[str, Any]] = [
        {'name': 'bytes', 'configuration': {'endian': 'little'}},
        {'name': 'zstd', 'configuration': {'level': 3}},
    ]
    lead = () if spec.channels == 1 else (spec.channels,)
    if spec.shard:
        index = [
            {'name': 'bytes', 'configuration': {'endian': 'little'}},
            {'name': 'crc32c'},
        ]
        shape = [*lead, *spec.chunk]
        codecs = [{'name': 'sharding_indexed',
                   'configuration': {'chunk_shape': shape, 'codecs': codecs,
                                     'index_codecs': index}}]  # fmt: skip
    metadata = {
        'shape': [*lead, *spec.shape],
        'data_type': spec.dtype,
        'chunk_grid': {'name': 'regular',
                       'configuration': {'chunk_shape': [*lead, *spec.write_unit]}},
        'codecs': codecs,
        'dimension_names': (['c'] if lead else []) + ['z', 'y', 'x'],
        'attributes': {'start': list(spec.start), 'kind': spec.kind},
    }  # fmt: skip
    _tensorstore_open(
        {
            'driver': 'zarr3',
            'kvstore': _kvstore(storage.join(parsed.path, str(parsed.mip))),
            'metadata': metadata,
        },
        parsed,
        create=True,
        delete_existing=True,
    )
    _write_ome_level(spec, parsed)


def _write_ome_level(spec: VolumeSpec, parsed: VolumeUri) -> None:
    """Adds a level to the OME-Zarr 0.5 group, dropping the levels that were made from an old one."""
    path = storage.join(parsed.path, 'zarr.json')
    group = {'zarr_format': 3, 'node_type': 'group', 'attributes': {}}
    if storage.exists(path):
        group = json.loads(storage.read_bytes(path))
    axes = [{'name': n, 'type': 'space', 'unit': 'nanometer'} for n in 'zyx']
    lead: list[float] = []
    if spec.channels > 1:
        axes.insert(0, {'name': 'c', 'type': 'channel'})
        lead = [1.0]
    attributes: Any = group['attributes']
    levels = attributes.get('ome', {}).get('multiscales', [{}])[0].get('datasets', [])[: parsed.mip]
    if len(levels) < parsed.mip:
        raise FileNotFoundError(f'{spec.uri!r}: mip 0 must be created before mip {parsed.mip}')
    scale = {'type': 'scale', 'scale': [*lead, *(spec.voxel_size_nm or ())]}
    levels.append({'path': str(parsed.mip), 'coordinateTransformations': [scale]})
    attributes['ome'] = {
        'version': '0.5',
        'multiscales': [{'name': 'volume', 'axes': axes, 'datasets': levels}],
    }
    storage.write_bytes(path, json.dumps(group, indent=1).encode())


def _ome_level(parsed: VolumeUri) -> tuple[tuple[float, ...] | None, str]:
    """Scale in nm (per axis of the array) and path of a level; a plain array has no scale."""
    name = 'zarr.json' if parsed.driver == 'zarr3' else '.zattrs'
    path = storage.join(parsed.path, name)
    attributes = json.loads(storage.read_bytes(path)) if storage.exists(path) else {}
    if parsed.driver == 'zarr3':
        attributes = attributes.get('attributes', {}).get('ome', {})
    if 'multiscales' not in attributes:
        if parsed.mip:
            raise FileNotFoundError(f'{str(parsed)!r}: a plain zarr array has no mip {parsed.mip}')
        return None, parsed.path
    multiscale = attributes['multiscales'][0]
    if parsed.mip >= len(multiscale['datasets']):
        raise FileNotFoundError(
            f'{str(parsed)!r}: there is no mip {parsed.mip}, only {len(multiscale["datasets"])} levels'
        )
    level = multiscale['datasets'][parsed.mip]
    transforms = level['coordinateTransformations'] + multiscale.get('coordinateTransformations', [])
    scale = np.prod([t['scale'] for t in transforms if t['type'] == 'scale'], axis=0)
    names = [axis['name'] for axis in multiscale['axes']]
    if names[-3:] != ['z', 'y', 'x']:
        raise ValueError(f'{str(parsed)!r} has axes {names}: the last three must be z, y, x')
    to_nm = [_nm_per_unit(a.get('unit'), parsed) if a.get('type') == 'space' else 1.0
             for a in multiscale['axes']]  # fmt: skip
    nm = tuple(float(s * f) for s, f in zip(scale, to_nm, strict=True))
    return nm, storage.join(parsed.path, level['path'])


def _nm_per_unit(unit: str | None, parsed: VolumeUri) -> float:
    factors = {'angstrom': 0.1, 'nanometer': 1.0, 'micrometer': 1e3, 'millimeter': 1e6, 'meter': 1e9}
    if unit is None:
        return 1e3  # OME-Zarr writers that leave the unit out mean micrometres.
    if unit not in factors:
        raise ValueError(f'{str(parsed)!r}: unit {unit!r} of an axis is not one of {list(factors)}')
    return factors[unit]


def _zarr_attributes(array_path: str, parsed: VolumeUri) -> dict[str, Any]:
    if parsed.driver != 'zarr3':
        return {}
    attributes = _read_json(storage.join(array_path, 'zarr.json'), parsed).get('attributes', {})
    return dict(attributes)


# ---------------------------------------------------------------- shared


def _tensorstore_open(spec: Mapping[str, Any], parsed: VolumeUri, **options: Any) -> Any:
    try:
        # A context of its own: no cache outlives the volume, so that memory is bounded, and metadata
        # that another process changed is read afresh.
        return ts.open(dict(spec), context=ts.Context(), **options).result()
    except ValueError as error:
        if 'NOT_FOUND' in str(error):
            raise FileNotFoundError(f'{str(parsed)!r}: there is no such volume') from error
        raise ValueError(f'cannot open {str(parsed)!r}: {error}') from error


def _kvstore(path: str) -> dict[str, str]:
    # Not a URL: names of folders may hold what means something else there, such as % and #.
    if storage.is_remote(path):
        bucket, _, key = path.removeprefix('gs://').partition('/')
        return {'driver': 'gcs', 'bucket': bucket, 'path': f'{key}/' if key else ''}
    return {'driver': 'file', 'path': f'{storage.local_path(path).absolute()}/'}


def _kv_delete(path: str) -> None:
    folder, _, name = path.rpartition('/')
    ts.KvStore.open(_kvstore(folder)).result().write(name, None).result()


def _kv_delete_folder(path: str) -> None:
    store = ts.KvStore.open(_kvstore(path)).result()
    store.delete_range(ts.KvStore.KeyRange('', '')).result()


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


def _read_json(path: str, parsed: VolumeUri) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        raise FileNotFoundError(f'volume {str(parsed)!r}: there is no {path!r}') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'volume {str(parsed)!r}: {path!r} is not JSON ({error})') from error


def _reverse(xyz: Any) -> Triple:
    x, y, z = (int(v) for v in xyz)
    return z, y, x


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _file_fingerprint(parsed: VolumeUri) -> str:
    """Foreign files are known by size and modification time, as make knows them."""
    if storage.is_remote(parsed.path):
        return hashlib.sha256(storage.read_bytes(parsed.path)).hexdigest()[:32]
    path = storage.local_path(parsed.path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _hash([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files] + [parsed.argument])


def guess_kind(dtype: str) -> Kind:
    """What a file probably holds that does not say so: wide integers are labels."""
    images = ('uint8', 'int8', 'uint16', 'int16', 'float16', 'float32', 'float64')
    return 'image' if dtype in images else 'segmentation'


def _spec_difference(wanted: VolumeSpec, got: VolumeSpec) -> str:
    pairs = [
        f'{f.name} {getattr(wanted, f.name)} became {getattr(got, f.name)}'
        for f in dataclasses.fields(wanted)
        if getattr(wanted, f.name) != getattr(got, f.name)
    ]
    return (
        f'volume {wanted.uri!r} cannot be stored as specified: {"; ".join(pairs)}. '
        'Use the values on the right, or another format'
    )


def downsample(
    array: np.ndarray, factor: Triple, method: DownsampleMethod, start: Triple = (0, 0, 0)
) -> np.ndarray:
    """Reduces cells of `factor` voxels to one voxel each.

    Args:
      array: zyx (czyx: channels are kept apart).
      factor: zyx.
      method: 'mean' (rounds half to even for integers), 'mode' (smallest on ties), 'median',
        'min', 'max' or 'stride'.
      start: voxel of the array's corner: cells lie at multiples of `factor`; incomplete cells
        at the edges use the voxels that there are.

    Returns:
      the reduced array, same dtype.
    """
    lead = array.ndim - 3
    origin = [0] * lead + list(start)
    source = ts.array(array).translate_to[origin]
    reduced = ts.downsample(source, [1] * lead + list(factor), method)
    return np.ascontiguousarray(reduced.read().result())
