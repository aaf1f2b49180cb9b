"""Slots: a volume in which every block keeps all that it saw, its halo included.

The overlap of two blocks is seen twice. A volume in the coordinates of the image has room for one
opinion of a voxel; here each block has a slot of its own, and the slots lie side by side:

    image   |cccccccc|hh|                   slots   |..cccccccchh|hhcccccccc..|
                  |hh|cccccccc|                       block 0      block 1

Every slot begins with room for a halo, at the edge of the image too, and is a whole number of
chunks, so that blocks never share one. Its index is the index of its block.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Block, BlockGrid, BoundingBox, Region, Triple


@dataclasses.dataclass(frozen=True)
class Slots:
    """Where the read boxes of a grid's blocks lie in the volume of slots.

    Attributes:
      grid: the blocks.
      chunk: zyx, of the volume of slots.
    """

    grid: BlockGrid
    chunk: Triple

    @property
    def as_grid(self) -> BlockGrid:
        """The slots themselves, as blocks of the volume that holds them."""
        z, y, x = (
            -(-(core + 2 * halo) // chunk) * chunk
            for core, halo, chunk in zip(
                self.grid.block_shape, self.grid.halo, self.chunk, strict=True
            )
        )
        nz, ny, nx = self.grid.shape
        return BlockGrid(BoundingBox((0, 0, 0), (nz * z, ny * y, nx * x)), (z, y, x))

    def slot(self, block: Block) -> BoundingBox:
        """All of a block's slot."""
        return self.as_grid[block.index].core

    def locate(self, block: Block, box: BoundingBox) -> BoundingBox:
        """Where a part of the block's read box lies in the volume of slots."""
        z, y, x = (
            slot - core + halo
            for slot, core, halo in zip(
                self.slot(block).start, block.core.start, self.grid.halo, strict=True
            )
        )
        return box.translate((z, y, x))

    def pad(self, array: npt.NDArray[np.generic], block: Block) -> npt.NDArray[np.generic]:
        """Puts an array over the block's read box (zyx) into its slot, with 0 around it."""
        slot = self.slot(block)
        z, y, x = (-s for s in slot.start)
        padded = np.zeros(slot.shape, array.dtype)
        padded[self.locate(block, block.read).translate((z, y, x)).slices] = array
        return padded


@dataclasses.dataclass(frozen=True)
class SlotBox:
    """The block's own slot, all of it: what a block writes."""

    slots: Slots

    def __call__(self, block: Block) -> BoundingBox | None:
        return self.slots.slot(block)


@dataclasses.dataclass(frozen=True)
class SeenBy:
    """A part of the block as another block saw it: a box in that one's slot.

    None where there is no such block, or it sees none of that part.

    Attributes:
      slots: where the other one's view is.
      part: region of the image; what the other one does not read of it is left out.
      offset: index of the other block less that of this one, zyx; 0, 0, 0 is itself.
    """

    slots: Slots
    part: Region
    offset: Triple = (0, 0, 0)

    def __call__(self, block: Block) -> BoundingBox | None:
        witness = self.slots.grid.neighbour(block, self.offset)
        box = self.part(block)
        seen = box.intersection(witness.read) if witness and box else None
        return self.slots.locate(witness, seen) if witness and seen else None
