"""Beam stage of the evaluation. Shape: blocks, then joins by id.

    truth, segmentation -> EvaluateBlock -> overlaps, extents (tables, one part per block)
    overlaps -> by truth, by segment -> sums -> scores; tables of errors
    extents  -> by object -> skeletons -> nodes by block -> labels -> by object -> runs by segment
    worst errors -> blocks that hold them -> views -> picture

No process sees more than some blocks, the rows of a partition of ids, or the box of one object.
"""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput
from numpy.typing import NDArray

from h01_beam import storage, tables
from h01_beam.blockwise import MapBlocks
from h01_beam.evaluation import erl, errors, figures
from h01_beam.evaluation.config import Evaluation
from h01_beam.evaluation.contingency import (
    OVERLAPS,
    Overlaps,
    count_overlaps,
    merge_rows,
    mix_ids,
    partition_rows,
)
from h01_beam.evaluation.scores import OverlapSums, Scores, score, sum_segments, sum_truths
from h01_beam.finish import CountHoles, unless_holes
from h01_beam.geometry import Block, BlockGrid, Triple
from h01_beam.morphology.extents import EXTENTS, Extents, measure_extents, merge_extents
from h01_beam.morphology.skeletons import Skeletons
from h01_beam.morphology.stage import SampleNodes, SkeletonizeObjects
from h01_beam.plan import BlockResult
from h01_beam.run import Run, part_of_table
from h01_beam.volume import Volume, VolumeSpec


