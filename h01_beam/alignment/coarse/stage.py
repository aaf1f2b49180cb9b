"""Coarse alignment as Beam stages. Shape: sections with those before them, one graph, sections.

find_tissue       sections  montage, downsampled -> the volume `tissue`
match_sections    sections  thumbnails, and those of the sections before -> matches
place_sections    graph     matches of all -> placement of all sections (numbers only); or,
                            in causal runs, affines of one section after the other
deal_affines      sections  placement -> affines, of each section by itself
check_order       graph     matches of all -> sections out of order (numbers only)
measure_frame     sections  tissue through its affine -> how much lies beyond the aligned frame
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from h01_beam.alignment.coarse.blocks import (
    FRAME,
    MATCHES,
    MISPLACED,
    CheckOrder,
    FindTissue,
    MatchThumbnails,
    MeasureFrame,
    PlaceNext,
    PlaceSections,
    deal_affines,
)
from h01_beam.alignment.config import AlignConfig
from h01_beam.alignment.frames import (
    AFFINES,
    Everything,
    aligned_shape,
)
from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, CoreBox, OfSection, SectionsAround, by_section
from h01_beam.imaging.downsample import DownsampleConfig, pyramid_specs
from h01_beam.imaging.stage import build_downsample
from h01_beam.plan import Read, TableRead
from h01_beam.run import Run
from h01_beam.volume import VolumeSpec

Records = Sequence[beam.PCollection]


def build_coarse(
    root: Any, montage: VolumeSpec, config: AlignConfig, run: Run, after: Records
) -> tuple[VolumeSpec, int, beam.PCollection]:
    """Adds the stages from montages to the affine maps of sections.

    Args:
      root: the pipeline.
      montage: all sections.
      config: see `AlignConfig`.
      run: the run; its table `affines` gets a part for each section.
      after: the stages that make the montage.

    Returns:
      what of thumbnails is tissue, pixels of the montage to one of these, and block records.
    """
    thumbnails, tissue, levels, found = _find_tissue(root, montage, config, run, after)
    job = _Coarse(root, run, config, montage, tissue, 2**levels)
    around = SectionsAround(thumbnails.bounds, config.coarse.neighbours)
    matches = job.add(
        'match_sections', MatchThumbnails(config), by_section(job.count),
        [config.coarse, config.lookup], [found],
        reads={'thumbnails': Read(thumbnails, around), 'tissue': Read(tissue, around)},
        table_writes={'matches': MATCHES},
    )  # fmt: skip
    placed = (_place_in_turn if config.causal else _place_at_once)(job, matches)
    sections = job.count
    job.add(
        'check_order', CheckOrder(config, sections), by_section(1),
        [config.coarse.neighbours, sections], [matches],
        table_reads=job.all_matches, table_writes={'misplaced': MISPLACED},
    )  # fmt: skip
    frame = aligned_shape(montage, config.margin)[1:]
    job.add(
        'measure_frame', MeasureFrame(job.factor, config.margin, frame), by_section(sections),
        [job.factor, config.margin, frame], [placed],
        reads={'tissue': Read(tissue, OfSection(job.thumbnail))},
        table_reads={'affines': TableRead(OfSection(), by_section(sections))},
        table_writes={'frame': FRAME},
    )  # fmt: skip
    return tissue, job.factor, placed


@dataclasses.dataclass(frozen=True)
class _Coarse:
    """What the stages have in common.

    Attributes:
      montage: all sections.
      tissue: of their thumbnails.
      factor: pixels of the montage to one of a thumbnail.
    """

    root: Any
    run: Run
    config: AlignConfig
    montage: VolumeSpec
    tissue: VolumeSpec
    factor: int

    @property
    def count(self) -> int:
        """Number of sections."""
        return self.montage.shape[0]

    @property
    def thumbnail(self) -> tuple[int, int]:
        return self.tissue.shape[1], self.tissue.shape[2]

    @property
    def all_matches(self) -> dict[str, TableRead]:
        sections = by_section(self.count)
        return {'matches': TableRead(Everything(sections.bounds), sections)}

    def add(
        self,
        stage: str,
        function: Any,
        grid: BlockGrid,
        depends_on: Any,
        after: Records,
        **values: Any,
    ) -> beam.PCollection:
        """Adds a stage; `values` go to `MapBlocks`."""
        return self.root | MapBlocks(
            function, stage=stage, grid=grid, config=depends_on, run=self.run, after=after, **values
        )


def _find_tissue(
    root: Any, montage: VolumeSpec, config: AlignConfig, run: Run, after: Records
) -> tuple[VolumeSpec, VolumeSpec, int, beam.PCollection]:
    """Thumbnails, what of them is tissue, and how often they are halved."""
    levels, side = 0, max(montage.shape[1:])
    while side > config.thumbnail:
        levels, side = levels + 1, -(-side // 2)
    pyramid = DownsampleConfig(levels=levels, factors=((1, 2, 2),) * levels)
    done = build_downsample(root, montage, pyramid, run, after)
    thumbnails = [montage, *(spec for _, spec in pyramid_specs(montage, pyramid))][levels]
    tissue = dataclasses.replace(
        thumbnails, uri=run.volume_uri('tissue'), chunk=(1, 512, 512), kind='segmentation'
    )
    found = root | MapBlocks(
        FindTissue(config.tissue),
        stage='find_tissue',
        reads={'thumbnail': Read(thumbnails, CoreBox())},
        writes={'tissue': tissue},
        grid=BlockGrid(thumbnails.bounds, (1, *_whole_chunks(tissue))),
        config=config.tissue,
        run=run,
        after=done[-1:] or after,
    )
    return thumbnails, tissue, levels, found


def _place_in_turn(job: _Coarse, matches: beam.PCollection) -> beam.PCollection:
    """One section after the other, on those before it."""
    config, sections = job.config, by_section(job.count)
    before = SectionsAround(sections.bounds, config.coarse.neighbours, -1)
    function = PlaceNext(config, job.thumbnail, job.factor)
    return job.add(
        'place_sections', function, sections,
        [config.coarse, config.margin, job.thumbnail, job.factor], [matches],
        reads={'tissue': Read(job.tissue, OfSection(job.thumbnail))},
        table_reads={'matches': OfSection(), 'affines': before},
        table_writes={'affines': AFFINES},
        chained=True,
    )  # fmt: skip


def _place_at_once(job: _Coarse, matches: beam.PCollection) -> beam.PCollection:
    """All sections in one block; then dealt out, so that no later block reads those of all."""
    config, once = job.config, by_section(1)
    function = PlaceSections(config, job.count, job.thumbnail, job.factor)
    placed = job.add(
        'place_sections', function, once,
        [config.coarse, config.margin, job.montage.shape, job.factor], [matches],
        table_reads=job.all_matches, table_writes={'placement': AFFINES},
    )  # fmt: skip
    return job.add(
        'deal_affines', deal_affines, by_section(job.count), None, [placed],
        table_reads={'placement': TableRead(Everything(once.bounds), once)},
        table_writes={'affines': AFFINES},
    )  # fmt: skip


def _whole_chunks(spec: VolumeSpec) -> tuple[int, int]:
    """Extent of a section in whole chunks."""
    y, x = (-(-n // c) * c for n, c in zip(spec.shape[1:], spec.chunk[1:], strict=True))
    return y, x
