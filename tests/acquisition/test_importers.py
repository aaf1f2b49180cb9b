import json

import numpy as np
import pytest

from h01_beam import storage, tables
from h01_beam.acquisition import importers
from h01_beam.acquisition.importers import ImportConfig, import_acquisition
from h01_beam.acquisition.tables import SECTIONS, TILES
from tests.acquisition.images import PIXEL_NM, SHAPE, columns, grid, save, tissue, write_csv

IMAGE = tissue()


def bring(source, kind, **values):
    return import_acquisition(
        ImportConfig(source=str(source), kind=kind, pixel_nm=PIXEL_NM, **values)
    )


# ---------------------------------------------------------------- manifests


def write_manifest(path, tiles):
    if path.suffix == '.csv':
        write_csv(path, tiles)
    elif path.suffix == '.parquet':
        path.write_bytes(tables.to_parquet(tiles, TILES))
    else:
        rows = [dict(zip(tiles, row)) for row in zip(*(c.tolist() for c in tiles.values()))]
        path.write_text(json.dumps(rows))


@pytest.mark.parametrize('suffix', ('.csv', '.parquet', '.json'))
def test_manifests_of_any_format_read_alike(tmp_path, suffix):
    tiles = grid(sections=(3, 4), folder='images')
    write_manifest(tmp_path / f'tiles{suffix}', tiles)
    found = bring(tmp_path / f'tiles{suffix}', 'manifest', thickness_nm=33.0)
    expected = {**tiles, 'path': np.array([f'{tmp_path}/{p}' for p in tiles['path']], object)}
    for name in TILES.columns:
        np.testing.assert_array_equal(found.tiles[name], expected[name])
    assert found.pixel_nm == PIXEL_NM
    assert list(found.sections['cutting_order']) == [0, 1]
    assert set(found.sections['thickness_nm']) == {33.0}


def test_a_manifest_may_come_with_sections(tmp_path):
    write_csv(tmp_path / 'tiles.csv', grid(sections=(3, 4)))
    sections = {
        'section': np.array([3, 4, 5]),
        'cutting_order': np.array([2, 0, 1]),
        'thickness_nm': np.ones(3),
    }
    (tmp_path / 'sections.parquet').write_bytes(tables.to_parquet(sections, SECTIONS))
    found = bring(tmp_path / 'tiles.csv', 'manifest', sections=str(tmp_path / 'sections.parquet'))
    assert list(found.sections['cutting_order']) == [2, 0, 1]


@pytest.mark.parametrize('leave_out', ('section', 'x_nm', 'path', 'dtype'))
def test_a_manifest_with_missing_columns_is_refused(tmp_path, leave_out):
    write_csv(tmp_path / 'tiles.csv', grid(), leave_out=[leave_out])
    with pytest.raises(ValueError, match=rf"\['{leave_out}'\] are missing"):
        bring(tmp_path / 'tiles.csv', 'manifest')


