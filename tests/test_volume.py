from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.volume import Volume, downsample
from tests.arrays import box, create, position_code, read_all, tree_bytes

LAYOUTS = {
    'raw': {},
    'raw sharded': {'shard': (8, 16, 32)},
    'compressed_segmentation': {
        'encoding': 'compressed_segmentation', 'dtype': 'uint64', 'kind': 'segmentation',
    },
    'compressed_segmentation sharded': {
        'encoding': 'compressed_segmentation', 'dtype': 'uint32', 'kind': 'segmentation',
        'shard': (8, 16, 32),
    },
    'png': {'encoding': 'png', 'dtype': 'uint16'},
    'float': {'dtype': 'float32'},
    'zarr3': {'driver': 'zarr3'},
    'zarr3 sharded': {'driver': 'zarr3', 'shard': (8, 16, 32), 'dtype': 'uint64'},
}  # fmt: skip
layouts = pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS.keys())


@layouts
def test_what_is_written_is_read(tmp_path, layout):
    written = create(tmp_path / 'em', **layout)
    volume = Volume.open(written.spec.uri)
    assert volume.spec == written.spec
    assert volume.bounds == box((3, 5, 7), (10, 21, 35))
    expected = position_code(volume.bounds, volume.spec.dtype)
    read = volume.read(volume.bounds)
    assert read.flags.c_contiguous and read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected)
    part = box((5, 6, 20), (7, 13, 19))
    np.testing.assert_array_equal(volume.read(part), position_code(part, volume.spec.dtype))


@layouts
def test_parts_are_written_at_their_place(tmp_path, layout):
    volume = create(tmp_path / 'em', write=False, **layout)
    part = box((7, 13, 23), (4, 8, 16))
    volume.write(part, position_code(part, volume.spec.dtype))
    read = read_all(volume.spec.uri)
    expected = np.zeros_like(read)
    expected[4:8, 8:16, 16:32] = position_code(part, volume.spec.dtype)
    np.testing.assert_array_equal(read, expected)


@layouts
def test_the_driver_is_found(tmp_path, layout):
    volume = create(tmp_path / 'em', **layout)
    for path in (f'{tmp_path}/em', f'{tmp_path}/em/', f'file://{tmp_path}/em'):
        assert Volume.open(path).spec == volume.spec


@layouts
def test_the_same_write_gives_the_same_bytes(tmp_path, layout):
    trees = []
    for name in ('a', 'b'):
        volume = create(tmp_path / name, **layout)
        if name == 'b':
            volume.write(volume.bounds, position_code(volume.bounds, volume.spec.dtype))
        trees.append(tree_bytes(tmp_path / name))
    assert trees[0] == trees[1]


def test_jpeg_is_nearly_what_was_written(tmp_path):
    volume = create(tmp_path / 'em', encoding='jpeg', write=False)
    z, y, x = np.meshgrid(*map(np.arange, volume.spec.shape), indexing='ij')
    smooth = (3 * z + 4 * y + 2 * x).astype(np.uint8)
    volume.write(volume.bounds, smooth)
    assert np.abs(read_all(volume.spec.uri).astype(int) - smooth).max() <= 8


def test_channels_come_first(tmp_path):
    for driver in ('neuroglancer-precomputed', 'zarr3'):
        volume = create(tmp_path / driver, driver, write=False, channels=3)
        array = np.stack([position_code(volume.bounds, 'uint8') + c for c in range(3)])
        volume.write(volume.bounds, array)
        np.testing.assert_array_equal(read_all(volume.spec.uri), array)


# ---------------------------------------------------------------- files as others read them


def test_precomputed_files_are_those_of_neuroglancer(tmp_path):
    """The format says: xyz everywhere, chunks named by their x, y and z, in Fortran order."""
    volume = create(tmp_path / 'em')
    info = json.loads((tmp_path / 'em/info').read_text())
    assert info['@type'] == 'neuroglancer_multiscale_volume'
    assert (info['type'], info['data_type'], info['num_channels']) == ('image', 'uint8', 1)
    (scale,) = info['scales']
    assert scale['size'] == [35, 21, 10] and scale['voxel_offset'] == [7, 5, 3]
    assert scale['resolution'] == [4, 8, 30] and scale['chunk_sizes'] == [[16, 8, 4]]
    assert scale['encoding'] == 'raw' and scale['key'] == '4_8_30'
    chunks = set(os.listdir(tmp_path / 'em/4_8_30'))
    x, y, z = ('7-23', '23-39', '39-42'), ('5-13', '13-21', '21-26'), ('3-7', '7-11', '11-13')
    assert chunks == {f'{i}_{j}_{k}' for i in x for j in y for k in z}
    raw = np.frombuffer((tmp_path / 'em/4_8_30/39-42_5-13_11-13').read_bytes(), np.uint8)
    chunk = position_code(box((11, 5, 39), (2, 8, 3)), 'uint8')
    np.testing.assert_array_equal(raw.reshape((3, 8, 2), order='F').T, chunk)
    assert volume.spec.path == f'{tmp_path}/em'


