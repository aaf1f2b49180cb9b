"""What is damaged: which sections, which tiles, and what becomes of a file."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from h01_beam.testing.microscope.config import MicroscopeConfig
from h01_beam.testing.noise import hash_integers, uniform

_COUNT, _ORDER, _CORRUPT = 720, 730, 740
# Shares of the configuration; `corrupt_tiles` is told apart into two kinds.
_SHARES = ('missing_tiles', 'corrupt_tiles', 'dirty_tiles', 'blurred_tiles', 'charged_tiles')
SECTION_KINDS = {
    'missing_section': 'missing_sections',
    'double_cut': 'double_cuts',
    'tear': 'torn_sections',
    'fold': 'folded_sections',
}
MISSING, TRUNCATED, SCRAMBLED = 'missing_tile', 'truncated_file', 'scrambled_file'
DIRT, BLUR, CHARGING = 'dirt', 'blur', 'charging'


def section_damage(config: MicroscopeConfig, section: int) -> list[str]:
    """Kinds of damage of a section as a whole; that of lost tissue is not told."""
    kinds = [
        kind for kind, name in SECTION_KINDS.items() if section in getattr(config.damage, name)
    ]
    return ['missing_section'] if 'missing_section' in kinds else kinds


def tile_damage(
    config: MicroscopeConfig, fields: int, section: int, field: int, beam: int
) -> list[str]:
    """Kinds of damage of a tile; a missing one has no other.

    Args:
      config: of the microscope.
      fields: how many a section has; shares are those of all its tiles.
      section: the tile's section.
      field: its field.
      beam: its beam.
    """
    missing, corrupt, dirt, blur, charging = _damaged(config, fields, section)[
        :, field * config.beams + beam
    ]
    if missing:
        return [MISSING]
    kinds = [kind for kind, is_so in ((DIRT, dirt), (BLUR, blur), (CHARGING, charging)) if is_so]
    if corrupt:
        cut_off = uniform(config.seed, _CORRUPT, section, field, beam) < 0.5
        kinds.append(TRUNCATED if cut_off else SCRAMBLED)
    return kinds


def corrupt(data: bytes, kind: str, seed: int) -> bytes:
    """A file as a disk may give it back: without its end, or with other bytes in its middle.

    Args:
      data: the file.
      kind: `TRUNCATED` or `SCRAMBLED`.
      seed: of the place of the damage.
    """
    place = float(uniform(seed, _CORRUPT, 1))
    if kind == TRUNCATED:
        return data[: int(len(data) * (0.1 + 0.8 * place))]
    first = int(len(data) * (0.1 + 0.4 * place))
    count = max(1, len(data) // 3)
    noise = hash_integers(seed, _CORRUPT, np.arange(count)).astype(np.uint8).tobytes()
    return data[:first] + noise + data[first + count :]


@functools.lru_cache(maxsize=16)
def _damaged(config: MicroscopeConfig, fields: int, section: int) -> npt.NDArray[np.bool_]:
    """(kinds of `_SHARES`, tiles of the section) whether a tile is damaged.

    Shares are exact up to one tile a section; the fraction of a tile is left to chance.
    """
    total = fields * config.beams
    result = np.zeros((len(_SHARES), total), np.bool_)
    for kind, name in enumerate(_SHARES):
        share = getattr(config.damage, name)
        count = math.floor(share * total + float(uniform(config.seed, _COUNT + kind, section)))
        order = hash_integers(config.seed, _ORDER + kind, section, np.arange(total)) >> np.uint64(1)
        # The others are taken from the tiles that exist, as far as these go.
        order = np.where(result[0], np.uint64(2**64 - 1), order)
        result[kind, np.argsort(order, kind='stable')[: min(count, total)]] = True
    return result
