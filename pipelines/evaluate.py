r"""Scores a segmentation against the truth: VOI, adapted Rand error, coverage, run length.

Writes SCORES.json, a picture of the worst errors (SCORES.png) and tables of split objects and of
merging segments (SCORES_truths.parquet, SCORES_segments.parquet).

DirectRunner:
    python -m pipelines.evaluate --segmentation 'run/volumes/segmentation' \
        --truth 'truth.npz|npz:labels' --image 'em|neuroglancer-precomputed:' --output scores.json
Dataflow:
    python -m pipelines.evaluate --segmentation 'gs://b/run/volumes/segmentation' \
        --truth 'gs://b/truth' --output gs://b/scores.json --run_dir gs://b/evaluate_run \
        --runner DataflowRunner --project P --region R --temp_location gs://b/tmp \
        --setup_file ./setup.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

from absl import app

from h01_beam import generations, storage
from h01_beam.config import apply_overrides, from_dict
from h01_beam.evaluation.config import EvaluateConfig, Evaluation
from h01_beam.evaluation.stage import build_evaluate
from h01_beam.finish import FinishRun
from h01_beam.run import Run
from h01_beam.volume import Volume
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        run.resources.check_reachable('--output', args.output)
        if not run.dry_run:
            folder = args.output.rpartition('/')[0] or '.'
            storage.check_writable('the folder of --output', folder)
        evaluation = Evaluation(
            segmentation=Volume.open(generations.resolve(args.segmentation)).spec,
            truth=Volume.open(generations.resolve(args.truth)).spec,
            image=Volume.open(generations.resolve(args.image)).spec if args.image else None,
            output=args.output,
            voxel_size_nm=args.voxel_size_nm,
            config=from_dict(EvaluateConfig, apply_overrides({}, args.set)),
        )
        run.write_manifest('evaluate', evaluation, {})
        build_evaluate(root, evaluation, run)
        root | FinishRun(run)

    # Volumes may have changed since another evaluation, so that nothing of it is reused unless
    # asked for by a run directory.
    with tempfile.TemporaryDirectory(prefix='evaluate_') as scratch:
        run_dir, keeps = args.run_dir or scratch, bool(args.run_dir)
        return launch.execute(args, run_dir, build, lambda _: show(args.output), keeps)


def show(output: str) -> None:
    scores = json.loads(storage.read_bytes(output))
    print(f'{"":<24}{"foreground":>12}{"all":>12}')
    for name, value in scores['foreground'].items():
        values = (value, scores['all'][name])
        print(f'{name:<24}' + ''.join(f'{"-" if v is None else f"{v:,.4g}":>12}' for v in values))
    if scores['voxel_size_nm'] is None:
        print('no run length: neither volume knows its voxel size; give --voxel_size_nm Z,Y,X')
    print(f'scored {scores["truth_voxels"]:,} voxels of box {scores["start"]} + {scores["shape"]}')
    stem = output.removesuffix('.json')
    print(f'wrote {output}, {stem}.png (the worst errors), {stem}_truths.parquet, '
          f'{stem}_segments.parquet')  # fmt: skip


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False, run_dir=False)
    result.add_argument('--segmentation', required=True, help='URI of the labels to score')
    result.add_argument('--truth', required=True, help='URI of the true labels; 0 is not scored')
    result.add_argument('--image', help='URI of the image, for the picture of the worst errors')
    result.add_argument('--output', required=True, metavar='SCORES.json')
    result.add_argument('--voxel_size_nm', type=launch.numbers, metavar='Z,Y,X')
    result.add_argument('--run_dir', help='keeps finished blocks; needed by remote workers')
    result.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE', help='see EvaluateConfig'
    )
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
