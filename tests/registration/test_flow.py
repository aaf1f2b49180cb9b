"""Flow: known displacements are found, and what cannot be known is not guessed."""

import dataclasses

import cv2
import numpy as np
import pytest

from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.elastic.blocks import EstimateFlow, flow_halo
from h01_beam.alignment.frames import Shifted
from h01_beam.geometry import BlockGrid
from h01_beam.registration.flow import (
    FlowConfig,
    FlowLevel,
    estimate_flow,
    fill_smoothly,
    local_contrast,
)
from tests.arrays import box

SHAPE = (288, 352)
CONFIG = FlowConfig()


def tissue(seed: int, shape=SHAPE) -> np.ndarray:
    """Grain of several sizes, uint8."""
    rng = np.random.default_rng(seed)
    image = sum(
        cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), s) * s
        for s in (1.5, 3.0, 6.0)
    )
    return np.clip(128 + 50 * image, 1, 255).astype(np.uint8)


def displaced(image: np.ndarray, size: float = 5.0, shift=(6.0, -9.0)):
    """A moving section, and the true flow as a function of places in the fixed one."""

    def flow(y, x):
        return (
            shift[0] + size * np.sin(x / 60) * np.cos(y / 80),
            shift[1] + size * np.cos(x / 70 + y / 90),
        )

    y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in image.shape), indexing='ij')
    # moving(q + flow(q)) = fixed(q): look back from q' = q + flow(q) by fixed-point steps.
    py, px = y.copy(), x.copy()
    for _ in range(30):
        dy, dx = flow(py, px)
        py, px = y - dy, x - dx
    moving = cv2.remap(
        image, px.astype(np.float32), py.astype(np.float32), cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    return moving, flow


def whole(image) -> np.ndarray:
    return np.ones(image.shape, np.bool_)


def test_a_known_displacement_is_found_to_a_fraction_of_a_pixel():
    fixed = tissue(1)
    moving, truth = displaced(fixed)
    flow = estimate_flow(fixed, moving, whole(fixed), whole(moving), CONFIG)
    assert flow.map.shape == (18, 22) and flow.map.stride == 16
    expected = np.stack(truth(*flow.map.nodes()))
    error = np.hypot(*(flow.map.vectors - expected))[flow.known]
    assert flow.known[3:-3, 3:-3].mean() > 0.9
    assert np.sqrt((error**2).mean()) < 0.4 and error.max() < 3


def test_gain_and_offset_do_not_matter():
    fixed = tissue(2)
    moving, _ = displaced(fixed)
    plain = estimate_flow(fixed, moving, whole(fixed), whole(moving), CONFIG)
    gradient = np.linspace(0.5, 1.0, SHAPE[1])
    pale = (moving * gradient * 0.6 + 60).astype(np.uint8)
    other = estimate_flow(fixed, pale, whole(fixed), whole(pale), CONFIG)
    both = plain.known & other.known
    assert both.mean() > 0.8 * plain.known.mean()
    assert np.abs(plain.map.vectors - other.map.vectors)[:, both].mean() < 0.1


def test_unrelated_sections_have_no_flow():
    fixed, moving = tissue(3), tissue(4)
    flow = estimate_flow(fixed, moving, whole(fixed), whole(moving), CONFIG)
    assert flow.known.mean() < 0.05


def test_what_is_masked_is_not_known_and_does_not_disturb():
    fixed = tissue(5)
    moving, _ = displaced(fixed)
    mask = whole(fixed)
    mask[:, 200:] = False
    dirty = np.where(mask, fixed, 255).astype(np.uint8)
    flow = estimate_flow(dirty, moving, mask, whole(moving), CONFIG)
    _, x = flow.map.nodes()
    assert not flow.known[x > 240].any() and flow.known[3:-3, 3:10].mean() > 0.9
    clean = estimate_flow(fixed, moving, whole(fixed), whole(moving), CONFIG)
    far = (x < 140) & flow.known & clean.known
    assert np.abs(flow.map.vectors - clean.map.vectors)[:, far].mean() < 0.1
    nothing = np.zeros(SHAPE, np.bool_)
    assert not estimate_flow(fixed, moving, nothing, mask, CONFIG).known.any()


def test_a_part_with_its_reach_has_the_same_flow():
    config = dataclasses.replace(
        CONFIG,
        stride=8,
        levels=(FlowLevel(downsample=2, patch=16, search=4), FlowLevel(downsample=1, patch=16, search=4)),
        contrast_sigma=4.0,
    )  # fmt: skip
    reach = -(-config.reach // 16) * 16
    size = 2 * reach + 96
    fixed = tissue(6, (size, size))
    moving, _ = displaced(fixed, size=2.0, shift=(2.0, -3.0))
    full = estimate_flow(fixed, moving, whole(fixed), whole(moving), config)
    cut = (slice(32, None), slice(48, None))
    part = estimate_flow(fixed[cut], moving[cut], whole(fixed)[cut], whole(moving)[cut], config)
    inner = (slice(None), slice(reach // 8, reach // 8 + 6), slice(reach // 8, reach // 8 + 4))
    # The same nodes of the tissue, in either count.
    same = full.map.vectors[:, 4:, 6:][inner]
    assert np.isfinite(same).mean() > 0.5
    np.testing.assert_allclose(part.map.vectors[inner], same, atol=1e-3)


def test_contrast_is_even_after_normalizing():
    image = tissue(7).astype(np.float32) * np.linspace(0.2, 1.5, SHAPE[1])
    even = local_contrast(image, whole(image), 12.0)
    assert abs(even.mean()) < 0.1 and 0.6 < even.std() < 1.2
    left, right = even[:, :100].std(), even[:, -100:].std()
    assert 0.8 < left / right < 1.25


def test_filling_keeps_what_is_known_and_nothing_gives_zero():
    vectors = np.full((2, 9, 9), np.nan, np.float32)
    np.testing.assert_array_equal(fill_smoothly(vectors, 1.0), 0)
    vectors[:, 4, 4] = (2.0, -3.0)
    filled = fill_smoothly(vectors, 1.0)
    np.testing.assert_allclose(filled[:, 0, 0], (2.0, -3.0), rtol=1e-5)
    np.testing.assert_allclose(filled[:, 4, 4], (2.0, -3.0), rtol=1e-5)


def test_images_of_two_shapes_are_refused():
    image = tissue(8)
    with pytest.raises(ValueError, match=r'must be one \(h, w\)'):
        estimate_flow(image, image[:-1], whole(image), whole(image[:-1]), CONFIG)


@pytest.mark.parametrize(
    ('fields', 'told'),
    [
        ({'stride': 0}, 'flow.stride is 0'),
        ({'levels': ()}, 'flow.levels is empty'),
        (
            {'levels': (FlowLevel(downsample=1, patch=16, search=4, stride=8),)},
            'flow.levels ends with stride 8: must be that of the flow, 16',
        ),
        ({'contrast_sigma': 0.0}, 'flow.contrast_sigma is 0.0'),
        ({'min_peak': 1.5}, 'flow.min_peak is 1.5'),
        ({'min_peak_ratio': 0.5}, 'flow.min_peak_ratio is 0.5'),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        FlowConfig(**fields)


@pytest.mark.parametrize(
    'fields', [{'downsample': 0}, {'patch': 7}, {'patch': 6}, {'search': 1}, {'stride': 0}]
)
def test_a_level_that_makes_no_sense_is_refused(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f'flow.levels.{name} is {fields[name]}'):
        FlowLevel(**{'downsample': 1, 'patch': 64, 'search': 8, **fields})


@pytest.mark.parametrize('coarse_stride', [None, 4])
def test_blocks_find_what_the_whole_section_does(coarse_stride):
    levels = (
        FlowLevel(downsample=2, patch=24, search=8, stride=coarse_stride),
        FlowLevel(downsample=1, patch=24, search=4),
    )
    config = AlignConfig(flow=dataclasses.replace(CONFIG, levels=levels, contrast_sigma=6.0))
    shape = (1040, 1168)
    fixed = tissue(1, shape)
    moving, _ = displaced(fixed)
    # Nothing known over more than a block, so that what is filled in counts.
    fixed[400:760, 300:700] = 0
    whole_flow = estimate_flow(fixed, moving, fixed > 0, moving > 0, config.flow)
    bounds, stride, halo = box((0, 0, 0), (1, *shape)), 16, flow_halo(config)
    assert halo < 450
    grid = BlockGrid(box((0, 0, 0), (1, 65, 73)), (1, 16, 24))
    for index in ((0, 0, 0), (0, 2, 1), (0, 4, 3)):
        block = grid[index]
        read = Shifted(bounds, 0, stride, halo)(block)
        y, x = read.slices[1:]
        assert read.shape != (1, *shape)
        found = EstimateFlow(config)(fixed[None, y, x], moving[None, y, x], block).arrays['flow']
        own = whole_flow.map.vectors[(slice(None), *block.core.slices[1:])]
        assert np.isfinite(own).any()
        np.testing.assert_allclose(found[:2, 0], own, atol=0.01)
