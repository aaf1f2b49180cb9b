from __future__ import annotations

import json

import numpy as np
import pytest
import tensorstore as ts

from h01_beam.volume import Volume
from tests.arrays import box, create, position_code


def test_zarr3_files_are_ome_zarr(tmp_path):
    create(tmp_path / 'em', 'zarr3', shard=(8, 16, 32))
    ome = json.loads((tmp_path / 'em/zarr.json').read_text())['attributes']['ome']
    assert ome['version'] == '0.5'
    (multiscale,) = ome['multiscales']
    assert [axis['name'] for axis in multiscale['axes']] == ['z', 'y', 'x']
    assert {axis['unit'] for axis in multiscale['axes']} == {'nanometer'}
    (level,) = multiscale['datasets']
    assert level['path'] == '0'
    assert level['coordinateTransformations'][0]['scale'] == [30, 8, 4]
    array = json.loads((tmp_path / 'em/0/zarr.json').read_text())
    assert array['shape'] == [10, 21, 35] and array['dimension_names'] == ['z', 'y', 'x']
    assert array['chunk_grid']['configuration']['chunk_shape'] == [8, 16, 32]
    assert array['codecs'][0]['configuration']['chunk_shape'] == [4, 8, 16]


def write_zarr(path, array, driver='zarr', **metadata):
    store = ts.open(
        {'driver': driver, 'kvstore': {'driver': 'file', 'path': f'{path}/'}, 'metadata': metadata},
        create=True, dtype=array.dtype, shape=array.shape,
    ).result()  # fmt: skip
    store.write(array).result()


def write_ome_zarr_04(path, array, axes, scales, unit='nanometer', **multiscale):
    """OME-Zarr 0.4 on zarr 2, one level per scale."""
    for level in range(len(scales)):
        part = array[(..., *[slice(None, None, 2**level)] * 2)]
        write_zarr(path / str(level), part, dimension_separator='/')
    kinds = {'t': 'time', 'c': 'channel'}
    described = [
        {'name': name, 'type': kinds.get(name, 'space')}
        | ({'unit': unit} if name not in kinds and unit else {})
        for name in axes
    ]
    datasets = [
        {'path': str(level), 'coordinateTransformations': [{'type': 'scale', 'scale': scale}]}
        for level, scale in enumerate(scales)
    ]
    attributes = {'version': '0.4', 'axes': described, 'datasets': datasets, **multiscale}
    (path / '.zattrs').write_text(json.dumps({'multiscales': [attributes]}))
    (path / '.zgroup').write_text('{"zarr_format": 2}')


LABELS = position_code(box((0, 0, 0), (5, 6, 8)), 'uint16')


def test_ome_zarr_04_is_read(tmp_path):
    write_ome_zarr_04(tmp_path / 'em', LABELS, 'zyx', [[30, 8, 4], [30, 16, 8]])
    for uri in (f'{tmp_path}/em', f'{tmp_path}/em|zarr2:'):
        volume = Volume.open(uri)
        assert volume.spec.voxel_size_nm == (30, 8, 4) and volume.spec.kind == 'image'
        np.testing.assert_array_equal(volume.read(volume.bounds), LABELS)
    coarse = Volume.open(f'{tmp_path}/em|zarr2:?mip=1')
    assert coarse.spec.voxel_size_nm == (30, 16, 8) and coarse.spec.mip == 1
    np.testing.assert_array_equal(coarse.read(coarse.bounds), LABELS[:, ::2, ::2])
    with pytest.raises(FileNotFoundError, match='there is no mip 2, only 2 levels'):
        Volume.open(f'{tmp_path}/em|zarr2:?mip=2')


def test_ome_zarr_units_and_leading_axes(tmp_path):
    scales = [[1, 1, 0.03, 0.008, 0.0046]]
    write_ome_zarr_04(tmp_path / 'em', LABELS[None, None], 'tczyx', scales, 'micrometer')
    volume = Volume.open(f'{tmp_path}/em')
    np.testing.assert_allclose(volume.spec.voxel_size_nm, (30, 8, 4.6))
    assert volume.spec.shape == LABELS.shape and volume.spec.channels == 1
    np.testing.assert_array_equal(volume.read(volume.bounds), LABELS)


def test_ome_zarr_channels_are_kept(tmp_path):
    array = np.stack([LABELS, LABELS + 1])
    write_ome_zarr_04(tmp_path / 'em', array[None], 'tczyx', [[1, 1, 30, 8, 4]])
    volume = Volume.open(f'{tmp_path}/em')
    assert volume.spec.channels == 2 and volume.spec.voxel_size_nm == (30, 8, 4)
    np.testing.assert_array_equal(volume.read(volume.bounds), array)


def test_ome_zarr_scales_multiply(tmp_path):
    both = {'coordinateTransformations': [{'type': 'scale', 'scale': [1, 2, 4]}]}
    write_ome_zarr_04(tmp_path / 'em', LABELS, 'zyx', [[30, 4, 1]], **both)
    assert Volume.open(f'{tmp_path}/em').spec.voxel_size_nm == (30, 8, 4)


def test_ome_zarr_with_other_axes_is_refused(tmp_path):
    write_ome_zarr_04(tmp_path / 'em', LABELS, 'xyz', [[4, 8, 30]])
    with pytest.raises(ValueError, match=r"axes \['x', 'y', 'z'\]: the last three must be z, y, x"):
        Volume.open(f'{tmp_path}/em')
    write_ome_zarr_04(tmp_path / 'parsec', LABELS, 'zyx', [[4, 8, 30]], 'parsec')
    with pytest.raises(ValueError, match="unit 'parsec' of an axis"):
        Volume.open(f'{tmp_path}/parsec')


@pytest.mark.parametrize(('driver', 'name'), [('zarr', 'zarr2'), ('zarr3', 'zarr3')])
def test_plain_zarr_arrays_are_read(tmp_path, driver, name):
    write_zarr(tmp_path / 'em', LABELS, driver)
    for uri in (f'{tmp_path}/em', f'{tmp_path}/em|{name}:'):
        volume = Volume.open(uri)
        assert volume.spec.voxel_size_nm is None and volume.spec.start == (0, 0, 0)
        np.testing.assert_array_equal(volume.read(volume.bounds), LABELS)
    with pytest.raises(FileNotFoundError, match='plain zarr array has no mip 1'):
        Volume.open(f'{tmp_path}/em|{name}:?mip=1')


def test_flat_zarr_arrays_are_refused(tmp_path):
    write_zarr(tmp_path / 'em', LABELS[0])
    with pytest.raises(ValueError, match='has rank 2: must be zyx or czyx'):
        Volume.open(f'{tmp_path}/em')
