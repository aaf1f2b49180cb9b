"""A forecast as text, as a Markdown page, and as a figure."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from h01_beam.forecast import work
from h01_beam.forecast.estimate import (
    CASES,
    GIB,
    Forecast,
    StageEstimate,
    at,
    chip_steps,
    speed_at,
)
from h01_beam.forecast.limits import Limit
from h01_beam.forecast.rates import Range
from h01_beam.forecast.work import Requests, gflop_per_step

# Stages that cost less than this share of all are told together.
SMALL = 0.002
# Rows of the table of limits that are shown, at most.
LIMITS = 10
HEAD = (
    'stage', 'blocks', 'read', 'written', 'requests that write, read',
    'hours of processors, chips', 'wall time', 'US dollars', 'memory', 'waits for',
)  # fmt: skip
CLASSES = ('class', 'read', 'written', 'class A requests', 'class B requests', 'dollars a month')


def describe(forecast: Forecast, limits: Sequence[Limit]) -> str:
    """The forecast for a terminal."""
    lines = [f'{"stage":<38}{"blocks":>15}{"wall time":>26}{"US dollars":>26}  waits for']
    for stage in forecast.stages:
        lines.append(
            f'{stage.name:<38}{stage.plan.blocks:>15,}{_times(stage):>26}{_costs(stage):>26}  '
            f'{stage.cases["typical"].binds}'
        )
    wall = _span([forecast.seconds(case) for case in CASES], duration)
    cost = _span([forecast.dollars(case) for case in CASES], dollars)
    lines += [f'{"all":<53}{wall:>26}{cost:>26}', '', *_facts(forecast), '', 'What breaks first:']
    lines += [f'  {_limit_line(limit)}' for limit in limits[:LIMITS]]
    lines += ['', f'Prices of {forecast.prices.as_of}, {forecast.prices.region}: check them.']
    return '\n'.join(lines)


def describe_cost(forecast: Forecast, unknown: Sequence[str]) -> str:
    """What a job would cost, by stage, for a terminal.

    Args:
      forecast: of the stages whose speed is known.
      unknown: the others.
    """
    lines = [f'{"stage":<28}{"wall time":>30}{"US dollars":>30}']
    for stage in forecast.stages:
        lines.append(f'{stage.plan.name:<28}{_times(stage):>30}{_costs(stage):>30}')
    wall = _span([forecast.seconds(case) for case in CASES], duration)
    cost = _span([forecast.dollars(case) for case in CASES], dollars)
    monthly = _span([forecast.month(case) for case in CASES], dollars)
    lines += [
        f'{"all":<28}{wall:>30}{cost:>30}',
        f'and {monthly} US dollars a month to keep what is written; if every block ran, and all '
        'voxels held image.',
    ]
    if unknown:
        lines.append(f'Not in it, as nobody measured them: {", ".join(unknown)}.')
    lines.append(f'Prices of {forecast.prices.as_of}, {forecast.prices.region}: check them.')
    return '\n'.join(lines)


def markdown(
    forecast: Forecast,
    limits: Sequence[Limit],
    command: str,
    figure: str,
    ledger: dict[str, Any] | None = None,
) -> str:
    """The forecast as a page.

    Args:
      forecast: what to tell.
      limits: of `find_limits`.
      command: that makes the page.
      figure: path of the figure, from the page.
      ledger: what `h01_beam.forecast.ledger.simulate` measured; None leaves the part out.
    """
    name = forecast.dataset.name
    parts = [
        f'# What the reconstruction of {name} would take',
        f'Made by `{command}`; do not edit. A forecast, not a promise: every number is worth what '
        'its assumptions are, below.',
        '\n'.join(f'* {fact}' for fact in _facts(forecast)),
        f'![Time and cost of each stage]({figure})',
        '## Stages',
        'Ranges are the best and the worst case around the typical one. Stages run one after the '
        'other. Bytes are stored ones.',
        _table(HEAD, [*_stage_rows(forecast)]),
        '## What breaks first',
        'What is needed against what there is, in the typical case. Above 1 it does not work.',
        _table(
            ('what', 'where', 'needed', 'there is', 'needed / there is', 'what helps'),
            [_limit_cells(limit) for limit in limits[:LIMITS]],
        ),
        '## By class of storage',
        _table(CLASSES, [*_storage_rows(forecast)]),
    ]
    if ledger:
        parts += ['## The ledger', _ledger_text(ledger)]
    parts += ['## Assumptions', '\n'.join(f'* {line}' for line in _assumptions(forecast))]
    return '\n\n'.join(parts) + '\n'


def draw(forecast: Forecast) -> bytes:
    """A PNG: wall time and cost of each stage that matters, typical, with the range as a line."""
    from matplotlib.figure import Figure

    shown, _ = _split(forecast)
    names = [stage.name for stage in shown]
    figure = Figure(figsize=(11, 1.2 + 0.36 * len(shown)), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    parts: tuple[tuple[Any, str, str, Any], ...] = (
        (axes[0], 'wall time, hours', '#3d6fb4', lambda o: o.seconds / 3600),
        (axes[1], 'cost, US dollars', '#b4683d', lambda o: o.dollars),
    )
    for axis, title, colour, value in parts:
        best, typical, worst = (
            [max(value(stage.cases[case]), 1e-3) for stage in shown] for case in CASES
        )
        places = range(len(shown))
        axis.barh(places, typical, color=colour, alpha=0.75, height=0.62)
        axis.hlines(places, best, worst, color='#1c2330', linewidth=1.4)
        for values in (best, worst):
            axis.plot(values, places, '|', color='#1c2330', markersize=7)
        axis.set_xscale('log')
        axis.set_title(title, fontsize=11)
        axis.grid(axis='x', color='#dde2ea')
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks(range(len(shown)), names, fontsize=9)
    axes[0].invert_yaxis()
    # Reproducible: no date, no version of the library.
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=110, metadata={'Software': None})
    return stream.getvalue()


def duration(seconds: float) -> str:
    """A length of time in the unit that people would use."""
    for unit, size in (('years', 365 * 86400.0), ('days', 86400.0), ('h', 3600.0), ('min', 60.0)):
        if seconds >= 1.5 * size:
            return f'{_figures(seconds / size)} {unit}'
    return f'{_figures(seconds)} s'


def dollars(value: float) -> str:
    """An amount of money."""
    return f'{_figures(value)}' if value >= 0.01 else '0'


def size(count: float) -> str:
    """An amount of bytes, by powers of 1000."""
    for unit in ('B', 'kB', 'MB', 'GB', 'TB', 'PB'):
        if count < 999.5:
            return f'{_figures(count)} {unit}'
        count /= 1000
    return f'{_figures(count)} EB'


def number(count: float) -> str:
    """A large count, in words."""
    for unit, scale in (('trillion', 1e12), ('billion', 1e9), ('million', 1e6)):
        if count >= scale:
            return f'{_figures(count / scale)} {unit}'
    return f'{count:,.0f}'


def _figures(value: float) -> str:
    """Two figures that count, three from 100 on."""
    if value == 0:
        return '0'
    if value < 10:
        return f'{value:.2g}'
    return f'{float(f"{value:.{2 if value < 100 else 3}g}"):,.0f}'


def _span(values: Sequence[float], show: Any) -> str:
    best, typical, worst = map(show, values)
    return typical if best == worst else f'{typical} ({best} to {worst})'


def _times(stage: StageEstimate) -> str:
    return _span([stage.cases[case].seconds for case in CASES], duration)


def _costs(stage: StageEstimate) -> str:
    return _span([stage.cases[case].dollars for case in CASES], dollars)


def _facts(forecast: Forecast) -> Iterator[str]:
    dataset, fleet = forecast.dataset, forecast.fleet
    seconds = [forecast.seconds(case) for case in CASES]
    cost = [forecast.dollars(case) for case in CASES]
    blocks = sum(stage.plan.blocks for stage in forecast.stages)
    z, y, x = dataset.shape
    yield (
        f'{dataset.name}: {z:,} x {y:,} x {x:,} voxels (z, y, x) of '
        f'{" x ".join(f"{s:g}" for s in dataset.voxel_size_nm)} nm, {size(dataset.bytes)} of image'
        + (f', {number(dataset.tiles.count)} tiles' if dataset.tiles else '')
    )
    chips = f', {fleet.accelerators} {fleet.accelerator} each' if fleet.accelerator else ''
    yield (
        f'Fleet: {fleet.workers} workers of {fleet.vcpus} vCPUs and {fleet.memory_gib:g} GiB'
        f'{chips}; the quota grants {forecast.workers[1]}, {forecast.workers[0]} with accelerators'
    )
    yield f'Wall time: {_span(seconds, duration)}; cost: {_span(cost, dollars)} US dollars'
    monthly = _span([forecast.month(case) for case in CASES], dollars)
    yield f'To keep all that is written: {monthly} US dollars a month'
    yield f'Blocks: {number(blocks)} in {len(forecast.stages)} stages'
    for stage in forecast.stages:
        if stage.plan.name == 'flood':
            steps = stage.work.units
            yield f'FOV steps: {_span([steps.low, steps.typical, steps.high], number)}'
            hours = [stage.cases[case].accelerator_hours for case in CASES]
            if any(hours):
                yield f'Accelerator hours: {_span(hours, number)}'
    widest = forecast.widest
    yield (
        f'Widest need of memory: {widest.plan.memory_bytes / GIB:.1f} GiB for a process of '
        f'`{widest.name}`'
    )


def _split(forecast: Forecast) -> tuple[list[StageEstimate], list[StageEstimate]]:
    """The stages that matter for time or cost, and the others."""
    seconds, cost = forecast.seconds('typical'), forecast.dollars('typical')
    large = {
        stage.name
        for stage in forecast.stages
        if stage.cases['typical'].seconds > SMALL * seconds
        or stage.cases['typical'].dollars > SMALL * cost
    }
    shown = [stage for stage in forecast.stages if stage.name in large]
    return shown, [stage for stage in forecast.stages if stage.name not in large]


def _stage_rows(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    shown, small = _split(forecast)
    for stage in shown:
        yield _stage_row(f'`{stage.name}`', [stage], stage.cases['typical'].binds)
    if small:
        yield _stage_row(f'{len(small)} smaller stages', small, '')
    yield _stage_row('**all**', forecast.stages, '')


def _stage_row(name: str, stages: Sequence[StageEstimate], binds: str) -> tuple[str, ...]:
    def total(value: Any) -> list[float]:
        return [sum(value(stage, case) for stage in stages) for case in CASES]

    def moved(kind: str) -> float:
        return sum(at(r, 'typical') for s in stages for r in getattr(s.work, kind).values())

    asked = sum((r for s in stages for r in s.work.requests.values()), Requests())
    chips = total(lambda s, c: s.cases[c].accelerator_hours)[1]
    hours = number(total(lambda s, c: s.cases[c].vcpu_hours)[1])
    return (
        name,
        number(sum(stage.plan.blocks for stage in stages)),
        size(moved('read_bytes')),
        size(moved('write_bytes')),
        f'{number(asked.class_a)}, {number(asked.class_b)}',
        hours + (f', {number(chips)}' if chips else ''),
        _span(total(lambda s, c: s.cases[c].seconds), duration),
        _span(total(lambda s, c: s.cases[c].dollars), dollars),
        f'{max(stage.plan.memory_bytes for stage in stages) / GIB:.1f} GiB',
        binds,
    )


def _storage_rows(forecast: Forecast) -> Iterator[tuple[str, ...]]:
    kinds = sorted({kind for stage in forecast.stages for kind in stage.work.requests})
    for kind in kinds:
        asked = sum((s.work.requests.get(kind, Requests()) for s in forecast.stages), Requests())
        read = sum(at(s.work.read_bytes[kind], 'typical') for s in forecast.stages
                   if kind in s.work.read_bytes)  # fmt: skip
        kept = forecast.kept.get(kind, work.exactly(0))
        price = forecast.prices.storage_class(kind).gib_month
        yield (kind, size(read), size(kept.typical), number(asked.class_a), number(asked.class_b),
               _span([at(kept, case) / GIB * price for case in CASES], dollars))  # fmt: skip


def _limit_cells(limit: Limit) -> tuple[str, ...]:
    where = f'`{limit.where}`' if limit.where else ''
    needed, there = (f'{_figures(n)} {limit.unit}' for n in (limit.needed, limit.there))
    return limit.name, where, needed, there, _figures(limit.ratio), limit.advice


def _limit_line(limit: Limit) -> str:
    where = f' ({limit.where})' if limit.where else ''
    told = f'{_figures(limit.needed)} of {_figures(limit.there)} {limit.unit}; {limit.advice}'
    return f'{_figures(limit.ratio):>8} times what there is: {limit.name}{where}: {told}'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines)


def _assumptions(forecast: Forecast) -> Iterator[str]:
    rates, prices, fleet = forecast.rates, forecast.prices, forecast.fleet
    yield from forecast.dataset.assumptions
    yield (
        f'Rates: `tests/benchmarks/stages.py`, CPU seconds of one thread on '
        f'{rates.machine["processor"]}, {rates.measured}; a vCPU is taken for such a thread. Best '
        'and worst are the 90th and 10th percentile of a few blocks of synthetic tissue, not of '
        'real tissue.'
    )
    yield (
        f'Prices: list prices of {prices.as_of}, {prices.region}, written down by hand from '
        f'{", ".join(prices.sources)}: check them. No discounts, no egress, no early deletion.'
    )
    stored = ', '.join(f'{k} as {_range(v)}' for k, v in rates.stored_fraction.items())
    yield (
        f'Storage, bytes stored by bytes in memory: {stored}; a pixel of a tile is '
        f'{_range(rates.tile_bytes_per_pixel)} bytes (synthetic tissue). Empty parts of the box '
        'cost requests, but neither work nor bytes.'
    )
    yield (
        'Every block reads what it needs from storage: nothing is kept from block to block. It '
        'reads one marker for every block of earlier stages that its read box meets (the blocks of '
        'one bundle share them, which is not counted). Where a section lies only its affine map '
        'will tell: boxes that depend on it count as if it were turned by 45 degrees, which makes '
        'them largest. Tables count by their parts, as requests, not by their bytes.'
    )
    yield (
        f'Storage serves {fleet.read_gbps:g} Gbit/s to readers, {fleet.write_gbps:g} from writers, '
        f'{fleet.reads_per_s:,.0f} and {fleet.writes_per_s:,.0f} requests a second; workers start '
        'at once, are paid for while their stage lasts, and do not fail.'
    )
    for job in forecast.jobs:
        if job.card is not None:
            yield from _network(forecast, job.card)
    yield 'Not in it: training, synapses, meshes, people.'


def _network(forecast: Forecast, card: Any) -> Iterator[str]:
    rates, name = forecast.rates, forecast.fleet.accelerator
    gflop = gflop_per_step(card)
    steps = _range(rates.steps_per_voxel)
    yield (
        f'Network `{card.name}`: {gflop:.2f} GFLOP for a field of view of '
        f'{" x ".join(map(str, card.fov_shape))}; {steps} FOV steps for each voxel that is read. '
        'One network at one voxel size (the published reconstruction combined three).'
    )
    if name:
        chip = rates.accelerator(name)
        speeds = _span([chip_steps(card, name, rates, case) for case in CASES], _figures)
        host = _span([speed_at(rates.host_steps, case) for case in CASES], _figures)
        share = _range(chip.utilization)
        yield (
            f'{name}: {share} of {chip.peak_tflops:g} TFLOP/s, so {speeds} FOV steps a second '
            f'({chip.source}). The process that feeds it manages {host} (measured, with a network '
            'that costs nothing), one process for each chip.'
        )


def _range(value: Range) -> str:
    if value.low == value.high:
        return f'{value.typical:.2g}'
    return f'{value.typical:.2g} ({value.low:.2g} to {value.high:.2g})'


def _ledger_text(ledger: dict[str, Any]) -> str:
    rows = [
        (
            row['what'],
            number(row['blocks']),
            duration(row['seconds']),
            duration(row['cpu_seconds']),
            size(row['peak_bytes']),
        )
        for row in ledger['measured']
    ]
    table = _table(('what', 'blocks', 'time', 'processor', 'peak memory'), rows)
    first = ledger['breaks_first']
    return f'{ledger["how"]}\n\n{table}\n\nWhat breaks first: {first}'