def test_precomputed_segmentations_say_so(tmp_path):
    create(tmp_path / 'labels', **LAYOUTS['compressed_segmentation'])
    info = json.loads((tmp_path / 'labels/info').read_text())
    assert (info['type'], info['data_type']) == ('segmentation', 'uint64')
    assert info['scales'][0]['compressed_segmentation_block_size'] == [8, 8, 8]


def test_a_precomputed_shard_is_the_unit_that_is_written(tmp_path):
    volume = create(tmp_path / 'em', **LAYOUTS['raw sharded'])
    assert volume.spec.shard == volume.spec.write_unit == (8, 16, 32)
    sharding = json.loads((tmp_path / 'em/info').read_text())['scales'][0]['sharding']
    assert sharding['@type'] == 'neuroglancer_uint64_sharded_v1'
    assert sharding['preshift_bits'] + sharding['minishard_bits'] == 3
    files = sorted(os.listdir(tmp_path / 'em/4_8_30'))
    assert len(files) == 8 and all(name.endswith('.shard') for name in files)
    before = tree_bytes(tmp_path / 'em')
    volume.write(box((3, 5, 7), (8, 16, 32)), np.ones((8, 16, 32), np.uint8))
    after = tree_bytes(tmp_path / 'em')
    assert [name for name in after if after[name] != before.get(name)] == ['4_8_30/0.shard']


# ---------------------------------------------------------------- create


@layouts
def test_create_keeps_what_is_there(tmp_path, layout):
    volume = create(tmp_path / 'em', **layout)
    before = tree_bytes(tmp_path / 'em')
    driver = layout.get('driver', 'neuroglancer-precomputed')
    for uri in (volume.spec.uri, f'{tmp_path}/em/|{driver}', f'file://{tmp_path}/em|{driver}:'):
        spec = dataclasses.replace(volume.spec, uri=uri)
        assert Volume.is_there(spec)
        again, made = Volume.create(spec)
        assert not made and again.spec == volume.spec
        assert again.fingerprint == volume.fingerprint
    assert tree_bytes(tmp_path / 'em') == before


@pytest.mark.parametrize('driver', ['neuroglancer-precomputed', 'zarr3'])
@pytest.mark.parametrize(
    'change',
    [
        {'shape': (10, 21, 36)},
        {'start': (0, 5, 7)},
        {'chunk': (8, 8, 8)},
        {'dtype': 'uint16'},
        {'voxel_size_nm': (30.0, 8.0, 5.0)},
        {'shard': (8, 16, 32)},
        {'kind': 'segmentation'},
    ],
    ids=str,
)
def test_create_makes_anew_what_differs(tmp_path, driver, change):
    spec = create(tmp_path / 'em', driver).spec
    other = dataclasses.replace(spec, **change)
    assert not Volume.is_there(other)
    volume, made = Volume.create(other)
    assert made and volume.spec == other and not volume.read(volume.bounds).any()
    fresh, _ = Volume.create(dataclasses.replace(other, uri=f'{tmp_path}/fresh|{driver}:'))
    assert fresh.spec.shape == other.shape
    assert tree_bytes(tmp_path / 'em') == tree_bytes(tmp_path / 'fresh')


def test_create_adds_sections_at_the_end(tmp_path):
    volume = create(tmp_path / 'em', shape=(8, 21, 35))
    before, inside = tree_bytes(tmp_path / 'em'), volume.read(volume.bounds)
    longer = dataclasses.replace(volume.spec, shape=(15, 21, 35))
    assert Volume.can_grow(longer) and not Volume.is_there(longer)
    grown, made = Volume.create(longer)
    assert not made and grown.spec == longer and Volume.is_there(longer)
    np.testing.assert_array_equal(grown.read(volume.bounds), inside)
    assert not grown.read(box((11, 5, 7), (7, 21, 35))).any()
    after = tree_bytes(tmp_path / 'em')
    assert [name for name in after if after[name] != before.get(name)] == ['info']
    fresh, _ = Volume.create(
        dataclasses.replace(longer, uri=f'{tmp_path}/fresh|neuroglancer-precomputed:')
    )
    assert (tmp_path / 'em/info').read_bytes() == (tmp_path / 'fresh/info').read_bytes()


