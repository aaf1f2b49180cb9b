"""Flat fields: how brightly each beam lights the parts of its tile, learned from the tiles.

    tile -> robust mean of each cell -> log of it, less the tile's own -> added up -> smooth gain

Tissue differs from tile to tile, a beam's lighting does not: over many tiles the mean of all cells
is its lighting. Sums are int64 in fixed point, so that counts, sums and thus gains have the same
bytes, in whatever order tiles are added and sums are merged.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from h01_beam.imaging.gains import apply_gain

Real = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

# Logs of brightness are added up as multiples of this.
_UNIT = 2.0**-20
# Cells that deviate from their tile by more than this factor (dirt, holes) count as if by this.
_MOST = 2.5
_ROUNDS = 5
# Along the longer side of a tile, unless told otherwise.
_CELLS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatFieldConfig:
    """How flat fields are estimated.

    Attributes:
      cell: side of the squares over which pixels are averaged, pixels; None: a 24th of the tile's
        longer side.
      zero_level: grey level of no signal: 0, or 255 where images are inverted.
      min_tissue: share of a tile's cells that must show a signal, or the tile does not count.
      min_tiles: of one section that must count; with fewer the field is neutral. Neighbouring
        sections show the same tissue: they do not make up for places. What is left of tissue is
        some 10 % for one tile, and falls with the square root of their number.
      degree: of the polynomial in y and x that the log of the gain is; 4 follows any vignette, more
        follows more tissue.
      tolerance: by which a cell may deviate before it loses its pull, in robust deviations of all.
      max_tiles: of a section that are read for a beam, spread over all it has there; enough to
        average tissue out.
      sections: before and after each whose tiles tell its lighting too, as microscopes drift; in
        causal runs twice as many before, and none after.
    """

    cell: int | None = None
    zero_level: float = 0.0
    min_tissue: float = 0.7
    min_tiles: int = 100
    degree: int = 4
    tolerance: float = 6.0
    max_tiles: int = 128
    sections: int = 4

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.cell is not None and self.cell < 4:
            raise ValueError(f'flat_field.cell is {self.cell}: must be 4 pixels or more')
        if not 0 <= self.zero_level <= 255:
            raise ValueError(
                f'flat_field.zero_level is {self.zero_level}: must be a grey level, 0 to 255'
            )
        if not 0 < self.min_tissue <= 1:
            raise ValueError(f'flat_field.min_tissue is {self.min_tissue}: must lie in (0, 1]')
        for name in ('min_tiles', 'max_tiles'):
            if getattr(self, name) < 1:
                raise ValueError(f'flat_field.{name} is {getattr(self, name)}: must be 1 or more')
        if self.sections < 0:
            raise ValueError(f'flat_field.sections is {self.sections}: must not be negative')
        if self.max_tiles < self.min_tiles:
            raise ValueError(
                f'flat_field.max_tiles is {self.max_tiles}: must be flat_field.min_tiles, '
                f'{self.min_tiles}, or more, or there are never enough'
            )
        if not 1 <= self.degree <= 8:
            raise ValueError(f'flat_field.degree is {self.degree}: must be 1 to 8')
        if not self.tolerance > 0:
            raise ValueError(f'flat_field.tolerance is {self.tolerance}: must be above 0')

    def cell_of(self, shape: tuple[int, int]) -> int:
        """Side of the cells of tiles of h and w pixels."""
        return self.cell or max(4, -(-max(shape) // _CELLS))


@dataclasses.dataclass(frozen=True)
class FlatFieldSums:
    """What the tiles of one beam say so far; adding and merging make new sums.

    Attributes:
      shape: h and w of the tiles, pixels.
      total: (gh, gw) int64 sums over tiles of each cell's log brightness, in units of 2**-20.
      count: (gh, gw) int64 tiles that the sums are of.
      tiles: that counted.
      skipped: tiles that did not: too little tissue, or no signal.
    """

    shape: tuple[int, int]
    total: Ints
    count: Ints
    tiles: int = 0
    skipped: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int], config: FlatFieldConfig) -> FlatFieldSums:
        """Sums of no tile; `shape` is the h and w of the tiles to come."""
        grid = sums_shape(shape, config)
        return cls(shape, np.zeros(grid, np.int64), np.zeros(grid, np.int64))

    def add(self, image: Bytes, mask: Bools, config: FlatFieldConfig) -> FlatFieldSums:
        """Adds a tile.

        Args:
          image: (h, w) uint8.
          mask: (h, w), where it shows tissue.
          config: the same for all tiles.

        Raises:
          ValueError: the tile has another shape than those before it.
        """
        if image.shape != self.shape or mask.shape != self.shape:
            raise ValueError(
                f'image {image.shape} and mask {mask.shape} must have the shape {self.shape} of '
                'the other tiles of the beam; keep other sizes in sums of their own'
            )
        means, there = cell_means(image, mask, config.cell_of(self.shape))
        signal = np.abs(means - config.zero_level)
        there &= signal >= 1
        if there.mean() < config.min_tissue:
            return dataclasses.replace(self, skipped=self.skipped + 1)
        logs = np.log(np.where(there, signal, 1.0))
        most = math.log(_MOST)
        logs = np.clip(logs - np.median(logs[there]), -most, most)
        fixed = np.where(there, np.rint(logs / _UNIT), 0).astype(np.int64)
        return dataclasses.replace(
            self, total=self.total + fixed, count=self.count + there, tiles=self.tiles + 1
        )

    def merge(self, other: FlatFieldSums) -> FlatFieldSums:
        """Sums of the tiles of both.

        Args:
          other: sums of other tiles of the same beam.

        Raises:
          ValueError: they are of tiles of other shapes, or of other cells.
        """
        if self.shape != other.shape or self.total.shape != other.total.shape:
            raise ValueError(
                f'sums over tiles {self.shape} in {self.total.shape} cells and {other.shape} in '
                f'{other.total.shape} do not merge: must have one shape and one flat_field.cell'
            )
        return FlatFieldSums(
            self.shape,
            self.total + other.total,
            self.count + other.count,
            self.tiles + other.tiles,
            self.skipped + other.skipped,
        )


@dataclasses.dataclass(frozen=True)
class FlatField:
    """The lighting of one beam.

    Attributes:
      shape: h and w of its tiles, pixels.
      cell: side of a cell, pixels.
      zero_level: grey level that lighting does not change.
      gain: (gh, gw) float64 brightness at the cells' centres, of mean 1.
      tiles: it is learned from.
      neutral: whether they were too few, so that the gain is 1.
      spread: by which cells deviate from the smooth gain, relative (robust deviation); NaN if
        neutral.
    """

    shape: tuple[int, int]
    cell: int
    zero_level: float
    gain: Reals
    tiles: int
    neutral: bool
    spread: float

    def pixels(self) -> Real:
        """(h, w) float32 gain at every pixel, linear between cells and beyond the last ones."""
        rows, columns = (
            _between(n, g, self.cell) for n, g in zip(self.shape, self.gain.shape, strict=True)
        )
        return np.asarray(rows @ self.gain @ columns.T, np.float32)


def sums_shape(shape: tuple[int, int], config: FlatFieldConfig) -> tuple[int, int]:
    """Rows and columns of the lattice of cells over a tile of h and w pixels."""
    cell = config.cell_of(shape)
    return -(-shape[0] // cell), -(-shape[1] // cell)


def cell_means(image: Bytes, mask: Bools, cell: int) -> tuple[Reals, Bools]:
    """Mean of the middle half of each cell's pixels.

    Args:
      image: (h, w) uint8.
      mask: (h, w), pixels that count.
      cell: side of a cell, pixels.

    Returns:
      (gh, gw) float64 grey levels, and where there are any: at least half a cell of pixels.
    """
    gh, gw = (-(-n // cell) for n in image.shape)
    values = np.full((gh * cell, gw * cell), 256, np.uint16)
    values[: image.shape[0], : image.shape[1]] = np.where(mask, image, np.uint16(256))
    pixels = values.reshape(gh, cell, gw, cell).swapaxes(1, 2).reshape(gh, gw, cell * cell)
    ranked = np.sort(pixels, axis=-1)
    count = (ranked < 256).sum(axis=-1)
    below = np.concatenate(
        [np.zeros((gh, gw, 1), np.int64), np.cumsum(ranked, axis=-1, dtype=np.int64)], axis=-1
    )
    low = count // 4
    high = np.maximum(count - low, 1)
    ends = [np.take_along_axis(below, n[..., None], axis=-1)[..., 0] for n in (low, high)]
    return (ends[1] - ends[0]) / (high - low), 2 * count >= cell * cell


def estimate_flat_field(sums: FlatFieldSums, config: FlatFieldConfig) -> FlatField:
    """Estimates the smooth lighting of a beam.

    A polynomial, which keeps the curvature of a vignette up to the corners, fitted robustly to the
    logs of the cells: those with lasting dirt do not draw it to themselves, and those that no tile
    showed follow from the others.

    Args:
      sums: of its tiles.
      config: as they were added with.
    """
    grid = sums.total.shape
    if sums.tiles < config.min_tiles:
        flat, cell = np.ones(grid), config.cell_of(sums.shape)
        return FlatField(sums.shape, cell, config.zero_level, flat, sums.tiles, True, math.nan)
    logs = sums.total * _UNIT / np.maximum(sums.count, 1)
    smooth, spread = _smooth(logs, sums.count / sums.tiles, config)
    # No more than what cells may say: between those that show nothing, a polynomial may swing.
    gain = np.exp(np.clip(smooth, -math.log(_MOST), math.log(_MOST)))
    return FlatField(
        sums.shape,
        config.cell_of(sums.shape),
        config.zero_level,
        gain / gain.mean(),
        sums.tiles,
        False,
        spread,
    )


def _smooth(logs: Reals, known: Reals, config: FlatFieldConfig) -> tuple[Reals, float]:
    """The smooth part of a grid with weights, and the robust deviation of the rest."""
    basis = _basis(logs.shape, config.degree)
    # A trace of a pull to 0 keeps it solvable where nearly nothing is known.
    hold = 1e-6 * max(1.0, float(known.sum())) * np.eye(basis.shape[1])
    trust = np.ones(logs.shape)
    smooth, spread = logs, 0.0
    for _ in range(_ROUNDS):
        rows = basis * (known * trust).reshape(-1, 1)
        fit = np.linalg.solve(basis.T @ rows + hold, rows.T @ logs.ravel())
        smooth = (basis @ fit).reshape(logs.shape)
        rest = logs - smooth
        spread = 1.4826 * float(np.median(np.abs(rest[known > 0])))
        trust = 1 / (1 + (rest / max(config.tolerance * spread, 1e-6)) ** 2) ** 2
    return smooth, spread


def correct(image: Bytes, flat_field: FlatField, gain: float = 1.0, offset: float = 0.0) -> Bytes:
    """Divides a tile by its beam's lighting; then multiplies and adds. Rounds once.

    Args:
      image: (h, w) uint8.
      flat_field: of its beam.
      gain: of the tile.
      offset: of the tile, grey levels.

    Returns:
      (h, w) uint8, rounded and clipped.

    Raises:
      ValueError: the flat field is for tiles of another shape.
    """
    if image.shape != flat_field.shape:
        raise ValueError(
            f'image has shape {image.shape}: must be {flat_field.shape}, as the tiles that the '
            'flat field is made of'
        )
    if flat_field.neutral:
        return apply_gain(image, gain, offset)
    zero = np.float32(flat_field.zero_level)
    lit = (image.astype(np.float32) - zero) / flat_field.pixels() + zero
    return np.clip(np.rint(lit * np.float32(gain) + np.float32(offset)), 0, 255).astype(np.uint8)


def _between(pixels: int, cells: int, cell: int) -> Reals:
    """(pixels, cells) weights of the cells' centres, linear."""
    if cells == 1:
        return np.ones((pixels, 1))
    place = (np.arange(pixels) + 0.5) / cell - 0.5
    low = np.clip(np.floor(place).astype(np.int64), 0, cells - 2)
    weights = np.zeros((pixels, cells))
    row = np.arange(pixels)
    weights[row, low] = 1 - (place - low)
    weights[row, low + 1] = place - low
    return weights


def _basis(grid: tuple[int, ...], degree: int) -> Reals:
    """(cells, terms) products of Legendre polynomials at cells, up to a degree in all."""
    y, x = (
        np.polynomial.legendre.legvander(np.linspace(-1, 1, n) if n > 1 else np.zeros(1), degree)
        for n in grid
    )
    terms = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.stack([np.outer(y[:, i], x[:, j]).ravel() for i, j in terms], axis=1)
