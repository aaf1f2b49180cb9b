"""Skeletons of shapes whose skeleton is known, in anisotropic voxels."""

from __future__ import annotations

import numpy as np
import pytest

from h01_beam.morphology.skeletons import Skeletons
from h01_beam.morphology.teasar import SkeletonConfig, cell_shape, skeletonize

VOXEL_SIZE_NM = (30.0, 12.0, 10.0)


def tube(shape, corners_nm, radius_nm, voxel_size_nm=VOXEL_SIZE_NM) -> np.ndarray:
    """Voxels within a radius of a chain of corners (nm, zyx)."""
    points = np.stack(np.indices(shape), -1) * np.asarray(voxel_size_nm)
    near = np.zeros(shape, bool)
    for start, end in zip(corners_nm[:-1], corners_nm[1:]):
        start, along = np.asarray(start), np.subtract(end, start)
        place = np.clip((points - start) @ along / (along @ along), 0, 1)
        distance = np.linalg.norm(points - start - place[..., None] * along, axis=-1)
        near |= distance <= radius_nm
    return near


def ends(skeletons: Skeletons) -> np.ndarray:
    """Nodes with one edge, in nm."""
    degree = np.bincount(skeletons.edges.ravel(), minlength=len(skeletons))
    return skeletons.nodes[degree == 1] * np.asarray(skeletons.voxel_size_nm)


# A bend along all three axes, so that a transposed axis or voxel size fails.
BEND = [(300, 300, 200), (300, 300, 1500), (300, 1400, 1500), (1500, 1400, 1500)]
BEND_NM = 1300 + 1100 + 1200
SHAPE = (60, 140, 170)


@pytest.mark.parametrize('max_nodes', [200_000, 2_000])
@pytest.mark.parametrize('spacing_nm', [0.0, 100.0])
def test_a_bent_tube_keeps_its_length_its_ends_and_its_middle(max_nodes, spacing_nm):
    labels = np.where(tube(SHAPE, BEND, 100), 7, 0).astype(np.uint64)
    config = SkeletonConfig(max_nodes=max_nodes, node_spacing_nm=spacing_nm)
    found = skeletonize(labels, VOXEL_SIZE_NM, config)
    assert set(found.object_ids.tolist()) == {7}
    assert len(found.edges) == len(found) - 1
    # A path over voxels cuts corners (shorter) and climbs stairs (longer).
    assert found.length_nm() == pytest.approx(BEND_NM, rel=0.08)
    tips = ends(found)
    assert len(tips) == 2
    for corner in (BEND[0], BEND[-1]):
        assert np.linalg.norm(tips - corner, axis=1).min() < 100
    assert labels[tuple(found.nodes.T)].min() == 7
    assert np.median(found.radius_nm) > 75


def test_node_spacing_is_kept():
    labels = tube(SHAPE, BEND, 100).astype(np.uint8)
    lengths = skeletonize(labels, VOXEL_SIZE_NM).edge_lengths_nm()
    # Half a voxel step to either side.
    assert lengths.max() < 100 + max(VOXEL_SIZE_NM)
    assert np.median(lengths) > 60


def test_a_fork_has_three_ends_and_one_joint():
    shape = (40, 120, 120)
    fork = [(600, 700, 100), (600, 700, 600), (600, 1300, 1100)]
    mask = tube(shape, fork, 70) | tube(shape, [(600, 700, 600), (600, 100, 1100)], 70)
    found = skeletonize(mask.astype(np.uint32), VOXEL_SIZE_NM)
    degree = np.bincount(found.edges.ravel())
    assert np.bincount(degree).tolist() == [0, 3, len(found) - 4, 1]
    joint = found.nodes[degree == 3][0] * VOXEL_SIZE_NM
    assert np.linalg.norm(joint - (600, 700, 600)) < 120
    assert found.length_nm() == pytest.approx(500 + 2 * np.hypot(600, 500), rel=0.1)


def test_an_object_cut_by_the_array_goes_on_to_its_face():
    labels = tube((30, 60, 100), [(450, 360, -500), (450, 360, 1500)], 120).astype(np.uint8)
    found = skeletonize(labels, VOXEL_SIZE_NM)
    x = np.sort(ends(found)[:, 2])
    assert x[0] <= 60
    assert x[1] >= 930
    np.testing.assert_allclose(ends(found)[:, :2], [(450, 360)] * 2, atol=40)


def test_each_label_and_each_piece_gets_its_own_skeleton():
    labels = np.zeros((20, 60, 160), np.uint64)
    labels[5:12, 5:15, 5:155] = 11
    labels[5:12, 15:25, 5:155] = 2**40  # touches the first
    labels[5:12, 40:50, 5:70] = 11  # a second piece of the first
    labels[5:12, 40:50, 90:155] = 11
    labels[1, 55, 3] = 4  # too small
    found = skeletonize(labels, VOXEL_SIZE_NM)
    trees, first = np.unique(found.trees(), return_index=True)
    assert sorted(found.object_ids[first].tolist()) == [11, 11, 11, 2**40]
    assert (labels[tuple(found.nodes.T)] == found.object_ids).all()


def test_start_moves_nodes_and_nothing_else():
    labels = tube(SHAPE, BEND, 100).astype(np.uint8)
    here = skeletonize(labels, VOXEL_SIZE_NM)
    there = skeletonize(labels, VOXEL_SIZE_NM, start=(1000, -20, 3))
    np.testing.assert_array_equal(there.nodes - here.nodes, [(1000, -20, 3)] * len(here))
    np.testing.assert_array_equal(there.edges, here.edges)


def test_a_blob_has_next_to_no_skeleton_and_nothing_has_none():
    ball = tube((30, 60, 70), [(450, 360, 340), (450, 360, 341)], 300).astype(np.uint8)
    assert skeletonize(ball, VOXEL_SIZE_NM).length_nm() < 60
    assert len(skeletonize(np.zeros((4, 5, 6), np.uint8), VOXEL_SIZE_NM)) == 0


def test_a_block_that_one_object_fills_is_no_error():
    found = skeletonize(np.ones((20, 30, 100), np.uint8), VOXEL_SIZE_NM)
    assert (found.nodes >= 0).all()


@pytest.mark.parametrize(('voxels', 'expected'), [(1, (1, 1, 1)), (4, (1, 3, 3)), (100, (3, 7, 8))])
def test_cells_are_as_near_to_cubes_as_voxels_allow(voxels, expected):
    found = cell_shape(VOXEL_SIZE_NM, voxels)
    assert found.prod() >= voxels
    extent = found * np.asarray(VOXEL_SIZE_NM)
    assert extent.max() / extent.min() < 3.1
    assert (found >= 1).all()
    assert expected[0] <= found[0] + 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r'skeletons\.max_nodes is 3: must be at least 1000'):
        SkeletonConfig(max_nodes=3)
