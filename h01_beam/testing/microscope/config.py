"""Configuration of the microscope; the defaults follow the acquisition of H01."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, Literal

FORMATS = {'png': (8, 16), 'tif': (8, 16), 'bmp': (8,), 'jpg': (8,)}
# Steeper warps than this amplitude per cell would come near to folding tissue over itself.
STEEPEST_WARP = 0.015


def _check(config: Any, name: str, good: bool, rule: str) -> None:
    if not good:
        prefix = 'microscope.damage' if isinstance(config, DamageConfig) else 'microscope'
        raise ValueError(f'{prefix}.{name} is {getattr(config, name)!r}: must be {rule}')


def _between(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DamageConfig:
    """What goes wrong: sections by number (their nominal z, from 0), tiles by share in [0, 1].

    Attributes:
      missing_sections: cut, but lost.
      double_cuts: twice as thick; the next number does not exist.
      torn_sections: two halves, pulled apart.
      tear_nm: by how much.
      folded_sections: with a dark fold in which tissue is hidden.
      fold_nm: by how much both sides are nearer together; half as wide is the dark band.
      missing_tiles: listed, but without a file.
      corrupt_tiles: cut off or scrambled files; at most 1 together with `missing_tiles`.
      dirty_tiles: with a particle on them.
      blurred_tiles: out of focus.
      charged_tiles: with bright bands along scan lines.
    """

    missing_sections: tuple[int, ...] = ()
    double_cuts: tuple[int, ...] = ()
    torn_sections: tuple[int, ...] = ()
    tear_nm: float = 4000.0
    folded_sections: tuple[int, ...] = ()
    fold_nm: float = 2000.0
    missing_tiles: float = 0.0
    corrupt_tiles: float = 0.0
    dirty_tiles: float = 0.0
    blurred_tiles: float = 0.0
    charged_tiles: float = 0.0

    def __post_init__(self) -> None:
        """Checks the fields."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith('_nm'):
                _check(self, field.name, _between(value, 1, 1e6), 'a length of 1 to 1e6 nm')
            elif field.name.endswith('_tiles'):
                _check(self, field.name, _between(value, 0, 1), 'a share in [0, 1]')
            else:
                good = all(_is_integer(s) and s >= 0 for s in value) and len(set(value)) == len(
                    value
                )
                _check(self, field.name, good, 'different section numbers >= 0')
        together = self.missing_tiles + self.corrupt_tiles
        rule = f'at most 1 together with missing_tiles, not {together}'
        _check(self, 'corrupt_tiles', together <= 1, rule)
        absent = {s + 1 for s in self.double_cuts}
        for name in ('missing_sections', 'double_cuts', 'torn_sections', 'folded_sections'):
            rule = (
                f'without {sorted(absent & set(getattr(self, name)))}: a double cut takes them in'
            )
            _check(self, name, not absent & set(getattr(self, name)), rule)
        lost = sorted(set(self.double_cuts) & set(self.missing_sections))
        rule = f'without the missing sections {lost}, of which nobody sees how thick they are'
        _check(self, 'double_cuts', not lost, rule)

    def most_section(self) -> int:
        """The largest section number that is named; -1 without any."""
        doubles = [s + 1 for s in self.double_cuts]
        named = (self.missing_sections, doubles, self.torn_sections, self.folded_sections)
        return max(itertools.chain.from_iterable(named), default=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroscopeConfig:
    """How tissue is cut and imaged.

    Attributes:
      seed: another seed, another acquisition of the same tissue.
      pixel_nm: side of a pixel.
      tile_shape: y, x pixels of a tile.
      beams: tiles of a field, in a hexagonal spiral; full hexagons have 1, 7, 19, 37 or 61.
      fields: of each section, in a hexagonal spiral around its middle; None: cover the section.
      beam_overlap: share of a tile that its neighbours in the field see too.
      field_overlap: share of its width by which a field lies nearer to its neighbour than if the
        lattice of the beams went on.
      stage_jitter_nm: deviation of a field's true place from the reported one, along y and x.
      beam_jitter_nm: the same of a tile within its field.
      gain_deviation, offset_deviation: of the beams; share, and grey levels of 255.
      vignette: share of light that is missing in the corners of a tile.
      psf_px: deviation of the beam's spot.
      defocus_px: the same in blurred tiles.
      dwell_ns: time per pixel.
      noise: deviation in grey levels of 255 at mid grey and 200 ns; 1 / sqrt(dwell_ns).
      line_noise: deviation in grey levels from scan line to scan line.
      rotation_degrees: sections are turned by up to this, either way.
      shift_nm: and moved by up to this along y and x.
      elastic_nm: deviation of the elastic warp along y and x; at most `STEEPEST_WARP` of the cell.
      elastic_cell_nm: mean wavelength of it.
      compression: share by which the knife shortens sections along the cutting direction.
      compression_deviation: of it, between sections.
      cutting_degrees: direction of cutting in the volume; 0 is x, 90 is y.
      thickness_nm: of a section.
      thickness_deviation: of the place of each cut, as a share of the thickness.
      damage: see `DamageConfig`.
      format: of the tiles' files.
      dtype: uint8, or uint16 (grey levels times 257).
    """

    seed: int = 0
    pixel_nm: float = 4.0
    tile_shape: tuple[int, int] = (2724, 3128)
    beams: int = 61
    fields: int | None = None
    beam_overlap: float = 0.06
    field_overlap: float = 0.03
    stage_jitter_nm: float = 400.0
    beam_jitter_nm: float = 15.0
    gain_deviation: float = 0.05
    offset_deviation: float = 5.0
    vignette: float = 0.1
    psf_px: float = 0.6
    defocus_px: float = 4.0
    dwell_ns: float = 200.0
    noise: float = 12.0
    line_noise: float = 1.0
    rotation_degrees: float = 3.0
    shift_nm: float = 2000.0
    elastic_nm: float = 300.0
    elastic_cell_nm: float = 60_000.0
    compression: float = 0.04
    compression_deviation: float = 0.01
    cutting_degrees: float = 90.0
    thickness_nm: float = 33.0
    thickness_deviation: float = 0.05
    damage: DamageConfig = DamageConfig()
    format: Literal['png', 'tif', 'bmp', 'jpg'] = 'png'
    dtype: Literal['uint8', 'uint16'] = 'uint8'

    def __post_init__(self) -> None:
        """Checks the fields."""
        _check(self, 'seed', _is_integer(self.seed) and 0 <= self.seed < 2**31, 'in [0, 2**31)')
        good = len(self.tile_shape) == 2 and all(
            _is_integer(n) and 8 <= n <= 16384 for n in self.tile_shape
        )
        _check(self, 'tile_shape', good, '8 to 16384 pixels, y and x')
        good = _is_integer(self.beams) and 1 <= self.beams <= 1000
        _check(self, 'beams', good, '1 to 1000; full hexagons have 1, 7, 19, 37 or 61')
        good = self.fields is None or (_is_integer(self.fields) and self.fields >= 1)
        _check(self, 'fields', good, '>= 1, or null to cover the section')
        for name, (low, high) in RANGES.items():
            good = _between(getattr(self, name), low, high)
            _check(self, name, good, f'a number of {low:g} to {high:g}')
        limit = STEEPEST_WARP * self.elastic_cell_nm
        rule = f'at most {limit:g}, {STEEPEST_WARP} of elastic_cell_nm: tissue would fold'
        _check(self, 'elastic_nm', self.elastic_nm <= limit, rule)
        _check(self, 'format', self.format in FORMATS, f'one of {", ".join(FORMATS)}')
        _check(self, 'dtype', self.dtype in ('uint8', 'uint16'), 'uint8 or uint16')
        bits = 8 * (1 + (self.dtype == 'uint16'))
        rule = f'png or tif for {self.dtype}, which {self.format} does not hold'
        _check(self, 'format', bits in FORMATS[self.format], rule)


RANGES = {
    'pixel_nm': (0.1, 1000),
    'beam_overlap': (0, 0.5),
    'field_overlap': (0, 0.5),
    'stage_jitter_nm': (0, 1e5),
    'beam_jitter_nm': (0, 1e4),
    'gain_deviation': (0, 0.3),
    'offset_deviation': (0, 60),
    'vignette': (0, 0.9),
    'psf_px': (0, 20),
    'defocus_px': (0, 50),
    'dwell_ns': (1, 1e6),
    'noise': (0, 200),
    'line_noise': (0, 100),
    'rotation_degrees': (0, 180),
    'shift_nm': (0, 1e6),
    'elastic_nm': (0, 1e6),
    'elastic_cell_nm': (100, 1e8),
    'compression': (0, 0.5),
    'compression_deviation': (0, 0.1),
    'cutting_degrees': (-360, 360),
    'thickness_nm': (1, 1000),
    'thickness_deviation': (0, 0.2),
}
