"""What there is to reconstruct, and with what: data set, fleet, jobs."""

from __future__ import annotations

import dataclasses
import math

from h01_beam.geometry import Triple
from h01_beam.volume_spec import VoxelSize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """The images of an acquisition.

    Attributes:
      count: of all sections.
      shape: y and x pixels of one.
      storage_class: of the bucket that they are in.
      beams: of the microscope.
    """

    count: int
    shape: tuple[int, int]
    storage_class: str = 'standard'
    beams: int = 1

    def __post_init__(self) -> None:
        for name in ('count', 'beams'):
            if getattr(self, name) < 1:
                raise ValueError(
                    f'dataset.tiles.{name} is {getattr(self, name)}: must be at least 1'
                )
        if min(self.shape) < 64:
            raise ValueError(
                f'dataset.tiles.shape is {self.shape}: must be y and x pixels, 64 or more'
            )

    @property
    def pixels(self) -> int:
        """Of all tiles."""
        return self.count * math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set, by its numbers alone.

    Attributes:
      name: for people.
      shape: zyx voxels of the box around the aligned volume; z counts sections.
      voxel_size_nm: zyx.
      bytes: of the aligned volume, one for each voxel that holds image; the rest of the box is
        empty.
      tiles: None if there are none, or nobody wants them stitched.
      chunk: zyx, of the aligned volume.
      assumptions: what is not known and was taken to be so, for the page.
    """

    name: str
    shape: Triple
    voxel_size_nm: VoxelSize
    bytes: int
    tiles: Tiles | None = None
    chunk: Triple = (1, 256, 256)
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(
                f'dataset.shape is {self.shape}: the extent is empty; must be z, y, x voxels of '
                'the aligned volume, each at least 1'
            )
        if min(self.voxel_size_nm) <= 0:
            raise ValueError(
                f'dataset.voxel_size_nm is {self.voxel_size_nm}: must be three positive nm, z, y, x'
            )
        if not 0 < self.bytes <= self.voxels:
            raise ValueError(
                f'dataset.bytes is {self.bytes:,}: must be from 1 to the {self.voxels:,} voxels of '
                'dataset.shape, as a voxel is one byte; correct one of them'
            )
        if self.tiles and self.tiles.count < self.shape[0]:
            raise ValueError(
                f'dataset.tiles.count is {self.tiles.count}: must be at least one for each of the '
                f'{self.shape[0]} sections of dataset.shape'
            )

    @property
    def voxels(self) -> int:
        """Of the box."""
        return math.prod(self.shape)

    @property
    def filled(self) -> float:
        """Share of the box that holds image."""
        return self.bytes / self.voxels

    @property
    def tiles_per_section(self) -> int:
        """On average, rounded up; 0 without tiles."""
        return -(-self.tiles.count // self.shape[0]) if self.tiles else 0

    @property
    def tile_pitch(self) -> tuple[float, float]:
        """Pixels from tile to tile, y and x, so that a section's tiles cover what is filled."""
        assert self.tiles is not None
        area = self.filled * self.shape[1] * self.shape[2] / self.tiles_per_section
        y, x = self.tiles.shape
        return math.sqrt(area * y / x), math.sqrt(area * x / y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """Machines, and what they may ask of storage.

    Attributes:
      workers: machines.
      vcpus: of each, one thread of work each.
      memory_gib: of each.
      accelerator: on each; None for none.
      accelerators: chips on each.
      pool: whether stages that use no accelerator run on such machines too: then chips are paid for
        all the time, and each machine has as many processes as chips, which no two can share.
      quota_vcpus, quota_accelerators: that the project is granted in all.
      read_gbps, write_gbps: 10^9 bits per second between the bucket and all workers.
      reads_per_s, writes_per_s: requests that the bucket takes.
      launcher_memory_gib: of the machine that starts the jobs.
      patience_days: longest that one stage may take.
      intermediate, results: classes of storage of what is made on the way, and in the end.
    """

    workers: int
    vcpus: int
    memory_gib: float
    accelerator: str | None = None
    accelerators: int = 1
    pool: bool = False
    quota_vcpus: int
    quota_accelerators: int = 0
    read_gbps: float
    write_gbps: float
    reads_per_s: float
    writes_per_s: float
    launcher_memory_gib: float = 16.0
    patience_days: float = 30.0
    intermediate: str = 'standard'
    results: str = 'standard'

    def __post_init__(self) -> None:
        positive = ('workers', 'vcpus', 'memory_gib', 'accelerators', 'quota_vcpus', 'read_gbps',
                    'write_gbps', 'reads_per_s', 'writes_per_s', 'launcher_memory_gib',
                    'patience_days')  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f'fleet.{name} is {getattr(self, name)}: must be positive')
        if self.quota_vcpus < self.vcpus:
            raise ValueError(
                f'fleet.quota_vcpus is {self.quota_vcpus}: must be at least fleet.vcpus, '
                f'{self.vcpus}, or no machine may start; ask for more, or take smaller machines'
            )
        if self.accelerator and self.quota_accelerators < self.accelerators:
            raise ValueError(
                f'fleet.quota_accelerators is {self.quota_accelerators}: must be at least '
                f'fleet.accelerators, {self.accelerators}, or no machine with {self.accelerator} '
                'may start; ask for more, or set fleet.accelerator to null'
            )

    def granted(self, with_accelerators: bool) -> int:
        """Machines that the quota allows, `workers` at most."""
        granted = min(self.workers, self.quota_vcpus // self.vcpus)
        if with_accelerators and self.accelerator:
            granted = min(granted, self.quota_accelerators // self.accelerators)
        return granted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One job of the plan.

    Attributes:
      job: which pipeline; see `h01_beam.forecast.stage.JOBS`.
      config: its YAML file.
      set: overrides, as for `--set`.
      downsample: zyx factors of the level of the pyramid that it works on.
    """

    job: str
    config: str
    set: tuple[str, ...] = ()
    downsample: Triple = (1, 1, 1)

    def __post_init__(self) -> None:
        if min(self.downsample) < 1:
            raise ValueError(
                f'jobs.downsample is {self.downsample}: must be three factors, 1 or more'
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """The YAML file of `pipelines.plan`.

    Attributes:
      dataset: what there is.
      fleet: with what.
      jobs: in order.
      rates, prices: files; see `h01_beam.forecast.rates` and `prices`.
      ledger: file of what `--ledger_blocks` measured, for the page; None for none.
    """

    dataset: DataSet
    fleet: Fleet
    jobs: tuple[Job, ...]
    rates: str
    prices: str
    ledger: str | None = None

    def __post_init__(self) -> None:
        if not self.jobs:
            raise ValueError('jobs is empty: must name at least one job to plan')
