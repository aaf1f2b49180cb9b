"""A synthetic tissue of touching tubes and balls, with its exact segmentation.

Tubes stand on a jittered square lattice, run along z and sway; balls sit in the gaps between
them. Every point of space belongs to the object whose surface it is least far outside of (or
deepest inside of), an additively weighted Voronoi diagram, so all objects touch. Where the
nearest two compete, a dark membrane runs:

        y                    membrane_nm
        |   tube   tube         ||
        |       ball       tube ## tube        truth: 1 1 1 0 0 2 2 2
        |   tube   tube         ||             grey: high  low   high
        +------------ x

The tissue is infinite, and each voxel is a function of its coordinates and the seed alone: a
part that is made on its own has the same bytes as that part cut out of a larger one. Shapes
depend on nanometres, so the same seed at another voxel size shows the same tissue.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox, Triple
from h01_beam.testing.noise import scramble32, voxel_noise

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint64]
Real = npt.NDArray[np.float32]

# All of these are in units of the lattice spacing.
_TUBE_RADIUS = (0.22, 0.34)
_BALL_RADIUS = (0.34, 0.46)
_JITTER = 0.12
_SWAY = 0.13
_SWAY_PERIOD = (2.5, 5.0)
_BALL_EVERY = 2.0
# No object is among the nearest two of a voxel that is further from its axis (in y or x; a ball
# also in z) than this.
_REACH = 1.5

_LATTICE_LIMIT = 512  # lattice indices lie in [-limit, limit), so that an id fits its bits

_CYTOPLASM_GREY = 151.0
_CYTOPLASM_SPREAD = 8.0
_MEMBRANE_GREY = 80.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Object:
    """A tube or a ball; all lengths in nanometres.

    Attributes:
      label: id of its voxels, not 0.
      radius_nm: how far its surface is from its axis or centre.
      center_nm: centre of a ball; of a tube, the point that its axis sways about (z is unused).
      sway: of a tube, (phase in turns, period) of its axis along y and along x; None for a ball.
    """

    label: int
    radius_nm: float
    center_nm: tuple[float, float, float]
    sway: tuple[tuple[float, float], tuple[float, float]] | None = None


def make_tubes(
    shape: Triple | None = None,
    voxel_size_nm: tuple[float, float, float] = (10.0, 10.0, 10.0),
    seed: int = 0,
    *,
    box: BoundingBox | None = None,
    spacing_nm: float = 300.0,
    membrane_nm: float | None = None,
    noise_grey: float = 14.0,
) -> tuple[Image, Labels]:
    """Makes an image of touching tubes and balls, and its truth.

    Args:
      shape: zyx; the box from the origin. Give this or `box`.
      voxel_size_nm: zyx.
      seed: another seed is another tissue.
      box: the voxels to make; any part of the infinite tissue, negative coordinates too.
      spacing_nm: mean distance between neighbouring tubes.
      membrane_nm: least thickness of a membrane, 40 nm or 1.25 of the longest voxel edge unless
        given. It has to be longer than every voxel edge, so that no two objects ever share a
        voxel face.
      noise_grey: standard deviation of the noise, which is independent in each voxel.

    Returns:
      image: uint8 zyx; bright cytoplasm, dark membranes; mean near 128, deviation near 33.
      labels: uint64 zyx; 0 in membranes. Each id is one connected object of the tissue (a box
        can cut it into several pieces).

    Raises:
      ValueError: if an argument breaks a rule above, or the box leaves the lattice.
    """
    if (shape is None) == (box is None):
        raise ValueError(f'shape is {shape} and box is {box}: give one of them')
    if box is None:
        assert shape is not None
        box = BoundingBox((0, 0, 0), shape)
    if membrane_nm is None:
        membrane_nm = max(40.0, 1.25 * max(voxel_size_nm))
    _check(box, voxel_size_nm, spacing_nm, membrane_nm)
    first, second, labels = _nearest_two(box, voxel_size_nm, seed, spacing_nm)
    gap = second - first
    image = _render(gap / np.float32(membrane_nm), labels, box, seed, noise_grey)
    labels[gap < membrane_nm] = 0
    return image, labels


def _check(
    box: BoundingBox,
    voxel_size_nm: tuple[float, float, float],
    spacing_nm: float,
    membrane_nm: float,
) -> None:
    if min(voxel_size_nm) <= 0:
        raise ValueError(f'voxel_size_nm is {voxel_size_nm}: every extent must be positive')
    if membrane_nm <= max(voxel_size_nm):
        raise ValueError(
            f'membrane_nm is {membrane_nm}: must exceed the longest voxel edge '
            f'({max(voxel_size_nm)} nm), or objects would touch without a membrane voxel'
        )
    if membrane_nm > 0.25 * spacing_nm:
        raise ValueError(
            f'membrane_nm is {membrane_nm}: must not exceed a quarter of spacing_nm '
            f'({spacing_nm} nm), or membranes would fill thin tubes; raise spacing_nm'
        )
    bounds_nm = [
        abs(c) * size
        for corner in (box.start, box.end)
        for c, size in zip(corner, voxel_size_nm, strict=True)
    ]
    limit_nm = (_LATTICE_LIMIT - 3) * spacing_nm
    if max(bounds_nm) > limit_nm:
        raise ValueError(
            f'box is {box}: it reaches {max(bounds_nm):.0f} nm from the origin, and the tissue '
            f'ends at {limit_nm:.0f} nm; raise spacing_nm or move the box'
        )


def _nearest_two(
    box: BoundingBox,
    voxel_size_nm: tuple[float, float, float],
    seed: int,
    spacing_nm: float,
) -> tuple[Real, Real, Labels]:
    """Signed distances (nm, zyx) to the nearest and second nearest surface, and who is nearest."""
    # Voxel centres, so that the tissue does not shift between voxel sizes.
    axes_nm: list[npt.NDArray[np.float64]] = [
        (np.arange(start, end, dtype=np.float64) + 0.5) * size
        for start, end, size in zip(box.start, box.end, voxel_size_nm, strict=True)
    ]
    far = np.float32(10 * spacing_nm)
    first = np.full(box.shape, far, np.float32)
    second = np.full(box.shape, far, np.float32)
    labels = np.zeros(box.shape, np.uint64)
    if box.size == 0:
        return first, second, labels
    for item in _objects(axes_nm, seed, spacing_nm):
        window = _window(item, axes_nm, spacing_nm)
        coordinates = [a[w] for a, w in zip(axes_nm, window, strict=True)]
        distance = _distance(item, coordinates, _SWAY * spacing_nm)
        nearest, next_nearest = first[window], second[window]
        np.copyto(labels[window], np.uint64(item.label), where=distance < nearest)
        np.minimum(next_nearest, np.maximum(nearest, distance), out=next_nearest)
        np.minimum(nearest, distance, out=nearest)
    return first, second, labels


def _objects(
    axes_nm: list[npt.NDArray[np.float64]], seed: int, spacing_nm: float
) -> Iterator[_Object]:
    """Yields every object that can be near a voxel, in an order that does not depend on the box."""
    margin = _REACH + 1
    span = [
        (math.floor(a[0] / spacing_nm - margin), math.ceil(a[-1] / spacing_nm + margin))
        for a in axes_nm
    ]
    for i, j in itertools.product(range(*span[1]), range(*span[2])):
        yield _tube(i, j, seed, spacing_nm)
    levels = range(math.floor(span[0][0] / _BALL_EVERY), math.ceil(span[0][1] / _BALL_EVERY) + 1)
    for k, i, j in itertools.product(levels, range(*span[1]), range(*span[2])):
        # Half of the gaps have a ball, so that tubes also touch each other.
        if _random(seed, 2, k, i, j)[0] < 0.5:
            yield _ball(k, i, j, seed, spacing_nm)


def _tube(i: int, j: int, seed: int, spacing_nm: float) -> _Object:
    u = _random(seed, 1, 0, i, j)
    return _Object(
        label=1 + _pack(0, i, j),
        radius_nm=spacing_nm * _between(_TUBE_RADIUS, u[0]),
        center_nm=(
            0.0,
            spacing_nm * (i + _between((-_JITTER, _JITTER), u[1])),
            spacing_nm * (j + _between((-_JITTER, _JITTER), u[2])),
        ),
        sway=(
            (u[3], spacing_nm * _between(_SWAY_PERIOD, u[4])),
            (u[5], spacing_nm * _between(_SWAY_PERIOD, u[6])),
        ),
    )


def _ball(k: int, i: int, j: int, seed: int, spacing_nm: float) -> _Object:
    u = _random(seed, 3, k, i, j)
    jitter = (-_JITTER, _JITTER)
    return _Object(
        label=1 + _pack(k + _LATTICE_LIMIT + 1, i, j),
        radius_nm=spacing_nm * _between(_BALL_RADIUS, u[0]),
        center_nm=(
            spacing_nm * (k * _BALL_EVERY + _between(jitter, u[1])),
            spacing_nm * (i + 0.5 + _between(jitter, u[2])),
            spacing_nm * (j + 0.5 + _between(jitter, u[3])),
        ),
    )


def _window(
    item: _Object, axes_nm: list[npt.NDArray[np.float64]], spacing_nm: float
) -> tuple[slice, slice, slice]:
    """The voxels that the object may reach: a rule on coordinates, the same in every box."""
    reach_nm = _REACH * spacing_nm + (_SWAY * spacing_nm if item.sway else 0.0)
    slices = []
    for axis, (center, coordinates) in enumerate(zip(item.center_nm, axes_nm, strict=True)):
        everywhere = item.sway is not None and axis == 0
        low, high = np.searchsorted(coordinates, [center - reach_nm, center + reach_nm])
        slices.append(slice(None) if everywhere else slice(int(low), int(high)))
    z, y, x = slices
    return z, y, x


def _distance(item: _Object, axes_nm: list[npt.NDArray[np.float64]], amplitude_nm: float) -> Real:
    """Distance to the surface, negative inside: to a tube in its section, to a ball in space.

    Offsets are taken in float64 per axis; after that only correctly rounded operations follow,
    so a voxel's value does not depend on its place in the array.
    """
    z_nm, y_nm, x_nm = axes_nm
    _, center_y, center_x = item.center_nm
    if item.sway is None:
        dz = (z_nm - item.center_nm[0]).astype(np.float32)[:, None, None]
        dy = (y_nm - center_y).astype(np.float32)[None, :, None]
        dx = (x_nm - center_x).astype(np.float32)[None, None, :]
        squared = (dz * dz + dy * dy) + dx * dx
    else:
        axis_y, axis_x = (
            center + amplitude_nm * _wave(z_nm / period + phase)
            for center, (phase, period) in zip((center_y, center_x), item.sway, strict=True)
        )
        dy = (y_nm[None, :] - axis_y[:, None]).astype(np.float32)[:, :, None]
        dx = (x_nm[None, :] - axis_x[:, None]).astype(np.float32)[:, None, :]
        squared = dy * dy + dx * dx
    distance: Real = np.sqrt(squared) - np.float32(item.radius_nm)
    return distance


def _wave(turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A smooth wave of period 1 in [-1, 1], like a sine, of correctly rounded operations only."""
    phase = turns - np.floor(turns) - 0.5
    return 8.0 * phase * (1.0 - 2.0 * np.abs(phase))


