"""The weave: tracks that never meet, and neurites that follow from their place."""

import itertools

import numpy as np

from h01_beam.testing.phantom import curves
from h01_beam.testing.phantom.weave import PITCH_NM, Tracks, Weave

WEAVE = Weave(9)


def mesh(low=-4, high=5, along=(-6, 9)):
    axes = (range(3), range(low, high), range(low, high), range(*along))
    return Tracks(*np.array(list(itertools.product(*axes)), np.int64).T)


def test_voids_and_nodes_name_each_other():
    nodes = mesh()
    for side in (-1, 1):
        voids = WEAVE.void(nodes, np.full(len(nodes), side))
        assert (np.ptp(voids % 2, axis=1) == 0).all(), 'three even or three odd numbers'
        around = WEAVE.around(voids)
        place = 2 * nodes.d + (side < 0)
        rows = np.arange(len(nodes))
        for name in ('d', 'i', 'j', 'k'):
            np.testing.assert_array_equal(
                getattr(around, name)[rows, place], getattr(nodes, name), err_msg=name
            )


def test_tracks_keep_apart():
    """Axes stay apart after jitter, openings and warp; a squeeze between two dendrites is rare."""
    nodes = mesh(-2, 3, (-4, 5))
    points = curves.to_world(9, curves.lattice_positions(WEAVE, nodes))
    track = (nodes.d * 64 + nodes.i + 32) * 64 + nodes.j + 32
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    apart[track[:, None] == track[None]] = np.inf
    assert apart.min() > 60
    nearest = apart.min(axis=1)
    assert (nearest < 0.25 * PITCH_NM).mean() < 0.07
    assert np.median(nearest) > 0.4 * PITCH_NM


def test_pieces_end_at_their_breaks():
    k = np.arange(-200, 200)
    same = np.zeros(len(k), np.int64)
    line = Tracks(same, same + 3, same + 2, k)
    pieces = WEAVE.piece(line)
    assert (np.diff(pieces) >= 0).all() and (np.diff(pieces) <= 1).all()
    changes = np.flatnonzero(np.diff(pieces)) + 1
    after = WEAVE.break_after(line[changes], pieces[changes])
    np.testing.assert_array_equal(after + 1, k[changes])


def test_branches_hang_on_trunks():
    nodes = mesh(-9, 10, (-70, 71))
    begins, _ = WEAVE.begins_as_branch(nodes)
    starts = nodes[np.flatnonzero(begins)]
    trunk, piece = WEAVE.trunk(starts)
    moved = (trunk.i != starts.i) | (trunk.j != starts.j)
    assert moved.sum() > 20
    assert (piece[moved] % 2 == 0).all(), 'a trunk is never a branch itself'
    away = np.abs(trunk.i - starts.i) + np.abs(trunk.j - starts.j)
    assert set(away[moved]) == {1}
    # Every voxel of the branch says the same.
    later, later_piece = WEAVE.trunk(starts.with_k(starts.k + 1))
    same = WEAVE.piece(starts.with_k(starts.k + 1)) == WEAVE.piece(starts)
    np.testing.assert_array_equal(later_piece[same], piece[same])
    np.testing.assert_array_equal(later.i[same], trunk.i[same])
