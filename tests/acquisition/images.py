"""Small images that look like tissue to the checks, and acquisitions of them."""

from __future__ import annotations

import csv

import cv2
import numpy as np

from h01_beam import storage
from h01_beam.acquisition.tables import TILES, make_sections

SHAPE = (300, 320)
PIXEL_NM = 4.0


def tissue(seed=0, shape=SHAPE, blur=0.0, noise=3.0):
    """Membranes (uint8): level lines of a smooth random field, as sharp as the pixels."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 9)
    image = np.where(np.abs(field / field.std()) < 0.18, 70.0, 170.0)
    image = cv2.GaussianBlur(image, (0, 0), np.hypot(1.0, blur))
    return np.clip(image + rng.normal(0, noise, shape), 1, 254).astype(np.uint8)


def encode(image, suffix):
    return cv2.imencode(suffix, image)[1].tobytes()


def save(path, image):
    storage.write_bytes(str(path), encode(image, path.suffix))


def columns(section, row, col, folder='', shape=SHAPE, pitch=0.9):
    """TILES of a grid: rows and columns are fields and beams."""
    section, row, col = (np.array(v) for v in (section, row, col))
    names = [f'{folder}/{s}_{r}_{c}.png' for s, r, c in zip(section, row, col)]
    return {
        'section': section,
        'field': row,
        'beam': col,
        'path': np.array(names, object),
        'y_nm': row * shape[0] * pitch * PIXEL_NM,
        'x_nm': col * shape[1] * pitch * PIXEL_NM,
        'height': np.full(len(row), shape[0]),
        'width': np.full(len(row), shape[1]),
        'dtype': np.full(len(row), 'uint8', object),
        'dwell_ns': np.full(len(row), np.nan),
        'sha256': np.full(len(row), '', object),
    }


def grid(sections=(0,), shape=(2, 2), folder=''):
    """TILES of sections with equal grids of tiles."""
    places = [(s, r, c) for s in sections for r in range(shape[0]) for c in range(shape[1])]
    return columns(*zip(*places), folder=folder)


def write_images(tiles):
    """Writes a different image for every tile."""
    for seed, path in enumerate(tiles['path']):
        storage.write_bytes(path, encode(tissue(seed), '.png'))


def write_csv(path, tiles, leave_out=()):
    names = [name for name in TILES.columns if name not in leave_out]
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(tiles[name] for name in names)))


def sections_of(tiles):
    return make_sections(tiles['section'], 30.0)
