r"""Aligns tiles: checks them, stitches sections, aligns sections, renders one volume.

DirectRunner, all cores:
    python -m pipelines.align --config pipelines/configs/align.yaml \
        --set tiles.source=tiles/tiles.parquet --run_dir run
Dataflow:
    python -m pipelines.align --config align.yaml --run_dir gs://b/run \
        --runner DataflowRunner --project P --region R --temp_location gs://b/tmp \
        --setup_file ./setup.py

RUN_DIR/volumes holds `image` and `mask`, and `even` if `contrast` is set; RUN_DIR/tables/tiles and
sections say what became of every tile and section, and RUN_DIR/report.html shows it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from absl import app

from h01_beam.acquisition.importers import import_acquisition
from h01_beam.acquisition.stage import list_inputs
from h01_beam.acquisition.tables import Acquisition
from h01_beam.alignment.account import describe_sections
from h01_beam.alignment.figures import figures
from h01_beam.alignment.job import AlignJob, highlights, select
from h01_beam.alignment.stage import build_align_job
from h01_beam.config import from_dict
from h01_beam.finish import FinishRun
from h01_beam.run import Run
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        config = from_dict(AlignJob, launch.load_config(args))
        if args.section_range is not None:
            config = dataclasses.replace(config, section_range=args.section_range)
        add(root, run, config)

    return launch.execute(args, args.run_dir, build, show_results)


def add(root: Any, run: Run, config: AlignJob) -> None:
    """Adds the job to a pipeline."""
    acquisition = _acquisition(config)
    run.write_manifest('align', config, {}, lambda: list_inputs(acquisition))
    build_align_job(root, acquisition, config, run)
    root | FinishRun(run, figures=[figures], highlights=highlights, sections=describe_sections)


def inputs(config: AlignJob) -> dict[str, str]:
    """A fingerprint for each input."""
    return list_inputs(_acquisition(config))


def _acquisition(config: AlignJob) -> Acquisition:
    return select(import_acquisition(config.tiles), config.section_range)


def show_results(run: Run) -> None:
    for name, value in launch.read_report(run)['highlights'].items():
        print(f'{name:<30}{value}')
    print(f'{"image":<30}{run.volume_uri("image")}')
    if any(plan.name == 'even_contrast' for plan in run.plans):
        print(f'{"even":<30}{run.volume_uri("even")}')
    print(f'{"report":<30}{run.path}/report.html')
    print(f'{"look at it":<30}python -m pipelines.view --run_dir {run.path}')


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '')
    result.add_argument(
        '--section_range', type=launch.integers, metavar='FIRST,LAST', help='both included'
    )
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
