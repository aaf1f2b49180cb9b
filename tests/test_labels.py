"""Pairs of labels are counted right, by either way; ids of blocks."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam import labels


def counted(first, second):
    rows = zip(*(part.tolist() for part in labels.count_pairs(first, second)), strict=True)
    return {(a, b): n for a, b, n in rows}


@pytest.mark.parametrize('bins', [labels._MAX_BINS, 0], ids=['dense', 'sorted'])
@given(data=st.data())
def test_pairs_are_counted(bins, data):
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=6))
    some = st.sampled_from([0, 1, 2, 7, 2**40, 2**63 + 5])
    first, second = (data.draw(hnp.arrays(np.uint64, shape, elements=some)) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, '_MAX_BINS', bins)
        found = counted(first, second)
    pairs = zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)
    assert found == dict(collections.Counter(pairs))


def test_rows_ascend_and_nothing_has_none():
    first = np.array([5, 5, 1, 0, 5], np.uint64)
    second = np.array([2, 1, 2, 0, 2], np.uint64)
    a, b, n = labels.count_pairs(first, second)
    assert [a.tolist(), b.tolist(), n.tolist()] == [[0, 5, 1, 5], [0, 1, 2, 2], [1, 1, 1, 2]]
    assert all(len(part) == 0 for part in labels.count_pairs(first[:0], second[:0]))


def test_objects_that_lie_in_the_halo_alone_have_no_id():
    local = np.array([[[0, 1, 2, 3, 3]]])
    base = np.uint64(9 << labels.LOCAL_BITS)
    ids = labels.supervoxel_ids(local, np.array([4, 1, 0, 2]), base)
    assert ids.tolist() == [[[0, int(base) + 1, 0, int(base) + 3, int(base) + 3]]]
