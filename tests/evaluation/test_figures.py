"""The picture of the worst errors: what must be seen in its pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from h01_beam.evaluation.errors import choose_view, locate_parts
from h01_beam.evaluation.figures import ErrorCrop, draw_errors


def make_crop(kind: str, image: bool) -> ErrorCrop:
    """A disc in a square, one label on one side and two on the other."""
    y, x = np.mgrid[:60, :80]
    disc = np.where((y - 30) ** 2 + (x - 40) ** 2 < 400, 5, 6)
    halves = np.where(disc == 5, np.where(x < 44, 7, 8), 9)
    parts = locate_parts(disc[None], halves[None], (3, 0, 0), np.array([5], np.uint64))
    truth, segmentation = (disc, halves) if kind == 'split' else (halves, disc)
    return ErrorCrop(
        kind=kind,
        view=choose_view(parts, 5),
        bits=0.1234,
        parts=2,
        largest_fraction=0.6,
        segmentation=segmentation,
        truth=truth,
        image=(x * 3).astype(np.uint8) if image else None,
        voxel_size_nm=(8.0, 8.0) if image else None,
    )


def count_near(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=-1) < tolerance).sum())


@pytest.mark.parametrize('image', [False, True])
def test_both_parts_of_an_error_are_coloured_and_the_background_is_not(image):
    png = draw_errors([make_crop('split', image)], [make_crop('merge', image)], 'Title', 'scores')
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
    assert pixels.shape[1] > 2000
    left, right = np.array_split(pixels, 2, axis=1)
    saturated = (pixels.max(axis=-1).astype(int) - pixels.min(axis=-1)) > 40
    assert 0.01 < saturated.mean() < 0.2
    for half in (left, right):
        spread = half[..., 0].astype(int) - half[..., 2]
        assert (spread > 40).sum() > 3000, 'the second part is red'
        assert (spread < -40).sum() > 9000, 'the first part, and the whole, are blue'


def test_the_same_errors_give_the_same_bytes():
    crops = [make_crop('split', True)]
    assert draw_errors(crops, [], 'a', 'b') == draw_errors(crops, [], 'a', 'b')


def test_a_segmentation_without_errors_still_gives_a_picture():
    pixels = np.asarray(Image.open(io.BytesIO(draw_errors([], [], 'No errors', ''))))
    assert pixels.std() > 0
