"""The volume `even`: sections alike, the same bytes for any blocks, earlier sections untouched."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from h01_beam.alignment.contrast.blocks import CountLevels, EvenContrast, SolveLevels
from h01_beam.alignment.contrast.regions import TissueOfSlice
from h01_beam.alignment.contrast.stage import build_contrast, levels_of_sections
from h01_beam.alignment.frames import Slices, ToFrame, rescale_affine
from h01_beam.alignment.job import AlignJob
from h01_beam.blockwise import MapBlocks
from h01_beam.config import from_dict
from h01_beam.geometry import Block, BlockGrid, SectionsAround
from h01_beam.imaging.contrast import ClaheConfig, ContrastConfig, MatchConfig, count_levels
from h01_beam.plan import BlockResult
from h01_beam.registration.maps import CoordinateMap
from h01_beam.tables import from_parquets
from h01_beam.volume import Volume, VolumeSpec
from tests.acquisition.images import tissue
from tests.arrays import box, read_all, run_pipeline, summaries

CONFIG = ContrastConfig(
    match=MatchConfig(min_pixels=2000),
    clahe=ClaheConfig(cell=32),
    # Of 8 x 4 x 4 nm only the first level keeps sections apart.
    level_mip=3,
    level_block=(64, 64),
)
FIRST, SHAPE, MISSING = 8, (190, 250), 10
WINDOW = MatchConfig(sigma=0.5, tolerance=50.0)


@dataclasses.dataclass(frozen=True)
class Show:
    """Sections of one tissue that differ in gain and offset; one is missing, each has a hole."""

    def __call__(self, block):
        z = block.core.start[0]
        rng = np.random.default_rng(z)
        gain, offset = np.exp(rng.normal(0, 0.2)), rng.normal(0, 12)
        image = np.clip(gain * (50 + 0.5 * tissue(z, SHAPE).astype(float)) + offset, 1, 255)
        mask = np.zeros(SHAPE, np.uint8)
        mask[9:, 14:] = 1
        image[mask == 0] = 0
        # A fold: it is in the image, but not tissue.
        mask[60:90, 100:] = 0
        image[60:90, 100:] = 3
        there = z != MISSING
        core = block.core.translate((-z, 0, 0)).slices
        shown = {'image': image.astype(np.uint8) * there, 'mask': mask * there}
        return BlockResult(arrays={name: array[None][core] for name, array in shown.items()})


def even(folder, sections=7, block=(128, 128), config=CONFIG, causal=False, dry_run=False):
    """Makes sections and all that contrast adds; returns the run."""

    def build(root, run):
        image, mask = (
            VolumeSpec(
                uri=run.volume_uri(name), voxel_size_nm=(8.0, 4.0, 4.0), dtype='uint8',
                start=(FIRST, 0, 0), shape=(sections, *SHAPE), chunk=(1, 64, 64),
                kind='image' if name == 'image' else 'segmentation',
            )
            for name in ('image', 'mask')
        )  # fmt: skip
        shown = root | MapBlocks(
            Show(), stage='show', writes={'image': image, 'mask': mask}, run=run,
            grid=BlockGrid(image.bounds, (1, 256, 256)),
        )  # fmt: skip
        build_contrast(root, image, mask, None, block, config, causal, run, [shown])

    return run_pipeline(folder, build, dry_run=dry_run)


def volume(run, name):
    return read_all(run.volume_uri(name))


def tables(run):
    """The lookup tables of all sections, (n, 256)."""
    paths = run.joined_files('level_tables')
    rows = from_parquets(Path(path).read_bytes() for path in paths)
    return rows['even'].reshape(-1, 256)


def medians(image, mask):
    return np.array([np.median(i[m > 0]) for i, m in zip(image, mask) if m.any()])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('even')
    run = even(folder / 'run')
    arrays = {name: volume(run, name) for name in ('image', 'mask', 'even')}
    return folder, run, arrays, summaries(run)


def test_sections_become_alike(made):
    _, run, arrays, stages = made
    image, mask = arrays['image'], arrays['mask']
    matched = np.stack([table[section] for table, section in zip(tables(run), image)])
    before, after, evened = (medians(i, mask) for i in (image, matched, arrays['even']))
    assert len(before) == 6 and np.ptp(before) > 20
    assert np.ptp(after) < 0.15 * np.ptp(before)
    assert np.ptp(evened) < 0.15 * np.ptp(before)
    # The section that is missing has no levels and none of the pixels, the fold does not count.
    assert stages['measure_levels']['sections_without_levels'] == 1
    assert stages['solve_levels']['peak_levels_moved'] > 5
    assert 0.85 * (mask > 0).sum() < 4 * stages['count_levels']['pixels'] < (mask > 0).sum()


def test_what_is_masked_is_0_and_nothing_else(made):
    _, run, arrays, _ = made
    np.testing.assert_array_equal(arrays['even'] == 0, arrays['mask'] == 0)
    assert (arrays['image'][arrays['mask'] == 0] == 3).any()
    spec = Volume.open(run.volume_uri('even')).spec
    assert (spec.start, spec.shape, spec.kind) == ((FIRST, 0, 0), arrays['image'].shape, 'image')
    assert Volume.open(run.volume_uri('even', mip=1)).bounds.shape == (7, 95, 125)


def evened(function, arrays, tables, block):
    """The volume, made block by block without a pipeline."""
    result = np.full_like(arrays['image'], 77)
    grid = BlockGrid(box((0, 0, 0), result.shape), (1, *block), (0, *2 * (function.halo,)))
    for one in grid:
        read = one.read.slices
        shown = function(
            arrays['image'][read], arrays['mask'][read], one, {'even': tables[one.index[0]]}
        )
        result[one.core.slices] = shown.arrays['even']
    return result, len(grid)


def test_blocks_do_not_show(made):
    _, run, arrays, stages = made
    function, count = EvenContrast(CONFIG.clahe), stages['even_contrast']['blocks']
    assert count == 7 * 4
    for block, blocks in ((SHAPE, 7), ((64, 128), 7 * 6), ((63, 59), 7 * 20)):
        whole, count = evened(function, arrays, tables(run), block)
        assert count == blocks
        np.testing.assert_array_equal(whole, arrays['even'])


def test_without_clahe_levels_are_matched(made):
    _, run, arrays, _ = made
    matched, _ = evened(EvenContrast(None), arrays, tables(run), (64, 64))
    for table, image, mask, section in zip(tables(run), arrays['image'], arrays['mask'], matched):
        np.testing.assert_array_equal(section, np.where(mask > 0, np.maximum(table[image], 1), 0))


def test_sections_that_are_added_change_no_earlier_one(tmp_path):
    before = even(tmp_path / 'run', sections=3, causal=True)
    earlier, table = volume(before, 'even'), tables(before)
    after = even(tmp_path / 'run', sections=4, causal=True)
    np.testing.assert_array_equal(volume(after, 'even')[:3], earlier)
    np.testing.assert_array_equal(tables(after)[:3], table)
    assert (volume(after, 'even') > 0).any(axis=(1, 2)).tolist() == [True, True, False, True]
    stages = summaries(after)
    assert stages['solve_levels']['blocks_run'] == 1


def plan(folder, **changes):
    """Names of the stages that a run would have."""
    config = dataclasses.replace(CONFIG, **changes)
    return {p.name for p in even(folder / 'run', sections=2, config=config, dry_run=True).plans}


def test_without_levels_to_match_nothing_is_counted(tmp_path):
    names = plan(tmp_path, match=None)
    assert not any('level' in name or 'mask' in name for name in names)
    assert {'downsample_image_mip1', 'even_contrast', 'downsample_even_mip1'} <= names


def test_blocks_that_are_smaller_than_the_halo_are_refused(tmp_path):
    with pytest.raises(ValueError, match='stage even_contrast: halo .* exceeds block_shape'):
        plan(tmp_path, match=None, clahe=ClaheConfig(cell=128))


@pytest.mark.parametrize(
    ('size_nm', 'mip', 'count'),
    [
        ((33, 4, 4), 3, 3),
        ((33, 4, 4), 9, 3),
        ((33, 4, 4), 0, 0),
        ((30, 8, 8), 3, 1),
        ((8, 8, 8), 3, 0),
    ],
)
def test_levels_keep_sections_apart_however_many_there_are(size_nm, mip, count):
    for sections in (1, 5000):
        image = VolumeSpec(
            uri='/a|neuroglancer-precomputed:', voxel_size_nm=size_nm, dtype='uint8',
            shape=(sections, 200, 200), chunk=(1, 256, 256),
        )  # fmt: skip
        found = levels_of_sections(image, ContrastConfig(level_mip=mip))
        assert [spec.shape[0] for _, spec in found] == [sections] * count


# ---------------------------------------------------------------- windows


def solve(levels, own, causal=False, sections=40):
    """The table of a section; `levels` holds the grey levels of sections by z."""
    window = SectionsAround(
        box((0, 0, 0), (sections, 1, 1)), WINDOW.window, 0 if causal else WINDOW.window
    )
    bounds = box((own, 0, 0), (1, 1, 1))
    block = Block((own, 0, 0), bounds, bounds)
    near = window(block)
    seen = {z: v for z, v in levels.items() if near.start[0] <= z < near.end[0]}
    rows = {
        'section': np.repeat(np.array([*seen], np.int64), len(WINDOW.quantiles)),
        'grey': np.concatenate([*seen.values(), []]),
    }
    return SolveLevels(WINDOW)(rows, block).rows['level_tables']['even'], seen


def levels_of(sections, seed=0):
    rng = np.random.default_rng(seed)
    base = np.array([60.0, 90, 110, 120, 140, 170, 200])
    return {z: base * np.exp(rng.normal(0, 0.1)) + rng.normal(0, 5) for z in sections}


@pytest.mark.parametrize('causal', [False, True])
def test_what_lies_beyond_the_window_does_not_count(causal):
    levels = levels_of(range(40))
    table, seen = solve(levels, 20, causal)
    assert WINDOW.window == 2 and [*seen] == ([18, 19, 20] if causal else [18, 19, 20, 21, 22])
    assert (table != np.arange(256)).any()
    others = {z: v if z in seen else v + 30 for z, v in levels.items()}
    for other in (others, seen, {z: v for z, v in levels.items() if z < 23}):
        np.testing.assert_array_equal(solve(other, 20, causal)[0], table)
    nearer = {**levels, 19: levels[19] + 20}
    assert (solve(nearer, 20, causal)[0] != table).any()
    assert (solve({**levels, 21: levels[21] + 20}, 20, causal)[0] == table).all() == causal


def test_sections_that_are_alone_or_show_nothing_keep_their_levels():
    levels = levels_of([3, 10, 11])
    alone, seen = solve(levels, 3)
    assert [*seen] == [3]
    np.testing.assert_allclose(alone[60:200], np.arange(60, 200), atol=1)
    np.testing.assert_array_equal(solve(levels, 12)[0], np.arange(256))
    nothing = SolveLevels(WINDOW)(
        {'section': np.empty(0, np.int64), 'grey': np.empty(0)},
        Block((3, 0, 0), box((3, 0, 0), (1, 1, 1)), box((3, 0, 0), (1, 1, 1))),
    )
    np.testing.assert_array_equal(nothing.rows['level_tables']['even'], np.arange(256))
    assert 'levels_moved' not in nothing.rows


# ---------------------------------------------------------------- tissue


def test_tissue_is_found_where_the_section_went():
    """Against the maps of the renderer, with a mesh that moves nothing."""
    factor, downsample, scale, extent = 4, 2, 8, (240, 280)
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 90], [np.sin(angle), np.cos(angle), -20]])
    affine = rescale_affine(turn, 1)
    thumbnail = np.zeros((1, extent[0] // factor, extent[1] // factor), np.uint8)
    thumbnail[0, 12:40, 20:55] = 1
    names = ('yy', 'yx', 'y1', 'xy', 'xx', 'x1')
    affines = {name: np.array([value]) for name, value in zip(names, affine.ravel())}
    affines |= {'section': np.array([1]), 'state': np.array(['placed'], object)}
    region = TissueOfSlice(
        Slices((0, -1, 1)), box((0, 0, 0), (2, *extent)), factor, downsample, scale
    )
    core = box((7, 10, 5), (1, 60, 70))
    block = Block((2, 0, 0), core, core)
    part = region(block, affines)
    whole = thumbnail.shape
    assert part.start[0] == 1 and part.shape[1] <= whole[1] and part.shape[2] <= whole[2]
    read = thumbnail[:, part.start[1] : part.end[1], part.start[2] : part.end[2]]
    found = region.spread(read, affines, block)

    mesh = CoordinateMap(np.zeros((2, 40, 40), np.float32), (0.0, 0.0), 16.0)
    to_frame = ToFrame(affine, mesh, downsample)
    y, x = np.meshgrid(np.arange(10, 70), np.arange(5, 75), indexing='ij')
    points = scale * np.stack([y, x]).astype(float) + (scale - 1) / 2
    step = factor * downsample
    at = np.rint((to_frame(points) - (step - 1) / 2) / step).astype(int)
    inside = (at >= 0).all(axis=0) & (at[0] < whole[1]) & (at[1] < whole[2])
    expected = np.zeros(found.shape, bool)
    expected[inside] = thumbnail[0][at[0][inside], at[1][inside]] > 0
    assert expected.sum() > 400
    # Places halfway between two pixels may be rounded to either.
    assert (found != expected).mean() < 0.005
    assert region(Block((1, 0, 0), core, core), {}) is None
    largest = region.largest(block)
    assert all(a >= b for a, b in zip(largest.shape, part.shape))

    image = np.full((1, 60, 70), 90, np.uint8)
    args = {'image': image, 'mask': np.ones_like(image), 'block': block}
    counted = CountLevels(region)(**args, tissue=read, affines=affines).rows['histograms']
    assert counted['grey'].tolist() == [90] and counted['pixels'].tolist() == [found.sum()]
    # Unplaced, or all of it beyond the montage.
    assert not CountLevels(region)(**args, affines={}).rows
    assert CountLevels(None)(**args).rows['histograms']['pixels'].sum() == image.size


def test_edges_do_not_count_whatever_the_blocks():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (1, 50, 60), dtype=np.uint8)
    mask = (rng.uniform(size=image.shape) > 0.02).astype(np.uint8)
    bounds = box((0, 0, 0), image.shape)
    total = {}
    for size in ((64, 64), (17, 23)):
        total[size] = np.zeros(256, int)
        for block in BlockGrid(bounds, (1, *size), (0, 1, 1)):
            core = image[block.core.slices]
            rows = CountLevels(None)(core, mask[block.read.slices], block).rows['histograms']
            total[size][rows['grey']] += rows['pixels']
    np.testing.assert_array_equal(total[64, 64], total[17, 23])
    assert total[64, 64].sum() < 0.9 * count_levels(image, mask > 0).sum()


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'match': None, 'clahe': None}, 'contrast.match and contrast.clahe are None: one of them'),
        ({'level_mip': -1}, 'contrast.level_mip is -1: must not be negative'),
        ({'level_block': (63, 64)}, r'contrast.level_block is \(63, 64\): must be two numbers'),
        ({'level_block': (64,)}, 'contrast.level_block is'),
    ],
)
def test_bad_configs_name_the_field(values, message):
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**values)


def test_jobs_leave_it_out_unless_asked():
    tiles = {'tiles': {'source': 'x', 'kind': 'manifest', 'pixel_nm': 4.0}}
    assert from_dict(AlignJob, tiles).contrast is None
    assert from_dict(AlignJob, {**tiles, 'contrast': None}).contrast is None
    assert from_dict(AlignJob, {**tiles, 'contrast': {}}).contrast == ContrastConfig()
    asked = from_dict(AlignJob, {**tiles, 'contrast': {'clahe': None}}).contrast
    assert asked.clahe is None and asked.match == MatchConfig()
    with pytest.raises(ValueError, match=r"unknown config key 'contrast.claeh'"):
        from_dict(AlignJob, {**tiles, 'contrast': {'claeh': None}})


def test_memory_is_enough_for_what_a_block_takes():
    image = np.tile(tissue(0, (256, 256)), (3, 3))[None]
    bounds = box((0, 0, 0), image.shape)
    block = Block((0, 0, 0), bounds, bounds)
    for cell in (16, 64, 128):
        function = EvenContrast(ClaheConfig(cell=cell))
        tracemalloc.start()
        function(image, np.ones_like(image), block, {'even': np.arange(256)})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < function.working_bytes(image.shape)
