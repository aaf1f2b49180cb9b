"""Skeletons of labelled objects by TEASAR, on voxel graphs.

The method is TEASAR (Sato et al., Pacific Graphics 2000; as used for neurons by Bae et al., Cell
173, 2018): the longest geodesic gives a root; paths of least penalty, drawn to the middle of the
object by its distance transform, join the farthest remaining voxel to the skeleton; a neighbourhood
of each path is then taken off, until nothing remains. What differs here:

* The neighbourhood is geodesic, not a ball, so that a path never takes off another branch of the
  same object across a membrane.
* Objects above `max_nodes` voxels are drawn on a coarser grid of cells. A cell stands for its
  innermost voxel, so that nodes still lie in the object, near its middle, and no thin process is
  ever lost or cut.
* Ends are cut back from the surface to the medial axis. In dense truth, where objects touch, a node
  on the surface would say more of the boundary's noise than of the object. An object that is not
  longer than wide has next to no skeleton.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import cc3d
import edt
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra

from h01_beam.morphology.skeletons import Skeletons, concatenate


@dataclass(frozen=True, kw_only=True)
class SkeletonConfig:
    """How skeletons are drawn.

    Attributes:
      min_voxels: components below this size get no skeleton.
      invalidation_scale, invalidation_nm: a path takes off what lies within
        `invalidation_scale * distance to the surface + invalidation_nm` of it. Larger values give
        fewer twigs.
      penalty_scale, penalty_exponent: a step costs `1 + penalty_scale * (1 - d / d_max) **
        penalty_exponent` times its length, where d is the distance to the surface.
      node_spacing_nm: greatest distance along a path between nodes that are kept; branch points
        and ends always are. 0 keeps the path of every voxel, staircases included.
      max_nodes: objects with more voxels than this are drawn on coarser cells.
    """

    min_voxels: int = 100
    invalidation_scale: float = 1.5
    invalidation_nm: float = 300.0
    penalty_scale: float = 1e4
    penalty_exponent: float = 4.0
    node_spacing_nm: float = 100.0
    max_nodes: int = 200_000

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, least in (
            ('min_voxels', 1),
            ('invalidation_scale', 0),
            ('invalidation_nm', 0),
            ('penalty_scale', 0),
            ('penalty_exponent', 0),
            ('node_spacing_nm', 0),
            ('max_nodes', 1000),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(
                    f'skeletons.{name} is {getattr(self, name)}: must be at least {least}'
                )


def skeletonize(
    labels: NDArray[Any],
    voxel_size_nm: tuple[float, float, float],
    config: SkeletonConfig | None = None,
    start: tuple[int, int, int] = (0, 0, 0),
) -> Skeletons:
    """Returns a skeleton for each 26-connected component of each label.

    The faces of the array are no surfaces: an object that is cut there keeps its skeleton in the
    middle of the cut.

    Args:
      labels: zyx integer labels; 0 = nothing.
      voxel_size_nm: zyx.
      config: see `SkeletonConfig`.
      start: zyx voxel at which `labels` begins; node coordinates count from the origin.
    """
    config = config or SkeletonConfig()
    labels = np.ascontiguousarray(labels)
    components = cc3d.connected_components(labels, connectivity=26)
    statistics = cc3d.statistics(components, no_slice_conversion=False)
    distance_nm = edt.edt(components, anisotropy=voxel_size_nm, black_border=False, parallel=1)
    # With one object and no surface in sight the distance is infinite; any constant will do.
    distance_nm[~np.isfinite(distance_nm)] = max(voxel_size_nm)
    parts = []
    for component in range(1, len(statistics['voxel_counts'])):
        if statistics['voxel_counts'][component] < config.min_voxels:
            continue
        box = statistics['bounding_boxes'][component]
        mask = components[box] == component
        part = skeletonize_component(mask, distance_nm[box], voxel_size_nm, config)
        if len(part.edges) == 0:
            continue
        corner = np.array([axis.start for axis in box])
        label = labels[tuple(part.nodes[0] + corner)]
        parts.append(
            Skeletons(
                nodes=part.nodes + corner + np.asarray(start),
                edges=part.edges,
                object_ids=np.full(len(part), label, np.uint64),
                radius_nm=part.radius_nm,
                voxel_size_nm=voxel_size_nm,
            )
        )
    return concatenate(parts, voxel_size_nm)


def skeletonize_component(
    mask: NDArray[np.bool_],
    distance_nm: NDArray[np.float32],
    voxel_size_nm: tuple[float, float, float],
    config: SkeletonConfig,
) -> Skeletons:
    """Returns the skeleton of one connected object, with object id 1.

    Args:
      mask: zyx bool, one 26-connected component.
      distance_nm: zyx float32, distance to the object's surface inside the mask.
      voxel_size_nm: zyx.
      config: see `SkeletonConfig`.
    """
    nodes, cells = _choose_nodes(mask, distance_nm, voxel_size_nm, config.max_nodes)
    points_nm = nodes * np.asarray(voxel_size_nm)
    radius_nm = distance_nm[tuple(nodes.T)].astype(np.float64)
    graph = _connect_cells(points_nm, cells)
    paths = _trace_paths(graph, radius_nm, config)
    paths = _trim_ends(paths, points_nm, radius_nm, slack_nm=2 * max(voxel_size_nm))
    edges = _thin_paths(paths, points_nm, config.node_spacing_nm)
    kept, flat = np.unique(edges, return_inverse=True)
    return Skeletons(
        nodes=nodes[kept],
        edges=flat.reshape(-1, 2).astype(np.int64),
        object_ids=np.ones(len(kept), np.uint64),
        radius_nm=radius_nm[kept].astype(np.float32),
        voxel_size_nm=voxel_size_nm,
    )


def _choose_nodes(
    mask: NDArray[np.bool_],
    distance_nm: NDArray[np.float32],
    voxel_size_nm: tuple[float, float, float],
    max_nodes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns one voxel per occupied cell, (n, 3) zyx, and the (n, 3) coordinates of the cells."""
    voxels = np.argwhere(mask)
    if len(voxels) <= max_nodes:
        return voxels, voxels
    cell = cell_shape(voxel_size_nm, len(voxels) / max_nodes)
    cells = voxels // cell
    key = np.ravel_multi_index(
        tuple(cells.T), tuple(-(-n // c) for n, c in zip(mask.shape, cell, strict=True))
    )
    innermost_first = np.lexsort((-distance_nm[mask], key))
    key = key[innermost_first]
    chosen = innermost_first[np.flatnonzero(np.r_[True, key[1:] != key[:-1]])]
    return voxels[chosen], cells[chosen]


def cell_shape(voxel_size_nm: tuple[float, float, float], voxels: float) -> NDArray[np.int64]:
    """Returns the zyx shape, in voxels, of the smallest near-cubic cell of at least `voxels`."""
    size = np.asarray(voxel_size_nm, np.float64)
    edge_nm = size.min()
    while True:
        shape = np.maximum(np.rint(edge_nm / size), 1).astype(np.int64)
        if shape.prod() >= voxels:
            return shape
        edge_nm += size.min()


def _connect_cells(points_nm: NDArray[np.float64], cells: NDArray[np.int64]) -> csr_array:
    """Returns the symmetric graph of 26-adjacent cells, weighted by distance in nm."""
    count = len(cells)
    index = np.full(cells.max(axis=0) + 3, -1, np.int32)
    flat = index.reshape(-1)
    strides = np.array([index.shape[1] * index.shape[2], index.shape[2], 1])
    place = (cells + 1) @ strides
    flat[place] = np.arange(count)
    tails, heads = [], []
    for offset in itertools.product((-1, 0, 1), repeat=3):
        if offset > (0, 0, 0):
            neighbour = flat[place + int(np.dot(offset, strides))]
            tail = np.flatnonzero(neighbour >= 0).astype(np.int32)
            tails.append(tail)
            heads.append(neighbour[tail])
    tail, head = np.concatenate(tails), np.concatenate(heads)
    length = np.linalg.norm(points_nm[head] - points_nm[tail], axis=1)
    both = (np.concatenate([tail, head]), np.concatenate([head, tail]))
    return csr_array(coo_array((np.tile(length, 2), both), shape=(count, count)))


def _trace_paths(
    graph: csr_array, radius_nm: NDArray[np.float64], config: SkeletonConfig
) -> list[NDArray[np.int64]]:
    """Returns paths of node indices; each runs from a tip to a node of an earlier path."""
    root = int(np.argmax(dijkstra(graph, indices=0)))
    from_root = dijkstra(graph, indices=root)
    parents = _cheapest_parents(graph, radius_nm, root, config)
    reach_nm = config.invalidation_scale * radius_nm + config.invalidation_nm
    in_skeleton = np.zeros(len(radius_nm), bool)
    in_skeleton[root] = True
    done = np.zeros(len(radius_nm), bool)
    paths = []
    for tip in np.argsort(-from_root, kind='stable'):
        if done[tip] or in_skeleton[tip]:
            continue
        path = [int(tip)]
        while not in_skeleton[path[-1]]:
            in_skeleton[path[-1]] = True
            path.append(int(parents[path[-1]]))
        paths.append(np.array(path))
        _take_off(done, graph, paths[-1], reach_nm)
        if done.all():
            break
    return paths


def _cheapest_parents(
    graph: csr_array, radius_nm: NDArray[np.float64], root: int, config: SkeletonConfig
) -> NDArray[np.int32]:
    """Returns each node's predecessor on its path of least penalty from the root."""
    depth = 1.0 - radius_nm / (1.01 * radius_nm.max())
    cost = 1.0 + config.penalty_scale * depth**config.penalty_exponent
    tail = np.repeat(np.arange(len(cost)), np.diff(graph.indptr))
    weight = graph.data * (cost[tail] + cost[graph.indices]) / 2
    penalized = csr_array((weight, graph.indices, graph.indptr), shape=graph.shape)
    _, parents = dijkstra(penalized, indices=root, return_predecessors=True)
    return np.asarray(parents, np.int32)


def _take_off(
    done: NDArray[np.bool_],
    graph: csr_array,
    path: NDArray[np.int64],
    reach_nm: NDArray[np.float64],
) -> None:
    """Marks as done what lies within reach of its nearest path node, along the object."""
    distance, _, source = dijkstra(
        graph,
        indices=path,
        min_only=True,
        limit=float(reach_nm[path].max()),
        return_predecessors=True,
    )
    near = np.flatnonzero(np.isfinite(distance))
    done[near[distance[near] <= reach_nm[source[near]]]] = True


def _trim_ends(
    paths: list[NDArray[np.int64]],
    points_nm: NDArray[np.float64],
    radius_nm: NDArray[np.float64],
    slack_nm: float,
) -> list[NDArray[np.int64]]:
    """Returns the paths cut back from the surface to the end of the medial axis.

    A path begins at the farthest voxel, which lies on the surface, often in a corner. There the
    radius grows as fast as one walks inwards; in the neurite proper it does not.

        tip  . o o O O O O O     taper: |O - tip| <= 2 (r_O - r_tip) + slack_nm;
                                 cut to the first O with 90 % of the largest radius in it

    Where an object leaves the array the radius is large at the tip as well, and nothing is cut.
    """
    joints = {int(path[-1]) for path in paths[1:]}
    trimmed = []
    for number, path in enumerate(paths):
        first = _count_taper(path, joints, points_nm, radius_nm, slack_nm)
        last = 0
        if number == 0:  # The root is a tip as well: the far end of the first path.
            last = _count_taper(path[::-1], joints, points_nm, radius_nm, slack_nm)
        kept = path[first : len(path) - last]
        if len(kept) > 1:
            trimmed.append(kept)
    return trimmed


def _count_taper(
    path: NDArray[np.int64],
    joints: set[int],
    points_nm: NDArray[np.float64],
    radius_nm: NDArray[np.float64],
    slack_nm: float,
) -> int:
    """Returns how many nodes at the start of a path belong to the taper of its end.

    Only nodes before the first joint count, so that no other path loses its hold.
    """
    stop = next((i for i, node in enumerate(path) if int(node) in joints), len(path) - 1)
    reach = path[: stop + 1]
    away_nm = np.linalg.norm(points_nm[reach] - points_nm[reach[0]], axis=1)
    growth_nm = radius_nm[reach] - radius_nm[reach[0]]
    tapers = away_nm <= 2 * growth_nm + slack_nm
    count = len(reach) if tapers.all() else int(np.argmin(tapers))
    # The radius has stopped growing before that: the medial axis begins where it is full.
    full = radius_nm[reach[:count]] >= 0.9 * radius_nm[reach[:count]].max()
    return int(np.argmax(full))


def _thin_paths(
    paths: list[NDArray[np.int64]], points_nm: NDArray[np.float64], spacing_nm: float
) -> NDArray[np.int64]:
    """Returns (m, 2) edges between the nodes kept at even spacing along the paths."""
    if not paths:
        return np.empty((0, 2), np.int64)
    # Paths meet at the last node of one of them; those nodes must stay.
    joints = np.zeros(len(points_nm), bool)
    joints[[path[-1] for path in paths]] = True
    edges = []
    for path in paths:
        stops = np.flatnonzero(joints[path] | (np.arange(len(path)) == 0))
        kept = [
            _space_evenly(path[first : last + 1], points_nm, spacing_nm)
            for first, last in itertools.pairwise(stops)
        ]
        chain = np.concatenate([*kept, path[-1:]])
        edges.append(np.stack([chain[:-1], chain[1:]], axis=1))
    return np.concatenate(edges)


def _space_evenly(
    stretch: NDArray[np.int64], points_nm: NDArray[np.float64], spacing_nm: float
) -> NDArray[np.int64]:
    """Returns nodes of a stretch at even spacing, its first included and its last left out."""
    if spacing_nm <= 0:
        return stretch[:-1]
    step = np.linalg.norm(np.diff(points_nm[stretch], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(step)])
    pieces = max(int(np.ceil(along[-1] / spacing_nm)), 1)
    wanted = np.arange(pieces) * (along[-1] / pieces)
    return stretch[np.unique(np.searchsorted(along[:-1], wanted))]
