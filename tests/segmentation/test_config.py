"""What is derived from the configuration, and what is refused before a voxel is read."""

from __future__ import annotations

import pytest

from h01_beam.geometry import BlockGrid, BoundingBox
from h01_beam.model_file import ModelCard
from h01_beam.segmentation.config import ReconcileConfig, make_envelope

CARD = ModelCard(name='net', fov_shape=(9, 33, 33), deltas=(2, 8, 8), depth=2, features=2)


def grid(halo=(6, 20, 20), bounds=(64, 128, 128)) -> BlockGrid:
    return BlockGrid(BoundingBox((0, 0, 0), bounds), (32, 64, 64), halo)


def test_the_envelope_is_half_a_field_of_view_less_a_move() -> None:
    assert make_envelope(ReconcileConfig(), grid(), CARD) == (2, 8, 8)
    assert make_envelope(ReconcileConfig(envelope=(0, 1, 2)), grid(), CARD) == (0, 1, 2)


def test_an_envelope_may_not_use_up_the_overlap() -> None:
    for envelope in ((6, 0, 0), (0, 0, 20), (0, -1, 0)):
        with pytest.raises(
            ValueError, match=r'reconcile\.envelope is .* along [zyx] .* grid\.halo'
        ):
            make_envelope(ReconcileConfig(envelope=envelope), grid(), CARD)


def test_one_block_along_an_axis_has_no_envelope_there() -> None:
    flat = grid(halo=(0, 20, 20), bounds=(32, 128, 128))
    assert make_envelope(ReconcileConfig(envelope=(4, 8, 8)), flat, CARD) == (0, 8, 8)
