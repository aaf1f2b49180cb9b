from __future__ import annotations

import json
import os
import time

import pytest

from h01_beam import status, storage
from h01_beam.geometry import BlockGrid
from h01_beam.ledger import Marker, StageRecord
from h01_beam.run import Resources, Run
from h01_beam.status import read_status
from tests.arrays import box

GRID = BlockGrid(box((0, 0, 0), (2, 3, 4)), (1, 1, 1))
NOW = 1_800_000_000.0


@pytest.fixture(params=['local', 'bucket'])
def run(request, tmp_path):
    if request.param == 'bucket':
        path = request.getfixturevalue('gcs_bucket') + '/run'
    else:
        path = str(tmp_path / 'run')
    run = Run(path, Resources(1, 1))
    run.write_manifest('segmentation', {}, {})
    return run


def start(run, stage, since=NOW, grid=GRID, config='c'):
    record = StageRecord(grid=grid, generation=1, config=config, since=since)
    record.write(run.ledger(stage))
    return run.ledger(stage)


def finish(ledger, index, when=None):
    ledger.write(index, Marker(key='k', digest='d', rows=0, seconds=1.0))
    if when is not None:
        z, y, x = index
        os.utime(f'{ledger.path}/blocks/{z}/{y}_{x}.json', (when, when))


def test_stages_stand_in_the_order_in_which_they_were_made(run):
    before = time.time() - 1000
    start(run, 'match', since=before + 1)
    flood = start(run, 'flood', since=before)
    start(run.within('evaluation'), 'overlaps', since=before + 2)
    for x in range(3):
        finish(flood, (0, 0, x))
    found = read_status(run.path)
    assert [stage.name for stage in found.stages] == ['flood', 'match', 'evaluation/overlaps']
    flood, match, _ = found.stages
    assert (flood.blocks, flood.done, flood.left, flood.state) == (24, 3, 21, 'running')
    assert (match.done, match.last, match.state) == (0, None, 'waiting')
    assert match.left_seconds is None
    assert found.last == flood.last and abs(time.time() - flood.last) < 60
    assert not found.reported


def test_markers_of_another_configuration_do_not_count(tmp_path):
    run = Run(str(tmp_path), Resources(1, 1))
    run.write_manifest('segmentation', {}, {})
    ledger = start(run, 'flood')
    finish(ledger, (0, 0, 0), NOW - 5)
    finish(ledger, (0, 0, 1), NOW + 5)
    (stage,) = read_status(run.path, NOW + 10).stages
    assert stage.done == 1 and stage.last == NOW + 5


def test_speed_is_that_of_the_last_minutes(tmp_path):
    run = Run(str(tmp_path), Resources(1, 1))
    run.write_manifest('segmentation', {}, {})
    ledger = start(run, 'flood')
    for n, index in enumerate([(0, 0, 0), (0, 0, 1), (0, 0, 2)]):  # An hour ago.
        finish(ledger, index, NOW + n)
    for n in range(4):
        finish(ledger, (1, 0, n), NOW + 3600 + 60 * n)
    (stage,) = read_status(run.path, NOW + 3900).stages
    assert stage.per_minute == pytest.approx(4 / 10)
    assert stage.left_seconds == pytest.approx(60 * 17 / 0.4)
    assert '17' in status.describe(read_status(run.path, NOW + 3900))
    # A stage that is over is told the speed of its own time.
    for block in GRID:
        finish(ledger, block.index, NOW + 60 * GRID.linear(block.index))
    (stage,) = read_status(run.path, NOW + 10**6).stages
    assert stage.per_minute == pytest.approx(24 / 23) and stage.left_seconds == 0.0
    assert stage.state == 'done'


def test_blocks_that_were_given_up(run):
    ledger = start(run, 'flood', since=time.time() - 10)
    record = {'error': 'BlockError: a cosmic ray'}
    storage.write_bytes(f'{ledger.path}/quarantine/0/1_2.json', json.dumps(record).encode())
    storage.write_bytes(f'{ledger.path}/quarantine/0/1_3.json', b'{')
    for block in GRID:
        if block.index not in ((0, 1, 2), (0, 1, 3)):
            finish(ledger, block.index)
    found = read_status(run.path)
    (stage,) = found.stages
    assert (stage.done, stage.quarantined, stage.left, stage.state) == (22, 2, 0, 'quarantined')
    text = status.describe(found)
    assert 'failed: flood: block 1_2: BlockError: a cosmic ray' in text
    assert 'failed: flood: block 1_3: its record cannot be read' in text


def test_a_graph_stage_is_one_step(run):
    ledger = start(run, 'components', since=time.time() - 10, config='')
    assert read_status(run.path).stages[0].state == 'waiting'
    storage.write_bytes(f'{ledger.path}/marker.json', b'{"key": "k"}')
    (stage,) = read_status(run.path).stages
    assert (stage.blocks, stage.done, stage.state) == (1, 1, 'done')


def test_a_run_is_finished_when_its_report_is_younger_than_its_blocks(run):
    ledger = start(run, 'flood', since=time.time() - 10)
    for block in GRID:
        finish(ledger, block.index)
    time.sleep(0.02)
    storage.write_bytes(f'{run.path}/report.json', b'{}')
    found = read_status(run.path)
    assert found.reported and 'finished' in status.describe(found)
    told = status.as_json(found)
    assert told['finished'] and told['stages'][0]['state'] == 'done'
    json.dumps(told)


def test_only_the_stages_that_are_wanted(run):
    start(run, 'flood'), start(run, 'match')
    (stage,) = read_status(run.path, only=['match']).stages
    assert stage.name == 'match'
    with pytest.raises(ValueError, match="--stage 'polish': the run has no such stage; it has fl"):
        read_status(run.path, only=['polish'])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'run_dir is .*: holds no run \(there is no run.json'
    ):
        read_status(str(tmp_path))


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [(0.4, '0 s'), (59.4, '59 s'), (185, '3:05 min'), (7800, '2:10 h'), (4.5 * 86400, '4.5 days')],
)
def test_clock(seconds, text):
    assert status.clock(seconds) == text
