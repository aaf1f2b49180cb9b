from __future__ import annotations

import h5py
import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile

from h01_beam import formats, storage
from h01_beam.volume import Volume
from tests.arrays import box, position_code

SHAPE = (5, 7, 11)
IMAGE = position_code(box((0, 0, 0), SHAPE), 'uint8')
WIDE = position_code(box((0, 0, 0), SHAPE), 'uint16')
PART = (slice(1, 4), slice(2, 7), slice(3, 9))


def write_npy(folder, image):
    np.save(folder / 'em.npy', image)
    return folder / 'em.npy'


def write_npz(folder, image):
    np.savez_compressed(folder / 'em.npz', image=image)
    return folder / 'em.npz'


def write_hdf5(folder, image):
    with h5py.File(folder / 'em.h5', 'w') as file:
        chunks = (2, 3, 4)[: image.ndim] + (1,) * (image.ndim - 3)
        file.create_dataset('volumes/raw', data=image, chunks=chunks, compression='gzip')
    return folder / 'em.h5'


def write_tiff(folder, image):
    tifffile.imwrite(folder / 'em.tif', image)
    return folder / 'em.tif'


def write_plain_tiff(folder, image):
    # As most programs write stacks: one page after the other.
    pages = [PIL.Image.fromarray(section) for section in image]
    pages[0].save(folder / 'em.tif', save_all=True, append_images=pages[1:])
    return folder / 'em.tif'


def write_packed_tiff(folder, image):
    tifffile.imwrite(folder / 'em.tif', image, compression='zlib')
    return folder / 'em.tif'


def write_sections(folder, image, suffix='png'):
    sections = folder / 'sections'
    sections.mkdir()
    for z, section in enumerate(image):
        # No leading zeros: as many microscopes name their sections.
        name = str(sections / f's{z + 8}.{suffix}')
        imagecodecs.imwrite(name, section) if suffix == 'png' else tifffile.imwrite(name, section)
    (sections / 'notes.txt').write_text('not a section')
    (sections / '.s1.png').write_text('of a file browser')
    return sections


def write_tiff_sections(folder, image):
    return write_sections(folder, image, 'tif')


WRITERS = [
    write_npy, write_npz, write_hdf5, write_tiff, write_plain_tiff, write_packed_tiff,
    write_sections, write_tiff_sections,
]  # fmt: skip


@pytest.mark.parametrize('image', [IMAGE, WIDE], ids=['uint8', 'uint16'])
@pytest.mark.parametrize('write', WRITERS)
def test_every_format_reads_as_zyx(tmp_path, write, image):
    volume = Volume.open(str(write(tmp_path, image)))
    assert volume.spec.shape == SHAPE and volume.spec.dtype == image.dtype.name
    assert volume.spec.voxel_size_nm is None and volume.spec.kind == 'image'
    np.testing.assert_array_equal(volume.read(volume.bounds), image)
    part = volume.read(box((1, 2, 3), (3, 5, 6)))
    np.testing.assert_array_equal(part, image[PART])


@pytest.mark.parametrize('write', [write_npy, write_npz, write_hdf5, write_tiff])
def test_big_endian_files_are_read_as_numbers(tmp_path, write):
    path = write(tmp_path, WIDE.astype('>u2'))
    np.testing.assert_array_equal(Volume.open(str(path)).read(box((0, 0, 0), SHAPE)), WIDE)


@pytest.mark.parametrize('write', [write_npy, write_hdf5])
def test_only_what_is_sliced_is_read(tmp_path, write):
    path = str(write(tmp_path, IMAGE))
    reader = formats.open_reader(formats.driver_of(path), path, '')
    assert isinstance(reader, np.memmap | h5py.Dataset)


@pytest.mark.parametrize('write', [write_npy, write_npz])
def test_numpy_files_may_be_in_a_bucket(tmp_path, gcs_bucket, write):
    path = write(tmp_path, IMAGE)
    uri = f'{gcs_bucket}/{path.name}'
    storage.write_bytes(uri, path.read_bytes())
    np.testing.assert_array_equal(Volume.open(uri).read(box((0, 0, 0), SHAPE)), IMAGE)
    with pytest.raises(ValueError, match='read from a local disk only'):
        Volume.open(f'{gcs_bucket}/em.h5|hdf5:')


def test_one_of_several_arrays(tmp_path):
    np.savez(tmp_path / 'em.npz', image=IMAGE, labels=WIDE)
    with h5py.File(tmp_path / 'em.h5', 'w') as file:
        file['volumes/image'], file['volumes/labels'] = IMAGE, WIDE
    for name, argument in (('em.npz|npz', 'labels'), ('em.h5|hdf5', '/volumes/labels')):
        volume = Volume.open(f'{tmp_path}/{name}:{argument}')
        np.testing.assert_array_equal(volume.read(volume.bounds), WIDE)
    for name, choices in (('em.npz', 'image, labels'), ('em.h5', 'volumes/image, volumes/labels')):
        with pytest.raises(ValueError, match=f'holds 2 data sets: choose one of {choices} as '):
            Volume.open(f'{tmp_path}/{name}')
    for name in ('em.npz|npz', 'em.h5|hdf5'):
        with pytest.raises(ValueError, match="has no data set 'raw': choose one of .*--dataset"):
            Volume.open(f'{tmp_path}/{name}:raw')