@pytest.mark.parametrize('shard', [None, (8, 16, 32)])
def test_a_zarr_volume_grows_too(tmp_path, shard):
    volume = create(tmp_path / 'em', 'zarr3', shape=(8, 21, 35), shard=shard)
    inside = read_all(volume.spec.uri)
    grown, made = Volume.create(dataclasses.replace(volume.spec, shape=(18, 21, 35)))
    assert not made and grown.spec.shape == (18, 21, 35)
    np.testing.assert_array_equal(grown.read(volume.bounds), inside)
    assert not grown.read(box((11, 5, 7), (10, 21, 35))).any()


@pytest.mark.parametrize(
    ('there', 'change'),
    [
        ({}, {'shape': (11, 21, 35)}),  # The last chunks would get other names.
        ({'shape': (8, 21, 35)}, {'shape': (4, 21, 35)}),
        ({'shape': (8, 21, 35)}, {'shape': (12, 21, 36)}),
        ({'shape': (8, 21, 35)}, {'shape': (12, 21, 35), 'kind': 'segmentation'}),
        ({'shape': (8, 21, 35), 'shard': (8, 16, 32)}, {'shape': (16, 21, 35)}),
        ({'shape': (10, 21, 35), 'driver': 'zarr3'}, {'shape': (16, 21, 35)}),
    ],
    ids=str,
)
def test_nothing_else_grows(tmp_path, there, change):
    spec = create(tmp_path / 'em', **there).spec
    other = dataclasses.replace(spec, **change)
    assert not Volume.can_grow(other)
    assert Volume.create(other)[1]


def levels_of(base):
    below, specs = base.spec, []
    for mip in (1, 2):
        below = dataclasses.replace(
            below,
            uri=f'{base.spec.uri}?mip={mip}',
            voxel_size_nm=(30.0, below.voxel_size_nm[1] * 2, below.voxel_size_nm[2] * 2),
            shape=below.bounds.scale_down((1, 2, 2)).shape,
            start=below.bounds.scale_down((1, 2, 2)).start,
        )
        specs.append(below)
    return specs


@pytest.mark.parametrize('driver', ['neuroglancer-precomputed', 'zarr3'])
def test_levels_of_a_pyramid(tmp_path, driver):
    base = create(tmp_path / 'em', driver)
    specs = levels_of(base)
    with pytest.raises(FileNotFoundError, match='mip 0 must be created before mip 1'):
        Volume.create(dataclasses.replace(specs[0], uri=f'{tmp_path}/none|{driver}:?mip=1'))
    for spec in specs:
        volume, made = Volume.create(spec)
        assert made and volume.spec.mip == spec.mip
        volume.write(volume.bounds, position_code(volume.bounds, 'uint8'))
    for spec in (base.spec, *specs):
        np.testing.assert_array_equal(read_all(spec.uri), position_code(spec.bounds, 'uint8'))
    assert Volume.open(base.spec.uri).fingerprint == base.fingerprint
    # A level that is made anew takes those above it along, and leaves those below.
    changed = dataclasses.replace(specs[0], chunk=(8, 8, 8))
    assert Volume.create(changed)[1]
    np.testing.assert_array_equal(read_all(base.spec.uri), position_code(base.bounds, 'uint8'))
    assert not read_all(changed.uri).any()
    with pytest.raises(FileNotFoundError, match='no mip 2, only 2 levels'):
        Volume.open(specs[1].uri)
    assert Volume.create(specs[1])[1] and not read_all(specs[1].uri).any()


def test_names_of_folders_may_hold_anything(tmp_path):
    for name in ('my data', 'a%41', 'a#b', 'a?b', 'é'):
        create(tmp_path / name)
        assert (tmp_path / name / 'info').exists()
        assert read_all(f'{tmp_path}/{name}|neuroglancer-precomputed:').any()


def test_paths_may_start_anywhere(tmp_path, monkeypatch):
    create(tmp_path / 'em')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    for path in ('../em', './../em/', '../here/../em', f'file://{tmp_path}/em'):
        assert read_all(f'{path}|neuroglancer-precomputed:').any()


