r"""Contrast: even over a section (CLAHE, in blocks), and alike from section to section.

Histograms are those of the cells of a lattice that is fixed to the section's frame; a pixel is
mapped by the four cells whose centres surround it:

    +-----+-----+-----+    cells of `cell` pixels; the corner of one lies at y = 0, x = 0
    |  o--|--o  |     |
    +--|--+--|--+-----+    o  centres: between four of them their tables are mixed linearly
    |  o--|--o  |     |
    +-----+-----+-----+

So a pixel depends on what lies within one and a half cells of it, and on nothing else: a section
that is cut into blocks with that halo has the same bytes as the section as a whole.

Method: Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Cells of which less than this is there count for less.
_FULL = 0.25
# Quantiles closer than this would make a table steep, grey levels.
_APART = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaheConfig:
    """How contrast is made even.

    Attributes:
      cell: side of the lattice's cells, pixels; even.
      clip: most pixels of one grey level, in units of what each had if all were equally frequent;
        1 changes least, large values equalize fully. What is cut off is spread over all levels.
    """

    cell: int = 128
    clip: float = 3.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.cell < 8 or self.cell % 2:
            raise ValueError(f'clahe.cell is {self.cell}: must be even, 8 pixels or more')
        if not self.clip >= 1:
            raise ValueError(f'clahe.clip is {self.clip}: must be 1 or more')

    @property
    def halo(self) -> int:
        """Pixels around a block that its bytes depend on, y and x alike."""
        return 3 * self.cell // 2


def equalize(
    image: Bytes,
    mask: Bools,
    start: tuple[int, int],
    core_start: tuple[int, int],
    core_shape: tuple[int, int],
    config: ClaheConfig,
) -> Bytes:
    """Equalizes a block of a section.

    Args:
      image: (h, w) uint8: the core with a halo of `config.halo` pixels, less where the section
        ends.
      mask: (h, w), what counts; other pixels stay as they are.
      start: y and x of the image's first pixel in the section's frame; may be negative.
      core_start: y and x of the core, in the section's frame.
      core_shape: h and w of the core.
      config: lattice and clip.

    Returns:
      core_shape uint8.

    Raises:
      ValueError: the core does not lie in the image.
    """
    inner = [c - s for c, s in zip(core_start, start, strict=True)]
    ends = [i + n for i, n in zip(inner, core_shape, strict=True)]
    if min(inner) < 0 or any(e > n for e, n in zip(ends, image.shape, strict=True)):
        raise ValueError(
            f'core at {core_start} of shape {core_shape}: must lie in the image at {start} of '
            f'shape {image.shape}; read it with a halo of {config.halo} pixels'
        )
    first, tables, faith = _tables(image, mask, start, config)
    cut = (slice(inner[0], ends[0]), slice(inner[1], ends[1]))
    core = image[cut]
    (y, ys), (x, xs) = (
        _neighbours(s, n, f, config.cell)
        for s, n, f in zip(core_start, core_shape, first, strict=True)
    )
    total = np.zeros(core_shape, np.float32)
    weight = np.zeros(core_shape, np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            cy, cx = y[:, None] + dy, x[None, :] + dx
            share = ys[dy][:, None] * xs[dx][None, :] * faith[cy, cx]
            total += share * tables[cy, cx, core]
            weight += share
    known = mask[cut] & (weight > 0)
    mixed = np.rint(total / np.where(known, weight, np.float32(1)))
    return np.where(known, np.clip(mixed, 0, 255), core).astype(np.uint8)


def _neighbours(start: int, count: int, first: int, cell: int) -> tuple[Ints, tuple[Real, Real]]:
    """Rows of the cells before pixels along one axis, and the weights of these and the next."""
    # In half pixels, so that it is exact: pixel p lies at p + 1/2, a cell's centre at cell / 2.
    place = 2 * np.arange(start, start + count) + 1 - cell
    before = place // (2 * cell)
    part = ((place - before * 2 * cell) / np.float32(2 * cell)).astype(np.float32)
    return before - first, (np.float32(1) - part, part)


def _tables(
    image: Bytes, mask: Bools, start: tuple[int, int], config: ClaheConfig
) -> tuple[tuple[int, int], Real, Real]:
    """Tables of all cells that an image touches, and of a frame of cells without a pixel.

    Returns:
      first cell's y and x on the lattice; (gh, gw, 256) float32 tables; (gh, gw) how far each is
      to be believed, 0 to 1.
    """
    cell = config.cell
    first = (start[0] // cell - 1, start[1] // cell - 1)
    last = [(s + n - 1) // cell + 1 for s, n in zip(start, image.shape, strict=True)]
    shape = (last[0] - first[0] + 1, last[1] - first[1] + 1)
    counts = np.zeros((*shape, 256), np.int64)
    for y in range(1, shape[0] - 1):
        rows = _span(first[0] + y, start[0], cell)
        for x in range(1, shape[1] - 1):
            columns = _span(first[1] + x, start[1], cell)
            counts[y, x] = count_levels(image[rows, columns], mask[rows, columns])
    total = counts.sum(axis=-1)
    limit = config.clip / 256 * total[..., None]
    clipped = np.minimum(counts, limit)
    clipped += (total[..., None] - clipped.sum(axis=-1, keepdims=True)) / 256
    # The middle of a grey level's pixels, so that black and white are treated alike.
    middle = np.cumsum(clipped, axis=-1) - 0.5 * clipped
    tables = 255.0 * middle / np.maximum(total, 1)[..., None]
    faith = np.minimum(1.0, total / (_FULL * cell * cell))
    return first, tables.astype(np.float32), faith.astype(np.float32)


def _span(index: int, start: int, cell: int) -> slice:
    """Where a cell lies in an image that starts at `start`."""
    return slice(max(0, index * cell - start), max(0, (index + 1) * cell - start))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How sections are made alike.

    Attributes:
      quantiles: shares of a section's pixels whose grey levels are matched; ascending.
      sigma: sections over which the reference is smooth.
      tolerance: grey levels by which a section may deviate from its neighbours before it loses
        its say in the reference.
      min_pixels: that a section must show to have levels, of the image that is counted.
    """

    quantiles: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    sigma: float = 8.0
    tolerance: float = 12.0
    min_pixels: int = 10_000

    def __post_init__(self) -> None:
        """Checks the fields."""
        steps = np.diff((0.0, *self.quantiles, 1.0))
        if len(self.quantiles) < 2 or not (steps > 0).all():
            raise ValueError(
                f'match.quantiles is {self.quantiles}: must be two or more, ascending, in (0, 1)'
            )
        for name in ('sigma', 'tolerance'):
            if not getattr(self, name) > 0:
                raise ValueError(f'match.{name} is {getattr(self, name)}: must be above 0')
        if self.min_pixels < 1:
            raise ValueError(f'match.min_pixels is {self.min_pixels}: must be 1 or more')

    @property
    def window(self) -> int:
        """Sections to either side that one's table depends on: all that weigh in the reference."""
        return math.ceil(4 * self.sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """What is done to the grey levels of a volume of sections: matched first, then made even.

    Attributes:
      match: makes sections alike; None: they keep their levels.
      clahe: makes contrast even over each section; None: it stays as it is.
      level_mip: level of the pyramid on which grey levels are counted; a lower one if sections of
        that one are merged. Averaged noise does not count then, and at 8 x 8 pixels to one a
        section of 350 GB has some 330 blocks of the default size.
      level_block: y and x pixels of that level that are counted at once.
    """

    match: MatchConfig | None = MatchConfig()
    clahe: ClaheConfig | None = ClaheConfig()
    level_mip: int = 3
    level_block: tuple[int, int] = (4096, 4096)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.match is None and self.clahe is None:
            raise ValueError(
                'contrast.match and contrast.clahe are None: one of them must be set; without any, '
                'leave contrast out'
            )
        if self.level_mip < 0:
            raise ValueError(f'contrast.level_mip is {self.level_mip}: must not be negative')
        if len(self.level_block) != 2 or min(self.level_block) < 64:
            raise ValueError(
                f'contrast.level_block is {self.level_block}: must be two numbers of pixels, y and '
                'x, 64 or more'
            )


def count_levels(image: Bytes, mask: Bools) -> Ints:
    """(256,) int64 histogram of what the mask shows; those of a section's blocks add up."""
    return np.bincount(image[mask], minlength=256).astype(np.int64)


def measure_levels(histogram: Ints, config: MatchConfig) -> Reals:
    """Grey levels at the quantiles of a section.

    Args:
      histogram: (256,) pixels of each grey level.
      config: quantiles.

    Returns:
      (q,) float64, ascending, to parts of a grey level; NaN if the section shows too little.
    """
    total = int(histogram.sum())
    if total < config.min_pixels:
        return np.full(len(config.quantiles), np.nan)
    # A grey level stands for values of half a level to either side.
    below = np.concatenate([[0], np.cumsum(histogram)]) / total
    edges = np.arange(257) - 0.5
    return np.clip(np.interp(config.quantiles, below, edges), 0, 255)


def smooth_levels(levels: Reals, config: MatchConfig) -> Reals:
    """Levels that sections should have: those of their neighbours, smoothed and robust.

    All quantiles of a section have one weight, so that ascending levels stay ascending.

    Args:
      levels: (n, q) of all sections in their order; rows of NaN for those that have none.
      config: sigma and tolerance.

    Returns:
      (n, q) float64; NaN where no section has levels at all.
    """
    known: Bools = np.isfinite(levels).all(axis=1).reshape(-1)
    reference = np.full(levels.shape, np.nan)
    if not known.any():
        return reference
    index = np.arange(len(levels))
    reach = max(2, round(2 * config.sigma))
    trust = np.zeros(len(levels))
    for n in np.flatnonzero(known).tolist():
        near = slice(max(0, n - reach), n + reach + 1)
        typical = np.median(levels[near][known[near]], axis=0)
        deviation = np.abs(levels[n] - typical).max() / config.tolerance
        trust[n] = 1 / (1 + deviation**2) ** 2
    values = np.where(known[:, None], levels, 0.0)
    for n in range(len(levels)):
        distance = (index - n) / config.sigma
        # A tail that never ends bridges gaps of any length.
        weight = trust * (np.exp(-0.5 * distance**2) + 1e-6 / (1 + distance**2))
        reference[n] = weight @ values / weight.sum()
    return reference


def level_table(levels: Reals, reference: Reals) -> Bytes:
    """Lookup table that takes a section's levels to those of the reference.

    Linear between quantiles; beyond the first and the last with the slope of the whole.

    Args:
      levels: (q,) of the section, ascending.
      reference: (q,) that it should have, ascending.

    Returns:
      (256,) uint8, never falling; as it is (0 to 255) where either is NaN.
    """
    if not (np.isfinite(levels).all() and np.isfinite(reference).all()):
        return np.arange(256, dtype=np.uint8)
    step = _APART * np.arange(len(levels))
    source = np.maximum.accumulate(levels - step) + step
    target = np.maximum.accumulate(reference)
    slope = (target[-1] - target[0]) / (source[-1] - source[0])
    grey = np.arange(256.0)
    table = np.interp(grey, source, target)
    table += slope * (np.minimum(grey - source[0], 0) + np.maximum(grey - source[-1], 0))
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)


