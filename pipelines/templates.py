"""Writes the Flex Templates: what each job takes, read off its argument parser.

The metadata that the repository holds (a test keeps it current):
    python -m pipelines.templates
Templates, for an image that was pushed:
    python -m pipelines.templates --output gs://BUCKET/templates \
        --image us-docker.pkg.dev/PROJECT/h01/JOB@sha256:... --job segment
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import app

from h01_beam import storage
from h01_beam.cloud import flex
from pipelines import launch

HERE = Path(__file__).resolve().parent
METADATA = HERE.parent / 'deploy' / 'templates'
# It calls other jobs, one after the other, which a template cannot: it builds one job.
SEQUENCES = ('demo',)


def main(args: argparse.Namespace) -> int:
    try:
        if args.beam:
            raise ValueError(f'unknown flag {args.beam[0]!r}: see --help')
        if args.image is None:
            if args.output or args.job:
                raise ValueError('--output and --job need --image: a template names its image')
            for name in job_names():
                write(str(METADATA / f'{name}.json'), describe(name))
            return 0
        if args.job is None or args.output is None:
            raise ValueError('--image needs --job and --output: an image builds one job')
        spec = flex.container_spec(args.image, describe(args.job))
        write(storage.join(args.output, f'{args.job}.json'), spec)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return launch.BAD_INPUT
    return 0


def job_names() -> list[str]:
    """Scripts here that build one pipeline, by name."""
    sources = {file.stem: file.read_text() for file in sorted(HERE.glob('*.py'))}
    return [
        name
        for name, text in sources.items()
        if re.search(r'^ +(return|code =) launch\.execute\(', text, re.M) and name not in SEQUENCES
    ]


def job(name: str) -> ModuleType:
    """The script of a job, with its `flags` and its `main`.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in job_names():
        raise ValueError(f'job is {name!r}: must be one of {", ".join(job_names())}')
    return importlib.import_module(f'pipelines.{name}')


def describe(name: str) -> dict[str, Any]:
    """Metadata of a job's template."""
    return flex.describe_job(name, job(name).flags())


def render(content: object) -> bytes:
    return (json.dumps(content, indent=2) + '\n').encode()


def write(path: str, content: object) -> None:
    storage.write_bytes(path, render(content))
    print(f'wrote {path}')


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument('--image', metavar='IMAGE@sha256:...', help='builds and runs the job')
    result.add_argument('--job', help='the job that the image builds')
    result.add_argument('--output', help='folder of the templates, local or gs:// URL')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
