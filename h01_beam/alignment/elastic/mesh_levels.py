"""A mesh with fewer nodes, and what it found as a beginning for the next finer one.

A coarse node stands amid a square of factor x factor fine ones. Flow is averaged over the square;
the sheet is as stiff as before against it, cuts along the grid stay cuts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from h01_beam.alignment.elastic.mesh import Link, MeshConfig, Real, Reals, Sheets


@dataclasses.dataclass(frozen=True)
class MeshLevel:
    """What `mesh.relax` needs to know of a mesh.

    Attributes:
      shape: sections, h and w.
      links: between sections.
      stride: pixels between nodes.
      config: of the mesh.
      sheets: where sections are torn.
    """

    shape: tuple[int, int, int]
    links: Sequence[Link]
    stride: float
    config: MeshConfig
    sheets: Sheets


def coarsen_mesh(mesh: MeshLevel, factor: int) -> MeshLevel:
    """The same mesh with one node in place of factor x factor."""
    if factor == 1:
        return mesh
    sections, h, w = mesh.shape
    return MeshLevel(
        (sections, -(-h // factor), -(-w // factor)),
        [coarsen_link(link, factor) for link in mesh.links],
        mesh.stride * factor,
        mesh.config.coarser(factor),
        coarsen_sheets(mesh.sheets, factor),
    )


def coarsen_link(link: Link, factor: int) -> Link:
    """Flow at the middles of squares of nodes: weighted means of all but outliers.

    Means, because the fine mesh follows them too: what medians differ from them, small as it is,
    would add up from section to section.
    """
    weight = np.where(np.isfinite(link.vectors[0]), link.weight, np.float32(0))
    weight = np.nan_to_num(_boxes(weight, factor))
    flow = _boxes(link.vectors, factor)
    # Something where nothing is known, so that numpy does not warn.
    known = np.asarray(weight > 0)
    seen = np.where(known.any(axis=-1, keepdims=True), np.where(known, flow, np.nan), 0.0)
    off = np.abs(seen - np.nanmedian(seen, axis=-1, keepdims=True))
    spread = np.nanmedian(off, axis=-1, keepdims=True)
    good = weight * (np.nan_to_num(off) <= 5 * spread + 1e-3).all(axis=0)
    total = good.sum(axis=-1)
    mean = (np.nan_to_num(flow) * good).sum(axis=-1) / np.maximum(total, 1e-9)
    vectors = np.where(total > 0, mean, np.nan).astype(np.float32)
    return Link(link.first, link.second, vectors, (total / factor**2).astype(np.float32))


def coarsen_sheets(sheets: Sheets, factor: int) -> Sheets:
    """Two squares of nodes hold together as much as the rows between their middles do."""
    along_y = np.swapaxes(_coarse_along_x(np.swapaxes(sheets.along_y, 1, 2), factor), 1, 2)
    return Sheets(along_y, _coarse_along_x(sheets.along_x, factor))


def _coarse_along_x(along: Real, factor: int) -> Real:
    n, h, gaps = along.shape
    wide = -(-(gaps + 1) // factor)
    columns = [
        along[..., j * factor + factor // 2 : (j + 1) * factor + factor // 2].min(
            axis=-1, initial=1.0
        )
        for j in range(wide - 1)
    ]
    least = np.stack(columns, axis=-1) if columns else np.ones((n, h, 0))
    rows = np.arange(0, h, factor)
    counts = np.diff(np.append(rows, h))
    return (np.add.reduceat(least, rows, axis=1) / counts[:, None]).astype(np.float32)


def _boxes(array: Real | Reals, factor: int) -> Reals:
    """(..., h, w) -> (..., coarse h, coarse w, factor^2), NaN beyond the border."""
    h, w = (-n % factor for n in array.shape[-2:])
    padded = np.pad(
        array.astype(np.float64),
        [(0, 0)] * (array.ndim - 2) + [(0, h), (0, w)],
        constant_values=np.nan,
    )
    *rest, h, w = padded.shape
    cut = padded.reshape(*rest, h // factor, factor, w // factor, factor)
    return np.moveaxis(cut, -3, -2).reshape(*rest, h // factor, w // factor, factor**2)


def refine_vectors(
    vectors: Reals,
    factor: int,
    shape: tuple[int, int],
    start: tuple[int, int] = (0, 0),
    coarse_start: tuple[int, int] = (0, 0),
) -> Reals:
    """Vectors of a mesh with `factor` times as many nodes along each side.

    Args:
      vectors: (sections, 2, h, w).
      factor: nodes of the fine mesh along each side of a coarse one.
      shape: h and w of the fine mesh, or of the part of it that is asked for.
      start: the first node of that part.
      coarse_start: the first node that `vectors` hold.

    Returns:
      (sections, 2, *shape), linear between and beyond the coarse nodes.
    """
    for axis, size, first, coarse in zip((2, 3), shape, start, coarse_start, strict=True):
        place = (first + np.arange(size) - (factor - 1) / 2) / factor - coarse
        last = vectors.shape[axis] - 1
        low = np.clip(np.floor(place).astype(np.int64), 0, max(0, last - 1))
        share = (place - low).reshape(-1, *(1,) * (3 - axis))
        below, above = vectors.take(low, axis), vectors.take(np.minimum(low + 1, last), axis)
        vectors = below + share * (above - below)
    return vectors
