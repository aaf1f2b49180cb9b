import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from neuroglancer.segment_colors import hex_string_from_segment_id

from h01_beam.export.colors import paint_segments, segment_colors


@given(st.integers(0, 2**64 - 1))
def test_colours_are_those_of_neuroglancer(segment):
    expected = list(bytes.fromhex(hex_string_from_segment_id(0, segment)[1:]))
    # Halves may be rounded either way.
    np.testing.assert_allclose(segment_colors(np.uint64(segment)), expected, rtol=0, atol=1)


def test_colours_keep_the_shape_of_the_ids():
    ids = np.arange(24, dtype=np.uint64).reshape(2, 3, 4)
    colors = segment_colors(ids)
    assert colors.shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(colors[1, 2, 3], segment_colors(23))


def test_unlabelled_voxels_stay_grey():
    image = np.array([[10, 200]], np.uint8)
    painted = paint_segments(image, np.array([[0, 7]], np.uint64), alpha=0.5)
    assert painted[0, 0].tolist() == [10, 10, 10]
    np.testing.assert_allclose(painted[0, 1], (200 + segment_colors(7).astype(float)) / 2, atol=1)
