r"""What the microscope sees: grey values of a partition of space, seen through its sections.

A voxel of a section is the mean over its thickness. Membranes are dark sheets; one that stands
oblique in a section is smeared over a wide band:

        z  |  \   membrane, upright      |   \___         seen from above:   ||    vs.   ::::::
           |   |                         |       \___
           +---------- y                 +------------ y

Let u be the distance from the sheet's middle. Within a section u varies by delta to either side,
half a thickness times the slope of u along z, so the grey value is the mean of the sheet's profile
over u - delta ... u + delta, which has a closed form. No second, finer grid is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from h01_beam.geometry import BoundingBox
from h01_beam.testing.noise import smooth_noise, uniform, voxel_noise
from h01_beam.testing.phantom.anatomy import SOMA_KIND, VESSEL_KIND, Anatomy
from h01_beam.testing.phantom.cones import Axes, Cones, Partition, distance_to_cone
from h01_beam.testing.phantom.config import PhantomConfig
from h01_beam.testing.phantom.weave import AXON, DENDRITE, GLIA, MYELINATED

Real = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Points = tuple[Real, Real, Real]

# Two lipid bilayers and the cleft between; and the profile's soft edge.
MEMBRANE_NM, EDGE_NM = 27.0, 9.0
# Further than this from every surface lies extracellular space.
ECS_NM = 120.0

# Structure classes: the kinds of neurites, then what is not theirs.
STRUCTURES = {
    'extracellular': 0, 'axon': AXON, 'dendrite': DENDRITE, 'glia': GLIA, 'soma': 5, 'vessel': 6,
    'myelin': 7, 'membrane': 8,
}  # fmt: skip
ORGANELLES = {'none': 0, 'mitochondrion': 1, 'vesicle': 2, 'density': 3, 'nucleus': 4}
MYELIN, MEMBRANE = 7, 8

_GREY = {AXON: 166.0, DENDRITE: 181.0, GLIA: 190.0, MYELINATED: 176.0, SOMA_KIND: 163.0,
         VESSEL_KIND: 120.0}  # fmt: skip
_ECS_GREY, _LUMEN_GREY, _MEMBRANE_GREY, _MYELIN_GREY = 196.0, 214.0, 52.0, 46.0
_ENDOTHELIUM_NM = 260.0
# The microscope's contrast is stretched about the mean grey level.
_GREY_BEFORE, _GREY_AFTER, _STRETCH = 150.0, 134.0, 1.25
_NUCLEUS_PART = 0.62

_TINT, _COARSE, _FINE, _CHROMATIN, _VESICLE, _SECTION, _CLUMPS, _STAIN = range(500, 508)


@dataclasses.dataclass
class Scene:
    """A box on its way to becoming an image; arrays are zyx over the box.

    Attributes:
      axes_nm: coordinates of the voxels' centres.
      points: z, y and x of each voxel in the tissue.
      where: who owns each voxel; `depth` below is -first.
      kind: of the owner; 0 where there is none.
      grey: of the tissue, before the microscope.
      membrane: how much of a voxel is membrane, 0 to 1.
      structure, organelle: classes.
    """

    config: PhantomConfig
    box: BoundingBox
    anatomy: Anatomy
    axes_nm: Axes
    points: Points
    where: Partition
    kind: npt.NDArray[np.int8]
    grey: Real
    membrane: Real
    structure: Bytes
    organelle: Bytes

    def window(self, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[slice, slice, slice] | None:
        """The voxels between two corners (nm), or None."""
        slices = []
        for axis, a, b in zip(self.axes_nm, np.asarray(low), np.asarray(high), strict=True):
            first, last = np.searchsorted(axis, [a, b])
            if first == last:
                return None
            slices.append(slice(int(first), int(last)))
        z, y, x = slices
        return z, y, x

    def at(self, window: tuple[slice, ...]) -> Points:
        z, y, x = (p[window] for p in self.points)
        return z, y, x


# ------------------------------------------------------------------ membranes


def membrane_fraction(gap: Real, voxel_size_nm: tuple[float, float, float], blur: float) -> Real:
    """How much of each voxel is membrane, from the difference of the two nearest distances.

    Args:
      gap: zyx float32 nm, with one voxel more on every side than the result.
      voxel_size_nm: zyx; z is what the microscope looks through.
      blur: factor on the section's thickness.
    """
    slopes = []
    for axis, size in enumerate(voxel_size_nm):
        # The gap has a kink in the middle of the sheet, so the steeper side counts.
        step = np.abs(np.diff(gap, axis=axis))
        both = np.maximum(_part(step, axis, 0, -1), _part(step, axis, 1, None))
        inner = tuple(slice(None) if a == axis else slice(1, -1) for a in range(3))
        slopes.append(both[inner] * np.float32(1 / size))
    steepness = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
    # Where two owners' surfaces are nearly parallel the gap hardly grows; the sheet is thin still.
    np.maximum(steepness, np.float32(0.7), out=steepness)
    distance = gap[1:-1, 1:-1, 1:-1] / steepness
    across = slopes[0] / steepness
    across *= np.float32(0.5 * blur * voxel_size_nm[0])
    # A pixel is as wide as it is, too.
    half = np.sqrt(across * across + np.float32((0.4 * voxel_size_nm[1]) ** 2))
    return (_profile_integral(distance + half) - _profile_integral(distance - half)) / (2 * half)


def _part(array: Real, axis: int, start: int, stop: int | None) -> Real:
    return array[tuple(slice(start, stop) if a == axis else slice(None) for a in range(3))]


def _profile_integral(x: Real) -> Real:
    """Integral from 0 of a profile that is 1 in the sheet and falls to 0 over its soft edge."""
    inner, outer = np.float32((MEMBRANE_NM - EDGE_NM) / 2), np.float32((MEMBRANE_NM + EDGE_NM) / 2)
    size = np.abs(x)
    fall = np.clip(size - inner, 0, outer - inner)
    total = np.minimum(size, outer) - fall * fall * np.float32(0.5 / (outer - inner))
    return np.copysign(total, x)


# ------------------------------------------------------------------ cytoplasm and organelles


def paint(scene: Scene) -> None:
    """Sets the grey values of all that is in the box, without the microscope."""
    anatomy, config = scene.anatomy, scene.config
    tint = 24.0 * (uniform(config.seed, _TINT, anatomy.ids.astype(np.int64)) - 0.5)
    base = np.array([_GREY.get(int(k), _ECS_GREY) for k in anatomy.kind]) + tint
    table = np.append(base, _ECS_GREY).astype(np.float32)
    scene.grey[...] = table[scene.where.owner]
    scene.grey[scene.kind == 0] = _ECS_GREY
    _texture(scene)
    _paint_somata(scene)
    _paint_mitochondria(scene)
    _paint_reticulum(scene)
    _paint_synapses(scene)
    _paint_sheaths(scene)
    dark = scene.grey - np.float32(_MEMBRANE_GREY)
    dark *= scene.membrane
    dark *= _stain(scene)
    scene.grey -= dark


def _stain(scene: Scene) -> Real:
    """How well membranes took the stain: unevenly, from place to place."""
    difficulty = scene.config.difficulty
    uneven = smooth_noise(scene.axes_nm, (150.0,) * 3, scene.config.seed, _STAIN)
    uneven *= np.float32(0.12 + 0.1 * difficulty)
    uneven += np.float32(0.92 - 0.34 * difficulty)
    return uneven


def _texture(scene: Scene) -> None:
    """Cytoplasm is grainy: filaments, ribosomes, reticulum."""
    seed = scene.config.seed
    coarse = smooth_noise(scene.axes_nm, (60.0, 60.0, 60.0), seed, _COARSE)
    fine = smooth_noise(scene.axes_nm, (30.0, 22.0, 22.0), seed, _FINE)
    clumps = smooth_noise(scene.axes_nm, (190.0,) * 3, seed, _CLUMPS)
    grain = coarse * np.float32(36) + fine * np.float32(58) + clumps * np.float32(20)
    # Grains are dark specks on a bright ground.
    np.minimum(grain, np.float32(24), out=grain)
    calm = np.array([0.35, 1.0, 0.9, 0.75, 0.9, 1.2, 0.5, 0.5], np.float32)
    scene.grey += grain * calm[scene.kind]


def _paint_somata(scene: Scene) -> None:
    """Nuclei with envelope and chromatin."""
    anatomy = scene.anatomy
    for centre, radius, owner in zip(
        anatomy.soma_centres, anatomy.soma_radius_nm, anatomy.soma_ids, strict=True
    ):
        size = _NUCLEUS_PART * radius
        window = scene.window(centre - size - 100, centre + size + 100)
        place = int(np.searchsorted(anatomy.ids, owner))
        if window is None or place == len(anatomy.ids) or anatomy.ids[place] != owner:
            continue
        z, y, x = scene.at(window)
        c = centre.astype(np.float32)
        depth = np.float32(size) - np.sqrt((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2)
        axes = tuple(a[w] for a, w in zip(scene.axes_nm, window, strict=True))
        chromatin = smooth_noise(axes, (320.0,) * 3, scene.config.seed, _CHROMATIN)  # type: ignore[arg-type]
        inside = (depth > 0) & (scene.where.owner[window] == place)
        grey = scene.grey[window]
        np.copyto(grey, np.float32(152) + np.float32(26) * chromatin, where=inside)
        np.copyto(grey, np.float32(70), where=inside & (depth < 32))
        scene.organelle[window][inside] = ORGANELLES['nucleus']


def _paint_mitochondria(scene: Scene) -> None:
    """Dark bodies with an outline and cristae."""
    for window, distance, inside in _within(scene, scene.anatomy.mitochondria):
        z, y, x = scene.at(window)
        # Cristae: plates across, 46 nm apart, wavy as the points are.
        across = (z * np.float32(0.4) + y * np.float32(0.7) + x * np.float32(0.6)) / np.float32(46)
        plates = np.abs(across - np.floor(across) - np.float32(0.5))
        grey = np.float32(104) - np.float32(80) * (plates - np.float32(0.25))
        np.copyto(grey, np.float32(56), where=distance > -14)
        np.copyto(scene.grey[window], grey, where=inside)
        scene.organelle[window][inside] = ORGANELLES['mitochondrion']


def _paint_reticulum(scene: Scene) -> None:
    """Cisternae: pale, with a dark outline."""
    for window, distance, inside in _within(scene, scene.anatomy.reticulum):
        inside &= scene.organelle[window] == 0
        grey = np.where(distance > -11, np.float32(74), np.float32(172))
        np.copyto(scene.grey[window], grey, where=inside)


def _within(
    scene: Scene, cones: Cones
) -> Iterator[tuple[tuple[slice, ...], Real, npt.NDArray[np.bool_]]]:
    """Yields window, distance to the surface and voxels of each cone, clear of its owner's."""
    anatomy = scene.anatomy
    windows = cones.windows(scene.axes_nm, 40.0)
    rank = np.searchsorted(anatomy.ids, cones.owner)
    rank = np.minimum(rank, len(anatomy.ids) - 1)
    known = anatomy.ids[rank] == cones.owner
    for n in np.flatnonzero((windows[:, :, 0] < windows[:, :, 1]).all(axis=1) & known).tolist():
        window = tuple(slice(a, b) for a, b in windows[n])
        points = scene.at(window)
        flat = (axis.reshape(1, -1) for axis in points)
        distance = distance_to_cone(cones, np.array([n]), *flat).reshape(points[0].shape)
        inside = (distance < 0) & (scene.where.owner[window] == rank[n])
        inside &= scene.where.first[window] < -(anatomy.sheath_nm[rank[n]] + 18)
        yield window, distance, inside


