"""Rough alignment: one affine map for each section, from features of thumbnails.

    thumbnails -> features -> matches of nearby sections -> affine maps, all solved at once

Features are SIFT (Lowe, IJCV 2004), so neither rotation nor contrast matters; a section
that was picked up upside down is found by its mirror image. Each pair of sections is matched on
its own and keeps only what one affine map explains (RANSAC); where that is too little, `pairs` asks
for correlation. Then all maps are solved together: matches that disagree lose their pull, and
sections that no match ties to the others are told, not guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg

from h01_beam.registration.maps import invert_affine

Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_CLAHE_LIMIT, _CLAHE_TILES = 2.0, (8, 8)
# Rounds in which matches that disagree lose weight.
_ROUNDS = 8
# Features of a pair that correlates perfectly but shares too few of them.
_PEAK_AS_FEATURES = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoarseConfig:
    """How thumbnails are matched; lengths in pixels of the thumbnail.

    Attributes:
      max_features: strongest features of each section.
      contrast_threshold: of SIFT; weaker features are not used.
      max_ratio: of the distances to the best and the second best match (Lowe).
      tolerance: by which matches may miss one affine map.
      min_matches: pairs of sections that share fewer are not matched.
      neighbours: how many sections before each it is matched with.
      allow_mirrored: whether sections may have been picked up upside down.
      rigidity: weight of the shape that sections have against that which matches want.
    """

    max_features: int = 1500
    contrast_threshold: float = 0.02
    max_ratio: float = 0.8
    tolerance: float = 6.0
    min_matches: int = 12
    neighbours: int = 4
    allow_mirrored: bool = True
    rigidity: float = 0.3

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('max_features', 'neighbours'):
            if getattr(self, name) < 1:
                raise ValueError(f'coarse.{name} is {getattr(self, name)}: must be 1 or more')
        if self.min_matches < 4:
            raise ValueError(
                f'coarse.min_matches is {self.min_matches}: must be at least 4, as any three '
                'matches fit some affine map'
            )
        for name in ('contrast_threshold', 'tolerance', 'rigidity'):
            if not getattr(self, name) > 0:
                raise ValueError(f'coarse.{name} is {getattr(self, name)}: must be above 0')
        if not 0 < self.max_ratio < 1:
            raise ValueError(f'coarse.max_ratio is {self.max_ratio}: must lie between 0 and 1')


@dataclasses.dataclass(frozen=True)
class Features:
    """Points of one section that can be recognized.

    Attributes:
      points: (n, 2) float64, y and x, pixels.
      descriptors: (n, 128) float32.
      mirrored: descriptors of the same section seen from below, with `mirrored_points`, where they
        lie in the section as it is.
    """

    points: Reals
    descriptors: npt.NDArray[np.float32]
    mirrored_points: Reals
    mirrored: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Match:
    """What two sections share.

    Attributes:
      first, second: places of the sections in the stack.
      first_points, second_points: (n, 2) the same tissue in either; y and x, pixels.
      flipped: whether one of them is the mirror image of the other.
      by: 'features', or 'correlation' of whole thumbnails (points are a grid then).
      weight: of the pair in `place_sections`.
      peak: correlation; 1 by features.
    """

    first: int
    second: int
    first_points: Reals
    second_points: Reals
    flipped: bool = False
    by: Literal['features', 'correlation'] = 'features'
    weight: float = 1.0
    peak: float = 1.0

    def __len__(self) -> int:
        return len(self.first_points)

    @property
    def similarity(self) -> float:
        """How alike the sections look: features that match; correlation counts as fewer."""
        return float(len(self)) if self.by == 'features' else _PEAK_AS_FEATURES * self.peak


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where sections lie.

    Attributes:
      affines: (sections, 2, 3), raw -> aligned, for (y, x, 1) in pixels of the thumbnail.
      group: (sections,) sections with one number hang together by matches; -1 for none at all.
      misfit: (matches,) median pixels by which each still disagrees.
    """

    affines: Reals
    group: npt.NDArray[np.int64]
    misfit: Reals


def detect_features(image: npt.NDArray[np.uint8], mask: Bools, config: CoarseConfig) -> Features:
    """Finds features of a thumbnail, (h, w) uint8, where the mask shows tissue."""
    even = cv2.createCLAHE(_CLAHE_LIMIT, _CLAHE_TILES).apply(cv2.GaussianBlur(image, (0, 0), 1.0))
    # What lies at the border of the tissue has the shape of the border.
    inner = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((9, 9), np.uint8))[1:-1, 1:-1]
    points, descriptors = _sift(even, inner, config)
    mirrored_points, mirrored = np.empty((0, 2)), descriptors[:0]
    if config.allow_mirrored:
        turned = [np.ascontiguousarray(a[:, ::-1]) for a in (even, inner)]
        mirrored_points, mirrored = _sift(turned[0], turned[1], config)
        mirrored_points[:, 1] = image.shape[1] - 1 - mirrored_points[:, 1]
    return Features(points, descriptors, mirrored_points, mirrored)


