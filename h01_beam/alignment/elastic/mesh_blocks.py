r"""The mesh of a large stack, in blocks that relax side by side.

A level with few nodes comes first, which carries what is far apart together; from what is found
there the next finer level begins, up to all nodes. Each level is cut into blocks, each relaxed
within what surrounds it, held where it was; sweep after sweep (Schwarz's method), the blocks of
every other sweep moved by half their size: what was a border then lies amid a block.

                  y, x ->
        z   . . . . . . . . . . .       read: own + overlap + reach sections, own + halo nodes;
        |   . +---------------+ .             its outermost nodes and sections are held
        v   . |  +---------+  | .       free: own + overlap sections, read nodes without the rim
            . |  |   own   |  | .       own:  a partition of the stack; all that is kept of a block
            . |  +---------+  | .
            . +---------------+ .       sweep 0  |-------|-------|-------|
            . . . . . . . . . . .       sweep 1  |---|-------|-------|---|

    plan_levels -> MeshGrid.blocks -> links_of_block -> relax_block         for each sweep

A block's result depends on its flow, on what it begins with and on nothing else. In memory it has
(sections + 2 overlap + 2 reach) x (tile + 2 halo)^2 nodes at most, at about 0.4 kB each with two
links for each section (`MeshGrid.working_bytes`): nothing grows with the stack. Levels are added
until a section has few nodes, so that many sections fit a block of the coarsest one. The number of
sweeps is fixed beforehand. It may be small because each level leaves to the next only what a coarse
mesh cannot show: that is felt (bending / anchor)^(1/4) nodes away, 3 by default, and a few
sections.

In a causal mesh a section is relaxed between nothing but those before it, which are held: sections
that are added move none of the earlier ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from h01_beam.alignment.elastic.mesh import Link, MeshConfig, Reals, Sheets, relax
from h01_beam.alignment.elastic.mesh_levels import MeshLevel, coarsen_mesh, refine_vectors
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Triple

Range = tuple[int, int]
Ranges = tuple[Range, Range, Range]

# Nodes of a level to one of the next coarser, along each side.
HALVING = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """How a mesh is cut.

    Attributes:
      sections: of a block.
      overlap: sections before and after that are relaxed along.
      tile: nodes along each side of a block; even.
      halo: nodes around. Vectors must be shorter than this.
      coarsest: nodes along the longer side of a section at the coarsest level, at most.
      coarsest_sections: of a block of that level.
      sweeps: times that all blocks of a level are relaxed, where there are several.
    """

    sections: int = 32
    overlap: int = 8
    tile: int = 128
    halo: int = 12
    coarsest: int = 64
    coarsest_sections: int = 128
    sweeps: int = 3

    def __post_init__(self) -> None:
        """Checks the fields."""
        least = {
            'sections': 2, 'overlap': 0, 'tile': 2, 'halo': 2, 'coarsest': 2,
            'coarsest_sections': 2, 'sweeps': 1,
        }  # fmt: skip
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(
                    f'mesh_blocks.{name} is {getattr(self, name)}: must be {value} or more'
                )
        for name in ('sections', 'coarsest_sections', 'tile'):
            if getattr(self, name) % 2:
                raise ValueError(
                    f'mesh_blocks.{name} is {getattr(self, name)}: must be even, as blocks of '
                    'every other sweep are moved by half'
                )
        if self.coarsest > self.tile:
            raise ValueError(
                f'mesh_blocks.coarsest is {self.coarsest}: must be at most tile, {self.tile}, so '
                'that one block holds a whole section'
            )
        for name, size in (('overlap', self.sections), ('halo', self.tile)):
            if 2 * getattr(self, name) > size:
                raise ValueError(
                    f'mesh_blocks.{name} is {getattr(self, name)}: must be at most half a '
                    f'block of {size}; reduce it or take larger blocks'
                )


@dataclasses.dataclass(frozen=True)
class MeshBlock:
    """A part of a mesh; ranges (begin, end) of sections, of nodes in y and of nodes in x.

    Attributes:
      own: of no other block of the sweep.
      free: what moves.
      read: what it needs; held where it is not free.
    """

    own: Ranges
    free: Ranges
    read: Ranges

    @property
    def slices(self) -> tuple[slice, slice, slice, slice]:
        """Of (sections, 2, h, w) vectors: what is read."""
        z, y, x = (slice(*r) for r in self.read)
        return z, slice(None), y, x

    @property
    def own_in_read(self) -> tuple[slice, slice, slice, slice]:
        """Of the vectors that are read: what is the block's own."""
        z, y, x = (slice(a - r[0], b - r[0]) for (a, b), r in zip(self.own, self.read, strict=True))
        return z, slice(None), y, x


