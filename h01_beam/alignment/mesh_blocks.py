r"""The mesh of a large stack, in blocks that relax side by side.

The whole stack is relaxed at once with few nodes only, which carries what is far apart together.
From what is found there the next finer level begins, up to all nodes. It is cut into blocks, each
relaxed within what surrounds it, held where it was; sweep after sweep (Schwarz's method), the
blocks of every other sweep moved by half their size: what was a border then lies amid a block.

                  y, x ->
        z   . . . . . . . . . . .       read: own + overlap + reach sections, own + halo nodes;
        |   . +---------------+ .             its outermost nodes and sections are held
        v   . |  +---------+  | .       free: own + overlap sections, read nodes without the rim
            . |  |   own   |  | .       own:  a partition of the stack, a rule on coordinates
            . |  +---------+  | .
            . +---------------+ .       sweep 0  |-------|-------|-------|
            . . . . . . . . . . .       sweep 1  |---|-------|-------|---|

    plan_mesh_blocks -> links_of_block -> relax_block -> blend_blocks         for each sweep

A block's result depends on its flow, on what it begins with and on nothing else. In memory it has
(sections + 2 overlap + 2 reach) x (tile + 2 halo)^2 nodes at most, at about 0.4 kB each with two
links for each section; the coarsest mesh has 1 / factor^2 of all nodes. The number of sweeps is
fixed beforehand. It may be small because each level leaves to the next only what a coarse mesh
cannot show: that is felt sqrt(stiffness / anchor) nodes away, 3 by default, and a few sections.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from h01_beam.alignment.mesh import Bools, Link, MeshConfig, Reals, Sheets, relax
from h01_beam.alignment.mesh_levels import (
    MeshLevel,
    coarsen_mesh,
    refine_vectors,
    restrict_vectors,
)

Range = tuple[int, int]
Ranges = tuple[Range, Range, Range]

# How much more strongly than a fully trusted node of flow the rim of a block is held.
_HOLD = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """How a mesh is cut.

    Attributes:
      sections: of a block.
      overlap: sections before and after, relaxed along and blended.
      tile: nodes along each side of a block.
      halo: nodes around; those of an overlap are blended. Vectors must be shorter than this.
      factors: of the levels before the finest, coarsest first: nodes of the finest mesh along each
        side of one of the level's. Each is a multiple of the next, preferably its double.
      sweeps: times that all blocks of a level are relaxed.
    """

    sections: int = 16
    overlap: int = 4
    tile: int = 256
    halo: int = 12
    factors: tuple[int, ...] = (4, 2)
    sweeps: int = 3

    def __post_init__(self) -> None:
        """Checks the fields."""
        least = {'sections': 2, 'overlap': 0, 'tile': 2, 'halo': 2, 'sweeps': 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(
                    f'mesh_blocks.{name} is {getattr(self, name)}: must be {value} or more'
                )
        for coarse, fine in itertools.pairwise((*self.factors, 1)):
            if fine < 1 or coarse <= fine or coarse % fine:
                raise ValueError(
                    f'mesh_blocks.factors is {self.factors}: each must be a multiple of the next, '
                    'for example (4, 2)'
                )
        if not self.factors:
            raise ValueError('mesh_blocks.factors is empty: must hold at least one, such as (2,)')
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


def plan_mesh_blocks(
    shape: tuple[int, int, int],
    config: BlocksConfig,
    *,
    reach: int,
    sweep: int = 0,
    frozen_until: int = 0,
) -> list[MeshBlock]:
    """Cuts a mesh; the place of a cut depends on no size of the stack.

    Args:
      shape: sections, h and w of the mesh.
      config: sizes.
      reach: sections that links lead away, at most.
      sweep: blocks of odd sweeps are moved by half their size.
      frozen_until: section before which none moves.

    Returns:
      blocks, whose own ranges together hold each node of sections from `frozen_until` once.
    """
    sections, h, w = shape
    blocks = []
    for z in _cuts(frozen_until, sections, config.sections, sweep):
        free_z = (max(frozen_until, z[0] - config.overlap), min(sections, z[1] + config.overlap))
        read_z = (max(0, free_z[0] - reach), min(sections, free_z[1] + reach))
        for y in _cuts(0, h, config.tile, sweep):
            for x in _cuts(0, w, config.tile, sweep):
                read_y, free_y = _widened(y, h, config.halo)
                read_x, free_x = _widened(x, w, config.halo)
                blocks.append(
                    MeshBlock((z, y, x), (free_z, free_y, free_x), (read_z, read_y, read_x))
                )
    return blocks


def _cuts(begin: int, end: int, size: int, sweep: int) -> list[Range]:
    first = -(size // 2) if sweep % 2 and end > size else 0
    ranges = [(max(begin, a), min(end, a + size)) for a in range(first, end, size)]
    return [(a, b) for a, b in ranges if a < b]


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

    Returns:
      (sections, 2, h, w) vectors of what the block reads; the same as before where not free.

    Raises:
      ValueError: arrays do not fit the block, or vectors reach beyond its halo.
    """
    depth, h, w = (b - a for a, b in block.read)
    if start.shape != (depth, 2, h, w):
        raise ValueError(f'start has shape {start.shape}: the block reads {(depth, 2, h, w)}')
    inside, moves = _moving(block)
    mesh = MeshLevel((depth, h, w), links, stride, config, sheets or Sheets.whole((depth, h, w)))
    frozen = ~moves
    if not inside.all():
        _check_halo(block, start, stride)
        mesh = _held(mesh, start, ~inside, moves)
        start = np.concatenate([start, np.zeros_like(start[:1])])
        frozen = np.append(frozen, True)
    vectors, _ = relax(
        mesh.shape, mesh.links, stride, mesh.config, pixel_nm=pixel_nm, sheets=mesh.sheets,
        start=start, frozen=frozen,
    )  # fmt: skip
    return np.where(inside, vectors[:depth], start[:depth])


