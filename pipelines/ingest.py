r"""Converts a stack (.npy, .npz, .h5, .tif, or a folder of PNG or TIFF sections) to a volume.

DirectRunner:
    python -m pipelines.ingest --input em.h5 --dataset raw \
        --output 'em|neuroglancer-precomputed:' --voxel_size_nm 30,8,8
A bucket, from here:
    python -m pipelines.ingest --input em.h5 --output 'gs://b/em|neuroglancer-precomputed:' \
        --voxel_size_nm 30,8,8
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from absl import app

from h01_beam import generations, storage
from h01_beam.config import from_dict
from h01_beam.finish import FinishRun
from h01_beam.imaging.ingest import IngestConfig
from h01_beam.imaging.stage import build_ingest
from h01_beam.run import Run
from h01_beam.volume import Volume, VolumeUri
from pipelines import launch

SETTINGS = ('voxel_size_nm', 'kind', 'grey_range', 'chunk', 'shard', 'encoding')


def main(args: argparse.Namespace) -> int:
    output = args.output if '|' in args.output else args.output + '|neuroglancer-precomputed:'
    # The ledger lives with the volume, so that later runs know which of its blocks changed.
    run_dir = args.run_dir or storage.join(output.partition('|')[0], 'ingest')

    def build(root: Any, run: Run) -> None:
        given = {name: getattr(args, name) for name in SETTINGS}
        config = from_dict(IngestConfig, {k: v for k, v in given.items() if v is not None})
        source = Volume.open(generations.resolve(source_uri(args.input, args.dataset))).spec
        run.write_manifest('ingest', {'input': source.uri, 'output': output, 'ingest': config}, {})
        build_ingest(root, source, output, config, run)
        root | FinishRun(run)

    return launch.execute(args, run_dir, build, lambda run: print(f'wrote {output}'))


def source_uri(path: str, dataset: str | None) -> str:
    """Adds the name of the data set to the URI of a file that holds several."""
    if dataset is None:
        return path
    parsed = VolumeUri.parse(path)
    return f'{parsed.path}|{parsed.driver}:{dataset}'


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False, run_dir=False)
    result.add_argument('--input', required=True, help='file, folder of sections, or volume URI')
    result.add_argument('--output', required=True, help='volume URI; precomputed if no driver')
    result.add_argument('--voxel_size_nm', required=True, type=launch.numbers, metavar='Z,Y,X')
    result.add_argument('--dataset', help='HDF5 data set or npz array, if there are several')
    result.add_argument('--kind', choices=('image', 'segmentation'))
    result.add_argument(
        '--grey_range', type=launch.numbers, metavar='LOW,HIGH', help='scale to uint8'
    )
    result.add_argument('--chunk', type=launch.integers, metavar='Z,Y,X')
    result.add_argument('--shard', type=launch.integers, metavar='Z,Y,X')
    result.add_argument('--encoding', choices=('raw', 'jpeg', 'png', 'compressed_segmentation'))
    result.add_argument('--run_dir', help='ledger and report; default: inside of the output')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
