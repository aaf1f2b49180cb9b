"""Contrast: blocks have the bytes of the whole; sections become alike, by rising tables."""

import numpy as np
import pytest

from h01_beam.imaging.contrast import (
    ClaheConfig,
    MatchConfig,
    count_levels,
    equalize,
    level_table,
    match_levels,
    measure_levels,
    smooth_levels,
    table_of_section,
)
from tests.acquisition.images import tissue

CONFIG = ClaheConfig(cell=32)
MATCH = MatchConfig()


def section(shape=(211, 307)):
    """A section with a slope of contrast and a hole in its mask."""
    slope = np.clip(np.linspace(0, 1.2, shape[1]), 0.25, 1)
    image = (60 + slope * (tissue(1, shape=shape).astype(float) - 60)).clip(0, 255).astype(np.uint8)
    mask = np.ones(shape, bool)
    mask[40:130, 90:200] = False
    mask[:, -9:] = False
    return image, mask


def blocked(image, mask, origin, block, config):
    """Equalizes block by block, each read with the halo, less where the section ends."""
    made = np.full(image.shape, 77, np.uint8)
    count = 0
    for y in range(0, image.shape[0], block[0]):
        for x in range(0, image.shape[1], block[1]):
            core = [slice(s, min(s + b, n)) for s, b, n in zip((y, x), block, image.shape)]
            read = tuple(
                slice(max(0, c.start - config.halo), min(n, c.stop + config.halo))
                for c, n in zip(core, image.shape)
            )
            made[tuple(core)] = equalize(
                image[read],
                mask[read],
                tuple(o + r.start for o, r in zip(origin, read)),
                tuple(o + c.start for o, c in zip(origin, core)),
                tuple(c.stop - c.start for c in core),
                config,
            )
            count += 1
    assert count > 1
    return made


@pytest.mark.parametrize('origin', [(0, 0), (-75, 1003), (13, -500)])
@pytest.mark.parametrize('block', [(64, 50), (37, 211), (17, 307)])
def test_blocks_have_the_bytes_of_the_whole(origin, block):
    image, mask = section()
    whole = equalize(image, mask, origin, origin, image.shape, CONFIG)
    assert (whole != image).any()
    np.testing.assert_array_equal(blocked(image, mask, origin, block, CONFIG), whole)


def test_the_halo_is_needed_and_enough():
    image, mask = section()
    args = ((0, 0), (100, 210), (40, 40), CONFIG)
    core = equalize(image, np.ones_like(mask), *args)
    reach = np.zeros_like(mask)
    reach[100 - CONFIG.halo : 140 + CONFIG.halo, 210 - CONFIG.halo : 250 + CONFIG.halo] = True
    other = np.where(reach, image, 255 - image)
    np.testing.assert_array_equal(equalize(other, np.ones_like(mask), *args), core)


def test_contrast_becomes_even_and_masked_pixels_stay():
    image, mask = section()
    even = equalize(image, mask, (0, 0), (0, 0), image.shape, CONFIG)
    np.testing.assert_array_equal(even[~mask], image[~mask])
    left, right = np.s_[130:, :60], np.s_[130:, 230:290]
    assert image[right].std() / image[left].std() > 2
    assert even[right].std() / even[left].std() < 1.5
    assert even[left].std() > 1.5 * image[left].std()


def test_what_the_mask_hides_does_not_count():
    image, mask = section()
    soiled = np.where(mask, image, 255)
    a, b = (equalize(i, mask, (0, 0), (0, 0), image.shape, CONFIG) for i in (image, soiled))
    np.testing.assert_array_equal(a[mask], b[mask])
    nothing = np.zeros_like(mask)
    same = equalize(image, nothing, (0, 0), (0, 0), image.shape, CONFIG)
    np.testing.assert_array_equal(same, image)


def test_a_lower_clip_changes_less_and_what_is_even_stays():
    image, mask = section()
    changes = []
    for clip in (1, 2, 4, 50):
        config = ClaheConfig(cell=32, clip=clip)
        even = equalize(image, mask, (0, 0), (0, 0), image.shape, config)
        changes.append(np.abs(even.astype(int) - image)[mask].mean())
    assert (np.diff(changes) > 0).all() and changes[0] < 15
    # Of equally many pixels of each level, nothing is to be made even.
    ramp = np.random.default_rng(0).permutation(np.arange(256, dtype=np.uint8).repeat(256))
    ramp = ramp.reshape(256, 256)
    whole = ClaheConfig(cell=256)
    even = equalize(ramp, np.ones(ramp.shape, bool), (0, 0), (0, 0), ramp.shape, whole)
    assert np.abs(even.astype(int) - ramp).max() <= 1


