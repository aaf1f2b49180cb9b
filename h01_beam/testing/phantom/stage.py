"""The phantom as a Beam stage. Shape: blocks.

Every block is made on its own, from its place and the seed alone: no halo, no order, and memory
for one block per worker, whatever the size of the volume.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import Block, BlockGrid, Triple
from h01_beam.plan import BlockResult
from h01_beam.run import Run
from h01_beam.testing.phantom.config import PhantomConfig
from h01_beam.testing.phantom.make import make_phantom
from h01_beam.testing.phantom.truth import SCHEMAS, truth_tables
from h01_beam.volume import VolumeSpec

CHUNK: Triple = (16, 64, 64)
BLOCK: Triple = (64, 256, 512)
# Raise it when a change of code changes the tissue.
VERSION = 2
# An upper bound for distances, points, grey, labels and their copies: with blocks of 64 x 256 x 512
# voxels, workers peaked at 1.27 GB in all.
WORKING_BYTES_PER_VOXEL = 150
# What reaches a block from around it.
ANATOMY_BYTES = 250 << 20
VOLUMES = {'image': 'uint8', 'neuron': 'uint64', 'structure': 'uint8', 'organelle': 'uint8'}


@dataclasses.dataclass(frozen=True)
class PhantomBlock:
    """Makes one block: image, truth volumes and rows of the truth tables."""

    config: PhantomConfig

    def working_bytes(self, read_shape: Triple) -> int:
        return ANATOMY_BYTES + WORKING_BYTES_PER_VOXEL * math.prod(read_shape)

    def __call__(self, block: Block) -> BlockResult:
        phantom = make_phantom(self.config, block.core)
        return BlockResult(
            arrays={name: getattr(phantom, name) for name in VOLUMES},
            rows=truth_tables(phantom, self.config.voxel_size_nm),
            metrics={
                'neuron_voxels': float(np.count_nonzero(phantom.neuron)),
                'membrane_and_outside_voxels': float(np.count_nonzero(phantom.neuron == 0)),
            },
        )


def build_phantom(
    root: Any, config: PhantomConfig, run: Run, block_shape: Triple = BLOCK
) -> beam.PCollection:
    """Adds the stage that makes a phantom; yields its block records.

    Writes the volumes `image`, `neuron`, `structure` and `organelle`, and the tables of `SCHEMAS`.

    Args:
      root: the pipeline.
      config: with a shape.
      run: the run.
      block_shape: zyx; the same bytes whatever it is.

    Raises:
      ValueError: the configuration has no shape, or a block does not fit a worker.
    """
    if config.shape is None:
        raise ValueError('phantom.shape is not given: must be the zyx voxels to make')
    run.write_manifest('phantom', config, {})
    specs = {
        name: VolumeSpec(
            uri=run.volume_uri(name),
            voxel_size_nm=config.voxel_size_nm,
            dtype=dtype,
            shape=config.shape,
            start=config.start,
            chunk=CHUNK,
            encoding='compressed_segmentation' if name == 'neuron' else 'raw',
            kind='image' if name == 'image' else 'segmentation',
        )
        for name, dtype in VOLUMES.items()
    }
    bounds = specs['image'].bounds
    # A block wider than the volume would only ask for more memory.
    fitted = tuple(
        min(n, c * math.ceil(m / c))
        for n, m, c in zip(block_shape, bounds.shape, CHUNK, strict=True)
    )
    return root | MapBlocks(
        PhantomBlock(config),
        stage='phantom',
        writes=dict(specs),
        table_writes=SCHEMAS,
        grid=BlockGrid(bounds, fitted),  # type: ignore[arg-type]
        config=dataclasses.replace(config, shape=None, start=(0, 0, 0)),
        version=VERSION,
        run=run,
    )
