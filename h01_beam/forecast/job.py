"""What a job that is about to be submitted would take: its own plan, on the workers it asks for.

The stages are those that the job has just built; of the data set, only what their volumes tell is
known, so every voxel counts as image. What storage serves is assumed, as in a plan.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from h01_beam.acquisition.importers import import_acquisition
from h01_beam.alignment.job import AlignJob
from h01_beam.cloud.fleet import Fleet as Machines
from h01_beam.forecast.dataset import DataSet, Fleet, Tiles
from h01_beam.forecast.estimate import Forecast, estimate
from h01_beam.forecast.prices import Prices
from h01_beam.forecast.rates import Rates
from h01_beam.forecast.stage import PlannedJob
from h01_beam.models import ModelRef
from h01_beam.run import Run
from h01_beam.segmentation.config import SegmentConfig

# Accelerators by the engine's names -> by those of rates and prices.
CHIPS = {
    'tpu-v5-lite-podslice': 'tpu_v5e',
    'tpu-v6e-slice': 'tpu_v6e',
    'nvidia-l4': 'nvidia_l4',
    'nvidia-h100-80gb': 'nvidia_h100',
}


@dataclasses.dataclass(frozen=True)
class JobForecast:
    """What is foreseen of a job.

    Attributes:
      forecast: of the stages whose speed is known.
      unknown: names of the others.
    """

    forecast: Forecast
    unknown: tuple[str, ...]


def foresee(
    name: str,
    config: SegmentConfig | AlignJob | None,
    run: Run,
    machines: Machines,
    pool: bool,
    assumed: Fleet,
    rates: Rates,
    prices: Prices,
) -> JobForecast:
    """Foresees a job that has been built in a dry run.

    Args:
      name: of the job.
      config: of the job, if it is one of these.
      run: with the plans of its stages.
      machines: that it asks for.
      pool: whether all stages run on machines with its accelerator.
      assumed: what storage serves, and its classes.
      rates: how fast.
      prices: for how much.

    Raises:
      ValueError: its volumes or its machines are not known well enough.
    """
    plans = run.all_plans()
    card = ModelRef.resolve(config.model).card if isinstance(config, SegmentConfig) else None
    known = [plan for plan in plans if rates.knows(plan.name)]
    unknown = tuple(plan.name for plan in plans if not rates.knows(plan.name))
    job = PlannedJob(name, config, tuple(known), card)
    dataset = _dataset(name, config, run)
    fleet = _fleet(machines, pool, assumed)
    return JobForecast(estimate(dataset, fleet, rates, prices, [job]), unknown)


def _dataset(name: str, config: Any, run: Run) -> DataSet:
    specs = [t.spec for plan in run.all_plans() for t in plan.traffic if t.spec is not None]
    volumes = [spec for spec in specs if spec.mip == 0 and spec.voxel_size_nm is not None]
    if not volumes:
        raise ValueError(f'the job {name} reads and writes no volume of a known voxel size')
    largest = max(volumes, key=lambda spec: math.prod(spec.shape))
    assert largest.voxel_size_nm is not None
    voxels, tiles = math.prod(largest.shape), None
    if isinstance(config, AlignJob):
        found = import_acquisition(config.tiles).tiles
        shape = (int(found['height'].max()), int(found['width'].max()))
        beams = len(set(found['beam'].tolist()))
        tiles = Tiles(count=len(found['path']), shape=shape, beams=beams)
        voxels = min(voxels, tiles.pixels)
    return DataSet(
        name=name, shape=largest.shape, voxel_size_nm=largest.voxel_size_nm, bytes=voxels,
        tiles=tiles, chunk=largest.chunk,
    )  # fmt: skip


def _fleet(machines: Machines, pool: bool, assumed: Fleet) -> Fleet:
    """The workers of a job, granted by its quota, with what storage is assumed to serve."""
    vcpus, memory_gib = machines.size()
    chip, chips = machines.accelerator, 1
    if chip is not None:
        if chip.type not in CHIPS:
            raise ValueError(f'accelerator {chip.type!r}: must be one of {", ".join(CHIPS)}')
        chips = chip.chips
    return dataclasses.replace(
        assumed, workers=machines.workers, vcpus=vcpus, memory_gib=memory_gib,
        accelerator=CHIPS[chip.type] if chip else None, accelerators=chips, pool=pool,
        quota_vcpus=machines.workers * vcpus, quota_accelerators=machines.workers * chips,
    )  # fmt: skip
