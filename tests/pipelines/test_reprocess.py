"""`python -m pipelines.reprocess`: new sections, killed in mid-run, two at once, nothing new."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from h01_beam import generations, storage
from h01_beam.acquisition.tables import TILES
from h01_beam.tables import from_parquet, to_parquet
from h01_beam.testing.tubes import make_tubes
from pipelines import ingest, launch, reprocess, segment
from tests.alignment.acquisition import TILE, tissue
from tests.arrays import read_all
from tests.models.bright_ffn import write_bright_ffn
from tests.pipelines.test_align import CONFIG, align, listed, png
from tests.stitching.tissue import cut

CAUSAL = CONFIG + '  causal: true\n  mesh_blocks: {tile: 16, halo: 6, coarsest: 16, sweeps: 2}\n'


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """A job starts where its relative paths do; the tests end where they began."""
    monkeypatch.chdir(tmp_path)


def again(run_dir, *options):
    """Exit code of the command, in this process."""
    argv = ['--run_dir', str(run_dir), '--direct_num_workers=1', *options]
    args, args.beam = reprocess.flags().parse_known_args(argv)
    args.describe = launch.describe_plan
    return reprocess.main(args)


def manifest(folder, sections):
    path = folder / 'tiles.parquet'
    path.write_bytes(to_parquet(listed(folder, sections, images=False), TILES))
    return path


def volumes(run_dir):
    folder = generations.current(str(run_dir))
    return {name: read_all(f'{folder}/volumes/{name}') for name in ('image', 'mask')}


@pytest.mark.slow  # Six sections are aligned three times.
@pytest.mark.timeout(1200)
def test_new_sections_killed_and_taken_up_again(tmp_path, monkeypatch, capsys, repository):
    monkeypatch.setattr('tests.pipelines.test_align.CONFIG', CAUSAL)
    listed(tmp_path, range(5))  # Their images.
    assert align(tmp_path, manifest(tmp_path, range(3))) == 0
    run_dir = tmp_path / 'run'
    first = volumes(run_dir)
    assert again(run_dir) == 0 and 'nothing new' in capsys.readouterr().out
    assert generations.history(str(run_dir)) == []

    manifest(tmp_path, range(4))
    assert again(run_dir, '--dry_run') == 0
    out = capsys.readouterr().out
    assert 'new       section 3\n' in out and 'replaced  -' in out
    planned = dict(re.findall(r'^(\S+) +\d+ +(\d+)$', out, re.M))
    assert not list((run_dir / 'generations').glob('*/*')), 'a plan leaves nothing'
    command = [sys.executable, '-m', 'pipelines.reprocess', '--run_dir', str(run_dir),
               '--direct_num_workers=1']  # fmt: skip
    environment = {**os.environ, 'PYTHONPATH': str(repository)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 600
        done = run_dir / 'generations/000001/ledger'
        while not list(done.glob('check_sections/blocks/*/*')) and time.monotonic() < deadline:
            assert process.poll() is None, 'it ended before it could be killed'
            time.sleep(0.05)
        assert again(run_dir) == launch.BAD_INPUT
        assert f'is held by process {process.pid}' in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
    assert generations.current(str(run_dir)) == str(run_dir)
    assert again(run_dir, '--keep_generations', '2') == 0
    (event,) = generations.history(str(run_dir))
    assert event['to'] == '000001' and event['inputs']['new'] == ['section 3']
    stages = event['stages']
    for name, count in planned.items():
        assert int(count) <= stages[name]['blocks_run'], name
    assert int(planned['render_image']) == stages['render_image']['blocks_run']
    render = stages['render_image']
    assert render['blocks_run'] * 4 == render['blocks'], 'all blocks of the new section, no others'

    manifest(tmp_path, range(5))
    assert again(run_dir) == 0
    found = volumes(run_dir)
    shutil.move(run_dir, tmp_path / 'twice')
    assert align(tmp_path, manifest(tmp_path, range(5))) == 0
    for name, array in volumes(run_dir).items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(volumes(tmp_path / 'twice')[name], array)
        np.testing.assert_array_equal(array[:3], first[name])
    assert again(tmp_path / 'twice', '--history') == 0
    assert capsys.readouterr().out.count('1 new; ') == 2
    assert again(tmp_path / 'twice', '--rollback') == 0
    assert volumes(tmp_path / 'twice')['image'].shape[0] == 4


@pytest.mark.slow  # Four sections are aligned, three of them twice.
@pytest.mark.timeout(900)
def test_a_replaced_section_touches_what_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('tests.pipelines.test_align.CONFIG', CAUSAL)
    listed(tmp_path, range(4))
    assert align(tmp_path, manifest(tmp_path, range(4))) == 0
    # Section 2 is cut anew from the same tissue, with other noise of the stage.
    rng = np.random.default_rng(7)
    rows = from_parquet((tmp_path / 'tiles.parquet').read_bytes())
    for path, y, x, section in zip(rows['path'], rows['y_nm'], rows['x_nm'], rows['section']):
        if section == 2:
            place = np.array([y, x]) / 4.0 + rng.uniform(-5, 5, 2)
            storage.write_bytes(path, png(cut(tissue(2), place, TILE)))
    assert again(tmp_path / 'run') == 0
    (event,) = generations.history(str(tmp_path / 'run'))
    assert event['inputs'] == {'new': [], 'replaced': ['section 2'], 'removed': []}
    per_section = {n: s['blocks'] // 4 for n, s in event['stages'].items()}
    for name in ('check_tiles', 'match_seams', 'render_montage'):
        if name in event['stages']:
            assert event['stages'][name]['blocks_run'] == per_section[name], name
    # Sections 0 and 1 lie before it: nothing of them is done again.
    assert event['stages']['render_image']['blocks_run'] <= 2 * per_section['render_image']


def test_runs_that_it_cannot_take_are_refused(tmp_path, capsys):
    assert again(tmp_path / 'none') == launch.BAD_INPUT
    assert 'there is no run.json in it' in capsys.readouterr().err
    (tmp_path / 'run.json').write_text('{"job": "ingest", "attempt": "", "directory": "/"}')
    assert again(tmp_path) == launch.BAD_INPUT
    assert "holds a run of 'ingest'; must be one of align, segmentation" in capsys.readouterr().err
    (tmp_path / 'run.json').write_text('{"job": "align", "directory": "/"}')
    assert again(tmp_path) == launch.BAD_INPUT
    assert 'does not say which inputs it had' in capsys.readouterr().err
    assert again(tmp_path, '--rollback') == launch.BAD_INPUT
    assert 'no earlier generation' in capsys.readouterr().err


def run_script(script, *argv):
    """Exit code of a job, in this process."""
    args, args.beam = script.flags().parse_known_args([*argv, '--direct_num_workers=1'])
    return script.main(args)


@pytest.mark.slow  # Tubes are segmented three times.
@pytest.mark.timeout(900)
def test_a_segmentation_of_an_image_that_grows(tmp_path):
    voxel_size_nm = (20.0, 10.0, 10.0)
    write_bright_ffn(tmp_path / 'bright.keras', voxel_size_nm=voxel_size_nm)
    tissue_3 = make_tubes((48, 64, 96), voxel_size_nm, seed=5)[0]
    (tmp_path / 'segment.yaml').write_text(
        'grid: {block_shape: [16, 32, 48], halo: [4, 8, 8]}\n'
        'ffn: {min_segment_size: 200, disco_seed_threshold: null, '
        'seed_voxel_size_nm: [20, 10, 10]}\n'
        'output: {chunk: [16, 16, 16]}\nbaseline: null\n'
    )

    def ingest_sections(count):
        np.savez(tmp_path / 'em.npz', image=tissue_3[:count])
        assert run_script(
            ingest, '--input', f'{tmp_path}/em.npz|npz:image', '--output', f'{tmp_path}/em',
            '--voxel_size_nm', '20,10,10', '--chunk', '16,32,32',
        ) == 0  # fmt: skip

    def segment_into(folder):
        return run_script(
            segment, '--config', f'{tmp_path}/segment.yaml', '--run_dir', f'{tmp_path}/{folder}',
            '--set', f'image={tmp_path}/em', '--set', f'model={tmp_path}/bright.keras',
        )  # fmt: skip

    def labels(folder):
        return read_all(f'{generations.current(str(tmp_path / folder))}/volumes/segmentation')

    ingest_sections(32)
    assert segment_into('run') == 0
    first = labels('run')
    ingest_sections(48)
    assert again(tmp_path / 'run') == 0
    (event,) = generations.history(str(tmp_path / 'run'))
    assert event['inputs']['replaced'] == ['image']
    # Blocks of the first 16 sections read none that is new, and are filled as before from those
    # that do: they keep their objects and ids.
    for stage in ('flood', 'relabel'):
        counts = event['stages'][stage]
        assert counts['blocks_run'] * 3 == counts['blocks'] * 2, stage
    assert segment_into('scratch') == 0
    np.testing.assert_array_equal(labels('run'), labels('scratch'))
    np.testing.assert_array_equal(read_all(tmp_path / 'run/volumes/segmentation'), first)
    assert (labels('run')[:8] == first[:8]).mean() > 0.9
