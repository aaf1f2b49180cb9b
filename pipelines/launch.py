"""What every script here shares: flags, configuration, launch, progress, report, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from absl import flags as absl_flags
from absl import logging
from apache_beam.options.pipeline_options import (
    DirectOptions,
    SetupOptions,
    StandardOptions,
)
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from h01_beam import config as config_lib
from h01_beam import layers, quarantine, storage, worker
from h01_beam.cloud.errors import explain
from h01_beam.hardware import NO_WISHES, Hardware
from h01_beam.options import Options
from h01_beam.progress import LedgerProgress, count_done
from h01_beam.run import FailurePolicy, Resources, Run

# Exit codes: 2 for what the user can mend before any work starts, 1 for a run that failed.
BAD_INPUT, FAILED = 2, 1
# Of the YAML file: what the job asks of the workers, not what it does.
SECTION = 'resources'
BEAM_CHATTER = (
    'No semi_persistent_directory found',
    'Discarding unparseable args',
    # Of a refused submission, which `execute` explains.
    'trying to create job at dataflow service endpoint',
    'details of server error',
)
GO_ON = 'Finished blocks are kept: give the same command to go on.'
# Quarantined blocks that are named on the screen; the report has more.
MOST_NAMED = 10


def parser(doc: str, *, config: bool = True, run_dir: bool = True) -> argparse.ArgumentParser:
    """The flags that all scripts share.

    Args:
      doc: the script's docstring; its first line and its examples become the help.
      config: whether the script reads a YAML file.
      run_dir: whether the script needs a run directory.
    """
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if config:
        result.add_argument('--config', required=True, help='YAML file; see pipelines/configs/')
        result.add_argument(
            '--set', action='append', default=[], metavar='KEY=VALUE', help='overrides one key'
        )
    if run_dir:
        result.add_argument('--run_dir', required=True, help='local folder or gs:// URL')
    result.add_argument(
        '--resources',
        metavar='FILE.yaml',
        help='what it asks of workers, see deploy/workers/; default: that section of --config',
    )
    result.add_argument(
        '--block_attempts',
        type=int,
        default=3,
        metavar='N',
        help='how often a block is tried before it is quarantined (default 3)',
    )
    result.add_argument(
        '--retry_quarantined', action='store_true', help='try quarantined blocks again'
    )
    result.add_argument('--dry_run', action='store_true', help='print the plan, write nothing')
    result.add_argument(
        '--worker_memory_gib', type=float, help='memory of a remote worker, for checks (default 16)'
    )
    return result


def load_config(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of the job: --config with --set, without the section of the hardware."""
    mapping = config_lib.load(args.config, args.set)
    mapping.pop(SECTION, None)
    return mapping


def load_hardware(args: argparse.Namespace) -> Hardware:
    """What the job asks of the workers: the file --resources, or that section of --config.

    Raises:
      ValueError: a key or a value is wrong.
    """
    if args.resources:
        mapping = config_lib.load(args.resources)
        return Hardware.parse(mapping.get(SECTION, mapping))
    if getattr(args, 'recorded', None):  # That of the run that goes on.
        return config_lib.from_dict(Hardware, args.recorded)
    if not getattr(args, 'config', None):
        return NO_WISHES
    return Hardware.parse(config_lib.load(args.config, args.set).get(SECTION))


def numbers(text: str) -> tuple[float, ...]:
    """For argparse: comma-separated numbers, as in 30,8,8."""
    return tuple(float(part) for part in text.split(','))


def integers(text: str) -> tuple[int, ...]:
    """For argparse: comma-separated integers, as in 64,64,64."""
    return tuple(int(part) for part in text.split(','))


def parse(flags: argparse.ArgumentParser) -> Callable[[Sequence[str]], argparse.Namespace]:
    """For `absl.app.run(main, flags_parser=...)`: unknown flags are left to Beam."""

    def flags_parser(argv: Sequence[str]) -> argparse.Namespace:
        # absl has no flags of ours, but insists that its own be parsed.
        absl_flags.FLAGS(argv[:1])
        args, beam_flags = flags.parse_known_args(argv[1:])
        args.beam, args.describe = beam_flags, describe_plan
        logging.use_absl_handler()
        logging.get_absl_handler().addFilter(_not_beam_chatter)
        verbose = bool(os.environ.get('H01_BEAM_VERBOSE'))
        if not verbose:
            logging.get_absl_handler().addFilter(_not_failed_bundle)
        logging.set_verbosity(logging.INFO if verbose else logging.WARNING)
        return args

    return flags_parser


