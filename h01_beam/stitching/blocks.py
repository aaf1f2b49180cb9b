"""What the stages of stitching do with one block: rows and tiles in, rows and pixels out."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Block, Triple
from h01_beam.imaging.gains import measure_overlap_levels, solve_gains
from h01_beam.plan import BlockResult
from h01_beam.registration.maps import CoordinateMap
from h01_beam.stitching.config import StitchConfig
from h01_beam.stitching.frames import Frames
from h01_beam.stitching.lighting import flat_fields, zero_level
from h01_beam.stitching.mesh import SEAM_FLOW, Seam, bend_tiles, match_seam, node_shape
from h01_beam.stitching.offsets import measure_offset
from h01_beam.stitching.render import PlacedTile, forward_map, inverse_map, render_montage
from h01_beam.stitching.solve import solve_places
from h01_beam.stitching.tables import LEVELS, NODES, OFFSETS, SEAMS
from h01_beam.stitching.tiles import TileImages, find_pairs, usable
from h01_beam.tables import Columns, Schema, length

Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

# Floats that masks, contrast, spectra and maps of a tile or an overlap take, for each pixel.
_WORKING_FLOATS = 16


@dataclasses.dataclass(frozen=True)
class StitchBlock(abc.ABC):
    """What all stages that show tiles know.

    Attributes:
      frames: of the sections.
      config: of stitching.
      grey_range: of 16-bit tiles.
    """

    frames: Frames
    config: StitchConfig
    grey_range: tuple[float, float] | None

    @abc.abstractmethod
    def depends_on(self) -> list[Any]:
        """What results depend on beside rows and tiles; nothing that other sections decide."""

    def working_bytes(self, read_shape: Triple) -> int:
        return math.prod(self.frames.tile_shape) * (self.config.cached_tiles + 4 * _WORKING_FLOATS)

    def images(
        self, tiles: Columns, lighting: Columns | None = None, gains: Columns | None = None
    ) -> TileImages:
        fields = flat_fields(lighting, self.shape(tiles), self.config.flat_field)
        return TileImages(tiles, self.grey_range, self.config.cached_tiles, gains, fields)

    def own(self, stage: Reals, pairs: Ints, block: Block) -> Ints:
        """The pairs whose first tile, by its place by the stage, is in the cell of a block."""
        cells = self.frames.cell_of(stage)
        return pairs[(cells[pairs[:, 0]] == np.array(block.index[1:])).all(axis=1)]

    @staticmethod
    def shape(tiles: Columns) -> tuple[int, int]:
        return int(tiles['height'][0]), int(tiles['width'][0])


class MeasureOffsets(StitchBlock):
    """Offsets of the pairs of a cell."""

    def depends_on(self) -> list[Any]:
        return [self.frames.pixel_nm, self.frames.cell, self.config.offsets, self.grey_range]

    def __call__(self, tiles: Columns, origin: Columns, block: Block) -> BlockResult:
        if not length(tiles):
            return BlockResult()
        stage, shape = self.frames.stage_places(tiles, origin), self.shape(tiles)
        offsets = self.config.offsets
        # Tiles that the stage puts just apart may overlap: it errs by up to the search.
        pairs = find_pairs(stage, usable(tiles), shape, offsets.min_overlap, offsets.search)
        images, mask = self.images(tiles), np.ones(shape, np.bool_)
        rows = []
        for first, second in self.own(stage, pairs, block).tolist():
            y, x = stage[second] - stage[first]
            found = measure_offset(
                images[first], images[second], mask, mask, (y, x), self.config.offsets
            )
            rows.append((int(tiles['section'][0]), first, second, *found.offset, found.peak,
                         found.sharpness, found.found))  # fmt: skip
        columns = _columns(rows, OFFSETS)
        lost = float(len(rows) - np.count_nonzero(columns['found']))
        return BlockResult(
            rows={'offsets': columns}, metrics={'pairs': len(rows), 'pairs_not_found': lost}
        )


class SolvePlaces(StitchBlock):
    """Places of all tiles of a section; of tiles that no pair holds too.

    Those further than the margin from where the stage has them get none: blocks of the montage look
    for tiles as far as that, and would show pieces of them.
    """

    def depends_on(self) -> list[Any]:
        return [self.frames.pixel_nm, self.frames.margin, self.config.solve]

    def __call__(
        self, tiles: Columns, origin: Columns, offsets: Columns, block: Block
    ) -> BlockResult:
        if not length(tiles) or not len(usable(tiles)):
            return BlockResult()
        rows, stage = usable(tiles), self.frames.stage_places(tiles, origin)
        number = np.full(length(tiles), -1)
        number[rows] = np.arange(len(rows))
        pairs = number[np.stack([offsets['first'], offsets['second']], axis=1)]
        weights = np.where(offsets['found'], offsets['peak'], 0.0)
        wanted = np.stack([offsets['y'], offsets['x']], axis=1)
        found = solve_places(stage[rows], pairs, wanted, weights, self.config.solve)
        section = tiles['section'][0]
        moved = found.places - stage[rows]
        within = np.abs(moved).max(axis=1) <= self.frames.margin
        distance = np.sqrt((moved**2).sum(axis=1))
        places = {
            'section': np.full(within.sum(), section),
            'row': rows[within],
            'y': found.places[within, 0],
            'x': found.places[within, 1],
            'moved': distance[within],
            'piece': found.piece[within],
        }
        solved = {
            'section': np.full(len(pairs), section),
            'first': offsets['first'],
            'second': offsets['second'],
            'misfit': found.misfit,
            'found': offsets['found'],
            'outlier': found.outlier,
        }
        counts = {
            'loose_tiles': int((found.piece > 0).sum()),
            'pairs': len(pairs),
            'lost_pairs': int((weights == 0).sum()),
            'outlier_pairs': int(found.outlier.sum()),
            'tiles_beyond_margin': int((~within).sum()),
        }
        summary = {name: np.array([value]) for name, value in counts.items()}
        told = ('outlier_pairs', 'tiles_beyond_margin', 'loose_tiles')
        return BlockResult(
            rows={
                'places': places,
                'pairs': solved,
                'solved': {'section': np.array([section]), **summary},
            },
            metrics={
                **{name: float(counts[name]) for name in told},
                'peak_tile_moved_px': float(distance.max()),
            },
        )


class MatchSeams(StitchBlock):
    """Shared points of the pairs of a cell."""

    def depends_on(self) -> list[Any]:
        least, elastic = self.config.offsets.min_overlap, self.config.elastic
        return [
            self.frames.pixel_nm, self.frames.cell, least, elastic.stride, elastic.flow,
            self.grey_range, zero_level(self.config.flat_field),
        ]  # fmt: skip

    def __call__(
        self,
        tiles: Columns,
        origin: Columns,
        places: Columns,
        block: Block,
        lighting: Columns | None = None,
    ) -> BlockResult:
        if not length(places):
            return BlockResult()
        shape, images = self.shape(tiles), self.images(tiles, lighting)
        placed = _placed(tiles, places)
        pairs = find_pairs(placed, places['row'], shape, self.config.offsets.min_overlap)
        piece = np.full(length(tiles), -1)
        piece[places['row']] = places['piece']
        pairs = pairs[piece[pairs[:, 0]] == piece[pairs[:, 1]]]
        mask, parts, levels = np.ones(shape, np.bool_), [], []
        stage = self.frames.stage_places(tiles, origin)
        for first, second in self.own(stage, pairs, block).tolist():
            y, x = placed[second] - placed[first]
            shared = measure_overlap_levels(images[first], images[second], mask, mask, (y, x))
            levels.append((first, second, *shared.levels.ravel(), shared.pixels))
            seam = match_seam(
                images[first], images[second], mask, mask, (y, x), self.config.elastic,
                (first, second),
            )  # fmt: skip
            parts.append(_thinned(seam, self.config.elastic.stride / 2))
        return BlockResult(
            rows={'seams': _join_seams(parts), 'levels': _columns(levels, LEVELS)},
            metrics={'seams': len(parts)},
        )


class SolveGains(StitchBlock):
    """Gains and offsets of all tiles of a section: numbers only."""

    def depends_on(self) -> list[Any]:
        return [self.config.gains]

    def __call__(self, places: Columns, levels: Columns, tiles: Columns) -> BlockResult:
        if not length(places):
            return BlockResult()
        number = np.full(length(tiles), -1)
        number[places['row']] = np.arange(length(places))
        names = ('first_mean', 'first_spread', 'second_mean', 'second_spread')
        found = solve_gains(
            length(places),
            number[np.stack([levels['first'], levels['second']], axis=1)],
            np.stack([levels[name] for name in names], axis=1).reshape(-1, 2, 2),
            levels['pixels'],
            self.config.gains,
        )
        rows = {'row': places['row'], 'gain': found.gain, 'offset': found.offset}
        return BlockResult(
            rows={'gains': rows}, metrics={'outlier_levels': float(found.outlier.sum())}
        )


class BendTiles(StitchBlock):
    """Bends the tiles of a cell together with those of the cells around, and keeps its own."""

    def depends_on(self) -> list[Any]:
        # How seams are matched is not for this stage.
        elastic = dataclasses.replace(self.config.elastic, flow=SEAM_FLOW)
        return [self.frames.pixel_nm, self.frames.cell, elastic]

    def working_bytes(self, read_shape: Triple) -> int:
        nodes = math.prod(node_shape(self.frames.tile_shape, self.config.elastic.stride))
        # A factorized sparse system: some 100 numbers for each unknown.
        return nodes * (3 * self.config.cell_tiles + 2) ** 2 * 100 * 12

    def __call__(
        self, tiles: Columns, origin: Columns, places: Columns, seams: Columns, block: Block
    ) -> BlockResult:
        if not length(places):
            return BlockResult()
        placed, shape = _placed(tiles, places), self.shape(tiles)
        stage = self.frames.stage_places(tiles, origin)
        cells = self.frames.cell_of(stage)[places['row']]
        own = places['row'][(cells == np.array(block.index[1:])).all(axis=1)]
        if not len(own):
            return BlockResult()
        taking_part = np.union1d(own, np.union1d(seams['first'], seams['second']))
        number = np.full(length(tiles), -1)
        number[taking_part] = np.arange(len(taking_part))
        found = _split_seams(seams, number)
        vectors, misfit = bend_tiles(
            placed[taking_part], [shape] * len(taking_part), found, self.config.elastic
        )
        seen = misfit[np.isin(seams['first'], own)] if len(misfit) else misfit
        rows = [_node_rows(int(r), placed[r], vectors[number[r]], self.config.elastic.stride)
                for r in own.tolist()]  # fmt: skip
        nodes = {name: np.concatenate([r[name] for r in rows]) for name in NODES.columns}
        quality = {
            'section': tiles['section'][:1],
            'points': np.array([len(seen)]),
            'squares': np.array([float((seen**2).sum())]),
            'p95': np.array([float(np.quantile(seen, 0.95)) if len(seen) else 0.0]),
        }
        return BlockResult(
            rows={'nodes': nodes, 'seam_quality': quality},
            metrics={'seam_points': float(len(seen))},
        )


class RenderMontage(StitchBlock):
    """A block of the montage, at lower resolution, from all tiles that reach it."""

    def depends_on(self) -> list[Any]:
        lit = zero_level(self.config.flat_field)
        return [self.config.elastic.stride, self.config.downsample, self.grey_range, lit]

    def working_bytes(self, read_shape: Triple) -> int:
        pixels = math.prod(read_shape) * self.config.downsample**2
        return super().working_bytes(read_shape) + 12 * pixels

    def __call__(
        self,
        tiles: Columns,
        nodes: Columns,
        gains: Columns,
        block: Block,
        lighting: Columns | None = None,
    ) -> BlockResult:
        factor = self.config.downsample
        start = (block.core.start[1] * factor, block.core.start[2] * factor)
        shape = (block.core.shape[1] * factor, block.core.shape[2] * factor)
        if not length(nodes):
            nothing = np.zeros(block.core.shape, np.uint8)
            return BlockResult(arrays={'montage': nothing})
        images = self.images(tiles, lighting, gains)
        placed = (
            PlacedTile(images[row], np.ones(images[row].shape, np.bool_), inverse)
            for row, inverse in placed_maps(nodes, self.config.elastic.stride, start, shape)
        )
        image, there = render_montage(placed, start, shape)
        size = block.core.shape[2], block.core.shape[1]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        whole = cv2.resize(there.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99
        # 0 means that there is nothing.
        small = np.where(whole, np.maximum(small, 1), 0).astype(np.uint8)
        return BlockResult(
            arrays={'montage': small[None]}, metrics={'montage_pixels': float(whole.sum())}
        )


def placed_maps(
    nodes: Columns, stride: float, start: tuple[int, int], shape: tuple[int, int]
) -> list[tuple[int, CoordinateMap]]:
    """Rows and maps, frame -> tile, of the tiles that may reach a box of a frame, in order."""
    found = []
    order = np.argsort(nodes['row'], kind='stable')
    bounds = np.flatnonzero(np.diff(nodes['row'][order], prepend=-1, append=-1))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        at = order[first:last]
        y, x = (nodes[n][at].astype(np.float64) for n in ('y', 'x'))
        vectors = np.stack([nodes['dy'][at], nodes['dx'][at]]).astype(np.float64)
        places = np.stack([y, x]) + vectors
        low, high = places.min(axis=1), places.max(axis=1)
        if (high < start).any() or (low > np.add(start, shape)).any():
            continue
        grid = (len(np.unique(y)), len(np.unique(x)))
        forward = forward_map(np.zeros(2), vectors.reshape(2, *grid), stride)
        found.append((int(nodes['row'][at[0]]), inverse_map(forward)))
    return found


def _columns(rows: Sequence[tuple[object, ...]], schema: Schema) -> Columns:
    values = list(zip(*rows, strict=True)) if rows else [()] * len(schema.columns)
    return {
        name: np.array(v, dtype)
        for (name, dtype), v in zip(schema.columns.items(), values, strict=True)
    }


def _placed(tiles: Columns, places: Columns) -> Reals:
    """(n, 2) places of all tiles of a section; NaN for those that have none."""
    result = np.full((length(tiles), 2), np.nan)
    result[places['row']] = np.stack([places['y'], places['x']], axis=1)
    return result


def _thinned(seam: Seam, spacing: float) -> Seam:
    """One point for each square of the first tile: the one with the largest weight."""
    if not len(seam):
        return seam
    square = (seam.first_points // spacing).astype(np.int64)
    order = np.lexsort((np.arange(len(seam)), -seam.weights))
    _, first = np.unique(square[order], axis=0, return_index=True)
    keep = np.sort(order[first])
    return dataclasses.replace(
        seam,
        first_points=seam.first_points[keep],
        second_points=seam.second_points[keep],
        weights=seam.weights[keep],
    )


def _join_seams(seams: list[Seam]) -> Columns:
    counts = [len(s) for s in seams]
    columns = {
        'first': np.repeat([s.first for s in seams], counts),
        'second': np.repeat([s.second for s in seams], counts),
    }
    for name, points in (('first', 'first_points'), ('second', 'second_points')):
        joined = np.concatenate([getattr(s, points) for s in seams] or [np.empty((0, 2))])
        columns[f'{name}_y'], columns[f'{name}_x'] = joined[:, 0], joined[:, 1]
    columns['weight'] = np.concatenate([s.weights for s in seams] or [np.empty(0)])
    return {name: columns[name].astype(dtype) for name, dtype in SEAMS.columns.items()}


def _split_seams(seams: Columns, number: Ints) -> list[Seam]:
    """Rows of the table, in its order, as seams of numbered tiles."""
    pairs = np.stack([seams['first'], seams['second']], axis=1)
    changes = np.flatnonzero((np.diff(pairs, axis=0, prepend=-1) != 0).any(axis=1))
    bounds = [*changes.tolist(), len(pairs)]
    result = []
    for a, b in itertools.pairwise(bounds):
        mine, other = (
            np.stack([seams[f'{n}_y'][a:b], seams[f'{n}_x'][a:b]], axis=1).astype(np.float64)
            for n in ('first', 'second')
        )
        first, second = number[pairs[a]].tolist()
        weights = seams['weight'][a:b].astype(np.float64)
        result.append(Seam(first, second, mine, other, weights))
    return result


def _node_rows(row: int, place: Reals, vectors: Reals, stride: int) -> Columns:
    h, w = vectors.shape[1:]
    y, x = np.meshgrid(np.arange(h) * stride, np.arange(w) * stride, indexing='ij')
    columns = {
        'row': np.full(h * w, row),
        'y': y.ravel(),
        'x': x.ravel(),
        'dy': (vectors[0] + place[0]).ravel(),
        'dx': (vectors[1] + place[1]).ravel(),
    }
    return {name: columns[name].astype(dtype) for name, dtype in NODES.columns.items()}
