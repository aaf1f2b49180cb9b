"""A small acquisition: tissue that hardly changes from section to section, cut into tiles."""

import cv2
import numpy as np

from h01_beam.acquisition.importers import import_manifest
from h01_beam.acquisition.tables import TILES
from h01_beam.tables import to_parquet
from tests.stitching.tissue import cut, section

TILE, STEP = (120, 150), (96, 122)
ROWS, COLUMNS = 3, 3
PIXEL_NM = 4.0


def displacement(z, y, x):
    """Where section z has what lies at (y, x) of the tissue, less (y, x)."""
    rng = np.random.default_rng(z)
    a, b, c, d = rng.uniform(-1, 1, 4)
    return 3 * a * np.sin(y / 60 + c) + 8 * b, 3 * b * np.cos(x / 70 + d) + 8 * a


def tissue(z):
    """(h, w) float32: section z as the microscope finds it."""
    base = 0.9 * section((420, 480), 1) + 0.1 * section((420, 480), 100 + z)
    y, x = np.meshgrid(np.arange(420.0), np.arange(480.0), indexing='ij')
    dy, dx = displacement(z, y, x)
    return cv2.remap(
        base.astype(np.float32), (x - dx).astype(np.float32), (y - dy).astype(np.float32),
        cv2.INTER_CUBIC,
    )  # fmt: skip


def write_acquisition(folder, sections=4, missing=(2,), broken=((1, 0, 0),)):
    """Writes tiles and a manifest; `broken` tiles (section, row, column) are cut off."""
    rng = np.random.default_rng(0)
    rows = {name: [] for name in TILES.columns}
    for z in range(sections):
        if z in missing:
            continue
        image = tissue(z)
        for number in range(ROWS * COLUMNS):
            row, column = divmod(number, COLUMNS)
            stage = np.array([24.0 + row * STEP[0], 24.0 + column * STEP[1]])
            tile = cut(image, stage + rng.uniform(-5, 5, 2), TILE)
            path = folder / f'{z}_{row}_{column}.png'
            data = cv2.imencode('.png', tile)[1].tobytes()
            path.write_bytes(data[: len(data) // 2] if (z, row, column) in broken else data)
            values = (z, number, 0, str(path), *(stage * PIXEL_NM), *TILE, 'uint8', 200.0, '')
            for name, value in zip(TILES.columns, values, strict=True):
                rows[name].append(value)
    columns = {n: np.array(v, TILES.empty()[n].dtype) for n, v in rows.items()}
    (folder / 'tiles.parquet').write_bytes(to_parquet(columns, TILES))
    numbers = ','.join(map(str, range(sections)))
    lines = ['section,cutting_order,thickness_nm', *(f'{n},{n},30' for n in numbers.split(','))]
    (folder / 'sections.csv').write_text('\n'.join(lines) + '\n')
    return read(folder)


def read(folder):
    return import_manifest(
        str(folder / 'tiles.parquet'), PIXEL_NM, 30.0, str(folder / 'sections.csv')
    )
