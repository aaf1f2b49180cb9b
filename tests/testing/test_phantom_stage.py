"""The phantom as a job: the same bytes whatever the blocks."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from h01_beam.finish import FinishRun
from h01_beam.run import Run
from h01_beam.testing.phantom import PhantomConfig, make_phantom
from h01_beam.testing.phantom.stage import VOLUMES, build_phantom
from h01_beam.volume import Volume
from tests.arrays import run_pipeline

CONFIG = PhantomConfig(voxel_size_nm=(30, 16, 16), seed=3, shape=(20, 96, 80))


def make(path, block_shape):
    def build(root, run):
        build_phantom(root, CONFIG, run, block_shape)
        root | FinishRun(run)

    run_pipeline(path, build)
    volumes = {name: Volume.open(f'{path}/volumes/{name}') for name in VOLUMES}
    return {name: volume.read(volume.bounds) for name, volume in volumes.items()}


def rows(path, table):
    files = sorted((path / 'tables' / table).glob('*.parquet'))
    return sorted(row for file in files for row in map(repr, pq.read_table(file).to_pylist()))


def test_blocks_do_not_show(tmp_path):
    one = make(tmp_path / 'one', (32, 128, 128))
    many = make(tmp_path / 'many', (16, 64, 64))
    made = make_phantom(CONFIG, Volume.open(f'{tmp_path}/one/volumes/image').bounds)
    for name in VOLUMES:
        np.testing.assert_array_equal(one[name], many[name])
        np.testing.assert_array_equal(one[name], getattr(made, name))
    for table in ('skeleton_edges', 'synapses', 'somata'):
        assert rows(tmp_path / 'one', table) == rows(tmp_path / 'many', table)
    assert rows(tmp_path / 'many', 'synapses')
    assert (tmp_path / 'many' / 'report.json').exists()


def test_a_phantom_needs_a_shape(tmp_path):
    with pytest.raises(ValueError, match='phantom.shape'):
        build_phantom(None, PhantomConfig(voxel_size_nm=(30, 8, 8)), Run.at(str(tmp_path)))
