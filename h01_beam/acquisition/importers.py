"""From what microscopes and other software write to an `Acquisition`.

No image is decoded here but one per section, whose shape and dtype the others are expected to
have; `checks` finds those that differ.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from h01_beam import storage, tables
from h01_beam.acquisition.decode import TileError, read_tile
from h01_beam.acquisition.tables import SECTIONS, TILES, Acquisition, make_sections

IMAGES = ('.png', '.tif', '.tiff', '.bmp', '.jpg', '.jpeg')
COORDINATES = 'image_coordinates.txt'
# NNN_FFFFFF_BBB...: number of the section's folder, field, beam.
BEAM_IMAGE = re.compile(r'(?P<number>\d+)_(?P<field>\d{6})_(?P<beam>\d+)(?!\d)')
# Names of tiles in a grid, without the suffix.
GRID_IMAGES = (
    re.compile(r'(?P<head>(.*[^a-z])?)r(ow)?_?(?P<row>\d+)[_-]?c(ol)?_?(?P<col>\d+)'),
    re.compile(r'(?P<head>(.*[^a-z])?)c(ol)?_?(?P<col>\d+)[_-]?r(ow)?_?(?P<row>\d+)'),
    re.compile(r'(?P<head>([a-z]*\d+_)?)(?P<row>\d+)_(?P<col>\d+)'),
)
# Tiles of a section that are tried for their shape and dtype.
PROBES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Where tiles come from.

    Attributes:
      source: a manifest or tile specifications (file), or a folder of images.
      kind: how to read it; see the function `import_KIND`.
      pixel_nm: size of a pixel.
      thickness_nm: nominal, of sections that `sections` does not tell of.
      sections: a file of sections, only with a manifest; None: as the tiles name them, cut in
        their order.
      overlap: of neighbours, share of a tile's height and width; only for a grid.
    """

    source: str
    kind: Literal['manifest', 'multibeam', 'render_json', 'grid']
    pixel_nm: float
    thickness_nm: float = 30.0
    sections: str | None = None
    overlap: tuple[float, float] = (0.1, 0.1)

    def __post_init__(self) -> None:
        for name in ('pixel_nm', 'thickness_nm'):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name} is {getattr(self, name)}: must be a positive number, nm')
        if not all(0 < share < 0.7 for share in self.overlap):
            raise ValueError(
                f'overlap is {self.overlap}: must be shares between 0 and 0.7, y, x; 0.1 for 10 %'
            )
        if self.sections is not None and self.kind != 'manifest':
            raise ValueError(
                f'sections is {self.sections!r}: goes with kind manifest only, not {self.kind}; '
                'leave it out'
            )


def import_acquisition(config: ImportConfig) -> Acquisition:
    """Reads the source that a configuration names; raises as the importers do."""
    common = (config.source, config.pixel_nm, config.thickness_nm)
    if config.kind == 'manifest':
        return import_manifest(*common, sections=config.sections)
    if config.kind == 'multibeam':
        return import_multibeam(*common)
    if config.kind == 'render_json':
        return import_render_json(*common)
    return import_grid(*common, overlap=config.overlap)


def import_manifest(
    uri: str, pixel_nm: float, thickness_nm: float = 30.0, sections: str | None = None
) -> Acquisition:
    """Reads a table of tiles: CSV, JSON (a list of objects) or Parquet, by its suffix.

    Args:
      uri: its columns are those of `TILES`; dwell_ns and sha256 may lack. Paths of images are
        absolute, or relative to the folder of the manifest.
      pixel_nm: size of a pixel.
      thickness_nm: of all sections, if there is no table of sections.
      sections: such a table, with the columns of `SECTIONS`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it cannot be read, or see `Acquisition`.
    """
    tiles = _read_table(uri, TILES)
    if 'path' in tiles:
        folder = posixpath.dirname(uri)
        tiles['path'] = np.array([_locate(folder, path) for path in tiles['path']], object)
    if sections is not None:
        return Acquisition(tiles, _read_table(sections, SECTIONS), pixel_nm)
    return Acquisition(tiles, make_sections(tiles.get('section', ()), thickness_nm), pixel_nm)


def import_multibeam(folder: str, pixel_nm: float, thickness_nm: float = 30.0) -> Acquisition:
    r"""Reads what a multi-beam microscope writes.

        FOLDER/
          012_S17R1/                           a section: number of the folder, z index (S)
            000001/                            a field, six digits
              image_coordinates.txt            lines: file name, x, y, 0
              012_000001_001_2020-01-01T.bmp   number of the folder, field, beam
          013_S18R1/ ...

    Lines are separated by tabs, x and y are pixels, y down; names may have folders before them,
    also with backslashes, of which only the last part counts. Section folders without `_S` give
    their number as z index. Files that no line names, such as thumbnails, are left out.

    Args:
      folder: the folder of the sections.
      pixel_nm: size of a pixel.
      thickness_nm: of all sections.

    Raises:
      ValueError: the folder does not keep the convention, or see `Acquisition`.
    """
    files = list(storage.list_files(folder))
    listed = [path for path in files if posixpath.basename(path) == COORDINATES]
    held = {posixpath.dirname(path) for path in listed}
    for path in files:
        field = posixpath.dirname(path)
        named = BEAM_IMAGE.match(posixpath.basename(path)) and path.lower().endswith(IMAGES)
        if named and field not in held:
            raise ValueError(
                f'field {field!r} has images but no {COORDINATES}: every field must have one; copy '
                'it from the microscope, or remove the folder'
            )
    if not listed:
        raise ValueError(
            f'folder is {folder!r}: no {COORDINATES} below it; give the folder that holds one '
            'folder per section, with one folder per field in each'
        )
    rows = [row for path in listed for row in _multibeam_rows(path, pixel_nm)]
    return _from_rows(_with_formats(rows), pixel_nm, thickness_nm)