# ---------------------------------------------------------------- buckets


@pytest.mark.parametrize('name', ['raw', 'raw sharded', 'zarr3', 'zarr3 sharded'])
def test_a_bucket_holds_the_same_bytes_as_a_disk(tmp_path, gcs_bucket, name):
    layout = {**LAYOUTS[name], 'shape': (4, 16, 32)}
    local = create(tmp_path / 'em', **layout)
    remote = create(f'{gcs_bucket}/deep/em', **layout)
    assert remote.spec == dataclasses.replace(local.spec, uri=remote.spec.uri)
    names = list(storage.list_files(f'{gcs_bucket}/deep/em'))
    found = {
        name.removeprefix(f'{gcs_bucket}/deep/em/'): storage.read_bytes(name) for name in names
    }
    assert found == tree_bytes(tmp_path / 'em')
    np.testing.assert_array_equal(read_all(f'{gcs_bucket}/deep/em'), read_all(local.spec.uri))
    changed, made = Volume.create(dataclasses.replace(remote.spec, start=(0, 0, 0)))
    assert made and not changed.read(changed.bounds).any()


def test_a_missing_volume_in_a_bucket(gcs_bucket):
    for uri in ('/em', '/em|neuroglancer-precomputed:', '/em|zarr3:', '/em|zarr2:'):
        with pytest.raises(FileNotFoundError, match='em'):
            Volume.open(gcs_bucket + uri)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('layout', 'damage'),
    [(layout, 'truncated') for layout in LAYOUTS.values()]
    # The others have no checksum.
    + [(LAYOUTS[name], 'flipped') for name in LAYOUTS if 'sharded' in name or 'zarr3' in name],
)
def test_a_corrupt_chunk_names_volume_and_box(tmp_path, layout, damage):
    volume = create(tmp_path / 'em', **layout)
    names = [n for n in tree_bytes(tmp_path / 'em') if not n.endswith(('info', '.json'))]
    for name in names:
        data = bytearray((tmp_path / 'em' / name).read_bytes())
        middle = len(data) // 2
        data = data[:middle] if damage == 'truncated' else bytes(b ^ 255 for b in data)
        (tmp_path / 'em' / name).write_bytes(data)
    with pytest.raises(ValueError, match=r'cannot read \[3:13, 5:26, 7:42\] of .*/em\|'):
        Volume.open(volume.spec.uri).read(volume.bounds)


def test_chunks_that_were_never_written_are_zero(tmp_path):
    volume = create(tmp_path / 'em')
    os.remove(tmp_path / 'em/4_8_30/7-23_5-13_3-7')
    read = read_all(volume.spec.uri)
    assert not read[:4, :8, :16].any() and read[4:].any()


@pytest.mark.parametrize('start', [(2, 5, 7), (3, 5, 8), (13, 26, 42)])
def test_boxes_outside_are_refused(tmp_path, start):
    volume = create(tmp_path / 'em')
    outside = box(start, (10, 21, 35))
    with pytest.raises(IndexError, match=r'reaches out of .*em.* bounds are \[3:13, 5:26, 7:42\]'):
        volume.read(outside)
    with pytest.raises(IndexError, match='reaches out of'):
        volume.write(outside, np.zeros((10, 21, 35), np.uint8))


@pytest.mark.parametrize(
    'array',
    [np.zeros((10, 21, 35), np.uint16), np.zeros((35, 21, 10), np.uint8), np.zeros((10, 21), 'u1')],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, array):
    volume = create(tmp_path / 'em')
    with pytest.raises(ValueError, match=r'cannot write .* must be uint8 of shape \(10, 21, 35\)'):
        volume.write(volume.bounds, array)
    assert volume.read(volume.bounds).any()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'voxel_size_nm': None}, 'voxel_size_nm is None: must be three positive lengths in nm'),
        ({'voxel_size_nm': (0.0, 1.0, 1.0)}, 'must be three positive lengths'),
        ({'voxel_size_nm': (float('nan'), 1.0, 1.0)}, 'must be three positive lengths'),
        ({'shape': (0, 1, 1)}, 'is empty'),
        ({'chunk': (0, 1, 1)}, r'chunk is \(0, 1, 1\).*must be >= 1'),
        ({'encoding': 'compressed_segmentation'}, 'needs uint32 or uint64, not uint8'),
        ({'encoding': 'jpeg', 'kind': 'segmentation'}, 'jpeg would change labels'),
        ({'encoding': 'zip'}, 'encoding zip must be one of raw, '),
        ({'driver': 'zarr3', 'encoding': 'jpeg'}, 'encoding jpeg must be one of zstd'),
        ({'driver': 'zarr2'}, 'zarr2 can be read, not written; write to one of PATH|neuroglancer'),
        ({'shard': (6, 16, 32)}, r'shard \(6, 16, 32\) must be chunk .* times powers of 2'),
        ({'shard': (4, 16, 16)}, r'shard \(4, 16, 16\) became \(4, 8, 32\)'),
    ],
)
def test_impossible_specifications_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / 'em', write=False, **change)


