"""Position-encoded volumes and whole folders as bytes: what the tests of the core compare."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import numpy as np

from h01_beam import quarantine, storage
from h01_beam.geometry import BoundingBox
from h01_beam.options import Options
from h01_beam.run import FailurePolicy, Resources, Run
from h01_beam.volume import Volume, VolumeSpec

GIB = 2**30


def position_code(box, dtype='uint32'):
    """An array over `box` whose values tell the voxel that they stand at.

    uint32 and wider: unique for coordinates below 1000. Narrower: no two axes can be swapped,
    no axis flipped or shifted, without a change.
    """
    z, y, x = np.meshgrid(
        *(np.arange(s, e) for s, e in zip(box.start, box.end)), indexing='ij', sparse=True
    )
    code = (z * 1000 + y) * 1000 + x
    dtype = np.dtype(dtype)
    if dtype.kind == 'f':
        return (code / 8).astype(dtype)
    return code.astype(dtype) if dtype.itemsize >= 4 else (code % 251).astype(dtype)


def create(path, driver='neuroglancer-precomputed', write=True, **values):
    """Makes a small, non-cubic, anisotropic volume that does not start at 0, and fills it."""
    spec = {
        'uri': f'{path}|{driver}:',
        'voxel_size_nm': (30.0, 8.0, 4.0),
        'dtype': 'uint8',
        'shape': (10, 21, 35),
        'start': (3, 5, 7),
        'chunk': (4, 8, 16),
        'encoding': 'zstd' if driver == 'zarr3' else 'raw',
    }
    volume, made = Volume.create(VolumeSpec(**{**spec, **values}))
    assert made
    if write:
        volume.write(volume.bounds, position_code(volume.bounds, volume.spec.dtype))
    return volume


def read_all(uri):
    volume = Volume.open(str(uri))
    return volume.read(volume.bounds)


def tree_bytes(folder, suffix=''):
    """The bytes of every file below a folder, by path."""
    folder = Path(folder)
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob('*' + suffix))
        if file.is_file()
    }


# Blocks that fail are not worth a second attempt here, but in the next run.
POLICY = FailurePolicy(attempts=1, retry_quarantined=True)


def run_pipeline(
    run_dir, build, memory_bytes=8 * GIB, dry_run=False, policy=POLICY, strict=True, **options
):
    """Builds stages with `build(pipeline, run)` and runs them in this process.

    If strict, raises a QuarantinedBlockError for blocks that were left out, as `FinishRun` does.
    """
    run = Run(str(run_dir), Resources(1, memory_bytes), dry_run=dry_run, policy=policy)
    defaults = {'runner': 'DirectRunner', 'direct_num_workers': 1}
    pipeline = beam.Pipeline(options=Options(**{**defaults, **options}))
    build(pipeline, run)
    if not dry_run:
        pipeline.run().wait_until_finish()
        missing = quarantine.explain(summaries(run))
        if missing and strict:
            raise quarantine.QuarantinedBlockError(missing)
    return run


def summaries(run):
    """What the stages of a run have done, by stage."""
    paths = {plan.name: storage.join(plan.ledger.path, 'summary.json') for plan in run.plans}
    return {
        name: json.loads(storage.read_bytes(path))
        for name, path in paths.items()
        if storage.exists(path)
    }


def box(start, shape):
    return BoundingBox(start, shape)
