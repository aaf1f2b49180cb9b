"""Lighting as stages: which tiles and sections tell it, and what it does to a montage."""

import dataclasses

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.geometry import Block, BoundingBox
from h01_beam.imaging.illumination import FlatFieldConfig
from h01_beam.stitching.lighting import (
    Lights,
    SectionsAround,
    SolveLighting,
    SumLighting,
    flat_fields,
)
from h01_beam.tables import length
from tests.acquisition.images import columns, encode, tissue
from tests.stitching.test_stage import CONFIG, SHAPE, acquire, montage, stitch, table

FLAT = FlatFieldConfig(cell=10, min_tiles=6, sections=1)
BEAMS = (2, 5)


def vignette(beam):
    """Each beam is brightest elsewhere."""
    y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    field = 1 - 0.2 * ((y[:, None] - 0.05 * beam) ** 2 + x[None, :] ** 2)
    return field / field.mean()


def texture(seed, shape):
    """Even but for a fine grain: what varies at the scale of tiles is then lighting alone."""
    return np.clip(np.random.default_rng(seed).normal(150, 30, shape), 40, 200)


def section_of_beams(folder, section, fields=8, states=()):
    """Checked tiles of two beams, with the lighting of each; `states` by row."""
    places = [(section, f, b) for f in range(fields) for b in range(len(BEAMS))]
    tiles = columns(*zip(*places), folder=str(folder), shape=SHAPE)
    for row, path in enumerate(tiles['path']):
        lit = texture(100 * section + row, SHAPE) * vignette(BEAMS[row % 2])
        storage.write_bytes(path, encode(np.rint(lit).astype(np.uint8), '.png'))
    tiles['beam'] = np.array(BEAMS)[tiles['beam']]
    tiles['state'] = np.full(length(tiles), 'good', object)
    for row, state in dict(states).items():
        tiles['state'][row] = state
    return tiles


def block(position, beam):
    return Block((position, beam, 0), BoundingBox((position, beam, 0), (1, 1, 1)),
                 BoundingBox((position, beam, 0), (1, 1, 1)))  # fmt: skip


def sum_one(tiles, position, beam, config=FLAT):
    function = SumLighting(config, None, Lights(BEAMS, 9), SHAPE)
    return function(tiles, block(position, beam))


@pytest.fixture(scope='module')
def sections(tmp_path_factory):
    folder = tmp_path_factory.mktemp('beams')
    return [section_of_beams(folder, z) for z in range(3)]


def solve(sections, position, beam, config=FLAT):
    parts = [sum_one(t, int(t['section'][0]), beam, config).rows['light_sums'] for t in sections]
    sums = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    result = SolveLighting(config, Lights(BEAMS, 9))(sections[0], sums, block(position, beam))
    return result.rows.get('lighting')


def test_each_beam_gets_the_lighting_of_its_own_tiles(sections):
    for number, beam in enumerate(BEAMS):
        (found,) = flat_fields(solve(sections, 1, number), SHAPE, FLAT).items()
        assert found[0] == beam
        error = found[1].pixels() / vignette(beam) - 1
        other = found[1].pixels() / vignette(BEAMS[1 - number]) - 1
        assert np.abs(error).max() < 0.05 and error.std() < min(0.01, other.std() / 5)


def test_tiles_that_are_not_good_do_not_tell(sections, tmp_path):
    # What is not good is not even read: its files are not there.
    tiles = section_of_beams(tmp_path, 0, states={0: 'missing', 2: 'suspect', 4: 'bad'})
    for row in (0, 2, 4):
        storage.delete(tiles['path'][row])
    result = sum_one(tiles, 0, 0)
    assert result.metrics['tiles'] == 5
    assert not sum_one({**tiles, 'state': np.full(16, 'bad', object)}, 0, 0).rows


