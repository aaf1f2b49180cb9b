"""Two worker processes against one on flood filling, and what Beam and the ledger add to blocks.

    python -m tests.benchmarks.scaling --rounds 3
    python -m tests.benchmarks.scaling --blocks 1,1,2 --block_shape 16,56,56 --rounds 1   # tiny

The job is that of `pipelines.demo`, without scores: synthetic tissue, flooded in blocks of the demo's
size by the network that ships with the project. A process has one compute thread: TensorFlow takes one
for an operation, and one canvas makes one call at a time. Runs with one worker and with two take
turns, and their order changes from round to round, so that what else the machine does hits both.

Prints JSON, a line for each run and one for all of them:
* blocks and fields of view per second, from the start of the first block to the end of the last;
* overhead: what workers spent from the first block to the last, less what the markers say that
  their blocks took (read, function, write), as a share; with two workers, what one of them waits
  for the last block of the other is in it;
* start: from the launch to the first block, with the start of the processes and of TensorFlow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from h01_beam import storage
from h01_beam.run import Ledger
from pipelines import demo, launch, phantom, segment

STAGE, WANTED_RATIO, WANTED_OVERHEAD = 'flood', 1.7, 0.05


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument('--blocks', type=launch.integers, default=(1, 2, 4), help='z,y,x')
    flags.add_argument('--block_shape', type=launch.integers, default=(24, 112, 112), help='z,y,x')
    flags.add_argument('--rounds', type=int, default=2, help='pairs of runs')
    flags.add_argument('--seed', type=int, default=2026, help='of the tissue')
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tissue = make_tissue(args, Path(folder))
        runs: list[dict[str, Any]] = []
        for number in range(args.rounds):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                run_dir = Path(folder, f'run_{number}_{workers}')
                runs.append(measure(args, tissue, run_dir, workers))
                print(json.dumps({'round': number, **runs[-1]}), flush=True)
    print(json.dumps(summarize(runs)))


def call(job: Any, flags: argparse.ArgumentParser, *argv: object) -> None:
    """Runs another script's job; what it prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        code = demo.call(job, flags, *map(str, argv))
    if code:
        raise SystemExit(code)


def make_tissue(args: argparse.Namespace, folder: Path) -> Path:
    shape = [n * size for n, size in zip(args.blocks, args.block_shape)]
    call(phantom.main, phantom.flags(), '--output', folder / 'tissue', '--seed', args.seed,
         '--shape', ','.join(map(str, shape)), '--voxel_size_nm', demo.VOXEL_SIZE_NM,
         '--difficulty', 0.3)  # fmt: skip
    return folder / 'tissue/volumes/image'


def measure(args: argparse.Namespace, image: Path, run_dir: Path, workers: int) -> dict[str, Any]:
    """Runs the job, and returns the figures of its stage `flood`."""
    launched = time.time()
    call(segment.main, segment.flags(), '--config', demo.CONFIG, '--run_dir', run_dir,
         '--set', f'image={image}', '--set', f'model={demo.NETWORK}',
         '--set', f'grid.block_shape={list(args.block_shape)}',
         '--set', 'inference.canvases=1', '--set', 'inference.threads=1',
         f'--direct_num_workers={workers}', '--direct_running_mode=multi_processing')  # fmt: skip
    ledger = Ledger(storage.join(str(run_dir), 'ledger', STAGE))
    done = json.loads(storage.read_bytes(storage.join(ledger.path, 'summary.json')))
    begun = time.time()
    for path in ledger.markers_written():
        # A marker is written when its block ends.
        seconds = json.loads(storage.read_bytes(path))['seconds']
        begun = min(begun, os.path.getmtime(path) - seconds)
    spent = workers * done['wall_seconds']
    return {
        'workers': workers,
        'blocks': done['blocks_run'],
        'fov_steps': int(done['fov_steps']),
        'seconds': round(done['wall_seconds'], 2),
        'blocks_per_s': round(done['blocks_run'] / done['wall_seconds'], 4),
        'fovs_per_s': round(done['fov_steps'] / done['wall_seconds'], 2),
        'overhead_s_per_block': round((spent - done['seconds']) / done['blocks_run'], 4),
        'overhead_share': round((spent - done['seconds']) / spent, 4),
        'start_s': round(begun - launched, 2),
        'digest': done['digest'],
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratio of each pair of runs, and the overhead of those with one worker."""
    one, two = ([r for r in runs if r['workers'] == n] for n in (1, 2))
    assert len({r['digest'] for r in runs}) == 1, 'runs differ in what they wrote'
    ratios = [b['fovs_per_s'] / a['fovs_per_s'] for a, b in zip(one, two, strict=True)]
    shares = [r['overhead_share'] for r in one]
    return {
        'cores': os.cpu_count(),
        'ratios': [round(ratio, 3) for ratio in ratios],
        'ratio': round(statistics.median(ratios), 3),
        'wanted_ratio': WANTED_RATIO,
        'overhead_share': round(statistics.median(shares), 4),
        'wanted_overhead_share': WANTED_OVERHEAD,
        'start_s': {n: statistics.median(r['start_s'] for r in runs if r['workers'] == n)
                    for n in (1, 2)},
    }  # fmt: skip


if __name__ == '__main__':
    main()
