"""The evaluation as a pipeline: by block it gives what it gives at once, and refuses bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest

from h01_beam import tables
from h01_beam.evaluation.config import EvaluateConfig, Evaluation
from h01_beam.evaluation.contingency import count_overlaps
from h01_beam.evaluation.erl import measure_run_lengths
from h01_beam.evaluation.errors import tabulate_segments, tabulate_truths
from h01_beam.evaluation.scores import score_overlaps
from h01_beam.evaluation.stage import build_evaluate
from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.morphology.teasar import skeletonize
from h01_beam.run import Resources, Run
from h01_beam.volume import Volume, VolumeSpec

VOXEL_SIZE_NM = (30.0, 12.0, 10.0)
SHAPE = (20, 48, 90)
START = (4, 8, 16)
BLOCK = (12, 20, 40)


def make_labels() -> tuple[np.ndarray, np.ndarray]:
    """Four bars along x; a segmentation that splits one, merges two and misses part of one."""
    truth = np.zeros(SHAPE, np.uint64)
    for place, label in enumerate((11, 2**40, 5, 77)):
        truth[3:17, 3 + 11 * place : 13 + 11 * place, 2:88] = label
    segmentation = np.where(truth == 11, 100, 0).astype(np.uint64)
    segmentation[:, :, 50:][truth[:, :, 50:] == 11] = 101
    segmentation[(truth == 2**40) | (truth == 5)] = 2**50
    segmentation[truth == 77] = 103
    segmentation[:, :, 60:][truth[:, :, 60:] == 77] = 0
    return segmentation, truth


def write_volume(path: Path, array: np.ndarray, voxel_size_nm=VOXEL_SIZE_NM) -> VolumeSpec:
    spec = VolumeSpec(
        uri=f'{path}|zarr3:',
        voxel_size_nm=voxel_size_nm,
        dtype=array.dtype.name,
        shape=array.shape,
        start=START if array.shape == SHAPE else (0, 0, 0),
        chunk=(16, 16, 16),
        encoding='zstd',
        kind='segmentation',
    )
    volume, _ = Volume.create(spec)
    volume.write(volume.bounds, array)
    return volume.spec


def run_evaluation(folder: Path, evaluation: Evaluation) -> dict:
    run = Run(str(folder), Resources(1, 2**33))
    with beam.Pipeline('DirectRunner') as pipeline:
        build_evaluate(pipeline, evaluation, run)
    return json.loads(Path(evaluation.output).read_text())


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp('evaluate')
    segmentation, truth = make_labels()
    evaluation = Evaluation(
        segmentation=write_volume(folder / 'segmentation', segmentation),
        truth=write_volume(folder / 'truth', truth),
        output=str(folder / 'scores.json'),
        config=EvaluateConfig(block_shape=BLOCK, partitions=3),
    )
    assert len(BlockGrid(evaluation.bounds, BLOCK)) > 1
    return folder, run_evaluation(folder / 'run', evaluation)


def test_scores_by_block_equal_those_at_once(evaluated):
    _, found = evaluated
    segmentation, truth = make_labels()
    skeletons = skeletonize(truth, VOXEL_SIZE_NM, start=START)
    assert len(set(skeletons.object_ids.tolist())) == 4
    labels = segmentation[tuple((skeletons.nodes - START).T)]
    runs = measure_run_lengths(skeletons, labels, EvaluateConfig().merge_tolerance_nodes)
    expected = score_overlaps(count_overlaps(segmentation, truth)).with_runs(*runs).to_dict()
    # Exactly: sums are integers, and an object's skeleton does not depend on what is around it.
    assert {name: found[name] for name in expected} == expected
    assert 0 < found['all']['erl_nm'] < found['foreground']['erl_nm']
    assert found['skeletons']['mergers'] == 1
    assert (found['start'], found['shape']) == ([*START], [*SHAPE])


def test_tables_by_block_equal_those_at_once(evaluated):
    folder, _ = evaluated
    rows = count_overlaps(*make_labels())
    labelled = int(rows.voxels[rows.segment != 0].sum())
    for kind, make in (('truths', tabulate_truths), ('segments', tabulate_segments)):
        found = tables.from_parquet((folder / f'scores_{kind}.parquet').read_bytes())
        for name, column in make(rows, labelled).items():
            np.testing.assert_array_equal(found[name], column)


def test_the_picture_is_written(evaluated):
    folder, _ = evaluated
    assert (folder / 'scores.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('block_shape', [SHAPE, (7, 48, 33)])
def test_block_shape_and_partitions_change_no_byte(evaluated, tmp_path, block_shape):
    folder, _ = evaluated
    evaluation = Evaluation(
        segmentation=Volume.open(f'{folder}/segmentation|zarr3:').spec,
        truth=Volume.open(f'{folder}/truth|zarr3:').spec,
        output=str(tmp_path / 'scores.json'),
        config=EvaluateConfig(block_shape=block_shape, partitions=1),
    )
    run_evaluation(tmp_path / 'run', evaluation)
    for name in ('scores.json', 'scores.png', 'scores_truths.parquet', 'scores_segments.parquet'):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_truth_may_cover_part_of_the_segmentation(tmp_path):
    segmentation, truth = make_labels()
    spec = write_volume(tmp_path / 'segmentation', segmentation)
    part = BoundingBox((6, 10, 20), (10, 30, 50))
    inner = tuple(slice(p - s, p - s + n) for p, s, n in zip(part.start, START, part.shape))
    evaluation = Evaluation(
        segmentation=spec,
        truth=write_volume(tmp_path / 'truth', truth),
        output=str(tmp_path / 'scores.json'),
        config=EvaluateConfig(start=part.start, shape=part.shape, block_shape=BLOCK),
    )
    found = run_evaluation(tmp_path / 'run', evaluation)
    expected = score_overlaps(count_overlaps(segmentation[inner], truth[inner])).to_dict()
    assert found['all']['voi_split'] == expected['all']['voi_split']
    assert (found['start'], found['shape']) == ([*part.start], [*part.shape])


def test_volumes_that_do_not_belong_together_are_refused(tmp_path):
    segmentation, truth = make_labels()
    good = write_volume(tmp_path / 'truth', truth)
    small = write_volume(tmp_path / 'small', segmentation[:10])
    fine = write_volume(tmp_path / 'fine', segmentation, (30.0, 6.0, 5.0))
    with pytest.raises(ValueError, match='segmentation covers .* the evaluated box is'):
        Evaluation(segmentation=small, truth=good, output='scores.json')
    with pytest.raises(ValueError, match=r'voxel_size_nm of segmentation is \(30.0, 6.0, 5.0\)'):
        Evaluation(segmentation=fine, truth=good, output='scores.json')
    with pytest.raises(ValueError, match='--voxel_size_nm is'):
        Evaluation(segmentation=good, truth=good, output='s.json', voxel_size_nm=(1.0, 1.0, 1.0))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r'evaluate\.min_fraction is 2: must lie in \[0, 1\]'):
        EvaluateConfig(min_fraction=2)
    with pytest.raises(ValueError, match=r'evaluate\.partitions is 0: must be at least 1'):
        EvaluateConfig(partitions=0)


def run_script(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', 'pipelines.evaluate', *arguments],
        cwd=repository, env=os.environ, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_the_script_scores_npz_files(repository, tmp_path):
    segmentation, truth = make_labels()
    np.savez(tmp_path / 'labels.npz', segmentation=segmentation, truth=truth)
    arguments = [
        *('--segmentation', f'{tmp_path}/labels.npz|npz:segmentation'),
        *('--truth', f'{tmp_path}/labels.npz|npz:truth'),
        *('--output', f'{tmp_path}/scores.json'),
        '--direct_num_workers=1',
    ]
    result = run_script(repository, *arguments)
    assert result.returncode == 0, result.stderr
    assert 'give --voxel_size_nm' in result.stdout
    scores = json.loads((tmp_path / 'scores.json').read_text())
    expected = score_overlaps(count_overlaps(segmentation, truth)).to_dict()
    assert scores['foreground'] == expected['foreground']
    assert scores['all']['erl_nm'] is None


def test_the_script_says_what_is_wrong(repository, tmp_path):
    result = run_script(
        repository, '--segmentation', f'{tmp_path}/none.npz', '--truth', f'{tmp_path}/none.npz',
        '--output', f'{tmp_path}/scores.json',
    )  # fmt: skip
    assert result.returncode == 2
    assert 'there is no such file' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'scores.json').exists()


@pytest.mark.parametrize('size', [(10.0, 10.0), (0.0, 10.0, 10.0), (10.0, 10.0, float('inf'))])
def test_impossible_voxel_sizes_are_refused(tmp_path, size):
    spec = write_volume(tmp_path / 'labels', make_labels()[0])
    with pytest.raises(ValueError, match='--voxel_size_nm is .* must be three positive lengths'):
        Evaluation(
            segmentation=spec, truth=spec, output='scores.json', voxel_size_nm=size
        )  # fmt: skip
