"""The ledger under millions of blocks, measured: is it planned, listed and resumed in time?

The ledger lies in a folder, one name for each block, where a run would have written it. So that
ten million take no disk, the names of a layer of blocks are links to one real marker, and the
folders of all layers are links to the first: each is listed anew, and each name is asked for its
time, as if all were there. What is measured is the code that runs use: the plan of a stage
(`--dry_run`), its status, and, on some blocks that have markers of their own, a run that finds
everything done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam import status, worker
from h01_beam.blockwise import MapBlocks
from h01_beam.forecast.page import duration, number, size
from h01_beam.geometry import Block, BlockGrid, BoundingBox
from h01_beam.ledger import Marker, StageRecord, join_markers
from h01_beam.options import Options
from h01_beam.plan import BlockResult
from h01_beam.progress import count_done
from h01_beam.run import Resources, Run
from h01_beam.tables import Schema

# Blocks along y and x of a layer: names of one folder, and of one file.
LAYER = (200, 200)
# Blocks that are run, and found done.
RESUMED = 2000
# What the plan of ten million blocks may take.
SECONDS, BYTES = 600.0, 4 * 2**30
# A bucket: names in an answer to a listing, and answers a second. Assumed, not measured.
LISTED, ANSWERS = 1000, 5.0
ROWS = Schema({'block': 'int64'})


@dataclasses.dataclass(frozen=True)
class Measured:
    """One thing that was measured, as the JSON file has it."""

    what: str
    blocks: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def simulate(blocks: int, folder: str | None = None) -> dict[str, Any]:
    """Makes a ledger of so many blocks, measures, and removes it.

    Args:
      blocks: at least; whole layers are made.
      folder: where; None: the system's temporary folder.

    Raises:
      ValueError: `blocks` is not positive.
      OSError: the file system has no links, or no room.
    """
    if blocks < 1:
        raise ValueError(f'--ledger_blocks is {blocks}: must be at least 1')
    grid = make_grid(blocks)
    with tempfile.TemporaryDirectory(dir=folder, prefix='ledger_') as path:
        run = Run(str(Path(path, 'run')), Resources.local(1))
        run.write_manifest('ledger', {}, {})
        with _timed('names made, to measure with', len(grid)) as made:
            make_ledger(run, grid)
        rows = [made(), *_planned(run, grid)]
    rows.append(_resumed(folder))
    return {
        'how': __doc__.strip().replace('\n', ' '),
        'blocks': len(grid),
        'measured': [dataclasses.asdict(row) for row in rows],
        'fits': all(r.seconds <= SECONDS and r.peak_bytes <= BYTES for r in rows[1:3]),
        'breaks_first': breaks_first(rows, len(grid)),
    }


def describe(measured: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [
        f'{row["what"]:<58}{number(row["blocks"]):>14}{duration(row["seconds"]):>12}'
        f'{duration(row["cpu_seconds"]):>12}{size(row["peak_bytes"]):>12}'
        for row in measured['measured']
    ]
    verdict = 'within' if measured['fits'] else 'NOT within'
    return '\n'.join(
        [f'{"":<58}{"blocks":>14}{"time":>12}{"processor":>12}{"peak memory":>12}', *lines, '',
         f'Plan and status: {verdict} {duration(SECONDS)} and {BYTES / 2**30:g} GiB.',
         f'What breaks first: {measured["breaks_first"]}']
    )  # fmt: skip


def make_grid(blocks: int) -> BlockGrid:
    """A grid of at least so many blocks, of one voxel each, with a halo."""
    y, x = LAYER
    if blocks < y * x:
        y, x = 1, blocks
    layers = -(-blocks // (y * x))
    return BlockGrid(BoundingBox((0, 0, 0), (layers, y, x)), (1, 1, 1), (1, 1, 1))


def make_ledger(run: Run, grid: BlockGrid) -> None:
    """Names of markers of all blocks of the stage `blocks`."""
    ledger, since = run.ledger('blocks'), time.time()
    layers, rows, columns = grid.shape
    # Written by the ledger, as a run would.
    ledger.write((0, 0, 0), Marker(key='k', digest='d', rows=1, seconds=1.0))
    root = Path(join_markers(ledger.path))
    for y in range(rows):
        for x in range(y == 0, columns):
            os.link(root / '0/0_0.json', root / f'0/{y}_{x}.json')
    for z in range(1, layers):
        (root / str(z)).symlink_to(root / '0', target_is_directory=True)
    dry = Run(run.path, run.resources, dry_run=True)
    config = _stage(dry, grid).config_hash
    StageRecord(grid=grid, generation=1, config=config, since=since - 1).write(ledger)


def breaks_first(rows: list[Measured], blocks: int) -> str:
    """What gives way when there are more blocks, or when they lie in a bucket."""
    by_name = {row.what.partition(' (')[0]: row for row in rows}
    plan, resumed = by_name['plan'], by_name['run that finds all done']
    limit = blocks * SECONDS / plan.seconds
    listing = blocks / LISTED / ANSWERS
    per_block = resumed.cpu_seconds / resumed.blocks
    told = [
        (listing, f'listing {number(blocks)} markers in a bucket: {number(blocks / LISTED)} '
                  f'requests one after the other, about {duration(listing)} (assumed: '
                  f'{ANSWERS:g} answers a second)'),
        (plan.seconds, f'listing them on a local disk: {duration(plan.seconds)}'),
    ]  # fmt: skip
    first = max(told)[1]
    return (
        f'{first}. On this disk the plan stays within its {duration(SECONDS)} up to about '
        f'{number(limit)} blocks; its memory does not grow with them. (Links are looked up faster '
        'than as many files.) Workers read one marker for '
        f'each block, and for each block that its read box meets in stages before: '
        f'{duration(per_block * blocks)} of one process for {number(blocks)} blocks that are all '
        f'done, {duration(per_block * blocks / 1000)} on 1,000.'
    )


def _planned(run: Run, grid: BlockGrid) -> Iterator[Measured]:
    """What `--dry_run` does, and `pipelines.status`."""
    with _timed('plan (--dry_run: built, and done blocks counted)', len(grid)) as planned:
        plan = _plan(run, grid)
        done = count_done(plan, plan.since or 0.0)
        assert done == len(grid), f'{done} of {len(grid)} markers were found'
    yield planned()
    with _timed('status (listed with times)', len(grid)) as listed:
        (stage,) = status.read_status(run.path).stages
        assert stage.done == len(grid)
    yield listed()


def _plan(run: Run, grid: BlockGrid) -> Any:
    """The plan of the stage, in a dry run, with its job graph."""
    dry = Run(run.path, run.resources, dry_run=True)
    root = beam.Pipeline(runner='DirectRunner', options=Options())
    root | _stage(dry, grid)
    root.to_runner_api()
    return dry.plans[0]


def _stage(run: Run, grid: BlockGrid) -> MapBlocks:
    return MapBlocks(
        number_block, stage='blocks', grid=grid, run=run, table_writes={'numbers': ROWS}
    )


def number_block(block: Block) -> BlockResult:
    """The function of the blocks that are run: one row."""
    return BlockResult(rows={'numbers': {'block': np.array([block.index[2]])}})


def _resumed(folder: str | None) -> Measured:
    """A run over blocks that are all done: what a worker does to find that out."""
    grid = BlockGrid(BoundingBox((0, 0, 0), (1, 1, RESUMED)), (1, 1, 1), (0, 0, 1))
    with tempfile.TemporaryDirectory(dir=folder, prefix='ledger_') as path:
        run_blocks(path, grid)
        with _timed('run that finds all done (one process, Beam included)', RESUMED) as ended:
            run_blocks(path, grid)
        return ended()


def run_blocks(path: str, grid: BlockGrid) -> None:
    """Runs the stage in this process."""
    options = Options(['--direct_running_mode=in_memory', '--direct_num_workers=1'])
    with beam.Pipeline(runner='DirectRunner', options=options) as root:
        root | _stage(Run(path, Resources.local(1)), grid)


@contextlib.contextmanager
def _timed(what: str, blocks: int) -> Iterator[Callable[[], Measured]]:
    """Times its body; what it yields gives the result afterwards."""
    started = time.perf_counter(), time.process_time()
    ended: list[float] = []

    def result() -> Measured:
        wall, cpu = (round(seconds, 2) for seconds in ended)
        return Measured(what, blocks, wall, cpu, worker.peak_memory_bytes())

    yield result
    ended += [time.perf_counter() - started[0], time.process_time() - started[1]]
