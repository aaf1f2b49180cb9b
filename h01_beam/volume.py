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
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import tensorstore as ts

from h01_beam import formats, layers, objects, ome_zarr, precomputed, storage
from h01_beam.geometry import BoundingBox, Triple
from h01_beam.layered import LayeredArray
from h01_beam.ledger import Provenance
from h01_beam.volume_spec import (
    CHUNKED,
    Kind,
    VolumeSpec,
    VolumeUri,
    VoxelSize,
    check_spec,
    describe_difference,
    guess_kind,
    read_json,
)

# The rest of the library meets volumes here alone.
__all__ = ['Kind', 'Volume', 'VolumeSpec', 'VolumeUri', 'VoxelSize', 'downsample', 'guess_kind']

# Read by TensorStore at its first request. Without them it waits for ever for an answer.
os.environ.setdefault('TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS', f'{objects.TIMEOUT_S:.0f}')
os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', f'{objects.TIMEOUT_S:.0f}')
os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')

DownsampleMethod: TypeAlias = Literal['mean', 'mode', 'min', 'max', 'median', 'stride']


class Volume:
    """An open volume: reads and writes boxes as zyx arrays (czyx when it has channels)."""

    def __init__(self, spec: VolumeSpec, array: Any, fingerprint: str, own: Any = None):
        """`array` is read; `own` is written, where that is another."""
        self.spec = spec
        self.fingerprint = fingerprint
        self._array = array
        self._own = array if own is None else own

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

        A volume at the same place with another specification is deleted (this level only), unless
        nothing but sections at its end lacks: it grows, and keeps what is there.

        Returns:
          the volume, and whether it was made anew (so that no earlier block of it counts).
        """
        spec = cls.check(spec)
        parsed = VolumeUri.parse(spec.uri)
        if cls.is_there(spec):
            _own_metadata(parsed)
            return cls.open(spec.uri), False
        if cls.can_grow(spec):
            grow = _grow_zarr3 if parsed.driver == 'zarr3' else _grow_precomputed
            grow(spec, parsed)
            return cls.open(spec.uri), False
        make = _create_zarr3 if parsed.driver == 'zarr3' else _create_precomputed
        make(spec, parsed)
        created = cls.open(spec.uri)
        if created.spec != spec:
            raise ValueError(describe_difference(spec, created.spec))
        return created, True

    @classmethod
    def check(cls, spec: VolumeSpec) -> VolumeSpec:
        """The specification in normal form; a ValueError if `create` could not make it."""
        spec = check_spec(spec)
        if VolumeUri.parse(spec.uri).driver == 'neuroglancer-precomputed':
            precomputed.scale_of(spec)
        return spec

    @classmethod
    def is_occupied(cls, spec: VolumeSpec) -> bool:
        """Whether `create` would keep or replace something: a volume of whatever specification."""
        parsed = VolumeUri.parse(spec.uri)
        if parsed.driver == 'zarr3':
            return ome_zarr.is_occupied(parsed)
        path = storage.join(parsed.path, 'info')
        return storage.exists(path) and len(read_json(path, parsed).get('scales', [])) > parsed.mip

    @classmethod
    def drop_level(cls, uri: str) -> None:
        """Deletes a level of a pyramid and those above it, which were made from it."""
        parsed = VolumeUri.parse(uri)
        if parsed.driver == 'zarr3':
            ome_zarr.drop_levels(parsed)
            return
        path = storage.join(parsed.path, 'info')
        storage.write_bytes(path, json.dumps(_drop_levels(path, parsed.mip)).encode())

    @classmethod
    def is_there(cls, spec: VolumeSpec) -> bool:
        """Whether there is a volume that `spec` describes, so that `create` will keep it."""
        try:
            return cls.open(spec.uri).spec == check_spec(spec)
        except (FileNotFoundError, ValueError):
            return False

    @classmethod
    def can_grow(cls, spec: VolumeSpec) -> bool:
        """Whether there is what `spec` describes but for the last sections, and `create` adds them.

        Only where no chunk changes its name or its extent: zarr, or Neuroglancer's format without
        shards, whose present end is one of chunks.
        """
        zarr3 = VolumeUri.parse(spec.uri).driver == 'zarr3'
        if spec.shard and not zarr3:
            return False
        try:
            found = cls.open(spec.uri).spec
        except (FileNotFoundError, ValueError):
            return False
        count = found.shape[0]
        shape = (spec.shape[0], *found.shape[1:])
        less = count < shape[0] and count % found.write_unit[0] == 0
        return less and dataclasses.replace(found, shape=shape) == check_spec(spec)

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
        try:
            with ts.Transaction() as transaction:
                target = self._own.with_transaction(transaction)
                target[self._slices(box)].write(array).result()
        except (ValueError, OSError) as error:
            raise ValueError(f'cannot write {box} of {self.spec.uri!r}: {error}') from error

    def _slices(self, box: BoundingBox) -> tuple[Any, ...]:
        return (..., *box.slices)

    def _check_inside(self, box: BoundingBox) -> None:
        if not self.bounds.contains(box):
            raise IndexError(
                f'box {box} reaches out of {self.spec.uri!r}, whose bounds are {self.bounds}'
            )


class _ForeignArray:
    """Gives a `formats.ArrayReader` the part of TensorStore's interface that `read` uses."""

    def __init__(self, reader: formats.ArrayReader):
        self._reader = reader

    def __getitem__(self, slices: tuple[Any, ...]) -> Any:
        array = np.asarray(self._reader[slices[1:]])
        # Files may be big-endian, which TensorStore takes for native.
        return ts.array(array.astype(array.dtype.newbyteorder('='), copy=False))


