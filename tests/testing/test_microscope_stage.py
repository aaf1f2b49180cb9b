"""The microscope as a job: files, manifest and truth."""

import hashlib

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from h01_beam.finish import FinishRun
from h01_beam.testing.microscope import DamageConfig, Microscope, MicroscopeConfig, image_tile
from h01_beam.testing.microscope.source import ArraySource, PhantomSource, VolumeSource
from h01_beam.testing.microscope.stage import build_microscope, read_geometry
from h01_beam.testing.phantom import PhantomConfig
from pipelines import launch, microscope
from tests.arrays import box, create, position_code, run_pipeline, tree_bytes

SOURCE = ArraySource(position_code(box((0, 0, 0), (6, 40, 50)), 'uint8'), (33.0, 4.0, 4.0))
CONFIG = MicroscopeConfig(
    pixel_nm=4.0,
    tile_shape=(24, 32),
    beams=3,
    fields=2,
    stage_jitter_nm=20.0,
    shift_nm=50.0,
    elastic_nm=5.0,
    elastic_cell_nm=500.0,
    damage=DamageConfig(
        missing_sections=(1,),
        double_cuts=(3,),
        folded_sections=(2,),
        fold_nm=30.0,
        missing_tiles=1 / 6,
        corrupt_tiles=1 / 3,
        blurred_tiles=1 / 6,
    ),
)
OUTPUT = ('tiles', 'truth', 'sections.parquet')
EXAMPLE = 'pipelines/configs/microscope.yaml'


def make(path, config=CONFIG, source=SOURCE):
    def build(root, run):
        build_microscope(root, source, config, run)
        root | FinishRun(run)

    run_pipeline(path, build)
    return {k: v for k, v in tree_bytes(path).items() if k.startswith(OUTPUT)}


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope='module')
def output(tmp_path_factory):
    path = tmp_path_factory.mktemp('microscope')
    make(path)
    return path


def test_the_manifest_lists_every_tile(output):
    table = pq.read_table(output / 'tiles.parquet')
    assert {f.name: str(f.type) for f in table.schema} == {
        'section': 'int64', 'field': 'int64', 'beam': 'int64', 'path': 'string', 'y_nm': 'double',
        'x_nm': 'double', 'height': 'int64', 'width': 'int64', 'dtype': 'string',
        'dwell_ns': 'double', 'sha256': 'string',
    }  # fmt: skip
    tiles = table.to_pylist()
    # Section 1 is lost, section 4 is part of 3.
    expected = [(s, f, b) for s in (0, 2, 3, 5) for f in range(2) for b in range(3)]
    assert [(t['section'], t['field'], t['beam']) for t in tiles] == expected
    on_disk = {str(p.relative_to(output)) for p in (output / 'tiles').rglob('*.png')}
    missing = {t['path'] for t in tiles if not t['sha256']}
    assert on_disk == {t['path'] for t in tiles} - missing and len(missing) == 4
    sections = rows(output / 'sections.parquet')
    assert [(s['section'], s['cutting_order']) for s in sections] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (5, 4),
    ]
    assert 55 < sections[3]['thickness_nm'] < 77
    assert (output / 'report.json').exists()


def test_all_damage_is_listed(output):
    damage = {
        (d['kind'], d['section'], d['field'], d['beam'])
        for d in rows(output / 'truth/damage.parquet')
    }
    assert {d for d in damage if d[2] < 0} == {
        ('missing_section', 1, -1, -1), ('double_cut', 3, -1, -1), ('fold', 2, -1, -1)
    }  # fmt: skip
    corrupt, missing = set(), set()
    for tile in rows(output / 'tiles.parquet'):
        place = tile['section'], tile['field'], tile['beam']
        if not tile['sha256']:
            missing.add(place)
        elif hashlib.sha256((output / tile['path']).read_bytes()).hexdigest() != tile['sha256']:
            corrupt.add(place)
    assert missing == {d[1:] for d in damage if d[0] == 'missing_tile'}
    assert corrupt == {d[1:] for d in damage if d[0] in ('truncated_file', 'scrambled_file')}
    assert len(corrupt) == 8 and len({d for d in damage if d[0] == 'blur'}) == 4