@dataclasses.dataclass(frozen=True)
class MeshGrid:
    """How one level of a mesh is cut; no cut depends on the number of sections.

    Attributes:
      shape: sections, h and w of the level.
      factor: nodes of the finest mesh along each side of one of the level's.
      cut: sections, nodes in y and in x of a block.
      overlap: sections before and after.
      halo: nodes around.
      reach: sections that links lead away, at most.
      most_sweeps: where one block does not hold the whole level.
      causal: whether sections hold to those before only.
    """

    shape: Triple
    factor: int
    cut: Triple
    overlap: int
    halo: int
    reach: int
    most_sweeps: int
    causal: bool = False

    @property
    def sweeps(self) -> int:
        """Times that all blocks are relaxed."""
        axes = (1, 2) if self.causal else (0, 1, 2)
        return self.most_sweeps if any(self.shape[a] > self.cut[a] for a in axes) else 1

    def grid(self, sweep: int = 0) -> BlockGrid:
        """The blocks of a sweep; those of odd sweeps may begin before the mesh."""
        z, y, x = (
            -(cut // 2) if sweep % 2 and size > cut and not (self.causal and axis == 0) else 0
            for axis, (size, cut) in enumerate(zip(self.shape, self.cut, strict=True))
        )
        return BlockGrid(BoundingBox.from_bounds((z, y, x), self.shape), self.cut)

    def block(self, block: Block) -> MeshBlock:
        """What a block of a grid reads and moves."""
        own = tuple(
            (max(0, s), min(n, e))
            for s, e, n in zip(block.core.start, block.core.end, self.shape, strict=True)
        )
        z, depth = own[0], self.shape[0]
        if self.causal:
            free_z, read_z = z, (max(0, z[0] - self.reach), z[1])
        else:
            free_z = (max(0, z[0] - self.overlap), min(depth, z[1] + self.overlap))
            read_z = (max(0, free_z[0] - self.reach), min(depth, free_z[1] + self.reach))
        read_y, free_y = _widened(own[1], self.shape[1], self.halo)
        read_x, free_x = _widened(own[2], self.shape[2], self.halo)
        return MeshBlock((z, own[1], own[2]), (free_z, free_y, free_x), (read_z, read_y, read_x))

    def blocks(self, sweep: int = 0) -> Iterator[MeshBlock]:
        """All blocks of a sweep; their own parts hold each node once."""
        return (self.block(block) for block in self.grid(sweep))

    def working_bytes(self, links: int) -> int:
        """Memory of a block: vectors, pulls, weights and search directions, in float64.

        Args:
          links: from each section.
        """
        depth = self.reach + 1 if self.causal else self.cut[0] + 2 * (self.overlap + self.reach)
        y, x = (
            min(n, c + 2 * self.halo) for n, c in zip(self.shape[1:], self.cut[1:], strict=True)
        )
        return min(depth, self.shape[0]) * y * x * (200 + 100 * links)


def plan_levels(
    shape: Triple, config: BlocksConfig, *, reach: int, causal: bool = False
) -> list[MeshGrid]:
    """The levels of a mesh, coarsest first; each has half the nodes of the next along a side.

    Args:
      shape: sections, h and w of the finest mesh.
      config: sizes.
      reach: sections that links lead away, at most.
      causal: whether sections hold to those before only.
    """
    sections, h, w = shape
    factor = 1
    while max(-(-h // factor), -(-w // factor)) > config.coarsest:
        factor *= HALVING
    # Only the coarsest level tells far sections of each other.
    depth, overlap = config.coarsest_sections, config.coarsest_sections // 4
    levels = []
    while factor:
        levels.append(
            MeshGrid(
                (sections, -(-h // factor), -(-w // factor)), factor,
                (1 if causal else depth, config.tile, config.tile),
                overlap, config.halo, reach, config.sweeps, causal,
            )
        )  # fmt: skip
        factor, depth, overlap = factor // HALVING, config.sections, config.overlap
    return levels


def _widened(own: Range, size: int, halo: int) -> tuple[Range, Range]:
    read = (max(0, own[0] - halo), min(size, own[1] + halo))
    return read, (read[0] + (read[0] > 0), read[1] - (read[1] < size))


def reach_of(links: Iterable[Link]) -> int:
    """Sections that links lead away, at most."""
    return max((abs(link.first - link.second) for link in links), default=0)


def links_of_block(links: Iterable[Link], block: MeshBlock) -> list[Link]:
    """Links that pull a free section of the block, cut to it; sections count from its first."""
    (begin, end), y, x = block.read[0], slice(*block.read[1]), slice(*block.read[2])
    low, high = block.free[0]
    result = []
    for link in links:
        both = (link.first, link.second)
        if min(both) >= begin and max(both) < end and any(low <= z < high for z in both):
            cut = link.vectors[:, y, x], link.weight[y, x]
            result.append(Link(link.first - begin, link.second - begin, *cut))
    return result


def sheets_of_block(sheets: Sheets, block: MeshBlock) -> Sheets:
    """The block's part of what holds nodes together."""
    z, (y, y_end), (x, x_end) = slice(*block.read[0]), block.read[1], block.read[2]
    return Sheets(
        sheets.along_y[z, y : y_end - 1, x:x_end], sheets.along_x[z, y:y_end, x : x_end - 1]
    )


def relax_block(
    block: MeshBlock,
    links: Sequence[Link],
    start: Reals,
    stride: float,
    config: MeshConfig,
    *,
    pixel_nm: float,
    sheets: Sheets | None = None,
    settled: bool = False,
) -> Reals:
    """Relaxes a block within what surrounds it.

    Args:
      block: which.
      links: of `links_of_block`.
      start: (sections, 2, h, w) vectors of what the block reads.
      stride: pixels between nodes.
      config: of the mesh.
      pixel_nm: side of a pixel.
      sheets: of `sheets_of_block`; None for whole ones.
      settled: whether `start` is near: found by an earlier sweep. What a coarser level found is
        not: detail that it does not show would count as outliers.

    Returns:
      (sections, 2, h, w) vectors of what the block reads; the same as before where not free.

    Raises:
      ValueError: arrays do not fit the block, or vectors reach beyond its halo.
    """
    depth, h, w = (b - a for a, b in block.read)
    if start.shape != (depth, 2, h, w):
        raise ValueError(f'start has shape {start.shape}: the block reads {(depth, 2, h, w)}')
    _check_halo(block, start, stride)
    z, y, x = (
        (np.arange(*read) >= low) & (np.arange(*read) < high)
        for (low, high), read in zip(block.free, block.read, strict=True)
    )
    vectors, _ = relax(
        (depth, h, w), links, stride, config, pixel_nm=pixel_nm, sheets=sheets, start=start,
        frozen=~(z[:, None, None] & y[:, None] & x), settled=settled,
    )  # fmt: skip
    return vectors


def _check_halo(block: MeshBlock, start: Reals, stride: float) -> None:
    """The flow of own nodes must lie within what the block reads."""
    for axis in (1, 2):
        gaps = [abs(a - b) for a, b in zip(block.own[axis], block.read[axis], strict=True)]
        own = tuple(
            slice(a - r[0], b - r[0]) for (a, b), r in zip(block.own, block.read, strict=True)
        )
        longest = float(np.abs(start[own[0], axis - 1, own[1], own[2]]).max())
        halo = min((g for g in gaps if g), default=None)
        if halo is not None and longest > halo * stride:
            raise ValueError(
                f'vectors of {longest:.0f} pixels begin in a block with a halo of {halo} nodes, '
                f'{halo * stride:.0f} pixels: they must be shorter; place sections better at '
                'first, or take a larger mesh_blocks.halo'
            )


# ------------------------------------------------------------------ all of it


def relax_in_blocks(
    mesh: MeshLevel, config: BlocksConfig, *, pixel_nm: float, causal: bool = False
) -> tuple[Reals, list[float]]:
    """`mesh.relax` by levels and sweeps of blocks, one after the other, as the stages do it.

    Args:
      mesh: with all its nodes.
      config: sizes, levels and sweeps.
      pixel_nm: side of a pixel.
      causal: whether sections hold to those before only.

    Returns:
      vectors: (sections, 2, h, w) float64 pixels.
      changes: the farthest that a node moved in each sweep of the finest level, in pixels; the
        last one tells whether sweeps were enough.

    Raises:
      ValueError: arrays do not fit the mesh.
    """
    grids = plan_levels(mesh.shape, config, reach=reach_of(mesh.links), causal=causal)
    levels = [mesh]
    for _ in grids[1:]:
        levels.append(coarsen_mesh(levels[-1], HALVING))
    vectors: Reals | None = None
    for grid, level in zip(grids, levels[::-1], strict=True):
        if vectors is None:
            vectors = np.zeros((level.shape[0], 2, *level.shape[1:]))
        else:
            vectors = refine_vectors(vectors, HALVING, level.shape[1:])
        changes = []
        for sweep in range(grid.sweeps):
            after = relax_sweep(grid, level, vectors, sweep, pixel_nm)
            changes.append(float(np.sqrt(((after - vectors) ** 2).sum(axis=1)).max(initial=0)))
            vectors = after
    assert vectors is not None
    return vectors, changes


def relax_sweep(
    grid: MeshGrid, mesh: MeshLevel, before: Reals, sweep: int, pixel_nm: float
) -> Reals:
    """Relaxes all blocks of a sweep; (sections, 2, h, w) before and after."""
    after = before.copy()
    for block in grid.blocks(sweep):
        start = before[block.slices].copy()
        z, y, x = (slice(*r) for r in (block.read[0], *block.own[1:]))
        if grid.causal:
            # What this column of blocks has found for the sections before is what counts.
            _, _, own_y, own_x = block.own_in_read
            start[:-1, :, own_y, own_x] = after[z, :, y, x][:-1]
        moved = relax_block(
            block, links_of_block(mesh.links, block), start, mesh.stride, mesh.config,
            pixel_nm=pixel_nm, sheets=sheets_of_block(mesh.sheets, block), settled=sweep > 0,
        )  # fmt: skip
        own = slice(*block.own[0])
        after[own, :, y, x] = moved[block.own_in_read]
    return after
