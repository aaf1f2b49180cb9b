"""`python -m pipelines.align` with input that is not as it should be: refused, or told of."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from h01_beam.acquisition.tables import TILES
from h01_beam.tables import from_parquet, to_parquet
from h01_beam.volume import Volume
from pipelines import launch
from pipelines.align import flags, main
from tests.acquisition.images import write_csv
from tests.alignment.acquisition import COLUMNS, PIXEL_NM, ROWS, STEP, TILE, tissue
from tests.stitching.tissue import cut

# Whole acquisitions are aligned, on a machine that may have other work.
pytestmark = pytest.mark.timeout(900)

CONFIG = """
tiles: {kind: manifest, pixel_nm: 4.0}
stitch:
  offsets: {search: 16}
  elastic: {stride: 40}
  cell_tiles: 2
  downsample: 1
  montage_block: [256, 256]
align:
  coarse: {max_features: 400, allow_mirrored: false, neighbours: 2}
  flow:
    stride: 16
    levels: [{downsample: 1, patch: 40, search: 8}, {downsample: 1, patch: 32, search: 4}]
    min_component: 4
  tissue: {density: 0.02, radius: 4}
  margin: 32
  flow_block: [128, 256]
  block: [256, 256]
"""


def listed(folder, sections, images=True):
    """TILES of sections of 3 x 3 tiles, and their images."""
    rng = np.random.default_rng(0)
    rows = {name: [] for name in TILES.columns}
    for z in sections:
        image = tissue(z) if images else None
        for number in range(ROWS * COLUMNS):
            row, column = divmod(number, COLUMNS)
            stage = np.array([24.0 + row * STEP[0], 24.0 + column * STEP[1]])
            path = folder / f'{z}_{row}_{column}.png'
            if images:
                path.write_bytes(png(cut(image, stage + rng.uniform(-5, 5, 2), TILE)))
            values = (z, number, 0, str(path), *(stage * PIXEL_NM), *TILE, 'uint8', 200.0, '')
            for name, value in zip(TILES.columns, values, strict=True):
                rows[name].append(value)
    return {n: np.array(v, TILES.empty()[n].dtype) for n, v in rows.items()}


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def align(folder, manifest, *options):
    """Exit code of the job, in this process."""
    (folder / 'align.yaml').write_text(CONFIG)
    argv = [
        '--config', str(folder / 'align.yaml'), '--set', f'tiles.source={manifest}',
        '--run_dir', str(folder / 'run'), '--direct_num_workers=1', *options,
    ]  # fmt: skip
    args, args.beam = flags().parse_known_args(argv)
    return main(args)


def refusal(folder, capsys, manifest, *options):
    """What the job says of input that it refuses; nothing must have been written."""
    assert align(folder, manifest, *options) == launch.BAD_INPUT
    assert not (folder / 'run').exists()
    message = capsys.readouterr().err
    assert message.startswith('error: ') and message.count('\n') == 1
    return message


def scaled(factor):
    return lambda tiles: {n: tiles[n] * factor for n in ('y_nm', 'x_nm')}


def at(name, row, value):
    """A change of one value of a column."""

    def change(tiles):
        column = tiles[name].copy()
        column[row] = value(column) if callable(value) else value
        return {name: column}

    return change


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (scaled(3.0), ['tiles of section 0: y_nm, x_nm put neighbours', 'no overlap: check']),
        (scaled(1e-3), ['y_nm, x_nm put neighbours', 'seem to be in um: multiply them by 1000']),
        (scaled(0.25), ['must be 0.3 to 1.2', 'seem to be in pixels: multiply them by 4']),
        (at('height', 4, 100), ['tiles of section 0: height is [100, 120]', 'convert them']),
        (at('dtype', 4, 'uint16'), ["section 0: dtype is ['uint16', 'uint8']", 'convert them']),
        (at('dtype', slice(None), 'uint16'), ['grey_range is None', 'must be (low, high)']),
        (at('dtype', slice(None), 'float32'), ['dtype of section 0 field 0', 'is float32: must']),
        (at('field', 4, 3), ['beam of section 0 field 3 beam 0 is 0: occurs twice; remove one']),
        (at('path', 4, lambda c: c[3]), ['path of section 0 field 4', 'occurs twice; every tile']),
        (at('path', 2, ''), ['path of section 0 field 2 beam 0 is : empty; must name a file']),
        (at('x_nm', 5, np.nan), ['x_nm of section 0 field 5 beam 0 is nan: must be finite']),
        (at('width', slice(None), 0), ['width of section 0 field 0 beam 0 is 0: must be >= 1']),
    ],
    ids=['apart', 'um', 'pixels', 'heights', 'dtypes', 'uint16', 'float32', 'same row',
         'same file', 'no file', 'nan', 'no width'],
)  # fmt: skip
def test_contradictions_are_refused_before_work_starts(tmp_path, capsys, change, told):
    tiles = listed(tmp_path, (0, 1), images=False)
    write_csv(tmp_path / 'tiles.csv', {**tiles, **change(tiles)})
    message = refusal(tmp_path, capsys, tmp_path / 'tiles.csv')
    for part in told:
        assert part in message


@pytest.mark.parametrize('name', ('section', 'x_nm', 'path', 'height', 'dtype'))
def test_missing_columns_are_refused(tmp_path, capsys, name):
    tiles = listed(tmp_path, (0,), images=False)
    write_csv(tmp_path / 'tiles.csv', tiles, leave_out=(name,))
    message = refusal(tmp_path, capsys, tmp_path / 'tiles.csv')
    assert f"['{name}'] are missing; every row must have" in message


@pytest.mark.parametrize('share', (0.0, 0.5))
def test_a_truncated_manifest_is_refused(tmp_path, capsys, share):
    data = to_parquet(listed(tmp_path, (0,), images=False), TILES)
    (tmp_path / 'tiles.parquet').write_bytes(data[: int(len(data) * share)])
    message = refusal(tmp_path, capsys, tmp_path / 'tiles.parquet')
    assert f"'{tmp_path}/tiles.parquet' cannot be read as a table" in message


def test_a_manifest_that_is_not_there_is_refused(tmp_path, capsys):
    assert f'{tmp_path}/none.csv' in refusal(tmp_path, capsys, tmp_path / 'none.csv')
    assert "'tiles.source' is None" in refusal(tmp_path, capsys, 'null')


def test_a_manifest_of_files_elsewhere_is_refused(tmp_path, capsys):
    write_csv(tmp_path / 'tiles.csv', listed(tmp_path / 'elsewhere', (0, 1), images=False))
    message = refusal(tmp_path, capsys, tmp_path / 'tiles.csv')
    assert f"none of 18 files that were looked for is there, such as '{tmp_path}/elsew" in message


def test_settings_that_contradict_are_refused(tmp_path, capsys):
    write_csv(tmp_path / 'tiles.csv', listed(tmp_path, (0,), images=False))
    for setting, told in (
        ('stitch.margin=15', 'stitch.margin is 15: must be stitch.offsets.search, 16, or more'),
        ('stitch.marign=99', 'marign'),
        ('tiles.pixel_nm=0.004', 'pixel_nm, 0.004, seems to be in um: multiply it by 1000'),
    ):
        assert told in refusal(tmp_path, capsys, tmp_path / 'tiles.csv', '--set', setting)


def spoil(folder, tiles):
    """Sections 1 to 4 in ways that only their images tell; returns the tiles that are listed."""
    # 1: cut off, of another shape, gone, of another depth, no image at all.
    files = [folder / f'1_{row}_{column}.png' for row in range(3) for column in range(3)]
    files[0].write_bytes(files[0].read_bytes()[:-500])
    files[1].write_bytes(png(cut(tissue(1), (24, 24), (TILE[0], TILE[1] - 1))))
    files[2].unlink()
    files[3].write_bytes(png(cut(tissue(1), (24, 24), TILE).astype(np.uint16)))
    files[4].write_bytes(b'no image')
    # 2: one tile, larger than those of other sections. 3: nothing that can be used.
    (folder / '2_1_1.png').write_bytes(png(cut(tissue(2), (120, 146), (140, 160))))
    for number in range(9):
        (folder / f'3_{number // 3}_{number % 3}.png').write_bytes(b'')
    # 4: tiles that overlap by the stage, but show nothing in common.
    rng = np.random.default_rng(1)
    for number in range(9):
        image = rng.normal(0, 1, TILE).astype(np.float32)
        image = cv2.GaussianBlur(image, (0, 0), 2)
        image = np.clip(128 + 45 * image / image.std(), 0, 255).astype(np.uint8)
        (folder / f'4_{number // 3}_{number % 3}.png').write_bytes(png(image))
    kept = (tiles['section'] != 2) | (tiles['field'] == 4)
    alone = tiles['section'] == 2
    tiles = {
        **tiles,
        'height': np.where(alone, 140, tiles['height']),
        'width': np.where(alone, 160, tiles['width']),
    }
    return {name: column[kept] for name, column in tiles.items()}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run that goes on in spite of what is wrong: its folder, and sections of the report.

    Section 0 is as it should be, 5 is listed without tiles; for the others see `spoil`.
    """
    folder = tmp_path_factory.mktemp('finished')
    write_csv(folder / 'tiles.csv', spoil(folder, listed(folder, range(5))))
    lines = ['section,cutting_order,thickness_nm', *(f'{n},{n},30' for n in range(6))]
    (folder / 'sections.csv').write_text('\n'.join(lines) + '\n')
    code = align(folder, folder / 'tiles.csv', '--set', f'tiles.sections={folder}/sections.csv')
    assert code == 0
    return folder / 'run', json.loads((folder / 'run/report.json').read_text())


