"""Generations: what is new is done over what there was, which nobody sees change."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time

import apache_beam as beam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h01_beam import generations, layers, lock, quarantine, storage, tables
from h01_beam.acquisition.stage import write_if_new
from h01_beam.blockwise import MapBlocks
from h01_beam.export.files import open_files
from h01_beam.export.finished_run import Layer
from h01_beam.geometry import BlockGrid, BoundingBox, CoreBox
from h01_beam.imaging.downsample import DownsampleConfig
from h01_beam.imaging.stage import build_downsample
from h01_beam.lock import Lock, LockedError
from h01_beam.plan import TableRead
from h01_beam.preview import preview
from h01_beam.run import Resources, Run
from h01_beam.volume import Volume, VolumeSpec, downsample
from tests.arrays import GIB, read_all, run_pipeline, summaries, tree_bytes
from tests.blocks import Mean, chunks

SLAB, YX, BLOCK = 4, (16, 24), (4, 8, 8)
VOLUMES = {'em': 'em|neuroglancer-precomputed:', 'smooth': 'smooth|zarr3:'}
# What the tests begin generations for, where it does not matter.
ATTEMPT = 'a configuration and its inputs'
MANIFEST = tables.Schema({'seed': 'int64'})
PARTS = len(BlockGrid(BoundingBox((0, 0, 0), (SLAB, *YX)), BLOCK))


@dataclasses.dataclass(frozen=True)
class Paint:
    """Noise of a slab's seed; nothing for seed 0; fails for a negative one."""

    def __call__(self, manifest, block):
        seed = int(manifest['seed'][0])
        if seed < 0:
            raise RuntimeError('no such tissue')
        if seed == 0:
            return np.zeros(block.core.shape, np.uint8)
        rng = np.random.default_rng([seed, *block.index])
        return rng.integers(0, 255, block.core.shape, np.uint8)


def job(seeds):
    """Paints a slab of sections for each seed, and filters them."""

    def build(root, run):
        bounds = BoundingBox((0, 0, 0), (SLAB * len(seeds), *YX))
        for z, seed in enumerate(seeds):
            write_if_new(run.table_part('manifest', (z, 0, 0)), {'seed': [seed]}, MANIFEST)
        spec = VolumeSpec(
            uri=run.volume_uri('em'), voxel_size_nm=(30.0, 8.0, 8.0), dtype='uint8',
            shape=bounds.shape, start=(0, 0, 0), chunk=BLOCK, encoding='raw',
        )  # fmt: skip
        painted = root | MapBlocks(
            Paint(), stage='paint', grid=BlockGrid(bounds, BLOCK), run=run, writes={'em': spec},
            table_reads={'manifest': TableRead(CoreBox(), BlockGrid(bounds, (SLAB, *YX)))},
        )  # fmt: skip
        smooth = dataclasses.replace(
            spec, uri=run.volume_uri('smooth', 'zarr3'), dtype='uint16', encoding='zstd'
        )
        root | MapBlocks(
            Mean(), stage='filter', grid=BlockGrid(bounds, BLOCK, (2, 2, 2)), run=run,
            reads={'image': spec}, writes={'filtered': smooth}, after=[painted],
        )  # fmt: skip

    return build


def reconstruct(folder, seeds, strict=True):
    """Runs the job; returns the summaries."""
    return summaries(run_pipeline(folder, job(seeds), strict=strict))


def reprocess(run_dir, seeds):
    folder = generations.begin(run_dir, ATTEMPT)
    told = reconstruct(folder, seeds)
    generations.commit(folder, {'stages': told})
    return folder, told


def volumes(folder):
    return {name: read_all(f'{folder}/volumes/{volume}') for name, volume in VOLUMES.items()}


def assert_same(first, second):
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def ran(told):
    return told['paint']['blocks_run'], told['filter']['blocks_run']


