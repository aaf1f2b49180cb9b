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
* What cannot work is refused in the constructor: cores that share chunks or shards with their
  neighbours, a halo larger than the neighbour, more memory than a worker has.
* Order between stages: `after=` waits for other stages' records. Nothing else orders blocks.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from h01_beam import config as config_lib
from h01_beam import plan, storage, tables, worker
from h01_beam.finish import CompactTable, SummarizeStage, forget_blocks
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Region
from h01_beam.plan import BlockResult, Read, TableRead, Write
from h01_beam.run import (
    Ledger,
    Marker,
    Provenance,
    Run,
    StageRecord,
    Upstream,
)
from h01_beam.volume import Volume, VolumeSpec

# Block numbers travel in ranges of this many or more; a range is one element of the initial Create,
# which is part of the job's description: that of Dataflow may have 10 MB in all.
RANGE, RANGES = 4096, 1024


class BlockError(RuntimeError):
    """A block failed; the message names the stage and the block."""


class MapBlocks(beam.PTransform):
    """Applies a pure function to every block of a grid.

    Element type out: `{'index': linear block number, 'ran': bool, 'digest': str, 'rows': int,
    'seconds': float, 'metrics': {...}}`, one for every block of the grid.

    Args:
      function: called as `function(**arrays)` with one zyx array per read (None where the
        region has no box there; a `Volume` if it is lazy), one mapping of columns per table
        read, and `block` if it asks for it. Returns a `BlockResult`, or one array when there is
        one write.
      stage: name of the stage, its ledger and its line in the report.
      grid: the blocks.
      run: the run.
      reads, writes: volumes by name; a bare spec means the read box and the core.
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
        self._process = _ProcessBlocks(
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
            | 'Process' >> beam.ParDo(self._process)
        )
        self._run.summaries.append(done | SummarizeStage(self._stage, self._ledger))
        for name, schema in self._table_writes.items():
            self._run.summaries.append(done | CompactTable(self._run, name, self._grid, schema))
        return done

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
        if previous and previous.grid.shape != self._grid.shape:
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


class _ProcessBlocks(beam.DoFn):
    """Runs the blocks of a bundle, `concurrency` at a time."""

    def __init__(
        self,
        *,
        function: Callable[..., Any],
        stage: str,
        grid: BlockGrid,
        ledger: Ledger,
        reads: Mapping[str, Read],
        writes: Mapping[str, Write],
        table_reads: Mapping[str, TableRead],
        table_writes: Mapping[str, tables.Schema],
        config: str,
        concurrency: int,
        chained: bool,
        run: Run,
    ):
        self._function = function
        self._stage = stage
        self._grid = grid
        self._ledger = ledger
        self._reads = reads
        self._writes = writes
        self._table_reads = table_reads
        self._table_writes = table_writes
        self.config_hash = config
        self._concurrency = concurrency
        self._chained = chained
        # Only the path is needed on a worker: a Run holds PCollections, which do not travel.
        self._run_path = run.path
        self._wants_block = 'block' in inspect.signature(function).parameters
        self._blocks_run = beam.metrics.Metrics.counter(stage, 'blocks_run')
        self._blocks_reused = beam.metrics.Metrics.counter(stage, 'blocks_reused')

    def setup(self) -> None:
        worker.exit_with_launcher()
        # Volumes of the same run exist by now: they are made before launch.
        self._sources = {name: Volume.open(read.spec.uri) for name, read in self._reads.items()}
        self._targets = {name: Volume.open(write.spec.uri) for name, write in self._writes.items()}
        self._run = Run.at(self._run_path)
        record = StageRecord.read(self._ledger)
        self._generation = record.generation if record else 0
        if hasattr(self._function, 'setup'):
            self._function.setup()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._concurrency)

    def start_bundle(self) -> None:
        # Digests of upstream blocks may have changed between bundles of different attempts.
        self._upstream = {name: Upstream(volume) for name, volume in self._sources.items()}
        self._pending: list[concurrent.futures.Future[dict[str, Any]]] = []

    def process(self, linear: int) -> Iterator[dict[str, Any]]:
        if self._chained:
            for block in range(linear, len(self._grid), len(self._grid) // self._grid.shape[0]):
                yield self._count(self._process_block(block))
            return
        if self._concurrency == 1:
            yield self._count(self._process_block(linear))
            return
        while len(self._pending) >= self._concurrency:
            yield from self._collect(concurrent.futures.FIRST_COMPLETED)
        self._pending.append(self._pool.submit(self._process_block, linear))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        while self._pending:
            for record in self._collect(concurrent.futures.FIRST_COMPLETED):
                yield WindowedValue(record, MIN_TIMESTAMP, [GlobalWindow()])

    def teardown(self) -> None:
        self._pool.shutdown()
        if hasattr(self._function, 'teardown'):
            self._function.teardown()

    def _collect(self, when: str) -> Iterator[dict[str, Any]]:
        done, _ = concurrent.futures.wait(self._pending, return_when=when)
        self._pending = [future for future in self._pending if future not in done]
        for future in done:
            yield self._count(future.result())

    def _count(self, record: dict[str, Any]) -> dict[str, Any]:
        # Beam's counters belong to the bundle's own thread.
        (self._blocks_run if record['ran'] else self._blocks_reused).inc()
        return record

    def _process_block(self, linear: int) -> dict[str, Any]:
        block = self._grid.block(linear)
        try:
            started = time.time()
            parts = {
                name: self._read_parts(name, read, block)
                for name, read in self._table_reads.items()
            }
            key = self._key(block, linear, parts)
            marker = self._ledger.read(block.index)
            ran = marker is None or marker.key != key
            if ran:
                if marker is not None:
                    self._ledger.void(block.index)
                marker = self._run_block(block, key, parts)
            assert marker is not None
            return {'index': linear, 'ran': ran, 'started': started, 'ended': time.time(),
                    **dataclasses.asdict(marker)}  # fmt: skip
        except Exception as error:
            hint = _way_out(error)
            raise BlockError(
                f'stage {self._stage}, block {block.index} (core {block.core}): '
                f'{type(error).__name__}: {error}{hint}'
            ) from error

    def _key(self, block: Block, linear: int, parts: Mapping[str, list[bytes]]) -> str:
        upstream = {}
        for name, read in self._reads.items():
            box = read.region(block)
            # The box too: another part of the same upstream blocks is another input.
            upstream[name] = [box, self._upstream[name].digests(box)] if box else []
        digests = {
            name: [hashlib.sha256(part).hexdigest() for part in several]
            for name, several in parts.items()
        }
        # Where and how a volume is stored does not change what is in it: not part of the key.
        return config_lib.fingerprint(
            [self.config_hash, self._generation, linear, block, upstream, digests]
        )

    def _read_parts(self, name: str, read: TableRead, block: Block) -> list[bytes]:
        box = read.region(block)
        blocks = (read.grid or self._grid).touching(box) if box else ()
        return [storage.read_bytes(self._run.table_part(name, block.index)) for block in blocks]

    def _run_block(self, block: Block, key: str, parts: Mapping[str, list[bytes]]) -> Marker:
        started = time.perf_counter()
        arguments: dict[str, Any] = {}
        for name, read in self._reads.items():
            box = read.region(block)
            source = self._sources[name]
            arguments[name] = None if box is None else source if read.lazy else source.read(box)
        arguments |= {name: tables.from_parquets(several) for name, several in parts.items()}
        if self._wants_block:
            arguments['block'] = block
        result = self._check_result(self._function(**arguments), block)
        hasher = hashlib.sha256()
        self._write_arrays(block, result, hasher)
        rows = self._write_rows(block, result, hasher)
        marker = Marker(
            key=key,
            digest=hasher.hexdigest()[:32],
            rows=rows,
            seconds=time.perf_counter() - started,
            metrics={**result.metrics, 'peak_memory_bytes': worker.peak_memory_bytes()},
        )
        self._ledger.write(block.index, marker)
        return marker

    def _check_result(self, result: Any, block: Block) -> BlockResult:
        """Wraps a bare array, and refuses results that nothing or nobody would write."""
        if not isinstance(result, BlockResult):
            if len(self._writes) != 1:
                raise ValueError(
                    f'function returned {type(result).__name__}: must be a BlockResult, as there '
                    f'are {len(self._writes)} writes'
                )
            result = BlockResult(arrays=dict.fromkeys(self._writes, result))
        expected = {name for name, write in self._writes.items() if write.region(block)}
        if not expected <= set(result.arrays) <= set(self._writes):
            raise ValueError(
                f'function returned arrays {sorted(result.arrays)}: must be {sorted(expected)}'
            )
        if not set(result.rows) <= set(self._table_writes):
            raise ValueError(
                f'function returned rows for {sorted(result.rows)}: the stage writes the tables '
                f'{sorted(self._table_writes)}'
            )
        return result

    def _write_arrays(self, block: Block, result: BlockResult, hasher: Any) -> None:
        for name, write in self._writes.items():
            box = write.region(block)
            if box is None:
                continue
            array = _crop(result.arrays[name], block, box)
            self._targets[name].write(box, array)
            # What a lossy encoding stores differs from the array.
            lossy = write.spec.encoding if write.spec.encoding == 'jpeg' else ''
            hasher.update(repr((name, box, array.dtype.str, lossy)).encode())
            hasher.update(array.data)

    def _write_rows(self, block: Block, result: BlockResult, hasher: Any) -> int:
        rows = 0
        for name, schema in self._table_writes.items():
            columns = result.rows.get(name, schema.empty())
            data = tables.to_parquet(columns, schema)
            storage.write_bytes(self._run.table_part(name, block.index), data)
            hasher.update(data)
            rows += tables.length(columns)
        return rows


def make_ranges(count: int) -> list[tuple[int, int]]:
    """Cuts block numbers from 0 to `count` into ranges (first, one past the last), few for any."""
    step = max(RANGE, -(-count // RANGES))
    return [(i, min(i + step, count)) for i in range(0, count, step)]


def expand_range(bounds: tuple[int, int]) -> Iterator[int]:
    """Block numbers of a range (first, one past the last)."""
    yield from range(*bounds)


def _crop(array: np.ndarray, block: Block, box: BoundingBox) -> np.ndarray:
    spatial = array.shape[-3:]
    if spatial == block.read.shape and spatial != box.shape:
        low = tuple(-s for s in block.read.start)
        z, y, x = box.translate((low[0], low[1], low[2])).slices
        array = array[..., z, y, x]
    return np.ascontiguousarray(array)


def _way_out(error: Exception) -> str:
    text = str(error)
    if 'No space left' in text or 'ENOSPC' in text or 'RESOURCE_EXHAUSTED' in text:
        return (
            '; the disk is full: free space or choose another --run_dir, then give the same '
            'command again: finished blocks are kept'
        )
    return ''