def test_a_core_beyond_the_image_is_refused():
    image, mask = section()
    with pytest.raises(ValueError, match='halo of 48'):
        equalize(image, mask, (0, 0), (200, 0), (20, 20), CONFIG)


def sections(count=30):
    """Histograms of sections of one tissue with gains and offsets of their own."""
    rng = np.random.default_rng(5)
    base = 50 + 0.5 * tissue(2, shape=(200, 300)).astype(float)
    made = []
    for _ in range(count):
        gain, offset = np.exp(rng.normal(0, 0.1)), rng.normal(0, 6)
        made.append(np.clip(np.rint(gain * base + offset), 0, 255).astype(np.uint8))
    return made


def counts(images):
    return [count_levels(i, np.ones(i.shape, bool)) for i in images]


def tables_of(images):
    """The tables of all sections, each from those in its window."""
    levels = {z: measure_levels(h, MATCH) for z, h in enumerate(counts(images))}
    return [table_of_section(levels, z, MATCH) for z in levels]


def test_sections_become_alike():
    images = sections()
    tables = tables_of(images)
    full = np.ones(images[0].shape, bool)
    matched = [match_levels(i, full, t) for i, t in zip(images, tables)]
    # The reference itself may drift, slowly: neighbours must agree.
    for quantile in (5, 50, 95):
        before, after = (
            np.abs(np.diff([np.percentile(i, quantile) for i in x])) for x in (images, matched)
        )
        assert before.mean() > 5 and after.mean() < 1.5 and after.max() <= 3


def test_tables_never_fall_and_a_wild_section_does_not_draw_its_neighbours():
    images = sections()
    alone = tables_of(images)
    images[10] = (180 + images[10] // 4).astype(np.uint8)
    tables = tables_of(images)
    assert (np.diff(np.stack(tables).astype(int), axis=1) >= 0).all()
    near = np.percentile(images[9], (5, 95)).astype(int)
    np.testing.assert_allclose(tables[9][near], alone[9][near].astype(int), atol=3)
    # It is itself made like them.
    matched = tables[10][images[10]]
    other = tables[9][images[9]]
    np.testing.assert_allclose(
        np.percentile(matched, (10, 50, 90)), np.percentile(other, (10, 50, 90)), atol=3
    )


def test_levels_are_quantiles_and_histograms_add_up():
    image, mask = section()
    whole = count_levels(image, mask)
    parts = count_levels(image[:100], mask[:100]) + count_levels(image[100:], mask[100:])
    np.testing.assert_array_equal(whole, parts)
    found = measure_levels(whole, MATCH)
    np.testing.assert_allclose(found, np.quantile(image[mask], MATCH.quantiles), atol=1)
    assert (np.diff(found) > 0).all()


def test_sections_without_pixels_stay_and_gaps_are_bridged():
    levels = np.tile([60.0, 90, 110, 120, 140, 170, 200], (400, 1))
    levels[50:350] = np.nan
    reference = smooth_levels(levels, MATCH)
    np.testing.assert_allclose(reference, np.tile(levels[0], (400, 1)))
    np.testing.assert_array_equal(level_table(levels[100], reference[100]), np.arange(256))
    assert np.isnan(smooth_levels(levels[50:60], MATCH)).all()
    assert np.isnan(measure_levels(np.zeros(256, np.int64), MATCH)).all()


@pytest.mark.parametrize('seed', range(20))
def test_tables_rise_for_any_levels(seed):
    rng = np.random.default_rng(seed)
    own, wanted = np.sort(rng.integers(0, 256, (2, 7)), axis=1).astype(float)
    if seed == 0:
        own[:] = 90
    table = level_table(own, wanted)
    assert (np.diff(table.astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ('config', 'field', 'value'),
    [
        (ClaheConfig, 'cell', 33),
        (ClaheConfig, 'cell', 4),
        (ClaheConfig, 'clip', 0.5),
        (MatchConfig, 'quantiles', (0.5, 0.2)),
        (MatchConfig, 'sigma', 0),
        (MatchConfig, 'tolerance', -1),
        (MatchConfig, 'min_pixels', 0),
    ],
)
def test_bad_configs_name_the_field(config, field, value):
    with pytest.raises(ValueError, match=rf'(clahe|match)\.{field} is '):
        config(**{field: value})
