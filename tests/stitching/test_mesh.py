"""Bent tiles: what two tiles share meets, and tiles bend no more than they must."""

import numpy as np
import pytest

from h01_beam.registration.maps import warp
from h01_beam.stitching.mesh import ElasticConfig, Seam, bend_tiles, match_seam, node_shape
from h01_beam.stitching.render import forward_map, inverse_map
from tests.stitching.tissue import cut, section

SHAPE = (240, 300)
CONFIG = ElasticConfig(stride=40)


def bent_pair():
    """Two tiles that overlap by 100 columns; the second is bent by a smooth field."""
    image = section((400, 640))
    first = cut(image, (60, 40), SHAPE)
    y, x = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing='ij')
    bend = np.stack([3 * np.sin(y / 70.0), 2.5 * np.cos(y / 90.0)])
    import cv2

    second = cv2.remap(
        image, (x + 240 + bend[1]).astype(np.float32), (y + 64 + bend[0]).astype(np.float32),
        cv2.INTER_CUBIC,
    )  # fmt: skip
    return first, np.clip(np.rint(second), 0, 255).astype(np.uint8), bend


def test_seams_are_matched_and_tiles_bent_until_they_meet():
    first, second, bend = bent_pair()
    whole = np.ones(SHAPE, np.bool_)
    seam = match_seam(first, second, whole, whole, (5.0, 201.0), CONFIG)
    assert len(seam) > 20
    y, x = np.rint(seam.second_points.T).astype(int)
    expected = seam.second_points + bend[:, y, x].T + [4.0, 200.0]
    assert np.median(np.abs(seam.first_points - expected)) < 0.15
    places = np.array([[0.0, 0.0], [5.0, 201.0]])
    vectors, misfit = bend_tiles(places, [SHAPE, SHAPE], [seam], CONFIG)
    assert np.median(misfit) < 0.1
    views = []
    for image, place, vector in zip((first, second), places, vectors):
        inverse = inverse_map(forward_map(place, vector, CONFIG.stride))
        canvas = np.full((560, 840), np.nan, np.float32)
        seen = warp(image.astype(np.float32), inverse, outside=np.nan)
        y0, x0 = (int(v) + 140 for v in inverse.start)
        canvas[y0 : y0 + seen.shape[0], x0 : x0 + seen.shape[1]] = seen
        views.append(canvas)
    both = np.isfinite(views[0]) & np.isfinite(views[1])
    assert both.sum() > 15_000
    assert np.corrcoef(views[0][both], views[1][both])[0, 1] > 0.99


def test_what_agrees_already_is_not_bent():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 200, (40, 2))
    seam = Seam(0, 1, points + [0, 90], points, np.ones(40))
    places = np.array([[0.0, 0.0], [0.0, 90.0]])
    vectors, misfit = bend_tiles(places, [SHAPE, SHAPE], [seam], CONFIG)
    assert max(np.abs(v).max() for v in vectors) < 1e-9 and misfit.max() < 1e-9


def test_single_wrong_matches_do_no_harm():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 200, (60, 2))
    first = points + [0, 90]
    first[7] += [30, -20]
    places = np.array([[0.0, 0.0], [0.0, 90.0]])
    seam = Seam(0, 1, first, points, np.ones(60))
    vectors, misfit = bend_tiles(places, [SHAPE, SHAPE], [seam], CONFIG)
    assert misfit[7] > 25 and np.delete(misfit, 7).max() < 0.5


def test_fixed_tiles_stay():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 200, (60, 2))
    seam = Seam(0, 1, points + [2, 90], points, np.ones(60))
    places = np.array([[0.0, 0.0], [0.0, 90.0]])
    start = [np.zeros((2, *node_shape(SHAPE, 40)))] * 2
    fixed = np.array([True, False])
    vectors, misfit = bend_tiles(places, [SHAPE, SHAPE], [seam], CONFIG, fixed, start)
    assert not vectors[0].any()
    np.testing.assert_allclose(vectors[1].mean(axis=(1, 2)), [2, 0], atol=0.05)
    assert misfit.max() < 0.1


def test_narrow_overlaps_give_no_matches():
    tile = cut(section((300, 400)), (0, 0), SHAPE)
    whole = np.ones(SHAPE, np.bool_)
    assert len(match_seam(tile, tile, whole, whole, (0, 285), CONFIG)) == 0
    vectors, misfit = bend_tiles(np.zeros((2, 2)), [SHAPE, SHAPE], [], CONFIG)
    assert not vectors[0].any() and len(misfit) == 0


@pytest.mark.parametrize('name', ['stride', 'rounds', 'stiffness', 'bending', 'tolerance'])
def test_bad_configurations_name_the_field(name):
    with pytest.raises(ValueError, match=f'elastic.{name} is 0'):
        ElasticConfig(**{name: 0})
