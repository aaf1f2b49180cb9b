"""What the stages of the mesh do with one block: vectors and flow in, vectors and rows out.

Volumes hold (channels, sections, y, x) float32: of flow y, x (pixels of the montage, NaN where not
known) and weight; of the mesh y and x; of sheets what holds a node to the next in y and in x.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.elastic.mesh import Link, MeshConfig, Reals, Sheets, measure_misfit
from h01_beam.alignment.elastic.mesh_blocks import (
    HALVING,
    MeshBlock,
    MeshGrid,
    links_of_block,
    relax_block,
)
from h01_beam.alignment.elastic.mesh_levels import coarsen_link, coarsen_sheets, refine_vectors
from h01_beam.alignment.elastic.regions import AroundNodes, CoarserNodes
from h01_beam.geometry import Block, Triple
from h01_beam.plan import BlockResult
from h01_beam.registration.flow import estimate_flow
from h01_beam.tables import Schema

Real = npt.NDArray[np.float32]

# How well the flow between two sections is known and how far the mesh is from it, by blocks: nodes,
# those whose flow is known, the sum of their weights; nodes that the mesh compares with flow and
# the sum of the squares of what they differ by, in full-size pixels.
LINKS = Schema(
    {
        'first': 'int64',
        'second': 'int64',
        'nodes': 'int64',
        'known': 'int64',
        'weight': 'float64',
        'compared': 'int64',
        'squares': 'float64',
    }
)


@dataclasses.dataclass(frozen=True)
class EstimateFlow:
    """Flow at a block of nodes from one section to another.

    Attributes:
      config: of alignment.
    """

    config: AlignConfig

    def working_bytes(self, read_shape: Triple) -> int:
        side = [n * self.config.flow.stride + 2 * self.config.flow.reach for n in read_shape[1:]]
        return 60 * side[0] * side[1]

    def __call__(
        self,
        fixed: npt.NDArray[np.uint8] | None,
        moving: npt.NDArray[np.uint8] | None,
        block: Block,
    ) -> BlockResult:
        flow_config = self.config.flow
        unknown = np.full((3, *block.core.shape), np.nan, np.float32)
        unknown[2] = 0
        if fixed is None or moving is None or not fixed.any() or not moving.any():
            return BlockResult(arrays={'flow': unknown})
        stride = flow_config.stride
        start = [s - max(0, s - flow_halo(self.config) // stride) for s in block.core.start[1:]]
        y, x = (slice(s, s + n) for s, n in zip(start, block.core.shape[1:], strict=True))
        flow = estimate_flow(
            fixed[0], moving[0], fixed[0] > 0, moving[0] > 0, flow_config,
            (slice(y.start * stride, y.stop * stride), slice(x.start * stride, x.stop * stride)),
        )  # fmt: skip
        weight = np.where(flow.known, np.clip(flow.peak, 0, 1) ** 2, 0)
        found = np.stack([*flow.map.vectors, weight])[:, y, x]
        h, w = found.shape[1:]
        unknown[:, 0, :h, :w] = found
        tried = float((flow.peak[y, x] > 0).sum())
        known = float(flow.known[y, x].sum())
        return BlockResult(arrays={'flow': unknown}, metrics={'nodes': tried, 'nodes_known': known})


def flow_halo(config: AlignConfig) -> int:
    """Pixels that a block of flow reads around: its reach, in steps that keep the nodes."""
    unit = config.flow.unit
    return -(-config.flow.reach // unit) * unit


def back_of(name: str) -> int:
    """Sections between those of a volume `flow_K`."""
    return int(name.split('_')[1])


def split_links(flows: dict[str, Real]) -> list[Link]:
    """Flow from each section to those before, as links; sections count from the first given."""
    links = []
    for name, flow in flows.items():
        back = back_of(name)
        for z in range(back, flow.shape[1]):
            if np.isfinite(flow[0, z]).any():
                links.append(Link(z, z - back, flow[:2, z], flow[2, z]))
    return links


@dataclasses.dataclass(frozen=True)
class CoarsenFlow:
    """Flow of a level with half the nodes along each side."""

    def working_bytes(self, read_shape: Triple) -> int:
        return 400 * HALVING**2 * math.prod(read_shape)

    def __call__(self, block: Block, **flows: Real) -> BlockResult:
        coarse = {}
        for name, flow in flows.items():
            link = coarsen_link(Link(0, 0, flow[:2, 0], flow[2, 0]), HALVING)
            coarse[name] = np.stack([*link.vectors, link.weight])[:, None]
        return BlockResult(arrays=coarse)


@dataclasses.dataclass(frozen=True)
class CoarsenSheets:
    """Sheets of a level with half the nodes along each side."""

    def working_bytes(self, read_shape: Triple) -> int:
        return 100 * HALVING**2 * math.prod(read_shape)

    def __call__(self, sheets: Real, block: Block) -> BlockResult:
        coarse = coarsen_sheets(as_sheets(sheets), HALVING)
        _, h, w = block.core.shape
        result = np.ones((2, 1, h, w), np.float32)
        for channel, along in enumerate((coarse.along_y, coarse.along_x)):
            part = along[:, :h, :w]
            result[channel, :, : part.shape[1], : part.shape[2]] = part
        return BlockResult(arrays={'sheets': result})


def as_sheets(array: Real) -> Sheets:
    """(2, sections, h, w): what holds a node to the next in y, and in x."""
    return Sheets(array[0, :, :-1], array[1, :, :, :-1])


@dataclasses.dataclass(frozen=True)
class RelaxMesh:
    """A block of a level of the mesh, relaxed once.

    Attributes:
      grid: of the level.
      config: of the finest mesh.
      stride: pixels of the montage between the level's nodes.
      pixel_nm: of the montage.
      links: from each section.
      coarser: where the vectors that it begins with lie in a coarser level; None: they are those
        of the level itself.
    """

    grid: MeshGrid
    config: MeshConfig
    stride: float
    pixel_nm: float
    links: int
    coarser: CoarserNodes | None = None

    def working_bytes(self, read_shape: Triple) -> int:
        return self.grid.working_bytes(self.links)

    def __call__(
        self,
        block: Block,
        before: Real | None = None,
        earlier: Real | None = None,
        sheets: Real | None = None,
        **flows: Real,
    ) -> BlockResult:
        mine = self.grid.block(block)
        start = self._start(mine, block, before, earlier)
        # Blocks count from the first section and node that they read.
        local = MeshBlock(*(_moved(r, mine.read) for r in (mine.own, mine.free, mine.read)))
        config = self.config.coarser(self.grid.factor)
        moved = relax_block(
            local, links_of_block(split_links(flows), local), start, self.stride, config,
            pixel_nm=self.pixel_nm, sheets=None if sheets is None else as_sheets(sheets),
            settled=before is not None and self.coarser is None,
        )[mine.own_in_read]  # fmt: skip
        change = moved - start[mine.own_in_read]
        return BlockResult(
            arrays={'mesh': np.ascontiguousarray(moved.transpose(1, 0, 2, 3), np.float32)},
            metrics={'peak_moved_px': float(np.sqrt((change**2).sum(axis=1)).max())},
        )

    def _start(
        self, mine: MeshBlock, block: Block, before: Real | None, earlier: Real | None
    ) -> Reals:
        depth, h, w = (b - a for a, b in mine.read)
        if before is None:
            start = np.zeros((depth, 2, h, w))
        else:
            start = before.transpose(1, 0, 2, 3).astype(np.float64)
        if self.coarser is not None:
            coarse = self.coarser(block).start[1:]
            first = (mine.read[1][0], mine.read[2][0])
            start = refine_vectors(start, HALVING, (h, w), first, (coarse[0], coarse[1]))
        if earlier is not None:
            _, _, y, x = mine.own_in_read
            start[: earlier.shape[1], :, y, x] = earlier.transpose(1, 0, 2, 3)
        return start


def _moved(
    ranges: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    read: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    z, y, x = ((a - r[0], b - r[0]) for (a, b), r in zip(ranges, read, strict=True))
    return z, y, x


@dataclasses.dataclass(frozen=True)
class MeasureLinks:
    """How far the mesh is from the flow of a section to those before it.

    Attributes:
      region: of the nodes that it reads.
      stride: pixels of the montage between nodes.
      downsample: of the montage.
    """

    region: AroundNodes
    stride: float
    downsample: int

    def working_bytes(self, read_shape: Triple) -> int:
        y, x = (n + 2 * self.region.halo for n in read_shape[1:])
        return 200 * y * x * (self.region.back + 1)

    def __call__(self, mesh: Real, block: Block, **flows: Real) -> BlockResult:
        around = self.region(block)
        own = tuple(
            slice(s - a, e - a)
            for s, e, a in zip(
                block.core.start[1:], block.core.end[1:], around.start[1:], strict=True
            )
        )
        last, vectors = mesh.shape[1] - 1, mesh.transpose(1, 0, 2, 3).astype(np.float64)
        rows = []
        for name, flow in flows.items():
            back, known = back_of(name), np.isfinite(flow[0, 0])
            if back > last or not known[own].any():
                continue
            link = Link(last, last - back, flow[:2, 0], flow[2, 0])
            misfit = measure_misfit(vectors, [link], self.stride)[0][own]
            z, compared = block.core.start[0], np.isfinite(misfit)
            squares = float((misfit[compared] ** 2).sum()) * self.downsample**2
            rows.append((
                z, z - back, known[own].size, int(known[own].sum()),
                float(flow[2, 0][own][known[own]].sum()), int(compared.sum()), squares,
            ))  # fmt: skip
        columns = [np.array(c) for c in zip(*rows, strict=True)] or [np.empty(0)] * 7
        return BlockResult(
            rows={'links': dict(zip(LINKS.columns, columns, strict=True))},
            metrics={'parts_of_links': float(len(rows))},
        )
