"""Which nodes of a mesh, of flow or of a coarser level a block reads and writes."""

from __future__ import annotations

import dataclasses

from h01_beam.alignment.elastic.mesh_blocks import HALVING, MeshGrid
from h01_beam.geometry import Block, BoundingBox


@dataclasses.dataclass(frozen=True)
class ReadNodes:
    """All that a block of a mesh needs, its sections and nodes around included."""

    grid: MeshGrid

    def __call__(self, block: Block) -> BoundingBox:
        z, y, x = self.grid.block(block).read
        return BoundingBox.from_bounds((z[0], y[0], x[0]), (z[1], y[1], x[1]))


@dataclasses.dataclass(frozen=True)
class OwnNodes:
    """What a block of a mesh writes: its core, where that lies within the mesh."""

    grid: MeshGrid

    def __call__(self, block: Block) -> BoundingBox:
        z, y, x = self.grid.block(block).own
        return BoundingBox.from_bounds((z[0], y[0], x[0]), (z[1], y[1], x[1]))


@dataclasses.dataclass(frozen=True)
class EarlierNodes:
    """Of a causal mesh: what the blocks before, of the same column, have found; None at first."""

    grid: MeshGrid

    def __call__(self, block: Block) -> BoundingBox | None:
        mine = self.grid.block(block)
        (begin, _), (end, _) = mine.read[0], mine.own[0]
        y, x = mine.own[1:]
        if begin == end:
            return None
        return BoundingBox.from_bounds((begin, y[0], x[0]), (end, y[1], x[1]))


@dataclasses.dataclass(frozen=True)
class CoarserNodes:
    """The nodes of the next coarser level between and beside which those of a block lie."""

    grid: MeshGrid
    bounds: BoundingBox

    def __call__(self, block: Block) -> BoundingBox:
        box = ReadNodes(self.grid)(block).scale_down((1, HALVING, HALVING))
        # Beyond the last node vectors go on as between the last two.
        found = box.pad((0, 2, 2), (0, 2, 2)).intersection(self.bounds)
        assert found is not None
        return found


@dataclasses.dataclass(frozen=True)
class FinerNodes:
    """The nodes of the next finer level that those of a block stand for.

    Attributes:
      bounds: of the finer level.
      beyond: nodes of it after the last, for edges that lead to the next block.
    """

    bounds: BoundingBox
    beyond: int = 0

    def __call__(self, block: Block) -> BoundingBox:
        box = block.core.scale_up((1, HALVING, HALVING))
        found = box.pad((0, 0, 0), (0, self.beyond, self.beyond)).intersection(self.bounds)
        assert found is not None
        return found


@dataclasses.dataclass(frozen=True)
class AroundNodes:
    """The nodes of a block and those around, in its section and in those before.

    Attributes:
      bounds: of the mesh.
      halo: nodes around.
      back: sections before.
    """

    bounds: BoundingBox
    halo: int
    back: int = 0

    def __call__(self, block: Block) -> BoundingBox:
        box = block.core.pad((self.back, self.halo, self.halo), (0, self.halo, self.halo))
        found = box.intersection(self.bounds)
        assert found is not None
        return found
