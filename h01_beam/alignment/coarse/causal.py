"""Rough alignment of sections in the order in which they come: none moves for a later one.

A section is laid on those before it that are placed, by what it shares with them. One that shares
nothing with them is not placed, and none is laid on it. After as many such sections as are matched
at all there is nothing left to lie on: the next one lies as it is, and begins a group of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from h01_beam.alignment.coarse.features import CoarseConfig, Match, Reals, fit_rigid

# Rounds in which matches that disagree lose weight.
_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where a section lies.

    Attributes:
      affine: (2, 3), raw -> aligned, for (y, x, 1) in pixels of the thumbnail.
      misfit: median pixels by which its matches disagree with that; NaN without any.
      matches: points that it shares with sections that are placed.
    """

    affine: Reals
    misfit: float
    matches: int


def place_next(
    section: int,
    matches: Sequence[Match],
    placed: Mapping[int, Reals],
    centre: tuple[float, float],
    config: CoarseConfig,
) -> Placed | None:
    """Lays a section on those before it.

    Args:
      section: its place in the stack.
      matches: of which only those with placed sections count.
      placed: (2, 3) maps, raw -> aligned, of the sections that it may lie on.
      centre: y and x about which sections turn: the middle of a thumbnail.
      config: tolerance and rigidity.

    Returns:
      where it lies; None if it shares nothing with them.
    """
    shared = [_shared(section, m, placed) for m in matches if _other(section, m) in placed]
    if not shared:
        return None
    middle, scale = np.asarray(centre, np.float64), max(1.0, *centre)
    ranked = max(shared, key=lambda s: s[0].similarity)
    match, mine, theirs = ranked
    mirrored = match.flipped != (np.linalg.det(placed[_other(section, match)][:, :2]) < 0)
    rigid = fit_rigid(mine - middle, theirs - middle, mirrored)
    design = np.concatenate([(m - middle) / scale for _, m, _ in shared])
    design = np.concatenate([design, np.ones((len(design), 1))], axis=1)
    target = np.concatenate([(t - middle) / scale for _, _, t in shared])
    weights = np.concatenate([np.full(len(m), m_.weight / len(m)) for m_, m, _ in shared])
    solution = _fit(design, target, weights, rigid, scale, config)
    misses = np.sqrt(((design @ solution - target) ** 2).sum(axis=1)) * scale
    linear = solution[:2].T
    shift = solution[2] * scale + middle - linear @ middle
    affine = np.concatenate([linear, shift[:, None]], axis=1)
    return Placed(affine, float(np.median(misses)), len(design))


def _fit(
    design: Reals, target: Reals, weights: Reals, rigid: Reals, scale: float, config: CoarseConfig
) -> Reals:
    """(3, 2): the map about the centre, in units of `scale`; its shape is held, not its place."""
    wanted = np.concatenate([rigid[:, :2].T, rigid[None, :, 2] / scale])
    hold = np.array([config.rigidity, config.rigidity, 1e-3 * config.rigidity]) ** 2
    trust = np.ones(len(design))
    for _ in range(_ROUNDS):
        rows = design * (weights * trust)[:, None]
        solution = np.linalg.solve(
            rows.T @ design + np.diag(hold), rows.T @ target + hold[:, None] * wanted
        )
        u, _, vt = np.linalg.svd(solution[:2])
        wanted = np.concatenate([u @ vt, solution[2:]])
        misses = np.sqrt(((design @ solution - target) ** 2).sum(axis=1)) * scale
        trust = 1 / (1 + (misses / config.tolerance) ** 2) ** 2
    return np.asarray(solution)


def _other(section: int, match: Match) -> int:
    return match.second if match.first == section else match.first


def _shared(section: int, match: Match, placed: Mapping[int, Reals]) -> tuple[Match, Reals, Reals]:
    """A match, its points in the section, and where they shall lie."""
    points = (match.first_points, match.second_points)
    mine, theirs = points if match.first == section else points[::-1]
    affine = placed[_other(section, match)]
    return match, mine, theirs @ affine[:, :2].T + affine[:, 2]
