"""What a worker does with its blocks: whether each must run, the run, its marker, its failures.

See `h01_beam.blockwise` for the transform that sends them, `h01_beam.quarantine` for failures.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import inspect
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from h01_beam import config as config_lib
from h01_beam import layers, objects, quarantine, storage, tables, worker
from h01_beam import volume as volume_lib
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Triple
from h01_beam.ledger import Ledger, Marker, StageRecord
from h01_beam.plan import BlockResult, Read, TableRead, Write
from h01_beam.preview import Touched
from h01_beam.run import Run, Upstream, UpstreamError
from h01_beam.volume import Volume

# When so many blocks of one process fail one after the other, it is not the blocks' fault.
MOST_IN_A_ROW = 10


class BlockError(RuntimeError):
    """A block failed; the message names the stage and the block."""


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What a block reads.

    Attributes:
      blocks: those whose parts of tables it reads.
      parts: these, as they are stored.
      boxes: of volumes.
    """

    blocks: Mapping[str, list[Triple]]
    parts: Mapping[str, list[bytes]]
    boxes: Mapping[str, BoundingBox | None]


class ProcessBlocks(beam.DoFn):
    """Runs the blocks of a bundle, `concurrency` at a time.

    Attributes:
      stage: its name.
      grid: all of its blocks.
      ledger: their markers.
      tables: what it writes rows to, by name.
      config_hash: of all that the results depend on and every block shares.
    """

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
        self.stage = stage
        self.grid = grid
        self.ledger = ledger
        self._reads = reads
        self._writes = writes
        self._table_reads = table_reads
        self.tables = table_writes
        self.config_hash = config
        self._concurrency = concurrency
        self._chained = chained
        # Only the path is needed on a worker: a Run holds PCollections, which do not travel.
        self._run_path, self._policy = run.path, run.policy
        # Where the data go: a volume may lie in a generation of another run.
        places = [write.spec.path for write in writes.values()] or [run.path]
        self._layer = layers.name_of(places[0])
        self._wants_block = 'block' in inspect.signature(function).parameters
        self._blocks_run = beam.metrics.Metrics.counter(stage, 'blocks_run')
        self._blocks_left_out = beam.metrics.Metrics.counter(stage, 'blocks_left_out')
        self._blocks_reused = beam.metrics.Metrics.counter(stage, 'blocks_reused')

    def setup(self) -> None:
        worker.exit_with_launcher()
        self.open_inputs()
        self._targets = {name: Volume.open(write.spec.uri) for name, write in self._writes.items()}
        if hasattr(self._function, 'setup'):
            self._function.setup()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._concurrency)
        self._lock, self._failed_in_a_row = threading.Lock(), 0
        self._retries_told = _storage_retries()

    def open_inputs(self) -> None:
        """What the keys of blocks need; volumes of the same run exist, made before launch."""
        self._sources = {name: Volume.open(read.spec.uri) for name, read in self._reads.items()}
        self._run = Run.at(self._run_path)
        record = StageRecord.read(self.ledger)
        self._generation = record.generation if record else 0
        self._upstream = {name: Upstream(volume) for name, volume in self._sources.items()}

    def would_run(self, linear: int, touched: Touched) -> bool:
        """Whether a block has other inputs than when it was done, or reads a block that has.

        After `open_inputs`; `touched` are blocks of earlier stages.
        """
        block = self.grid.block(linear)
        try:
            inputs = self._find_inputs(block)
            for name, box in inputs.boxes.items():
                if box and touched.meets(*self._upstream[name].blocks(box)):
                    return True
            if any(touched.rows(name, blocks) for name, blocks in inputs.blocks.items()):
                return True
            marker = self.ledger.read(block.index)
            return marker is None or marker.key != self._key(block, linear, inputs)
        except UpstreamError:
            return True

    def start_bundle(self) -> None:
        # Digests of upstream blocks may have changed between bundles of different attempts.
        self._upstream = {name: Upstream(volume) for name, volume in self._sources.items()}
        self._pending: list[concurrent.futures.Future[dict[str, Any]]] = []

    def process(self, linear: int) -> Iterator[dict[str, Any]]:
        if self._chained:
            for block in range(linear, len(self.grid), len(self.grid) // self.grid.shape[0]):
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
        counter = self._blocks_run if record['ran'] else self._blocks_reused
        (self._blocks_left_out if record['hole'] else counter).inc()
        return record

    def _process_block(self, linear: int) -> dict[str, Any]:
        block, key = self.grid.block(linear), ''
        for attempt in range(1, self._policy.attempts + 1):
            try:
                started = time.time()
                inputs = self._find_inputs(block)
                key = self._key(block, linear, inputs)
                return self._finish_block(block, linear, key, inputs, started, attempt)
            except UpstreamError as error:
                return self._leave_out(block, linear, None, self._describe(block, error))
            except Exception as error:
                if objects.is_full(error):
                    raise BlockError(self._describe(block, error)) from error
                if attempt == self._policy.attempts:
                    return self._quarantine(block, linear, key, error)
                time.sleep(objects.RETRY_DELAY_S * 2 ** (attempt - 1))
        raise AssertionError('there is at least one attempt')

    def _finish_block(
        self,
        block: Block,
        linear: int,
        key: str,
        inputs: _Inputs,
        started: float,
        attempt: int,
    ) -> dict[str, Any]:
        """Runs a block unless its marker or its quarantine says that nothing has changed."""
        marker = self.ledger.read(block.index)
        ran = marker is None or marker.key != key
        if ran:
            note = quarantine.Note.read(self.ledger, block.index)
            retry = attempt > 1 or self._policy.retry_quarantined
            if note and note.key == key and not retry:
                return self._leave_out(block, linear, note)
            if marker is not None:
                self.ledger.void(block.index)
            marker = self._run_block(block, key, inputs, attempt)
            if note:
                quarantine.lift(self.ledger, block.index)
            with self._lock:
                self._failed_in_a_row = 0
        assert marker is not None
        return {'index': linear, 'ran': ran, 'started': started, 'ended': time.time(),
                'hole': None, **dataclasses.asdict(marker)}  # fmt: skip

    def _quarantine(self, block: Block, linear: int, key: str, error: Exception) -> dict[str, Any]:
        """Notes why a block failed, and goes on to the next."""
        note = quarantine.Note(
            key=key,
            attempts=self._policy.attempts,
            error=self._describe(block, error),
            traceback=''.join(traceback.format_exception(error)),
        )
        with self._lock:
            self._failed_in_a_row += 1
            in_a_row = self._failed_in_a_row
        try:
            note.write(self.ledger, block.index)
            record = self._leave_out(block, linear, note)
        except OSError as second:
            raise BlockError(
                f'{self._describe(block, error)}; nor can that be noted: {second}'
            ) from error
        if in_a_row >= MOST_IN_A_ROW:
            raise BlockError(
                f'{self._describe(block, error)}; so did {in_a_row} blocks one after the other: '
                f'the run is given up; {quarantine.WAY_OUT}'
            ) from error
        return record

    def _leave_out(
        self, block: Block, linear: int, note: quarantine.Note | None, reason: str = ''
    ) -> dict[str, Any]:
        """The record of a block without results; older ones no longer count, and their rows go."""
        self.ledger.void(block.index)
        for name in self.tables:
            storage.delete(self._run.table_part(name, block.index))
        kind = quarantine.QUARANTINED if note else quarantine.BLOCKED
        return {'index': linear, 'ran': False, 'started': None, 'ended': None,
                'hole': quarantine.hole(kind, block.index, note, reason),
                'key': '', 'digest': '', 'rows': 0, 'seconds': 0.0, 'metrics': {}}  # fmt: skip

    def _describe(self, block: Block, error: Exception) -> str:
        """What failed where, in one line: the rest of a longer message is in the traceback."""
        hint = objects.way_out(error)
        message = next(iter(str(error).splitlines()), '')
        return (
            f'stage {self.stage}, block {block.index} (core {block.core}): '
            f'{type(error).__name__}: {message}{"; " * bool(hint)}{hint}'
        )

    def _key(self, block: Block, linear: int, inputs: _Inputs) -> str:
        # The box too: another part of the same upstream blocks is another input.
        upstream = {
            name: [box, self._upstream[name].digests(box)] if box else []
            for name, box in inputs.boxes.items()
        }
        digests = {
            name: [hashlib.sha256(part).hexdigest() for part in several]
            for name, several in inputs.parts.items()
        }
        # Where and how a volume is stored does not change what is in it: not part of the key.
        return config_lib.fingerprint(
            [self.config_hash, self._generation, linear, block, upstream, digests]
        )

    def _find_inputs(self, block: Block) -> _Inputs:
        """Parts of all tables, those first by which others are read; then boxes of volumes."""
        blocks: dict[str, list[Triple]] = {}
        parts: dict[str, list[bytes]] = {}
        needed = {r.by for r in (*self._table_reads.values(), *self._reads.values()) if r.by}
        rows: dict[str, tables.Columns] = {}
        for name, read in sorted(self._table_reads.items(), key=lambda item: bool(item[1].by)):
            box = read.box(block, rows)
            touching = (read.grid or self.grid).touching(box) if box else ()
            blocks[name] = [b.index for b in touching]
            parts[name] = self._read_parts(name, blocks[name])
            if name in needed:
                rows[name] = tables.from_parquets(parts[name])
        boxes = {name: read.box(block, rows) for name, read in self._reads.items()}
        return _Inputs(blocks, parts, boxes)

    def _read_parts(self, name: str, blocks: Sequence[Triple]) -> list[bytes]:
        if name not in self.tables:
            self._run.check_table(name)
        try:
            return [storage.read_bytes(self._run.table_part(name, index)) for index in blocks]
        except FileNotFoundError as error:
            raise UpstreamError(
                f'the table {name!r} lacks rows of a block that has not finished ({error}); run '
                'the stage that writes it again, it will fill the gap'
            ) from error

    def _run_block(self, block: Block, key: str, inputs: _Inputs, attempt: int) -> Marker:
        started = time.perf_counter()
        arguments: dict[str, Any] = {
            name: None if box is None else self._sources[name].read(box)
            for name, box in inputs.boxes.items()
        }
        arguments |= {n: tables.from_parquets(several) for n, several in inputs.parts.items()}
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
            metrics={
                **result.metrics,
                **self._troubles(attempt),
                'peak_memory_bytes': worker.peak_memory_bytes(),
            },
            layer=self._layer,
        )
        self.ledger.write(block.index, marker)
        return marker

    def _troubles(self, attempt: int) -> dict[str, float]:
        """Attempts and requests that failed since the last block of this process was done."""
        total = _storage_retries()
        with self._lock:
            retries, self._retries_told = total - self._retries_told, total
        found = {'failed_attempts': attempt - 1, 'storage_retries': retries}
        return {name: float(count) for name, count in found.items() if count > 0}

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
        if not set(result.rows) <= set(self.tables):
            raise ValueError(
                f'function returned rows for {sorted(result.rows)}: the stage writes the tables '
                f'{sorted(self.tables)}'
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
        for name, schema in self.tables.items():
            columns = result.rows.get(name, schema.empty())
            data = tables.to_parquet(columns, schema)
            storage.write_bytes(self._run.table_part(name, block.index), data)
            hasher.update(data)
            rows += tables.length(columns)
        return rows


def _crop(array: np.ndarray, block: Block, box: BoundingBox) -> np.ndarray:
    spatial = array.shape[-3:]
    if spatial == block.read.shape and spatial != box.shape:
        low = tuple(-s for s in block.read.start)
        z, y, x = box.translate((low[0], low[1], low[2])).slices
        array = array[..., z, y, x]
    return np.ascontiguousarray(array)


def _storage_retries() -> int:
    return objects.retries() + volume_lib.retries()
