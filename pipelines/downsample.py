r"""Makes the pyramid of a volume: means for images, the most frequent label for segmentations.

DirectRunner:
    python -m pipelines.downsample --volume 'em|neuroglancer-precomputed:' --run_dir em_run
Dataflow:
    python -m pipelines.downsample --volume 'gs://b/em|neuroglancer-precomputed:' \
        --run_dir gs://b/em_run --runner DataflowRunner --project P --region R \
        --temp_location gs://b/tmp --setup_file ./setup.py
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from absl import app

from h01_beam import generations
from h01_beam.config import apply_overrides, from_dict
from h01_beam.finish import FinishRun
from h01_beam.imaging.downsample import DownsampleConfig
from h01_beam.imaging.stage import build_downsample
from h01_beam.run import Run
from h01_beam.volume import Volume
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    def build(root: Any, run: Run) -> None:
        config = from_dict(DownsampleConfig, apply_overrides({}, args.set))
        base = Volume.open(generations.resolve(args.volume)).spec
        run.write_manifest('downsample', {'volume': base.uri, 'downsample': config}, {})
        build_downsample(root, base, config, run)
        root | FinishRun(run)

    return launch.execute(args, args.run_dir, build)


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False)
    result.add_argument('--volume', required=True, help='URI of mip 0')
    result.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE',
        help='levels, factors, method, block_chunks, shard; for example levels=3',
    )  # fmt: skip
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
