"""The microscope: geometry, layout, damage and single tiles."""

import dataclasses

import numpy as np
import pytest

from h01_beam.testing.microscope import DamageConfig, Microscope, MicroscopeConfig, image_tile
from h01_beam.testing.microscope.damage import section_damage, tile_damage
from h01_beam.testing.microscope.geometry import Extent, Geometry
from h01_beam.testing.microscope.image import RESIN, SUBSTRATE, sample_tissue
from h01_beam.testing.microscope.layout import Layout, hexagon, spiral
from h01_beam.testing.microscope.source import ArraySource, PhantomSource
from h01_beam.testing.noise import smooth_noise
from h01_beam.testing.phantom import PhantomConfig

# Not square, with a start, and neither pixel nor thickness as the voxels.
EXTENT = Extent((330.0, 500.0, -700.0), (330.0, 4000.0, 6000.0))
SMALL = {
    'pixel_nm': 4.0,
    'tile_shape': (96, 120),
    'beams': 7,
    'elastic_nm': 30.0,
    'elastic_cell_nm': 3000.0,
    'shift_nm': 200.0,
    'rotation_degrees': 20.0,
    'thickness_nm': 33.0,
}
IDEAL = {
    'stage_jitter_nm': 0.0,
    'beam_jitter_nm': 0.0,
    'gain_deviation': 0.0,
    'offset_deviation': 0.0,
    'vignette': 0.0,
    'psf_px': 0.0,
    'noise': 0.0,
    'line_noise': 0.0,
}


def config(**values):
    return MicroscopeConfig(**{**SMALL, **values})


def damaged(**values):
    return config(damage=DamageConfig(tear_nm=400, fold_nm=300, **values))


def stage_points(count=2000, reach=1500.0):
    return np.random.default_rng(1).uniform(-reach, reach, (2, count))


def texture_source(shape=(10, 260, 300)):
    """Smooth, unlike anywhere, wider than what the tiles of SMALL's first fields see."""
    axes = tuple(np.arange(n, dtype=float) for n in shape)
    noise = smooth_noise(axes, (1.0, 6.0, 6.0), 3, 1) + smooth_noise(axes, (1.0, 21.0, 21.0), 3, 2)
    return ArraySource((128 + 60 * noise).astype(np.uint8), (33.0, 8.0, 8.0), (2, 4, -3))


def coded_source(along):
    """Grey values that rise along y or x, on which interpolation is exact."""
    voxel = np.arange(400) * 100 + 1000
    plane = np.broadcast_to(voxel[:, None] if along == 'y' else voxel, (400, 400))
    array = np.stack([plane, plane + 7000]).astype(np.uint16)
    return ArraySource(array, (33.0, 6.0, 6.0), (0, 10, 20))


@pytest.mark.parametrize('harm', [{}, {'torn_sections': (3,)}, {'folded_sections': (3,)}])
def test_the_maps_of_a_section_invert_each_other(harm):
    geometry = Geometry(damaged(**harm), EXTENT)
    forward, inverse = geometry.truth_map(3), geometry.inverse_map(3)
    stage = stage_points() / geometry.config.pixel_nm
    tissue = forward(stage)
    lost = np.isnan(tissue).any(axis=0)
    assert lost.any() == bool(harm) and lost.mean() < 0.4
    assert np.abs(inverse(tissue) - stage)[:, ~lost].max() < 1e-6
    # The other way too, but for what a fold hides.
    volume = geometry.extent.middle_nm[1] / 4 + stage_points() / 8
    back = forward(inverse(volume))
    hidden = np.isnan(back).any(axis=0)
    assert hidden.any() == ('folded_sections' in harm)
    assert np.abs(back - volume)[:, ~hidden].max() < 1e-6


def test_truth_as_a_coordinate_map_is_the_same():
    geometry = Geometry(config(), EXTENT)
    exact = geometry.truth_map(2)
    sampled = exact.sampled((-300.0, -300.0), 10.0, (61, 61))
    points = stage_points(reach=290.0)
    assert np.abs(sampled(points) - exact(points)).max() < 0.05


