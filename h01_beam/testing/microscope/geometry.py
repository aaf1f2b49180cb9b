r"""Where on the stage the tissue of each section lies, and where in the volume each stage place.

Frames, y down and x right, all in nm:
* volume: voxel i has its centre at (i + 0.5) * voxel_size_nm.
* stage: of one section, the middle of the volume near (0, 0).

A section is turned, shortened, warped, cut at tears and folds, and laid down:

    volume p  --  q = J (p - middle - warp(q))  -->  q  -- cuts -->  -- shift -->  stage

    J = rotation @ compression;  warp: a sum of plane waves

       n (normal)                  tear: what lies at +s comes to +(s + gap / 2)
       ^   tissue                  fold: what lies at +s comes to +(s - lost / 2),
    ---|-------------- line        and a dark band hides what is next to the line
       |   tissue

Stage to volume, the way of the renderer, is a closed formula; the other way is its inverse by
iteration, to 1e-6 nm. All of it belongs to the seed and the section's number alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from h01_beam.registration.maps import CoordinateMap, Reals, grid_points
from h01_beam.testing.microscope.config import MicroscopeConfig
from h01_beam.testing.noise import normal, uniform

# What is to be seen at a stage place.
SEEN, GAP, FOLD = 0, 1, 2
_TURN, _SHIFT, _SHORTEN, _CUT, _WAVE, _LINE = range(700, 706)
_WAVES = 6
Pair = tuple[float, float]
Places = tuple[Reals, Reals]


@dataclasses.dataclass(frozen=True)
class Extent:
    """The box of tissue in the volume's frame: zyx, nm."""

    start_nm: tuple[float, float, float]
    shape_nm: tuple[float, float, float]

    @property
    def middle_nm(self) -> tuple[float, float, float]:
        z, y, x = (s + n / 2 for s, n in zip(self.start_nm, self.shape_nm, strict=True))
        return z, y, x


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tear or a fold along the line `normal . q = offset_nm`; see the module.

    Attributes:
      normal: unit vector, y and x.
      offset_nm: of the line.
      shift_nm: by which either side moved towards the line: below 0 at a tear.
      half_width_nm: of the band around the line where no tissue is told, on the stage.
      state: what is seen in it, `GAP` or `FOLD`.
    """

    normal: Pair
    offset_nm: float
    shift_nm: float
    half_width_nm: float
    state: int

    def side(self, y: Reals, x: Reals) -> Reals:
        """Signed distance from the line, nm."""
        return self.normal[0] * y + self.normal[1] * x - self.offset_nm


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """The map of one section.

    Attributes:
      to_volume: (2, 2) linear part of the map from stage to volume, y and x.
      middle_nm: y, x of the volume's middle.
      shift_nm: y, x of the stage.
      waves: (n, 5): wave vector y and x, phase, amplitude y and x (nm).
      cuts: in the order in which they happened.
    """

    to_volume: Reals
    middle_nm: Pair
    shift_nm: Pair
    waves: Reals
    cuts: tuple[Cut, ...]

    def look(self, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> tuple[Reals, Reals, np.ndarray]:
        """Volume y and x (nm) at stage places, and what is seen there (int8)."""
        y, x = np.broadcast_arrays(np.asarray(y_nm, np.float64), np.asarray(x_nm, np.float64))
        y, x = y - self.shift_nm[0], x - self.shift_nm[1]
        state = np.full(y.shape, SEEN, np.int8)
        for cut in reversed(self.cuts):
            side = cut.side(y, x)
            state = np.where(np.abs(side) < cut.half_width_nm, np.int8(cut.state), state)
            step = np.where(side < 0, -cut.shift_nm, cut.shift_nm)
            y, x = y + cut.normal[0] * step, x + cut.normal[1] * step
        dy, dx = self._warp(y, x)
        a = self.to_volume
        return (
            self.middle_nm[0] + a[0, 0] * y + a[0, 1] * x + dy,
            self.middle_nm[1] + a[1, 0] * y + a[1, 1] * x + dx,
            state,
        )

    def tissue_at(self, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> Places:
        """Volume y and x (nm) at stage places; NaN in the gap of a tear and the band of a fold."""
        y, x, state = self.look(y_nm, x_nm)
        return np.where(state == SEEN, y, np.nan), np.where(state == SEEN, x, np.nan)

    def nm_from_cuts(self, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> Reals:
        """How far stage places are from the nearest gap or band; infinite without any."""
        y, x = np.broadcast_arrays(np.asarray(y_nm, np.float64), np.asarray(x_nm, np.float64))
        y, x = y - self.shift_nm[0], x - self.shift_nm[1]
        nearest = np.full(y.shape, np.inf)
        for cut in reversed(self.cuts):
            side = cut.side(y, x)
            nearest = np.minimum(nearest, np.maximum(np.abs(side) - cut.half_width_nm, 0))
            step = np.where(side < 0, -cut.shift_nm, cut.shift_nm)
            y, x = y + cut.normal[0] * step, x + cut.normal[1] * step
        return nearest

    def stage_at(self, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> Places:
        """Stage y and x (nm) of volume places; NaN for tissue that a fold hides."""
        inverse = np.linalg.inv(self.to_volume)
        far_y = np.asarray(y_nm, np.float64) - self.middle_nm[0]
        far_x = np.asarray(x_nm, np.float64) - self.middle_nm[1]
        dy, dx = np.zeros((2, *np.broadcast_shapes(far_y.shape, far_x.shape)))
        # The limit on its amplitude makes the warp change by less than half of its argument.
        for _ in range(60):
            y = inverse[0, 0] * (far_y - dy) + inverse[0, 1] * (far_x - dx)
            x = inverse[1, 0] * (far_y - dy) + inverse[1, 1] * (far_x - dx)
            before_y, before_x = dy, dx
            dy, dx = self._warp(y, x)
            if max(np.abs(dy - before_y).max(initial=0), np.abs(dx - before_x).max(initial=0)) < (
                1e-7
            ):
                break
        for cut in self.cuts:
            side = cut.side(y, x)
            step = np.where(side < 0, cut.shift_nm, -cut.shift_nm)
            # Where tissue moved apart nothing is hidden: the bound is 0.
            step = np.where(np.abs(side) < cut.shift_nm + cut.half_width_nm, np.nan, step)
            y, x = y + cut.normal[0] * step, x + cut.normal[1] * step
        return y + self.shift_nm[0], x + self.shift_nm[1]

    def _warp(self, y: Reals, x: Reals) -> Places:
        dy, dx = np.zeros((2, *np.shape(y)))
        for ky, kx, phase, along_y, along_x in self.waves:
            wave = np.sin(ky * y + kx * x + phase)
            dy, dx = dy + along_y * wave, dx + along_x * wave
        return dy, dx


@dataclasses.dataclass(frozen=True)
class PixelMap:
    """An exact map in pixels of `pixel_nm`, called as a `CoordinateMap` is: points (2, ...), y, x.

    Pixel (0, 0) of the stage has its centre at (0, 0) nm; pixel (0, 0) of the volume, as voxels
    do, at half a pixel.
    """

    function: Callable[[npt.ArrayLike, npt.ArrayLike], Places]
    pixel_nm: float
    offsets: Pair

    def __call__(self, points: npt.ArrayLike) -> Reals:
        """Maps points; NaN where the map leads nowhere."""
        y, x = (np.asarray(points, np.float64) + self.offsets[0]) * self.pixel_nm
        return np.stack(self.function(y, x)) / self.pixel_nm - self.offsets[1]

    def sampled(self, start: Pair, stride: float, shape: tuple[int, int]) -> CoordinateMap:
        """The map on a grid of nodes in its domain; see `h01_beam.registration.maps`."""
        nodes = grid_points(start, stride, shape)
        return CoordinateMap((self(nodes) - nodes).astype(np.float32), start, stride)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The maps of all sections.

    Attributes:
      config: of the microscope.
      extent: of the tissue.
    """

    config: MicroscopeConfig
    extent: Extent

    def __post_init__(self) -> None:
        """Checks that the damaged sections exist."""
        if self.sections < 1:
            raise ValueError(
                f'the volume is {self.extent.shape_nm[0]:g} nm deep: must be at least '
                f'microscope.thickness_nm, {self.config.thickness_nm:g} nm'
            )
        last = self.config.damage.most_section()
        if last >= self.sections:
            raise ValueError(
                f'microscope.damage needs section {last}: there are only the sections 0 to '
                f'{self.sections - 1}; name others, or give a deeper volume'
            )

    @property
    def sections(self) -> int:
        """How many section numbers there are, those that do not exist included."""
        return int(self.extent.shape_nm[0] / self.config.thickness_nm + 1e-9)

    def is_cut(self, section: int) -> bool:
        """Whether a section exists: not within the double cut before it."""
        return section - 1 not in self.config.damage.double_cuts

    def cutting_order(self, section: int) -> int:
        """How many sections were cut before it, lost ones included."""
        return section - sum(s < section for s in self.config.damage.double_cuts)

    def depth_nm(self, section: int) -> Pair:
        """Top and bottom of a section in the volume's frame."""
        thick = 2 if section in self.config.damage.double_cuts else 1
        return self._cut_nm(section), self._cut_nm(section + thick)

    def thickness_nm(self, section: int) -> float:
        """How thick a section is."""
        top, bottom = self.depth_nm(section)
        return bottom - top

    def tissue_at(self, section: int, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> Places:
        """Stage to volume; see `Section.tissue_at`."""
        return self.section(section).tissue_at(y_nm, x_nm)

    def stage_at(self, section: int, y_nm: npt.ArrayLike, x_nm: npt.ArrayLike) -> Places:
        """Volume to stage; see `Section.stage_at`."""
        return self.section(section).stage_at(y_nm, x_nm)

    def truth_map(self, section: int) -> PixelMap:
        """The forward map of a section: stage pixels to volume pixels."""
        return PixelMap(self.section(section).tissue_at, self.config.pixel_nm, (0.0, 0.5))

    def inverse_map(self, section: int) -> PixelMap:
        """The inverse map of a section: volume pixels to stage pixels."""
        return PixelMap(self.section(section).stage_at, self.config.pixel_nm, (0.5, 0.0))

    def section(self, section: int) -> Section:
        """The map of a section."""
        return _section(self.config, self.extent, section)

    def _cut_nm(self, number: int) -> float:
        # Each cut strays on its own, so that errors of thickness do not add up.
        stray = 0.0
        if 0 < number < self.sections:
            deviation = float(normal(self.config.seed, _CUT, number))
            stray = min(max(self.config.thickness_deviation * deviation, -0.45), 0.45)
        return self.extent.start_nm[0] + self.config.thickness_nm * (number + stray)


@functools.lru_cache(maxsize=64)
def _section(config: MicroscopeConfig, extent: Extent, section: int) -> Section:
    seed = config.seed
    turn = math.radians(config.rotation_degrees) * (2 * float(uniform(seed, _TURN, section)) - 1)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    cutting = math.radians(config.cutting_degrees)
    along = np.array([math.sin(cutting), math.cos(cutting)])
    shorter = float(normal(seed, _SHORTEN, section)) * config.compression_deviation
    shorter = min(max(config.compression + shorter, 0.0), 0.6)
    to_stage = rotation @ (np.eye(2) - shorter * np.outer(along, along))
    shift = config.shift_nm * (2 * uniform(seed, _SHIFT, section, [0, 1]) - 1)
    return Section(
        to_volume=np.linalg.inv(to_stage).astype(np.float64),
        middle_nm=extent.middle_nm[1:],
        shift_nm=(float(shift[0]), float(shift[1])),
        waves=_waves(config, section),
        cuts=_cuts(config, extent, section),
    )


def _waves(config: MicroscopeConfig, section: int) -> Reals:
    """Plane waves whose displacements have the configured deviation along y and x."""
    numbers = uniform(config.seed, _WAVE, section, np.arange(4)[:, None], np.arange(_WAVES))
    length = config.elastic_cell_nm * (0.8 + 0.5 * numbers[0])
    angle, phase, towards = 2 * math.pi * numbers[1:]
    k = 2 * math.pi / length
    # A wave of amplitude a has the variance a * a / 2, shared by y and x.
    amplitude = config.elastic_nm * 2 / math.sqrt(_WAVES)
    return np.stack(
        [
            k * np.sin(angle),
            k * np.cos(angle),
            phase,
            amplitude * np.sin(towards),
            amplitude * np.cos(towards),
        ],
        axis=1,
    )


def _cuts(config: MicroscopeConfig, extent: Extent, section: int) -> tuple[Cut, ...]:
    damage = config.damage
    tear, fold = damage.tear_nm, damage.fold_nm
    cuts = []
    for state, sections, shift, half_width in (
        (GAP, damage.torn_sections, -tear / 2, tear / 2),
        (FOLD, damage.folded_sections, fold / 2, fold / 4),
    ):
        if section not in sections:
            continue
        angle, place = uniform(config.seed, _LINE, section, state, [0, 1]).tolist()
        normal_yx = (math.sin(math.pi * angle), math.cos(math.pi * angle))
        offset = 0.4 * (place - 0.5) * min(extent.shape_nm[1:])
        cuts.append(Cut(normal_yx, offset, shift, half_width, state))
    return tuple(cuts)
