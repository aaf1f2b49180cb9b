from __future__ import annotations

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h01_beam.geometry import (
    BlockGrid,
    Border,
    BoundingBox,
    CoreBox,
    Overlap,
    ReadBox,
    as_triple,
)

starts = st.tuples(*[st.integers(-20, 20)] * 3)
shapes = st.tuples(*[st.integers(1, 12)] * 3)
factors = st.tuples(*[st.integers(1, 4)] * 3)
boxes = st.builds(BoundingBox, starts, shapes)


@st.composite
def grids(draw):
    block_shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    halo = draw(st.tuples(*[st.integers(0, n) for n in block_shape]))
    return BlockGrid(draw(boxes), block_shape, halo)


def voxels(box):
    return set(itertools.product(*(range(s, e) for s, e in zip(box.start, box.end))))


@given(boxes, boxes)
def test_boxes_are_sets_of_voxels(a, b):
    assert len(voxels(a)) == a.size
    shared = a.intersection(b)
    assert (voxels(shared) if shared else set()) == voxels(a) & voxels(b)
    assert a.contains(b) == (voxels(b) <= voxels(a))


@given(boxes, starts, shapes, shapes)
def test_boxes_move_and_grow(box, offset, low, high):
    assert box.translate(offset).translate(tuple(-o for o in offset)) == box
    padded = box.pad(low, high)
    assert padded.contains(box)
    assert padded.end == tuple(e + h for e, h in zip(box.end, high))
    assert BoundingBox.from_bounds(box.start, box.end) == box


