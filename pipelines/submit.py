r"""Prepares, checks and submits a job to Dataflow: its Flex Template, or the graph built here.

What would it take? Plan, workers, quota, hours and money:
    python -m pipelines.submit segment --config run.yaml --run_dir gs://B/run \
        --resources deploy/workers/tpu_v5e.yaml --project P --region R \
        --temp_location gs://B/tmp --dry_run
The same without --dry_run submits it. With --template gs://B/templates/segment.json, Dataflow
builds the graph in that template's image; without, it is built here, in the workers' image:
    --sdk_container_image us-docker.pkg.dev/P/h01/segment@sha256:... --sdk_location=container

All other flags are those of the job (`python -m pipelines.segment --help`) and those of Beam.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from absl import app
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    WorkerOptions,
)

from h01_beam import config as config_lib
from h01_beam import storage
from h01_beam.alignment.job import AlignJob
from h01_beam.cloud import flex
from h01_beam.cloud.dataflow import Service
from h01_beam.cloud.errors import explain
from h01_beam.cloud.fleet import Fleet
from h01_beam.forecast import page, prices, rates
from h01_beam.forecast.dataset import PlanConfig
from h01_beam.forecast.job import foresee
from h01_beam.run import Run
from h01_beam.segmentation.config import SegmentConfig
from pipelines import launch, templates

ROOT = Path(__file__).resolve().parent.parent
# By job: the configuration that tells the forecast more than the plan does.
CONFIGS: dict[str, type[Any]] = {'segment': SegmentConfig, 'align': AlignJob}


def main(args: argparse.Namespace) -> int:
    try:
        job = templates.job(args.job)
        args.job_args = _parse_job(job, args.beam)
        options = launch.beam_options(args.job_args.beam, launch.load_hardware(args.job_args))
        cloud = options.view_as(GoogleCloudOptions)
        check_options(cloud)
        fleet = make_fleet(args.job_args, options)
    except (ValueError, OSError) as error:
        return fail(error)
    args.job_args.dry_run = True
    args.job_args.describe = lambda run: describe(run, fleet, cloud.region, args)
    failed = job.main(args.job_args)
    if failed or args.dry_run:
        return int(failed)
    args.job_args.dry_run = False
    if args.template is None:
        return int(job.main(args.job_args))
    return launch_template(args, options)


def _parse_job(job: Any, flags: Sequence[str]) -> argparse.Namespace:
    runner = (
        [] if any(flag.startswith('--runner') for flag in flags) else ['--runner=DataflowRunner']
    )
    parsed: argparse.Namespace = launch.parse(job.flags())(['submit', *flags, *runner])
    return parsed


def check_options(cloud: Any) -> None:
    """Raises a ValueError for what every job needs and nobody gave."""
    for name, example in (
        ('project', 'my-project'),
        ('region', 'us-central1'),
        ('temp_location', 'gs://BUCKET/tmp'),
    ):
        if not getattr(cloud, name):
            raise ValueError(f'--{name} is missing: give it, for example --{name}={example}')
    if not cloud.temp_location.startswith('gs://'):
        raise ValueError(
            f'--temp_location is {cloud.temp_location!r}: must be in a bucket, gs://...'
        )


def make_fleet(job_args: argparse.Namespace, options: PipelineOptions) -> Fleet:
    """The workers of a job at its largest."""
    workers = options.view_as(WorkerOptions)
    names = ('max_num_workers', 'num_workers', 'machine_type', 'disk_size_gb', 'use_public_ips')
    given = {name: getattr(workers, name) for name in names}
    return Fleet.of(launch.load_hardware(job_args), **given)


def describe(run: Run, fleet: Fleet, region: str, args: argparse.Namespace) -> str:
    """The plan, the fleet and its quota, and what that would cost."""
    return '\n'.join(
        [launch.describe_plan(run), fleet.describe(region), describe_cost(run, fleet, args)]
    )


def describe_cost(run: Run, fleet: Fleet, args: argparse.Namespace) -> str:
    """Hours and money by stage; or why nobody knows them.

    Raises:
      ValueError, FileNotFoundError: the file --plan, or one that it names, is not as it should be.
    """
    plan = config_lib.from_dict(PlanConfig, config_lib.load(args.plan))
    # As the files that ship name each other, from wherever this is called.
    speed = rates.load(os.path.join(ROOT, plan.rates))
    price = prices.load(os.path.join(ROOT, plan.prices))
    config: Any = None
    if args.job in CONFIGS:
        config = config_lib.from_dict(CONFIGS[args.job], launch.load_config(args.job_args))
    pool = launch.load_hardware(args.job_args).workers.fitting == 'pool'
    try:
        found = foresee(args.job, config, run, fleet, pool, plan.fleet, speed, price)
    except ValueError as error:
        return f'cost: not known: {error}'
    return page.describe_cost(found.forecast, found.unknown)


def launch_template(args: argparse.Namespace, options: PipelineOptions) -> int:
    """Launches the Flex Template; with --wait, follows the job to its end."""
    cloud = options.view_as(GoogleCloudOptions)
    name = cloud.job_name or default_job_name(args.job)
    try:
        stage_files(args.job_args)
        flags = [parameter['name'] for parameter in templates.describe(args.job)['parameters']]
        request = {
            'job_name': name,
            'container_spec_gcs_path': args.template,
            'parameters': flex.parameters(args.job_args, flags),
            'environment': flex.environment(options.get_all_options()),
        }
        service = Service(cloud.project, cloud.region, cloud.dataflow_endpoint, cloud.no_auth)
        job_id = service.launch_template(request)
        print(f'submitted {name}: {service.console(job_id)}')
        if args.wait:
            service.wait(job_id, say=lambda state: print(state, flush=True), sleep=time.sleep)
    except Exception as error:
        return fail(error)
    return 0


def stage_files(job_args: argparse.Namespace) -> None:
    """Puts the configuration, with --set applied, and the hardware where the launcher finds them.

    By their contents, so that what a job was given is kept, and given again is the same file.
    """
    folder = storage.join(_folder(job_args), 'submitted')
    if getattr(job_args, 'config', None):
        mapping = config_lib.load(job_args.config, job_args.set)
        job_args.config, job_args.set = _stage(folder, 'config', mapping), []
    if job_args.resources and not storage.is_remote(job_args.resources):
        job_args.resources = _stage(folder, 'resources', config_lib.load(job_args.resources))


def _folder(job_args: argparse.Namespace) -> str:
    return str(getattr(job_args, 'run_dir', None) or job_args.output.partition('|')[0])


def _stage(folder: str, name: str, mapping: Any) -> str:
    data = yaml.safe_dump(mapping, sort_keys=True).encode()
    path = storage.join(folder, f'{name}-{hashlib.sha256(data).hexdigest()[:12]}.yaml')
    storage.write_bytes(path, data)
    return path


def default_job_name(job: str) -> str:
    """Dataflow runs one job of a name at a time: names tell when."""
    return f'h01-{re.sub("[^a-z0-9]", "-", job)}-{time.strftime("%Y%m%d-%H%M%S", time.gmtime())}'


def fail(error: BaseException) -> int:
    print(f'error: {explain(str(error)) or error}', file=sys.stderr)
    return launch.BAD_INPUT if isinstance(error, ValueError | OSError) else launch.FAILED


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument('job', help=f'one of {", ".join(templates.job_names())}')
    result.add_argument('--template', metavar='gs://.../JOB.json', help='Flex Template to launch')
    result.add_argument(
        '--plan',
        metavar='FILE.yaml',
        default=str(ROOT / 'pipelines/configs/plan/h01.yaml'),
        help='names rates and prices, and says what storage serves (see pipelines.plan)',
    )
    result.add_argument('--wait', action='store_true', help='follow a launched template to its end')
    result.add_argument(
        '--dry_run', action='store_true', help='plan, quota and cost; submit nothing'
    )
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
