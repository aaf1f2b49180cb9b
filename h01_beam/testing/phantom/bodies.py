"""Somata and vessels: what tracks end at or go around."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h01_beam.testing.noise import uniform
from h01_beam.testing.phantom import curves
from h01_beam.testing.phantom.cones import Cones
from h01_beam.testing.phantom.weave import CELLS, PITCH_NM, SOMA, VESSEL, Bools, Ints, Reals, Weave

Ids = npt.NDArray[np.uint64]

# Room between the surface of a soma and the nearest node of a neurite.
_SOMA_CLEARANCE_NM = 250.0
# Vessels are warped with the tissue, which is not undone for the test.
_VESSEL_CLEARANCE_NM = 500.0
_VESSEL_STEPS = 10
_LUMPS = 310


class Bodies:
    """Somata and vessels that can reach a range of the lattice.

    Attributes:
      centres: (n, 3) world nm, of somata.
      radius_nm: of somata.
      ids: of the somata's neurons.
    """

    def __init__(self, weave: Weave, low: Reals, high: Reals) -> None:
        size = CELLS * PITCH_NM
        ranges = [
            np.arange(int(a // size), int(b // size) + 1) for a, b in zip(low, high, strict=True)
        ]
        cells = np.stack(np.meshgrid(*ranges, indexing='ij'), axis=-1).reshape(-1, 3)
        found = weave.bodies(cells)
        soma, vessel = found.kind == SOMA, found.kind == VESSEL
        self._seed = weave.seed
        self.centres = curves.to_world(weave.seed, found.centre[soma])
        self.radius_nm = found.radius_nm[soma]
        self.ids = soma_ids(found.cell[soma])
        self._vessel_centre = found.centre[vessel]
        self._vessel_radius = found.radius_nm[vessel]
        self._vessel_cell = found.cell[vessel]

    def swallow(self, lattice: Reals, world: Reals) -> Bools:
        """Which points, (n, 3) nm, lie in a body, or too near to one for a neurite to pass."""
        inside = np.zeros(len(world), np.bool_)
        for centre, radius in zip(self.centres, self.radius_nm, strict=True):
            inside |= _squared(world - centre) < (radius + _SOMA_CLEARANCE_NM) ** 2
        columns = np.unique(self._vessel_cell[:, :2], axis=0, return_index=True)[1]
        for column in columns:
            away = lattice[:, :2] - self._vessel_centre[column, :2]
            inside |= _squared(away) < (self._vessel_radius[column] + _VESSEL_CLEARANCE_NM) ** 2
        return inside

    def cones(self) -> Cones:
        """Somata as lumps of three balls, vessels as chains of cylinders."""
        lumps = uniform(self._seed, _LUMPS, np.arange(9)[None, :], self.ids[:, None]) - 0.5
        parts = []
        for part in range(3):
            offset = lumps[:, 3 * part : 3 * part + 3] * (0.5 * self.radius_nm[:, None])
            balls = self.centres + offset
            parts.append(
                Cones(balls, balls, 0.86 * self.radius_nm, 0.86 * self.radius_nm, self.ids)
            )
        radius, ids = self._vessel_radius, vessel_ids(self._vessel_cell)
        for step in range(_VESSEL_STEPS):
            start, end = self._along_vessels(step), self._along_vessels(step + 1)
            parts.append(Cones(start, end, radius, radius, ids))
        return Cones.join(parts)

    def _along_vessels(self, step: int) -> Reals:
        points = self._vessel_centre.copy()
        points[:, 2] = (self._vessel_cell[:, 2] + step / _VESSEL_STEPS) * (CELLS * PITCH_NM)
        return curves.to_world(self._seed, points)


def soma_ids(cell: Ints) -> Ids:
    """Ids of the neurons whose soma lies in an interval."""
    return _pack_cell(cell) | np.uint64(1 << 50)


def vessel_ids(cell: Ints) -> Ids:
    """Ids of vessels, one for each column of intervals."""
    return _pack_cell(cell * np.array([1, 1, 0])) | np.uint64(3 << 50)


def is_soma(ids: Ids) -> Bools:
    """Whether ids are those of neurons with a soma that is known."""
    return (ids >> np.uint64(50)) == 1


def is_vessel(ids: Ids) -> Bools:
    """Whether ids are those of vessels."""
    return (ids >> np.uint64(50)) == 3


def _pack_cell(cell: Ints) -> Ids:
    z, y, x = (cell + 2**14).astype(np.uint64).T
    return (z << np.uint64(30)) | (y << np.uint64(15)) | x


def _squared(vectors: Reals) -> Reals:
    return (vectors * vectors).sum(axis=1)
