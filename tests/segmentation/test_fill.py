"""Filling against brute force, voxel by voxel."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from h01_beam.segmentation.fill import FACES, fill_blanks


@st.composite
def cores(draw: st.DrawFn):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))
    own = draw(hnp.arrays(np.uint64, shape, elements=st.integers(0, 1)))
    views = {}
    for number, face in enumerate(draw(st.sets(st.sampled_from(FACES)))):
        thin = list(shape)
        thin[face[0]] = draw(st.integers(1, shape[face[0]]))
        labels = st.sampled_from([0, 10 + number])
        views[face] = draw(hnp.arrays(np.uint64, tuple(thin), elements=labels))
    return own, views


def brute_force(own, views):
    filled = own.copy()
    for voxel in np.argwhere(own == 0):
        options = []
        for face, view in views.items():
            axis, side = face
            away = voxel[axis] if side < 0 else own.shape[axis] - 1 - voxel[axis]
            if away < view.shape[axis]:
                at = voxel.copy()
                at[axis] = away if side < 0 else view.shape[axis] - 1 - away
                label = view[tuple(at)]
                if label:
                    options.append((away, FACES.index(face), label))
        if options:
            filled[tuple(voxel)] = min(options)[2]
    return filled


@hypothesis.given(cores())
def test_filling_equals_brute_force(core):
    own, views = core
    before = own.copy()
    assert np.array_equal(fill_blanks(own, views), brute_force(own, views))
    assert np.array_equal(own, before)


def test_what_a_block_found_is_kept():
    own = np.array([[[7, 0, 0, 0, 8]]], np.uint64)
    views = {
        (2, -1): np.array([[[1, 1]]], np.uint64),
        (2, 1): np.array([[[0, 2, 2]]], np.uint64),
    }
    assert fill_blanks(own, views).tolist() == [[[7, 1, 0, 2, 8]]]
