import json

import numpy as np
import pytest

from h01_beam.evaluation.config import Evaluation
from h01_beam.export.view import grey_range, open_layers, serve_layers
from h01_beam.run import Resources, Run
from h01_beam.volume import Volume, VolumeSpec

SHAPE = (12, 20, 40)


def make_volume(uri, kind='image', dtype='uint8', values=None):
    spec = VolumeSpec(
        uri=uri,
        voxel_size_nm=(30, 8, 6),
        dtype=dtype,
        shape=SHAPE,
        chunk=(8, 16, 16),
        encoding='zstd' if '|zarr3:' in uri else 'raw',
        kind=kind,
    )
    volume, _ = Volume.create(spec)
    volume.write(spec.bounds, np.ones(SHAPE, dtype) if values is None else values)
    return uri


def make_run(path, job, config):
    run = Run(str(path), Resources.local(1))
    run.write_manifest(job, config, {})
    return run


class FakeServer:
    """Takes the place of a server: URLs that name the layer."""

    def add(self, name, files):
        return f'precomputed://http://here/{name}'

    def show(self, state):
        self.state = state


@pytest.fixture
def segmented(tmp_path):
    """A segmentation run beside its image."""
    image = make_volume(f'{tmp_path}/em|neuroglancer-precomputed:')
    config = {'image': image, 'mask': None, 'output': {'chunk': [64, 64, 64], 'shard': None}}
    run = make_run(tmp_path / 'run', 'segmentation', config)
    make_volume(run.volume_uri('segmentation'), 'segmentation', 'uint64')
    return tmp_path


def described(layers):
    return [(one.layer.name, one.kind) for one in layers]


def test_a_segmentation_run_has_its_image_below_its_segmentation(segmented):
    layers = open_layers(f'{segmented}/run')
    assert described(layers) == [('image', 'image'), ('segmentation', 'segmentation')]


def test_a_run_is_shown_from_anywhere(tmp_path, monkeypatch):
    make_volume(f'{tmp_path}/em|neuroglancer-precomputed:')
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / 'run', 'downsample', {'volume': 'em'})
    monkeypatch.chdir('/')
    assert described(open_layers(run.path)) == [('volume', 'image')]


def test_more_volumes_and_a_truth_can_be_added(segmented):
    np.savez(segmented / 'truth.npz', labels=np.ones(SHAPE, np.uint8))
    more = make_volume(f'{segmented}/image.zarr|zarr3:')
    layers = open_layers(f'{segmented}/run', [more], f'{segmented}/truth.npz')
    assert described(layers) == [
        ('image', 'image'), ('image_2', 'image'),
        ('segmentation', 'segmentation'), ('truth', 'segmentation'),
    ]  # fmt: skip


def test_a_run_that_moved_without_its_image_is_shown_without_it(segmented, caplog):
    run = make_run(segmented / 'run', 'segmentation', {'image': f'{segmented}/gone'})
    with caplog.at_level('WARNING'):
        layers = open_layers(run.path)
    assert described(layers) == [('segmentation', 'segmentation')]
    assert f'{segmented}/gone' in caplog.text


@pytest.mark.parametrize(('job', 'key'), [('ingest', 'output'), ('downsample', 'volume')])
def test_other_jobs_show_the_volume_they_made(tmp_path, job, key):
    uri = make_volume(f'{tmp_path}/em|neuroglancer-precomputed:')
    run = make_run(tmp_path / 'run', job, {'input': '/gone.h5', key: uri})
    assert described(open_layers(run.path)) == [(key, 'image')]


def test_an_evaluation_shows_what_it_compared(tmp_path):
    labels = make_volume(f'{tmp_path}/labels|neuroglancer-precomputed:', 'segmentation', 'uint64')
    spec = Volume.open(labels).spec
    config = Evaluation(segmentation=spec, truth=spec, output=f'{tmp_path}/scores.json')
    run = make_run(tmp_path / 'run', 'evaluate', config)
    assert described(open_layers(run.path)) == [
        ('segmentation', 'segmentation'),
        ('truth', 'segmentation'),
    ]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no run\.json'):
        open_layers(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='absent'):
        open_layers(volumes=[f'{tmp_path}/absent'])
    with pytest.raises(ValueError, match='give --run_dir, --volume or --truth'):
        open_layers()
    run = make_run(tmp_path / 'run', 'segmentation', {'image': f'{tmp_path}/gone'})
    with pytest.raises(FileNotFoundError, match='no volume of this segmentation run'):
        open_layers(run.path)


def test_the_state_for_others_names_buckets_directly(gcs_bucket, segmented):
    far = make_volume(f'{gcs_bucket}/em|neuroglancer-precomputed:')
    server = FakeServer()
    state = serve_layers(server, open_layers(f'{segmented}/run', [far]))
    json.dumps(state)
    sources = {layer['name']: layer['source'] for layer in state['layers']}
    assert sources['em'] == f'precomputed://{gcs_bucket}/em'
    assert sources['segmentation'] == 'precomputed://http://here/segmentation'
    assert all('http://here/' in layer['source'] for layer in server.state['layers'])


def test_the_grey_range_leaves_out_empty_space_and_outliers(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[:, :, 10:] = 100
    values[:, 10:, 10:] = 150
    values[:, 0, 10] = 255
    volume = Volume.open(make_volume(f'{tmp_path}/em|neuroglancer-precomputed:', values=values))
    assert grey_range(volume) == (100, 150)


def test_an_empty_image_has_a_grey_range(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    volume = Volume.open(make_volume(f'{tmp_path}/em|neuroglancer-precomputed:', values=values))
    assert grey_range(volume) == (0, 255)
