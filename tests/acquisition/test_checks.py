import numpy as np
import pytest

from h01_beam.acquisition import checks
from h01_beam.acquisition.checks import CheckConfig, check_tile, compare_tiles, judge_section
from h01_beam.acquisition.decode import read_tile
from tests.acquisition.images import SHAPE, tissue

CONFIG = CheckConfig()
RNG = np.random.default_rng(5)


def jittered(image, sigma):
    shifts = np.rint(np.random.default_rng(1).normal(0, sigma, len(image))).astype(int)
    return np.stack([np.roll(row, shift) for row, shift in zip(image, shifts)])


def resin(noise=6.0):
    image = 120 + np.linspace(0, 25, SHAPE[1]) + RNG.normal(0, noise, SHAPE)
    return image.astype(np.uint8)


@pytest.mark.parametrize('noise', (0.0, 3.0, 25.0))
@pytest.mark.parametrize('seed', (0, 1))
def test_good_tiles_pass_also_noisy_ones(seed, noise):
    state, reason, found = check_tile(tissue(seed, noise=noise), CONFIG)
    assert (state, reason) == ('good', '')
    assert found['line_jitter'] < 0.6


@pytest.mark.parametrize(
    ('image', 'state', 'reason'),
    [
        (tissue(blur=6), 'bad', 'out of focus'),
        (tissue(blur=6, noise=0), 'bad', 'out of focus'),
        (np.where(tissue() > 120, 255, tissue()), 'bad', 'saturated'),
        (np.where(tissue() < np.percentile(tissue(), 10), 0, tissue()), 'suspect', 'saturated'),
        (resin(), 'suspect', 'blank'),
        (np.full(SHAPE, 90, np.uint8), 'bad', 'low contrast'),
        (np.zeros(SHAPE, np.uint8), 'bad', 'saturated'),
        (jittered(tissue(), 1.2), 'suspect', 'lines jitter'),
        (jittered(tissue(), 4.0), 'bad', 'lines jitter'),
        ((tissue() // 8).astype(np.uint8), 'suspect', 'low contrast'),
    ],
)
def test_faults_are_found_and_named(image, state, reason):
    found = check_tile(image.astype(np.uint8), CONFIG)
    assert found[0] == state, found
    assert reason in found[1]


def test_real_tiles_pass(shared_data):
    paths = sorted(map(str, (shared_data / 'tiles').rglob('*_*.png')))
    assert len(paths) == 12
    for path in paths:
        assert check_tile(read_tile(path), CONFIG)[0] == 'good', path


def test_line_jitter_is_measured_in_pixels():
    # Differences of neighbours that move independently spread sqrt(2) as much.
    found = checks.measure_line_jitter(jittered(tissue(shape=(600, 640)), 1.5))
    assert found == pytest.approx(1.5 * np.sqrt(2), rel=0.2)


def test_focus_falls_with_blur_whatever_the_noise():
    sharp, soft = (
        [checks.measure(tissue(blur=b, noise=n))['focus'] for n in (0, 3, 8)] for b in (0, 2)
    )
    assert max(soft) < 0.5 * min(sharp)
    assert max(sharp) < 1.3 * min(sharp)


def test_nothing_is_measured_in_noise():
    found = checks.measure(RNG.integers(0, 256, SHAPE).astype(np.uint8))
    assert found['structure'] < 1
    assert np.isnan([found['focus'], found['line_jitter']]).all()


def test_small_images_are_measured():
    found = checks.measure(tissue()[:20, :25])
    assert np.isnan(found['line_jitter'])
    assert found['contrast'] > 0


def test_sixteen_bits_are_measured_in_their_range():
    image = tissue()
    wide = image.astype(np.uint16) * 16 + 1000
    config = CheckConfig(grey_range=(1000, 1000 + 255 * 16))
    assert check_tile(wide, config) == check_tile(image, CONFIG)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'contrast': (5.0, 20.0)}, 'contrast is .*bad one the lower'),
        ({'saturation': (0.5, 0.1)}, 'saturation is .*bad one the higher'),
        ({'line_jitter': (-1.0, 0.1)}, 'line_jitter'),
        ({'structure': -1.0}, 'structure'),
        ({'section_focus': 2.0}, 'section_focus'),
        ({'grey_range': (9.0, 9.0)}, 'grey_range'),
        ({'batch': 0}, 'batch'),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CheckConfig(**values)


def section(focus, sha256=None, state=None):
    n = len(focus)
    return {
        'field': np.arange(n),
        'beam': np.zeros(n, int),
        'sha256': np.array(sha256 or list(map(str, range(n))), object),
        'state': np.array(state or ['good'] * n, object),
        'reason': np.full(n, '', object),
        'focus': np.array(focus),
    }


def test_the_second_of_two_equal_files_is_bad():
    tiles = section([1.0] * 4, ['a', 'b', 'a', ''], ['good', 'good', 'good', 'missing'])
    found = compare_tiles(tiles, CONFIG)
    assert list(found['state']) == ['good', 'good', 'bad', 'missing']
    assert found['reason'][2] == 'same image as field 0 beam 0'
    assert list(tiles['state']) == ['good', 'good', 'good', 'missing']


def test_a_tile_less_sharp_than_its_section_is_suspect():
    found = compare_tiles(section([0.05] * 9 + [0.01]), CONFIG)
    assert list(found['state']) == ['good'] * 9 + ['suspect']
    few = compare_tiles(section([0.05] * 3 + [0.01]), CONFIG)
    assert set(few['state']) == {'good'}


@pytest.mark.parametrize(
    ('good', 'bad', 'missing', 'state'),
    [
        (2, 0, 0, 'good'),
        (1, 1, 0, 'partial'),
        (1, 0, 1, 'partial'),
        (0, 1, 1, 'missing'),
        (0, 0, 0, 'missing'),
    ],
)
def test_sections_are_judged_by_their_tiles(good, bad, missing, state):
    found, reason = judge_section({'good': good, 'suspect': 0, 'bad': bad, 'missing': missing})
    assert found == state
    assert bool(reason) == (state != 'good')
