"""Flat fields: a known vignette is found, whatever the order of its tiles."""

import dataclasses
import itertools

import numpy as np
import pytest

from h01_beam.imaging.illumination import (
    FlatFieldConfig,
    FlatFieldSums,
    cell_means,
    correct,
    estimate_flat_field,
)
from tests.acquisition.images import tissue

SHAPE = (250, 330)  # Not whole cells.
CONFIG = FlatFieldConfig(cell=16, min_tiles=20)


def vignette(strength=0.3):
    y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    field = 1 - strength * ((y[:, None] - 0.2) ** 2 + x[None, :] ** 2) / 2
    return field / field.mean()


def plain_tiles(count):
    """Parts of larger images of tissue, all different, from 60 to 180."""
    made = []
    for seed in range(-(-count // 12)):
        large = tissue(seed, shape=(1000, 1320))
        for y, x in itertools.product(range(0, 750, 250), range(0, 1320, 330)):
            made.append(large[y : y + 250, x : x + 330])
    return [np.clip(40 + 0.55 * m.astype(float), 0, 255) for m in made[:count]]


def lit(tile, field):
    return np.clip(np.rint(tile * field), 0, 255).astype(np.uint8)


def gather(images, masks=None, config=CONFIG):
    sums = FlatFieldSums.empty(SHAPE, config)
    for n, image in enumerate(images):
        sums = sums.add(image, np.ones(SHAPE, bool) if masks is None else masks[n], config)
    return sums


@pytest.fixture(scope='module')
def tiles():
    return plain_tiles(60)


def test_a_known_vignette_is_found_and_taken_away(tiles):
    field = vignette()
    images = [lit(t, field) for t in tiles]
    found = estimate_flat_field(gather(images), CONFIG)
    assert not found.neutral and found.tiles == 60
    assert np.isclose(found.gain.mean(), 1)
    error = found.pixels() / field - 1
    assert np.abs(error).max() < 0.02 and error.std() < 0.007
    fixed = correct(images[0], found)
    assert np.abs(fixed - tiles[0]).max() < 5 and np.abs(fixed - tiles[0]).mean() < 1.2


def test_an_inverted_detector_is_dark_where_much_light_is(tiles):
    field = vignette()
    config = dataclasses.replace(CONFIG, zero_level=255)
    images = [(255 - lit(t, field)).astype(np.uint8) for t in tiles]
    found = estimate_flat_field(gather(images, config=config), config)
    assert np.abs(found.pixels() / field - 1).max() < 0.02
    assert np.abs(correct(images[3], found) - (255 - tiles[3])).mean() < 1.2


def test_the_order_of_tiles_and_merges_does_not_matter(tiles):
    images = [lit(t, vignette()) for t in tiles[:24]]
    whole = gather(images)
    parts = [gather(images[n::5]) for n in range(5)]
    merged = parts[3].merge(parts[0]).merge(parts[4].merge(parts[1])).merge(parts[2])
    np.testing.assert_array_equal(whole.total, merged.total)
    np.testing.assert_array_equal(whole.count, merged.count)
    gains = [estimate_flat_field(s, CONFIG).gain for s in (whole, merged)]
    assert gains[0].tobytes() == gains[1].tobytes()


def test_dirt_and_tiles_with_little_tissue_do_no_harm(tiles):
    field = vignette()
    images = [lit(t, field) for t in tiles]
    masks = [np.ones(SHAPE, bool) for _ in images]
    for n in range(0, 60, 6):
        images[n][:, 120:] = 230
        masks[n][:, 120:] = False
    for n in range(60):
        images[n][100:120, 200:220] = 10  # Always there: on the detector.
    sums = gather(images, masks)
    assert (sums.tiles, sums.skipped) == (50, 10)
    error = estimate_flat_field(sums, CONFIG).pixels() / field - 1
    assert np.abs(error).max() < 0.025 and error.std() < 0.008


def test_cells_that_no_tile_shows_follow_from_the_others(tiles):
    field = vignette()
    mask = np.ones(SHAPE, bool)
    mask[:40, :60] = False
    sums = gather([lit(t, field) for t in tiles], [mask] * 60)
    assert (sums.count[:2, :3] == 0).all()
    assert np.abs(estimate_flat_field(sums, CONFIG).pixels() / field - 1).max() < 0.05


def test_too_few_tiles_leave_images_as_they_are(tiles):
    found = estimate_flat_field(gather([lit(t, vignette()) for t in tiles[:19]]), CONFIG)
    assert found.neutral and found.tiles == 19 and (found.gain == 1).all()
    image = lit(tiles[0], vignette())
    np.testing.assert_array_equal(correct(image, found), image)


def test_gain_and_offset_are_applied_before_rounding(tiles):
    found = estimate_flat_field(gather([lit(t, vignette()) for t in tiles]), CONFIG)
    image = lit(tiles[0], vignette())
    fixed = correct(image, found, 1.25, -20.0)
    exact = np.clip(1.25 * image / found.pixels() - 20, 0, 255)
    assert np.abs(fixed - exact).max() <= 0.501


def test_cell_means_are_of_the_middle_half():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 20), dtype=np.uint8)
    mask = rng.random((24, 20)) < 0.8
    means, there = cell_means(image, mask, 8)
    assert means.shape == (3, 3) and there[:, :2].all()
    values = np.sort(image[8:16, 8:16][mask[8:16, 8:16]])
    low = len(values) // 4
    assert np.isclose(means[1, 1], values[low : len(values) - low].mean())


def test_sums_of_other_tiles_are_refused():
    sums = FlatFieldSums.empty(SHAPE, CONFIG)
    with pytest.raises(ValueError, match='must have the shape'):
        sums.add(np.zeros((10, 10), np.uint8), np.ones((10, 10), bool), CONFIG)
    with pytest.raises(ValueError, match='do not merge'):
        sums.merge(FlatFieldSums.empty(SHAPE, FlatFieldConfig(cell=32)))
    with pytest.raises(ValueError, match='must be'):
        correct(np.zeros((10, 10), np.uint8), estimate_flat_field(sums, CONFIG))


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('cell', 3),
        ('zero_level', 300),
        ('min_tissue', 0),
        ('min_tiles', 0),
        ('degree', 9),
        ('tolerance', float('nan')),
    ],
)
def test_bad_configs_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf'flat_field\.{field} is {value}'):
        FlatFieldConfig(**{field: value})
