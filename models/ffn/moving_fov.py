"""The field of view moves over training examples as it will in inference.

Each slot of the batch holds an example and its canvas of logits. The field of view starts at the
centre; it then goes to neighbours, at the network's deltas, wherever the canvas says by then that
the object goes on. What the network answers is written back before the next look.

Source: the training loop of google/ffn (`ffn/training/examples.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Triple
from models.ffn.examples import Example
from models.ffn.train_config import SamplingConfig

Real = npt.NDArray[np.float32]


def patch_shape(fov_shape: Triple, deltas: Triple) -> Triple:
    """Shape of an example, zyx: the field of view at all places it may move to."""
    z, y, x = (n + 2 * d for n, d in zip(fov_shape, deltas, strict=True))
    return z, y, x


class MovingFov:
    """Turns examples into batches for the network.

    Args:
      examples: where from; without end.
      batch_size: slots.
      fov_shape, deltas: zyx, of the network.
      grey_levels: mean and standard deviation that normalize the image.
      sampling: probabilities, thresholds, moves.
    """

    def __init__(
        self,
        examples: Iterator[Example],
        batch_size: int,
        fov_shape: Triple,
        deltas: Triple,
        grey_levels: tuple[float, float],
        sampling: SamplingConfig,
    ) -> None:
        self._slots = [
            _Slot(examples, fov_shape, deltas, grey_levels, sampling) for _ in range(batch_size)
        ]
        self._inputs = np.empty((batch_size, *fov_shape, 2), np.float32)
        self._targets = np.empty((batch_size, *fov_shape, 1), np.float32)

    def next_batch(self) -> tuple[Real, Real]:
        """Inputs (b, z, y, x, 2) and targets (b, z, y, x, 1), float32; later calls reuse both."""
        for n, slot in enumerate(self._slots):
            slot.look(self._inputs[n], self._targets[n, ..., 0])
        return self._inputs, self._targets

    def put_back(self, logits: Real) -> None:
        """Takes the network's answer (b, z, y, x, 1) to the last batch."""
        for n, slot in enumerate(self._slots):
            slot.put_back(logits[n, ..., 0])


class _Slot:
    """One example after the other."""

    def __init__(
        self,
        examples: Iterator[Example],
        fov_shape: Triple,
        deltas: Triple,
        grey_levels: tuple[float, float],
        sampling: SamplingConfig,
    ) -> None:
        self._examples, self._fov_shape, self._deltas = examples, fov_shape, deltas
        self._mean, self._stddev = grey_levels
        self._sampling = sampling
        self._init, self._pad, self._move = (
            _logit(p)
            for p in (sampling.init_activation, sampling.pad_value, sampling.move_threshold)
        )
        self._moves: list[Triple] = []
        self._window: tuple[slice, ...] = ()

    def look(self, inputs: Real, targets: Real) -> None:
        """Writes what the network is to see, zyx and 2 channels, and what it should answer."""
        offset = self._next_offset()
        if offset is None:
            self._begin()
            offset = (0, 0, 0)
        self._window = tuple(
            slice(d + o, d + o + n)
            for d, o, n in zip(self._deltas, offset, self._fov_shape, strict=True)
        )
        inputs[..., 0] = self._image[self._window]
        inputs[..., 1] = self._canvas[self._window]
        target = self._sampling.target
        targets[...] = np.where(self._mask[self._window], target, 1 - target)

    def put_back(self, logits: Real) -> None:
        self._canvas[self._window] = logits

    def _begin(self) -> None:
        example = next(self._examples)
        self._image = (example.image - np.float32(self._mean)) / np.float32(self._stddev)
        self._mask = example.mask
        self._canvas = np.full(example.mask.shape, self._pad, np.float32)
        self._canvas[tuple(n // 2 for n in example.mask.shape)] = self._init
        moves = neighbours(self._deltas)
        order = example.rng.permutation(len(moves))
        self._moves = [moves[n] for n in order]
        self._left = self._sampling.max_moves

    def _next_offset(self) -> Triple | None:
        """The next place where the object goes on, or None when the example is done."""
        while self._moves and self._left:
            offset = self._moves.pop()
            at = tuple(s // 2 + o for s, o in zip(self._mask.shape, offset, strict=True))
            if self._canvas[at] >= self._move:
                self._left -= 1
                return offset
        return None


def count_overlap(logits: Real, targets: Real) -> npt.NDArray[np.int64]:
    """Voxels in the object by both, by the network and by the truth; any shape, to (3,) int64."""
    told, true = logits >= 0, targets >= 0.5
    return np.array([np.count_nonzero(v) for v in (told & true, told, true)], np.int64)


def neighbours(deltas: Triple) -> list[Triple]:
    """The places around the centre that the field of view may move to, zyx."""
    steps = [sorted({-d, 0, d}) for d in deltas]
    return [(z, y, x) for z, y, x in itertools.product(*steps) if (z, y, x) != (0, 0, 0)]


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
