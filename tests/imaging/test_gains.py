"""Gains of tiles: neighbours are made alike; a wrong pair is told and does no harm."""

import numpy as np
import pytest

from h01_beam.imaging.gains import (
    GainConfig,
    apply_gain,
    measure_overlap_levels,
    solve_gains,
)
from tests.acquisition.images import tissue

CONFIG = GainConfig()
ROWS, COLUMNS, STEP, SIDE = 3, 4, (170, 190), (200, 230)


@pytest.fixture(scope='module')
def montage():
    """Places, true gains and offsets, images as they are and as they should be, and pairs."""
    rng = np.random.default_rng(3)
    n = ROWS * COLUMNS
    shape = (STEP[0] * (ROWS - 1) + SIDE[0], STEP[1] * (COLUMNS - 1) + SIDE[1])
    section = 45 + 0.5 * tissue(0, noise=0, shape=shape).astype(float)
    gain, offset = np.exp(rng.normal(0, 0.08, n)), rng.normal(0, 5, n)
    index = np.arange(n).reshape(ROWS, COLUMNS)
    places = np.array([(y * STEP[0], x * STEP[1]) for y, x in np.ndindex(ROWS, COLUMNS)])
    true = [section[y : y + SIDE[0], x : x + SIDE[1]] for y, x in places]
    images = [
        np.clip(np.rint((t + rng.normal(0, 3, SIDE)) * g + o), 0, 255).astype(np.uint8)
        for t, g, o in zip(true, gain, offset)
    ]
    pairs = np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1),
        ]
    )
    return places, gain, offset, images, true, pairs


def measured(montage):
    places, _, _, images, _, pairs = montage
    full = np.ones(SIDE, bool)
    found = [
        measure_overlap_levels(images[a], images[b], full, full, tuple(places[b] - places[a]))
        for a, b in pairs
    ]
    return np.array([f.levels for f in found]), np.array([f.pixels for f in found])


def relative_gain(found, true):
    """What is left of the gains, relative to each other."""
    rest = np.log(found.gain * true)
    return rest - rest.mean()


def test_gains_and_offsets_are_found(montage):
    _, gain, offset, images, true, pairs = montage
    levels, pixels = measured(montage)
    found = solve_gains(len(gain), pairs, levels, pixels, CONFIG)
    assert not found.outlier.any()
    assert np.abs(relative_gain(found, gain)).max() < 0.01
    # Black and white of all tiles agree, after one map for all of them.
    for grey in (60.0, 120.0):
        level = found.gain * (gain * grey + offset) + found.offset
        assert np.ptp(level) < 1.5
    # As a whole, contrast and brightness stay.
    assert abs(np.log(found.gain).mean()) < 1e-6
    before = np.mean([i.mean() for i in images])
    after = np.mean(
        [apply_gain(i, g, o).mean() for i, g, o in zip(images, found.gain, found.offset)]
    )
    assert abs(before - after) < 1


def test_overlaps_agree_afterwards(montage):
    places, gain, _, images, _, pairs = montage
    found = solve_gains(len(gain), pairs, *measured(montage), CONFIG)
    fixed = [apply_gain(i, g, o) for i, g, o in zip(images, found.gain, found.offset)]
    after, _ = measured((places, None, None, fixed, None, pairs))
    before, _ = measured(montage)
    assert np.abs(before[:, 0, 0] - before[:, 1, 0]).max() > 8
    assert np.abs(after[:, 0, 0] - after[:, 1, 0]).max() < 0.6
    assert np.abs(np.log(after[:, 0, 1] / after[:, 1, 1])).max() < 0.03


@pytest.mark.parametrize('column', (0, 1))
def test_a_wrong_pair_is_told_and_does_no_harm(montage, column):
    _, gain, _, _, _, pairs = montage
    levels, pixels = measured(montage)
    clean = solve_gains(len(gain), pairs, levels, pixels, CONFIG)
    levels[4, 1, column] *= 1.8
    found = solve_gains(len(gain), pairs, levels, pixels, CONFIG)
    assert np.flatnonzero(found.outlier).tolist() == [4]
    np.testing.assert_allclose(found.gain, clean.gain, rtol=0.004)
    np.testing.assert_allclose(found.offset, clean.offset, atol=0.6)


def test_what_no_pair_ties_down_stays():
    levels = np.array([[[100.0, 20.0], [120.0, 25.0]], [[90.0, 20.0], [140.0, 30.0]]])
    pairs = np.array([[0, 1], [2, 3]])
    found = solve_gains(5, pairs, levels, np.array([5000, 20]), CONFIG)
    assert found.gain[2:].tolist() == [1, 1, 1] and found.offset[2:].tolist() == [0, 0, 0]
    assert np.isclose(found.gain[0] / found.gain[1], 1.25, rtol=1e-3)
    assert np.isnan(found.level_misfit).tolist() == [False, True]
    assert not found.outlier.any()
    empty = solve_gains(2, np.empty((0, 2), int), np.empty((0, 2, 2)), np.empty(0, int), CONFIG)
    assert empty.gain.tolist() == [1, 1] and empty.offset.tolist() == [0, 0]


def test_flat_overlaps_tell_the_offset_but_not_the_gain():
    levels = np.array([[[100.0, 1.0], [120.0, 3.0]]])
    found = solve_gains(2, np.array([[0, 1]]), levels, np.array([9000]), CONFIG)
    assert found.gain.tolist() == [1, 1] and np.isnan(found.gain_misfit).all()
    np.testing.assert_allclose(found.offset, [10, -10], atol=0.01)


def test_a_ring_that_does_not_close_is_shared_out():
    pairs = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
    levels = np.full((4, 2, 2), (100.0, 20.0))
    levels[2, 1, 0] += 16
    found = solve_gains(4, pairs, levels, np.full(4, 9000), CONFIG)
    assert not found.outlier.any()
    np.testing.assert_allclose(np.abs(found.level_misfit), 4, atol=0.1)


def test_levels_are_of_what_both_show():
    rng = np.random.default_rng(0)
    first = rng.integers(50, 200, (60, 90), dtype=np.uint8)
    second = np.zeros((50, 70), np.uint8)
    second[:40, :30] = first[20:, 60:] // 2
    full = np.ones_like(first, bool)
    hidden = np.ones_like(second, bool)
    hidden[:5] = False
    found = measure_overlap_levels(first, second, full, hidden, (19.6, 60.3))
    assert found.pixels == 35 * 30
    np.testing.assert_allclose(found.levels[0] / 2, found.levels[1], rtol=0.01)
    assert measure_overlap_levels(first, second, full, hidden, (200.0, 0.0)).pixels == 0
    assert measure_overlap_levels(first, second, full, ~hidden, (30.0, 60.0)).pixels == 5 * 30


def test_arrays_that_do_not_fit_are_refused():
    levels = np.ones((1, 2, 2))
    with pytest.raises(ValueError, match='must be'):
        solve_gains(3, np.array([[0, 1]]), levels[0], np.array([1]), CONFIG)
    with pytest.raises(ValueError, match='there are 3'):
        solve_gains(3, np.array([[0, 3]]), levels, np.array([1]), CONFIG)
    with pytest.raises(ValueError, match='finite'):
        solve_gains(3, np.array([[0, 1]]), levels * np.nan, np.array([1]), CONFIG)


@pytest.mark.parametrize(
    'field', ['min_pixels', 'min_spread', 'gain_tolerance', 'level_tolerance', 'anchor']
)
def test_bad_configs_name_the_field(field):
    with pytest.raises(ValueError, match=rf'gains\.{field} is 0'):
        GainConfig(**{field: 0})
