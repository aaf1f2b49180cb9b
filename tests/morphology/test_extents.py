"""Extents of labels, whole and merged over blocks."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.morphology.extents import EXTENTS, Extents, measure_extents, merge_extents

LABELS = hnp.arrays(np.uint64, (3, 4, 5), elements=st.sampled_from([0, 1, 2, 7, 2**60 + 1]))


@given(LABELS)
def test_extents_bound_every_label(labels):
    found = measure_extents(labels, (10, 20, 30))
    assert found.label.tolist() == [one for one in np.unique(labels).tolist() if one]
    for row, label in enumerate(found.label):
        voxels = np.argwhere(labels == label) + (10, 20, 30)
        assert found.voxels[row] == len(voxels)
        corners = [found.columns()[name][row] for name in list(EXTENTS.columns)[2:]]
        assert corners == [*voxels.min(axis=0), *(voxels.max(axis=0) + 1)]


@given(LABELS, st.randoms())
def test_merged_blocks_equal_the_whole(labels, random):
    blocks = [
        measure_extents(labels[z : z + 2, y : y + 2], (z, y, 0))
        for z, y in itertools.product((0, 2), (0, 2))
    ]
    assert len(blocks) > 1
    random.shuffle(blocks)
    merged = merge_extents([merge_extents(blocks[:2]), *blocks[2:]])
    for name, column in measure_extents(labels, (0, 0, 0)).columns().items():
        np.testing.assert_array_equal(merged.columns()[name], column)


def test_extents_round_trip_as_columns():
    found = measure_extents(np.array([[[3, 3, 0]]], np.uint8), (0, 0, 0))
    again = Extents.from_columns(EXTENTS.conform(found.columns()))
    assert again.columns().keys() == EXTENTS.columns.keys()
    assert again.end_x.tolist() == [2]
