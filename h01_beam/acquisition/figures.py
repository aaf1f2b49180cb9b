"""A picture of the worst tiles of an acquisition, for its report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam import storage, tables
from h01_beam.acquisition.decode import TileError, read_tile
from h01_beam.acquisition.tables import CHECKED_TILES
from h01_beam.export.finished_run import FinishedRun

# Thumbnails on a sheet, in a row, and their size; lines of a caption, their height, characters.
MOST, PER_ROW, SIZE = 24, 6, 240
LINES, LINE, CHARACTERS = 4, 16, 38
GAP = 8
RANK = {'missing': 0, 'bad': 1, 'suspect': 2}
# Files of the table that are read, of 256 blocks each.
FILES = 16


def figures(run_path: str) -> dict[str, str]:
    """Draws the worst tiles that the checks found into the run's figures folder.

    Args:
      run_path: the run directory.

    Returns:
      caption by path of the PNG file; empty if all tiles are good.
    """
    run = FinishedRun(run_path)
    tiles = _worst(_sample(run.path))
    if not tables.length(tiles):
        return {}
    images = [_thumbnail(path) for path in tiles['path']]
    path = run.figure('worst_tiles.png')
    storage.write_bytes(path, draw_tiles(tiles, images))
    return {path: f'The {len(images)} worst tiles, and why the checks say so.'}


def draw_tiles(tiles: tables.Columns, images: Sequence[npt.NDArray[np.uint8] | None]) -> bytes:
    """Draws thumbnails with section, field, beam and reason below.

    Args:
      tiles: columns of `CHECKED_TILES`, at least one row.
      images: of each tile, (height, width) of at most SIZE pixels; None is left blank.

    Returns:
      PNG.
    """
    height = SIZE + LINES * LINE + GAP
    rows, width = math.ceil(len(images) / PER_ROW), SIZE + GAP
    sheet = np.full((rows * height + GAP, min(PER_ROW, len(images)) * width + GAP), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = GAP + number // PER_ROW * height, GAP + number % PER_ROW * width
        sheet[y : y + SIZE, x : x + SIZE] = 225
        if image is not None:
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
        row = {name: column[number] for name, column in tiles.items()}
        for line, text in enumerate(_caption(row), 1):
            base = (x, y + SIZE + line * LINE - 3)
            cv2.putText(sheet, text, base, cv2.FONT_HERSHEY_SIMPLEX, 0.36, 0, 1, cv2.LINE_AA)
    encoded: bytes = cv2.imencode('.png', sheet)[1].tobytes()
    return encoded


def _caption(tile: Mapping[str, object]) -> list[str]:
    name = f'section {tile["section"]} field {tile["field"]} beam {tile["beam"]}'
    # The font has no other letters.
    reason = f'{tile["state"]}: {tile["reason"]}'.encode('ascii', 'replace').decode()
    return [name, *textwrap.wrap(reason, CHARACTERS)][:LINES]


def _sample(run_path: str) -> tables.Columns:
    """Rows of the table of tiles, of files evenly spread over it."""
    joined = FinishedRun(run_path).joined_files('tiles')
    chosen = np.unique(np.linspace(0, len(joined) - 1, min(len(joined), FILES)).astype(int))
    parts = (tables.from_parquet(storage.read_bytes(joined[number])) for number in chosen)
    return tables.concatenate(parts, CHECKED_TILES)


def _worst(tiles: tables.Columns) -> tables.Columns:
    ranks = np.array([RANK.get(state, len(RANK)) for state in tiles['state']], np.int64)
    order = np.argsort(ranks, kind='stable')[:MOST]
    return {name: column[order[ranks[order] < len(RANK)]] for name, column in tiles.items()}


def _thumbnail(path: str) -> npt.NDArray[np.uint8] | None:
    """An image fitted into SIZE pixels, grey levels stretched; None if it cannot be read."""
    try:
        image = read_tile(path)
    except TileError:
        return None
    scale = SIZE / max(image.shape)
    height, width = (max(1, round(n * scale)) for n in image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.percentile(small, (0.5, 99.5))
    return np.clip((small - low) * (255 / max(1.0, high - low)), 0, 255).astype(np.uint8)
