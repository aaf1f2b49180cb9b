"""Truth tables of a box of the phantom: rows that each belong to one box, by their place.

Tables of all blocks of a volume, put together, are the tables of the volume: a row lies in the
block that holds its point, and lengths and voxels of a neurite add up over blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h01_beam import tables
from h01_beam.geometry import BoundingBox
from h01_beam.testing.phantom.anatomy import SOMA_KIND, VESSEL_KIND
from h01_beam.testing.phantom.make import Phantom
from h01_beam.testing.phantom.weave import AXON, DENDRITE, GLIA, MYELINATED

VoxelSize = tuple[float, float, float]

# What a neurite is, by number; myelinated axons are those with a sheath.
KINDS = {
    AXON: 'axon',
    DENDRITE: 'dendrite',
    GLIA: 'glia',
    MYELINATED: 'myelinated axon',
    SOMA_KIND: 'neuron with soma',
    VESSEL_KIND: 'vessel',
}
# All that a neuron's part within one block amounts to. `calibre_nm` is the mean diameter of its
# skeleton there, weighted by length; `inhibitory` is 1 or 0, and means nothing for glia.
NEURITES = tables.Schema(
    {
        'neuron': 'uint64',
        'kind': 'str',
        'inhibitory': 'uint8',
        'length_nm': 'float64',
        'calibre_nm': 'float64',
        'voxels': 'int64',
    }
)
# Skeletons: straight edges, in the block of their first end.
SKELETON_EDGES = tables.Schema(
    {
        'neuron': 'uint64',
        'z0_nm': 'float64',
        'y0_nm': 'float64',
        'x0_nm': 'float64',
        'z1_nm': 'float64',
        'y1_nm': 'float64',
        'x1_nm': 'float64',
        'radius0_nm': 'float64',
        'radius1_nm': 'float64',
    }
)
# Synapses, at the middle of their cleft.
SYNAPSES = tables.Schema(
    {
        'pre': 'uint64',
        'post': 'uint64',
        'z_nm': 'float64',
        'y_nm': 'float64',
        'x_nm': 'float64',
        'excitatory': 'uint8',
        'on_spine': 'uint8',
    }
)
SOMATA = tables.Schema(
    {'neuron': 'uint64', 'z_nm': 'float64', 'y_nm': 'float64', 'x_nm': 'float64',
     'radius_nm': 'float64', 'inhibitory': 'uint8'}
)  # fmt: skip
SCHEMAS = {
    'neurites': NEURITES,
    'skeleton_edges': SKELETON_EDGES,
    'synapses': SYNAPSES,
    'somata': SOMATA,
}


def truth_tables(phantom: Phantom, voxel_size_nm: VoxelSize) -> dict[str, tables.Columns]:
    """Rows of a box, by the name of their table; see `SCHEMAS`."""
    edges = _skeleton_edges(phantom, voxel_size_nm)
    return {
        'neurites': _neurites(phantom, edges),
        'skeleton_edges': edges,
        'synapses': _synapses(phantom, voxel_size_nm),
        'somata': _somata(phantom, voxel_size_nm),
    }


def _inside(
    points_nm: npt.NDArray[np.float64], box: BoundingBox, voxel_size_nm: VoxelSize
) -> npt.NDArray[np.intp]:
    low, high = np.array(box.start) * voxel_size_nm, np.array(box.end) * voxel_size_nm
    return np.flatnonzero(((points_nm >= low) & (points_nm < high)).all(axis=1))


def _skeleton_edges(phantom: Phantom, voxel_size_nm: VoxelSize) -> tables.Columns:
    cones = phantom.anatomy.surface
    at = _inside(cones.start, phantom.box, voxel_size_nm)
    # Balls (heads of spines, somata) are no edges.
    at = at[(cones.start[at] != cones.end[at]).any(axis=1)]
    part = cones.take(at)
    columns: tables.Columns = {'neuron': part.owner}
    for end, points in enumerate((part.start, part.end)):
        for axis, name in enumerate('zyx'):
            columns[f'{name}{end}_nm'] = points[:, axis]
    columns['radius0_nm'], columns['radius1_nm'] = part.radius_start, part.radius_end
    return columns


def _neurites(phantom: Phantom, edges: tables.Columns) -> tables.Columns:
    anatomy = phantom.anatomy
    place = np.searchsorted(anatomy.ids, edges['neuron'])
    steps = [edges[f'{name}1_nm'] - edges[f'{name}0_nm'] for name in 'zyx']
    length = np.sqrt(steps[0] ** 2 + steps[1] ** 2 + steps[2] ** 2)
    width = edges['radius0_nm'] + edges['radius1_nm']
    count = len(anatomy.ids)
    total = np.bincount(place, length, minlength=count)
    calibre = np.bincount(place, length * width, minlength=count) / np.maximum(total, 1e-9)
    labels, voxels = np.unique(phantom.neuron, return_counts=True)
    labelled = labels != 0
    filled = np.zeros(count, np.int64)
    filled[np.searchsorted(anatomy.ids, labels[labelled])] = voxels[labelled]
    here = np.flatnonzero((total > 0) | (filled > 0))
    return {
        'neuron': anatomy.ids[here],
        'kind': np.array([KINDS[int(k)] for k in anatomy.kind[here]], object),
        'inhibitory': anatomy.inhibitory[here],
        'length_nm': total[here],
        'calibre_nm': calibre[here],
        'voxels': filled[here],
    }


def _synapses(phantom: Phantom, voxel_size_nm: VoxelSize) -> tables.Columns:
    contacts = phantom.anatomy.contacts
    part = contacts.take(_inside(contacts.point, phantom.box, voxel_size_nm))
    z, y, x = part.point.T
    return {
        'pre': part.pre, 'post': part.post, 'z_nm': z, 'y_nm': y, 'x_nm': x,
        'excitatory': part.excitatory, 'on_spine': part.on_spine,
    }  # fmt: skip


def _somata(phantom: Phantom, voxel_size_nm: VoxelSize) -> tables.Columns:
    anatomy = phantom.anatomy
    at = _inside(anatomy.soma_centres, phantom.box, voxel_size_nm)
    z, y, x = anatomy.soma_centres[at].T
    ids = anatomy.soma_ids[at]
    place = np.searchsorted(anatomy.ids, ids)
    return {
        'neuron': ids, 'z_nm': z, 'y_nm': y, 'x_nm': x,
        'radius_nm': anatomy.soma_radius_nm[at], 'inhibitory': anatomy.inhibitory[place],
    }  # fmt: skip
