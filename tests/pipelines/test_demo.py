"""The demo, small: tissue, segmentation, scores, and where to find them."""

import json
import subprocess
import sys

import pytest

from pipelines import launch
from pipelines.demo import flags, main
from tests.models.bright_ffn import write_bright_ffn


def demo(run_dir, model, *options):
    command = [
        sys.executable, '-m', 'pipelines.demo', '--run_dir', str(run_dir), '--model', str(model),
        '--shape', '32,112,112', '--seed', '4', *options,
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_missing_network_is_refused_before_tissue_is_made(tmp_path, capsys):
    argv = ['--run_dir', str(tmp_path / 'demo_run'), '--model', str(tmp_path / 'none.keras')]
    assert main(flags().parse_args(argv)) == launch.BAD_INPUT
    told = capsys.readouterr().err
    assert '--model' in told and 'no such file' in told
    assert not (tmp_path / 'demo_run').exists()


@pytest.mark.slow
def test_dry_run_prints_a_plan_and_writes_nothing(tmp_path):
    model = write_bright_ffn(tmp_path / 'bright.keras', voxel_size_nm=(30.0, 16.0, 16.0))
    told = demo(tmp_path / 'demo_run', model, '--dry_run')
    assert 'nothing was written' in told and 'not made yet' in told
    assert not (tmp_path / 'demo_run').exists()


# A dozen stages, in two processes, twice.
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_demo_leaves_a_scored_run_and_goes_on(tmp_path):
    model = write_bright_ffn(tmp_path / 'bright.keras', voxel_size_nm=(30.0, 16.0, 16.0))
    out = demo(tmp_path / 'demo_run', model)
    for told in ('tissue of seed 4', 'minutes on 2 cores', 'report.html', 'pipelines.view',
                 'no network', 'coverage'):  # fmt: skip
        assert told in out
    report = json.loads((tmp_path / 'demo_run/report.json').read_text())
    assert report['stages']['flood']['blocks'] == 2
    for region in ('foreground', 'all'):
        assert {'voi_split', 'voi_merge', 'coverage', 'erl_nm'} <= set(report['scores'][region])
    assert (tmp_path / 'demo_run/phantom/volumes/neuron').is_dir()
    assert (tmp_path / 'demo_run/evaluation/scores.png').exists()
    demo(tmp_path / 'demo_run', model)
    again = json.loads((tmp_path / 'demo_run/report.json').read_text())
    assert all(not stage.get('blocks_run') for stage in again['stages'].values())
    assert again['scores'] == report['scores']
    assert 'flood' in demo(tmp_path / 'demo_run', model, '--dry_run')
