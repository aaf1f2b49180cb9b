"""Which cells of stitching a block of the aligned volume reads."""

from __future__ import annotations

import numpy as np
import pytest

from h01_beam.alignment.frames import AFFINES, CellsOfSlice, Slices, ToFrame
from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.registration.maps import CoordinateMap, grid_points
from h01_beam.stitching.frames import Frames

FACTOR, REACH, BLOCK = 2, 40, 256


def frames(side: int) -> Frames:
    """A section of `side` cells along each side."""
    return Frames(4.0, 64, (100, 120), 3, (400 * side, 480 * side), (400, 480))


def affines(angle: float, shift: tuple[float, float], state: str = 'placed') -> dict:
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    row = {'section': 1, 'yy': c, 'yx': s, 'y1': shift[0], 'xy': -s, 'xx': c, 'x1': shift[1],
           'group': 0, 'matches': 2, 'misfit': 1.0, 'state': state}  # fmt: skip
    return {name: np.array([value], AFFINES.empty()[name].dtype) for name, value in row.items()}


def blocks(side: int) -> BlockGrid:
    extent = frames(side).shape
    return BlockGrid(BoundingBox((0, 0, 0), (1, *extent)), (1, BLOCK, BLOCK))


@pytest.mark.parametrize('angle', [0, 12, 170])
def test_all_places_of_a_block_lie_in_its_cells(angle):
    side = 6
    middle = np.array(frames(side).shape) / 2 / FACTOR
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    # Turned about its middle, so that it stays within the frame.
    shift = middle - np.array([[c, s], [-s, c]]) @ middle
    rows = affines(angle, (float(shift[0]), float(shift[1])))
    region = CellsOfSlice(Slices((1,)), frames(side), FACTOR, REACH)
    affine = np.array([[rows[n][0] for n in names] for names in (('yy', 'yx', 'y1'),
                                                                 ('xy', 'xx', 'x1'))])  # fmt: skip
    moved = np.full((2, 99, 99), REACH, np.float32) * [[[1]], [[-1]]]
    maps = ToFrame(affine, CoordinateMap(moved.astype(np.float32), (0.0, 0.0), 32.0), FACTOR)
    cell, tile, margin = np.array([400, 480]), np.array([100, 120]), 64
    seen = 0
    for block in blocks(side):
        places = maps(grid_points(block.core.start[1:], 16, (17, 17))).reshape(2, -1)
        box = region(block, rows)
        # Tiles whose first pixel is up to a tile before a place, or has moved by the margin.
        for reach in (np.zeros(2), -tile.astype(float) - margin, np.full(2, margin)):
            cells = (places.T + reach) // cell
            cells = cells[((cells >= 0) & (cells < side)).all(axis=1)]
            seen += len(cells)
            if len(cells):
                assert (cells.min(axis=0) >= box.start[1:]).all()
                assert (cells.max(axis=0) < box.end[1:]).all()
    assert seen > 1000


def test_larger_sections_do_not_mean_more_cells():
    rows = affines(3, (10.0, 10.0))
    most = []
    for side in (6, 12, 24):
        region = CellsOfSlice(Slices((1,)), frames(side), FACTOR, REACH)
        most.append(max(region(block, rows).size for block in blocks(side)))
    assert most[0] == most[1] == most[2] <= 12


def test_what_is_missing_or_loose_reads_none():
    block = next(iter(blocks(2)))
    assert CellsOfSlice(Slices((-1,)), frames(2), FACTOR, REACH)(block, {}) is None
    loose = affines(0, (0.0, 0.0), 'loose')
    assert CellsOfSlice(Slices((1,)), frames(2), FACTOR, REACH)(block, loose) is None
