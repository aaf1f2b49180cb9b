from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from h01_beam import config as config_lib
from h01_beam.alignment.job import AlignJob
from h01_beam.forecast import prices, rates
from pipelines import launch, plan, status
from tests.forecast.example import CONFIGS, DATASET, FLEET, PRICES, RATES, segment_job


@pytest.fixture
def files(tmp_path):
    """A plan, with its rates and prices, in files."""
    job = config_lib.as_dict(segment_job())
    content = {
        'dataset': config_lib.as_dict(DATASET),
        'fleet': config_lib.as_dict(FLEET),
        'jobs': [job],
        'rates': f'{tmp_path}/rates.json',
        'prices': f'{tmp_path}/prices.yaml',
    }
    (tmp_path / 'plan.yaml').write_text(yaml.safe_dump(content))
    (tmp_path / 'rates.json').write_text(json.dumps(config_lib.as_dict(RATES)))
    (tmp_path / 'prices.yaml').write_text(yaml.safe_dump(config_lib.as_dict(PRICES)))
    return tmp_path


def run_plan(*argv):
    return plan.main(launch.parse(plan.flags())(['plan', *map(str, argv)]))


def test_a_plan_is_printed_and_written(files, capsys):
    page = files / 'docs/PLAN.md'
    page.parent.mkdir()
    code = run_plan('--config', files / 'plan.yaml', '--json', files / 'p.json', '--page', page)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert 'segment/flood' in out and 'What breaks first:' in out and 'check them' in out
    content = json.loads((files / 'p.json').read_text())
    flood = content['stages']['segment/flood']
    assert flood['blocks'] == 32 and flood['cases']['typical']['dollars'] > 0
    ratios = [limit['ratio'] for limit in content['limits']]
    assert ratios == sorted(ratios, reverse=True)
    assert '![Time and cost of each stage](PLAN.png)' in page.read_text()
    assert (page.parent / 'PLAN.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--set', 'dataset.shape=[0, 1, 1]'], 'dataset.shape is (0, 1, 1): the extent is empty'),
        (['--set', 'fleet.intermediate=ice'], "prices.storage has no class 'ice'"),
        (['--set', 'fleet.wokers=2'], "unknown config key 'fleet.wokers'"),
        (['--set', 'rates=nowhere.json'], "config is 'nowhere.json': there is no such file"),
        (['--stage', 'polish'], "--stage 'polish': no job has it"),
        (['--polish'], "unknown flag '--polish'"),
    ],
)
def test_bad_input_is_told(files, capsys, argv, message):
    assert run_plan('--config', files / 'plan.yaml', *argv) == launch.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and message in err


def test_a_plan_needs_something_to_plan(capsys):
    assert run_plan() == launch.BAD_INPUT
    assert '--config is missing' in capsys.readouterr().err


def test_the_files_that_ship_are_read():
    config = config_lib.from_dict(plan.PlanConfig, config_lib.load(str(CONFIGS / 'plan/h01.yaml')))
    assert config.dataset.bytes == 1_400_000_000_000_000 and config.dataset.shape[0] == 5300
    align = next(job for job in config.jobs if job.job == 'align')
    settings = config_lib.load(str(CONFIGS.parents[1] / align.config), ['tiles.source=planned'])
    job = config_lib.from_dict(AlignJob, settings)
    # What is segmented has the chunks that alignment writes; blocks are of whole chunks.
    assert config.dataset.chunk == (1, *job.align.chunk)
    for size in (*job.align.block, *job.align.rough_block, *job.stitch.montage_block):
        assert size % job.align.chunk[0] == size % job.stitch.montage_chunk[0] == 0
    price = prices.load(str(CONFIGS.parents[1] / config.prices))
    assert price.as_of in config.prices and price.storage_class('standard').class_a_1000 > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_in_the_documentation_is_current(repository, tmp_path):
    measured = repository / 'pipelines/configs/plan/rates.json'
    if not measured.exists():
        pytest.skip('no rates: python -m tests.benchmarks.stages measures them')
    rates.load(str(measured))
    page = tmp_path / 'H01_PLAN.md'
    command = [
        '-m',
        'pipelines.plan',
        '--config',
        'pipelines/configs/plan/h01.yaml',
        '--page',
        page,
    ]
    subprocess.run([sys.executable, *map(str, command)], cwd=repository, check=True)
    made = page.read_text().replace(str(page), 'docs/H01_PLAN.md')
    assert made == (repository / 'docs/H01_PLAN.md').read_text(), 'make it again: see its 3rd line'


def test_status_is_printed(tmp_path, capsys):
    def call(*argv):
        return status.main(launch.parse(status.flags())(['status', *map(str, argv)]))

    assert call('--run_dir', tmp_path) == launch.BAD_INPUT
    assert 'holds no run' in capsys.readouterr().err
    (tmp_path / 'run.json').write_text('{"job": "align"}')
    assert call('--run_dir', tmp_path) == 0
    assert 'align, not finished' in capsys.readouterr().out
    assert call('--run_dir', tmp_path, '--json') == 0
    assert json.loads(capsys.readouterr().out)['stages'] == []
    assert call('--run_dir', tmp_path, '--watch') == 0  # Of no stage, all are done.
