from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from h01_beam.segmentation import seeds
from h01_beam.segmentation.ffn import flood_fill
from tests.segmentation import oracle

SHAPE = (20, 26, 31)


def grey_noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def brute_force_maxima(score, distance):
    peaks = []
    for voxel in np.ndindex(*(size - 2 * distance for size in score.shape)):
        window = score[tuple(slice(v, v + 2 * distance + 1) for v in voxel)]
        centre = tuple(v + distance for v in voxel)
        if score[centre] == window.max() and score[centre] > 0:
            peaks.append(centre)
    return peaks


@pytest.mark.parametrize('distance', [1, 2, 3])
@pytest.mark.parametrize('levels', [6, 1000])
def test_local_maxima_against_brute_force(distance, levels):
    score = np.random.default_rng(1).integers(-2, levels, (9, 12, 14)).astype(np.float64)
    found = seeds.local_maxima(score, distance)
    assert found.shape[1] == 3 and found.dtype == np.int64
    assert [tuple(v) for v in found] == brute_force_maxima(score, distance)


def test_local_maxima_of_small_and_constant_arrays_are_none():
    assert seeds.local_maxima(np.ones((3, 9, 9)), 3).shape == (0, 3)
    assert seeds.local_maxima(np.ones((9, 9, 9)), 1).shape == (0, 3)
    assert seeds.local_maxima(np.zeros((0, 9)), 1).shape == (0, 2)


def reference_peaks(image, mask=None, sampling=None):
    """The published recipe, step by step, with SciPy's exact distances."""
    grey = image.astype(np.float32)
    gradients = [ndimage.sobel(grey, axis) for axis in range(image.ndim)]
    magnitude = np.sqrt(sum(g * g for g in gradients))
    edges = magnitude > ndimage.gaussian_filter(magnitude, 49 / 6)
    if mask is not None:
        edges[mask] = True
    distance = ndimage.distance_transform_edt(~edges, sampling=sampling).astype(np.float32)
    noise = np.random.RandomState(42).random_sample(image.shape)
    return brute_force_maxima(distance + 1e-4 * noise, 3)


def test_peaks_follow_the_published_recipe():
    image = ndimage.gaussian_filter(grey_noise(), 1.5)
    found = [tuple(v) for v in seeds.propose_seeds(image)]
    assert len(found) > 5
    assert found == reference_peaks(image)
    assert found == sorted(found)


def test_mask_counts_as_an_edge():
    image = ndimage.gaussian_filter(grey_noise(), 1.5)
    mask = np.zeros(SHAPE, bool)
    mask[4:16, 6:20, 5:12] = True
    found = [tuple(v) for v in seeds.propose_seeds(image, mask=mask)]
    assert found == reference_peaks(image, mask=mask)
    assert found != reference_peaks(image)


def test_distances_are_measured_in_the_voxel_size():
    image = ndimage.gaussian_filter(grey_noise(), 1.5)
    found = [tuple(v) for v in seeds.propose_seeds(image, voxel_size_nm=(30, 6, 9))]
    assert found == reference_peaks(image, sampling=(5.0, 1.0, 1.5))
    assert found != reference_peaks(image)


def test_peak_lies_in_the_middle_of_each_tube():
    image = np.zeros((24, 30, 40), np.uint8)
    image[:, 5:16, 8:19] = 200
    image[:, 5:16, 24:35] = 200
    inside = seeds.propose_seeds(image)
    inside = inside[image[tuple(inside.T)] > 0]
    middle = [v for v in inside if abs(v[1] - 10) <= 1]
    assert {round((v[2] - 13) / 16) for v in middle} == {0, 1}
    assert all(abs((v[2] - 13 + 8) % 16 - 8) <= 1 for v in middle)


def test_peaks_2d_are_the_peaks_of_each_section():
    image = ndimage.gaussian_filter(grey_noise((5, 26, 31)), (0, 1.5, 1.5))
    found = [tuple(v) for v in seeds.propose_seeds(image, 'peaks_2d', voxel_size_nm=(30, 6, 9))]
    expected = [(z, *v) for z in range(5) for v in reference_peaks(image[z], sampling=(1.0, 1.5))]
    assert len(found) > 5
    assert found == expected


