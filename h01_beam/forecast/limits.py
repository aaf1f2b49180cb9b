"""What would break first: what a plan needs, against what there is, the worst at the top."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

from h01_beam.forecast.dataset import DataSet
from h01_beam.forecast.estimate import GIB, Forecast, StageEstimate
from h01_beam.forecast.stage import stand_in_acquisition

DAY = 86400.0
# A page of a listing.
LISTED = 1000
# Seconds for it: what a bucket takes to answer.
LISTING_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit: it holds as long as `needed` is no more than `there`.

    Attributes:
      name: what is limited.
      where: the stage, or ''.
      advice: what helps.
    """

    name: str
    where: str
    needed: float
    there: float
    unit: str
    advice: str

    @property
    def ratio(self) -> float:
        """Above 1 it breaks."""
        return self.needed / self.there


def find_limits(forecast: Forecast) -> list[Limit]:
    """All limits of a plan in its typical case, the one that breaks first at the top."""
    return sorted(_all(forecast), key=lambda limit: -limit.ratio)


def _all(forecast: Forecast) -> Iterator[Limit]:
    fleet, dataset = forecast.fleet, forecast.dataset
    widest = forecast.widest
    yield Limit(
        name='memory of a worker', where=widest.name, unit='GiB',
        needed=widest.plan.memory_bytes / GIB, there=_process_gib(forecast, widest),
        advice='smaller blocks or shards, fewer canvases, or larger machines',
    )  # fmt: skip
    for stage in forecast.stages:
        result = stage.cases['typical']
        yield Limit(
            name=f'time: {result.binds}', where=stage.name, unit='days',
            needed=result.seconds / DAY, there=fleet.patience_days, advice=_advice(result.binds),
        )  # fmt: skip
    if any(job.name == 'align' for job in forecast.jobs) and dataset.tiles:
        yield Limit(
            name='memory of the launcher, which holds the list of all tiles', where='align',
            needed=dataset.tiles.count * tile_row_bytes(dataset) / GIB,
            there=fleet.launcher_memory_gib, unit='GiB',
            advice='align in ranges of sections (--section_range), or a larger launcher',
        )  # fmt: skip
    blocks = sum(stage.plan.blocks for stage in forecast.stages)
    yield Limit(
        name='listing all markers, as --dry_run and status do', where='', unit='hours',
        needed=blocks / LISTED * LISTING_SECONDS / 3600, there=1.0,
        advice='larger blocks; ask for one stage',
    )  # fmt: skip


def _process_gib(forecast: Forecast, stage: StageEstimate) -> float:
    """Of a worker process: one to a thread, or to a chip."""
    fleet = forecast.fleet
    chips = fleet.accelerator is not None and stage.plan.name == 'flood'
    return fleet.memory_gib / (fleet.accelerators if chips else fleet.vcpus)


def _advice(binds: str) -> str:
    helps = {
        'accelerators': 'more or faster chips',
        'feeding accelerators': 'several processes for each chip, or a larger network',
        'processors': 'more machines',
        'few blocks': 'cut the stage finer: it cannot use the fleet',
        'storage, reading': 'larger blocks read less twice; more throughput',
        'storage, writing': 'a better encoding of what is made on the way; more throughput',
        'requests that read': 'larger chunks, shards, larger blocks; reading less of the ledger',
        'requests that write': 'shards, larger blocks',
    }
    return helps[binds.removeprefix('quota of ')]


def tile_row_bytes(dataset: DataSet) -> float:
    """Memory of a row of the list of tiles, measured on those of one section."""
    tiles = stand_in_acquisition(dataset, 'gs://bucket/acquisition/section/field').tiles
    columns = sum(column.nbytes for column in tiles.values())
    return columns / len(tiles['path']) + sys.getsizeof(tiles['path'][0])
