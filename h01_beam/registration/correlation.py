"""Masked normalized correlation of two images, at all shifts near one.

Correlation is normalized over what both images show at each shift (Padfield, "Masked object
registration in the Fourier domain", IEEE Trans. Image Process. 21, 2012).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

Reals = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = tuple[float, float]


def correlate_masked(
    first: npt.NDArray[np.generic],
    first_mask: Bools,
    second: npt.NDArray[np.generic],
    second_mask: Bools,
    middle: Place,
    search: int,
    least: float,
) -> tuple[Reals, Reals, tuple[int, int]]:
    """Normalized correlation at every shift near one.

    Args:
      first: (h, w) image.
      second: (h, w) image.
      first_mask: (h, w), what of it counts.
      second_mask: likewise.
      middle: offset of `second` in `first`, y and x.
      search: shifts to every side of it.
      least: pixels that both must show at a shift; else its score is -1.

    Returns:
      scores, (2 search + 1, 2 search + 1) float64; how many pixels each rests on, likewise; and the
      offset that the first of them is for.
    """
    size = [
        scipy.fft.next_fast_len(n + m, real=True)
        for n, m in zip(first.shape, second.shape, strict=True)
    ]
    corner = (round(middle[0]) - search, round(middle[1]) - search)
    steps = np.arange(2 * search + 1)
    # The transform is periodic; shifts at which the images do not meet have no pixel in common.
    y, x = ((c + steps) % n for c, n in zip(corner, size, strict=True))
    meets = [
        (c + steps > -m) & (c + steps < n)
        for c, n, m in zip(corner, first.shape, second.shape, strict=True)
    ]

    def spectra(image: npt.NDArray[Any], mask: Bools) -> list[npt.NDArray[np.complex64]]:
        weight = mask.astype(np.float32)
        masked = image * weight
        return [scipy.fft.rfft2(v, size) for v in (weight, masked, masked * masked)]

    ones, of_a, of_aa = spectra(first, first_mask)
    other_ones, of_b, of_bb = (np.conj(s) for s in spectra(second, second_mask))

    def sums(left: npt.NDArray[np.complex64], right: npt.NDArray[np.complex64]) -> Reals:
        return np.asarray(scipy.fft.irfft2(left * right, size)[np.ix_(y, x)], np.float64)

    count = np.maximum(np.rint(sums(ones, other_ones)), 1.0)
    a, b = sums(of_a, other_ones), sums(ones, of_b)
    spread_a = np.maximum(sums(of_aa, other_ones) - a * a / count, 0.0)
    spread_b = np.maximum(sums(ones, of_bb) - b * b / count, 0.0)
    norm = np.sqrt(spread_a * spread_b)
    scores = (sums(of_a, of_b) - a * b / count) / np.maximum(norm, 1e-3 * count)
    allowed = (count >= max(least, 9.0)) & meets[0][:, None] & meets[1][None, :]
    return np.where(allowed, np.clip(scores, -1, 1), -1.0), count, corner


def vertex(before: float, at: float, after: float) -> float:
    """Where a parabola through three scores is highest, from -0.5 to 0.5.

    Args:
      before: the score one step before the highest.
      at: the highest.
      after: the score one step after it.
    """
    if min(before, after) <= -1:
        return 0.0
    bend = 2 * at - before - after
    return 0.0 if bend <= 0 else max(-0.5, min(0.5, 0.5 * (after - before) / bend))
