"""Lighting as stages: which tiles and sections tell it, and what it does to a montage."""

import dataclasses

import numpy as np
import pytest

from h01_beam import storage
from h01_beam.geometry import Block, BoundingBox
from h01_beam.imaging.illumination import FlatFieldConfig
from h01_beam.stitching.lighting import Lights, SolveLighting, SumLighting, flat_fields
from h01_beam.tables import length
from tests.acquisition.images import columns, encode, tissue
from tests.stitching.stack import CONFIG, SHAPE, acquire, montage, stitch, table

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


def sum_all(sections, config=FLAT, beams=BEAMS):
    """Rows of `LIGHT_SUMS` of all beams in all sections."""
    lights = Lights(beams, 9)
    parts = [
        SumLighting(config, None, lights, SHAPE)(t, block(z, b)).rows.get('light_sums')
        for z, t in enumerate(sections)
        for b in range(len(beams))
    ]
    parts = [p for p in parts if p]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def solve(sections, config=FLAT, beams=BEAMS):
    """Flat fields by beam, and metrics."""
    result = SolveLighting(config)(sections[0], sum_all(sections, config, beams))
    return flat_fields(result.rows.get('lighting'), SHAPE, config), result.metrics


def error_of(field, beam):
    return field.pixels() / vignette(beam) - 1


def test_each_beam_gets_the_lighting_of_its_own_tiles(sections):
    found, metrics = solve(sections)
    assert set(found) == set(BEAMS) and metrics['fields'] == 2
    for beam, other in (BEAMS, BEAMS[::-1]):
        error = error_of(found[beam], beam)
        assert np.abs(error).max() < 0.05
        assert error.std() < min(0.01, error_of(found[beam], other).std() / 5)


def test_tiles_that_are_not_good_do_not_tell(sections, tmp_path):
    # What is not good is not even read: its files are not there.
    tiles = section_of_beams(tmp_path, 0, states={0: 'missing', 2: 'suspect', 4: 'bad'})
    for row in (0, 2, 4):
        storage.delete(tiles['path'][row])
    assert sum_one(tiles, 0, 0).metrics['tiles'] == 5
    assert not sum_one({**tiles, 'state': np.full(16, 'bad', object)}, 0, 0).rows


def test_tiles_that_are_read_are_spread_over_the_section(sections):
    few = dataclasses.replace(FLAT, max_tiles=3, min_tiles=3)
    of_beam = np.flatnonzero(sections[0]['beam'] == BEAMS[1])
    # Sections around it read others, as they show the same tissue in the same places.
    for section, places in ((0, [0, 2, 5]), (1, [0, 3, 6]), (2, [1, 4, 7])):
        tiles = {**sections[0], 'section': np.full(16, section)}
        result = sum_one(tiles, section, 1, few)
        assert result.metrics['tiles'] == 3
        picked = {name: column[of_beam[places]] for name, column in tiles.items()}
        np.testing.assert_array_equal(
            sum_one(picked, section, 1).rows['light_sums']['total'],
            result.rows['light_sums']['total'],
        )


def test_sections_around_do_not_make_up_for_places(sections):
    """They show the same tissue: their mean would be a picture of it."""
    assert set(solve(sections, dataclasses.replace(FLAT, min_tiles=8))[0]) == set(BEAMS)
    found, metrics = solve(sections, dataclasses.replace(FLAT, min_tiles=17))
    assert found == {} and metrics['neutral'] == 2
    assert flat_fields(None, SHAPE, FLAT) == {} == flat_fields({}, SHAPE, None)


def test_beams_with_too_few_tiles_get_what_all_have_in_common(sections):
    found, metrics = solve(sections, dataclasses.replace(FLAT, min_tiles=12))
    assert metrics['common_fields'] == 2
    np.testing.assert_array_equal(found[BEAMS[0]].gain, found[BEAMS[1]].gain)
    for beam in BEAMS:
        assert error_of(found[beam], beam).std() < np.std(vignette(beam)) / 2


def test_one_tissue_seen_from_section_to_section_does_no_harm(tmp_path):
    """Few places, each of which looks alike in all sections, under an even light."""
    image = tissue(5, (400, 480))
    sections = []
    for z in range(5):
        places = [(z, r, c) for r in range(3) for c in range(3)]
        tiles = columns(*zip(*places), folder=str(tmp_path), shape=SHAPE)
        for path, row, column in zip(tiles['path'], tiles['field'], tiles['beam']):
            part = image[row * 110 : row * 110 + SHAPE[0], column * 130 : column * 130 + SHAPE[1]]
            storage.write_bytes(path, encode(part, '.png'))
        even = {'beam': np.zeros(9, int), 'state': np.full(9, 'good', object)}
        sections.append({**tiles, **even})
    config = FlatFieldConfig(sections=4)
    assert solve(sections, config, (0,))[0] == {}
    # With too little asked of it, it would be a picture of the tissue.
    bold = dataclasses.replace(config, min_tiles=9)
    assert np.std(solve(sections, bold, (0,))[0][0].gain) > 0.02


def test_a_new_beam_leaves_the_others_as_they_are(sections):
    found, _ = solve(sections)
    more, metrics = solve(sections, beams=(*BEAMS, 7))
    assert set(more) == set(BEAMS) and metrics['fields'] == 2
    for beam in BEAMS:
        np.testing.assert_array_equal(more[beam].gain, found[beam].gain)


def test_sections_of_other_tiles_tell_nothing(sections):
    sums = sum_all(sections)
    other = sums['section'] == 1
    # As many cells, of tiles that are larger by less than one.
    sums['height'] = np.where(other, SHAPE[0] - 1, SHAPE[0])
    sums['total'] = np.where(other, 0, sums['total'])
    found = SolveLighting(FLAT)(sections[0], sums).rows['lighting']
    expected = SolveLighting(FLAT)(sections[0], sum_all(sections[::2])).rows['lighting']
    np.testing.assert_array_equal(found['gain'], expected['gain'])


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