@given(boxes, factors)
def test_scaled_boxes_cover(box, factor):
    coarse = box.scale_down(factor)
    expected = {tuple(c // f for c, f in zip(v, factor)) for v in voxels(box)}
    assert voxels(coarse) == expected
    assert box.scale_up(factor).scale_down(factor) == box
    assert coarse.scale_up(factor).contains(box)


def test_box_slices_and_text():
    box = BoundingBox((1, 2, 3), (4, 5, 6))
    array = np.arange(8 * 9 * 10).reshape(8, 9, 10)
    assert array[box.slices].shape == box.shape
    assert array[box.slices][0, 0, 0] == array[1, 2, 3]
    assert str(box) == '[1:5, 2:7, 3:9]'


def test_box_does_not_change():
    box = BoundingBox((1, 2, 3), (4, 5, 6))
    with pytest.raises(dataclasses.FrozenInstanceError):
        box.start = (0, 0, 0)
    assert len({box, BoundingBox((1, 2, 3), [4, 5, 6])}) == 1
    assert pickle.loads(pickle.dumps(box)) == box  # noqa: S301 (workers get boxes that way)


@pytest.mark.parametrize('value', [(1, 2), (1, 2, 3, 4), (1, 2, 3.5), '123', None, 64, ('1', 2, 3)])
def test_triples_are_three_integers(value):
    with pytest.raises(ValueError, match=r'grid.halo is .*: must be three integers in z, y, x'):
        as_triple('grid.halo', value)


def test_triples_may_come_from_numpy():
    triple = as_triple('shape', np.array([1, 2, 3]))
    assert triple == (1, 2, 3) and all(type(v) is int for v in triple)


def test_negative_extents_are_refused():
    with pytest.raises(ValueError, match='no extent may be negative'):
        BoundingBox((0, 0, 0), (1, -1, 1))


@given(grids())
def test_cores_partition_the_bounds(grid):
    counts = np.zeros(grid.bounds.shape, int)
    for block in grid:
        counts[block.core.translate(tuple(-s for s in grid.bounds.start)).slices] += 1
    assert (counts == 1).all()
    assert len(list(grid)) == len(grid) == np.prod(grid.shape)


@given(grids())
def test_reads_contain_cores_and_clip(grid):
    for block in grid:
        assert block.read.contains(block.core) and grid.bounds.contains(block.read)
        assert block.read == block.core.pad(grid.halo, grid.halo).intersection(grid.bounds)
        assert all(n <= m for n, m in zip(block.read.shape, grid.largest_read))


@given(grids())
def test_core_in_read_crops(grid):
    for block in grid:
        positions = np.array(sorted(voxels(block.read))).reshape(*block.read.shape, 3)
        cropped = positions[block.core_in_read]
        assert cropped.shape[:3] == block.core.shape
        assert tuple(cropped[0, 0, 0]) == block.core.start


@given(grids())
def test_index_rank_and_block_are_bijections(grid):
    blocks = list(grid)
    assert [grid.linear(block.index) for block in blocks] == list(range(len(grid)))
    assert [grid.block(linear) for linear in range(len(grid))] == blocks
    assert len({block.name for block in blocks}) == len({b.core for b in blocks}) == len(grid)
    assert all(grid[block.index] == block for block in blocks)


@given(grids(), boxes)
def test_touching_equals_brute_force(grid, box):
    expected = [block for block in grid if block.core.intersection(box)]
    assert list(grid.touching(box)) == expected


@given(grids())
def test_new_sections_renumber_nothing(grid):
    z, y, x = grid.bounds.shape
    longer = BoundingBox(grid.bounds.start, (z + 5, y, x))
    grown = dataclasses.replace(grid, bounds=longer)
    assert all(grown.linear(block.index) == grid.linear(block.index) for block in grid)


@given(grids(), st.integers(0, 2), st.data())
def test_overlaps_are_what_two_neighbours_read_without_the_envelope(grid, axis, data):
    envelope = data.draw(st.tuples(*(st.integers(0, h) for h in grid.halo)))
    overlap = Overlap(grid, axis, envelope)

    def trusted(block):
        """Voxels of the read box away from its faces, but for those of the bounds."""
        return {
            v
            for v in voxels(block.read)
            if all(
                (low == start or v[a] >= low + e) and (high == end or v[a] < high - e)
                for a, (low, high, start, end, e) in enumerate(
                    zip(block.read.start, block.read.end, grid.bounds.start, grid.bounds.end,
                        envelope)
                )
            )
        }  # fmt: skip

    for block in grid:
        before = tuple(i - (a == axis) for a, i in enumerate(block.index))
        box = overlap(block)
        if before[axis] < 0:
            assert box is None
        else:
            expected = trusted(block) & trusted(grid[before])
            assert (voxels(box) if box else set()) == expected


def test_an_envelope_larger_than_the_halo_is_refused():
    grid = BlockGrid(BoundingBox((0, 0, 0), (8, 8, 8)), (4, 4, 4), (1, 2, 2))
    with pytest.raises(ValueError, match='envelope is .* the halo'):
        Overlap(grid, 0, (2, 0, 0))


@given(grids(), st.integers(0, 2), st.sampled_from([-1, 1]), st.integers(0, 4))
def test_borders_are_the_voxels_of_a_core_next_to_a_face(grid, axis, side, depth):
    offset = tuple(side * (a == axis) for a in range(3))
    border = Border(grid, offset, (depth, depth, depth))
    for block in grid:
        neighbour = grid.neighbour(block, offset)
        if neighbour is None:
            assert border(block) is None
            continue
        low, high = block.core.start[axis], block.core.end[axis]
        near = {
            v
            for v in voxels(block.core)
            if (v[axis] < low + depth if side < 0 else v[axis] >= high - depth)
        }
        box = border(block)
        assert (voxels(box) if box else set()) == near


def test_regions_of_a_block():
    grid = BlockGrid(BoundingBox((2, 0, 0), (5, 4, 4)), (2, 2, 2), (1, 1, 1))
    block = grid[1, 0, 1]
    assert ReadBox()(block) == block.read
    assert CoreBox()(block) == block.core
    below = BoundingBox((5, 0, 0), (8, 8, 7))
    assert CoreBox((2, 2, 2), below)(block) == BoundingBox((8, 0, 4), (4, 4, 3))
    assert CoreBox((2, 2, 2), below)(grid[0, 0, 0]) == BoundingBox((5, 0, 0), (3, 4, 4))
    assert CoreBox(margin=(1, 0, 2))(block) == block.core.pad((1, 0, 2), (1, 0, 2))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'block_shape': (0, 1, 1)}, 'grid.block_shape is'),
        ({'halo': (0, -1, 0)}, 'grid.halo is'),
        ({'bounds': BoundingBox((0, 0, 0), (0, 4, 4))}, 'the volume is empty'),
    ],
)
def test_impossible_grids_are_refused(values, message):
    good = {'bounds': BoundingBox((0, 0, 0), (4, 4, 4)), 'block_shape': (2, 2, 2)}
    with pytest.raises(ValueError, match=message):
        BlockGrid(**{**good, **values})


def test_a_block_outside_of_the_grid_is_an_error():
    grid = BlockGrid(BoundingBox((0, 0, 0), (4, 4, 4)), (2, 2, 2))
    for index in ((2, 0, 0), (0, -1, 0)):
        with pytest.raises(IndexError, match='outside of the grid'):
            grid[index]
