"""Coordinate maps: directions, composition, inversion, gaps."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam.registration.maps import (
    CoordinateMap,
    compose,
    from_affine,
    grid_points,
    invert,
    resample,
    warp,
)

GRID = ((-40.0, -30.0), 8.0, (30, 34))


def smooth_map(seed: int, size: float = 6.0, grid=GRID) -> CoordinateMap:
    """An affine map with waves on it."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-0.2, 0.2)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.concatenate([matrix * rng.uniform(0.95, 1.05), rng.uniform(-9, 9, (2, 1))], axis=1)
    base = from_affine(matrix, *grid)
    y, x = base.nodes()
    waves = [np.sin(y / 40 + x / 70 + rng.uniform(0, 6)), np.sin(x / 50 - y / 60)]
    return CoordinateMap((base.vectors + size * np.stack(waves)).astype(np.float32), *grid[:2])


def test_an_affine_map_moves_points_by_its_matrix():
    matrix = np.array([[1.1, -0.2, 7.0], [0.3, 0.9, -4.0]])
    points = np.array([[3.0, 50.5], [-20.0, 11.25]])
    found = from_affine(matrix, *GRID)(points)
    np.testing.assert_allclose(found, matrix[:, :2] @ points + matrix[:, 2:], atol=1e-4)


def test_y_comes_first():
    shift = from_affine([[1, 0, 5], [0, 1, 0]], (0.0, 0.0), 4.0, (6, 9))
    image = np.arange(21 * 33, dtype=np.float32).reshape(21, 33)
    # The aligned image at q shows the raw one five rows further down.
    seen = warp(image, shift, outside=-1)
    assert seen.shape == (21, 33)
    np.testing.assert_array_equal(seen[:16], image[5:])
    assert (seen[16:] == -1).all()


@given(seed=st.integers(0, 2**16), other=st.integers(0, 2**16))
def test_composition_is_that_of_functions(seed, other):
    inner, outer = smooth_map(seed), smooth_map(other)
    both = compose(outer, inner)
    np.testing.assert_allclose(both.places(), outer(inner.places()), atol=1e-3)


@given(seed=st.integers(0, 2**16))
def test_inverse_and_map_cancel(seed):
    source = smooth_map(seed)
    inverse = invert(source, (-10.0, -5.0), 4.0, (30, 30))
    back = compose(source, inverse)
    known = np.isfinite(back.vectors[0])
    assert known.mean() > 0.6
    assert np.abs(back.vectors[:, known]).max() < 0.02
    # What is NaN is so because nothing of the map's domain lands there.
    landed = source.places().reshape(2, -1)
    for q in inverse.nodes()[:, ~known].T:
        assert np.hypot(*(landed - q[:, None])).min() > 0 and not inside(source, q)


def inside(source: CoordinateMap, q) -> bool:
    """Whether a place lies well within the outline that the map's border lands on."""
    p = source.places()
    outline = np.concatenate([p[:, 0], p[:, 1:, -1], p[:, -1, ::-1], p[:, ::-1, 0]], axis=1)
    return cv2.pointPolygonTest(outline.T.astype(np.float32), (float(q[0]), float(q[1])), True) > 1


def test_where_a_map_folds_it_has_no_inverse():
    source = from_affine(np.eye(2, 3), (0.0, 0.0), 4.0, (20, 20))
    vectors = source.vectors.copy()
    vectors[1, :, 10:] -= 24  # the right half lies over the left one
    inverse = invert(CoordinateMap(vectors, stride=4.0), (0.0, 0.0), 4.0, (20, 20))
    assert np.isnan(inverse.vectors).any()
    found = CoordinateMap(vectors, stride=4.0)(inverse.places())
    known = np.isfinite(found[0])
    np.testing.assert_allclose(found[:, known], inverse.nodes()[:, known], atol=0.02)


def test_gaps_stay_gaps():
    source = smooth_map(1)
    vectors = source.vectors.copy()
    vectors[:, 12, 13] = np.nan
    holed = CoordinateMap(vectors, *GRID[:2])
    y, x = holed.nodes()[:, 12, 13]
    assert np.isnan(holed([y + 1, x + 1])).all()
    # On the line of nodes beside it, and one node further, all is known.
    assert np.isfinite(holed([y + 8, x + 3])).all()
    assert np.isfinite(holed([y, x + 8])).all()
    composed = compose(from_affine(np.eye(2, 3), (-200.0, -200.0), 500.0, (3, 3)), holed)
    assert np.isnan(composed.vectors[0]).sum() == 1
    inverse = invert(holed, (0.0, 0.0), 4.0, (30, 30))
    assert np.isnan(inverse.vectors[0]).sum() > 1
    assert np.isnan(holed([np.nan, 1.0])).all()


def test_outside_of_the_grid_is_nowhere():
    source = from_affine(np.eye(2, 3), (10.0, 20.0), 5.0, (3, 4))
    assert np.isfinite(source([[10.0, 20.0], [20.0, 35.0]])).all()
    assert np.isnan(source([[9.9, 20.0], [20.2, 35.0]])[:, 0]).all()
    assert np.isnan(source([[15.0], [35.1]])).all()


def test_another_grid_holds_the_same_map():
    source = smooth_map(3)
    fine = resample(source, (-40.0, -30.0), 2.0, (100, 100))
    points = grid_points((0.0, 0.0), 3.0, (20, 20))
    np.testing.assert_allclose(fine(points), source(points), atol=0.02)


def test_warps_compose_as_maps_do():
    rng = np.random.default_rng(5)
    image = cv2.GaussianBlur(rng.normal(128, 60, (260, 260)).astype(np.float32), (0, 0), 4)
    a, b = smooth_map(6, size=2.0), smooth_map(7, size=2.0)
    b = resample(b, (30.0, 30.0), 8.0, (16, 16))
    first = warp(image, resample(a, (-40.0, -30.0), 1.0, (233, 265)), outside=np.nan)
    # `first` begins at the start of a's grid.
    shifted = CoordinateMap(b.vectors + np.float32([[[40]], [[30]]]), b.start, b.stride)
    twice = warp(first, shifted, outside=np.nan)
    once = warp(image, compose(a, b), outside=np.nan)
    known = np.isfinite(twice) & np.isfinite(once)
    assert known.mean() > 0.5
    assert np.abs(twice - once)[known].max() < 2.0


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'vectors': np.zeros((3, 4, 2), np.float32)}, r'shape \(3, 4, 2\): must be \(2, h, w\)'),
        ({'vectors': np.zeros((2, 4, 4))}, 'dtype float64: must be float32'),
        ({'vectors': np.zeros((2, 4, 4), np.float32), 'stride': 0.0}, 'stride is 0.0'),
    ],
)
def test_a_map_that_is_none_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        CoordinateMap(**fields)
