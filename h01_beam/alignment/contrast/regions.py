"""Which part of a section's tissue blocks of the aligned volume read."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.alignment.frames import PixelsOfRough, Slices, affine_of
from h01_beam.geometry import Block, BoundingBox
from h01_beam.registration.maps import invert_affine
from h01_beam.tables import Columns

Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class TissueOfSlice:
    """What of a section's thumbnail a block of the aligned volume shows; read by its affine.

    The mesh is left out: what it moves across the edge of tissue is little beside all of a section.

    Attributes:
      slices: which section a block shows.
      montage: bounds of the montages of all sections.
      factor: pixels of the montage to one of the thumbnail.
      downsample: full-size pixels to one of the montage.
      scale: full-size pixels to one of the block's grid.
    """

    slices: Slices
    montage: BoundingBox
    factor: int
    downsample: int
    scale: int

    def __call__(self, block: Block, affines: Columns) -> BoundingBox | None:
        rough = self._rough(block)
        return self._shown(rough, affines) if rough else None

    def largest(self, block: Block) -> BoundingBox | None:
        """See `RowRegion`."""
        rough = self._rough(block)
        return self._shown.largest(rough) if rough else None

    def spread(self, tissue: npt.NDArray[np.uint8], affines: Columns, block: Block) -> Bools:
        """Where tissue is in a block's core, (h, w), from what it reads of the thumbnail."""
        rough, part = self._rough(block), self(block, affines)
        assert rough is not None and part is not None
        back = np.eye(3)
        back[:2] = invert_affine(affine_of(affines, rough.core.start[0]))
        to_rough = np.linalg.inv(_enlarge(self.downsample)) @ _enlarge(self.scale)
        place = np.linalg.inv(_enlarge(self.factor)) @ back @ to_rough @ _move(block.core.start)
        # (2, 3) for (x, y, 1), in pixels of the part that was read.
        matrix = (np.linalg.inv(_move(part.start)) @ place)[[[1], [0]], [1, 0, 2]]
        height, width = block.core.shape[1:]
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(tissue[0], matrix, (width, height), flags=flags)
        return np.asarray(found > 0)

    @property
    def _shown(self) -> PixelsOfRough:
        return PixelsOfRough(self.montage, self.factor)

    def _rough(self, block: Block) -> Block | None:
        """The block in the frame of the roughly aligned section that it shows."""
        position = self.slices.positions[block.index[0]]
        if position < 0:
            return None
        y, x = (s * self.scale // self.downsample for s in block.core.start[1:])
        bottom, right = (-(-e * self.scale // self.downsample) for e in block.core.end[1:])
        box = BoundingBox.from_bounds((position, y, x), (position + 1, bottom, right))
        return Block((position, 0, 0), box, box)


def _enlarge(factor: int) -> Reals:
    """(3, 3) from coarse pixels to those that are `factor` times finer, for (y, x, 1)."""
    half = (factor - 1) / 2
    return np.array([[factor, 0, half], [0, factor, half], [0, 0, 1]], np.float64)


def _move(start: tuple[int, ...]) -> Reals:
    """(3, 3) from pixels of a part to those of the whole; start is zyx."""
    return np.array([[1, 0, start[1]], [0, 1, start[2]], [0, 0, 1]], np.float64)
