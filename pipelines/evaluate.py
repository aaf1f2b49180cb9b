"""Scores a segmentation against the truth: VOI, adapted Rand error, coverage, run length.

Writes SCORES.json, a picture of the worst errors (SCORES.png) and tables of split objects and of
merging segments (SCORES_truths.parquet, SCORES_segments.parquet).

DirectRunner:
    python -m pipelines.evaluate --segmentation 'run/volumes/segmentation' \\
        --truth 'truth.npz|npz:labels' --image 'em|neuroglancer-precomputed:' --output scores.json
Dataflow:
    python -m pipelines.evaluate --segmentation 'gs://b/run/volumes/segmentation' \\
        --truth 'gs://b/truth' --output gs://b/scores.json --run_dir gs://b/evaluate_run \\
        --runner DataflowRunner --project P --region R --temp_location gs://b/tmp \\
        --setup_file ./setup.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

from absl import app

from h01_beam.blockwise import FinishRun
from h01_beam.config import apply_overrides, as_dict, from_dict
from h01_beam.evaluation.config import EvaluateConfig
from h01_beam.evaluation.stage import Evaluation, build_evaluate
from h01_beam.run import Run
from h01_beam.volume import Volume
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        launch.require_run_dir(args)
        evaluation = Evaluation(
            segmentation=Volume.open(args.segmentation).spec,
            truth=Volume.open(args.truth).spec,
            image=Volume.open(args.image).spec if args.image else None,
            output=args.output,
            voxel_size_nm=args.voxel_size_nm,
            config=from_dict(EvaluateConfig, apply_overrides({}, args.set)),
        )
        run.write_manifest('evaluate', evaluation, {})
        build_evaluate(root, evaluation, run)
        root | FinishRun(run)

    with tempfile.TemporaryDirectory(prefix='evaluate_') as scratch:
        return launch.execute(args, args.run_dir or scratch, build, lambda _: show(args.output))
