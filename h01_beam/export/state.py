"""Neuroglancer states: which layers are shown, from where, and how. Pure: specs in, JSON out.

The state is Neuroglancer's documented JSON (its button {} shows it); its axes are x, y, z.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from h01_beam.volume import VolumeSpec, VoxelSize

# The grey range is a control that the user can drag.
GREY_SHADER = """#uicontrol invlerp normalized
void main() {
  emitGrayscale(normalized());
}
"""
# Width and height in pixels: of a picture, and of the panels in a usual browser's window.
PICTURE = (1600, 1000)
PANELS = (1500, 800)
# Stands for a voxel size that nobody knows; lengths are never shown then.
UNKNOWN_NM: VoxelSize = (1.0, 1.0, 1.0)
# Part of a panel that the volume fills at first.
FILL = 0.95
# Most of a picture's width that the xy plane takes.
LARGEST_PART = 0.66
# Looks at a corner of the volume: quaternion x, y, z, w.
OBLIQUE = (-0.28, -0.365, -0.116, 0.88)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateLayer:
    """One layer of a state.

    Attributes:
      name: shown in the list of layers; unique.
      source: Neuroglancer source URL.
      kind: 'image' or 'segmentation'.
      spec: the volume.
      grey_range: of an image, the values shown black and white; None: the range of its dtype.
    """

    name: str
    source: str
    kind: str
    spec: VolumeSpec
    grey_range: tuple[float, float] | None = None


def build_state(
    layers: Sequence[StateLayer], fallback_nm: VoxelSize | None = None
) -> dict[str, Any]:
    """Makes a state to work with: three planes and the third dimension, all of the first layer.

    Args:
      layers: from the bottom up; at least one.
      fallback_nm: voxel size, zyx, for volumes that do not know theirs; None: they are shown as
        cubes, and there is no scale bar.

    Returns:
      the state, ready for JSON.
    """
    first = layers[0].spec
    known_nm = first.voxel_size_nm or fallback_nm
    size_nm = known_nm or UNKNOWN_NM
    z, y, x = _extents(first, size_nm)
    width, height = PANELS[0] / 2, PANELS[1] / 2
    scales = (_scale((x, y), width, height), _scale((x, z), width, height),
              _scale((z, y), width, height))  # fmt: skip
    return {
        'dimensions': {
            name: [nm * 1e-9, 'm'] for name, nm in zip('xyz', size_nm[::-1], strict=True)
        },
        'position': [s + n / 2 for s, n in zip(first.start[::-1], first.shape[::-1], strict=True)],
        'crossSectionScale': max(scales),
        'projectionScale': 1.8 * max(x, y, z),
        'projectionOrientation': list(OBLIQUE),
        'layers': [_layer(layer) for layer in layers],
        'layout': '4panel',
        # Slices would hide what stands behind them in the third dimension.
        'showSlices': False,
        'showAxisLines': False,
        'showScaleBar': known_nm is not None,
        'crossSectionBackgroundColor': '#000000',
    }


def build_picture(
    layers: Sequence[StateLayer],
    fallback_nm: VoxelSize | None = None,
    size: tuple[int, int] = PICTURE,
) -> dict[str, Any]:
    """Makes a state to look at: the xy plane large, xz and yz beside it, each as large as fits.

    Args:
      layers: see `build_state`.
      fallback_nm: see `build_state`.
      size: width and height of the picture in pixels.

    Returns:
      the state, ready for JSON.
    """
    first = layers[0].spec
    z, y, x = _extents(first, first.voxel_size_nm or fallback_nm or UNKNOWN_NM)
    width, height = size
    left = min(height * x / y, LARGEST_PART * width)
    right = width - left
    names = [layer.name for layer in layers]

    def panel(layout: str, scale: float) -> dict[str, Any]:
        zoom = {'link': 'unlinked', 'value': scale}
        return {'type': 'viewer', 'layers': names, 'layout': layout, 'crossSectionScale': zoom}

    column = {
        'type': 'column',
        'flex': round(right),
        'children': [
            panel('xz', _scale((x, z), right, height / 2)),
            panel('yz', _scale((z, y), right, height / 2)),
        ],
    }
    plane = {**panel('xy', _scale((x, y), left, height)), 'flex': round(left)}
    return {
        **build_state(layers, fallback_nm),
        'layout': {'type': 'row', 'children': [plane, column]},
        'showDefaultAnnotations': False,
    }


def _extents(spec: VolumeSpec, size_nm: VoxelSize) -> tuple[float, float, float]:
    """Extents, zyx, in the unit of Neuroglancer's scales: the finest voxel's edge."""
    z, y, x = (n * s / min(size_nm) for n, s in zip(spec.shape, size_nm, strict=True))
    return z, y, x


def _scale(extents: tuple[float, float], width: float, height: float) -> float:
    """Length per pixel at which a rectangle fits into a panel."""
    return max(extents[0] / width, extents[1] / height) / FILL


def _layer(layer: StateLayer) -> dict[str, Any]:
    common = {'name': layer.name, 'source': layer.source}
    if layer.kind == 'image':
        controls = {}
        if layer.grey_range:
            controls = {'shaderControls': {'normalized': {'range': list(layer.grey_range)}}}
        return {'type': 'image', **common, 'tab': 'rendering', 'shader': GREY_SHADER, **controls}
    # As nothing is selected, all segments are shown in the planes, each in its colour.
    return {
        'type': 'segmentation',
        **common,
        'tab': 'segments',
        'segments': [],
        'ignoreNullVisibleSet': True,
        'hideSegmentZero': True,
        'selectedAlpha': 0.4,
    }
