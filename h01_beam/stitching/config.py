"""Configuration of stitching."""

from __future__ import annotations

import dataclasses

from h01_beam.imaging.gains import GainConfig
from h01_beam.imaging.illumination import FlatFieldConfig
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
      flat_field: how brightly each beam lights the parts of its tile; None: all alike.
      gains: of tiles, by what they share.
      margin: pixels that tiles may end up away from where the stage has them, y and x alike, at
        least `offsets.search`; None: twice that. Frames of sections are wider by it on all sides.
        Errors of a stage add up from tile to tile, so wide sections may need more. Tiles beyond
        are left out, and the report tells of them.
      cell_tiles: tiles along a side of a cell, the unit of work.
      downsample: of the montage that sections are aligned by; the final image is rendered from
        the tiles at full resolution.
      montage_block: y and x pixels of the montage that are rendered at once; whole chunks.
      montage_chunk: y and x pixels of its chunks, and of those of volumes that show it otherwise.
      cached_tiles: images that a worker keeps.
    """

    offsets: OffsetConfig = OffsetConfig()
    solve: SolveConfig = SolveConfig()
    elastic: ElasticConfig = ElasticConfig()
    flat_field: FlatFieldConfig | None = FlatFieldConfig()
    gains: GainConfig = GainConfig()
    margin: int | None = None
    cell_tiles: int = 4
    downsample: int = 2
    montage_block: tuple[int, int] = (1024, 1024)
    montage_chunk: tuple[int, int] = (256, 256)
    cached_tiles: int = 24

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.margin is not None and self.margin < self.offsets.search:
            raise ValueError(
                f'stitch.margin is {self.margin}: must be stitch.offsets.search, '
                f'{self.offsets.search}, or more, as tiles are looked for that far away; raise it, '
                'or leave it out for twice the search'
            )
        if self.cell_tiles < 2:
            raise ValueError(
                f'stitch.cell_tiles is {self.cell_tiles}: must be 2 or more, as a cell is bent '
                'together with one cell around it'
            )
        for name in ('downsample', 'cached_tiles'):
            if getattr(self, name) < 1:
                raise ValueError(f'stitch.{name} is {getattr(self, name)}: must be 1 or more')
        for name in ('montage_block', 'montage_chunk'):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 64:
                raise ValueError(
                    f'stitch.{name} is {getattr(self, name)}: must be two numbers of pixels, y and '
                    'x, 64 or more'
                )

    @property
    def frame_margin(self) -> int:
        """Pixels of the margin, where it is not given too."""
        return 2 * self.offsets.search if self.margin is None else self.margin
