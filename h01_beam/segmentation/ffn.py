"""Flood-filling segmentation of one block: numpy in, numpy out. Shape of the stage: blocks.

From every seed in turn, a network repeatedly looks at the image and at its own object map
within a field of view (FOV), updates the map, and moves on to where the object continues.
What it painted becomes an object, if it is big enough and its seed stayed in it. Later objects
never take voxels of earlier ones, so the order of the seeds matters, and is fixed.

This package follows the published behaviour:

    ffn.py          `flood_fill`: checks, and the loop over the seeds
    ffn_config.py   `FfnConfig`: thresholds and policies
    seeds.py        where objects may start
    canvas.py       one object: FOV steps, acceptance, labels
    movement.py     where the FOV goes next
    executor.py     many canvases, one network, one batch

Sources: Januszewski et al., "High-precision automated reconstruction of neurons with
flood-filling networks", Nature Methods 15, 2018; google/ffn.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from h01_beam.geometry import Triple, as_triple
from h01_beam.segmentation import seeds
from h01_beam.segmentation.canvas import OBJECT_DTYPE, OVERLAP_DTYPE, Canvas, Predict
from h01_beam.segmentation.ffn_config import FfnConfig
from h01_beam.segmentation.movement import check_deltas

# For z, y and x: at the first voxel, and at the last.
Faces: TypeAlias = Sequence[tuple[bool, bool]]
Margins: TypeAlias = Sequence[tuple[int, int]]
EVERY_FACE: Faces = ((True, True),) * 3

__all__ = ['FfnConfig', 'FloodFill', 'Predict', 'check_image', 'flood_fill']


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloodFill:
    """Result of `flood_fill`.

    Attributes:
      labels: zyx uint32, the shape of the image; local ids from 1, 0 = unlabelled.
      objects: one record for each object, in ascending order of id: `id`, `seed` (zyx),
        `voxels` (those it was the first to claim), `iterations` (FOV steps).
      overlaps: one record for each pair of objects of which the later was painted over the earlier;
        see `canvas.OVERLAP_DTYPE`.
      counters: seeds, FOV steps, moves and objects, with the reasons of refusal, by the names
        in `canvas.COUNTERS`; equal for equal input.
      seconds: 'total', 'seeds', and 'predict' (in the network, or waiting for it).
    """

    labels: npt.NDArray[np.uint32]
    objects: npt.NDArray[np.void]
    overlaps: npt.NDArray[np.void]
    counters: dict[str, int]
    seconds: dict[str, float]


def flood_fill(
    image: npt.NDArray[np.uint8],
    predict: Predict,
    fov_shape: Sequence[int],
    deltas: Sequence[int],
    config: FfnConfig | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    seed_points: npt.NDArray[np.integer] | None = None,
    faces: Faces = EVERY_FACE,
) -> FloodFill:
    """Segments an image object by object.

    Args:
      image: zyx uint8.
      predict: takes the normalized image and the object logits of one FOV (zyx float32, the
        unvisited voxels at `pad_value`) and returns the updated logits (zyx float32). It must
        not write to its arguments, which are reused after the call. Many canvases share one
        network through `executor.BatchExecutor.client`.
      fov_shape: zyx shape of the FOV.
      deltas: zyx steps of the FOV.
      config: thresholds and policies; the published ones when None.
      mask: zyx bool, true where the centre of the FOV may not go and no seed may lie. Objects
        reach into it by at most half a FOV. None: nowhere.
      seed_points: (n, 3) integer zyx voxels to start from, in this order, instead of the seed
        policy's; `seeds.reverse_origins` gives those of a second pass.
      faces: for z, y, x, whether the first and the last voxel lie at a face of the volume; with
        `config.border` 'reflect', the image is mirrored there.

    Returns:
      Labels, records and counters. A function of the arguments alone, if `predict` is one.

    Raises:
      ValueError: the image or the mask is unfit (see `check_image`), the deltas leave the FOV,
        or `predict` returns a wrong shape or NaN.
    """
    started = time.perf_counter()
    config = config or FfnConfig()
    fov_shape = as_triple('fov_shape', fov_shape)
    deltas = as_triple('deltas', deltas)
    check_image(image, fov_shape, mask)
    check_deltas(fov_shape, deltas)
    if config.border == 'reflect':
        margins = _margins(fov_shape, faces)
        if seed_points is not None:
            seed_points = np.asarray(seed_points) + [before for before, _ in margins]
        image, mask = _reflect(image, mask, margins)
        mirrored = dataclasses.replace(config, border='clip')
        flooded = flood_fill(image, predict, fov_shape, deltas, mirrored, mask, seed_points)
        return _cut_off(flooded, margins)

    # Before the canvas is made, because the two need their memory one after the other.
    if seed_points is None:
        seed_points = seeds.propose_seeds(
            image, config.seed_policy, mask=mask, voxel_size_nm=config.seed_voxel_size_nm
        )
    usable = seeds.usable_seeds(seed_points, image.shape, fov_shape)
    seeds_s = time.perf_counter() - started

    canvas = Canvas(image, predict, fov_shape, deltas, config, mask)
    for z, y, x in usable.tolist():
        canvas.segment((z, y, x))
    return FloodFill(
        labels=canvas.labels,
        objects=np.array(canvas.objects, OBJECT_DTYPE),
        overlaps=np.array(canvas.overlaps, OVERLAP_DTYPE),
        counters=canvas.counters,
        seconds={
            'seeds': seeds_s,
            'predict': canvas.predict_s,
            'total': time.perf_counter() - started,
        },
    )


def _margins(fov_shape: Triple, faces: Faces) -> Margins:
    """Voxels to mirror before and after, for each axis: half a field of view at every face."""
    return tuple(
        (size // 2 if before else 0, size // 2 if after else 0)
        for size, (before, after) in zip(fov_shape, faces, strict=True)
    )


def _reflect(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_] | None, margins: Margins
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Mirrors the image beyond faces; the field of view sees that, but its centre stays within."""
    wide = np.pad(image, margins, 'reflect')
    outside = np.ones(wide.shape, np.bool_)
    inside = _inside(margins, wide.shape)
    outside[inside] = False if mask is None else mask
    return wide, outside