def _sift(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], config: CoarseConfig
) -> tuple[Reals, npt.NDArray[np.float32]]:
    finder = cv2.SIFT.create(config.max_features, contrastThreshold=config.contrast_threshold)
    found, descriptors = finder.detectAndCompute(image, mask)
    points = np.array([key.pt for key in found], np.float64).reshape(-1, 2)[:, ::-1].copy()
    if descriptors is None:
        descriptors = np.empty((0, 128), np.float32)
    return points, descriptors


def match_sections(
    first: int, second: int, a: Features, b: Features, config: CoarseConfig
) -> Match | None:
    """What two sections share, or None if that is too little to tell."""
    best = _matched(a.points, a.descriptors, b.points, b.descriptors, config)
    flipped = False
    if config.allow_mirrored:
        other = _matched(a.mirrored_points, a.mirrored, b.points, b.descriptors, config)
        if len(other[0]) > len(best[0]):
            best, flipped = other, True
    if len(best[0]) < config.min_matches:
        return None
    return Match(first, second, *best, flipped)


def _matched(
    points: Reals,
    descriptors: npt.NDArray[np.float32],
    other_points: Reals,
    other: npt.NDArray[np.float32],
    config: CoarseConfig,
) -> tuple[Reals, Reals]:
    """Pairs of points that one affine map explains."""
    nothing = np.empty((0, 2)), np.empty((0, 2))
    if min(len(descriptors), len(other)) < max(2, config.min_matches):
        return nothing
    pairs = [
        (best.queryIdx, best.trainIdx)
        for best, second in cv2.BFMatcher().knnMatch(descriptors, other, k=2)
        if best.distance < config.max_ratio * second.distance
    ]
    if len(pairs) < config.min_matches:
        return nothing
    index = np.array(pairs)
    a, b = points[index[:, 0]], other_points[index[:, 1]]
    _, inliers = cv2.estimateAffine2D(
        a, b, ransacReprojThreshold=config.tolerance, maxIters=5000, confidence=0.999
    )
    if inliers is None:
        return nothing
    keep = inliers.ravel().astype(np.bool_)
    return a[keep], b[keep]


def place_sections(
    sections: int, matches: Sequence[Match], centre: tuple[float, float], config: CoarseConfig
) -> Placement:
    """Solves for the affine maps of all sections at once.

    Args:
      sections: their number.
      matches: between them, any pairs in any order.
      centre: y and x about which sections turn: the middle of a thumbnail.
      config: tolerance and rigidity.

    Returns:
      the maps; of each group that hangs together the section with most matches lies as it is, and
      groups are not placed against each other: see `Placement.group`.
    """
    middle = np.asarray(centre, np.float64)
    rigid, group = _chain(
        sections, sorted(matches, key=lambda m: m.similarity, reverse=True), middle
    )
    if not matches:
        return Placement(rigid, group, np.empty(0))
    # So that linear parts and shifts weigh alike.
    scale = max(1.0, *centre)
    design, lengths = _design(sections, matches, middle, scale)
    wanted = _centred(rigid, middle, scale)
    # Shapes are held, places hardly: just enough to have one solution.
    hold = np.tile([config.rigidity, config.rigidity, 1e-3 * config.rigidity], sections)
    weights = np.repeat(np.sqrt([m.weight for m in matches] / lengths), lengths)
    trust = np.ones(int(lengths.sum()))
    for _ in range(_ROUNDS):
        rows = scipy.sparse.diags(weights * np.sqrt(trust)) @ design
        normal = (rows.T @ rows + scipy.sparse.diags(hold**2)).tocsc()
        solution = scipy.sparse.linalg.spsolve(normal, hold[:, None] ** 2 * wanted)
        wanted = _rigid_part(solution)
        misses = np.sqrt(((design @ solution) ** 2).sum(axis=1)) * scale
        trust = 1 / (1 + (misses / config.tolerance) ** 2) ** 2
    affines = _unshrunk(_uncentred(solution, middle, scale), rigid, group, middle)
    ends = np.cumsum(lengths)[:-1]
    return Placement(affines, group, np.array([np.median(m) for m in np.split(misses, ends)]))


