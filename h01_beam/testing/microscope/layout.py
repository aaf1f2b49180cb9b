r"""Where the tiles of a section lie on the stage: beams in hexagons, hexagons in a hexagon.

    beams of a field          every row is shifted by half a tile
         5  4
       6  0  3                places are q (along a row) and r (row): y = r, x = q + r / 2
         1  2

Full hexagons of n rings tile the plane: the next field lies 2 n + 1 places along q and -n along r
away, and at all turns of this by 60 degrees. That holds for fields, and places of fields are
numbered as those of beams are.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from h01_beam.registration.maps import Reals
from h01_beam.testing.microscope.config import MicroscopeConfig
from h01_beam.testing.microscope.geometry import Extent
from h01_beam.testing.noise import normal

_FIELD, _BEAM = 710, 711
_DIRECTIONS = ((1, 0), (1, -1), (0, -1), (-1, 0), (-1, 1), (0, 1))


def hexagon(rings: int) -> int:
    """Number of places of a hexagon: 1, 7, 19, 37, 61..."""
    return 3 * rings * rings + 3 * rings + 1


def spiral(count: int) -> npt.NDArray[np.int64]:
    """(count, 2) places q and r, from the middle outwards, ring by ring."""
    places = [(0, 0)]
    ring = 0
    while len(places) < count:
        ring += 1
        q, r = -ring, ring
        for dq, dr in _DIRECTIONS:
            for _ in range(ring):
                places.append((q, r))
                q, r = q + dq, r + dr
    return np.array(places[:count], np.int64)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places of tiles on the stage.

    Attributes:
      config: of the microscope.
      extent: of the tissue, which the fields cover if `config.fields` is None.
    """

    config: MicroscopeConfig
    extent: Extent

    @functools.cached_property
    def beams_nm(self) -> Reals:
        """(beams, 2) y, x of the middles of a field's tiles, from the middle of the field."""
        return self._stage_nm(spiral(self.config.beams))

    @functools.cached_property
    def fields_nm(self) -> Reals:
        """(fields, 2) y, x of the middles of the fields."""
        if self.config.fields is not None:
            return self._fields_nm(self.config.fields)
        rings, touching = 0, [True]
        while any(touching):
            rings += 1
            found = self._fields_nm(hexagon(rings))
            touching = self._touches(found[hexagon(rings - 1) :]).tolist()
        return found[self._touches(found)]

    def reported_nm(self, field: int) -> Reals:
        """(beams, 2) y, x of the centres of the tiles' first pixels, as the stage reports them."""
        first = (np.array(self.config.tile_shape) - 1) / 2 * self.config.pixel_nm
        return self.fields_nm[field] + self.beams_nm - first

    def true_nm(self, section: int, field: int) -> Reals:
        """(beams, 2) y, x where the centres of the tiles' first pixels really are."""
        seed, axes = self.config.seed, np.arange(2)
        beams = np.arange(self.config.beams)[:, None]
        field_error = self.config.stage_jitter_nm * normal(seed, _FIELD, section, field, axes)
        beam_error = self.config.beam_jitter_nm * normal(seed, _BEAM, section, field, beams, axes)
        return self.reported_nm(field) + field_error + beam_error

    def _stage_nm(self, places: npt.NDArray[np.int64]) -> Reals:
        q, r = places.T
        pitch = np.array(self.config.tile_shape) * self.config.pixel_nm
        pitch = pitch * (1 - self.config.beam_overlap)
        return np.stack([r * pitch[0], (q + r / 2) * pitch[1]], axis=1)

    def _fields_nm(self, count: int) -> Reals:
        rings = next(n for n in range(100) if hexagon(n) >= self.config.beams)
        a, b = np.array([2 * rings + 1, -rings]), np.array([rings, rings + 1])
        q, r = spiral(count).T
        places = q[:, None] * a + r[:, None] * b
        return self._stage_nm(places) * (1 - self.config.field_overlap)

    def _touches(self, fields_nm: Reals) -> npt.NDArray[np.bool_]:
        """Whether a tile of a field may see tissue, however the section is turned."""
        config = self.config
        _, height, width = self.extent.shape_nm
        turned = math.sin(math.radians(min(config.rotation_degrees, 90.0)))
        reach = np.array([height + turned * width, width + turned * height]) / 2
        reach = reach + np.array(config.tile_shape) * config.pixel_nm / 2
        reach = reach + config.shift_nm + 3 * config.elastic_nm
        if config.damage.torn_sections:
            reach = reach + config.damage.tear_nm / 2
        tiles = fields_nm[:, None] + self.beams_nm
        return np.asarray(np.any(np.all(np.abs(tiles) < reach, axis=2), axis=1))
