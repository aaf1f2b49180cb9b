"""One small reconstruction, scored: the same bytes on DirectRunner, Prism and Flink."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from h01_beam import boot
from h01_beam.testing.engines import FlinkCluster, MissingEngineError, Prism, processes
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec
from tests.models.bright_ffn import write_bright_ffn

SHAPE, VOXEL_SIZE_NM = (32, 64, 96), (20.0, 10.0, 10.0)
BLOCKS = 8
CONFIG = """
grid: {block_shape: [16, 32, 48], halo: [4, 8, 8]}
ffn: {min_segment_size: 200, disco_seed_threshold: null, seed_voxel_size_nm: [20, 10, 10]}
output: {chunk: [16, 16, 16]}
baseline: null
"""
# What differs from run to run: times, memory, the network's share, how often a block was tried.
CHANGES = (
    'second', 'peak_', 'started', 'ended', 'time', 'rate', 'blocks_run', 'blocks_reused', 'network',
)  # fmt: skip
LIMIT_S = 1200


@pytest.fixture(scope='module')
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.yaml, bright.keras, and volumes em and truth."""
    folder = tmp_path_factory.mktemp('inputs')
    (folder / 'config.yaml').write_text(CONFIG)
    write_bright_ffn(folder / 'bright.keras', voxel_size_nm=VOXEL_SIZE_NM)
    for name, array in zip(('em', 'truth'), make_tubes(SHAPE, VOXEL_SIZE_NM, seed=5)):
        labels = name == 'truth'
        spec = VolumeSpec(
            uri=f'{folder}/{name}|neuroglancer-precomputed:', voxel_size_nm=VOXEL_SIZE_NM,
            dtype=str(array.dtype), shape=SHAPE, chunk=(16, 32, 32),
            kind='segmentation' if labels else 'image',
        )  # fmt: skip
        Volume.create(spec)[0].write(spec.bounds, array)
    return folder


def command(inputs: Path, run_dir: Path, *flags: str) -> list[str]:
    return [
        sys.executable, '-m', 'pipelines.segment', '--config', f'{inputs}/config.yaml',
        '--set', f'image={inputs}/em', '--set', f'truth={inputs}/truth',
        '--set', f'model={inputs}/bright.keras', '--run_dir', str(run_dir), *flags,
    ]  # fmt: skip


def run(inputs: Path, run_dir: Path, *flags: str) -> dict[str, str]:
    """Runs the job; returns what it left (`contents`)."""
    started = time.monotonic()
    result = subprocess.run(
        command(inputs, run_dir, *flags),
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    print(f'{time.monotonic() - started:.0f} s')
    return contents(run_dir)


def contents(run_dir: Path) -> dict[str, str]:
    """SHA-256 of volumes, tables and scores by path, and the reports without their times."""
    result = {}
    for path in sorted(p for p in run_dir.rglob('*') if p.is_file()):
        name, data = path.relative_to(run_dir).as_posix(), path.read_bytes()
        if 'ledger' in name.split('/') or path.name in ('run.json', 'report.html'):
            continue
        if path.suffix == '.json':
            text = data.decode().replace(str(run_dir), 'RUN_DIR')
            result[name] = json.dumps(without_times(json.loads(text)), sort_keys=True)
        elif 'figures' not in name.split('/'):
            result[name] = hashlib.sha256(data).hexdigest()
    kinds = {name.split('/')[0] for name in result}
    assert {'volumes', 'tables', 'evaluation', 'report.json'} <= kinds
    return result


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: without_times(value)
            for key, value in content.items()
            if not any(part in key for part in CHANGES)
        }
    return [without_times(v) for v in content] if isinstance(content, list) else content


