from __future__ import annotations

import dataclasses

import pytest

from h01_beam.geometry import BlockGrid, CoreBox
from h01_beam.ledger import Provenance, StageRecord
from h01_beam.plan import PROCESS_BYTES, Read, TableRead, Write, plan_stage
from h01_beam.run import Resources, Run
from h01_beam.volume import Volume, VolumeSpec
from tests.arrays import box

IMAGE = VolumeSpec(
    uri='/a/image|neuroglancer-precomputed:', voxel_size_nm=(30.0, 8.0, 4.0), dtype='uint8',
    shape=(64, 128, 256), start=(1, 2, 3), chunk=(16, 32, 64),
)  # fmt: skip
LABELS = dataclasses.replace(
    IMAGE, uri='/a/labels|zarr3:', dtype='uint64', encoding='zstd', kind='segmentation'
)
GRID = BlockGrid(IMAGE.bounds, (32, 64, 128), (4, 8, 16))


class Work:
    def working_bytes(self, read_shape):
        assert read_shape == GRID.largest_read
        return 1000

    def process_bytes(self):
        return 10


@pytest.fixture
def run(tmp_path):
    return Run(str(tmp_path), Resources(2, 2**33), dry_run=True)


def make_plan(run, function=None, grid=GRID, write=LABELS, read=IMAGE, concurrency=3):
    reads, writes = {'image': Read(read)}, {'labels': Write(write)}
    return plan_stage(function, 'stage', grid, reads, writes, concurrency, run, 'config')


def test_what_a_stage_would_cost(run):
    plan = make_plan(run, Work())
    core = 32 * 64 * 128
    read = 36 * 72 * 144  # Of two blocks per axis, each has a halo on one side.
    assert plan.blocks == 8
    assert plan.read_bytes == 8 * read and plan.write_bytes == 8 * 8 * core
    assert plan.memory_bytes == PROCESS_BYTES + 10 + 3 * (read + 8 * core + 1000)
    assert plan.since is None


def test_a_read_and_a_write_of_one_name_both_count(run):
    reads, writes = {'labels': Read(IMAGE)}, {'labels': Write(LABELS)}
    plan = plan_stage(None, 'stage', GRID, reads, writes, 3, run, 'config')
    assert plan.read_bytes == make_plan(run).read_bytes > 0
    assert plan.write_bytes == make_plan(run).write_bytes


def test_a_stage_resumes_where_nothing_differs(run, tmp_path):
    record = StageRecord(grid=GRID, generation=1, config='config', since=12.0)
    labels = dataclasses.replace(LABELS, uri=f'{tmp_path}/labels|zarr3:')

    def since(**changes):
        dataclasses.replace(record, **changes).write(run.ledger('stage'))
        return make_plan(run, write=labels).since

    assert since() is None  # The output is not there.
    Provenance(run.ledger('stage'), 1).write(labels)
    Volume.create(labels)
    assert since() == 12.0
    assert since(config='other') is None
    assert since(grid=dataclasses.replace(GRID, halo=(0, 0, 0))) is None


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'block_shape': (32, 64, 96)}, r'does not fit the chunks \(16, 32, 64\) of .* along x'),
        (
            {'block_shape': (24, 64, 128)},
            'along z: two blocks would write one chunk; make block_sh',
        ),
        ({'bounds': box((1, 2, 5), (64, 128, 200))}, 'does not fit the chunks .* along x'),
    ],
)
def test_blocks_that_share_chunks_are_refused(run, change, message):
    with pytest.raises(ValueError, match=message):
        make_plan(run, grid=dataclasses.replace(GRID, **change))


def test_blocks_that_share_shards_are_refused(run):
    sharded = dataclasses.replace(LABELS, shard=(32, 64, 256))
    with pytest.raises(ValueError, match=r'the shards \(32, 64, 256\) of .* along x.*one shard'):
        make_plan(run, write=sharded)


@pytest.mark.parametrize(
    'bounds',
    [box((1, 2, 3), (50, 100, 200)), box((17, 34, 67), (48, 96, 192)), box((17, 2, 3), (5, 6, 7))],
)
def test_part_of_a_volume_may_be_processed(run, bounds):
    grid = dataclasses.replace(GRID, bounds=bounds)
    assert make_plan(run, grid=grid).blocks == len(grid)


def test_one_block_may_have_any_shape(run):
    grid = BlockGrid(IMAGE.bounds, (100, 200, 300), (200, 200, 200))
    assert make_plan(run, grid=grid).blocks == 1


def test_a_halo_beyond_the_neighbour_is_refused(run):
    grid = BlockGrid(IMAGE.bounds, (32, 64, 128), (33, 8, 16))
    with pytest.raises(ValueError, match=r'halo \(33, 8, 16\) exceeds block_shape .* along z'):
        make_plan(run, grid=grid)


