"""How a run ends: each stage's records become a summary, all summaries become the report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam

from h01_beam import quarantine, report, storage, tables
from h01_beam.geometry import BlockGrid
from h01_beam.ledger import Ledger
from h01_beam.run import Run
from h01_beam.tables import Schema

_COUNTED = ('blocks', 'blocks_run', 'blocks_reused', 'rows', 'seconds')
_LEFT_OUT = ('blocks_quarantined', 'blocks_blocked')
# Blocks whose rows share one file of a compacted table.
COMPACTED_BLOCKS = 256


class SummarizeStage(beam.PTransform):
    """Adds up a stage's block records into `ledger/STAGE/summary.json`; yields the summary."""

    def __init__(self, stage: str, ledger: Ledger):
        super().__init__(label=f'Summarize_{stage}')
        self._stage = stage
        self._ledger = ledger

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        return (
            records
            | beam.CombineGlobally(StageSummary())
            | beam.Map(_write_summary, self._stage, self._ledger)
        )


class StageSummary(beam.CombineFn):
    """Counts blocks, adds metrics, takes maxima of `peak_*`, and combines digests.

    The combined digest is the sum of the blocks' digests, so that the order does not matter.
    Of blocks that were left out, it counts all and lists the first.
    """

    def create_accumulator(self) -> dict[str, Any]:
        return {'blocks': 0, 'blocks_run': 0, 'blocks_reused': 0, 'rows': 0, 'seconds': 0.0,
                'digest': 0, 'started': None, 'ended': None, 'metrics': {},
                'blocks_quarantined': 0, 'blocks_blocked': 0, 'holes': []}  # fmt: skip

    def add_input(self, total: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        ran, hole = record['ran'], record.get('hole') or {}
        return self.merge_accumulators(
            [
                total,
                {
                    'blocks': 1,
                    'blocks_run': int(ran),
                    'blocks_reused': int(not ran and not hole),
                    'blocks_quarantined': int(
                        bool(hole) and hole['kind'] == quarantine.QUARANTINED
                    ),
                    'blocks_blocked': int(hole.get('kind') == quarantine.BLOCKED),
                    'holes': [hole] if hole else [],
                    'rows': record['rows'],
                    'seconds': record['seconds'],
                    'digest': _digest_at(record['index'], record['digest']),
                    'started': record['started'] if ran else None,
                    'ended': record['ended'] if ran else None,
                    'metrics': record['metrics'],
                },
            ]
        )

    def merge_accumulators(self, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
        total = self.create_accumulator()
        for part in parts:
            for name in (*_COUNTED, *_LEFT_OUT):
                total[name] += part[name]
            holes = [*total['holes'], *part['holes']]
            total['holes'] = sorted(holes, key=_kind_and_block)[: quarantine.LISTED]
            total['digest'] = (total['digest'] + part['digest']) % 2**128
            total['started'] = _extreme(min, total['started'], part['started'])
            total['ended'] = _extreme(max, total['ended'], part['ended'])
            for name, value in part['metrics'].items():
                old = total['metrics'].get(name, 0)
                total['metrics'][name] = (
                    max(old, value) if name.startswith('peak_') else old + value
                )
        return total

    def extract_output(self, total: dict[str, Any]) -> dict[str, Any]:
        wall = total['ended'] - total['started'] if total['started'] else 0.0
        holes = {name: total[name] for name in (*_LEFT_OUT, 'holes')} if total['holes'] else {}
        return {
            **{name: total[name] for name in _COUNTED},
            **holes,
            'wall_seconds': wall,
            'digest': f'{total["digest"]:032x}',
            **dict(sorted(total['metrics'].items())),
        }


def _kind_and_block(hole: Mapping[str, Any]) -> tuple[bool, list[int]]:
    return hole['kind'] != quarantine.QUARANTINED, hole['block']


class CountHoles(beam.PTransform):
    """Block records -> one number: how many of the blocks were left out."""

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        return (
            records
            | 'Holes' >> beam.Map(lambda record: int(bool(record['hole'])))
            | 'Sum' >> beam.CombineGlobally(sum)
        )


def unless_holes(record: Any, holes: int) -> bool:
    """For `beam.Filter`: what is made of all blocks is made of none if some were left out."""
    return not holes


def _write_summary(summary: dict[str, Any], stage: str, ledger: Ledger) -> tuple[str, Any]:
    text = json.dumps(summary, indent=1)
    storage.write_bytes(storage.join(ledger.path, 'summary.json'), text.encode())
    return stage, summary


def _digest_at(index: int, digest: str) -> int:
    # With the index in it, two blocks that swap what they wrote change the sum.
    return int(hashlib.sha256(f'{index}:{digest}'.encode()).hexdigest()[:32], 16)


def _extreme(choose: Callable[..., Any], a: float | None, b: float | None) -> float | None:
    present = [v for v in (a, b) if v is not None]
    return choose(present) if present else None


class CompactTable(beam.PTransform):
    """Joins the parts of a table, `COMPACTED_BLOCKS` blocks to a file `tables/NAME/000000.parquet`.

    A file is written again only when one of its blocks changed; its `.key` says of what it is
    made. If a block was left out, so is its file. Input: block records. Output: (number of the
    file, rows written or None).
    """

    def __init__(self, run: Run, name: str, grid: BlockGrid, schema: Schema):
        super().__init__(label=f'Compact_{name}')
        self._run_path, self._name, self._grid, self._schema = run.path, name, grid, schema

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        return (
            records
            | 'ByFile' >> beam.Map(_file_and_digest)
            | beam.CombinePerKey(_add_pairs)
            | 'Join' >> beam.Map(_join_parts, self._run_path, self._name, self._grid, self._schema)
        )


def forget_blocks(run: Run, name: str, old: BlockGrid, new: BlockGrid) -> None:
    """Deletes the rows of blocks that are no more, and the files that were joined of old blocks."""
    for number in range(-(-len(old) // COMPACTED_BLOCKS)):
        path = _joined_file(run, name, number)
        storage.delete(path + '.key')
        storage.delete(path)
    if all(n <= m for n, m in zip(old.shape, new.shape, strict=True)):
        return
    for block in old:
        if any(i >= n for i, n in zip(block.index, new.shape, strict=True)):
            storage.delete(run.table_part(name, block.index))


def _joined_file(run: Run, name: str, number: int) -> str:
    return storage.join(run.table(name), f'{number:06d}.parquet')


def _file_and_digest(record: Mapping[str, Any]) -> tuple[int, tuple[int, int]]:
    """The number of the file, and of the block what its digest and its holes add to those."""
    number, digest = record['index'] // COMPACTED_BLOCKS, record['digest']
    return number, (_digest_at(record['index'], digest), int(bool(record['hole'])))


def _add_pairs(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    digest = holes = 0
    for one_digest, one_hole in pairs:
        digest, holes = digest + one_digest, holes + one_hole
    return digest, holes


def _join_parts(
    file_and_digest: tuple[int, tuple[int, int]],
    run_path: str,
    name: str,
    grid: BlockGrid,
    schema: Schema,
) -> tuple[int, int | None]:
    number, (digest, holes) = file_and_digest
    run = Run.at(run_path)
    path = _joined_file(run, name, number)
    key = f'{digest:x}'.encode()
    if storage.exists(path) and storage.exists(path + '.key'):
        if storage.read_bytes(path + '.key') == key:
            return number, None
    storage.delete(path + '.key')  # Before the file changes; see `Ledger.void`.
    if holes:
        storage.delete(path)
        return number, None
    first, last = number * COMPACTED_BLOCKS, (number + 1) * COMPACTED_BLOCKS
    parts = (
        tables.from_parquet(storage.read_bytes(run.table_part(name, grid.index(linear))))
        for linear in range(first, min(last, len(grid)))
    )
    joined = tables.concatenate(parts, schema)
    storage.write_bytes(path, tables.to_parquet(joined, schema))
    storage.write_bytes(path + '.key', key)
    return number, tables.length(joined)


class FinishRun(beam.PTransform):
    """Writes the report when every stage built into the run has ended.

    Fails the run, after that, if blocks were left out: see `h01_beam.quarantine`.

    Args:
      run: the run, with all stages built.
      figures: functions of the run's path that draw into its figures folder and return
        {path of PNG: caption}.
      highlights: function of the report's content: {what: number} for its top.
      scores: function of the run's path: `scores` of the report's content, or None.
      sections: function of the run's path: `sections` of the report's content, a dictionary each.
    """

    def __init__(
        self,
        run: Run,
        figures: Sequence[Callable[[str], Mapping[str, str]]] = (),
        highlights: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        scores: Callable[[str], Mapping[str, Any] | None] | None = None,
        sections: Callable[[str], list[dict[str, Any]]] | None = None,
    ):
        super().__init__(label='Report')
        self._summaries = run.summaries
        self._path, self._attempt = run.path, run.attempt
        self._stages = [plan.name for plan in run.all_plans()]
        self._figures = list(figures)
        self._highlights = highlights
        self._scores = scores
        self._sections = sections

    def expand(self, root: Any) -> beam.PCollection:
        return (
            root
            | beam.Create([self._path], reshuffle=False)
            | 'WaitForStages' >> beam.WaitOn(*self._summaries)
            | 'Write'
            >> beam.Map(
                _write_report,
                self._attempt,
                self._stages,
                self._figures,
                self._highlights,
                self._scores,
                self._sections,
            )
        )


def _write_report(
    path: str,
    attempt: str,
    stages: Sequence[str],
    figures: Sequence[Callable[[str], Mapping[str, str]]],
    highlights: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    scores: Callable[[str], Mapping[str, Any] | None] | None,
    sections: Callable[[str], list[dict[str, Any]]] | None,
) -> str:
    content = report.collect(path, stages)
    content['attempt'] = attempt
    missing = quarantine.explain(content['stages'])
    if missing:
        # Scores and pictures would be of what is not there.
        report.write(path, content, {})
        raise quarantine.QuarantinedBlockError(missing)
    found = scores(path) if scores else None
    if found:
        content['scores'] = found
    if sections:
        content['sections'] = sections(path)
    if highlights:
        content['highlights'] = dict(highlights(content))
    drawn: dict[str, str] = {}
    for figure in figures:
        drawn |= figure(path)
    report.write(path, content, drawn)
    return path
