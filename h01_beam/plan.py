"""What a stage would do, and whether it can: checks and projections before anything starts.

What all of it would take on a fleet, in hours and money, is the business of `h01_beam.forecast`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from h01_beam.geometry import Block, BlockGrid, BoundingBox, CoreBox, ReadBox, Region, Triple
from h01_beam.ledger import Provenance, StageRecord
from h01_beam.run import Resources, Run, StagePlan, Traffic
from h01_beam.tables import Columns
from h01_beam.volume import Volume, VolumeSpec

# Interpreter, Beam, NumPy, TensorStore with its cache: resident size of an idle worker.
PROCESS_BYTES = 400 * 2**20


class RowRegion(Protocol):
    """A region that only rows tell: which box of a volume or table belongs to a block.

    Plans know no rows. They ask how large a box may get, and count memory, bytes and requests by
    that; so they never promise less than a run will take.
    """

    def __call__(self, block: Block, rows: Columns, /) -> BoundingBox | None:
        """The box, from rows of the table that `by` names."""

    def largest(self, block: Block) -> BoundingBox | None:
        """A box as large as rows may make it, in the bounds of what is read, lying anywhere."""


class _Boxes:
    """Which box a read has for a block, whether rows tell or not."""

    region: Any
    by: str | None

    def box(self, block: Block, rows: Mapping[str, Columns]) -> BoundingBox | None:
        """The box that belongs to a block, given rows of the tables that others are read by."""
        box: BoundingBox | None
        box = self.region(block) if self.by is None else self.region(block, rows[self.by])
        return box

    def planned_box(self, block: Block) -> BoundingBox | None:
        """The box before there are rows; see `RowRegion`."""
        box: BoundingBox | None
        box = self.region(block) if self.by is None else self.region.largest(block)
        return box


@dataclasses.dataclass(frozen=True)
class Read(_Boxes):
    """A volume that a stage reads, and which box of it belongs to a block.

    Attributes:
      spec: the volume.
      region: the box.
      by: name of a table read of the stage, if only its rows tell which box it is.
    """

    spec: VolumeSpec
    region: Region | RowRegion = ReadBox()
    by: str | None = None


@dataclasses.dataclass(frozen=True)
class TableRead(_Boxes):
    """A table that a stage reads: the rows of all blocks whose cores a box touches.

    Attributes:
      region: which box belongs to a block of the stage.
      grid: the blocks by which the rows were written; None for those of the stage itself.
      by: name of another table read of the stage, if only its rows tell which box it is.
    """

    region: Region | RowRegion
    grid: BlockGrid | None = None
    by: str | None = None


@dataclasses.dataclass(frozen=True)
class Write:
    """A volume that a stage writes.

    Attributes:
      spec: the volume; made if it is absent, remade if it differs.
      region: which box belongs to a block; must never overlap another block's.
      grid: how the regions lie in the volume, by the same indices, where that is not the grid of
        the stage: `Slots.as_grid`.
    """

    spec: VolumeSpec
    region: Region = CoreBox()
    grid: BlockGrid | None = None

    def planned_box(self, block: Block) -> BoundingBox | None:
        """The box of a block; no rows are needed for it."""
        return self.region(block)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What a block's function returns.

    Attributes:
      arrays: by name of the write: an array over the written region, or over the block's read
        box, which is then cropped to it.
      rows: by name of the table.
      metrics: numbers to add up over blocks (`peak_*`: to take the maximum of).
    """

    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def plan_stage(
    function: Any,
    stage: str,
    grid: BlockGrid,
    reads: Mapping[str, Read],
    writes: Mapping[str, Write],
    concurrency: int,
    run: Run,
    config_hash: str,
    *,
    chained: bool = False,
    table_reads: Mapping[str, TableRead] | None = None,
    table_writes: Mapping[str, Any] | None = None,
) -> StagePlan:
    """Checks a stage and says what it would cost.

    Raises:
      ValueError: halo, bounds, alignment or memory do not fit, or the output lies on the input;
        the message says what to change.
    """
    # A read and a write may have one name.
    items: list[tuple[str, Read | Write]] = [*reads.items(), *writes.items()]
    _check_by(stage, reads, table_reads or {})
    for name, item in items:
        run.resources.check_reachable(f'stage {stage}: {name!r}', item.spec.path)
    _check_halo(stage, grid)
    _check_bounds(stage, grid, items)
    own = {write.spec for write in writes.values()} if chained else set()
    _check_disjoint(stage, {n: r for n, r in reads.items() if r.spec not in own}, writes)
    for name, write in writes.items():
        _check_alignment(stage, name, write.spec, write.grid or grid)
        _check_ownership(stage, name, Volume.check(write.spec))
    memory = _projected_memory(function, grid, reads, writes, concurrency)
    what = f'{concurrency} blocks of {grid.largest_read} (halo included)'
    check_memory(stage, memory, what, run.resources_of(stage))
    traffic = (
        *(_volume_traffic(name, item, grid, run) for name, item in items),
        *(_table_traffic(name, read, grid) for name, read in (table_reads or {}).items()),
        *(
            Traffic(name=name, spec=None, writes=True, voxels=0, objects=len(grid), grid=grid)
            for name in table_writes or ()
        ),
    )
    record = StageRecord.read(run.ledger(stage))
    resumes = record and record.config == config_hash and record.grid == grid
    resumes = resumes and all(Volume.is_there(write.spec) for write in writes.values())
    return StagePlan(
        name=stage,
        blocks=len(grid),
        chains=len(grid) // (grid.shape[0] if chained else 1),
        traffic=traffic,
        read_bytes=_bytes(traffic, writes=False),
        write_bytes=_bytes(traffic, writes=True),
        memory_bytes=memory,
        ledger=run.ledger(stage),
        since=record.since if record and resumes else None,
    )