@pytest.mark.slow
def test_sections_with_bad_tiles_are_listed(finished):
    _, report = finished
    sections = report['sections']
    names = ('tiles', 'good', 'suspect', 'bad', 'missing')
    counted = [tuple(s[name] for name in names) for s in sections]
    assert counted == [(9, 9, 0, 0, 0), (9, 4, 0, 4, 1), (1, 1, 0, 0, 0), (9, 0, 0, 9, 0),
                       (9, 9, 0, 0, 0), (0, 0, 0, 0, 0)]  # fmt: skip
    assert [s['reason'] for s in sections[:4]] == [
        '', '5 of 9 tiles are bad or missing', 'a single tile', 'all 9 tiles are bad or missing',
    ]  # fmt: skip
    assert sections[5]['reason'] == 'it has no tiles'
    states = [s['state'] for s in sections]
    assert states == ['placed', 'placed', 'placed', 'missing', 'unmatched', 'missing']
    assert report['highlights']['bad or missing tiles'] == 14
    # Without anything in common, all pairs are lost, and all tiles but one hang on nothing.
    assert sections[4]['lost_pairs'] == 20 and sections[4]['loose_tiles'] == 8
    assert sections[4]['seam_rms_px'] is None and sections[4]['matches'] == 0


@pytest.mark.slow
def test_what_is_wrong_with_a_tile_is_told(finished):
    folder, _ = finished
    tiles = from_parquet((folder / 'tables/tiles/000000.parquet').read_bytes())
    reasons = tiles['reason'][(tiles['section'] == 1) & (tiles['state'] != 'good')]
    for reason, told in zip(
        reasons,
        ('ends early', 'are (120, 149): must be (120, 150)', 'there is no such file',
         'dtype is uint16: must be uint8', 'is none of PNG, TIFF, BMP, JPEG'),
        strict=True,
    ):  # fmt: skip
        assert told in reason


