"""Folds and tears of sections in blocks of nodes, and the parts of one that lies in several.

A section's own discontinuities show in its flow to all others, so at least two flows must know of a
place: else a fold of the other section would pass for a tear of this one. Flow from later sections
counts with its sign turned, at the nodes where it stands: the flow of rough alignment is about a
node long, and that far is a line off at most.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from h01_beam.alignment.discontinuities import (
    Discontinuities,
    DiscontinuityConfig,
    find_discontinuities,
    near_nodes,
)
from h01_beam.alignment.frames import Shifted
from h01_beam.geometry import Block, Triple
from h01_beam.plan import BlockResult
from h01_beam.tables import Columns, Schema, length

Real = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Parts of folds and tears by blocks: 'fold' or 'tear', the box around (full-size pixels of the
# aligned volume, y and x) and the length there.
DAMAGE = Schema(
    {
        'section': 'int64',
        'kind': 'str',
        'y_begin': 'float64',
        'x_begin': 'float64',
        'y_end': 'float64',
        'x_end': 'float64',
        'length': 'float64',
    }
)
# Nodes around a block: lines are fitted over 7 and told from noise by their length.
HALO = 16


def flow_name(back: int, later: bool) -> str:
    """Of a read: flow to the section that lies `back` before, or from the one as far behind."""
    return f'{"later" if later else "flow"}_{back}'


@dataclasses.dataclass(frozen=True)
class FindDamage:
    """Folds and tears of a block of a section.

    Attributes:
      config: what counts.
      region: of the nodes that are read; the block's own and those around.
      stride: pixels of the montage between nodes.
      downsample: of the montage.
    """

    config: DiscontinuityConfig
    region: Shifted
    stride: int
    downsample: int

    def working_bytes(self, read_shape: Triple) -> int:
        nodes = math.prod(n + 2 * HALO for n in read_shape[1:])
        # Normal matrices and their inverses; the image and its filtered copies.
        return nodes * (2 * 8 * 8 * 8 * 3 + 30 * self.stride**2)

    def __call__(self, rough: Bytes, block: Block, **flows: Real | None) -> BlockResult:
        _, h, w = block.core.shape
        sheets = np.ones((2, 1, h, w), np.float32)
        around = self.region(block)
        assert around is not None
        y, x = (s - a for s, a in zip(block.core.start[1:], around.start[1:], strict=True))
        own = (slice(y, y + h), slice(x, x + w))
        pixels = tuple(
            slice(o.start * self.stride, min(o.stop * self.stride, n))
            for o, n in zip(own, rough.shape[1:], strict=True)
        )
        damage = np.zeros((1, *(p.stop - p.start for p in pixels)), np.uint8)
        nothing = BlockResult(arrays={'sheets': sheets, 'damage': damage})
        vectors, weights = _own_flows(flows)
        if len(vectors) < 2 or not rough.any():
            return nothing
        mask = rough[0] > 0
        found = find_discontinuities(vectors, weights, rough[0], mask, self.stride, self.config)
        if not found.kinds:
            return nothing
        # Lines lie in the frame of the roughly aligned section, sheets in that of the aligned one;
        # the mesh moves nodes by less than lines are sure, so one stands for the other.
        cut_y = np.pad(found.cut_y, ((0, 1), (0, 0)))[own]
        cut_x = np.pad(found.cut_x, ((0, 0), (0, 1)))[own]
        sheets[0, 0][cut_y] = 0
        sheets[1, 0][cut_x] = 0
        near = near_nodes(found.pieces > 0, mask.shape, self.stride, self.config.breadth)
        damage[0] = (near & ~found.mask)[pixels]
        rows = _parts(found, own, block, self.stride * self.downsample)
        return BlockResult(
            arrays={'sheets': sheets, 'damage': damage},
            rows={'damage': rows},
            metrics={'parts': float(length(rows)), 'cut_edges': float(cut_y.sum() + cut_x.sum())},
        )


def _own_flows(flows: Mapping[str, Real | None]) -> tuple[Real, Real]:
    """(flows, 2, h, w) from the section, and (flows, h, w) weights, where two of them are known."""
    vectors, weights = [], []
    for name, flow in flows.items():
        if flow is None or not np.isfinite(flow[0]).any():
            continue
        sign = np.float32(-1 if name.startswith('later') else 1)
        vectors.append(sign * flow[:2, 0])
        weights.append(flow[2, 0])
    if not vectors:
        return np.empty((0, 2, 0, 0), np.float32), np.empty((0, 0, 0), np.float32)
    both = np.stack(vectors)
    several = np.isfinite(both[:, 0]).sum(axis=0) > 1
    return np.where(several, both, np.float32(np.nan)), np.stack(weights)


def _parts(
    found: Discontinuities, own: tuple[slice, slice], block: Block, pitch: int
) -> dict[str, np.ndarray]:
    rows = []
    pieces = found.pieces[own]
    for number, kind in enumerate(found.kinds, 1):
        nodes = np.argwhere(pieces == number)
        if not len(nodes):
            continue
        low, high = nodes.min(axis=0), nodes.max(axis=0)
        start = np.array(block.core.start[1:])
        extent = float(np.hypot(*(high - low))) * pitch
        rows.append((block.core.start[0], kind, *((start + low) * pitch).tolist(),
                     *((start + high) * pitch).tolist(), extent))  # fmt: skip
    columns = [np.array(c) for c in zip(*rows, strict=True)] or [np.empty(0)] * 7
    return {
        name: column.astype(DAMAGE.empty()[name].dtype)
        for name, column in zip(DAMAGE.columns, columns, strict=True)
    }


def join_parts(parts: Columns, section: int, gap: float) -> list[tuple[str, float]]:
    """Folds and tears of a section, each once: kind and length in full-size pixels.

    Args:
      parts: of the table `damage`.
      section: whose.
      gap: pixels between the boxes of two parts of one line, at most.
    """
    rows = np.flatnonzero(parts['section'] == section)
    low = np.stack([parts['y_begin'], parts['x_begin']], axis=1)[rows] - gap / 2
    high = np.stack([parts['y_end'], parts['x_end']], axis=1)[rows] + gap / 2
    group = np.arange(len(rows))
    for a in range(len(rows)):
        for b in range(a):
            if (low[a] <= high[b]).all() and (low[b] <= high[a]).all() and group[a] != group[b]:
                group[group == group[a]] = group[b]
    lines = []
    for number in np.unique(group).tolist():
        mine = group == number
        lengths = parts['length'][rows][mine]
        extent = np.hypot(*(high[mine].max(axis=0) - low[mine].min(axis=0) - gap))
        lines.append((str(parts['kind'][rows][mine][lengths.argmax()]), float(extent)))
    return lines
