"""Makes any box of the phantom: image, truth volumes and truth tables. Numpy in, numpy out."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import BoundingBox
from h01_beam.testing.noise import smooth_noise
from h01_beam.testing.phantom import render
from h01_beam.testing.phantom.anatomy import Anatomy, make_anatomy
from h01_beam.testing.phantom.cones import Axes, Partition, partition
from h01_beam.testing.phantom.config import PhantomConfig
from h01_beam.testing.phantom.weave import AXON, DENDRITE, MYELINATED

# Voxels around a box that its blur and its slopes need.
MARGIN = 3
# Membranes undulate by this much.
_RIPPLE_NM, _RIPPLE_CELL_NM = 26.0, 240.0
_RIPPLE = 600


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A box of synthetic tissue; arrays are zyx.

    Attributes:
      box: the voxels.
      image: uint8.
      neuron: uint64 id of the neurite, glial process or vessel; 0 in membranes, myelin and
        extracellular space. Neurites of one neuron share an id where its soma joins them.
      structure: uint8, `render.STRUCTURES`.
      organelle: uint8, `render.ORGANELLES`.
      anatomy: what the tables are made of; see `truth`.
    """

    box: BoundingBox
    image: npt.NDArray[np.uint8]
    neuron: npt.NDArray[np.uint64]
    structure: npt.NDArray[np.uint8]
    organelle: npt.NDArray[np.uint8]
    anatomy: Anatomy


def make_phantom(config: PhantomConfig, box: BoundingBox) -> Phantom:
    """Makes a box of voxels of the infinite tissue of a seed.

    A box has the same bytes, made on its own or cut out of a larger one.

    Args:
      config: seed, voxel size and difficulty; its `start` and `shape` play no part here.
      box: the voxels; negative coordinates too.

    Raises:
      ValueError: the box is empty.
    """
    if box.size == 0:
        raise ValueError(f'box is {box}: must hold at least one voxel')
    wide = box.pad((0, MARGIN, MARGIN), (0, MARGIN, MARGIN))
    anatomy = make_anatomy(config, wide)
    outer = wide.pad((1, 1, 1), (1, 1, 1))
    scene = _divide(config, wide, outer, anatomy)
    render.paint(scene)
    image = render.expose(scene, MARGIN)
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    neuron = np.append(anatomy.ids, np.uint64(0))[scene.where.owner]
    neuron[(scene.structure == render.MEMBRANE) | (scene.structure == render.MYELIN)] = 0
    neuron[scene.structure == 0] = 0
    return Phantom(
        box=box,
        image=image,
        neuron=np.ascontiguousarray(neuron[inner]),
        structure=np.ascontiguousarray(scene.structure[inner]),
        organelle=np.ascontiguousarray(scene.organelle[inner]),
        anatomy=anatomy,
    )


def _divide(
    config: PhantomConfig, box: BoundingBox, outer: BoundingBox, anatomy: Anatomy
) -> render.Scene:
    """Finds the owners of all voxels of a box, on one that is a voxel wider on all sides."""
    axes = _axes(outer, config)
    points = _ripple(config, axes)
    where = partition(anatomy.surface, anatomy.ids, points, axes, _RIPPLE_NM)
    # Space beyond the last surface is nobody's; its border is a membrane like any other.
    beyond = where.first - np.float32(render.ECS_NM)
    gap = np.minimum(where.second - where.first, 2 * np.abs(beyond))
    membrane = render.membrane_fraction(gap, config.voxel_size_nm, 0.8 + 0.5 * config.difficulty)
    core = (slice(1, -1),) * 3
    inside = Partition(
        np.ascontiguousarray(where.owner[core]),
        np.ascontiguousarray(where.first[core]),
        np.ascontiguousarray(where.second[core]),
    )
    kind = np.append(anatomy.kind, 0).astype(np.int8)[inside.owner]
    _tell_neurites_from_soma(
        kind, inside, (points[0][core], points[1][core], points[2][core]), anatomy
    )
    kind[beyond[core] > 0] = 0
    # Halfway down the profile's edge lies the border of the truth.
    structure = np.where(kind == MYELINATED, AXON, kind).astype(np.uint8)
    thin = gap[core] < np.float32(render.MEMBRANE_NM)
    structure[(thin | (membrane > 0.5)) & (kind != 0)] = render.MEMBRANE
    return render.Scene(
        config=config,
        box=box,
        anatomy=anatomy,
        axes_nm=_axes(box, config),
        points=(points[0][core], points[1][core], points[2][core]),
        where=inside,
        kind=kind,
        grey=np.empty(box.shape, np.float32),
        membrane=membrane,
        structure=structure,
        organelle=np.zeros(box.shape, np.uint8),
    )


def _tell_neurites_from_soma(
    kind: npt.NDArray[np.int8], where: Partition, points: render.Points, anatomy: Anatomy
) -> None:
    """What a soma's neuron owns further away from its centre is dendrite."""
    z, y, x = points
    for centre, radius, owner in zip(
        anatomy.soma_centres, anatomy.soma_radius_nm, anatomy.soma_ids, strict=True
    ):
        place = np.searchsorted(anatomy.ids, owner)
        mine = where.owner == place
        if not mine.any():
            continue
        c = centre.astype(np.float32)
        away = (z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2
        kind[mine & (away > np.float32((1.12 * radius) ** 2))] = DENDRITE


def _axes(box: BoundingBox, config: PhantomConfig) -> Axes:
    z, y, x = (
        (np.arange(s, e, dtype=np.float64) + 0.5) * v
        for s, e, v in zip(box.start, box.end, config.voxel_size_nm, strict=True)
    )
    return z, y, x


def _ripple(config: PhantomConfig, axes: Axes) -> render.Points:
    """Where in the smooth tissue each voxel looks: surfaces there are too even to be real."""
    cell = (_RIPPLE_CELL_NM,) * 3
    points = []
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        ripple = smooth_noise(axes, cell, config.seed, _RIPPLE + axis)
        ripple *= np.float32(_RIPPLE_NM)
        ripple += axes[axis].astype(np.float32).reshape(shape)
        points.append(ripple)
    z, y, x = points
    return z, y, x