@pytest.fixture(scope='module')
def expected(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process of DirectRunner makes."""
    return run(inputs, tmp_path_factory.mktemp('direct') / 'run', '--direct_num_workers=1')


@pytest.fixture
def flink(tmp_path: Path) -> Iterator[FlinkCluster]:
    try:
        cluster = FlinkCluster(tmp_path / 'flink')
    except MissingEngineError as missing:
        pytest.skip(str(missing))
    with cluster:
        yield cluster


@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S)
def test_two_worker_processes_make_the_same_bytes(inputs, expected, tmp_path):
    assert run(inputs, tmp_path / 'run', '--direct_num_workers=2') == expected


@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S)
def test_prism_makes_the_same_bytes(inputs, expected, tmp_path):
    try:
        engine = Prism(tmp_path / 'prism')
    except MissingEngineError as missing:
        pytest.skip(str(missing))
    with engine:
        assert run(inputs, tmp_path / 'run', *engine.beam_flags()) == expected


@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S)
def test_flink_with_two_task_managers_makes_the_same_bytes(inputs, expected, flink, tmp_path):
    assert flink.overview()['taskmanagers'] == 2
    assert run(inputs, tmp_path / 'run', *flink.beam_flags()) == expected


@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S)
def test_flink_outlives_a_killed_task_manager(inputs, expected, flink, tmp_path):
    run_dir = tmp_path / 'run'
    markers = run_dir / 'ledger/flood/blocks'
    flags = flink.beam_flags()
    with subprocess.Popen(command(inputs, run_dir, *flags), stdout=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + LIMIT_S / 2
        while len(list(markers.glob('*/*.json'))) < 2 and time.monotonic() < deadline:
            assert job.poll() is None, 'the run ended before anything could be killed'
            time.sleep(0.05)
        os.kill(flink.pid(flink.task_managers()[0]), signal.SIGKILL)
        assert 2 <= len(list(markers.glob('*/*.json'))) < BLOCKS
        assert job.wait(timeout=LIMIT_S / 2) == 0
    assert flink.overview()['taskmanagers'] == 1
    assert contents(run_dir) == expected


def test_an_engine_that_is_not_there_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv('H01_BEAM_ENGINES', str(tmp_path / 'none'))
    for engine in (FlinkCluster, Prism):
        with pytest.raises(MissingEngineError, match='deploy/engines/fetch'):
            engine(tmp_path / 'logs')
    assert not (tmp_path / 'logs').exists()


def test_a_process_that_ends_early_shows_its_log(tmp_path):
    with processes.Processes(tmp_path) as running:
        running.start('broken', ['sh', '-c', 'echo no such jar; exit 3'], {})
        with pytest.raises(RuntimeError, match='broken ended: no such jar'):
            running.wait_for('the engine', lambda: False, limit_s=30)


def test_processes_end_with_their_context(tmp_path):
    with processes.Processes(tmp_path) as running:
        running.start('sleeper', ['sleep', '600'], {})
        pid = running.pid('sleeper')
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_boot_starts_this_python_and_this_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    boot_command = processes.write_boot(tmp_path)
    shown = subprocess.run(
        [boot_command, '--help'], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert '--provision_endpoint' in shown


def test_worker_environment_is_that_of_the_engine():
    from google.protobuf import json_format, struct_pb2

    options = json_format.ParseDict({'beam:option:a:v1': 3}, struct_pb2.Struct())
    info = SimpleNamespace(
        control_endpoint=SimpleNamespace(url='localhost:1'),
        logging_endpoint=SimpleNamespace(url='localhost:2'),
        pipeline_options=options, runner_capabilities=['x', 'y'],
    )  # fmt: skip
    args = argparse.Namespace(id='1-1', control_endpoint='', logging_endpoint='localhost:9')
    found = boot.worker_environment(args, info)
    assert found['CONTROL_API_SERVICE_DESCRIPTOR'] == 'url: "localhost:1"'
    assert found['LOGGING_API_SERVICE_DESCRIPTOR'] == 'url: "localhost:9"'
    assert json.loads(found['PIPELINE_OPTIONS']) == {'beam:option:a:v1': 3}
    assert found['RUNNER_CAPABILITIES'].split() == ['x', 'y']
    assert found['WORKER_ID'] == '1-1'
