"""Places of tiles: those that the pairs agree on; what disagrees or hangs loose is told."""

import numpy as np
import pytest

from h01_beam.stitching.solve import SolveConfig, solve_places


def grid(rows=5, columns=6, seed=0, stage_error=20.0):
    """True places, what the stage says, pairs and their true offsets."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(rows) * 180.0, np.arange(columns) * 230.0, indexing='ij')
    true = np.stack([y.ravel(), x.ravel()], axis=1) + rng.normal(0, 6, (rows * columns, 2))
    index = np.arange(rows * columns).reshape(rows, columns)
    pairs = np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1),
        ]
    )
    stage = true + rng.normal(0, stage_error, true.shape)
    return true, stage, pairs, true[pairs[:, 1]] - true[pairs[:, 0]]


def relative(places):
    return places - places.mean(axis=0)


def test_places_follow_the_pairs_and_not_the_stage():
    true, stage, pairs, offsets = grid()
    found = solve_places(stage, pairs, offsets, np.ones(len(pairs)), SolveConfig())
    np.testing.assert_allclose(relative(found.places), relative(true), atol=0.01)
    # As a whole the section stays where the stage had it.
    np.testing.assert_allclose(found.places.mean(axis=0), stage.mean(axis=0), atol=1e-6)
    assert (found.piece == 0).all() and not found.outlier.any()
    assert found.misfit.max() < 0.01


def test_wrong_pairs_are_told_and_do_no_harm():
    true, stage, pairs, offsets = grid()
    wrong = [3, 17, 40]
    offsets = offsets.copy()
    offsets[wrong] += [[60, -40], [-25, 30], [15, 90]]
    found = solve_places(stage, pairs, offsets, np.ones(len(pairs)), SolveConfig())
    assert np.flatnonzero(found.outlier).tolist() == wrong
    np.testing.assert_allclose(relative(found.places), relative(true), atol=0.5)


def test_pieces_that_nothing_ties_keep_their_place_by_the_stage():
    true, stage, pairs, offsets = grid(stage_error=5.0)
    column = np.arange(30) % 6
    weights = np.where((column[pairs[:, 0]] == 3) & (column[pairs[:, 1]] == 4), 0.0, 1.0)
    found = solve_places(stage, pairs, offsets, weights, SolveConfig())
    assert found.piece.tolist() == np.where(column < 4, 0, 1).tolist()
    for part in (column < 4, column >= 4):
        np.testing.assert_allclose(relative(found.places[part]), relative(true[part]), atol=0.01)
        np.testing.assert_allclose(found.places[part].mean(0), stage[part].mean(0), atol=1e-6)


def test_a_single_tile_stays():
    found = solve_places(
        np.array([[3.0, 4.0]]), np.empty((0, 2), np.int64), np.empty((0, 2)), np.empty(0),
        SolveConfig(),
    )  # fmt: skip
    np.testing.assert_array_equal(found.places, [[3.0, 4.0]])
    assert found.piece.tolist() == [0]


def test_the_order_of_pairs_does_not_matter():
    true, stage, pairs, offsets = grid()
    weights = np.linspace(0.3, 1, len(pairs))
    turned = np.random.default_rng(3).permutation(len(pairs))
    one = solve_places(stage, pairs, offsets, weights, SolveConfig())
    other = solve_places(stage, pairs[turned], offsets[turned], weights[turned], SolveConfig())
    np.testing.assert_allclose(one.places, other.places, atol=1e-6)


def test_arrays_that_do_not_fit_are_refused():
    true, stage, pairs, offsets = grid()
    ones = np.ones(len(pairs))
    with pytest.raises(ValueError, match='stage has shape'):
        solve_places(stage[:, :1], pairs, offsets, ones, SolveConfig())
    with pytest.raises(ValueError, match=r'must be \(m, 2\)'):
        solve_places(stage, pairs, offsets[:-1], ones, SolveConfig())
    with pytest.raises(ValueError, match='the section has 30'):
        solve_places(stage, pairs + 5, offsets, ones, SolveConfig())
    with pytest.raises(ValueError, match='solve.tolerance is 0'):
        SolveConfig(tolerance=0)
