"""Image files of tiles to arrays, and what is wrong with those that cannot be used."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from typing import Literal, TypeAlias

import cv2
import numpy as np
import tifffile

from h01_beam import storage

Kind: TypeAlias = Literal[
    'missing', 'truncated', 'undecodable', 'colour', 'shape', 'dtype', 'sha256'
]
PNG = b'\x89PNG\r\n\x1a\n'


class TileError(Exception):
    """A tile cannot be used.

    Attributes:
      kind: what is wrong with it.
    """

    def __init__(self, kind: Kind, message: str):
        # All arguments: an exception travels between processes as these.
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return self.message


def read_tile(
    path: str,
    shape: tuple[int, int] | None = None,
    dtype: str | None = None,
    sha256: str = '',
) -> np.ndarray:
    """Reads a tile from a PNG, TIFF, BMP or JPEG file.

    Args:
      path: local or in a bucket.
      shape: (height, width) that it must have; None accepts any.
      dtype: 'uint8' or 'uint16'; None accepts both.
      sha256: of the file; '' if unknown.

    Returns:
      (height, width), uint8 or uint16.

    Raises:
      TileError: there is no such file, or it is not what it should be.
    """
    return decode_tile(fetch_tile(path), shape, dtype, sha256)


def fetch_tile(path: str) -> bytes:
    """Reads the file of a tile; raises a TileError if there is none."""
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        raise TileError('missing', f'{path!r}: there is no such file') from None
    except IsADirectoryError:
        raise TileError('missing', f'{path!r}: is no file, but a folder') from None


def decode_tile(
    data: bytes,
    shape: tuple[int, int] | None = None,
    dtype: str | None = None,
    sha256: str = '',
) -> np.ndarray:
    """Like `read_tile`, from the bytes of the file."""
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256.lower():
        raise TileError('sha256', f'sha256 is {found[:12]}...: must be {sha256[:12]}...')
    _check_complete(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise TileError('undecodable', f'the file cannot be decoded ({error})') from error
    if image is None:
        raise TileError('undecodable', 'the file cannot be decoded: it is damaged')
    image = _as_grey(image)
    if image.dtype.name not in ('uint8', 'uint16') or dtype not in (None, image.dtype.name):
        raise TileError('dtype', f'dtype is {image.dtype.name}: must be {dtype or "uint8, uint16"}')
    if shape not in (None, image.shape):
        raise TileError('shape', f'height and width are {image.shape}: must be {shape}')
    return image


def to_uint8(image: np.ndarray, grey_range: tuple[float, float] | None) -> np.ndarray:
    """Grey levels low..high of `grey_range` to 0..255, clipped; None: uint8 stays as it is."""
    if grey_range is None:
        if image.dtype != np.uint8:
            raise ValueError(
                f'grey_range is None: must be (low, high) for {image.dtype} images; give the grey '
                'levels that become 0 and 255'
            )
        return image
    low, high = grey_range
    scaled = (image.astype(np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _as_grey(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image
    # A fourth channel is opacity.
    grey = image[..., 0]
    if any((image[..., c] != grey).any() for c in range(1, min(3, image.shape[2]))):
        raise TileError('colour', 'the image has colours: must be grey; convert it first')
    return np.ascontiguousarray(grey)


def _check_complete(data: bytes) -> None:
    """Finds files that end early: OpenCV 4 fills up some of them, and none says what is wrong."""
    try:
        if data.startswith(PNG):
            complete = _is_whole_png(data)
        elif data.startswith(b'\xff\xd8'):
            complete = data.rstrip(b'\0').endswith(b'\xff\xd9')
        elif data.startswith(b'BM'):
            complete = _is_whole_bmp(data)
        elif data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
            complete = _is_whole_tiff(data)
        else:
            what = 'is empty' if not data else 'is none of PNG, TIFF, BMP, JPEG'
            raise TileError('undecodable' if data else 'truncated', f'the file {what}')
    except (struct.error, tifffile.TiffFileError, IndexError) as error:
        raise TileError('truncated', f'the file ends early ({error})') from error
    if not complete:
        raise TileError('truncated', f'the file ends early, after {len(data):,} bytes')


def _is_whole_png(data: bytes) -> bool:
    """Walks along the chunks: length, name, body, checksum, the last one an IEND."""
    at = len(PNG)
    while True:
        (size,) = struct.unpack_from('>I', data, at)
        end = at + 8 + size
        (checksum,) = struct.unpack_from('>I', data, end)
        if zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
            raise TileError('undecodable', f'the file is damaged: wrong checksum at byte {at}')
        if data[at + 4 : at + 8] == b'IEND':
            return True
        at = end + 4


def _is_whole_bmp(data: bytes) -> bool:
    (start,) = struct.unpack_from('<I', data, 10)
    width, height, _, bits, compression = struct.unpack_from('<iiHHI', data, 18)
    if compression not in (0, 3):  # Run lengths: the header alone knows the size.
        return len(data) >= struct.unpack_from('<I', data, 2)[0]
    return len(data) >= start + math.ceil(width * bits / 32) * 4 * abs(height)


def _is_whole_tiff(data: bytes) -> bool:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        starts, sizes = page.dataoffsets, page.databytecounts
    # Tags that lie beyond the end count as absent.
    if not starts or len(starts) != len(sizes):
        return False
    return max(map(sum, zip(starts, sizes, strict=True))) <= len(data)
