r"""Long straight bands in the image of a section: folds, and tears that are gaps.

        side | core | side        a piece: means over the core and over what lies beside it
      --------------------
      --------------------        pieces in a row make a line, in any direction

Membranes, myelin, vessels and organelles are dark as well, but bend, end, or are dark to one side
only. So each piece is compared with both of its sides, as a share of these, which no gain or uneven
light changes, and nearly all pieces of a line that is several um long must stand out. Bands of
different widths are sought in images that are halved once more each. A fold is tissue seen through
more tissue: dimmed, with its texture. In a gap there is none. Parts that lie on one course are one
line, though something between them hides it.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

NOTHING, FOLD, TEAR = 0, 1, 2
# Pixels of a level: length of a piece. Cores are a quarter of it wide, and their sides 0.4 of it.
UNIT = 16
_ORIENTATIONS = 16
# Texture is compared at this quantile: borders of a band are steep, and tissue beside it dark.
_SMOOTHER = 0.3
# Tangent of the angle by which parts of one line may turn from one to the next: 15 degrees.
_COURSE = 0.27


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineConfig:
    """What counts as a line.

    Attributes:
      contrast: by which a piece differs from both of its sides, as a share of the nearer.
      min_length_nm: of a line, at the finest level; coarser ones ask for 5 pieces at least.
      finest_nm: side of a pixel of the finest level; halves of the montage's that come nearest.
      levels: how many; each finds bands twice as wide, from 3 to 6 pixels of it.
      texture: of a gap, at most: deviation over mean, as a share of that of its surroundings.
    """

    contrast: float = 0.3
    min_length_nm: float = 5500.0
    finest_nm: float = 32.0
    levels: int = 3
    texture: float = 0.5

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name in ('contrast', 'min_length_nm', 'finest_nm', 'texture'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f'lines.{name} is {value}: must be above 0')
        if self.levels < 1:
            raise ValueError(f'lines.levels is {self.levels}: must be 1 or more')

    def factors(self, pixel_nm: float) -> list[int]:
        """By how much the image is downsampled at each level."""
        first = max(0, round(math.log2(self.finest_nm / pixel_nm)))
        return [2 ** (first + n) for n in range(self.levels)]

    def pieces(self, pixel_nm: float) -> list[int]:
        """Of a line, at each level: an odd number."""
        units = (UNIT * factor * pixel_nm for factor in self.factors(pixel_nm))
        return [max(5, 2 * round((self.min_length_nm / unit - 1) / 2) + 1) for unit in units]

    def reach(self, pixel_nm: float) -> int:
        """Pixels of the image from which a place is told; a multiple of all downsamplings."""
        each = zip(self.factors(pixel_nm), self.pieces(pixel_nm), strict=True)
        most = max(factor * UNIT * (pieces // 2 + 2) for factor, pieces in each)
        unit = self.factors(pixel_nm)[-1]
        return -(-most // unit) * unit


def find_lines(image: Bytes, pixel_nm: float, config: LineConfig) -> Bytes:
    """Finds folds and gaps.

    Args:
      image: (h, w) of a section, resin and tape included; 0 is nothing.
      pixel_nm: side of a pixel.
      config: what counts.

    Returns:
      (h, w) `NOTHING`, `FOLD` or `TEAR`.
    """
    factors, pieces = config.factors(pixel_nm), config.pieces(pixel_nm)
    fine, there = _shrunk(image, factors[0])
    if not there.any():
        return np.zeros(image.shape, np.uint8)
    means = [_means(*_shrunk(image, factor)) for factor in factors]
    found = np.zeros(fine.shape, np.uint8)
    size = (fine.shape[1], fine.shape[0])
    for sign in (-1.0, 1.0):
        band = np.zeros(fine.shape, np.bool_)
        for parts, count in zip(means, pieces, strict=True):
            limit = _limits(parts, sign, count, config.contrast)
            if not limit.any():
                continue
            limit = cv2.resize(limit, size, interpolation=cv2.INTER_NEAREST)
            band |= there & (limit > 0) & (sign * (fine - limit) > 0)
        least = config.min_length_nm / 2 / (pixel_nm * factors[0])
        kind = _kinds(fine, there, _long(band, least), factors[-1] // factors[0], config.texture)
        kind = _bridged(kind, least)
        # Cells have bright interiors too, and dendrites are straight: only gaps are smooth.
        found = np.maximum(found, np.where(kind == TEAR, kind, kind if sign < 0 else 0))
    large = cv2.resize(found, None, fx=factors[0], fy=factors[0], interpolation=cv2.INTER_NEAREST)
    h, w = image.shape
    large = np.pad(large, ((0, max(0, h - large.shape[0])), (0, max(0, w - large.shape[1]))))
    return np.ascontiguousarray(large[:h, :w])


def _shrunk(image: Bytes, factor: int) -> tuple[Real, Bools]:
    """Means of what there is, and where that is nearly all."""
    h, w = (-(-n // factor) * factor for n in image.shape)
    whole = np.pad(image, ((0, h - image.shape[0]), (0, w - image.shape[1])))
    size = (w // factor, h // factor)
    share = cv2.resize((whole > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    values = cv2.resize(whole.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return values / np.maximum(share, np.float32(1e-3)), np.asarray(share > 0.9)


def _limits(parts: Real, sign: float, pieces: int, contrast: float) -> Real:
    """Grey levels midway between lines and their sides, near lines; 0 elsewhere."""
    core = parts[:, 0]
    # The side that is nearer in brightness, and both must be seen: else every border would be one.
    side = parts[:, 1:].min(axis=1) if sign < 0 else parts[:, 1:].max(axis=1)
    depth, middle = np.nan_to_num(sign * (core - side) / side, nan=-1.0), (core + side) / 2
    fine = _ORIENTATIONS * max(1, pieces // 2)
    half, allowed = pieces // 2, pieces // 5
    margin = half * UNIT + 1
    clear = np.pad(depth > contrast, ((0, 0), (margin, margin), (margin, margin)))
    h, w = core.shape[1:]
    result = np.zeros((h, w), np.float32)
    for n in range(fine):
        angle = math.pi * n / fine
        k = round(n * _ORIENTATIONS / fine) % _ORIENTATIONS
        if not clear[k].any():
            continue
        steps = [(round(-j * UNIT * math.sin(angle)), round(j * UNIT * math.cos(angle)))
                 for j in range(-half, half + 1)]  # fmt: skip
        count = np.zeros((h, w), np.uint8)
        for y, x in steps:
            count += clear[k, margin + y : margin + y + h, margin + x : margin + x + w]
        line = count >= pieces - allowed
        if not line.any():
            continue
        # The pieces that stand out are the line, not the middles of such rows alone.
        wide = np.pad(line, margin)
        for y, x in steps:
            part = wide[margin - y : margin - y + h, margin - x : margin - x + w]
            result = np.where(part & (depth[k] > contrast), np.maximum(result, middle[k]), result)
    return np.asarray(cv2.dilate(result, np.ones((UNIT // 4 + 1,) * 2, np.uint8)))


def _means(image: Real, there: Bools) -> Real:
    """(orientations, 3, h, w) means over pieces, and to both sides; NaN where less than half is."""
    weight = there.astype(np.float32)
    values = image * weight
    result = np.empty((_ORIENTATIONS, 3, *image.shape), np.float32)
    for n in range(_ORIENTATIONS):
        for part, kernel in enumerate(_kernels(math.pi * n / _ORIENTATIONS)):
            total = cv2.filter2D(weight, -1, kernel, borderType=cv2.BORDER_CONSTANT)
            mean = cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_CONSTANT)
            mean = np.maximum(mean / np.maximum(total, np.float32(0.5)), 1)
            result[n, part] = np.where(total > 0.5, mean, np.float32(np.nan))
    return result


def _kernels(angle: float) -> list[Real]:
    """Of the core of a piece and of its two sides; `angle` is that of the line's tangent."""
    y, x = np.mgrid[-UNIT : UNIT + 1, -UNIT : UNIT + 1].astype(np.float64)
    across = math.cos(angle) * y + math.sin(angle) * x
    along = math.cos(angle) * x - math.sin(angle) * y
    off, half = 0.55 * UNIT, UNIT / 5
    parts = [np.abs(across) <= UNIT / 8, np.abs(across - off) <= half, np.abs(across + off) <= half]
    kernels = [(part & (np.abs(along) <= UNIT / 2)).astype(np.float32) for part in parts]
    return [np.asarray(kernel / kernel.sum()) for kernel in kernels]