def _open_precomputed(parsed: VolumeUri) -> Volume:
    info = read_json(storage.join(parsed.path, 'info'), parsed)
    levels = len(info.get('scales', []))
    if parsed.mip >= levels:
        raise FileNotFoundError(
            f'{str(parsed)!r}: there is no mip {parsed.mip}, only {levels} levels'
        )
    own, *beneath = storage.places(parsed.path)
    # The metadata's own layer knows how chunks are written; those of a volume that a generation has
    # not written to yet lie beneath.
    folder = storage.find(storage.join(own, 'info')).rpartition('/')[0]
    array = _open_chunks(folder, parsed)
    write_chunk = array.chunk_layout.write_chunk.shape[1:]
    spec = precomputed.spec_of(str(parsed), info, parsed.mip, write_chunk[::-1])
    # Other levels of the pyramid may come and go: only this one counts. Metadata alone are not
    # enough: two volumes of one image, before and after a filter, share them.
    fingerprint = _hash([_kvstore(own), {**info, 'scales': []}, info['scales'][parsed.mip]])
    if not beneath:
        return Volume(spec, _without_channel(array), fingerprint)
    layered = LayeredArray(spec, lambda path: _without_channel(_open_chunks(path, parsed)))
    writable = _without_channel(array) if folder == own else _ReadOnly()
    return Volume(spec, layered, fingerprint, own=writable)


class _ReadOnly:
    """Stands for an array that lies beneath a generation that has not created the volume."""

    def with_transaction(self, _: Any) -> Any:
        raise ValueError('it belongs to an earlier generation of the run: create it first')


def _open_chunks(folder: str, parsed: VolumeUri) -> Any:
    """The array of a level, czyx."""
    source = {
        'driver': 'neuroglancer_precomputed',
        'kvstore': _kvstore(folder),
        'scale_index': parsed.mip,
    }
    return _tensorstore_open(source, parsed).T


def _without_channel(array: Any) -> Any:
    return array[0] if array.shape[0] == 1 else array


def _create_precomputed(spec: VolumeSpec, parsed: VolumeUri) -> None:
    """Writes the info file; opening it afterwards checks it.

    One driver makes all levels, so the update need not be conditional, as TensorStore's own is
    (bucket emulators know no conditions).
    """
    scale = precomputed.scale_of(spec)
    path = storage.join(parsed.path, 'info')
    info = {**precomputed.info_of(spec), '@type': 'neuroglancer_multiscale_volume', 'scales': []}
    if storage.exists(path):
        kept = _drop_levels(path, parsed.mip)
        info = kept if parsed.mip else info
    elif parsed.mip:
        raise FileNotFoundError(f'{spec.uri!r}: mip 0 must be created before mip {parsed.mip}')
    info['scales'].append(scale)
    storage.write_bytes(path, json.dumps(info).encode())


def _own_metadata(parsed: VolumeUri) -> None:
    """Gives a generation metadata of its own for what it will write.

    Levels of the pyramid that another run made stay behind: nobody will bring them up to date.
    """
    if parsed.driver == 'zarr3':
        paths = [storage.join(parsed.path, 'zarr.json')]
        paths.append(storage.join(ome_zarr.read_level(parsed)[1], 'zarr.json'))
    else:
        paths = [storage.join(parsed.path, 'info')]
    for path in paths:
        data = storage.read_bytes(path)
        if storage.find(path) != path:
            storage.write_bytes(path, _without_foreign_levels(data, parsed))


def _without_foreign_levels(data: bytes, parsed: VolumeUri) -> bytes:
    info = json.loads(data)
    for mip in range(1, len(info.get('scales', ()))):
        provenance = Provenance.at(parsed.path, mip)
        root = layers.root_of(parsed.path)
        if provenance is None or not provenance.ledger.path.startswith(f'{root}/'):
            return json.dumps({**info, 'scales': info['scales'][:mip]}).encode()
    return data


def _grow_zarr3(spec: VolumeSpec, parsed: VolumeUri) -> None:
    _own_metadata(parsed)
    path = storage.join(ome_zarr.read_level(parsed)[1], 'zarr.json')
    metadata = read_json(path, parsed)
    metadata['shape'] = ome_zarr.array_metadata(spec)['shape']
    storage.write_bytes(path, json.dumps(metadata).encode())


