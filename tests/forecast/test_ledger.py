from __future__ import annotations

import json

import pytest

from h01_beam.forecast import ledger, page
from h01_beam.progress import count_done
from h01_beam.run import Resources, Run
from h01_beam.status import read_status


def test_a_made_ledger_is_one_that_runs_read(tmp_path):
    run = Run(str(tmp_path / 'run'), Resources.local(1))
    run.write_manifest('ledger', {}, {})
    grid = ledger.make_grid(60_000)
    assert grid.shape == (2, 200, 200)
    ledger.make_ledger(run, grid)
    paths = list(run.ledger('blocks').markers_written())
    assert len(set(paths)) == len(paths) == len(grid)
    for index in ((0, 0, 0), (1, 3, 199)):
        assert run.ledger('blocks').read(index).digest == 'd'
    # It is the ledger of that very stage, so that all of its blocks count as done.
    dry = Run(run.path, run.resources, dry_run=True)
    ledger._stage(dry, grid)
    assert dry.plans[0].since is not None
    assert count_done(dry.plans[0], dry.plans[0].since) == len(grid)
    (stage,) = read_status(run.path).stages
    assert (stage.blocks, stage.done, stage.state) == (80_000, 80_000, 'done')


def test_what_is_measured_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, 'RESUMED', 20)
    measured = ledger.simulate(500, str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # Nothing is left behind.
    assert measured['blocks'] == 500
    assert [row['blocks'] for row in measured['measured']] == [500, 500, 500, 20]
    assert all(row['peak_bytes'] > 2**20 for row in measured['measured'])
    json.dumps(measured)
    text = ledger.describe(measured)
    assert 'Plan and status: within 10 min and 4 GiB' in text
    assert 'What breaks first: listing ' in text
    assert measured['breaks_first'] in page._ledger_text(measured)


def test_no_blocks_are_refused():
    with pytest.raises(ValueError, match='--ledger_blocks is 0: must be at least 1'):
        ledger.simulate(0)