def _render(gap: Real, labels: Labels, box: BoundingBox, seed: int, noise_grey: float) -> Image:
    """Grey values; `gap` is in membranes: 0 in the middle of one, 1 where its truth ends."""
    # Halfway between dark and bright exactly where the truth ends.
    darkness = np.clip((np.float32(1.4) - gap) / np.float32(0.8), 0, 1)
    label_bits = scramble32((labels & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    tint = (label_bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24) - np.float32(0.5)
    bright = np.float32(_CYTOPLASM_GREY) + np.float32(_CYTOPLASM_SPREAD) * tint
    grey = bright + (np.float32(_MEMBRANE_GREY) - bright) * darkness
    grey += voxel_noise(box, seed) * np.float32(noise_grey)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _random(seed: int, kind: int, k: int, i: int, j: int) -> list[float]:
    """Seven numbers in [0, 1) that belong to a lattice position."""
    position = [seed, kind, *(index + _LATTICE_LIMIT for index in (k, i, j))]
    numbers: list[float] = np.random.default_rng(position).random(7).tolist()
    return numbers


def _between(limits: tuple[float, float], fraction: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * fraction


def _pack(level: int, i: int, j: int) -> int:
    side = 2 * _LATTICE_LIMIT
    return (level * side + i + _LATTICE_LIMIT) * side + j + _LATTICE_LIMIT
