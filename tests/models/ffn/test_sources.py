"""Labelled tissue from volumes: the right voxels, renumbered, and errors that name the source."""

import numpy as np
import pytest

from models.ffn.sources import load_tissues
from models.ffn.train_config import Source

SHAPE = (6, 9, 12)
SIZE = (30.0, 8.0, 8.0)


@pytest.fixture
def volumes(tmp_path):
    """Files whose grey levels and labels encode the position."""
    z, y, x = np.indices(SHAPE)
    path = tmp_path / 'volumes.npz'
    np.savez(
        path,
        image=(z * 40 + y * 4 + x).astype(np.uint8),
        labels=np.where(x < 2, 0, 10**12 + 100 * (y // 3)).astype(np.uint64),
        blank=np.zeros(SHAPE, np.uint32),
        real=np.zeros(SHAPE, np.float32),
        small=np.ones((6, 9, 11), np.uint32),
    )
    return lambda name: f'{path}|npz:{name}'


def load(volumes, image='image', labels='labels', least=(1, 1, 1), **part):
    source = Source(image=volumes(image), labels=volumes(labels), **part)
    return load_tissues([source], SIZE, least)


def test_a_part_of_a_volume_is_read(volumes):
    (tissue,) = load(volumes, start=(1, 2, 1), shape=(4, 5, 6))
    z, y, x = np.indices((4, 5, 6)) + np.array([1, 2, 1]).reshape(3, 1, 1, 1)
    np.testing.assert_array_equal(tissue.image, (z * 40 + y * 4 + x).astype(np.uint8))
    assert tissue.labels.dtype == np.int32
    np.testing.assert_array_equal(tissue.labels, np.where(x < 2, 0, 1 + y // 3))
    assert tissue.name.endswith('[1:5, 2:7, 1:7]')
    # The file does not say; it is taken to be the network's, or run lengths could not be told.
    assert tissue.voxel_size_nm == SIZE


def test_labels_without_background_stay_objects(volumes):
    (tissue,) = load(volumes, start=(0, 0, 2), shape=(6, 9, 10))
    assert set(np.unique(tissue.labels)) == {1, 2, 3}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'image': 'real'}, 'uint8 with one'),
        ({'labels': 'real'}, 'integers with one'),
        ({'labels': 'blank'}, 'no labels'),
        ({'labels': 'small'}, 'must cover'),
        ({'least': (7, 9, 9)}, 'must be at least'),
    ],
)
def test_unfit_volumes_are_named(volumes, changes, message):
    with pytest.raises(ValueError, match=message):
        load(volumes, **changes)


def test_a_missing_volume_is_named(volumes, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match='nowhere'):
        load_tissues([Source(image=f'{tmp_path}/nowhere.npz|npz:a', labels='b')], SIZE, (1, 1, 1))
