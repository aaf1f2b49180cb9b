"""The synthetic tissue: local, repeatable, with exact truth and believable greys."""

import cc3d
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from h01_beam.geometry import BoundingBox
from h01_beam.testing.tubes import make_tubes

WHOLE = BoundingBox((-11, 5, -40), (53, 61, 79))
coordinates = st.tuples(*(st.integers(s, e - 1) for s, e in zip(WHOLE.start, WHOLE.end)))


@pytest.mark.parametrize('voxel_size_nm', [(10, 10, 10), (33, 8, 9)])
@hypothesis.given(low=coordinates, high=coordinates)
@hypothesis.settings(max_examples=12)
def test_part_equals_cut_out_of_whole(voxel_size_nm, low, high):
    start = tuple(min(a, b) for a, b in zip(low, high))
    shape = tuple(abs(a - b) + 1 for a, b in zip(low, high))
    part = BoundingBox(start, shape)
    cut = part.translate(tuple(-s for s in WHOLE.start)).slices
    whole_image, whole_labels = make_tubes(box=WHOLE, voxel_size_nm=voxel_size_nm, seed=3)
    image, labels = make_tubes(box=part, voxel_size_nm=voxel_size_nm, seed=3)
    np.testing.assert_array_equal(image, whole_image[cut])
    np.testing.assert_array_equal(labels, whole_labels[cut])


@pytest.mark.parametrize(
    ('shape', 'voxel_size_nm'), [((96, 100, 104), (10, 10, 10)), ((40, 120, 124), (33, 8, 8))]
)
def test_greys_and_truth_are_believable(shape, voxel_size_nm):
    image, labels = make_tubes(shape, voxel_size_nm, seed=1)
    assert image.shape == labels.shape == shape
    assert (image.dtype, labels.dtype) == (np.uint8, np.uint64)
    assert 118 < image.mean() < 138
    assert 26 < image.std() < 40
    assert image[labels > 0].mean() > image[labels == 0].mean() + 40
    assert 0.55 < (labels > 0).mean() < 0.85
    assert len(np.unique(labels)) > 20


@pytest.mark.parametrize('voxel_size_nm', [(10, 10, 10), (33, 8, 8), (8, 33, 9)])
def test_no_two_objects_share_a_face(voxel_size_nm):
    _, labels = make_tubes((60, 70, 80), voxel_size_nm, seed=2)
    for axis in range(3):
        after = np.moveaxis(labels, axis, 0)[1:]
        before = np.moveaxis(labels, axis, 0)[:-1]
        assert not np.any((after != before) & (after > 0) & (before > 0))


def test_objects_touch_across_one_membrane():
    # Grown by one membrane, the objects fill space: there is no empty room between them.
    _, labels = make_tubes((60, 60, 60), (10, 10, 10), seed=2)
    nearest = labels.copy()
    for _ in range(4):
        for axis in range(3):
            for shift in (1, -1):
                np.copyto(nearest, np.roll(nearest, shift, axis), where=nearest == 0)
    assert (nearest > 0).mean() > 0.97


def test_each_object_inside_is_connected():
    _, labels = make_tubes((150, 130, 140), (10, 10, 10), seed=4)
    faces = [np.moveaxis(labels, axis, 0)[side] for axis in (1, 2) for side in (0, -1)]
    cut = np.unique(np.concatenate([face.ravel() for face in faces]))
    inside = np.where(np.isin(labels, cut), 0, labels)
    _, pieces = cc3d.connected_components(inside, connectivity=26, return_N=True)
    objects = len(np.unique(inside)) - 1
    assert pieces == objects > 20


def test_same_tissue_at_another_voxel_size():
    _, fine = make_tubes((64, 64, 64), (10, 10, 10), seed=5, membrane_nm=40)
    _, coarse = make_tubes((32, 64, 32), (20, 10, 20), seed=5, membrane_nm=40)
    # The centre of a coarse voxel is the corner of four fine ones.
    corners = np.stack([fine[i::2, :, k::2] for i in (0, 1) for k in (0, 1)])
    agreed = (corners == corners[0]).all(axis=0)
    assert agreed.mean() > 0.8
    assert (coarse == corners[0])[agreed].mean() > 0.99


def test_seed_changes_image_and_truth():
    first_image, first_labels = make_tubes((20, 24, 28), seed=0)
    again_image, again_labels = make_tubes((20, 24, 28), seed=0)
    other_image, other_labels = make_tubes((20, 24, 28), seed=1)
    np.testing.assert_array_equal(first_image, again_image)
    np.testing.assert_array_equal(first_labels, again_labels)
    assert (first_image != other_image).mean() > 0.5
    assert (first_labels != other_labels).any()


def test_noise_has_no_pattern():
    smooth, labels = make_tubes((64, 64, 64), noise_grey=0)
    noisy, _ = make_tubes((64, 64, 64), noise_grey=14)
    noise = (noisy.astype(float) - smooth)[labels > 0]
    assert abs(noise.mean()) < 0.2
    assert abs(noise.std() - 14) < 0.3
    field = noisy.astype(float) - smooth
    for axis in range(3):
        shifted = np.roll(field, 1, axis)
        assert abs(np.corrcoef(field.ravel(), shifted.ravel())[0, 1]) < 0.01


def test_empty_box_is_empty():
    image, labels = make_tubes((0, 5, 6))
    assert image.shape == labels.shape == (0, 5, 6)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({}, 'give one of them'),
        ({'shape': (4, 4, 4), 'box': BoundingBox((0, 0, 0), (4, 4, 4))}, 'give one of them'),
        ({'shape': (4, 4, 4), 'voxel_size_nm': (0, 8, 8)}, 'voxel_size_nm is .* positive'),
        ({'shape': (4, 4, 4), 'membrane_nm': 5.0}, 'membrane_nm is 5.0: must exceed'),
        ({'shape': (4, 4, 4), 'voxel_size_nm': (90, 9, 9)}, 'raise spacing_nm'),
        ({'box': BoundingBox((0, 0, 10**6), (4, 4, 4))}, 'box is .* the tissue ends'),
    ],
)
def test_bad_arguments_say_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_tubes(**arguments)
