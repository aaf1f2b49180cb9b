"""From the weave to curves in space: where the nodes of tracks lie, in nanometres.

    lattice position -> jitter, splined along the track -> opened around thick tracks
    -> rotated and gently warped: the world in which the microscope looks

Every step keeps tracks apart: jitter and warp are small against their distance, and the opening
pushes tracks outwards from the axes of thick ones (rho -> sqrt(rho^2 + R^2)), so that a dendrite
makes room for itself. Axes do not cross; where two dendrites push a thin track from both sides it
may come so near to one that it is cut: less than one voxel in a hundred is lost in that way.
"""

from __future__ import annotations

import functools

import numpy as np

from h01_beam.geometry import BoundingBox
from h01_beam.testing.noise import normal, smooth_noise_at, uniform
from h01_beam.testing.phantom.weave import (
    MYELINATED,
    PITCH_NM,
    THICK_EVERY,
    Ints,
    Reals,
    Tracks,
    Weave,
)

JITTER_NM = 0.17 * PITCH_NM
WARP_NM = 340.0
WARP_CELL_NM = 3200.0
# Thick tracks open space up to this far from their axis.
_OPENING_REACH = 1.6 * PITCH_NM
# Between the surface of a thick neurite and the axis of its neighbour.
_OPENING_GAP_NM = 110.0
# Positions are rounded to this, so that the last bit of a sine never matters.
_QUANTUM_NM = 1.0 / 64.0

_JITTER, _THICKNESS, _TURN, _WARP = range(200, 204)


def thick_radius_nm(weave: Weave, t: Tracks) -> Reals:
    """Mean radius of thick tracks: of dendrites, and of myelinated axons with their sheath."""
    draw = uniform(weave.seed, _THICKNESS, t.d, t.i, t.j)
    dendrite = 320.0 + 480.0 * draw * draw
    myelinated = 400.0 + 200.0 * draw
    return np.where(weave.kind(t) == MYELINATED, myelinated, dendrite)


def lattice_positions(weave: Weave, t: Tracks, half: bool = False) -> Reals:
    """(n, 3) positions of nodes, or of the points half way to the next one, in lattice nm."""
    points = _axis_points(weave, t, half)
    return _open(weave, points, t)


def void_positions(weave: Weave, voids: Ints) -> Reals:
    """(n, 3) positions of voids in lattice nm: opened like the tracks around them."""
    points = voids.astype(np.float64) * (PITCH_NM / 2)
    nowhere = np.full(len(voids), 2**20)
    return _open(weave, points, Tracks(nowhere % 3, nowhere, nowhere, nowhere))


def _axis_points(weave: Weave, t: Tracks, half: bool) -> Reals:
    rows = np.arange(len(t))
    points = np.empty((len(t), 3))
    points[rows, t.d] = (t.k + 0.5 * half) * (PITCH_NM / 2)
    points[rows, (t.d + 1) % 3] = t.i * PITCH_NM
    points[rows, (t.d + 2) % 3] = (t.j + 0.5) * PITCH_NM
    return points + _jitter(weave, t, half)


def _jitter(weave: Weave, t: Tracks, half: bool) -> Reals:
    """A uniform cubic B-spline through random offsets at the nodes."""
    taps = {-1: 1 / 6, 0: 4 / 6, 1: 1 / 6}
    if half:
        taps = {-1: 1 / 48, 0: 23 / 48, 1: 23 / 48, 2: 1 / 48}
    total = np.zeros((len(t), 3))
    for step, weight in taps.items():
        for axis in range(3):
            draw = uniform(weave.seed, _JITTER, axis, t.d, t.i, t.j, t.k + step)
            total[:, axis] += (weight * 2 * JITTER_NM) * (draw - 0.5)
    return total


def _open(weave: Weave, points: Reals, own: Tracks) -> Reals:
    """Pushes points out of thick tracks, other than their own."""
    moved = points.copy()
    for d in range(3):
        e, f = (d + 1) % 3, (d + 2) % 3
        # Thick tracks of this direction have i = d and j = d + 1, modulo 3.
        first_i = np.floor((points[:, e] / PITCH_NM - d) / THICK_EVERY)
        first_j = np.floor((points[:, f] / PITCH_NM - 0.5 - (d + 1) % 3) / THICK_EVERY)
        for step_i, step_j in np.ndindex(2, 2):
            i = d + THICK_EVERY * (first_i + step_i).astype(np.int64)
            j = (d + 1) % 3 + THICK_EVERY * (first_j + step_j).astype(np.int64)
            k = np.rint(points[:, d] / (PITCH_NM / 2)).astype(np.int64)
            thick = Tracks(np.full(len(points), d), i, j, k)
            axis = _axis_points(weave, thick, half=False)
            away_e, away_f = points[:, e] - axis[:, e], points[:, f] - axis[:, f]
            rho = np.sqrt(away_e * away_e + away_f * away_f)
            push = _push(thick_radius_nm(weave, thick), rho)
            push[(own.d == d) & (own.i == i) & (own.j == j)] = 0.0
            moved[:, e] += push * away_e
            moved[:, f] += push * away_f
    return moved


def _push(radius_nm: Reals, rho: Reals) -> Reals:
    """By what fraction of their distance points at `rho` move away from a thick axis."""
    wanted = radius_nm + _OPENING_GAP_NM
    opening = np.maximum(wanted * wanted - PITCH_NM * PITCH_NM / 4, 0.0)
    near = np.maximum(1.0 - (rho / _OPENING_REACH) ** 2, 0.0)
    rho = np.maximum(rho, 1.0)
    return (np.sqrt(rho * rho + opening) / rho - 1.0) * near * near


# ------------------------------------------------------------------ lattice <-> world


@functools.lru_cache(maxsize=64)
def rotation(seed: int) -> Reals:
    """The (3, 3) rotation of a seed's lattice, so that no track runs along an image axis."""
    first = normal(seed, _TURN, np.arange(3))
    first /= np.sqrt((first * first).sum())
    second = normal(seed, _TURN, np.arange(3, 6))
    second -= (first * second).sum() * first
    second /= np.sqrt((second * second).sum())
    matrix = np.stack([first, second, np.cross(first, second)], axis=1)
    return np.rint(matrix * 2**20) / 2**20


def to_world(seed: int, lattice: Reals) -> Reals:
    """(n, 3) world positions, zyx nm, of lattice positions."""
    turn = rotation(seed)
    u, v, w = lattice.T
    world = np.empty_like(lattice)
    for axis in range(3):
        world[:, axis] = u * turn[axis, 0] + v * turn[axis, 1] + w * turn[axis, 2]
        world[:, axis] += WARP_NM * smooth_noise_at(lattice, WARP_CELL_NM, seed, _WARP + axis)
    return np.rint(world / _QUANTUM_NM) * _QUANTUM_NM


def lattice_bounds(
    seed: int, box: BoundingBox, voxel_size_nm: tuple[float, float, float], margin_nm: float
) -> tuple[Reals, Reals]:
    """Lowest and highest lattice position (nm) that may reach a box of voxels."""
    edges = [
        np.array([s * v - margin_nm, e * v + margin_nm])
        for s, e, v in zip(box.start, box.end, voxel_size_nm, strict=True)
    ]
    corners = np.stack(np.meshgrid(*edges, indexing='ij'), axis=-1).reshape(-1, 3)
    lattice = corners @ rotation(seed)
    return lattice.min(axis=0) - 2 * WARP_NM, lattice.max(axis=0) + 2 * WARP_NM
