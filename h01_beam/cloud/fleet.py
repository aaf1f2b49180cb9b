"""What a fleet of workers takes of a project's quota.

Names are those of the console's quota page: Compute Engine API, per region. Of Dataflow's own
limits only the number of workers of one job counts here.
"""

from __future__ import annotations

import dataclasses
import math
import re

from h01_beam.hardware import Accelerator, Hardware

# Dataflow's limit for one job: https://docs.cloud.google.com/dataflow/quotas.
MAX_WORKERS = 4000
# Of the machine types whose names do not end in their number of cores.
_TPU_QUOTAS = {
    'tpu-v5-lite-podslice': 'TPU v5 Lite PodSlice chips',
    'tpu-v5p-slice': 'TPU v5p chips',
    'tpu-v6e-slice': 'TPU v6e chips (tpu_family:CT6E)',
}
_GPU_QUOTAS = {
    'nvidia-l4': 'NVIDIA L4 GPUs',
    'nvidia-tesla-t4': 'NVIDIA T4 GPUs',
    'nvidia-tesla-v100': 'NVIDIA V100 GPUs',
    'nvidia-tesla-a100': 'NVIDIA A100 GPUs',
    'nvidia-a100-80gb': 'NVIDIA A100 80GB GPUs',
    'nvidia-h100-80gb': 'NVIDIA H100 GPUs',
}
# GiB for each core of a machine type, by family and kind; and types that have accelerators, whole.
# https://docs.cloud.google.com/compute/docs/machine-resource
_GIB_PER_CORE = {
    'n1-standard': 3.75, 'n1-highmem': 6.5, 'n1-highcpu': 0.9,
    'e2-standard': 4.0, 'e2-highmem': 8.0, 'e2-highcpu': 1.0,
    'n2-standard': 4.0, 'n2-highmem': 8.0, 'n2-highcpu': 1.0,
    'n2d-standard': 4.0, 'n2d-highmem': 8.0, 'n2d-highcpu': 1.0,
    'c3-standard': 4.0, 'c3-highmem': 8.0, 'c3-highcpu': 2.0, 'g2-standard': 4.0,
}  # fmt: skip
_MACHINES = {
    'ct5lp-hightpu-1t': (24, 48.0), 'ct5lp-hightpu-4t': (112, 192.0),
    'ct5lp-hightpu-8t': (224, 384.0), 'ct6e-standard-1t': (44, 176.0),
    'ct6e-standard-4t': (180, 720.0), 'a3-highgpu-1g': (26, 234.0),
}  # fmt: skip
# What Dataflow takes when nobody says: batch, without shuffle on the workers' disks.
DEFAULT_MACHINE, DEFAULT_DISK_GB = 'n1-standard-1', 25


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Workers of one job at its largest.

    Attributes:
      workers: most that run at once.
      machine_type: of each, unless a stage's hints ask for another.
      disk_gb: boot disk of each.
      public_ips: whether each has an external address.
      accelerator: of each, or of the stages that ask for one.
    """

    workers: int
    machine_type: str
    disk_gb: int
    public_ips: bool
    accelerator: Accelerator | None

    def __post_init__(self) -> None:
        if self.workers > MAX_WORKERS:
            raise ValueError(
                f'max_num_workers is {self.workers}: Dataflow runs at most {MAX_WORKERS} workers '
                'in one job; use larger machines'
            )

    @classmethod
    def of(cls, hardware: Hardware, **options: int | str | bool | None) -> Fleet:
        """That of a job: `options` of Beam go before the configuration, and that before defaults.

        Args:
          hardware: the configuration.
          **options: `max_num_workers`, `num_workers`, `machine_type`, `disk_size_gb`,
            `use_public_ips`; None where not given.
        """
        workers, accelerator = hardware.workers, hardware.accelerator
        machine = options.get('machine_type') or workers.machine_type
        if not machine and accelerator:
            named = re.search(r'machine_type:([\w-]+)', accelerator.text)
            machine = accelerator.machine_type or (named[1] if named else None)
        most = options.get('max_num_workers') or workers.max_num_workers
        most = most or options.get('num_workers') or workers.num_workers
        disk = options.get('disk_size_gb') or workers.disk_size_gb or DEFAULT_DISK_GB
        return cls(
            int(most) if most else MAX_WORKERS,
            str(machine or DEFAULT_MACHINE),
            int(disk),
            options.get('use_public_ips') is not False,
            accelerator,
        )

    def size(self) -> tuple[int, float]:
        """Cores and GiB of a worker.

        Raises:
          ValueError: the machine type is not known here.
        """
        if self.machine_type in _MACHINES:
            return _MACHINES[self.machine_type]
        kind, _, cores = self.machine_type.rpartition('-')
        if kind not in _GIB_PER_CORE or not cores.isdigit():
            known = ', '.join([*(f'{k}-N' for k in _GIB_PER_CORE), *_MACHINES])
            raise ValueError(
                f'machine_type is {self.machine_type!r}: its cores and memory are not known here; '
                f'known are {known}'
            )
        return int(cores), int(cores) * _GIB_PER_CORE[kind]

    def quota(self) -> dict[str, float]:
        """Amount by name of the quota; without an entry where a name is unknown here."""
        result: dict[str, float] = {'VM instances': self.workers}
        cores = re.search(r'-(\d+)$', self.machine_type)
        if cores:
            family = self.machine_type.split('-')[0].upper()
            name = 'CPUs' if family in ('N1', 'E2', 'F1', 'G1') else f'{family} CPUs'
            result[name] = self.workers * int(cores[1])
        result['Persistent disk GB'] = self.workers * self.disk_gb
        if self.public_ips:
            result['In-use IP addresses'] = self.workers
        if self.accelerator:
            quotas = _TPU_QUOTAS if self.accelerator.topology else _GPU_QUOTAS
            kind = self.accelerator.type
            result[quotas.get(kind, kind)] = self.workers * self.accelerator.chips
        return result

    def describe(self, region: str) -> str:
        """The fleet and its quota as lines for people."""
        what = f'{self.workers:,} workers of {self.machine_type}'
        if self.accelerator:
            what += f' with {self.accelerator.text}'
        lines = [f'at most {what}; quota needed in {region}:']
        lines += [f'  {name:<40}{math.ceil(n):>12,}' for name, n in self.quota().items()]
        if self.workers == MAX_WORKERS:
            lines.append('  (nobody set max_num_workers: this is what Dataflow allows one job)')
        return '\n'.join(lines)
