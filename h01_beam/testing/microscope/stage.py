"""The microscope as a Beam stage. Shape: blocks, one per section and field.

    OUTPUT/tiles.parquet             what the microscope reports of its tiles (`TILES`)
           sections.parquet          and of its sections (`SECTIONS`)
           tiles/SECTION/FIELD/BEAM.png
           truth/tiles.parquet       where tiles really are (`TRUE_TILES`)
           truth/damage.parquet      all that went wrong (`DAMAGE`)
           run.json                  of which `read_geometry` makes the true maps

Tiles are made one at a time, and each is a function of seed and place. A block whose marker is
there is not made again, even where somebody has deleted its tiles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from h01_beam import storage, tables
from h01_beam.acquisition.tables import SECTIONS, TILES
from h01_beam.blockwise import MapBlocks
from h01_beam.config import from_dict
from h01_beam.geometry import Block, BlockGrid, BoundingBox, Triple
from h01_beam.plan import BlockResult
from h01_beam.run import Run
from h01_beam.tables import Schema
from h01_beam.testing.microscope import damage
from h01_beam.testing.microscope.config import MicroscopeConfig
from h01_beam.testing.microscope.geometry import Extent, Geometry
from h01_beam.testing.microscope.image import PATCH, Microscope, encode, image_tile
from h01_beam.testing.microscope.source import Source, as_source
from h01_beam.testing.phantom import PhantomConfig
from h01_beam.testing.phantom.stage import ANATOMY_BYTES, WORKING_BYTES_PER_VOXEL

# Raise it when a change of code changes the tiles.
VERSION = 1
STAGE = 'microscope'
# A tile, its file, and the copies that optics and detector make.
_BYTES_PER_PIXEL = 40
# TILES and SECTIONS are those of an acquisition. sha256 is that of the file as the microscope wrote
# it: corrupt files differ from it. A missing tile has a path, no file, and an empty sha256. Lost
# sections are listed too.
TRUE_TILES = Schema(
    {'section': 'int64', 'field': 'int64', 'beam': 'int64', 'y_nm': 'float64', 'x_nm': 'float64'}
)
# field and beam are -1 for damage of a whole section.
DAMAGE = Schema({'kind': 'str', 'section': 'int64', 'field': 'int64', 'beam': 'int64'})
_TABLES = {'tiles': TILES, 'true_tiles': TRUE_TILES, 'damage': DAMAGE}
_FILES = {
    'tiles': 'tiles.parquet',
    'true_tiles': 'truth/tiles.parquet',
    'damage': 'truth/damage.parquet',
}


@dataclasses.dataclass(frozen=True)
class ImageField:
    """Makes the tiles of one field, writes their files, and tells of them."""

    microscope: Microscope
    folder: str

    def working_bytes(self, read_shape: Triple) -> int:
        microscope = self.microscope
        config, size = microscope.config, microscope.source.voxel_size_nm
        # A turned patch needs a box that is up to twice as large.
        patch = 2 * math.prod(min(n + 64, PATCH) * config.pixel_nm for n in config.tile_shape)
        voxels = patch / (size[1] * size[2]) * max(1, math.ceil(2 * config.thickness_nm / size[0]))
        tile = _BYTES_PER_PIXEL * math.prod(config.tile_shape)
        return int(tile + ANATOMY_BYTES + WORKING_BYTES_PER_VOXEL * voxels + 80 * PATCH**2)

    def __call__(self, block: Block) -> BlockResult:
        section, field, _ = block.core.start
        config, geometry = self.microscope.config, self.microscope.geometry
        harm: list[tuple[str, int, int, int]] = []
        if field == 0:
            harm += [(kind, section, -1, -1) for kind in damage.section_damage(config, section)]
        tiles: list[tuple[Any, ...]] = []
        true: list[tuple[Any, ...]] = []
        if geometry.is_cut(section) and section not in config.damage.missing_sections:
            reported = self.microscope.layout.reported_nm(field)
            really = self.microscope.layout.true_nm(section, field)
            for number in range(config.beams):
                kinds = self.microscope.damage_of(section, field, number)
                harm += [(kind, section, field, number) for kind in kinds]
                path, sha256 = self._write_tile(section, field, number, kinds)
                tiles.append(
                    (section, field, number, path, *reported[number], *config.tile_shape,
                     config.dtype, config.dwell_ns, sha256)
                )  # fmt: skip
                true.append((section, field, number, *really[number]))
        rows = {'tiles': tiles, 'true_tiles': true, 'damage': harm}
        return BlockResult(
            rows={name: _columns(rows[name], schema) for name, schema in _TABLES.items()},
            metrics={'tiles': len(tiles), 'damages': len(harm)},
        )

    def _write_tile(
        self, section: int, field: int, number: int, kinds: list[str]
    ) -> tuple[str, str]:
        """Path and SHA-256 of a tile's file."""
        config = self.microscope.config
        path = f'tiles/{section:05d}/{field:04d}/{number:03d}.{config.format}'
        file = storage.join(self.folder, path)
        if damage.MISSING in kinds:
            # One of an earlier configuration may be there.
            storage.delete(file)
            return path, ''
        data = encode(image_tile(self.microscope, section, field, number), config.format)
        sha256 = hashlib.sha256(data).hexdigest()
        for kind in {damage.TRUNCATED, damage.SCRAMBLED} & set(kinds):
            data = damage.corrupt(data, kind, int(sha256[:7], 16))
        storage.write_bytes(file, data)
        return path, sha256


