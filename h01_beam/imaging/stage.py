"""Beam stages over images: ingest, and downsample, the reference that other stages copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from h01_beam.blockwise import MapBlocks
from h01_beam.geometry import BlockGrid, CoreBox
from h01_beam.imaging.downsample import DownsampleBlock, DownsampleConfig, pyramid_specs
from h01_beam.imaging.ingest import ConvertBlock, IngestConfig, block_shape, output_spec
from h01_beam.ledger import Provenance
from h01_beam.plan import Read
from h01_beam.run import Run
from h01_beam.volume import Volume, VolumeSpec, VolumeUri


def build_downsample(
    root: Any,
    base: VolumeSpec,
    config: DownsampleConfig,
    run: Run,
    after: Sequence[beam.PCollection] = (),
) -> list[beam.PCollection]:
    """Adds one stage per level of the pyramid of `base`; each waits for the level below.

    Args:
      root: the pipeline.
      base: mip 0, already there or written by the stages in `after`.
      config: see `DownsampleConfig`.
      run: the run.
      after: stages that write `base`.

    Returns:
      the block records of every level.
    """
    name = base.path.rpartition('/')[2]
    method = config.method or ('mean' if base.kind == 'image' else 'mode')
    done: list[beam.PCollection] = []
    below = base
    for factor, spec in pyramid_specs(base, config):
        block_shape = tuple(
            n * unit for n, unit in zip(config.block_chunks, spec.write_unit, strict=True)
        )
        region = CoreBox(factor, below.bounds)
        done.append(
            root
            | MapBlocks(
                DownsampleBlock(factor, method, region),
                stage=f'downsample_{name}_mip{spec.mip}',
                reads={'source': Read(below, region)},
                writes={'level': spec},
                grid=BlockGrid(spec.bounds, block_shape),  # type: ignore[arg-type]
                config=[factor, method],
                run=run,
                after=done[-1:] or after,
            )
        )
        below = spec
    if not run.dry_run:
        _drop_levels_above(below)
    return done


def _drop_levels_above(spec: VolumeSpec) -> None:
    """Levels of an earlier, taller pyramid would show what is no longer there."""
    parsed = VolumeUri.parse(spec.uri)
    above = dataclasses.replace(spec, uri=str(dataclasses.replace(parsed, mip=parsed.mip + 1)))
    # Only what a run made: a volume that came with its own pyramid keeps it.
    if Volume.is_occupied(above) and Provenance.read(above) is not None:
        Volume.drop_level(above.uri)


def build_ingest(
    root: Any, source: VolumeSpec, output_uri: str, config: IngestConfig, run: Run
) -> beam.PCollection:
    """Adds the stage that copies a foreign volume into one that the pipelines can write to."""
    spec = output_spec(source, output_uri, config)
    return root | MapBlocks(
        ConvertBlock(spec.dtype, config.grey_range),
        stage='ingest',
        reads={'source': Read(source, CoreBox())},
        writes={'volume': spec},
        grid=BlockGrid(spec.bounds, block_shape(spec)),
        config=config,
        run=run,
    )
