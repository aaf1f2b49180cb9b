"""How fast each stage is: numbers that benchmarks measured, as ranges, with their machine.

`tests/benchmarks/stages.py` writes the file; `pipelines/configs/plan/rates.json` is one.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

from h01_beam import config as config_lib

# Stages by pattern, the first that matches: what their work is counted in.
UNITS = {
    'check_tiles': 'tile_pixels',
    'check_sections': 'tiles',
    'sum_lighting': 'lit_pixels',
    'solve_lighting': 'blocks',
    'measure_offsets': 'tile_pixels',
    'solve_places': 'tiles',
    'match_seams': 'tile_pixels',
    'solve_gains': 'tiles',
    'bend_tiles': 'tiles',
    'match_sections': 'read_voxels',
    'place_sections': 'sections',
    'deal_affines': 'sections',
    'check_order': 'sections',
    'measure_frame': 'read_voxels',
    'flow_*': 'written_voxels',
    'coarsen_flow_*': 'written_voxels',
    'coarsen_sheets_*': 'written_voxels',
    'relax_mesh_*': 'written_voxels',
    'downsample_*': 'written_voxels',
    'flood': 'fov_steps',
    'match': 'read_voxels',
    'components': 'edges',
    'render_montage': 'written_voxels',
    'render_rough': 'written_voxels',
    'render_image': 'written_voxels',
    'find_lines': 'written_voxels',
    'find_tissue': 'written_voxels',
    'find_damage': 'written_voxels',
    'measure_links': 'read_voxels',
    'count_levels': 'read_voxels',
    'measure_levels': 'sections',
    'solve_levels': 'sections',
    'even_contrast': 'written_voxels',
    'fill': 'written_voxels',
    'relabel': 'written_voxels',
    'ingest': 'written_voxels',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """A number that is not known exactly: least, most likely, most."""

    low: float
    typical: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.typical <= self.high:
            raise ValueError(
                f'a range is {self.low}, {self.typical}, {self.high}: must be low <= typical <= '
                'high, none negative; sort them'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """How much one processor thread does in a second.

    Attributes:
      unit: what is counted; must be the stage's in `UNITS`.
      per_second: of one thread.
      blocks: on how many blocks it was measured.
    """

    unit: str
    per_second: Range
    blocks: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A chip that runs the network.

    Attributes:
      peak_tflops: in bfloat16, as its maker says.
      utilization: share of it that this network reaches.
      memory_gib: of the chip.
      source: 'measured', or how it was derived.
    """

    peak_tflops: float
    utilization: Range
    memory_gib: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """All that a forecast needs to know of speed and size.

    Attributes:
      measured: the date.
      machine: where: processor, cores, versions.
      stages: by pattern of `UNITS`.
      flood_gflops: GFLOP per second of one thread that runs a network, by precision.
      host_steps: FOV steps per second that one process can prepare and take up, with a network
        that costs nothing: no accelerator goes faster.
      steps_per_voxel: FOV steps per voxel that blocks read.
      overhead_seconds: of Beam and ledger, by block.
      stored_fraction: bytes stored per byte in memory, by dtype of a volume.
      tile_bytes_per_pixel: of a stored tile.
      accelerators: by name.
    """

    measured: str
    machine: Mapping[str, Any]
    stages: Mapping[str, Rate]
    flood_gflops: Mapping[str, Range]
    host_steps: Range
    steps_per_voxel: Range
    overhead_seconds: Range
    stored_fraction: Mapping[str, Range]
    tile_bytes_per_pixel: Range
    accelerators: Mapping[str, Accelerator]

    def __post_init__(self) -> None:
        for pattern, rate in self.stages.items():
            if pattern not in UNITS:
                raise ValueError(
                    f'rates.stages has {pattern!r}: no stage is counted under that name; known: '
                    f'{", ".join(UNITS)}'
                )
            if rate.unit != UNITS[pattern]:
                raise ValueError(
                    f'rates.stages.{pattern}.unit is {rate.unit!r}: must be {UNITS[pattern]!r}; '
                    'measure again with tests/benchmarks/stages.py'
                )

    def of(self, stage: str) -> Rate:
        """That of a stage, by its name without the run that it is in.

        Raises:
          ValueError: there is none.
        """
        name = stage.rpartition('/')[2]
        key = pattern_of(name)
        if key not in self.stages:
            raise ValueError(
                f'rates.stages has no rate for the stage {name!r} (looked for as {key!r}): measure '
                'it with tests/benchmarks/stages.py, or leave the stage out with --stage'
            )
        return self.stages[key]

    def knows(self, stage: str) -> bool:
        """Whether `of` has an answer."""
        try:
            return bool(self.of(stage))
        except ValueError:
            return False

    def stored(self, dtype: str) -> Range:
        """Bytes stored per byte of a volume in memory.

        Raises:
          ValueError: nothing is known of that dtype.
        """
        if dtype not in self.stored_fraction:
            raise ValueError(
                f'rates.stored_fraction has no {dtype!r}: known are '
                f'{", ".join(self.stored_fraction)}; add it to the rates file'
            )
        return self.stored_fraction[dtype]

    def accelerator(self, name: str) -> Accelerator:
        """One by name; raises a ValueError for one that is not known."""
        if name not in self.accelerators:
            raise ValueError(
                f'fleet.accelerator is {name!r}: must be one of {", ".join(self.accelerators)}, '
                'which the rates file knows, or null for none'
            )
        return self.accelerators[name]


def pattern_of(stage: str) -> str:
    """Under which name of `UNITS` a stage is counted.

    Raises:
      ValueError: under none.
    """
    for pattern in UNITS:
        if fnmatch.fnmatchcase(stage, pattern):
            return pattern
    raise ValueError(
        f'stage {stage!r}: nothing says what its work is counted in; add it to UNITS of '
        'h01_beam.forecast.rates, and measure it'
    )


def load(path: str) -> Rates:
    """Reads a rates file (JSON).

    Raises:
      FileNotFoundError, ValueError: it is not there, or says something wrong.
    """
    return config_lib.from_dict(Rates, config_lib.load(path), 'rates.')
