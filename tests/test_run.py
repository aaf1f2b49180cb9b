from __future__ import annotations

import json
import os

import pytest

from h01_beam import storage
from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.ledger import Ledger, Marker, Provenance, StageRecord
from h01_beam.run import Resources, Run, Upstream, UpstreamError
from h01_beam.volume import Volume
from tests.arrays import box, create

GRID = BlockGrid(box((3, 5, 7), (10, 21, 35)), (4, 8, 16))
MARKER = Marker(key='k', digest='d', rows=2, seconds=0.5, metrics={'steps': 3})


@pytest.fixture
def run(tmp_path):
    return Run(str(tmp_path / 'run'), Resources(1, 2**32))


def finish(ledger, grid, digest='{0}'):
    StageRecord(grid=grid, generation=1, config='c').write(ledger)
    for block in grid:
        text = digest.format(block.name)
        ledger.write(block.index, Marker(key='k', digest=text, rows=0, seconds=0))


def test_markers_are_kept(run):
    ledger = run.ledger('stage')
    assert ledger.read((0, 1, 2)) is None
    ledger.write((0, 1, 2), MARKER)
    assert ledger.read((0, 1, 2)) == MARKER
    assert list(ledger.markers_written()) == [f'{run.path}/ledger/stage/blocks/0/1_2.json']


@pytest.mark.parametrize('content', [b'', b'{"key": "k"', b'[]', b'{"a": 1}', b'\xff\xfe{', b'3'])
def test_an_unreadable_marker_counts_as_none(run, content):
    ledger = run.ledger('stage')
    ledger.write((0, 0, 0), MARKER)
    (path,) = ledger.markers_written()
    storage.write_bytes(path, content)
    assert ledger.read((0, 0, 0)) is None


def test_stage_records_are_kept(run):
    ledger = run.ledger('stage')
    assert StageRecord.read(ledger) is None
    record = StageRecord(grid=GRID, generation=3, config='c')
    record.write(ledger)
    assert StageRecord.read(ledger) == record
    assert list(ledger.markers_written()) == []


def test_the_folders_of_a_run(tmp_path):
    run = Run(str(tmp_path) + '/run/', Resources(1, 1))
    assert run.path == f'{tmp_path}/run'
    assert run.volume_uri('em') == f'{tmp_path}/run/volumes/em|neuroglancer-precomputed:'
    assert run.volume_uri('em', 'zarr3', 2) == f'{tmp_path}/run/volumes/em|zarr3:?mip=2'
    assert run.table_part('rows', (1, 2, 3)) == f'{tmp_path}/run/tables/rows/parts/1/2_3.parquet'
    assert run.figure('a.png') == f'{tmp_path}/run/figures/a.png'


@pytest.mark.parametrize('path', ['run', './run/', 'file://{}/run'])
def test_run_paths_do_not_depend_on_the_folder(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    run = Run(path.format(tmp_path), Resources(1, 1))
    assert run.path == str(tmp_path / 'run')


def test_the_manifest(run):
    run.write_manifest('job', {'grid': GRID}, {'ffn': 'sha'})
    manifest = json.loads(storage.read_bytes(f'{run.path}/run.json'))
    assert manifest['job'] == 'job' and manifest['models'] == {'ffn': 'sha'}
    assert manifest['config']['grid']['block_shape'] == [4, 8, 16]
    assert manifest['version']


def test_a_dry_run_writes_nothing(tmp_path):
    run = Run(str(tmp_path / 'run'), Resources(1, 1), dry_run=True)
    run.write_manifest('job', {}, {})
    assert os.listdir(tmp_path) == []


def test_an_unwritable_run_directory_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match='run_dir is .*file/run.*cannot write there'):
        Run(str(tmp_path / 'file/run'), Resources(1, 1))


# ---------------------------------------------------------------- upstream


def test_foreign_volumes_are_known_by_their_fingerprint(tmp_path):
    volume = create(tmp_path / 'em')
    part = box((3, 5, 7), (1, 1, 1))
    assert Upstream(volume).digests(part) == [volume.fingerprint]


