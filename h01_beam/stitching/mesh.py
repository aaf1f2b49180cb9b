"""Elastic tiles: where placing them rigidly leaves seams, tiles bend a little.

Along each overlap the two tiles are compared patch by patch (`match_seam`). Each tile then is a
grid of nodes with vectors; matched points of two tiles must meet, and tiles resist being bent, and
a little being stretched or turned (`bend_tiles`): one sparse, robust least squares problem.
Where a tile meets no other, it follows smoothly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg

from h01_beam.registration.flow import FlowConfig, FlowLevel, estimate_flow

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = tuple[float, float]

# Overlaps narrower than this hold no patch.
_LEAST_SIDE = 24
SEAM_FLOW = FlowConfig(
    stride=20,
    levels=(
        FlowLevel(downsample=2, patch=48, search=12),
        FlowLevel(downsample=1, patch=64, search=8),
        FlowLevel(downsample=1, patch=48, search=4),
    ),
    min_valid=0.35,
    min_component=4,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """How tiles bend; lengths in pixels.

    Attributes:
      stride: between the nodes of a tile.
      stiffness: against stretching and turning, beside the weight of one match.
      bending: against bending, likewise.
      tolerance: by which matches may disagree before they lose their pull.
      rounds: of reweighting.
      flow: how seams are matched.
    """

    stride: int = 64
    stiffness: float = 0.003
    bending: float = 0.3
    tolerance: float = 1.5
    rounds: int = 4
    flow: FlowConfig = SEAM_FLOW

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('stride', 'rounds'):
            if getattr(self, name) < 1:
                raise ValueError(f'elastic.{name} is {getattr(self, name)}: must be 1 or more')
        for name in ('stiffness', 'bending', 'tolerance'):
            if not getattr(self, name) > 0:
                raise ValueError(f'elastic.{name} is {getattr(self, name)}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Seam:
    """Points that two tiles share.

    Attributes:
      first, second: rows of the tiles.
      first_points, second_points: (n, 2) y and x, pixels of either tile.
      weights: (n,) 0 to 1.
    """

    first: int
    second: int
    first_points: Reals
    second_points: Reals
    weights: Reals

    def __len__(self) -> int:
        return len(self.weights)


def match_seam(
    first: npt.NDArray[np.generic],
    second: npt.NDArray[np.generic],
    first_mask: Bools,
    second_mask: Bools,
    offset: Place,
    config: ElasticConfig,
    names: tuple[int, int] = (0, 1),
) -> Seam:
    """Compares two tiles along their overlap, patch by patch.

    Args:
      first: (h, w) image.
      second: (h, w) image.
      first_mask: (h, w), what of it counts.
      second_mask: likewise.
      offset: of the second in the first, y and x pixels, to within a few.
      config: flow.
      names: rows of the tiles.
    """
    shift = [round(o) for o in offset]
    low = [max(0, s) for s in shift]
    high = [min(n, m + s) for n, m, s in zip(first.shape, second.shape, shift, strict=True)]
    if min(h - a for h, a in zip(high, low, strict=True)) < _LEAST_SIDE:
        nothing = np.empty((0, 2))
        return Seam(*names, nothing, nothing, np.empty(0))
    a = tuple(slice(s, e) for s, e in zip(low, high, strict=True))
    b = tuple(slice(s - o, e - o) for s, e, o in zip(low, high, shift, strict=True))
    flow = estimate_flow(first[a], second[b], first_mask[a], second_mask[b], config.flow)
    known = flow.known
    start = np.array(low, np.float64)
    mine = flow.map.nodes()[:, known].T + start
    other = flow.map.places()[:, known].T + start - shift
    weights = np.clip(flow.peak[known].astype(np.float64), 0, 1) ** 2
    return Seam(*names, mine, other, weights)


def node_shape(tile_shape: tuple[int, ...], stride: int) -> tuple[int, int]:
    """Nodes of a tile, y and x: enough to reach its last pixel."""
    h, w = (-(-(n - 1) // stride) + 1 for n in tile_shape)
    return max(2, h), max(2, w)


def bend_tiles(
    places: Reals,
    shapes: Sequence[tuple[int, int]],
    seams: Sequence[Seam],
    config: ElasticConfig,
    fixed: Bools | None = None,
    start: Sequence[Reals] | None = None,
) -> tuple[list[Reals], Reals]:
    """Bends tiles so that what they share meets.

    Args:
      places: (n, 2) rigid places of the tiles, pixels.
      shapes: h and w of each tile.
      seams: matched points.
      config: stiffness.
      fixed: (n,) tiles that stay as `start` has them.
      start: (2, h, w) vectors of each tile, for those that are fixed; None for 0.

    Returns:
      vectors: for each tile (2, h, w) float64 pixels at its nodes: a pixel p of it lies at
        place + p + vector in the section.
      misfit: pixels by which each matched point, seam by seam, still disagrees.
    """
    grids = [node_shape(shape, config.stride) for shape in shapes]
    sizes = np.array([h * w for h, w in grids])
    first_node = np.concatenate([[0], np.cumsum(sizes)])
    count = int(first_node[-1])
    if not seams or not sum(map(len, seams)):
        return [np.zeros((2, *g)) for g in grids], np.empty(0)
    design = scipy.sparse.vstack(
        [
            _sample(s.first_points, grids[s.first], first_node[s.first], count, config.stride)
            - _sample(s.second_points, grids[s.second], first_node[s.second], count, config.stride)
            for s in seams
        ]
    ).tocsr()
    wanted = np.concatenate(
        [(places[s.second] + s.second_points) - (places[s.first] + s.first_points) for s in seams]
    )
    weights = np.concatenate([s.weights for s in seams])
    hold = _hold(grids, first_node, count, config)
    free = np.ones(count, np.bool_)
    vectors = np.zeros((count, 2))
    if fixed is not None and start is not None:
        free = np.repeat(~fixed, sizes)
        vectors = np.concatenate([v.reshape(2, -1).T for v in start])
    trust = np.ones(len(weights))
    for step in range(config.rounds):
        rows = scipy.sparse.diags(weights * trust) @ design
        normal = (design.T @ rows + hold).tocsr()
        known = normal[:, ~free] @ vectors[~free]
        right = (rows.T @ wanted - known)[free]
        solved = scipy.sparse.linalg.splu(normal[free][:, free].tocsc()).solve(right)
        vectors[free] = solved
        misfit = np.sqrt(((design @ vectors - wanted) ** 2).sum(axis=1))
        limit = config.tolerance * 2.0 ** (config.rounds - 1 - step)
        trust = 1 / (1 + (misfit / limit) ** 2) ** 2
    parts = np.split(vectors, first_node[1:-1])
    return [p.T.reshape(2, *g) for p, g in zip(parts, grids, strict=True)], misfit


def _sample(
    points: Reals, grid: tuple[int, int], first: int, count: int, stride: int
) -> scipy.sparse.csr_matrix:
    """(n, count) matrix that interpolates a tile's nodes at points."""
    place = np.clip(points / stride, 0, np.array(grid) - 1.0)
    low = np.minimum(place.astype(np.int64), np.array(grid) - 2)
    part = place - low
    rows, columns, values = [], [], []
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows.append(np.arange(len(points)))
        columns.append(first + (low[:, 0] + dy) * grid[1] + low[:, 1] + dx)
        values.append(np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1]))
    entries = (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csr_matrix((np.concatenate(values), entries), shape=(len(points), count))


def _hold(
    grids: Sequence[tuple[int, int]],
    first_node: npt.NDArray[np.int64],
    count: int,
    config: ElasticConfig,
) -> scipy.sparse.csr_matrix:
    """The energy of bent and stretched tiles, as a matrix."""
    blocks = []
    known: dict[tuple[int, int], scipy.sparse.csr_matrix] = {}
    for grid in grids:
        if grid not in known:
            known[grid] = _hold_one(grid, config)
        blocks.append(known[grid])
    return scipy.sparse.block_diag(blocks, format='csr')


def _hold_one(grid: tuple[int, int], config: ElasticConfig) -> scipy.sparse.csr_matrix:
    eye = [scipy.sparse.identity(n) for n in grid]
    rise = [_difference(n, (-1.0, 1.0)) for n in grid]
    bend = [_difference(n, (1.0, -2.0, 1.0)) for n in grid]
    stretch = [scipy.sparse.kron(rise[0], eye[1]), scipy.sparse.kron(eye[0], rise[1])]
    bends = [
        scipy.sparse.kron(bend[0], eye[1]),
        scipy.sparse.kron(eye[0], bend[1]),
        np.sqrt(2.0) * scipy.sparse.kron(rise[0], rise[1]),
    ]
    total = 1e-6 * scipy.sparse.identity(grid[0] * grid[1])
    for weight, operators in ((config.stiffness, stretch), (config.bending, bends)):
        for operator in operators:
            total = total + weight * (operator.T @ operator)
    return total.tocsr()


def _difference(n: int, stencil: tuple[float, ...]) -> scipy.sparse.csr_matrix:
    rows = max(0, n - len(stencil) + 1)
    return scipy.sparse.diags(stencil, range(len(stencil)), shape=(rows, n), format='csr')
