"""The layers of the project, read from its imports: which file may import what."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = ('h01_beam', 'pipelines', 'models')
BEAM_FILES = (
    'h01_beam/blockwise.py',
    'h01_beam/work.py',
    'h01_beam/finish.py',
    'h01_beam/options.py',
    'h01_beam/worker.py',
    'h01_beam/boot.py',
    'h01_beam/run.py',
    'h01_beam/subrun.py',
    'h01_beam/*/stage.py',
    'h01_beam/forecast/ledger.py',  # measures the ledger in runs
    'h01_beam/agglomeration/components.py',  # a Beam algorithm by nature
    'h01_beam/testing/*',
    'pipelines/*',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Files that match `within` but not `allowed` do not import `packages`.

    Patterns are those of fnmatch, in which a * also matches slashes.
    """

    packages: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    within: tuple[str, ...] = ('*',)
    reason: str

    def covers(self, path: str) -> bool:
        """Whether a file has to keep this rule."""
        return _matches(path, self.within) and not _matches(path, self.allowed)

    def forbids(self, module: str) -> bool:
        """Whether `module` is one of the packages or inside of one."""
        return any(module == p or module.startswith(f'{p}.') for p in self.packages)


RULES = (
    Rule(
        packages=('apache_beam',),
        allowed=BEAM_FILES,
        reason='stages are pure functions; Beam stays in blockwise, finish, options, worker, stage.py and pipelines',
    ),
    Rule(
        packages=('tensorstore',),
        allowed=('h01_beam/volume.py',),
        reason='storage order and formats meet numpy in volume.py and nowhere else',
    ),
    Rule(
        packages=('keras', 'tensorflow', 'jax', 'torch'),
        allowed=('h01_beam/models.py', 'models/*'),
        reason='networks sit behind h01_beam/models.py',
    ),
    Rule(
        packages=('models',),
        allowed=('models/*',),
        reason='workers load a model artifact, never Python from models/',
    ),
    Rule(
        packages=('pipelines', 'tests'),
        allowed=('pipelines/*',),
        reason='the library knows neither its scripts nor its tests',
    ),
    Rule(
        # The array functions and specs of volume.py are pure; opening a Volume is not.
        packages=(
            'h01_beam.blockwise',
            'h01_beam.run',
            'h01_beam.volume.Volume',
        ),
        within=('h01_beam/*/*.py', 'h01_beam/geometry.py'),
        # export and forecast are no stages: one shows finished runs, the other plans them.
        allowed=(*BEAM_FILES, 'h01_beam/export/*', 'h01_beam/forecast/*'),
        reason='modules of a stage are numpy in, numpy out; stage.py connects them to volumes',
    ),
)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the absolute name of every module and member that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                above = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*above, base] if base else above)
            # `from h01_beam import volume` imports the module h01_beam.volume.
            yield from ((node.lineno, f'{base}.{alias.name}') for alias in node.names)


def violations(root: Path) -> Iterator[str]:
    """Yields one line, with file, line and rule, for every import that breaks a rule."""
    for folder in SOURCES:
        for file in sorted((root / folder).rglob('*.py')):
            path = file.relative_to(root).as_posix()
            rules = [rule for rule in RULES if rule.covers(path)]
            package = '.'.join(file.relative_to(root).parent.parts)
            for line, module in imported_modules(file.read_text(encoding='utf-8'), package):
                for rule in rules:
                    if rule.forbids(module):
                        yield f'{path}:{line} imports {module}: {rule.reason}'


def test_imports_keep_the_layers(repository):
    found = list(violations(repository))
    assert not found, 'imports that break the layering:\n' + '\n'.join(found)


@pytest.mark.parametrize(
    ('path', 'source', 'expected'),
    [
        ('h01_beam/geometry.py', 'import apache_beam as beam', 'apache_beam'),
        ('h01_beam/run.py', 'import tensorstore as ts', 'tensorstore'),
        ('h01_beam/imaging/masks.py', 'from h01_beam import run', 'h01_beam.run'),
        ('h01_beam/imaging/masks.py', 'from ..volume import Volume', 'h01_beam.volume.Volume'),
        ('h01_beam/imaging/masks.py', 'def f():\n  from tensorflow.io import gfile', 'tensorflow'),
        ('h01_beam/imaging/stage.py', 'from models.ffn import network', 'models.ffn'),
        ('pipelines/segment.py', 'import models.ffn.network', 'models.ffn'),
        ('h01_beam/config.py', 'import pipelines.segment', 'pipelines.segment'),
    ],
)
def test_a_broken_layer_is_found(tmp_path, path, source, expected):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    (found,) = violations(tmp_path)
    line = source.count('\n') + 1
    assert found.startswith(f'{path}:{line} imports {expected}')


def test_allowed_imports_pass(tmp_path):
    allowed = {
        'h01_beam/imaging/stage.py': 'import apache_beam\nfrom h01_beam import volume, blockwise',
        'h01_beam/imaging/masks.py': 'import numpy\nfrom h01_beam.volume import VolumeSpec',
        'h01_beam/volume.py': 'import tensorstore as ts',
        'h01_beam/models.py': 'import keras, tensorflow',
        'models/ffn/train.py': 'import keras\nfrom models.ffn import network',
        'pipelines/segment.py': 'import apache_beam\nfrom h01_beam.segmentation import stage',
    }
    for path, source in allowed.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(source))
    assert list(violations(tmp_path)) == []
