"""Expected run length: how far one gets along a neurite before an error.

Take a random point on the skeletons of the truth; the run length is the length of skeleton that is
reached from it without an error, and its expectation is

    ERL = sum over skeletons and segments of (length inside the segment)^2 / length of all skeletons

An edge is correct when both of its nodes lie in one segment and that segment is not a merger. A
merger holds nodes of two or more truth objects; every edge in it has run length 0, so that an
error that is laborious to undo weighs more than a split. Source: Januszewski et al., Nat. Methods
15 (2018), where all edges count in the denominator (`all` here); a tolerance of some nodes for
mergers as in Wei et al., AxonEM (MICCAI 2021). In `foreground` only edges with both nodes in some
segment count.

Only the look-up of labels touches voxels, and it is done by block (`sample_labels`). Skeletons are
then scored object by object (`score_skeletons`), and what they leave is scored segment by segment
(`score_runs`); both leave sums that add.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h01_beam.evaluation.contingency import mix_ids
from h01_beam.labels import Counts, Ids
from h01_beam.morphology.skeletons import Skeletons

# Lengths are held as integers in this unit, so that sums do not depend on their order.
_PER_NM = 1024


@dataclass(frozen=True, eq=False)
class Runs:
    """Columnar rows: what one segment holds of one connected skeleton.

    Attributes:
      segment, object: (n,) uint64; segment is never 0.
      nodes: (n,) int64, nodes of the skeleton in the segment.
      length: (n,) int64, edges of the skeleton with both nodes in the segment, in nm / 1024.
    """

    segment: Ids
    object: Ids
    nodes: Counts
    length: Counts

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.segment)

    def take(self, rows: NDArray[Any]) -> Runs:
        """The rows chosen by an index or boolean array."""
        return Runs(self.segment[rows], self.object[rows], self.nodes[rows], self.length[rows])


def join_runs(batches: Iterable[Runs]) -> Runs:
    """Returns all rows in one table. Rows are never summed: each is a run of its own."""
    parts = [_EMPTY_RUNS, *batches]
    return Runs(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Runs)))


_EMPTY_RUNS = Runs(
    np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
)


def partition_runs(runs: Runs, partitions: int) -> Iterable[tuple[int, Runs]]:
    """Yields (partition, rows) so that all rows of one segment share a partition."""
    key = mix_ids(runs.segment) % np.uint64(partitions)
    for partition in np.unique(key):
        yield int(partition), runs.take(key == partition)


@dataclass(frozen=True, kw_only=True)
class RunSums:
    """Additive sums over skeletons; integers, lengths in nm / 1024.

    Attributes:
      length, labelled_length, split_length: edges in all, with both nodes in some segment, and
        with those in two segments.
      whole_squares, labelled_squares: sums over connected skeletons of their squared length, in
        all and of the labelled edges only.
      correct_length, merged_length: edges inside of one segment that is not, or is, a merger.
      run_squares: sum over runs in segments that are no mergers of the squared length.
      mergers: segments that hold nodes of several objects.
    """

    length: int = 0
    labelled_length: int = 0
    split_length: int = 0
    whole_squares: int = 0
    labelled_squares: int = 0
    correct_length: int = 0
    merged_length: int = 0
    run_squares: int = 0
    mergers: int = 0

    def __add__(self, other: RunSums) -> RunSums:
        """The sums over both operands' skeletons."""
        return RunSums(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


@dataclass(frozen=True, kw_only=True)
class RunLengths:
    """Run lengths over one region, in nm.

    Attributes:
      erl_nm: expected run length; NaN if the region holds no edge.
      attainable_nm: the same for a segmentation without an error.
      length_nm: of all edges of the region.
      correct_nm, merged_nm, split_nm, unlabelled_nm: the edges by fate; unlabelled is 0 in
        `foreground`.
      mergers: number of segments that hold nodes of several objects.
    """

    erl_nm: float
    attainable_nm: float
    length_nm: float
    correct_nm: float
    merged_nm: float
    split_nm: float
    unlabelled_nm: float
    mergers: int


def score_skeletons(skeletons: Skeletons, segments: Ids) -> tuple[Runs, RunSums]:
    """Returns the runs of some skeletons, and the sums that need no other skeletons.

    A run belongs to one connected skeleton and one segment. Two connected skeletons of one object,
    which the box of the volume has cut apart, have runs of their own.

    Args:
      skeletons: of the truth.
      segments: (n,) uint64, the segment at each node; 0 = unlabelled.

    Raises:
      ValueError: if there is not one segment for each node.
    """
    if segments.shape != (len(skeletons),):
        raise ValueError(
            f'segments has shape {segments.shape}: must be ({len(skeletons)},), one per node'
        )
    trees = skeletons.trees()
    length = np.rint(skeletons.edge_lengths_nm() * _PER_NM).astype(np.int64)
    tail, head = skeletons.edges.T
    labelled = (segments[tail] != 0) & (segments[head] != 0)
    inside = labelled & (segments[tail] == segments[head])
    # One run per (tree, segment); nodes and edges are counted into it.
    segment_ids, segment_index = np.unique(segments, return_inverse=True)
    pair = trees.astype(np.int64) * len(segment_ids) + segment_index
    pairs, run_of_node, nodes = np.unique(pair, return_inverse=True, return_counts=True)
    runs = Runs(
        segment_ids[pairs % max(len(segment_ids), 1)],
        skeletons.object_ids[_first_of(run_of_node, len(pairs))],
        nodes.astype(np.int64),
        _add_at(run_of_node[tail[inside]], length[inside], len(pairs)),
    )
    count = int(trees.max(initial=-1)) + 1
    sums = RunSums(
        length=int(length.sum()),
        labelled_length=int(length[labelled].sum()),
        split_length=int(length[labelled & ~inside].sum()),
        whole_squares=_sum_squares(_add_at(trees[tail], length, count)),
        labelled_squares=_sum_squares(_add_at(trees[tail[labelled]], length[labelled], count)),
    )
    return runs.take(runs.segment != 0), sums


def find_mergers(runs: Runs, merge_tolerance_nodes: int = 0) -> Ids:
    """Returns the segments with more than the tolerated number of nodes of two or more objects.

    Args:
      runs: complete for the segments in them.
      merge_tolerance_nodes: an object with at most this many nodes in a segment does not count.
    """
    order = np.lexsort((runs.object, runs.segment))
    segment, thing = runs.segment[order], runs.object[order]
    if len(order) == 0:
        return segment
    changes = (segment[1:] != segment[:-1]) | (thing[1:] != thing[:-1])
    first = np.flatnonzero(np.r_[True, changes])
    firm = np.add.reduceat(runs.nodes[order], first) > merge_tolerance_nodes
    ids, objects = np.unique(segment[first][firm], return_counts=True)
    return ids[objects > 1]


def score_runs(runs: Runs, merge_tolerance_nodes: int = 0) -> RunSums:
    """Returns the sums of runs that are complete for their segments (see `find_mergers`)."""
    mergers = find_mergers(runs, merge_tolerance_nodes)
    merged = np.isin(runs.segment, mergers)
    return RunSums(
        correct_length=int(runs.length[~merged].sum()),
        merged_length=int(runs.length[merged].sum()),
        run_squares=_sum_squares(runs.length[~merged]),
        mergers=len(mergers),
    )


def run_lengths(sums: RunSums) -> tuple[RunLengths, RunLengths]:
    """Returns the run lengths over (`foreground`, `all`) from the sums over all skeletons."""

    def region(length: int, squares: int) -> RunLengths:
        return RunLengths(
            erl_nm=sums.run_squares / (length * _PER_NM) if length else math.nan,
            attainable_nm=squares / (length * _PER_NM) if length else math.nan,
            length_nm=length / _PER_NM,
            correct_nm=sums.correct_length / _PER_NM,
            merged_nm=sums.merged_length / _PER_NM,
            split_nm=sums.split_length / _PER_NM,
            unlabelled_nm=(length - sums.labelled_length) / _PER_NM,
            mergers=sums.mergers,
        )

    return (
        region(sums.labelled_length, sums.labelled_squares),
        region(sums.length, sums.whole_squares),
    )


def measure_run_lengths(
    skeletons: Skeletons, segments: Ids, merge_tolerance_nodes: int = 0
) -> tuple[RunLengths, RunLengths]:
    """Returns the run lengths over (`foreground`, `all`) of skeletons that fit in memory.

    Arguments are those of `score_skeletons` and `find_mergers`.
    """
    runs, sums = score_skeletons(skeletons, segments)
    return run_lengths(sums + score_runs(runs, merge_tolerance_nodes))


def _add_at(index: NDArray[Any], values: Counts, count: int) -> Counts:
    """Returns (count,) int64 sums of values by index."""
    # Exact: the lengths of skeletons stay far below 2**53 units.
    return np.bincount(index, values, minlength=count).astype(np.int64)


def _first_of(index: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Returns (count,) the place at which each index value occurs first."""
    first = np.empty(count, np.int64)
    first[index[::-1]] = np.arange(len(index))[::-1]
    return first


def _sum_squares(values: Counts) -> int:
    # In Python integers: the square of a long skeleton's length exceeds 64 bits.
    return sum(value * value for value in values.tolist())