def test_sections_added_twice_are_as_from_scratch(tmp_path):
    run_dir, scratch = str(tmp_path / 'run'), str(tmp_path / 'scratch')
    reconstruct(run_dir, [1, 2])
    before = tree_bytes(run_dir)
    reprocess(run_dir, [1, 2, 3])
    folder, told = reprocess(run_dir, [1, 2, 3, 0])
    reconstruct(scratch, [1, 2, 3, 0])
    assert_same(volumes(generations.current(run_dir)), volumes(scratch))
    assert generations.current(run_dir) == folder == f'{run_dir}/generations/000002'
    # The new slab, and in the filter the one whose read box meets it; all else is as it was.
    assert ran(told) == (PARTS, 2 * PARTS)
    assert told['paint']['blocks_reused'] == 3 * PARTS
    markers = f'{scratch}/ledger/filter/blocks'
    digests = [json.loads(storage.read_bytes(p))['digest'] for p in storage.list_files(markers)]
    layered = storage.list_files(f'{folder}/ledger/filter/blocks')
    assert [json.loads(storage.read_bytes(p))['digest'] for p in layered] == digests
    after = tree_bytes(run_dir)
    assert {path: after[path] for path in before} == before, 'the first generation has changed'


def test_replacing_the_middle_touches_what_reads_it_and_no_reader_of_the_old(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2, 3, 4, 5, 6])
    old = Volume.open(f'{generations.current(run_dir)}/volumes/smooth|zarr3:')
    bytes_before = old.read(old.bounds)
    # A slab without anything: no file of it is stored, and the old one must not show.
    folder, told = reprocess(run_dir, [1, 2, 0, 4, 5, 6])
    assert ran(told) == (PARTS, 3 * PARTS)
    scratch = str(tmp_path / 'scratch')
    reconstruct(scratch, [1, 2, 0, 4, 5, 6])
    assert_same(volumes(folder), volumes(scratch))
    np.testing.assert_array_equal(old.read(old.bounds), bytes_before)
    assert generations.roll_back(run_dir) == run_dir
    np.testing.assert_array_equal(read_all(f'{run_dir}/volumes/smooth|zarr3:'), bytes_before)
    # What was rolled back is not taken up again.
    again, told = reprocess(run_dir, [1, 2, 3, 4, 7, 6])
    assert again == f'{run_dir}/generations/000002'
    assert ran(told) == (PARTS, 3 * PARTS)
    events = [(e['event'], e['from'], e['to']) for e in generations.history(run_dir)]
    assert events == [
        ('reprocess', '', '000001'), ('rollback', '000001', ''), ('reprocess', '', '000002'),
    ]  # fmt: skip


def test_what_would_run_is_what_runs(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2, 3, 4])
    folder = generations.begin(run_dir)
    run = Run(folder, Resources(1, 8 * GIB))
    job([1, 7, 3, 4, 5])(beam.Pipeline(), run)
    found = {stage.name: stage.touched for stage in preview(run.processes)}
    told = reconstruct(folder, [1, 7, 3, 4, 5])
    assert found == {name: stage['blocks_run'] for name, stage in told.items()}
    assert found == {'paint': 2 * PARTS, 'filter': 5 * PARTS}


def test_another_grid_in_a_generation_is_made_anew_over_the_old(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2, 3])
    before = volumes(run_dir)
    folder, told = reprocess(run_dir, [1, 2])
    assert ran(told) == (2 * PARTS, 2 * PARTS), 'a volume that shrinks is another one'
    assert read_all(f'{folder}/volumes/em').shape[0] == 2 * SLAB
    assert_same(volumes(run_dir), before)


def test_a_run_that_failed_is_taken_up_in_the_same_generation(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2])
    folder = generations.begin(run_dir, ATTEMPT)
    with pytest.raises(quarantine.QuarantinedBlockError):
        reconstruct(folder, [1, 2, -1])
    assert generations.current(run_dir) == run_dir
    assert generations.begin(run_dir, ATTEMPT) == folder == generations.unfinished(run_dir)
    told = reconstruct(folder, [1, 2, 3])
    assert ran(told) == (PARTS, 2 * PARTS)
    generations.commit(folder, {})
    assert generations.unfinished(run_dir) is None


def test_pruning_keeps_what_can_be_seen(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2, 3])
    for seeds in ([1, 8, 3], [1, 8, 9], [1, 8, 9, 4]):
        folder, _ = reprocess(run_dir, seeds)
    abandoned = generations.begin(run_dir)
    seen = {f: volumes(f) for f in (folder, layers.folder(run_dir, '000002'))}
    pending, before = tree_bytes(abandoned), len(chunks(f'{run_dir}/volumes/em'))
    assert generations.prune(run_dir, 2) > 0
    assert len(chunks(f'{run_dir}/volumes/em')) == before - 2 * PARTS, 'slabs 1 and 2 are hidden'
    for place, arrays in seen.items():
        assert_same(volumes(place), arrays)
    assert tree_bytes(abandoned) == pending
    assert generations.prune(run_dir, 2) == 0
    generations.roll_back(run_dir)
    assert generations.current(run_dir) == layers.folder(run_dir, '000002')
    with pytest.raises(ValueError, match='has been pruned'):
        generations.roll_back(run_dir)
    with pytest.raises(ValueError, match='keep_generations is 0: must be at least 1'):
        generations.prune(run_dir, 0)