def test_a_tear_opens_a_gap_and_a_fold_hides_tissue():
    whole = Geometry(config(), EXTENT)
    torn = Geometry(damaged(torn_sections=(3,)), EXTENT)
    folded = Geometry(damaged(folded_sections=(3,)), EXTENT)
    assert torn.section(2).cuts == folded.section(2).cuts == whole.section(3).cuts == ()
    (cut,) = torn.section(3).cuts
    line = np.multiply(cut.normal, cut.offset_nm) + whole.section(3).shift_nm
    ends = line + np.multiply.outer([-2000.0, 2000.0], cut.normal)
    as_it_was = np.hypot(*np.diff(whole.tissue_at(3, *ends.T)).ravel())
    apart = np.hypot(*np.diff(torn.tissue_at(3, *ends.T)).ravel())
    assert apart == pytest.approx(as_it_was - 400, abs=40)
    assert np.isnan(torn.tissue_at(3, *line)).all()
    (cut,) = folded.section(3).cuts
    ends = np.multiply(cut.normal, cut.offset_nm) + np.multiply.outer([-2e3, 2e3], cut.normal)
    ends = ends + whole.section(3).shift_nm
    nearer = np.hypot(*np.diff(folded.tissue_at(3, *ends.T)).ravel())
    assert nearer == pytest.approx(
        np.hypot(*np.diff(whole.tissue_at(3, *ends.T)).ravel()) + 300, abs=40
    )


def test_sections_fill_the_volume_and_double_cuts_are_twice_as_thick():
    geometry = Geometry(damaged(double_cuts=(4,), missing_sections=(7,)), EXTENT)
    assert geometry.sections == 10
    cut = [s for s in range(10) if geometry.is_cut(s)]
    assert cut == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [geometry.cutting_order(s) for s in cut] == list(range(9))
    depths = [geometry.depth_nm(s) for s in cut]
    assert depths[0][0] == 330 and depths[-1][1] == 660
    assert all(a[1] == b[0] for a, b in zip(depths, depths[1:]))
    assert 60 < geometry.thickness_nm(4) < 72
    thin = [geometry.thickness_nm(s) for s in cut if s != 4]
    assert min(thin) > 25 and max(thin) < 41 and len(set(thin)) == len(thin)


