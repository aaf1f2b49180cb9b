"""Gives voxels that a block left blank to the objects of its neighbours.

An object that enters a block only a little, beside a face, peaks on the other side: the block has
no seed in it and leaves it blank. But the neighbour, where it comes from, followed it across:

                 core of A | core of B
    A saw     aaaaaaaaaaaa | aaa              what A saw in B's core fills what B left blank
    B saw               .. | ...bbbbbbbbbb
    filled    aaaaaaaaaaaa | aaabbbbbbbbbb

Only blank voxels are filled, with the label of the neighbour whose core is nearest, so nothing
that a block found in its own core is ever overruled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.uint64]
# Axis (0, 1, 2 for z, y, x), and whether the neighbour lies before or after the block.
Face: TypeAlias = tuple[int, Literal[-1, 1]]
FACES: tuple[Face, ...] = ((0, -1), (0, 1), (1, -1), (1, 1), (2, -1), (2, 1))


def fill_blanks(own: Ids, views: Mapping[Face, Ids]) -> Ids:
    """Fills unlabelled voxels of a core from the labels of its neighbours.

    Args:
      own: zyx uint64, the core as its block labelled it; 0 = unlabelled.
      views: by face, the slab of the core next to it as the neighbour across it labelled it: of
        the shape of the core but along the face's axis, where it may be thinner.

    Returns:
      zyx uint64: `own` where that is labelled; elsewhere the label of the neighbour nearest to
      the voxel that has one, the first of `FACES` among equals; 0 where none has.
    """
    filled = own.copy()
    distance = np.full(own.shape, np.iinfo(np.int32).max, np.int32)
    for face in FACES:
        if face not in views:
            continue
        axis, side = face
        view = views[face]
        depth = view.shape[axis]
        slab = [slice(None)] * 3
        slab[axis] = slice(0, depth) if side < 0 else slice(own.shape[axis] - depth, None)
        z, y, x = slab
        steps = np.arange(depth, dtype=np.int32)[::-side]
        away = np.expand_dims(steps, tuple(a for a in range(3) if a != axis))
        taken = (own[z, y, x] == 0) & (view != 0) & (away < distance[z, y, x])
        np.copyto(filled[z, y, x], view, where=taken)
        np.copyto(distance[z, y, x], np.broadcast_to(away, view.shape), where=taken)
    return filled
