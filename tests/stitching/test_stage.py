"""Stitching as stages: what a section depends on, and what becomes of tiles beyond the margin."""

import dataclasses

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.blockwise import MapBlocks
from h01_beam.imaging.gains import GainConfig
from h01_beam.imaging.illumination import FlatFieldConfig
from h01_beam.stitching.mesh import ElasticConfig
from h01_beam.stitching.offsets import OffsetConfig
from h01_beam.stitching.stage import build_stitching, make_frames
from tests.acquisition.images import columns, encode, tissue
from tests.arrays import run_pipeline, tree_bytes
from tests.stitching.stack import CONFIG, PITCH, SHAPE, acquire, montage, stitch, table
from tests.stitching.tissue import cut

STAGES = ('measure_offsets', 'solve_places', 'match_seams', 'solve_gains', 'bend_tiles',
          'render_montage')  # fmt: skip
LIGHTING = ('sum_lighting', 'solve_lighting')


def write_section(folder, section, rows=3, drift=0):
    """Tiles of a section of 3 columns, and where the stage says they are: off by up to 4 pixels.

    `drift`: by how many pixels every row lies further along x than the stage says of the one above.
    """
    image = tissue(section, (520, 420)).astype(np.float32)
    places = [(section, r, c) for r in range(rows) for c in range(3)]
    tiles = columns(*zip(*places), folder=str(folder), shape=SHAPE, pitch=PITCH)
    rng = np.random.default_rng(section)
    for path, row, column in zip(tiles['path'], tiles['field'], tiles['beam']):
        place = np.array([row * SHAPE[0], column * SHAPE[1]]) * PITCH + 20
        place += rng.uniform(-4, 4, 2) + (0, row * drift)
        storage.write_bytes(path, encode(cut(image, place, SHAPE), '.png'))
    return tiles


def per_section(acquisition, config=CONFIG):
    """Blocks of one section, by stage."""
    frames = make_frames(acquisition, config)
    cells = int(np.prod(frames.cells.shape[1:]))
    blocks = [-(-n // 256) for n in frames.shape]
    assert cells > 1 and min(blocks) > 1
    return {**dict.fromkeys(STAGES, cells), 'render_montage': int(np.prod(blocks))}


@pytest.fixture(scope='module')
def stack(tmp_path_factory):
    """A finished run of sections 0, 1 and 3; 2 is listed, but has no tiles yet."""
    folder = tmp_path_factory.mktemp('stack')
    sections = [write_section(folder / 'tiles', z) for z in (0, 1, 3)]
    acquisition = acquire(sections, (0, 1, 2, 3))
    run, stages = stitch(folder / 'run', acquisition)
    return folder, sections, run, stages


@pytest.mark.slow
def test_added_sections_run_alone(stack):
    folder, sections, run, stages = stack
    blocks = per_section(acquire(sections))
    assert {name: stages[name]['blocks_run'] for name in STAGES} == {
        name: 4 * count for name, count in blocks.items()
    }
    before, files = montage(run), tree_bytes(f'{run.path}/volumes/montage/4_4_30')
    assert (before[[0, 1, 3]] > 0).mean(axis=(1, 2)).min() > 0.4 and not before[2].any()
    # One at the end, and the one in the middle, whose blocks that hold nothing are there already.
    present = {**blocks, 'solve_places': 1, 'solve_gains': 1}
    for section, expected in ((4, blocks), (2, present)):
        sections = [*sections, write_section(folder / 'tiles', section)]
        run, stages = stitch(folder / 'run', acquire(sections, range(5)))
        assert {name: stages[name]['blocks_run'] for name in STAGES} == expected, section
        assert stages['check_tiles']['blocks_run'] == 1
    after = montage(run)
    np.testing.assert_array_equal(after[[0, 1, 3]], before[[0, 1, 3]])
    assert (after[[2, 4]] > 0).mean(axis=(1, 2)).min() > 0.4
    there = tree_bytes(f'{run.path}/volumes/montage/4_4_30')
    old = [name for name in files if not name.endswith('_2-3')]
    assert old and all(there[name] == files[name] for name in old)


def keys_of(folder, acquisition, config):
    """Hashes of the configurations of all stages, without a run."""
    found = {}
    made = MapBlocks.__init__

    def note(self, function, **values):
        made(self, function, **values)
        found[values['stage']] = self._process.config_hash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MapBlocks, '__init__', note)
        run_pipeline(
            folder, lambda root, run: build_stitching(root, acquisition, config, run), dry_run=True
        )
    assert set(found) == {*STAGES, *LIGHTING}
    return found


@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    acquisition = acquire([columns(*zip((0, 0, 0), (0, 0, 1)), shape=SHAPE)])
    return acquisition, keys_of(tmp_path_factory.mktemp('keys'), acquisition, CONFIG)


@pytest.mark.parametrize(
    ('change', 'stages'),
    [
        ({'cached_tiles': 3, 'montage_block': (512, 256)}, set()),
        ({'elastic': ElasticConfig(stride=40, stiffness=0.01)}, {'bend_tiles'}),
        ({'elastic': ElasticConfig(stride=32)}, {'match_seams', 'bend_tiles', 'render_montage'}),
        ({'offsets': OffsetConfig(search=12, downsample=4)}, {'measure_offsets'}),
        ({'margin': 30}, {'solve_places'}),
        ({'downsample': 2}, {'render_montage'}),
        ({'gains': GainConfig(level_tolerance=9.0)}, {'solve_gains'}),
        ({'flat_field': FlatFieldConfig(degree=3)}, {'solve_lighting'}),
        (
            {'flat_field': FlatFieldConfig(zero_level=255)},
            {*LIGHTING, 'match_seams', 'render_montage'},
        ),
    ],
    ids=[
        'memory',
        'stiffness',
        'stride',
        'offsets',
        'margin',
        'downsample',
        'gains',
        'degree',
        'inverted',
    ],
)
def test_a_parameter_is_part_of_the_stages_that_read_it(tmp_path, keys, change, stages):
    acquisition, before = keys
    after = keys_of(tmp_path, acquisition, dataclasses.replace(CONFIG, **change))
    assert {name for name in before if before[name] != after[name]} == stages


@pytest.mark.slow
def test_tiles_beyond_the_margin_are_left_out_and_counted(tmp_path):
    """What the stage errs by adds up from row to row, so that the outer rows lie too far off."""
    tiles = write_section(tmp_path / 'tiles', 0, rows=5, drift=14)
    offsets = OffsetConfig(search=24, downsample=2)
    near = dataclasses.replace(CONFIG, offsets=offsets, margin=24)
    run, stages = stitch(tmp_path / 'near', acquire([tiles]), near)
    assert stages['solve_places']['tiles_beyond_margin'] == 6
    places = table(run, 'places')
    assert places['row'].tolist() == list(range(3, 12))
    assert table(run, 'solved')['tiles_beyond_margin'].tolist() == [6]
    # None of the tiles that are left is cut off, and nothing of the others is shown.
    height, width = (n + 2 * n * PITCH for n in SHAPE)
    assert np.count_nonzero(montage(run)) == pytest.approx(height * width, rel=0.04)
