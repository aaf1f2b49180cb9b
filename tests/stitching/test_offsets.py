"""Offsets of pairs: found to parts of a pixel wherever the stage erred to, or not claimed."""

import numpy as np
import pytest

from h01_beam.stitching.offsets import OffsetConfig, measure_offset
from tests.stitching.tissue import cut, section

SHAPE = (200, 260)
WHOLE = np.ones(SHAPE, np.bool_)
CONFIG = OffsetConfig(search=40)
SECTION = section((520, 640))


def measure(a, b, expected, in_a=WHOLE, in_b=WHOLE, config=CONFIG):
    return measure_offset(a, b, in_a, in_b, expected, config)


@pytest.mark.parametrize('offset', [(3.0, 215.0), (-11.4, 222.3), (168.6, -9.5), (-130.0, -180.0)])
@pytest.mark.parametrize('error', [(0, 0), (31, -28)])
def test_finds_an_offset_to_parts_of_a_pixel(offset, error):
    start = (250.0, 300.0)
    a = cut(SECTION, start, SHAPE)
    b = cut(SECTION, (start[0] + offset[0], start[1] + offset[1]), SHAPE)
    found = measure(a, b, (offset[0] + error[0], offset[1] + error[1]))
    assert found.found
    np.testing.assert_allclose(found.offset, offset, atol=0.25)


def test_neither_gain_nor_noise_matter():
    rng = np.random.default_rng(1)
    a = cut(SECTION, (250, 300), SHAPE)
    b = cut(SECTION, (255, 520), SHAPE) * 0.5 + 70 + 12 * rng.standard_normal(SHAPE)
    found = measure(a, np.clip(b, 0, 255).astype(np.uint8), (0, 215))
    assert found.found
    np.testing.assert_allclose(found.offset, (5, 220), atol=0.3)


def test_masked_pixels_count_for_nothing():
    a, b = cut(SECTION, (250, 300), SHAPE), cut(SECTION, (255, 500), SHAPE)
    mask = WHOLE.copy()
    mask[60:110, 180:] = False
    dirty = np.where(mask, a, 255).astype(np.uint8)
    b_mask = WHOLE.copy()
    b_mask[:, :8] = False
    b_dirty = np.where(b_mask, b, 0).astype(np.uint8)
    found = measure(dirty, b_dirty, (0, 190), mask, b_mask)
    assert found.found
    np.testing.assert_allclose(found.offset, (5, 200), atol=0.1)


def test_strangers_are_not_matched():
    a, b = cut(SECTION, (250, 300), SHAPE), cut(section((300, 300), seed=9), (20, 20), SHAPE)
    found = measure(a, b, (0, 215))
    assert not found.found and found.offset == (0, 215)


def test_tiles_that_cannot_meet_are_not_matched():
    a = cut(SECTION, (250, 300), SHAPE)
    assert not measure(a, a, (0, 400)).found
    # Blank tiles have nothing to be told apart by.
    assert not measure(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8), (0, 215)).found


@pytest.mark.parametrize(
    ('name', 'value'),
    [('search', 0), ('downsample', 0), ('min_peak', 1.0), ('min_overlap', 0.0),
     ('min_sharpness', -1.0), ('contrast_sigma', 0.0)],
)  # fmt: skip
def test_bad_configurations_name_the_field(name, value):
    with pytest.raises(ValueError, match=f'offsets.{name} is'):
        OffsetConfig(**{name: value})
