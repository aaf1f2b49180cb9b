"""The field of view in training: where it goes, what it sees, what it leaves behind."""

import itertools
import math

import numpy as np
import pytest

from models.ffn.examples import Example
from models.ffn.moving_fov import MovingFov, neighbours, patch_shape
from models.ffn.train_config import SamplingConfig

FOV, DELTAS = (3, 7, 9), (1, 2, 3)
PATCH = patch_shape(FOV, DELTAS)
HIGH = 5.0


def examples(count=1000):
    z, y, x = np.indices(PATCH)
    code = (z * 10_000 + y * 100 + x).astype(np.float32)
    for n in range(count):
        yield Example(code, code >= 0, np.random.default_rng(n))


def moving(sampling=None, batch_size=1):
    return MovingFov(
        examples(), batch_size, FOV, DELTAS, (0.0, 1.0), sampling or SamplingConfig(max_moves=26)
    )


def corner(inputs):
    """Where in the patch the field of view lies, from the image that encodes positions."""
    code = int(inputs[0, 0, 0, 0, 0])
    return code // 10_000, code // 100 % 100, code % 100


def test_the_patch_holds_the_field_of_view_at_all_its_places():
    assert PATCH == (5, 11, 15)
    assert len(neighbours(DELTAS)) == 26
    assert neighbours((0, 2, 0)) == [(0, -2, 0), (0, 2, 0)]


def test_it_begins_at_the_centre_with_a_seed():
    inputs, targets = moving().next_batch()
    assert corner(inputs) == DELTAS
    logits = inputs[0, ..., 1]
    assert logits[1, 3, 4] == pytest.approx(math.log(0.95 / 0.05))
    assert np.count_nonzero(np.isclose(logits, math.log(0.05 / 0.95))) == logits.size - 1
    assert np.allclose(targets, 0.95)


def test_it_visits_all_neighbours_where_the_object_goes_on():
    fov = moving()
    places = []
    for _ in range(27):
        inputs, _ = fov.next_batch()
        places.append(corner(inputs))
        fov.put_back(np.full((1, *FOV, 1), HIGH, np.float32))
    steps = itertools.product(*((-d, 0, d) for d in DELTAS))
    expected = {tuple(d + s for d, s in zip(DELTAS, step)) for step in steps}
    assert places[0] == DELTAS and set(places) == expected and len(set(places)) == 27
    # Then the next example.
    assert corner(fov.next_batch()[0]) == DELTAS


def test_it_stays_where_the_object_ends():
    fov = moving()
    for _ in range(5):
        inputs, _ = fov.next_batch()
        assert corner(inputs) == DELTAS
        fov.put_back(np.full((1, *FOV, 1), -HIGH, np.float32))


def test_what_the_network_said_is_what_it_sees_next():
    fov = moving()
    fov.next_batch()
    fov.put_back(np.full((1, *FOV, 1), HIGH, np.float32))
    inputs, _ = fov.next_batch()
    z, y, x = corner(inputs)
    seen = inputs[0, ..., 1]
    at = np.indices(FOV) + np.array([z, y, x]).reshape(3, 1, 1, 1)
    low = np.array(DELTAS).reshape(3, 1, 1, 1)
    high = low + np.array(FOV).reshape(3, 1, 1, 1)
    visited = ((at >= low) & (at < high)).all(axis=0)
    assert 0 < visited.sum() < visited.size
    assert (seen[visited] == HIGH).all() and (seen[~visited] < 0).all()


def test_moves_are_limited():
    fov = moving(SamplingConfig(max_moves=2))
    at_centre = []
    for _ in range(6):
        at_centre.append(corner(fov.next_batch()[0]) == DELTAS)
        fov.put_back(np.full((1, *FOV, 1), HIGH, np.float32))
    assert at_centre == [True, False, False, True, False, False]
