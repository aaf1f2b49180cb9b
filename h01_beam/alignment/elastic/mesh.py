r"""Relaxation of a stack of elastic sheets, one for each section, that flow pulls together.

Nodes lie on a grid of the roughly aligned frame. A section's vector u(p) says where to look: the
final image at p shows what the roughly aligned section has at p + u(p), so u is an inverse map
and needs no inversion before rendering. If flow f says that what one section has at q, the other
one has at q + f(q), both sections show the same at p when

    u_b(p) = u_a(p) + f(p + u_a(p))                                    for each link a -> b

                    section a   --o----o----o--     stiff in the plane
                                   |    |    |      links of flow, of any two sections
                    section b   --o----o----o--     and weakly anchored at u = 0

All sections move at once: minimized is

    sum w |u_b - u_a - f|^2  +  bending * sum |u_h - 2 u_i + u_j|^2 + 2 |u_g - u_h - u_i + u_j|^2
        (links)                             (three in a row)            (four in a square)
                             +  stiffness * sum |u_i - u_j|^2  +  anchor * sum |u|^2
                                         (neighbouring nodes)          (all nodes)

Stiffness pulls towards the affine maps that sections were placed by; bending leaves turns and
stretches free, and takes what flow has of noise from node to node.

The sum is quadratic in u but for f, taken where u was, and for the weights w: nodes that still
disagree lose their pull (Geman and McClure), at first gently. So a few linear problems are solved
one after the other, each by conjugate gradients. Unlike a chain of pairwise steps, this drifts no
further than the anchor allows, and one bad section bends none of the others. What a tear or a fold
parts is not held together: stiffness and bending between those nodes are 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Linear problems from a start that is near.
_SETTLED_ROUNDS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How stiff sections are; a fully trusted node of flow pulls with 1.

    Attributes:
      bending: of each three nodes in a row.
      stiffness: between neighbouring nodes.
      anchor: of each node to its place in the rough alignment.
      outlier_nm: nodes that disagree with their flow by this much pull a quarter as strongly.
      rounds: linear problems.
      tolerance: remaining force, of the first, at which one is solved.
      max_steps: of conjugate gradients for one.
    """

    bending: float = 0.5
    stiffness: float = 0.01
    anchor: float = 0.01
    outlier_nm: float = 16.0
    rounds: int = 5
    tolerance: float = 1e-3
    max_steps: int = 500

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('bending', 'stiffness', 'anchor', 'outlier_nm', 'tolerance'):
            if not getattr(self, name) > 0:
                raise ValueError(f'mesh.{name} is {getattr(self, name)}: must be above 0')
        for name in ('rounds', 'max_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'mesh.{name} is {getattr(self, name)}: must be 1 or more')

    def coarser(self, factor: int) -> MeshConfig:
        """As stiff with one node in place of factor x factor, and fewer links that pull at it."""
        return dataclasses.replace(
            self, bending=self.bending / factor**4, stiffness=self.stiffness / factor**2
        )


@dataclasses.dataclass(frozen=True)
class Link:
    """Flow from one section of a stack to another, on the grid of the mesh.

    Attributes:
      first, second: places of the sections in the stack.
      vectors: (2, h, w) float32 pixels, y and x; what is at q in `first` is at q + vectors in
        `second`; NaN where that is not known.
      weight: (h, w) float32, how much each node is trusted, 0 to 1.
    """

    first: int
    second: int
    vectors: Real
    weight: Real


@dataclasses.dataclass(frozen=True)
class Sheets:
    """What holds the nodes of each section together; arrays of weights from 0 to 1.

    Attributes:
      along_y: (sections, h - 1, w), between a node and the next in y.
      along_x: (sections, h, w - 1).
    """

    along_y: Real
    along_x: Real

    @classmethod
    def whole(cls, shape: tuple[int, int, int]) -> Sheets:
        """Sections without tears; `shape` is (sections, h, w)."""
        n, h, w = shape
        return cls(np.ones((n, h - 1, w), np.float32), np.ones((n, h, w - 1), np.float32))


def relax(
    shape: tuple[int, int, int],
    links: Sequence[Link],
    stride: float,
    config: MeshConfig,
    *,
    pixel_nm: float,
    sheets: Sheets | None = None,
    start: Reals | None = None,
    frozen: Bools | None = None,
    settled: bool = False,
) -> tuple[Reals, Reals]:
    """Moves the nodes of all sections to where flow, stiffness and anchors balance.

    Args:
      shape: sections, h and w of the mesh.
      links: between sections, in any number and order.
      stride: pixels between nodes.
      config: stiffness and tolerance.
      pixel_nm: side of a pixel.
      sheets: where sections are torn; None for nowhere.
      start: (sections, 2, h, w) vectors to begin at; None for 0.
      frozen: (sections,) or (sections, h, w) those that keep the vectors of `start`.
      settled: whether `start` is near enough to tell outliers by from the first.

    Returns:
      vectors: (sections, 2, h, w) float64 pixels.
      misfit: (links, h, w) pixels by which each link still disagrees; NaN where it has no flow.

    Raises:
      ValueError: arrays do not fit the mesh.
    """
    _check(shape, links, start, frozen)
    system = _System(shape, links, config, sheets or Sheets.whole(shape), frozen)
    vectors = np.zeros((shape[0], 2, *shape[1:])) if start is None else start.copy()
    rounds = min(_SETTLED_ROUNDS, config.rounds) if settled else config.rounds
    for step in range(rounds):
        pulls, weights = _pulls(vectors, links, stride)
        if step or settled:
            misfit = _misfit(vectors, links, pulls) * pixel_nm
            # Lenient at first: before sections have come near, all flow seems wrong.
            limit = config.outlier_nm * 2 ** (rounds - 1 - step)
            weights /= (1 + (misfit / limit) ** 2) ** 2
        vectors = system.solve(vectors, pulls, weights)
    return vectors, measure_misfit(vectors, links, stride)


def measure_misfit(vectors: Reals, links: Sequence[Link], stride: float) -> Reals:
    """(links, h, w) pixels by which links disagree with (sections, 2, h, w) vectors.

    NaN where a link has no flow.
    """
    pulls, weights = _pulls(vectors, links, stride)
    return np.where(weights > 0, _misfit(vectors, links, pulls), np.nan)


def _check(
    shape: tuple[int, int, int], links: Sequence[Link], start: Reals | None, frozen: Bools | None
) -> None:
    sections, h, w = shape
    for link in links:
        if not (0 <= link.first < sections and 0 <= link.second < sections):
            raise ValueError(
                f'link of sections {link.first} and {link.second}: the stack has {sections}'
            )
        if link.vectors.shape != (2, h, w) or link.weight.shape != (h, w):
            raise ValueError(
                f'link of sections {link.first} and {link.second} has vectors of shape '
                f'{link.vectors.shape} and weights of shape {link.weight.shape}: the mesh has '
                f'{h} x {w} nodes'
            )
    if start is not None and start.shape != (sections, 2, h, w):
        raise ValueError(f'start has shape {start.shape}: must be {(sections, 2, h, w)}')
    if frozen is not None and frozen.shape not in ((sections,), shape):
        raise ValueError(f'frozen has shape {frozen.shape}: must be {(sections,)} or {shape}')


def _pulls(vectors: Reals, links: Sequence[Link], stride: float) -> tuple[Reals, Reals]:
    """Flow and weight of each link, taken where its first section looks."""
    h, w = vectors.shape[2:]
    y, x = np.meshgrid(
        np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32), indexing='ij'
    )
    pulls = np.zeros((len(links), 2, h, w))
    weights = np.zeros((len(links), h, w))
    for n, link in enumerate(links):
        moved = (vectors[link.first] / stride).astype(np.float32)
        place = (x + moved[1], y + moved[0])
        weight = np.where(np.isfinite(link.vectors[0]), link.weight, np.float32(0))
        weights[n] = cv2.remap(weight, *place, cv2.INTER_LINEAR)
        for axis in range(2):
            # Weighted, so that the unknown beside the known counts for nothing.
            values = np.where(weight > 0, link.vectors[axis], np.float32(0)) * weight
            pulls[n, axis] = cv2.remap(values, *place, cv2.INTER_LINEAR)
        pulls[n] /= np.maximum(weights[n], 1e-9)
    return pulls, weights