def execute(
    args: argparse.Namespace,
    run_dir: str,
    build: Callable[[Any, Run], Any],
    finish: Callable[[Run], None] | None = None,
    keeps: bool = True,
    generation: bool = False,
) -> int:
    """Builds the pipeline, checks it, runs it, and says where the results are.

    Args:
      args: parsed flags.
      run_dir: the run directory.
      build: adds all stages to the pipeline; raises before launch on bad input.
      finish: called after success, with progress over; prints what the user wants to know.
      keeps: whether the run directory outlives this call, so that the same command goes on.
      generation: whether it is one of a run, which `pipelines.reprocess` alone may fill.

    Returns:
      the process's exit code.
    """
    try:
        if layers.name_of(storage.absolute(run_dir)) and not generation:
            raise ValueError(
                f'run_dir is {run_dir!r}: lies in a generation of a run, which is kept as it is; '
                'use pipelines.reprocess, or choose another run_dir'
            )
        hardware = load_hardware(args)
        options = beam_options(args.beam, hardware)
        resources = _resources(args, options)
        # All of it without a trace first: a later stage that is refused must not find that an
        # earlier one has already remade its outputs.
        policy = FailurePolicy(args.block_attempts, args.retry_quarantined)
        rehearsal = Run(run_dir, resources, dry_run=True, hardware=hardware)
        build(beam.Pipeline(runner='DirectRunner', options=Options()), rehearsal)
        hardware.check_names(plan.name for plan in rehearsal.all_plans())
        if args.dry_run:
            print(args.describe(rehearsal))
            return 0
        run = Run(run_dir, resources, hardware=hardware, policy=policy)
        pipeline = beam.Pipeline(options=options)
        build(pipeline, run)
    except (ValueError, OSError, GoogleAPIError, GoogleAuthError) as error:
        print(f'error: {error}', file=sys.stderr)
        return BAD_INPUT
    ended = threading.Event()

    def end_with_worker(reason: str) -> None:
        if ended.is_set():
            return
        print(f'error: {_death(reason)}', file=sys.stderr)
        print(GO_ON, file=sys.stderr, flush=True)
        os._exit(FAILED)  # Beam would wait for it; the other workers end with this process.

    deaths = worker.Deaths()
    try:
        worker.prepare_launch(end_with_worker, deaths)
        with LedgerProgress(run.all_plans()):
            result = pipeline.run()
            if not is_template(args.beam):
                result.wait_until_finish()
    except Exception as error:
        logging.debug('pipeline failed', exc_info=True)
        _print_failure(_root_cause(error, deaths), run, keeps)
        return FAILED
    finally:
        ended.set()
    if finish and not is_template(args.beam):
        finish(run)
    return 0


def prepare(args: argparse.Namespace, run_dir: str, build: Callable[[Any, Run], Any]) -> Run:
    """Builds a job and makes its outputs, but runs nothing of it."""
    options = beam_options(args.beam, hardware := load_hardware(args))
    run = Run(run_dir, _resources(args, options), hardware=hardware)
    build(beam.Pipeline(runner='DirectRunner', options=Options()), run)
    return run


def _print_failure(cause: str, run: Run, keeps: bool) -> None:
    """Says why a run failed, which blocks are quarantined, and that the rest is kept."""
    print(f'error: {cause}', file=sys.stderr)
    with contextlib.suppress(OSError):  # It may be storage that failed.
        for line in itertools.islice(_quarantined(run), MOST_NAMED):
            if line not in cause:
                print(f'quarantined: {line}', file=sys.stderr)
    if keeps and GO_ON.partition(':')[0].lower() not in cause:
        print(GO_ON, file=sys.stderr)


def beam_options(flags: Sequence[str], hardware: Hardware = NO_WISHES) -> Options:
    """Beam's options; DirectRunner with one worker process per core unless told otherwise.

    Args:
      flags: of the command line, for Beam.
      hardware: what the job asks of Dataflow's workers; flags go before it.

    Raises:
      ValueError: a flag that neither we nor Beam know, for example a misspelt one.
    """
    options = Options(flags)
    unknown = _unknown_to_beam(options, flags)
    if unknown:
        raise ValueError(
            f'unknown flag {unknown[0]!r}: see --help and the pipeline options of Beam'
        )
    if options.view_as(StandardOptions).runner == 'DataflowRunner':
        options = Options([*flags, *hardware.beam_flags(flags)])
        if hardware.fits_tpus:
            logging.warning(
                'Dataflow gives no TPUs to single stages, as of 2026-04: if it refuses the job, '
                'set resources.workers.fitting to pool'
            )
    # Every DoFn lives in the library: nothing of the script need be pickled.
    options.view_as(SetupOptions).save_main_session = False
    standard, direct = options.view_as(StandardOptions), options.view_as(DirectOptions)
    if standard.runner in (None, 'DirectRunner'):
        standard.runner = 'DirectRunner'
        if not any(f.startswith('--direct_num_workers') for f in flags):
            direct.direct_num_workers = os.cpu_count() or 1
        if direct.direct_num_workers == 0:
            direct.direct_num_workers = os.cpu_count() or 1
        if not any(f.startswith('--direct_running_mode') for f in flags):
            many = direct.direct_num_workers > 1
            direct.direct_running_mode = 'multi_processing' if many else 'in_memory'
    return options


