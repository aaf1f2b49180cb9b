from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.volume import Volume, downsample
from pipelines import downsample as job
from pipelines import launch
from tests.arrays import create, read_all, tree_bytes


def run(*flags):
    """The exit code."""
    return job.main(launch.parse(job.flags())(['downsample', *flags, '--direct_num_workers=1']))


@pytest.fixture
def image(tmp_path):
    volume = create(tmp_path / 'em', write=False)
    noise = np.random.default_rng(0).integers(0, 256, volume.spec.shape, dtype=np.uint8)
    volume.write(volume.bounds, noise)
    return volume.spec


def stages(folder):
    return json.loads((folder / 'report.json').read_text())['stages']


def test_a_pyramid_with_its_report(tmp_path, image):
    flags = (f'--volume={image.uri}', f'--run_dir={tmp_path}/run', '--set=levels=1')
    assert run(*flags) == 0
    level = Volume.open(f'{image.uri}?mip=1')
    assert level.spec.voxel_size_nm == (30, 8, 8)
    expected = downsample(read_all(image.uri), (1, 1, 2), 'mean', image.start)
    np.testing.assert_array_equal(level.read(level.bounds), expected)
    assert stages(tmp_path / 'run')['downsample_em_mip1']['blocks_run'] > 1
    # Another method makes other levels, and runs again; nothing else does.
    assert run(*flags, '--set', 'method=max', '--set=factors=[[1, 2, 2]]') == 0
    expected = downsample(read_all(image.uri), (1, 2, 2), 'max', image.start)
    np.testing.assert_array_equal(read_all(f'{image.uri}?mip=1'), expected)
    assert json.loads((tmp_path / 'em/info').read_text())['scales'][1]['resolution'] == [8, 16, 30]


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--volume={}/none',), 'nothing there that is a volume'),
        (('--volume={}/none|zarr3:',), 'there is no'),
        (('--volume={}/em.npy',), 'does not say its voxel size'),
        (('--set=level=3',), "unknown config key 'level'"),
        (('--set=levels',), 'must be key=value'),
        (('--set=factors=[[1,2,2]',), 'the value is not valid YAML'),
        (('--set=factors=[[1,1,1]]',), 'each factor must be >= 1'),
        (('--set=method=sum',), "'method' is 'sum': must be one of 'mean', 'mode'"),
        (('--set=shard=[4,8,24]',), 'times powers of 2'),
        (('--run_dir={}/em.npy/run',), 'cannot write there'),
        (('3',), "unknown flag '3'"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, image, capsys, flags, message):
    np.save(tmp_path / 'em.npy', np.zeros((2, 3, 4), np.uint8))
    flags = [flag.format(tmp_path) for flag in flags]
    assert run(f'--volume={image.uri}', f'--run_dir={tmp_path}/run', *flags) == launch.BAD_INPUT
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[0].startswith('error: ') and message in errors[0]


def test_a_dry_run_shows_the_levels(tmp_path, image, capsys):
    assert run(f'--volume={image.uri}', f'--run_dir={tmp_path}/run', '--dry_run') == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]][:2] == [
        'downsample_em_mip1', 'downsample_em_mip2',
    ]  # fmt: skip
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'em/8_8_30').exists()


def test_a_corrupt_chunk_is_named(tmp_path, image, capsys):
    chunk = tmp_path / 'em/4_8_30/7-23_5-13_3-7'
    chunk.write_bytes(chunk.read_bytes()[:100])
    code = run(f'--volume={image.uri}', f'--run_dir={tmp_path}/run', '--set=levels=1')
    assert code == launch.FAILED
    error = capsys.readouterr().err.splitlines()[0]
    assert 'stage downsample_em_mip1, block (0, 0, 0)' in error
    assert 'cannot read [3:' in error and f"of '{image.uri}'" in error


@pytest.mark.slow
def test_a_killed_run_of_two_workers_goes_on_where_it_was(tmp_path, repository):
    shape = (64, 256, 256)
    volume = create(tmp_path / 'em', write=False, shape=shape, chunk=(8, 16, 16), start=(0, 0, 0))
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    volume.write(volume.bounds, noise)
    shutil.copytree(tmp_path / 'em', tmp_path / 'undisturbed')
    flags = ['--set=block_chunks=[1, 1, 1]', '--set=levels=2']
    command = [
        sys.executable, '-m', 'pipelines.downsample', f'--volume={volume.spec.uri}',
        f'--run_dir={tmp_path}/run', '--direct_num_workers=2', *flags,
    ]  # fmt: skip

    def finished():
        return list(storage.list_files(f'{tmp_path}/run/ledger/downsample_em_mip1/blocks'))

    process = subprocess.Popen(
        command, cwd=repository, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(finished()) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = len(finished())
    assert 10 <= before
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    first = stages(tmp_path / 'run')['downsample_em_mip1']
    assert first['blocks_reused'] >= before and first['blocks'] > before
    other = f'{tmp_path}/undisturbed|neuroglancer-precomputed:'
    assert run(f'--volume={other}', f'--run_dir={tmp_path}/other', *flags) == 0
    for level in ('8_8_30', '16_16_30'):
        trees = [tree_bytes(tmp_path / name / level) for name in ('em', 'undisturbed')]
        assert trees[0] == trees[1]
