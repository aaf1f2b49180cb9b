"""Variation of information and adapted Rand error, from sums that add over partitions.

With n_st the voxels shared by segment s and truth object t, a_s and b_t the marginals, N their
total and f(n) = n log2 n, the scores need four sums only:

    VOI split = H(segment | truth) = (sum f(b_t) - sum f(n_st)) / N
    VOI merge = H(truth | segment) = (sum f(a_s) - sum f(n_st)) / N
    Rand precision = sum n_st^2 / sum a_s^2        (falls with merge errors)
    Rand recall    = sum n_st^2 / sum b_t^2        (falls with split errors)
    adapted Rand error = 1 - 2 precision recall / (precision + recall)

Sources: Meila, J. Multivariate Anal. 98 (2007) for VOI, split and merge as in Nunez-Iglesias et
al., PLoS ONE 8 (2013); Arganda-Carreras et al., Front. Neuroanat. 9:142 (2015) for the Rand F-score
that SNEMI3D and CREMI rank by.

Two regions are scored. `foreground` are the voxels labelled in both. `all` are those with truth,
and each voxel without a segment is a segment of its own. Those singletons are never made:
f(1) = 0 adds nothing to an entropy, and each adds 1 to both sum n_st^2 and sum a_s^2.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h01_beam.evaluation.contingency import Overlaps
from h01_beam.evaluation.erl import RunLengths
from h01_beam.labels import Counts

# f(n) is held as a fixed-point integer: sums are then exact, and so the scores are the same to the
# last bit whatever the order of blocks and workers. Rounding costs at most 2**-33 bits a row.
_FRACTION_BITS = 32


@dataclass(frozen=True, kw_only=True)
class OverlapSums:
    """Additive sums over contingency rows; all integers, so that addition is exact.

    Attributes:
      labelled_voxels: voxels with truth and with a segment.
      unlabelled_voxels: voxels with truth and without a segment.
      truth_objects, segments: number of ids seen; segments only where there is truth.
      joint_nlogn, segment_nlogn, truth_nlogn: sums of n log2 n over labelled voxels, in units of
        2**-32 bits.
      joint_squares, segment_squares, truth_squares: sums of n^2 over labelled voxels.
      truth_nlogn_all, truth_squares_all: the same over all voxels with truth.
    """

    labelled_voxels: int = 0
    unlabelled_voxels: int = 0
    truth_objects: int = 0
    segments: int = 0
    joint_nlogn: int = 0
    segment_nlogn: int = 0
    truth_nlogn: int = 0
    truth_nlogn_all: int = 0
    joint_squares: int = 0
    segment_squares: int = 0
    truth_squares: int = 0
    truth_squares_all: int = 0

    def __add__(self, other: OverlapSums) -> OverlapSums:
        """Returns the sums over both operands' rows."""
        return OverlapSums(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in fields(self)
            }
        )


def nlogn(counts: Counts) -> NDArray[np.float64]:
    """Returns n log2 n in bits, float64; 0 where the count is 0."""
    values = counts.astype(np.float64)
    return values * np.log2(np.maximum(values, 1.0))


def _sum_nlogn(counts: Counts) -> int:
    """Returns the sum of n log2 n in units of 2**-32 bits."""
    values = nlogn(counts)
    whole = np.floor(values)
    fraction = np.rint((values - whole) * 2.0**_FRACTION_BITS)
    return (int(whole.astype(np.int64).sum()) << _FRACTION_BITS) + int(
        fraction.astype(np.int64).sum()
    )


def _sum_squares(counts: Counts) -> int:
    # In Python integers: the square of one large object's voxels exceeds 64 bits.
    return sum(count * count for count in counts.tolist())


def sum_by(ids: NDArray[np.uint64], voxels: Counts) -> tuple[NDArray[np.uint64], Counts]:
    """Returns the sorted unique ids and the voxels of each."""
    order = np.argsort(ids, kind='stable')
    ids = ids[order]
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else order
    return ids[first], np.add.reduceat(voxels[order], first) if len(ids) else voxels


def sum_truths(rows: Overlaps) -> OverlapSums:
    """Returns the joint and truth sums of merged rows that are complete for their truth ids."""
    labelled = rows.take(rows.segment != 0)
    _, in_segments = sum_by(labelled.truth, labelled.voxels)
    truths, in_all = sum_by(rows.truth, rows.voxels)
    return OverlapSums(
        labelled_voxels=int(labelled.voxels.sum()),
        unlabelled_voxels=int(rows.voxels.sum() - labelled.voxels.sum()),
        truth_objects=len(truths),
        joint_nlogn=_sum_nlogn(labelled.voxels),
        truth_nlogn=_sum_nlogn(in_segments),
        truth_nlogn_all=_sum_nlogn(in_all),
        joint_squares=_sum_squares(labelled.voxels),
        truth_squares=_sum_squares(in_segments),
        truth_squares_all=_sum_squares(in_all),
    )


def sum_segments(rows: Overlaps) -> OverlapSums:
    """Returns the segment sums of rows that are complete for their segment ids."""
    labelled = rows.take(rows.segment != 0)
    segments, voxels = sum_by(labelled.segment, labelled.voxels)
    return OverlapSums(
        segments=len(segments),
        segment_nlogn=_sum_nlogn(voxels),
        segment_squares=_sum_squares(voxels),
    )