def test_a_box_depends_on_the_blocks_that_it_touches(tmp_path, run):
    volume = create(tmp_path / 'em')
    Provenance(run.ledger('stage'), 1).write(volume.spec)
    finish(run.ledger('stage'), GRID)
    upstream = Upstream(volume)
    for part in (box((3, 5, 7), (1, 1, 1)), box((6, 12, 22), (2, 2, 2)), volume.bounds):
        assert upstream.digests(part) == [block.name for block in GRID.touching(part)]


def test_blocks_may_lie_otherwise_in_the_volume_than_in_their_grid(tmp_path, run):
    volume = create(tmp_path / 'em')
    # One block for each of the grid's, but twice as wide along x, side by side from x = 0.
    z, y, x = GRID.shape
    shape = (*GRID.block_shape[:2], 2 * GRID.block_shape[2])
    where = BlockGrid(
        BoundingBox((0, 0, 0), (z * shape[0], y * shape[1], x * shape[2])), shape, (0, 0, 0)
    )
    Provenance(run.ledger('stage'), 1, where).write(volume.spec)
    finish(run.ledger('stage'), GRID)
    for index in ((0, 0, 0), (1, 0, 1)):
        digests = Upstream(volume).digests(where[index].core)
        assert digests == [where[index].name]


def test_unfinished_blocks_are_an_error(tmp_path, run):
    volume = create(tmp_path / 'em')
    ledger = run.ledger('stage')
    Provenance(ledger, 1).write(volume.spec)
    finish(ledger, GRID)
    os.remove(f'{ledger.path}/blocks/1/0_0.json')
    upstream = Upstream(volume)
    assert upstream.digests(box((3, 5, 7), (4, 8, 16))) == ['0_0_0']
    with pytest.raises(UpstreamError, match=r'block \(1, 0, 0\) of .*stage.* has not finished'):
        upstream.digests(box((3, 5, 7), (5, 1, 1)))


@pytest.mark.parametrize('driver', ['neuroglancer-precomputed', 'zarr3'])
def test_runs_may_be_moved(tmp_path, driver):
    run = Run(str(tmp_path / 'run'), Resources(1, 1))
    volume = create(tmp_path / 'run/volumes/em', driver)
    Provenance(run.ledger('stage'), 1).write(volume.spec)
    finish(run.ledger('stage'), GRID)
    os.rename(tmp_path / 'run', tmp_path / 'moved')
    moved = Volume.open(f'{tmp_path}/moved/volumes/em')
    assert Upstream(moved).digests(box((3, 5, 7), (1, 1, 1))) == ['0_0_0']


def test_volumes_without_their_ledger_are_foreign(tmp_path, run):
    volume = create(tmp_path / 'em')
    Provenance(run.ledger('gone'), 1).write(volume.spec)
    assert Upstream(volume).digests(volume.bounds) == [volume.fingerprint]


def test_volume_and_run_may_lie_in_different_places(tmp_path, gcs_bucket, run, monkeypatch):
    local, remote = create(tmp_path / 'em'), create(f'{gcs_bucket}/em', write=False)
    remote_run = Run(f'{gcs_bucket}/run', Resources(1, 1))
    other_folder = tmp_path / 'elsewhere'
    other_folder.mkdir()
    for volume in (local, remote):
        for ledger in (run.ledger('stage'), remote_run.ledger('stage')):
            monkeypatch.chdir(tmp_path)
            Provenance(ledger, 1).write(volume.spec)
            finish(ledger, BlockGrid(GRID.bounds, (8, 24, 48)))
            monkeypatch.chdir(other_folder)
            assert Upstream(volume).digests(box((3, 5, 7), (1, 1, 1))) == ['0_0_0']


def test_resources_of_this_machine():
    one, two = Resources.local(1), Resources.local(2)
    assert one.memory_bytes_per_worker > 2**28
    assert two.memory_bytes_per_worker == one.memory_bytes_per_worker // 2
    assert Ledger('x').path == 'x'
