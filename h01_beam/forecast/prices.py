"""What a fleet and a bucket cost: a dated file of list prices, which users must check.

`pipelines/configs/plan/prices_*.yaml` holds them, one file per date.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

from h01_beam import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageClass:
    """Prices of a class of storage, US dollars.

    Attributes:
      gib_month: of what is kept, by GiB (2^30 bytes) and month.
      retrieval_gib: of what is read, by GiB.
      class_a_1000: a thousand requests that write or list.
      class_b_1000: a thousand that read.
    """

    gib_month: float
    retrieval_gib: float = 0.0
    class_a_1000: float
    class_b_1000: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """List prices, US dollars.

    Attributes:
      as_of: the date that they are of, YYYY-MM.
      region: where.
      sources: pages that say so.
      vcpu_hour, memory_gib_hour: of a batch worker.
      shuffle_gib: of what a shuffle processes.
      accelerator_hour: by name, one chip for an hour.
      storage: by name of the class.
    """

    as_of: str
    region: str
    sources: tuple[str, ...]
    vcpu_hour: float
    memory_gib_hour: float
    shuffle_gib: float
    accelerator_hour: Mapping[str, float]
    storage: Mapping[str, StorageClass]

    def __post_init__(self) -> None:
        try:
            datetime.datetime.strptime(self.as_of, '%Y-%m')
        except ValueError:
            raise ValueError(
                f'prices.as_of is {self.as_of!r}: must be their month, YYYY-MM, in quotes'
            ) from None
        for name in ('vcpu_hour', 'memory_gib_hour', 'shuffle_gib'):
            _check(name, getattr(self, name))
        for name, price in self.accelerator_hour.items():
            _check(f'accelerator_hour.{name}', price)
        for name, kind in self.storage.items():
            for field in dataclasses.fields(kind):
                _check(f'storage.{name}.{field.name}', getattr(kind, field.name))

    def accelerator(self, name: str) -> float:
        """Of one chip for an hour; raises a ValueError where there is no price."""
        if name not in self.accelerator_hour:
            raise ValueError(
                f'prices.accelerator_hour has no {name!r}: known are '
                f'{", ".join(self.accelerator_hour)}; add its price to the file'
            )
        return self.accelerator_hour[name]

    def storage_class(self, name: str) -> StorageClass:
        """Of a class of storage; raises a ValueError where there is no price."""
        if name not in self.storage:
            raise ValueError(
                f'prices.storage has no class {name!r}: known are {", ".join(self.storage)}; add '
                'its prices to the file, or name another class'
            )
        return self.storage[name]


def load(path: str) -> Prices:
    """Reads a price file (YAML).

    Raises:
      FileNotFoundError, ValueError: it is not there, or says something wrong.
    """
    return config_lib.from_dict(Prices, config_lib.load(path), 'prices.')


def _check(name: str, price: float) -> None:
    if not 0 <= price < 1e6:
        raise ValueError(
            f'prices.{name} is {price}: must be US dollars, from 0 to a million; correct the file'
        )
