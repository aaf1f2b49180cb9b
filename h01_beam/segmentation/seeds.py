"""Starting points for flood filling.

A seed is a voxel (z, y, x) at which the network is started once. Good seeds lie deep inside
a neurite: far from every edge in the image. Every function here is deterministic, so a block
that runs twice floods from the same voxels in the same order.

Source: the seed policies of google/ffn (`ffn/inference/seed.py`), described in Januszewski et
al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature
Methods 15, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import edt
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Points = npt.NDArray[np.int64]
UInt8Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

# An edge is a gradient above its own average over a window of about 49 voxels.
EDGE_WINDOW_SIGMA = 49.0 / 6.0
PEAK_MIN_DISTANCE = 3
# Distances are often equal; noise far below a voxel picks one of the equals, always the same.
# RandomState, because NumPy guarantees its stream for ever, which it does not for Generator.
NOISE_SEED = 42
NOISE_AMPLITUDE = 1e-4
GRID_STEP = 16
GRID_OFFSETS = (0, 8, 4, 12, 2, 10, 14)
POLICIES = ('peaks', 'peaks_2d', 'grid_3d')


def propose_seeds(
    image: UInt8Image,
    policy: str = 'peaks',
    *,
    mask: Mask | None = None,
    voxel_size_nm: Sequence[float] | None = None,
) -> Points:
    """Computes the seeds of a whole image, in the order in which to flood from them.

    Args:
      image: (z, y, x) uint8.
      policy: one of `POLICIES`.
      mask: (z, y, x) bool, true where nothing may be segmented; None for nowhere. Peaks keep
        away from it as from an edge.
      voxel_size_nm: edge lengths of a voxel along z, y, x, by which `peaks` measures distance;
        None measures in voxels, as published.

    Returns:
      (n, 3) int64 zyx voxels.

    Raises:
      ValueError: the policy is unknown.
    """
    if policy == 'peaks':
        return distance_peaks(image, mask=mask, voxel_size_nm=voxel_size_nm)
    if policy == 'peaks_2d':
        sampling = None if voxel_size_nm is None else voxel_size_nm[1:]
        return distance_peaks_2d(image, mask=mask, voxel_size_nm=sampling)
    if policy == 'grid_3d':
        return grid_points(image.shape)
    raise ValueError(f'ffn.seed_policy is {policy!r}: must be one of {", ".join(POLICIES)}')


def distance_peaks(
    image: npt.NDArray[np.uint8],
    *,
    mask: Mask | None = None,
    voxel_size_nm: Sequence[float] | None = None,
) -> Points:
    """Finds the voxels that lie furthest from the edges around them.

    Sobel gradient magnitude; an edge wherever it exceeds its Gaussian average; Euclidean
    distance to the nearest edge; local maxima of that distance, at least `PEAK_MIN_DISTANCE`
    voxels apart along some axis. Works for any number of axes.

    Args:
      image: n-dimensional uint8.
      mask: bool of the same shape, true voxels count as edges.
      voxel_size_nm: edge lengths of a voxel, one for each axis. Distances are then in units
        of the shortest edge; None measures in voxels, as published. The gradient and its
        average stay in voxels.

    Returns:
      (n, ndim) int64 voxels in ascending lexicographic order; none in an image without edges.
    """
    interior = ~_edges(image)
    if mask is not None:
        interior &= ~mask
    if interior.all():
        return np.empty((0, image.ndim), np.int64)
    if voxel_size_nm is None:
        sampling = (1.0,) * image.ndim
    else:
        shortest = min(voxel_size_nm)
        sampling = tuple(float(size / shortest) for size in voxel_size_nm)
    distance = edt.edt(np.ascontiguousarray(interior), anisotropy=sampling, parallel=1)
    score = np.random.RandomState(NOISE_SEED).random_sample(image.shape)
    score *= NOISE_AMPLITUDE
    score += distance
    del distance, interior  # The filter below is where memory peaks.
    return local_maxima(score, PEAK_MIN_DISTANCE)


def distance_peaks_2d(
    image: UInt8Image,
    *,
    mask: Mask | None = None,
    voxel_size_nm: Sequence[float] | None = None,
) -> Points:
    """Finds `distance_peaks` in every section by itself, for thick or badly aligned sections.

    Args:
      image: (z, y, x) uint8.
      mask: (z, y, x) bool, true voxels count as edges.
      voxel_size_nm: edge lengths of a voxel along y, x; None measures in voxels.

    Returns:
      (n, 3) int64 zyx voxels in ascending order.
    """
    sections = []
    for z, section in enumerate(image):
        peaks = distance_peaks(
            section, mask=None if mask is None else mask[z], voxel_size_nm=voxel_size_nm
        )
        sections.append(np.insert(peaks, 0, z, axis=1))
    return np.concatenate(sections) if sections else np.empty((0, 3), np.int64)


def grid_points(
    shape: Sequence[int], step: int = GRID_STEP, offsets: Sequence[int] = GRID_OFFSETS
) -> Points:
    """Lists the points of interleaved grids, the first grid first.

    Returns:
      (n, 3) int64 zyx voxels within `shape`.
    """
    grids = [
        np.stack(
            np.meshgrid(*(np.arange(offset, size, step) for size in shape), indexing='ij'), axis=-1
        ).reshape(-1, 3)
        for offset in offsets
    ]
    return np.concatenate(grids).astype(np.int64)


def reverse_origins(objects: npt.NDArray[np.void]) -> Points:
    """Lists the origins of a first pass backwards, to seed a second pass.

    Where two passes in opposite orders disagree, one of them merged; see
    `h01_beam.segmentation.ffn.FloodFill.objects` for the record.

    Args:
      objects: (n,) records with fields `id` and `seed`.

    Returns:
      (n, 3) int64 zyx voxels, highest id first.
    """
    backwards = np.argsort(objects['id'], kind='stable')[::-1]
    return np.asarray(objects['seed'][backwards], dtype=np.int64).reshape(-1, 3)


def local_maxima(score: npt.NDArray[np.floating], min_distance: int) -> Points:
    """Finds positive voxels that no voxel within `min_distance` along every axis exceeds.

    Voxels nearer than `min_distance` to a face of the array are never maxima, and a constant
    array has none: the behaviour of scikit-image's `peak_local_max` with thresholds of 0 when
    no two neighbouring maxima are equal. Equal maxima are all returned.

    Returns:
      (n, ndim) int64 in ascending lexicographic order.
    """
    inside = tuple(slice(min_distance, size - min_distance) for size in score.shape)
    values = score[inside]
    if values.size == 0 or score.min() == score.max():
        return np.empty((0, score.ndim), np.int64)
    highest = ndimage.maximum_filter(score, size=2 * min_distance + 1, mode='nearest')
    peaks = (values == highest[inside]) & (values > 0)
    return np.argwhere(peaks) + min_distance


def usable_seeds(
    points: npt.NDArray[np.integer], shape: Sequence[int], fov_shape: Sequence[int]
) -> Points:
    """Keeps the points around which a whole field of view fits.

    Those in the halo of a block count too, and in the same order as those of its core: an object
    may cross the core and peak outside, and blocks that go through the seeds of their overlap in
    one order make the same objects of them.

    Args:
      points: (n, 3) integer zyx voxels.
      shape: the canvas, zyx.
      fov_shape: the field of view, zyx; its centre is voxel `fov_shape // 2`.

    Returns:
      (m, 3) int64, in the order of `points`.

    Raises:
      ValueError: `points` is not an (n, 3) array of integers.
    """
    points = np.asarray(points)
    if points.size == 0:
        return np.empty((0, 3), np.int64)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in 'iu':
        raise ValueError(
            f'seed_points has shape {points.shape} and dtype {points.dtype}: must be (n, 3) '
            'integers, one zyx voxel a row'
        )
    # Margins as published: an even field of view loses a voxel at its far end.
    margin = np.asarray(fov_shape) // 2
    low, high = margin, np.asarray(shape) - margin
    voxels = points.astype(np.int64)
    return voxels[np.all((voxels >= low) & (voxels < high), axis=1)]


def _edges(image: npt.NDArray[np.uint8]) -> Mask:
    gradient = ndimage.generic_gradient_magnitude(image.astype(np.float32), ndimage.sobel)
    average = ndimage.gaussian_filter(gradient, EDGE_WINDOW_SIGMA, mode='reflect')
    edges: Mask = gradient > average
    return edges