def _chain(
    sections: int, ranked: Sequence[Match], centre: Reals
) -> tuple[Reals, npt.NDArray[np.int64]]:
    """Rigid maps along the strongest matches that tie all sections together; and the groups."""
    parent = np.arange(sections)

    def root(n: int) -> int:
        while parent[n] != n:
            n = int(parent[n])
        return n

    tree: list[list[tuple[int, Reals]]] = [[] for _ in range(sections)]
    strength = np.zeros(sections)
    for match in ranked:
        strength[match.first] += match.similarity
        strength[match.second] += match.similarity
        a, b = root(match.first), root(match.second)
        if a != b:
            parent[max(a, b)] = min(a, b)
            turn = fit_rigid(
                match.first_points - centre, match.second_points - centre, match.flipped
            )
            tree[match.second].append((match.first, turn))
            tree[match.first].append((match.second, invert_affine(turn)))
    group = np.array([root(n) for n in range(sections)])
    group[strength == 0] = -1
    rigid = np.tile(np.eye(2, 3), (sections, 1, 1))
    for number in np.unique(group[group >= 0]).tolist():
        members = np.flatnonzero(group == number)
        start = int(members[strength[members].argmax()])
        seen, queue = {start}, [start]
        for at in queue:
            for other, turn in tree[at]:
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
                    rigid[other] = _after(rigid[at], turn)
    for n in range(sections):
        # From maps about the centre to maps of pixels.
        rigid[n, :, 2] += centre - rigid[n, :, :2] @ centre
    return rigid, group


def fit_rigid(a: Reals, b: Reals, flipped: bool) -> Reals:
    """The (2, 3) rotation and shift that take points a nearest to b (Kabsch)."""
    middle_a, middle_b = a.mean(axis=0), b.mean(axis=0)
    u, _, vt = np.linalg.svd((b - middle_b).T @ (a - middle_a))
    sign = np.sign(np.linalg.det(u @ vt)) * (-1.0 if flipped else 1.0)
    turn = u @ np.diag([1.0, sign]) @ vt
    return np.concatenate([turn, (middle_b - turn @ middle_a)[:, None]], axis=1)


def _after(outer: Reals, inner: Reals) -> Reals:
    """The affine map outer(inner(.))."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def _design(
    sections: int, matches: Sequence[Match], centre: Reals, scale: float
) -> tuple[scipy.sparse.csr_matrix, npt.NDArray[np.int64]]:
    """Rows A_first(p) - A_second(q), one for each matched point, on (3 sections) unknowns."""
    lengths = np.array([len(m) for m in matches])
    values, columns = [], []
    for match in matches:
        for section, points, sign in (
            (match.first, match.first_points, 1.0),
            (match.second, match.second_points, -1.0),
        ):
            local = np.concatenate([(points - centre) / scale, np.ones((len(points), 1))], axis=1)
            values.append(sign * local)
            columns.append(np.broadcast_to(3 * section + np.arange(3), local.shape))
    starts = np.cumsum(lengths) - lengths
    rows = [
        np.broadcast_to((start + np.arange(n))[:, None], (n, 3))
        for start, n in zip(starts, lengths, strict=True)
        for _ in range(2)
    ]
    entries = (
        np.concatenate(values).ravel(),
        (np.concatenate(rows).ravel(), np.concatenate(columns).ravel()),
    )
    return scipy.sparse.csr_matrix(entries, shape=(int(lengths.sum()), 3 * sections)), lengths


def _centred(affines: Reals, centre: Reals, scale: float) -> Reals:
    """(3 sections, 2) unknowns: transposed maps about the centre, in units of `scale`."""
    local = affines.copy()
    local[:, :, 2] = (affines[:, :, 2] + affines[:, :, :2] @ centre - centre) / scale
    return np.swapaxes(local, 1, 2).reshape(-1, 2)


def _uncentred(unknowns: Reals, centre: Reals, scale: float) -> Reals:
    affines = np.swapaxes(unknowns.reshape(-1, 3, 2), 1, 2).copy()
    affines[:, :, 2] = affines[:, :, 2] * scale + centre - affines[:, :, :2] @ centre
    return affines


def _rigid_part(unknowns: Reals) -> Reals:
    """The same unknowns with linear parts replaced by the nearest rotation or mirrored rotation."""
    parts = unknowns.reshape(-1, 3, 2).copy()
    u, _, vt = np.linalg.svd(parts[:, :2])
    parts[:, :2] = u @ vt
    return parts.reshape(-1, 2)


def _unshrunk(affines: Reals, rigid: Reals, group: npt.NDArray[np.int64], centre: Reals) -> Reals:
    """Undoes that least squares shrink everything: areas stay as they are, on average."""
    result = affines.copy()
    for number in np.unique(group[group >= 0]).tolist():
        members = group == number
        areas = np.abs(np.linalg.det(affines[members, :, :2]))
        factor = 1 / np.sqrt(np.exp(np.mean(np.log(np.maximum(areas, 1e-6)))))
        result[members, :, :2] *= factor
        result[members, :, 2] = factor * affines[members, :, 2] + (1 - factor) * centre
    result[group < 0] = rigid[group < 0]
    return result