def test_missing_and_broken_volumes_are_named(tmp_path):
    for driver in ('neuroglancer-precomputed', 'zarr3', 'zarr2'):
        with pytest.raises(FileNotFoundError, match='nowhere'):
            Volume.open(f'{tmp_path}/nowhere|{driver}:')
    spec = create(tmp_path / 'em').spec
    (tmp_path / 'em/info').write_text('{"scales": ')
    for attempt in (lambda: Volume.open(spec.uri), lambda: Volume.create(spec)):
        with pytest.raises(ValueError, match='em/info.* is not JSON'):
            attempt()
    (tmp_path / 'em/info').write_text('{}')
    with pytest.raises(FileNotFoundError, match='no mip 0, only 0 levels'):
        Volume.open(spec.uri)


# ---------------------------------------------------------------- array functions


def brute_downsample(array, factor, start, reduce):
    low = [s // f for s, f in zip(start, factor)]
    shape = [-(-(s + n) // f) - b for s, n, f, b in zip(start, array.shape, factor, low)]
    result = np.empty(shape, array.dtype)
    for index in np.ndindex(*shape):
        cell = []
        for i, b, f, s in zip(index, low, factor, start):
            cell.append(slice(max(0, (b + i) * f - s), (b + i + 1) * f - s))
        result[index] = reduce(array[tuple(cell)])
    return result


def mean(cell):
    return np.rint(cell.mean(dtype=np.float64))  # half to even


def mode(cell):
    values, counts = np.unique(cell, return_counts=True)  # the smallest on ties
    return values[counts.argmax()]


METHODS = {'mean': mean, 'mode': mode, 'min': np.min, 'max': np.max}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('start', [(0, 0, 0), (3, 5, 7), (-1, 4, 1)])
@pytest.mark.parametrize('factor', [(1, 2, 2), (2, 2, 2), (3, 1, 4)])
def test_downsample_against_brute_force(method, start, factor):
    rng = np.random.default_rng(3)
    high = 4 if method == 'mode' else 256
    array = rng.integers(0, high, (5, 9, 11)).astype('uint64' if method == 'mode' else 'uint8')
    expected = brute_downsample(array, factor, start, METHODS[method])
    np.testing.assert_array_equal(downsample(array, factor, method, start), expected)


def test_large_labels_keep_all_their_bits():
    ids = np.full((2, 2, 2), 2**63 + 5, np.uint64)
    assert downsample(ids, (2, 2, 2), 'mode')[0, 0, 0] == 2**63 + 5


def test_downsample_keeps_channels_apart():
    array = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 6), np.uint8)
    reduced = downsample(array, (1, 2, 2), 'mean', (1, 1, 1))
    for channel in range(2):
        expected = downsample(array[channel], (1, 2, 2), 'mean', (1, 1, 1))
        np.testing.assert_array_equal(reduced[channel], expected)


@pytest.mark.parametrize('shape', [(10, 10, 10), (1, 40, 70), (33, 1, 1), (17, 16, 64), (64,) * 3])
def test_shards_fit_volumes_that_are_smaller(tmp_path, shape):
    for driver in ('neuroglancer-precomputed', 'zarr3'):
        volume = create(tmp_path / driver, driver, shape=shape, chunk=(8, 8, 8), shard=(32, 32, 32))
        unit = volume.spec.write_unit
        assert all(min(n, 32) <= u <= 32 for n, u in zip(shape, unit))
        assert not Volume.create(dataclasses.replace(volume.spec, shard=(32, 32, 32)))[1]
        shards = [n for n in tree_bytes(tmp_path / driver) if not n.endswith(('info', '.json'))]
        assert len(shards) == np.prod([-(-n // u) for n, u in zip(shape, unit)])
        np.testing.assert_array_equal(
            read_all(volume.spec.uri), position_code(volume.bounds, 'uint8')
        )
