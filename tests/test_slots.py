"""Slots hold every read box once, and parts of blocks are found in their own and others' slots."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from h01_beam.geometry import BlockGrid, BoundingBox, CoreBox, ReadBox
from h01_beam.slots import SeenBy, SlotBox, Slots
from tests.arrays import position_code


@st.composite
def all_slots(draw: st.DrawFn) -> Slots:
    block_shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    halo = draw(st.tuples(*[st.integers(0, n) for n in block_shape]))
    # At most 4 blocks an axis: a test visits each of them in Python.
    shape = draw(st.tuples(*[st.integers(1, min(12, 4 * n)) for n in block_shape]))
    bounds = BoundingBox(draw(st.tuples(*[st.integers(-9, 9)] * 3)), shape)
    chunk = draw(st.tuples(*[st.integers(1, 5)] * 3))
    return Slots(BlockGrid(bounds, block_shape, halo), chunk)


@given(all_slots())
def test_slots_partition_their_volume_in_whole_chunks(slots: Slots) -> None:
    grid = slots.as_grid
    assert grid.shape == slots.grid.shape
    for axis in range(3):
        assert grid.block_shape[axis] % slots.chunk[axis] == 0
    boxes = [SlotBox(slots)(block) for block in slots.grid]
    assert boxes == [block.core for block in grid]
    assert all(
        box.contains(slots.locate(block, block.read))
        for box, block in zip(boxes, slots.grid, strict=True)
    )


@given(all_slots(), st.tuples(*[st.integers(-1, 1)] * 3))
def test_what_another_block_saw_is_found_in_its_slot(slots: Slots, offset) -> None:
    """The volume of slots holds the position of every voxel, and who saw it."""
    everything = position_code(slots.grid.bounds, 'int64')
    origin = tuple(-s for s in slots.grid.bounds.start)
    volume = np.full(slots.as_grid.bounds.shape, -1, np.int64)
    blocks = len(slots.grid)
    for block in slots.grid:
        seen = everything[block.read.translate(origin).slices]
        code = seen * blocks + slots.grid.linear(block.index)
        volume[slots.slot(block).slices] = slots.pad(code, block)
    for part in (CoreBox(), ReadBox()):
        for block in slots.grid:
            other = slots.grid.neighbour(block, offset)
            where = SeenBy(slots, part, offset)(block)
            shared = other and part(block).intersection(other.read)
            if shared is None:
                assert where is None
                continue
            expected = everything[shared.translate(origin).slices]
            found, witness = np.divmod(volume[where.slices], blocks)
            np.testing.assert_array_equal(found, expected)
            assert (witness == slots.grid.linear(other.index)).all()
