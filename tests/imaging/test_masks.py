"""Tissue masks: tissue is found, resin, tape, scratches and holes are not."""

import cv2
import numpy as np
import pytest

from h01_beam.geometry import BoundingBox
from h01_beam.imaging.masks import TissueConfig, estimate_noise, find_tissue, measure_texture
from h01_beam.testing.phantom import PhantomConfig, make_phantom

SHAPE = (360, 440)
CONFIG = TissueConfig()


@pytest.fixture(scope='module')
def tissue():
    """A downsampled section of phantom tissue, 32 nm per pixel."""
    config = PhantomConfig(voxel_size_nm=(33, 32, 32), seed=4)
    image = make_phantom(config, BoundingBox((0, 0, 0), (1, 180, 220))).image[0]
    return np.block([[image, image[:, ::-1]], [image[::-1], image[::-1, ::-1]]])


def scene(tissue, noise=4.0, seed=0):
    """Tissue in an ellipse, resin around it, tape to the right; and where tissue is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)
    inside = np.hypot((y - 180) / 150, (x - 170) / 140) < 1
    image = np.where(inside, tissue, 170 + 15 * np.sin(x / 90))
    tape = x > 360 + 10 * np.sin(y / 60)
    image = np.where(tape, 40 + 0.05 * y, image)
    image[50:55, :] = np.where(inside[50:55] | tape[50:55], image[50:55], 230)  # A scratch.
    image = image + rng.normal(0, noise, SHAPE)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), inside & ~tape


def agreement(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize('noise', (0.0, 2.0, 4.0, 8.0))
def test_tissue_is_found_among_resin_and_tape(tissue, noise):
    image, true = scene(tissue, noise)
    found = find_tissue(image, np.ones(SHAPE, bool), CONFIG)
    assert agreement(found, true) > 0.93
    depth = cv2.distanceTransform(true.astype(np.uint8), cv2.DIST_L2, 5)
    away = cv2.distanceTransform((~true).astype(np.uint8), cv2.DIST_L2, 5)
    assert found[depth > 16].all() and not found[away > 24].any()


def test_nothing_but_tissue_is_all_tissue(tissue):
    found = find_tissue(tissue, np.ones(SHAPE, bool), CONFIG)
    assert found.mean() > 0.99


@pytest.mark.parametrize('noise', (0.0, 3.0, 15.0))
def test_nothing_but_resin_is_no_tissue(noise):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = 140 + 0.1 * y - 0.05 * x + np.random.default_rng(0).normal(0, noise, SHAPE)
    found = find_tissue(np.rint(image).astype(np.uint8), np.ones(SHAPE, bool), CONFIG)
    assert not found.any()


def test_small_holes_are_filled_large_ones_and_what_is_not_valid_are_not(tissue):
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    noise = np.random.default_rng(1).normal(0, 3, SHAPE)
    image = tissue + noise
    vessel = np.hypot(y - 100, x - 100) < 40
    lumen = np.hypot(y - 220, x - 300) < 90
    image = np.where(vessel | lumen, 190 + noise, image).clip(0, 255).astype(np.uint8)
    valid = np.ones(SHAPE, bool)
    valid[:, :30] = False
    image[:, :30] = 0
    found = find_tissue(image, valid, CONFIG)
    assert not found[:, :30].any() and found[:, 34:60].all()
    assert found[vessel & valid].all() and not found[np.hypot(y - 220, x - 300) < 70].any()
    tight = find_tissue(image, valid, TissueConfig(max_hole=0))
    assert not tight[np.hypot(y - 100, x - 100) < 20].any()


def test_small_islands_are_dropped(tissue):
    image, true = scene(tissue)
    image[300:346, 382:428] = tissue[300:346, 382:428]
    valid = np.ones(SHAPE, bool)
    assert not find_tissue(image, valid, CONFIG)[300:346, 382:428].any()
    assert find_tissue(image, valid, TissueConfig(min_share=1e-3))[313:333, 395:415].all()


def test_noise_is_measured_where_the_image_is_smooth(tissue):
    image, _ = scene(tissue, noise=6.0)
    assert abs(estimate_noise(image, np.ones(SHAPE, bool)) / 6 - 1) < 0.15
    flat = np.full(SHAPE, 90, np.uint8)
    assert estimate_noise(flat, np.ones(SHAPE, bool)) == 1
    assert estimate_noise(flat, np.zeros(SHAPE, bool)) == 1


def test_noise_alone_has_the_texture_that_is_stated():
    image = np.random.default_rng(2).normal(128, 10, SHAPE).astype(np.uint8)
    share = measure_texture(image, np.ones(SHAPE, bool), TissueConfig(noise=10.0))
    assert 0.008 < share.mean() < 0.02


def test_shapes_must_agree():
    with pytest.raises(ValueError, match='valid has shape'):
        find_tissue(np.zeros((9, 9), np.uint8), np.ones((9, 8), bool), CONFIG)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('fine', 0),
        ('coarse', 0.5),
        ('threshold', 0),
        ('window', -1),
        ('density', 1),
        ('noise', 0),
        ('radius', -1),
        ('max_hole', -1),
        ('min_share', 0),
    ],
)
def test_bad_configs_name_the_field(field, value):
    with pytest.raises(ValueError, match=rf'tissue\.{field} is {value}'):
        TissueConfig(**{field: value})