def _check_by(stage: str, reads: Mapping[str, Read], table_reads: Mapping[str, TableRead]) -> None:
    named: dict[str, Read | TableRead] = {**reads, **table_reads}
    known = [name for name, read in table_reads.items() if read.by is None]
    for name, read in named.items():
        if read.by is not None and read.by not in known:
            raise ValueError(
                f'stage {stage}: {name!r} is read by {read.by!r}: must be a table read of the '
                f'stage that is not read by another itself: {", ".join(known) or "there is none"}'
            )


def _check_halo(stage: str, grid: BlockGrid) -> None:
    for axis, name in enumerate('zyx'):
        if grid.shape[axis] > 1 and grid.halo[axis] > grid.block_shape[axis]:
            raise ValueError(
                f'stage {stage}: halo {grid.halo} exceeds block_shape {grid.block_shape} along '
                f'{name}: a block would read past its neighbour; use larger blocks or a smaller '
                'halo'
            )


def _check_bounds(stage: str, grid: BlockGrid, items: Sequence[tuple[str, Read | Write]]) -> None:
    for name, item in items:
        for block in (grid.block(0), grid.block(len(grid) - 1)):
            box = item.planned_box(block)
            if box and not item.spec.bounds.contains(box):
                raise ValueError(
                    f'stage {stage}: block {block.index} needs {box} of {name!r}, but '
                    f'{item.spec.uri!r} covers {item.spec.bounds}; use bounds that lie within it'
                )


def _check_disjoint(stage: str, reads: Mapping[str, Read], writes: Mapping[str, Write]) -> None:
    # Making a level of a volume anew deletes the levels above it too.
    for read, write in itertools.product(reads.values(), writes.values()):
        same = os.path.abspath(read.spec.path) == os.path.abspath(write.spec.path)
        if same and read.spec.mip >= write.spec.mip:
            raise ValueError(
                f'stage {stage}: the output {write.spec.uri!r} would overwrite the input '
                f'{read.spec.uri!r}; choose another place for the output'
            )


