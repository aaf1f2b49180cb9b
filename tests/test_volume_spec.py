from __future__ import annotations

import json

import pytest

from h01_beam import config
from h01_beam.volume_spec import VolumeSpec, VolumeUri, fitting_shard
from tests.arrays import create


@pytest.mark.parametrize(
    ('uri', 'message'),
    [
        ('em|zarr:', 'unknown driver .zarr.; known: neuroglancer-precomputed, zarr3'),
        ('em|zarr3:?mip=x', "'mip=x' must be mip=N"),
        ('em|zarr3:?level=1', 'must be mip=N'),
    ],
)
def test_malformed_uris_are_refused(uri, message):
    with pytest.raises(ValueError, match=message):
        VolumeUri.parse(uri)


@pytest.mark.parametrize(
    'uri', ['/a/em|neuroglancer-precomputed:', 'gs://b/em|zarr3:?mip=2', '/a/em.h5|hdf5:x/raw']
)
def test_uris_round_trip(uri):
    assert str(VolumeUri.parse(uri)) == uri


def test_a_specification_travels_as_json(tmp_path):
    spec = create(tmp_path / 'em', shard=(8, 16, 32)).spec
    text = json.dumps(config.as_dict(spec))
    assert config.from_dict(VolumeSpec, json.loads(text)) == spec


@pytest.mark.parametrize(
    ('shape', 'expected'),
    [
        ((64, 64, 64), (32, 32, 32)),
        ((10, 40, 64), (16, 32, 32)),
        ((1, 17, 9), (8, 24, 16)),
    ],
)
def test_shards_end_with_the_volume(shape, expected):
    assert fitting_shard(shape, (8, 8, 8), (32, 32, 32)) == expected
