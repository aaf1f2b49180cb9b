"""Folds and tears of sections in blocks of nodes, and the parts of one that lies in several.

`find_lines` has found them in the image of the montage, and `render_rough` has laid them into the
frame of the roughly aligned section. Here edges of the mesh that cross one are cut.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.alignment.elastic.lines import FOLD, TEAR
from h01_beam.alignment.frames import Shifted
from h01_beam.geometry import Block, Triple
from h01_beam.plan import BlockResult
from h01_beam.tables import Columns, Schema, length

Real = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

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
_KINDS = {FOLD: 'fold', TEAR: 'tear'}
# Nodes around a block: the course of a line is fitted to what is seen of it.
HALO = 16
# Pixels around bands and gaps where they are blurred.
_BORDER = 3


@dataclasses.dataclass(frozen=True)
class FindDamage:
    """Folds and tears of a block of a section.

    Attributes:
      region: of the nodes that are read; the block's own and those around.
      stride: pixels of the montage between nodes.
      downsample: of the montage.
    """

    region: Shifted
    stride: int
    downsample: int

    def working_bytes(self, read_shape: Triple) -> int:
        nodes = math.prod(n + 2 * HALO for n in read_shape[1:])
        return nodes * (30 * self.stride**2)

    def __call__(self, bands: Bytes, block: Block) -> BlockResult:
        _, h, w = block.core.shape
        sheets = np.ones((2, 1, h, w), np.float32)
        around = self.region(block)
        assert around is not None
        y, x = (s - a for s, a in zip(block.core.start[1:], around.start[1:], strict=True))
        pixels = tuple(
            slice(a * self.stride, min((a + n) * self.stride, m))
            for a, n, m in zip((y, x), (h, w), bands.shape[1:], strict=True)
        )
        wide = cv2.dilate(bands[0], np.ones((2 * _BORDER + 1,) * 2, np.uint8))
        damage = np.minimum(wide[pixels], 1)[None]
        nothing = BlockResult(arrays={'sheets': sheets, 'damage': damage})
        if not bands.any():
            return nothing
        # Lines lie in the frame of the roughly aligned section, sheets in that of the aligned one;
        # the mesh moves nodes by less than lines are sure, so one stands for the other.
        rows = []
        _, labels = cv2.connectedComponents(np.minimum(bands[0], 1), connectivity=8)
        for number in range(1, int(labels.max()) + 1):
            band = labels == number
            cuts = cut_edges(band, self.stride)
            for sheet, cut in zip(sheets[:, 0], cuts, strict=True):
                mine = cut[y : y + h, x : x + w]
                sheet[: mine.shape[0], : mine.shape[1]][mine] = 0
            kind = FOLD if 2 * int((bands[0][band] == FOLD).sum()) > band.sum() else TEAR
            rows += self._part(band[pixels], kind, block)
        columns = [np.array(c) for c in zip(*rows, strict=True)] or [np.empty(0)] * 7
        table = {
            name: column.astype(DAMAGE.empty()[name].dtype)
            for name, column in zip(DAMAGE.columns, columns, strict=True)
        }
        return BlockResult(
            arrays={'sheets': sheets, 'damage': damage},
            rows={'damage': table},
            metrics={'parts': float(length(table)), 'cut_edges': float((sheets == 0).sum())},
        )

    def _part(self, band: Bools, kind: int, block: Block) -> list[tuple[object, ...]]:
        places = np.argwhere(band)
        if not len(places):
            return []
        start = np.array(block.core.start[1:]) * self.stride
        low, high = (
            (start + v) * self.downsample for v in (places.min(axis=0), places.max(axis=0))
        )
        extent = float(np.hypot(*(high - low)))
        return [(block.core.start[0], _KINDS[kind], *low.tolist(), *high.tolist(), extent)]


def cut_edges(band: Bools, stride: int) -> tuple[Bools, Bools]:
    """Edges between nodes that cross a band.

    Args:
      band: (height, width) pixels of one line; node (i, j) is at (i, j) * stride.
      stride: pixels between nodes.

    Returns:
      two (h, w): the edges to the next node in y, and in x.
    """
    y, x = np.nonzero(band)
    grid = np.stack(
        np.meshgrid(*(np.arange(-(-n // stride)) * stride for n in band.shape), indexing='ij')
    ).astype(np.float64)
    middle = np.array([y.mean(), x.mean()])
    _, axes = np.linalg.eigh(np.cov(np.stack([y, x])) if len(y) > 1 else np.eye(2))
    across, along = axes.T
    places = np.stack([y, x], axis=1) - middle
    # Lines bend: across as a parabola of along.
    course = np.polyfit(places @ along, places @ across, 2) if len(y) > 8 else np.zeros(3)
    off = grid - middle.reshape(2, 1, 1)
    s = np.tensordot(along, off, axes=1)
    side = np.tensordot(across, off, axes=1) - np.polyval(course, s) > 0
    far = places @ along
    within = (s >= far.min() - stride) & (s <= far.max() + stride)
    near = within & (cv2.dilate(
        band.astype(np.uint8), np.ones((2 * stride + 1,) * 2, np.uint8)
    )[::stride, ::stride] > 0)  # fmt: skip
    cuts = []
    for axis in range(2):
        cut = (side != np.roll(side, -1, axis)) & near & np.roll(near, -1, axis)
        cut[(-1, slice(None)) if axis == 0 else (slice(None), -1)] = False
        cuts.append(cut)
    return cuts[0], cuts[1]


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
