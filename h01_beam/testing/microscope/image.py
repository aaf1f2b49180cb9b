"""The picture of one tile: tissue, optics, detector, damage. Any tile, alone and in any order."""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from h01_beam.geometry import BoundingBox
from h01_beam.testing.microscope import damage
from h01_beam.testing.microscope.config import MicroscopeConfig
from h01_beam.testing.microscope.geometry import FOLD, GAP, Geometry
from h01_beam.testing.microscope.layout import Layout
from h01_beam.testing.microscope.source import Source, extent_of
from h01_beam.testing.noise import hash_integers, normal, smooth_noise, uniform, voxel_noise

Real = npt.NDArray[np.float32]

# Tissue is sampled by patches of at most this many pixels a side, which bounds memory.
PATCH = 1024
# Grey levels of 255: resin around the tissue, what sections lie on, dirt.
RESIN, SUBSTRATE, DIRT = 205.0, 40.0, 25.0
# Light that comes out of the layers of a fold.
FOLD_SHADE = 0.35
_GAIN, _OFFSET, _VIGNETTE, _LINES, _DIRT, _CHARGE = range(750, 756)
_NOISE_SEED = 0x5EED


@dataclasses.dataclass(frozen=True)
class Microscope:
    """A configuration and what it looks at.

    Attributes:
      config: how it looks.
      source: at what.
    """

    config: MicroscopeConfig
    source: Source

    @functools.cached_property
    def geometry(self) -> Geometry:
        return Geometry(self.config, extent_of(self.source))

    @functools.cached_property
    def layout(self) -> Layout:
        return Layout(self.config, extent_of(self.source))

    def damage_of(self, section: int, field: int, beam: int) -> list[str]:
        """Kinds of damage of a tile; see `damage.tile_damage`."""
        return damage.tile_damage(self.config, len(self.layout.fields_nm), section, field, beam)


def image_tile(microscope: Microscope, section: int, field: int, beam: int) -> np.ndarray:
    """(h, w) picture of a tile, uint8 or uint16.

    A tile that is missing, or whose file is corrupt, is imaged all the same.
    """
    config = microscope.config
    kinds = microscope.damage_of(section, field, beam)
    sigma = math.hypot(config.psf_px, config.defocus_px if damage.BLUR in kinds else 0.0)
    margin = math.ceil(3 * sigma)
    first = microscope.layout.true_nm(section, field)[beam]
    grey = sample_tissue(microscope, section, (first[0], first[1]), margin)
    seed = int(hash_integers(config.seed, _NOISE_SEED, section, field, beam) >> np.uint64(34))
    if damage.DIRT in kinds:
        _soil(grey, seed)
    if margin:
        size = (2 * margin + 1,) * 2
        grey = cv2.GaussianBlur(grey, size, sigma, borderType=cv2.BORDER_REPLICATE)
        grey = np.ascontiguousarray(grey[margin:-margin, margin:-margin])
    if damage.CHARGING in kinds:
        _charge(grey, seed)
    _detect(grey, config, beam, seed)
    if config.dtype == 'uint16':
        grey *= np.float32(257)
    return np.rint(np.clip(grey, 0, np.iinfo(config.dtype).max)).astype(config.dtype)


def sample_tissue(
    microscope: Microscope, section: int, first_nm: tuple[float, float], margin: int = 0
) -> Real:
    """(h + 2 margin, w + 2 margin) float32 grey levels of 255 that a perfect detector would see.

    Args:
      microscope: the microscope.
      section: the section.
      first_nm: y, x on the stage of the tile's first pixel, which `margin` pixels precede.
      margin: pixels around the tile.
    """
    config = microscope.config
    h, w = (n + 2 * margin for n in config.tile_shape)
    y = first_nm[0] + (np.arange(h, dtype=np.float64) - margin) * config.pixel_nm
    x = first_nm[1] + (np.arange(w, dtype=np.float64) - margin) * config.pixel_nm
    grey = np.empty((h, w), np.float32)
    for i in range(0, h, PATCH):
        for j in range(0, w, PATCH):
            rows, columns = y[i : i + PATCH, None], x[None, j : j + PATCH]
            grey[i : i + PATCH, j : j + PATCH] = _sample(microscope, section, rows, columns)
    return grey


