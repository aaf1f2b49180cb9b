"""The mesh: balance of flow, stiffness and anchors; outliers, tears, frozen sections."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from h01_beam.alignment.elastic.mesh import Link, MeshConfig, Sheets, relax
from h01_beam.registration.maps import CoordinateMap, invert

CONFIG = MeshConfig()
SHAPE = (5, 14, 17)
STRIDE = 32.0


def smooth_vectors(seed: int, size: float = 6.0, shape=SHAPE) -> np.ndarray:
    """(sections, 2, h, w) random sheets."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(shape[0], 2, *shape[1:]))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode='nearest')
    return size * smooth / smooth.std()


def flow_between(a: np.ndarray, b: np.ndarray, stride: float = STRIDE) -> np.ndarray:
    """The flow that makes vectors `a` and `b` of two sections agree: f(p + a(p)) = b(p) - a(p)."""
    looks_at = CoordinateMap(a.astype(np.float32), (0.0, 0.0), stride)
    back = invert(looks_at, (0.0, 0.0), stride, a.shape[1:], tolerance=0.001)
    at = back.places()
    flow = CoordinateMap((b - a).astype(np.float32), (0.0, 0.0), stride)(at) - at
    return flow.astype(np.float32)


def links_of(vectors: np.ndarray, reach: int = 2) -> list[Link]:
    weight = np.ones(vectors.shape[2:], np.float32)
    return [
        Link(z, y, flow_between(vectors[z], vectors[y]), weight)
        for z in range(len(vectors))
        for y in range(max(0, z - reach), z)
    ]