def table_of_section(levels: Mapping[int, Reals], section: int, config: MatchConfig) -> Bytes:
    """Lookup table of a section, from its own levels and those of the sections around it.

    Of what is farther away than `config.window` nothing must be given, so that no worker ever
    needs all sections. A longer gap, over which `smooth_levels` would still see the other side, is
    therefore not bridged: a section that is so far from all others keeps its own levels.

    Args:
      levels: (q,) by section, ascending; see `measure_levels`. Sections without any are left out.
      section: its place in the stack.
      config: quantiles, sigma and tolerance.

    Returns:
      (256,) uint8; as it is (0 to 255) if the section has no levels.
    """
    if section not in levels:
        return np.arange(256, dtype=np.uint8)
    first = min(levels)
    stack = np.full((max(levels) - first + 1, len(config.quantiles)), np.nan)
    for z, own in levels.items():
        stack[z - first] = own
    return level_table(levels[section], smooth_levels(stack, config)[section - first])


def match_levels(image: Bytes, mask: Bools, table: Bytes) -> Bytes:
    """Maps the grey levels of a section, or of any part of it.

    Args:
      image: (h, w) uint8.
      mask: (h, w), pixels to change; others stay as they are.
      table: (256,) of the section; see `table_of_section`.
    """
    return np.where(mask, table[image], image)