def import_render_json(uri: str, pixel_nm: float, thickness_nm: float = 30.0) -> Acquisition:
    """Reads tile specifications of the render web service: one JSON object, or a list of them.

    Of each: z, tileId, width, height, mipmapLevels['0'].imageUrl, and the position in pixels:
    layout.stageX and stageY or, without them, the translation of the last affine transform. Tiles
    of a section become fields with one beam each, in the order of their tileId.

    Args:
      uri: the file.
      pixel_nm: size of a pixel.
      thickness_nm: of all sections.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it cannot be read, something is missing, or see `Acquisition`.
    """
    content = _read_json(uri)
    specs = [content] if isinstance(content, dict) else content
    rows = []
    counts: Counter[int] = Counter()
    for spec in sorted(specs, key=lambda spec: str(spec.get('tileId', ''))):
        try:
            section, shape = round(spec['z']), (int(spec['height']), int(spec['width']))
            path = spec['mipmapLevels']['0']['imageUrl']
            x, y = _render_position(spec)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f'{uri!r}: tile {spec.get("tileId")!r} has no usable {error}: must have z, width, '
                'height, mipmapLevels.0.imageUrl and layout.stageX, stageY or an affine transform'
            ) from error
        path = re.sub(r'^file:/+', '/', path)
        path = _locate(posixpath.dirname(uri), path)
        place = (y * pixel_nm, x * pixel_nm)
        rows.append(_row(section, counts[section], 0, path, place, shape))
        counts[section] += 1
    return _from_rows(_with_formats(rows), pixel_nm, thickness_nm)


def import_grid(
    folder: str,
    pixel_nm: float,
    thickness_nm: float = 30.0,
    overlap: tuple[float, float] = (0.1, 0.1),
) -> Acquisition:
    """Reads tiles whose names tell row and column; positions follow from the nominal overlap.

    Names: `r0_c1`, `row140_col60`, `col60_row140`, or `0_1` (row, column), and a suffix of an
    image. The number before them is the section, as in `C1_1_2` or `sec3_r0_c1`; without one, the
    last number in the name of the folder below `folder`, or 0. Every tile is a field with one
    beam, numbered row by row. Images with other names are left out.

    Args:
      folder: of the images.
      pixel_nm: size of a pixel.
      thickness_nm: of all sections.
      overlap: share of a tile's height and width.

    Raises:
      ValueError: no name fits, or see `Acquisition`.
    """
    found, others = [], []
    for path in storage.list_files(folder):
        place = _grid_place(folder, path)
        if place is not None:
            found.append((*place, path))
        elif path.lower().endswith(IMAGES):
            others.append(path)
    if not found:
        raise ValueError(
            f'folder is {folder!r}: none of {len(others)} images in it has a row and a column in '
            'its name; rename them like r0_c1.png, or write a manifest'
        )
    if others:
        logging.warning('%d images without row and column left out: %s', len(others), others[:3])
    _, top, left = (min(numbers) for numbers in list(zip(*found, strict=True))[:3])
    columns = max(col for _, _, col, _ in found) - left + 1
    rows = [
        _row(section, (row - top) * columns + col - left, 0, path, (row - top, col - left))
        for section, row, col, path in found
    ]
    rows = _with_formats(rows)
    for row in rows:
        row['y_nm'] *= row['height'] * (1 - overlap[0]) * pixel_nm
        row['x_nm'] *= row['width'] * (1 - overlap[1]) * pixel_nm
    return _from_rows(rows, pixel_nm, thickness_nm)


def _row(
    section: int,
    field: int,
    beam: int,
    path: str,
    place: tuple[float, float],
    shape: tuple[int, int] = (0, 0),
) -> dict[str, Any]:
    return {
        'section': section, 'field': field, 'beam': beam, 'path': path,
        'y_nm': place[0], 'x_nm': place[1], 'height': shape[0], 'width': shape[1],
    }  # fmt: skip


def _from_rows(
    rows: Sequence[Mapping[str, Any]], pixel_nm: float, thickness_nm: float
) -> Acquisition:
    tiles = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Acquisition(tiles, make_sections(tiles['section'], thickness_nm), pixel_nm)