def test_a_file_without_arrays(tmp_path):
    h5py.File(tmp_path / 'em.h5', 'w').close()
    with pytest.raises(ValueError, match=r'holds 0 data sets: choose one of \(none\)'):
        Volume.open(f'{tmp_path}/em.h5')


@pytest.mark.parametrize('write', WRITERS)
def test_a_missing_file_is_named(tmp_path, write):
    path = str(write(tmp_path, IMAGE)).replace('em.', 'other.').replace('sections', 'other')
    with pytest.raises(FileNotFoundError, match='other'):
        Volume.open(path)


def test_a_missing_file_with_a_driver_is_named(tmp_path):
    for driver in ('npy', 'npz', 'hdf5', 'tiff', 'images'):
        with pytest.raises(FileNotFoundError, match='nowhere.*there is no such file'):
            Volume.open(f'{tmp_path}/nowhere|{driver}:')


@pytest.mark.parametrize('kept', [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    'write', [write_npy, write_npz, write_hdf5, write_plain_tiff, write_packed_tiff]
)
def test_a_truncated_file_is_named(tmp_path, write, kept):
    path = write(tmp_path, np.random.default_rng(0).integers(0, 255, (20, 30, 40), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=rf'em\{path.suffix}.* is not a readable'):
        Volume.open(str(path))


def test_a_file_of_another_format_is_named(tmp_path):
    for name in ('em.npy', 'em.npz', 'em.h5', 'em.tif'):
        (tmp_path / name).write_text('something else, and long enough to hold a header')
        with pytest.raises(ValueError, match=f'{name}.* is not a readable'):
            Volume.open(str(tmp_path / name))
    np.save(tmp_path / 'array.npy', IMAGE)
    with pytest.raises(ValueError, match='array.npy.* contents are not those of an .npz file'):
        Volume.open(f'{tmp_path}/array.npy|npz:')


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / 'em.npy', np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match='is not a readable NumPy file'):
        Volume.open(f'{tmp_path}/em.npy')


@pytest.mark.parametrize('write', [write_npy, write_npz, write_hdf5, write_tiff])
@pytest.mark.parametrize('shape', [(7, 11), (5, 7, 11, 3)])
def test_a_volume_has_rank_3(tmp_path, write, shape):
    path = write(tmp_path, np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=f'has rank {len(shape)}.*must be a volume of rank 3'):
        Volume.open(str(path))


def test_sections_must_agree(tmp_path):
    sections = write_sections(tmp_path, IMAGE)
    imagecodecs.imwrite(str(sections / 's10.png'), IMAGE[0, :, :5].copy())
    volume = Volume.open(str(sections))
    assert volume.read(box((0, 0, 0), (2, 7, 11))).shape == (2, 7, 11)
    with pytest.raises(ValueError, match=r's10.png is uint8 of shape \(7, 5\), but the first is'):
        volume.read(volume.bounds)


def test_a_truncated_section_is_named(tmp_path):
    sections = write_sections(tmp_path, IMAGE)
    data = (sections / 's11.png').read_bytes()
    (sections / 's11.png').write_bytes(data[: len(data) // 2])
    volume = Volume.open(str(sections))
    with pytest.raises(ValueError, match=r's11.png.* is not a readable image.*truncated'):
        volume.read(volume.bounds)


def test_colour_sections_are_refused(tmp_path):
    (tmp_path / 'sections').mkdir()
    colour = np.zeros((7, 11, 3), np.uint8)
    imagecodecs.imwrite(str(tmp_path / 'sections' / 's.png'), colour)
    with pytest.raises(ValueError, match=r'must be one grey channel \(rank 2\)'):
        Volume.open(f'{tmp_path}/sections')


def test_a_folder_without_sections(tmp_path):
    with pytest.raises(ValueError, match='holds no .png, .tif, .tiff files'):
        Volume.open(f'{tmp_path}|images:')
    with pytest.raises(FileNotFoundError, match='nothing there that is a volume'):
        Volume.open(str(tmp_path))


def test_wide_integers_are_labels(tmp_path):
    for dtype in ('uint32', 'uint64', 'int64'):
        np.save(tmp_path / 'labels.npy', WIDE.astype(dtype))
        assert Volume.open(f'{tmp_path}/labels.npy').spec.kind == 'segmentation'


def test_foreign_files_are_known_by_size_and_time(tmp_path):
    path = write_npy(tmp_path, IMAGE)
    first = Volume.open(str(path)).fingerprint
    assert Volume.open(str(path)).fingerprint == first
    np.save(path, IMAGE + 1)
    assert Volume.open(str(path)).fingerprint != first


def test_foreign_files_are_not_written(tmp_path):
    volume = Volume.open(str(write_npy(tmp_path, IMAGE)))
    with pytest.raises(ValueError, match='npy can be read, not written; write to one of'):
        Volume.create(volume.spec)