@pytest.mark.slow
def test_what_cannot_be_used_is_masked(finished):
    folder, _ = finished
    image, mask = (Volume.open(f'{folder}/volumes/{name}') for name in ('image', 'mask'))
    image, mask = image.read(image.bounds), mask.read(mask.bounds)
    shown = mask.astype(bool).sum(axis=(1, 2))
    assert (shown[[3, 4, 5]] == 0).all() and not image[mask == 0].any()
    whole = (TILE[0] + 2 * STEP[0]) * (TILE[1] + 2 * STEP[1])
    assert shown[0] == pytest.approx(whole, rel=0.1)
    # The last row of tiles, and one tile beside the gap of the spoilt ones.
    assert 0.3 * whole < shown[1] < 0.6 * whole
    assert shown[2] == pytest.approx(140 * 160, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('usable', (0, 1))
def test_an_acquisition_of_next_to_nothing_is_reported(tmp_path, usable):
    """No tile that can be used, or one in all: nothing to align, but nothing fails."""
    tiles = listed(tmp_path, (0, 1))
    for path in tiles['path'][usable:]:
        (tmp_path / path).write_bytes(b'')
    write_csv(tmp_path / 'tiles.csv', tiles)
    assert align(tmp_path, tmp_path / 'tiles.csv') == 0
    sections = json.loads((tmp_path / 'run/report.json').read_text())['sections']
    assert [s['good'] for s in sections] == [usable, 0]
    assert sections[1]['state'] == 'missing' and sections[0]['state'] != 'placed'
    assert sections[1]['reason'] == 'all 9 tiles are bad or missing'


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(tmp_path, repository):
    write_csv(tmp_path / 'tiles.csv', listed(tmp_path, range(3)))
    (tmp_path / 'align.yaml').write_text(CONFIG)

    def stored(workers):
        run = tmp_path / f'run_{workers}'
        command = [
            sys.executable, '-m', 'pipelines.align', '--config', f'{tmp_path}/align.yaml',
            '--set', f'tiles.source={tmp_path}/tiles.csv', '--run_dir', str(run),
            f'--direct_num_workers={workers}',
        ]  # fmt: skip
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = (f for part in ('volumes', 'tables') for f in (run / part).rglob('*'))
        return {str(f.relative_to(run)): f.read_bytes() for f in files if f.is_file()}

    one, two = stored(1), stored(2)
    assert sum('volumes/image/' in name for name in one) > 3
    assert sum(name.endswith('.parquet') for name in one) > 30
    assert one.keys() == two.keys()
    assert [name for name, data in one.items() if data != two[name]] == []
