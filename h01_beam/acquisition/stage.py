"""Checks of all tiles and sections. Shape of the stage: blocks, of a table instead of a volume.

check_tiles      blocks   batches of a section's tiles: image files -> measured_tiles
check_sections   blocks   the batches of a section -> tiles (final states), sections

A block is (position of the section, batch, 0). The driver lays out the manifest as parts of that
grid, so that a block depends on its own rows: their files' versions are among them.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from h01_beam import config as config_lib
from h01_beam import storage, tables
from h01_beam.acquisition import checks
from h01_beam.acquisition.checks import CheckConfig
from h01_beam.acquisition.decode import TileError, decode_tile, fetch_tile
from h01_beam.acquisition.tables import (
    CHECKED_SECTIONS,
    CHECKED_TILES,
    MANIFEST,
    MEASUREMENTS,
    SECTIONS,
    TILE_STATES,
    TILES,
    Acquisition,
)
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import Block, BlockGrid, BoundingBox, CoreBox, Triple
from h01_beam.plan import BlockResult
from h01_beam.run import Run

# Files that the driver asks for their version at once.
STAT_THREADS = 32
# Files that are looked for to find out whether the paths are right at all.
PROBES = 100


def build_checks(
    root: Any, acquisition: Acquisition, config: CheckConfig, run: Run
) -> beam.PCollection:
    """Adds the checks of an acquisition.

    Tables: `tiles` (`CHECKED_TILES`) and `sections` (`CHECKED_SECTIONS`). The part of a section,
    for the stages to come, is that of block (position of the section, 0, 0).

    Args:
      root: the pipeline.
      acquisition: the manifest.
      config: thresholds.
      run: the run; outside of a dry run the manifest is written into it now.

    Returns:
      block records of the last stage.

    Raises:
      ValueError: 16-bit tiles without `grey_range`, or files that workers would not find, or none
        that is there.
    """
    if config.grey_range is None and 'uint16' in acquisition.tiles['dtype']:
        raise ValueError(
            'grey_range is None, but tiles are uint16: must be (low, high), the grey levels that '
            'count as 0 and 255; give it'
        )
    local = [path for path in acquisition.tiles['path'] if not storage.is_remote(path)]
    if local:
        run.resources.check_reachable('path of a tile', local[0])
    _check_some_exist(acquisition.tiles['path'].tolist())
    grid = make_grid(acquisition, config.batch)
    if not run.dry_run:
        write_manifest(acquisition, grid, config.batch, run)
    pixels = int((acquisition.tiles['height'] * acquisition.tiles['width']).max())
    measured = root | MapBlocks(
        CheckTiles(config, pixels),
        stage='check_tiles',
        table_reads={'manifest': CoreBox()},
        table_writes={'measured_tiles': CHECKED_TILES},
        grid=grid,
        config=dataclasses.replace(config, section_focus=0.0),
        run=run,
    )
    return root | MapBlocks(
        CheckSection(config),
        stage='check_sections',
        table_reads={'measured_tiles': FirstBatch(grid.shape[1]), 'cut': FirstBatch(1)},
        table_writes={'tiles': CHECKED_TILES, 'sections': CHECKED_SECTIONS},
        grid=grid,
        config=config.section_focus,
        run=run,
        after=[measured],
    )


def make_grid(acquisition: Acquisition, batch: int) -> BlockGrid:
    """One block for every `batch` tiles of a section, by the section's position in the list."""
    most = max(tables.length(tiles) for _, tiles in acquisition.by_section())
    sections = tables.length(acquisition.sections)
    return BlockGrid(BoundingBox((0, 0, 0), (sections, math.ceil(most / batch), 1)), (1, 1, 1))


def list_inputs(acquisition: Acquisition) -> dict[str, str]:
    """A fingerprint for each section: of its row, those of its tiles, and their files' versions."""
    result = {}
    with concurrent.futures.ThreadPoolExecutor(STAT_THREADS) as pool:
        for position, (number, tiles) in enumerate(acquisition.by_section()):
            versions = list(pool.map(_version, tiles['path']))
            row = [str(column[position]) for column in acquisition.sections.values()]
            rows = [column.tolist() for column in tiles.values()]
            result[f'section {number}'] = config_lib.fingerprint([row, rows, versions])
    return result


