"""Thumbnails looked up in each other: any turn, either hand, masks; strangers are not claimed."""

import cv2
import numpy as np
import pytest

from h01_beam.alignment.coarse.features import CoarseConfig, place_sections
from h01_beam.alignment.coarse.lookup import LookupConfig, look_up
from h01_beam.alignment.coarse.pairs import Thumbnail, as_match, find_match

SHAPE = (150, 190)
CENTRE = ((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2)
CONFIG = LookupConfig(side=64, fine_side=128)
# Fewer tries where either hand is not the question.
UPRIGHT = LookupConfig(side=64, fine_side=128, allow_mirrored=False)


def tissue(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = (2 * SHAPE[0], 2 * SHAPE[1])
    image = sum(
        cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), s) * s
        for s in (2.0, 4.0, 8.0)
    )
    return 128 + 40 * image / image.std()


def turned(angle: float, shift=(0.0, 0.0), mirrored=False, stretch=(1.0, 1.0)) -> np.ndarray:
    """The (2, 3) map, raw -> tissue, y and x."""
    a = np.deg2rad(angle)
    linear = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.diag(stretch)
    if mirrored:
        linear = linear @ np.diag([1.0, -1.0])
    return np.c_[linear, np.array(SHAPE) + shift - linear @ CENTRE]


def section(image, where, noise=0.0, gain=1.0, seed=0) -> np.ndarray:
    xy = where[::-1][:, [1, 0, 2]]
    seen = cv2.warpAffine(image, xy, SHAPE[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    seen = gain * (seen - 128) + 128 + noise * np.random.default_rng(seed).standard_normal(SHAPE)
    return np.clip(seen, 1, 255).astype(np.uint8)


def error(affine, first, second) -> float:
    """Largest distance in pixels between where a map puts tissue and where it is."""
    points = np.stack(np.meshgrid([30.0, 75.0, 120.0], [40.0, 95.0, 150.0])).reshape(2, -1)
    there = first[:, :2] @ points + first[:, 2:]
    true = np.linalg.inv(second[:, :2]) @ (there - second[:, 2:])
    found = affine[:, :2] @ points + affine[:, 2:]
    return float(np.sqrt(((found - true) ** 2).sum(axis=0)).max())


def whole(shape=SHAPE) -> np.ndarray:
    return np.ones(shape, np.bool_)


@pytest.mark.parametrize(
    ('angle', 'shift', 'mirrored'),
    [
        (0, (0, 0), False), (180, (12, -20), False), (73, (-25, 8), False), (-128, (3, 30), False),
        (0, (0, 0), True), (157, (-9, 14), True),
    ],
)  # fmt: skip
def test_any_turn_of_either_hand_is_found(angle, shift, mirrored):
    image = tissue(1)
    first, second = turned(20), turned(angle, shift, mirrored)
    # Other contrast, and noise as strong as tissue.
    a, b = section(image, first, 20, seed=1), section(image, second, 20, gain=0.6, seed=2)
    found = look_up(a, b, whole(), whole(), CONFIG)
    assert found is not None and found.flipped == mirrored
    assert error(found.affine, first, second) < 2


def test_the_map_follows_stretch():
    image = tissue(2)
    first, second = turned(0), turned(40, (5, 5), stretch=(1.05, 0.97))
    a, b = section(image, first, 10, seed=3), section(image, second, 10, seed=4)
    found = look_up(a, b, whole(), whole(), UPRIGHT)
    assert found is not None and error(found.affine, first, second) < 1.5
    rigid = LookupConfig(side=64, fine_side=128, allow_mirrored=False, max_stretch=1e-6)
    rough = look_up(a, b, whole(), whole(), rigid)
    assert rough is not None and error(rough.affine, first, second) > 2


def test_other_scales_are_tried_where_asked_for():
    image = tissue(3)
    first, second = turned(0), turned(-65, stretch=(1.25, 1.25))
    a, b = section(image, first), section(image, second)
    wide = LookupConfig(side=64, fine_side=128, allow_mirrored=False, scales=(0.8, 1.0, 1.25))
    found = look_up(a, b, whole(), whole(), wide)
    assert found is not None and error(found.affine, first, second) < 2


def test_masks_and_other_shapes():
    image = tissue(4)
    first, second = turned(0), turned(110, (10, -10))
    a, b = section(image, first, 10, seed=5), section(image, second, 10, seed=6)
    in_a, in_b = whole(), whole()
    in_a[:, :60] = False
    in_b[90:] = False
    # What is masked has the strongest structure of all.
    a[:, :60] = 255 * (np.indices((SHAPE[0], 60)).sum(axis=0) // 8 % 2)
    b[90:] = 255 * (np.indices((SHAPE[0] - 90, SHAPE[1])).sum(axis=0) // 8 % 2)
    found = look_up(a, b[:130], in_a, in_b[:130], UPRIGHT)
    assert found is not None and error(found.affine, first, second) < 2
    match = as_match(0, 1, in_a, in_b[:130], found)
    assert match is not None and match.by == 'correlation' and len(match) == 25
    assert (match.first_points[:, 1] >= 59.5).all() and (match.second_points[:, 0] < 90).all()


def test_strangers_are_not_claimed():
    for seed in range(3):
        a, b = section(tissue(10 + seed), turned(0)), section(tissue(20 + seed), turned(0))
        assert look_up(a, b, whole(), whole(), CONFIG) is None
    blank = np.full(SHAPE, 128, np.uint8)
    assert look_up(a, blank, whole(), whole(), UPRIGHT) is None
    assert look_up(blank, blank, whole(), whole(), UPRIGHT) is None
    assert look_up(a, a, whole(), ~whole(), UPRIGHT) is None


def test_correlation_takes_over_where_features_fail():
    image = tissue(5)
    config = CoarseConfig(allow_mirrored=False)
    truths = [turned(0), turned(95, (6, -4)), turned(60)]
    noise = [0, 0, 150]
    thumbnails = [
        Thumbnail.of(section(image, t, n, seed=k), whole(), config)
        for k, (t, n) in enumerate(zip(truths, noise))
    ]
    matches = [
        find_match(b, a, thumbnails[b], thumbnails[a], config, CONFIG)
        for a, b in [(0, 1), (0, 2), (1, 2)]
    ]
    assert [m.by for m in matches] == ['features', 'correlation', 'correlation']
    assert matches[0].similarity > matches[1].similarity > 0
    placement = place_sections(3, matches, CENTRE, config)
    assert (placement.group == 0).all()
    for n in (1, 2):
        one, other = (np.r_[placement.affines[k], [[0, 0, 1]]] for k in (n, 0))
        assert error((np.linalg.inv(other) @ one)[:2], truths[n], truths[0]) < 3


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match='second_mask has shape'):
        look_up(np.ones(SHAPE, np.uint8), np.ones(SHAPE, np.uint8), whole(), whole((9, 9)), CONFIG)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('side', 8), ('fine_side', 32), ('step_deg', 0.0), ('scales', ()), ('scales', (0.0,)),
        ('max_shift', 1.0), ('min_overlap', 0.0), ('min_peak', 1.5), ('max_stretch', 0.0),
        ('contrast_sigma', 0.0), ('candidates', 0), ('min_sharpness', 0.0),
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f'lookup.{name} is '):
        LookupConfig(**{name: value})
