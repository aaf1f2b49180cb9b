"""A whole small pipeline with everything in a bucket, and with faults: the bytes of a local run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from h01_beam import storage
from h01_beam.testing.chaos import KILLED, ORPHANED, STOPPED, run_until_done
from h01_beam.testing.faults import KINDS, FaultPlan
from tests.models.bright_ffn import write_bright_ffn

VOXEL_SIZE_NM = '30,16,16'
CONFIG = """
grid: {block_shape: [16, 32, 32], halo: [4, 8, 8]}
ffn: {min_segment_size: 100, disco_seed_threshold: null, seed_voxel_size_nm: [30, 16, 16]}
output: {chunk: [16, 16, 16]}
evaluate: {block_shape: [16, 32, 32]}
baseline: null
"""
BLOCKS = 2 * 2 * 2


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('model') / 'bright.keras'
    write_bright_ffn(path, voxel_size_nm=(30.0, 16.0, 16.0))
    return path


def _give(name: str, *options: str) -> str:
    command = [sys.executable, '-m', f'pipelines.{name}', *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _make_inputs(base: str, model: Path) -> None:
    """Tissue, the network and the configuration."""
    _give(
        'phantom', '--output', f'{base}/phantom', '--shape=32,64,64', '--seed=3',
        '--voxel_size_nm', VOXEL_SIZE_NM, '--block_shape=32,64,64',
    )  # fmt: skip
    storage.write_bytes(f'{base}/bright.keras', model.read_bytes())
    storage.write_bytes(f'{base}/run.yaml', CONFIG.encode())


def _segment(base: str) -> list[str]:
    return [
        '--config', f'{base}/run.yaml', '--run_dir', f'{base}/run',
        '--set', f'image={base}/phantom/volumes/image',
        '--set', f'truth={base}/phantom/volumes/neuron',
        '--set', f'model={base}/bright.keras', '--direct_num_workers=2',
    ]  # fmt: skip


def _results(base: str) -> dict[str, bytes]:
    """Volumes and tables; provenance names the ledger, which stands elsewhere."""
    return {
        path.removeprefix(base): storage.read_bytes(path)
        for folder in ('run/volumes', 'run/tables', 'run/evaluation/tables', 'phantom/volumes')
        for path in storage.list_files(f'{base}/{folder}')
        if 'provenance' not in path and not path.endswith('.key')
    }


def _digests(base: str) -> dict[str, tuple[str, int]]:
    """What every block wrote, by its marker."""
    markers = {
        path.removeprefix(base): json.loads(storage.read_bytes(path))
        for path in storage.list_files(f'{base}/run', '.json')
        if '/blocks/' in path
    }
    return {path: (marker['digest'], marker['rows']) for path, marker in markers.items()}


def _scores(base: str) -> dict[str, object]:
    scores = json.loads(storage.read_bytes(f'{base}/run/evaluation/scores.json'))
    return {name: scores[name] for name in ('foreground', 'all', 'truth_voxels')}


@pytest.fixture(scope='module')
def local(tmp_path_factory: pytest.TempPathFactory, model: Path) -> str:
    """A folder with an undisturbed run."""
    base = str(tmp_path_factory.mktemp('local'))
    _make_inputs(base, model)
    _give('segment', *_segment(base))
    return base


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_in_a_bucket(local: str, model: Path, gcs_bucket: str) -> None:
    _make_inputs(gcs_bucket, model)
    assert 'nothing was written' in _give('segment', *_segment(gcs_bucket), '--dry_run')
    _give('segment', *_segment(gcs_bucket))
    expected = _results(local)
    assert _results(gcs_bucket) == expected and len(expected) > 100
    assert _digests(gcs_bucket) == _digests(local)
    assert _scores(gcs_bucket) == _scores(local)
    assert storage.exists(f'{gcs_bucket}/run/report.html')
    # By itself too, with its scores beside the run.
    _give(
        'evaluate', '--segmentation', f'{gcs_bucket}/run/volumes/segmentation',
        '--truth', f'{gcs_bucket}/phantom/volumes/neuron', '--output', f'{gcs_bucket}/scores.json',
        '--run_dir', f'{gcs_bucket}/evaluated', '--set=block_shape=[16,32,32]',
    )  # fmt: skip
    alone = json.loads(storage.read_bytes(f'{gcs_bucket}/scores.json'))
    assert alone['foreground'] == _scores(local)['foreground']


def _check_faults(
    local: str, model: Path, bucket: str, emulator, count: int, acts: list[str], **values
) -> dict[str, int]:
    _make_inputs(bucket, model)
    plan = FaultPlan(count=count - len(acts), hung_s=60.0, retry_after_s=1, **values)
    command = [sys.executable, '-m', 'pipelines.segment', *_segment(bucket), '--retry_quarantined']
    outcome = run_until_done(command, emulator, plan, acts)
    # All of them happened, and the report says so.
    assert sum(outcome.faults.values()) == count, outcome
    report = json.loads(storage.read_bytes(f'{bucket}/run/report.json'))
    assert report['faults'] == outcome.faults
    emulator.inject(FaultPlan())
    # Nothing is lost, nothing is double, nothing is left out.
    assert _results(bucket) == _results(local)
    assert _digests(bucket) == _digests(local)
    assert _scores(bucket) == _scores(local)
    for name, stage in report['stages'].items():
        assert 'holes' not in stage, name
    flood = report['stages']['flood']
    assert flood['blocks'] == BLOCKS == flood['blocks_run'] + flood['blocks_reused']
    return dict(outcome.faults)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_20_faults(local, model, gcs_bucket, bucket_emulator) -> None:
    acts = [KILLED, STOPPED]
    _check_faults(local, model, gcs_bucket, bucket_emulator, 20, acts, seed=20, rate=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    'H01_BEAM_MANY_FAULTS' not in os.environ, reason='takes long: set H01_BEAM_MANY_FAULTS=1'
)
def test_200_faults(local, model, gcs_bucket, bucket_emulator) -> None:
    acts = [KILLED, STOPPED, ORPHANED, KILLED, STOPPED, ORPHANED, KILLED, STOPPED]
    faults = _check_faults(
        local, model, gcs_bucket, bucket_emulator, 200, acts, seed=200, rate=0.15
    )
    assert set(KINDS) | {KILLED, STOPPED, ORPHANED} == set(faults), faults
    print('faults', faults)


# ---------------------------------------------------------------- what does not pass


def _fail(*options: str) -> tuple[int, str]:
    command = [sys.executable, '-m', 'pipelines.segment', *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_object_without_permission(local, model, gcs_bucket, bucket_emulator) -> None:
    """The blocks that read it are left out, and named; with permission, the rest is done."""
    _make_inputs(gcs_bucket, model)
    prefix = f'{gcs_bucket}/phantom/volumes/image/'
    chunk = next(path for path in storage.list_files(prefix) if '/0-' in path and '_0-' in path)
    bucket_emulator.inject(FaultPlan(denied=(chunk.removeprefix('gs://'),)))
    code, message = _fail(*_segment(gcs_bucket))
    assert code == 1 and chunk.rpartition('/')[2] in message, message
    assert 'Storage Object User' in message and '--retry_quarantined' in message
    report = json.loads(storage.read_bytes(f'{gcs_bucket}/run/report.json'))
    flood, relabel = (report['stages'][name] for name in ('flood', 'relabel'))
    assert flood['blocks_quarantined'] >= 1
    assert flood['blocks_run'] == BLOCKS - flood['blocks_quarantined']
    assert relabel['blocks_blocked'] == BLOCKS
    assert not storage.exists(f'{gcs_bucket}/run/evaluation/scores.json')
    bucket_emulator.inject(FaultPlan())
    _give('segment', *_segment(gcs_bucket), '--retry_quarantined')
    assert _results(gcs_bucket) == _results(local) and _scores(gcs_bucket) == _scores(local)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bucket_that_fills(local, model, gcs_bucket, bucket_emulator) -> None:
    _make_inputs(gcs_bucket, model)
    blobs = list(storage.list_files(gcs_bucket))
    used = sum(storage.size(path) for path in blobs)
    bucket_emulator.inject(FaultPlan(capacity_bytes=used + 60_000))
    code, message = _fail(*_segment(gcs_bucket))
    assert code in (1, 2) and 'free space, have the quota' in message, message
    assert gcs_bucket in message
    bucket_emulator.inject(FaultPlan())
    _give('segment', *_segment(gcs_bucket))
    assert _results(gcs_bucket) == _results(local)