def test_files_hold_the_tiles_and_truth_says_where(output):
    microscope = Microscope(CONFIG, SOURCE)
    true = {(t['section'], t['field'], t['beam']): t for t in rows(output / 'truth/tiles.parquet')}
    checked = 0
    for tile in rows(output / 'tiles.parquet'):
        place = tile['section'], tile['field'], tile['beam']
        y, x = microscope.layout.true_nm(*place[:2])[place[2]]
        assert (true[place]['y_nm'], true[place]['x_nm']) == (y, x)
        assert 0 < np.hypot(tile['y_nm'] - y, tile['x_nm'] - x) < 200
        data = (output / tile['path']).read_bytes() if tile['sha256'] else b''
        if hashlib.sha256(data).hexdigest() == tile['sha256']:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(image, image_tile(microscope, *place))
            checked += 1
    assert checked == 12
    assert read_geometry(str(output)) == microscope.geometry


def test_a_second_run_makes_the_same_bytes(output, tmp_path):
    again = make(tmp_path)
    # Once more in the same place: nothing is left to do.
    assert make(tmp_path) == again
    assert again == {k: v for k, v in tree_bytes(output).items() if k.startswith(OUTPUT)}
    assert len(again) == 4 + 20


@pytest.mark.parametrize(
    ('suffix', 'dtype'), [('tif', 'uint16'), ('bmp', 'uint8'), ('jpg', 'uint8')]
)
def test_formats_and_stored_volumes(tmp_path, suffix, dtype):
    volume = create(tmp_path / 'em', voxel_size_nm=(33.0, 16.0, 16.0))
    config = MicroscopeConfig(
        pixel_nm=16.0, tile_shape=(16, 16), beams=1, fields=1, format=suffix, dtype=dtype
    )
    files = make(tmp_path / 'out', config, volume.spec.uri)
    data = np.frombuffer(files[f'tiles/00009/0000/000.{suffix}'], np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    made = image_tile(Microscope(config, VolumeSource(volume.spec.uri)), 9, 0, 0)
    assert image.dtype == np.dtype(dtype) and image.shape == (16, 16)
    assert np.abs(image.astype(float) - made).mean() < (3 if suffix == 'jpg' else 1e-9)
    # No damage at all is a table without rows.
    assert rows(tmp_path / 'out/truth/damage.parquet') == []


def test_sources_are_checked(tmp_path):
    with pytest.raises(ValueError, match='phantom.shape'):
        PhantomSource(PhantomConfig(voxel_size_nm=(33, 8, 8)))
    np.save(tmp_path / 'em.npy', np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match='voxel_size_nm None'):
        VolumeSource(f'{tmp_path}/em.npy|npy:')
    one = ArraySource(np.zeros((2, 8, 8), np.uint8), (33.0, 8.0, 8.0))
    other = ArraySource(np.ones((2, 8, 8), np.uint8), (33.0, 8.0, 8.0))
    assert one.fingerprint != other.fingerprint


def plan(tmp_path, repository, *flags):
    parsed = launch.parse(microscope.flags())
    arguments = ['microscope', '--config', str(repository / EXAMPLE), '--output', str(tmp_path)]
    return microscope.main(parsed([*arguments, '--dry_run', *flags]))


def test_the_example_is_a_plan(tmp_path, repository, capsys):
    assert plan(tmp_path, repository) == 0
    assert 'microscope' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('source.phantom=null', 'source.phantom is None and source.volume is None'),
        ('microscope.beams=0', 'microscope.beams is 0'),
        ('microscope.damage.torn_sections=[12]', 'needs section 12'),
    ],
)
def test_the_script_refuses_bad_settings(tmp_path, repository, capsys, setting, message):
    assert plan(tmp_path, repository, '--set', setting) == launch.BAD_INPUT
    assert message in capsys.readouterr().err
