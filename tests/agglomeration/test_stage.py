"""The marker of the component stage; the stage itself runs in tests/segmentation/test_stage.py."""

from __future__ import annotations

from h01_beam.agglomeration.stage import _Files, _Total
from h01_beam.geometry import BlockGrid, BoundingBox

GRID = BlockGrid(BoundingBox((0, 0, 0), (4, 4, 4)), (2, 4, 4))


def test_old_marker_does_not_vouch_for_new_parts(tmp_path):
    """Killed while parts of other edges are written, then back to the edges before."""
    files = _Files(str(tmp_path), GRID, 24)
    state = files.is_current({'digest': 'a'})
    assert not state['current']
    files.write_parts((0, [None]))
    files.finish(_Total().create_accumulator(), state)
    assert files.is_current({'digest': 'a'})['current']
    assert not files.is_current({'digest': 'b'})['current']  # And killed here.
    assert not files.is_current({'digest': 'a'})['current']
