"""The tables of an acquisition, and the checks that need no pixels.

stage frame of a section, nm         y down, x right
+--------> x
|   (y_nm, x_nm)*-------------+      * centre of the tile's first pixel
|               |    tile     |
v y             +-------------+
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from scipy.spatial import KDTree

from h01_beam.tables import Columns, Schema, length

# One row per image file. `section` is the z index. A field is what one exposure of all beams
# shows; with a single beam every tile is a field. dwell_ns: NaN, and sha256: '', if unknown.
TILES = Schema(
    {
        'section': 'int64',
        'field': 'int64',
        'beam': 'int64',
        'path': 'str',
        'y_nm': 'float64',
        'x_nm': 'float64',
        'height': 'int64',
        'width': 'int64',
        'dtype': 'str',
        'dwell_ns': 'float64',
        'sha256': 'str',
    }
)
OPTIONAL = {'dwell_ns': np.nan, 'sha256': ''}
# `cutting_order` ranks sections as they came off the block of tissue.
SECTIONS = Schema({'section': 'int64', 'cutting_order': 'int64', 'thickness_nm': 'float64'})
# Tiles as the checks read them; `version` changes when the file is replaced ('' = no file).
MANIFEST = Schema({**TILES.columns, 'version': 'str'})
MEASUREMENTS = ('contrast', 'structure', 'focus', 'saturation', 'line_jitter')
# state: 'good', 'suspect', 'bad' or 'missing'; sha256: of the file that was found. Measurements
# (see `checks.measure`) are NaN where there is no image.
CHECKED_TILES = Schema(
    {
        **TILES.columns,
        'state': 'str',
        'reason': 'str',
        **dict.fromkeys(MEASUREMENTS, 'float64'),
    }
)
TILE_STATES = ('good', 'suspect', 'bad', 'missing')
# state: 'good', 'partial' (some tiles are bad or missing) or 'missing' (all are). Then the number
# of tiles, and of those in each state.
CHECKED_SECTIONS = Schema(
    {
        **SECTIONS.columns,
        'state': 'str',
        'reason': 'str',
        'tiles': 'int64',
        **dict.fromkeys(TILE_STATES, 'int64'),
    }
)
# Distance of neighbours in tile sizes. Less would be an overlap of more than 70 %, more a gap.
PITCH = (0.3, 1.2)


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """A checked manifest: tiles sorted by section, field and beam; sections by z index.

    Attributes:
      tiles: columns of `TILES`.
      sections: columns of `SECTIONS`; one without tiles counts as missing.
      pixel_nm: size of a pixel, the same along y and x.

    Raises:
      ValueError: columns are missing, rows contradict each other, or the stage positions do not
        fit the tiles.
    """

    tiles: Columns
    sections: Columns
    pixel_nm: float

    def __post_init__(self) -> None:
        if not 0 < self.pixel_nm < np.inf:
            raise ValueError(f'pixel_nm is {self.pixel_nm}: must be a positive number of nm')
        tiles = _sorted(_conform('tiles', self.tiles, TILES), ('beam', 'field', 'section'))
        sections = _sorted(_conform('sections', self.sections, SECTIONS), ('section',))
        if not length(tiles):
            raise ValueError(
                'tiles has no rows: must list at least one tile; check the manifest or the folder'
            )
        _check_sections(sections, tiles)
        _check_tiles(tiles)
        object.__setattr__(self, 'tiles', tiles)
        object.__setattr__(self, 'sections', sections)
        for section, rows in self.by_section():
            _check_uniform(section, rows)
            _check_pitch(section, rows, self.pixel_nm)

    def by_section(self) -> Iterator[tuple[int, Columns]]:
        """Yields the z index of every section, in order, and its tiles, which may be none."""
        numbers = self.sections['section']
        starts = np.searchsorted(self.tiles['section'], numbers, 'left')
        ends = np.searchsorted(self.tiles['section'], numbers, 'right')
        for number, start, end in zip(numbers, starts, ends, strict=True):
            yield int(number), {n: column[start:end] for n, column in self.tiles.items()}


def make_sections(sections: Iterable[int], thickness_nm: float) -> Columns:
    """Columns of `SECTIONS` for z indices that were cut in their order, all equally thick."""
    numbers = np.unique(np.asarray(list(sections), np.int64))
    return {
        'section': numbers,
        'cutting_order': np.arange(len(numbers)),
        'thickness_nm': np.full(len(numbers), thickness_nm, np.float64),
    }


def describe(tiles: Columns, row: int) -> str:
    """How messages name a tile."""
    numbers = (f'{name} {tiles[name][row]}' for name in ('section', 'field', 'beam'))
    return ' '.join(numbers)


def _conform(what: str, columns: Mapping[str, np.ndarray], schema: Schema) -> Columns:
    lacking = [name for name in schema.columns if name not in columns and name not in OPTIONAL]
    if lacking:
        raise ValueError(
            f'{what} has the columns {sorted(columns)}: {lacking} are missing; every row must '
            f'have {list(schema.columns)}'
        )
    rows = length(dict(columns))
    filled = {
        name: columns[name] if name in columns else np.full(rows, OPTIONAL[name])
        for name in schema.columns
    }
    return schema.conform(filled)


def _sorted(columns: Columns, keys: tuple[str, ...]) -> Columns:
    """Sorts rows; the last key is the slowest."""
    order = np.lexsort([columns[key] for key in keys])
    return {name: column[order] for name, column in columns.items()}


def _check_sections(sections: Columns, tiles: Columns) -> None:
    for name in ('section', 'cutting_order'):
        values, counts = np.unique(sections[name], return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f'sections: {name} {values[counts > 1][0]} occurs {counts.max()} times: must be '
                'unique; remove or renumber the rows that repeat it'
            )
    thickness = sections['thickness_nm']
    if not ((thickness > 0) & (thickness < np.inf)).all():
        raise ValueError(
            f'sections: thickness_nm is {thickness.min()} at the least: must be a positive number '
            'of nm; give the nominal thickness where it was not measured'
        )
    unknown = np.setdiff1d(tiles['section'], sections['section'])
    if len(unknown):
        raise ValueError(
            f'tiles: section {unknown[0]} is not among the sections: add a row for it, or leave '
            'its tiles out'
        )


def _check_tiles(tiles: Columns) -> None:
    once = ~np.logical_and.reduce(
        [tiles[name][1:] == tiles[name][:-1] for name in ('section', 'field', 'beam')]
    )
    _require(tiles, 'beam', np.append(True, once), 'occurs twice; remove one of the rows')
    _require(tiles, 'path', tiles['path'] != '', 'empty; must name a file')
    paths = tiles['path'].astype(str)
    first = np.zeros(len(paths), bool)
    first[np.unique(paths, return_index=True)[1]] = True
    _require(tiles, 'path', first, 'occurs twice; every tile must have its own file')
    for name in ('y_nm', 'x_nm'):
        rule = 'must be finite; leave the tile out or give its nominal position'
        _require(tiles, name, np.isfinite(tiles[name]), rule)
    for name in ('height', 'width'):
        _require(tiles, name, tiles[name] >= 1, 'must be >= 1 pixel; correct the row')
    known = np.isin(tiles['dtype'].astype(str), ('uint8', 'uint16'))
    _require(tiles, 'dtype', known, 'must be uint8 or uint16; convert the images first')


def _require(tiles: Columns, name: str, valid: np.ndarray, rule: str) -> None:
    for row in np.flatnonzero(~valid)[:1].tolist():
        value = tiles[name][row]
        raise ValueError(f'tiles: {name} of {describe(tiles, row)} is {value}: {rule}')


def _check_uniform(section: int, tiles: Columns) -> None:
    for name in ('height', 'width', 'dtype'):
        values = sorted(set(tiles[name].tolist()))
        if len(values) > 1:
            raise ValueError(
                f'tiles of section {section}: {name} is {values}: must be the same for all tiles '
                'of a section; convert them, or import the odd ones as a section of their own'
            )


def _check_pitch(section: int, tiles: Columns, pixel_nm: float) -> None:
    """Compares the distance of neighbours with the size of the tiles."""
    if length(tiles) < 2:
        return
    size_nm = np.array([tiles['height'][0], tiles['width'][0]]) * pixel_nm
    places = np.stack([tiles['y_nm'], tiles['x_nm']], axis=1) / size_nm
    pitch = float(np.median(KDTree(places).query(places, k=2)[0][:, 1]))
    low, high = PITCH
    if low <= pitch <= high:
        return
    units = {'um': 1000.0, 'pixels': pixel_nm, 'mm': 1e6}
    fits = [(n, f) for n, f in units.items() if low <= pitch * f <= high and pitch < low]
    if fits:
        unit, factor = fits[0]
        hint = f'stage positions seem to be in {unit}: multiply them by {factor:g}'
    elif pitch < low:
        hint = 'tiles lie almost on top of each other: check pixel_nm and the stage positions'
    elif low <= pitch / 1000 <= high:
        hint = f'pixel_nm, {pixel_nm:g}, seems to be in um: multiply it by 1000'
    else:
        hint = 'no overlap: check pixel_nm, or import tiles that stand alone as their own sections'
    raise ValueError(
        f'tiles of section {section}: y_nm, x_nm put neighbours {pitch:.3g} tile sizes apart '
        f'(the median): must be {low} to {high} at {pixel_nm:g} nm per pixel; {hint}'
    )
