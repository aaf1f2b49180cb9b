from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.geometry import BlockGrid, BoundingBox, CoreBox
from h01_beam.imaging.downsample import (
    DownsampleBlock,
    DownsampleConfig,
    choose_factor,
    pyramid_specs,
)
from h01_beam.imaging.stage import build_downsample
from h01_beam.volume import Volume, VolumeSpec, downsample
from tests.arrays import create, read_all, run_pipeline, tree_bytes

BASE = VolumeSpec(
    uri='/a/em|neuroglancer-precomputed:', voxel_size_nm=(30.0, 8.0, 8.0), dtype='uint8',
    shape=(33, 1000, 700), start=(3, 5, 7), chunk=(16, 64, 64),
)  # fmt: skip


@pytest.mark.parametrize(
    ('voxel_size_nm', 'factor'),
    [
        ((30, 8, 8), (1, 2, 2)),
        ((30, 16, 16), (2, 2, 2)),
        ((10, 10, 10), (2, 2, 2)),
        ((30, 4, 8), (1, 2, 1)),
        ((8, 8, 30), (2, 2, 1)),
        ((33, 32, 32), (2, 2, 2)),
    ],
)
def test_factors_bring_voxels_nearer_to_cubes(voxel_size_nm, factor):
    assert choose_factor(voxel_size_nm) == factor


def test_pyramids_end_with_one_chunk():
    levels = pyramid_specs(BASE, DownsampleConfig())
    specs = [BASE, *(spec for _, spec in levels)]
    # Two levels of sections only, then cubes; the fourth is the first within a chunk.
    assert [f for f, _ in levels] == [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)]
    for below, (factor, spec) in zip(specs, levels):
        assert spec.bounds == below.bounds.scale_down(factor)
        expected = tuple(v * f for v, f in zip(below.voxel_size_nm, factor))
        assert spec.voxel_size_nm == expected
        assert (spec.mip, spec.path, spec.dtype) == (below.mip + 1, '/a/em', 'uint8')
    assert all(n <= c for n, c in zip(specs[-1].shape, BASE.chunk))
    assert any(n > c for n, c in zip(specs[-2].shape, BASE.chunk))


@pytest.mark.parametrize(
    ('config', 'factors'),
    [
        ({'levels': 0}, []),
        ({'levels': 1}, [(1, 2, 2)]),
        ({'levels': 6}, [(1, 2, 2)] + 5 * [(2, 2, 2)]),
        ({'factors': ((3, 1, 1), (1, 5, 2))}, [(3, 1, 1), (1, 5, 2)]),
        ({'factors': ((3, 1, 1), (1, 5, 2)), 'levels': 1}, [(3, 1, 1)]),
    ],
)
def test_levels_may_be_given(config, factors):
    assert [f for f, _ in pyramid_specs(BASE, DownsampleConfig(**config))] == factors


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'factors': ((1, 1, 1),)}, 'each factor must be >= 1, one of them > 1'),
        ({'factors': ((0, 2, 2),)}, 'each factor must be >= 1'),
        ({'factors': ((2, 2),)}, 'downsample.factors is .*must be three integers'),
        ({'levels': -1}, 'downsample.levels is -1: must be >= 0'),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        DownsampleConfig(**config)


def test_a_pyramid_needs_a_voxel_size():
    with pytest.raises(ValueError, match='does not say its voxel size.*pipelines.ingest'):
        pyramid_specs(dataclasses.replace(BASE, voxel_size_nm=None), DownsampleConfig())


