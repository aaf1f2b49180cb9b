"""Configuration of stitching."""

from __future__ import annotations

import dataclasses

from h01_beam.imaging.gains import GainConfig
from h01_beam.stitching.mesh import ElasticConfig
from h01_beam.stitching.offsets import OffsetConfig
from h01_beam.stitching.solve import SolveConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StitchConfig:
    """How tiles become a montage.

    Attributes:
      offsets: of pairs.
      solve: rigid places.
      elastic: bent tiles.
      gains: of tiles, by what they share.
      cell_tiles: tiles along a side of a cell, the unit of work.
      downsample: of the montage that sections are aligned by; the final image is rendered from
        the tiles at full resolution.
      montage_block: y and x pixels of the montage that are rendered at once.
      cached_tiles: images that a worker keeps.
    """

    offsets: OffsetConfig = OffsetConfig()
    solve: SolveConfig = SolveConfig()
    elastic: ElasticConfig = ElasticConfig()
    gains: GainConfig = GainConfig()
    cell_tiles: int = 4
    downsample: int = 2
    montage_block: tuple[int, int] = (1024, 1024)
    cached_tiles: int = 24

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.cell_tiles < 2:
            raise ValueError(
                f'stitch.cell_tiles is {self.cell_tiles}: must be 2 or more, as a cell is bent '
                'together with one cell around it'
            )
        for name in ('downsample', 'cached_tiles'):
            if getattr(self, name) < 1:
                raise ValueError(f'stitch.{name} is {getattr(self, name)}: must be 1 or more')
        if len(self.montage_block) != 2 or min(self.montage_block) < 64:
            raise ValueError(
                f'stitch.montage_block is {self.montage_block}: must be two numbers of pixels, '
                'y and x, 64 or more'
            )
