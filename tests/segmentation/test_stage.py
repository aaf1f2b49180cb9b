"""The segmentation job, end to end, on synthetic tissue with a network that floods brightness."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest

from h01_beam import tables
from h01_beam.finish import FinishRun
from h01_beam.ledger import StageRecord
from h01_beam.options import Options
from h01_beam.run import Resources, Run
from h01_beam.segmentation.config import GridConfig, InferenceConfig, OutputConfig, SegmentConfig
from h01_beam.segmentation.ffn import FfnConfig
from h01_beam.segmentation.stage import build_segment, relabel
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec
from tests.models.bright_ffn import write_bright_ffn

SHAPE, VOXEL_SIZE_NM = (40, 96, 112), (20.0, 10.0, 10.0)


@pytest.fixture(scope='module')
def tissue(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('tissue')
    image, truth = make_tubes(SHAPE, VOXEL_SIZE_NM, seed=3, noise_grey=6.0)
    spec = VolumeSpec(
        uri=f'{folder}/image|neuroglancer-precomputed:', voxel_size_nm=VOXEL_SIZE_NM,
        dtype='uint8', shape=SHAPE, chunk=(20, 32, 32),
    )  # fmt: skip
    Volume.create(spec)[0].write(spec.bounds, image)
    np.save(folder / 'truth.npy', truth)
    return {
        'image': spec.uri,
        'truth': str(folder / 'truth.npy'),
        'model': write_bright_ffn(folder / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM),
    }


def _config(tissue: dict[str, str], **changes) -> SegmentConfig:
    config = SegmentConfig(
        image=tissue['image'],
        model=tissue['model'],
        grid=GridConfig(block_shape=(20, 48, 64), halo=(8, 12, 12)),
        ffn=FfnConfig(
            min_segment_size=200, disco_seed_threshold=None, seed_voxel_size_nm=VOXEL_SIZE_NM
        ),
        inference=InferenceConfig(canvases=2, batch_size=1, threads=1),
        output=OutputConfig(chunk=(20, 16, 32)),
    )
    return dataclasses.replace(config, **changes)


def _segment(config: SegmentConfig, run_dir: Path, *options: str) -> dict:
    run = Run(str(run_dir), Resources(1, 16 * 2**30))
    flags = list(options) or ['--direct_running_mode=in_memory']
    with beam.Pipeline(options=Options(flags)) as root:
        build_segment(root, config, run)
        root | FinishRun(run)
    return json.loads((run_dir / 'report.json').read_text())


def _read(run_dir: Path, name: str = 'segmentation') -> np.ndarray:
    volume = Volume.open(str(run_dir / 'volumes' / name))
    return volume.read(volume.bounds)


def _file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def finished(tissue: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    run_dir = tmp_path_factory.mktemp('run')
    return run_dir, _segment(_config(tissue), run_dir)


def test_blocks_become_the_objects_of_the_tissue(tissue, finished) -> None:
    run_dir, report = finished
    assert report['stages']['flood']['blocks'] == 8
    segmentation, truth = _read(run_dir), np.load(tissue['truth'])
    # Objects at the rim, where no field of view fits, are never seeded; the others are filled.
    counts = _overlap_counts(segmentation, truth)
    found = {true for (seg, true) in counts if seg}
    assert len(found) > 12
    voxels = {true: sum(n for (_, t), n in counts.items() if t == true) for true in found}
    best = {true: max(n for (s, t), n in counts.items() if s and t == true) for true in found}
    labelled = sum(n for (seg, _), n in counts.items() if seg)
    assert labelled > 0.4 * sum(voxels.values())
    # Nearly all that is labelled of an object is one segment, across blocks.
    assert sum(best.values()) > 0.95 * labelled


def test_blocked_agrees_with_whole_volume(tissue, finished, tmp_path) -> None:
    # The order of the seeds differs, so the voxels may; a stated metric compares them.
    run_dir, report = finished
    assert report['stages']['flood']['blocks'] > 1
    whole = _config(tissue, grid=GridConfig(block_shape=SHAPE, halo=(0, 0, 0)))
    assert _segment(whole, tmp_path)['stages']['flood']['blocks'] == 1
    counts = _overlap_counts(_read(run_dir), _read(tmp_path))
    both = {pair: n for pair, n in counts.items() if pair[0]}
    assert variation_of_information(both) < 0.1
    assert sum(both.values()) > 0.8 * sum(counts.values())


def variation_of_information(counts: dict[tuple[int, int], int]) -> float:
    """H(A|B) + H(B|A) in bits, from voxels by (a, b), by its definition."""
    joint = np.array(list(counts.values())) / sum(counts.values())
    total = 0.0
    for side in (0, 1):
        marginal: dict[int, float] = {}
        for pair, p in zip(counts, joint, strict=True):
            marginal[pair[side]] = marginal.get(pair[side], 0.0) + p
        shares = [p / marginal[c[side]] for c, p in zip(counts, joint, strict=True)]
        total -= float(np.sum(joint * np.log2(shares)))
    return total


def _overlap_counts(segmentation: np.ndarray, truth: np.ndarray) -> dict[tuple[int, int], int]:
    inside = truth > 0
    pairs = np.stack([segmentation[inside].astype(np.int64), truth[inside].astype(np.int64)])
    rows, counts = np.unique(pairs, axis=1, return_counts=True)
    return {(int(s), int(t)): int(n) for s, t, n in zip(*rows, counts, strict=True)}


def test_segment_ids_are_the_smallest_supervoxel_of_their_segment(finished) -> None:
    run_dir, _ = finished
    supervoxels, segmentation = _read(run_dir, 'supervoxels'), _read(run_dir)
    assert np.array_equal(supervoxels > 0, segmentation > 0)
    pairs = np.unique(np.stack([supervoxels.ravel(), segmentation.ravel()]), axis=1)
    pairs = pairs[:, pairs[0] > 0]
    assert len(np.unique(pairs[0])) == pairs.shape[1]  # A supervoxel lies in one segment.
    smallest = {s: pairs[0][pairs[1] == s].min() for s in np.unique(pairs[1])}
    assert all(s >= low for s, low in smallest.items())
    assert len(smallest) < len(np.unique(pairs[0]))  # Something was joined across blocks.


def test_report_accounts_for_every_stage(finished) -> None:
    _, report = finished
    flood = report['stages']['flood']
    for name in ('blocks', 'seconds', 'fov_steps', 'network_seconds', 'peak_memory_bytes'):
        assert flood[name] > 0, name
    assert 0 < flood['network_share'] <= 1
    assert set(report['stages']) >= {'flood', 'match', 'components', 'relabel'}


def test_second_run_reuses_every_block(tissue, finished) -> None:
    run_dir, _ = finished
    before = _file_hashes(run_dir / 'volumes')
    report = _segment(_config(tissue), run_dir)
    assert all(stage['blocks_run'] == 0 for stage in report['stages'].values()), report['stages']
    assert _file_hashes(run_dir / 'volumes') == before


@pytest.mark.parametrize(
    ('canvases', 'batch_size'),
    [(1, 1), (8, 1), *(pytest.param(n, 4, marks=pytest.mark.slow) for n in (1, 2, 8))],
)
def test_bytes_do_not_depend_on_canvases(tissue, finished, tmp_path, canvases, batch_size) -> None:
    run_dir, _ = finished
    inference = InferenceConfig(canvases=canvases, batch_size=batch_size, threads=1)
    _segment(_config(tissue, inference=inference), tmp_path)
    if batch_size == 1:  # The fixture has 2 canvases.
        assert _file_hashes(tmp_path / 'volumes') == _file_hashes(run_dir / 'volumes')
    else:
        # Another batch shape may round otherwise; the objects are the same.
        assert np.mean(_read(tmp_path) == _read(run_dir)) > 0.999


def test_what_changes_the_bytes_is_part_of_the_key(tissue, tmp_path) -> None:
    def key(**changes) -> str:
        inference = InferenceConfig(**{'canvases': 2, 'batch_size': 1, **changes})
        run = Run(str(tmp_path), Resources(1, 16 * 2**30))
        build_segment(beam.Pipeline(), _config(tissue, inference=inference), run)
        record = StageRecord.read(run.ledger('flood'))
        assert record is not None
        return record.config

    assert key() == key(canvases=8) == key(threads=2)
    assert len({key(), key(batch_size=4), key(precision='bfloat16')}) == 3


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers(tissue, finished, tmp_path) -> None:
    run_dir, _ = finished
    _segment(
        _config(tissue), tmp_path,
        '--direct_running_mode=multi_processing', '--direct_num_workers=2',
    )  # fmt: skip
    assert _file_hashes(tmp_path / 'volumes') == _file_hashes(run_dir / 'volumes')


def test_changed_parameter_reruns_what_depends_on_it_and_nothing_else(tissue, tmp_path) -> None:
    _segment(_config(tissue), tmp_path)
    reconcile = dataclasses.replace(
        _config(tissue).reconcile,
        match=dataclasses.replace(_config(tissue).reconcile.match, min_overlap=10**9),
    )
    stages = _segment(_config(tissue, reconcile=reconcile), tmp_path)['stages']
    assert stages['flood']['blocks_run'] == 0
    assert stages['match']['blocks_run'] == stages['match']['blocks'] == 8
    assert stages['components']['blocks_run'] == 8
    assert np.array_equal(_read(tmp_path), _read(tmp_path, 'supervoxels'))  # Nothing matched.
    # Blocks whose supervoxels keep their segments need not be written again.
    assert 0 < stages['relabel']['blocks_run'] <= 8


def test_a_halo_that_only_moves_blocks_in_their_slots_floods_again(tissue, tmp_path) -> None:
    """One block along x reads the same box with any halo, but lies elsewhere in its slot."""
    results = []
    for halo in (12, 16):
        grid = GridConfig(block_shape=(20, 48, 112), halo=(8, 12, halo))
        stages = _segment(_config(tissue, grid=grid), tmp_path)['stages']
        assert stages['flood']['blocks_run'] == stages['flood']['blocks'] == 4
        results.append(_read(tmp_path))
    np.testing.assert_array_equal(*results)


def test_part_of_the_volume(tissue, tmp_path) -> None:
    from h01_beam.segmentation.config import BoxConfig

    box = BoxConfig(start=(5, 16, 10), shape=(30, 64, 80))
    _segment(_config(tissue, box=box), tmp_path)
    volume = Volume.open(str(tmp_path / 'volumes/segmentation'))
    assert volume.bounds.start == box.start and volume.bounds.shape == box.shape
    truth = np.load(tissue['truth'])[volume.bounds.slices]
    assert ((volume.read(volume.bounds) > 0) & (truth > 0)).sum() > 0.3 * (truth > 0).sum()


def test_mask_keeps_objects_out(tissue, tmp_path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :56] = 1
    np.save(tmp_path / 'mask.npy', mask)
    _segment(_config(tissue, mask=str(tmp_path / 'mask.npy')), tmp_path)
    segmentation = _read(tmp_path)
    assert (segmentation[:, :, 70:] > 0).mean() > 0.2
    # Objects reach into the mask by at most half a field of view.
    assert not segmentation[:, :, : 56 - 5].any()


def test_objects_table_lists_seeds_within_their_objects(finished) -> None:
    run_dir, _ = finished
    supervoxels = _read(run_dir, 'supervoxels')
    parts = sorted((run_dir / 'tables/objects/parts').rglob('*.parquet'))
    assert len(parts) == 8
    objects = tables.concatenate(
        [tables.from_parquet(part.read_bytes()) for part in parts], tables.OBJECTS
    )
    # What an object fills in its neighbours' cores is not counted.
    z, y, x = np.indices(SHAPE) // np.reshape((20, 48, 64), (3, 1, 1, 1))
    own = np.ravel_multi_index((z, y, x), (2, 2, 2)) == supervoxels >> np.uint64(24)
    ids, voxels = np.unique(supervoxels[own & (supervoxels > 0)], return_counts=True)
    assert np.array_equal(np.sort(objects['supervoxel']), ids)
    assert np.array_equal(objects['voxels'][np.argsort(objects['supervoxel'])], voxels)
    assert set(np.unique(supervoxels[~own])) <= {0, *ids}
    assert (supervoxels[~own] > 0).any()  # Something was filled.
    # A seed is in its object, unless it lies in the halo: another block owns that voxel.
    seeds = np.stack([objects[f'seed_{axis}'] for axis in 'zyx'], axis=1)
    own = np.ravel_multi_index(tuple((seeds // (20, 48, 64)).T), (2, 2, 2))
    in_core = own == objects['supervoxel'] >> np.uint64(24)
    assert in_core.sum() > 8
    at_seed = supervoxels[tuple(seeds[in_core].T)]
    assert np.array_equal(at_seed, objects['supervoxel'][in_core])


def test_relabel_changes_listed_supervoxels_only() -> None:
    supervoxels = np.array([[[0, 5, 9], [7, 5, 0]]], np.uint64)
    part = {'supervoxel': np.array([3, 7], np.uint64), 'segment': np.array([1, 5], np.uint64)}
    assert relabel(supervoxels, part).tolist() == [[[0, 5, 9], [5, 5, 0]]]
    empty = tables.SEGMENT_OF.empty()
    assert np.array_equal(relabel(supervoxels, empty), supervoxels)