def test_the_first_generation_is_not_written_beneath_later_ones(tmp_path):
    run_dir = str(tmp_path / 'run')

    def manifest(root, run):
        run.write_manifest('filter', {}, {})

    run_pipeline(run_dir, manifest)
    generations.commit(generations.begin(run_dir), {})
    with pytest.raises(ValueError, match=r'later generations lie over it.*pipelines.reprocess'):
        run_pipeline(run_dir, manifest, dry_run=True)
    volume = f'{run_dir}/volumes/em|neuroglancer-precomputed:'
    assert generations.resolve(volume) == volume.replace('/volumes', '/generations/000001/volumes')
    assert generations.resolve('gs://b/em?mip=1') == 'gs://b/em?mip=1'


def test_other_inputs_are_another_generation_and_plain_jobs_keep_off(tmp_path):
    run_dir = str(tmp_path / 'volumes/run')

    def manifest(of):
        return lambda root, run: run.write_manifest('filter', {'of': of}, {})

    run_pipeline(run_dir, manifest(1))
    attempts = {of: generations.attempt({'of': of}, {}) for of in (1, 2, 3)}
    folder = generations.begin(run_dir, attempts[2])
    # Killed before and after it wrote its manifest.
    assert generations.begin(run_dir, attempts[2]) == folder
    run_pipeline(folder, manifest(2))
    assert generations.begin(run_dir, attempts[2]) == folder
    with pytest.raises(ValueError, match='later generations lie over it'):
        run_pipeline(run_dir, manifest(1))
    # An engine may still write there.
    other = generations.begin(run_dir, attempts[3])
    assert other == f'{run_dir}/generations/000002'
    generations.commit(other, {})
    volume = f'{run_dir}/volumes/em|neuroglancer-precomputed:'
    assert generations.resolve(volume) == f'{other}/volumes/em|neuroglancer-precomputed:'
    inner = f'{run_dir}/baseline/volumes/em'
    assert generations.resolve(inner) == f'{other}/baseline/volumes/em'


def test_a_pyramid_that_another_run_adds_is_of_the_generation_that_it_shows(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2])
    before = tree_bytes(run_dir)
    reprocess(run_dir, [1, 3])

    def pyramid(folder):
        def build(root, run):
            base = Volume.open(generations.resolve(f'{run_dir}/volumes/em')).spec
            build_downsample(root, base, DownsampleConfig(levels=1), run)

        run_pipeline(tmp_path / folder, build)
        return generations.resolve(f'{run_dir}/volumes/em|neuroglancer-precomputed:?mip=1')

    shown = read_all(pyramid('pyramid'))
    whole = read_all(generations.resolve(f'{run_dir}/volumes/em'))
    factor = tuple(n // m for n, m in zip(whole.shape, shown.shape, strict=True))
    np.testing.assert_array_equal(shown, downsample(whole, factor, 'mean'))
    assert {path: tree_bytes(run_dir)[path] for path in before} == before
    # The next generation does not show a pyramid that nobody brings up to date.
    folder, _ = reprocess(run_dir, [1, 4])
    with pytest.raises(FileNotFoundError, match='no mip 1'):
        Volume.open(f'{folder}/volumes/em|neuroglancer-precomputed:?mip=1')


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(['write', 'write', 'delete', 'begin']),
        st.sampled_from(['a', 'b', 'd/a', 'd/b.c', 'd-e', 'd/e/f']),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(operations=OPERATIONS)
def test_layers_are_one_folder_to_their_readers(tmp_path_factory, operations):
    run_dir = str(tmp_path_factory.mktemp('layers'))
    folder, model, older = run_dir, {}, []
    for number, (what, name) in enumerate(operations):
        path = storage.join(folder, 'files', name)
        if what == 'write':
            model[name] = b'%d' % number
            storage.write_bytes(path, model[name])
        elif what == 'delete':
            model.pop(name, None)
            storage.delete(path)
        else:
            older.append((folder, dict(model)))
            folder = generations.begin(run_dir)
            generations.commit(folder, {})
    for place, expected in [*older, (folder, model)]:
        files = storage.join(place, 'files')
        found = list(storage.list_files(files))
        assert found == sorted(storage.join(files, name) for name in expected)
        for name in ('a', 'b', 'd/a', 'd/b.c', 'd-e', 'd/e/f'):
            path = storage.join(files, name)
            assert storage.exists(path) == (name in expected)
            assert (storage.written_at(path) is not None) == (name in expected)
            if name in expected:
                assert storage.read_bytes(path) == expected[name]
                assert storage.size(path) == len(expected[name])
                assert storage.read_range(path, 0, 1) == expected[name][:1]
            else:
                with pytest.raises(FileNotFoundError):
                    storage.read_bytes(path)
                with pytest.raises(FileNotFoundError):
                    storage.version(path)


def _hold(run_dir, held, end):
    with Lock(run_dir):
        held.set()
        end.wait(60)


def test_of_two_at_once_one_is_refused_and_a_dead_one_frees_the_lock(tmp_path):
    run_dir = str(tmp_path)
    context = multiprocessing.get_context('fork')
    held, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(run_dir, held, end))
    other.start()
    assert held.wait(60)
    with pytest.raises(LockedError, match=rf'held by process {other.pid} on .*, since 20'):
        with Lock(run_dir):
            pass
    other.kill()
    other.join()
    with Lock(run_dir) as mine:
        mine.check()
    with Lock(run_dir):
        assert json.loads((tmp_path / lock.FILE).read_text())['pid'] == os.getpid()


