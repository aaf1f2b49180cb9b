"""`python -m pipelines.ingest` as a user runs it: in this process where that is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import tifffile

from h01_beam import storage
from h01_beam.volume import Volume
from pipelines import ingest, launch
from tests.arrays import box, create, position_code, read_all, tree_bytes
from tests.test_formats import WRITERS

BOUNDS = box((0, 0, 0), (7, 20, 33))


def run(*flags, workers=1):
    """The exit code."""
    parse = launch.parse(ingest.flags())
    return ingest.main(parse(['ingest', *flags, f'--direct_num_workers={workers}']))


def command(*flags, workers=1):
    flags = (*flags, f'--direct_num_workers={workers}')
    return [sys.executable, '-m', 'pipelines.ingest', *flags]


def convert(source, output, *flags):
    flags = ('--chunk=4,8,16', '--voxel_size_nm=30,8,4', *flags)
    return run(f'--input={source}', f'--output={output}', *flags)


def report_of(folder):
    return json.loads((folder / 'report.json').read_text())


@pytest.mark.parametrize('write', WRITERS)
def test_every_format_becomes_a_volume(tmp_path, write, capsys):
    image = position_code(BOUNDS, 'uint8')
    assert convert(write(tmp_path, image), tmp_path / 'em') == 0
    assert capsys.readouterr().out == f'wrote {tmp_path}/em|neuroglancer-precomputed:\n'
    volume = Volume.open(f'{tmp_path}/em')
    assert volume.spec.voxel_size_nm == (30, 8, 4) and volume.spec.chunk == (4, 8, 16)
    assert volume.spec.kind == 'image'
    np.testing.assert_array_equal(volume.read(volume.bounds), image)


def test_zarr_and_shards(tmp_path):
    np.save(tmp_path / 'em.npy', position_code(BOUNDS, 'uint16'))
    for output in ('em.zarr|zarr3:', 'em|neuroglancer-precomputed:'):
        assert convert(tmp_path / 'em.npy', tmp_path / output, '--shard=8,16,32') == 0
        volume = Volume.open(f'{tmp_path}/{output}')
        assert volume.spec.shard is not None and volume.spec.dtype == 'uint16'
        np.testing.assert_array_equal(read_all(volume.spec.uri), position_code(BOUNDS, 'uint16'))
        folder = tmp_path / output.partition('|')[0] / 'ingest'
        assert report_of(folder)['stages']['ingest']['blocks'] == 1


def test_labels_of_one_data_set(tmp_path):
    labels = position_code(BOUNDS, 'int64')
    with h5py.File(tmp_path / 'em.h5', 'w') as file:
        file['labels'], file['image'] = labels, position_code(BOUNDS, 'uint8')
    assert convert(tmp_path / 'em.h5', tmp_path / 'em', '--dataset=labels') == 0
    volume = Volume.open(f'{tmp_path}/em')
    assert (volume.spec.dtype, volume.spec.kind) == ('uint64', 'segmentation')
    assert volume.spec.encoding == 'compressed_segmentation'
    np.testing.assert_array_equal(volume.read(volume.bounds), labels.astype(np.uint64))


def test_grey_levels_are_scaled(tmp_path):
    image = np.linspace(-0.5, 1.5, BOUNDS.size).reshape(BOUNDS.shape)
    tifffile.imwrite(tmp_path / 'em.tif', image)
    assert convert(tmp_path / 'em.tif', tmp_path / 'em', '--grey_range=0,1') == 0
    expected = np.clip(np.rint(image * 255), 0, 255)
    assert np.abs(read_all(tmp_path / 'em') - expected).max() <= 1


def test_a_volume_of_another_format_keeps_its_place(tmp_path):
    source = create(tmp_path / 'em.zarr', 'zarr3').spec
    assert convert(tmp_path / 'em.zarr', tmp_path / 'em', '--encoding=png') == 0
    assert Volume.open(f'{tmp_path}/em').spec.start == source.start == (3, 5, 7)
    np.testing.assert_array_equal(read_all(tmp_path / 'em'), read_all(source.uri))


def test_nothing_is_converted_twice(tmp_path):
    np.save(tmp_path / 'em.npy', position_code(BOUNDS, 'uint8'))
    for blocks_run in (2, 0):
        assert convert(tmp_path / 'em.npy', tmp_path / 'em') == 0
        stage = report_of(tmp_path / 'em/ingest')['stages']['ingest']
        assert (stage['blocks'], stage['blocks_run']) == (2, blocks_run)
    np.save(tmp_path / 'em.npy', position_code(BOUNDS, 'uint8') + 1)
    assert convert(tmp_path / 'em.npy', tmp_path / 'em', f'--run_dir={tmp_path}/run') == 0
    assert report_of(tmp_path / 'run')['stages']['ingest']['blocks_run'] == 2
    np.testing.assert_array_equal(
        read_all(tmp_path / 'em'), position_code(BOUNDS, 'uint8') + np.uint8(1)
    )


def test_into_a_bucket(tmp_path, gcs_bucket):
    np.save(tmp_path / 'em.npy', position_code(BOUNDS, 'uint8'))
    assert convert(tmp_path / 'em.npy', tmp_path / 'em', '--chunk=8,16,32') == 0
    assert convert(tmp_path / 'em.npy', f'{gcs_bucket}/em', '--chunk=8,16,32') == 0
    names = [n for n in tree_bytes(tmp_path / 'em') if n.startswith(('info', '4_8_30'))]
    assert len(names) > 4
    for name in names:
        assert (
            storage.read_bytes(f'{gcs_bucket}/em/{name}') == (tmp_path / 'em' / name).read_bytes()
        )
    assert storage.exists(f'{gcs_bucket}/em/ingest/report.html')


# ---------------------------------------------------------------- bad input


def bad_input(tmp_path, name):
    """A file that cannot become a volume, or the path of none."""
    path = tmp_path / name
    arrays = {
        'wide.npy': np.zeros((2, 3, 4), np.float64),
        'rank.npy': np.zeros((2, 3), np.uint8),
        'empty.npy': np.zeros((0, 3, 4), np.uint8),
        'good.npy': np.zeros((2, 3, 4), np.uint8),
    }
    if name in arrays:
        np.save(path, arrays[name])
    return path


@pytest.mark.parametrize(
    ('name', 'flags', 'message'),
    [
        ('none.npy', (), 'there is no such file'),
        ('none.h5', ('--dataset=raw',), 'there is no such file'),
        ('wide.npy', (), 'has dtype float64: must be one of uint8'),
        ('rank.npy', (), 'has rank 2'),
        ('empty.npy', (), 'is empty'),
        ('good.npy', ('--voxel_size_nm=30,0,8',), 'must be positive nm'),
        (
            'good.npy',
            ('--voxel_size_nm=30,8',),
            "'voxel_size_nm' is (30.0, 8.0): must have 3 values",
        ),
        ('good.npy', ('--chunk=0,8,8',), 'chunk is (0, 8, 8)'),
        ('good.npy', ('--shard=12,8,8',), 'must be chunk (4, 8, 16) times powers of 2'),
        ('good.npy', ('--grey_range=1',), "'grey_range' is (1.0,): must have 2 values"),
        ('good.npy', ('--grey_range=3,1',), 'must be LOW,HIGH with LOW < HIGH'),
        ('good.npy', ('--encoding=compressed_segmentation',), 'needs uint32 or uint64, not uint8'),
        ('good.npy', ('--kind=segmentation', '--encoding=jpeg'), 'would change labels'),
        ('good.npy', ('--output=em|zarr:',), "unknown driver 'zarr'"),
        ('good.npy', ('--output=em|hdf5:',), 'can be read, not written'),
        ('good.npy', ('--output=s3://b/em',), 'must be a local path or start with gs://'),
        ('good.npy', ('--runnr=DirectRunner',), "unknown flag '--runnr=DirectRunner'"),
        ('good.npy', ('--run_dir=good.npy/run',), 'cannot write there'),
    ],
)
def test_bad_input_gets_one_line(tmp_path, monkeypatch, capsys, name, flags, message):
    monkeypatch.chdir(tmp_path)
    path = bad_input(tmp_path, name)
    assert convert(path, tmp_path / 'em', *flags) == launch.BAD_INPUT
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith('error: ') and message in line
    assert captured.out == '' and not (tmp_path / 'em/info').exists()


def test_an_output_on_its_input_is_refused(tmp_path, capsys):
    before = create(tmp_path / 'em') and tree_bytes(tmp_path / 'em')
    assert convert(tmp_path / 'em', tmp_path / 'em', f'--run_dir={tmp_path}/run') == 2
    assert 'would overwrite the input' in capsys.readouterr().err
    assert tree_bytes(tmp_path / 'em') == before


@pytest.mark.parametrize(
    'flags', [('--voxel_size_nm=30,8,x',), ('--kind=pictures',), ('--chunk=1.5',)]
)
def test_malformed_flags_are_explained(tmp_path, capsys, flags):
    with pytest.raises(SystemExit) as caught:
        convert(bad_input(tmp_path, 'good.npy'), tmp_path / 'em', *flags)
    assert caught.value.code == launch.BAD_INPUT
    assert flags[0].partition('=')[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.float32([[[0, np.nan]]]), '1 voxels are NaN or infinite, the first at (0, 0, 1) (zyx)'),
        (np.int64([[[0, 5], [7, -1]]]), 'labels are negative, the first at (0, 1, 1)'),
    ],
)
def test_bad_voxels_end_the_run(tmp_path, capsys, array, message):
    np.save(tmp_path / 'em.npy', array)
    assert convert(tmp_path / 'em.npy', tmp_path / 'em') == launch.FAILED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith('error: stage ingest, block (0, 0, 0)') and message in line
    assert line.endswith('with --retry_quarantined: finished blocks are kept')


def test_a_section_cut_short_is_named(tmp_path, capsys):
    sections = WRITERS[-2](tmp_path, position_code(BOUNDS, 'uint8'))
    data = (sections / 's10.png').read_bytes()
    (sections / 's10.png').write_bytes(data[:60])
    assert convert(sections, tmp_path / 'em') == launch.FAILED
    (first,) = capsys.readouterr().err.strip().splitlines()
    assert 'stage ingest, block (0, 0, 0)' in first and 's10.png' in first and 'truncated' in first


# ---------------------------------------------------------------- processes of their own


@pytest.mark.parametrize('workers', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_process_that_fails_prints_no_traceback(tmp_path, repository, workers):
    np.save(tmp_path / 'em.npy', np.float32([[[0, np.nan]]]))
    flags = (f'--input={tmp_path}/em.npy', f'--output={tmp_path}/em', '--voxel_size_nm=30,8,8')
    result = subprocess.run(
        command(*flags, workers=workers),
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == launch.FAILED
    assert 'Traceback' not in result.stderr and len(result.stderr.splitlines()) <= 4
    assert 'NaN or infinite, the first at (0, 0, 1)' in result.stderr


def finished_blocks(folder):
    return {
        path: os.stat(path).st_mtime_ns
        for path in storage.list_files(f'{folder}/ingest/ledger/ingest/blocks')
    }


def kill_midway(arguments, folder, repository, blocks):
    """Starts a job and kills it, and all that it started, when some of its blocks are done."""
    process = subprocess.Popen(
        arguments, cwd=repository, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(finished_blocks(folder)) < blocks and time.monotonic() < deadline:
        assert process.poll() is None, 'the job ended before it could be killed'
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, repository):
    image = np.random.default_rng(0).integers(0, 256, (240, 24, 40), dtype=np.uint8)
    np.save(tmp_path / 'em.npy', image)
    same = (f'--input={tmp_path}/em.npy', '--voxel_size_nm=30,8,8', '--chunk=1,8,8')
    flags = (*same, f'--output={tmp_path}/em')
    kill_midway(command(*flags), tmp_path / 'em', repository, blocks=10)
    before = finished_blocks(tmp_path / 'em')
    assert 10 <= len(before) < 240
    # Of a block that was being written, any part may be there, and any other missing.
    assert run(*flags) == 0
    stage = report_of(tmp_path / 'em/ingest')['stages']['ingest']
    assert (stage['blocks'], stage['blocks_reused']) == (240, len(before))
    after = finished_blocks(tmp_path / 'em')
    assert {path: after[path] for path in before} == before
    assert run(*same, f'--output={tmp_path}/undisturbed') == 0
    trees = [tree_bytes(tmp_path / name / '8_8_30') for name in ('em', 'undisturbed')]
    assert trees[0] == trees[1]
    np.testing.assert_array_equal(read_all(tmp_path / 'em'), image)


@pytest.mark.slow
def test_two_worker_processes_write_the_same_bytes(tmp_path, repository):
    np.save(tmp_path / 'em.npy', position_code(box((0, 0, 0), (32, 40, 600)), 'uint16'))
    same = (f'--input={tmp_path}/em.npy', '--voxel_size_nm=30,8,8', '--chunk=4,8,16')
    assert run(*same, f'--output={tmp_path}/one') == 0
    arguments = command(*same, f'--output={tmp_path}/two', workers=2)
    subprocess.run(arguments, cwd=repository, check=True, capture_output=True)
    assert report_of(tmp_path / 'two/ingest')['stages']['ingest']['blocks'] == 16
    assert tree_bytes(tmp_path / 'one/8_8_30') == tree_bytes(tmp_path / 'two/8_8_30')
