"""Scores of a network on tissue that it was not trained on: by segmenting it, not by loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h01_beam.evaluation.contingency import count_overlaps
from h01_beam.evaluation.erl import measure_run_lengths
from h01_beam.evaluation.scores import Scores, score_overlaps
from h01_beam.model_file import ModelCard
from h01_beam.models import Network
from h01_beam.morphology.teasar import skeletonize
from h01_beam.segmentation.executor import Float32
from h01_beam.segmentation.ffn import flood_fill
from h01_beam.segmentation.ffn_config import FfnConfig
from models.ffn.sources import Tissue

# As in `h01_beam.evaluation`: nodes of another object that are no merger yet.
_MERGE_TOLERANCE_NODES = 2


class TooManyStepsError(Exception):
    """A network floods on and on: it is no good."""


def validate(
    network: Network,
    card: ModelCard,
    tissues: Sequence[Tissue],
    config: FfnConfig,
    max_steps: int,
) -> dict[str, Any]:
    """Segments tissue and scores it.

    Args:
      network: with a batch of 1.
      card: of the network.
      tissues: held out.
      config: settings of inference.
      max_steps: fields of view after which the network is given up.

    Returns:
      `objective`: the mean of VOI split and merge (bits) over all voxels with truth, in which each
        unlabelled voxel is a segment of its own, so that leaving blanks costs; None if the
        network was given up. `tissues`: the scores of each.
    """
    results: list[dict[str, Any]] = []
    for tissue in tissues:
        try:
            labels = _segment(network, card, tissue, config.for_model(card), max_steps)
        except TooManyStepsError:
            results.append({'tissue': tissue.name, 'objective': None})
            continue
        results.append({'tissue': tissue.name, **_summary(_score(labels, tissue))})
    objectives = [r['objective'] for r in results if r['objective'] is not None]
    failed = not objectives or len(objectives) < len(results)
    return {'objective': None if failed else float(np.mean(objectives)), 'tissues': results}


def _segment(
    network: Network, card: ModelCard, tissue: Tissue, config: FfnConfig, max_steps: int
) -> np.ndarray:
    steps = 0
    batch = np.empty((1, *card.fov_shape, 2), np.float32)

    def predict(image_fov: Float32, logit_fov: Float32) -> Float32:
        nonlocal steps
        steps += 1
        if steps > max_steps:
            raise TooManyStepsError
        batch[0, ..., 0], batch[0, ..., 1] = image_fov, logit_fov
        return network(batch)[0]

    return flood_fill(tissue.image, predict, card.fov_shape, card.deltas, config).labels


def _score(labels: np.ndarray, tissue: Tissue) -> Scores:
    scores = score_overlaps(count_overlaps(labels, tissue.labels))
    if tissue.voxel_size_nm is None:
        return scores
    skeletons = skeletonize(tissue.labels, tissue.voxel_size_nm)
    segments = labels[tuple(skeletons.nodes.T)].astype(np.uint64)
    return scores.with_runs(*measure_run_lengths(skeletons, segments, _MERGE_TOLERANCE_NODES))


def _summary(scores: Scores) -> dict[str, Any]:
    whole, fore = scores.all, scores.foreground
    summary = {
        'objective': whole.voi_split + whole.voi_merge,
        'voi_split': fore.voi_split,
        'voi_merge': fore.voi_merge,
        'adapted_rand_error': fore.adapted_rand_error,
        'coverage': fore.coverage,
        'erl_nm': whole.erl_nm,
        'erl_fraction': whole.erl_fraction,
    }
    return {
        name: None if np.isnan(value) else round(float(value), 6) for name, value in summary.items()
    }
