"""The canvas on which a flood-filling network paints one object after the other.

Source: the canvas of google/ffn (`ffn/inference/inference.py`), described in Januszewski et
al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
Methods 15, 2018.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import cc3d
import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Triple
from h01_beam.segmentation.ffn_config import FfnConfig
from h01_beam.segmentation.movement import FaceMaxima, MovementQueue

Float32 = npt.NDArray[np.float32]
# (normalized image, object logits) of one field of view, zyx float32, to the updated logits.
# The inputs are valid during the call only, and not to be written to; nor is the result.
Predict = Callable[[Float32, Float32], Float32]

OBJECT_DTYPE = np.dtype(
    [('id', '<u4'), ('seed', '<i4', (3,)), ('voxels', '<i8'), ('iterations', '<i4')]
)
# An object painted over an earlier one: voxels that both claim, those that the earlier kept, those
# that the later painted in all.
OVERLAP_DTYPE = np.dtype(
    [
        ('earlier', '<u4'), ('later', '<u4'),
        ('shared', '<i8'), ('earlier_voxels', '<i8'), ('later_voxels', '<i8'),
    ]
)  # fmt: skip
COUNTERS = (
    'seeds_tried',
    'seeds_skipped_labelled',
    'seeds_skipped_masked',
    'seeds_skipped_near_object',
    'fov_steps',
    'fov_steps_rejected',
    'moves_skipped_threshold',
    'moves_skipped_border',
    'moves_skipped_labelled',
    'moves_skipped_masked',
    'objects',
    'rejected_weak',
    'rejected_small',
    'voxels',
    'voxels_overlapping',
)


class Canvas:
    """State of the segmentation of one image.

    Attributes:
      labels: zyx uint32, ids of the finished objects from 1 in order of creation, 0 elsewhere.
      logits: zyx float32, the object being painted; NaN where the network has not been.
      objects: one (id, seed, voxels, iterations) for each finished object.
      overlaps: one (earlier, later, shared, earlier_voxels, later_voxels) for each pair of objects
        of which the later was painted over the earlier.
      counters: what happened so far, by the names in `COUNTERS`.
      predict_s: seconds spent in `predict`, waiting included.
    """

    def __init__(
        self,
        image: npt.NDArray[np.uint8],
        predict: Predict,
        fov_shape: Triple,
        deltas: Triple,
        config: FfnConfig,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Prepares an empty canvas; `ffn.flood_fill` describes and checks the arguments."""
        self.labels = np.zeros(image.shape, np.uint32)
        self.logits = np.full(image.shape, np.nan, np.float32)
        self.objects: list[tuple[int, Triple, int, int]] = []
        self.overlaps: list[tuple[int, int, int, int, int]] = []
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.predict_s = 0.0
        self._image = image
        self._mask = mask
        self._predict = predict
        self._config = config
        self._fov_shape = fov_shape
        self._margin = _triple(size // 2 for size in fov_shape)
        self._deltas = deltas
        self._init_logit = _logit(config.init_activation)
        self._pad_logit = np.float32(_logit(config.pad_value))
        self._move_logit = _logit(config.move_threshold)
        self._segment_logit = _logit(config.segment_threshold)
        self._image_mean, self._image_stddev = map(np.float32, config.grey_levels)
        self._find_moves = FaceMaxima(fov_shape, deltas, self._move_logit)
        # Filled anew at every step.
        self._image_fov = np.empty(fov_shape, np.float32)
        self._logit_fov = np.empty(fov_shape, np.float32)
        self._unvisited = np.empty(fov_shape, np.bool_)
        # Lowest and highest corner of the centres visited for the current object.
        self._centres: tuple[Triple, Triple] | None = None

    def segment(self, seed: Triple) -> bool:
        """Tries to make an object from a seed; returns whether one was made.

        Args:
          seed: zyx voxel; the field of view around it lies in the image.

        Raises:
          ValueError: `predict` returned another shape than the field of view's, or NaN.
        """
        if not self._is_free(seed):
            return False
        self.counters['seeds_tried'] += 1
        iterations = self.flood(seed)
        self.counters['fov_steps'] += iterations
        weak = self.logits[seed] < self._move_logit
        voxels = 0 if weak else self._keep()
        if not voxels:
            self.counters['rejected_weak' if weak else 'rejected_small'] += 1
            self.counters['fov_steps_rejected'] += iterations
            return False
        self.objects.append((self.counters['objects'], seed, voxels, iterations))
        return True

    def flood(self, seed: Triple) -> int:
        """Paints the object at a seed onto empty `logits`; returns the number of FOV steps.

        The flood ends when no move is left, or when the seed itself falls below the move
        threshold, which says that it was no part of a single object.
        """
        self._clear()
        low = high = seed
        self._centres = low, high
        self.logits[seed] = self._init_logit
        queue = MovementQueue(seed, self._deltas)
        steps = 0
        while (position := queue.pop()) is not None:
            if not self._may_move_to(position):
                continue
            if self.logits[seed] < self._move_logit:
                break
            if self._mask is not None and self._mask[position]:
                self.counters['moves_skipped_masked'] += 1
                continue
            logits = self._step(position)
            steps += 1
            low, high = _triple(map(min, low, position)), _triple(map(max, high, position))
            self._centres = low, high
            queue.update(position, self._find_moves(logits))
        return steps

    def _is_free(self, seed: Triple) -> bool:
        if self.labels[seed]:
            self.counters['seeds_skipped_labelled'] += 1
            return False
        if self._mask is not None and self._mask[seed]:
            self.counters['seeds_skipped_masked'] += 1
            return False
        near = tuple(
            slice(max(0, s - d), s + d + 1)
            for s, d in zip(seed, self._config.min_boundary_dist, strict=True)
        )
        if self.labels[near].any():
            self.counters['seeds_skipped_near_object'] += 1
            return False
        return True

    def _may_move_to(self, position: Triple) -> bool:
        # The order of the checks only decides which counter a move with two faults goes to.
        for centre, margin, size in zip(position, self._margin, self._image.shape, strict=True):
            if centre < margin or centre + margin >= size:
                self.counters['moves_skipped_border'] += 1
                return False
        # A later step may have taken back what an earlier one promised here.
        if self.logits[position] < self._move_logit:
            self.counters['moves_skipped_threshold'] += 1
            return False
        if self.labels[position]:
            self.counters['moves_skipped_labelled'] += 1
            return False
        return True

    def _step(self, position: Triple) -> Float32:
        """Runs the network once, updates `logits`, and returns them for this field of view."""
        (z, y, x), (mz, my, mx), (sz, sy, sx) = position, self._margin, self._fov_shape
        z, y, x = z - mz, y - my, x - mx
        fov = (slice(z, z + sz), slice(y, y + sy), slice(x, x + sx))
        painted = self.logits[fov]
        np.subtract(self._image[fov], self._image_mean, out=self._image_fov)
        np.divide(self._image_fov, self._image_stddev, out=self._image_fov)
        np.copyto(self._logit_fov, painted)
        np.isnan(self._logit_fov, out=self._unvisited)
        np.copyto(self._logit_fov, self._pad_logit, where=self._unvisited)

        started = time.perf_counter()
        logits = self._predict(self._image_fov, self._logit_fov)
        self.predict_s += time.perf_counter() - started

        self._check(logits, position)
        if self._freezes(logits):
            np.copyto(painted, logits, where=self._may_change(logits))
        else:
            np.copyto(painted, logits)
        return painted

    def _check(self, logits: Float32, position: Triple) -> None:
        if logits.shape != self._fov_shape:
            raise ValueError(
                f'predict returned logits of shape {logits.shape} for a field of view of '
                f'{self._fov_shape} (zyx): give flood_fill the fov_shape of the model'
            )
        # NaN would pass for "not visited"; one sum finds it, and infinities, in microseconds.
        if not math.isfinite(logits.sum()):
            raise ValueError(
                f'predict returned NaN or infinite logits at {position} (zyx): the model does '
                'not work at this precision or on this image; try precision float32'
            )

    def _freezes(self, logits: Float32) -> bool:
        threshold = self._config.disco_seed_threshold
        if threshold is None:
            return False
        return int(np.count_nonzero(logits >= self._move_logit)) > threshold * logits.size

    def _may_change(self, logits: Float32) -> npt.NDArray[np.bool_]:
        """All voxels but those once seen below 0.5 (logit 0) that would rise."""
        allowed = logits <= self._logit_fov
        allowed |= self._logit_fov >= 0.0
        allowed |= self._unvisited
        return allowed

    def _keep(self) -> int:
        """Labels the flooded object if it is big enough; returns its new voxels, or 0."""
        box = self._touched()
        labels = self.labels[box]
        # Comparisons with NaN are false: voxels that were not visited stay out.
        mask = self.logits[box] >= self._segment_logit
        shared = np.bincount(labels[mask], minlength=1)
        painted = int(shared.sum())
        mask &= labels == 0
        if self._config.min_piece_size > 1:
            mask = cc3d.dust(mask, threshold=self._config.min_piece_size, connectivity=26)
        voxels = int(np.count_nonzero(mask))
        if voxels < self._config.min_segment_size:
            return 0
        self.counters['objects'] += 1
        self.overlaps += [
            (earlier, self.counters['objects'], int(shared[earlier]), kept, painted)
            for earlier, _, kept, _ in self.objects
            if earlier < len(shared) and shared[earlier]
        ]
        self.counters['voxels'] += voxels
        self.counters['voxels_overlapping'] += painted - voxels
        np.copyto(labels, np.uint32(self.counters['objects']), where=mask)
        return voxels

    def _clear(self) -> None:
        # Only where the last object was painted: clearing all of a block for every seed would
        # cost more than the network.
        self.logits[self._touched()] = np.nan

    def _touched(self) -> tuple[slice, ...]:
        if self._centres is None:
            return (slice(0, 0),) * 3
        return tuple(
            slice(low - margin, high - margin + size)
            for low, high, margin, size in zip(
                *self._centres, self._margin, self._fov_shape, strict=True
            )
        )


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def _triple(values: Iterable[int]) -> Triple:
    z, y, x = values
    return z, y, x
