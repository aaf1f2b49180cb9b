"""Montages: the same bytes however they are cut, and the tissue that the tiles show."""

import numpy as np

from h01_beam.stitching.render import (
    PlacedTile,
    edge_weights,
    forward_map,
    inverse_map,
    render_montage,
)
from tests.stitching.tissue import cut, section

SHAPE = (120, 150)
SECTION = section((400, 460))


def tiles():
    rng = np.random.default_rng(0)
    made = []
    for y in (20, 120):
        for x in (30, 155, 280):
            place = np.array([y, x]) + rng.uniform(-4, 4, 2)
            vectors = rng.normal(0, 0.0, (2, 4, 5))
            inverse = inverse_map(forward_map(place, vectors, 40.0))
            made.append(PlacedTile(cut(SECTION, place, SHAPE), np.ones(SHAPE, np.bool_), inverse))
    return made


def test_boxes_equal_cuts_of_the_whole():
    placed = tiles()
    image, there = render_montage(placed, (0, 0), (260, 440))
    assert there.mean() > 0.7
    for start, shape in (((0, 0), (130, 200)), ((37, 151), (99, 123)), ((200, 400), (60, 40))):
        part, part_there = render_montage(placed, start, shape)
        at = tuple(slice(s, s + n) for s, n in zip(start, shape))
        np.testing.assert_array_equal(part, image[at])
        np.testing.assert_array_equal(part_there, there[at])


def test_the_montage_shows_the_section():
    image, there = render_montage(tiles(), (0, 0), (260, 440))
    expected = SECTION[:260, :440]
    assert np.abs(image - expected)[there].mean() < 2.5
    assert not image[~there].any()


def test_maps_of_tiles_invert():
    rng = np.random.default_rng(1)
    forward = forward_map(np.array([30.5, -12.0]), rng.normal(0, 1.5, (2, 4, 5)), 40.0)
    inverse = inverse_map(forward, 8.0)
    points = np.stack([rng.uniform(5, 110, 200), rng.uniform(5, 140, 200)])
    back = inverse(forward(points))
    assert np.isfinite(back).all()
    assert np.abs(back - points).max() < 0.5 and np.abs(back - points).mean() < 0.05


def test_tiles_fade_towards_their_edges():
    mask = np.ones((100, 120), np.bool_)
    mask[:, 100:] = False
    weights = edge_weights(mask)
    assert not weights[:, 100:].any() and (weights[mask] > 0).all()
    assert weights[50, 50] == 1 and weights[50, 3] < 0.2 and weights[50, 97] < 0.2


def test_nothing_is_nothing():
    image, there = render_montage([], (5, 5), (8, 9))
    assert image.shape == (8, 9) and not image.any() and not there.any()
