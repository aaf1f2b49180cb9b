"""MapBlocks: read block and halo -> pure function -> crop -> write core -> rows -> marker.

DESIGN
* Only block numbers enter and one small record per block leaves; voxels stay in TensorStore,
  rows go to one Parquet part per block. No process sees more than its own blocks.
* The function is pure: arrays in, `BlockResult` out. It may have `setup()` (once per process
  and DoFn: load a model), `working_bytes(read_shape)` and `process_bytes()` (memory beyond the
  arrays that MapBlocks itself holds).
* A block runs when the hash of its inputs differs from its marker's key (see `h01_beam.run`).
  Workers decide that by themselves, so a plan of ten million blocks costs the driver nothing.
* `concurrency` blocks run at once in threads of one process, for functions that feed one
  executor. A bundle keeps that many in flight until it ends; results do not depend on it.
* A block that fails is tried again, then quarantined; what reads from it is blocked, and the rest
  is done (see `h01_beam.quarantine`). Only what every block would meet ends the run at once.
* What cannot work is refused in the constructor: cores that share chunks or shards with their
  neighbours, a halo larger than the neighbour, more memory than a worker has.
* Order between stages: `after=` waits for other stages' records. Nothing else orders blocks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from h01_beam import config as config_lib
from h01_beam import plan, tables
from h01_beam.finish import CompactTable, SummarizeStage, forget_blocks
from h01_beam.geometry import BlockGrid, Region
from h01_beam.ledger import Provenance, StageRecord
from h01_beam.plan import Read, TableRead, Write
from h01_beam.run import Run
from h01_beam.volume import Volume, VolumeSpec
from h01_beam.work import ProcessBlocks

# Block numbers travel in ranges of this many or more; a range is one element of the initial Create,
# which is part of the job's description: that of Dataflow may have 10 MB in all.
RANGE, RANGES = 4096, 1024


class MapBlocks(beam.PTransform):
    """Applies a pure function to every block of a grid.

    Element type out: `{'index': linear block number, 'ran': bool, 'digest': str, 'rows': int,
    'seconds': float, 'metrics': {...}, 'hole': None}`, one for every block of the grid. `hole` says
    why a block was left out (`quarantine.hole`); such a one has no rows and no digest.

    Args:
      function: called as `function(**arrays)` with one zyx array per read (None where the
        region has no box there), one mapping of columns per table read, and `block` if it asks
        for it. Returns a `BlockResult`, or one array when there is one write.
      stage: name of the stage, its ledger and its line in the report.
      grid: the blocks.
      run: the run.
      reads, writes: volumes by name; a bare spec means the read box and the core. A read `by` a
        table has a box that its rows tell; the block depends on that box alone.
      table_reads: tables, and a region each: the function gets the rows of all blocks whose cores
        the region touches. `CoreBox()` names the block's own rows; a bare region is one of the
        stage's own grid.
      table_writes: tables that the function's rows go to.
      config: everything else that the result depends on; part of every key.
      model_hash: SHA-256 of the model, if one is used.
      version: raise it when the code changes in a way that changes results.
      concurrency: blocks that one process works on at once.
      chained: blocks of one column run one after the other along z: each may read what those
        before it wrote, volumes and rows of this very stage.
      after: PCollections to wait for.

    Raises:
      ValueError: the stage cannot work as asked (see the DESIGN note).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        stage: str,
        grid: BlockGrid,
        run: Run,
        reads: Mapping[str, Read | VolumeSpec] | None = None,
        writes: Mapping[str, Write | VolumeSpec] | None = None,
        table_reads: Mapping[str, TableRead | Region] | None = None,
        table_writes: Mapping[str, tables.Schema] | None = None,
        config: Any = None,
        model_hash: str = '',
        version: int = 1,
        concurrency: int = 1,
        chained: bool = False,
        after: Sequence[beam.PCollection] = (),
    ):
        super().__init__(label=stage)
        self._reads = {n: r if isinstance(r, Read) else Read(r) for n, r in (reads or {}).items()}
        self._writes = {
            n: w if isinstance(w, Write) else Write(w) for n, w in (writes or {}).items()
        }
        self._table_reads = {
            n: r if isinstance(r, TableRead) else TableRead(r)
            for n, r in (table_reads or {}).items()
        }
        self._table_writes = dict(table_writes or {})
        self._after = list(after)
        self._run = run
        self._ledger = run.ledger(stage)
        self._process = ProcessBlocks(
            function=function,
            stage=stage,
            grid=grid,
            ledger=self._ledger,
            reads=self._reads,
            writes=self._writes,
            table_reads=self._table_reads,
            table_writes=self._table_writes,
            config=config_lib.fingerprint([stage, version, config, model_hash]),
            concurrency=concurrency,
            chained=chained,
            run=run,
        )
        self._grid, self._chained = grid, chained
        self._stage = stage
        self.config_hash = config_hash = self._process.config_hash
        run.processes.append(self._process)
        run.plans.append(
            plan.plan_stage(
                function, stage, grid, self._reads, self._writes, concurrency, run, config_hash,
                chained=chained, table_reads=self._table_reads, table_writes=self._table_writes,
            )
        )  # fmt: skip

    def expand(self, root: Any) -> beam.PCollection:
        if not self._run.dry_run:
            self._create_outputs()
        # Of a chain, the first block of each column stands for all of it.
        count = len(self._grid) // (self._grid.shape[0] if self._chained else 1)
        start = root | 'Ranges' >> beam.Create(make_ranges(count), reshuffle=False)
        if self._after:
            start = start | 'Wait' >> beam.WaitOn(*self._after)
        done = (
            start
            | 'Blocks' >> beam.FlatMap(expand_range)
            | 'Spread' >> beam.Reshuffle()
            | 'Process' >> self._with_hints(beam.ParDo(self._process))
        )
        self._run.summaries.append(done | SummarizeStage(self._stage, self._ledger))
        for name, schema in self._table_writes.items():
            self._run.summaries.append(done | CompactTable(self._run, name, self._grid, schema))
        return done

    def _with_hints(self, transform: beam.PTransform) -> beam.PTransform:
        hints = self._run.hints(self._stage)
        return transform.with_resource_hints(**hints) if hints else transform

    def _create_outputs(self) -> None:
        """Makes output volumes; one that had to be made anew voids the markers of old blocks."""
        previous = StageRecord.read(self._ledger)
        record = StageRecord(
            grid=self._grid,
            generation=previous.generation if previous else 1,
            config=self._process.config_hash,
            since=time.time(),
        )
        if previous and not self._vouches_for_outputs(previous):
            # Voided before they are made: a crash in between must not leave old markers for new
            # chunks.
            record = dataclasses.replace(record, generation=previous.generation + 1)
        elif previous and dataclasses.replace(record, since=previous.since) == previous:
            record = previous
        elif (
            previous and self.config_hash == previous.config and previous.grid.grows_to(self._grid)
        ):
            # Blocks of the sections that were there have not become stale.
            record = dataclasses.replace(record, since=previous.since)
        if previous and not previous.grid.grows_to(self._grid):
            for name in self._table_writes:
                forget_blocks(self._run, name, previous.grid, self._grid)
        record.write(self._ledger)
        for write in self._writes.values():
            # Before the volume: one without is taken for somebody else's.
            Provenance(self._ledger, record.generation, write.grid).write(write.spec)
            Volume.create(write.spec)

    def _vouches_for_outputs(self, record: StageRecord) -> bool:
        """Whether all outputs are as they should be, and no other stage has written to them.

        One that lacks nothing but its last sections is: its blocks keep their keys.
        """
        for write in self._writes.values():
            found = Provenance.read(write.spec)
            if found is None or not found.is_of(self._ledger, record.generation):
                return False
            if not (Volume.is_there(write.spec) or Volume.can_grow(write.spec)):
                return False
        return True


def make_ranges(count: int) -> list[tuple[int, int]]:
    """Cuts block numbers from 0 to `count` into ranges (first, one past the last), few for any."""
    step = max(RANGE, -(-count // RANGES))
    return [(i, min(i + step, count)) for i in range(0, count, step)]


def expand_range(bounds: tuple[int, int]) -> Iterator[int]:
    """Block numbers of a range (first, one past the last)."""
    yield from range(*bounds)
