"""Steps of randomized graph contraction on columns of ids, in pure numpy.

The Beam algorithm in `components.py` is these functions between shuffles. A graph is held as
*groups*: sets of nodes known to be connected, written as two equally long columns, the node and
a number of its group. An edge is a group of two; a connected part of a batch of edges is a larger
one. One round replaces every node by the node of smallest random priority among its groups:

    groups        {1 2 3} {3 4} {4 5 6}          priorities  4 < 2 < 6 < 1 < 5 < 3
    replaced by    2 2 4   4 4   4 4 4           (3 sees 1 2 3 4, so it becomes 4)
    new groups    {2 4}   {4}   {4}              groups of one node are done

Connections never change. The priorities are drawn afresh in every round, so that whatever the
graph and its ids, a constant fraction of the nodes that still have neighbours is expected to go.

All ids are uint64; 0 (unlabelled) and 2^64-1 are never nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

Ids = NDArray[np.uint64]
Indices = NDArray[np.int64]

NONE = np.uint64(2**64 - 1)  # of `smallest`, where there is nothing; not a node either
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_PARTITION_ROUND = 0xC0FFEE  # no round of the contraction has this number


def priority(ids: Ids, round_: int) -> Ids:
    """Pseudorandom order of ids in one round: the finalizer of splitmix64 (Steele et al. 2014).

    A bijection of the 64-bit integers, so priorities never tie and `from_priority` inverts it.
    """
    h = ids + _salt(round_)
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        h ^= h >> np.uint64(shift)
        h *= np.uint64(multiplier)
    h ^= h >> np.uint64(_SHIFTS[-1])
    return h


def from_priority(priorities: Ids, round_: int) -> Ids:
    """The ids that have these priorities: `from_priority(priority(ids, r), r) == ids`."""
    ids = _unshift(priorities, _SHIFTS[-1])
    for shift, multiplier in zip(_SHIFTS[-2::-1], _MULTIPLIERS[::-1], strict=True):
        ids *= np.uint64(pow(multiplier, -1, 2**64))
        ids = _unshift(ids, shift)
    return ids - _salt(round_)


def _salt(round_: int) -> np.uint64:
    return np.uint64((round_ + 1) * _GOLDEN % 2**64)


def _unshift(h: Ids, shift: int) -> Ids:
    """Inverse of `x ^ (x >> shift)` for shifts of 22 to 63 bits."""
    s = np.uint64(shift)
    return h ^ (h >> s) ^ (h >> s >> s)


def partition_of(ids: Ids, partitions: int) -> Indices:
    """Partition that owns each id, in `[0, partitions)`; pseudorandom, so partitions are even."""
    high = priority(ids, _PARTITION_ROUND) >> np.uint64(32)
    return (high * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)


def split(keys: Indices, *columns: Ids) -> Iterator[tuple[int, tuple[Ids, ...]]]:
    """Yields (key, rows of the columns with that key), by ascending key, rows in their order."""
    if not keys.size:
        return
    # A stable sort of 16-bit keys is a radix sort.
    small = keys.astype(np.uint16) if keys.max() < 2**16 else keys
    order = np.argsort(small, kind='stable')
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
    for start, end in zip(starts, [*starts[1:], keys.size], strict=True):
        rows = order[start:end]
        yield int(sorted_keys[start]), tuple(column[rows] for column in columns)


def smallest(values: Ids, index: Indices, length: int) -> Ids:
    """Smallest of the values of each index in `[0, length)`; 2^64-1 where there is none."""
    out = np.full(length, NONE)
    np.minimum.at(out, index, values)
    return out


def connect(node_u: Indices, node_v: Indices, length: int) -> tuple[int, Indices]:
    """Components of the graph on nodes `0..length-1`: their number, and each node's component."""
    graph = sparse.coo_matrix(
        (np.ones(len(node_u), np.bool_), (node_u, node_v)), shape=(length, length)
    )
    count, label = csgraph.connected_components(graph, directed=False)
    return int(count), label.astype(np.int64)


