"""A block that fails is tried again, then left out with all that needs it; the rest is done."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import threading

import numpy as np
import pytest

from h01_beam import quarantine, storage, work
from h01_beam.blockwise import MapBlocks
from h01_beam.finish import FinishRun
from h01_beam.ledger import Ledger
from h01_beam.run import FailurePolicy
from tests.arrays import read_all, run_pipeline, summaries, tree_bytes
from tests.blocks import (
    ROWS,
    Mean,
    chunks,
    filter_twice,
    grid_of,
    mean_with_rows,
    noisy_image,
    target,
)

POISON = (1, 1, 1)
ONCE = FailurePolicy(attempts=1)
AGAIN = FailurePolicy(attempts=1, retry_quarantined=True)


@pytest.fixture
def source(tmp_path):
    return noisy_image(tmp_path)


@dataclasses.dataclass
class Poisoned:
    """Fails in one block as often as `times` says, and counts its attempts in a folder."""

    folder: str
    times: int = 1000

    def __call__(self, image, block):
        if block.index == POISON:
            attempts = len(os.listdir(self.folder))
            if attempts < self.times:
                open(os.path.join(self.folder, str(attempts)), 'x').close()
                raise RuntimeError('a cosmic ray')
        return mean_with_rows(image, block)


@pytest.fixture
def poison(tmp_path):
    (tmp_path / 'attempts').mkdir()
    return Poisoned(str(tmp_path / 'attempts'))


def attempts_of(function):
    return len(os.listdir(function.folder))


def two_stages(tmp_path, source, function, policy=ONCE, strict=False):
    """`filter` with rows, then `again`, which reads it with a halo."""
    outputs = [target(tmp_path / f'run/volumes/v{i}', source) for i in range(2)]

    def build(root, run):
        run.write_manifest('filter', {}, {})
        filter_twice(root, run, source, function, outputs)
        if strict:
            root | FinishRun(run)

    return summaries(run_pipeline(tmp_path / 'run', build, policy=policy, strict=strict))


def kinds(summary):
    return summary['blocks_run'], summary['blocks_quarantined'], summary['blocks_blocked']


def test_what_passes_is_tried_again(tmp_path, source, poison):
    poison.times = 2
    summary = two_stages(tmp_path, source, poison, FailurePolicy(attempts=3))['filter']
    assert summary['blocks_run'] == 27 and summary['failed_attempts'] == 2
    assert 'blocks_quarantined' not in summary and 'holes' not in summary


def test_what_does_not_is_left_out_with_what_needs_it(tmp_path, source, poison):
    found = two_stages(tmp_path, source, poison, FailurePolicy(attempts=3))
    assert attempts_of(poison) == 3
    grid = grid_of(source, (1, 1, 1))
    core = grid[POISON].core
    blocked = [list(b.index) for b in grid if b.read.intersection(core)]
    assert 1 < len(blocked) <= 27
    assert kinds(found['filter']) == (26, 1, 0)
    assert kinds(found['again']) == (27 - len(blocked), 0, len(blocked))
    (hole,) = found['filter']['holes']
    assert hole['block'] == list(POISON) and hole['attempts'] == 3
    assert 'a cosmic ray' in hole['error'] and 'Traceback' in hole['traceback']
    assert [h['block'] for h in found['again']['holes']] == blocked
    assert 'has not finished' in found['again']['holes'][0]['error']
    # Tables with holes are not joined.
    rows = tmp_path / 'run/tables/rows'
    assert not (rows / '000000.parquet').exists() and not (rows / 'parts/1/1_1.parquet').exists()


def test_they_are_taken_up_when_asked_and_not_before(tmp_path, source, poison):
    first = two_stages(tmp_path, source, poison)
    second = two_stages(tmp_path, source, poison)
    assert attempts_of(poison) == 1
    assert second['filter']['holes'] == first['filter']['holes']
    assert second['again']['holes'] == first['again']['holes']
    poison.times = 1
    third = two_stages(tmp_path, source, poison, AGAIN)
    assert third['filter']['blocks_run'] == 1
    assert third['again']['blocks_run'] == first['again']['blocks_blocked']
    assert not list(quarantine.notes(Ledger(f'{tmp_path}/run/ledger/filter')))
    two_stages(tmp_path / 'other', source, poison)
    for path in ('volumes/v0', 'volumes/v1', 'tables/rows'):
        assert chunks(tmp_path / 'run' / path) == chunks(tmp_path / 'other/run' / path)


def test_old_results_do_not_stand_in(tmp_path, source, poison):
    """A block that was done under other parameters, and fails now, is a hole too."""
    times, poison.times = poison.times, 0
    two_stages(tmp_path, source, poison)
    poison.times = times
    changed = dataclasses.replace(source, uri=source.uri.replace('/em', '/em2'))
    noisy = read_all(source.uri)
    from h01_beam.volume import Volume

    Volume.create(changed)[0].write(source.bounds, noisy)
    found = two_stages(tmp_path, changed, poison)
    assert kinds(found['filter']) == (26, 1, 0) and found['again']['blocks_blocked'] > 0
    assert Ledger(f'{tmp_path}/run/ledger/again').read(POISON) is None


def test_the_report_lists_them_and_the_run_fails(tmp_path, source, poison):
    expected = (
        r'stage filter, block \(1, 1, 1\) .*: RuntimeError: a cosmic ray.*1 quarantined blocks and '
        r'\d+ that wait for them.*--retry_quarantined'
    )
    with pytest.raises(Exception, match=expected):
        two_stages(tmp_path, source, poison, strict=True)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert report['stages']['filter']['holes'][0]['traceback']
    page = (tmp_path / 'run/report.html').read_text()
    assert 'Blocks that were left out' in page and 'Traceback' in page and 'a cosmic ray' in page


def test_rows_that_are_not_there_block(tmp_path, source, poison):
    def build(root, run):
        first = root | MapBlocks(
            poison, stage='filter', grid=grid_of(source), run=run, reads={'image': source},
            writes={'filtered': target(tmp_path / 'v', source)}, table_writes={'rows': ROWS},
        )  # fmt: skip
        from h01_beam.geometry import CoreBox

        root | MapBlocks(
            lambda rows: work.BlockResult(), stage='count', grid=grid_of(source), run=run,
            table_reads={'rows': CoreBox()}, after=[first],
        )  # fmt: skip

    run = run_pipeline(tmp_path / 'run', build, policy=ONCE, strict=False)
    found = summaries(run)['count']
    assert kinds(found) == (26, 0, 1) and found['holes'][0]['block'] == list(POISON)


def test_a_table_that_is_out_of_date_blocks_all(tmp_path, source):
    run = run_pipeline(tmp_path / 'run', lambda root, run: None)
    run.check_table('rows')
    run.void_table('rows', 'two blocks are missing')
    with pytest.raises(Exception, match="table 'rows' was not made: two blocks are missing"):
        run.check_table('rows')
    run.restore_table('rows')
    run.check_table('rows')


class AlwaysFails:
    def __call__(self, image):
        raise OSError('no model')


def test_a_run_in_which_all_blocks_fail_is_given_up(tmp_path, source):
    with pytest.raises(Exception, match=r'no model; so did 10 blocks one after the other'):
        two_stages(tmp_path, source, AlwaysFails())
    notes = list(quarantine.notes(Ledger(f'{tmp_path}/run/ledger/filter')))
    assert len(notes) == work.MOST_IN_A_ROW


def test_a_full_disk_is_not_the_blocks_fault(tmp_path, source, monkeypatch):
    from h01_beam.volume import Volume

    def full(self, box, array):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Volume, 'write', full)
    with pytest.raises(Exception, match='free space.*finished blocks are kept'):
        two_stages(tmp_path, source, Mean(), AGAIN)
    assert not list(quarantine.notes(Ledger(f'{tmp_path}/run/ledger/filter')))


def test_policies_are_checked():
    with pytest.raises(ValueError, match='block_attempts is 0: must be at least 1'):
        FailurePolicy(attempts=0)


def test_a_bundle_that_runs_twice_at_once(tmp_path, source):
    """Two workers get the same blocks and meet inside of each: nothing is lost, nothing double."""
    expected = two_stages(tmp_path / 'alone', source, mean_with_rows)
    barrier = threading.Barrier(2)

    def slow(image, block):
        barrier.wait(timeout=60)
        return mean_with_rows(image, block)

    outputs = target(tmp_path / 'run/volumes/v0', source)
    captured = []

    def build(root, run):
        transform = MapBlocks(
            slow, stage='filter', grid=grid_of(source), run=run, reads={'image': source},
            writes={'filtered': outputs}, table_writes={'rows': ROWS},
        )  # fmt: skip
        transform._create_outputs()
        captured.append(transform._process)

    run_pipeline(tmp_path / 'run', build)
    records = [[], []]

    def work_through(mine):
        twin = copy.copy(captured[0])
        twin.setup()
        twin.start_bundle()
        for linear in range(27):
            mine += twin.process(linear)

    threads = [threading.Thread(target=work_through, args=(mine,)) for mine in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert [len(mine) for mine in records] == [27, 27]
    assert all(r['ran'] for mine in records for r in mine)
    digests = [[r['digest'] for r in mine] for mine in records]
    assert digests[0] == digests[1]
    assert chunks(tmp_path / 'run/volumes/v0') == chunks(tmp_path / 'alone/run/volumes/v0')
    parts = tree_bytes(tmp_path / 'run/tables/rows/parts')
    assert parts == tree_bytes(tmp_path / 'alone/run/tables/rows/parts')
    assert expected['filter']['rows'] == sum(r['rows'] for r in records[0])
    assert np.unique([r['index'] for r in records[0]]).size == 27


def test_notes_that_cannot_be_read_count_as_none(tmp_path):
    ledger = Ledger(str(tmp_path))
    note = quarantine.Note(key='k', attempts=3, error='e', traceback='t')
    note.write(ledger, (1, 2, 3))
    assert quarantine.Note.read(ledger, (1, 2, 3)) == note
    (path,) = quarantine.notes(ledger)
    storage.write_bytes(path, b'{')
    assert quarantine.Note.read(ledger, (1, 2, 3)) is None
    quarantine.lift(ledger, (1, 2, 3))
    assert not list(quarantine.notes(ledger))
