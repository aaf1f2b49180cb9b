"""The hardware that a run asks of an engine: hints of its stages, settings of its workers.

It is the section `resources` of a run's configuration, or a file of its own (`--resources`):

    workers:
      fitting: stages                    # or pool: all workers alike
      machine_type: n2-highmem-8
      max_num_workers: 100
    stages:                              # by name, * as in file names; later entries win
      '*': {min_ram_gib: 16}
      flood: {accelerator: 'type:nvidia-l4;count:1;install-nvidia-driver', min_ram_gib: 48}

With `fitting: stages` every stage carries its hints, and Dataflow starts workers that fit each of
them (right fitting). It cannot do so with TPUs: `fitting: pool` turns the accelerator of the
stages into one of all workers. Engines that know no hints ignore them.

No byte of a result depends on any of this, so none of it is part of a block's key.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from h01_beam import config as config_lib

# What Dataflow supports: (type, topology) -> the machine type that goes with it.
# https://docs.cloud.google.com/dataflow/docs/tpu/tpu-support, of 2026-04-14.
TPU_MACHINES: Mapping[tuple[str, str], str] = {
    ('tpu-v5-lite-podslice', '1x1'): 'ct5lp-hightpu-1t',
    ('tpu-v5-lite-podslice', '2x2'): 'ct5lp-hightpu-4t',
    ('tpu-v5-lite-podslice', '2x4'): 'ct5lp-hightpu-8t',
    ('tpu-v6e-slice', '1x1'): 'ct6e-standard-1t',
    ('tpu-v6e-slice', '2x2'): 'ct6e-standard-4t',
    ('tpu-v6e-slice', '2x4'): 'ct6e-standard-8t',
    ('tpu-v5p-slice', '2x2x1'): 'ct5p-hightpu-4t',
}
_EXAMPLES = 'type:tpu-v5-lite-podslice;topology:1x1 or type:nvidia-l4;count:1;install-nvidia-driver'


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """An accelerator as Beam writes it: `type:T;topology:AxB` (TPU), `type:T;count:N` (GPU).

    Attributes:
      text: all of it, further settings included.
      type: for example nvidia-l4.
      topology: of a TPU: chips along each axis; None for a GPU.
      chips: of one worker.
    """

    text: str
    type: str
    topology: str | None
    chips: int

    @classmethod
    def parse(cls, where: str, text: str) -> Accelerator:
        """Reads an accelerator; `where` is the key that holds it, for messages.

        Raises:
          ValueError: it is not of that form, or a TPU that Dataflow does not have.
        """
        parts = dict(part.partition(':')[::2] for part in text.split(';'))
        kind, topology, count = (parts.get(name, '') for name in ('type', 'topology', 'count'))
        is_tpu = bool(re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', topology))
        if not kind or is_tpu == bool(re.fullmatch(r'[1-9]\d*', count)):
            raise ValueError(
                f'{where} is {text!r}: must name a type, and a topology (TPU) or a count (GPU), '
                f'for example {_EXAMPLES}'
            )
        if not is_tpu:
            return cls(text, kind, None, int(count))
        if (kind, topology) not in TPU_MACHINES:
            known = ', '.join(f'type:{t};topology:{shape}' for t, shape in TPU_MACHINES)
            raise ValueError(f'{where} is {text!r}: Dataflow has {known}; choose one of them')
        return cls(text, kind, topology, math.prod(map(int, topology.split('x'))))

    @property
    def machine_type(self) -> str | None:
        """That which a TPU comes with; None for a GPU."""
        return TPU_MACHINES[self.type, self.topology] if self.topology else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageNeeds:
    """What the workers of one stage have at least.

    Attributes:
      accelerator: in Beam's form, see `Accelerator`.
      min_ram_gib: memory of a worker machine.
      cpu_count: cores of a worker machine.
      max_active_bundles_per_worker: bundles that run at once on one.
    """

    accelerator: str | None = None
    min_ram_gib: float | None = None
    cpu_count: int | None = None
    max_active_bundles_per_worker: int | None = None

    def __post_init__(self) -> None:
        if self.accelerator is not None:
            Accelerator.parse('accelerator', self.accelerator)
        for name in ('min_ram_gib', 'cpu_count', 'max_active_bundles_per_worker'):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f'{name} is {value}: must be positive; leave it out for no wish')

    def merged(self, other: StageNeeds) -> StageNeeds:
        """These, with all that the others state in their place."""
        stated = {k: v for k, v in dataclasses.asdict(other).items() if v is not None}
        return dataclasses.replace(self, **stated)

    def as_hints(self) -> dict[str, str]:
        """Arguments of Beam's `with_resource_hints`."""
        values = {
            'accelerator': self.accelerator,
            'min_ram': None if self.min_ram_gib is None else f'{self.min_ram_gib:g}GiB',
            'cpu_count': self.cpu_count,
            'max_active_bundles_per_worker': self.max_active_bundles_per_worker,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """What all workers of a job have in common; flags on the command line go before these.

    Attributes:
      fitting: 'stages': each stage gets the workers that its hints ask for. 'pool': all workers
        have what the most demanding stage asks for.
      processes: of Python in one worker: 'one' where it holds an accelerator, which processes
        cannot share; 'per_core' otherwise. None: that.
      harness_threads: of each process. None: one for each chip of an accelerator; without one,
        as the engine likes.
      machine_type, max_num_workers, num_workers, disk_size_gb, zone: as the engine calls them.
      image: container image of the workers, by digest.
    """

    fitting: Literal['stages', 'pool'] = 'stages'
    processes: Literal['one', 'per_core'] | None = None
    harness_threads: int | None = None
    machine_type: str | None = None
    num_workers: int | None = None
    max_num_workers: int | None = None
    disk_size_gb: int | None = None
    zone: str | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        for name in ('harness_threads', 'num_workers', 'max_num_workers', 'disk_size_gb'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f'resources.workers.{name} is {value}: must be at least 1')


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The section `resources`: of all workers, and of stages by name or pattern."""

    workers: Workers = Workers()
    stages: Mapping[str, StageNeeds] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        accelerator, machine = self.accelerator, self.workers.machine_type
        wanted = accelerator.machine_type if accelerator and self.is_pool else None
        if wanted and machine not in (None, wanted):
            raise ValueError(
                f'resources.workers.machine_type is {machine!r}: {accelerator.text!r} comes with '  # type: ignore[union-attr]
                f'{wanted!r}; use that, or leave it out'
            )

    @classmethod
    def parse(cls, section: Any) -> Hardware:
        """Reads the section; None is an empty one.

        Raises:
          ValueError: an unknown key or a wrong value, named with its place.
        """
        if section is None:
            return cls()
        if not isinstance(section, Mapping) or not isinstance(section.get('stages') or {}, Mapping):
            raise ValueError(f'resources is {section!r}: must hold the mappings workers and stages')
        unknown = sorted(set(section) - {'workers', 'stages'})
        if unknown:
            raise ValueError(
                f'unknown config key {f"resources.{unknown[0]}"!r}: known keys are stages, workers'
            )
        workers = config_lib.from_dict(Workers, section.get('workers') or {}, 'resources.workers.')
        stages = {}
        for name, needs in (section.get('stages') or {}).items():
            where = f'resources.stages.{name}.'
            try:
                stages[str(name)] = config_lib.from_dict(StageNeeds, needs or {}, where)
            except ValueError as error:
                text = str(error)
                raise ValueError(text if where[:-1] in text else where + text) from error
        return cls(workers, stages)

    @property
    def is_pool(self) -> bool:
        """Whether all workers are alike."""
        return self.workers.fitting == 'pool'

    @property
    def accelerator(self) -> Accelerator | None:
        """That with the most chips; stages with different ones cannot share one pool."""
        found = {
            needs.accelerator: Accelerator.parse(f'resources.stages.{name}.accelerator', text)
            for name, needs in self.stages.items()
            if (text := needs.accelerator)
        }
        if self.is_pool and len(found) > 1:
            raise ValueError(
                f'resources.stages ask for {sorted(map(str, found))}, but all workers are alike '
                '(resources.workers.fitting is pool): ask for one accelerator, or use '
                'fitting: stages'
            )
        return max(found.values(), key=lambda one: one.chips, default=None)

    @property
    def fits_tpus(self) -> bool:
        """Whether single stages ask for TPUs, in workers of their own."""
        return not self.is_pool and bool(self.accelerator and self.accelerator.topology)

    @property
    def harness_threads(self) -> int | None:
        """Threads of a worker process; None: as many as the engine likes."""
        if self.workers.harness_threads is not None:
            return self.workers.harness_threads
        return self.accelerator.chips if self.accelerator else None

    @property
    def one_process(self) -> bool:
        """Whether a worker has one Python process, not one for each core."""
        if self.workers.processes is None:
            return self.accelerator is not None
        return self.workers.processes == 'one'

    def needs_of(self, stage: str) -> StageNeeds:
        """What a stage asks for; of an inner run's stages, by `run/stage` or by `stage`."""
        result = StageNeeds()
        for pattern, needs in self.stages.items():
            if any(fnmatch.fnmatchcase(name, pattern) for name in (stage, _short(stage))):
                result = result.merged(needs)
        return result

    def hints_of(self, stage: str) -> dict[str, str]:
        """Hints that a stage carries: none where all workers are alike."""
        return {} if self.is_pool else self.needs_of(stage).as_hints()

    def process_memory_bytes(self, stage: str) -> int | None:
        """Memory that one process of a stage's workers has at least; None where nobody says."""
        needs = self.needs_of(stage)
        processes = 1 if self.one_process else needs.cpu_count
        if needs.min_ram_gib is None or processes is None:
            return None
        return int(needs.min_ram_gib * 2**30) // processes

    def check_names(self, stages: Iterable[str]) -> None:
        """Raises a ValueError for a name that no stage of the job has; patterns may match none."""
        known = sorted(set(stages))
        short = set(map(_short, known))
        for name in self.stages:
            if not any(c in name for c in '*?[') and name not in known and name not in short:
                raise ValueError(
                    f'resources.stages has {name!r}, which is no stage of this job: its stages are '
                    f'{", ".join(known)}'
                )

    def beam_flags(self, given: Sequence[str]) -> list[str]:
        """Flags of Beam for the workers, without those that the command line has `given`."""
        workers, pool = self.workers, self.accelerator if self.is_pool else None
        wanted: dict[str, Any] = {
            'worker_machine_type': workers.machine_type or (pool.machine_type if pool else None),
            'num_workers': workers.num_workers,
            'max_num_workers': workers.max_num_workers,
            'disk_size_gb': workers.disk_size_gb,
            'worker_zone': workers.zone,
            'sdk_container_image': workers.image,
            'number_of_worker_harness_threads': self.harness_threads,
        }
        stated = {_OTHER_NAMES.get(name, name) for name in map(_flag_name, given)}
        flags = [f'--{k}={v}' for k, v in wanted.items() if v is not None and k not in stated]
        if self.one_process and not any('use_multiple_sdk_containers' in flag for flag in given):
            flags.append('--experiments=no_use_multiple_sdk_containers')
        if pool and not any('worker_accelerator' in flag for flag in given):
            flags.append(f'--dataflow_service_options=worker_accelerator={pool.text}')
        return flags


# Of a run that leaves everything to the engine.
NO_WISHES = Hardware()
# Beam's second names of the same flags.
_OTHER_NAMES = {'machine_type': 'worker_machine_type', 'zone': 'worker_zone'}


def _short(stage: str) -> str:
    return stage.rpartition('/')[2]


def _flag_name(flag: str) -> str:
    return flag.removeprefix('--').partition('=')[0]
