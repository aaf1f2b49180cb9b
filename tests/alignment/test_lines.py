"""Folds and tears in images of sections."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from h01_beam.alignment.elastic.damage import DAMAGE, HALO, FindDamage, cut_edges, join_parts
from h01_beam.alignment.elastic.lines import FOLD, TEAR, LineConfig, find_lines
from h01_beam.alignment.frames import Shifted
from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.tables import concatenate
from h01_beam.testing.noise import smooth_noise

SIDE, PIXEL = 900, 32.0
CONFIG = LineConfig()


@pytest.fixture(scope='module')
def tissue() -> np.ndarray:
    """Membranes, half as bright as the grainy rest, and dark round things."""
    at = np.arange(SIDE, dtype=np.float64)
    field = smooth_noise((np.zeros(1), at, at), (1.0, 14.0, 14.0), 5, 1)[0]
    things = smooth_noise((np.zeros(1), at, at), (1.0, 9.0, 9.0), 6, 1)[0]
    grey = np.where(np.abs(field) < 0.06, 80.0, 170.0)
    grey = np.where(things > np.quantile(things, 0.95), 60.0, grey)
    grains = smooth_noise((np.zeros(1), at, at), (1.0, 2.0, 2.0), 7, 1)[0]
    noise = np.random.default_rng(0).normal(0, 4, grey.shape)
    return np.clip(grey + 60 * grains + noise, 1, 255)


def line(angle: float, width: float) -> np.ndarray:
    """A band through the middle; degrees against x, pixels."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    a = np.deg2rad(angle)
    return np.abs(np.cos(a) * y - np.sin(a) * x) <= width / 2


def kinds_of(image: np.ndarray) -> set[int]:
    return set(np.unique(find_lines(image.astype(np.uint8), PIXEL, CONFIG)).tolist())


def test_tissue_alone_has_none(tissue):
    assert kinds_of(tissue) == {0}


@pytest.mark.parametrize(
    ('width', 'angle'),
    [(5, 0), (16, 37), *(pytest.param(*case, marks=pytest.mark.slow)
                         for case in ((5, 37), (5, 118), (16, 0), (16, 118)))],
)  # fmt: skip
def test_a_fold_is_dimmed_tissue(tissue, angle, width):
    band = line(angle, width)
    found = find_lines(np.where(band, 0.35 * tissue, tissue).astype(np.uint8), PIXEL, CONFIG)
    assert set(np.unique(found)) == {0, FOLD}
    inner = band.copy()
    inner[:120] = inner[-120:] = inner[:, :120] = inner[:, -120:] = False
    assert (found[inner] > 0).mean() > 0.8
    assert (found[~line(angle, 2.5 * width + 8)] > 0).mean() < 1e-3


def parts_of(image: np.ndarray) -> int:
    found = find_lines(image.astype(np.uint8), PIXEL, CONFIG)
    return cv2.connectedComponents((found > 0).astype(np.uint8))[0] - 1


def test_what_hides_a_piece_of_a_fold_does_not_make_it_two(tissue):
    image = np.where(line(37, 10), 0.35 * tissue, tissue)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    # A vessel, 1.9 um wide, between pieces of 10 um and more.
    image[np.hypot(y, x) < 30] = 205
    assert parts_of(image) == 1


@pytest.mark.parametrize(('angle', 'shift'), [(37, 60), (80, 0)])
def test_lines_on_another_course_are_others(tissue, angle, shift):
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    first, second = line(37, 10) & (x < -40), np.roll(line(angle, 10), shift, 0) & (x > 20)
    assert parts_of(np.where(first | second, 0.35 * tissue, tissue)) == 2


@pytest.mark.parametrize('grey', [40.0, 235.0])
def test_a_gap_has_no_texture(tissue, grey):
    noise = np.random.default_rng(1).normal(0, 1, tissue.shape)
    torn = np.where(line(71, 16), grey + noise, tissue)
    assert kinds_of(torn) == {0, TEAR}


def test_short_cracks_and_borders_are_none(tissue):
    short = line(20, 6)
    short[:, : SIDE // 2 - 40] = short[:, SIDE // 2 + 40 :] = False
    image = np.where(short, 0.35 * tissue, tissue)
    image[:, 700:] = 205  # Resin, from a straight border on.
    image[:200, :300] = 0  # A tile that is missing.
    assert kinds_of(image) == {0}


def test_edges_across_a_band_are_cut_once():
    y, x = np.mgrid[:160, :160]
    along_y, along_x = cut_edges(np.abs(y - 0.5 * x - 43) < 12, 16)
    assert along_y.sum(axis=0).tolist() == [1] * 10
    assert along_x.sum(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert not along_y[-1].any() and not along_x[:, -1].any()


def test_blocks_find_the_same_cuts_and_one_line():
    stride, nodes = 8, (48, 64)
    shape = (nodes[0] * stride, nodes[1] * stride)
    y, x = np.mgrid[: shape[0], : shape[1]]
    bands = np.where(np.abs(y - 0.3 * x - 122.7) < 6, TEAR, 0).astype(np.uint8)
    bounds = BoundingBox((0, 0, 0), (1, *nodes))

    def run(block_shape):
        sheets, parts = np.ones((2, *nodes), np.float32), []
        for block in BlockGrid(bounds, block_shape):
            region = Shifted(bounds, 0, 1, HALO)
            box = region(block)
            ys, xs = (slice(a * stride, b * stride)
                      for a, b in zip(box.start[1:], box.end[1:], strict=True))  # fmt: skip
            result = FindDamage(region, stride, 2)(bands[None, ys, xs], block)
            _, cy, cx = block.core.slices
            sheets[:, cy, cx] = result.arrays['sheets'][:, 0]
            if 'damage' in result.rows:
                parts.append(result.rows['damage'])
        return sheets, concatenate(parts, DAMAGE)

    whole, one = run((1, *nodes))
    cut, several = run((1, 16, 32))
    assert (whole == 0).sum() > 60 and np.array_equal(whole, cut)
    assert len(several['section']) > 2
    ((kind, length),) = join_parts(several, 0, 48)
    assert kind == 'tear' and length == pytest.approx(join_parts(one, 0, 48)[0][1], rel=0.02)


@pytest.mark.parametrize('name', ['contrast', 'min_length_nm', 'finest_nm', 'texture', 'levels'])
def test_bad_configurations_name_the_field(name):
    with pytest.raises(ValueError, match=f'lines.{name} is 0'):
        LineConfig(**{name: 0})
