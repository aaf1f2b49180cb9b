"""A segmentation without any network: what others have to beat.

    image -> smoothed -> membranes (dark sheets) -> distance to them -> seeds -> watershed

Where sections are much thicker than pixels are wide, each is segmented by itself, and profiles of
neighbours that are each other's largest overlap are one object: membranes are closed lines in a
section, but leak between thick sections. Elsewhere the same is done in space.

Sources: sheets by the Hessian's largest eigenvalue, Frangi et al., MICCAI 1998; seeds at peaks of
the distance to membranes and a watershed from them as in Beier et al., "Multicut brings automated
neurite segmentation closer to human performance", Nature Methods 14 (2017); the watershed is the
image foresting transform of Falcao et al., IEEE TPAMI 26 (2004), in SciPy.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import edt
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from h01_beam.evaluation.baseline_config import BaselineConfig
from h01_beam.geometry import Block, Triple
from h01_beam.labels import LOCAL_BITS, supervoxel_ids
from h01_beam.plan import BlockResult
from h01_beam.slots import Slots

VoxelSize = tuple[float, float, float]
Real = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Beside the image: smoothed, derivatives, distances, markers; float32 and float64 at once.
WORKING_BYTES_PER_VOXEL = 64
_MOST_SWEEPS = 200
# From this ratio of section to pixel on, membranes leak between sections.
_THICK = 1.5


def segment_by_watershed(
    image: npt.NDArray[np.uint8],
    voxel_size_nm: VoxelSize,
    config: BaselineConfig | None = None,
    mask: Mask | None = None,
) -> npt.NDArray[np.uint32]:
    """Segments an image by its membranes.

    Args:
      image: zyx uint8, membranes dark.
      voxel_size_nm: zyx.
      config: settings.
      mask: zyx bool, true where nothing is to be segmented.

    Returns:
      zyx uint32 labels from 1; 0 in membranes, in the mask and in segments that are too small.
      A function of the arguments alone.
    """
    config = config or BaselineConfig()
    sheets = sheet_strength(image, voxel_size_nm, config.smoothing_nm)
    level = np.float32(np.quantile(sheets, 1 - config.membrane_quantile))
    membrane = sheets > max(level, np.float32(0))
    if mask is not None:
        membrane |= mask
    if not membrane.any():
        return np.ones(image.shape, np.uint32)
    if voxel_size_nm[0] > _THICK * voxel_size_nm[1]:
        labels = _segment_sections(~membrane, voxel_size_nm, config)
    else:
        labels = _segment(~membrane, voxel_size_nm, config)
    ids, inverse, voxels = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (voxels >= config.min_voxels) & (ids > 0)
    renumbered = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    return renumbered[inverse].reshape(image.shape)


def _segment(
    inside: Mask, sampling_nm: Sequence[float], config: BaselineConfig
) -> npt.NDArray[np.int64]:
    """Labels, 0 outside, of a plane or a volume by seeds and watershed."""
    distance = edt.edt(
        np.ascontiguousarray(inside), anisotropy=tuple(sampling_nm), black_border=False, parallel=1
    )
    seeds = _seeds(distance, config)
    if not seeds.any():
        return np.zeros(inside.shape, np.int64)
    # Deepest voxels first.
    scale = 65000 / max(float(distance.max()), 1e-6)
    cost = np.uint16(65535) - np.rint(distance * scale).astype(np.uint16)
    return np.where(inside, ndimage.watershed_ift(cost, seeds), 0).astype(np.int64)


def _segment_sections(
    inside: Mask, voxel_size_nm: VoxelSize, config: BaselineConfig
) -> npt.NDArray[np.int64]:
    """Labels of all sections, each by itself, then joined along z."""
    profiles = np.zeros(inside.shape, np.int64)
    count = 0
    for z, section in enumerate(inside):
        found = _segment(section, voxel_size_nm[1:], config)
        profiles[z] = np.where(found > 0, found + count, 0)
        count += int(found.max())
    sizes = np.bincount(profiles.ravel(), minlength=count + 1)
    edges = [
        _links(lower, upper, sizes, config.least_overlap)
        for lower, upper in itertools.pairwise(profiles)
    ]
    a, b = np.concatenate([np.empty((2, 0), np.int64), *edges], axis=1)
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(count + 1, count + 1))
    _, component = connected_components(graph, directed=False)
    return np.where(profiles > 0, component[profiles] + 1, 0)


def _links(
    lower: npt.NDArray[np.int64],
    upper: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    least_overlap: float,
) -> npt.NDArray[np.int64]:
    """(2, n) pairs of profiles that are each other's largest overlap."""
    both = (lower > 0) & (upper > 0)
    pairs, voxels = np.unique(np.stack([lower[both], upper[both]]), axis=1, return_counts=True)
    # The largest overlap of each comes last in this order.
    order = np.argsort(voxels, kind='stable')
    best = [np.zeros(len(sizes), np.int64) for _ in range(2)]
    for side in range(2):
        best[side][pairs[side][order]] = pairs[1 - side][order]
    mutual = (best[0][pairs[0]] == pairs[1]) & (best[1][pairs[1]] == pairs[0])
    enough = voxels >= least_overlap * np.minimum(sizes[pairs[0]], sizes[pairs[1]])
    return pairs[:, mutual & enough]