def test_too_little_memory_is_refused(tmp_path):
    run = Run(str(tmp_path), Resources(4, 2**28), dry_run=True)
    with pytest.raises(ValueError, match=r'would need 0.4 GiB for 3 blocks .* 4 workers has 0.2'):
        make_plan(run)


def test_blocks_outside_of_a_volume_are_refused(run):
    small = dataclasses.replace(IMAGE, shape=(64, 128, 255))
    with pytest.raises(
        ValueError, match=r"needs .* of 'image', but .* covers \[1:65, 2:130, 3:258"
    ):
        make_plan(run, read=small)
    with pytest.raises(ValueError, match=r"needs .* of 'labels'"):
        make_plan(run, write=dataclasses.replace(LABELS, start=(0, 2, 3)))


def test_an_output_on_its_input_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir('/')
    for uri in (IMAGE.uri, 'a/image|zarr3:', '/a/x/../image|zarr3:'):
        write = dataclasses.replace(IMAGE, uri=uri)
        with pytest.raises(ValueError, match='would overwrite the input .* choose another place'):
            make_plan(run, write=write)


def test_a_level_may_be_made_from_the_one_below(run):
    level = dataclasses.replace(
        LABELS, uri='/a/image|zarr3:?mip=1', shape=(64, 64, 128), start=(1, 1, 1)
    )
    grid = BlockGrid(level.bounds, (32, 64, 64))
    reads = {'source': Read(IMAGE, CoreBox((1, 2, 2), IMAGE.bounds))}
    plan = plan_stage(None, 'stage', grid, reads, {'level': Write(level)}, 1, run, 'config')
    assert plan.blocks == 4


def test_a_volume_that_no_run_made_is_not_replaced(run, tmp_path):
    mine = dataclasses.replace(LABELS, uri=f'{tmp_path}/labels|zarr3:')
    Volume.create(mine)
    for chunk in ((8, 8, 8), mine.chunk):  # Neither made anew nor overwritten.
        with pytest.raises(ValueError, match='which no run made .* choose another output, or del'):
            make_plan(run, write=dataclasses.replace(mine, chunk=chunk))
    # One that a run made may be made anew.
    Provenance(run.ledger('stage'), 1).write(mine)
    make_plan(run, write=mine)


def test_what_cannot_be_opened_is_not_replaced_either(run, tmp_path):
    (tmp_path / 'em.zarr/0').mkdir(parents=True)
    (tmp_path / 'em.zarr/0/.zarray').write_text('{}')  # OME-Zarr 0.4
    with pytest.raises(ValueError, match='which no run made'):
        make_plan(run, write=dataclasses.replace(LABELS, uri=f'{tmp_path}/em.zarr|zarr3:'))


def test_what_cannot_be_made_is_refused(run):
    with pytest.raises(ValueError, match='encoding gzip must be one of'):
        make_plan(run, write=dataclasses.replace(LABELS, encoding='gzip'))
    with pytest.raises(ValueError, match='must be chunk .* times powers of 2'):
        sharded = dataclasses.replace(
            IMAGE, uri='/a/out|neuroglancer-precomputed:', shard=(48, 64, 128)
        )
        grid = dataclasses.replace(GRID, block_shape=(48, 64, 128))
        make_plan(run, write=sharded, grid=grid)


def test_remote_workers_need_everything_in_a_bucket(run):
    remote = Run('gs://b/run', Resources(1, 2**33, shares_disk=False), dry_run=True)
    with pytest.raises(
        ValueError, match=r"stage stage: 'image' is '/a/image': must be in a bucket"
    ):
        make_plan(remote)
    with pytest.raises(ValueError, match="run_dir is '/run': must be in a bucket"):
        Run('/run', remote.resources, dry_run=True)


class ByRows:
    """A region that a table tells; a plan takes it for a quarter of the core, if not told."""

    def __call__(self, block, rows):
        return block.core

    def largest(self, block):
        z, y, x = block.core.shape
        return box(block.core.start, (z, y // 2, x // 2))


def test_boxes_that_only_rows_tell_are_planned_as_large_as_they_get(run):
    rows = {'rows': TableRead(CoreBox())}

    def planned(by, tables):
        reads = {'image': Read(IMAGE, ByRows(), by=by)}
        return plan_stage(None, 'stage', GRID, reads, {}, 3, run, 'c', table_reads=tables)

    plan = planned('rows', rows)
    quarter = 32 * 64 * 128 // 4
    assert plan.read_bytes == 8 * quarter
    assert plan.memory_bytes == PROCESS_BYTES + 3 * quarter
    with pytest.raises(
        ValueError, match="'image' is read by 'other': must be a table read .* rows"
    ):
        planned('other', rows)
    with pytest.raises(ValueError, match="'image' is read by 'b': must be .* itself: rows"):
        planned('b', {**rows, 'b': TableRead(ByRows(), GRID, by='rows')})
