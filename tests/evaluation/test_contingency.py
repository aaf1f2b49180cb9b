"""Contingency rows against a dictionary that counts voxel by voxel, and their algebra."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam import labels
from h01_beam.evaluation.contingency import Overlaps, count_overlaps, merge_rows, partition_rows

# Few ids, so that they meet; one beyond 2**53, which a float would round.
IDS = st.sampled_from([0, 1, 2, 3, 7, 2**24 + 1, 2**60 + 1, 2**64 - 1])
LABELS = hnp.arrays(np.uint64, (3, 4, 5), elements=IDS)


def as_dict(rows: Overlaps) -> dict[tuple[int, int], int]:
    keys = zip(rows.segment.tolist(), rows.truth.tolist())
    return dict(zip(keys, rows.voxels.tolist()))


def count_voxel_by_voxel(segmentation, truth) -> dict[tuple[int, int], int]:
    pairs = zip(segmentation.ravel().tolist(), truth.ravel().tolist())
    return dict(collections.Counter(pair for pair in pairs if pair[1] != 0))


@given(LABELS, LABELS)
def test_counts_equal_counting_voxel_by_voxel(segmentation, truth):
    rows = count_overlaps(segmentation, truth)
    assert as_dict(rows) == count_voxel_by_voxel(segmentation, truth)
    assert len(as_dict(rows)) == len(rows)


@given(LABELS, LABELS)
def test_counts_do_not_depend_on_memory_order(segmentation, truth):
    rows = count_overlaps(np.asfortranarray(segmentation), truth)
    assert as_dict(rows) == count_voxel_by_voxel(segmentation, truth)


@given(LABELS, LABELS)
def test_many_pairs_are_sorted_instead_of_binned(segmentation, truth):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, '_MAX_BINS', 0)
        rows = count_overlaps(segmentation, truth)
    whole = count_overlaps(segmentation, truth)
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(rows.columns()[name], column)


@given(LABELS, LABELS, st.randoms())
def test_merged_blocks_equal_the_whole_in_any_order_and_grouping(segmentation, truth, random):
    slices = [(slice(0, 1), slice(1, 3)), (slice(0, 2), slice(2, 4)), (slice(0, 3), slice(3, 5))]
    blocks = [
        count_overlaps(segmentation[index], truth[index]) for index in itertools.product(*slices)
    ]
    assert len(blocks) > 1
    random.shuffle(blocks)
    cut = random.randrange(len(blocks))
    merged = merge_rows([merge_rows(blocks[:cut]), merge_rows(blocks[cut:])])
    # These slices leave the last section out.
    whole = count_overlaps(segmentation, truth)
    for name, column in whole.columns().items():
        np.testing.assert_array_equal(merged.columns()[name], column)


@given(LABELS, LABELS, st.sampled_from(['segment', 'truth']), st.integers(1, 5))
def test_rows_of_one_id_share_a_partition(segmentation, truth, column, partitions):
    rows = count_overlaps(segmentation, truth)
    home: dict[int, int] = {}
    parts = list(partition_rows(rows, column, partitions))
    for partition, part in parts:
        assert 0 <= partition < partitions
        for one in getattr(part, column).tolist():
            assert home.setdefault(one, partition) == partition
    assert as_dict(merge_rows(part for _, part in parts)) == as_dict(rows)


def test_block_ids_spread_evenly_over_partitions():
    ids = (np.arange(4096, dtype=np.uint64) << np.uint64(24)) + np.uint64(1)
    rows = Overlaps(ids, ids, np.ones(4096, np.int64))
    sizes = [len(part) for _, part in partition_rows(rows, 'segment', 16)]
    assert len(sizes) == 16
    assert max(sizes) < 1.5 * 4096 / 16


def test_nothing_merges_to_no_rows():
    assert len(merge_rows([])) == 0
    assert len(count_overlaps(np.zeros((0, 3, 3), int), np.zeros((0, 3, 3), int))) == 0
    assert len(count_overlaps(np.ones((2, 3, 3), int), np.zeros((2, 3, 3), int))) == 0


def test_columns_round_trip():
    rows = count_overlaps(np.array([[[1, 2, 2]]]), np.array([[[5, 5, 0]]]))
    assert as_dict(Overlaps.from_columns(rows.columns())) == {(1, 5): 1, (2, 5): 1}


@pytest.mark.parametrize(
    ('segmentation', 'truth', 'error', 'message'),
    [
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), ValueError, r'shape \(2, 2, 2\)'),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2), int), TypeError, 'segmentation has dtype float'),
        (np.zeros((2, 2, 2), int), np.full((2, 2, 2), -1), ValueError, 'truth has the label -1'),
    ],
)
def test_bad_labels_are_refused(segmentation, truth, error, message):
    with pytest.raises(error, match=message):
        count_overlaps(segmentation, truth)
