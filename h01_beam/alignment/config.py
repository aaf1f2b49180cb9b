"""Configuration of alignment."""

from __future__ import annotations

import dataclasses

from h01_beam.alignment.coarse.features import CoarseConfig
from h01_beam.alignment.coarse.lookup import LookupConfig
from h01_beam.alignment.elastic.lines import LineConfig
from h01_beam.alignment.elastic.mesh import MeshConfig
from h01_beam.alignment.elastic.mesh_blocks import BlocksConfig
from h01_beam.imaging.masks import TissueConfig
from h01_beam.registration.flow import FlowConfig, FlowLevel

_FAR = FlowLevel(downsample=4, patch=48, search=16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """How montages become one volume; lengths in pixels of the montage.

    Attributes:
      coarse: of thumbnails, by features.
      lookup: of thumbnails, by correlation, where features fail.
      flow: between roughly aligned sections.
      mesh: relaxation.
      mesh_blocks: how the mesh is cut.
      lines: what counts as a fold or a tear; None looks for none.
      causal: whether sections are aligned to those before only, so that sections that are added
        later change none of them.
      tissue: what of a thumbnail is tissue.
      thumbnail: longest side of a thumbnail at most; levels of the pyramid halve the montage.
      neighbours: sections before each that flow is estimated to.
      margin: pixels around the montage's frame that aligned sections may reach.
      rough_block: y and x pixels of the roughly aligned sections that are rendered at once.
      flow_block: y and x pixels of which flow is estimated at once; multiples of `flow.unit`.
      line_block: y and x pixels of the montage in which folds and tears are looked for at once;
        they read as much around as a line is long.
      block: y and x pixels of the final image that are rendered at once; whole chunks.
      chunk: y and x pixels of a chunk of the final image.
    """

    coarse: CoarseConfig = CoarseConfig()
    lookup: LookupConfig = LookupConfig()
    # Far from the middle of a section rough alignment is off by more than finer levels look for.
    flow: FlowConfig = FlowConfig(levels=(_FAR, *FlowConfig().levels))
    mesh: MeshConfig = MeshConfig()
    mesh_blocks: BlocksConfig = BlocksConfig()
    lines: LineConfig | None = LineConfig()
    causal: bool = False
    tissue: TissueConfig = TissueConfig()
    thumbnail: int = 1024
    neighbours: int = 2
    margin: int = 64
    rough_block: tuple[int, int] = (1024, 1024)
    flow_block: tuple[int, int] = (1024, 1024)
    line_block: tuple[int, int] = (2048, 2048)
    block: tuple[int, int] = (1024, 1024)
    chunk: tuple[int, int] = (256, 256)

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.thumbnail < 64:
            raise ValueError(f'align.thumbnail is {self.thumbnail}: must be 64 pixels or more')
        if self.neighbours < 1:
            raise ValueError(f'align.neighbours is {self.neighbours}: must be 1 or more')
        if self.margin < 0:
            raise ValueError(f'align.margin is {self.margin}: must not be negative')
        if self.flow.levels[-1].downsample != 1:
            raise ValueError(
                f'align.flow.levels ends with downsample {self.flow.levels[-1].downsample}: must '
                'be 1, as the mesh has its nodes at the stride of the full montage'
            )
        unit = self.flow.unit
        for name in ('rough_block', 'flow_block', 'line_block', 'block', 'chunk'):
            value = getattr(self, name)
            if len(value) != 2 or min(value) < 64:
                raise ValueError(
                    f'align.{name} is {value}: must be two numbers of pixels, y and x, 64 or more'
                )
        if any(n % unit for n in self.flow_block):
            raise ValueError(
                f'align.flow_block is {self.flow_block}: must be multiples of {unit}, after which '
                'the nodes of all levels of the flow repeat'
            )
