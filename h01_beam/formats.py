"""Read-only access to the files that labs hand over: HDF5, NumPy, TIFF and folders of sections.

Each reader is an array over zyx that loads only what is sliced, where its format allows it.
Chunked volumes (precomputed, zarr) are `h01_beam.volume`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from h01_beam import storage
from h01_beam.geometry import Triple

SECTION_SUFFIXES = ('.png', '.tif', '.tiff')


class ArrayReader(Protocol):
    """What a foreign format offers: shape (zyx), dtype, and slicing by three slices."""

    @property
    def shape(self) -> Triple: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, slices: tuple[slice, slice, slice]) -> np.ndarray: ...


def open_reader(driver: str, path: str, argument: str) -> ArrayReader:
    """Opens a foreign file.

    Args:
      driver: 'hdf5', 'npy', 'npz', 'tiff' or 'images'.
      path: local path; NumPy files may be in a bucket.
      argument: name of the HDF5 data set or of the array in an npz; may be empty when
        the file holds just one.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is not what it should be (rank, missing data set, mixed sections).
    """
    array: Any
    if driver in ('npy', 'npz'):
        array = _load_numpy(driver, path, argument)
    elif storage.is_remote(path):
        raise ValueError(
            f'{path!r}: {driver} is read from a local disk only; copy the file here and convert it '
            'with `python -m pipelines.ingest --output gs://...`'
        )
    elif not Path(storage.local_path(path)).exists():
        raise FileNotFoundError(f'{path!r}: there is no such file')
    elif driver == 'hdf5':
        array = _open_hdf5(path, argument)
    elif driver == 'tiff':
        array = _open_tiff(path)
    elif driver == 'images':
        array = SectionFolder.open(path)
    else:
        raise ValueError(f'unknown format {driver!r}: known are hdf5, npy, npz, tiff, images')
    if len(array.shape) != 3:
        raise ValueError(
            f'{path!r} has rank {len(array.shape)} (shape {tuple(array.shape)}): must be a volume '
            'of rank 3 in z, y, x order; choose one channel or stack the sections first'
        )
    return array


def driver_of(path: str) -> str | None:
    """Guesses the format from the name of a file or from the contents of a folder, if it can."""
    suffix = Path(path).suffix.lower()
    by_suffix = {
        '.h5': 'hdf5', '.hdf5': 'hdf5', '.hdf': 'hdf5',
        '.npy': 'npy', '.npz': 'npz', '.tif': 'tiff', '.tiff': 'tiff',
    }  # fmt: skip
    if suffix in by_suffix:
        return by_suffix[suffix]
    if not storage.is_remote(path):
        folder = storage.local_path(path)
        return 'images' if folder.is_dir() and _section_files(folder) else None
    return None


def _load_numpy(driver: str, path: str, name: str) -> np.ndarray:
    try:
        if storage.is_remote(path):
            data = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
        else:
            # Maps an npy file, so that only what is sliced is read; an npz cannot be mapped.
            data = np.load(storage.local_path(path), mmap_mode='r', allow_pickle=False)
        if isinstance(data, np.ndarray) != (driver == 'npy'):
            raise ValueError(f'its contents are not those of an .{driver} file')
        return data if driver == 'npy' else data[_pick(path, list(data.keys()), name)]
    except FileNotFoundError:
        raise FileNotFoundError(f'{path!r}: there is no such file') from None
    except _DatasetError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{path!r} is not a readable NumPy file ({error})') from error


def _open_hdf5(path: str, name: str) -> Any:
    import h5py

    try:
        file = h5py.File(storage.local_path(path), 'r')
    except OSError as error:
        raise ValueError(f'{path!r} is not a readable HDF5 file ({error})') from error
    names: list[str] = []
    file.visititems(lambda key, item: names.append(key) if isinstance(item, h5py.Dataset) else None)
    return file[_pick(path, names, name)]


class _DatasetError(ValueError):
    pass


def _pick(path: str, names: list[str], wanted: str) -> str:
    wanted = wanted.strip('/')
    if not wanted and len(names) == 1:
        return names[0]
    if wanted in names:
        return wanted
    problem = f'has no data set {wanted!r}' if wanted else f'holds {len(names)} data sets'
    raise _DatasetError(
        f'{path!r} {problem}: choose one of {", ".join(sorted(names)) or "(none)"} as '
        f'{path}|DRIVER:NAME, or with --dataset of pipelines.ingest'
    )


def _open_tiff(path: str) -> np.ndarray:
    try:
        return _read_tiff(storage.local_path(path))
    except Exception as error:  # The codecs raise types of their own.
        raise ValueError(
            f'{path!r} is not a readable TIFF stack ({error}); it may be truncated'
        ) from error


def _read_tiff(path: Path) -> np.ndarray:
    import tifffile

    # Of a stack that was cut short, tifffile returns the pages that are left, and logs an error.
    complaints: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger('tifffile')
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            array: np.ndarray = series.asarray(out='memmap' if series.size > 2**28 else None)
    finally:
        logger.removeHandler(handler)
    if complaints:
        raise ValueError(complaints[0])
    return array


def _section_files(folder: Path) -> list[Path]:
    files = (
        f
        for f in folder.iterdir()
        if f.suffix.lower() in SECTION_SUFFIXES and not f.name.startswith('.')
    )
    return sorted(files, key=_natural_order)


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sorts section_9 before section_10."""
    parts = re.split(r'(\d+)', file.name)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


@dataclasses.dataclass(frozen=True)
class SectionFolder:
    """A folder of PNG or TIFF sections, in the order of the numbers in their names: one per z.

    Attributes:
      files: the section files.
      shape: zyx.
      dtype: of every section; a section of another shape or dtype is an error that names it.
    """

    files: tuple[Path, ...]
    shape: Triple
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, path: str) -> SectionFolder:
        files = _section_files(storage.local_path(path))
        if not files:
            raise ValueError(f'{path!r} holds no {", ".join(SECTION_SUFFIXES)} files')
        first = _read_section(files[0])
        return cls(tuple(files), (len(files), *first.shape), first.dtype)

    def __getitem__(self, slices: tuple[slice, slice, slice]) -> np.ndarray:
        sections = []
        for file in self.files[slices[0]]:
            section = _read_section(file)
            if section.shape != self.shape[1:] or section.dtype != self.dtype:
                raise ValueError(
                    f'section {file.name} is {section.dtype} of shape {section.shape}, but the '
                    f'first is {self.dtype} of shape {self.shape[1:]}: sections of one stack must '
                    'agree; crop or convert them first'
                )
            sections.append(section[slices[1:]])
        return np.stack(sections)


@functools.lru_cache(maxsize=4)
def _read_section(file: Path) -> np.ndarray:
    try:
        if file.suffix.lower() == '.png':
            import imagecodecs

            section = imagecodecs.png_decode(file.read_bytes())
        else:
            section = _read_tiff(file)
    except Exception as error:  # The codecs raise types of their own.
        raise ValueError(
            f'section {str(file)!r} is not a readable image ({type(error).__name__}: {error}); '
            'it may be truncated: replace it, or take it out of the folder'
        ) from error
    array = np.asarray(section)
    if array.ndim != 2:
        raise ValueError(
            f'section {str(file)!r} has shape {array.shape}: must be one grey channel (rank 2)'
        )
    return array