def test_a_lock_in_a_bucket_that_is_not_renewed_is_taken_over(gcs_bucket, monkeypatch):
    run_dir = f'{gcs_bucket}/locked'
    monkeypatch.setattr(lock, 'RENEW_S', 0.2)
    with Lock(run_dir) as first:
        with pytest.raises(LockedError, match='held by process'):
            with Lock(run_dir):
                pass
        time.sleep(0.6)  # It is renewed meanwhile.
        first.check()
        monkeypatch.setattr(lock, 'STALE_S', -60.0)
        second = Lock(run_dir).__enter__()
        monkeypatch.setattr(lock, 'STALE_S', 180.0)
        time.sleep(0.6)
        second.check()
        with pytest.raises(LockedError, match='taken over'):
            first.check()
    # The first has not deleted what is the second's.
    second.check()
    second.__exit__()
    with Lock(run_dir):
        pass


def test_in_a_bucket(gcs_bucket, tmp_path):
    run_dir, scratch = f'{gcs_bucket}/run', str(tmp_path / 'scratch')
    reconstruct(run_dir, [1, 2])
    before = volumes(run_dir)
    folder, told = reprocess(run_dir, [1, 0, 3])
    assert ran(told) == (2 * PARTS, 3 * PARTS)
    reconstruct(scratch, [1, 0, 3])
    assert_same(volumes(generations.current(run_dir)), volumes(scratch))
    assert_same(volumes(run_dir), before)
    assert generations.prune(run_dir, 1) > 0
    assert_same(volumes(folder), volumes(scratch))
    with pytest.raises(ValueError, match='has been pruned'):
        generations.roll_back(run_dir)


def test_a_browser_sees_the_generation(tmp_path):
    run_dir = str(tmp_path / 'run')
    reconstruct(run_dir, [1, 2])
    folder, _ = reprocess(run_dir, [1, 0])
    files = open_files(Layer(name='em', uri=f'{folder}/volumes/em'))
    info = json.loads(files.read('info', 0, files.size('info')))
    (scale,) = info['scales']
    x, y, z = scale['chunk_sizes'][0]
    shown = read_all(f'{folder}/volumes/em')
    key = f'{scale["key"]}/0-{min(x, 24)}_0-{min(y, 16)}_0-{min(z, 8)}'
    chunk = np.frombuffer(files.read(key, 0, files.size(key)), np.uint8)
    part = shown[: min(z, 8), : min(y, 16), : min(x, 24)]
    np.testing.assert_array_equal(chunk.reshape(part.shape), part)
    assert part[:SLAB].any() and not shown[SLAB:].any()
