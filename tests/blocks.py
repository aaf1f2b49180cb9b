"""Block functions and stages that the tests of MapBlocks, resume and reports share."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal

import numpy as np
from scipy import ndimage

from h01_beam import storage, tables
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid
from h01_beam.plan import BlockResult
from tests.arrays import create, run_pipeline, tree_bytes

BLOCK, HALO = (4, 8, 16), (2, 2, 2)
ROWS = tables.Schema({'voxel': 'uint64', 'block': 'int64'})


@dataclasses.dataclass(frozen=True)
class Mean:
    """A 3-d mean filter, plus a parameter."""

    offset: int = 0
    radius: int = 2

    def __call__(self, image):
        size = 2 * self.radius + 1
        total = ndimage.uniform_filter(image.astype(np.float64), size, mode='nearest')
        return (np.rint(total * 4) + self.offset).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class UntilPoisoned:
    """Fails in one block for as long as a file is there."""

    poison: str
    message: str = 'a cosmic ray'

    def __call__(self, image, block):
        if block.index == (1, 1, 1) and os.path.exists(self.poison):
            raise (
                OSError(errno.ENOSPC, self.message)
                if 'space' in self.message
                else (RuntimeError(self.message))
            )
        return Mean()(image)


@dataclasses.dataclass(frozen=True)
class KillsItsWorker:
    """Ends its process as the kernel does for want of memory, for as long as a file is there."""

    poison: str

    def __call__(self, image, block):
        if block.index == (1, 1, 1) and os.path.exists(self.poison):
            os.remove(self.poison)
            os.kill(os.getpid(), signal.SIGKILL)
        return Mean()(image)


def grid_of(spec, halo=HALO):
    return BlockGrid(spec.bounds, BLOCK, halo)


def target(path, source, driver='neuroglancer-precomputed', **values):
    return dataclasses.replace(
        source, uri=f'{path}|{driver}:', dtype='uint16',
        encoding='zstd' if driver == 'zarr3' else 'raw', **values,
    )  # fmt: skip


def noisy_image(folder):
    """The specification of a small image without any order in it."""
    volume = create(folder / 'em', write=False)
    noise = np.random.default_rng(0).integers(0, 256, volume.spec.shape, dtype=np.uint8)
    volume.write(volume.bounds, noise)
    return volume.spec


def map_blocks(run_dir, source, output, function=None, stage='filter', **values):
    """Runs one stage and returns its summary."""

    def build(root, run):
        arguments = {'grid': grid_of(source), 'reads': {'image': source}}
        arguments |= {
            'writes': {'filtered': output},
            'config': function if dataclasses.is_dataclass(function) else None,
        }
        root | MapBlocks(function or Mean(), stage=stage, run=run, **(arguments | values))

    return summary_of(run_pipeline(run_dir, build), stage)


def summary_of(run, stage):
    return json.loads(storage.read_bytes(storage.join(run.ledger(stage).path, 'summary.json')))


def chunks(folder):
    """All files of a volume but for where its ledger is."""
    return {k: v for k, v in tree_bytes(folder).items() if not k.startswith('provenance')}


def counts(summary):
    return summary['blocks'], summary['blocks_run'], summary['blocks_reused']


def mean_with_rows(image, block):
    """One row for every bright voxel of the core."""
    bright = np.argwhere(image[block.core_in_read] > 250) + block.core.start
    voxels = (bright * (1_000_000, 1000, 1)).sum(1).astype(np.uint64)
    rows = {'voxel': voxels, 'block': np.full(len(voxels), sum(block.index))}
    metrics = {'bright': float(len(voxels)), 'peak_bright': float(len(voxels))}
    return BlockResult(arrays={'filtered': Mean()(image)}, rows={'rows': rows}, metrics=metrics)


def filter_twice(root, run, source, function, outputs):
    """`filter` with rows, then `again`, which reads what it wrote with a halo; returns the first."""
    first = root | MapBlocks(
        function, stage='filter', grid=grid_of(source), run=run, reads={'image': source},
        writes={'filtered': outputs[0]}, table_writes={'rows': ROWS},
    )  # fmt: skip
    root | MapBlocks(
        Mean(0, 1), stage='again', grid=grid_of(source, (1, 1, 1)), run=run,
        reads={'image': outputs[0]}, writes={'out': outputs[1]}, after=[first],
    )  # fmt: skip
    return first
