r"""Segments an EM volume with a flood-filling network, block by block, into one segmentation.

DirectRunner, all cores:
    python -m pipelines.segment --config pipelines/configs/fib25.yaml \
        --set image=em --set model=fib25.keras --run_dir run
Dataflow:
    python -m pipelines.segment --config run.yaml --run_dir gs://b/run \
        --runner DataflowRunner --project P --region R --temp_location gs://b/tmp \
        --setup_file ./setup.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from absl import app

from h01_beam.config import from_dict
from h01_beam.finish import FinishRun
from h01_beam.run import Run
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.figures import figures, highlights, scores
from h01_beam.segmentation.stage import build_scored
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        add(root, run, from_dict(SegmentConfig, launch.load_config(args)))

    return launch.execute(args, args.run_dir, build, show_results)


def add(root: Any, run: Run, config: SegmentConfig) -> None:
    """Adds the job to a pipeline."""
    build_scored(root, config, run)
    root | FinishRun(run, figures=[figures], highlights=highlights, scores=scores)


def show_results(run: Run) -> None:
    for name, value in launch.read_report(run)['highlights'].items():
        print(f'{name:<30}{value:,}')
    print(f'{"segmentation":<30}{run.volume_uri("segmentation")}')
    print(f'{"report":<30}{run.path}/report.html')
    print(f'{"look at it":<30}python -m pipelines.view --run_dir {run.path}')


def flags() -> argparse.ArgumentParser:
    return launch.parser(__doc__ or '')


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
