r"""Does a run again for what is new: sections, tiles, a volume or a model that was replaced.

    python -m pipelines.reprocess --run_dir run --dry_run       # what is new, what would run
    python -m pipelines.reprocess --run_dir run
    python -m pipelines.reprocess --run_dir run --watch 600     # looks every ten minutes
    python -m pipelines.reprocess --run_dir run --history
    python -m pipelines.reprocess --run_dir run --rollback
Dataflow:
    python -m pipelines.reprocess --run_dir gs://b/run \
        --runner DataflowRunner --project P --region R --temp_location gs://b/tmp \
        --setup_file ./setup.py

The job and its configuration are those of the run. Blocks whose inputs have not changed keep their
results. The new state is a generation over the old one, which nothing is written to: who reads it
goes on reading it, and `--rollback` returns to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app

from h01_beam import generations, layers, quarantine, storage
from h01_beam.alignment.job import AlignJob
from h01_beam.config import apply_overrides, from_dict
from h01_beam.ledger import join_markers
from h01_beam.lock import Lock
from h01_beam.preview import preview
from h01_beam.run import Run, read_manifest
from h01_beam.segmentation.config import SegmentConfig
from h01_beam.segmentation.stage import list_inputs
from pipelines import align, launch, segment

# Inputs that are named on the screen; all are in the history.
MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """What is known of a job whose results all lie in its run directory.

    Attributes:
      config: class of its configuration.
      add: adds it to a pipeline: root, run, configuration.
      inputs: a fingerprint for each input, by name.
      show: prints the results of a run.
    """

    config: type
    add: Callable[[Any, Run, Any], None]
    inputs: Callable[[Any], dict[str, str]]
    show: Callable[[Run], None]


JOBS = {
    'align': Job(AlignJob, align.add, align.inputs, align.show_results),
    'segmentation': Job(SegmentConfig, segment.add, list_inputs, segment.show_results),
}


@dataclasses.dataclass(frozen=True)
class Changes:
    """Names of inputs that differ from those of the present generation."""

    new: list[str]
    replaced: list[str]
    removed: list[str]

    @classmethod
    def between(cls, old: dict[str, str], now: dict[str, str]) -> Changes:
        return cls(
            new=[name for name in now if name not in old],
            replaced=[name for name in now if name in old and old[name] != now[name]],
            removed=[name for name in old if name not in now],
        )

    def __bool__(self) -> bool:
        return bool(self.new or self.replaced or self.removed)

    def describe(self) -> str:
        lines = []
        for kind, names in dataclasses.asdict(self).items():
            more = f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''
            lines.append(f'{kind:<10}{", ".join(names[:MOST_NAMED]) or "-"}{more}')
        return '\n'.join(lines)


def main(args: argparse.Namespace) -> int:
    try:
        args.run_dir = storage.absolute(args.run_dir)
        if args.history:
            show_history(args.run_dir)
            return 0
        if args.rollback:
            with Lock(args.run_dir):
                print(f'now {generations.roll_back(args.run_dir)}')
            return 0
        if args.watch is None:
            return look(args)
        while True:
            try:
                look(args)
            except OSError as error:  # It may pass: a bucket that does not answer, a lock.
                print(f'error: {error}', file=sys.stderr, flush=True)
            time.sleep(args.watch)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return launch.BAD_INPUT
    except KeyboardInterrupt:
        return 0


def look(args: argparse.Namespace) -> int:
    """Looks for what is new, once, and does what there is to do; returns the exit code."""
    with Lock(args.run_dir) as lock:
        return _reprocess(args, lock)


def _reprocess(args: argparse.Namespace, lock: Lock) -> int:
    if not args.dry_run:
        _settle(args.run_dir)
    present = generations.current(args.run_dir)
    manifest = _manifest(present)
    job = JOBS.get(manifest['job'])
    if job is None:
        raise ValueError(
            f'run_dir is {args.run_dir!r}: holds a run of {manifest["job"]!r}; must be one of '
            f'{", ".join(JOBS)}: give other jobs again, they do what is new and keep no generations'
        )
    if os.path.isdir(manifest['directory']):
        args.beam = [_from_anywhere(flag) for flag in args.beam]
        args.resources = args.resources and _from_anywhere(args.resources)
        os.chdir(manifest['directory'])  # Where relative paths in the configuration start.
    config: Any = from_dict(job.config, apply_overrides(manifest['config'], args.set))
    args.recorded = manifest.get('resources')
    inputs = job.inputs(config)
    attempt = generations.attempt(config, inputs)
    changes = Changes.between(manifest['inputs'], inputs)
    print(changes.describe(), flush=True)
    if attempt == manifest['attempt']:
        print('nothing new')
        return 0

    def build(root: Any, run: Run) -> None:
        job.add(root, run, config)

    if args.dry_run:
        show_plan(args, build)
        return 0
    folder = generations.begin(args.run_dir, attempt)
    code = launch.execute(args, folder, build, job.show, generation=True)
    if code == 0 and not launch.is_template(args.beam):
        lock.check()
        _commit(args, folder, changes)
    return code


def _from_anywhere(flag: str) -> str:
    """A flag, with an absolute path if its value is one of a file that is there."""
    name, equals, value = flag.rpartition('=')
    return name + equals + (os.path.abspath(value) if os.path.exists(value) else value)


def show_plan(args: argparse.Namespace, build: Callable[[Any, Run], None]) -> None:
    """Prints how many blocks of each stage would run, found in a generation that is given up."""
    folder = generations.begin(args.run_dir)
    try:
        run = launch.prepare(args, folder, build)
        print(f'{"stage":<28}{"blocks":>12}{"would run":>12}')
        for stage in preview(run.processes):
            print(f'{stage.name:<28}{stage.blocks:>12,}{stage.touched:>12,}', flush=True)
        whole = [plan.name for plan in run.all_plans() if plan.name.rpartition('/')[2] not in
                 {process.stage for process in run.processes}]  # fmt: skip
        if whole:
            print(f'At least: what {", ".join(whole)} change is known when they have run.')
    finally:
        storage.delete_folder(folder)


def _commit(args: argparse.Namespace, folder: str, changes: Changes) -> None:
    generations.commit(folder, _told(folder, changes))
    print(f'{"generation":<30}{layers.name_of(folder)}, in place of the one before')
    if args.keep_generations is not None:
        deleted = generations.prune(args.run_dir, args.keep_generations)
        print(f'{"pruned":<30}{deleted:,} files')


def _settle(run_dir: str) -> None:
    """Commits a generation that an engine finished after the process that began it had ended."""
    folder = generations.unfinished(run_dir)
    if folder is None:
        return
    report = storage.join(folder, 'report.json')
    if not storage.exists(report) or storage.find(report) != report:
        return
    content = json.loads(storage.read_bytes(report))
    # One of other inputs is that of an engine whose launcher has died; there is another attempt.
    same = content.get('attempt') == _manifest(folder)['attempt']
    if same and not quarantine.explain(content['stages']):
        before = _manifest(generations.current(run_dir))['inputs']
        changes = Changes.between(before, _manifest(folder)['inputs'])
        generations.commit(folder, _told(folder, changes))
        print(f'{"generation":<30}{layers.name_of(folder)} had ended: is the present one')


def _told(folder: str, changes: Changes) -> dict[str, Any]:
    content = json.loads(storage.read_bytes(storage.join(folder, 'report.json')))
    stages = {
        name: _count_blocks(folder, name, summary) for name, summary in content['stages'].items()
    }
    return {
        'inputs': dataclasses.asdict(changes),
        'stages': stages,
        'version': _manifest(folder)['version'],
    }


def _count_blocks(folder: str, stage: str, summary: dict[str, Any]) -> dict[str, int]:
    """How many blocks of a stage the generation has done, in however many attempts."""
    inner, _, name = stage.rpartition('/')
    path = storage.join(folder, *filter(None, (inner, 'ledger', name)))
    blocks = summary.get('blocks', 0)
    run = sum(1 for _ in storage.own_files(join_markers(path)))
    # A stage over all blocks at once has one marker for them.
    run = run or summary.get('blocks_run', 0)
    return {'blocks': blocks, 'blocks_run': run, 'blocks_reused': blocks - run}


def _manifest(folder: str) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if 'attempt' not in manifest:
        raise ValueError(
            f'run_dir is {folder!r}: its run.json does not say which inputs it had; give the '
            'command of the job once more, it records them and keeps all results'
        )
    return manifest


def show_history(run_dir: str) -> None:
    for event in generations.history(run_dir):
        when = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event['when']))
        told = ''
        if 'inputs' in event:
            told += ', '.join(f'{len(v)} {k}' for k, v in event['inputs'].items() if v)
            run = sum(stage['blocks_run'] for stage in event['stages'].values())
            reused = sum(stage['blocks_reused'] for stage in event['stages'].values())
            told += f'; {run:,} blocks run, {reused:,} kept'
        print(f'{when}  {event["event"]:<10}{event["from"] or "first"} -> '
              f'{event["to"] or "first"}  {told}')  # fmt: skip


def flags() -> argparse.ArgumentParser:
    result = launch.parser(__doc__ or '', config=False)
    result.add_argument(
        '--set', action='append', default=[], metavar='KEY=VALUE',
        help='changes one key of the configuration from now on',
    )  # fmt: skip
    result.add_argument(
        '--keep_generations', type=int, metavar='N',
        help='afterwards, prune all but the last N; default: keep all',
    )  # fmt: skip
    result.add_argument(
        '--watch', type=float, metavar='SECONDS', help='look again and again, so often'
    )
    result.add_argument('--history', action='store_true', help='print what was done, then end')
    result.add_argument(
        '--rollback', action='store_true', help='return to the generation before, then end'
    )
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