@pytest.mark.parametrize('rings', [0, 1, 2, 4])
def test_hexagons_of_beams_tile_the_plane(rings):
    places = spiral(hexagon(rings))
    assert len({tuple(p) for p in places.tolist()}) == hexagon(rings)
    layout = Layout(config(beams=hexagon(rings), beam_overlap=0, field_overlap=0, fields=7), EXTENT)
    middles = (layout.fields_nm[:, None] + layout.beams_nm).reshape(-1, 2) / (96 * 4, 60 * 4)
    at = {(round(y), round(x)) for y, x in middles}
    assert len(at) == 7 * hexagon(rings)
    # A full neighbourhood of the middle field: no hole.
    inner = (layout.beams_nm / (96 * 4, 60 * 4)).round().astype(int)
    for dy, dx in ((0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert all((y + dy, x + dx) in at for y, x in inner.tolist())


def test_fields_cover_the_section():
    geometry = Geometry(config(), EXTENT)
    layout = Layout(geometry.config, EXTENT)
    tiles = np.concatenate([layout.reported_nm(f) for f in range(len(layout.fields_nm))])
    height, width = np.multiply(geometry.config.tile_shape, 4.0)
    for section in range(3):
        # All of the tissue but what jitter may lose.
        y, x = np.meshgrid(np.linspace(510, 4490, 40), np.linspace(-690, 5290, 40))
        y, x = (v.reshape(-1, 1) for v in geometry.stage_at(section, y, x))
        seen = (y > tiles[:, 0]) & (y < tiles[:, 0] + height)
        seen &= (x > tiles[:, 1]) & (x < tiles[:, 1] + width)
        assert seen.any(axis=1).all()


@pytest.mark.parametrize('along', ['y', 'x'])
def test_pixels_show_what_the_truth_says(along):
    source = coded_source(along)
    microscope = Microscope(config(dtype='uint16', beams=1, fields=2, **IDEAL), source)
    tile = image_tile(microscope, 1, 1, 0)
    first = microscope.layout.true_nm(1, 1)[0]
    y = first[0] + 4.0 * np.arange(96)[:, None]
    x = first[1] + 4.0 * np.arange(120)
    place = microscope.geometry.tissue_at(1, y, x)[along == 'x']
    start = 10 if along == 'y' else 20
    expected = (place / 6.0 - 0.5 - start) * 100 + 8000
    assert np.abs(tile - expected).max() <= 1
    assert np.ptp(expected) > 3000


def test_overlapping_tiles_show_the_same_tissue_at_the_same_place():
    optics = {**IDEAL, 'psf_px': 0.8}
    look = config(tile_shape=(100, 120), fields=1, beam_overlap=0.3, **optics)
    microscope = Microscope(look, texture_source())
    places = np.rint(microscope.layout.true_nm(2, 0) / 4.0).astype(int)
    middle = image_tile(microscope, 2, 0, 0).astype(float)
    for beam, (dy, dx) in enumerate(
        [(70, -42), (70, 42), (0, 84), (-70, 42), (-70, -42), (0, -84)]
    ):
        assert (places[beam + 1] - places[0]).tolist() == [dy, dx]
        here = middle[max(dy, 0) : 100 + min(dy, 0), max(dx, 0) : 120 + min(dx, 0)]
        other = image_tile(microscope, 2, 0, beam + 1).astype(float)
        there = other[max(-dy, 0) : 100 + min(-dy, 0), max(-dx, 0) : 120 + min(-dx, 0)]
        assert np.abs(here - there).max() <= 1 and here.std() > 5
        assert np.corrcoef(here.ravel(), there.ravel())[0, 1] > 0.99
    # With the error of the stage in it, only the true places say so.
    moved = dataclasses.replace(microscope.config, stage_jitter_nm=80.0, beam_jitter_nm=40.0)
    moved = Microscope(moved, microscope.source)
    reported, true = moved.layout.reported_nm(0), moved.layout.true_nm(2, 0)
    assert np.abs(reported - true).max() > 20
    same = sample_tissue(moved, 2, tuple(true[1]))
    assert np.abs(image_tile(moved, 2, 0, 1) - same).mean() < 3


def test_a_double_cut_shows_both_planes_and_the_outside_is_resin():
    source = coded_source('y')
    once, twice = (
        Microscope(
            config(
                dtype='uint16', beams=1, fields=1, damage=DamageConfig(double_cuts=cuts), **IDEAL
            ),
            source,
        )
        for cuts in ((), (0,))
    )
    difference = image_tile(twice, 0, 0, 0) - image_tile(once, 0, 0, 0).astype(float)
    assert np.abs(difference - 3500).max() <= 1
    far = sample_tissue(once, 0, (1e5, 1e5))
    assert (far == RESIN).all()


def test_a_tear_shows_what_lies_below():
    harm = DamageConfig(torn_sections=(2,), tear_nm=400)
    microscope = Microscope(config(damage=harm, **IDEAL), texture_source())
    cut = microscope.geometry.section(2).cuts[0]
    line = np.multiply(cut.normal, cut.offset_nm) + microscope.geometry.section(2).shift_nm
    grey = sample_tissue(microscope, 2, tuple(line - (96 * 2, 120 * 2)))
    assert grey[48, 60] == SUBSTRATE and 0.1 < (grey == SUBSTRATE).mean() < 1


def test_a_tile_has_the_same_bytes_made_alone():
    values = {'dirty_tiles': 0.5, 'blurred_tiles': 0.5, 'charged_tiles': 0.5}
    look = config(damage=DamageConfig(**values), fields=3)
    phantom = PhantomConfig(voxel_size_nm=(33, 8, 8), shape=(2, 150, 200), seed=2)
    several = Microscope(look, PhantomSource(phantom))
    tiles = {beam: image_tile(several, 1, 0, beam) for beam in (0, 3)}
    assert all(tile.shape == (96, 120) and tile.std() > 5 for tile in tiles.values())
    alone = image_tile(Microscope(look, PhantomSource(phantom)), 1, 0, 3)
    np.testing.assert_array_equal(alone, tiles[3])
    other = dataclasses.replace(look, seed=5)
    assert (image_tile(Microscope(other, PhantomSource(phantom)), 1, 0, 3) != alone).mean() > 0.5


def test_patches_do_not_show(monkeypatch):
    microscope = Microscope(config(**IDEAL), texture_source())
    whole = sample_tissue(microscope, 1, (-200.0, -240.0))
    monkeypatch.setattr('h01_beam.testing.microscope.image.PATCH', 32)
    np.testing.assert_allclose(sample_tissue(microscope, 1, (-200.0, -240.0)), whole, atol=1e-4)


def test_noise_falls_with_dwell_time():
    source = ArraySource(np.full((2, 100, 100), 128, np.uint8), (33.0, 8.0, 8.0))
    quiet = {k: v for k, v in IDEAL.items() if k != 'noise'}
    deviations = [
        image_tile(
            Microscope(config(beams=1, fields=1, dwell_ns=dwell, **quiet), source), 0, 0, 0
        ).std()
        for dwell in (200.0, 800.0)
    ]
    assert deviations[0] == pytest.approx(12, rel=0.05)
    assert deviations[1] == pytest.approx(6, rel=0.05)


def test_as_many_tiles_are_damaged_as_configured():
    shares = {'missing_tiles': 0.1, 'corrupt_tiles': 0.2, 'dirty_tiles': 0.3, 'blurred_tiles': 0.05}
    look = config(damage=DamageConfig(**shares, charged_tiles=1.0, folded_sections=(1,)))
    kinds = [tile_damage(look, 20, 1, f, b) for f in range(20) for b in range(7)]
    count = {k: sum(k in tile for tile in kinds) for k in {k for tile in kinds for k in tile}}
    assert count['missing_tile'] == 14 and count['dirt'] == 42 and count['blur'] == 7
    assert count['truncated_file'] + count['scrambled_file'] == 28
    assert min(count['truncated_file'], count['scrambled_file']) > 3
    assert count['charging'] == 140 - 14
    assert all(tile == ['missing_tile'] for tile in kinds if 'missing_tile' in tile)
    assert kinds != [tile_damage(look, 20, 2, f, b) for f in range(20) for b in range(7)]
    assert section_damage(look, 1) == ['fold'] and section_damage(look, 2) == []


@pytest.mark.parametrize(
    ('values', 'field'),
    [
        ({'seed': -1}, 'microscope.seed is -1'),
        ({'pixel_nm': 0.0}, 'microscope.pixel_nm is 0.0'),
        ({'tile_shape': (3, 100)}, 'microscope.tile_shape'),
        ({'beams': 0}, 'microscope.beams is 0'),
        ({'fields': 0}, 'microscope.fields is 0'),
        ({'field_overlap': 0.7}, 'microscope.field_overlap is 0.7'),
        ({'elastic_nm': 100.0}, 'microscope.elastic_nm is 100.0: must be at most 45'),
        ({'dwell_ns': float('nan')}, 'microscope.dwell_ns is nan'),
        ({'format': 'jpg', 'dtype': 'uint16'}, "microscope.format is 'jpg'"),
        ({'format': 'gif'}, "microscope.format is 'gif'"),
    ],
)  # fmt: skip
def test_bad_configs_name_the_field(values, field):
    with pytest.raises(ValueError, match=field.replace('(', r'\(')):
        config(**values)


@pytest.mark.parametrize(
    ('values', 'field'),
    [
        ({'missing_tiles': 1.5}, 'microscope.damage.missing_tiles is 1.5'),
        ({'missing_tiles': 0.6, 'corrupt_tiles': 0.6}, 'microscope.damage.corrupt_tiles is 0.6'),
        ({'torn_sections': (-1,)}, 'microscope.damage.torn_sections'),
        ({'double_cuts': (3,), 'folded_sections': (4,)}, 'microscope.damage.folded_sections'),
        ({'double_cuts': (3,), 'missing_sections': (3,)}, 'microscope.damage.double_cuts'),
        ({'tear_nm': 0.0}, 'microscope.damage.tear_nm is 0.0'),
    ],
)
def test_bad_damage_names_the_field(values, field):
    with pytest.raises(ValueError, match=field):
        DamageConfig(**values)


def test_damage_of_sections_that_are_not_there_is_refused():
    with pytest.raises(ValueError, match='needs section 10'):
        Geometry(damaged(double_cuts=(9,)), EXTENT)
    with pytest.raises(ValueError, match='thickness_nm'):
        Geometry(config(), Extent((0, 0, 0), (20.0, 100.0, 100.0)))