def test_peaks_2d_respects_the_mask_of_its_section():
    image = ndimage.gaussian_filter(grey_noise((3, 26, 31)), (0, 1.5, 1.5))
    mask = np.zeros(image.shape, bool)
    mask[1, 5:20, 4:20] = True
    found = [tuple(v) for v in seeds.propose_seeds(image, 'peaks_2d', mask=mask)]
    assert found == [(z, *v) for z in range(3) for v in reference_peaks(image[z], mask=mask[z])]


def test_image_without_edges_has_no_peaks():
    assert seeds.propose_seeds(np.full(SHAPE, 7, np.uint8)).shape == (0, 3)
    assert seeds.propose_seeds(np.full(SHAPE, 7, np.uint8), 'peaks_2d').shape == (0, 3)


@pytest.mark.parametrize('policy', seeds.POLICIES)
def test_seeds_are_the_same_every_time_and_in_any_memory_layout(policy):
    image = ndimage.gaussian_filter(grey_noise(), 1.5)
    first = seeds.propose_seeds(image, policy)
    np.testing.assert_array_equal(seeds.propose_seeds(image, policy), first)
    np.testing.assert_array_equal(seeds.propose_seeds(np.asfortranarray(image), policy), first)


def test_grids_interleave_and_cover():
    points = [tuple(v) for v in seeds.grid_points((17, 20, 33), step=16, offsets=(0, 8))]
    assert points[:3] == [(0, 0, 0), (0, 0, 16), (0, 0, 32)]
    assert points[12:] == [(8, 8, 8), (8, 8, 24)]
    assert len(set(points)) == len(points) == 14


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="ffn.seed_policy is 'max': must be one of peaks"):
        seeds.propose_seeds(grey_noise(), 'max')


def test_usable_seeds_fit_a_field_of_view():
    points = np.argwhere(np.ones((8, 12, 15), bool))
    usable = seeds.usable_seeds(points, (8, 12, 15), (3, 5, 7))
    assert usable.min(axis=0).tolist() == [1, 2, 3]
    assert usable.max(axis=0).tolist() == [6, 9, 11]
    assert len(usable) == 6 * 8 * 9


def test_usable_seeds_keep_their_order_and_may_be_none():
    points = np.array([[4, 4, 4], [0, 0, 0], [3, 5, 4]])
    assert seeds.usable_seeds(points, (9, 9, 9), (3, 3, 3)).tolist() == [[4, 4, 4], [3, 5, 4]]
    assert seeds.usable_seeds(np.empty((0, 3), int), (9, 9, 9), (3, 3, 3)).shape == (0, 3)


@pytest.mark.parametrize('points', [np.zeros((2, 2), int), np.zeros((2, 3)), np.arange(3)])
def test_points_that_are_no_voxels_are_refused(points):
    with pytest.raises(ValueError, match='seed_points has shape'):
        seeds.usable_seeds(points, (9, 9, 9), (3, 3, 3))


def test_reverse_origins_seed_a_second_pass_backwards():
    image = oracle.tissue()
    first = flood_fill(image, oracle.predict, oracle.FOV_SHAPE, oracle.DELTAS, oracle.CONFIG)
    backwards = seeds.reverse_origins(first.objects)
    assert len(first.objects) > 3
    assert backwards.tolist() == first.objects['seed'][::-1].tolist()
    # The record may have been sorted in between.
    shuffled = first.objects[np.random.default_rng(0).permutation(len(first.objects))]
    np.testing.assert_array_equal(seeds.reverse_origins(shuffled), backwards)

    second = flood_fill(
        image,
        oracle.predict,
        oracle.FOV_SHAPE,
        oracle.DELTAS,
        dataclasses.replace(oracle.CONFIG, seed_policy='peaks'),
        seed_points=backwards,
    )
    # The oracle never merges, so both passes find the same objects, in opposite orders.
    assert second.objects['voxels'].tolist() == first.objects['voxels'][::-1].tolist()
    np.testing.assert_array_equal(second.labels > 0, first.labels > 0)