def _misfit(vectors: Reals, links: Sequence[Link], pulls: Reals) -> Reals:
    rest = [
        vectors[link.second] - vectors[link.first] - f for link, f in zip(links, pulls, strict=True)
    ]
    return np.sqrt((np.stack(rest) ** 2).sum(axis=1)) if rest else np.zeros((0, *vectors.shape[2:]))


class _System:
    """The linear problem: the force on each node is rhs - apply(vectors)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        links: Sequence[Link],
        config: MeshConfig,
        sheets: Sheets,
        frozen: Bools | None,
    ) -> None:
        self._links, self._config = links, config
        along_y, along_x = (
            along[:, None].astype(np.float64) for along in (sheets.along_y, sheets.along_x)
        )
        self._along_y, self._along_x = config.stiffness * along_y, config.stiffness * along_x
        # A cut edge bends nothing.
        self._bent_y = config.bending * along_y[:, :, 1:] * along_y[:, :, :-1]
        self._bent_x = config.bending * along_x[..., 1:] * along_x[..., :-1]
        edges = along_y[..., 1:] * along_y[..., :-1] * along_x[:, :, 1:] * along_x[:, :, :-1]
        self._twisted = 2 * config.bending * edges
        free = np.ones(shape[0]) if frozen is None else 1.0 - frozen
        self._free = free[:, None] if free.ndim == 3 else free[:, None, None, None]

    def solve(self, vectors: Reals, pulls: Reals, weights: Reals) -> Reals:
        """Conjugate gradients, from `vectors`, with the diagonal as preconditioner."""
        config = self._config
        weights = weights[:, None]
        rhs = self._rhs(vectors.shape, pulls, weights)
        force = (rhs - self._apply(vectors, weights)) * self._free
        scale = np.sqrt((rhs * rhs).sum())
        diagonal = self._diagonal(vectors.shape, weights)
        result = vectors.copy()
        step = force / diagonal
        product = float((force * step).sum())
        for _ in range(config.max_steps):
            if np.sqrt((force * force).sum()) <= config.tolerance * max(scale, 1e-12):
                break
            image = self._apply(step, weights) * self._free
            length = product / float((step * image).sum())
            result += length * step
            force -= length * image
            scaled = force / diagonal
            new_product = float((force * scaled).sum())
            step = scaled + (new_product / product) * step
            product = new_product
        return result

    def _apply(self, vectors: Reals, weights: Reals) -> Reals:
        result = self._config.anchor * vectors
        rise = self._along_y * np.diff(vectors, axis=2)
        result[:, :, :-1] -= rise
        result[:, :, 1:] += rise
        rise = self._along_x * np.diff(vectors, axis=3)
        result[..., :-1] -= rise
        result[..., 1:] += rise
        self._bend(vectors, result)
        for link, weight in zip(self._links, weights, strict=True):
            pull = weight * (vectors[link.second] - vectors[link.first])
            result[link.second] += pull
            result[link.first] -= pull
        return result

    def _bend(self, vectors: Reals, result: Reals) -> None:
        bent = self._bent_y * np.diff(vectors, 2, axis=2)
        result[:, :, :-2] += bent
        result[:, :, 1:-1] -= 2 * bent
        result[:, :, 2:] += bent
        bent = self._bent_x * np.diff(vectors, 2, axis=3)
        result[..., :-2] += bent
        result[..., 1:-1] -= 2 * bent
        result[..., 2:] += bent
        twisted = self._twisted * np.diff(np.diff(vectors, axis=2), axis=3)
        result[:, :, 1:, 1:] += twisted
        result[:, :, :-1, :-1] += twisted
        result[:, :, 1:, :-1] -= twisted
        result[:, :, :-1, 1:] -= twisted

    def _rhs(self, shape: tuple[int, ...], pulls: Reals, weights: Reals) -> Reals:
        result = np.zeros(shape)
        for link, flow, weight in zip(self._links, pulls, weights, strict=True):
            result[link.second] += weight * flow
            result[link.first] -= weight * flow
        return result

    def _diagonal(self, shape: tuple[int, ...], weights: Reals) -> Reals:
        result = np.full((shape[0], 1, *shape[2:]), self._config.anchor)
        result[:, :, :-1] += self._along_y
        result[:, :, 1:] += self._along_y
        result[..., :-1] += self._along_x
        result[..., 1:] += self._along_x
        for bent, part in ((self._bent_y, np.s_[:, :]), (self._bent_x, np.s_[:, :, :])):
            result[(*part, np.s_[:-2])] += bent
            result[(*part, np.s_[1:-1])] += 4 * bent
            result[(*part, np.s_[2:])] += bent
        for y in (np.s_[1:], np.s_[:-1]):
            for x in (np.s_[1:], np.s_[:-1]):
                result[:, :, y, x] += self._twisted
        for link, weight in zip(self._links, weights, strict=True):
            result[link.second] += weight
            result[link.first] += weight
        return result
