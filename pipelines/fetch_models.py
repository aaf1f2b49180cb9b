"""Fetches model files by digest: what is not exactly what the list says is not kept.

python -m pipelines.fetch_models --models deploy/models.yaml --output models
python -m pipelines.fetch_models --models deploy/models.yaml --output gs://BUCKET/models
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import re
import sys

from absl import app

from h01_beam import config as config_lib
from h01_beam import storage
from pipelines import launch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model file: where it comes from, and its SHA-256 (hex)."""

    source: str
    sha256: str

    def __post_init__(self) -> None:
        if not re.fullmatch('[0-9a-f]{64}', self.sha256):
            raise ValueError(f'sha256 of {self.source!r} is {self.sha256!r}: must be 64 hex digits')


def main(args: argparse.Namespace) -> int:
    try:
        if args.beam:
            raise ValueError(f'unknown flag {args.beam[0]!r}: see --help')
        for name, entry in config_lib.load(args.models).items():
            artifact = config_lib.from_dict(Artifact, entry, f'{name}.')
            print(fetch(artifact, storage.join(args.output, name)))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return launch.BAD_INPUT
    return 0


def fetch(artifact: Artifact, target: str) -> str:
    """Copies a file, unless it is there; returns a line that says which.

    Raises:
      FileNotFoundError: the source is not there.
      ValueError: it is another file than the one that was asked for.
    """
    if storage.exists(target) and _digest(storage.read_bytes(target)) == artifact.sha256:
        return f'{target} is there'
    data = storage.read_bytes(artifact.source)
    found = _digest(data)
    if found != artifact.sha256:
        raise ValueError(
            f'{artifact.source!r} has SHA-256 {found}: must be {artifact.sha256}; fetch the file '
            'that was meant, or state its digest after a look at it'
        )
    storage.write_bytes(target, data)
    return f'{target} fetched'


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flags() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument('--models', default='deploy/models.yaml', help='default: %(default)s')
    result.add_argument('--output', required=True, help='folder, local or gs:// URL')
    return result


if __name__ == '__main__':
    app.run(lambda args: sys.exit(main(args)), flags_parser=launch.parse(flags()))
