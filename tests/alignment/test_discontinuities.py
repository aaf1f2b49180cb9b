"""Folds and tears: found where they are, nowhere else, and of use to the mesh."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from h01_beam.alignment.bands import find_dark_bands
from h01_beam.alignment.discontinuities import (
    DiscontinuityConfig,
    cut_sheets,
    find_discontinuities,
)
from h01_beam.alignment.mesh import Link, MeshConfig, relax

CONFIG = DiscontinuityConfig()
STRIDE = 16.0
SHAPE = (36, 44)


def line(angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The normal; distance from a line amid the mesh, and along it, in nodes."""
    y, x = np.indices(SHAPE)
    normal = np.array([np.sin(angle), np.cos(angle)])
    y, x = y - 17.6, x - 21.4
    return normal, normal[0] * y + normal[1] * x, normal[1] * y - normal[0] * x


def smooth_warp(seed: int, strain: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.indices(SHAPE)
    flow = np.zeros((2, *SHAPE))
    for _ in range(6):
        wave, turn, phase = 2 * np.pi / rng.uniform(12, 24), *rng.uniform(0, 6.28, 2)
        size = rng.normal(size=(2, 1, 1))
        flow += size * np.sin(wave * (np.cos(turn) * x + np.sin(turn) * y) + phase)
    steepest = max(np.abs(np.diff(flow, axis=a)).max() for a in (1, 2))
    return flow * strain * STRIDE / steepest


def spoil(flow: np.ndarray, seed: int) -> np.ndarray:
    """Noise, isolated outliers, holes."""
    rng = np.random.default_rng(seed)
    result = flow + 0.4 * rng.normal(size=flow.shape)
    bad = rng.random(SHAPE) < 0.01
    result[:, bad] += rng.uniform(-30, 30, (2, int(bad.sum())))
    result[:, rng.random(SHAPE) < 0.02] = np.nan
    return result.astype(np.float32)


def plain_image(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = tuple(int(n * STRIDE) for n in SHAPE)
    texture = ndimage.gaussian_filter(rng.normal(size=size), 3)
    image = np.clip(140 + 25 * texture / texture.std(), 1, 255).astype(np.uint8)
    return image, np.ones(size, bool)


def distance_in_pixels(angle: float) -> np.ndarray:
    y, x = np.indices([int(n * STRIDE) for n in SHAPE])
    return np.sin(angle) * (y - 17.6 * STRIDE) + np.cos(angle) * (x - 21.4 * STRIDE)


def find(flow, image=None, mask=None, config=CONFIG):
    if image is None:
        image, mask = plain_image()
    weights = np.ones((*flow.shape[:-3], *SHAPE), np.float32)
    return find_discontinuities(flow, weights, image, mask, STRIDE, config)


def share_found(found, across, inside=True) -> float:
    """Of the edges that cross the line, those cut within a node of it."""
    hits = total = 0
    for cut, a, b in (
        (found.cut_y, np.s_[:-1], np.s_[1:]),
        (found.cut_x, np.s_[:, :-1], np.s_[:, 1:]),
    ):
        crossing = (across[a] * across[b] < 0) & (np.ones(SHAPE, bool) & inside)[a]
        hits += (ndimage.binary_dilation(cut, np.ones((3, 3))) & crossing).sum()
        total += crossing.sum()
    return hits / total


def farthest_cut(found, across) -> float:
    places = [across[:-1][found.cut_y], across[:, :-1][found.cut_x]]
    return float(np.abs(np.concatenate(places)).max(initial=0))


@pytest.mark.parametrize('seed', range(2))
def test_steep_smooth_warps_and_outliers_are_not_cut(seed):
    found = find(spoil(smooth_warp(seed), seed))
    assert found.kinds == () and not found.cut_y.any() and not found.cut_x.any()
    assert found.mask.all() and not found.pieces.any()


@pytest.mark.parametrize('angle', [0.0, 0.8, 1.4])
def test_a_jump_is_found_all_along(angle):
    normal, across, _ = line(angle)
    jump = 4.0 if angle < 1 else -6.0
    flow = smooth_warp(3) + jump / 2 * np.sign(across) * normal[:, None, None]
    found = find(spoil(flow, 5))
    assert share_found(found, across) > 0.9
    assert farthest_cut(found, across) < 2.5
    assert set(found.kinds) == {'fold' if jump > 0 else 'tear'}


def test_a_line_may_end_within_the_section():
    normal, across, along = line(0.35)
    # A dislocation: 5 px between its ends, smooth around them.
    turn = np.arctan2(across, along - 5) - np.arctan2(across, along + 5)
    flow = smooth_warp(4) + 5.0 * turn / (2 * np.pi) * normal[:, None, None]
    found = find(spoil(flow, 6))
    assert share_found(found, across, np.abs(along) < 5) > 0.9
    assert farthest_cut(found, across) < 2.5
    assert farthest_cut(found, along) < 8


def test_what_one_of_two_flows_sees_is_not_this_section_s():
    normal, across, _ = line(0.35)
    step = np.sign(across) * normal[:, None, None]
    flows = [spoil(smooth_warp(n) + (5.0 if n == 1 else 0.0) * step, n) for n in range(2)]
    assert find(flows[1]).kinds == ('fold',)
    assert find(np.stack(flows)).kinds == ()
    both = [spoil(smooth_warp(n) + 5.0 * step, n) for n in range(2)]
    assert share_found(find(np.stack(both)), across) > 0.9


def test_a_fold_with_its_band_and_missing_flow():
    normal, across, _ = line(0.35)
    flow = spoil(smooth_warp(5) + 4.0 * np.sign(across) * normal[:, None, None], 7)
    flow[:, np.abs(across) < 1.1] = np.nan
    image, mask = plain_image()
    band = np.abs(distance_in_pixels(0.35)) < 3
    image[band] = image[band] // 6
    found = find(flow, image, mask)
    assert set(found.kinds) == {'fold'}
    assert share_found(found, across) > 0.9
    assert found.mask[band].mean() < 0.1
    assert found.mask[np.abs(distance_in_pixels(0.35)) > 30].all()
    assert find_dark_bands(image, mask, STRIDE, CONFIG.darkness)[band].mean() > 0.9


def test_a_tear_with_its_gap():
    normal, across, _ = line(1.4)
    flow = spoil(smooth_warp(6) - 5.0 * np.sign(across) * normal[:, None, None], 8)
    flow[:, np.abs(across) < 0.6] = np.nan
    image, mask = plain_image()
    gap = np.abs(distance_in_pixels(1.4)) < 5
    image[gap], mask[gap] = 0, False
    found = find(flow, image, mask)
    assert set(found.kinds) == {'tear'}
    assert share_found(found, across) > 0.9
    assert found.mask[np.abs(distance_in_pixels(1.4)) < 6].mean() < 0.1


def test_the_cut_lets_both_sides_follow_their_own_flow():
    normal, across, _ = line(0.0)
    smooth = smooth_warp(7, strain=0.03)
    flow = smooth + 10.0 * np.sign(across) * normal[:, None, None]
    seen = flow + 0.3 * np.random.default_rng(9).normal(size=flow.shape)
    seen[:, np.abs(across) < 1] = np.nan
    found = find(seen.astype(np.float32))
    # The section is the second of its link, so that its vectors are the flow.
    link = Link(0, 1, seen.astype(np.float32), np.ones(SHAPE, np.float32))
    config = MeshConfig(stiffness=1.0, outlier_nm=100.0, tolerance=1e-4)
    rest = {
        'pixel_nm': 4.0, 'start': np.zeros((2, 2, *SHAPE)), 'frozen': np.array([True, False]),
    }  # fmt: skip
    cut, _ = relax((2, *SHAPE), [link], STRIDE, config, sheets=cut_sheets((2, *SHAPE), {1: found}), **rest)  # fmt: skip
    whole, _ = relax((2, *SHAPE), [link], STRIDE, config, **rest)
    inner = np.s_[:, 3:-3]
    beside = (np.abs(across) > 1) & (np.abs(across) < 2)
    wrong, stretched = (
        np.sqrt(((v[1] - flow) ** 2).sum(axis=0))[inner[1:]][beside[inner[1:]]]
        for v in (cut, whole)
    )
    print(f'beside the cut {wrong.max():.2f} px, without it {stretched.mean():.2f} px')
    assert beside.any() and wrong.max() < 1
    assert stretched.mean() > 2.5


def test_what_does_not_fit_is_refused():
    flow = np.zeros((2, *SHAPE), np.float32)
    image, mask = plain_image()
    with pytest.raises(ValueError, match='vectors have shape'):
        find_discontinuities(flow, np.ones((3, 3), np.float32), image, mask, STRIDE, CONFIG)
    with pytest.raises(ValueError, match='image has shape'):
        find(flow, image, mask[1:])
    with pytest.raises(ValueError, match='discontinuities.min_jump is 0'):
        dataclasses.replace(CONFIG, min_jump=0)


def test_without_flow_or_tissue_there_is_nothing():
    flow = np.full((2, *SHAPE), np.nan, np.float32)
    image, mask = plain_image()
    assert find(flow, image, np.zeros_like(mask)).kinds == ()
