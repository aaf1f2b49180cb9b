"""A segmentation job that knows the truth: scores, a baseline, and a report that shows both."""

import dataclasses
import json
import shutil

import apache_beam as beam
import numpy as np
import pytest

from h01_beam.evaluation.config import EvaluateConfig
from h01_beam.finish import FinishRun
from h01_beam.run import Resources, Run
from h01_beam.segmentation.config import BoxConfig, GridConfig, OutputConfig, SegmentConfig
from h01_beam.segmentation.ffn import FfnConfig
from h01_beam.segmentation.figures import figures, highlights, scores
from h01_beam.segmentation.stage import build_scored
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec
from tests.arrays import run_pipeline
from tests.models.bright_ffn import write_bright_ffn

SHAPE, VOXEL_SIZE_NM = (24, 72, 88), (30.0, 10.0, 10.0)


def write(path, array, voxel_size_nm=VOXEL_SIZE_NM):
    spec = VolumeSpec(
        uri=f'{path}|neuroglancer-precomputed:', voxel_size_nm=voxel_size_nm,
        dtype=str(array.dtype), shape=array.shape, chunk=(24, 36, 44), encoding='raw',
        kind='image' if array.dtype == np.uint8 else 'segmentation',
    )  # fmt: skip
    Volume.create(spec)
    Volume.open(spec.uri).write(spec.bounds, array)
    return str(path)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scored')
    image, truth = make_tubes(SHAPE, VOXEL_SIZE_NM, seed=6)
    return SegmentConfig(
        image=write(folder / 'em', image),
        truth=write(folder / 'truth', truth),
        model=write_bright_ffn(folder / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM),
        grid=GridConfig(block_shape=(24, 36, 44), halo=(8, 12, 12)),
        ffn=FfnConfig(min_segment_size=100, disco_seed_threshold=None),
        output=OutputConfig(chunk=(24, 36, 44)),
    )


def segment(config, run_dir):
    def build(root, run):
        build_scored(root, config, run)
        root | FinishRun(run, figures=[figures], highlights=highlights, scores=scores)

    run_pipeline(run_dir, build)
    return json.loads((run_dir / 'report.json').read_text())


@pytest.fixture(scope='module')
def finished(inputs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp('run')
    return run_dir, segment(inputs, run_dir)


def test_the_report_holds_the_scores_of_both(finished):
    run_dir, report = finished
    names = {'voi_split', 'voi_merge', 'adapted_rand_error', 'coverage', 'erl_nm'}
    for part in (report['scores'], report['scores']['baseline']):
        for region in ('foreground', 'all'):
            assert names <= set(part[region])
    assert report['scores'] == scores(str(run_dir))
    assert 0 < report['scores']['baseline']['foreground']['coverage'] <= 1
    assert 'VOI split + merge, bits' in report['highlights']
    page = (run_dir / 'report.html').read_text()
    assert 'baseline, foreground' in page and 'Where it errs most' in page


def test_the_baseline_is_a_run_of_its_own(finished):
    run_dir, report = finished
    assert report['stages']['flood']['blocks'] == 4
    assert report['stages']['baseline/watershed']['blocks'] == 4
    assert report['stages']['baseline/evaluation/evaluate']['blocks'] == 1
    for folder in ('', 'baseline/'):
        volume = Volume.open(f'{run_dir}/{folder}volumes/segmentation')
        assert volume.spec.shape == SHAPE and volume.read(volume.bounds).any()
    assert json.loads((run_dir / 'baseline/run.json').read_text())['job'] == 'segmentation'


@pytest.mark.slow
def test_the_same_command_again_runs_nothing(inputs, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / 'again')
    report = segment(inputs, tmp_path / 'again')
    again = {n: s['blocks_run'] for n, s in report['stages'].items() if s.get('blocks_run')}
    # Volumes are known by their place, so scores are taken anew in a copied folder; labels are not.
    assert not {name for name in again if not name.endswith('evaluate')}
    assert report['scores'] == finished[1]['scores']


@pytest.mark.parametrize(
    ('shape', 'voxel_size_nm', 'message'),
    [((24, 72, 96), VOXEL_SIZE_NM, 'evaluated box'), (SHAPE, (30.0, 8.0, 8.0), 'voxel_size_nm')],
)
def test_a_truth_that_does_not_fit_is_refused_before_any_work(
    inputs, tmp_path, shape, voxel_size_nm, message
):
    truth = write(tmp_path / 'other', np.ones(shape, np.uint64), voxel_size_nm)
    run = Run(str(tmp_path / 'run'), Resources(1, 8 * 2**30), dry_run=True)
    with pytest.raises(ValueError, match=message):
        build_scored(beam.Pipeline(), dataclasses.replace(inputs, truth=truth), run)
    assert not (tmp_path / 'run').exists()


def plan(config, run_dir):
    run = Run(str(run_dir), Resources(1, 8 * 2**30), dry_run=True)
    build_scored(beam.Pipeline(), config, run)
    return {plan.name: plan for plan in run.all_plans()}


@pytest.mark.slow
def test_a_part_of_the_image_is_scored_against_that_part_of_the_truth(inputs, tmp_path):
    config = dataclasses.replace(inputs, box=BoxConfig(start=(0, 36, 0), shape=(24, 36, 88)))
    stages = plan(config, tmp_path)
    # Ids of 8 bytes in both volumes, over the box alone.
    assert stages['evaluation/evaluate'].read_bytes == 2 * 8 * 24 * 36 * 88
    config = dataclasses.replace(config, evaluate=EvaluateConfig(start=(0, 36, 44)))
    assert plan(config, tmp_path)['evaluation/evaluate'].read_bytes == 2 * 8 * 24 * 36 * 44


def test_the_baseline_can_be_left_out(inputs, tmp_path):
    config = dataclasses.replace(inputs, baseline=None)
    stages = plan(config, tmp_path)
    assert 'evaluation/evaluate' in stages
    assert not [name for name in stages if name.startswith('baseline')]


@pytest.mark.slow
def test_a_segmentation_without_an_object_is_scored_too(inputs, tmp_path):
    ffn = dataclasses.replace(inputs.ffn, min_segment_size=10**7)
    report = segment(dataclasses.replace(inputs, ffn=ffn, baseline=None), tmp_path)
    assert report['scores']['foreground']['voi_split'] is None
    assert report['scores']['all']['coverage'] == 0 and 'baseline' not in report['scores']
    assert report['highlights']['coverage, %'] == 0
    assert 'VOI split + merge, bits' not in report['highlights']


@pytest.mark.slow
def test_without_truth_there_are_no_scores(inputs, tmp_path):
    report = segment(dataclasses.replace(inputs, truth=None), tmp_path)
    assert 'scores' not in report
    assert not (tmp_path / 'baseline').exists()
