r"""What a reconstruction would take: blocks, bytes, requests, hours, money, and what breaks first.

    python -m pipelines.plan --config pipelines/configs/plan/h01.yaml
    python -m pipelines.plan --config pipelines/configs/plan/h01.yaml --stage flood \
        --set fleet.accelerator=nvidia_l4 --json plan.json
The page in the documentation, with its figure:
    python -m pipelines.plan --config pipelines/configs/plan/h01.yaml --page docs/H01_PLAN.md
The ledger under ten million blocks, measured on this machine:
    python -m pipelines.plan --ledger_blocks 10000000 --json pipelines/configs/plan/ledger.json

Nothing is started and no cloud is asked: the stages are those that the jobs build, at the data
set's extent; rates and prices come from files.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import sys
from typing import Any

from absl import app

from h01_beam import storage
from h01_beam.config import as_dict, from_dict, load
from h01_beam.forecast import ledger, page, prices, rates
from h01_beam.forecast.dataset import PlanConfig
from h01_beam.forecast.estimate import Forecast, estimate
from h01_beam.forecast.limits import Limit, find_limits
from h01_beam.forecast.stage import plan_job
from pipelines import launch


def main(args: argparse.Namespace) -> int:
    try:
        if args.beam:
            raise ValueError(f'unknown flag {args.beam[0]!r}: see --help')
        if args.ledger_blocks is not None:
            return plan_ledger(args)
        if args.config is None:
            raise ValueError(
                '--config is missing: must be a YAML file such as pipelines/configs/plan/h01.yaml, '
                'or give --ledger_blocks'
            )
        config = from_dict(PlanConfig, load(args.config, args.set))
        forecast = make_forecast(config, args.stage)
        limits = find_limits(forecast)
        print(page.describe(forecast, limits))
        write_files(args, config, forecast, limits)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return launch.BAD_INPUT
    return 0


def make_forecast(config: PlanConfig, only: list[str]) -> Forecast:
    speed, price = rates.load(config.rates), prices.load(config.prices)
    jobs = [plan_job(config.dataset, job) for job in config.jobs]
    return estimate(config.dataset, config.fleet, speed, price, jobs, only)


def write_files(
    args: argparse.Namespace, config: PlanConfig, forecast: Forecast, limits: list[Limit]
) -> None:
    if args.json:
        storage.write_bytes(args.json, json.dumps(content(forecast, limits), indent=1).encode())
    if args.page:
        name = posixpath.basename(args.page)
        figure = name.removesuffix('.md') + '.png'
        command = f'python -m pipelines.plan --config {args.config} --page {args.page}'
        measured = json.loads(storage.read_bytes(config.ledger)) if config.ledger else None
        text = page.markdown(forecast, limits, command, figure, measured)
        storage.write_bytes(args.page, text.encode())
        storage.write_bytes(args.page.removesuffix(name) + figure, page.draw(forecast))


def content(forecast: Forecast, limits: list[Limit]) -> dict[str, Any]:
    """The JSON file."""
    stages = {
        stage.name: {
            'blocks': stage.plan.blocks,
            'memory_bytes': stage.plan.memory_bytes,
            'work': as_dict(stage.work),
            'cases': {
                case: {**as_dict(result), 'dollars': result.dollars, 'binds': result.binds}
                for case, result in stage.cases.items()
            },
        }
        for stage in forecast.stages
    }
    return {
        'dataset': as_dict(forecast.dataset),
        'fleet': as_dict(forecast.fleet),
        'stages': stages,
        'limits': [{**as_dict(limit), 'ratio': limit.ratio} for limit in limits],
    }


def plan_ledger(args: argparse.Namespace) -> int:
    measured = ledger.simulate(args.ledger_blocks, args.folder)
    print(ledger.describe(measured))
    if args.json:
        storage.write_bytes(args.json, json.dumps(measured, indent=1).encode())
    return 0


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument('--config', help='YAML file; see pipelines/configs/plan/')
    result.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE', help='overrides one key'
    )
    result.add_argument(
        '--stage', action='append', default=[], metavar='NAME', help='only this; may be repeated'
    )
    result.add_argument('--json', metavar='FILE', help='all numbers')
    result.add_argument('--page', metavar='FILE.md', help='a page, with a figure beside it')
    result.add_argument(
        '--ledger_blocks', type=int, metavar='N', help='measure the ledger under so many blocks'
    )
    result.add_argument('--folder', help='for --ledger_blocks: where its files lie meanwhile')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
