from __future__ import annotations

import argparse
import dataclasses
import os
import threading

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    GoogleCloudOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid
from h01_beam.hardware import Hardware
from h01_beam.volume import Volume
from h01_beam.worker import Deaths
from pipelines import launch
from tests.arrays import create, tree_bytes


def test_one_worker_process_per_core():
    options = launch.beam_options([])
    direct = options.view_as(DirectOptions)
    assert options.view_as(StandardOptions).runner == 'DirectRunner'
    assert direct.direct_num_workers == os.cpu_count()
    assert direct.direct_running_mode == ('multi_processing' if os.cpu_count() > 1 else 'in_memory')
    assert not options.view_as(SetupOptions).save_main_session


@pytest.mark.parametrize(
    ('flags', 'workers', 'mode'),
    [
        (['--direct_num_workers=1'], 1, 'in_memory'),
        (['--direct_num_workers', '3'], 3, 'multi_processing'),
        (
            ['--direct_num_workers=0', '--direct_running_mode=in_memory'],
            os.cpu_count(),
            'in_memory',
        ),
        (['--runner=DirectRunner', '--direct_num_workers=1'], 1, 'in_memory'),
    ],
)
def test_workers_may_be_chosen(flags, workers, mode):
    direct = launch.beam_options(flags).view_as(DirectOptions)
    assert (direct.direct_num_workers, direct.direct_running_mode) == (workers, mode)


def test_flags_of_beam_are_known_by_all_their_names():
    flags = [
        '--runner=DataflowRunner', '--worker_machine_type=n2-standard-8', '--experiment=a',
        '--experiments=b', '--no_use_public_ips', '--project', 'p', '--region=r',
        '--temp_location=gs://b/tmp', '--dataflow_service_options=worker_accelerator=type:l4',
        '--num_workers', '4', '--setup_file=./setup.py',
    ]  # fmt: skip
    options = launch.beam_options(flags)
    assert options.view_as(StandardOptions).runner == 'DataflowRunner'
    assert options.view_as(WorkerOptions).machine_type == 'n2-standard-8'
    assert options.view_as(WorkerOptions).use_public_ips is False
    assert options.view_as(GoogleCloudOptions).project == 'p'


@pytest.mark.parametrize(
    'flag', ['--direct_num_work=3', '--runnr=DirectRunner', '--num-workers=3', 'stray', '-x']
)
def test_flags_that_nobody_knows_are_refused(flag, caplog):
    with pytest.raises(ValueError, match=f"unknown flag '{flag}': see --help"):
        launch.beam_options(['--num_workers=3', flag])
    assert not caplog.records


def test_numbers_of_flags():
    assert launch.numbers('30,8,4.5') == (30.0, 8.0, 4.5)
    assert launch.integers('64,32,16') == (64, 32, 16)
    with pytest.raises(ValueError):
        launch.integers('64,32,1.5')


def arguments(*flags):
    parser = launch.parser('A job.', config=False)
    parser.add_argument('--volume')
    return launch.parse(parser)(['prog', *flags, '--direct_num_workers=1'])


def test_our_flags_and_those_of_beam_are_told_apart():
    args = arguments('--run_dir=a', '--dry_run', '--runner', 'DataflowRunner')
    assert args.run_dir == 'a' and args.dry_run
    assert args.beam == ['--runner', 'DataflowRunner', '--direct_num_workers=1']


def test_our_flags_are_not_abbreviated(capsys):
    args = arguments('--run_dir=a', '--vol=b')
    assert args.volume is None and '--vol=b' in args.beam
    with pytest.raises(SystemExit) as caught:
        arguments('--volume=b')
    assert caught.value.code == launch.BAD_INPUT
    assert '--run_dir' in capsys.readouterr().err


def double(image):
    return image * 2


def fail(image):
    raise RuntimeError('first line\nsecond line')


def execute(tmp_path, function, *flags, finish=None):
    source = create(tmp_path / 'em').spec if not (tmp_path / 'em').exists() else None
    source = source or launch_source(tmp_path)

    def build(root, run):
        run.write_manifest('double', {}, {})
        root | MapBlocks(
            function, stage='double', grid=BlockGrid(source.bounds, (4, 8, 16)), run=run,
            reads={'image': source}, writes={'out': target(source, tmp_path)},
        )  # fmt: skip

    args = arguments(f'--run_dir={tmp_path}/run', *flags)
    return launch.execute(args, args.run_dir, build, finish)


def launch_source(tmp_path):
    return Volume.open(f'{tmp_path}/em').spec


def target(source, tmp_path):
    return dataclasses.replace(source, uri=f'{tmp_path}/out|neuroglancer-precomputed:')


def test_a_run_that_succeeds(tmp_path, capsys):
    finished = []
    assert execute(tmp_path, double, finish=lambda run: finished.append(run.path)) == 0
    assert finished == [f'{tmp_path}/run']
    assert capsys.readouterr() == ('', '')


def test_a_run_that_fails_says_why_in_one_line(tmp_path, capsys):
    assert execute(tmp_path, fail, finish=lambda run: 1 / 0) == launch.FAILED
    captured = capsys.readouterr()
    error, *others = captured.err.strip().splitlines()
    assert error.startswith('error: stage double, block (')
    assert 'RuntimeError: first line; so did 10 blocks' in error
    assert error.endswith('finished blocks are kept')
    assert len(others) == 9  # The error names the tenth.
    assert all(line.startswith('quarantined: stage double, block (') for line in others)
    assert captured.out == ''


