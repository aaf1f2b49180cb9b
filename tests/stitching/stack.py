"""Runs of checks and stitching over small sections, for tests of stages."""

import json

import numpy as np

from h01_beam import storage
from h01_beam.acquisition.checks import CheckConfig
from h01_beam.acquisition.stage import build_checks
from h01_beam.acquisition.tables import Acquisition, make_sections
from h01_beam.finish import FinishRun
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.mesh import ElasticConfig
from h01_beam.stitching.offsets import OffsetConfig
from h01_beam.stitching.stage import build_stitching
from h01_beam.tables import from_parquet
from h01_beam.volume import Volume
from tests.acquisition.images import PIXEL_NM
from tests.arrays import run_pipeline

SHAPE, PITCH = (100, 120), 0.75
CONFIG = StitchConfig(
    offsets=OffsetConfig(search=12, downsample=2),
    elastic=ElasticConfig(stride=40),
    cell_tiles=2,
    downsample=1,
    montage_block=(256, 256),
)


def acquire(sections, numbers=None):
    joined = {name: np.concatenate([s[name] for s in sections]) for name in sections[0]}
    numbers = joined['section'] if numbers is None else numbers
    return Acquisition(joined, make_sections(numbers, 30.0), PIXEL_NM)


def stitch(run_dir, acquisition, config=CONFIG):
    """Runs checks and stitching; returns the run and its stages of the report."""

    def build(root, run):
        run.write_manifest('stitch', config, {})
        checked = build_checks(root, acquisition, CheckConfig(focus=(0.0, 0.0)), run)
        build_stitching(root, acquisition, config, run, None, [checked])
        if not run.dry_run:
            root | FinishRun(run)

    run = run_pipeline(run_dir, build)
    return run, json.loads(storage.read_bytes(f'{run.path}/report.json'))['stages']


def montage(run):
    volume = Volume.open(run.volume_uri('montage'))
    return volume.read(volume.bounds)


def table(run, name):
    return from_parquet(storage.read_bytes(f'{run.path}/tables/{name}/000000.parquet'))
