"""What the stages of alignment do with one block: arrays and rows in, arrays and rows out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.elastic.lines import LineConfig, find_lines
from h01_beam.alignment.frames import (
    RENDER_STRIDE,
    PixelsOfRough,
    Slices,
    ToFrame,
    affine_of,
    rough_map,
    state_of,
)
from h01_beam.geometry import Block, BoundingBox, Triple
from h01_beam.plan import BlockResult
from h01_beam.registration.maps import CoordinateMap, compose, warp
from h01_beam.stitching.blocks import StitchBlock, placed_maps
from h01_beam.stitching.lighting import zero_level
from h01_beam.stitching.render import PlacedTile, render_montage
from h01_beam.tables import Columns, length

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class RenderRough:
    """A block of a section, put into the aligned frame by its affine map; 0 is no tissue.

    Attributes:
      factor: pixels of the montage to one of the thumbnail.
      shown: the box of the montage that it reads.
      bands: whether folds and tears are put there too.
    """

    factor: int
    shown: PixelsOfRough
    bands: bool

    def working_bytes(self, read_shape: Triple) -> int:
        # What is read is turned: up to twice the block.
        return 24 * math.prod(read_shape)

    def __call__(
        self,
        montage: Bytes | None,
        tissue: Bytes | None,
        affines: Columns,
        block: Block,
        lines: Bytes | None = None,
    ) -> BlockResult:
        part = self.shown(block, affines)
        if montage is None or tissue is None or part is None:
            names = ('rough', 'bands') if self.bands else ('rough',)
            return BlockResult(arrays=dict.fromkeys(names, np.zeros(block.core.shape, np.uint8)))
        image = np.where(_enlarged(tissue[0], self.factor, part), montage[0], 0).astype(np.uint8)
        band = None if lines is None else lines[0]
        if band is not None:
            # Flow must not hold on to what is not tissue.
            image = np.where(band > 0, 0, image).astype(np.uint8)
        shape = block.core.shape[1:]
        grid = rough_map(affine_of(affines, block.core.start[0]), block.core)
        moved = grid.vectors - np.array(part.start[1:], np.float32).reshape(2, 1, 1)
        grid = CoordinateMap(moved.astype(np.float32), grid.start, grid.stride)
        whole = cv2.erode((image > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        seen = warp(image, grid)[: shape[0], : shape[1]]
        share = warp(whole.astype(np.float32), grid)[: shape[0], : shape[1]]
        there = share.astype(np.float32) > 0.99
        result = np.where(there, np.maximum(seen, 1), 0).astype(np.uint8)
        arrays = {'rough': result[None]}
        if band is not None:
            # Pixels are of what most of them is of; kinds never mix along one line.
            seen = warp(band.astype(np.float32), grid)[: shape[0], : shape[1]]
            arrays['bands'] = np.rint(np.nan_to_num(seen)).astype(np.uint8)[None]
        return BlockResult(arrays=arrays, metrics={'rough_pixels': float(there.sum())})


@dataclasses.dataclass(frozen=True)
class FindLines:
    """Folds and tears of a block of a montage.

    Attributes:
      config: what counts.
      pixel_nm: of the montage.
    """

    config: LineConfig
    pixel_nm: float

    def working_bytes(self, read_shape: Triple) -> int:
        # Contrast, levels and their padded copies, in 16 orientations, at the finest level.
        return 4 * math.prod(read_shape) + 200 * math.prod(read_shape) // 16

    def __call__(self, montage: Bytes) -> BlockResult:
        found = find_lines(montage[0], self.pixel_nm, self.config)
        return BlockResult(
            arrays={'lines': found[None]}, metrics={'line_pixels': float((found > 0).sum())}
        )


def _enlarged(mask: Bytes, factor: int, box: BoundingBox) -> npt.NDArray[np.bool_]:
    """A mask of the pixels of the thumbnail that a box of the montage meets, over that box."""
    y, x = (np.arange(s, e) // factor - s // factor for s, e in zip(box.start[1:], box.end[1:],
                                                                    strict=True))  # fmt: skip
    return mask[np.ix_(y, x)] > 0


@dataclasses.dataclass(frozen=True)
class RenderAligned(StitchBlock):
    """A block of the aligned volume from the tiles of its section, through one composed map.

    Attributes:
      align: configuration of alignment.
      slices: which section every z shows.
    """

    align: AlignConfig
    slices: Slices

    def depends_on(self) -> list[Any]:
        # What depends on all sections does not count: which one a slice shows, its reads tell.
        frames = dataclasses.replace(self.frames, sections=1)
        config = self.config
        return [
            frames, config.elastic, config.downsample, self.grey_range, self.align.flow.stride,
            zero_level(config.flat_field),
        ]  # fmt: skip

    def working_bytes(self, read_shape: Triple) -> int:
        return super().working_bytes(read_shape) + 40 * math.prod(read_shape)

    def __call__(
        self,
        tiles: Columns,
        nodes: Columns,
        gains: Columns,
        affines: Columns,
        mesh: npt.NDArray[np.float32] | None,
        block: Block,
        damage: Bytes | None = None,
        lighting: Columns | None = None,
    ) -> BlockResult:
        position = self.slices.positions[block.index[0]]
        blank = np.zeros(block.core.shape, np.uint8)
        nothing = BlockResult(arrays={'image': blank, 'mask': blank})
        if position < 0 or mesh is None or not length(nodes):
            return nothing
        if state_of(affines, position) != 'placed':
            return nothing
        start, shape = block.core.start[1:], block.core.shape[1:]
        stride, factor = self.align.flow.stride, self.config.downsample
        self._check_reach(mesh, position)
        first = self._first_node(block)
        grid = CoordinateMap(
            np.ascontiguousarray(mesh[:, 0]), (first[0] * stride, first[1] * stride), stride
        )
        maps = ToFrame(affine_of(affines, position), grid, factor)
        to_frame = maps.over(start, shape)
        places = to_frame.places().reshape(2, -1)
        places = places[:, np.isfinite(places).all(axis=0)]
        if not places.shape[1]:
            return nothing
        low = np.floor(places.min(axis=1)).astype(int)
        size = np.ceil(places.max(axis=1)).astype(int) - low + 1
        images = self.images(tiles, lighting, gains)
        placed = (
            PlacedTile(images[row], np.ones(images[row].shape, np.bool_), compose(tile, to_frame))
            for row, tile in placed_maps(
                nodes, self.config.elastic.stride, (low[0], low[1]), (size[0], size[1])
            )
        )
        image, there = render_montage(placed, (start[0], start[1]), (shape[0], shape[1]))
        if damage is not None and damage.any():
            there &= ~self._damaged(damage[0], maps, block)
        return BlockResult(
            arrays={'image': image[None], 'mask': there[None].astype(np.uint8)},
            metrics={'pixels': float(there.sum())},
        )

    def _damaged(self, damage: Bytes, maps: ToFrame, block: Block) -> npt.NDArray[np.bool_]:
        """Pixels of the block that show what hides tissue, or a gap; `damage` is what it reads."""
        start, shape = block.core.start[1:], block.core.shape[1:]
        reach = self.align.mesh_blocks.halo * self.align.flow.stride
        corner = [max(0, s // self.config.downsample - reach) for s in start]
        grid = maps.rough_over(start, shape)
        moved = grid.vectors - np.array(corner, np.float32).reshape(2, 1, 1)
        seen = warp(damage.astype(np.float32), dataclasses.replace(grid, vectors=moved))
        y, x = (int(s - g) for s, g in zip(start, grid.start, strict=True))
        seen = seen.astype(np.float32)[y : y + shape[0], x : x + shape[1]]
        return np.asarray(seen > 0.25)

    def _check_reach(self, mesh: npt.NDArray[np.float32], position: int) -> None:
        """Tiles farther away than the mesh may reach are not read: they must not be needed."""
        reach = self.align.mesh_blocks.halo * self.align.flow.stride
        moved = float(np.nanmax(np.abs(mesh), initial=0))
        if moved > reach:
            raise ValueError(
                f'the mesh moves section {position} by {moved:.0f} pixels: must be at most '
                f'{reach}, align.mesh_blocks.halo times align.flow.stride; raise the halo'
            )

    def _first_node(self, block: Block) -> tuple[int, int]:
        pitch = self.align.flow.stride * self.config.downsample
        y, x = (max(0, (s - RENDER_STRIDE) // pitch - 1) for s in block.core.start[1:])
        return y, x