def describe_plan(run: Run) -> str:
    """The plan as a table: blocks done and left, bytes, memory per worker."""
    lines = [f'{"stage":<28}{"blocks":>10}{"done":>10}{"reads":>12}{"writes":>12}{"memory":>12}']
    for plan in run.all_plans():
        done = 0 if plan.since is None else count_done(plan, plan.since)
        lines.append(
            f'{plan.name:<28}{plan.blocks:>10,}{done:>10,}{_gib(plan.read_bytes):>12}'
            f'{_gib(plan.write_bytes):>12}{_gib(plan.memory_bytes):>12}'
        )
    limit = _gib(run.resources.memory_bytes_per_worker)
    lines.append(f'{run.resources.workers} workers of {limit} each; nothing was written.')
    return '\n'.join(lines)


def _quarantined(run: Run) -> Iterator[str]:
    """What blocks in quarantine failed of; a stage over all blocks fails of their absence."""
    for stage in run.all_plans():
        for path in quarantine.notes(stage.ledger):
            yield json.loads(storage.read_bytes(path))['error']


def read_report(run: Run) -> dict[str, Any]:
    """report.json of a finished run."""
    content: dict[str, Any] = json.loads(storage.read_bytes(storage.join(run.path, 'report.json')))
    return content


def _resources(args: argparse.Namespace, options: Options) -> Resources:
    runner = options.view_as(StandardOptions).runner
    if runner == 'DirectRunner':
        return Resources.local(options.view_as(DirectOptions).direct_num_workers)
    memory = int((args.worker_memory_gib or 16) * 2**30)
    remote = runner == 'DataflowRunner'
    return Resources(1, memory, shares_disk=not remote, fits_stages=remote)


def _not_beam_chatter(record: Any) -> bool:
    """Drops what Beam says at every start of a worker process and no user can act on."""
    text = record.getMessage()
    return not any(chatter in text for chatter in BEAM_CHATTER)


def _not_failed_bundle(record: Any) -> bool:
    """Drops tracebacks of a failure, of which `execute` prints the line that matters."""
    return '[while running ' not in record.getMessage()


def is_template(flags: Sequence[str]) -> bool:
    return any(flag.startswith('--template_location') for flag in flags)


def _unknown_to_beam(options: Options, flags: Sequence[str]) -> list[str]:
    # Names of flags and of options differ (--experiment, experiments), so Beam's parser must say.
    unknown: list[str] = []
    options.get_all_options(
        add_extra_args_fn=lambda beam: unknown.extend(beam.parse_known_args(list(flags))[1]),
        retain_unknown_options=True,  # Else Beam logs a warning of its own.
    )
    return unknown


def _root_cause(error: BaseException, deaths: worker.Deaths) -> str:
    """The line that says what went wrong, out of Beam's nested tracebacks."""
    text = str(error)
    end = r'(?: \[while running|$)'
    # A block that failed (see BlockError) says most; else the last exception does.
    found = re.findall(rf'(stage \S+, block \(.*?){end}', text, re.M)
    if not found and (known := explain(text)):
        return known
    # Of a worker that has died, Beam knows no more than that it does not answer; and may know it
    # before the process is found to have ended.
    lost = re.search(r'Channel closed|StatusCode.UNAVAILABLE', text)
    if not found and (reason := deaths.reason(wait_s=worker.GRACE_S if lost else 0)):
        return _death(reason)
    found = found or re.findall(rf'^[\w.]*Error: (.*?){end}', text, re.M)
    return found[-1] if found else f'{type(error).__name__}: {text[-2000:]}'


def _death(reason: str) -> str:
    return f'a worker process died ({reason}), for want of memory perhaps'


def _gib(size: float) -> str:
    for unit in ('B', 'KiB', 'MiB', 'GiB', 'TiB'):
        if size < 1024:
            return f'{size:.1f} {unit}'
        size /= 1024
    return f'{size:.1f} PiB'