def connected_components(a: Ids, b: Ids) -> tuple[Ids, Ids]:
    """Components of a graph that fits in memory: the pure twin of `ConnectedComponents`.

    Args:
      a: (n,) uint64, one end of every edge.
      b: (n,) uint64, the other.

    Returns:
      node: (m,) uint64, every id that occurs in an edge, ascending.
      root: (m,) uint64, the smallest id of the component of each node.
    """
    node, group = group_edges(a, b)
    root = smallest(node, group, group.max(initial=-1) + 1)
    return node, root[group]


def edge_columns(batch: Mapping[str, Any]) -> tuple[Ids, Ids]:
    """Columns a and b of a batch of edges; ValueError if they are not ids of equal number."""
    columns = []
    for name in ('a', 'b'):
        column: NDArray[Any] = np.asarray(batch[name])
        if column.dtype != np.uint64 or column.ndim != 1:
            raise ValueError(
                f'edges: column {name} is {column.dtype} of shape {column.shape}: must be uint64 '
                'of shape (n,)'
            )
        if column.size and not column.all():
            raise ValueError(
                f'edges: column {name} holds the id 0 (unlabelled), which would join everything '
                'that touches unlabelled voxels: drop these rows'
            )
        if column.size and column.max() == NONE:
            raise ValueError(f'edges: column {name} holds 2^64-1, which is no id here')
        columns.append(column)
    a, b = columns
    if len(a) != len(b):
        raise ValueError(f'edges: column a has {len(a)} rows and b {len(b)}: must be equal')
    return a, b


def group_edges(a: Ids, b: Ids) -> tuple[Ids, Indices]:
    """The nodes of a batch of edges, ascending, and the number of the group of each."""
    node, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    _, group = connect(index[: len(a)], index[len(a) :], len(node))
    return node, group


def merge_groups(name: Ids, node: Ids) -> tuple[Ids, Indices]:
    """Unites the groups that share a node and drops the groups of one node.

    Args:
      name: (n,) uint64, name of a group.
      node: (n,) uint64, a node of it. Rows may repeat.

    Returns:
      Nodes of the remaining groups, each once, and the number of the group of each.
    """
    names, row_name = np.unique(name, return_inverse=True)
    nodes, row_node = np.unique(node, return_inverse=True)
    # Groups and nodes are the two sides of one graph, so no edge between nodes is ever needed.
    count, label = connect(row_name + len(nodes), row_node, len(nodes) + len(names))
    group = label[: len(nodes)]
    kept = np.bincount(group, minlength=count)[group] > 1
    return nodes[kept], group[kept]


def elect(node: Indices, candidate: Ids, length: int, round_: int) -> tuple[Ids, Indices]:
    """Chooses for every node the node that replaces it: the best candidate of its groups.

    Args:
      node: (n,) int64 in `[0, length)`, a node, once for every group it is in.
      candidate: (n,) uint64, the smallest priority in that group.
      length: number of nodes; each occurs in `node`.
      round_: the round whose priorities these are.

    Returns:
      chosen: (k,) uint64, the nodes that remain, ascending.
      index: (length,) int64, position in `chosen` of the node that replaces each node.
    """
    best = smallest(candidate, node, length)
    return np.unique(from_priority(best, round_), return_inverse=True)


def next_partitions(shards: Iterable[tuple[int, int]], partitions: int, capacity: int) -> int:
    """Partitions for the round after the one in which the shards hold so many rows.

    Neither the rows nor the nodes of a graph grow from one round to the next, so twice the rows
    bound what the next round's partitions receive.
    """
    return max(1, min(partitions, -(-2 * sum(rows for _, rows in shards) // capacity)))


def pack_shards(shards: Iterable[tuple[int, int]], capacity: int) -> dict[int, int]:
    """Merges shards while their rows fit: {shard: the shard that it becomes part of}.

    Args:
      shards: (shard, rows), a shard may occur repeatedly.
      capacity: most rows of a merged shard; a shard that is larger by itself stays alone.
    """
    rows: dict[int, int] = {}
    for shard, count in shards:
        rows[shard] = rows.get(shard, 0) + count
    merged: dict[int, int] = {}
    current, filled = -1, capacity + 1
    for shard in sorted(rows):
        if filled + rows[shard] > capacity:
            current, filled = shard, 0
        filled += rows[shard]
        merged[shard] = current
    return merged
