"""Volumes of a generation: each block is read from the layer that its marker names.

By blocks, not by files: a block may be all zeros, of which no file is stored, and a shard is one
file. What no block has written yet reads as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from h01_beam import layers
from h01_beam.geometry import BlockGrid, BoundingBox, Triple
from h01_beam.ledger import Ledger, Provenance, StageRecord
from h01_beam.volume_spec import VolumeSpec


class LayeredArray:
    """The part of TensorStore's interface that `Volume.read` uses, over several layers.

    Args:
      spec: of the volume, with the place that it has in its own layer.
      open_layer: opens the array (zyx, or czyx) at a folder.
    """

    def __init__(self, spec: VolumeSpec, open_layer: Callable[[str], Any]):
        self._spec, self._open = spec, open_layer
        self._arrays: dict[str, Any] = {}
        self._layer_of: dict[Triple, str] = {}
        self._written: tuple[Ledger, BlockGrid] | None = None

    def __getitem__(self, slices: tuple[Any, ...]) -> _Reading:
        start, stop = zip(*((s.start, s.stop) for s in slices[1:]), strict=True)
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        return _Reading(self, BoundingBox(start, shape))

    def read(self, box: BoundingBox) -> np.ndarray:
        """(z, y, x), or (c, z, y, x) where there are channels."""
        channels = () if self._spec.channels == 1 else (self._spec.channels,)
        result = np.zeros((*channels, *box.shape), self._spec.dtype)
        parts = []
        ledger, grid = self._blocks()
        for block in grid.touching(box):
            layer = self._find_layer(ledger, block.index)
            inside = block.core.intersection(box)
            if layer is not None and inside is not None:
                parts.append((inside, self._array(layer)[(..., *inside.slices)].read()))
        for inside, reading in parts:
            offset = tuple(-n for n in box.start)
            target = inside.translate(offset).slices  # type: ignore[arg-type]
            result[(..., *target)] = reading.result()
        return result

    def _blocks(self) -> tuple[Ledger, BlockGrid]:
        if self._written is None:
            provenance = Provenance.read(self._spec)
            record = StageRecord.read(provenance.ledger) if provenance else None
            if provenance is None or record is None:
                raise ValueError(
                    f'{self._spec.uri!r} lies in a generation of a run, but no stage of the run '
                    'accounts for it: put volumes from elsewhere beside the run directory'
                )
            self._written = provenance.ledger, provenance.grid or record.grid
        return self._written

    def _find_layer(self, ledger: Ledger, index: Triple) -> str | None:
        if index not in self._layer_of:
            marker = ledger.read(index)
            if marker is None:  # It may be written later.
                return None
            self._layer_of[index] = marker.layer
        return self._layer_of[index]

    def _array(self, layer: str) -> Any:
        if layer not in self._arrays:
            self._arrays[layer] = self._open(layers.place(self._spec.path, layer))
        return self._arrays[layer]


class _Reading:
    """What TensorStore's arrays give when they are indexed: something to read."""

    def __init__(self, array: LayeredArray, box: BoundingBox):
        self._array, self._box = array, box

    def read(self) -> _Reading:
        return self

    def result(self) -> np.ndarray:
        return self._array.read(self._box)
