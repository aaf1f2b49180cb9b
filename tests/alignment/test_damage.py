"""Folds and tears by blocks: the same as of the whole section, each told once."""

import numpy as np
import pytest

from h01_beam.alignment.discontinuities import DiscontinuityConfig, find_discontinuities
from h01_beam.alignment.elastic.blocks import CoarsenSheets, as_sheets
from h01_beam.alignment.elastic.damage import DAMAGE, HALO, FindDamage, join_parts
from h01_beam.alignment.elastic.regions import FinerNodes
from h01_beam.alignment.frames import Shifted
from h01_beam.alignment.mesh_levels import coarsen_sheets
from h01_beam.geometry import BlockGrid
from h01_beam.tables import concatenate
from tests.alignment.test_discontinuities import (
    SHAPE,
    STRIDE,
    line,
    plain_image,
    smooth_warp,
    spoil,
)
from tests.arrays import box

CONFIG = DiscontinuityConfig()
STEP = int(STRIDE)


def flows(jump, signs=(1, 1)):
    normal, across, _ = line(0.35)
    step = jump * np.sign(across) * normal[:, None, None]
    return [spoil(smooth_warp(n) + s * step, n) for n, s in enumerate(signs)]


def by_blocks(vectors, names, image):
    bounds = box((0, 0, 0), (1, *SHAPE))
    grid = BlockGrid(bounds, (1, 24, 24))
    assert len(grid) > 1
    sheets, parts = np.zeros((2, 1, *SHAPE), np.float32), []
    damage = np.zeros((1, *image.shape), np.uint8)
    region = Shifted(bounds, 0, 1, HALO)
    find = FindDamage(CONFIG, region, STEP, 1)
    for block in grid:
        y, x = region(block).slices[1:]
        given = {
            name: np.stack([*v, np.ones(SHAPE)]).astype(np.float32)[:, None, y, x]
            for name, v in zip(names, vectors)
        }
        pixels = Shifted(box((0, 0, 0), (1, *image.shape)), 0, STEP, HALO * STEP)(block)
        found = find(image[None][pixels.slices], block, **given)
        sheets[(slice(None), *block.core.slices)] = found.arrays['sheets']
        damage[block.core.scale_up((1, STEP, STEP)).slices] = found.arrays['damage']
        parts.append(found.rows.get('damage', DAMAGE.empty()))
    return sheets, damage[0], join_parts(concatenate(parts, DAMAGE), 0, 3 * STEP)


def test_blocks_find_what_the_whole_section_does():
    vectors = flows(5.0)
    image, mask = plain_image()
    sheets, _, lines = by_blocks(vectors, ('flow_1', 'flow_2'), image)
    one = find_discontinuities(
        np.stack(vectors), np.ones((2, *SHAPE), np.float32), image, mask, STRIDE, CONFIG
    )
    held = as_sheets(sheets)
    for cut, expected in ((held.along_y, one.cut_y), (held.along_x, one.cut_x)):
        assert expected.sum() > 10
        assert ((cut[0] == 0) != expected).sum() < 0.1 * expected.sum()
    assert [kind for kind, _ in lines] == ['fold']


def test_flow_from_later_sections_counts_with_its_sign_turned():
    image, _ = plain_image()
    _, _, lines = by_blocks(flows(5.0, (1, -1)), ('flow_1', 'later_1'), image)
    assert [kind for kind, _ in lines] == ['fold']
    _, _, lines = by_blocks(flows(5.0, (1, 1)), ('flow_1', 'later_1'), image)
    assert lines == []


@pytest.mark.parametrize('names', [('flow_1',), ('flow_1', 'flow_2')])
def test_what_one_flow_sees_is_not_told(names):
    image, _ = plain_image()
    sheets, damage, lines = by_blocks(flows(5.0, (1, 0))[: len(names)], names, image)
    assert sheets.all() and not damage.any() and lines == []


def test_dark_bands_of_folds_are_damage():
    normal, across, _ = line(0.35)
    image, _ = plain_image()
    y, x = np.indices(image.shape)
    band = np.abs(np.sin(0.35) * (y - 17.6 * STRIDE) + np.cos(0.35) * (x - 21.4 * STRIDE)) < 3
    image[band] = image[band] // 6
    _, damage, lines = by_blocks(flows(5.0), ('flow_1', 'flow_2'), image)
    assert [kind for kind, _ in lines] == ['fold']
    assert damage[band].mean() > 0.85 and damage[~band].mean() < 0.05


def test_sheets_coarsen_by_blocks_as_a_whole():
    rng = np.random.default_rng(0)
    fine = (rng.random((2, 1, 37, 42)) > 0.1).astype(np.float32)
    bounds = box((0, 0, 0), (1, 37, 42))
    expected = coarsen_sheets(as_sheets(fine), 2)
    found = np.zeros((2, 1, 19, 21), np.float32)
    for block in BlockGrid(box((0, 0, 0), (1, 19, 21)), (1, 8, 8)):
        part = fine[(slice(None), *FinerNodes(bounds, 2)(block).slices)]
        found[(slice(None), *block.core.slices)] = CoarsenSheets()(part, block).arrays['sheets']
    np.testing.assert_allclose(as_sheets(found).along_y, expected.along_y, atol=1e-6)
    np.testing.assert_allclose(as_sheets(found).along_x, expected.along_x, atol=1e-6)
