"""Any volume as the files of a Neuroglancer precomputed one.

A volume that is precomputed is passed through byte by byte, from a local folder or a bucket, as
it would be published. Any other (zarr, HDF5, NumPy, TIFF, sections) is translated: its `info` is
made from its specification, and each raw chunk is read when it is asked for. So one format and
one path serve whatever `h01_beam.volume` can open.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from h01_beam import storage
from h01_beam.export.finished_run import Layer
from h01_beam.geometry import BoundingBox, Triple
from h01_beam.volume import Volume, VolumeSpec, VolumeUri, VoxelSize

# What is read of formats that have no chunks of their own. A folder of sections is decoded a
# whole section at a time, so thin chunks spare most of the work.
CHUNK: Triple = (64, 64, 64)
SECTION_CHUNK: Triple = (1, 1024, 1024)
CHUNK_NAME = re.compile(r'(\d+)/(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)_(-?\d+)-(-?\d+)')
# Types that Neuroglancer has no precomputed form of, and what stands in for them.
STAND_INS = {'bool': 'uint8', 'int64': 'uint64', 'float64': 'float32', 'float16': 'float32'}


class Files(Protocol):
    """Read-only files by key."""

    def size(self, key: str) -> int:
        """Length in bytes; FileNotFoundError when there is none."""

    def read(self, key: str, start: int, stop: int) -> bytes:
        """The bytes `start <= i < stop`, which lie within the file."""


def open_files(layer: Layer, fallback_nm: VoxelSize = (1.0, 1.0, 1.0)) -> Files:
    """The files that a browser reads a layer from.

    Args:
      layer: the volume, and what it is shown as.
      fallback_nm: voxel size, zyx, for formats that do not say one.

    Raises:
      FileNotFoundError, ValueError: there is no such volume.
    """
    parsed = VolumeUri.parse(layer.uri).at(0)
    spec = Volume.open(str(parsed)).spec
    kind = layer.kind or spec.kind
    # Of a generation, it is the markers that say in which layer a chunk is.
    layered = len(storage.places(parsed.path)) > 1
    if parsed.driver != 'neuroglancer-precomputed' or kind != spec.kind or layered:
        return TranslatedFiles.open(parsed, kind, fallback_nm)
    return BucketFiles(parsed.path) if storage.is_remote(parsed.path) else FolderFiles(parsed.path)


class FolderFiles:
    """The files below one local folder, and nothing else."""

    def __init__(self, path: str):
        self._root = storage.local_path(path).resolve()

    def size(self, key: str) -> int:
        return self._file(key).stat().st_size

    def read(self, key: str, start: int, stop: int) -> bytes:
        with self._file(key).open('rb') as file:
            file.seek(start)
            return file.read(stop - start)

    def _file(self, key: str) -> Path:
        file = (self._root / check_key(key)).resolve()
        # Resolved: a link that leads out of the folder is no file of it.
        if not file.is_relative_to(self._root) or not file.is_file():
            raise FileNotFoundError(key)
        return file


class BucketFiles:
    """The objects below one `gs://` prefix, with the user's own credentials."""

    def __init__(self, path: str):
        self._path = path

    def size(self, key: str) -> int:
        return storage.size(storage.join(self._path, check_key(key)))

    def read(self, key: str, start: int, stop: int) -> bytes:
        return storage.read_range(storage.join(self._path, check_key(key)), start, stop)


class TranslatedFiles:
    """A volume of any format as raw precomputed chunks, one level per level of its pyramid."""

    def __init__(self, levels: list[Volume], kind: str, fallback_nm: VoxelSize):
        self._levels = levels
        dtype = levels[0].spec.dtype
        self._dtype = 'uint64' if kind == 'segmentation' else STAND_INS.get(dtype, dtype)
        self._info = json.dumps(
            {
                '@type': 'neuroglancer_multiscale_volume',
                'type': kind,
                'data_type': self._dtype,
                'num_channels': levels[0].spec.channels,
                'scales': [
                    _scale(str(mip), level.spec, fallback_nm) for mip, level in enumerate(levels)
                ],
            }
        ).encode()

    @classmethod
    def open(cls, parsed: VolumeUri, kind: str, fallback_nm: VoxelSize) -> TranslatedFiles:
        levels = [Volume.open(str(parsed))]
        if parsed.driver in ('zarr2', 'zarr3', 'neuroglancer-precomputed'):
            while (level := _open_or_none(parsed.at(len(levels)))) is not None:
                levels.append(level)
        return cls(levels, kind, fallback_nm)

    def size(self, key: str) -> int:
        if key == 'info':
            return len(self._info)
        level, box = self._chunk(key)
        return box.size * level.spec.channels * np.dtype(self._dtype).itemsize

    def read(self, key: str, start: int, stop: int) -> bytes:
        if key == 'info':
            return self._info[start:stop]
        level, box = self._chunk(key)
        # C order of (c)zyx is the Fortran order of xyz(c) that the format asks for.
        return level.read(box).astype(self._dtype).tobytes()[start:stop]

    def _chunk(self, key: str) -> tuple[Volume, BoundingBox]:
        match = CHUNK_NAME.fullmatch(key)
        if not match or int(match[1]) >= len(self._levels):
            raise FileNotFoundError(key)
        x, x_end, y, y_end, z, z_end = map(int, match.groups()[1:])
        level = self._levels[int(match[1])]
        if not (z < z_end and y < y_end and x < x_end):
            raise FileNotFoundError(key)
        box = BoundingBox.from_bounds((z, y, x), (z_end, y_end, x_end))
        # Only chunks exist: a larger box would let one request read the whole volume.
        fits = all(n <= c for n, c in zip(box.shape, _chunk_shape(level.spec), strict=True))
        if not fits or not level.bounds.contains(box):
            raise FileNotFoundError(key)
        return level, box


def check_key(key: str) -> str:
    """Returns a key that names a file below its folder.

    Raises:
      FileNotFoundError: it is empty, absolute, hidden, or leads upwards.
    """
    parts = key.split('/')
    if any(not part or part.startswith('.') or '\\' in part or '\0' in part for part in parts):
        raise FileNotFoundError(key)
    return key


def _scale(key: str, spec: VolumeSpec, fallback_nm: VoxelSize) -> dict[str, Any]:
    return {
        'key': key,
        'size': spec.shape[::-1],
        'voxel_offset': spec.start[::-1],
        'resolution': (spec.voxel_size_nm or fallback_nm)[::-1],
        'chunk_sizes': [_chunk_shape(spec)[::-1]],
        'encoding': 'raw',
    }


def _chunk_shape(spec: VolumeSpec) -> Triple:
    driver = VolumeUri.parse(spec.uri).driver
    wanted = {'images': SECTION_CHUNK, 'tiff': CHUNK, 'npy': CHUNK, 'npz': CHUNK, 'hdf5': CHUNK}
    z, y, x = (min(a, b) for a, b in zip(wanted.get(driver, spec.chunk), spec.shape, strict=True))
    return z, y, x


def _open_or_none(uri: VolumeUri) -> Volume | None:
    try:
        return Volume.open(str(uri))
    except FileNotFoundError:
        return None
