from __future__ import annotations

import os
import time

import pytest

from h01_beam.ledger import Ledger, Marker
from h01_beam.progress import LedgerProgress, count_done, counting
from h01_beam.run import StagePlan

MARKER = Marker(key='k', digest='d', rows=0, seconds=0)


@pytest.fixture
def plan(tmp_path):
    return StagePlan(
        name='flood', blocks=3, read_bytes=0, write_bytes=0, memory_bytes=0,
        ledger=Ledger(f'{tmp_path}/ledger'), since=0.0,
    )  # fmt: skip


def changed(plan, **values):
    return StagePlan(**{**vars(plan), **values})


def test_markers_count_when_a_stage_resumes(plan):
    assert count_done(plan, 0) == 0
    for x in range(5):
        plan.ledger.write((0, 0, x), MARKER)
        assert count_done(plan, float('inf')) == min(x + 1, 3)


def test_only_new_markers_count_after_a_change(plan):
    since = time.time() - 100
    for x in range(3):
        plan.ledger.write((0, 0, x), MARKER)
    os.utime(f'{plan.ledger.path}/blocks/0/0_1.json', (since - 1, since - 1))
    assert count_done(changed(plan, since=None), since) == 2
    assert count_done(changed(plan, since=since), 0) == 2
    assert count_done(plan, since) == 3


def test_nothing_is_shown_where_nobody_looks(plan, capfd):
    with LedgerProgress([plan], enabled=False):
        pass
    with LedgerProgress([plan]):  # Under pytest, stderr is no terminal.
        pass
    assert capfd.readouterr() == ('', '')


def test_a_bar_for_every_stage(plan, capfd):
    # A stage without blocks (a graph stage) has no bar.
    with LedgerProgress([plan, changed(plan, name='graph', blocks=0)], enabled=True):
        for x in range(3):
            plan.ledger.write((0, 0, x), MARKER)
    shown = capfd.readouterr().err
    assert 'flood' in shown and '3/3' in shown and 'graph' not in shown


def test_a_ledger_that_cannot_be_read_ends_no_run(plan, monkeypatch, capfd):
    def fail(ledger, since):
        raise OSError('the network is down')

    monkeypatch.setattr(Ledger, 'markers_written', fail)
    with LedgerProgress([plan], enabled=True):
        pass
    assert 'flood' in capfd.readouterr().err


def test_a_count_is_shown_from_where_it_goes_on(capfd):
    with counting('training', 5, 'steps', done=2, enabled=True) as stepped:
        stepped()
        stepped()
    shown = capfd.readouterr().err
    assert 'training' in shown and '4/5 steps' in shown
    with counting('training', 5, 'steps') as stepped:  # Under pytest, stderr is no terminal.
        stepped()
    assert capfd.readouterr() == ('', '')