@dataclass(frozen=True, kw_only=True)
class RegionScores:
    """Scores over one region; NaN where the region is empty or the score was not asked for.

    Attributes:
      voi_split, voi_merge: bits.
      adapted_rand_error, rand_precision, rand_recall: in [0, 1].
      coverage: fraction of the voxels with truth that have a segment.
      erl_nm: expected run length, in nm.
      erl_attainable_nm: expected run length of the truth itself, in nm.
      erl_fraction: the one over the other.
    """

    voi_split: float
    voi_merge: float
    adapted_rand_error: float
    rand_precision: float
    rand_recall: float
    coverage: float
    erl_nm: float = math.nan
    erl_attainable_nm: float = math.nan
    erl_fraction: float = math.nan

    def with_runs(self, runs: RunLengths) -> RegionScores:
        """Returns the same scores with those of skeletons of this region."""
        whole = runs.attainable_nm
        return replace(
            self,
            erl_nm=runs.erl_nm,
            erl_attainable_nm=whole,
            erl_fraction=runs.erl_nm / whole if whole > 0 else math.nan,
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a segmentation against a truth, over both regions (see the module's text).

    Attributes:
      foreground: over the voxels labelled in both.
      all: over the voxels with truth.
      truth_voxels: number of voxels with truth.
      truth_objects: number of labels of the truth.
      segments: number of segments where there is truth.
      skeletons: what became of the edges of all truth skeletons, if they were measured.
    """

    foreground: RegionScores
    all: RegionScores
    truth_voxels: int
    truth_objects: int
    segments: int
    skeletons: RunLengths | None = None

    def with_runs(self, foreground: RunLengths, whole: RunLengths) -> Scores:
        """Returns the same scores with those of skeletons."""
        return replace(
            self,
            foreground=self.foreground.with_runs(foreground),
            all=self.all.with_runs(whole),
            skeletons=whole,
        )

    def describe(self) -> str:
        """Returns the foreground scores in one line."""
        fore = self.foreground
        text = (
            f'VOI split {fore.voi_split:.3f}, merge {fore.voi_merge:.3f} bits   '
            f'adapted Rand error {fore.adapted_rand_error:.3f}   coverage {fore.coverage:.1%}'
        )
        if not math.isnan(fore.erl_nm):
            text += f'   ERL {fore.erl_nm / 1000:.2f} of {fore.erl_attainable_nm / 1000:.2f} µm'
        return text

    def to_dict(self) -> dict[str, Any]:
        """Returns plain numbers; None stands for a score that is not defined."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return None if isinstance(value, float) and math.isnan(value) else value

        result: dict[str, Any] = plain(asdict(self))
        return result

    def to_json(self) -> str:
        """Returns `to_dict` as indented JSON, without NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + '\n'


def score(sums: OverlapSums) -> Scores:
    """Returns the scores of the sums of all partitions.

    Args:
      sums: the sum of `sum_truths` over all rows partitioned by truth, and of `sum_segments` over
        all rows partitioned by segment.

    Raises:
      ValueError: if no voxel has truth.
    """
    alone, labelled = sums.unlabelled_voxels, sums.labelled_voxels
    total = labelled + alone
    if total == 0:
        raise ValueError(
            'truth has no voxel above 0 in the evaluated box: there is nothing to score against; '
            'check that the truth URI names a label volume and that the boxes overlap'
        )
    coverage = labelled / total
    return Scores(
        foreground=_score_region(
            voxels=labelled,
            nlogn_sums=(sums.joint_nlogn, sums.segment_nlogn, sums.truth_nlogn),
            square_sums=(sums.joint_squares, sums.segment_squares, sums.truth_squares),
            coverage=coverage,
        ),
        all=_score_region(
            voxels=total,
            nlogn_sums=(sums.joint_nlogn, sums.segment_nlogn, sums.truth_nlogn_all),
            square_sums=(
                sums.joint_squares + alone,
                sums.segment_squares + alone,
                sums.truth_squares_all,
            ),
            coverage=coverage,
        ),
        truth_voxels=total,
        truth_objects=sums.truth_objects,
        segments=sums.segments,
    )


def _score_region(
    *,
    voxels: int,
    nlogn_sums: tuple[int, int, int],
    square_sums: tuple[int, int, int],
    coverage: float,
) -> RegionScores:
    """Returns the scores from (joint, segment, truth) sums."""
    if voxels == 0:
        nan = math.nan
        return RegionScores(
            voi_split=nan,
            voi_merge=nan,
            adapted_rand_error=nan,
            rand_precision=nan,
            rand_recall=nan,
            coverage=coverage,
        )
    joint, segment, truth = nlogn_sums
    unit = voxels << _FRACTION_BITS
    pairs, segment_pairs, truth_pairs = square_sums
    return RegionScores(
        voi_split=max(truth - joint, 0) / unit,
        voi_merge=max(segment - joint, 0) / unit,
        # 2 p r / (p + r) with p = pairs / segment_pairs and r = pairs / truth_pairs.
        adapted_rand_error=1.0 - 2 * pairs / (segment_pairs + truth_pairs),
        rand_precision=pairs / segment_pairs,
        rand_recall=pairs / truth_pairs,
        coverage=coverage,
    )


def score_overlaps(rows: Overlaps) -> Scores:
    """Returns the scores of one complete contingency table that fits in memory."""
    return score(sum_truths(rows) + sum_segments(rows))
