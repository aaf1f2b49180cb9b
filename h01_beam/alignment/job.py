"""The whole job, from a list of tiles to an aligned volume: configuration and highlights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from h01_beam.acquisition.checks import CheckConfig
from h01_beam.acquisition.importers import ImportConfig
from h01_beam.acquisition.tables import TILE_STATES, Acquisition
from h01_beam.alignment.config import AlignConfig
from h01_beam.imaging.contrast import ContrastConfig
from h01_beam.stitching.config import StitchConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignJob:
    """The YAML file of `pipelines.align`.

    Attributes:
      tiles: where they are listed.
      checks: thresholds for tiles.
      stitch: tiles to montages.
      align: montages to the volume.
      contrast: of a second volume, `even`, beside `image`, which keeps the grey levels that the
        microscope gave; None makes none: it takes as much room as `image` again.
      section_range: numbers of the first and the last section to take; None: all.
    """

    tiles: ImportConfig
    checks: CheckConfig = CheckConfig()
    stitch: StitchConfig = StitchConfig()
    align: AlignConfig = AlignConfig()
    contrast: ContrastConfig | None = None
    section_range: tuple[int, ...] | None = None


def select(acquisition: Acquisition, section_range: tuple[int, ...] | None) -> Acquisition:
    """The sections from the first to the last number of a range; all, if there is none.

    Raises:
      ValueError: the range is none, or holds no section.
    """
    if section_range is None:
        return acquisition
    if len(section_range) != 2 or section_range[0] > section_range[1]:
        raise ValueError(
            f'section_range is {section_range}: must be FIRST,LAST, the numbers of two sections'
        )
    first, last = section_range

    def within(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = (columns['section'] >= first) & (columns['section'] <= last)
        return {name: column[rows] for name, column in columns.items()}

    sections, tiles = within(acquisition.sections), within(acquisition.tiles)
    if not len(sections['section']) or not len(tiles['section']):
        numbers = acquisition.sections['section']
        raise ValueError(
            f'section_range is {section_range}: no tile is in it; sections are numbered '
            f'{numbers.min()} to {numbers.max()}'
        )
    return Acquisition(tiles, sections, acquisition.pixel_nm)


def highlights(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the top of the report says.

    Args:
      content: of report.json, with `sections`.
    """
    sections = content['sections']
    states = [s['state'] for s in sections]
    told: dict[str, Any] = {'sections': len(sections), 'placed': states.count('placed')}
    for state in ('missing', 'loose', 'unmatched'):
        if states.count(state):
            told[state] = states.count(state)
    tiles = content['stages']['check_sections']
    told['tiles'] = int(sum(tiles.get(f'tiles_{state}', 0) for state in TILE_STATES))
    told['bad or missing tiles'] = int(tiles.get('tiles_bad', 0) + tiles.get('tiles_missing', 0))
    seams = [s['seam_rms_px'] for s in sections if s.get('seam_rms_px') is not None]
    jitter = [s['jitter_px'] for s in sections if s.get('jitter_px') is not None]
    if seams:
        told['seams, RMS px'] = round(float(np.sqrt(np.mean(np.square(seams)))), 2)
    if jitter:
        told['jitter, RMS px'] = round(float(np.sqrt(np.mean(np.square(jitter)))), 2)
    return told