def _cut_off(flooded: FloodFill, margins: Margins) -> FloodFill:
    inside = _inside(margins, flooded.labels.shape)
    objects = flooded.objects.copy()
    objects['seed'] -= np.array([before for before, _ in margins], np.int32)
    labels = np.ascontiguousarray(flooded.labels[inside])
    return dataclasses.replace(flooded, labels=labels, objects=objects)


def _inside(margins: Margins, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, size - b) for (a, b), size in zip(margins, shape, strict=True))


def check_image(
    image: npt.NDArray[np.uint8], fov_shape: Triple, mask: npt.NDArray[np.bool_] | None = None
) -> None:
    """Refuses an image that cannot be flooded.

    Raises:
      ValueError: wrong rank or dtype, NaN, smaller than one FOV, or a mask that does not fit;
        the message says what to do.
    """
    if image.ndim != 3:
        raise ValueError(
            f'image has shape {image.shape}: must have three axes, z, y, x; drop the channel '
            'axis, or stack the sections'
        )
    if image.dtype.kind == 'f' and np.isnan(image).any():
        raise ValueError(
            f'image has dtype {image.dtype} and holds NaN: must be uint8; fill the missing '
            'voxels and mask them, then scale to 0-255'
        )
    if image.dtype != np.uint8:
        raise ValueError(
            f'image has dtype {image.dtype}: must be uint8; scale the grey levels to 0-255 and '
            'convert, for example with pipelines.ingest'
        )
    if any(size < fov for size, fov in zip(image.shape, fov_shape, strict=True)):
        raise ValueError(
            f'image has shape {image.shape}, smaller than one field of view, {fov_shape} (zyx): '
            'use a larger volume or block, or a model with a smaller field of view'
        )
    if mask is not None and (mask.shape != image.shape or mask.dtype != np.bool_):
        raise ValueError(
            f'mask has shape {mask.shape} and dtype {mask.dtype}: must be bool of the shape of '
            f'the image, {image.shape}; compare it, for example mask = labels > 0'
        )