def _long(band: Bools, least: float) -> Bools:
    """Connected parts, small gaps closed, that are `least` pixels long."""
    closed = cv2.morphologyEx(band.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    kept = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]) >= least
    kept[0] = False
    return np.asarray(kept[labels])


def _kinds(image: Real, there: Bools, band: Bools, scale: int, texture: float) -> Bytes:
    """Of bands: folds, or gaps, which have less texture for their brightness than tissue has."""
    kinds = np.zeros(band.shape, np.uint8)
    count, labels = cv2.connectedComponents(band.astype(np.uint8), connectivity=8)
    if count < 2:
        return kinds
    near = cv2.dilate(band.astype(np.uint8), np.ones((2 * UNIT * scale + 1,) * 2, np.uint8)) > 0
    rough = _roughness(image)
    usual = float(np.quantile(rough[there & near], _SMOOTHER))
    for n in range(1, count):
        mine = labels == n
        smooth = float(np.quantile(rough[mine], _SMOOTHER)) < texture * usual
        kinds[mine] = TEAR if smooth else FOLD
    return kinds


def _bridged(kinds: Bytes, most: float) -> Bytes:
    """Parts of one kind that lie on one course, joined to one line.

    They do if the way from one's end to the other's nearest end is at most `most` pixels long, no
    longer than either part, and keeps within `_COURSE` of the direction of both.
    """
    result = kinds.copy()
    for kind in (FOLD, TEAR):
        count, labels = cv2.connectedComponents((kinds == kind).astype(np.uint8), connectivity=8)
        parts = [_Part.of(labels == n) for n in range(1, count)]
        for n, a in enumerate(parts):
            for b in parts[:n]:
                ends = a.way_to(b, most)
                if ends is not None:
                    width = max(1, round(min(a.width, b.width)))
                    (y0, x0), (y1, x1) = ends
                    cv2.line(result, (x0, y0), (x1, y1), kind, width)
    return result


