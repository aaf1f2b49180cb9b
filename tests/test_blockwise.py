from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that
from scipy import ndimage

from h01_beam import storage, tables
from h01_beam.blockwise import FinishRun, MapBlocks, StageSummary
from h01_beam.geometry import BlockGrid, CoreBox, LowerFace, UpperOverlap
from h01_beam.plan import BlockResult, Read, Write
from h01_beam.run import Ledger, Marker, Resources, Run
from h01_beam.volume import Volume
from tests.arrays import box, create, position_code, read_all, run_pipeline, tree_bytes

BLOCK, HALO = (4, 8, 16), (2, 2, 2)
ROWS = tables.Schema({'voxel': 'uint64', 'block': 'int64'})


@dataclasses.dataclass(frozen=True)
class Mean:
    """A 3-d mean filter, plus a parameter."""

    offset: int = 0
    radius: int = 2

    def __call__(self, image):
        size = 2 * self.radius + 1
        total = ndimage.uniform_filter(image.astype(np.float64), size, mode='nearest')
        return (np.rint(total * 4) + self.offset).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class UntilPoisoned:
    """Fails in one block for as long as a file is there."""

    poison: str
    message: str = 'a cosmic ray'

    def __call__(self, image, block):
        if block.index == (1, 1, 1) and os.path.exists(self.poison):
            raise (
                OSError(errno.ENOSPC, self.message)
                if 'space' in self.message
                else (RuntimeError(self.message))
            )
        return Mean()(image)


def grid_of(spec, halo=HALO):
    return BlockGrid(spec.bounds, BLOCK, halo)


