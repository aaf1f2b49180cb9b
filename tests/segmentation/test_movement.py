from __future__ import annotations

import math

import numpy as np
import pytest

from h01_beam.segmentation.movement import FaceMaxima, MovementQueue

FOV_SHAPE = (5, 9, 13)
DELTAS = (1, 2, 3)
CENTRE = np.array([2, 4, 6])


def brute_force_moves(logits, deltas, threshold):
    """Looks at every voxel of the box of +/- deltas that lies on one of its faces."""
    centre = [size // 2 for size in logits.shape]
    moves = set()
    for axis in range(3):
        for sign in (-1, 1):
            if deltas[axis] == 0:
                continue
            best = None
            for offset in np.ndindex(*(2 * d + 1 for d in deltas)):
                offset = tuple(int(o) - d for o, d in zip(offset, deltas, strict=True))
                if offset[axis] != sign * deltas[axis]:
                    continue
                score = float(logits[tuple(c + o for c, o in zip(centre, offset, strict=True))])
                if best is None or score > best[0]:
                    best = score, offset
            if best[0] >= threshold:
                moves.add(best)
    return sorted(moves, reverse=True)


@pytest.mark.parametrize('deltas', [(1, 2, 3), (2, 4, 6), (0, 3, 2), (1, 0, 0)])
@pytest.mark.parametrize('threshold', [-9.0, 0.5, 2.0])
def test_moves_are_the_maxima_of_the_faces(deltas, threshold):
    random = np.random.default_rng(0)
    for _ in range(5):
        # One decimal, so that there are ties.
        logits = random.normal(size=FOV_SHAPE).round(1).astype(np.float32)
        moves = FaceMaxima(FOV_SHAPE, deltas, threshold)(logits)
        assert moves == brute_force_moves(logits, deltas, threshold)


def test_move_to_each_face_has_the_sign_and_axis_of_the_face():
    for axis in range(3):
        for sign in (-1, 1):
            offset = np.zeros(3, int)
            offset[axis] = sign * DELTAS[axis]
            logits = np.full(FOV_SHAPE, -1, np.float32)
            logits[tuple(CENTRE + offset)] = 5
            assert FaceMaxima(FOV_SHAPE, DELTAS, 0.0)(logits) == [(5.0, tuple(offset))]


def test_best_move_comes_first_and_a_shared_corner_once():
    logits = np.full(FOV_SHAPE, -1, np.float32)
    logits[tuple(CENTRE + (-1, -2, -3))] = 7  # a corner of three faces
    logits[tuple(CENTRE + (1, 0, 0))] = 8
    logits[tuple(CENTRE + (0, 2, 1))] = 6
    moves = FaceMaxima(FOV_SHAPE, DELTAS, 0.0)(logits)
    assert moves == [(8.0, (1, 0, 0)), (7.0, (-1, -2, -3)), (6.0, (0, 2, 1))]


def test_threshold_itself_is_enough():
    threshold = float(np.float32(math.log(9)))
    logits = np.full(FOV_SHAPE, -1, np.float32)
    logits[tuple(CENTRE + (1, 0, 0))] = threshold
    assert len(FaceMaxima(FOV_SHAPE, DELTAS, threshold)(logits)) == 1


@pytest.mark.parametrize('deltas', [(3, 2, 3), (1, 5, 3), (1, 2, 7)])
def test_delta_outside_the_field_of_view_is_refused(deltas):
    with pytest.raises(ValueError, match='leaves the field of view'):
        FaceMaxima(FOV_SHAPE, deltas, 0.0)


@pytest.mark.parametrize('deltas', [(0, 0, 0), (-1, 2, 3)])
def test_deltas_that_are_no_steps_are_refused(deltas):
    with pytest.raises(ValueError, match='none negative and at least one positive'):
        FaceMaxima(FOV_SHAPE, deltas, 0.0)


def test_queue_is_first_in_first_out():
    queue = MovementQueue((10, 20, 30), (1, 2, 3))
    assert queue.pop() == (10, 20, 30)
    queue.update((10, 20, 30), [(9.0, (0, 2, 0)), (8.0, (1, 0, 0))])
    assert queue.pop() == (10, 22, 30)
    queue.update((10, 22, 30), [(99.0, (0, 0, 3))])
    assert [queue.pop(), queue.pop(), queue.pop()] == [(11, 20, 30), (10, 22, 33), None]


def test_cells_have_the_pitch_of_the_deltas_and_the_seed_in_the_middle():
    deltas = (1, 4, 5)
    for axis, delta in enumerate(deltas):
        for offset in range(-2 * delta, 2 * delta + 1):
            queue = MovementQueue((10, 20, 30), deltas)
            queue.pop()
            step = [0, 0, 0]
            step[axis] = offset
            queue.update((10, 20, 30), [(1.0, tuple(step))])
            in_the_cell_of_the_seed = -(delta // 2) <= offset < delta - delta // 2
            assert (queue.pop() is None) == in_the_cell_of_the_seed


def test_cell_that_was_queued_twice_is_visited_once():
    queue = MovementQueue((0, 0, 0), (2, 2, 2))
    queue.pop()
    queue.update((0, 0, 0), [(2.0, (2, 0, 0)), (1.0, (2, 0, 0))])
    assert queue.pop() == (2, 0, 0)
    queue.update((2, 0, 0), [])
    assert queue.pop() is None