def test_a_dry_run_prints_the_plan(tmp_path, capsys):
    assert execute(tmp_path, double, '--dry_run') == 0
    header, line, workers = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ['stage', 'blocks', 'done', 'reads', 'writes', 'memory']
    assert line.split()[:3] == ['double', '27', '0'] and 'KiB' in line and 'MiB' in line
    assert 'nothing was written' in workers
    assert sorted(os.listdir(tmp_path)) == ['em']
    assert execute(tmp_path, double) == 0
    assert execute(tmp_path, double, '--dry_run') == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ['double', '27', '27']


def test_bad_input_ends_before_anything_starts(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    args = arguments(f'--run_dir={tmp_path}/file/run')
    assert launch.execute(args, args.run_dir, lambda root, run: None) == launch.BAD_INPUT
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith('error: run_dir is ') and 'cannot write there' in error


def test_a_refused_stage_costs_no_earlier_stage_its_output(tmp_path, capsys):
    """The first stage would make its output anew; the second is refused."""
    assert execute(tmp_path, double) == 0
    before = tree_bytes(tmp_path)
    source = launch_source(tmp_path)
    other = dataclasses.replace(target(source, tmp_path), chunk=(2, 8, 16))
    misaligned = dataclasses.replace(source, uri=f'{tmp_path}/more|neuroglancer-precomputed:')

    def build(root, run):
        for name, spec, block_shape in (
            ('double', other, (4, 8, 16)),
            ('m', misaligned, (5, 8, 16)),
        ):
            root | MapBlocks(
                double, stage=name, grid=BlockGrid(source.bounds, block_shape), run=run,
                reads={'image': source}, writes={'out': spec},
            )  # fmt: skip

    args = arguments(f'--run_dir={tmp_path}/run')
    assert launch.execute(args, args.run_dir, build) == launch.BAD_INPUT
    assert 'two blocks would write one chunk' in capsys.readouterr().err
    assert tree_bytes(tmp_path) == before


def test_a_run_directory_of_another_job_is_left_alone(tmp_path, capsys):
    assert execute(tmp_path, double) == 0
    args = arguments(f'--run_dir={tmp_path}/run')

    def build(root, run):
        run.write_manifest('halve', {}, {})

    assert launch.execute(args, args.run_dir, build) == launch.BAD_INPUT
    assert "it holds a run of 'double'" in capsys.readouterr().err


def test_memory_of_remote_workers():
    options = launch.beam_options(['--runner=DataflowRunner'])
    for given, expected in ((None, 16 * 2**30), (4.0, 4 * 2**30)):
        args = argparse.Namespace(worker_memory_gib=given)
        assert launch._resources(args, options).memory_bytes_per_worker == expected


def test_tpus_for_single_stages_are_warned_of(caplog):
    tpu = 'type:tpu-v5-lite-podslice;topology:1x1'
    flags = ['--runner=DataflowRunner']
    for fitting, warned in (('pool', False), ('stages', True)):
        section = {'workers': {'fitting': fitting}, 'stages': {'flood': {'accelerator': tpu}}}
        options = launch.beam_options(flags, Hardware.parse(section))
        assert options.view_as(DebugOptions).number_of_worker_harness_threads == 1
        assert (
            any('set resources.workers.fitting' in r.getMessage() for r in caplog.records) == warned
        )


def test_the_hardware_is_read_from_either_file(tmp_path):
    (tmp_path / 'run.yaml').write_text('a: 1\nresources: {stages: {flood: {cpu_count: 2}}}\n')
    (tmp_path / 'cpu.yaml').write_text('stages: {flood: {cpu_count: 4}}\n')
    flags = [
        f'--config={tmp_path}/run.yaml',
        '--run_dir=x',
        '--set=resources.workers.num_workers=3',
    ]
    args = launch.parse(launch.parser('A job.'))(['job', *flags])
    found = launch.load_hardware(args)
    assert (found.needs_of('flood').cpu_count, found.workers.num_workers) == (2, 3)
    assert launch.load_config(args) == {'a': 1}
    args = launch.parse(launch.parser('A job.'))(
        ['job', *flags, f'--resources={tmp_path}/cpu.yaml']
    )
    assert launch.load_hardware(args).needs_of('flood').cpu_count == 4
    assert launch.load_hardware(arguments('--run_dir=x')) == Hardware()


def test_root_causes_are_found():
    text = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in f\n'
        'KeyError: 3\n\nDuring handling of the above exception, another exception occurred:\n'
        '  File "y.py", line 1\n'
        'RuntimeError: h01_beam.work.BlockError: stage a, block (0, 1, 2)'
        " (core [0:1]): KeyError: 3 [while running 'a/Process']\n"
    )
    found = launch._root_cause(RuntimeError(text), Deaths())
    assert found == 'stage a, block (0, 1, 2) (core [0:1]): KeyError: 3'
    assert launch._root_cause(KeyError('x'), Deaths()) == "KeyError: 'x'"


def test_a_dead_worker_is_the_cause_of_a_closed_channel():
    deaths, closed = Deaths(), RuntimeError('RuntimeError: Channel closed prematurely.')
    threading.Timer(0.2, deaths.tell, ['exit code -9']).start()
    assert 'a worker process died (exit code -9)' in launch._root_cause(closed, deaths)
    block = RuntimeError('BlockError: stage x, block (0, 0, 0) (core): ValueError: odd')
    assert launch._root_cause(block, deaths).startswith('stage x, block (0, 0, 0)')