def _held(mesh: MeshLevel, start: Reals, rim: Bools, moves: Bools) -> MeshLevel:
    """With the rim of moving sections tied to one more section, which rests where it begins, at 0.

    The flow of these links is where the rim shall be.
    """
    depth, h, w = mesh.shape
    weight = (_HOLD * rim).astype(np.float32)
    ties = [Link(depth, int(z), start[z].astype(np.float32), weight) for z in np.flatnonzero(moves)]
    one = Sheets.whole((1, h, w))
    return MeshLevel(
        (depth + 1, h, w),
        [*mesh.links, *ties],
        mesh.stride,
        # Forces that hold the rim must not pass for those to be balanced.
        dataclasses.replace(mesh.config, tolerance=mesh.config.tolerance / _HOLD),
        Sheets(
            np.concatenate([mesh.sheets.along_y, one.along_y]),
            np.concatenate([mesh.sheets.along_x, one.along_x]),
        ),
    )


def _moving(block: MeshBlock) -> tuple[Bools, Bools]:
    """(h, w) nodes and (sections,) that are free."""
    inside = []
    for (low, high), (begin, end) in zip(block.free, block.read, strict=True):
        place = np.arange(begin, end)
        inside.append((place >= low) & (place < high))
    return inside[1][:, None] & inside[2], inside[0]


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


def blend_blocks(before: Reals, pieces: Iterable[tuple[MeshBlock, Reals]]) -> Reals:
    """Puts the blocks of a sweep together.

    Args:
      before: (sections, 2, h, w) vectors of the whole mesh, or of as much as the pieces cover if
        their ranges count from there; kept where no block is free.
      pieces: blocks, and what they read, relaxed; in any order.

    Returns:
      vectors, in overlaps means weighted by the distance from the block's border.
    """
    total, weights = np.zeros_like(before), np.zeros((len(before), 1, *before.shape[2:]))
    for block, vectors in sorted(pieces, key=lambda piece: piece[0].own):
        z, y, x = (_ramp(*ranges) for ranges in zip(block.own, block.free, block.read, strict=True))
        weight = (z[:, None, None] * y[:, None] * x)[:, None]
        total[block.slices] += weight * vectors
        weights[block.slices] += weight
    return np.where(weights > 0, total / np.maximum(weights, 1e-9), before)


