"""What a run directory holds, for those who look at it: volumes, markers and rows, in samples.

Nothing here reads a whole run: a run of ten million blocks is sampled like one of ten.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from h01_beam import generations, storage, tables
from h01_beam.export.planes import Planes, central_box, read_planes
from h01_beam.geometry import Block, BoundingBox
from h01_beam.ledger import Marker, StageRecord
from h01_beam.run import Run, read_manifest
from h01_beam.volume import Kind, Volume, VoxelSize

# Keys of a manifest's config that hold a volume to look at, in the order of layers: its URI, or
# its specification.
VOLUME_KEYS = ('image', 'volume', 'output', 'segmentation', 'truth')
LABEL_KEYS = ('segmentation', 'truth')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A volume to look at.

    Attributes:
      name: what people call it.
      uri: the volume; see `h01_beam.volume`.
      kind: what it is shown as; None leaves it to the volume.
    """

    name: str
    uri: str
    kind: Kind | None = None


class FinishedRun:
    """A run directory, read only.

    Attributes:
      path: the run directory, local or in a bucket.
    """

    def __init__(self, path: str):
        self._run = Run.at(path)
        self.path = self._run.path

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
          FileNotFoundError: this is no run directory.
        """
        return read_manifest(self.path)

    @property
    def segmentation_uri(self) -> str:
        """Where a segmentation job puts its result."""
        return self._run.volume_uri('segmentation')

    def layers(self) -> list[Layer]:
        """The volumes of the run that people want to see: its inputs, then its result."""
        config = self.manifest['config']
        job = self.manifest['job']
        found = []
        for key in VOLUME_KEYS:
            if key == 'output' and job != 'ingest':
                continue  # Elsewhere it is a path of scores, or how results are stored.
            volume = config.get(key)
            uri = volume['uri'] if isinstance(volume, dict) else volume
            if uri:
                kind: Kind | None = 'segmentation' if key in LABEL_KEYS else None
                found.append(Layer(name=key, uri=self._locate(uri), kind=kind))
        if job == 'align':
            for name, kind in (('image', 'image'), ('even', 'image'), ('mask', 'segmentation')):
                if name != 'even' or config.get('contrast'):
                    found.append(Layer(name=name, uri=self._run.volume_uri(name), kind=kind))
        if job == 'segmentation':
            found.append(Layer(name='segmentation', uri=self.segmentation_uri, kind='segmentation'))
        return found

    def figure(self, name: str) -> str:
        """Path of a picture that belongs to the run."""
        return self._run.figure(name)

    def middle(self) -> tuple[Planes, Planes, VoxelSize]:
        """Three planes of the middle of a segmentation run: image, segmentation, voxel size."""
        image = Volume.open(self._locate(self.manifest['config']['image']))
        segmentation = Volume.open(self.segmentation_uri)
        voxel_size_nm = segmentation.spec.voxel_size_nm
        assert voxel_size_nm is not None, 'a precomputed volume has one'
        box = central_box(segmentation.bounds, voxel_size_nm)
        return read_planes(image, box), read_planes(segmentation, box), voxel_size_nm

    def joined_files(self, table: str) -> list[str]:
        """The files of a table, in the order of its blocks."""
        return self._run.joined_files(table)

    def all_rows(self, table: str) -> tables.Columns:
        """A whole table: only for those with a few rows for each section."""
        paths = self._run.joined_files(table)
        return tables.from_parquets(storage.read_bytes(path) for path in paths)

    def through(self, name: str, voxels: int = 1024) -> tuple[Planes, VoxelSize]:
        """Planes through the middle of a volume of the run, over all of its sections."""
        volume = Volume.open(self._run.volume_uri(name))
        size, bounds = volume.spec.voxel_size_nm, volume.bounds
        assert size is not None, 'a precomputed volume has one'
        middle = central_box(bounds, size, voxels)
        start, shape = (bounds.start[0], *middle.start[1:]), (bounds.shape[0], *middle.shape[1:])
        return read_planes(volume, BoundingBox(start, shape)), size

    def sample_markers(self, stage: str, most: int = 1024) -> list[tuple[Block, Marker]]:
        """Blocks of a stage with their markers, evenly spread over the grid.

        Args:
          stage: its name; one that never ran has no blocks.
          most: bound on the number of markers that are read.
        """
        ledger = self._run.ledger(stage)
        pairs = ((block, ledger.read(block.index)) for block in self._sample_blocks(stage, most))
        return [(block, marker) for block, marker in pairs if marker is not None]

    def sample_rows(
        self, table: str, stage: str, schema: tables.Schema, most: int = 256
    ) -> tables.Columns:
        """Rows of a table, from blocks that are evenly spread over the grid.

        Args:
          table: its name.
          stage: the stage that wrote it.
          schema: its columns.
          most: bound on the number of parts that are read.
        """
        paths = [self._run.table_part(table, b.index) for b in self._sample_blocks(stage, most)]
        parts = (tables.from_parquet(storage.read_bytes(p)) for p in paths if storage.exists(p))
        return tables.concatenate(parts, schema)

    def _locate(self, uri: str) -> str:
        """A volume of the manifest as it is named from anywhere, not only where the run began."""
        if not storage.is_remote(uri):
            uri = os.path.join(self.manifest['directory'], uri.removeprefix('file://'))
        return generations.resolve(uri)

    def _sample_blocks(self, stage: str, most: int) -> Iterator[Block]:
        record = StageRecord.read(self._run.ledger(stage))
        if record is None:
            return
        count = len(record.grid)
        for linear in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)):
            yield record.grid[record.grid.index(int(linear))]