def test_a_manifest_without_rows_is_refused(tmp_path):
    write_csv(tmp_path / 'tiles.csv', {name: column[:0] for name, column in grid().items()})
    with pytest.raises(ValueError, match='no rows'):
        bring(tmp_path / 'tiles.csv', 'manifest')


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('tiles.csv', 'section,field\nzero,1\n', 'cannot be read as a table: .*zero'),
        ('tiles.json', '[{"section": 1.5}]', 'section is double.*must be an integer'),
        ('tiles.json', '{', 'not valid JSON'),
        ('tiles.parquet', 'PAR', 'cannot be read as a table'),
        ('tiles.txt', '', "its suffix is '.txt'"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        bring(tmp_path / name, 'manifest')
    assert name in str(caught.value)


def test_a_manifest_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        bring(tmp_path / 'none.csv', 'manifest')


def test_a_manifest_may_lie_in_a_bucket(tmp_path, gcs_bucket):
    write_csv(tmp_path / 'tiles.csv', grid(folder='images'))
    uri = f'{gcs_bucket}/in/tiles.csv'
    storage.write_bytes(uri, (tmp_path / 'tiles.csv').read_bytes())
    found = importers.import_manifest(uri, PIXEL_NM)
    assert found.tiles['path'][0] == f'{gcs_bucket}/in/images/0_0_0.png'


# ---------------------------------------------------------------- multi-beam


def write_multibeam(folder, section='012_S17R1', number='012'):
    for field in (1, 2):
        lines = []
        for beam in (1, 2):
            name = f'{number}_{field:06d}_{beam:03d}_2020-01-01T12.bmp'
            save(folder / section / f'{field:06d}' / name, IMAGE)
            x, y = beam * SHAPE[1] * 0.9, field * SHAPE[0] * 0.9
            lines.append(f'{field:06d}\\{name}\t{x:.3f}\t{y:.3f}\t0\r\n')
        (folder / section / f'{field:06d}' / 'image_coordinates.txt').write_text(''.join(lines))
        save(folder / section / f'{field:06d}' / 'thumbnail_1.bmp', IMAGE)
    return folder / section


def test_folders_of_a_multibeam_microscope_are_read(tmp_path):
    write_multibeam(tmp_path)
    write_multibeam(tmp_path, '013', '013')
    tiles = bring(tmp_path, 'multibeam').tiles
    assert list(tiles['section']) == [13] * 4 + [17] * 4
    assert list(zip(tiles['field'], tiles['beam']))[:4] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert tiles['path'][4] == f'{tmp_path}/012_S17R1/000001/012_000001_001_2020-01-01T12.bmp'
    np.testing.assert_allclose(tiles['x_nm'][:2], np.array([1, 2]) * SHAPE[1] * 0.9 * PIXEL_NM)
    assert (tiles['height'][0], tiles['width'][0], tiles['dtype'][0]) == (*SHAPE, 'uint8')


def test_a_listed_image_need_not_be_there_nor_whole(tmp_path):
    section = write_multibeam(tmp_path)
    first, second = sorted((section / '000001').glob('012*.bmp'))
    first.unlink()
    second.write_bytes(second.read_bytes()[:500])
    assert len(bring(tmp_path, 'multibeam').tiles['path']) == 4


def test_a_field_without_coordinates_is_named(tmp_path):
    section = write_multibeam(tmp_path)
    (section / '000002' / 'image_coordinates.txt').unlink()
    with pytest.raises(ValueError, match='000002.* has images but no image_coordinates.txt'):
        bring(tmp_path, 'multibeam')


@pytest.mark.parametrize(
    'line',
    (
        '012_000001_001.bmp 1 2 0',
        '012_000001_001.bmp\tone\t2\t0',
        'x.bmp\t1\t2\t0',
        '099_000001_001.bmp\t1\t2\t0',
    ),
)
def test_a_wrong_line_of_coordinates_is_named(tmp_path, line):
    listing = write_multibeam(tmp_path) / '000001' / 'image_coordinates.txt'
    listing.write_text(listing.read_text() + line)
    with pytest.raises(ValueError, match='line 3 is'):
        bring(tmp_path, 'multibeam')


def test_folders_that_do_not_keep_the_convention_are_refused(tmp_path):
    with pytest.raises(ValueError, match='no image_coordinates.txt below it'):
        bring(tmp_path, 'multibeam')
    write_multibeam(tmp_path, 'section')
    with pytest.raises(ValueError, match="section folder 'section'"):
        bring(tmp_path, 'multibeam')


# ---------------------------------------------------------------- render


def tile_spec(tmp_path, col, layout=True, z=5.0):
    x = col * SHAPE[1] * 0.9
    spec = {
        'tileId': f't{col}',
        'z': z,
        'width': SHAPE[1],
        'height': SHAPE[0],
        'mipmapLevels': {'0': {'imageUrl': f'file:{tmp_path}/{col}.png'}},
        'transforms': {
            'specList': [
                {'className': 'lens', 'dataString': '1 2'},
                {
                    'className': 'mpicbg.trakem2.transform.AffineModel2D',
                    'dataString': f'1 0 0 1 {x} 8.0',
                },
            ]
        },
    }
    return spec | ({'layout': {'stageX': x, 'stageY': 8.0}} if layout else {})


@pytest.mark.parametrize('layout', (True, False))
def test_tile_specifications_are_read(tmp_path, layout):
    save(tmp_path / '0.png', IMAGE)
    specs = [tile_spec(tmp_path, col, layout) for col in (1, 0)]
    (tmp_path / 'tiles.json').write_text(json.dumps(specs))
    tiles = bring(tmp_path / 'tiles.json', 'render_json').tiles
    assert list(tiles['path']) == [f'{tmp_path}/0.png', f'{tmp_path}/1.png']
    np.testing.assert_allclose(tiles['x_nm'], [0, SHAPE[1] * 0.9 * PIXEL_NM])
    np.testing.assert_allclose(tiles['y_nm'], 8.0 * PIXEL_NM)
    assert list(tiles['section']) == [5, 5]
    assert list(tiles['dtype']) == ['uint8', 'uint8']


@pytest.mark.parametrize('lacking', ('z', 'width', 'mipmapLevels', 'transforms'))
def test_tile_specifications_that_lack_something_are_named(tmp_path, lacking):
    spec = tile_spec(tmp_path, 0, layout=False)
    del spec[lacking]
    (tmp_path / 'tiles.json').write_text(json.dumps([spec]))
    with pytest.raises(ValueError, match=f"tile 't0' has no usable '{lacking}'"):
        bring(tmp_path / 'tiles.json', 'render_json')


def test_no_tile_specifications_are_refused(tmp_path):
    (tmp_path / 'tiles.json').write_text('[]')
    with pytest.raises(ValueError, match='names no tiles'):
        bring(tmp_path / 'tiles.json', 'render_json')


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize(
    ('template', 'section'),
    [
        ('r{row}_c{col}.png', 0),
        ('col{col}_row{row}.png', 0),
        ('row{row}_col{col}.tif', 0),
        ('{row}_{col}.bmp', 0),
        ('C1_{row}_{col}.png', 1),
        ('sec3_r{row}_c{col}.png', 3),
        ('slice_0042/r{row}-c{col}.png', 42),
    ],
)
def test_names_of_a_grid_tell_row_and_column(tmp_path, template, section):
    for row in (10, 11):
        for col in (60, 61, 62):
            save(tmp_path / template.format(row=row, col=col), IMAGE)
    found = bring(tmp_path, 'grid', overlap=(0.1, 0.2)).tiles
    assert set(found['section']) == {section}
    assert list(found['field']) == list(range(6))
    np.testing.assert_allclose(found['y_nm'], np.repeat([0, SHAPE[0] * 0.9 * PIXEL_NM], 3))
    np.testing.assert_allclose(found['x_nm'], np.tile(np.arange(3) * SHAPE[1] * 0.8 * PIXEL_NM, 2))


def test_real_grids_are_read(shared_data):
    fly = bring(shared_data / 'tiles' / 'fafb', 'grid', overlap=(0.1, 0.2)).tiles
    assert list(zip(fly['height'], fly['width'])) == [(1080, 1280)] * 4
    assert fly['path'][1].endswith('col61_row140.png')
    assert len(bring(shared_data / 'tiles/simulated/simulation1', 'grid').tiles['path']) == 4


def test_a_folder_without_a_grid_is_refused(tmp_path):
    save(tmp_path / 'mask.png', IMAGE)
    with pytest.raises(ValueError, match='none of 1 images'):
        bring(tmp_path, 'grid')


def test_a_grid_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / 'r0_c0.png').write_bytes(b'')
    with pytest.raises(ValueError, match='none of the first tiles'):
        bring(tmp_path, 'grid')


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'pixel_nm': 0.0}, 'pixel_nm'),
        ({'thickness_nm': -1.0}, 'thickness_nm'),
        ({'overlap': (0.1, 10.0)}, 'overlap'),
        ({'sections': 's.csv'}, 'sections'),
    ],
)
def test_wrong_configurations_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ImportConfig(**{'source': 'a', 'kind': 'grid', 'pixel_nm': 4.0, **values})


def test_one_tile_of_two_shapes_is_a_section_of_mixed_shapes(tmp_path):
    tiles = columns([0, 0], [0, 0], [0, 1])
    tiles['width'] = np.array([320, 321])
    write_csv(tmp_path / 'tiles.csv', tiles)
    with pytest.raises(ValueError, match=r'width is \[320, 321\]'):
        bring(tmp_path / 'tiles.csv', 'manifest')