def _middle(grid: BlockGrid) -> Block:
    z, y, x = (n // 2 for n in grid.shape)
    return grid[z, y, x]


def _volume_traffic(name: str, item: Read | Write, grid: BlockGrid, run: Run) -> Traffic:
    spec, writes = item.spec, isinstance(item, Write)
    written = [t for plan in run.plans for t in plan.traffic if t.writes and t.spec == spec]
    source = written[-1].grid if written and not writes else None

    def counts(block: Block) -> tuple[int, int, int]:
        box = item.planned_box(block)
        if box is None:
            return 0, 0, 0
        markers = _cells(box, source.bounds.start, source.block_shape) if source else 0
        return box.size, _requests(spec, box, writes), markers

    voxels, objects, markers = _over_blocks(grid, counts)
    own = (item.grid or grid) if isinstance(item, Write) else None
    return Traffic(name=name, spec=spec, writes=writes, voxels=voxels, objects=objects,
                   markers=markers, grid=own)  # fmt: skip


def _table_traffic(name: str, read: TableRead, grid: BlockGrid) -> Traffic:
    source = read.grid or grid

    def parts(block: Block) -> tuple[int]:
        box = read.planned_box(block)
        inside = box.intersection(source.bounds) if box else None
        return (_cells(inside, source.bounds.start, source.block_shape) if inside else 0,)

    (objects,) = _over_blocks(grid, parts)
    return Traffic(name=name, spec=None, writes=False, voxels=0, objects=objects)


def _requests(spec: VolumeSpec, box: BoundingBox, writes: bool) -> int:
    """Objects that a box of a volume takes: a shard is written as one, but read by chunks."""
    if spec.shard is None:
        return _cells(box, spec.start, spec.chunk)
    shards = _cells(box, spec.start, spec.shard)
    return shards if writes else shards + _cells(box, spec.start, spec.chunk)


def _cells(box: BoundingBox, origin: Triple, cell: Triple) -> int:
    """Number of cells of a grid that a box meets."""
    ends = zip(box.start, box.end, origin, cell, strict=True)
    return math.prod((e - o - 1) // c - (s - o) // c + 1 for s, e, o, c in ends)


def _over_blocks(grid: BlockGrid, count: Callable[[Block], tuple[int, ...]]) -> tuple[int, ...]:
    """Sums of counts over all blocks, from those of the first, a middle and the last per axis.

    Exact where only the faces differ from the inside; ten million blocks cost what 27 do.
    """
    sums: list[int] = []
    for times, block in _kinds(grid):
        weighted = [times * n for n in count(block)]
        sums = [a + b for a, b in zip(sums, weighted, strict=True)] if sums else weighted
    return tuple(sums)


def _kinds(grid: BlockGrid) -> Iterator[tuple[int, Block]]:
    axes = [
        [(1, 0), (n - 2, n // 2), (1, n - 1)] if n > 2 else [(1, i) for i in range(n)]
        for n in grid.shape
    ]
    for (a, z), (b, y), (c, x) in itertools.product(*axes):
        yield a * b * c, grid[z, y, x]


def _bytes(traffic: tuple[Traffic, ...], writes: bool) -> int:
    return sum(t.voxels * t.spec.voxel_bytes() for t in traffic if t.spec and t.writes == writes)


def _check_alignment(stage: str, name: str, spec: VolumeSpec, grid: BlockGrid) -> None:
    unit = spec.write_unit
    for axis, axis_name in enumerate('zyx'):
        offset = grid.bounds.start[axis] - spec.start[axis]
        single = grid.shape[axis] == 1
        if offset % unit[axis] or (not single and grid.block_shape[axis] % unit[axis]):
            what = 'shard' if spec.shard else 'chunk'
            raise ValueError(
                f'stage {stage}: block_shape {grid.block_shape} does not fit the {what}s {unit} of '
                f'{name!r} along {axis_name}: two blocks would write one {what}; make block_shape '
                f'a multiple of {unit}, or choose {what}s that divide it'
            )


def _check_ownership(stage: str, name: str, spec: VolumeSpec) -> None:
    if Volume.is_occupied(spec) and Provenance.read(spec) is None:
        raise ValueError(
            f'stage {stage}: {name!r} would overwrite {spec.uri!r}, which no run made (it has no '
            'provenance file): choose another output, or delete that volume first'
        )


def _projected_memory(
    function: Any,
    grid: BlockGrid,
    reads: Mapping[str, Read],
    writes: Mapping[str, Write],
    concurrency: int,
) -> int:
    """Bytes that a worker process needs at most, arrays of all concurrent blocks included."""
    first = grid.block(0)
    middle = _middle(grid)
    per_block = 0
    items: list[Read | Write] = [*reads.values(), *writes.values()]
    for item in items:
        boxes = [item.planned_box(block) for block in (first, middle)]
        per_block += max((b.size for b in boxes if b), default=0) * item.spec.voxel_bytes()
    if hasattr(function, 'working_bytes'):
        per_block += function.working_bytes(grid.largest_read)
    process = function.process_bytes() if hasattr(function, 'process_bytes') else 0
    return int(PROCESS_BYTES + process + concurrency * per_block)


def check_memory(stage: str, memory_bytes: int, what: str, resources: Resources) -> None:
    """Raises a ValueError when a worker has too little memory for what it must hold."""
    limit = resources.memory_bytes_per_worker
    if memory_bytes > limit:
        raise ValueError(
            f'stage {stage}: a worker would need {memory_bytes / 2**30:.1f} GiB for {what}, but '
            f'each of the {resources.workers} workers has {limit / 2**30:.1f} GiB; use '
            'smaller blocks or shards, fewer workers, or more memory'
        )
