"""A block runs exactly when what it depends on has changed."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid
from h01_beam.ledger import Ledger
from h01_beam.tables import from_parquet, length
from h01_beam.volume import Volume
from tests.arrays import box, create, position_code, read_all, run_pipeline, tree_bytes
from tests.blocks import (
    BLOCK,
    ROWS,
    Mean,
    UntilPoisoned,
    chunks,
    counts,
    grid_of,
    map_blocks,
    mean_with_rows,
    noisy_image,
    summary_of,
    target,
)


@pytest.fixture
def source(tmp_path):
    return noisy_image(tmp_path)


def test_the_rest_runs_after_a_failure_and_only_the_rest(tmp_path, source, concurrency=2):
    output, poison = target(tmp_path / 'out', source), tmp_path / 'poison'
    poison.write_text('')
    function = UntilPoisoned(str(poison))
    with pytest.raises(Exception, match=r'stage filter, block \(1, 1, 1\) .*a cosmic ray'):
        map_blocks(tmp_path / 'run', source, output, function, concurrency=concurrency)
    finished = len(list(Ledger(f'{tmp_path}/run/ledger/filter').markers_written()))
    assert 0 < finished < 27
    poison.unlink()
    summary = map_blocks(tmp_path / 'run', source, output, function, concurrency=concurrency)
    assert counts(summary) == (27, 27 - finished, finished)
    undisturbed = target(tmp_path / 'undisturbed', source)
    map_blocks(tmp_path / 'other', source, undisturbed)
    assert chunks(tmp_path / 'out') == chunks(tmp_path / 'undisturbed')
    assert counts(map_blocks(tmp_path / 'run', source, output, function)) == (27, 0, 27)


def chain(tmp_path, source, offsets=(0, 0, 0, 0), scale=1):
    """Runs first -> second -> third, and a fourth beside them; returns how many blocks ran."""
    specs = [target(tmp_path / f'run/volumes/v{i}', source) for i in range(4)]
    sources = [source, specs[0], specs[1], source]

    def build(root, run):
        done = []
        for i, (spec, read, offset) in enumerate(zip(specs, sources, offsets)):
            done.append(
                root
                | MapBlocks(
                    Mean(offset, radius=1), stage=f'stage{i}', run=run, grid=grid_of(source),
                    reads={'image': read}, writes={'out': spec}, config=[offset, scale],
                    after=done[-1:],
                )
            )  # fmt: skip

    run = run_pipeline(tmp_path / 'run', build)
    return [summary_of(run, f'stage{i}')['blocks_run'] for i in range(4)]


@pytest.fixture(scope='module')
def finished_chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp('chain')
    assert chain(folder, noisy_image(folder)) == [27, 27, 27, 27]
    return folder


@pytest.fixture
def chained(finished_chain, tmp_path):
    """A folder with a copy of a finished chain (and of its source), and the source."""
    folder = tmp_path / 'copy'
    shutil.copytree(finished_chain, folder)
    return folder, Volume.open(f'{finished_chain}/em').spec


def test_nothing_runs_again_even_in_another_place(chained):
    assert chain(*chained) == [0, 0, 0, 0]


def test_another_image_with_the_same_metadata_is_another_image(chained):
    """Foreign volumes have no digests: what stands elsewhere may be something else."""
    folder, _ = chained
    copied = Volume.open(f'{folder}/em').spec
    assert chain(folder, copied) == [27, 0, 0, 27]  # The same voxels, after all.


def test_a_parameter_re_runs_what_depends_on_it_and_nothing_else(chained):
    folder, source = chained
    assert chain(folder, source, (0, 7, 0, 0)) == [0, 27, 27, 0]
    expected = Mean(0, 1)(Mean(7, 1)(Mean(0, 1)(read_all(source.uri))))
    np.testing.assert_array_equal(read_all(f'{folder}/run/volumes/v2'), expected)


def test_what_comes_out_the_same_stops_there(chained):
    folder, source = chained
    before = tree_bytes(folder / 'run/volumes')
    shutil.rmtree(folder / 'run/ledger/stage0/blocks')
    assert chain(folder, source) == [27, 0, 0, 0]
    assert tree_bytes(folder / 'run/volumes') == before


def test_a_changed_block_re_runs_the_blocks_that_read_it(chained):
    folder, source = chained
    first = Volume.open(f'{folder}/run/volumes/v0')
    changed = grid_of(source)[0, 2, 0]
    first.write(changed.core, np.full(changed.core.shape, 999, np.uint16))
    ledger = Ledger(f'{folder}/run/ledger/stage0')
    ledger.write(changed.index, dataclasses.replace(ledger.read(changed.index), digest='new'))
    grid = grid_of(source)
    second = [b for b in grid if b.read.intersection(changed.core)]
    third = [b for b in grid if any(b.read.intersection(other.core) for other in second)]
    assert 1 < len(second) < len(third)
    assert chain(folder, source) == [0, len(second), len(third), 0]
    expected = Mean(0, 1)(Mean(0, 1)(first.read(first.bounds)))
    np.testing.assert_array_equal(read_all(f'{folder}/run/volumes/v2'), expected)


def test_a_deleted_volume_is_made_again(chained):
    folder, source = chained
    before = tree_bytes(folder / 'run/volumes')
    shutil.rmtree(folder / 'run/volumes/v1')
    # The same blocks come out, so that what reads them need not run.
    assert chain(folder, source) == [0, 27, 0, 0]
    after = tree_bytes(folder / 'run/volumes')
    assert after.keys() == before.keys()
    assert [path for path in after if after[path] != before[path]] == ['v1/provenance_0.json']


def test_reading_what_has_not_finished_is_an_error(chained):
    folder, _ = chained
    os.remove(folder / 'run/ledger/stage0/blocks/0/0_0.json')
    read = Volume.open(f'{folder}/run/volumes/v0').spec
    output = target(folder / 'out', read)
    with pytest.raises(Exception, match=r'block \(0, 0, 0\) of .*stage0.* has not finished'):
        map_blocks(folder / 'later', read, output)


def test_a_volume_of_another_layout_is_made_anew(tmp_path, source):
    output = target(tmp_path / 'out', source)
    map_blocks(tmp_path / 'run', source, output)
    output = dataclasses.replace(output, chunk=(2, 8, 16))
    assert counts(map_blocks(tmp_path / 'run', source, output)) == (27, 27, 0)
    np.testing.assert_array_equal(read_all(output.uri), Mean()(read_all(source.uri)))
    assert counts(map_blocks(tmp_path / 'run', source, output)) == (27, 0, 27)


def code(block):
    return position_code(block.core, 'uint16')


@pytest.mark.parametrize(('sections', 'reused'), [(8, 18), (10, 0)])
def test_sections_at_the_end_run_alone(tmp_path, sections, reused):
    """The volume grows where its end is one of chunks; the blocks that were there do not run."""

    like = create(tmp_path / 'like', write=False).spec

    def write(count):
        output = target(tmp_path / 'out', like, shape=(count, 21, 35))

        def build(root, run):
            root | MapBlocks(
                code, stage='code', run=run, grid=grid_of(output, (0, 0, 0)),
                writes={'out': output},
            )  # fmt: skip

        return summary_of(run_pipeline(tmp_path / 'run', build), 'code'), output

    write(sections)
    before = chunks(tmp_path / 'out')
    summary, output = write(16)
    assert counts(summary) == (36, 36 - reused, reused)
    after = chunks(tmp_path / 'out')
    assert reused == 0 or {k for k in before if after[k] != before[k]} == {'info'}
    expected = position_code(output.bounds, 'uint16')
    np.testing.assert_array_equal(read_all(output.uri), expected)
    assert counts(write(16)[0]) == (36, 0, 36)


def test_a_crash_while_a_volume_is_made_anew_loses_nothing(tmp_path, source, monkeypatch):
    output = target(tmp_path / 'out', source)
    map_blocks(tmp_path / 'run', source, output)
    shutil.rmtree(tmp_path / 'out')
    create_volume = Volume.create

    def crash(spec):
        create_volume(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(Volume, 'create', crash)
    with pytest.raises(KeyboardInterrupt):
        map_blocks(tmp_path / 'run', source, output)
    monkeypatch.undo()
    assert counts(map_blocks(tmp_path / 'run', source, output)) == (27, 27, 0)
    np.testing.assert_array_equal(read_all(output.uri), Mean()(read_all(source.uri)))


def test_what_another_run_wrote_since_is_not_taken_for_finished(tmp_path, source):
    output = target(tmp_path / 'out', source)
    for run_dir, offset in (('a', 0), ('b', 7), ('a', 0)):
        summary = map_blocks(tmp_path / run_dir, source, output, Mean(offset))
        assert counts(summary) == (27, 27, 0)
        np.testing.assert_array_equal(read_all(output.uri), Mean(offset)(read_all(source.uri)))
    assert counts(map_blocks(tmp_path / 'a', source, output, Mean())) == (27, 0, 27)


def test_a_run_that_goes_on_to_another_output_and_back_leaves_no_gap(tmp_path, source):
    first, second = target(tmp_path / 'one', source), target(tmp_path / 'two', source)
    (tmp_path / 'poison').write_text('')
    function = UntilPoisoned(str(tmp_path / 'poison'))
    with pytest.raises(Exception, match='a cosmic ray'):
        map_blocks(tmp_path / 'run', source, first, function)
    (tmp_path / 'poison').unlink()
    for output in (second, first):
        map_blocks(tmp_path / 'run', source, output, function)
        np.testing.assert_array_equal(read_all(output.uri), Mean()(read_all(source.uri)))


def test_rows_of_blocks_that_are_no_more_are_deleted(tmp_path, source):
    output = target(tmp_path / 'out', source)
    values = {'table_writes': {'rows': ROWS}}
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)
    part = BlockGrid(box((3, 5, 7), (8, 21, 35)), BLOCK, (2, 2, 2))
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, grid=part, **values)
    tables = f'{tmp_path}/run/tables/rows'
    assert len(list(storage.list_files(f'{tables}/parts'))) == 18
    joined = from_parquet(storage.read_bytes(f'{tables}/000000.parquet'))
    image = read_all(source.uri)[:8]
    assert 0 < length(joined) == (image > 250).sum()


def test_new_sections_leave_finished_blocks_alone(tmp_path, source):
    """Foreign volumes are known as a whole, so the sections come through a ledger of their own."""
    output = target(tmp_path / 'out', source)
    part = BlockGrid(box((3, 5, 7), (8, 21, 35)), BLOCK, (0, 0, 0))
    whole = BlockGrid(source.bounds, BLOCK, (0, 0, 0))
    assert counts(map_blocks(tmp_path / 'run', source, output, grid=part)) == (18, 18, 0)
    assert counts(map_blocks(tmp_path / 'run', source, output, grid=whole)) == (27, 9, 18)


def test_a_changed_version_or_model_re_runs(tmp_path, source):
    output = target(tmp_path / 'out', source)
    for values in ({'model_hash': 'a'}, {'version': 2, 'model_hash': 'a'}, {'model_hash': 'b'}):
        assert map_blocks(tmp_path / 'run', source, output, **values)['blocks_run'] == 27


def test_old_markers_do_not_vouch_for_new_data(tmp_path, source, monkeypatch):
    """Killed between a block's data and its marker, then back to the parameters before."""
    output = target(tmp_path / 'out', source)
    map_blocks(tmp_path / 'run', source, output, Mean())
    expected = read_all(output.uri)

    def killed(self, index, marker):
        raise RuntimeError('killed')

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, 'write', killed)
        with pytest.raises(Exception, match='killed'):
            map_blocks(tmp_path / 'run', source, output, Mean(offset=7))
    assert not np.array_equal(read_all(output.uri), expected)
    assert map_blocks(tmp_path / 'run', source, output, Mean())['blocks_run'] >= 1
    np.testing.assert_array_equal(read_all(output.uri), expected)