@pytest.mark.parametrize('method', ['mean', 'mode'])
@pytest.mark.parametrize('start', [(0, 0, 0), (3, 5, 7)])
@pytest.mark.parametrize('factor', [(1, 2, 2), (2, 2, 2), (3, 1, 4)])
def test_blocks_equal_the_whole(method, start, factor):
    """Also where the volume begins in the middle of a cell, which clips what a block reads."""
    bounds = BoundingBox(start, (9, 17, 22))
    whole = np.random.default_rng(0).integers(0, 5, bounds.shape, dtype=np.uint8)
    level = bounds.scale_down(factor)
    grid = BlockGrid(level, (2, 3, 4))
    assert min(grid.shape) > 1
    region = CoreBox(factor, bounds)
    function = DownsampleBlock(factor, method, region)
    blocked = np.empty(level.shape, np.uint8)
    for block in grid:
        source = whole[region(block).translate(tuple(-s for s in start)).slices]
        low = tuple(-s for s in level.start)
        blocked[block.core.translate(low).slices] = function(source, block)
    np.testing.assert_array_equal(blocked, downsample(whole, factor, method, start))


def make_pyramid(folder, base, **config):
    def build(root, run):
        build_downsample(root, base, DownsampleConfig(**config), run)

    return run_pipeline(folder / 'run', build)


def assert_pyramid(base, levels, method):
    below = read_all(base.uri)
    start = base.start
    for factor, spec in levels:
        below, expected_below = read_all(spec.uri), below
        np.testing.assert_array_equal(below, downsample(expected_below, factor, method, start))
        start = spec.start


@pytest.mark.parametrize(
    ('driver', 'values', 'method'),
    [
        ('neuroglancer-precomputed', {'shard': (8, 16, 16), 'chunk': (4, 8, 8)}, 'mean'),
        ('zarr3', {'dtype': 'uint64', 'kind': 'segmentation'}, 'mode'),
    ],
)
def test_a_whole_pyramid(tmp_path, driver, values, method):
    volume = create(tmp_path / 'em', driver, write=False, shape=(21, 50, 75), **values)
    random = np.random.default_rng(0).integers(0, 9, volume.spec.shape)
    volume.write(volume.bounds, random.astype(volume.spec.dtype))
    levels = pyramid_specs(volume.spec, DownsampleConfig())
    assert len(levels) >= 3
    run = make_pyramid(tmp_path, volume.spec, block_chunks=(1, 1, 1))
    assert run.plans[0].blocks > 8
    assert [plan.name for plan in run.plans][0] == 'downsample_em_mip1'
    assert_pyramid(volume.spec, levels, method)
    if driver == 'neuroglancer-precomputed':
        info = json.loads((tmp_path / 'em/info').read_text())
        assert len(info['scales']) == 1 + len(levels)
        assert all('sharding' in scale for scale in info['scales'])
        assert [s['resolution'] for s in info['scales'][:2]] == [[4, 8, 30], [8, 8, 30]]
    before = tree_bytes(tmp_path / 'em')
    again = make_pyramid(tmp_path, volume.spec, block_chunks=(1, 1, 1))
    for plan in again.plans:
        summary = json.loads(storage.read_bytes(f'{plan.ledger.path}/summary.json'))
        assert summary['blocks_run'] == 0
    assert tree_bytes(tmp_path / 'em') == before


def test_more_levels_keep_those_that_are_there(tmp_path):
    volume = create(tmp_path / 'em')
    make_pyramid(tmp_path, volume.spec, levels=1)
    run = make_pyramid(tmp_path, volume.spec, levels=2)
    ran = [
        json.loads(storage.read_bytes(f'{plan.ledger.path}/summary.json'))['blocks_run']
        for plan in run.plans
    ]
    assert ran[0] == 0 and ran[1] > 0
    assert Volume.open(f'{tmp_path}/em|neuroglancer-precomputed:?mip=2').spec.mip == 2


@pytest.mark.parametrize('driver', ['neuroglancer-precomputed', 'zarr3'])
def test_fewer_levels_leave_no_old_ones(tmp_path, driver):
    volume = create(tmp_path / 'em', driver)
    for levels in (3, 1):
        make_pyramid(tmp_path, volume.spec, levels=levels)
        for mip in range(levels + 1):
            Volume.open(f'{tmp_path}/em|{driver}:?mip={mip}')
        with pytest.raises(FileNotFoundError, match='there is no mip'):
            Volume.open(f'{tmp_path}/em|{driver}:?mip={levels + 1}')
