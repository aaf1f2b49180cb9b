"""Rough rendering: a block reads what its affine map shows of the montage, and depends on no more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from h01_beam.alignment.blocks import RenderRough
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.frames import AFFINES, PixelsOfRough, affine_of
from h01_beam.alignment.stage import build_rough
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid
from h01_beam.plan import BlockResult
from h01_beam.registration.maps import invert_affine
from h01_beam.volume import Volume, VolumeSpec
from tests.alignment.test_cells import affines as turned
from tests.arrays import box, read_all, run_pipeline, summaries
from tests.stitching.tissue import section

SIDE, BLOCK, FACTOR, MARGIN = 320, 64, 16, 32
BOUNDS = box((0, 0, 0), (2, SIDE, SIDE))
TISSUE = np.maximum(section((SIDE, SIDE), 5), 1).astype(np.uint8)[None]
CONFIG = AlignConfig(margin=MARGIN, rough_block=(BLOCK, BLOCK))


def affine_rows(angle, state='placed'):
    """Section 1, turned about the middle of the montage into that of the wider frame."""
    rows = turned(angle, (0.0, 0.0), state)
    middle = np.full(2, SIDE / 2)
    shift = middle + MARGIN - affine_of(rows, 1)[:, :2] @ middle
    return rows | {'y1': shift[:1], 'x1': shift[1:]}


def spec(folder, name, shape, chunk=(1, BLOCK, BLOCK)):
    return VolumeSpec(
        uri=f'{folder}/{name}|neuroglancer-precomputed:', voxel_size_nm=(30.0, 8.0, 8.0), dtype='uint8', shape=shape,
        chunk=chunk,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Paint:
    """A section of tissue; one block of it is darker."""

    darker: tuple[int, int, int] | None

    def __call__(self, block):
        part = TISSUE[(slice(0, 1), *block.core.slices[1:])]
        return part // 2 if block.index == self.darker else part


def render(folder, darker=None, config=CONFIG, angle=10.0):
    """Paints the montage by blocks, renders it, and returns what was done and the result."""
    montage = spec(folder, 'montage', BOUNDS.shape)
    small = -(-SIDE // FACTOR)
    tissue, made = Volume.create(spec(folder, 'tissue', (2, small, small), (1, small, small)))
    if made:
        tissue.write(tissue.bounds, np.ones(tissue.bounds.shape, np.uint8))
    by_section = BlockGrid(box((0, 0, 0), (2, 1, 1)), (1, 1, 1))

    def place(block):
        rows = affine_rows(angle) if block.index[0] else affine_rows(0, 'loose')
        return BlockResult(rows={'affines': rows | {'section': np.array([block.index[0]])}})

    def build(root, run):
        painted = root | MapBlocks(
            Paint(darker), stage='paint', grid=BlockGrid(BOUNDS, (1, BLOCK, BLOCK)), run=run,
            writes={'montage': montage}, config=darker,
        )  # fmt: skip
        placed = root | MapBlocks(
            place, stage='place', grid=by_section, run=run, table_writes={'affines': AFFINES},
            config=angle,
        )  # fmt: skip
        build_rough(root, montage, tissue.spec, None, FACTOR, config, run, [painted, placed])

    run = run_pipeline(folder / 'run', build)
    return summaries(run)['render_rough'], read_all(run.volume_uri('rough'))


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rough')
    return folder, *render(folder)


def test_blocks_do_not_show(rendered, tmp_path):
    _, summary, rough = rendered
    one = dataclasses.replace(CONFIG, rough_block=(384, 384))
    whole_summary, whole = render(tmp_path, config=one)
    assert (summary['blocks'], whole_summary['blocks']) == (2 * 6 * 6, 2)
    # Places are float32 from the corner of what a block reads: grey levels may round otherwise.
    np.testing.assert_array_equal(rough > 0, whole > 0)
    off = np.abs(rough.astype(int) - whole)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3
    assert not rough[0].any() and (rough[1] > 0).mean() > 0.6


def test_what_changes_far_away_runs_no_block_again(rendered):
    folder, _, rough = rendered
    darker = (1, 0, 0)
    summary, changed = render(folder, darker)
    shown, rows = PixelsOfRough(BOUNDS), affine_rows(10.0)
    changed_box = box((1, 0, 0), (1, BLOCK, BLOCK))
    blocks = [b for b in BlockGrid(box((0, 0, 0), rough.shape), (1, BLOCK, BLOCK)) if b.index[0]]
    boxes = {b: shown(b, rows) for b in blocks}
    near = [b for b, part in boxes.items() if part and part.intersection(changed_box)]
    assert 2 <= len(near) < 10
    assert summary['blocks_run'] == len(near)
    differing = [b for b in blocks if (changed != rough)[b.core.slices].any()]
    assert differing and set(differing) <= set(near)


@pytest.mark.parametrize('angle', [0, 10, 45, 170])
def test_a_block_reads_what_it_shows_and_no_more(angle):
    rows = affine_rows(angle)
    back = invert_affine(affine_of(rows, 1))
    shown = PixelsOfRough(BOUNDS)
    for block in BlockGrid(box((1, 0, 0), (1, 384, 384)), (1, BLOCK, BLOCK)):
        part = shown(block, rows)
        corners = [(y, x, 1.0) for y in (block.core.start[1], block.core.end[1] - 1)
                   for x in (block.core.start[2], block.core.end[2] - 1)]  # fmt: skip
        places = np.array(corners) @ back.T
        inside = np.clip(places, 0, SIDE - 1)
        if part is None:
            assert (places < 0).all(axis=0).any() or (places >= SIDE).all(axis=0).any()
            continue
        if (places == inside).all():
            assert (places.min(axis=0) >= part.start[1:]).all()
            assert (places.max(axis=0) <= np.array(part.end[1:]) - 1).all()
        # As large as a plan says, and as the block would be, turned, with a stride of the map.
        largest = shown.largest(block)
        assert BOUNDS.contains(largest)
        assert all(a <= b for a, b in zip(part.shape, largest.shape, strict=True))
        assert max(largest.shape) < 1.5 * (BLOCK + 32) + 8
        thumbnail = PixelsOfRough(BOUNDS, FACTOR)(block, rows)
        assert thumbnail == part.scale_down((1, FACTOR, FACTOR))


def test_a_plan_counts_boxes_of_the_size_of_a_block(tmp_path):
    """Not the section: 100 times larger sections mean 100 times more blocks that read as much."""
    shares = []
    for side in (SIDE, 10 * SIDE):
        montage = spec(tmp_path, 'montage', (2, side, side))
        tissue = spec(tmp_path, 'tissue', (2, side // FACTOR, side // FACTOR))

        def build(root, run, montage=montage, tissue=tissue):
            build_rough(root, montage, tissue, None, FACTOR, CONFIG, run, [])

        for volume in (montage, tissue):
            Volume.create(volume)
        (plan,) = run_pipeline(tmp_path / 'run', build, dry_run=True).plans
        (read,) = (t for t in plan.traffic if t.name == 'montage')
        shares.append(read.voxels / plan.blocks)
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
    assert BLOCK**2 < shares[0] < (1.5 * (BLOCK + 32) + 8) ** 2


def test_sections_that_are_not_placed_are_empty():
    shown = PixelsOfRough(BOUNDS)
    block = BlockGrid(box((1, 0, 0), (1, 64, 64)), (1, 64, 64)).block(0)
    rows = affine_rows(0, 'loose')
    assert shown(block, rows) is None
    found = RenderRough(FACTOR, shown, bands=True)(None, None, rows, block)
    assert set(found.arrays) == {'rough', 'bands'} and not found.arrays['bands'].any()