def disagreement(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(pairs, h, w) pixels between what neighbours show at the same place, in the true frame."""
    shown = []
    for mine, right in zip(found, truth, strict=True):
        aligned = CoordinateMap(mine.astype(np.float32), (0.0, 0.0), STRIDE)
        true = CoordinateMap(right.astype(np.float32), (0.0, 0.0), STRIDE)
        shown.append(invert(true, (0.0, 0.0), STRIDE, SHAPE[1:], 0.001)(aligned.places()))
    return np.sqrt((np.diff(np.stack(shown), axis=0) ** 2).sum(axis=1))


def solve(links, config=CONFIG, shape=SHAPE, **rest):
    return relax(shape, links, STRIDE, config, pixel_nm=4.0, **rest)


def test_sections_meet_half_way():
    flow = np.zeros((2, *SHAPE[1:]), np.float32)
    flow[0], flow[1] = 3.0, -2.0
    link = Link(0, 1, flow, np.ones(SHAPE[1:], np.float32))
    vectors, misfit = solve([link], shape=(2, *SHAPE[1:]))
    np.testing.assert_allclose(vectors[1, 0], 1.5, atol=0.02)
    np.testing.assert_allclose(vectors[0], -vectors[1], atol=1e-6)
    np.testing.assert_allclose(vectors[1, 1], -1.0, atol=0.02)
    assert np.nanmax(misfit) < 0.05


def test_neighbours_come_to_agree():
    truth = smooth_vectors(1)
    vectors, misfit = solve(links_of(truth))
    wrong = disagreement(vectors, truth)
    assert np.nanmean(disagreement(0 * truth, truth)) > 5
    assert np.isfinite(wrong).mean() > 0.6
    assert np.sqrt(np.nanmean(wrong**2)) < 0.5
    assert np.nanmedian(misfit) < 0.5


def test_it_is_the_minimum_of_the_stated_energy():
    rng = np.random.default_rng(2)
    shape = (3, 4, 5)
    flow = rng.normal(size=(2, 4, 5)).astype(np.float32)
    weight = rng.uniform(0.2, 1, (4, 5)).astype(np.float32)
    links = [Link(0, 1, flow, weight), Link(2, 0, -flow, weight[::-1].copy())]
    sheets = Sheets.whole(shape)
    sheets.along_x[1, :, 2] = 0
    config = dataclasses.replace(CONFIG, rounds=1, tolerance=1e-12)
    vectors, _ = solve(links, config, shape, sheets=sheets)
    # The same least squares, one row for each term, by brute force.
    place = np.arange(60).reshape(shape)
    rows, values = [], []

    def term(weight, plus, minus, value=(0, 0)):
        row = np.zeros(60)
        np.add.at(row, plus, np.sqrt(weight))
        np.add.at(row, minus, -np.sqrt(weight))
        rows.append(row)
        values.append(np.sqrt(weight) * np.asarray(value))

    for link in links:
        for i, j in np.ndindex(4, 5):
            term(
                link.weight[i, j], [place[link.second, i, j]], [place[link.first, i, j]],
                link.vectors[:, i, j],
            )  # fmt: skip
    for z, i, j in np.ndindex(shape):
        node = place[z, i, j]
        term(config.anchor, [node], [])
        whole = z != 1 or j != 2  # the edge to the next in x
        if i < 3:
            term(config.stiffness, [node + 5], [node])
        if j < 4 and whole:
            term(config.stiffness, [node + 1], [node])
        if i < 2:
            term(config.bending, [node, node + 10], [node + 5, node + 5])
        if j < 3 and whole and (z, j) != (1, 1):
            term(config.bending, [node, node + 2], [node + 1, node + 1])
        if i < 3 and j < 4 and whole:
            term(2 * config.bending, [node, node + 6], [node + 1, node + 5])
    expected = np.linalg.lstsq(np.stack(rows), np.stack(values), rcond=None)[0]
    np.testing.assert_allclose(np.moveaxis(vectors, 1, -1).reshape(60, 2), expected, atol=1e-6)


def test_wrong_flow_loses_its_pull():
    truth = smooth_vectors(3)
    links = links_of(truth, reach=3)
    clean, _ = solve(links)
    vectors = links[4].vectors.copy()
    vectors[:, 4:9, 5:11] += 25.0
    spoilt = [*links[:4], dataclasses.replace(links[4], vectors=vectors), *links[5:]]
    found, misfit = solve(spoilt)
    assert np.abs(found - clean).max() < 1.5
    assert np.nanmin(misfit[4, 5:8, 6:10]) > 20


def test_unknown_flow_is_bridged_by_stiffness_and_other_sections():
    truth = smooth_vectors(4)
    links = links_of(truth)
    holed = []
    for link in links:
        vectors = link.vectors.copy()
        if 2 in (link.first, link.second):
            vectors[:, 5:9, 6:10] = np.nan
        holed.append(dataclasses.replace(link, vectors=vectors))
    found, misfit = solve(holed)
    assert np.sqrt(np.nanmean(disagreement(found, truth) ** 2)) < 1.0
    assert np.isnan(misfit[0]).sum() < np.isnan(misfit[1]).sum()


def test_the_two_sides_of_a_tear_move_apart():
    shape = (2, 12, 16)
    flow = np.zeros((2, 12, 16), np.float32)
    flow[1, :, 8:] = 12.0
    link = Link(0, 1, flow, np.ones((12, 16), np.float32))
    config = dataclasses.replace(CONFIG, stiffness=3.0, outlier_nm=1e6)
    torn = Sheets.whole(shape)
    torn.along_x[1, :, 7] = 0
    frozen = np.array([True, False])
    rest = {'start': np.zeros((2, 2, 12, 16)), 'frozen': frozen}
    whole, _ = solve([link], config, shape, **rest)
    found, _ = solve([link], config, shape, sheets=torn, **rest)
    np.testing.assert_allclose(found[1, 1, :, 7], 0, atol=0.3)
    np.testing.assert_allclose(found[1, 1, :, 8], 12, atol=0.3)
    assert whole[1, 1, :, 7].min() > 2


def test_frozen_sections_stay():
    truth = smooth_vectors(5)
    links = links_of(truth)
    start = smooth_vectors(6)
    frozen = np.array([True, True, False, False, False])
    found, _ = solve(links, start=start, frozen=frozen)
    np.testing.assert_array_equal(found[:2], start[:2])
    assert np.abs(found[2:] - start[2:]).max() > 1


def test_order_and_direction_of_links_hardly_matter():
    truth = smooth_vectors(7)
    links = links_of(truth)
    one, _ = solve(links)
    other, _ = solve(links[::-1])
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_without_links_nothing_moves():
    vectors, misfit = solve([])
    assert not vectors.any() and misfit.shape == (0, *SHAPE[1:])


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'second': 9}, 'the stack has 5'),
        ({'vectors': np.zeros((2, 3, 3), np.float32)}, '14 x 17 nodes'),
    ],
)
def test_links_that_do_not_fit_are_refused(change, told):
    link = links_of(smooth_vectors(8))[0]
    with pytest.raises(ValueError, match=told):
        solve([dataclasses.replace(link, **change)])


@pytest.mark.parametrize(
    'fields', [{'start': np.zeros((1, 2, 3, 3))}, {'frozen': np.zeros(3, bool)}]
)
def test_arrays_that_do_not_fit_are_refused(fields):
    with pytest.raises(ValueError, match='must be'):
        solve([], **fields)


@pytest.mark.parametrize(
    'name', ['bending', 'stiffness', 'anchor', 'outlier_nm', 'rounds', 'max_steps']
)
def test_a_config_that_makes_no_sense_is_refused(name):
    with pytest.raises(ValueError, match=f'mesh.{name} is 0'):
        MeshConfig(**{name: 0})
