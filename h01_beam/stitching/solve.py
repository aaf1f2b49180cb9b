"""Places of all tiles of a section, from the offsets of pairs and the stage: robust least squares.

Each found pair wants its offset; every tile wants, very weakly, the place that the stage told.
Pairs that disagree with the others lose their pull round by round, and are told at the end. Tiles
that no pair ties to the rest form pieces; a piece keeps its place by the stage, as a whole.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Rounds in which pairs pull the less, the more they disagree; and those that end it for the wrong.
_MILD_ROUNDS, _STRICT_ROUNDS = 12, 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolveConfig:
    """How places are solved for; lengths in pixels.

    Attributes:
      tolerance: by which a pair may disagree with the others before it loses its pull.
      anchor: weight of the stage against that of a pair.
    """

    tolerance: float = 8.0
    anchor: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('tolerance', 'anchor'):
            if not getattr(self, name) > 0:
                raise ValueError(f'solve.{name} is {getattr(self, name)}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Places:
    """Where tiles lie in the frame of their section.

    Attributes:
      places: (n, 2) y and x of each tile's first pixel, pixels.
      piece: (n,) tiles of one number hang together by pairs; the largest piece is 0.
      misfit: (m,) pixels by which each pair disagrees with the places.
      outlier: (m,) pairs that were not believed.
    """

    places: Reals
    piece: Ints
    misfit: Reals
    outlier: Bools


def solve_places(
    stage: Reals, pairs: Ints, offsets: Reals, weights: Reals, config: SolveConfig
) -> Places:
    """Solves for the places of all tiles at once.

    Args:
      stage: (n, 2) y and x by the stage, pixels.
      pairs: (m, 2) rows of two tiles.
      offsets: (m, 2) of the second tile in the first, pixels.
      weights: (m,) of each pair; 0 for those that found nothing.
      config: tolerance and anchor.

    Raises:
      ValueError: arrays do not fit together, or a pair names a tile that is not there.
    """
    _check(stage, pairs, offsets, weights)
    count = len(stage)
    rows = np.arange(len(pairs))
    ones = np.ones(len(pairs))
    design = scipy.sparse.csr_matrix(
        (
            np.concatenate([-ones, ones]),
            (np.concatenate([rows, rows]), np.concatenate([pairs[:, 0], pairs[:, 1]])),
        ),
        shape=(len(pairs), count),
    )
    # In what remains of the stage's places, so that the anchor pulls to 0.
    wanted = offsets - (stage[pairs[:, 1]] - stage[pairs[:, 0]])
    moved = np.zeros((count, 2))
    trust = np.ones(len(pairs))
    misfit = np.zeros(len(pairs))
    hold = config.anchor**2 * scipy.sparse.identity(count)
    for step in range(_MILD_ROUNDS + _STRICT_ROUNDS):
        weighted = scipy.sparse.diags(weights * trust) @ design
        normal = (design.T @ weighted + hold).tocsc()
        moved = scipy.sparse.linalg.splu(normal).solve(weighted.T @ wanted)
        misfit = np.sqrt(((design @ moved - wanted) ** 2).sum(axis=1))
        # First the least sum of misfits, which has one minimum: one wrong pair makes its neighbours
        # look wrong, and a strict rule would follow whichever it met first.
        trust = 1 / np.maximum(misfit / config.tolerance, 0.05)
        if step >= _MILD_ROUNDS:
            trust = 1 / (1 + (misfit / config.tolerance) ** 2) ** 2
    outlier = (misfit > config.tolerance) & (weights > 0)
    return Places(stage + moved, _pieces(count, pairs[(weights > 0) & ~outlier]), misfit, outlier)


def _check(stage: Reals, pairs: Ints, offsets: Reals, weights: Reals) -> None:
    m = len(pairs)
    if stage.ndim != 2 or stage.shape[1] != 2 or not np.isfinite(stage).all():
        raise ValueError(f'stage has shape {stage.shape}: must be (n, 2), finite y and x')
    if pairs.shape != (m, 2) or offsets.shape != (m, 2) or weights.shape != (m,):
        raise ValueError(
            f'pairs {pairs.shape}, offsets {offsets.shape} and weights {weights.shape} must be '
            '(m, 2), (m, 2) and (m,)'
        )
    if m and not (0 <= pairs.min() and pairs.max() < len(stage)):
        raise ValueError(
            f'pairs name tiles {pairs.min()} to {pairs.max()}: the section has {len(stage)}'
        )


def _pieces(count: int, pairs: Ints) -> Ints:
    graph = scipy.sparse.coo_matrix(
        (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count)
    )
    _, found = scipy.sparse.csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(found, minlength=1)
    # The largest first; of equals, the one with the first tile.
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((np.arange(len(sizes)), -sizes))] = np.arange(len(sizes))
    return np.asarray(rank[found], np.int64)