def target(path, source, driver='neuroglancer-precomputed', **values):
    return dataclasses.replace(
        source, uri=f'{path}|{driver}:', dtype='uint16',
        encoding='zstd' if driver == 'zarr3' else 'raw', **values,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    volume = create(tmp_path / 'em', write=False)
    noise = np.random.default_rng(0).integers(0, 256, volume.spec.shape, dtype=np.uint8)
    volume.write(volume.bounds, noise)
    return volume.spec


def map_blocks(run_dir, source, output, function=None, stage='filter', **values):
    """Runs one stage and returns its summary."""

    def build(root, run):
        arguments = {'grid': grid_of(source), 'reads': {'image': source}}
        arguments |= {
            'writes': {'filtered': output},
            'config': function if dataclasses.is_dataclass(function) else None,
        }
        root | MapBlocks(function or Mean(), stage=stage, run=run, **(arguments | values))

    return summary_of(run_pipeline(run_dir, build), stage)


def summary_of(run, stage):
    return json.loads(storage.read_bytes(storage.join(run.ledger(stage).path, 'summary.json')))


def chunks(folder):
    """All files of a volume but for where its ledger is."""
    return {k: v for k, v in tree_bytes(folder).items() if not k.startswith('provenance')}


def counts(summary):
    return summary['blocks'], summary['blocks_run'], summary['blocks_reused']


# ---------------------------------------------------------------- equivalence


@pytest.mark.parametrize(
    ('driver', 'shard'), [('neuroglancer-precomputed', (8, 16, 32)), ('zarr3', None)]
)
def test_blocks_equal_the_whole(tmp_path, source, driver, shard):
    output = target(tmp_path / 'out', source, driver, shard=shard)
    grid = BlockGrid(source.bounds, shard or BLOCK, HALO)
    assert min(grid.shape) > 1
    summary = map_blocks(tmp_path / 'run', source, output, grid=grid)
    assert counts(summary) == (len(grid), len(grid), 0)
    np.testing.assert_array_equal(read_all(output.uri), Mean()(read_all(source.uri)))


def test_functions_may_ask_for_their_block(tmp_path, source):
    def positions(block):
        return position_code(block.core, 'uint16')

    output = target(tmp_path / 'out', source)
    map_blocks(tmp_path / 'run', source, output, positions, reads={}, config=None)
    np.testing.assert_array_equal(read_all(output.uri), position_code(source.bounds, 'uint16'))


def test_functions_may_write_other_regions(tmp_path, source):
    """Each block also writes the plane after its core, into a volume of its own."""
    plane = target(tmp_path / 'plane', source)

    def with_overlap(image):
        return BlockResult(arrays={'filtered': Mean()(image), 'plane': Mean()(image)})

    output = target(tmp_path / 'out', source)
    region = UpperOverlap(0, 1)
    writes = {'filtered': output, 'plane': Write(plane, region, (1, 0, 0))}
    map_blocks(tmp_path / 'run', source, output, with_overlap, writes=writes, config=None)
    whole, planes = Mean(radius=2)(read_all(source.uri)), read_all(plane.uri)
    # One plane of halo is not enough for the same values, but for values at the same place.
    assert [bool(planes[z].any()) for z in range(10)] == [z in (4, 8) for z in range(10)]
    np.testing.assert_array_equal(read_all(output.uri), whole)

    def compare(before, after):
        return BlockResult(metrics={'pairs': float(before is not None)})

    def build(root, run):
        root | MapBlocks(
            compare, stage='compare', grid=grid_of(source), run=run,
            reads={'before': Read(plane, LowerFace(0, 1)), 'after': Read(output, LowerFace(0, 1))},
        )  # fmt: skip

    run = run_pipeline(tmp_path / 'run', build)
    grid = grid_of(source)
    assert summary_of(run, 'compare')['pairs'] == sum(block.index[0] > 0 for block in grid)


def test_every_block_leaves_one_record(tmp_path, source):
    expected = len(grid_of(source))

    def check(records):
        assert sorted(record['index'] for record in records) == list(range(expected))
        for record in records:
            assert record['ran'] and record['rows'] == 0 and record['seconds'] > 0
            assert int(record['digest'], 16) and record['metrics']['peak_memory_bytes'] > 2**20

    def build(root, run):
        output = target(tmp_path / 'out', source)
        records = root | MapBlocks(
            Mean(), stage='filter', grid=grid_of(source), run=run,
            reads={'image': source}, writes={'filtered': output},
        )  # fmt: skip
        assert_that(records, check)

    run_pipeline(tmp_path / 'run', build)


# ---------------------------------------------------------------- the same bytes


def test_blocks_that_run_twice_write_the_same_bytes(tmp_path, source):
    output = target(tmp_path / 'run/out', source)
    arguments = (tmp_path / 'run', source, output)
    values = {'table_writes': {'rows': ROWS}}
    first = map_blocks(*arguments, mean_with_rows, **values)
    before = tree_bytes(tmp_path / 'run/out') | tree_bytes(tmp_path / 'run/tables')
    shutil.rmtree(tmp_path / 'run/ledger/filter/blocks')
    again = map_blocks(*arguments, mean_with_rows, **values)
    assert counts(again) == counts(first) == (27, 27, 0)
    assert again['digest'] == first['digest']
    assert tree_bytes(tmp_path / 'run/out') | tree_bytes(tmp_path / 'run/tables') == before


def test_concurrency_does_not_change_a_byte(tmp_path, source):
    summaries = []
    for concurrency in (1, 3):
        output = target(tmp_path / f'out{concurrency}', source)
        run_dir = tmp_path / f'run{concurrency}'
        summaries.append(map_blocks(run_dir, source, output, concurrency=concurrency))
    assert chunks(tmp_path / 'out1') == chunks(tmp_path / 'out3')
    assert summaries[0]['digest'] == summaries[1]['digest']
    assert counts(summaries[1]) == (27, 27, 0)


# ---------------------------------------------------------------- resume and re-runs


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
    volume = create(folder / 'em', write=False)
    noise = np.random.default_rng(0).integers(0, 256, volume.spec.shape, dtype=np.uint8)
    volume.write(volume.bounds, noise)
    assert chain(folder, volume.spec) == [27, 27, 27, 27]
    return folder


@pytest.fixture
def chained(finished_chain, tmp_path):
    """A folder with a finished chain, and its source."""
    folder = tmp_path / 'copy'
    shutil.copytree(finished_chain, folder)
    return folder, Volume.open(f'{folder}/em').spec


def test_nothing_runs_again_even_in_another_place(chained):
    assert chain(*chained) == [0, 0, 0, 0]


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
    assert tree_bytes(folder / 'run/volumes') == before


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


# ---------------------------------------------------------------- failures


def test_a_failing_block_is_named(tmp_path, source):
    def fail(image):
        raise ZeroDivisionError('by zero')

    output = target(tmp_path / 'out', source)
    message = r'stage filter, block \(\d, \d, \d\) \(core \[.*\]\): ZeroDivisionError: by zero'
    with pytest.raises(Exception, match=message):
        map_blocks(tmp_path / 'run', source, output, fail, config=None)


def test_a_full_disk_says_what_to_do(tmp_path, source):
    (tmp_path / 'poison').write_text('')
    function = UntilPoisoned(str(tmp_path / 'poison'), 'No space left on device')
    output = target(tmp_path / 'out', source)
    message = r'block \(1, 1, 1\).*the disk is full: free space .* finished blocks are kept'
    with pytest.raises(Exception, match=message):
        map_blocks(tmp_path / 'run', source, output, function)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 200 kB; only root can mount one."""
    folder = tmp_path / 'tiny'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip('cannot mount a small file system here')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_a_disk_that_is_full_indeed(tmp_path, tiny_disk):
    noise = create(tmp_path / 'em', shape=(64, 64, 64), chunk=(16, 32, 32), write=False)
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    noise.write(noise.bounds, values)
    output = dataclasses.replace(noise.spec, uri=f'{tiny_disk}/out|neuroglancer-precomputed:')
    arguments = {'grid': BlockGrid(noise.bounds, (16, 32, 32)), 'config': None}
    with pytest.raises(Exception, match='the disk is full: free space') as caught:
        map_blocks(tiny_disk / 'run', noise.spec, output, copy_image, **arguments)
    assert 'stage filter, block (' in str(caught.value)
    finished = len(list(Ledger(f'{tiny_disk}/run/ledger/filter').markers_written()))
    assert 0 < finished < 16
    subprocess.run(['mount', '-o', 'remount,size=2M', str(tiny_disk)], check=True)
    summary = map_blocks(tiny_disk / 'run', noise.spec, output, copy_image, **arguments)
    assert counts(summary) == (16, 16 - finished, finished)
    np.testing.assert_array_equal(read_all(output.uri), values)


def copy_image(image):
    return image


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (lambda image: image, r'cannot write uint8 .* must be uint16'),
        (lambda image: BlockResult(), r"returned arrays \[\]: must be \['filtered'\]"),
        (
            lambda image: BlockResult(arrays={'filtered': Mean()(image)}, rows={'rows': {}}),
            r"rows for \['rows'\]: the stage writes the tables \[\]",
        ),
    ],
)
def test_results_that_nobody_would_write_are_refused(tmp_path, source, function, message):
    output = target(tmp_path / 'out', source)
    with pytest.raises(Exception, match=message):
        map_blocks(tmp_path / 'run', source, output, function, config=None)


def refuse(tmp_path, source, message, memory_bytes=2**33, **values):
    run = Run(str(tmp_path / 'run'), Resources(2, memory_bytes))
    arguments = {'grid': grid_of(source), 'reads': {'image': source}}
    arguments['writes'] = {'filtered': target(tmp_path / 'out', source)}
    with pytest.raises(ValueError, match=message):
        MapBlocks(Mean(), stage='filter', run=run, **(arguments | values))
    assert not (tmp_path / 'out').exists()


def test_doomed_stages_are_refused_before_they_start(tmp_path, source):
    grid = grid_of(source)
    misaligned = dataclasses.replace(grid, block_shape=(4, 8, 20))
    refuse(tmp_path, source, 'two blocks would write one chunk', grid=misaligned)
    far = dataclasses.replace(grid, halo=(5, 2, 2))
    refuse(tmp_path, source, r'halo \(5, 2, 2\) exceeds block_shape', grid=far)
    refuse(tmp_path, source, 'a worker would need 0.4 GiB', memory_bytes=2**27)
    writes = {'filtered': source}
    refuse(tmp_path, source, 'would overwrite the input', writes=writes)


def test_a_dry_run_writes_nothing(tmp_path, source):
    output = target(tmp_path / 'out', source)

    def build(root, run):
        root | MapBlocks(
            Mean(), stage='filter', grid=grid_of(source), run=run,
            reads={'image': source}, writes={'filtered': output},
        )  # fmt: skip

    before = tree_bytes(tmp_path)
    run = run_pipeline(tmp_path / 'run', build, dry_run=True)
    assert [plan.blocks for plan in run.plans] == [27]
    assert tree_bytes(tmp_path) == before


# ---------------------------------------------------------------- rows


def mean_with_rows(image, block):
    """One row for every bright voxel of the core."""
    bright = np.argwhere(image[block.core_in_read] > 250) + block.core.start
    voxels = (bright * (1_000_000, 1000, 1)).sum(1).astype(np.uint64)
    rows = {'voxel': voxels, 'block': np.full(len(voxels), sum(block.index))}
    metrics = {'bright': float(len(voxels)), 'peak_bright': float(len(voxels))}
    return BlockResult(arrays={'filtered': Mean()(image)}, rows={'rows': rows}, metrics=metrics)


def test_rows_leave_a_block_as_one_part(tmp_path, source):
    output = target(tmp_path / 'out', source)
    values = {'table_writes': {'rows': ROWS}}
    summary = map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)
    image = read_all(source.uri)
    expected = (np.argwhere(image > 250) + source.start) @ (1_000_000, 1000, 1)
    parts = [Path(path) for path in storage.list_files(f'{tmp_path}/run/tables/rows/parts')]
    assert len(parts) == 27
    loaded = [tables.from_parquet(part.read_bytes()) for part in parts]
    voxels = np.concatenate([part['voxel'] for part in loaded])
    np.testing.assert_array_equal(np.sort(voxels), np.sort(expected).astype(np.uint64))
    assert summary['rows'] == summary['bright'] == len(expected) > 27
    assert summary['peak_bright'] == max(map(tables.length, loaded))


def test_empty_parts_replace_old_rows(tmp_path, source):
    output = target(tmp_path / 'out', source)
    values = {'table_writes': {'rows': ROWS}}
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)
    summary = map_blocks(tmp_path / 'run', source, output, Mean(), **values)
    assert summary['rows'] == 0 and summary['blocks_run'] == 27
    for path in storage.list_files(f'{tmp_path}/run/tables/rows'):
        part = tables.from_parquet(storage.read_bytes(path))
        assert tables.length(part) == 0 and part['voxel'].dtype == np.uint64


def test_a_block_may_read_its_own_rows(tmp_path, source):
    output = target(tmp_path / 'out', source)
    values = {'table_writes': {'rows': ROWS}}
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)

    def count(rows, block):
        assert (rows['block'] == sum(block.index)).all()
        return BlockResult(metrics={'rows_read': float(tables.length(rows))})

    def run_count():
        def build(root, run):
            root | MapBlocks(
                count, stage='count', grid=grid_of(source), run=run, table_reads=['rows']
            )

        return summary_of(run_pipeline(tmp_path / 'run', build), 'count')

    first = run_count()
    assert first['rows_read'] > 27 and first['blocks_run'] == 27
    part = f'{tmp_path}/run/tables/rows/parts/1/1_1.parquet'
    storage.write_bytes(part, tables.to_parquet(ROWS.empty(), ROWS))
    assert run_count()['blocks_run'] == 1


# ---------------------------------------------------------------- summaries


def record(index):
    return {
        'index': index, 'ran': index % 3 > 0, 'digest': f'{2**127 * (index % 2) + 7 * index:032x}',
        'rows': index, 'seconds': 0.5, 'started': 100.0 + index, 'ended': 101.0 + index,
        'metrics': {'steps': index, 'peak_memory_bytes': 1000 - index},
    }  # fmt: skip


def test_summaries_do_not_depend_on_the_order():
    combine, records = StageSummary(), [record(i) for i in range(8)]
    results = set()
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40320, 997):
        halves = []
        for part in (order[:3], order[3:], ()):
            total = combine.create_accumulator()
            for index in part:
                total = combine.add_input(total, records[index])
            halves.append(total)
        summary = combine.extract_output(combine.merge_accumulators(halves))
        results.add(json.dumps(summary, sort_keys=True))
    (only,) = results
    summary = json.loads(only)
    assert (summary['blocks'], summary['blocks_run'], summary['blocks_reused']) == (8, 5, 3)
    assert summary['steps'] == 28 and summary['peak_memory_bytes'] == 1000
    assert summary['wall_seconds'] == 7.0 and summary['seconds'] == 4.0


def test_summaries_change_with_any_digest():
    combine = StageSummary()

    def digest(records):
        total = combine.create_accumulator()
        for item in records:
            total = combine.add_input(total, item)
        return combine.extract_output(total)['digest']

    records = [record(i) for i in range(4)]
    changed = [*records[:3], dict(records[3], digest=records[2]['digest'])]
    swapped = [*changed[:2], dict(records[2], digest=records[3]['digest']), changed[3]]
    assert len({digest(records), digest(changed), digest(swapped)}) == 3


def test_the_report_waits_for_all_stages(tmp_path, source):
    output = target(tmp_path / 'out', source)

    def build(root, run):
        run.write_manifest('filter', {'radius': 2}, {})
        root | MapBlocks(
            Mean(), stage='filter', grid=grid_of(source), run=run,
            reads={'image': Read(source)}, writes={'filtered': Write(output, CoreBox())},
        )  # fmt: skip
        root | FinishRun(
            run, highlights=lambda content: {'blocks': content['stages']['filter']['blocks']}
        )

    run_pipeline(tmp_path / 'run', build)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert report['highlights'] == {'blocks': 27}
    assert report['stages']['filter']['blocks_run'] == 27
    assert report['stages']['filter']['peak_memory_bytes'] > 2**20
    assert '<h1>Filter report</h1>' in (tmp_path / 'run/report.html').read_text()


def test_a_marker_holds_what_the_contract_says(tmp_path, source):
    map_blocks(tmp_path / 'run', source, target(tmp_path / 'out', source))
    marker = json.loads((tmp_path / 'run/ledger/filter/blocks/1/2_0.json').read_text())
    assert set(marker) == {'key', 'digest', 'rows', 'seconds', 'metrics'}
    assert Marker(**marker).seconds > 0


def test_counters_are_beams(tmp_path, source):
    output = target(tmp_path / 'out', source)
    for name, expected in (('blocks_run', 27), ('blocks_reused', 27)):
        run = Run(str(tmp_path / 'run'), Resources(1, 2**33))
        pipeline = beam.Pipeline('DirectRunner')
        pipeline | MapBlocks(
            Mean(), stage='filter', grid=grid_of(source), run=run,
            reads={'image': source}, writes={'filtered': output},
        )  # fmt: skip
        result = pipeline.run()
        result.wait_until_finish()
        counters = result.metrics().query(beam.metrics.MetricsFilter().with_name(name))['counters']
        assert [counter.committed for counter in counters] == [expected]
