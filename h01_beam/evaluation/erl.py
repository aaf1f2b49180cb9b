"""Expected run length: how far one gets along a neurite before an error.

Take a random point on the skeletons of the truth; the run length is the length of skeleton that is
reached from it without an error, and its expectation is

    ERL = sum over skeletons and segments of (length inside the segment)^2 / length of all skeletons

An edge is correct when both of its nodes lie in one segment and that segment is not a merger. A
merger holds nodes of two or more truth objects; every edge in it has run length 0, so that an
error that is laborious to undo weighs more than a split. Source: Januszewski et al., Nat. Methods
15 (2018), where all edges count in the denominator (`all` here); `merge_tolerance_nodes`
as in Wei et al., AxonEM (MICCAI 2021). In `foreground` only edges with both nodes in some
segment count.

Truth skeletons are small (a node is some 100 nm of neurite) next to the volumes. Only the
look-up of labels touches voxels, and it is done by block: `sample_labels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h01_beam.evaluation.contingency import merge_rows, Overlaps
from h01_beam.morphology.skeletons import Skeletons


@dataclass(frozen=True, kw_only=True)
class RunLengths:
    """Run lengths over one region, in nm.

    Attributes:
      erl_nm: expected run length; NaN if the region holds no edge.
      attainable_nm: the same for a segmentation without an error.
      correct_nm, merged_nm, split_nm, unlabelled_nm: length of the edges by fate; unlabelled is 0
        in `foreground`.
      mergers: number of segments that hold nodes of several objects.
    """

    erl_nm: float
    attainable_nm: float
    correct_nm: float
    merged_nm: float
    split_nm: float
    unlabelled_nm: float
    mergers: int


def sample_labels(
    labels: NDArray[Any], start: tuple[int, int, int], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return which nodes lie in a block, and their labels.

    Args:
      labels: zyx integer labels of the block.
      start: zyx voxel at which the block begins.
      nodes: (n, 3) zyx voxels, counted from the origin of the volume.

    Returns:
      (k,) int64 indices into nodes, increasing, and (k,) uint64 labels, 0 = unlabelled.
    """
    local = nodes - np.asarray(start)
    inside = np.flatnonzero(np.all((local >= 0) & (local < labels.shape), axis=1))
    return inside, labels[tuple(local[inside].T)].astype(np.uint64)


def find_mergers(
    object_ids: NDArray[np.uint64], segments: NDArray[np.uint64], merge_tolerance_nodes: int = 0
) -> NDArray[np.uint64]:
    """Return the segments with more than the tolerated number of nodes of two or more objects.

    Args:
      object_ids: (n,) uint64, the truth object of each node.
      segments: (n,) uint64, the segment at each node; 0 = unlabelled.
      merge_tolerance_nodes: an object with at most this many nodes in a segment does not count.
    """
    ones = np.ones(len(segments), np.int64)
    labelled = segments != 0
    shared = merge_rows([Overlaps(segments, object_ids, ones).take(labelled)])
    firm = shared.take(shared.voxels > merge_tolerance_nodes)
    ids, objects = np.unique(firm.segment, return_counts=True)
    return ids[objects > 1]


def measure_run_lengths(
    skeletons: Skeletons, segments: NDArray[np.uint64], merge_tolerance_nodes: int = 0
) -> tuple[RunLengths, RunLengths]:
    """Return the run lengths over (`foreground`, `all`).

    A run is counted by connected skeleton and segment. Two connected skeletons of one object, which
    the box of the volume has cut apart, are two skeletons here but one object for `find_mergers`.

    Args:
      skeletons: of the truth.
      segments: (n,) uint64, the segment at each node; 0 = unlabelled.
      merge_tolerance_nodes: see `find_mergers`.

    Raises:
      ValueError: if there is not one segment for each node.
    """
    if segments.shape != (len(skeletons),):
        raise ValueError(
            f'segments has shape {segments.shape}: must be ({len(skeletons)},), one per node'
        )
    length = skeletons.edge_lengths_nm()
    tail, head = segments[skeletons.edges[:, 0]], segments[skeletons.edges[:, 1]]
    tree = skeletons.trees()[skeletons.edges[:, 0]]
    mergers = find_mergers(skeletons.object_ids, segments, merge_tolerance_nodes)
    labelled = (tail != 0) & (head != 0)
    joined = labelled & (tail == head)
    merged = joined & np.isin(tail, mergers)
    correct = joined & ~merged
    squares = _sum_squared_runs(tree[correct], tail[correct], length[correct])

    def over(region: NDArray[np.bool_]) -> RunLengths:
        total = float(length[region].sum())
        whole = _sum_squared_runs(tree[region], np.zeros(region.sum(), np.uint64), length[region])
        return RunLengths(
            erl_nm=squares / total if total else float('nan'),
            attainable_nm=whole / total if total else float('nan'),
            correct_nm=float(length[correct].sum()),
            merged_nm=float(length[merged].sum()),
            split_nm=float(length[labelled & ~joined].sum()),
            unlabelled_nm=float(length[region & ~labelled].sum()),
            mergers=len(mergers),
        )

    return over(labelled), over(np.ones(len(length), bool))


def _sum_squared_runs(
    tree: NDArray[np.int32], segment: NDArray[np.uint64], length_nm: NDArray[np.float64]
) -> float:
    """Return the sum, over pairs of (tree, segment), of the squared length in nm^2."""
    if len(length_nm) == 0:
        return 0.0
    _, segment_index = np.unique(segment, return_inverse=True)
    pair = tree.astype(np.int64) * (int(segment_index.max()) + 1) + segment_index
    _, run = np.unique(pair, return_inverse=True)
    return float(np.square(np.bincount(run, length_nm)).sum())
