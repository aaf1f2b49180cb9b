"""Training examples: balanced, repeatable, and in register after every change."""

import itertools

import numpy as np
import pytest

from models.ffn.augment import augment
from models.ffn.examples import draw_centres, draw_examples
from models.ffn.sources import Tissue
from models.ffn.train_config import AugmentConfig, SamplingConfig

FOV, PATCH = (3, 9, 9), (5, 15, 15)
STILL = AugmentConfig(
    flip=False, contrast=0, brightness=0, noise=0, missing_section=0, shifted_section=0
)


@pytest.fixture
def tissue():
    """A thick object and a thin one, whose grey levels encode their position."""
    labels = np.zeros((20, 40, 60), np.int32)
    labels[:, :, :30] = 1
    labels[:, 20:22, 34:] = 2
    z, y, x = np.indices(labels.shape)
    image = ((z * 7 + y * 3 + x) % 251).astype(np.uint8)
    return Tissue('test', image, labels, (30.0, 8.0, 8.0))


def take(tissue, count, seed=(1, 0), augmentation=STILL, sampling=None):
    examples = draw_examples(
        [tissue], PATCH, FOV, sampling or SamplingConfig(candidates=400), augmentation, seed
    )
    return list(itertools.islice(examples, count))


def test_fill_is_the_objects_share_of_the_field_of_view(tissue):
    centres, fills = draw_centres(tissue.labels, PATCH, FOV, 300, np.random.default_rng(0))
    assert len(centres) > 50
    for (z, y, x), fill in zip(centres[:40], fills):
        around = tissue.labels[z - 1 : z + 2, y - 4 : y + 5, x - 4 : x + 5]
        assert around.shape == FOV
        assert fill == pytest.approx((around == tissue.labels[z, y, x]).mean())


def test_thin_objects_count_as_much_as_thick_ones(tissue):
    share_of_volume = (tissue.labels == 2).sum() / (tissue.labels > 0).sum()
    assert share_of_volume < 0.1
    thin = [example.mask[2, 3:12, 3:12].mean() < 0.3 for example in take(tissue, 300)]
    assert 0.3 < np.mean(thin)


def test_examples_are_a_function_of_their_seed(tissue):
    for a, b in zip(take(tissue, 8), take(tissue, 8), strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
    other = take(tissue, 8, seed=(1, 1))
    assert any((a.image != b.image).any() for a, b in zip(take(tissue, 8), other))


def test_the_centre_is_in_the_object(tissue):
    everything = AugmentConfig(missing_section=1.0, shifted_section=1.0)
    for example in take(tissue, 40, augmentation=everything):
        assert example.image.shape == example.mask.shape == PATCH
        assert example.image.dtype == np.float32
        assert example.mask[2, 7, 7]


def test_image_and_mask_move_together():
    """The mask is a function of the grey level, before and after."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 200, (7, 21, 21)).astype(np.float32)
    mask = image > 100
    image[3, 10, 10], mask[3, 10, 10] = 150, True
    moves = AugmentConfig(contrast=0, brightness=0, noise=0, missing_section=0, shifted_section=1)
    changed = 0
    for n in range(30):
        new, label = augment(image, mask, moves, np.random.default_rng(n))
        # What came in from outside is no object's, whatever it looks like.
        assert not (label & (new <= 100)).any()
        assert (label == (new > 100)).mean() > 0.6
        changed += bool((new != image).any())
    assert changed > 25


def test_a_missing_section_is_blank_and_never_the_centre():
    image = np.full((5, 9, 9), 120, np.float32)
    mask = np.ones(image.shape, bool)
    missing = AugmentConfig(
        flip=False, contrast=0, brightness=0, noise=0, missing_section=1, shifted_section=0
    )
    seen = set()
    for n in range(40):
        new, _ = augment(image, mask, missing, np.random.default_rng(n))
        blank = [z for z in range(5) if (new[z] < 60).all()]
        assert len(blank) == 1
        seen |= set(blank)
    assert seen == {0, 1, 3, 4}
    assert (image == 120).all(), 'the argument is left alone'


def test_tissue_without_room_is_refused(tissue):
    small = Tissue('small', tissue.image[:5, :15, :15], np.zeros((5, 15, 15), np.int32), None)
    with pytest.raises(ValueError, match='no labelled voxel'):
        take(small, 1)