def _grow_precomputed(spec: VolumeSpec, parsed: VolumeUri) -> None:
    """Gives a level its new extent; levels above keep theirs until they grow too."""
    _own_metadata(parsed)
    path = storage.join(parsed.path, 'info')
    info = read_json(path, parsed)
    info['scales'][parsed.mip] |= {'size': precomputed.scale_of(spec)['size']}
    storage.write_bytes(path, json.dumps(info).encode())


def _drop_levels(info_path: str, mip: int) -> dict[str, Any]:
    """Deletes the chunks of a level to be remade and of those made from it; returns the rest."""
    folder = info_path.rpartition('/')[0]
    info = read_json(info_path, VolumeUri(folder, 'neuroglancer-precomputed', mip=mip))
    for scale in info['scales'][mip:]:
        storage.delete_folder(storage.join(folder, scale['key']))
    info['scales'] = info['scales'][:mip]
    return info


def _open_zarr(parsed: VolumeUri) -> Volume:
    scale_nm, array_path = ome_zarr.read_level(parsed)
    own, *beneath = storage.places(array_path)
    folder = own
    if beneath:
        folder = storage.find(storage.join(own, 'zarr.json')).rpartition('/')[0]
    array = _open_zarr_array(folder, parsed)
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
    attributes = ome_zarr.array_attributes(array_path, parsed)
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

    def arranged(array: Any) -> Any:
        while array.rank > 3 and array.shape[0] == 1:
            array = array[0]
        return array.translate_to[(0,) * (array.rank - 3) + start]

    fingerprint = _hash([array.spec().to_json(), scale_nm])
    if not beneath:
        return Volume(spec, arranged(array), fingerprint)
    level = array_path[len(parsed.path) :]
    layered = LayeredArray(spec, lambda path: arranged(_open_zarr_array(path + level, parsed)))
    return Volume(spec, layered, fingerprint, own=arranged(array) if folder == own else _ReadOnly())


def _open_zarr_array(folder: str, parsed: VolumeUri) -> Any:
    driver = 'zarr3' if parsed.driver == 'zarr3' else 'zarr'
    return _tensorstore_open({'driver': driver, 'kvstore': _kvstore(folder)}, parsed)


def _create_zarr3(spec: VolumeSpec, parsed: VolumeUri) -> None:
    path = storage.join(parsed.path, str(parsed.mip))
    storage.delete_folder(path)
    target = {
        'driver': 'zarr3',
        'kvstore': _kvstore(path),
        'metadata': ome_zarr.array_metadata(spec),
    }
    _tensorstore_open(target, parsed, create=True)
    ome_zarr.write_level(spec, parsed)


def _tensorstore_open(spec: Mapping[str, Any], parsed: VolumeUri, **options: Any) -> Any:
    try:
        # A context of its own: no cache outlives the volume, so that memory is bounded, and
        # metadata that another process changed is read afresh.
        # Chunks are kept only while a read needs them, and no stage reads what is being written:
        # asking again whether they changed is needless (and beyond bucket emulators).
        rechecked = {**spec, 'recheck_cached_data': False}
        return ts.open(rechecked, context=_context(), **options).result()
    except ValueError as error:
        if 'NOT_FOUND' in str(error):
            raise FileNotFoundError(f'{str(parsed)!r}: there is no such volume') from error
        raise ValueError(f'cannot open {str(parsed)!r}: {error}') from error


def retries() -> int:
    """How often TensorStore has sent a request to a bucket again in this process."""
    found = ts.experimental_collect_matching_metrics('/tensorstore/kvstore/gcs/retries')
    return sum(int(value['value']) for metric in found for value in metric['values'])


def _context() -> Any:
    # As patient as `h01_beam.objects`.
    delays = {
        'initial_delay': f'{objects.RETRY_DELAY_S}s',
        'max_delay': f'{objects.MOST_DELAY_S}s',
        'max_retries': 32,
    }
    return ts.Context({'gcs_request_retries': delays})


def _kvstore(path: str) -> dict[str, str]:
    # Not a URL: names of folders may hold what means something else there, such as % and #.
    if storage.is_remote(path):
        bucket, _, key = path.removeprefix('gs://').partition('/')
        return {'driver': 'gcs', 'bucket': bucket, 'path': f'{key}/' if key else ''}
    return {'driver': 'file', 'path': f'{storage.absolute(path)}/'}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _file_fingerprint(parsed: VolumeUri) -> str:
    """Foreign files are known by size and modification time, as make knows them."""
    if storage.is_remote(parsed.path):
        return hashlib.sha256(storage.read_bytes(parsed.path)).hexdigest()[:32]
    path = storage.local_path(parsed.path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _hash(
        [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files] + [parsed.argument]
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
