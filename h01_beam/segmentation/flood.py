"""Flood filling one block of a grid, with the process's one network. Shape of the stage: blocks."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np

from h01_beam.geometry import Block, BoundingBox, Triple
from h01_beam.labels import LOCAL_BITS, supervoxel_ids
from h01_beam.models import RUNTIME_BYTES, ModelRef
from h01_beam.plan import BlockResult
from h01_beam.segmentation.config import InferenceConfig
from h01_beam.segmentation.executor import BatchExecutor
from h01_beam.segmentation.ffn import Faces, FfnConfig, flood_fill
from h01_beam.slots import Slots

# Canvas per voxel of the read box: logits float32, labels uint32, seeds' distance and edges.
CANVAS_BYTES_PER_VOXEL = 24


@dataclasses.dataclass
class FloodBlock:
    """Floods a block: uint8 image over the read box -> block labels, object rows.

    Writes `block_labels`: the supervoxel ids of the whole read box, into the block's slot.
    """

    model: ModelRef
    ffn: FfnConfig
    inference: InferenceConfig
    slots: Slots

    def setup(self) -> None:
        self._process = NetworkProcess.get(self.model, self.inference)

    def process_bytes(self) -> int:
        inference = self.inference
        return RUNTIME_BYTES + self.model.projected_bytes(inference.batch_size, inference.precision)

    def working_bytes(self, read_shape: Triple) -> int:
        return CANVAS_BYTES_PER_VOXEL * int(np.prod(read_shape))

    def __call__(
        self, image: np.ndarray, block: Block, mask: np.ndarray | None = None
    ) -> BlockResult:
        card = self.model.card
        with self._process.working() as share, self._process.executor.client() as predict:
            flooded = flood_fill(
                image,
                predict,
                card.fov_shape,
                card.deltas,
                self.ffn,
                mask=None if mask is None else mask != 0,
                faces=_faces(block, self.slots.grid.bounds),
            )
        base = np.uint64(self.slots.grid.linear(block.index) << LOCAL_BITS)
        voxels = np.bincount(
            flooded.labels[block.core_in_read].ravel(), minlength=len(flooded.objects) + 1
        )
        ids = supervoxel_ids(flooded.labels, voxels, base)
        metrics = {k: float(v) for k, v in flooded.counters.items()}
        metrics |= {'seed_seconds': flooded.seconds['seeds'], **share()}
        arrays = {'block_labels': self.slots.pad(ids, block)}
        rows = {
            'objects': _object_rows(flooded.objects, voxels, block, base),
            'overlaps': _overlap_rows(flooded.overlaps, voxels, base),
        }
        return BlockResult(arrays=arrays, rows=rows, metrics=metrics)


def _faces(block: Block, bounds: BoundingBox) -> Faces:
    """At which ends of its axes what a block reads lies at a face of the volume."""
    return [
        (low == first, high == last)
        for low, high, first, last in zip(
            block.read.start, block.read.end, bounds.start, bounds.end, strict=True
        )
    ]


class NetworkProcess:
    """The one network of a process, and the account of its time.

    Attributes:
      executor: batches the requests of all canvases of the process.
    """

    _instances: dict[object, NetworkProcess] = {}
    _instances_lock = threading.Lock()

    def __init__(self, model: ModelRef, inference: InferenceConfig):
        network = model.load(
            precision=inference.precision,
            batch_size=inference.batch_size,
            threads=inference.threads,
        )
        self.executor = BatchExecutor(network, inference.batch_size, model.card.fov_shape)
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._busy_s = 0.0
        self._told = {'network_seconds': 0.0, 'busy_seconds': 0.0}

    @classmethod
    def get(cls, model: ModelRef, inference: InferenceConfig) -> NetworkProcess:
        """The process's instance for a model; the first caller loads it."""
        with cls._instances_lock:
            key = (model.sha256, inference)
            if key not in cls._instances:
                cls._instances[key] = cls(model, inference)
            return cls._instances[key]

    def working(self) -> _Working:
        """A context for the time in which a block is flooded."""
        return _Working(self)

    def begin(self) -> None:
        with self._lock:
            if self._active == 0:
                self._since = time.perf_counter()
            self._active += 1

    def end(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._busy_s += time.perf_counter() - self._since

    def account(self) -> dict[str, float]:
        """Seconds of the process since the last account: with a block, and in the network.

        Blocks of one process overlap in time; accounts of all of them add up to its time.
        """
        with self._lock:
            running = time.perf_counter() - self._since if self._active else 0.0
            now = {
                'network_seconds': self.executor.counters.busy_s,
                'busy_seconds': self._busy_s + running,
            }
            share = {name: max(0.0, value - self._told[name]) for name, value in now.items()}
            self._told = now
            return share


class _Working:
    def __init__(self, process: NetworkProcess):
        self._process = process

    def __enter__(self):  # type: ignore[no-untyped-def]
        self._process.begin()
        return self._process.account

    def __exit__(self, *_: object) -> None:
        self._process.end()


def _object_rows(
    objects: np.ndarray, voxels: np.ndarray, block: Block, base: np.uint64
) -> dict[str, np.ndarray]:
    if len(objects) and int(objects['id'].max()) >> LOCAL_BITS:
        raise ValueError(
            f'block {block.index} has {len(objects)} objects: at most {2**LOCAL_BITS - 1} fit; '
            'use smaller blocks'
        )
    objects = objects[voxels[objects['id']] > 0]
    seed = objects['seed'].astype(np.int64).reshape(-1, 3) + np.array(block.read.start)
    return {
        'supervoxel': base + objects['id'].astype(np.uint64),
        'seed_z': seed[:, 0],
        'seed_y': seed[:, 1],
        'seed_x': seed[:, 2],
        'voxels': voxels[objects['id']],
        'fov_steps': objects['iterations'],
    }


def _overlap_rows(
    overlaps: np.ndarray, voxels: np.ndarray, base: np.uint64
) -> dict[str, np.ndarray]:
    """Pairs of objects that both reach into the core, as edges."""
    kept = (voxels[overlaps['earlier']] > 0) & (voxels[overlaps['later']] > 0)
    overlaps = overlaps[kept]
    return {
        'a': base + overlaps['earlier'].astype(np.uint64),
        'b': base + overlaps['later'].astype(np.uint64),
        'overlap': overlaps['shared'],
        'size_a': overlaps['earlier_voxels'],
        'size_b': overlaps['later_voxels'],
    }
