"""Integer boxes, blocks and the grid that cuts a volume into them.

Everything here is zyx, in voxels, half-open, and immutable.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import TypeAlias

Triple: TypeAlias = tuple[int, int, int]


def as_triple(name: str, value: object) -> Triple:
    """Returns `value` as three ints (zyx), or raises a ValueError that names the field."""
    try:
        z, y, x = (operator.index(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(
            f'{name} is {value!r}: must be three integers in z, y, x order, '
            'for example [64, 64, 64]'
        ) from None
    return z, y, x


@dataclasses.dataclass(frozen=True, order=True)
class BoundingBox:
    """The voxels `start <= v < start + shape`, zyx.

    Attributes:
      start: first voxel; may be negative.
      shape: extent per axis; none is negative.
    """

    start: Triple
    shape: Triple

    def __post_init__(self) -> None:
        object.__setattr__(self, 'start', as_triple('BoundingBox.start', self.start))
        object.__setattr__(self, 'shape', as_triple('BoundingBox.shape', self.shape))
        if min(self.shape) < 0:
            raise ValueError(f'BoundingBox.shape is {self.shape}: no extent may be negative')

    @classmethod
    def from_bounds(cls, start: Triple, end: Triple) -> BoundingBox:
        """The box from `start` to `end` (exclusive)."""
        return cls(start, _map2(lambda s, e: e - s, start, end))

    @property
    def end(self) -> Triple:
        return _map2(lambda s, n: s + n, self.start, self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices into an array whose voxel (0, 0, 0) is the origin."""
        z, y, x = (slice(s, e) for s, e in zip(self.start, self.end, strict=True))
        return z, y, x

    def contains(self, other: BoundingBox) -> bool:
        """Whether every voxel of `other` is in this box."""
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.end, other.end, strict=True)
        )

    def intersection(self, other: BoundingBox) -> BoundingBox | None:
        """The shared box, or None where there is no shared voxel."""
        start = _map2(max, self.start, other.start)
        shape = _map2(lambda s, e: e - s, start, _map2(min, self.end, other.end))
        return BoundingBox(start, shape) if min(shape) > 0 else None

    def translate(self, offset: Triple) -> BoundingBox:
        return BoundingBox(_map2(lambda s, o: s + o, self.start, offset), self.shape)

    def pad(self, low: Triple, high: Triple) -> BoundingBox:
        """Grows the box by `low` voxels before and `high` after it."""
        start = _map2(lambda s, n: s - n, self.start, low)
        return BoundingBox.from_bounds(start, _map2(lambda e, n: e + n, self.end, high))

    def scale_up(self, factor: Triple) -> BoundingBox:
        """The same box in a grid whose voxels are `factor` times smaller."""
        return BoundingBox(
            _map2(lambda s, f: s * f, self.start, factor),
            _map2(lambda n, f: n * f, self.shape, factor),
        )

    def scale_down(self, factor: Triple) -> BoundingBox:
        """The smallest box that covers this one in a grid of `factor` times larger voxels."""
        start = _map2(lambda s, f: s // f, self.start, factor)
        return BoundingBox.from_bounds(start, _map2(lambda e, f: -(-e // f), self.end, factor))

    def __str__(self) -> str:
        return f'[{", ".join(f"{s}:{e}" for s, e in zip(self.start, self.end, strict=True))}]'


@dataclasses.dataclass(frozen=True, order=True)
class Block:
    """One unit of work of a `BlockGrid`.

    Attributes:
      index: position in the grid, zyx; the key of the block and the seed of its ids.
      core: voxels that this block alone writes.
      read: core and halo, clipped to the bounds.
    """

    index: Triple
    core: BoundingBox
    read: BoundingBox

    @property
    def core_in_read(self) -> tuple[slice, slice, slice]:
        """Slices that crop an array over `read` to `core`."""
        return self.core.translate(_map2(lambda a, b: -a, self.read.start, self.core.start)).slices

    @property
    def name(self) -> str:
        """The index as it appears in file names: `z_y_x`."""
        return '_'.join(map(str, self.index))


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """Cuts `bounds` into blocks whose cores partition it.

        |-----------------------------|   bounds
        |cccccccc|hh|                     block 0: core, and the halo that it reads
              |hh|cccccccc|hh|            block 1
                        |hh|ccccccccccc|  (cores at the far edge shrink, reads clip)

    Attributes:
      bounds: the voxels to cover.
      block_shape: shape of a core; cores start at multiples of it from `bounds.start`.
      halo: voxels read on either side of the core.
    """

    bounds: BoundingBox
    block_shape: Triple
    halo: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'block_shape', as_triple('grid.block_shape', self.block_shape))
        object.__setattr__(self, 'halo', as_triple('grid.halo', self.halo))
        if min(self.block_shape) < 1:
            raise ValueError(f'grid.block_shape is {self.block_shape}: every extent must be >= 1')
        if min(self.halo) < 0:
            raise ValueError(f'grid.halo is {self.halo}: must not be negative')
        if self.bounds.size == 0:
            raise ValueError(
                f'the volume is empty (bounds {self.bounds}): there is nothing to process; '
                'check the volume URI and its bounding box'
            )

    @property
    def shape(self) -> Triple:
        """Number of blocks per axis."""
        return _map2(lambda n, b: -(-n // b), self.bounds.shape, self.block_shape)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Block]:
        z, y, x = map(range, self.shape)
        return (self[index] for index in itertools.product(z, y, x))

    def __getitem__(self, index: Triple) -> Block:
        if not all(0 <= i < n for i, n in zip(index, self.shape, strict=True)):
            raise IndexError(f'block index {index} is outside of the grid of {self.shape} blocks')
        offset = _map2(lambda i, b: i * b, index, self.block_shape)
        start = _map2(lambda s, o: s + o, self.bounds.start, offset)
        core = BoundingBox(start, self.block_shape).intersection(self.bounds)
        assert core is not None
        read = core.pad(self.halo, self.halo).intersection(self.bounds)
        assert read is not None
        return Block(index, core, read)

    def linear(self, index: Triple) -> int:
        """Rank of a block; z is slowest, so that new sections never renumber old blocks."""
        _, ny, nx = self.shape
        z, y, x = index
        return (z * ny + y) * nx + x

    def index(self, linear: int) -> Triple:
        """Inverse of `linear`."""
        _, ny, nx = self.shape
        return linear // (ny * nx), linear // nx % ny, linear % nx

    def block(self, linear: int) -> Block:
        """The block of a rank."""
        return self[self.index(linear)]

    def grows_to(self, other: BlockGrid) -> bool:
        """Whether another grid has these blocks, by the same numbers, and perhaps more along z."""
        same = (self.block_shape, self.halo, self.bounds.start, self.bounds.shape[1:])
        theirs = (other.block_shape, other.halo, other.bounds.start, other.bounds.shape[1:])
        return same == theirs and self.bounds.shape[0] <= other.bounds.shape[0]

    def touching(self, box: BoundingBox) -> Iterator[Block]:
        """Blocks whose core shares a voxel with `box`, in zyx order."""
        inside = box.intersection(self.bounds)
        if inside is None:
            return
        first = _map2(lambda a, b: a - b, inside.start, self.bounds.start)
        last = _map2(lambda a, b: a - b - 1, inside.end, self.bounds.start)
        z, y, x = (
            range(f // b, e // b + 1) for f, e, b in zip(first, last, self.block_shape, strict=True)
        )
        for index in itertools.product(z, y, x):
            yield self[index]

    def neighbour(self, block: Block, offset: Triple) -> Block | None:
        """The block whose index is `offset` further (zyx), or None outside of the grid."""
        index = _map2(lambda i, o: i + o, block.index, offset)
        inside = all(0 <= i < n for i, n in zip(index, self.shape, strict=True))
        return self[index] if inside else None

    @property
    def largest_read(self) -> Triple:
        """Shape of the largest read box of the grid (for memory projections)."""
        padded = _map2(lambda b, h: b + 2 * h, self.block_shape, self.halo)
        return _map2(min, padded, self.bounds.shape)


def _map2(function, first: Triple, second: Triple) -> Triple:  # type: ignore[no-untyped-def]
    z, y, x = (function(a, b) for a, b in zip(first, second, strict=True))
    return z, y, x


def _map3(function, first: Triple, second: Triple, third: Triple) -> Triple:  # type: ignore[no-untyped-def]
    z, y, x = (function(a, b, c) for a, b, c in zip(first, second, third, strict=True))
    return z, y, x


# Regions: which box of a volume belongs to a block. `BlockGrid` callers name one per volume.
Region: TypeAlias = Callable[[Block], BoundingBox | None]


def by_section(sections: int, first: int = 0) -> BlockGrid:
    """One block for each section."""
    return BlockGrid(BoundingBox((first, 0, 0), (sections, 1, 1)), (1, 1, 1))


@dataclasses.dataclass(frozen=True)
class CoreBox:
    """The block's core, in a volume whose voxels are `1 / factor` of the grid's.

    Attributes:
      factor: zyx.
      within: bounds of that volume, where the last cell may be incomplete.
      margin: zyx voxels of that volume added on either side.
    """

    factor: Triple = (1, 1, 1)
    within: BoundingBox | None = None
    margin: Triple = (0, 0, 0)

    def __call__(self, block: Block) -> BoundingBox | None:
        box = block.core.scale_up(self.factor).pad(self.margin, self.margin)
        return box.intersection(self.within) if self.within else box


@dataclasses.dataclass(frozen=True)
class OfSection:
    """What is kept of the section that a block is of, from y = x = 0 on; its z is the section.

    Attributes:
      shape: y and x; of rows that are kept with the first block of a section, (1, 1).
    """

    shape: tuple[int, int] = (1, 1)

    def __call__(self, block: Block) -> BoundingBox:
        return BoundingBox((block.core.start[0], 0, 0), (1, *self.shape))


@dataclasses.dataclass(frozen=True)
class SectionsAround:
    """The section that a block is of and some before and after it, whole; None if there are none.

    Attributes:
      bounds: of what is read.
      before: how many before it.
      after: how many after it; -1: not its own either.
    """

    bounds: BoundingBox
    before: int = 0
    after: int = 0

    def __call__(self, block: Block) -> BoundingBox | None:
        z = block.core.start[0]
        (_, y, x), (_, bottom, right) = self.bounds.start, self.bounds.end
        box = BoundingBox.from_bounds((z - self.before, y, x), (z + 1 + self.after, bottom, right))
        return box.intersection(self.bounds)


@dataclasses.dataclass(frozen=True)
class ReadBox:
    """The block's core and halo."""

    def __call__(self, block: Block) -> BoundingBox | None:
        return block.read


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a block and the one before it along `axis` both read; None for the first block.

        |eeccccccc|hhee|            the block before it; both see hh|hh without the envelopes
             |eehh|ccccccccee|      the block

    Attributes:
      grid: the blocks.
      axis: 0, 1, 2 for z, y, x.
      envelope: zyx voxels at the inner faces of either read box that do not count. At faces of
        `grid.bounds` nothing is left out.
    """

    grid: BlockGrid
    axis: int
    envelope: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        if any(e < 0 or e > h for e, h in zip(self.envelope, self.grid.halo, strict=True)):
            raise ValueError(
                f'envelope is {self.envelope}: must lie between 0 and the halo, {self.grid.halo}'
            )

    def __call__(self, block: Block) -> BoundingBox | None:
        offset = [0, 0, 0]
        offset[self.axis] = -1
        before = self.grid.neighbour(block, (offset[0], offset[1], offset[2]))
        if before is None:
            return None
        return self._trusted(block).intersection(self._trusted(before))

    def _trusted(self, block: Block) -> BoundingBox:
        bounds, read = self.grid.bounds, block.read
        low = _map3(lambda s, b, e: 0 if s == b else -e, read.start, bounds.start, self.envelope)
        high = _map3(lambda s, b, e: 0 if s == b else -e, read.end, bounds.end, self.envelope)
        return read.pad(low, high)


@dataclasses.dataclass(frozen=True)
class Border:
    """The voxels of the core within `depth` (zyx) of the core of the block at `offset`.

    |bbbbbbbb|DD------|       the right one, offset -1: D. None where no such core is.
    """

    grid: BlockGrid
    offset: Triple
    depth: Triple

    def __call__(self, block: Block) -> BoundingBox | None:
        neighbour = self.grid.neighbour(block, self.offset)
        if neighbour is None:
            return None
        return neighbour.core.pad(self.depth, self.depth).intersection(block.core)
