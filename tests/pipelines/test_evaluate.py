"""`python -m pipelines.evaluate` as a user meets it; the scores are `tests/evaluation`'s."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines import evaluate as job
from pipelines import launch


def run(*flags):
    """The exit code."""
    return job.main(launch.parse(job.flags())(['evaluate', *flags, '--direct_num_workers=1']))


@pytest.fixture
def labels(tmp_path):
    array = np.zeros((6, 20, 24), np.uint64)
    array[:, 2:9, 3:20], array[:, 11:18, 3:20] = 1, 2
    np.save(tmp_path / 'labels.npy', array)
    return f'{tmp_path}/labels.npy'


def test_scores_and_where_they_are(tmp_path, labels, capsys):
    output = f'{tmp_path}/scores.json'
    flags = (f'--segmentation={labels}', f'--truth={labels}', f'--output={output}')
    assert run(*flags, '--voxel_size_nm=30,8,8') == 0
    printed = capsys.readouterr().out
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert scores['foreground']['voi_split'] == scores['foreground']['voi_merge'] == 0
    assert scores['foreground']['coverage'] == 1
    for name in ('scores.json', 'scores.png', 'scores_truths.parquet', 'scores_segments.parquet'):
        assert name in printed and (tmp_path / name).exists()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--output={}/labels.npy/scores.json',), 'the folder of --output is'),
        (('--output={}/s.json', '--voxel_size_nm=10,10'), 'must be three positive lengths'),
        (('--output={}/s.json', '--set=blockshape=[1,1,1]'), "unknown config key 'blockshape'"),
    ],
)
def test_bad_input_is_told_before_anything_is_scored(tmp_path, labels, capsys, flags, message):
    flags = [flag.format(tmp_path) for flag in flags]
    assert run(f'--segmentation={labels}', f'--truth={labels}', *flags) == launch.BAD_INPUT
    assert message in capsys.readouterr().err
