"""Where the field of view moves next.

    +-------------------+   The field of view (FOV) is centred at a voxel of the object. Around
    |    . . .-*. .     |   the centre lies a box of +/- deltas. On each of its six faces the
    |    .       .      |   highest logit (*) is where the object most likely goes on; if it
    |    *   c   .      |   reaches `move_threshold`, that voxel joins the queue as a future
    |    .       *      |   centre. Without a delta along an axis there are no faces, and no
    |    . . . . .      |   moves, along it.
    +-------------------+

Source: the face maximum policy of google/ffn (`ffn/inference/movement.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Triple

Move = tuple[float, Triple]


class FaceMaxima:
    """Finds the moves that one prediction suggests.

    Args:
      fov_shape: zyx shape of the predictions.
      deltas: zyx distance of the faces from the centre, 0 for an axis without moves.
      threshold: lowest logit worth a move.

    Raises:
      ValueError: a face would lie outside the field of view, or no axis has moves.
    """

    def __init__(self, fov_shape: Sequence[int], deltas: Sequence[int], threshold: float) -> None:
        check_deltas(fov_shape, deltas)
        self._threshold = threshold
        self._faces: list[tuple[tuple[slice | int, ...], int, int, Triple]] = []
        centre = [size // 2 for size in fov_shape]
        box: list[slice | int] = [
            slice(c - d, c + d + 1) for c, d in zip(centre, deltas, strict=True)
        ]
        for axis, delta in enumerate(deltas):
            if delta == 0:
                continue
            # Position of the face's first voxel relative to the centre; its axis is filled in.
            corner = [-d for d in deltas]
            # Of the two axes in the face, argmax runs along the last one fastest.
            width = 2 * deltas[1 if axis == 2 else 2] + 1
            for offset in (-delta, delta):
                selection = (*box[:axis], centre[axis] + offset, *box[axis + 1 :])
                corner[axis] = offset
                z, y, x = corner
                self._faces.append((selection, axis, width, (z, y, x)))

    def __call__(self, logits: npt.NDArray[np.float32]) -> list[Move]:
        """Finds the face maxima of one prediction.

        Args:
          logits: zyx float32, the prediction, of the shape `fov_shape`.

        Returns:
          (logit, zyx offset from the centre of the field of view), best first, ties in
          descending order of the offset, no move twice.
        """
        moves: set[Move] = set()
        for selection, axis, width, (z, y, x) in self._faces:
            face = logits[selection]
            best = int(face.argmax())
            row, column = divmod(best, width)
            score = float(face[row, column])
            if score < self._threshold:
                continue
            if axis == 0:
                moves.add((score, (z, y + row, x + column)))
            elif axis == 1:
                moves.add((score, (z + row, y, x + column)))
            else:
                moves.add((score, (z + row, y + column, x)))
        return sorted(moves, reverse=True)


class MovementQueue:
    """First-in, first-out queue of centres for one object.

    Centres are told apart on a lattice with the pitch of the deltas, with a cell centred at
    the seed, so the network runs at most once in each cell.
    """

    def __init__(self, seed: Triple, deltas: Sequence[int]) -> None:
        self._deltas = tuple(max(1, d) for d in deltas)
        # Shifted by half a cell, the seed lies in the middle of its cell.
        self._origin = tuple(s - d // 2 for s, d in zip(seed, deltas, strict=True))
        self._queue: deque[Triple] = deque([seed])
        self._done: set[Triple] = set()

    def __len__(self) -> int:
        return len(self._queue)

    def pop(self) -> Triple | None:
        """Returns the oldest centre whose cell is not done, or None when there is none left."""
        while self._queue:
            position = self._queue.popleft()
            if self._cell(position) not in self._done:
                return position
        return None

    def update(self, position: Triple, moves: Sequence[Move]) -> None:
        """Marks the cell of `position` as done and appends the moves found from there."""
        self._done.add(self._cell(position))
        z, y, x = position
        for _, (dz, dy, dx) in moves:
            self._queue.append((z + dz, y + dy, x + dx))

    def _cell(self, position: Triple) -> Triple:
        (z, y, x), (oz, oy, ox), (dz, dy, dx) = position, self._origin, self._deltas
        return (z - oz) // dz, (y - oy) // dy, (x - ox) // dx


def check_deltas(fov_shape: Sequence[int], deltas: Sequence[int]) -> None:
    """Refuses deltas whose faces lie outside the field of view."""
    if len(deltas) != 3 or len(fov_shape) != 3 or min(deltas) < 0 or max(deltas) == 0:
        raise ValueError(
            f'deltas is {tuple(deltas)}: must be three steps in zyx order, none negative and at '
            'least one positive'
        )
    for axis, (size, delta) in enumerate(zip(fov_shape, deltas, strict=True)):
        if size // 2 + delta >= size:
            raise ValueError(
                f'deltas is {tuple(deltas)}: on axis {"zyx"[axis]} a step of {delta} leaves the '
                f'field of view {tuple(fov_shape)}; use at most {(size - 1) // 2} there'
            )
