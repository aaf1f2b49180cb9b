"""Frames: what shares a frame of the stage stays together, what does not starts near 0."""

import numpy as np
import pytest

from h01_beam.acquisition.tables import Acquisition, make_sections
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.frames import Frames, _group_extents, find_origins
from h01_beam.stitching.offsets import OffsetConfig
from tests.acquisition.images import PIXEL_NM, SHAPE, grid

MARGIN = 50


def acquire(offsets, tiles=None, extra=()):
    """Sections of 3 x 3 tiles, each moved by its offset (y, x), pixels."""
    numbers = range(len(offsets))
    tiles = grid(sections=numbers, shape=(3, 3)) if tiles is None else tiles
    moved = np.array(offsets, float)[tiles['section']] * PIXEL_NM
    tiles = {**tiles, 'y_nm': tiles['y_nm'] + moved[:, 0], 'x_nm': tiles['x_nm'] + moved[:, 1]}
    return Acquisition(tiles, make_sections([*numbers, *extra], 30.0), PIXEL_NM)


def places(acquisition):
    """First tile of each section in its frame, and the frames."""
    frames = Frames.of(acquisition, MARGIN, 2)
    found = []
    for (_, tiles), (y, x) in zip(acquisition.by_section(), find_origins(acquisition, MARGIN)):
        origin = {'y': np.array([y]), 'x': np.array([x])}
        at = frames.stage_places(tiles, origin)
        if len(at):
            end = at.max(axis=0) + SHAPE
            assert (at >= MARGIN).all() and (end + MARGIN <= frames.shape).all()
            found.append(at.min(axis=0))
    return np.array(found), frames


def test_small_differences_between_sections_are_kept():
    found, frames = places(acquire([(2000, -700), (2003, -695), (1996, -711)]))
    np.testing.assert_allclose(found - found[0], [(0, 0), (3, 5), (-4, -11)], atol=1e-6)
    # Whole multiples of the margin: the next section is not likely to move these.
    assert frames.shape[0] % MARGIN == 0 and frames.shape[1] % MARGIN == 0


def test_a_section_without_its_first_tiles_is_not_shifted():
    tiles = grid(sections=(0, 1, 2), shape=(3, 3))
    lost = (tiles['section'] == 1) & ((tiles['beam'] == 0) | (tiles['field'] == 0))
    tiles = {name: column[~lost] for name, column in tiles.items()}
    found, _ = places(acquire([(0, 0), (0, 0), (0, 0)], tiles))
    np.testing.assert_allclose(found[1] - found[0], (0.9 * SHAPE[0], 0.9 * SHAPE[1]), atol=1e-6)
    np.testing.assert_allclose(found[2], found[0])


def test_sections_that_begin_far_away_start_near_0():
    alone = places(acquire([(0, 0)]))[1].shape
    found, frames = places(acquire([(0, 0), (900_000, 40_000), (5, 3), (-70_000, 123_456)]))
    np.testing.assert_allclose(found[2] - found[0], (5, 3), atol=1e-6)
    assert (found < 2 * MARGIN + 10).all()
    assert (np.array(frames.shape) <= np.array(alone) + MARGIN).all()


def test_every_session_has_an_origin_of_its_own():
    """Both keep what their sections differ by, however many there are of either."""
    away = (600_000, -20_000)
    offsets = [(0, 0), (4, 8), away, (away[0] + 7, away[1] - 9), (away[0], away[1] + 2)]
    found, _ = places(acquire(offsets))
    np.testing.assert_allclose(found[1] - found[0], (4, 8), atol=1e-6)
    np.testing.assert_allclose(found[3:] - found[2], [(7, -9), (0, 2)], atol=1e-6)


def test_origins_do_not_depend_on_later_sections_alike():
    offsets = [(2030, -720), (2033, -715)]
    before = find_origins(acquire(offsets), MARGIN)
    for more in ((2026, -725), (2049, -701)):
        after = find_origins(acquire([*offsets, more]), MARGIN)
        np.testing.assert_array_equal(after[:2], before)
    assert (
        Frames.of(acquire(offsets), MARGIN, 2).shape == places(acquire([*offsets, more]))[1].shape
    )


def test_a_section_without_tiles_has_an_origin_of_0():
    acquisition = acquire([(300, 300), (300, 300)], extra=(7,))
    assert find_origins(acquisition, MARGIN)[2].tolist() == [0, 0]
    assert Frames.of(acquisition, MARGIN, 2).sections == 3


def test_the_margin_is_never_below_the_search():
    assert StitchConfig(offsets=OffsetConfig(search=40)).frame_margin == 80
    assert StitchConfig(offsets=OffsetConfig(search=40), margin=40).frame_margin == 40
    with pytest.raises(ValueError, match=r'stitch\.margin is 39: must be .*search, 40, or more'):
        StitchConfig(offsets=OffsetConfig(search=40), margin=39)


@pytest.mark.parametrize('seed', range(5))
def test_later_sections_leave_the_groups_of_earlier_ones(seed):
    rng = np.random.default_rng(seed)
    starts = rng.choice([0, 5000, 90_000], (12, 2)) + rng.uniform(-60, 60, (12, 2))
    ends = starts + rng.uniform(1800, 2200, (12, 2))
    starts[3], ends[3] = np.nan, np.nan
    whole = _group_extents(starts, ends)
    assert whole[3] == -1 and (np.delete(whole, 3) >= 0).all() and whole.max() > 1
    for count in (4, 8):
        np.testing.assert_array_equal(_group_extents(starts[:count], ends[:count]), whole[:count])


def test_a_small_first_section_does_not_join_what_lies_apart():
    starts = np.array([[900.0, 900.0], [0.0, 0.0], [800.0, 800.0], [3.0, -4.0]])
    ends = starts + np.array([[100.0, 100.0], [1000.0, 1000.0], [1000.0, 1000.0], [1000.0, 990.0]])
    assert _group_extents(starts, ends).tolist() == [0, 0, 1, 0]
