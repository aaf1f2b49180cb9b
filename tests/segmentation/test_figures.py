import io

import numpy as np
import pytest
from PIL import Image

from h01_beam import storage, tables
from h01_beam.export.colors import segment_colors
from h01_beam.export.planes import Planes
from h01_beam.geometry import BlockGrid
from h01_beam.ledger import Marker, StageRecord
from h01_beam.run import Resources, Run
from h01_beam.segmentation import figures
from h01_beam.testing.tubes import make_tubes
from h01_beam.volume import Volume, VolumeSpec

VOXEL_SIZE_NM = (30.0, 10.0, 10.0)
OBJECTS = {'voxels': np.array([1000, 2000, 900000]), 'fov_steps': np.array([4, 9, 2000])}


def decode(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


@pytest.fixture(scope='module')
def tissue():
    return make_tubes((24, 80, 120), VOXEL_SIZE_NM, seed=1)


@pytest.fixture
def run(tmp_path, tissue):
    """A segmentation run of 2 x 2 x 2 blocks, of which one has not finished."""
    run = Run(str(tmp_path / 'run'), Resources.local(1))
    run.write_manifest('segmentation', {'image': f'{tmp_path}/em'}, {})
    image, labels = tissue
    for uri, array, kind in (
        (f'{tmp_path}/em|neuroglancer-precomputed:', image, 'image'),
        (run.volume_uri('segmentation'), labels, 'segmentation'),
    ):
        spec = VolumeSpec(
            uri=uri,
            voxel_size_nm=VOXEL_SIZE_NM,
            dtype=array.dtype.name,
            shape=array.shape,
            chunk=(12, 40, 60),
            kind=kind,
        )
        volume, _ = Volume.create(spec)
        volume.write(spec.bounds, array)
    grid = BlockGrid(spec.bounds, (12, 40, 60), (4, 8, 8))
    ledger = run.ledger('flood')
    StageRecord(grid=grid, generation=1, config='').write(ledger)
    rng = np.random.default_rng(0)
    for block in list(grid)[:-1]:
        steps = int(rng.integers(10, 99))
        ledger.write(
            block.index,
            Marker(key='', digest='', rows=5, seconds=steps / 20, metrics={'fov_steps': steps}),
        )
        columns = {name: rng.integers(1, 1000, 5) for name in tables.OBJECTS.columns}
        data = tables.to_parquet(columns, tables.OBJECTS)
        storage.write_bytes(run.table_part('objects', block.index), data)
    return run


def test_the_pictures_of_a_run(run):
    drawn = figures.figures(run.path)
    assert [path.rpartition('/')[2] for path in drawn] == [
        'overview.png',
        'objects.png',
        'blocks.png',
    ]
    for path, caption in drawn.items():
        pixels = decode(storage.read_bytes(path))
        assert pixels.shape[1] > 1000 and pixels.std() > 5
        assert caption.endswith('.')
    assert '35 objects' in drawn[f'{run.path}/figures/objects.png']
    first = {path: storage.read_bytes(path) for path in drawn}
    figures.figures(run.path)
    assert first == {path: storage.read_bytes(path) for path in drawn}


def test_the_overview_shows_the_image_left_and_the_segments_in_their_colours_right(tissue):
    image, labels = (Planes.of(array) for array in tissue)
    pixels = decode(figures.draw_overview(image, labels, VOXEL_SIZE_NM))
    half = pixels.shape[1] // 2
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    assert np.percentile(spread[60:, : half - 10], 99) < 8
    # The proportions are those of the tissue: 720 nm of z beside 1200 of x.
    in_plane = round(half * 1200 / 1920)
    right = pixels[:, half:]
    ids, counts = np.unique(labels.yx[labels.yx > 0], return_counts=True)
    hit = []
    for segment in ids[np.argsort(-counts)[:6]]:
        y, x = (int(np.median(v)) for v in np.nonzero(labels.yx == segment))
        if labels.yx[y, x] != segment:
            continue
        row = round(48 + (y + 0.5) / 80 * in_plane * 800 / 1200)
        seen = right[row, round((x + 0.5) / 120 * in_plane) + 4]
        hit.append(np.corrcoef(seen, segment_colors(segment))[0, 1] > 0.9)
    assert len(hit) >= 4 and np.mean(hit) > 0.7


@pytest.mark.parametrize('rows', [OBJECTS, {name: column[:0] for name, column in OBJECTS.items()}])
def test_objects_are_drawn_however_few(rows):
    assert decode(figures.draw_objects(rows, VOXEL_SIZE_NM)).shape[1] > 1000


def test_highlights():
    flood = {
        'rows': 50, 'fov_steps': 1234.0, 'wall_seconds': 10.0, 'blocks_reused': 0,
        'network_share': 0.876,
    }  # fmt: skip
    components = {'rows': 12, 'wall_seconds': 0.5}
    told = figures.highlights({'stages': {'flood': flood, 'components': components}})
    assert told == {
        'segments': 38, 'supervoxels': 50, 'FOV steps': 1234, 'FOV steps per second': 123.4,
        'network share, %': 87.6, 'stage time, s': 10.5,
    }  # fmt: skip
    # Blocks of an earlier launch say nothing of this one's speed.
    reused = figures.highlights(
        {'stages': {'flood': {**flood, 'blocks_reused': 1}, 'components': components}}
    )
    assert 'FOV steps per second' not in reused
