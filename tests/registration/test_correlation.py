"""Masked normalized correlation against its definition."""

import numpy as np
import pytest

from h01_beam.registration.correlation import correlate_masked, vertex


def test_correlation_equals_the_definition():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 14, 17)).astype(np.float32)
    b = b[:11, :9]
    in_a, in_b = rng.random(a.shape) < 0.8, rng.random(b.shape) < 0.8
    scores, counts, corner = correlate_masked(a, in_a, b, in_b, (4.0, 5.0), 6, 12)
    assert corner == (-2, -1) and scores.shape == (13, 13)
    for y in range(13):
        for x in range(13):
            dy, dx = corner[0] + y, corner[1] + x
            values = [
                (a[i, j], b[i - dy, j - dx])
                for i in range(14)
                for j in range(17)
                if 0 <= i - dy < 11 and 0 <= j - dx < 9 and in_a[i, j] and in_b[i - dy, j - dx]
            ]
            expected = np.corrcoef(np.array(values).T)[0, 1] if len(values) >= 12 else -1
            assert counts[y, x] == max(len(values), 1)
            assert scores[y, x] == pytest.approx(expected, abs=1e-4)


def test_a_parabola_is_highest_at_its_vertex():
    assert vertex(*(0.9 - 0.1 * (x - 0.3) ** 2 for x in (-1.0, 0.0, 1.0))) == pytest.approx(0.3)
    assert vertex(0.1, 0.1, 0.1) == 0.0 and vertex(-1.0, 0.5, 0.4) == 0.0
