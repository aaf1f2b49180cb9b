"""Images of tiles as stitching sees them: decoded once while they are needed, usable ones only."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from h01_beam.acquisition.decode import TileError, read_tile, to_uint8
from h01_beam.acquisition.tables import describe
from h01_beam.imaging.gains import apply_gain
from h01_beam.imaging.illumination import FlatField, correct
from h01_beam.tables import Columns

Ints = npt.NDArray[np.int64]
USABLE = ('good', 'suspect')


def usable(tiles: Columns) -> Ints:
    """Rows of the tiles that can be stitched."""
    return np.flatnonzero(np.isin(tiles['state'].astype(str), USABLE))


def find_pairs(
    places: npt.NDArray[np.float64],
    rows: Ints,
    shape: tuple[int, int],
    least: float,
    slack: float = 0.0,
) -> Ints:
    """Pairs of tiles that overlap.

    Args:
      places: (n, 2) of all tiles of a section, pixels.
      rows: tiles that count.
      shape: h and w of a tile.
      least: share of a tile that both must show.
      slack: pixels by which places may be wrong: tiles that may overlap count, too.

    Returns:
      (m, 2) rows, the lower first, in ascending order.
    """
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    size = np.array(shape, np.float64)
    near = KDTree(places[rows] / (size + slack)).query_pairs(1.0, p=np.inf, output_type='ndarray')
    pairs = np.sort(rows[near], axis=1)
    apart = np.abs(places[pairs[:, 0]] - places[pairs[:, 1]])
    shared = np.clip(size + slack - apart, 0, size)
    pairs = pairs[shared.prod(axis=1) >= least * size.prod()]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


class TileImages:
    """Reads images of a section's tiles, and keeps the latest.

    Args:
      tiles: of the section.
      grey_range: of 16-bit tiles; see `to_uint8`.
      keep: how many images at most.
      gains: columns of `GAINS` to apply; None for none.
      fields: flat fields to divide by, by beam.
    """

    def __init__(
        self,
        tiles: Columns,
        grey_range: tuple[float, float] | None,
        keep: int,
        gains: Columns | None = None,
        fields: Mapping[int, FlatField] = types.MappingProxyType({}),
    ) -> None:
        self._fields = fields
        self._tiles, self._grey_range, self._keep = tiles, grey_range, keep
        self._gains: dict[int, tuple[float, float]] = {}
        if gains:
            pairs = zip(gains['gain'].tolist(), gains['offset'].tolist(), strict=True)
            self._gains = dict(zip(gains['row'].tolist(), pairs, strict=True))
        self._images: collections.OrderedDict[int, npt.NDArray[np.uint8]] = (
            collections.OrderedDict()
        )

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """The (h, w) uint8 image of a tile.

        Raises:
          TileError: the file has changed or gone since it was checked.
        """
        if row in self._images:
            self._images.move_to_end(row)
            return self._images[row]
        grey = to_uint8(self._read(row), self._grey_range)
        field = self._fields.get(int(self._tiles['beam'][row]))
        if field:
            grey = correct(grey, field, *self._gains.get(row, ()))
        elif row in self._gains:
            grey = apply_gain(grey, *self._gains[row])
        self._images[row] = grey
        for old in list(itertools.islice(self._images, max(0, len(self._images) - self._keep))):
            del self._images[old]
        return self._images[row]

    def _read(self, row: int) -> npt.NDArray[np.generic]:
        tiles = self._tiles
        path = str(tiles['path'][row])
        try:
            return read_tile(
                path,
                (int(tiles['height'][row]), int(tiles['width'][row])),
                tiles['dtype'][row],
                tiles['sha256'][row],
            )
        except TileError as error:
            what = error.message.removeprefix(f'{path!r}: ')
            raise TileError(
                error.kind,
                f'tile {describe(tiles, row)}, {path!r}, was usable when it was checked, and is '
                f'not any more: {what}; put the file back, or give the same command again to have '
                'it checked and stitched as it is now',
            ) from error
