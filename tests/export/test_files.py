import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam.export.files import BucketFiles, FolderFiles, TranslatedFiles, check_key, open_files
from h01_beam.export.finished_run import Layer
from h01_beam.volume import Volume, VolumeSpec


def make_volume(uri, array, start=(0, 0, 0), **fields):
    spec = VolumeSpec(
        uri=uri,
        voxel_size_nm=(30, 8, 6),
        dtype=array.dtype.name,
        shape=array.shape,
        start=start,
        chunk=(8, 16, 16),
        **fields,
    )
    volume, _ = Volume.create(spec)
    volume.write(spec.bounds, array)
    return volume


def labels(shape=(12, 20, 40)):
    return np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)


def read_whole(files, key):
    return files.read(key, 0, files.size(key))


def reassemble(files, scale=0):
    """Reads all chunks of a raw precomputed volume, as a browser would; zyx."""
    info = json.loads(read_whole(files, 'info'))
    level = info['scales'][scale]
    chunk, size, offset = level['chunk_sizes'][0], level['size'], level['voxel_offset']
    whole = np.zeros(size[::-1], info['data_type'])
    for corner in np.ndindex(*(-(-n // c) for n, c in zip(size, chunk))):
        low = [i * c for i, c in zip(corner, chunk)]
        high = [min(a + c, n) for a, c, n in zip(low, chunk, size)]
        spans = [f'{o + a}-{o + b}' for o, a, b in zip(offset, low, high)]
        data = read_whole(files, f'{level["key"]}/{"_".join(spans)}')
        shape = [b - a for a, b in zip(low, high)][::-1]
        z, y, x = (slice(a, b) for a, b in zip(low[::-1], high[::-1]))
        whole[z, y, x] = np.frombuffer(data, info['data_type']).reshape(shape)
    return info, whole


def test_a_precomputed_folder_is_passed_through(tmp_path):
    make_volume(f'{tmp_path}/v|neuroglancer-precomputed:', labels(), start=(3, 5, 7))
    files = open_files(Layer(name='v', uri=f'{tmp_path}/v'))
    assert isinstance(files, FolderFiles)
    assert read_whole(files, 'info') == (tmp_path / 'v' / 'info').read_bytes()
    _, whole = reassemble(files)
    np.testing.assert_array_equal(whole, labels())


def test_a_zarr_pyramid_is_translated_with_its_place_and_its_levels(tmp_path):
    uri = f'{tmp_path}/v|zarr3:'
    make_volume(uri, labels(), start=(3, 5, 7), encoding='zstd', kind='segmentation')
    spec = VolumeSpec(
        uri=uri + '?mip=1',
        voxel_size_nm=(30, 16, 12),
        dtype='uint64',
        shape=(12, 10, 20),
        start=(3, 2, 3),
        chunk=(8, 16, 16),
        encoding='zstd',
        kind='segmentation',
    )
    Volume.create(spec)[0].write(spec.bounds, labels(spec.shape))
    files = open_files(Layer(name='v', uri=uri))
    info, whole = reassemble(files)
    assert info['type'] == 'segmentation'
    assert [scale['resolution'] for scale in info['scales']] == [[6, 8, 30], [12, 16, 30]]
    assert info['scales'][0]['voxel_offset'] == [7, 5, 3]
    np.testing.assert_array_equal(whole, labels())
    np.testing.assert_array_equal(reassemble(files, 1)[1], labels(spec.shape))


def test_a_numpy_file_is_translated_with_the_voxel_size_that_is_known_otherwise(tmp_path):
    array = labels((70, 10, 9)).astype(np.uint8)
    np.savez(tmp_path / 'v.npz', image=array, other=array)
    files = open_files(Layer(name='v', uri=f'{tmp_path}/v.npz|npz:image'), (30, 8, 6))
    info, whole = reassemble(files)
    assert (info['type'], info['data_type']) == ('image', 'uint8')
    assert info['scales'][0]['resolution'] == [6, 8, 30]
    np.testing.assert_array_equal(whole, array)


def test_small_labels_shown_as_a_segmentation_become_uint64(tmp_path):
    array = labels((5, 6, 7)).astype(np.uint8)
    np.save(tmp_path / 'v.npy', array)
    files = open_files(Layer(name='v', uri=f'{tmp_path}/v.npy', kind='segmentation'))
    info, whole = reassemble(files)
    assert (info['type'], info['data_type']) == ('segmentation', 'uint64')
    np.testing.assert_array_equal(whole, array)


@pytest.mark.parametrize(
    'key',
    [
        '',
        '/etc/passwd',
        '../secret',
        'a/../../secret',
        './info',
        '.hidden',
        'a//b',
        'a\\..\\b',
        'a\0',
    ],
)
def test_keys_that_lead_out_or_hide_are_refused(key):
    with pytest.raises(FileNotFoundError):
        check_key(key)


def test_a_folder_serves_neither_its_surroundings_nor_its_listing(tmp_path):
    (tmp_path / 'v' / 'sub').mkdir(parents=True)
    (tmp_path / 'secret').write_text('secret')
    (tmp_path / 'v' / 'link').symlink_to(tmp_path / 'secret')
    (tmp_path / 'v' / 'sub' / 'file').write_text('file')
    files = FolderFiles(str(tmp_path / 'v'))
    assert read_whole(files, 'sub/file') == b'file'
    for key in ('link', 'sub', '../secret', 'absent'):
        with pytest.raises(FileNotFoundError):
            files.size(key)


@given(st.text('0123456789-_/', max_size=30))
def test_names_of_no_chunk_are_no_files(key):
    with pytest.raises(FileNotFoundError):
        _translated().size(key)


@pytest.mark.parametrize(
    'key',
    [
        '0/0-64_0-10_0-65',  # larger than a chunk
        '0/0-7_0-10_0-71',  # out of the volume
        '0/0-0_0-1_0-1',  # empty
        '1/0-7_0-10_0-64',  # no such level
    ],
)
def test_only_chunks_can_be_asked_for(key):
    with pytest.raises(FileNotFoundError):
        _translated().size(key)


def test_a_bucket_is_read_in_ranges(gcs_bucket):
    path = f'{gcs_bucket}/v'
    make_volume(f'{path}|neuroglancer-precomputed:', labels(), shard=(8, 32, 32))
    files = open_files(Layer(name='v', uri=path))
    assert isinstance(files, BucketFiles)
    info = read_whole(files, 'info')
    assert files.read('info', 3, 9) == info[3:9]
    with pytest.raises(FileNotFoundError):
        files.size('absent')
    with pytest.raises(FileNotFoundError):
        files.read('../other', 0, 1)


def _translated():
    class Level:
        spec = VolumeSpec(uri='/v|npy:', voxel_size_nm=None, dtype='uint8', shape=(70, 10, 7))
        bounds = spec.bounds

    return TranslatedFiles([Level()], 'image', (1, 1, 1))