def test_tiles_that_are_read_are_spread_over_the_section(sections):
    few = dataclasses.replace(FLAT, max_tiles=3)
    result = sum_one(sections[0], 0, 1, few)
    assert result.metrics['tiles'] == 3
    # The first, the last, and one between them.
    rows = np.flatnonzero(sections[0]['beam'] == BEAMS[1])[[0, 4, 7]]
    picked = {name: column[rows] for name, column in sections[0].items()}
    np.testing.assert_array_equal(
        sum_one(picked, 0, 1).rows['light_sums']['total'], result.rows['light_sums']['total']
    )


def test_too_few_tiles_leave_tiles_as_they_are(sections):
    many = dataclasses.replace(FLAT, min_tiles=9)
    assert solve(sections[:1], 0, 0, many) is None
    assert solve(sections[:2], 0, 0, many) is not None
    assert flat_fields(None, SHAPE, many) == {} == flat_fields({}, SHAPE, None)


def test_sections_of_other_tiles_tell_nothing(sections):
    parts = [sum_one(t, n, 0).rows['light_sums'] for n, t in enumerate(sections)]
    # As many cells, but lying the other way round.
    parts[1] = {**parts[1], 'columns': np.full_like(parts[1]['columns'], 10)}
    sums = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    merged = SolveLighting(FLAT, Lights(BEAMS, 9))(sections[0], sums, block(0, 0))
    expected = solve([sections[0], sections[2]], 0, 0)
    np.testing.assert_array_equal(merged.rows['lighting']['gain'], expected['gain'])


def test_windows_end_with_the_stack_and_look_back_only_in_causal_runs():
    assert SectionsAround(9, 4, 4)(block(2, 1)) == BoundingBox((0, 1, 0), (7, 1, 1))
    assert SectionsAround(9, 4, 4)(block(7, 0)) == BoundingBox((3, 0, 0), (6, 1, 1))
    assert SectionsAround(9, 8, 0)(block(7, 0)) == BoundingBox((0, 0, 0), (8, 1, 1))


def lit_stack(folder, section, field):
    """A grid of 4 x 4 tiles of one image, all lit alike; the stage tells the truth."""
    image = tissue(section, (520, 520))
    places = [(section, r, c) for r in range(4) for c in range(4)]
    tiles = columns(*zip(*places), folder=str(folder), shape=SHAPE, pitch=0.75)
    h, w = SHAPE
    for path, row, column in zip(tiles['path'], tiles['field'], tiles['beam']):
        y, x = round(row * h * 0.75) + 20, round(column * w * 0.75) + 20
        part = np.rint(np.clip(image[y : y + h, x : x + w] * field, 0, 255))
        storage.write_bytes(path, encode(part.astype(np.uint8), '.png'))
    return {**tiles, 'beam': np.zeros(16, int), 'field': np.arange(16)}


def cells(run):
    """Brightness of a montage at the scale of parts of tiles."""
    seen = montage(run)[0].astype(float)
    rows, across = np.nonzero(seen)
    inner = seen[rows.min() + 20 : rows.max() - 20, across.min() + 20 : across.max() - 20]
    h, w = (n // 15 for n in inner.shape)
    return inner[: h * 15, : w * 15].reshape(h, 15, w, 15).mean(axis=(1, 3))


def test_lighting_is_taken_out_of_the_montage(tmp_path):
    lit = dataclasses.replace(CONFIG, flat_field=dataclasses.replace(FLAT, min_tissue=0.5))
    unlit = dataclasses.replace(CONFIG, flat_field=None)
    tiles = {
        name: acquire([lit_stack(tmp_path / name, z, field) for z in range(3)])
        for name, field in (('bright', vignette(0)), ('even', np.ones(SHAPE)))
    }
    run, stages = stitch(tmp_path / 'run', tiles['bright'], lit)
    assert stages['sum_lighting']['tiles'] == 48 and stages['solve_lighting']['fields'] == 3
    assert length(table(run, 'lighting')) == 3 * 10 * 12
    plain, without = stitch(tmp_path / 'plain', tiles['bright'], unlit)
    assert 'sum_lighting' not in without
    ideal, _ = stitch(tmp_path / 'ideal', tiles['even'], unlit)
    left, whole = (np.std(cells(r) - cells(ideal)) for r in (run, plain))
    assert left < 0.2 * whole
