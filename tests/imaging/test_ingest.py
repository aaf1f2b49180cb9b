from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from h01_beam.geometry import BlockGrid
from h01_beam.imaging.ingest import ConvertBlock, IngestConfig, block_shape, output_spec
from h01_beam.volume import VolumeSpec
from tests.arrays import box

SOURCE = VolumeSpec(uri='/a/em.npy|npy:', voxel_size_nm=None, dtype='uint8', shape=(5, 6, 7))
CONFIG = IngestConfig(voxel_size_nm=(30.0, 8.0, 4.0))
BLOCK = BlockGrid(box((10, 20, 30), (5, 6, 7)), (5, 6, 7))[0, 0, 0]
PRECOMPUTED = '/b/em|neuroglancer-precomputed:'


@pytest.mark.parametrize(
    ('dtype', 'config', 'stored', 'kind', 'encoding'),
    [
        ('uint8', {}, 'uint8', 'image', 'raw'),
        ('uint16', {}, 'uint16', 'image', 'raw'),
        ('float32', {}, 'float32', 'image', 'raw'),
        ('uint32', {}, 'uint32', 'segmentation', 'compressed_segmentation'),
        ('uint64', {}, 'uint64', 'segmentation', 'compressed_segmentation'),
        ('int64', {}, 'uint64', 'segmentation', 'compressed_segmentation'),
        ('int32', {}, 'int32', 'segmentation', 'raw'),
        ('bool', {}, 'uint8', 'segmentation', 'raw'),
        ('uint8', {'kind': 'segmentation'}, 'uint8', 'segmentation', 'raw'),
        ('uint8', {'encoding': 'jpeg'}, 'uint8', 'image', 'jpeg'),
        ('uint64', {'encoding': 'raw'}, 'uint64', 'segmentation', 'raw'),
        ('float64', {'grey_range': (0.0, 1.0)}, 'uint8', 'image', 'raw'),
        ('uint16', {'grey_range': (0.0, 1.0)}, 'uint8', 'image', 'raw'),
    ],
)
def test_how_a_source_is_stored(dtype, config, stored, kind, encoding):
    source = dataclasses.replace(SOURCE, dtype=dtype)
    spec = output_spec(source, PRECOMPUTED, dataclasses.replace(CONFIG, **config))
    assert (spec.dtype, spec.kind, spec.encoding) == (stored, kind, encoding)
    assert (spec.uri, spec.shape, spec.start) == (PRECOMPUTED, SOURCE.shape, (0, 0, 0))
    assert spec.voxel_size_nm == (30, 8, 4)
    assert (
        output_spec(
            source,
            '/b/em|zarr3:',
            CONFIG if stored == dtype else dataclasses.replace(CONFIG, grey_range=(0.0, 1.0)),
        ).encoding
        == 'zstd'
    )


@pytest.mark.parametrize('dtype', ['float64', 'complex64', 'void32', 'float16'])
def test_what_cannot_be_stored_is_refused(dtype):
    source = dataclasses.replace(SOURCE, dtype=dtype)
    message = f'em.npy.* has dtype {dtype}: must be one of uint8, .*--grey_range LOW,HIGH'
    with pytest.raises(ValueError, match=message):
        output_spec(source, PRECOMPUTED, CONFIG)


def test_grey_ranges_scale_and_clip():
    source = np.array([[[-1, 0, 5, 10, 11, 2.5, 7.49]]], np.float64)
    scaled = ConvertBlock('uint8', (0.0, 10.0))(source, BLOCK)
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, [[[0, 0, 128, 255, 255, 64, 191]]])


def test_values_are_kept_without_a_range():
    for dtype, stored in (('uint16', 'uint16'), ('bool', 'uint8'), ('int64', 'uint64')):
        source = np.array([[[0, 1, 1]]]).astype(dtype)
        converted = ConvertBlock(stored, None)(source, BLOCK)
        assert converted.dtype == stored
        np.testing.assert_array_equal(converted, [[[0, 1, 1]]])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_voxels_without_a_number_are_found(value):
    source = np.zeros((5, 6, 7), np.float32)
    source[1, 2, 3] = source[4, 0, 0] = value
    message = r'^2 voxels are NaN or infinite, the first at \(11, 22, 33\) \(zyx\)'
    for grey_range in (None, (0.0, 1.0)):
        with pytest.raises(ValueError, match=message):
            ConvertBlock('float32', grey_range)(source, BLOCK)


def test_negative_labels_are_found():
    source = np.zeros((5, 6, 7), np.int64)
    source[4, 5, 6] = -3
    with pytest.raises(
        ValueError, match=r'labels are negative, the first at \(14, 25, 36\) \(zyx\)'
    ):
        ConvertBlock('uint64', None)(source, BLOCK)
    # Signed images may be negative.
    assert ConvertBlock('int16', None)(source.astype(np.int16), BLOCK).min() == -3


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'voxel_size_nm': (0.0, 8.0, 8.0)}, 'voxel_size_nm is .*: must be positive'),
        ({'voxel_size_nm': (float('nan'), 8.0, 8.0)}, 'must be positive'),
        ({'grey_range': (5.0, 5.0)}, 'must be LOW,HIGH with LOW < HIGH'),
        ({'grey_range': (float('nan'), 5.0)}, 'must be LOW,HIGH with LOW < HIGH'),
        ({'chunk': (0, 64, 64)}, r'chunk is \(0, 64, 64\): every extent must be >= 1'),
        ({'shard': (64, 64, 0)}, r'shard is \(64, 64, 0\)'),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **config)


def test_blocks_are_wide_and_hold_whole_write_units():
    spec = output_spec(SOURCE, PRECOMPUTED, dataclasses.replace(CONFIG, chunk=(16, 64, 128)))
    assert block_shape(spec) == (16, 256, 512)
    spec = dataclasses.replace(spec, shard=(64, 1024, 1024))
    assert block_shape(spec) == (64, 1024, 1024)
