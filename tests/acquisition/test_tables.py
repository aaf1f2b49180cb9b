import numpy as np
import pytest

from h01_beam.acquisition.tables import Acquisition
from tests.acquisition.images import PIXEL_NM, columns, grid, sections_of


def make(tiles, sections=None, pixel_nm=PIXEL_NM):
    return Acquisition(tiles, sections or sections_of(tiles), pixel_nm)


def changed(name, value, row=1, tiles=None):
    tiles = tiles or grid()
    column = tiles[name].copy()
    column[row] = value
    return {**tiles, name: column}


def test_tiles_are_sorted_and_handed_out_by_section():
    tiles = grid(sections=(7, 3))
    acquisition = make({name: column[::-1] for name, column in tiles.items()})
    assert [number for number, _ in acquisition.by_section()] == [3, 7]
    for number, rows in acquisition.by_section():
        assert set(rows['section']) == {number}
        assert list(zip(rows['field'], rows['beam'])) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_section_without_tiles_and_one_with_a_single_tile_are_allowed():
    tiles = columns([5], [0], [0])
    sections = {
        'section': np.array([4, 5]),
        'cutting_order': np.array([1, 0]),
        'thickness_nm': np.array([30.0, 33.0]),
    }
    counts = [len(rows['path']) for _, rows in make(tiles, sections).by_section()]
    assert counts == [0, 1]


def test_dwell_and_hash_may_lack_other_columns_may_not():
    tiles = grid()
    del tiles['dwell_ns'], tiles['sha256']
    assert np.isnan(make(tiles).tiles['dwell_ns']).all()
    assert set(make(tiles).tiles['sha256']) == {''}
    del tiles['y_nm']
    with pytest.raises(ValueError, match=r"\['y_nm'\] are missing"):
        make(tiles)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('beam', 0, 'beam of section 0 field 0 beam 0 is 0: occurs twice'),
        ('path', '/0_0_0.png', 'path of section 0 field 0 beam 1 is /0_0_0.png: occurs twice'),
        ('path', '', 'must name a file'),
        ('y_nm', np.nan, 'y_nm of section 0 field 0 beam 1 is nan: must be finite'),
        ('x_nm', np.inf, 'x_nm of section 0 field 0 beam 1 is inf: must be finite'),
        ('height', 0, 'must be >= 1 pixel'),
        ('height', 301, r'height is \[300, 301\]: must be the same for all tiles of a section'),
        ('dtype', 'uint16', r"dtype is \['uint16', 'uint8'\]: must be the same"),
        ('dtype', 'float32', 'must be uint8 or uint16'),
    ],
)
def test_rows_that_contradict_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        make(changed(name, value))


def test_sections_may_differ_in_shape():
    first, second = grid(sections=(0,)), columns([1, 1], [0, 0], [0, 1], shape=(200, 200))
    make({name: np.concatenate([first[name], second[name]]) for name in first})


@pytest.mark.parametrize(
    ('factor', 'message'),
    [
        (1e-3, 'seem to be in um: multiply them by 1000'),
        (1 / PIXEL_NM, 'seem to be in pixels: multiply them by 4'),
        (1e-6, 'seem to be in mm'),
        (1e-4, 'almost on top of each other'),
        (1.5, 'no overlap'),
    ],
)
def test_stage_positions_in_wrong_units_are_named(factor, message):
    tiles = grid(shape=(3, 3))
    moved = {**tiles, 'y_nm': tiles['y_nm'] * factor, 'x_nm': tiles['x_nm'] * factor}
    with pytest.raises(ValueError, match=message):
        make(moved)


def test_a_pixel_size_in_um_is_named():
    with pytest.raises(ValueError, match='pixel_nm, 0.004, seems to be in um'):
        make(grid(), pixel_nm=PIXEL_NM / 1000)


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        ('section', [0, 0], 'section 0 occurs 2 times'),
        ('cutting_order', [3, 3], 'cutting_order 3 occurs 2 times'),
        ('section', [1, 2], 'section 0 is not among the sections'),
        ('thickness_nm', [30.0, 0.0], 'thickness_nm is 0.0 at the least'),
    ],
)
def test_wrong_sections_are_refused(name, values, message):
    sections = {
        'section': np.array([0, 1]),
        'cutting_order': np.array([0, 1]),
        'thickness_nm': np.array([30.0, 30.0]),
    }
    with pytest.raises(ValueError, match=message):
        make(grid(), {**sections, name: np.array(values)})


def test_an_empty_manifest_is_refused():
    tiles = {name: column[:0] for name, column in grid().items()}
    with pytest.raises(ValueError, match='no rows'):
        make(tiles)