def _ramp(own: Range, free: Range, read: Range) -> Reals:
    """1 within, falling to 0 over the overlap; the ramps of two neighbours add up to 1."""
    place = np.arange(*read)
    ramp = np.ones(len(place))
    for distance, overlap in (
        (place - free[0] + 1, own[0] - free[0]),
        (free[1] - place, free[1] - own[1]),
    ):
        if overlap:
            ramp = np.minimum(ramp, np.clip(distance / (2 * overlap + 1), 0, 1))
    return np.where((place >= free[0]) & (place < free[1]), ramp, 0.0)


# ------------------------------------------------------------------ all of it


def relax_in_blocks(
    mesh: MeshLevel,
    config: BlocksConfig,
    *,
    pixel_nm: float,
    start: Reals | None = None,
    frozen_until: int = 0,
) -> tuple[Reals, list[float]]:
    """`mesh.relax` by levels and sweeps of blocks, one after the other.

    Args:
      mesh: with all its nodes.
      config: sizes, levels and sweeps.
      pixel_nm: side of a pixel.
      start: (sections, 2, h, w) vectors to begin at; None for 0.
      frozen_until: sections before this one keep the vectors of `start`, to the last bit.

    Returns:
      vectors: (sections, 2, h, w) float64 pixels.
      changes: the farthest that a node moved in each sweep of the finest level, in pixels; the
        last one tells whether sweeps were enough.

    Raises:
      ValueError: arrays do not fit the mesh, or sections are frozen that have no vectors.
    """
    sections = mesh.shape[0]
    if not 0 <= frozen_until <= sections or (frozen_until and start is None):
        raise ValueError(
            f'frozen_until is {frozen_until}, in a stack of {sections} sections and with start '
            f'{"missing" if start is None else "given"}: must be 0, or a section before which '
            'start holds vectors'
        )
    coarsest = config.factors[0]
    given = None if start is None else restrict_vectors(start, coarsest)
    level = coarsen_mesh(mesh, coarsest)
    frozen = np.asarray(np.arange(sections) < frozen_until)
    vectors, _ = relax(
        level.shape, level.links, level.stride, level.config, pixel_nm=pixel_nm,
        sheets=level.sheets, start=given, frozen=frozen,
    )  # fmt: skip
    for before, factor in itertools.pairwise((*config.factors, 1)):
        level = coarsen_mesh(mesh, factor)
        vectors = refine_vectors(vectors, before // factor, level.shape[1:])
        if start is not None:
            kept = start if factor == 1 else restrict_vectors(start, factor)
            vectors[:frozen_until] = kept[:frozen_until]
        changes = []
        for sweep in range(config.sweeps):
            after = _sweep(level, config, vectors, sweep, frozen_until, pixel_nm)
            changes.append(float(np.sqrt(((after - vectors) ** 2).sum(axis=1)).max(initial=0)))
            vectors = after
    return vectors, changes


def _sweep(
    mesh: MeshLevel,
    config: BlocksConfig,
    vectors: Reals,
    sweep: int,
    frozen_until: int,
    pixel_nm: float,
) -> Reals:
    plan = plan_mesh_blocks(
        mesh.shape, config, reach=reach_of(mesh.links), sweep=sweep, frozen_until=frozen_until
    )
    pieces = []
    for block in plan:
        links, sheets = links_of_block(mesh.links, block), sheets_of_block(mesh.sheets, block)
        start = vectors[block.slices]
        moved = relax_block(
            block, links, start, mesh.stride, mesh.config, pixel_nm=pixel_nm, sheets=sheets
        )
        pieces.append((block, moved))
    return blend_blocks(vectors, pieces)
