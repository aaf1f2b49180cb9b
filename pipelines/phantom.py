r"""Makes synthetic brain tissue with exact truth, block by block, of any size.

DirectRunner:
    python -m pipelines.phantom --output phantom --shape 64,512,512 \
        --voxel_size_nm 30,8,8 --seed 7
Dataflow:
    python -m pipelines.phantom --output gs://b/phantom --shape 4096,65536,65536 \
        --voxel_size_nm 30,8,8 --seed 7 --runner DataflowRunner --project P --region R \
        --temp_location gs://b/tmp --setup_file ./setup.py

OUTPUT/volumes holds image, neuron (ids), structure and organelle; OUTPUT/tables holds neurites,
skeleton_edges, synapses and somata. The same seed shows the same tissue at every voxel size.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from absl import app

from h01_beam.finish import FinishRun
from h01_beam.run import Run
from h01_beam.testing.phantom import PhantomConfig
from h01_beam.testing.phantom.stage import BLOCK, build_phantom
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        config = PhantomConfig(
            voxel_size_nm=args.voxel_size_nm,
            shape=args.shape,
            start=args.start,
            seed=args.seed,
            difficulty=args.difficulty,
        )
        build_phantom(root, config, run, args.block_shape)
        root | FinishRun(run)

    return launch.execute(args, args.output, build, show_results)


def show_results(run: Run) -> None:
    for name in ('image', 'neuron', 'structure', 'organelle'):
        print(f'{name:<24}{run.volume_uri(name)}')
    print(f'tables                  {run.path}/tables')
    print(f'report                  {run.path}/report.html')


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False, run_dir=False)
    result.add_argument('--output', required=True, help='run directory: local folder or gs:// URL')
    result.add_argument('--shape', required=True, type=launch.integers, metavar='Z,Y,X')
    result.add_argument('--voxel_size_nm', required=True, type=launch.numbers, metavar='Z,Y,X')
    result.add_argument('--seed', type=int, default=0)
    result.add_argument('--difficulty', type=float, default=0.3, help='0 (easy) to 1')
    result.add_argument('--start', type=launch.integers, default=(0, 0, 0), metavar='Z,Y,X')
    result.add_argument('--block_shape', type=launch.integers, default=BLOCK, metavar='Z,Y,X')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
