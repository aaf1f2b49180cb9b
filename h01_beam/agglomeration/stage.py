"""From edges to segments: which component does every supervoxel belong to. Shape: graph.

The stage has one marker, whose key hashes the edges of all blocks: it runs when any changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from h01_beam import config as config_lib
from h01_beam import quarantine, storage, tables, worker
from h01_beam.agglomeration.components import BYTES_PER_ROW, ConnectedComponents
from h01_beam.blockwise import expand_range, make_ranges
from h01_beam.finish import StageSummary, forget_blocks
from h01_beam.geometry import BlockGrid
from h01_beam.ledger import Ledger, StageRecord
from h01_beam.plan import PROCESS_BYTES, check_memory
from h01_beam.run import Run, StagePlan

# Rows of one element of the edge PCollection, at least (but for the last of a bundle).
BATCH_ROWS = 100_000
# Blocks whose parts one worker writes in one go.
BUCKET = 256
# Least cross-section of an object at a face, in voxels, on average: bounds the number of edges.
VOXELS_PER_EDGE = 200


class AssignSegments(beam.PTransform):
    """Finds the segment of every supervoxel that has an edge.

    Input: block records of the stage that wrote the table `edges` (columns a, b).
    Output: one summary, when the table `segment_of` is written: one part for each block, with
    the supervoxels of that block whose segment is another supervoxel.

    Args:
      grid: the blocks; a supervoxel's block is its id shifted right by `local_bits`.
      run: the run.
      local_bits: see above.
      shard_rows: bounds the memory of a worker; see `ConnectedComponents`.
    """

    def __init__(self, grid: BlockGrid, run: Run, *, local_bits: int, shard_rows: int):
        super().__init__(label='components')
        self._grid = grid
        self._local_bits = local_bits
        self._shard_rows = shard_rows
        self._run = run
        self._files = _Files(run.path, grid, local_bits)
        memory = PROCESS_BYTES + BYTES_PER_ROW * shard_rows
        what = f'shards of {shard_rows:,} rows'
        check_memory('components', memory, what, run.resources_of('components'))
        plan = StagePlan(
            name='components', blocks=0, read_bytes=0, write_bytes=0, since=None,
            memory_bytes=memory, ledger=run.ledger('components'),
        )  # fmt: skip
        run.plans.append(plan)
        hints = run.hints('components')
        if hints:
            self.with_resource_hints(**hints)

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        root = records.pipeline
        if not self._run.dry_run:
            ledger = self._run.ledger('components')
            previous = StageRecord.read(ledger)
            if previous and previous.grid.shape != self._grid.shape:
                forget_blocks(self._run, 'segment_of', previous.grid, self._grid)
            since = previous.since if previous and previous.grid == self._grid else time.time()
            StageRecord(grid=self._grid, generation=1, config='', since=since).write(ledger)
        state = (
            records
            | 'Digest' >> beam.CombineGlobally(StageSummary())
            | 'IsCurrent' >> beam.Map(self._files.is_current)
        )
        current = beam.pvalue.AsSingleton(state)
        count = len(self._grid)
        edges = (
            root
            | 'Ranges' >> beam.Create(make_ranges(count), reshuffle=False)
            | 'Changed' >> beam.Filter(_unless_current, current)
            | 'Blocks' >> beam.FlatMap(expand_range)
            | 'Spread' >> beam.Reshuffle()
            | 'ReadEdges' >> beam.ParDo(_ReadEdges(self._files))
        )
        roots = edges | ConnectedComponents.for_edges(self._expected_edges(), self._shard_rows)
        buckets = (
            root
            | 'BucketRanges' >> beam.Create(make_ranges(math.ceil(count / BUCKET)), reshuffle=False)
            | 'ChangedBuckets' >> beam.Filter(_unless_current, current)
            | 'Buckets' >> beam.FlatMap(expand_range)
            | 'AsKeys' >> beam.Map(lambda bucket: (bucket, None))
        )
        summary = (
            (roots | 'ByBucket' >> beam.FlatMap(_by_bucket, self._local_bits), buckets)
            | beam.Flatten()
            | beam.GroupByKey()
            | 'WriteParts' >> beam.Map(self._files.write_parts)
            | 'CountRows' >> beam.CombineGlobally(_Total())
            | 'Finish' >> beam.Map(self._files.finish, current)
        )
        self._run.summaries.append(summary)
        return summary

    def _expected_edges(self) -> int:
        z, y, x = self._grid.block_shape
        return max(1, len(self._grid) * (z * y + z * x + y * x) // VOXELS_PER_EDGE)


class _Files:
    """What the stage reads and writes; travels to the workers."""

    def __init__(self, run_path: str, grid: BlockGrid, local_bits: int):
        self._run_path = run_path
        self._grid = grid
        self._local_bits = local_bits

    def is_current(self, edges: dict[str, Any]) -> dict[str, Any]:
        """Whether the segments of these very edges are already there, or cannot be made."""
        missing = edges.get('blocks_quarantined', 0) + edges.get('blocks_blocked', 0)
        if missing:
            storage.delete(self._marker())
            reason = f'stage components: {missing} blocks of the stage before it were left out'
            self._run().void_table('segment_of', reason)
            return {'key': '', 'current': True, 'started': time.time(), 'missing': reason}
        key = config_lib.fingerprint([edges['digest'], self._grid])
        try:
            marker = json.loads(storage.read_bytes(self._marker()))
        except FileNotFoundError:
            marker = {}
        current = marker.get('key') == key
        if not current:
            # Void before any part changes; see `Ledger.void`.
            storage.delete(self._marker())
        return {'key': key, 'current': current, 'started': time.time(), 'missing': ''}

    def read_edges(self, linear: int) -> tables.Columns:
        part = self._run().table_part('edges', self._grid.index(linear))
        return tables.from_parquet(storage.read_bytes(part))

    def write_parts(self, grouped: tuple[int, Iterable[bytes | None]]) -> dict[str, int]:
        """Writes one part for each block of a bucket, an empty one too: old ones must go."""
        bucket, batches = grouped
        pairs = [np.frombuffer(batch, np.uint64).reshape(2, -1) for batch in batches if batch]
        nodes, roots = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.uint64)
        order = np.argsort(nodes)
        nodes, roots = nodes[order], roots[order]
        blocks = nodes >> np.uint64(self._local_bits)
        first, last = bucket * BUCKET, min((bucket + 1) * BUCKET, len(self._grid))
        for linear in range(first, last):
            low, high = np.searchsorted(blocks, [linear, linear + 1])
            columns = {'supervoxel': nodes[low:high], 'segment': roots[low:high]}
            part = self._run().table_part('segment_of', self._grid.index(linear))
            storage.write_bytes(part, tables.to_parquet(columns, tables.SEGMENT_OF))
        peak = worker.peak_memory_bytes()
        return {'rows': len(nodes), 'blocks': last - first, 'peak_memory_bytes': peak}

    def finish(self, total: dict[str, int], state: dict[str, Any]) -> dict[str, Any]:
        """Writes the marker and the summary; keeps the old ones when nothing had changed."""
        path = storage.join(self._ledger().path, 'summary.json')
        if state['missing']:
            hole = quarantine.hole(quarantine.BLOCKED, (), None, state['missing'])
            count = len(self._grid)
            summary = {
                'blocks': count, 'blocks_run': 0, 'blocks_reused': 0, 'blocks_quarantined': 0,
                'blocks_blocked': count, 'rows': 0, 'seconds': 0.0, 'wall_seconds': 0.0,
                'holes': [hole],
            }  # fmt: skip
            storage.write_bytes(path, json.dumps(summary, indent=1).encode())
            return summary
        self._run().restore_table('segment_of')
        if state['current']:
            summary = json.loads(storage.read_bytes(path))
            summary |= {'blocks_run': 0, 'blocks_reused': summary['blocks'], 'wall_seconds': 0.0}
        else:
            seconds = time.time() - state['started']
            summary = {
                'blocks': total['blocks'], 'blocks_run': total['blocks'], 'blocks_reused': 0,
                'rows': total['rows'], 'seconds': seconds, 'wall_seconds': seconds,
                'peak_memory_bytes': total['peak_memory_bytes'],
            }  # fmt: skip
        storage.write_bytes(path, json.dumps(summary, indent=1).encode())
        storage.write_bytes(self._marker(), json.dumps({'key': state['key']}).encode())
        return summary

    def _run(self) -> Run:
        return Run.at(self._run_path)

    def _ledger(self) -> Ledger:
        return self._run().ledger('components')

    def _marker(self) -> str:
        return storage.join(self._ledger().path, 'marker.json')


class _ReadEdges(beam.DoFn):
    """Joins the edge rows of many blocks into batches."""

    def __init__(self, files: _Files):
        self._files = files

    def start_bundle(self) -> None:
        self._parts: list[tables.Columns] = []
        self._rows = 0

    def process(self, linear: int) -> Iterator[tables.Columns]:
        part = self._files.read_edges(linear)
        self._parts.append(part)
        self._rows += tables.length(part)
        if self._rows >= BATCH_ROWS:
            yield self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._rows:
            window = GlobalWindow()
            yield WindowedValue(self._flush(), window.max_timestamp(), [window])

    def _flush(self) -> tables.Columns:
        joined = tables.concatenate(self._parts, tables.EDGES)
        self._parts, self._rows = [], 0
        return {'a': joined['a'], 'b': joined['b']}


class _Total(beam.CombineFn):
    """Adds up the counts of the bucket writers; peaks are maxima."""

    def create_accumulator(self) -> dict[str, int]:
        return {'rows': 0, 'blocks': 0, 'peak_memory_bytes': 0}

    def add_input(self, total: dict[str, int], part: dict[str, int]) -> dict[str, int]:
        return self.merge_accumulators([total, part])

    def merge_accumulators(self, parts: Iterable[dict[str, int]]) -> dict[str, int]:
        total = self.create_accumulator()
        for part in parts:
            total['rows'] += part['rows']
            total['blocks'] += part['blocks']
            peak = max(total['peak_memory_bytes'], part['peak_memory_bytes'])
            total['peak_memory_bytes'] = peak
        return total

    def extract_output(self, total: dict[str, int]) -> dict[str, int]:
        return total


def _unless_current(element: Any, state: dict[str, Any]) -> bool:
    return not state['current']


def _by_bucket(
    element: tuple[int, dict[str, np.ndarray]], local_bits: int
) -> Iterator[tuple[int, bytes]]:
    """Splits (node, root) rows by the bucket of the node's block; drops nodes that are roots."""
    _, columns = element
    pairs = np.stack([columns['node'], columns['root']])
    pairs = pairs[:, pairs[0] != pairs[1]]
    buckets = (pairs[0] >> np.uint64(local_bits)) // np.uint64(BUCKET)
    for bucket in np.unique(buckets):
        yield int(bucket), np.ascontiguousarray(pairs[:, buckets == bucket]).tobytes()
