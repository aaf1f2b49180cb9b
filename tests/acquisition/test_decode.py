import copy
import hashlib

import numpy as np
import pytest
import tifffile

from h01_beam.acquisition.decode import TileError, decode_tile, read_tile, to_uint8
from tests.acquisition.images import encode, save, tissue

SUFFIXES = ('.png', '.tif', '.bmp', '.jpg')


def kind_of(data, **expected):
    with pytest.raises(TileError) as caught:
        decode_tile(data, **expected)
    return caught.value.kind


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_images_are_read_as_they_were_written(tmp_path, suffix):
    image = tissue()
    save(tmp_path / f'tile{suffix}', image)
    found = read_tile(str(tmp_path / f'tile{suffix}'), image.shape, 'uint8')
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), image, atol=40 if suffix == '.jpg' else 0)


@pytest.mark.parametrize('suffix', ('.png', '.tif'))
def test_sixteen_bits_stay_and_become_eight_by_a_stated_range(suffix):
    image = np.arange(1000, 1600, dtype=np.uint16).reshape(20, 30)
    found = decode_tile(encode(image, suffix), (20, 30), 'uint16')
    np.testing.assert_array_equal(found, image)
    grey = to_uint8(found, (1100, 1355))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey.ravel(), np.clip(np.arange(-100, 500), 0, 255))
    with pytest.raises(ValueError, match='grey_range is None'):
        to_uint8(found, None)


def test_a_tiled_tiff_and_a_big_endian_one_are_read(tmp_path):
    image = tissue()[:256, :256]
    for name, options in (('a.tif', {'tile': (64, 64)}), ('b.tif', {'byteorder': '>'})):
        tifffile.imwrite(tmp_path / name, image, **options)
        np.testing.assert_array_equal(read_tile(str(tmp_path / name)), image)


def test_channels_that_agree_are_grey_others_are_refused():
    image = tissue()
    same = np.repeat(image[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_tile(encode(same, '.png')), image)
    opaque = np.dstack([same, np.full_like(image, 255)])
    np.testing.assert_array_equal(decode_tile(encode(opaque, '.png')), image)
    same[..., 1] += 1
    assert kind_of(encode(same, '.png')) == 'colour'


@pytest.mark.parametrize('share', (0.3, 0.9, 0.999))
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_truncated_files_are_found(suffix, share):
    data = encode(tissue(), suffix)
    assert kind_of(data[: int(share * len(data))]) == 'truncated'


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_files_that_end_in_their_header_are_found(suffix):
    assert kind_of(encode(tissue(), suffix)[:13]) == 'truncated'


def test_a_damaged_png_is_found():
    data = bytearray(encode(tissue(), '.png'))
    data[len(data) // 2] ^= 1
    assert kind_of(bytes(data)) == 'undecodable'


@pytest.mark.parametrize(('data', 'kind'), [(b'', 'truncated'), (b'hello there', 'undecodable')])
def test_files_that_are_no_images_are_refused(data, kind):
    assert kind_of(data) == kind


def test_what_differs_from_the_manifest_is_named(tmp_path):
    image = tissue()
    data = encode(image, '.png')
    assert kind_of(data, shape=(320, 300)) == 'shape'
    assert kind_of(data, dtype='uint16') == 'dtype'
    assert kind_of(data, sha256='0' * 64) == 'sha256'
    decode_tile(data, image.shape, 'uint8', hashlib.sha256(data).hexdigest().upper())
    assert kind_of(encode(image.astype(np.float32), '.tif')) == 'dtype'
    with pytest.raises(TileError, match='no such file') as caught:
        read_tile(str(tmp_path / 'none.png'))
    assert caught.value.kind == 'missing'


def test_a_folder_is_no_tile(tmp_path):
    with pytest.raises(TileError, match='is no file, but a folder') as caught:
        read_tile(str(tmp_path))
    assert caught.value.kind == 'missing'


def test_errors_travel_between_processes():
    error = copy.copy(TileError('shape', 'too small'))
    assert (error.kind, str(error)) == ('shape', 'too small')
