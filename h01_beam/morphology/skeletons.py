"""Skeletons as columns: nodes and edges of many objects, and what labels lie at the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True, kw_only=True, eq=False)
class Skeletons:
    """Skeletons of many objects, as columns.

    Attributes:
      nodes: (n, 3) int64, zyx voxels.
      edges: (m, 2) int64, indices into nodes.
      object_ids: (n,) uint64, the label of the object that the node belongs to.
      radius_nm: (n,) float32, distance to the object's surface; NaN if not known.
      voxel_size_nm: zyx.
    """

    nodes: NDArray[np.int64]
    edges: NDArray[np.int64]
    object_ids: NDArray[np.uint64]
    radius_nm: NDArray[np.float32]
    voxel_size_nm: tuple[float, float, float]

    def __len__(self) -> int:
        """Returns the number of nodes."""
        return len(self.nodes)

    @classmethod
    def from_graph(
        cls,
        nodes: Any,
        edges: Any,
        object_ids: Any,
        voxel_size_nm: tuple[float, float, float],
        radius_nm: Any = None,
    ) -> Skeletons:
        """Returns skeletons traced elsewhere, for example by hand.

        Raises:
          ValueError: if shapes disagree, an edge names a missing node or joins two objects.
        """
        nodes = np.asarray(nodes, np.int64).reshape(-1, 3)
        edges = np.asarray(edges, np.int64).reshape(-1, 2)
        object_ids = np.asarray(object_ids, np.uint64)
        radius = np.full(len(nodes), np.nan) if radius_nm is None else radius_nm
        if object_ids.shape != (len(nodes),):
            raise ValueError(
                f'object_ids has shape {object_ids.shape}: must be ({len(nodes)},), one id a node'
            )
        if edges.size and (edges.min() < 0 or edges.max() >= len(nodes)):
            raise ValueError(
                f'edges name nodes {edges.min()} to {edges.max()}: must lie in [0, {len(nodes)})'
            )
        if np.any(object_ids[edges[:, 0]] != object_ids[edges[:, 1]]):
            raise ValueError(
                'an edge joins nodes of two objects: object_ids must agree along edges'
            )
        return cls(
            nodes=nodes,
            edges=edges,
            object_ids=object_ids,
            radius_nm=np.asarray(radius, np.float32),
            voxel_size_nm=voxel_size_nm,
        )

    def edge_lengths_nm(self) -> NDArray[np.float64]:
        """Returns the length of each edge, in nm."""
        step = self.nodes[self.edges[:, 1]] - self.nodes[self.edges[:, 0]]
        return np.linalg.norm(step * np.asarray(self.voxel_size_nm), axis=1)

    def length_nm(self) -> float:
        """Returns the summed length of all edges, in nm."""
        return float(self.edge_lengths_nm().sum())

    def trees(self) -> NDArray[np.int32]:
        """Returns the (n,) index of the connected skeleton that each node belongs to."""
        count = len(self.nodes)
        links = np.ones(len(self.edges), bool)
        graph = coo_array((links, (self.edges[:, 0], self.edges[:, 1])), shape=(count, count))
        _, tree = connected_components(graph, directed=False)
        return np.asarray(tree, np.int32)


def concatenate(parts: list[Skeletons], voxel_size_nm: tuple[float, float, float]) -> Skeletons:
    """Returns the skeletons of all parts as one table, in the order given."""
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    return Skeletons(
        nodes=np.concatenate([np.empty((0, 3), np.int64), *(part.nodes for part in parts)]),
        edges=np.concatenate(
            [np.empty((0, 2), np.int64)]
            + [part.edges + offset for part, offset in zip(parts, offsets, strict=False)]
        ),
        object_ids=np.concatenate([np.empty(0, np.uint64), *(part.object_ids for part in parts)]),
        radius_nm=np.concatenate([np.empty(0, np.float32), *(part.radius_nm for part in parts)]),
        voxel_size_nm=voxel_size_nm,
    )


def sample_labels(
    labels: NDArray[Any], start: tuple[int, int, int], nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns which nodes lie in a block, and their labels.

    Args:
      labels: zyx integer labels of the block.
      start: zyx voxel at which the block begins.
      nodes: (n, 3) zyx voxels, counted from the origin of the volume.

    Returns:
      (k,) int64 indices into nodes, increasing, and (k,) uint64 labels, 0 = unlabelled.
    """
    local = nodes - np.asarray(start)
    inside = np.flatnonzero(np.all((local >= 0) & (local < labels.shape), axis=1))
    return inside, labels[tuple(local[inside].T)].astype(np.uint64)