@dataclasses.dataclass(frozen=True)
class _Part:
    """A band as a straight segment: its two ends (y, x) and how wide it is."""

    ends: npt.NDArray[np.float64]
    width: float

    @classmethod
    def of(cls, mask: Bools) -> _Part:
        places = np.argwhere(mask).astype(np.float64)
        middle = places.mean(axis=0)
        _, axes = np.linalg.eigh(np.cov((places - middle).T))
        along = (places - middle) @ axes[:, 1]
        span = np.array([along.min(), along.max()])
        return cls(middle + span[:, None] * axes[:, 1], len(places) / max(1.0, np.ptp(span)))

    @property
    def vector(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.ends[1] - self.ends[0])

    def way_to(self, other: _Part, most: float) -> npt.NDArray[np.int64] | None:
        """Where a part that goes on in another ends, and where that begins; else None."""
        gaps = np.linalg.norm(self.ends[:, None] - other.ends, axis=2)
        i, j = divmod(int(gaps.argmin()), 2)
        way = other.ends[j] - self.ends[i]
        lengths = [float(np.linalg.norm(part.vector)) for part in (self, other)]
        if gaps[i, j] > min(most, *lengths):
            return None
        # Outwards from either end; a step sideways within their width turns nothing.
        towards = (self.vector * (1 if i else -1), other.vector * (-1 if j else 1))
        slack = max(self.width, other.width)
        for vector, length in zip(towards, lengths, strict=True):
            ahead = float(way @ vector) / length
            aside = math.sqrt(max(0.0, float(way @ way) - ahead**2))
            if ahead < -slack or aside > slack + _COURSE * max(0.0, ahead):
                return None
        if float(towards[0] @ towards[1]) < math.cos(math.atan(_COURSE)) * math.prod(lengths):
            return None
        return np.rint(np.stack([self.ends[i], other.ends[j]])).astype(np.int64)


def _roughness(image: Real) -> Real:
    """Deviation over mean, within 3 x 3 pixels."""
    mean = cv2.blur(image, (3, 3))
    square = cv2.blur(image * image, (3, 3))
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)) / np.maximum(mean, 1))
