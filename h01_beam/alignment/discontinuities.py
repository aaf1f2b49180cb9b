r"""Folds and tears: lines across which a section does not hang together.

On the two sides of a fold or a tear flow differs by what the fold hides or the tear opens. Around
each node, in each of several directions, one model is fitted to flow,

    f(x) = cubic along the normal + quadratic + jump * side(x) / 2         side: -1 left, 1 right

               o  o  o | o  o  o
               o  o  o | o  o  o      an ellipse of nodes, long along the normal
               o  o  o | o  o  o

so that a smooth warp, however steep, leaves nothing to the jump; flow that is missing beside the
line, or smeared over it, counts little, as both sides are fitted from farther off. Where the jump
is large and sure, and most sure along the normal, the line passes: edges of the mesh that cross it
are cut. Pieces that are too short are dropped.

A straight dark band in the image is evidence as well, as patches that lie across a fold smear the
jump over several nodes: along a band a jump need not be as large and sure, but there must be one.

What hides tissue (f jumps along the normal: a fold) has a dark band in the image, what opens a gap
(f jumps against it: a tear) is masked there; both are taken out of the mask near the line. One
flow cannot tell a fold of its first section from a tear of its second: ask with flows to several
sections, and what most of them see is this section's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from h01_beam.alignment.bands import find_dark_bands
from h01_beam.alignment.mesh import Bools, Real, Reals, Sheets

_DIRECTIONS = 8
# Half axes of the ellipse in nodes, along the normal and the line.
_REACH = 5.0
_BREADTH = 4.0
_CLEAN = 5  # nodes along each side of the square in which outliers are told
_STRAIN = 0.1  # of a warp
_STEP = 0.75  # half the length in nodes of the piece of line that passes a node


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscontinuityConfig:
    """What counts as a discontinuity.

    Attributes:
      min_jump: of flow across the line, in pixels; half of it where the line goes on, or along
        a dark band.
      min_certainty: of the jump, in standard errors; half of it likewise.
      min_length: of a line, in nodes.
      outlier: vectors that differ by more, beside what strain may do from node to node, from
        nearly all around are not looked at; pixels.
      darkness: of a fold's band, see `find_dark_bands`.
      breadth: to each side of the line, where band and gap are looked for, in nodes.
    """

    min_jump: float = 3.0
    min_certainty: float = 4.5
    min_length: float = 5.0
    outlier: float = 3.0
    darkness: float = 1.5
    breadth: float = 1.5

    def __post_init__(self) -> None:
        """Checks the fields."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f'discontinuities.{field.name} is {value}: must be above 0')


@dataclasses.dataclass(frozen=True)
class Discontinuities:
    """Where a section does not hang together.

    Attributes:
      kinds: 'fold' or 'tear' of each connected piece.
      pieces: (h, w) int32, 1 + the piece's place in `kinds` at nodes beside its line, else 0.
      cut_y: (h - 1, w), edges to the next node in y that the mesh must not have.
      cut_x: (h, w - 1), in x.
      mask: (height, width), what was tissue, without dark bands and gaps.
    """

    kinds: tuple[str, ...]
    pieces: npt.NDArray[np.int32]
    cut_y: Bools
    cut_x: Bools
    mask: Bools


def find_discontinuities(
    vectors: Real,
    weights: Real,
    image: npt.NDArray[np.generic],
    mask: Bools,
    stride: float,
    config: DiscontinuityConfig,
) -> Discontinuities:
    """Finds folds and tears of a section.

    Args:
      vectors: (2, h, w) flow from the section to another, pixels, NaN where not known; or
        (flows, 2, h, w), to several.
      weights: (h, w) or (flows, h, w), trust from 0 to 1.
      image: (height, width) of the section; node (i, j) is at (i, j) * stride.
      mask: where it shows tissue.
      stride: pixels between nodes.
      config: what counts.

    Returns:
      pieces of lines, the edges that they cut and the mask without them.

    Raises:
      ValueError: shapes do not fit.
    """
    flows = vectors if vectors.ndim == 4 else vectors[None]
    trust = weights if weights.ndim == 3 else weights[None]
    if flows.shape[1] != 2 or trust.shape != (len(flows), *flows.shape[2:]):
        raise ValueError(
            f'vectors have shape {vectors.shape} and weights {weights.shape}: must be (2, h, w) '
            'and (h, w), or one more axis of flows before'
        )
    if image.shape != mask.shape:
        raise ValueError(f'image has shape {image.shape}, mask {mask.shape}: must be the same')
    jump, certainty = _most_of(
        [_jumps(f, w, stride, config) for f, w in zip(flows, trust, strict=True)]
    )
    if not _perhaps(jump, certainty, config):
        return _nothing(flows.shape[2:], mask)
    dark = _find_dark(image, mask, stride, config.darkness)
    lines = _trace(jump, certainty, _at_nodes(dark, flows.shape[2:], stride), config)
    cut_y, cut_x = _cuts(lines, certainty.shape[1:])
    pieces, cut_y, cut_x = _pieces(lines, cut_y, cut_x, config)
    kinds = _kinds(pieces, lines, dark, mask, stride, config)
    return Discontinuities(
        kinds, pieces, cut_y, cut_x, _without(pieces, kinds, dark, mask, stride, config)
    )


