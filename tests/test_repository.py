"""What setup.py, BUILD and the folders say of each other agrees."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import setuptools

# Import names that differ from their package's.
PACKAGE_OF = {
    'absl': 'absl-py',
    'apache_beam': 'apache-beam',
    'cc3d': 'connected-components-3d',
    'google': 'google-cloud-storage',
    'PIL': 'pillow',
    'cv2': 'opencv-python-headless',
    'gcp_storage_emulator': 'gcp-storage-emulator',
    'yaml': 'pyyaml',
}
GPL = {'kimimaro', 'tinybrain'}


def package_name(requirement: str) -> str:
    return re.match(r'[A-Za-z0-9_.-]+', requirement)[0].lower().replace('_', '-')


@pytest.fixture
def setup_arguments(repository: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What setup.py passes to setuptools."""
    arguments: dict[str, object] = {}
    monkeypatch.setattr(setuptools, 'setup', arguments.update)
    monkeypatch.chdir(repository)
    path = repository / 'setup.py'
    exec(compile(path.read_text(), path, 'exec'), {'__file__': str(path), '__name__': 'setup'})
    return arguments


@pytest.fixture
def build_targets(repository: Path) -> dict[str, tuple[str, dict[str, object]]]:
    """Targets of BUILD, {name: (rule, attributes)}; Starlark of this form is Python too."""
    targets: dict[str, tuple[str, dict[str, object]]] = {}

    def rule(kind: str):
        return lambda name, **attributes: targets.__setitem__(name, (kind, attributes))

    def glob(patterns: list[str], exclude: Sequence[str] = (), allow_empty: bool = False):
        found = {p for pattern in patterns for p in repository.glob(pattern) if p.is_file()}
        found -= {p for pattern in exclude for p in repository.glob(pattern)}
        assert found or allow_empty, f'BUILD: glob({patterns}) finds no file'
        return sorted(p.relative_to(repository).as_posix() for p in found)

    names = {kind: rule(kind) for kind in ('py_library', 'py_binary', 'py_test')}
    ignored = {name: lambda *_, **__: None for name in ('load', 'package', 'licenses')}
    scope = {**names, **ignored, 'glob': glob, 'requirement': '@pypi//{}'.format}
    scope |= {'exports_files': lambda paths: None}
    exec(compile((repository / 'BUILD').read_text(), 'BUILD', 'exec'), scope)
    return targets


def scripts(folder: Path) -> set[str]:
    """Names of the files that can be run, as against modules that they share."""
    return {file.stem for file in folder.glob('*.py') if "== '__main__'" in file.read_text()}


def third_party_imports(root: Path) -> Iterator[tuple[str, str]]:
    """Yields (file, package) for each import of `root` from outside of the project."""
    own = {'h01_beam', 'models', 'pipelines', 'tests', *sys.stdlib_module_names}
    for file in root.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                top = module.split('.')[0]
                if top not in own:
                    yield file.relative_to(root.parent).as_posix(), PACKAGE_OF.get(top, top)


def test_setup_ships_the_library_only(setup_arguments, repository):
    packages = setup_arguments['packages']
    assert packages
    assert {name.split('.')[0] for name in packages} == {'h01_beam'}
    folders = {file.parent for file in (repository / 'h01_beam').rglob('*.py')}
    expected = {'.'.join(folder.relative_to(repository).parts) for folder in folders}
    assert set(packages) == expected, 'a folder of h01_beam lacks its __init__.py'


def test_gpl_packages_are_extras(setup_arguments):
    hard = {package_name(r) for r in setup_arguments['install_requires']}
    assert not hard & GPL
    assert GPL <= {package_name(r) for r in setup_arguments['extras_require']['gpl']}


def test_every_import_of_the_library_is_declared(setup_arguments, repository):
    declared = {
        package_name(r)
        for r in [
            *setup_arguments['install_requires'],
            *setup_arguments['extras_require']['gpl'],
            *setup_arguments['extras_require']['jax'],
        ]
    }
    for_tests = {package_name(r) for r in setup_arguments['extras_require']['test']}
    for folder in ('h01_beam', 'pipelines', 'models'):
        for file, package in third_party_imports(repository / folder):
            known = declared | for_tests if file.startswith('h01_beam/testing/') else declared
            assert package in known, f'{file} imports {package}, which setup.py does not require'


def test_constraints_pin_every_direct_requirement(setup_arguments, repository):
    lines = (repository / 'constraints.txt').read_text().splitlines()
    pins = {package_name(line) for line in lines if '==' in line}
    wanted = [*setup_arguments['install_requires'], *setup_arguments['extras_require']['test']]
    missing = {package_name(r) for r in wanted} - pins
    assert not missing, f'constraints.txt does not pin {sorted(missing)}: run make lock'


def test_every_pipeline_has_a_binary_and_every_binary_a_script(build_targets, repository):
    binaries = {
        attributes['main']: attributes['srcs']
        for kind, attributes in build_targets.values()
        if kind == 'py_binary'
    }
    for main, sources in binaries.items():
        assert (repository / main).is_file(), f'BUILD: {main} does not exist'
        assert sources == [main]
    in_build = {Path(main).stem for main in binaries if main.startswith('pipelines/')}
    assert in_build == scripts(repository / 'pipelines')


def test_build_library_requires_what_setup_requires(build_targets, setup_arguments):
    _, attributes = build_targets['h01_beam']
    in_build = {dep.removeprefix('@pypi//') for dep in attributes['deps']}
    in_setup = {package_name(r) for r in setup_arguments['install_requires']}
    extra = in_build - in_setup
    assert in_setup <= in_build
    assert all(name.startswith('google-') for name in extra), f'not in setup.py: {extra}'


def test_bazel_4_knows_the_packages_that_build_requires(build_targets, repository):
    scope: dict[str, list[str]] = {}
    exec((repository / '.ci/bazel/pypi/names.bzl').read_text(), scope)
    deps = {dep for _, attributes in build_targets.values() for dep in attributes['deps']}
    required = {dep.removeprefix('@pypi//') for dep in deps if dep.startswith('@pypi//')}
    assert scope['NAMES'] == sorted(required)


def test_build_targets_name_real_files_and_targets(build_targets, repository):
    for name, (_, attributes) in build_targets.items():
        for path in (*attributes['srcs'], *attributes.get('data', ())):
            assert (repository / path).is_file(), f'BUILD: {name} lists {path}'
        for dep in attributes['deps']:
            known = dep.startswith('@') or dep.removeprefix(':') in build_targets
            assert known, f'BUILD: {name} depends on {dep}'


def test_every_test_file_has_a_target(build_targets, repository):
    tests = [attributes for kind, attributes in build_targets.values() if kind == 'py_test']
    in_build = {path for attributes in tests for path in attributes['args']}
    files = {
        f.relative_to(repository).as_posix() for f in (repository / 'tests').rglob('test_*.py')
    }
    assert in_build == files


def test_build_lists_the_tests_that_others_import(repository):
    imported = set()
    for file in sorted((repository / 'tests').rglob('*.py')):
        for name in re.findall(r'^from (tests\.[\w.]*test_\w+) import', file.read_text(), re.M):
            imported.add(name.replace('.', '/') + '.py')
    build = (repository / 'BUILD').read_text()
    (listed,) = re.findall(r'TESTS_THAT_OTHERS_IMPORT = \[(.*?)\]', build, re.S)
    assert set(re.findall(r'"(.*?)"', listed)) == imported