def sheet_strength(
    image: npt.NDArray[np.uint8], voxel_size_nm: VoxelSize, smoothing_nm: float
) -> Real:
    """How much each voxel is part of a dark sheet, zyx float32.

    The largest second derivative in the plane of the section, in which resolution is best; a sheet
    that lies flat in the section is dark there, and is found by its darkness.
    """
    sigma = [
        min(smoothing_nm / size, 4.0) if size <= 2 * smoothing_nm else 0.0 for size in voxel_size_nm
    ]
    smooth = ndimage.gaussian_filter(image.astype(np.float32), sigma, mode='nearest')
    yy, xx, yx = (
        ndimage.gaussian_filter(
            smooth, [0.0, *(max(s, 0.7) for s in sigma[1:])], order=order, mode='nearest'
        )
        for order in ((0, 2, 0), (0, 0, 2), (0, 1, 1))
    )
    half = (yy - xx) / 2
    ridge = (yy + xx) / 2 + np.sqrt(half * half + yx * yx)
    ridge /= max(float(ridge.std()), 1e-6)
    dark = (smooth.mean() - smooth) / max(float(smooth.std()), 1e-6)
    return (ridge + dark).astype(np.float32)


def _seeds(distance: Real, config: BaselineConfig) -> npt.NDArray[np.int32]:
    """Connected peaks that stand out by `seed_depth_nm` from the way to any higher one."""
    lowered = _reconstruct(distance - np.float32(config.seed_depth_nm), distance)
    peaks = (distance - lowered >= config.seed_depth_nm * 0.999) & (distance >= config.seed_nm)
    connectivity = ndimage.generate_binary_structure(distance.ndim, distance.ndim)
    seeds, _ = ndimage.label(peaks, connectivity)
    return np.asarray(seeds, np.int32)


def _reconstruct(marker: Real, limit: Real) -> Real:
    """Grey reconstruction by dilation: the marker rises as far as it can reach below the limit.

    The marker is the limit less a constant, so that few sweeps reach far.
    """
    current = np.minimum(marker, limit)
    for _ in range(_MOST_SWEEPS):
        raised = np.minimum(
            ndimage.grey_dilation(current, (3,) * limit.ndim, mode='nearest'), limit
        )
        if np.array_equal(raised, current):
            break
        current = raised
    return current


@dataclasses.dataclass
class WatershedBlock:
    """Segments a block without a network: uint8 image over the read box -> block labels."""

    voxel_size_nm: VoxelSize
    config: BaselineConfig
    slots: Slots

    def working_bytes(self, read_shape: Triple) -> int:
        return WORKING_BYTES_PER_VOXEL * math.prod(read_shape)

    def __call__(
        self, image: npt.NDArray[np.uint8], block: Block, mask: npt.NDArray[np.uint8] | None = None
    ) -> BlockResult:
        labels = segment_by_watershed(
            image, self.voxel_size_nm, self.config, None if mask is None else mask != 0
        )
        voxels = np.bincount(labels[block.core_in_read].ravel(), minlength=int(labels.max()) + 1)
        base = np.uint64(self.slots.grid.linear(block.index) << LOCAL_BITS)
        ids = supervoxel_ids(labels, voxels, base)
        return BlockResult(
            arrays={'block_labels': self.slots.pad(ids, block)},
            metrics={'supervoxels': float(np.count_nonzero(voxels[1:]))},
        )