def build_microscope(
    root: Any, source: Source | PhantomConfig | str, config: MicroscopeConfig, run: Run
) -> beam.PCollection:
    """Adds the stage that images a volume; yields the output folder when all files are there.

    Args:
      root: the pipeline.
      source: configuration of a phantom with a shape, URI of an image volume, or a `Source`.
      config: of the microscope.
      run: the run, whose directory is the output.

    Raises:
      ValueError: a field of the configuration does not fit the source, or a tile a worker.
    """
    microscope = Microscope(config, as_source(source))
    extent = microscope.geometry.extent
    run.write_manifest(STAGE, {'source': source_name(source), 'microscope': config,
                               'extent': extent}, {})  # fmt: skip
    shape = (microscope.geometry.sections, len(microscope.layout.fields_nm), 1)
    before = len(run.summaries)
    root | MapBlocks(
        ImageField(microscope, run.path),
        stage=STAGE,
        table_writes=_TABLES,
        grid=BlockGrid(BoundingBox((0, 0, 0), shape), (1, 1, 1)),
        config=[config, microscope.source.fingerprint],
        version=VERSION,
        run=run,
    )
    written = (
        root
        | 'Output' >> beam.Create([run.path], reshuffle=False)
        | 'WaitForTables' >> beam.WaitOn(*run.summaries[before:])
        | 'WriteManifest' >> beam.Map(_write_manifest, microscope.geometry)
    )
    run.summaries.append(written)
    return written


def source_name(source: Source | PhantomConfig | str) -> Any:
    """What the run's manifest says of a source."""
    if isinstance(source, PhantomConfig):
        return {'phantom': source}
    return {'volume': source} if isinstance(source, str) else {'other': source.fingerprint}


def read_geometry(folder: str) -> Geometry:
    """The true maps of the sections that a run imaged.

    Args:
      folder: the run's directory.

    Raises:
      FileNotFoundError: there is no run.
    """
    config = json.loads(storage.read_bytes(storage.join(folder, 'run.json')))['config']
    return Geometry(
        from_dict(MicroscopeConfig, config['microscope'], 'microscope.'),
        from_dict(Extent, config['extent'], 'extent.'),
    )


def _columns(rows: list[tuple[Any, ...]], schema: Schema) -> tables.Columns:
    if not rows:
        return schema.empty()
    columns = zip(*rows, strict=True)
    return schema.conform(
        {name: np.array(column) for name, column in zip(schema.columns, columns, strict=True)}
    )


def _write_manifest(folder: str, geometry: Geometry) -> str:
    """Joins the tables of the stage to one file each, which pass through memory part by part."""
    run = Run.at(folder)
    for name, file in _FILES.items():
        schema = pa.schema(
            [
                (column, pa.string() if dtype == 'str' else pa.from_numpy_dtype(np.dtype(dtype)))
                for column, dtype in _TABLES[name].columns.items()
            ]
        )
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, schema, compression='zstd') as writer:
            for part in run.joined_files(name):
                table = pq.read_table(pa.BufferReader(storage.read_bytes(part)))
                # A part without rows does not know that a column is text.
                writer.write_table(table.cast(schema))
        storage.write_bytes(storage.join(folder, file), sink.getvalue().to_pybytes())
    cut = [s for s in range(geometry.sections) if geometry.is_cut(s)]
    rows = [(s, geometry.cutting_order(s), geometry.thickness_nm(s)) for s in cut]
    data = tables.to_parquet(_columns(rows, SECTIONS), SECTIONS)
    storage.write_bytes(storage.join(folder, 'sections.parquet'), data)
    return folder
