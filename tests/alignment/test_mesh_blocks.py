"""The mesh in blocks: like the mesh as a whole; plans, blending, frozen sections."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from h01_beam.alignment.elastic.mesh import Link, MeshConfig, Sheets, relax
from h01_beam.alignment.elastic.mesh_blocks import (
    BlocksConfig,
    links_of_block,
    plan_levels,
    relax_block,
    relax_in_blocks,
    sheets_of_block,
)
from h01_beam.alignment.elastic.mesh_levels import MeshLevel, coarsen_mesh, refine_vectors
from tests.alignment.test_mesh import flow_between

CONFIG = MeshConfig(tolerance=1e-4)
BLOCKS = BlocksConfig(
    sections=16, overlap=8, tile=128, halo=8, coarsest=18, coarsest_sections=24, sweeps=3
)
STRIDE = 32.0


def make_stack(shape, seed=0) -> MeshLevel:
    """Warps of up to 25 px, noise of 0.5 px, holes."""
    rng = np.random.default_rng(seed)
    n, h, w = shape
    noise = rng.normal(size=(n, 2, h + 40, w + 40))
    warps = ndimage.gaussian_filter(noise, (0, 0, 7, 7))[:, :, 20:-20, 20:-20]
    warps = np.clip(8 * warps / warps.std(), -25, 25)
    links = []
    for z in range(n):
        for y in range(max(0, z - 2), z):
            flow = flow_between(warps[z], warps[y], STRIDE) + 0.5 * rng.normal(size=(2, h, w))
            a, b = rng.integers(0, h - 6), rng.integers(0, w - 8)
            flow[:, a : a + 6, b : b + 8] = np.nan
            weight = rng.uniform(0.3, 1, (h, w)).astype(np.float32)
            links.append(Link(z, y, flow.astype(np.float32), weight))
    return MeshLevel(shape, links, STRIDE, CONFIG, Sheets.whole(shape))


def as_one(mesh, **rest):
    vectors, _ = relax(
        mesh.shape, mesh.links, STRIDE, mesh.config, pixel_nm=4.0, sheets=mesh.sheets, **rest
    )
    return vectors


def in_blocks(mesh, config=BLOCKS, **rest):
    return relax_in_blocks(mesh, config, pixel_nm=4.0, **rest)


def distance(a, b):
    return float(np.sqrt(((a - b) ** 2).sum(axis=1)).max())


@pytest.fixture(scope='module')
def small():
    return make_stack((12, 26, 30))


def test_blocks_come_to_what_the_whole_mesh_does():
    mesh = make_stack((24, 60, 70))
    found, changes = in_blocks(mesh)
    assert distance(found, as_one(mesh)) < 0.3
    assert changes[-1] < min(0.5, changes[0])


def test_so_do_tiles(small):
    config = dataclasses.replace(BLOCKS, tile=16, halo=6, sections=16, coarsest=15)
    found, _ = in_blocks(small, config)
    assert distance(found, as_one(small)) < 0.3


def test_no_block_holds_a_long_stack():
    mesh = make_stack((72, 14, 16))
    config = dataclasses.replace(BLOCKS, sections=16, overlap=6, coarsest=8, coarsest_sections=48)
    grids = plan_levels(mesh.shape, config, reach=2)
    assert [len(grid.grid()) for grid in grids] == [2, 5]
    assert all(b.read[0][1] - b.read[0][0] < 72 for grid in grids for b in grid.blocks())
    found, _ = in_blocks(mesh, config)
    assert distance(found, as_one(mesh)) < 0.3


def test_outliers_of_flow_move_few_nodes_otherwise_than_in_one_mesh(small):
    rng = np.random.default_rng(3)
    links = []
    for link in small.links:
        bad = rng.random(link.weight.shape) < 0.02
        vectors = link.vectors.copy()
        vectors[:, bad] += rng.uniform(-20, 20, (2, int(bad.sum())))
        links.append(dataclasses.replace(link, vectors=vectors))
    spoilt = dataclasses.replace(small, links=links)
    config = dataclasses.replace(BLOCKS, tile=16, halo=6, sections=16, coarsest=15)
    found, _ = in_blocks(spoilt, config)
    off = np.sqrt(((found - as_one(spoilt)) ** 2).sum(axis=1))
    # Where outliers outnumber what is true, either may settle on the other side.
    assert np.quantile(off, 0.98) < 0.5 and np.sqrt((off**2).mean()) < 0.3


def test_cuts_stay_cuts(small):
    sheets = Sheets.whole(small.shape)
    sheets.along_x[5, :, 14] = 0
    links = []
    for link in small.links:
        vectors = link.vectors.copy()
        if link.first == 5:
            vectors[1, :, 15:] += 12
        if link.second == 5:
            vectors[1, :, 15:] -= 12
        links.append(dataclasses.replace(link, vectors=vectors))
    torn = dataclasses.replace(small, links=links, sheets=sheets)
    found, _ = in_blocks(torn, dataclasses.replace(BLOCKS, sections=10, overlap=5))
    assert distance(found, as_one(torn)) < 0.3


def chained(mesh):
    """One section after the other, each against those before it, with all its nodes at once."""
    vectors = np.zeros((mesh.shape[0], 2, *mesh.shape[1:]))
    for z in range(mesh.shape[0]):
        first = max(0, z - 2)
        links = [
            dataclasses.replace(k, first=k.first - first, second=k.second - first)
            for k in mesh.links
            if k.first == z
        ]
        count = z - first + 1
        vectors[first : z + 1], _ = relax(
            (count, *mesh.shape[1:]), links, STRIDE, mesh.config, pixel_nm=4.0,
            start=vectors[first : z + 1], frozen=np.arange(count) < count - 1,
        )  # fmt: skip
    return vectors


@pytest.mark.parametrize('tile', [128, 16])
def test_a_causal_mesh_holds_to_earlier_sections_only(small, tile):
    config = dataclasses.replace(BLOCKS, tile=tile, halo=6, coarsest=15)
    early = MeshLevel(
        (8, 26, 30), [link for link in small.links if max(link.first, link.second) < 8], STRIDE,
        CONFIG, Sheets.whole((8, 26, 30)),
    )  # fmt: skip
    before, _ = in_blocks(early, config, causal=True)
    found, _ = in_blocks(small, config, causal=True)
    assert found[:8].tobytes() == before.tobytes()
    off = np.sqrt(((found - chained(small)) ** 2).sum(axis=1))
    assert off.max() < 1 and np.quantile(off, 0.99) < 0.2


def test_it_is_deterministic_and_a_block_sees_no_more_than_it_reads(small):
    config = dataclasses.replace(BLOCKS, tile=16, halo=6, coarsest=15)
    block = next(plan_levels(small.shape, config, reach=2)[-1].blocks())
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(12, 2, 26, 30))

    def moved(mesh, start):
        links = links_of_block(mesh.links, block)
        sheets = sheets_of_block(mesh.sheets, block)
        return relax_block(
            block, links, start[block.slices], STRIDE, CONFIG, pixel_nm=4.0, sheets=sheets
        )

    one = moved(small, vectors)
    outside = np.ones(vectors.shape, bool)
    outside[block.slices] = False
    changed = np.where(outside, 99.0, vectors)
    links = [
        dataclasses.replace(k, vectors=np.where(outside[k.first], 99, k.vectors))
        for k in small.links
    ]
    other = moved(dataclasses.replace(small, links=links), changed)
    assert one.tobytes() == other.tobytes()
    (z, y, x), read = block.free, block.read
    free = np.zeros(one.shape, bool)
    free[z[0] : z[1], :, y[0] : y[1], x[0] : x[1]] = True
    assert read[0][0] == read[1][0] == 0
    np.testing.assert_array_equal(one[~free], vectors[block.slices][~free])


@pytest.mark.parametrize('sweep', [0, 1])
@pytest.mark.parametrize('causal', [False, True])
def test_own_ranges_part_the_mesh(sweep, causal):
    shape = (21, 40, 37)
    config = BlocksConfig(sections=8, overlap=2, tile=16, halo=4, coarsest=10)
    for grid in plan_levels(shape, config, reach=2, causal=causal):
        count = np.zeros(grid.shape, int)
        for block in grid.blocks(sweep):
            count[tuple(slice(*r) for r in block.own)] += 1
            for own, free, read in zip(block.own, block.free, block.read):
                assert read[0] <= free[0] <= own[0] < own[1] <= free[1] <= read[1]
            if causal:
                assert block.own[0] == block.free[0] and block.read[0][1] == block.own[0][1]
        assert (count == 1).all()


def test_a_plan_does_not_depend_on_what_comes_later():
    config = BlocksConfig(sections=8, overlap=2, tile=16, halo=4, coarsest=16)
    one, other = (list(plan_levels((n, 30, 30), config, reach=2)[-1].blocks()) for n in (40, 56))
    assert one[: -4 * 2] == other[: len(one) - 4 * 2]


def test_levels_keep_linear_flow_and_vectors():
    y, x = np.mgrid[:9, :14].astype(np.float64)
    vectors = np.stack([0.3 * y - x, 0.2 * x])[None]
    coarse = vectors[:, :, :8, :12].reshape(1, 2, 2, 4, 3, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(
        refine_vectors(coarse, 4, (8, 12)), vectors[:, :, :8, :12], atol=1e-9
    )
    np.testing.assert_allclose(
        refine_vectors(coarse[..., 1:], 4, (3, 5), (2, 6), (0, 1)),
        vectors[:, :, 2:5, 6:11], atol=1e-9,
    )  # fmt: skip
    spoilt = vectors[0, :, :8, :12].astype(np.float32)
    spoilt[:, 2, 5] = 500
    spoilt[:, :4, 8:] = np.nan
    mesh = MeshLevel(
        (2, 8, 12), [Link(0, 1, spoilt, np.ones((8, 12), np.float32))], STRIDE, CONFIG,
        Sheets.whole((2, 8, 12)),
    )  # fmt: skip
    mesh.sheets.along_x[1, :, 6] = 0
    coarse = coarsen_mesh(mesh, 4)
    assert coarse.shape == (2, 2, 3) and coarse.stride == 4 * STRIDE
    assert np.isnan(coarse.links[0].vectors[:, 0, 2]).all()
    np.testing.assert_allclose(coarse.links[0].vectors[1, 0, 0], 0.3, atol=1e-6)
    np.testing.assert_allclose(coarse.links[0].vectors[1, 0, 1], 0.2 * 5.5, atol=0.1)
    np.testing.assert_array_equal(coarse.sheets.along_x[1], [[1, 0], [1, 0]])


def test_what_makes_no_sense_is_refused(small):
    for fields, told in (
        ({'sections': 4, 'overlap': 3}, 'mesh_blocks.overlap is 3'),
        ({'tile': 17, 'halo': 2, 'coarsest': 8}, 'must be even'),
        ({'tile': 32, 'coarsest': 64}, 'holds a whole section'),
        ({'sweeps': 0}, 'mesh_blocks.sweeps is 0'),
    ):
        with pytest.raises(ValueError, match=told):
            BlocksConfig(**fields)
    config = BlocksConfig(tile=8, halo=2, sections=16, coarsest=8)
    block = next(plan_levels(small.shape, config, reach=2)[-1].blocks())
    start = np.full((12, 2, 26, 30), 80.0)[block.slices]
    with pytest.raises(ValueError, match='must be shorter'):
        relax_block(block, [], start, STRIDE, CONFIG, pixel_nm=4.0)
    with pytest.raises(ValueError, match='the block reads'):
        relax_block(block, [], start[1:], STRIDE, CONFIG, pixel_nm=4.0)
