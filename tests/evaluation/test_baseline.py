"""The segmentation without a network: decent, repeatable, and joined like the network's."""

import numpy as np
import pytest

from h01_beam.evaluation.baseline import segment_by_watershed, sheet_strength
from h01_beam.evaluation.baseline_config import BaselineConfig
from h01_beam.evaluation.contingency import count_overlaps
from h01_beam.evaluation.scores import score_overlaps
from h01_beam.testing.tubes import make_tubes


def score(labels, truth):
    return score_overlaps(count_overlaps(labels, truth)).foreground


@pytest.mark.parametrize(
    ('shape', 'voxel_size_nm'),
    [((24, 110, 118), (30.0, 8.0, 8.0)), ((56, 60, 64), (10.0, 10.0, 10.0))],
    ids=['sections', 'isotropic'],
)
def test_it_finds_clean_tubes(shape, voxel_size_nm):
    image, truth = make_tubes(shape, voxel_size_nm, seed=4, noise_grey=6.0)
    labels = segment_by_watershed(image, voxel_size_nm)
    assert labels.shape == shape and labels.dtype == np.uint32
    found = score(labels, truth)
    assert found.coverage > 0.75
    assert found.voi_split + found.voi_merge < 1.5
    # Better than to say nothing: all one object, or every object in pieces.
    assert found.voi_merge < 0.5 * score(np.ones(shape, np.uint32), truth).voi_merge


def test_it_depends_on_its_arguments_alone_and_numbers_without_gaps():
    image, _ = make_tubes((12, 80, 84), (30.0, 8.0, 8.0), seed=2)
    one, two = (segment_by_watershed(image, (30.0, 8.0, 8.0)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    ids = np.unique(one)
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    sizes = np.bincount(one.ravel())[1:]
    assert sizes.min() >= BaselineConfig().min_voxels


def test_nothing_is_segmented_under_a_mask():
    image, _ = make_tubes((12, 80, 84), (30.0, 8.0, 8.0), seed=2)
    mask = np.zeros(image.shape, bool)
    mask[:, :, 40:] = True
    labels = segment_by_watershed(image, (30.0, 8.0, 8.0), mask=mask)
    assert labels[:, :, :40].any() and not labels[mask].any()


@pytest.mark.parametrize('voxel_size_nm', [(30.0, 8.0, 8.0), (10.0, 10.0, 10.0)])
def test_a_blank_image_is_one_object_or_none(voxel_size_nm):
    labels = segment_by_watershed(np.full((8, 40, 40), 90, np.uint8), voxel_size_nm)
    assert len(np.unique(labels)) == 1


def test_sheets_stand_out_across_and_along_the_section():
    image = np.full((16, 40, 40), 160, np.uint8)
    image[:, 19:22, :] = 60
    image[8, :, :] = 60
    strength = sheet_strength(image, (30.0, 8.0, 8.0), 12.0)
    outside = strength[2, 5:12, 5:35].mean()
    assert strength[2, 20, 5:35].min() > outside + 1
    assert strength[8, 5:12, 5:35].mean() > outside + 1


@pytest.mark.parametrize('field', ['smoothing_nm', 'membrane_quantile', 'seed_nm', 'min_voxels'])
def test_bad_settings_name_the_field(field):
    with pytest.raises(ValueError, match=field):
        BaselineConfig(**{field: 0})
