"""Random numbers that belong to places: functions of a seed and of coordinates alone.

Synthetic tissue is made part by part, on any worker, in any order. So nothing in it may come from
a stream of random numbers: each number is a hash of what it is for (seed, purpose, position).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox

Real = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15


def hash_integers(seed: int, purpose: int, *values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Mixes integers that belong together, of broadcastable shapes, to 64 random bits.

    Source: the finalizer of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
    generators", OOPSLA 2014), applied once per value.
    """
    bits = np.asarray(_mix64(np.uint64((seed * 0x632BE59BD9B4E019 + purpose) % 2**64)))
    with np.errstate(over='ignore'):
        for value in values:
            part = np.asarray(value).astype(np.int64).view(np.uint64)
            bits = _mix64((bits ^ part) + np.uint64(_GOLDEN))
    return bits


def uniform(seed: int, purpose: int, *values: npt.ArrayLike) -> Double:
    """Numbers in [0, 1) that belong to integers; see `hash_integers`."""
    bits = hash_integers(seed, purpose, *values)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seed: int, purpose: int, *values: npt.ArrayLike) -> Double:
    """Nearly normal numbers of mean 0 and deviation 1: the sum of four uniform ones."""
    total = sum(uniform(seed, purpose, part, *values) for part in range(4))
    return np.asarray((total - 2.0) * math.sqrt(3.0))


def _mix64(bits: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    with np.errstate(over='ignore'):
        mixed = np.asarray(bits, np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def scramble32(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Mixes 32-bit integers one to one: the finalizer of MurmurHash3 (Appleby, public domain)."""
    bits = bits ^ (bits >> np.uint32(16))
    bits *= np.uint32(0x85EBCA6B)
    bits ^= bits >> np.uint32(13)
    bits *= np.uint32(0xC2B2AE35)
    bits ^= bits >> np.uint32(16)
    return bits


def voxel_noise(box: BoundingBox, seed: int) -> Real:
    """Nearly normal noise (zyx float32, mean 0, deviation 1), independent in each voxel."""
    axes = [
        ((np.arange(start, end) * prime) & 0xFFFFFFFF).astype(np.uint32)
        for start, end, prime in zip(
            box.start, box.end, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D), strict=True
        )
    ]
    key = np.uint32(((seed + 1) * 0x27D4EB2F) & 0xFFFFFFFF)
    axes[0] = scramble32(axes[0] ^ key)
    z, y, x = axes
    bits = scramble32((z[:, None, None] + y[None, :, None]) + x[None, None, :])
    # The sum of four uniform bytes: mean 510, variance (256**2 - 1) / 3.
    total = bits & np.uint32(0xFF)
    for shift in (8, 16, 24):
        total += (bits >> np.uint32(shift)) & np.uint32(0xFF)
    deviation = math.sqrt((256**2 - 1) / 3)
    return (total.astype(np.float32) - np.float32(510)) * np.float32(1 / deviation)


def smooth_noise(
    axes_nm: tuple[Double, Double, Double],
    cell_nm: tuple[float, float, float],
    seed: int,
    kind: int,
) -> Real:
    """Value noise in [-1, 1] on a grid of points: random lattice values, smoothly interpolated.

    Args:
      axes_nm: coordinates of the grid along z, y and x, ascending.
      cell_nm: zyx distances of the lattice.
      seed: of the tissue.
      kind: another kind is another field.

    Returns:
      zyx float32; a point's value depends on its coordinates only.
    """
    cells = [np.floor(a / c).astype(np.int64) for a, c in zip(axes_nm, cell_nm, strict=True)]
    lattice = [np.arange(c[0], c[-1] + 2) for c in cells]
    values = uniform(
        seed, kind, lattice[0][:, None, None], lattice[1][None, :, None], lattice[2][None, None, :]
    )
    field = (2.0 * values - 1.0).astype(np.float32)
    # The axis with the fewest points first would be as good; x last keeps rows contiguous.
    for axis in (2, 1, 0):
        index = cells[axis] - cells[axis][0]
        part = axes_nm[axis] / cell_nm[axis] - cells[axis]
        weight = (part * part * (3.0 - 2.0 * part)).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(weight)
        low = np.take(field, index, axis=axis)
        field = np.take(field, index + 1, axis=axis)
        field -= low
        field *= weight.reshape(shape)
        field += low
    return field


def smooth_noise_at(points_nm: Double, cell_nm: float, seed: int, kind: int) -> Double:
    """Value noise in [-1, 1] at (n, 3) points; see `smooth_noise`."""
    scaled = points_nm / cell_nm
    cell = np.floor(scaled).astype(np.int64)
    part = scaled - cell
    weight = part * part * (3.0 - 2.0 * part)
    total = np.zeros(len(scaled))
    for corner in np.ndindex(2, 2, 2):
        value = 2.0 * uniform(seed, kind, *(cell + corner).T) - 1.0
        total += value * np.prod(np.where(corner, weight, 1.0 - weight), axis=1)
    return total
