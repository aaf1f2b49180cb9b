"""Beam transforms over skeletons. Shape: pairs of an object and its box, then of a block and nodes.

    Extents by partition of labels -> SkeletonizeObjects -> (label, Skeletons)
    (label, Skeletons)             -> SampleNodes        -> (label, Skeletons, label at each node)

A worker holds the box of one object, or one block and the nodes in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from numpy.typing import NDArray

from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.morphology.extents import Extents
from h01_beam.morphology.skeletons import Skeletons, sample_labels
from h01_beam.morphology.teasar import SkeletonConfig, skeletonize
from h01_beam.volume import Volume, VoxelSize

# (label, (places of the nodes in the object's table, (n, 3) zyx nodes)), grouped by block.
NodesInBlock = tuple[int, tuple[NDArray[np.int64], NDArray[np.int64]]]


class SkeletonizeObjects(beam.PTransform):
    """PCollection of (key, Extents), each label in one of them -> (label, Skeletons).

    Args:
      uri: the volume of labels.
      bounds: the box of it that counts; objects are cut there.
      voxel_size_nm: zyx.
      config: see `SkeletonConfig`.
      max_object_voxels: largest box that one worker may load.

    Raises (in the pipeline): ValueError for an object with a larger box.
    """

    def __init__(
        self,
        uri: str,
        bounds: BoundingBox,
        voxel_size_nm: VoxelSize,
        config: SkeletonConfig,
        max_object_voxels: int,
    ) -> None:
        super().__init__()
        self._uri, self._bounds = uri, bounds
        self._voxel_size_nm, self._config = voxel_size_nm, config
        self._max_object_voxels = max_object_voxels

    def expand(self, extents: beam.PCollection) -> beam.PCollection:
        return (
            extents
            | 'Objects'
            >> beam.FlatMap(
                _list_objects, self._bounds, self._config.min_voxels, self._max_object_voxels
            )
            | 'Spread' >> beam.Reshuffle()
            | 'Skeletonize'
            >> beam.ParDo(_Skeletonize(self._uri, self._voxel_size_nm, self._config))
        )


class SampleNodes(beam.PTransform):
    """(label, Skeletons) -> (label, Skeletons, (n,) uint64 labels of another volume at the nodes).

    Nodes are grouped by block, so that every block is read once, whatever the number of objects.

    Args:
      uri: the volume that is sampled.
      grid: blocks that hold all nodes.
    """

    def __init__(self, uri: str, grid: BlockGrid) -> None:
        super().__init__()
        self._uri, self._grid = uri, grid

    def expand(self, skeletons: beam.PCollection) -> beam.PCollection:
        labels = (
            skeletons
            | 'NodesByBlock' >> beam.FlatMap(_split_by_block, self._grid)
            | 'GroupByBlock' >> beam.GroupByKey()
            | 'Sample' >> beam.ParDo(_SampleBlock(self._uri, self._grid))
        )
        return (
            {'skeletons': skeletons, 'labels': labels}
            | 'GroupByObject' >> beam.CoGroupByKey()
            | 'Assemble' >> beam.MapTuple(_assemble)
        )


def _list_objects(
    keyed: tuple[Any, Extents], bounds: BoundingBox, min_voxels: int, max_object_voxels: int
) -> Iterator[tuple[int, BoundingBox]]:
    """Yields (label, box) of the objects that are large enough for a skeleton.

    Boxes have a margin of one voxel, without which the object's outermost surface would not show.
    """
    extents = keyed[1]
    for row in np.flatnonzero(extents.voxels >= min_voxels):
        one = {name: int(column[row]) for name, column in extents.columns().items()}
        box = BoundingBox.from_bounds(
            (one['start_z'], one['start_y'], one['start_x']),
            (one['end_z'], one['end_y'], one['end_x']),
        )
        box = box.pad((1, 1, 1), (1, 1, 1)).intersection(bounds) or box
        if box.size > max_object_voxels:
            raise ValueError(
                f'object {one["label"]} fills a box of {box.size:,} voxels: at most '
                f'{max_object_voxels:,} are loaded at once; raise max_object_voxels (some 16 bytes '
                'of memory a voxel), or use a coarser level of the volumes, with ?mip=N'
            )
        yield one['label'], box


class _Skeletonize(beam.DoFn):
    """(label, box) -> (label, its skeletons), unless it has none."""

    def __init__(self, uri: str, voxel_size_nm: VoxelSize, config: SkeletonConfig) -> None:
        self._uri, self._voxel_size_nm, self._config = uri, voxel_size_nm, config

    def setup(self) -> None:
        self._volume = Volume.open(self._uri)

    def process(self, element: tuple[int, BoundingBox]) -> Iterator[tuple[int, Skeletons]]:
        label, box = element
        mask = (self._volume.read(box) == label).astype(np.uint8)
        found = skeletonize(mask, self._voxel_size_nm, self._config, box.start)
        if len(found):
            ids = np.full(len(found), label, np.uint64)
            yield label, dataclasses.replace(found, object_ids=ids)


def _split_by_block(
    keyed: tuple[int, Skeletons], grid: BlockGrid
) -> Iterator[tuple[int, NodesInBlock]]:
    label, skeletons = keyed
    index = (skeletons.nodes - np.asarray(grid.bounds.start)) // np.asarray(grid.block_shape)
    linear = np.ravel_multi_index(tuple(index.T), grid.shape)
    for block in np.unique(linear):
        place = np.flatnonzero(linear == block)
        yield int(block), (label, (place, skeletons.nodes[place]))


class _SampleBlock(beam.DoFn):
    """(block, nodes of all objects in it) -> (label, (places, labels))."""

    def __init__(self, uri: str, grid: BlockGrid) -> None:
        self._uri, self._grid = uri, grid

    def setup(self) -> None:
        self._volume = Volume.open(self._uri)

    def process(self, element: tuple[int, Iterable[NodesInBlock]]) -> Iterator[tuple[int, Any]]:
        linear, groups = element
        core = self._grid[self._grid.index(linear)].core
        labels = self._volume.read(core)
        for label, (place, nodes) in groups:
            yield label, (place, sample_labels(labels, core.start, nodes)[1])


def _assemble(label: int, grouped: Mapping[str, Any]) -> tuple[int, Skeletons, NDArray[np.uint64]]:
    (skeletons,) = grouped['skeletons']
    sampled = np.zeros(len(skeletons), np.uint64)
    for place, labels in grouped['labels']:
        sampled[place] = labels
    return label, skeletons, sampled
