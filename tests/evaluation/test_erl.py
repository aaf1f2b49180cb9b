"""Expected run length on skeletons drawn by hand."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam.evaluation.erl import (
    RunSums,
    join_runs,
    measure_run_lengths,
    partition_runs,
    run_lengths,
    score_runs,
    score_skeletons,
)
from h01_beam.morphology.skeletons import Skeletons, concatenate, sample_labels

VOXEL_SIZE_NM = (30.0, 8.0, 4.0)


def line(object_id: int, nodes: int, axis: int = 0, offset: int = 0) -> Skeletons:
    """A straight skeleton along an axis, one node a voxel."""
    points = np.zeros((nodes, 3), int)
    points[:, axis] = np.arange(nodes)
    points[:, (axis + 1) % 3] = offset
    edges = np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1)
    return Skeletons.from_graph(points, edges, np.full(nodes, object_id), VOXEL_SIZE_NM)


def labels(*runs: tuple[int, int]) -> np.ndarray:
    """Labels of nodes from (label, how many)."""
    return np.concatenate([np.full(count, label, np.uint64) for label, count in runs])


@pytest.mark.parametrize(('axis', 'expected'), [(0, 300), (1, 80), (2, 40)])
def test_one_right_segment_gives_the_whole_length_in_nm(axis, expected):
    foreground, whole = measure_run_lengths(line(1, 11, axis), labels((5, 11)))
    assert foreground.erl_nm == whole.erl_nm == whole.attainable_nm == expected


def test_a_split_leaves_the_squares_of_both_runs():
    # 10 edges: 4 in the first segment, 1 across, 5 in the second.
    foreground, whole = measure_run_lengths(line(1, 11), labels((5, 5), (6, 6)))
    assert whole.erl_nm == pytest.approx((4**2 + 5**2) / 10 * 30)
    assert foreground == whole
    assert (whole.correct_nm, whole.split_nm, whole.merged_nm) == (270, 30, 0)


def test_two_pieces_of_one_segment_are_one_run():
    _, whole = measure_run_lengths(line(1, 11), labels((5, 5), (6, 1), (5, 5)))
    assert whole.erl_nm == pytest.approx(8**2 / 10 * 30)


def test_unlabelled_edges_count_in_all_but_not_in_foreground():
    # 10 edges: 4 inside, 1 to the gap, 1 inside of the gap, 1 out of it, 3 inside.
    foreground, whole = measure_run_lengths(line(1, 11), labels((5, 5), (0, 2), (5, 4)))
    assert whole.erl_nm == pytest.approx(7**2 / 10 * 30)
    assert foreground.erl_nm == pytest.approx(7**2 / 7 * 30)
    assert (whole.unlabelled_nm, foreground.unlabelled_nm) == (90, 0)
    assert whole.length_nm == whole.correct_nm + whole.split_nm + whole.unlabelled_nm


def test_a_merger_has_run_length_zero_everywhere():
    skeletons = concatenate([line(1, 11), line(2, 11, offset=5)], VOXEL_SIZE_NM)
    # Segment 5 holds all of object 1 and two nodes of object 2.
    segments = labels((5, 11), (5, 2), (6, 9))
    _, whole = measure_run_lengths(skeletons, segments)
    assert whole.erl_nm == pytest.approx(8**2 / 20 * 30)
    assert whole.mergers == 1
    assert whole.merged_nm == 11 * 30
    assert whole.attainable_nm == 300


@pytest.mark.parametrize(('tolerance', 'mergers'), [(0, 1), (1, 1), (2, 0)])
def test_a_merger_may_hold_some_nodes_of_another_object(tolerance, mergers):
    skeletons = concatenate([line(1, 11), line(2, 11, offset=5)], VOXEL_SIZE_NM)
    _, whole = measure_run_lengths(skeletons, labels((5, 11), (5, 2), (6, 9)), tolerance)
    assert whole.mergers == mergers


def test_pieces_of_one_object_in_one_segment_are_two_runs_and_no_merger():
    skeletons = concatenate([line(1, 11), line(1, 11, offset=5)], VOXEL_SIZE_NM)
    _, whole = measure_run_lengths(skeletons, labels((5, 22)))
    assert whole.mergers == 0
    assert whole.erl_nm == whole.attainable_nm == 300


def test_without_edges_there_is_no_run_length():
    foreground, whole = measure_run_lengths(line(1, 3), labels((0, 3)))
    assert np.isnan(foreground.erl_nm)
    assert whole.erl_nm == 0
    nothing, _ = measure_run_lengths(concatenate([], VOXEL_SIZE_NM), labels((0, 0)))
    assert np.isnan(nothing.erl_nm)


def test_one_label_a_node_is_needed():
    with pytest.raises(ValueError, match=r'must be \(3,\)'):
        measure_run_lengths(line(1, 3), labels((1, 2)))


@given(st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=9), min_size=1, max_size=6))
def test_scoring_by_object_and_by_segment_equals_scoring_at_once(rows):
    objects = [line(1 + i // 2, len(row), offset=i) for i, row in enumerate(rows)]
    segments = [np.array(row, np.uint64) for row in rows]
    whole = measure_run_lengths(
        concatenate(objects, VOXEL_SIZE_NM), np.concatenate(segments), merge_tolerance_nodes=1
    )
    scored = [score_skeletons(one, labels) for one, labels in zip(objects, segments)]
    parts: dict[int, list] = {}
    for runs, _ in reversed(scored):
        for partition, part in partition_runs(runs, 3):
            parts.setdefault(partition, []).append(part)
    sums = [sums for _, sums in scored]
    sums += [score_runs(join_runs(part), merge_tolerance_nodes=1) for part in parts.values()]
    blocked = run_lengths(functools.reduce(operator.add, sums, RunSums()))
    assert repr(blocked) == repr(whole)  # repr: NaN equals itself


def test_labels_are_sampled_block_by_block():
    volume = np.arange(1, 1 + 6 * 5 * 4, dtype=np.uint32).reshape(6, 5, 4)
    nodes = np.argwhere(volume % 7 == 0) + (10, 20, 30)
    sampled = np.zeros(len(nodes), np.uint64)
    blocks = [(z, y) for z in (0, 3) for y in (0, 2)]
    assert len(blocks) > 1
    for z, y in blocks:
        block = volume[z : z + 3, y : y + 3 if y else 2]
        index, found = sample_labels(block, (10 + z, 20 + y, 30), nodes)
        sampled[index] = found
    np.testing.assert_array_equal(sampled, volume[volume % 7 == 0])


@pytest.mark.parametrize(
    ('edges', 'ids', 'message'),
    [
        ([[0, 3]], [1, 1, 1], r'must lie in \[0, 3\)'),
        ([[0, 1]], [1, 2, 2], 'joins nodes of two objects'),
        ([[0, 1]], [1, 1], 'one id a node'),
    ],
)
def test_bad_skeletons_are_refused(edges, ids, message):
    with pytest.raises(ValueError, match=message):
        Skeletons.from_graph(np.zeros((3, 3)), edges, ids, VOXEL_SIZE_NM)