def write_manifest(acquisition: Acquisition, grid: BlockGrid, batch: int, run: Run) -> None:
    """Writes tiles (`manifest`) and sections (`cut`) as parts of the grid, where they changed."""
    with concurrent.futures.ThreadPoolExecutor(STAT_THREADS) as pool:
        for position, (_, tiles) in enumerate(acquisition.by_section()):
            tiles['version'] = np.array(list(pool.map(_version, tiles['path'])), object)
            for number in range(grid.shape[1]):
                rows = slice(number * batch, (number + 1) * batch)
                part = {name: column[rows] for name, column in tiles.items()}
                write_if_new(run.table_part('manifest', (position, number, 0)), part, MANIFEST)
            row = slice(position, position + 1)
            cut = {name: column[row] for name, column in acquisition.sections.items()}
            write_if_new(run.table_part('cut', (position, 0, 0)), cut, SECTIONS)


def _check_some_exist(paths: Sequence[str]) -> None:
    """Some tiles may lack; where all do, it is the paths that are wrong."""
    probes = paths[:: -(-len(paths) // PROBES)]
    if not any(map(_version, probes)):
        raise ValueError(
            f'path of tiles: none of {len(probes)} files that were looked for is there, such as '
            f'{probes[0]!r}: at least one must be; correct the paths (relative ones start at the '
            'folder of the manifest), or put the files there'
        )


def _version(path: str) -> str:
    try:
        return storage.version(path)
    except FileNotFoundError:
        return ''


def write_if_new(path: str, columns: tables.Columns, schema: tables.Schema) -> None:
    """Writes a part of a table unless it is there."""
    data = tables.to_parquet(columns, schema)
    if not storage.exists(path) or storage.read_bytes(path) != data:
        storage.write_bytes(path, data)


@dataclasses.dataclass(frozen=True)
class FirstBatch:
    """The first block of a section reads its first `batches` batches, the others nothing."""

    batches: int

    def __call__(self, block: Block) -> BoundingBox | None:
        if block.index[1]:
            return None
        return BoundingBox(block.core.start, (1, self.batches, 1))


@dataclasses.dataclass(frozen=True)
class CheckTiles:
    """Reads and judges the tiles of a batch, one at a time.

    Attributes:
      config: thresholds.
      pixels: of the largest tile.
    """

    config: CheckConfig
    pixels: int

    def working_bytes(self, read_shape: Triple) -> int:
        return checks.BYTES_PER_PIXEL * self.pixels

    def __call__(self, manifest: tables.Columns) -> BlockResult:
        results = [
            self._check({name: column[row] for name, column in manifest.items()})
            for row in range(tables.length(manifest))
        ]
        tiles = {name: manifest[name] for name in TILES.columns}
        for name in ('sha256', 'state', 'reason', *MEASUREMENTS):
            tiles[name] = np.array(
                [result[name] for result in results], CHECKED_TILES.empty()[name].dtype
            )
        return BlockResult(rows={'measured_tiles': tiles})

    def _check(self, tile: Mapping[str, Any]) -> dict[str, Any]:
        result = {
            'sha256': '',
            'state': 'bad',
            'reason': '',
            **dict.fromkeys(MEASUREMENTS, math.nan),
        }
        try:
            data = fetch_tile(tile['path'])
            result['sha256'] = hashlib.sha256(data).hexdigest()
            shape = (int(tile['height']), int(tile['width']))
            image = decode_tile(data, shape, tile['dtype'], tile['sha256'])
        except TileError as error:
            state = 'missing' if error.kind == 'missing' else 'bad'
            return {**result, 'state': state, 'reason': error.message}
        state, reason, found = checks.check_tile(image, self.config)
        return {**result, 'state': state, 'reason': reason, **found}


@dataclasses.dataclass(frozen=True)
class CheckSection:
    """Compares the tiles of a section and counts their states."""

    config: CheckConfig

    def __call__(self, measured_tiles: tables.Columns, cut: tables.Columns) -> BlockResult:
        if not cut:
            return BlockResult()
        tiles = checks.compare_tiles(measured_tiles, self.config)
        counts = {state: int((tiles['state'] == state).sum()) for state in TILE_STATES}
        state, reason = checks.judge_section(counts)
        found = {'state': state, 'reason': reason, 'tiles': tables.length(tiles), **counts}
        section = {**cut, **{name: np.array([value]) for name, value in found.items()}}
        metrics = {f'tiles_{state}': count for state, count in counts.items()}
        return BlockResult(
            rows={'tiles': tiles, 'sections': section},
            metrics={**metrics, f'sections_{state}': 1},
        )
