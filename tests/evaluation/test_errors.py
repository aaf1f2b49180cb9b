"""Tables of split objects and merging segments, and the view of an error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.evaluation.contingency import count_overlaps, partition_rows
from h01_beam.evaluation.errors import (
    SEGMENTS,
    TRUTHS,
    View,
    choose_view,
    crop_around,
    join_tables,
    locate_parts,
    merge_parts,
    tabulate_segments,
    tabulate_truths,
)
from h01_beam.evaluation.scores import score_overlaps
from h01_beam.geometry import BoundingBox

LABELS = hnp.arrays(np.uint64, (3, 4, 5), elements=st.integers(0, 4))


def stack(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint64)[:, None, :]


TRUTH = stack([1, 1, 1, 1, 2, 2, 0, 3], [1, 1, 1, 1, 2, 2, 3, 3])
SEGMENTATION = stack([7, 7, 8, 8, 8, 8, 9, 0], [7, 7, 7, 8, 8, 8, 0, 0])


def test_truths_are_listed_by_what_they_add_to_voi_split():
    table = tabulate_truths(count_overlaps(SEGMENTATION, TRUTH), scored_voxels=12)
    assert table['truth'].tolist() == [1, 2, 3]
    assert table['voxels'].tolist() == [8, 4, 3]
    assert table['labelled_voxels'].tolist() == [8, 4, 0]
    assert table['segments'].tolist() == [2, 1, 0]
    assert table['largest_segment'].tolist() == [7, 8, 0]
    assert table['largest_fraction'].tolist() == [5 / 8, 1, 0]
    expected = (8 * np.log2(8) - 5 * np.log2(5) - 3 * np.log2(3)) / 12
    assert table['voi_split'] == pytest.approx([expected, 0, 0])


def test_segments_are_listed_by_what_they_add_to_voi_merge():
    table = tabulate_segments(count_overlaps(SEGMENTATION, TRUTH), scored_voxels=12)
    assert table['segment'].tolist() == [8, 7]
    assert table['truths'].tolist() == [2, 1]
    assert table['largest_truth'].tolist() == [2, 1]
    assert table['largest_fraction'] == pytest.approx([4 / 7, 1])


def test_small_parts_do_not_count():
    rows = count_overlaps(SEGMENTATION, TRUTH)
    assert tabulate_truths(rows, 12, min_fraction=0.4)['segments'].tolist() == [1, 1, 0]


@given(LABELS, LABELS, st.integers(1, 4))
def test_contributions_of_all_partitions_sum_to_the_scores(segmentation, truth, partitions):
    rows = count_overlaps(segmentation, truth)
    labelled = int(rows.voxels[rows.segment != 0].sum())
    assume(labelled)
    scores = score_overlaps(rows).foreground
    truths = [tabulate_truths(p, labelled) for _, p in partition_rows(rows, 'truth', partitions)]
    segments = [
        tabulate_segments(p, labelled) for _, p in partition_rows(rows, 'segment', partitions)
    ]
    by_truth = join_tables(truths, 'voi_split', 'truth')
    by_segment = join_tables(segments, 'voi_merge', 'segment')
    assert by_truth['voi_split'].sum() == pytest.approx(scores.voi_split, abs=1e-9)
    assert by_segment['voi_merge'].sum() == pytest.approx(scores.voi_merge, abs=1e-9)
    for table, schema in ((by_truth, TRUTHS), (by_segment, SEGMENTS)):
        assert {name: column.dtype.name for name, column in table.items()} == schema.columns
    whole = tabulate_truths(rows, labelled)
    for name, column in whole.items():
        np.testing.assert_array_equal(by_truth[name], column)


def test_the_head_of_a_table_is_the_worst():
    table = tabulate_truths(count_overlaps(SEGMENTATION, TRUTH), 12)
    assert join_tables([table], 'voi_split', 'truth', rows=1)['truth'].tolist() == [1]


def test_the_view_is_the_section_with_the_largest_error():
    truth = np.ones((5, 6, 8), np.uint32)
    segmentation = np.full_like(truth, 3)
    segmentation[3, 2:4, 4:8] = 9
    segmentation[1, 0, 0] = 9
    start = (100, 200, 300)
    view = choose_view(locate_parts(truth, segmentation, start, np.array([1], np.uint64)), 1)
    assert view.parts == (3, 9)
    # The middle of the smaller part, rows 2-3 and columns 4-7.
    assert view.centre == (103, 202, 306)


def test_the_view_ignores_what_is_unlabelled():
    truth = np.ones((2, 4, 4), np.uint8)
    segmentation = np.full_like(truth, 3)
    segmentation[0, :2] = 0
    segmentation[1, 0, 0] = 9
    parts = locate_parts(truth, segmentation, (0, 0, 0), np.array([1], np.uint64))
    assert choose_view(parts, 1).centre == (1, 0, 0)
    with pytest.raises(ValueError, match='target 2 has no labelled voxel'):
        choose_view(parts, 2)


@given(LABELS, LABELS, st.randoms())
def test_parts_found_by_block_equal_those_of_the_whole(truth, segmentation, random):
    targets = np.array([1, 3], np.uint64)
    whole = locate_parts(truth, segmentation, (0, 0, 0), targets)
    blocks = []
    for z, y in itertools.product((0, 2), (0, 2)):
        box = slice(z, z + 2), slice(y, y + 2)
        blocks.append(locate_parts(truth[box], segmentation[box], (z, y, 0), targets))
    assert len(blocks) > 1
    random.shuffle(blocks)
    merged = merge_parts([merge_parts(blocks[:2]), *blocks[2:]])
    for name in ('target', 'other', 'section', 'voxels', 'sum_y', 'sum_x'):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


@pytest.mark.parametrize(
    ('centre', 'start'), [((12, 22, 33), (12, 20, 31)), ((10, 20, 30), (10, 20, 30)),
                          ((14, 27, 38), (14, 24, 34))],
)  # fmt: skip
def test_a_crop_stays_in_bounds(centre, start):
    view = View(target=1, parts=(1,), centre=centre)
    bounds = BoundingBox((10, 20, 30), (5, 8, 9))
    box = crop_around(view, (1, 4, 5), bounds)
    assert box == BoundingBox(start, (1, 4, 5))
    assert crop_around(view, (1, 100, 100), bounds).shape == (1, 8, 9)