def _paint_synapses(scene: Scene) -> None:
    """Densities on the clefts, and clouds of vesicles in the boutons."""
    contacts, ids = scene.anatomy.contacts, scene.anatomy.ids
    for n in range(len(contacts.point)):
        pre, post = (int(np.searchsorted(ids, i)) for i in (contacts.pre[n], contacts.post[n]))
        if (
            max(pre, post) >= len(ids)
            or ids[pre] != contacts.pre[n]
            or ids[post] != contacts.post[n]
        ):
            continue
        _paint_density(scene, n, pre, post)
        _paint_vesicles(scene, n, pre)


def _paint_density(scene: Scene, n: int, pre: int, post: int) -> None:
    contacts = scene.anatomy.contacts
    point, excitatory = contacts.point[n], bool(contacts.excitatory[n])
    radius = 170.0 if excitatory else 130.0
    window = scene.window(point - radius, point + radius)
    if window is None:
        return
    z, y, x = scene.at(window)
    c = point.astype(np.float32)
    away = np.sqrt((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2)
    near = np.clip((np.float32(radius) - away) / 30, 0, 1)
    half_gap = 0.5 * (scene.where.second[window] - scene.where.first[window])
    owner = scene.where.owner[window]
    # Asymmetric: a thick postsynaptic density. Symmetric: thin ones on both sides.
    depth = np.where(owner == post, 52.0 if excitatory else 30.0, 24.0).astype(np.float32)
    weight = near * np.clip((depth - half_gap) / 10, 0, 1)
    weight *= (owner == post) | (owner == pre)
    grey = scene.grey[window]
    grey -= weight * (grey - np.float32(48)) * np.float32(0.85)
    scene.organelle[window][(weight > 0.5) & (owner == post)] = ORGANELLES['density']


def _paint_vesicles(scene: Scene, n: int, pre: int) -> None:
    """Rings of 40 nm on a jittered lattice, near the contact."""
    contacts, cell = scene.anatomy.contacts, 54.0
    middle = contacts.point[n] + 0.6 * (contacts.bouton[n] - contacts.point[n])
    radius = 300.0
    window = scene.window(middle - radius, middle + radius)
    if window is None:
        return
    z, y, x = scene.at(window)
    c = middle.astype(np.float32)
    inside = (z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < radius * radius
    inside &= (scene.where.owner[window] == pre) & (scene.where.first[window] < -26)
    inside &= scene.organelle[window] == 0
    at = np.nonzero(inside)
    points = [p[at].astype(np.float64) for p in (z, y, x)]
    cells = [np.floor(p / cell).astype(np.int64) for p in points]
    squared = np.zeros(len(points[0]))
    for axis in range(3):
        jitter = uniform(scene.config.seed, _VESICLE, axis, *cells)
        squared += (points[axis] - (cells[axis] + 0.38 + 0.24 * jitter) * cell) ** 2
    distance = np.sqrt(squared)
    ring = np.clip(1 - np.abs(distance - 17) / 9, 0, 1) * 74
    scene.grey[window][at] -= (ring - 6).astype(np.float32)
    organelle = scene.organelle[window]
    organelle[at] = np.where(distance < 22, ORGANELLES['vesicle'], organelle[at])


def _paint_sheaths(scene: Scene) -> None:
    """Myelin, endothelium and the lumen of vessels: shells below the surface."""
    sheath = np.append(scene.anatomy.sheath_nm, 0).astype(np.float32)[scene.where.owner]
    depth = -scene.where.first
    myelin = (sheath > 0) & (depth < sheath) & (scene.kind != 0)
    lamellae = np.floor(depth / np.float32(11)) % 2
    np.copyto(scene.grey, np.float32(_MYELIN_GREY) + 26 * lamellae, where=myelin)
    scene.structure[myelin] = MYELIN
    lumen = (scene.kind == VESSEL_KIND) & (depth > _ENDOTHELIUM_NM)
    np.copyto(scene.grey, np.float32(_LUMEN_GREY), where=lumen)


# ------------------------------------------------------------------ the microscope


def expose(scene: Scene, margin: int) -> Bytes:
    """The image (uint8, without `margin` voxels in y and x): optics, noise, drift of contrast."""
    config, box = scene.config, scene.box
    level = 3.0 + 5.0 * config.difficulty
    sections = np.arange(box.start[0], box.end[0])
    gain = 1 + 0.03 * (uniform(config.seed, _SECTION, 0, sections) - 0.5)
    offset = level * (uniform(config.seed, _SECTION, 1, sections) - 0.5)
    # Larger pixels collect more electrons.
    electrons = min(1.2, max(0.4, 7.0 / config.voxel_size_nm[1]))
    noise = voxel_noise(box, config.seed)
    noise *= np.float32((16 + 14 * config.difficulty) * electrons)
    # Shot noise: brighter voxels are noisier.
    noise *= np.float32(0.6) + scene.grey * np.float32(0.4 / 160)
    seen = scene.grey + noise
    spot = (0.0, 4.2 / config.voxel_size_nm[1], 4.2 / config.voxel_size_nm[2])
    seen = ndimage.gaussian_filter(seen, spot, mode='nearest', truncate=3.0)
    seen = (seen - _GREY_BEFORE) * (_STRETCH * gain).astype(np.float32)[:, None, None]
    seen += (_GREY_AFTER + offset).astype(np.float32)[:, None, None]
    seen = seen[:, margin:-margin, margin:-margin]
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)
