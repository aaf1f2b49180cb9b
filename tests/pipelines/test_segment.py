"""`python -m pipelines.segment` as a user runs it: here, in a bucket, killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec
from tests.models.bright_ffn import write_bright_ffn

SHAPE, VOXEL_SIZE_NM = (32, 80, 96), (20.0, 10.0, 10.0)
CONFIG = """
grid: {block_shape: [16, 32, 48], halo: [4, 8, 8]}
ffn: {min_segment_size: 200, disco_seed_threshold: null, seed_voxel_size_nm: [20, 10, 10]}
output: {chunk: [16, 16, 16]}
"""
BLOCKS = 12


@pytest.fixture(scope='module')
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, bright.keras and an image volume."""
    folder = tmp_path_factory.mktemp('inputs')
    (folder / 'config.yaml').write_text(CONFIG)
    write_bright_ffn(folder / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM)
    _write_image(f'{folder}/em')
    return folder


def _write_image(path: str) -> None:
    image, _ = make_tubes(SHAPE, VOXEL_SIZE_NM, seed=5, noise_grey=6.0)
    spec = VolumeSpec(
        uri=f'{path}|neuroglancer-precomputed:', voxel_size_nm=VOXEL_SIZE_NM, dtype='uint8',
        shape=SHAPE, chunk=(16, 32, 32),
    )  # fmt: skip
    Volume.create(spec)[0].write(spec.bounds, image)


def _command(config: Path, image: str, model: str, run_dir: str, *options: str) -> list[str]:
    return [
        sys.executable, '-m', 'pipelines.segment', '--config', str(config),
        '--set', f'image={image}', '--set', f'model={model}', '--run_dir', run_dir, *options,
    ]  # fmt: skip


def _run(command: list[str], **kwargs) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, **kwargs
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def _local_command(inputs: Path, run_dir: Path, *options: str) -> list[str]:
    return _command(
        inputs / 'config.yaml', f'{inputs}/em', f'{inputs}/bright.keras', str(run_dir), *options
    )


def _hashes(run_dir: str) -> dict[str, str]:
    """SHA-256 of every file of the segmentation, chunks and metadata."""
    base = storage.join(run_dir, 'volumes/segmentation')
    return {
        path.removeprefix(base): hashlib.sha256(storage.read_bytes(path)).hexdigest()
        for path in storage.list_files(base)
    }


@pytest.fixture(scope='module')
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run on two worker processes, and what it printed."""
    run_dir = tmp_path_factory.mktemp('finished')
    return run_dir, _run(_local_command(inputs, run_dir)).stdout


def test_dry_run_prints_the_plan_and_writes_nothing(inputs: Path, tmp_path: Path) -> None:
    out = _run(_local_command(inputs, tmp_path / 'run', '--dry_run')).stdout
    assert 'flood' in out and f'{BLOCKS}' in out and 'nothing was written' in out
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_result_and_report(finished: tuple[Path, str]) -> None:
    run_dir, out = finished
    assert 'report.html' in out and 'pipelines.view' in out
    spec = Volume.open(f'{run_dir}/volumes/segmentation').spec
    assert spec.dtype == 'uint64' and spec.shape == SHAPE and spec.voxel_size_nm == VOXEL_SIZE_NM
    stages = json.loads((run_dir / 'report.json').read_text())['stages']
    assert stages['flood']['blocks'] == BLOCKS and stages['flood']['fov_steps'] > 0
    assert (run_dir / 'report.html').read_text().count('<figure>') >= 1
    assert list((run_dir / 'figures').glob('*.png'))


@pytest.mark.slow
def test_kill_9_then_the_same_command(inputs: Path, finished, tmp_path: Path) -> None:
    """Only unfinished blocks run, and the bytes equal those of an undisturbed run."""
    run_dir, _ = finished
    markers = tmp_path / 'ledger/flood/blocks'
    with subprocess.Popen(
        _local_command(inputs, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 200
        while len(list(markers.glob('*/*.json'))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None, 'the run ended before it could be killed'
            time.sleep(0.02)
        process.kill()
    _wait_until_workers_ended(process.pid)
    kept = {path: path.read_bytes() for path in markers.glob('*/*.json')}
    assert 3 <= len(kept) < BLOCKS
    assert not (tmp_path / 'report.json').exists()
    _run(_local_command(inputs, tmp_path))
    flood = json.loads((tmp_path / 'report.json').read_text())['stages']['flood']
    assert flood['blocks_reused'] == len(kept)
    assert flood['blocks_run'] == BLOCKS - len(kept)
    assert all(path.read_bytes() == marker for path, marker in kept.items())
    assert _hashes(str(tmp_path)) == _hashes(str(run_dir))


def _wait_until_workers_ended(group: int, limit_s: float = 20) -> None:
    """Only the launcher was killed: its workers must notice, and end by themselves."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail(f'workers went on for {limit_s} s after their launcher was killed')


@pytest.mark.slow
def test_everything_in_a_bucket(inputs: Path, finished, gcs_bucket: str) -> None:
    """Input, model and run directory on gs://: the same bytes as on disk."""
    _write_image(f'{gcs_bucket}/em')
    model = f'{gcs_bucket}/bright.keras'
    storage.write_bytes(model, (inputs / 'bright.keras').read_bytes())
    command = _command(
        inputs / 'config.yaml', f'{gcs_bucket}/em', model, f'{gcs_bucket}/run'
    )  # fmt: skip
    _run(command)
    assert _hashes(f'{gcs_bucket}/run') == _hashes(str(finished[0]))
    report = json.loads(storage.read_bytes(f'{gcs_bucket}/run/report.json'))
    assert report['stages']['flood']['blocks_run'] == BLOCKS
    # The second time, nothing is left to do.
    _run(command)
    report = json.loads(storage.read_bytes(f'{gcs_bucket}/run/report.json'))
    assert all(stage['blocks_run'] == 0 for stage in report['stages'].values())


@pytest.mark.slow
def test_bytes_are_what_they_claim(inputs: Path) -> None:
    """The image fixture is position-dependent: a transposed axis would show."""
    image = Volume.open(f'{inputs}/em')
    array = image.read(image.bounds)
    assert array.shape == SHAPE and not np.array_equal(array[:, :32, :32], array[:, 32:64, :32])