def build_evaluate(
    root: Any, evaluation: Evaluation, run: Run, after: Sequence[beam.PCollection] = ()
) -> beam.PCollection:
    """Adds the evaluation to a pipeline; yields one element, the `Scores`.

    Args:
      root: the pipeline.
      evaluation: what is evaluated.
      run: the run.
      after: stages that write the volumes.
    """
    config = evaluation.config
    grid = BlockGrid(evaluation.bounds, config.block_shape)
    partitions = config.partitions or min(4096, 1 + len(grid) // 8)
    records = root | MapBlocks(
        EvaluateBlock(),
        stage='evaluate',
        grid=grid,
        run=run,
        reads={'segmentation': evaluation.segmentation, 'truth': evaluation.truth},
        table_writes={'overlaps': OVERLAPS, 'truth_extents': EXTENTS},
        after=after,
    )
    # Scores of a volume with holes would look like those of the segmentation.
    holes = AsSingleton(records | CountHoles())
    blocks = (
        records
        | 'IfWhole' >> beam.Filter(unless_holes, holes)
        | 'Index' >> beam.Map(lambda record, grid: grid.index(record['index']), grid)
    )
    overlaps = (
        blocks
        | 'ReadOverlaps' >> beam.FlatMap(_read_overlaps, run.table('overlaps'), partitions)
        | 'MergeOverlaps' >> beam.CombinePerKey(merge_rows)
    )
    sums = (
        overlaps
        | 'Sum' >> beam.Map(_sum_overlaps)
        | 'AddSums' >> beam.CombineGlobally(_AddSums(OverlapSums()))
    )
    run_sums = _measure_runs(blocks, evaluation, grid, partitions, run)
    scores = (
        sums
        | 'ForgetScores' >> beam.Filter(_forget_unless_whole, holes, evaluation)
        | 'Write' >> beam.Map(_write_scores, AsSingleton(run_sums), evaluation)
    )
    worst = _tabulate_errors(overlaps, sums, evaluation)
    picture = _draw_worst(blocks, worst, scores, evaluation, grid, run)
    run.summaries += [scores, picture]
    return scores


@dataclasses.dataclass(frozen=True)
class EvaluateBlock:
    """What one block says of a segmentation: overlaps, and where the truth objects lie."""

    def __call__(
        self, segmentation: NDArray[Any], truth: NDArray[Any], block: Block
    ) -> BlockResult:
        """Returns the rows of a block; arrays are zyx integer labels."""
        overlaps = count_overlaps(segmentation, truth)
        extents = measure_extents(truth, block.core.start)
        return BlockResult(
            rows={'overlaps': overlaps.columns(), 'truth_extents': extents.columns()},
            metrics={'truth_voxels': int(overlaps.voxels.sum())},
        )

    def working_bytes(self, read_shape: Triple) -> int:
        """Memory for runs and for renumbered labels, beside the arrays read."""
        return 24 * math.prod(read_shape)


# ------------------------------------------------------------------ overlaps -> scores, tables


def _read_overlaps(
    index: Triple, table: str, partitions: int
) -> Iterator[tuple[tuple[str, int], Overlaps]]:
    """Yields a block's rows twice: by truth and by segment."""
    rows = Overlaps.from_columns(_read_part(table, index))
    for part, some in partition_rows(rows, 'truth', partitions):
        yield ('truth', part), some
    for part, some in partition_rows(rows, 'segment', partitions):
        # Unlabelled voxels are no segment; the partition of id 0 would hold every object.
        labelled = some.take(some.segment != 0)
        if len(labelled):
            yield ('segment', part), labelled


def _sum_overlaps(keyed: tuple[tuple[str, int], Overlaps]) -> OverlapSums:
    (kind, _), rows = keyed
    return sum_truths(rows) if kind == 'truth' else sum_segments(rows)


class _AddSums(beam.CombineFn):
    """Adds sums, starting from their zero."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def create_accumulator(self) -> Any:
        return self._zero

    def add_input(self, total: Any, sums: Any) -> Any:
        return total + sums

    def merge_accumulators(self, totals: Iterable[Any]) -> Any:
        return sum(totals, self._zero)

    def extract_output(self, total: Any) -> Any:
        return total


def _forget_unless_whole(sums: OverlapSums, holes: int, evaluation: Evaluation) -> bool:
    """Whether there is something to score; old scores, tables and pictures go if there is not."""
    if holes:
        for ending in ('_truths.parquet', '_segments.parquet', '.png'):
            storage.delete(_stem(evaluation) + ending)
        storage.delete(evaluation.output)
    return not holes


def _write_scores(sums: OverlapSums, run_sums: erl.RunSums, evaluation: Evaluation) -> Scores:
    scores = score(sums)
    if evaluation.voxel_size_nm is not None:
        scores = scores.with_runs(*erl.run_lengths(run_sums))
    record = {
        **scores.to_dict(),
        'segmentation': evaluation.segmentation.uri,
        'truth': evaluation.truth.uri,
        'start': evaluation.bounds.start,
        'shape': evaluation.bounds.shape,
        'voxel_size_nm': evaluation.voxel_size_nm,
        'merge_tolerance_nodes': evaluation.config.merge_tolerance_nodes,
    }
    text = json.dumps(record, indent=2, allow_nan=False) + '\n'
    storage.write_bytes(evaluation.output, text.encode())
    return scores


def _tabulate_errors(
    overlaps: beam.PCollection, sums: beam.PCollection, evaluation: Evaluation
) -> beam.PCollection:
    """Writes both tables; yields ('truth' or 'segment', the rows to be drawn)."""
    config = evaluation.config
    return (
        overlaps
        | 'Tabulate' >> beam.Map(_tabulate, AsSingleton(sums), config.min_fraction)
        | 'JoinTables' >> beam.CombinePerKey(_WorstRows(config.table_rows))
        | 'WriteTables' >> beam.Map(_write_table, evaluation)
    )


def _tabulate(
    keyed: tuple[tuple[str, int], Overlaps], sums: OverlapSums, min_fraction: float
) -> tuple[str, errors.Table]:
    (kind, _), rows = keyed
    make = errors.tabulate_truths if kind == 'truth' else errors.tabulate_segments
    return kind, make(rows, sums.labelled_voxels, min_fraction)


class _WorstRows(beam.CombineFn):
    """Joins tables of disjoint ids and keeps the rows that add the most to the VOI."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def create_accumulator(self) -> errors.Table:
        return {}

    def add_input(self, table: errors.Table, more: errors.Table) -> errors.Table:
        return self.merge_accumulators([table, more])

    def merge_accumulators(self, parts: Iterable[errors.Table]) -> errors.Table:
        some = [part for part in parts if part]
        if not some:
            return {}
        by = 'voi_split' if 'voi_split' in some[0] else 'voi_merge'
        return errors.join_tables(some, by, next(iter(some[0])), self._rows)

    def extract_output(self, table: errors.Table) -> errors.Table:
        return table


def _write_table(
    keyed: tuple[str, errors.Table], evaluation: Evaluation
) -> tuple[str, errors.Table]:
    """Writes a table; returns the rows to be drawn: with several parts that count."""
    kind, table = keyed
    schema, parts = (errors.TRUTHS, 'segments') if kind == 'truth' else (errors.SEGMENTS, 'truths')
    path = f'{_stem(evaluation)}_{kind}s.parquet'
    storage.write_bytes(path, tables.to_parquet(table, schema))
    several = np.flatnonzero(table[parts] > 1)[: evaluation.config.pictured]
    return kind, {name: column[several] for name, column in table.items()}


# ------------------------------------------------------------------ extents -> run lengths


def _measure_runs(
    blocks: beam.PCollection, evaluation: Evaluation, grid: BlockGrid, partitions: int, run: Run
) -> beam.PCollection:
    """Yields the `RunSums` over all truth objects; zero if there is no voxel size."""
    config = evaluation.config
    zero = beam.CombineGlobally(_AddSums(erl.RunSums()))
    if evaluation.voxel_size_nm is None:
        return blocks | 'NoRuns' >> beam.FlatMap(lambda _: ()) | zero
    scored = (
        blocks
        | 'ReadExtents' >> beam.FlatMap(_read_extents, run.table('truth_extents'), partitions)
        | 'MergeExtents' >> beam.CombinePerKey(merge_extents)
        | 'Skeletons'
        >> SkeletonizeObjects(
            evaluation.truth.uri,
            evaluation.bounds,
            evaluation.voxel_size_nm,
            config.skeletons,
            config.max_object_voxels,
        )
        | 'Nodes' >> SampleNodes(evaluation.segmentation.uri, grid)
        | 'ScoreObjects' >> beam.ParDo(_ScoreObject(), partitions).with_outputs('sums', main='runs')
    )
    merged = (
        scored['runs']
        | 'JoinRuns' >> beam.CombinePerKey(erl.join_runs)
        | 'ScoreRuns' >> beam.Map(_score_runs, config.merge_tolerance_nodes)
    )
    return (scored['sums'], merged) | 'FlattenRuns' >> beam.Flatten() | 'AddRuns' >> zero


def _read_extents(index: Triple, table: str, partitions: int) -> Iterator[tuple[int, Extents]]:
    extents = Extents.from_columns(_read_part(table, index))
    key = mix_ids(extents.label) % np.uint64(partitions)
    for part in np.unique(key):
        yield int(part), extents.take(key == part)


class _ScoreObject(beam.DoFn):
    """One object's skeletons and the labels of its nodes -> runs by partition, and sums."""

    def process(
        self, element: tuple[int, Skeletons, NDArray[np.uint64]], partitions: int
    ) -> Iterator[Any]:
        runs, sums = erl.score_skeletons(*element[1:])
        yield TaggedOutput('sums', sums)
        yield from erl.partition_runs(runs, partitions)


def _score_runs(keyed: tuple[int, erl.Runs], merge_tolerance_nodes: int) -> erl.RunSums:
    return erl.score_runs(keyed[1], merge_tolerance_nodes)


# ------------------------------------------------------------------ worst errors -> picture


def _draw_worst(
    blocks: beam.PCollection,
    worst: beam.PCollection,
    scores: beam.PCollection,
    evaluation: Evaluation,
    grid: BlockGrid,
    run: Run,
) -> beam.PCollection:
    """Writes the picture; yields its path."""
    parts = (
        blocks
        | 'Locate'
        >> beam.ParDo(_LocateErrors(evaluation, grid, run.table('overlaps')), AsDict(worst))
        | 'MergeParts' >> beam.CombinePerKey(errors.merge_parts)
    )
    return scores | 'Draw' >> beam.Map(_draw, AsDict(worst), AsDict(parts), evaluation)


class _LocateErrors(beam.DoFn):
    """Block -> ('truth' or 'segment', the parts of the worst errors in it)."""

    def __init__(self, evaluation: Evaluation, grid: BlockGrid, table: str) -> None:
        self._uris = evaluation.segmentation.uri, evaluation.truth.uri
        self._grid, self._table = grid, table

    def setup(self) -> None:
        self._segmentation, self._truth = (Volume.open(uri) for uri in self._uris)

    def process(
        self, index: Triple, worst: Mapping[str, errors.Table]
    ) -> Iterator[tuple[str, errors.PlaneParts]]:
        rows = _read_part(self._table, index)
        targets = {
            kind: np.intersect1d(rows[kind], worst[kind][kind])
            for kind in ('truth', 'segment')
            if kind in worst
        }
        if not any(map(len, targets.values())):
            return
        core = self._grid[index].core
        truth, segmentation = self._truth.read(core), self._segmentation.read(core)
        for kind, ids in targets.items():
            pair = (truth, segmentation) if kind == 'truth' else (segmentation, truth)
            yield kind, errors.locate_parts(*pair, core.start, ids)


def _draw(
    scores: Scores,
    worst: Mapping[str, errors.Table],
    parts: Mapping[str, errors.PlaneParts],
    evaluation: Evaluation,
) -> str:
    names = [_name(spec) for spec in (evaluation.segmentation, evaluation.truth)]
    picture = figures.draw_errors(
        _cut_crops('truth', worst, parts, evaluation),
        _cut_crops('segment', worst, parts, evaluation),
        title=f'Worst errors of {names[0]}',
        subtitle=f'against {names[1]}:  {scores.describe()}',
    )
    path = f'{_stem(evaluation)}.png'
    storage.write_bytes(path, picture)
    return path


def _cut_crops(
    kind: str,
    worst: Mapping[str, errors.Table],
    parts: Mapping[str, errors.PlaneParts],
    evaluation: Evaluation,
) -> list[figures.ErrorCrop]:
    """Reads what the picture shows of the worst truths or segments."""
    if kind not in worst or kind not in parts:
        return []
    table, config = worst[kind], evaluation.config
    segmentation = Volume.open(evaluation.segmentation.uri)
    truth = Volume.open(evaluation.truth.uri)
    image = Volume.open(evaluation.image.uri) if evaluation.image else None
    crops = []
    for row, target in enumerate(table[kind]):
        view = errors.choose_view(parts[kind], int(target))
        box = errors.crop_around(view, config.crop, evaluation.bounds)
        crops.append(
            figures.ErrorCrop(
                kind='split' if kind == 'truth' else 'merge',
                view=view,
                bits=float(table['voi_split' if kind == 'truth' else 'voi_merge'][row]),
                parts=int(table['segments' if kind == 'truth' else 'truths'][row]),
                largest_fraction=float(table['largest_fraction'][row]),
                segmentation=segmentation.read(box)[0],
                truth=truth.read(box)[0],
                image=image.read(box)[0] if image else None,
                voxel_size_nm=evaluation.voxel_size_nm and evaluation.voxel_size_nm[1:],
                min_fraction=config.min_fraction,
            )
        )
    return crops


def _read_part(table: str, index: Triple) -> tables.Columns:
    return tables.from_parquet(storage.read_bytes(part_of_table(table, index)))


def _stem(evaluation: Evaluation) -> str:
    return posixpath.splitext(evaluation.output)[0]


def _name(spec: VolumeSpec) -> str:
    return posixpath.splitext(posixpath.basename(spec.path))[0]
