import json

import cv2
import numpy as np
import pytest

from h01_beam import storage, tables
from h01_beam.acquisition import figures
from h01_beam.acquisition.checks import CheckConfig
from h01_beam.acquisition.stage import build_checks, make_grid
from h01_beam.acquisition.tables import Acquisition
from h01_beam.finish import FinishRun
from tests.acquisition.images import PIXEL_NM, encode, grid, sections_of, tissue, write_images
from tests.arrays import run_pipeline, tree_bytes

CONFIG = CheckConfig(batch=3)


def acquire(tiles):
    return Acquisition(tiles, sections_of(tiles), PIXEL_NM)


@pytest.fixture
def tiles(tmp_path):
    """Two sections of 2 x 2 tiles: in blocks of three tiles, two each."""
    tiles = grid(sections=(4, 9), folder=str(tmp_path / 'images'))
    write_images(tiles)
    return tiles


def check(tmp_path, tiles, config=CONFIG, name='run', **options):
    acquisition = acquire(tiles)
    assert make_grid(acquisition, 3).shape == (2, 2, 1)

    def build(root, run):
        build_checks(root, acquisition, config, run)
        run.write_manifest('acquisition', config, {})
        if not run.dry_run:
            root | FinishRun(run, figures=[figures.figures])

    return run_pipeline(tmp_path / name, build, **options)


def table(run, name):
    return tables.from_parquet(storage.read_bytes(f'{run.path}/tables/{name}/000000.parquet'))


def blocks_run(run):
    stages = json.loads(storage.read_bytes(f'{run.path}/report.json'))['stages']
    return {name: stages[name]['blocks_run'] for name in ('check_tiles', 'check_sections')}


def test_good_tiles_pass_and_nothing_runs_twice(tmp_path, tiles):
    run = check(tmp_path, tiles)
    found = table(run, 'tiles')
    assert list(zip(found['section'], found['field'], found['beam'])) == list(
        zip(tiles['section'], tiles['field'], tiles['beam'])
    )
    assert set(found['state']) == {'good'}
    assert all(len(sha256) == 64 for sha256 in found['sha256'])
    assert list(table(run, 'sections')['state']) == ['good', 'good']
    assert blocks_run(run) == {'check_tiles': 4, 'check_sections': 4}
    assert not storage.exists(run.figure('worst_tiles.png'))
    before = tree_bytes(f'{run.path}/tables')
    assert blocks_run(check(tmp_path, tiles)) == {'check_tiles': 0, 'check_sections': 0}
    assert tree_bytes(f'{run.path}/tables') == before


def test_every_fault_lands_in_the_tables(tmp_path, tiles):
    paths = tiles['path']
    tiles['sha256'][2] = '0' * 64
    storage.delete(paths[0])
    storage.write_bytes(paths[1], storage.read_bytes(paths[1])[:-30])
    storage.write_bytes(paths[5], storage.read_bytes(paths[4]))
    storage.write_bytes(paths[6], encode(tissue()[:-1], '.png'))
    storage.write_bytes(paths[7], encode(np.full((300, 320), 130, np.uint8), '.png'))
    run = check(tmp_path, tiles)
    found = table(run, 'tiles')
    assert list(found['state']) == ['missing', 'bad', 'bad', 'good', 'good', 'bad', 'bad', 'bad']
    for row, text in (
        (0, 'no such file'), (1, 'ends early'), (2, 'sha256'), (5, 'same image as field 0 beam 0'),
        (6, 'height and width are (299, 320): must be (300, 320)'), (7, 'low contrast'),
    ):  # fmt: skip
        assert text in found['reason'][row]
    assert np.isnan(found['focus'][:3]).all()
    sections = table(run, 'sections')
    assert list(sections['state']) == ['partial', 'partial']
    assert [list(sections[n]) for n in ('good', 'bad', 'missing')] == [[1, 1], [2, 3], [1, 0]]
    picture = np.frombuffer(storage.read_bytes(run.figure('worst_tiles.png')), np.uint8)
    assert cv2.imdecode(picture, cv2.IMREAD_UNCHANGED).shape[1] > 1000


def test_a_section_whose_tiles_are_all_bad_is_missing(tmp_path, tiles):
    for path in tiles['path'][:4]:
        storage.write_bytes(path, b'')
    sections = table(check(tmp_path, tiles), 'sections')
    assert list(sections['state']) == ['missing', 'good']
    assert sections['reason'][0] == 'all 4 tiles are bad or missing'


def test_a_replaced_file_runs_its_block_alone(tmp_path, tiles):
    check(tmp_path, tiles)
    storage.write_bytes(tiles['path'][7], encode(tissue(99, blur=6), '.png'))
    run = check(tmp_path, tiles)
    assert blocks_run(run) == {'check_tiles': 1, 'check_sections': 1}
    assert list(table(run, 'tiles')['state']) == ['good'] * 7 + ['bad']
    whole = check(tmp_path, tiles, name='anew')
    for name in ('tiles', 'sections'):
        np.testing.assert_equal(table(run, name), table(whole, name))


def test_a_changed_position_runs_its_block_alone(tmp_path, tiles):
    check(tmp_path, tiles)
    tiles['x_nm'][0] += 8.0
    run = check(tmp_path, tiles)
    assert blocks_run(run) == {'check_tiles': 1, 'check_sections': 1}
    assert table(run, 'tiles')['x_nm'][0] == tiles['x_nm'][0]


def test_a_changed_threshold_runs_what_depends_on_it(tmp_path, tiles):
    check(tmp_path, tiles)
    run = check(tmp_path, tiles, CheckConfig(batch=3, section_focus=0.1))
    assert blocks_run(run) == {'check_tiles': 0, 'check_sections': 4}
    run = check(tmp_path, tiles, CheckConfig(batch=3, section_focus=0.1, structure=0.0))
    assert blocks_run(run)['check_tiles'] == 4


def test_a_dry_run_writes_nothing(tmp_path, tiles):
    check(tmp_path, tiles, dry_run=True)
    assert not (tmp_path / 'run').exists()


def test_tiles_in_a_bucket_are_checked(tmp_path, tiles, gcs_bucket):
    remote = {**tiles, 'path': np.array([f'{gcs_bucket}{p}' for p in tiles['path']], object)}
    for source, target in zip(tiles['path'][1:], remote['path'][1:]):
        storage.write_bytes(target, storage.read_bytes(source))
    found = table(check(tmp_path, remote), 'tiles')
    assert list(found['state']) == ['missing'] + ['good'] * 7
    storage.write_bytes(remote['path'][4], encode(tissue(50), '.png'))
    assert blocks_run(check(tmp_path, remote)) == {'check_tiles': 1, 'check_sections': 1}


def test_sixteen_bit_tiles_need_a_range(tmp_path, tiles):
    tiles['dtype'][:] = 'uint16'
    with pytest.raises(ValueError, match='grey_range is None'):
        check(tmp_path, tiles)


def test_tiles_that_do_not_fit_a_worker_are_refused(tmp_path, tiles):
    tiles['height'] = tiles['height'] * 0 + 100_000
    tiles['width'] = tiles['width'] * 0 + 100_000
    for name in ('y_nm', 'x_nm'):
        tiles[name] = tiles[name] * 320
    with pytest.raises(ValueError, match='check_tiles: a worker would need'):
        check(tmp_path, tiles)
