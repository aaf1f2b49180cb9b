"""Connected components of a random graph through Beam, against scipy: time, rounds, memory.

    python -m tests.benchmarks.components --edges 20000000 --nodes 30000000

The graph has `edges` edges between `nodes` nodes, both ends uniform. Above edges / nodes = 1/2 it
has a giant component. Edges are made in the workers from batch numbers, and every partition of
the result is written by the worker that has it, so no bulk passes through the driver's Python.
The driver then makes the same edges again and compares every root with scipy's. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from scipy import sparse
from scipy.sparse import csgraph

from h01_beam.agglomeration import contraction
from h01_beam.agglomeration.components import DEFAULT_SHARD_ROWS, METRICS, ConnectedComponents
from h01_beam.options import Options

BATCH_EDGES = 500_000


def random_edges(seed: int, batch: int, edges: int, nodes: int) -> np.ndarray:
    """(2, n) int64: the edges of one batch, as node numbers in `[0, nodes)`."""
    count = min(BATCH_EDGES, edges - batch * BATCH_EDGES)
    return np.random.default_rng((seed, batch)).integers(0, nodes, (2, count))


def ids_of(numbers: np.ndarray) -> np.ndarray:
    """Spreads node numbers over all 64-bit ids, so that no order is left to help."""
    return contraction.priority(numbers.astype(np.uint64) + np.uint64(1), 1_000_003)


class MakeEdges(beam.DoFn):
    def __init__(self, seed: int, edges: int, nodes: int) -> None:
        self._arguments = seed, edges, nodes

    def process(self, batch: int) -> Iterator[dict[str, np.ndarray]]:
        seed, edges, nodes = self._arguments
        a, b = random_edges(seed, batch, edges, nodes)
        yield {'a': ids_of(a), 'b': ids_of(b)}


class WritePartition(beam.DoFn):
    """Writes one partition of the result, and the peak memory of this process."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def process(self, element: tuple[int, dict[str, np.ndarray]]) -> None:
        partition, batch = element
        np.save(self._folder / f'{partition}.npy', np.stack([batch['node'], batch['root']]))
        del batch
        (self._folder / f'process_{os.getpid()}').write_text(f'{peak_memory_bytes()}')


def peak_memory_bytes() -> int:
    """Peak resident memory of this process (of its own program: exec inherits ru_maxrss)."""
    status = Path('/proc/self/status')
    found = re.search(r'VmHWM:\s*(\d+) kB', status.read_text()) if status.exists() else None
    kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * 1024


def compare_with_scipy(folder: Path, seed: int, edges: int, nodes: int) -> dict[str, float]:
    """Compares the written roots with scipy's; raises AssertionError on any difference."""
    batches = range(-(-edges // BATCH_EDGES))
    a, b = np.concatenate([random_edges(seed, i, edges, nodes) for i in batches], axis=1)
    start = time.monotonic()
    graph = sparse.coo_matrix((np.ones(edges, np.bool_), (a, b)), shape=(nodes, nodes))
    count, label = csgraph.connected_components(graph, directed=False)
    seconds = time.monotonic() - start
    present = np.zeros(nodes, bool)
    present[a] = present[b] = True
    del graph, a, b
    ids = ids_of(np.arange(nodes))
    expected = np.full(count, np.uint64(2**64 - 1))
    np.minimum.at(expected, label, ids)
    seen = np.zeros(nodes, bool)
    for path in folder.glob('*.npy'):
        node, root = np.load(path)
        number = contraction.from_priority(node, 1_000_003).astype(np.int64) - 1
        assert not seen[number].any(), 'a node occurs twice'
        seen[number] = True
        assert np.array_equal(root, expected[label[number]]), f'{path.name}: wrong roots'
    assert np.array_equal(seen, present), 'nodes are missing, or were made up'
    sizes = np.bincount(label)
    return {
        'scipy_s': round(seconds, 1),
        'nodes_with_edges': int(present.sum()),
        'components': int(np.count_nonzero(np.bincount(label[present]))),
        'largest_component': int(sizes.max()),
    }


def rounds_of(result: beam.runners.runner.PipelineResult) -> dict[str, list[int]]:
    """Rows and live nodes of every round that had any."""
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(METRICS))
    values = {c.key.metric.name: c.committed for c in counters['counters']}
    return {
        kind: [values[name] for name in sorted(values) if name.startswith(kind) and values[name]]
        for kind in ('offers', 'nodes')
    }


def measure(args: argparse.Namespace, beam_options: list[str], folder: Path) -> dict[str, object]:
    """Runs the pipeline and returns its figures."""
    transform = ConnectedComponents.for_edges(args.edges, args.shard_rows)
    pipeline = beam.Pipeline(options=Options(beam_options))
    _ = (
        pipeline
        | beam.Create(range(-(-args.edges // BATCH_EDGES)), reshuffle=False)
        | beam.ParDo(MakeEdges(args.seed, args.edges, args.nodes))
        | transform
        | beam.ParDo(WritePartition(str(folder)))
    )
    start = time.monotonic()
    result = pipeline.run()
    result.wait_until_finish()
    seconds = time.monotonic() - start
    workers = {path.name: int(path.read_text()) for path in folder.glob('process_*')}
    own = workers.pop(f'process_{os.getpid()}', None)
    rounds = rounds_of(result)
    return {
        'edges': args.edges,
        'nodes': args.nodes,
        'partitions': transform.partitions,
        'shard_rows': transform.shard_rows,
        'rounds_allowed': transform.rounds,
        'rounds_used': len(rounds['nodes']),
        'seconds': round(seconds, 1),
        'edges_per_s': round(args.edges / seconds),
        'peak_worker_mb': sorted(value // 2**20 for value in workers.values()),
        'peak_driver_mb': (own or peak_memory_bytes()) // 2**20,
        'offers_per_round': rounds['offers'],
        'nodes_per_round': rounds['nodes'],
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--edges', type=int, default=20_000_000)
    parser.add_argument('--nodes', type=int, default=30_000_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--shard_rows', type=int, default=DEFAULT_SHARD_ROWS)
    parser.add_argument('--workers', type=int, default=2, help='0: within this process')
    args, beam_options = parser.parse_known_args(argv)
    if args.workers:
        # Or the runner loses data: while a timer flushes what it sends to a worker, what is
        # written meanwhile is dropped. `ConnectedComponents` would notice and fail.
        worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
        beam_options += [
            '--direct_running_mode=multi_processing',
            f'--direct_num_workers={args.workers}',
        ]
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(args, beam_options, Path(folder))
        figures |= compare_with_scipy(Path(folder), args.seed, args.edges, args.nodes)
    print(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main(sys.argv[1:])
