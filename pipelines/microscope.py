r"""Images synthetic tissue or a stored volume as the tiles of a multi-beam electron microscope.

DirectRunner:
    python -m pipelines.microscope --config pipelines/configs/microscope.yaml --output tiles
Dataflow:
    python -m pipelines.microscope --config pipelines/configs/microscope.yaml \
        --output gs://b/tiles --set 'source.volume=gs://b/em|neuroglancer-precomputed:' \
        --set source.phantom=null --runner DataflowRunner --project P --region R \
        --temp_location gs://b/tmp --setup_file ./setup.py

OUTPUT/tiles.parquet lists the tiles and the places that the stage reported, OUTPUT/sections.parquet
the sections; OUTPUT/truth tells where tiles really are and what is damaged.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from absl import app

from h01_beam.config import from_dict
from h01_beam.finish import FinishRun
from h01_beam.run import Run
from h01_beam.testing.microscope import MicroscopeConfig
from h01_beam.testing.microscope.stage import build_microscope
from h01_beam.testing.phantom import PhantomConfig
from pipelines import launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What is imaged: synthetic tissue, or the volume at a URI."""

    phantom: PhantomConfig | None = None
    volume: str | None = None

    def __post_init__(self) -> None:
        """Checks that there is one source."""
        if (self.phantom is None) == (self.volume is None):
            raise ValueError(
                f'source.phantom is {self.phantom} and source.volume is {self.volume!r}: must be '
                'one of both, the other null'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The YAML file."""

    source: SourceConfig
    microscope: MicroscopeConfig = MicroscopeConfig()


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        config = from_dict(JobConfig, launch.load_config(args))
        source = config.source.phantom or config.source.volume
        assert source is not None
        build_microscope(root, source, config.microscope, run)
        root | FinishRun(run)

    return launch.execute(args, args.output, build, show_results)


def show_results(run: Run) -> None:
    for name in ('tiles.parquet', 'sections.parquet', 'truth', 'report.html'):
        print(f'{name:<24}{run.path}/{name}')


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', run_dir=False)
    result.add_argument('--output', required=True, help='run directory: local folder or gs:// URL')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
