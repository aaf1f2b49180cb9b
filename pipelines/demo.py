r"""The whole main job on your machine: make tissue, segment it, score it, show where it all is.

    python -m pipelines.demo

Synthetic brain tissue of a new seed is made, then segmented in 8 blocks by the network that ships
with the project, then scored against its exact truth. Everything is left in RUN_DIR; the same
command again goes on where it stopped, or finds that all is done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import app

from h01_beam import storage
from pipelines import launch, phantom, segment

HERE = Path(__file__).resolve().parent
CONFIG = HERE / 'configs' / 'demo.yaml'
NETWORK = HERE.parent / 'models' / 'ffn' / 'weights' / 'phantom_30x16x16.keras'
VOXEL_SIZE_NM = '30,16,16'


def main(args: argparse.Namespace) -> int:
    for what, path in (('--model', args.model), ('--config', args.config)):
        if not storage.exists(path):
            print(f'error: {what} is {path!r}: there is no such file', file=sys.stderr)
            return launch.BAD_INPUT
    tissue = storage.join(args.run_dir, 'phantom')
    started = time.monotonic()
    failed = make_tissue(args, tissue)
    if failed:
        return failed
    if args.dry_run and not storage.exists(storage.join(tissue, 'run.json')):
        print('The plan of the segmentation needs the tissue, which is not made yet.')
        return 0
    failed = segment_tissue(args, tissue)
    if not failed and not args.dry_run:
        show_results(args.run_dir, time.monotonic() - started)
    return failed


def make_tissue(args: argparse.Namespace, tissue: str) -> int:
    shape = ','.join(map(str, args.shape))
    say(f'1 of 2   tissue of seed {args.seed}, {shape} voxels (z, y, x)', 'half a minute')
    return call(
        phantom.main, phantom.flags(), '--output', tissue, '--shape', shape,
        '--voxel_size_nm', VOXEL_SIZE_NM, '--seed', str(args.seed),
        '--difficulty', str(args.difficulty), *common(args),
    )  # fmt: skip


def segment_tissue(args: argparse.Namespace, tissue: str) -> int:
    say('2 of 2   flood filling block by block, one segmentation, its scores', '3 to 6 minutes')
    return call(
        segment.main, segment.flags(), '--run_dir', args.run_dir,
        '--config', args.config, '--set', f'image={tissue}/volumes/image',
        '--set', f'truth={tissue}/volumes/neuron', '--set', f'model={args.model}', *common(args),
        *(['--resources', args.resources] if args.resources else []),
    )  # fmt: skip


def common(args: argparse.Namespace) -> list[str]:
    """The flags of the demo that both of its jobs have too."""
    result = ['--dry_run'] if args.dry_run else []
    if args.worker_memory_gib is not None:
        result += ['--worker_memory_gib', str(args.worker_memory_gib)]
    return [*result, *args.beam]


def say(step: str, minutes: str) -> None:
    print(f'\n{step}   (about {minutes} on 2 cores)', flush=True)


def call(
    job: Callable[[argparse.Namespace], int], flags: argparse.ArgumentParser, *argv: str
) -> int:
    """Runs another script's job in this process; returns its exit code."""
    return job(launch.parse(flags)([sys.argv[0], *argv]))


def show_results(run_dir: str, seconds: float) -> None:
    scores = json.loads(storage.read_bytes(storage.join(run_dir, 'report.json')))['scores']
    columns = {'network': scores}
    if 'baseline' in scores:
        columns['no network'] = scores['baseline']
    print(f'\n{"":<24}' + ''.join(f'{name:>12}' for name in columns))
    for name in ('voi_split', 'voi_merge', 'adapted_rand_error', 'coverage', 'erl_fraction'):
        region = 'all' if name.startswith('erl') else 'foreground'
        values = [part[region][name] for part in columns.values()]
        shown = ('-' if value is None else f'{value:.3f}' for value in values)
        print(f'{name:<24}' + ''.join(f'{value:>12}' for value in shown))
    print(f'\ndone in {seconds / 60:.1f} minutes')
    print(f'report                  {run_dir}/report.html')
    print(f'figures                 {run_dir}/figures, {run_dir}/evaluation/scores.png')
    print(f'viewer                  python -m pipelines.view --run_dir {run_dir}')


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False, run_dir=False)
    result.add_argument('--run_dir', default='demo_run', help='default: %(default)s')
    result.add_argument('--seed', type=int, default=2026, help='default: %(default)s')
    result.add_argument('--difficulty', type=float, default=0.3, help='0 (easy) to 1')
    result.add_argument('--shape', type=launch.integers, default=(48, 224, 224), metavar='Z,Y,X')
    result.add_argument('--model', default=str(NETWORK), help='default: %(default)s')
    result.add_argument('--config', default=str(CONFIG), help='default: %(default)s')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
