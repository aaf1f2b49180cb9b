"""Wall time, cost and the limit that binds of every stage, in the best, typical and worst case.

A stage takes as long as the slowest of what it needs: processors, accelerators, the processes that
feed them, bytes and requests of storage. Stages run one after the other. A worker is paid for as
long as its stage lasts, busy or not; a stage of few blocks holds only as many as it can use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from h01_beam.forecast import work
from h01_beam.forecast.dataset import DataSet, Fleet
from h01_beam.forecast.prices import Prices
from h01_beam.forecast.rates import Range, Rates, pattern_of
from h01_beam.forecast.stage import PlannedJob
from h01_beam.forecast.work import Context, Requests, Work
from h01_beam.model_file import ModelCard
from h01_beam.run import StagePlan

Case = Literal['best', 'typical', 'worst']
CASES: tuple[Case, ...] = ('best', 'typical', 'worst')
GIB = 2.0**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A stage in one case.

    Attributes:
      seconds: of wall time.
      needs: seconds that each limit asks for; the largest is `seconds`.
      vcpu_hours, accelerator_hours: paid for.
      cost: US dollars by what they are for: processors, memory, accelerators, requests, retrieval,
        shuffle.
    """

    seconds: float
    needs: Mapping[str, float]
    vcpu_hours: float
    accelerator_hours: float
    cost: Mapping[str, float]

    @property
    def binds(self) -> str:
        """The limit that the stage waits for."""
        return max(self.needs, key=lambda name: self.needs[name])

    @property
    def dollars(self) -> float:
        """Of everything."""
        return sum(self.cost.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What is foreseen of a stage."""

    job: str
    plan: StagePlan
    work: Work
    cases: Mapping[Case, Outcome]

    @property
    def name(self) -> str:
        """With that of its job."""
        return f'{self.job}/{self.plan.name}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is foreseen of all jobs.

    Attributes:
      kept: bytes of volumes that stay when all is done, by class of storage.
      workers: machines that the quota grants, with and without accelerators.
    """

    dataset: DataSet
    fleet: Fleet
    rates: Rates
    prices: Prices
    jobs: tuple[PlannedJob, ...]
    stages: tuple[StageEstimate, ...]
    kept: Mapping[str, Range]
    workers: tuple[int, int]

    def seconds(self, case: Case) -> float:
        """Of wall time, all stages one after the other."""
        return sum(s.cases[case].seconds for s in self.stages)

    def dollars(self, case: Case) -> float:
        """Of all stages."""
        return sum(s.cases[case].dollars for s in self.stages)

    def month(self, case: Case) -> float:
        """US dollars for a month of what is kept."""
        return sum(
            at(size, case) / GIB * self.prices.storage_class(kind).gib_month
            for kind, size in self.kept.items()
        )

    @property
    def widest(self) -> StageEstimate:
        """The stage whose worker processes need most memory."""
        return max(self.stages, key=lambda s: s.plan.memory_bytes)


def estimate(
    dataset: DataSet,
    fleet: Fleet,
    rates: Rates,
    prices: Prices,
    jobs: Sequence[PlannedJob],
    only: Sequence[str] = (),
) -> Forecast:
    """Foresees all stages of some jobs.

    Args:
      dataset: what there is.
      fleet: with what.
      rates: how fast.
      prices: for how much.
      jobs: planned at the data set's extent.
      only: names of stages, if not all are wanted.

    Raises:
      ValueError: a rate or a price is missing, or a stage is unknown.
    """
    if fleet.accelerator:
        rates.accelerator(fleet.accelerator)
        prices.accelerator(fleet.accelerator)
    names = [plan.name for job in jobs for plan in job.stages]
    for name in only:
        if name not in names:
            raise ValueError(f'--stage {name!r}: no job has it; known are {", ".join(names)}')
    stages: list[StageEstimate] = []
    kept: dict[str, Range] = {}
    for job in jobs:
        context = context_of(job, dataset, fleet, rates)
        for plan in job.stages:
            if only and plan.name not in only:
                continue
            todo = work.measure(plan, context)
            cases = {case: outcome(plan, todo, job, context, prices, case) for case in CASES}
            stages.append(StageEstimate(job=job.name, plan=plan, work=todo, cases=cases))
            for kind, size in todo.write_bytes.items():
                kept[kind] = work.plus(kept.get(kind), size)
    return Forecast(
        dataset=dataset, fleet=fleet, rates=rates, prices=prices, jobs=tuple(jobs),
        stages=tuple(stages), kept=kept, workers=(fleet.granted(True), fleet.granted(False)),
    )  # fmt: skip


def context_of(job: PlannedJob, dataset: DataSet, fleet: Fleet, rates: Rates) -> Context:
    """What the stages of a job have in common."""
    matches = [plan for plan in job.stages if plan.name == 'match']
    stitch = getattr(job.config, 'stitch', None)
    return Context(
        dataset, fleet, rates,
        edges=work.expected_edges(matches[0]) * dataset.filled if matches else 0.0,
        card=job.card,
        cell_tiles=stitch.cell_tiles if stitch else 4,
        montage_downsample=stitch.downsample if stitch else 1,
        lighting_tiles=stitch.flat_field.max_tiles if stitch and stitch.flat_field else 0,
    )  # fmt: skip


def outcome(
    plan: StagePlan, todo: Work, job: PlannedJob, context: Context, prices: Prices, case: Case
) -> Outcome:
    """One stage in one case."""
    fleet = context.fleet
    floods = pattern_of(plan.name.rpartition('/')[2]) == 'flood'
    chips = fleet.accelerator is not None and (floods or fleet.pool)
    machines, processes = fleet.granted(chips), fleet.accelerators if chips else fleet.vcpus
    threads = machines * processes
    used = min(threads, plan.chains or threads)
    # Of a stage of few blocks, no more machines are kept than it has use for.
    machines = min(machines, -(-used // processes))
    needs = _compute_needs(plan, todo, job, context, used, case)
    if used == threads and fleet.granted(chips) < fleet.workers:
        needs = {f'quota of {name}': value for name, value in needs.items()}
    needs |= _storage_needs(todo, fleet, case)
    seconds = max(needs.values())
    hours = seconds / 3600
    cost = {
        'processors': machines * fleet.vcpus * hours * prices.vcpu_hour,
        'memory': machines * fleet.memory_gib * hours * prices.memory_gib_hour,
        'accelerators': 0.0,
        'requests': sum(_request_cost(r, prices, k) for k, r in todo.requests.items()),
        'retrieval': sum(
            at(size, case) / GIB * prices.storage_class(k).retrieval_gib
            for k, size in todo.read_bytes.items()
        ),
        'shuffle': todo.shuffle_bytes / GIB * prices.shuffle_gib,
    }
    chip_hours = machines * fleet.accelerators * hours if chips else 0.0
    if chips:
        assert fleet.accelerator is not None
        cost['accelerators'] = chip_hours * prices.accelerator(fleet.accelerator)
    return Outcome(
        seconds=seconds, needs=needs, cost=cost, vcpu_hours=machines * fleet.vcpus * hours,
        accelerator_hours=chip_hours,
    )  # fmt: skip


def at(value: Range, case: Case) -> float:
    """An amount in a case: little of it is best."""
    return {'best': value.low, 'typical': value.typical, 'worst': value.high}[case]


def speed_at(value: Range, case: Case) -> float:
    """A speed in a case: much of it is best."""
    return {'best': value.high, 'typical': value.typical, 'worst': value.low}[case]


def chip_steps(card: ModelCard, name: str, rates: Rates, case: Case) -> float:
    """FOV steps per second of a chip, were it fed without end."""
    chip = rates.accelerator(name)
    flops = chip.peak_tflops * 1000 * speed_at(chip.utilization, case)
    return flops / work.gflop_per_step(card)


def _compute_needs(
    plan: StagePlan, todo: Work, job: PlannedJob, context: Context, used: int, case: Case
) -> dict[str, float]:
    """Seconds of all threads or chips together; blocks come whole, so the last ones may wait."""
    fleet, rates = context.fleet, context.rates
    amount = at(todo.units, case)
    overhead = plan.blocks * at(rates.overhead_seconds, case)
    name = plan.name.rpartition('/')[2]
    if pattern_of(name) != 'flood':
        busy = amount / speed_at(rates.of(name).per_second, case) + overhead
        what = 'few blocks' if 0 < plan.chains <= used else 'processors'
        return {what: _in_waves(busy, plan.chains, used)}
    assert job.card is not None
    if fleet.accelerator is None:
        precision = job.config.inference.precision
        if precision not in rates.flood_gflops:
            raise ValueError(
                f'rates.flood_gflops has no {precision!r}: known are '
                f'{", ".join(rates.flood_gflops)}; measure it with tests/benchmarks/stages.py'
            )
        speed = speed_at(rates.flood_gflops[precision], case) / work.gflop_per_step(job.card)
        return {'processors': _in_waves(amount / speed + overhead, plan.chains, used)}
    chips = amount / chip_steps(job.card, fleet.accelerator, rates, case)
    feeding = amount / speed_at(rates.host_steps, case) + overhead
    return {
        'accelerators': _in_waves(chips, plan.chains, used),
        # One process feeds a chip, and of a process one thread computes at a time.
        'feeding accelerators': _in_waves(feeding, plan.chains, used),
    }


def _in_waves(busy: float, chains: int, used: int) -> float:
    if not chains:
        return busy / used
    return busy / chains * math.ceil(chains / used)


def _storage_needs(todo: Work, fleet: Fleet, case: Case) -> dict[str, float]:
    read = sum(at(size, case) for size in todo.read_bytes.values())
    written = sum(at(size, case) for size in todo.write_bytes.values())
    asked = sum(todo.requests.values(), Requests())
    return {
        'storage, reading': 8 * read / fleet.read_gbps / 1e9,
        'storage, writing': 8 * written / fleet.write_gbps / 1e9,
        'requests that read': asked.class_b / fleet.reads_per_s,
        'requests that write': asked.class_a / fleet.writes_per_s,
    }


def _request_cost(requests: Requests, prices: Prices, kind: str) -> float:
    price = prices.storage_class(kind)
    return (requests.class_a * price.class_a_1000 + requests.class_b * price.class_b_1000) / 1000