def _sample(
    microscope: Microscope, section: int, y_nm: npt.NDArray[np.float64], x_nm: np.ndarray
) -> Real:
    source = microscope.source
    y, x, state = microscope.geometry.section(section).look(y_nm, x_nm)
    _, size_y, size_x = source.voxel_size_nm
    y, x = y / size_y - 0.5, x / size_x - 0.5
    (_, y0, x0), (_, y1, x1) = source.bounds.start, source.bounds.end
    # Up to the outer faces of the outer voxels there is tissue.
    inside = (y >= y0 - 0.5) & (y <= y1 - 0.5) & (x >= x0 - 0.5) & (x <= x1 - 0.5)
    inside &= state != GAP
    grey = np.full(y.shape, RESIN, np.float32)
    if inside.any():
        y, x = y[inside], x[inside]
        first_y, first_x = (max(math.floor(v.min()), s) for v, s in ((y, y0), (x, x0)))
        end_y, end_x = (min(math.floor(v.max()) + 2, e) for v, e in ((y, y1), (x, x1)))
        planes = _planes(microscope, section)
        box = BoundingBox.from_bounds((planes[0], first_y, first_x), (planes[1], end_y, end_x))
        voxels = source.read(box)
        seen = voxels.mean(axis=0, dtype=np.float32)
        seen *= np.float32(255 / np.iinfo(voxels.dtype).max)
        places = np.stack([y - first_y, x - first_x])
        grey[inside] = ndimage.map_coordinates(seen, places, np.float32, order=1, mode='nearest')
    grey[state == GAP] = SUBSTRATE
    grey[state == FOLD] *= np.float32(FOLD_SHADE)
    return grey


def _planes(microscope: Microscope, section: int) -> tuple[int, int]:
    """First plane of the volume whose centre lies in the section, and one past the last.

    A section that holds no centre shows the plane that it lies in.
    """
    size, bounds = microscope.source.voxel_size_nm[0], microscope.source.bounds
    top, bottom = (v / size for v in microscope.geometry.depth_nm(section))
    first, end = math.ceil(top - 0.5 - 1e-9), math.ceil(bottom - 0.5 - 1e-9)
    if end <= first:
        first = math.floor((top + bottom) / 2)
        end = first + 1
    first = min(max(first, bounds.start[0]), bounds.end[0] - 1)
    return first, min(max(end, first + 1), bounds.end[0])


def _detect(grey: Real, config: MicroscopeConfig, beam: int, seed: int) -> None:
    """Uneven light, gain and offset of the beam, noise; in place."""
    h, w = grey.shape
    if config.vignette:
        y, x = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 / 2 for n in (h, w))
        uneven = 0.7 + 0.6 * float(uniform(config.seed, _VIGNETTE, beam))
        grey *= 1 - np.float32(min(config.vignette * uneven, 1.0)) * (y[:, None] + x)
    grey *= np.float32(1 + config.gain_deviation * float(normal(config.seed, _GAIN, beam)))
    grey += np.float32(config.offset_deviation * float(normal(config.seed, _OFFSET, beam)))
    if config.noise:
        noise = voxel_noise(BoundingBox((0, 0, 0), (1, h, w)), seed)[0]
        # Shot noise: fewer electrons in less time; brighter pixels are noisier.
        noise *= np.float32(config.noise * math.sqrt(200 / config.dwell_ns))
        noise *= np.sqrt(np.clip(grey, 8, None) * np.float32(1 / 128))
        grey += noise
    if config.line_noise:
        lines = config.line_noise * normal(seed, _LINES, np.arange(h))
        grey += lines.astype(np.float32)[:, None]


def _soil(grey: Real, seed: int) -> None:
    """Lays a particle on the middle of a tile, where no other tile would have to show it."""
    h, w = grey.shape
    at_y, at_x, big = uniform(seed, _DIRT, np.arange(3)).tolist()
    radius = min(h, w) * (0.04 + 0.08 * big)
    y = (np.arange(h, dtype=np.float64) - h * (0.35 + 0.3 * at_y)) / radius
    x = (np.arange(w, dtype=np.float64) - w * (0.35 + 0.3 * at_x)) / radius
    rough = smooth_noise((np.zeros(1), y, x), (1.0, 0.5, 0.5), seed, _DIRT)[0]
    far = np.hypot(y[:, None], x[None, :]).astype(np.float32) + np.float32(0.3) * rough
    cover = np.clip((1 - far) * 8, 0, 1)
    grey += cover * (np.float32(DIRT) - grey)
    # Edges shine.
    grey += np.float32(70) * np.exp(-(((far - 1) * 7) ** 2))


def _charge(grey: Real, seed: int) -> None:
    """Bright bands along scan lines, in which contrast is lower."""
    h, w = grey.shape
    y, x = np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64)
    bands = smooth_noise((np.zeros(1), y, x), (1.0, max(h / 12, 2.0), 2.0 * w), seed, _CHARGE)[0]
    strength = np.clip(bands * np.float32(2.0), 0, 1)
    grey *= 1 - np.float32(0.35) * strength
    grey += np.float32(110) * strength


def encode(image: np.ndarray, file_format: str) -> bytes:
    """The file of a tile: 'png', 'tif', 'bmp' or 'jpg'; the same picture gives the same bytes."""
    options = {'png': [cv2.IMWRITE_PNG_COMPRESSION, 1], 'jpg': [cv2.IMWRITE_JPEG_QUALITY, 92]}
    done, data = cv2.imencode(f'.{file_format}', image, options.get(file_format, []))
    if not done:
        raise ValueError(f'format is {file_format!r}: cannot hold a tile of {image.dtype}')
    return bytes(data.tobytes())