def _with_formats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the dtype and, where unknown, the shape, as one tile of each section has them."""
    if not rows:
        raise ValueError('the source names no tiles: must list at least one; check it')
    by_section: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_section.setdefault(row['section'], []).append(row)
    formats = {n: _probe(row['path'] for row in of[:PROBES]) for n, of in by_section.items()}
    known = Counter(found for found in formats.values() if found)
    if not known:
        raise ValueError(
            f'none of the first tiles of {len(formats)} sections can be read, such as '
            f'{rows[0]["path"]!r}: at least one must be there; check the folder'
        )
    usual = known.most_common(1)[0][0]
    for section, of in by_section.items():
        height, width, dtype = formats[section] or usual
        for row in of:
            row |= {'height': row['height'] or height, 'width': row['width'] or width}
            row['dtype'] = dtype
    return rows


def _probe(paths: Iterable[str]) -> tuple[int, int, str] | None:
    """Height, width and dtype of the first of some images that can be read."""
    for path in paths:
        try:
            image = read_tile(path)
        except TileError as error:
            logging.warning('%s: %s', path, error)
            continue
        return image.shape[0], image.shape[1], image.dtype.name
    return None


def _multibeam_rows(listing: str, pixel_nm: float) -> list[dict[str, Any]]:
    folder = posixpath.dirname(listing)
    name = posixpath.basename(posixpath.dirname(folder))
    numbers = re.match(r'(\d+)(?:_S(\d+))?', name)
    if numbers is None:
        raise ValueError(
            f'section folder {name!r} of {listing!r}: its name must start with a number, such as '
            '012 or 012_S17R1; rename it'
        )
    section = int(numbers[2] or numbers[1])
    rows = []
    for count, line in enumerate(storage.read_bytes(listing).decode().splitlines(), 1):
        if not line.strip():
            continue
        try:
            file, x, y, *_ = line.split('\t')
            place = (float(y) * pixel_nm, float(x) * pixel_nm)
            file = posixpath.basename(file.strip().replace('\\', '/'))
            found = BEAM_IMAGE.match(file)
            assert found is not None and int(found['number']) == int(numbers[1])
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f'{listing!r}, line {count} is {line!r}: must be NAME, X, Y, 0 with tabs between, '
                f'and NAME {numbers[1]}_FIELD_BEAM...; correct the line'
            ) from error
        path = storage.join(folder, file)
        rows.append(_row(section, int(found['field']), int(found['beam']), path, place))
    return rows


def _render_position(spec: Mapping[str, Any]) -> tuple[float, float]:
    """(x, y), pixels."""
    layout = spec.get('layout', {})
    if layout.get('stageX') is not None and layout.get('stageY') is not None:
        return float(layout['stageX']), float(layout['stageY'])
    transforms = spec['transforms']['specList']
    affine = [t for t in transforms if t.get('className', '').endswith('AffineModel2D')]
    x, y = affine[-1]['dataString'].split()[-2:]
    return float(x), float(y)


def _grid_place(folder: str, path: str) -> tuple[int, int, int] | None:
    """Section, row and column."""
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    if suffix.lower() not in IMAGES:
        return None
    # Files are listed by their local path.
    base = folder if storage.is_remote(folder) else str(storage.local_path(folder))
    below = posixpath.dirname(path.removeprefix(storage.join(base, '')))
    for pattern in GRID_IMAGES:
        found = pattern.fullmatch(stem.lower())
        if found:
            numbers = re.findall(r'\d+', found['head']) or re.findall(r'\d+', below) or [0]
            return int(numbers[-1]), int(found['row']), int(found['col'])
    return None


def _locate(folder: str, path: str) -> str:
    relative = '://' not in path and not path.startswith('/')
    return storage.join(folder, path) if relative and folder and path else path


def _read_json(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise ValueError(f'{uri!r} is not valid JSON: {error}') from error


def _read_table(uri: str, schema: tables.Schema) -> tables.Columns:
    """Reads a table by its suffix; columns that the schema does not know are left out."""
    suffix = posixpath.splitext(uri)[1].lower()
    try:
        if suffix == '.parquet':
            found = parquet.read_table(io.BytesIO(storage.read_bytes(uri)))
        elif suffix == '.json':
            found = pa.Table.from_pylist(_read_json(uri))
        elif suffix == '.csv':
            types = {
                name: pa.string() if kind == 'str' else pa.from_numpy_dtype(kind)
                for name, kind in schema.columns.items()
            }
            options = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            found = csv.read_csv(io.BytesIO(storage.read_bytes(uri)), convert_options=options)
        else:
            raise ValueError(f'its suffix is {suffix!r}: must be .csv, .json or .parquet')
        known = [name for name in schema.columns if name in found.column_names]
        return {name: _column(name, found[name], schema.columns[name]) for name in known}
    except (ValueError, TypeError, pa.ArrowException, AttributeError) as error:
        raise ValueError(f'{uri!r} cannot be read as a table: {error}') from error


def _column(name: str, values: Any, dtype: str) -> np.ndarray:
    if dtype == 'str':
        return np.array(['' if v is None else str(v) for v in values.to_pylist()], object)
    if dtype == 'int64' and (values.null_count or not pa.types.is_integer(values.type)):
        raise ValueError(f'{name} is {values.type} with gaps, or no integer: must be an integer')
    array: np.ndarray = values.to_numpy().astype(dtype)
    return array
