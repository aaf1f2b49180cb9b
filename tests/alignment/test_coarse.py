"""Rough alignment: rotated, mirrored, unrelated and disconnected sections."""

import cv2
import numpy as np
import pytest

from h01_beam.alignment.coarse.features import (
    CoarseConfig,
    Features,
    Match,
    detect_features,
    match_sections,
    place_sections,
)

SHAPE = (300, 360)
CENTRE = ((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2)
CONFIG = CoarseConfig()


def tissue(seed: int) -> np.ndarray:
    """Rings and blobs, larger than a section."""
    rng = np.random.default_rng(seed)
    size = (2 * SHAPE[0], 2 * SHAPE[1])
    image = np.full(size, 170, np.uint8)
    for _ in range(700):
        y, x = (int(rng.integers(n)) for n in size)
        axes = tuple(int(v) for v in rng.integers(6, 30, 2))
        cv2.ellipse(
            image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, int(rng.integers(120, 220)), -1
        )
        cv2.ellipse(image, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 50, 2)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def turned(
    angle: float, shift=(0.0, 0.0), scale: float = 1.0, mirrored: bool = False
) -> np.ndarray:
    """The (2, 3) map, raw -> tissue, of a section that was picked up in some way; y and x."""
    a = np.deg2rad(angle)
    linear = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    if mirrored:
        linear = linear @ np.diag([1.0, -1.0])
    middle = np.array(CENTRE)
    where = np.array([SHAPE[0], SHAPE[1]]) + shift
    return np.concatenate([linear, (where - linear @ middle)[:, None]], axis=1)


def section(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """What lies under a section: (h, w) uint8."""
    xy = where[::-1][:, [1, 0, 2]]
    return cv2.warpAffine(image, xy, SHAPE[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def features_of(images) -> list[Features]:
    return [detect_features(i, np.ones(SHAPE, np.bool_), CONFIG) for i in images]


def all_matches(features) -> list[Match]:
    found = []
    for b in range(len(features)):
        for a in range(max(0, b - CONFIG.neighbours), b):
            match = match_sections(b, a, features[b], features[a], CONFIG)
            if match is not None:
                found.append(match)
    return found


def spread(affines, truths) -> float:
    """Largest distance in pixels between where sections put the tissue they share, one to the next."""
    y, x = np.meshgrid(np.linspace(150, 450, 7), np.linspace(180, 540, 7))
    tissue_points = np.stack([y.ravel(), x.ravel()])
    put = []
    for affine, truth in zip(affines, truths, strict=True):
        linear = np.linalg.inv(truth[:, :2])
        raw = linear @ (tissue_points - truth[:, 2:])
        put.append(affine[:, :2] @ raw + affine[:, 2:])
    steps = np.diff(np.stack(put), axis=0)
    return float(np.sqrt((steps**2).sum(axis=1)).max())


def test_sections_turned_by_any_angle_find_together():
    truths = [
        turned(angle, shift, scale)
        for angle, shift, scale in [
            (0, (0, 0), 1.0), (180, (5, -12), 1.02), (75, (-9, 20), 0.98), (-120, (0, 8), 1.0),
        ]
    ]  # fmt: skip
    image = tissue(1)
    matches = all_matches(features_of([section(image, t) for t in truths]))
    assert len(matches) == 6 and not any(m.flipped for m in matches)
    placement = place_sections(4, matches, CENTRE, CONFIG)
    assert (placement.group == 0).all()
    assert spread(placement.affines, truths) < 3
    assert placement.misfit.max() < 1
    # Areas stay as they are on average.
    areas = np.linalg.det(placement.affines[:, :, :2])
    assert abs(np.log(areas).mean()) < 0.01


def test_a_section_picked_up_upside_down_is_turned_over():
    truths = [turned(0), turned(20, mirrored=True), turned(-15, (6, 3))]
    image = tissue(2)
    matches = all_matches(features_of([section(image, t) for t in truths]))
    assert {(m.first, m.second): m.flipped for m in matches} == {
        (1, 0): True, (2, 0): False, (2, 1): True,
    }  # fmt: skip
    placement = place_sections(3, matches, CENTRE, CONFIG)
    assert spread(placement.affines, truths) < 3
    signs = np.sign(np.linalg.det(placement.affines[:, :, :2]))
    assert signs[1] != signs[0] == signs[2]


def test_unrelated_sections_do_not_match():
    a, b = features_of([section(tissue(3), turned(0)), section(tissue(4), turned(0))])
    assert match_sections(0, 1, a, b, CONFIG) is None


def test_an_empty_section_has_no_features():
    blank = np.full(SHAPE, 128, np.uint8)
    features = detect_features(blank, np.ones(SHAPE, np.bool_), CONFIG)
    assert features.points.shape == (0, 2)
    image = section(tissue(5), turned(0))
    masked = detect_features(image, np.zeros(SHAPE, np.bool_), CONFIG)
    assert len(masked.points) == 0
    (seen,) = features_of([image])
    assert match_sections(0, 1, seen, masked, CONFIG) is None


def test_features_keep_off_the_border_of_the_tissue():
    mask = np.zeros(SHAPE, np.bool_)
    mask[40:200, 50:250] = True
    points = detect_features(section(tissue(6), turned(0)), mask, CONFIG).points
    assert len(points) > 50
    assert points[:, 0].min() >= 43 and points[:, 0].max() <= 196
    assert points[:, 1].min() >= 53 and points[:, 1].max() <= 246


def test_sections_that_nothing_ties_together_are_told():
    rng = np.random.default_rng(7)
    points = rng.uniform(0, 300, (40, 2))
    matches = [Match(1, 0, points, points + 5.0), Match(4, 3, points, points)]
    placement = place_sections(6, matches, CENTRE, CONFIG)
    assert placement.group.tolist() == [0, 0, -1, 3, 3, -1]
    np.testing.assert_array_equal(placement.affines[2], np.eye(2, 3))
    one, other = placement.affines[1], placement.affines[0]
    at = np.array(CENTRE)
    moved = (one[:, :2] @ at + one[:, 2]) - (other[:, :2] @ at + other[:, 2])
    np.testing.assert_allclose(moved, 5.0, atol=0.1)


def test_a_wrong_match_loses_its_pull():
    rng = np.random.default_rng(8)
    points = rng.uniform(0, 300, (60, 2))
    good = [Match(b, a, points, points) for b in range(1, 5) for a in range(max(0, b - 2), b)]
    wrong = Match(4, 0, points, points + [80.0, -60.0])
    placement = place_sections(5, [*good, wrong], CENTRE, CONFIG)
    assert placement.misfit[:-1].max() < 1.0 and placement.misfit[-1] > 90


def test_without_matches_sections_lie_as_they_are():
    placement = place_sections(3, [], CENTRE, CONFIG)
    assert (placement.group == -1).all()
    np.testing.assert_array_equal(placement.affines, np.tile(np.eye(2, 3), (3, 1, 1)))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('max_features', 0), ('neighbours', 0), ('min_matches', 3), ('tolerance', 0.0),
        ('rigidity', 0.0), ('max_ratio', 1.0), ('contrast_threshold', 0.0),
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f'coarse.{name} is {value}'):
        CoarseConfig(**{name: value})
