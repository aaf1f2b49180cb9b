"""VOI and adapted Rand error against their definitions, and against published figures."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.evaluation.contingency import Overlaps, count_overlaps, partition_rows
from h01_beam.evaluation.scores import (
    OverlapSums,
    score,
    score_overlaps,
    sum_segments,
    sum_truths,
)

LABELS = hnp.arrays(np.uint64, (3, 4, 5), elements=st.integers(0, 4))


def entropy_given(first, second) -> float:
    """H(first | second) in bits, from probabilities."""
    total = 0.0
    for value in np.unique(second):
        within = first[second == value]
        _, counts = np.unique(within, return_counts=True)
        share = counts / len(within)
        total -= len(within) / len(second) * float((share * np.log2(share)).sum())
    return total


def rand_error(segmentation, truth) -> float:
    """1 - F score over ordered pairs of voxels, a voxel paired with itself included."""
    same_segment = segmentation[:, None] == segmentation[None, :]
    same_truth = truth[:, None] == truth[None, :]
    both = float((same_segment & same_truth).sum())
    precision, recall = both / same_segment.sum(), both / same_truth.sum()
    return 1 - 2 * precision * recall / (precision + recall)


@given(LABELS, LABELS)
def test_foreground_scores_follow_their_definitions(segmentation, truth):
    both = (segmentation != 0) & (truth != 0)
    assume(both.any())
    s, t = segmentation[both], truth[both]
    scores = score_overlaps(count_overlaps(segmentation, truth)).foreground
    assert scores.voi_split == pytest.approx(entropy_given(s, t), abs=1e-9)
    assert scores.voi_merge == pytest.approx(entropy_given(t, s), abs=1e-9)
    assert scores.adapted_rand_error == pytest.approx(rand_error(s, t), abs=1e-9)
    assert scores.coverage == pytest.approx(both.sum() / (truth != 0).sum())


@given(LABELS, LABELS)
def test_unlabelled_voxels_count_as_singletons_without_being_made(segmentation, truth):
    scored = truth != 0
    assume(scored.any())
    singletons = segmentation.copy()
    alone = singletons == 0
    singletons[alone] = 1000 + np.arange(alone.sum(), dtype=np.uint64)
    closed = score_overlaps(count_overlaps(segmentation, truth)).all
    made = score_overlaps(count_overlaps(singletons, truth)).foreground
    assert closed.voi_split == pytest.approx(made.voi_split, abs=1e-9)
    assert closed.voi_merge == pytest.approx(made.voi_merge, abs=1e-9)
    assert closed.adapted_rand_error == pytest.approx(made.adapted_rand_error, abs=1e-12)
    s, t = singletons[scored], truth[scored]
    assert closed.voi_split == pytest.approx(entropy_given(s, t), abs=1e-9)
    assert closed.adapted_rand_error == pytest.approx(rand_error(s, t), abs=1e-9)


@given(LABELS, LABELS, st.integers(1, 7), st.randoms())
def test_sums_over_partitions_are_exactly_those_of_the_whole(
    segmentation, truth, partitions, random
):
    rows = count_overlaps(segmentation, truth)
    parts = [sum_truths(part) for _, part in partition_rows(rows, 'truth', partitions)]
    parts += [sum_segments(part) for _, part in partition_rows(rows, 'segment', partitions)]
    random.shuffle(parts)
    total = functools.reduce(operator.add, parts, OverlapSums())
    assert total == sum_truths(rows) + sum_segments(rows)


@given(LABELS)
def test_the_truth_scores_perfectly_against_itself(truth):
    assume(truth.any())
    scores = score_overlaps(count_overlaps(truth * np.uint64(3), truth))
    for region in (scores.foreground, scores.all):
        assert (region.voi_split, region.voi_merge, region.adapted_rand_error) == (0, 0, 0)
        assert region.coverage == 1


def test_a_split_in_halves_is_one_bit_and_leaves_precision_perfect():
    truth = np.ones((2, 2, 4), np.uint32)
    segmentation = np.broadcast_to(np.array([1, 1, 2, 2]), truth.shape)
    scores = score_overlaps(count_overlaps(segmentation, truth)).foreground
    assert (scores.voi_split, scores.voi_merge) == (1, 0)
    assert (scores.rand_precision, scores.rand_recall) == (1, 0.5)
    swapped = score_overlaps(count_overlaps(truth, segmentation)).foreground
    assert (swapped.voi_split, swapped.voi_merge) == (0, 1)
    assert (swapped.rand_precision, swapped.rand_recall) == (0.5, 1)


def test_counts_of_a_petavoxel_volume_neither_overflow_nor_drown_small_objects():
    large = 10**15
    ids = np.array([1, 2], np.uint64)
    scores = score_overlaps(Overlaps(ids, np.ones(2, np.uint64), np.array([large, large])))
    assert scores.foreground.voi_split == pytest.approx(1, abs=1e-12)
    assert scores.foreground.rand_recall == pytest.approx(0.5, abs=1e-12)


def test_regions_without_a_voxel_are_null_in_json():
    truth = np.ones((2, 2, 2), int)
    scores = score_overlaps(count_overlaps(np.zeros_like(truth), truth))
    record = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert record['foreground']['voi_split'] is None
    assert record['foreground']['coverage'] == 0
    assert record['all']['voi_split'] == pytest.approx(3)
    assert record['all']['erl_nm'] is None
    assert {'voi_split', 'voi_merge', 'adapted_rand_error', 'coverage', 'erl_nm'} <= set(
        record['foreground']
    ) & set(record['all'])


def test_empty_truth_is_refused():
    with pytest.raises(ValueError, match='truth has no voxel above 0'):
        score(OverlapSums())


def test_the_published_segmentation_of_fib25_has_its_published_scores(shared_data):
    with np.load(shared_data / 'fib25' / 'fib25_z0-170.npz') as data:
        truth = data['labels']
    with np.load(shared_data / 'fib25' / 'google_ffn_published_z0-170.npz') as data:
        segmentation = data['labels']
    scores = score_overlaps(count_overlaps(segmentation, truth))
    found = {
        name: {key: round(value, 3) for key, value in dataclasses.asdict(region).items()}
        for name, region in (('foreground', scores.foreground), ('all', scores.all))
    }
    expected = {
        'foreground': {'voi_split': 0.538, 'voi_merge': 0.239, 'adapted_rand_error': 0.083},
        'all': {'voi_split': 2.179, 'voi_merge': 0.216, 'adapted_rand_error': 0.129},
    }
    for name, values in expected.items():
        assert {key: found[name][key] for key in values} == values
        assert found[name]['coverage'] == 0.903
    assert not math.isnan(scores.all.voi_split)