def _perhaps(jump: Reals, certainty: Reals, config: DiscontinuityConfig) -> bool:
    """Whether a line might be found if there were a dark band all over: it takes long to look."""
    size = np.sqrt((jump**2).sum(axis=1))
    likely = ((size >= config.min_jump / 2) & (certainty >= config.min_certainty / 2)).any(axis=0)
    groups, _ = ndimage.label(ndimage.binary_dilation(likely), np.ones((3, 3)))
    # A line may leave gaps: half of its length is enough to look closer.
    return any(
        np.hypot(y.stop - y.start, x.stop - x.start) >= config.min_length / 2
        for y, x in ndimage.find_objects(groups)
    )


def _find_dark(
    image: npt.NDArray[np.generic], mask: Bools, stride: float, darkness: float
) -> Bools:
    """Dark bands, looked for with as many pixels as they need: a piece is 8 long at least."""
    factor = max(1, int(stride // 8))
    if factor == 1:
        return find_dark_bands(image, mask, stride, darkness)
    h, w = (-(-n // factor) for n in mask.shape)
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
    there = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0
    bands = find_dark_bands(small, there, stride / factor, darkness)
    size = (mask.shape[1], mask.shape[0])
    return mask & (cv2.resize(bands.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0)


def _nothing(shape: tuple[int, ...], mask: Bools) -> Discontinuities:
    h, w = shape
    cuts = np.zeros((h - 1, w), np.bool_), np.zeros((h, w - 1), np.bool_)
    return Discontinuities((), np.zeros((h, w), np.int32), *cuts, mask.copy())


def cut_sheets(shape: tuple[int, int, int], found: Mapping[int, Discontinuities]) -> Sheets:
    """Sheets of a stack, `shape` (sections, h, w), cut where sections have discontinuities."""
    sheets = Sheets.whole(shape)
    for z, one in found.items():
        sheets.along_y[z][one.cut_y] = 0
        sheets.along_x[z][one.cut_x] = 0
    return sheets


# ------------------------------------------------------------------ jumps of flow


def _normals() -> Reals:
    """(directions, 2) y and x."""
    angle = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _jumps(
    flow: Real, weight: Real, stride: float, config: DiscontinuityConfig
) -> tuple[Reals, Reals]:
    """Jump (directions, 2, h, w) and its size in standard errors (directions, h, w)."""
    good = _clean(flow, weight, stride, config)
    trust = np.where(good, weight, 0).astype(np.float64)
    values = np.where(good, flow, 0).astype(np.float64)
    fits = [_fit(values, trust, normal) for normal in _normals()]
    return np.stack([jump for jump, _ in fits]), np.stack([sure for _, sure in fits])


def _clean(flow: Real, weight: Real, stride: float, config: DiscontinuityConfig) -> Bools:
    """Known vectors that a fifth of the nodes around agree with: even one that lies beside a line.

    A median around would drop what lies in a corner.
    """
    known = np.isfinite(flow[0]) & (weight > 0)
    side = _CLEAN // 2
    values = np.where(known, flow, np.nan)
    around = np.pad(values, ((0, 0), (side,) * 2, (side,) * 2), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(around, (_CLEAN, _CLEAN), axis=(1, 2))
    off = ((windows - values[..., None, None]) ** 2).sum(axis=0)
    alike = (off <= (config.outlier + _STRAIN * stride) ** 2).sum(axis=(-2, -1))
    return np.asarray(known & (alike > _CLEAN))


def _fit(values: Reals, trust: Reals, normal: Reals) -> tuple[Reals, Reals]:
    """Weighted least squares around each node: jump (2, h, w), its certainty (h, w)."""
    basis, window = _basis(normal)
    terms = len(basis)

    def sums(array: Reals, kernel: Reals) -> Reals:
        return cv2.filter2D(array, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT)

    normal_matrix = np.zeros((*trust.shape, terms, terms))
    right = np.zeros((*trust.shape, terms, 2))
    for k in range(terms):
        for m in range(k, terms):
            normal_matrix[..., k, m] = sums(trust, window * basis[k] * basis[m])
            normal_matrix[..., m, k] = normal_matrix[..., k, m]
        for axis in range(2):
            right[..., k, axis] = sums(trust * values[axis], window * basis[k])
    inverse = np.linalg.inv(normal_matrix + 1e-3 * np.eye(terms))
    found = inverse @ right
    energy = sums(trust * (values * values).sum(axis=0), window)
    rest = np.maximum(energy - (found * right).sum(axis=(-2, -1)), 0)
    count = sums(trust, window)
    # Noise is never less than a tenth of a pixel: a perfect fit of few nodes proves nothing.
    noise = rest / np.maximum(2 * (count - terms), 1) + 0.01
    jump = np.moveaxis(found[..., 0, :], -1, 0)
    certainty = np.sqrt((jump**2).sum(axis=0) / (noise * np.maximum(inverse[..., 0, 0], 1e-9)))
    return np.asarray(jump), np.where(count > 2 * terms, certainty, 0.0)


def _basis(normal: Reals) -> tuple[Reals, Reals]:
    """(terms, n, n) of the model, the first the jump; and the (n, n) weights of the ellipse."""
    reach = int(_REACH)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    t = (normal[0] * y + normal[1] * x) / _REACH
    s = (normal[1] * y - normal[0] * x) / _BREADTH
    side = 0.5 * np.clip(t * _REACH / 0.5, -1, 1)
    window = np.clip(1.25 - t * t - s * s, 0, 1)
    return np.stack([side, np.ones_like(t), t, s, t * t, t * s, s * s, t**3]), window


def _most_of(fits: list[tuple[Reals, Reals]]) -> tuple[Reals, Reals]:
    """Medians of the flows that know; of two, the lesser."""
    jumps = np.stack([jump for jump, _ in fits])
    sure = np.stack([certainty for _, certainty in fits])
    known = np.asarray(sure > 0)
    if len(fits) == 1:
        return jumps[0], sure[0]
    # As a fold is the section's own, all its flows jump alike; the lower median takes no mean.
    ranked = np.sort(np.where(known, sure, np.inf), axis=0)
    middle = np.maximum((known.sum(axis=0) - 1) // 2, 0)
    certainty = np.asarray(np.take_along_axis(ranked, middle[None], axis=0)[0])
    # 0 where no flow knows, so that numpy does not warn.
    unknown = np.expand_dims(~known, 2) & np.expand_dims(known.any(axis=0), 1)
    jump = np.nanmedian(np.where(unknown, np.nan, jumps), axis=0)
    return jump, np.where(np.isfinite(certainty), certainty, 0)


# ------------------------------------------------------------------ lines


@dataclasses.dataclass(frozen=True)
class _Lines:
    """Pieces of line, one for each node that one passes: (n,), (n, 2)."""

    nodes: npt.NDArray[np.int64]
    points: Reals
    normals: Reals
    jumps: Reals


def _trace(jump: Reals, certainty: Reals, near: Bools, config: DiscontinuityConfig) -> _Lines:
    """Nodes where the jump is more certain than before and behind along the normal."""
    # A band in the image is evidence too: with it, flow need not be as sure.
    certainty = certainty * np.where(near, 2.0, 1.0)
    size = np.sqrt((jump**2).sum(axis=1))
    sure = np.where(size >= config.min_jump / 2, certainty, 0)
    best = sure.argmax(axis=0)
    top = np.asarray(np.take_along_axis(sure, best[None], axis=0)[0])
    smooth = ndimage.gaussian_filter(top, 0.7)
    normals = _normals()[best]
    grid = np.moveaxis(np.indices(top.shape), 0, -1).astype(np.float64)

    def along(distance: float) -> Reals:
        place = grid + distance * normals
        return ndimage.map_coordinates(smooth, np.moveaxis(place, -1, 0), order=1, mode='nearest')

    before, behind = along(-1), along(1)
    ridge = np.asarray((smooth >= before) & (smooth >= behind) & (top >= config.min_certainty / 2))
    bend = np.maximum(2 * smooth - before - behind, 1e-9)
    shift = np.clip(0.5 * (behind - before) / bend, -0.5, 0.5)
    taken = np.take_along_axis(size, best[None], axis=0)[0]
    least = config.min_jump * np.where(near, 0.5, 1.0)
    seeds = ridge & (top >= config.min_certainty) & (taken >= least)
    groups = np.asarray(ndimage.label(ndimage.binary_dilation(ridge), np.ones((3, 3)))[0])
    kept = np.asarray(ridge & np.isin(groups, np.unique(groups[seeds])) & (groups > 0))
    nodes = np.argwhere(kept)
    at = tuple(nodes.T)
    points = nodes + shift[at][:, None] * normals[at]
    return _Lines(nodes, points, normals[at], jump[best[at], :, at[0], at[1]])


def _cuts(lines: _Lines, shape: tuple[int, ...]) -> tuple[Bools, Bools]:
    """Edges (h - 1, w) and (h, w - 1) that a piece of line crosses."""
    h, w = shape
    cuts = (np.zeros((h - 1, w), np.bool_), np.zeros((h, w - 1), np.bool_))
    for node, point, normal in zip(lines.nodes, lines.points, lines.normals, strict=True):
        tangent = np.array([normal[1], -normal[0]])
        for axis, cut in enumerate(cuts):
            low = np.maximum(node - 2, 0)
            high = np.minimum(node + 3, cut.shape)
            begin = np.moveaxis(np.mgrid[low[0] : high[0], low[1] : high[1]], 0, -1) - point
            a = begin @ normal
            b = a + normal[axis]
            crosses = (a < 0) != (b < 0)
            share = np.where(crosses, a / np.where(crosses, a - b, 1), 0)
            place = begin @ tangent + share * tangent[axis]
            cut[low[0] : high[0], low[1] : high[1]] |= crosses & (np.abs(place) <= _STEP)
    return cuts


def _pieces(
    lines: _Lines, cut_y: Bools, cut_x: Bools, config: DiscontinuityConfig
) -> tuple[npt.NDArray[np.int32], Bools, Bools]:
    """Connected cuts that are long enough, numbered at the nodes on both sides."""
    h, w = cut_y.shape[0] + 1, cut_y.shape[1]
    beside = np.zeros((h, w), np.bool_)
    for cut, a, b in (
        (cut_y, np.s_[:-1], np.s_[1:]),
        (cut_x, np.s_[:, :-1], np.s_[:, 1:]),
    ):
        beside[a] |= cut
        beside[b] |= cut
    groups, count = ndimage.label(beside, np.ones((3, 3)))
    of_line = groups[tuple(lines.nodes.T)]
    numbers = np.zeros(count + 1, np.int32)
    for n in range(1, count + 1):
        points = lines.points[of_line == n]
        if len(points) and np.linalg.norm(np.ptp(points, axis=0)) + 1 >= config.min_length:
            numbers[n] = numbers.max() + 1
    pieces = numbers[groups]
    return pieces, cut_y & (pieces[:-1] > 0), cut_x & (pieces[:, :-1] > 0)


# ------------------------------------------------------------------ the image


def _at_nodes(pixels: Bools, shape: tuple[int, ...], stride: float) -> Bools:
    """(h, w) nodes with such a pixel less than a stride away."""
    wide = cv2.dilate(pixels.astype(np.uint8), np.ones((2 * int(stride) + 1,) * 2, np.uint8))
    y, x = (
        np.clip(np.rint(np.arange(n) * stride).astype(np.int64), 0, m - 1)
        for n, m in zip(shape, pixels.shape, strict=True)
    )
    return np.asarray(wide[y[:, None], x] > 0)


def near_nodes(nodes: Bools, shape: tuple[int, ...], stride: float, breadth: float) -> Bools:
    """Pixels of an image of some shape, at most `breadth` nodes from the (h, w) given ones."""
    y, x = (np.clip(np.rint(np.arange(n) / stride).astype(np.int64), 0, m - 1)
            for n, m in zip(shape, nodes.shape, strict=True))  # fmt: skip
    distance = ndimage.distance_transform_edt(~nodes)
    return np.asarray((distance <= breadth)[y[:, None], x])


def _kinds(
    pieces: npt.NDArray[np.int32],
    lines: _Lines,
    dark: Bools,
    mask: Bools,
    stride: float,
    config: DiscontinuityConfig,
) -> tuple[str, ...]:
    kinds = []
    of_line = pieces[tuple(lines.nodes.T)]
    for n in range(1, int(pieces.max(initial=0)) + 1):
        near = near_nodes(pieces == n, mask.shape, stride, 0.5)
        gap, band = (~mask & near).sum(), (dark & near).sum()
        mine = of_line == n
        opens = float((lines.jumps[mine] * lines.normals[mine]).sum()) < 0
        if max(gap, band) > 0.1 * near.sum():
            opens = gap > band
        kinds.append('tear' if opens else 'fold')
    return tuple(kinds)


def _without(
    pieces: npt.NDArray[np.int32],
    kinds: tuple[str, ...],
    dark: Bools,
    mask: Bools,
    stride: float,
    config: DiscontinuityConfig,
) -> Bools:
    """The mask without bands and gaps near the lines, nor the blurred pixels at their borders."""
    result = mask.copy()
    for n, kind in enumerate(kinds, 1):
        near = near_nodes(pieces == n, mask.shape, stride, config.breadth)
        gone = near & (dark if kind == 'fold' else ~mask)
        result &= ~(ndimage.binary_dilation(gone, iterations=2) & near)
    return result
