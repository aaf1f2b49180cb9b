from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that

from h01_beam import storage, tables
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, CoreBox, Overlap
from h01_beam.ledger import Ledger, Marker
from h01_beam.plan import BlockResult, Read, Write
from h01_beam.run import Resources, Run
from h01_beam.slots import SeenBy, SlotBox, Slots
from h01_beam.volume import Volume
from tests.arrays import box, create, position_code, read_all, run_pipeline, tree_bytes
from tests.blocks import (
    BLOCK,
    HALO,
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


def test_blocks_may_keep_all_that_they_saw(tmp_path, source):
    """Each writes its whole read box to a slot; then neighbours compare their overlaps."""
    grid = grid_of(source)
    slots = Slots(grid, source.chunk)
    views = dataclasses.replace(
        target(tmp_path / 'views', source),
        dtype='uint8',
        start=(0, 0, 0),
        shape=slots.as_grid.bounds.shape,
    )

    def look(image, block):
        return slots.pad(image, block)

    writes = {'views': Write(views, SlotBox(slots), slots.as_grid)}
    map_blocks(tmp_path / 'run', source, views, look, writes=writes, config=None)
    image, seen = Volume.open(source.uri), read_all(views.uri)
    for block in grid:
        where = slots.locate(block, block.read)
        assert slots.slot(block).contains(where)
        np.testing.assert_array_equal(seen[where.slices], image.read(block.read))

    def compare(before, after):
        if before is not None:
            np.testing.assert_array_equal(before, after)
        return BlockResult(metrics={'shared': 0.0 if before is None else float(before.size)})

    def build(root, run):
        overlap = Overlap(grid, 0)
        root | MapBlocks(
            compare, stage='compare', grid=grid, run=run,
            reads={'before': Read(views, SeenBy(slots, overlap, (-1, 0, 0))),
                   'after': Read(views, SeenBy(slots, overlap))},
        )  # fmt: skip

    run = run_pipeline(tmp_path / 'run', build)
    pairs = [grid.neighbour(block, (-1, 0, 0)) for block in grid]
    expected = sum(b.read.intersection(a.read).size for b, a in zip(grid, pairs) if a)
    assert summary_of(run, 'compare')['shared'] == expected > 0


def test_a_block_depends_on_those_whose_slots_it_reads(tmp_path, source):
    grid = grid_of(source)
    slots = Slots(grid, source.chunk)
    views = dataclasses.replace(
        target(tmp_path / 'views', source),
        dtype='uint8',
        start=(0, 0, 0),
        shape=slots.as_grid.bounds.shape,
    )
    writes = {'views': Write(views, SlotBox(slots), slots.as_grid)}
    run_dir = tmp_path / 'run'
    changed = grid[1, 1, 1].index

    def look(offset):
        def look_at(image, block):
            return slots.pad(image + np.uint8(offset * (block.index == changed)), block)

        return look_at

    def compare(before, after):
        return BlockResult()

    def build(root, run):
        root | MapBlocks(
            compare, stage='compare', grid=grid, run=run,
            reads={'before': Read(views, SeenBy(slots, Overlap(grid, 2), (0, 0, -1))),
                   'after': Read(views, SeenBy(slots, Overlap(grid, 2)))},
        )  # fmt: skip

    for offset in (0, 1):
        map_blocks(run_dir, source, views, look(offset), writes=writes, config=offset)
        summary = summary_of(run_pipeline(run_dir, build), 'compare')
    # The block itself, and the one after it along x.
    assert summary['blocks_run'] == 2


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
    message = r'block \(1, 1, 1\).*the disk is full: free space.* finished blocks are kept'
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
    # The parts, in the order of their blocks, are also there as one file.
    (path,) = (tmp_path / 'run/tables/rows').glob('*.parquet')
    compacted = tables.from_parquet(path.read_bytes())
    assert tables.length(compacted) == len(expected)
    np.testing.assert_array_equal(np.sort(compacted['voxel']), np.sort(voxels))
    assert (np.diff(compacted['block'].astype(np.int64)) < 0).any()  # Blocks, not sorted rows.
    made = path.stat().st_mtime_ns
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)
    assert path.stat().st_mtime_ns == made  # Nothing changed: not written again.


def test_empty_parts_replace_old_rows(tmp_path, source):
    output = target(tmp_path / 'out', source)
    values = {'table_writes': {'rows': ROWS}}
    map_blocks(tmp_path / 'run', source, output, mean_with_rows, **values)
    summary = map_blocks(tmp_path / 'run', source, output, Mean(), **values)
    assert summary['rows'] == 0 and summary['blocks_run'] == 27
    for path in storage.list_files(f'{tmp_path}/run/tables/rows', '.parquet'):
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
                count, stage='count', grid=grid_of(source), run=run, table_reads={'rows': CoreBox()}
            )

        return summary_of(run_pipeline(tmp_path / 'run', build), 'count')

    first = run_count()
    assert first['rows_read'] > 27 and first['blocks_run'] == 27
    part = f'{tmp_path}/run/tables/rows/parts/1/1_1.parquet'
    storage.write_bytes(part, tables.to_parquet(ROWS.empty(), ROWS))
    assert run_count()['blocks_run'] == 1


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


@dataclasses.dataclass(frozen=True)
class SectionsBefore:
    """The sections that the blocks before, of the same column, wrote; None for the first."""

    def __call__(self, block):
        z = block.core.start[0]
        first = block.core.translate((-block.index[0] * 4, 0, 0))
        return (
            None if not block.index[0] else box(first.start, (z - first.start[0], *first.shape[1:]))
        )


def add_all_before(image, before):
    total = np.zeros(image.shape[1:], np.int64) if before is None else before[-1].astype(np.int64)
    return (total + np.cumsum(image, axis=0, dtype=np.int64)).astype(np.uint32)


def test_blocks_of_a_chain_read_what_those_before_them_wrote(tmp_path):
    image = create(tmp_path / 'em', shape=(12, 21, 35))
    output = dataclasses.replace(
        image.spec, uri=f'{tmp_path}/out|neuroglancer-precomputed:', dtype='uint32'
    )
    grid = BlockGrid(image.bounds, (4, 8, 16))
    assert min(grid.shape) > 1

    def build(chained):
        def add(root, run):
            root | MapBlocks(
                add_all_before, stage='sums', reads={'image': Read(image.spec, CoreBox()),
                'before': Read(output, SectionsBefore())}, writes={'sums': output}, grid=grid,
                run=run, chained=chained,
            )  # fmt: skip

        return add

    with pytest.raises(ValueError, match='overwrite the input'):
        run_pipeline(tmp_path / 'run', build(False))
    expected = np.cumsum(image.read(image.bounds), axis=0, dtype=np.int64)
    for _ in range(2):
        run_pipeline(tmp_path / 'run', build(True))
        np.testing.assert_array_equal(read_all(output.uri), expected)
